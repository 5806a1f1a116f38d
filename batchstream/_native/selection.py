"""Which core runs: the native one, in C, or the reference, in Python.

The reference is complete, and is what there is to read. Where a module of it has a native twin, its
last lines put that in its place. `BATCHSTREAM_PURE=1` chooses the reference; it also runs where no
extension was built, or it cannot be loaded. The extension serves one import of the package: in a
second interpreter of the process, and after a second import, the reference runs.
"""

from __future__ import annotations

import os
from typing import Any, Final


def _load() -> Any:
    if os.environ.get("BATCHSTREAM_PURE", "") not in ("", "0"):
        return None
    try:
        from batchstream._native import extension  # type: ignore[attr-defined] # noqa: PLC0415
    except ImportError:
        return None
    return extension if extension.claim() else None


native: Any = _load()
"""The extension module, or None."""

is_native: Final = native is not None
"""Whether the native core runs: `batchstream.__native__`."""
