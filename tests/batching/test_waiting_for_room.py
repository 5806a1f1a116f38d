"""Callers that wait for room in the queue, and what a refused one is told of the time."""

from __future__ import annotations

import itertools
from functools import partial

import hypothesis.strategies as st
import pytest
from hypothesis import given

from batchstream import ClosedError, DynamicBatcher, OverloadedError
from batchstream._batching import room
from batchstream._batching.closing import request_drain
from batchstream._batching.departures import DepartureRate
from batchstream._batching.options import BatcherOptions
from batchstream._batching.request import Request, Submission
from batchstream._batching.scheduler import Scheduler
from batchstream._core.rules import EndRules
from support.engines import InLoop, every_batcher
from support.interrupts import at_line, needs_lines

FULL = {"max_batch_size": 1, "max_pending": 1}


async def wait_for_room(form, batcher, *timeout):
    if isinstance(form, InLoop):
        await batcher.await_for_room(*timeout)
    else:
        batcher.wait_for_room(*timeout)


async def filled(form, **options):
    """Return a batcher with one request that runs and one that waits, both, and its gate."""
    batcher, _, gate = form.held_batcher(0, **FULL, **options)
    return batcher, await form.submit_behind(batcher, gate, "a", "b"), gate


@every_batcher
async def test_where_there_is_room_no_caller_waits(form):
    batcher = form.batcher(**FULL)
    for _ in range(3):
        await wait_for_room(form, batcher)
    assert not batcher._dispatcher.ends.room_waiters


@every_batcher
async def test_a_caller_waits_until_a_request_would_not_be_refused(form):
    batcher, streams, gate = await filled(form)
    with pytest.raises(OverloadedError) as refused:
        form.submit(batcher, "c")
    assert refused.value.retry_after is None

    async def release():
        await form.all_wait()
        gate.open()

    async def submit():
        await wait_for_room(form, batcher, 3600)
        return form.submit(batcher, "c")

    stream, _ = await form.concurrently(submit, release)
    assert [await form.rest(it) for it in [*streams, stream]] == [["a"], ["b"], ["c"]]


@every_batcher
async def test_callers_are_woken_in_the_order_in_which_they_came(form):
    batcher, streams, gate = await filled(form)
    came = []

    async def caller(name):
        while len(batcher._dispatcher.ends.room_waiters) < name:
            await form.all_wait()
        await wait_for_room(form, batcher)
        came.append(name)

    async def release():
        while len(batcher._dispatcher.ends.room_waiters) < 3:
            await form.all_wait()
        gate.open()

    await form.concurrently(*[partial(caller, name) for name in range(3)], release)
    assert sorted(came) == [0, 1, 2]  # none of them has submitted anything
    if isinstance(form, InLoop):
        assert came == [0, 1, 2]
    for stream in streams:
        await form.rest(stream)


@every_batcher
async def test_a_request_that_is_cancelled_as_it_waits_makes_room(form):
    batcher, streams, gate = await filled(form)

    async def cancel():
        while not batcher._dispatcher.ends.room_waiters:
            await form.all_wait()
        streams[1].cancel()  # the model is in a step

    await form.concurrently(partial(wait_for_room, form, batcher), cancel)
    gate.open()
    assert await form.rest(streams[0]) == ["a"]


@every_batcher
async def test_the_time_to_wait_is_limited(form):
    batcher, streams, gate = await filled(form)
    with pytest.raises(TimeoutError, match=r"no room for another request within 0 seconds"):
        await wait_for_room(form, batcher, 0)
    with pytest.raises(ValueError, match="timeout must be"):
        await wait_for_room(form, batcher, -1)
    gate.open()
    for stream in streams:
        await form.rest(stream)
    assert not batcher._dispatcher.ends.room_waiters


@every_batcher
@pytest.mark.parametrize("drain", [None, 60.0])
async def test_all_who_wait_learn_that_the_batcher_was_closed_or_drains(form, drain):
    batcher, _, gate = await filled(form)

    async def caller():
        with pytest.raises(ClosedError):
            await wait_for_room(form, batcher)

    async def end():
        while len(batcher._dispatcher.ends.room_waiters) < 2:
            await form.all_wait()
        if drain is None:
            batcher._dispatcher.request_close("the test")
        else:
            request_drain(batcher._dispatcher, "the test", drain)

    await form.concurrently(caller, caller, end)
    gate.open()
    await form.close(batcher)
    with pytest.raises(ClosedError):
        await wait_for_room(form, batcher)


def test_the_model_cannot_wait_for_room_of_its_own():
    def model(requests):
        if requests == ["a"]:
            streams.append(batcher.stream("b"))
            batcher.wait_for_room()
        yield requests

    streams = []
    with DynamicBatcher(model, **FULL) as batcher:
        stream = batcher.stream("a")
        with pytest.raises(RuntimeError, match="waits for a request to its own batcher"):
            list(stream)


# ---- the rate at which requests leave, in virtual time


def test_a_rate_is_unknown_until_requests_leave_twice_with_others_behind():
    rate = DepartureRate()
    assert rate.seconds_for(4) is None
    rate.count(2, 10.0, others_wait=True)
    assert rate.seconds_for(4) is None
    rate.count(2, 11.0, others_wait=True)
    assert rate.seconds_for(4) == pytest.approx(2.0)


def test_what_an_idle_server_takes_its_time_for_does_not_count():
    rate = DepartureRate()
    for now in (0.0, 1.0):
        rate.count(1, now, others_wait=True)
    rate.count(1, 2.0, others_wait=False)
    for hour in (3600.0, 7200.0):  # one request an hour, at once
        rate.count(1, hour, others_wait=False)
    assert rate.seconds_for(1) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.001, 10.0)), min_size=1, max_size=60))
def test_the_rate_lies_between_the_slowest_and_the_quickest_interval(intervals):
    rate, now = DepartureRate(), 5.0
    rate.count(1, now, others_wait=True)
    for left, seconds in intervals:
        now += seconds
        rate.count(left, now, others_wait=True)
    each = [seconds / left for left, seconds in intervals]
    assert min(each) * 0.99 <= rate.seconds_for(1) <= max(each) * 1.01


def test_a_model_that_becomes_slower_is_noticed_soon():
    rate, now = DepartureRate(), 0.0
    for seconds in [0.1] * 100 + [1.0] * 30:
        rate.count(1, now, others_wait=True)
        now += seconds
    assert 0.8 <= rate.seconds_for(1) <= 1.0


def test_a_refusal_says_when_those_that_wait_will_have_left():
    options = BatcherOptions(
        EndRules(), max_batch_size=2, max_pending=4, max_buffered=1, on_overflow="cancel"
    )
    scheduler = Scheduler(options, reuses_workers=True)

    def submit(now):
        request = Request(0, Submission("content"), None, scheduler.ended_requests)
        scheduler.submit(request, now)

    for _ in range(6):
        submit(0.0)
    worker = scheduler.workers.wakeups[0].worker
    for now in (1.0, 3.0):  # two requests in two seconds
        assert len(scheduler.next_batch(worker, None, now).requests) == 2
    for _ in range(2):
        submit(3.0)
    with pytest.raises(OverloadedError) as refused:
        submit(3.0)
    assert refused.value.retry_after == pytest.approx(4.0)


@every_batcher
async def test_room_is_for_a_request_of_a_cost(form):
    batcher, _, gate = form.held_batcher(
        0, max_batch_size=1, max_pending_cost=4, cost=len, max_batch_cost=4
    )
    streams = await form.submit_behind(batcher, gate, "a", "bbb")
    await wait_for_room(form, batcher)
    for method in (batcher.await_for_room,) if isinstance(form, InLoop) else ():
        await method(cost=1)
        with pytest.raises(TimeoutError):
            await method(0, cost=2)
    if not isinstance(form, InLoop):
        batcher.wait_for_room(cost=1)
        with pytest.raises(TimeoutError):
            batcher.wait_for_room(0, cost=2)
    gate.open()
    for stream in streams:
        await form.rest(stream)


@needs_lines
@pytest.mark.rule(9)
def test_a_wait_that_is_broken_off_at_any_line_is_in_no_others_way():
    with DynamicBatcher(lambda requests: iter([requests]), max_batch_size=1) as batcher:
        for line in itertools.count(1):
            where = at_line(line, batcher.wait_for_room, files={room.__file__})
            assert not batcher._dispatcher.ends.room_waiters, where
            batcher.wait_for_room(timeout=0)
            if where is None:
                break
    assert line > 10
