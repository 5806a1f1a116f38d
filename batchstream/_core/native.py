"""Which core runs: the native one, in C, or the reference, in Python.

The reference is complete, and is what there is to read. Where a module of it has a native twin, its
last lines put that in its place. `BATCHSTREAM_PURE=1` chooses the reference; where no extension was
built, or it cannot be loaded, there is nothing else.
"""

from __future__ import annotations

import os
from typing import Any


def _load() -> Any:
    if os.environ.get("BATCHSTREAM_PURE", "") not in ("", "0"):
        return None
    try:
        from batchstream import _native  # type: ignore[attr-defined]  # noqa: PLC0415 - may be absent
    except ImportError:
        return None
    return _native


native: Any = _load()
"""The extension module, or None."""
