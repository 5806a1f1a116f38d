"""Which core runs: the native one where it can be loaded, unless a variable forbids it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import batchstream
from support.natively import needs_native

pytestmark = needs_native

SAY = """
import batchstream
from batchstream._core.cores import Core
from batchstream._handoff.buffer import Buffer
(stream,) = batchstream.demux([["a"]], 1)
types = [type(stream).__mro__[-2], Core, Buffer, type(stream._upstream.role)]
native = {"_native" in f"{each.__module__} {each.__mro__}" for each in types}
print(batchstream.__native__, native, list(stream))
"""
NATIVE = "True {True} ['a']\n"
REFERENCE = "False {False} ['a']\n"
PACKAGE = Path(batchstream.__file__).parent


def said(environment=(), folder=None):
    """Return what a process says in which the package is imported, from this folder if need be."""
    variables = {name: value for name, value in os.environ.items() if name != "BATCHSTREAM_PURE"}
    if folder is not None:
        variables["PYTHONPATH"] = str(folder)
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-X", "dev", "-c", SAY],
        env=variables | dict(environment),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == ""
    assert ended.returncode == 0
    return ended.stdout


@pytest.fixture
def copy(tmp_path):
    """Copy the package, so that its extension can be broken."""
    shutil.copytree(PACKAGE, tmp_path / "batchstream", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def extension_in(folder):
    (found,) = (folder / "batchstream" / "_native").glob(
        f"extension.{sys.implementation.cache_tag}*"
    )
    return found


def test_the_native_core_runs_where_it_was_built():
    assert said() == NATIVE


@pytest.mark.parametrize("value", ["", "0"])
def test_a_variable_that_says_no_changes_nothing(value):
    assert said({"BATCHSTREAM_PURE": value}) == NATIVE


@pytest.mark.parametrize("value", ["1", "yes"])
def test_a_variable_chooses_the_reference(value):
    assert said({"BATCHSTREAM_PURE": value}) == REFERENCE


def test_the_package_says_which_core_runs():
    assert batchstream.__native__ is True


def test_a_copy_of_the_package_runs_natively_too(copy):
    assert said(folder=copy) == NATIVE


def test_without_an_extension_the_reference_runs(copy):
    extension_in(copy).unlink()
    assert said(folder=copy) == REFERENCE


@pytest.mark.parametrize("content", [b"", b"this is no library", None])
def test_with_a_broken_extension_the_reference_runs(copy, content):
    extension = extension_in(copy)
    if content is None:  # cut off in the middle
        content = extension.read_bytes()[:500]
    extension.write_bytes(content)
    assert said(folder=copy) == REFERENCE


def test_an_extension_of_another_python_is_not_even_found(copy):
    extension = extension_in(copy)
    extension.rename(extension.with_name("extension.cpython-39-of-another-kind.so"))
    assert said(folder=copy) == REFERENCE


def test_a_library_without_the_module_is_no_extension(copy):
    extension = extension_in(copy)
    found = extension.read_bytes()
    extension.write_bytes(found.replace(b"PyInit_extension", b"PyInit_exxtensio"))
    assert said(folder=copy) == REFERENCE


def test_after_a_second_import_the_reference_runs_and_the_streams_of_the_first_go_on():
    program = (
        SAY
        + """
import sys
for name in [name for name in sys.modules if name.startswith("batchstream")]:
    del sys.modules[name]
import batchstream as second
assert second is not batchstream
print(list(stream), [list(each) for each in second.demux([["b"]], 1)])
(again,) = batchstream.demux([["c"], [batchstream.Last("d")]], 1)
print(list(again), again.finish_reason, second.__native__)
"""
    )
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program],
        env={**os.environ, "BATCHSTREAM_PURE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[1:] == ["[] [['b']]", "['c', 'd'] eos False"]
