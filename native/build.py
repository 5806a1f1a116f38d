"""Builds the native core as the package is built, where that can be done.

A build without it is complete: no compiler, a compiler that fails, another Python than CPython, one
without a GIL and `BATCHSTREAM_PURE=1` all give the package in Python alone, as a wheel for every
platform.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "batchstream._native.extension"
OPTIONS = ["-std=c11", "-O3", "-fvisibility=hidden", "-fno-semantic-interposition"]


class NativeCore(BuildHookInterface[Any]):
    """Adds the extension to the wheel; to the checkout itself, if that is installed as it is."""

    _folder: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the extension, and say what is to be done with it."""
        built = self._compiled()
        if version == "editable":
            put_in_place(built, Path(self.root, "batchstream", "_native"))
        elif built is not None:
            build_data["force_include"][str(built)] = f"batchstream/_native/{built.name}"
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def _compiled(self) -> Path | None:
        """Compile the extension, and return its path; None where the package goes without."""
        if os.environ.get("BATCHSTREAM_PURE", "") not in ("", "0"):
            return None
        if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
            return None
        self._folder = tempfile.mkdtemp()
        try:
            return compile_extension(Path(self.root, "native"), self._folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, the package goes without
            self.app.display_warning(f"batchstream is built without its native core: {error}")
            return None

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built, which is in the wheel by now."""
        del version, build_data, artifact_path
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def put_in_place(built: Path | None, package: Path) -> None:
    """Replace this Python's extension in a checkout; take it away if there is none any more.

    A program of the checkout that starts meanwhile finds the old one or the new one.
    """
    if built is not None:
        whole = package / f".{built.name}.{os.getpid()}"
        shutil.copy(built, whole)
        whole.replace(package / built.name)
    for stale in package.glob(f"extension.{sys.implementation.cache_tag}*"):
        if built is None or stale.name != built.name:
            stale.unlink(missing_ok=True)


def compile_extension(sources: Path, folder: str) -> Path:
    """Compile the sources, and return the extension's path."""
    from setuptools import Distribution, Extension  # noqa: PLC0415 - its absence is no error
    from setuptools.command.build_ext import build_ext  # noqa: PLC0415

    extension = Extension(
        NAME,
        sources=sorted(map(str, sources.glob("*.c"))),
        extra_compile_args=[] if sys.platform == "win32" else OPTIONS,
    )
    command = build_ext(Distribution({"ext_modules": [extension]}))
    command.build_lib = command.build_temp = folder
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(NAME))
