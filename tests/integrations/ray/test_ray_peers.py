"""What `serve.batch` gets wrong, seen in a replica; and that `batch` gets it right there."""

import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

from ray import serve

import batchstream.integrations.ray
from batchstream._core.arguments import DEFAULT_MAX_BUFFERED
from support import ray_scenarios
from support.ray_scenarios import STEPS

DECORATORS = {"serve": serve.batch, "ours": batchstream.integrations.ray.batch}


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class Runner:
    async def run(self, scenario, whose):
        return await getattr(ray_scenarios, scenario)(DECORATORS[whose])


@pytest.fixture(scope="module")
def seen(deploy):
    """Return a function that runs a scenario under both decorators, and returns what was seen."""
    handle = deploy(Runner.bind())

    def run(scenario):
        replies = [handle.run.remote(scenario.__name__, whose) for whose in DECORATORS]
        return [reply.result(timeout_s=200) for reply in replies]

    return run


@pytest.mark.rule(6)
def test_outputs_may_be_arrays(seen):
    theirs, ours = seen(ray_scenarios.arrays)
    assert "truth value of an array" in theirs
    assert ours == [[[0, 1], [1, 2]], [[0, 1, 2], [1, 2, 3]]]


@pytest.mark.rule(6)
def test_an_instance_of_the_end_mark_is_one(seen):
    theirs, ours = seen(ray_scenarios.mark_instance)
    assert theirs == ["str", "StopIteration"]
    assert ours == ["str"]


@pytest.mark.rule(10, 13)
def test_the_model_stops_when_all_have_finished(seen):
    theirs, ours = seen(ray_scenarios.all_finished)
    assert theirs == STEPS
    assert ours == 4


@pytest.mark.rule(10, 13)
def test_the_model_stops_when_all_have_left(seen):
    theirs, ours = seen(ray_scenarios.all_cancelled)
    assert theirs == (STEPS, True)
    steps, closed = ours
    assert steps <= 5
    assert closed


@pytest.mark.rule(10)
def test_an_endless_generator_is_closed(seen):
    assert seen(ray_scenarios.never_closed) == [False, True]


@pytest.mark.rule(9, 14)
def test_a_cancelled_error_of_the_model_reaches_all_callers(seen):
    assert seen(ray_scenarios.cancelled_in_model) == [[False, False], [True, True]]


@pytest.mark.rule(9, 14)
def test_the_next_request_is_served_after_such_an_error(seen):
    theirs, ours = seen(ray_scenarios.next_after_cancelled)
    assert theirs != [True, True]
    assert ours == [True, True]


@pytest.mark.rule(29)
def test_a_size_that_cannot_be_measured_fails_its_own_request_alone(seen):
    assert seen(ray_scenarios.size_raises) == [[False, False], [True, True]]


@pytest.mark.rule(16)
def test_each_caller_has_an_error_of_its_own(seen):
    assert seen(ray_scenarios.errors_shared) == [True, False]


@pytest.mark.rule(19)
def test_a_slow_consumer_bounds_the_model(seen):
    theirs, ours = seen(ray_scenarios.slow_consumer)
    assert theirs == 5_000
    assert ours <= DEFAULT_MAX_BUFFERED + 2


@pytest.mark.rule(29)
def test_batches_are_full_under_a_backlog(seen):
    theirs, ours = seen(ray_scenarios.backlog)
    assert theirs == [1] * 17
    assert ours == [1, 8, 8]
