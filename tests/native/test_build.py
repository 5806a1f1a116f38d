"""How the native core comes into a checkout that is installed as it is."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

BUILD = Path(__file__).parents[2] / "native" / "build.py"
TAG = sys.implementation.cache_tag
NAME = f"extension.{TAG}-any.so"


@pytest.fixture
def build(monkeypatch):
    if not BUILD.is_file():
        pytest.skip("there is no checkout")
    plugin = ModuleType("hatchling.builders.hooks.plugin.interface")
    plugin.BuildHookInterface = dict  # which takes [Any], too; only a build has hatchling
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    spec = importlib.util.spec_from_file_location("build_of_native", BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / NAME).write_text("old")
    (folder / f"extension.{TAG}.so").write_text("older")
    (folder / "extension.cpython-39.so").write_text("of another Python")
    return folder


def test_an_extension_is_replaced_without_a_moment_in_which_there_is_none(
    build, package, tmp_path, monkeypatch
):
    """Servers and tests of the checkout may start while another environment is made."""
    (built := tmp_path / NAME).write_text("new")
    copied = []

    def copy(source, target):
        copied.append((package / NAME).read_text())
        return shutil.copyfile(source, target)

    monkeypatch.setattr(build.shutil, "copy", copy)
    build.put_in_place(built, package)
    assert copied == ["old"]
    found = {path.name: path.read_text() for path in package.iterdir()}
    assert found == {NAME: "new", "extension.cpython-39.so": "of another Python"}


def test_an_extension_that_cannot_be_built_again_is_taken_away(build, package):
    build.put_in_place(None, package)
    assert [path.name for path in package.iterdir()] == ["extension.cpython-39.so"]
