"""The way of one output has no more frames, modules and stays than its budget allows.

The budget is in `support/frames.py`, which run as a program prints what each scenario costs, and
with `--trace` each of its frames.
"""

import os
import subprocess
import sys

import pytest

from support import frames
from support.frames import BUDGET, LITSERVE_SCENARIOS, SCENARIOS, Cost, Frame


@pytest.mark.parametrize("pure", ["", "1"])
def test_the_way_of_one_output_keeps_to_its_budget(pure):
    """Calls within the native core are no frames: the budgets are tight for the core in Python."""
    checked = subprocess.run(  # noqa: S603 - of this project
        [sys.executable, frames.__file__, "--check"],
        env={**os.environ, "BATCHSTREAM_PURE": pure},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_every_budget_has_a_scenario():
    assert set(BUDGET) == set(SCENARIOS | LITSERVE_SCENARIOS)


def test_a_stay_is_a_run_of_frames_in_one_module():
    cost = Cost.of([Frame(module, "function", 0) for module in ["one", "one", "two", "one"]])
    assert cost == (4, 2, 3)
    assert not cost.exceeds((4, 2, 3))
    assert cost.exceeds((3, 2, 3))
    assert cost.exceeds((4, 2, 2))
