"""Callers that wait for room in the queue, and what a refused one is told of the time."""

from __future__ import annotations

import itertools
import random
from functools import partial

import hypothesis.strategies as st
import pytest
from hypothesis import given

from batchstream import ClosedError, DynamicBatcher, OverloadedError, RequestError
from batchstream._batching.calls import room
from batchstream._batching.calls.closing import request_drain
from batchstream._batching.options import BatcherOptions
from batchstream._batching.requests.request import Request, Submission
from batchstream._batching.scheduling.departures import BURST_SECONDS, DepartureRate
from batchstream._batching.scheduling.scheduler import Scheduler
from batchstream._core.rules import EndRules
from support.engines import InLoop, continuous_batchers, every_batcher
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
async def test_all_waiting_callers_learn_that_the_batcher_was_closed_or_drains(form, drain):
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


@pytest.mark.parametrize(("left", "intervals"), [(1, 4), (2, 2), (3, 2), (8, 2)])
def test_a_rate_is_unknown_until_four_requests_have_left_in_two_intervals(left, intervals):
    rate = DepartureRate()
    for number in range(intervals):
        rate.count(left, 10.0 + number, others_wait=True)
        assert rate.seconds_for(4) is None
    rate.count(left, 10.0 + intervals, others_wait=True)
    assert rate.seconds_for(4) == pytest.approx(4 / left)
    rate.count_back(left * intervals)
    assert rate.seconds_for(4) is None


def test_what_an_idle_server_takes_its_time_for_does_not_count():
    rate = DepartureRate()
    for now in range(5):
        rate.count(1, float(now), others_wait=True)
    rate.count(1, 5.0, others_wait=False)
    for hour in (3600.0, 7200.0):  # one request an hour, at once
        rate.count(1, hour, others_wait=False)
    assert rate.seconds_for(1) == pytest.approx(1.0)


def departures_of(load, rng):
    """Yield after how many seconds so many requests leave a queue that is never empty, and again.

    All are of a server of 4 requests a second.
    """
    for number in itertools.count():
        if load == "even":
            yield 0.25, 1
        elif load == "at random":
            yield rng.expovariate(4), 1
        elif load == "batches of 8":
            yield 2.0, 8
        else:  # the first slot is free again after as long as all
            yield 2.0 if number == 0 else 0.25, 1


@pytest.mark.parametrize(
    ("load", "most", "least"),
    [("even", 1.0, 1.0), ("batches of 8", 1.0, 1.0), ("slow at first", 2.8, 1.0)],
)
def test_what_the_first_refused_clients_are_told_is_about_right(load, most, least):
    for_16 = []
    rate, now = DepartureRate(), 0.0
    rate.count(8, now, others_wait=True)
    for seconds, left in itertools.islice(departures_of(load, None), 40):
        now += seconds
        rate.count(left, now, others_wait=True)
        for_16.append(rate.seconds_for(16))
    told = [seconds for seconds in for_16 if seconds is not None]
    assert for_16.index(told[0]) in (1, 3)
    assert least * 3.99 <= min(told) <= max(told) <= most * 4.01


def test_what_clients_are_told_of_a_random_rate_is_mostly_within_a_factor_of_three():
    told = []
    for seed in range(300):
        rate, now = DepartureRate(), 0.0
        departures = departures_of("at random", random.Random(seed))  # noqa: S311 - a simulation
        while rate.seconds_for(16) is None:
            rate.count(1, now, others_wait=True)
            now += next(departures)[0]
        told.append(rate.seconds_for(16))
    told.sort()
    assert told[15] > 4 / 3
    assert told[-15] < 4 * 3


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.floats(2 * BURST_SECONDS, 10.0)), min_size=4, max_size=60
    )
)
def test_the_rate_lies_between_the_slowest_and_the_quickest_interval(intervals):
    rate, now = DepartureRate(), 5.0
    rate.count(1, now, others_wait=True)
    for left, seconds in intervals:
        now += seconds
        rate.count(left, now, others_wait=True)
    each = [seconds / left for left, seconds in intervals]
    assert min(each) * 0.99 <= rate.seconds_for(1) <= max(each) * 1.01


@pytest.mark.parametrize("gap", [0.0, 0.0005])
def test_slots_that_are_filled_one_by_one_count_as_filled_together(gap):
    """Eight slots, all free again every two seconds: four requests leave in a second."""
    rate, told = DepartureRate(), []
    for burst in range(4):
        for number in range(8):
            rate.count(1, 2.0 * burst + number * gap, others_wait=True)
            told.append(rate.seconds_for(16))
    assert told[:16] == [None] * 16
    assert told[23] == told[31] == pytest.approx(4.0)
    assert min(told[16:]) == pytest.approx(4.0)
    assert max(told[16:]) <= 4.0 * 2  # as a burst has begun, and the others are about to leave


def test_a_server_that_is_quicker_than_a_burst_is_long_has_its_rate_all_the_same():
    rate = DepartureRate()
    for number in range(1000):
        rate.count(1, number * 0.001, others_wait=True)
    assert rate.seconds_for(1000) == pytest.approx(1.0, rel=0.2)


def test_a_model_that_becomes_slower_is_noticed_soon():
    rate, now = DepartureRate(), 0.0
    for seconds in [0.1] * 100 + [1.0] * 30:
        rate.count(1, now, others_wait=True)
        now += seconds
    assert 0.8 <= rate.seconds_for(1) <= 1.0


def test_a_refusal_says_when_the_waiting_requests_will_have_left():
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
    for now in (1.0, 3.0, 5.0):  # two requests in two seconds
        assert len(scheduler.next_batch(worker, None, now).requests) == 2
        if now > 1.0:
            submit(now)
            submit(now)
    with pytest.raises(OverloadedError) as refused:
        submit(5.0)
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


# ---- for one request, whose tenant has a bound of its own

TENANTS = {
    "max_batch_size": 1,
    "max_pending": 3,
    "max_pending_per_tenant": 1,
    "tenant": lambda request: request[0],
}


async def wait_for_room_of(form, batcher, request, seconds=3600):
    if isinstance(form, InLoop):
        await batcher.await_for_room(seconds, request=request)
    else:
        batcher.wait_for_room(seconds, request=request)


async def with_a_full_tenant(form, **options):
    """Return a batcher with one request of tenant a that runs and one that waits, and its gate."""
    batcher, _, gate = form.held_batcher(0, **{**TENANTS, **options})
    return batcher, await form.submit_behind(batcher, gate, "a1", "a2"), gate


@every_batcher
async def test_a_tenant_at_its_bound_waits_until_one_of_its_requests_has_left(form):
    batcher, streams, gate = await with_a_full_tenant(form)
    await wait_for_room(form, batcher)  # of any tenant there is
    with pytest.raises(TimeoutError):
        await wait_for_room_of(form, batcher, "a3", 0)

    async def release():
        while not batcher._dispatcher.ends.room_waiters:
            await form.all_wait()
        gate.open()

    async def submit():
        await wait_for_room_of(form, batcher, "a3")
        return form.submit(batcher, "a3")  # it is not refused

    stream, _ = await form.concurrently(submit, release)
    assert [await form.rest(it) for it in [*streams, stream]] == [
        ["a", "1"],
        ["a", "2"],
        ["a", "3"],
    ]


@every_batcher
async def test_a_tenant_at_its_bound_is_in_no_other_tenants_way(form):
    batcher, streams, gate = await with_a_full_tenant(form)
    came = []

    async def held_up():
        await wait_for_room_of(form, batcher, "a3")
        came.append("a3")

    async def other():
        while not batcher._dispatcher.ends.room_waiters:
            await form.all_wait()
        await wait_for_room_of(form, batcher, "b1")
        came.append("b1")
        gate.open()

    await form.concurrently(held_up, other)
    assert came == ["b1", "a3"]
    for stream in streams:
        await form.rest(stream)


@every_batcher
async def test_behind_a_tenant_at_its_bound_others_are_woken_when_there_is_room(form):
    batcher, streams, gate = await with_a_full_tenant(form)
    others = [form.submit(batcher, name) for name in ("b1", "c1")]  # as many as may wait
    came = []

    async def caller(place, name):
        while len(batcher._dispatcher.ends.room_waiters) < place:
            await form.all_wait()
        await wait_for_room_of(form, batcher, name)
        came.append(name)
        gate.open()

    async def cancel():
        while len(batcher._dispatcher.ends.room_waiters) < 2:
            await form.all_wait()
        others[0].cancel()  # which makes room for d1, and for no request of a

    await form.concurrently(partial(caller, 0, "a3"), partial(caller, 1, "d1"), cancel)
    assert came == ["d1", "a3"]
    for stream in (*streams, others[1]):
        await form.rest(stream)


@every_batcher
async def test_a_request_of_a_full_tenant_that_is_cancelled_as_it_waits_makes_room(form):
    batcher, streams, gate = await with_a_full_tenant(form)

    async def cancel():
        while not batcher._dispatcher.ends.room_waiters:
            await form.all_wait()
        streams[1].cancel()  # the model is in a step

    await form.concurrently(partial(wait_for_room_of, form, batcher, "a3"), cancel)
    gate.open()
    await form.rest(streams[0])


@every_batcher
async def test_a_tenant_at_its_bound_learns_that_the_batcher_was_closed(form):
    batcher, _, gate = await with_a_full_tenant(form)

    async def caller():
        with pytest.raises(ClosedError):
            await wait_for_room_of(form, batcher, "a3")

    async def close():
        while len(batcher._dispatcher.ends.room_waiters) < 2:
            await form.all_wait()
        batcher._dispatcher.request_close("the test")

    await form.concurrently(caller, caller, close)
    gate.open()
    await form.close(batcher)


@every_batcher
async def test_the_cost_of_a_request_is_asked_for(form):
    batcher, _, gate = form.held_batcher(
        0, max_batch_size=1, max_pending_cost=4, cost=len, max_batch_cost=4
    )
    streams = await form.submit_behind(batcher, gate, "a", "bbb")
    await wait_for_room_of(form, batcher, "c")
    with pytest.raises(TimeoutError):
        await wait_for_room_of(form, batcher, "cc", 0)
    with pytest.raises(ValueError, match="max_batch_cost"):
        await wait_for_room_of(form, batcher, "ccccc")
    gate.open()
    for stream in streams:
        await form.rest(stream)


@pytest.mark.rule(29)
def test_what_a_batch_costs_is_asked_for_a_request_that_would_be_alone():
    with DynamicBatcher(
        lambda requests: iter([requests]),
        max_batch_size=2,
        batch_cost=lambda requests: len(requests) * max(map(len, requests)),
        max_batch_cost=2,
    ) as batcher:
        batcher.wait_for_room(request="aa")
        with pytest.raises(RequestError, match=r"costs 3\.0, more than a batch may cost: 2"):
            batcher.wait_for_room(request="aaa")


@continuous_batchers
async def test_a_request_whose_first_step_costs_too_much_is_not_waited_for(form):
    batcher = form.batcher(step_cost=len, max_step_cost=2)
    await wait_for_room_of(form, batcher, "aa")
    with pytest.raises(RequestError, match=r"step of the request costs 3\.0, more than a step may"):
        await wait_for_room_of(form, batcher, "aaa")


@every_batcher
async def test_a_caller_whose_request_costs_more_than_a_lowered_limit_does_not_wait_on(form):
    batcher, streams, gate = await filled(form, cost=len, max_batch_cost=2)

    async def caller():
        with pytest.raises(RequestError, match="more than a batch may cost: 1 "):
            await wait_for_room_of(form, batcher, "cc")

    async def lower():
        while not batcher._dispatcher.ends.room_waiters:
            await form.all_wait()
        batcher.reconfigure(max_batch_cost=1)

    await form.concurrently(caller, lower)
    gate.open()
    for stream in streams:
        await form.rest(stream)


@continuous_batchers
async def test_a_caller_whose_first_step_costs_more_than_a_lowered_limit_does_not_wait_on(form):
    batcher, streams, gate = await filled(form, step_cost=len, max_step_cost=2)

    async def caller():
        with pytest.raises(RequestError, match="more than a step may cost: 1 "):
            await wait_for_room_of(form, batcher, "cc")

    async def lower():
        while not batcher._dispatcher.ends.room_waiters:
            await form.all_wait()
        batcher.reconfigure(max_step_cost=1)

    await form.concurrently(caller, lower)
    gate.open()
    for stream in streams:
        await form.rest(stream)


@every_batcher
async def test_a_bound_for_each_tenant_that_comes_meanwhile_counts_for_a_caller_that_waits(form):
    options = {**TENANTS, "max_pending": 1, "max_pending_per_tenant": None}
    batcher, streams, gate = await with_a_full_tenant(form, **options)
    came = []

    async def caller(place, name):
        while len(batcher._dispatcher.ends.room_waiters) < place:
            await form.all_wait()
        await wait_for_room_of(form, batcher, name)
        came.append(name)
        gate.open()

    async def change():
        while len(batcher._dispatcher.ends.room_waiters) < 2:
            await form.all_wait()
        batcher.reconfigure(max_pending=2, max_pending_per_tenant=1)

    await form.concurrently(partial(caller, 0, "a3"), partial(caller, 1, "b1"), change)
    assert came == ["b1", "a3"]
    for stream in streams:
        await form.rest(stream)


def test_room_is_for_a_request_or_of_a_cost():
    with DynamicBatcher(lambda requests: iter([requests]), max_batch_size=1) as batcher:
        with pytest.raises(TypeError, match="a request or a cost, got both, and 2 as cost"):
            batcher.wait_for_room(request="a", cost=2)
        batcher.wait_for_room(request=None)  # which may be one


def test_a_tenant_at_its_bound_is_woken_when_its_requests_could_join_at_once():
    batcher = DynamicBatcher(lambda requests: iter([requests]), **TENANTS)
    dispatcher = batcher._dispatcher
    with dispatcher.lock:
        dispatcher.scheduler.workers.most = 0  # none takes what waits
    stream = batcher.stream("a1")
    turn = room._Turn(dispatcher, None, 0.0, "a2")
    dispatcher.ends.room_waiters[turn.notice] = None
    assert not turn.has_come()
    dispatcher.ends.tell_of_room()
    assert not turn.notice.ready
    with dispatcher.lock:
        dispatcher.scheduler.workers.most = 1  # one is free, as if it waited for others to join
    dispatcher.ends.tell_of_room()
    assert turn.notice.ready
    assert turn.has_come()
    dispatcher.ends.room_waiters.clear()
    stream.cancel()
    batcher.close()


def test_a_turn_that_is_held_up_before_it_looks_passes_the_wake_up_on():
    batcher = DynamicBatcher(lambda requests: iter([requests]), **TENANTS)
    dispatcher = batcher._dispatcher
    with dispatcher.lock:
        dispatcher.scheduler.workers.most = 0  # none takes what waits
    turns = [room._Turn(dispatcher, None, 0.0, request) for request in ("a2", "b1")]
    for turn in turns:
        dispatcher.ends.room_waiters[turn.notice] = None
    dispatcher.ends.tell_of_room()
    assert [turn.notice.ready for turn in turns] == [True, False]
    assert turns[0].has_come()
    assert not turns[1].has_come()  # the first goes first
    stream = batcher.stream("a1")
    assert not turns[0].has_come()
    assert turns[1].notice.ready
    assert turns[1].has_come()
    dispatcher.ends.room_waiters.clear()
    stream.cancel()
    dispatcher.scheduler.workers.most = 1
    batcher.close()
