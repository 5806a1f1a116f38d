"""Who may import whom: the arrows of the design, read from the import statements."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import batchstream

PACKAGE = Path(batchstream.__file__).parent

VOCABULARY = {"_markers", "_events", "_errors"}
CORE = {"_admission", "_demux", "_eos", "_marks", "_steps"}
LOOPS = {"_asyncio", "_current_loop", "_loops", "_trio"}
SHELL_PARTS = {
    "_buffers",
    "_feeds",
    "_inlet",
    "_opening",
    "_places",
    "_pump",
    "_receiver",
    "_running",
    "_source",
    "_stream",
}
PUMPS = {"_pull", "_task", "_thread"}
SHELLS = {"_async", "_sync"}
ENTRY = {"_open"}
BATCHING_PARTS = {
    "_engine",
    "_groups",
    "_ledger",
    "_metrics",
    "_request",
    "_request_feed",
    "_runs",
    "_terms",
    "_workers",
}
DISPATCHERS = {"_dispatcher", "_task_dispatcher", "_thread_dispatcher"}
BATCHERS = {"_batcher", "_continuous", "_dynamic"}

BELOW_PUMPS = VOCABULARY | CORE | LOOPS | SHELL_PARTS
MAY_IMPORT = {
    **dict.fromkeys(VOCABULARY, VOCABULARY),
    **dict.fromkeys(CORE, VOCABULARY | CORE),
    **dict.fromkeys(LOOPS, LOOPS),
    **dict.fromkeys(SHELL_PARTS, BELOW_PUMPS),
    **dict.fromkeys(PUMPS, BELOW_PUMPS),
    **dict.fromkeys(SHELLS, BELOW_PUMPS | PUMPS),
    **dict.fromkeys(ENTRY, SHELLS | {"_running"}),
    **dict.fromkeys(BATCHING_PARTS, BELOW_PUMPS | BATCHING_PARTS),
    **dict.fromkeys(
        DISPATCHERS, BELOW_PUMPS | BATCHING_PARTS | {"_dispatcher", "_task", "_thread"}
    ),
    **dict.fromkeys(
        BATCHERS, BELOW_PUMPS | PUMPS | SHELLS | BATCHING_PARTS | DISPATCHERS | BATCHERS
    ),
    "__init__": VOCABULARY | CORE | SHELLS | ENTRY | {"_metrics"} | BATCHERS,
}
# Imported where it runs, which is nowhere unless the user has it.
OPTIONAL = {"_trio": {"trio"}}
# The core waits for nothing and reads no clock.
NEVER_IN_CORE = {"threading", "asyncio", "time", "queue", "socket", "contextvars", "os", "logging"}


def imports(path):
    """Yield the modules that a file imports, those for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield node.module


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_a_module_imports_only_what_lies_below_it(module):
    ours = {
        name.removeprefix("batchstream.")
        for name in imports(PACKAGE / f"{module}.py")
        if name.startswith("batchstream.")
    }
    assert ours <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", sorted(VOCABULARY | CORE))
def test_the_core_does_no_io_and_reads_no_clock(module):
    roots = {name.partition(".")[0] for name in imports(PACKAGE / f"{module}.py")}
    assert not roots & NEVER_IN_CORE


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_nothing_but_typing_extensions_is_imported_from_outside(module):
    roots = {name.partition(".")[0] for name in imports(PACKAGE / f"{module}.py")}
    allowed = {"batchstream", "typing_extensions"} | OPTIONAL.get(module, set())
    assert roots - set(sys.stdlib_module_names) <= allowed
