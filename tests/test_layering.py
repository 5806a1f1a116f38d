"""Which folder may import which: the arrows of the design, read from the import statements."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import batchstream

PACKAGE = Path(batchstream.__file__).parent
FOLDERS = (
    "_native",
    "_core",
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
    "_eventloops": {"_native"},
    "_handoff": {"_native", "_core", "_eventloops"},
    "_pumps": {"_native", "_core", "_eventloops", "_handoff"},
    "_streams": {"_native", "_core", "_eventloops", "_handoff", "_pumps"},
    "_text": {"_core", "_pumps"},
    "_batching": {"_core", "_eventloops", "_handoff", "_pumps", "_streams", "_text"},
    "text": {"_text"},
    "_remote": {"__init__", "_core", "_pumps", "_handoff", "_streams", "_batching"},
    "remote": {"_remote"},
    "__init__": set(FOLDERS) - BESIDE,
    "_cli": {"integrations"},
    "__main__": {"_cli"},
}
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "integrations"
)
CORE = [module for module in MODULES if module.startswith("_core/")]
# The folders of an integration that runs in several processes: what one kind of process runs knows
# what all of them share, and not what another kind runs.
LITSERVE = "integrations/litserve"
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
LITSERVE_MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in (PACKAGE / LITSERVE).rglob("*.py")
)
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


def ours(module):
    """Return the modules of this package that one imports, as `folder/name`."""
    parts = [name.split(".")[1:3] for name in imports(module) if name.startswith("batchstream.")]
    return {"/".join(part) for part in parts}


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


def in_litserve(module):
    """Return the folder or module of the integration that a module lies in."""
    return module.removeprefix(f"{LITSERVE}/").partition("/")[0]


@pytest.mark.parametrize("module", LITSERVE_MODULES)
def test_what_one_kind_of_process_runs_imports_nothing_that_another_kind_runs(module):
    prefix = f"batchstream.{LITSERVE.replace('/', '.')}."
    names = {name for name in imports(module) if name.startswith(prefix)}
    found = {name.removeprefix(prefix).partition(".")[0] for name in names}
    assert found - {in_litserve(module)} <= BELOW_IN_LITSERVE[in_litserve(module)]


def test_no_module_of_the_integration_imports_itself_by_way_of_others():
    left = {}
    for module in LITSERVE_MODULES:
        names = {name.removeprefix("batchstream.").replace(".", "/") for name in imports(module)}
        left[module] = {
            other for other in LITSERVE_MODULES for name in names if name.startswith(f"{other}/")
        }
    assert not circular(left)


def test_no_module_imports_itself_by_way_of_others():
    assert not circular({module: ours(module) & set(MODULES) for module in MODULES})


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
