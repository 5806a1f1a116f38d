"""Which folder may import which: the arrows of the design, read from the import statements."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest

import batchstream

PACKAGE = Path(batchstream.__file__).parent
FOLDERS = (
    "_native",
    "_core",
    "_log",
    "_eventloops",
    "_handoff",
    "_pumps",
    "_streams",
    "_text",
    "_batching",
)
# Public modules beside `batchstream` itself, with the folders that they take their names from.
BESIDE = {"_text", "_remote"}

BELOW = {
    "_native": set(),
    "_core": {"_native"},
    "_log": {"_core"},
    "_eventloops": {"_native"},
    "_handoff": {"_native", "_core", "_eventloops"},
    "_pumps": {"_native", "_core", "_log", "_eventloops", "_handoff"},
    "_streams": {"_native", "_core", "_eventloops", "_handoff", "_pumps"},
    "_text": {"_core", "_pumps"},
    "_batching": {"_core", "_log", "_eventloops", "_handoff", "_pumps", "_streams", "_text"},
    "text": {"_text"},
    "_remote": {"__init__", "_core", "_log", "_pumps", "_handoff", "_streams", "_batching"},
    "remote": {"_remote"},
    "__init__": set(FOLDERS) - BESIDE,
    "_cli": {"integrations"},
    "__main__": {"_cli"},
}
EVERY = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")
)
MODULES = [module for module in EVERY if not module.startswith("integrations/")]
CORE = [module for module in MODULES if module.startswith("_core/")]
# Folders that have layers of their own. Those of LitServe's integration are kinds of processes too:
# what one runs knows what all of them share, and not what another kind runs.
BATCHING = "_batching"
LITSERVE = "integrations/litserve"
BELOW_IN_BATCHING = {
    "clock": set(),
    "engine": set(),
    "single": set(),
    "waiting": set(),
    "telemetry": {"life"},
    "life": {"clock"},
    "requests": {"engine", "telemetry", "waiting"},
    "options": {"life", "requests", "telemetry", "waiting"},
    "reporting": {"clock", "life", "options", "requests", "telemetry", "waiting"},
    "batches": {"clock", "engine", "life", "options", "reporting", "requests", "waiting"},
    "scheduling": {"batches", "life", "options", "reporting", "requests", "waiting"},
    "dispatching": {
        *("batches", "clock", "engine", "life", "options", "reporting", "requests", "scheduling"),
    },
    "calls": {"clock", "dispatching", "life", "options", "requests", "scheduling", "waiting"},
    "html": {"dispatching", "life", "waiting"},
    "batcher": {"calls", "dispatching", "html", "life"},
    "dynamic": {
        *("batcher", "batches", "calls", "dispatching", "options", "requests", "single"),
        "telemetry",
    },
    "continuous": {"batcher", "calls", "dispatching", "engine", "options", "telemetry"},
    "decorator": {"dynamic", "telemetry"},
    "__init__": set(),
}
BELOW_IN_LITSERVE = {
    "_log": set(),
    "_options": {"_link"},
    "_shutdown": {"_link"},
    "_link": {"_log"},
    "_worker": {"_link", "_log", "_options"},
    "_server": {"_link", "_log", "_shutdown"},
    "_openai": {"_link", "_log", "_options", "_server"},
    "_loop": {"_link", "_openai", "_options", "_server", "_worker"},
    "_batched_loop": {"_link", "_loop", "_options", "_worker"},
    "_continuous_loop": {"_link", "_loop", "_options", "_worker"},
    "__init__": {"_batched_loop", "_continuous_loop", "_link", "_openai"},
}
LAYERED = {BATCHING: BELOW_IN_BATCHING, LITSERVE: BELOW_IN_LITSERVE}
# Imported where it runs, which is nowhere unless the user has it.
OPTIONAL = {
    "_eventloops/trio": {"trio"},
    "_cli/demo/run": {"rich"},
    "_cli/demo/server": {"litserve"},
    "_cli/demo/show": {"rich"},
    "_cli/top/page": {"prometheus_client"},
    "_cli/top/run": {"rich"},
    "_cli/top/show": {"rich"},
}
# The core waits for nothing and reads no clock.
NEVER_IN_CORE = {"threading", "asyncio", "time", "queue", "socket", "contextvars", "os", "logging"}


@functools.cache
def imports(module):
    """Return the modules that one imports, what is imported for type checkers included."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@functools.cache
def ours(module):
    """Return the modules of this package that one imports, as `folder/name`."""
    names = [name for name in imports(module) if name.startswith("batchstream.")]
    return {nearest(name.split(".")[1:]) for name in names}


def nearest(parts):
    """Return the module that a name is, or is defined in."""
    while not is_module(PACKAGE.joinpath(*parts)):
        parts = parts[:-1]
    return "/".join(parts) or "__init__"


def is_module(path):
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_every_module_lies_in_a_folder_of_the_design():
    assert {module.partition("/")[0] for module in MODULES} == set(BELOW)


@pytest.mark.parametrize("module", MODULES)
def test_a_folder_imports_only_what_lies_below_it(module):
    folder = module.partition("/")[0]
    assert {name.partition("/")[0] for name in ours(module)} - {folder} <= BELOW[folder]


def test_no_module_but_the_commands_themselves_imports_the_commands():
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if module.partition("/")[0] not in {"_cli", "__main__"}:
            assert not {name for name in imports(module) if name.startswith("batchstream._cli")}


@pytest.mark.parametrize("folder", LAYERED)
def test_a_folder_with_layers_of_its_own_has_them_all_in_a_row(folder):
    names = {path.stem for path in (PACKAGE / folder).iterdir() if path.name != "__pycache__"}
    assert names == set(LAYERED[folder])


@pytest.mark.parametrize(
    ("folder", "module"),
    [(folder, module) for folder in LAYERED for module in EVERY if module.startswith(f"{folder}/")],
)
def test_what_lies_in_a_folder_imports_only_what_lies_below_it_there(folder, module):
    def row(name):
        return name.removeprefix(f"{folder}/").partition("/")[0]

    found = {row(name) for name in ours(module) if name.startswith(f"{folder}/")}
    assert found - {row(module)} <= LAYERED[folder][row(module)]


def test_no_module_imports_itself_by_way_of_others():
    assert not circular({module: ours(module) & set(EVERY) for module in EVERY})


def circular(needed):
    """Return the modules that import each other in a circle, or a module in a circle."""
    left = dict(needed)
    while free := [module for module, others in left.items() if not others & set(left)]:
        for module in free:
            del left[module]
    return left


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_no_io_and_reads_no_clock(module):
    assert not {name.partition(".")[0] for name in imports(module)} & NEVER_IN_CORE


@pytest.mark.parametrize("module", MODULES)
def test_nothing_but_typing_extensions_is_imported_from_outside(module):
    roots = {name.partition(".")[0] for name in imports(module)}
    allowed = {"batchstream", "typing_extensions", "__future__"} | OPTIONAL.get(module, set())
    assert roots - set(sys.stdlib_module_names) <= allowed
