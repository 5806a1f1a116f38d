"""What tests of the native core share."""

from __future__ import annotations

import pytest

from support import knobs

needs_native = pytest.mark.skipif(
    not knobs.NATIVE, reason="the native core was not built, or BATCHSTREAM_PURE=1 is set"
)
