"""Who is called, listens and rests; and one object for each key: decided without lock or clock."""

from __future__ import annotations

import pytest

from batchstream._batching.groups import Groups
from batchstream._batching.workers import AnyWorker, Workers
from support import knobs


@pytest.fixture
def workers():
    return Workers(2, AnyWorker)


def call(workers, at=0.0):
    """Note a call for that time, and return who is to be called or rung, and by what."""
    workers.note_call(lambda: at)
    return workers.calls.popleft() if workers.calls else None


def test_an_idle_worker_is_woken_before_another_is_made(workers):
    first, _ = call(workers)
    workers.rest(first)
    assert call(workers) == (first, None)
    second, _ = call(workers)
    assert second is not first
    assert workers.at_work == 2


def test_no_worker_is_woken_while_all_are_at_work_and_the_time_is_not_computed(workers):
    call(workers), call(workers)
    workers.note_call(lambda: pytest.fail("the time is not needed"))
    assert not workers.calls


def test_no_worker_is_woken_if_no_request_waits(workers):
    workers.note_call(lambda: None)
    assert not workers.calls
    assert workers.at_work == 0


def test_a_worker_that_would_wake_too_late_is_woken_once_and_one_in_time_is_left(workers):
    worker, _ = call(workers)
    assert workers.listen(worker, 5.0, "bell")
    assert call(workers, 5.0) is None
    assert call(workers, 4.0) == (worker, "bell")
    other, waiter = call(workers, 4.0)
    assert waiter is None
    assert other is not worker


def test_two_workers_do_not_wait_for_the_same_request(workers):
    first, second = call(workers)[0], call(workers)[0]
    assert workers.listen(first, 5.0, "bell")
    assert not workers.listen(second, 6.0, "other bell")
    assert workers.listen(second, 4.0, "other bell")


def test_a_worker_with_a_batch_is_not_free_until_it_looks(workers):
    worker, _ = call(workers)
    assert workers.free == 2
    worker.busy = True
    assert workers.free == 1
    workers.look(worker)
    assert workers.free == 2


def test_workers_whose_wake_up_is_uncertain_are_woken_again(workers):
    first, second = call(workers)[0], call(workers)[0]
    first.called = True
    workers.note_calls_again()
    assert list(workers.calls) == [(second, None)]


def test_a_worker_that_is_not_reusable_is_made_for_one_call():
    class Once(AnyWorker):
        reusable = False

    workers = Workers(1, Once)
    first, _ = call(workers)
    workers.rest(first)
    second, _ = call(workers)
    assert second is not first
    workers.rest(first)  # late
    assert second in workers


def test_all_workers_are_dismissed_or_woken(workers):
    first, second = call(workers)[0], call(workers)[0]
    workers.listen(first, 5.0, "bell")
    workers.ring_all()
    assert list(workers.calls) == [(first, "bell")]
    assert set(workers.dismiss_all()) == {first, second}
    assert workers.at_work == 0


def test_equal_keys_are_one_object_while_requests_wait_and_are_freed_later():
    groups = Groups()
    waiting, generations = groups.of(("a", 1))
    assert groups.of(("a", 1))[0] is waiting
    for number in range(knobs.MANY_KEYS + 1):
        groups.of(number)
    groups.tidy(lambda group: group is waiting)
    assert not groups.is_current(generations), "who has looked before must look again"
    for number in range(knobs.MANY_KEYS + 1):
        groups.of(number)
    assert groups.tidy(lambda group: group is waiting) is None, "the elder generation is needed"
    assert groups.of(("a", 1))[0] is waiting
    elder = groups.tidy(lambda _: False)
    assert ("a", 1) in elder
    assert groups.of(("a", 1))[0] is waiting, "it was asked for since, and went on"


def test_a_key_that_cannot_be_hashed_is_named():
    with pytest.raises(TypeError, match=r"key returns \['a'\], which cannot be hashed"):
        Groups().of(["a"])
