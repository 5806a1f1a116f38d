"""The public surface: what `import batchstream` offers, and nothing else."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import batchstream
import batchstream.remote
import batchstream.text

PACKAGE = Path(batchstream.__file__).parent
MODULES = {"integrations", "remote", "text"}  # public, and imported by their own names


def test_all_lists_every_public_name_in_order_and_each_exists():
    public = {name for name in vars(batchstream) if not name.startswith("_")} - MODULES
    assert set(batchstream.__all__) == public
    assert all(hasattr(batchstream, name) for name in batchstream.__all__)


def test_init_holds_names_and_no_logic():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    docstring, *statements, version, last = tree.body
    assert isinstance(docstring, ast.Expr)
    assert all(isinstance(statement, ast.ImportFrom) for statement in statements)
    assert [ast.unparse(each.targets[0]) for each in (version, last)] == ["__version__", "__all__"]
    assert isinstance(version.value, ast.Constant)  # asking the metadata would cost import time


@pytest.mark.parametrize(
    "module", [batchstream, batchstream.remote, batchstream.text], ids=lambda it: it.__name__
)
def test_every_public_name_says_what_it_is(module):
    for name in module.__all__:
        thing = getattr(module, name)
        assert inspect.getdoc(thing), f"{name} has no docstring"


@pytest.mark.parametrize("module", [batchstream.remote, batchstream.text])
def test_a_module_beside_the_package_holds_names_and_no_logic(module):
    docstring, *statements, last = ast.parse(Path(module.__file__).read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert all(isinstance(statement, ast.ImportFrom) for statement in statements)
    assert ast.unparse(last.targets[0]) == "__all__"
    assert module.__all__ == sorted(module.__all__)


def test_methods_of_the_shells_say_what_waits_and_what_a_cancel_loses():
    shells = (
        batchstream.Stream,
        batchstream.BatchedStream,
        batchstream.AsyncStream,
        batchstream.AsyncBatchedStream,
        batchstream.DynamicBatcher,
        batchstream.ContinuousBatcher,
    )
    for owner in shells:
        for name in ("receive", "drain", "cancel", "close", "aclose", "steps", "stream", "astream"):
            method = getattr(owner, name, None)
            doc = inspect.getdoc(method) or ""
            if method is None or (owner is batchstream.Stream and name == "close"):
                continue
            assert all(word in doc for word in ("Blocking:", "Cancellation:", "Threads:")), name


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
