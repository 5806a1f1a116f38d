"""Out of memory, at any allocation: no crash, and no output that is wrong without an error."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.native_work import WORKS
from support.natively import needs_native

pytestmark = [
    needs_native,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("_testcapi") is None, reason="this Python has no _testcapi"
    ),
    pytest.mark.skipif(
        sys.version_info >= (3, 12),
        reason="CPython from 3.12 on crashes by itself where an allocation fails, with either core",
    ),
]

STRIDE = int(os.environ.get("NATIVE_STRIDE", "31"))
"""Every how many allocations one fails: `make native-check` leaves none out."""

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("work", WORKS)
def test_where_an_allocation_fails_the_outcome_is_right_or_an_error(work):
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    places = [str(number) for number in (len(work) % STRIDE, STRIDE, 1, 3)]
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "support.native_allocations", work, *places],
        env={**os.environ, "PYTHONPATH": path, "BATCHSTREAM_PURE": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    lines = ended.stdout.splitlines()
    assert [line for line in lines if line.startswith("allocation")] == []
    failures = [int(line.split()[0]) for line in lines if " failures by " in line]
    assert len(failures) == 2
    assert all(failures), "no allocation has failed"
