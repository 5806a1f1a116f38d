"""The way of one output has no more frames, modules and stays than its budget allows.

The budget is in `support/frames.py`, which run as a program prints what each scenario costs, and
with `--trace` each of its frames.
"""

import pytest

from support.frames import BUDGET, LITSERVE_SCENARIOS, SCENARIOS, Cost, Frame, trace


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_way_of_one_output_keeps_to_its_budget(name):
    frames = SCENARIOS[name]()
    cost = Cost.of(frames)
    assert not cost.exceeds(BUDGET[name]), "\n".join([str(cost), *trace(frames)])


def test_every_budget_has_a_scenario():
    assert set(BUDGET) == set(SCENARIOS | LITSERVE_SCENARIOS)


def test_a_stay_is_a_run_of_frames_in_one_module():
    frames = [Frame(module, "function", 0) for module in ["one", "one", "two", "one"]]
    assert Cost.of(frames) == (4, 2, 3)
    assert not Cost.of(frames).exceeds((4, 2, 3))
    assert Cost.of(frames).exceeds((3, 2, 3))
    assert Cost.of(frames).exceeds((4, 2, 2))
