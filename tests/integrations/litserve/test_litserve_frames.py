"""A worker's step has no more frames, modules and stays than its budget; see `test_frames`."""

import pytest

from support.frames import BUDGET, LITSERVE_SCENARIOS, Cost, trace


@pytest.mark.parametrize("name", LITSERVE_SCENARIOS)
def test_the_way_through_a_worker_keeps_to_its_budget(name):
    frames = LITSERVE_SCENARIOS[name]()
    cost = Cost.of(frames)
    assert not cost.exceeds(BUDGET[name]), "\n".join([str(cost), *trace(frames)])
