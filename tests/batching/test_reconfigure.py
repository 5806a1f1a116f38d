"""Limits that change while requests are served."""

from __future__ import annotations

import asyncio
import math
import pickle
import sys
from functools import partial
from threading import Event

import pytest

from batchstream import EOS, ClosedError, DynamicBatcher, OverloadedError, RequestError, batched
from batchstream._batching.options import BatcherOptions
from batchstream._batching.requests.request import Request, Submission
from batchstream._batching.scheduling.scheduler import Scheduler
from batchstream._core.rules import EndRules
from support import interrupts, knobs
from support.engines import (
    InLoop,
    ManualClock,
    Model,
    continuous_batchers,
    dynamic_batchers,
    echo,
    every_batcher,
)
from support.shuffled_loop import explore
from support.sources import TIMEOUT, Gate, in_forked_child, needs_fork


@pytest.fixture
def clock(monkeypatch):
    return ManualClock.install(monkeypatch)


def limits_of(batcher):
    return batcher.max_batch_size, batcher.max_pending, batcher.max_batch_cost


def bounds_of(batcher):
    return batcher.max_pending_cost, batcher.max_pending_per_tenant


# ---- batches that are formed from then on


@pytest.mark.rule(29)
@dynamic_batchers
@pytest.mark.parametrize(("size", "batches"), [(2, ["bc", "de", "fg"]), (5, ["bcdef", "g"])])
async def test_batches_that_are_formed_from_then_on_go_by_the_new_size(form, size, batches):
    batcher, model, gate = form.held_batcher(0, max_batch_size=3)
    streams = await form.submit_behind(batcher, gate, "a", *"bcdefg")
    batcher.reconfigure(max_batch_size=size)
    assert batcher.max_batch_size == size
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [[each] for each in "abcdefg"]
    assert ["".join(requests) for requests in model.called_with] == ["a", *batches]


@pytest.mark.rule(29, 30)
@continuous_batchers
async def test_fewer_slots_are_used_as_requests_end_and_more_again(form):
    gates = {step: form.gate() for step in (1, 4)}
    model = form.model(gates=gates)
    batcher = form.batcher(model, max_batch_size=3)
    streams = [form.submit(batcher, request) for request in ("abcd", "ef", "gh", "i", "j", "k")]
    await gates[1].reached.wait()
    batcher.reconfigure(max_batch_size=1)
    gates[1].open()
    await gates[4].reached.wait()
    running = model.worked_on[4]
    batcher.reconfigure(max_batch_size=3)
    gates[4].open()
    for stream in streams:
        await form.rest(stream)
    assert all(len(requests) == 3 for requests in model.worked_on[1:2])
    assert running == ("abcd",), "no request joined beside it"
    assert len(model.worked_on[5]) == 3
    with pytest.raises(ValueError, match="at most 3, with which it was made, got 4"):
        batcher.reconfigure(max_batch_size=4)
    assert batcher.max_batch_size == 3


@pytest.mark.rule(29)
@every_batcher
async def test_a_request_that_costs_more_than_a_lowered_limit_goes_alone(form):
    batcher, model, gate = form.held_batcher(0, cost=len, max_batch_cost=6)
    streams = await form.submit_behind(batcher, gate, "a", "b", "cdefg", "h", "i")
    batcher.reconfigure(max_batch_cost=2)
    with pytest.raises(ValueError, match=r"costs 3\.0, more than a batch may cost: 2 "):
        form.submit(batcher, "xyz")
    gate.open()
    assert "".join(["".join(await form.rest(stream)) for stream in streams]) == "abcdefghi"
    assert all(sum(map(len, requests)) <= 2 or len(requests) == 1 for requests in model.worked_on)
    joined = list(dict.fromkeys(request for step in model.worked_on for request in step))
    assert joined == ["a", "b", "cdefg", "h", "i"]


@pytest.mark.rule(29)
@every_batcher
async def test_requests_that_wait_beyond_a_lowered_limit_stay(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, max_pending=4)
    streams = await form.submit_behind(batcher, gate, *"abcde")
    batcher.reconfigure(max_pending=2)
    with pytest.raises(OverloadedError, match="4 requests are waiting, and no more than 2"):
        form.submit(batcher, "f")
    batcher.reconfigure(max_pending=5)
    streams.append(form.submit(batcher, "f"))
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [[each] for each in "abcdef"]


@pytest.mark.rule(29)
@every_batcher
@pytest.mark.parametrize(
    ("made_with", "lower", "raised", "text"),
    [
        (
            {"max_pending_cost": 8},
            {"max_pending_cost": 2},
            {"max_pending_cost": 7},
            r"requests that cost 6\.0 are waiting, and with this one, of 1\.0, .* more than 2 ",
        ),
        (
            {},
            {"max_pending_cost": 6},
            {"max_pending_cost": math.inf},
            r"requests that cost 6\.0 are waiting, and with this one, of 1\.0, .* more than 6 ",
        ),
        (
            {"max_pending_per_tenant": 3},
            {"max_pending_per_tenant": 2},
            {"max_pending_per_tenant": 4},
            "3 requests of its tenant are waiting, and no more than 2 of one tenant may",
        ),
        (
            {"cost": None, "max_batch_cost": None},
            {"max_pending_per_tenant": 3},
            {"max_pending_per_tenant": sys.maxsize},
            "3 requests of its tenant are waiting, and no more than 3 of one tenant may",
        ),
    ],
    ids=["cost", "a first cost", "tenant", "a first of tenants"],
)
async def test_requests_that_wait_beyond_another_lowered_bound_stay(
    form, made_with, lower, raised, text
):
    options = {"cost": len, "max_batch_cost": 2, "tenant": lambda request: request[0]}
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, **options | made_with)
    requests = ["a1", "a2", "a3", "a4", "a"]
    streams = await form.submit_behind(batcher, gate, *requests[:4])
    batcher.reconfigure(**lower)
    with pytest.raises(OverloadedError, match=text):
        form.submit(batcher, "a")
    batcher.reconfigure(**raised)
    streams.append(form.submit(batcher, "a"))
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [list(each) for each in requests]
    streams = [form.submit(batcher, each) for each in requests[:2]]
    assert [await form.rest(stream) for stream in streams] == [["a", "1"], ["a", "2"]]


@pytest.mark.rule(29)
@every_batcher
async def test_what_requests_cost_that_wait_is_bounded_from_then_on_as_they_leave(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, cost=len, max_batch_cost=2)
    streams = await form.submit_behind(batcher, gate, "a", "bb", "cc")
    batcher.reconfigure(max_pending_cost=4)
    with pytest.raises(OverloadedError, match="max_pending_cost"):
        form.submit(batcher, "d")
    streams[1].cancel()
    streams += [form.submit(batcher, each) for each in "de"]
    with pytest.raises(OverloadedError, match="max_pending_cost"):
        form.submit(batcher, "f")
    gate.open()
    outputs = [await form.rest(stream) for stream in streams if stream is not streams[1]]
    assert outputs == [["a"], ["c", "c"], ["d"], ["e"]]


@pytest.mark.rule(29, 30)
@continuous_batchers
async def test_a_request_joins_in_the_next_step_that_a_raised_limit_allows(form):
    """The first request, which has its first step behind it, costs 1."""
    gates = {step: form.gate() for step in (1, 3, 5)}
    model = form.model(gates=gates)
    batcher = form.batcher(model, max_batch_size=3, step_cost=len, max_step_cost=4)
    streams = [form.submit(batcher, "abcd")]
    await gates[1].reached.wait()
    streams += [form.submit(batcher, request) for request in ("efg", "hi")]
    batcher.reconfigure(max_step_cost=3)
    with pytest.raises(RequestError, match=r"first step of the request costs 4\.0, .*: 3 "):
        form.submit(batcher, "wxyz")
    gates[1].open()
    await gates[3].reached.wait()
    assert model.worked_on[3] == ("abcd",), "the second would make the step cost 4"
    batcher.reconfigure(max_step_cost=6)
    gates[3].open()
    await gates[5].reached.wait()
    assert batcher.max_step_cost == 6
    gates[5].open()
    outputs = [await form.rest(stream) for stream in streams]
    assert outputs == [list("abcd"), list("efg"), list("hi")]
    assert model.worked_on[4] == ("abcd", "efg", "hi")


@pytest.mark.rule(29)
@continuous_batchers
async def test_a_request_whose_first_step_costs_more_than_a_lowered_limit_joins_alone(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=3, step_cost=len, max_step_cost=9)
    streams = await form.submit_behind(batcher, gate, "ab", "cdefg", "h", "i")
    batcher.reconfigure(max_step_cost=2)
    gate.open()
    assert "".join(["".join(await form.rest(stream)) for stream in streams]) == "abcdefghi"
    first = next(step for step in model.worked_on if "cdefg" in step)
    assert first == ("cdefg",)


@pytest.mark.rule(29)
@every_batcher
async def test_only_the_limits_that_are_given_change(form):
    batcher = form.batcher(max_batch_size=4, max_pending=9, cost=len, max_batch_cost=5)
    batcher.reconfigure()
    assert limits_of(batcher) == (4, 9, 5)
    batcher.reconfigure(max_pending=8)
    assert limits_of(batcher) == (4, 8, 5)
    batcher.reconfigure(max_batch_size=2, max_batch_cost=4.5)
    assert limits_of(batcher) == (2, 8, 4.5)
    assert bounds_of(batcher) == (None, None)
    batcher.reconfigure(max_pending_cost=9)
    assert (limits_of(batcher), bounds_of(batcher)) == ((2, 8, 4.5), (9, None))


@pytest.mark.rule(29)
@continuous_batchers
async def test_what_a_step_may_cost_changes_with_the_others_or_not_at_all(form):
    options = {"step_cost": len, "max_step_cost": 5, "tenant": str, "max_pending_per_tenant": 3}
    batcher = form.batcher(max_batch_size=4, **options)
    for wrong in (-1, "much", math.nan):
        with pytest.raises((TypeError, ValueError), match="max_step_cost"):
            batcher.reconfigure(max_batch_size=2, max_pending_per_tenant=2, max_step_cost=wrong)
        with pytest.raises((TypeError, ValueError), match="max_pending_per_tenant"):
            batcher.reconfigure(max_pending_per_tenant=wrong, max_step_cost=2)
        assert (batcher.max_batch_size, *bounds_of(batcher)) == (4, None, 3)
        assert batcher.max_step_cost == 5
    batcher.reconfigure(max_batch_size=2, max_pending_per_tenant=2, max_step_cost=4)
    assert (batcher.max_batch_size, *bounds_of(batcher)) == (2, None, 2)
    assert batcher.max_step_cost == 4


@pytest.mark.rule(29)
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_batch_size": 1.5}, TypeError),
        ({"max_pending": 0}, ValueError),
        ({"batch_timeout": -1}, ValueError),
        ({"batch_timeout": float("inf")}, ValueError),
        ({"max_batch_cost": "much"}, TypeError),
        ({"max_batch_cost": float("nan")}, ValueError),
        ({"max_batch_cost": 10}, ValueError),  # more than may wait together
        ({"max_batch_cost": float("inf")}, ValueError),
        ({"max_pending_cost": "much"}, TypeError),
        ({"max_pending_cost": float("nan")}, ValueError),
        ({"max_pending_cost": 2}, ValueError),  # less than a batch
        ({"max_pending_per_tenant": 0}, ValueError),
        ({"max_pending_per_tenant": 1.5}, TypeError),
    ],
)
def test_all_limits_change_or_none(wrong, error):
    options = {"cost": len, "max_batch_cost": 5, "max_pending_cost": 9, "tenant": str}
    with DynamicBatcher(echo, max_batch_size=4, **options) as batcher:
        right = {"max_batch_size": 2, "max_pending": 7, "batch_timeout": 1.0, "max_batch_cost": 3}
        right |= {"max_pending_cost": 8, "max_pending_per_tenant": 6}
        with pytest.raises(error, match=next(iter(wrong))):
            batcher.reconfigure(**right | wrong)
        assert (*limits_of(batcher), batcher.batch_timeout) == (4, 1024, 5, 0.0)
        assert bounds_of(batcher) == (9, None)
        batcher.reconfigure(**right)
        assert (*limits_of(batcher), batcher.batch_timeout) == (2, 7, 3, 1.0)
        assert bounds_of(batcher) == (8, 6)


def test_limits_that_go_together_change_together():
    options = {"cost": len, "max_batch_cost": 5, "max_pending_cost": 9}
    with DynamicBatcher(echo, max_batch_size=4, **options) as batcher:
        batcher.reconfigure(max_batch_cost=20, max_pending_cost=30)
        assert (batcher.max_batch_cost, batcher.max_pending_cost) == (20, 30)
        batcher.reconfigure(max_batch_cost=1, max_pending_cost=1)
        assert (batcher.max_batch_cost, batcher.max_pending_cost) == (1, 1)


@pytest.mark.parametrize(
    ("limit", "made_with", "text"),
    [
        ("max_pending_cost", {}, "have a cost each, .*: make it with cost and max_batch_cost"),
        (
            "max_pending_cost",
            {"batch_cost": len, "max_batch_cost": 3},
            "have a cost each, .*: make it with cost and max_batch_cost",
        ),
        ("max_pending_per_tenant", {}, "have a tenant, .*: make it with tenant"),
        (
            "max_pending_per_tenant",
            {"priority": lambda _: 0},
            "have a tenant, .*: make it with tenant",
        ),
    ],
)
def test_what_has_a_limit_is_what_the_batcher_was_made_with(limit, made_with, text):
    with DynamicBatcher(echo, max_batch_size=4, **made_with) as batcher:
        with pytest.raises(TypeError, match=f"{limit} of a batcher that runs needs .*{text}"):
            batcher.reconfigure(max_batch_size=2, **{limit: 3})
        assert (batcher.max_batch_size, *bounds_of(batcher)) == (4, None, None)


@continuous_batchers
async def test_a_step_has_a_limit_only_where_requests_say_what_their_first_costs(form):
    batcher = form.batcher(max_batch_size=4)
    with pytest.raises(TypeError, match="make it with step_cost and max_step_cost"):
        batcher.reconfigure(max_step_cost=3)
    assert batcher.max_step_cost is None


def test_the_cost_of_a_batch_has_a_limit_only_where_requests_have_a_cost():
    with DynamicBatcher(echo, max_batch_size=4) as batcher:
        with pytest.raises(TypeError, match="make it with cost and max_batch_cost"):
            batcher.reconfigure(max_batch_cost=3)
        assert batcher.max_batch_cost is None


# ---- workers that wait


@pytest.mark.rule(29)
@pytest.mark.parametrize(
    "changes", [{"batch_timeout": 0.0}, {"max_batch_size": 2}, {"max_batch_cost": 2}]
)
def test_a_worker_that_waits_takes_a_batch_that_is_ready_now(clock, changes):
    model = Model()
    options = {"cost": len, "max_batch_cost": 9}
    with DynamicBatcher(model.generate, max_batch_size=4, batch_timeout=5.0, **options) as batcher:
        streams = [batcher.stream("a"), batcher.stream("b")]
        clock.wait_for_sleeper()
        if "max_batch_cost" in changes:
            streams.append(batcher.stream("c"))
        batcher.reconfigure(**changes)
        for stream in streams[:2]:
            assert stream.receive(timeout=TIMEOUT) in {"a", "b"}
        assert model.called_with[0] == ["a", "b"]
        batcher.close()


@pytest.mark.rule(29)
def test_a_worker_that_waits_goes_by_a_new_timeout(clock):
    model = Model()
    with DynamicBatcher(model.generate, max_batch_size=4, batch_timeout=5.0) as batcher:
        stream = batcher.stream("a")
        for timeout in (5.0, 2.0, 8.0, 3.0):
            batcher.reconfigure(batch_timeout=timeout)
            clock.wait_for_sleep_of(timeout)
        clock.move(3.0)
        assert list(stream) == ["a"]


@pytest.mark.rule(29)
def test_a_timeout_where_there_was_none_makes_requests_wait_for_others(clock):
    model = Model()
    with DynamicBatcher(model.generate, max_batch_size=2) as batcher:
        assert list(batcher.stream("a")) == ["a"]
        batcher.reconfigure(batch_timeout=5.0)
        streams = [batcher.stream("b")]
        clock.wait_for_sleep_of(5.0)
        streams.append(batcher.stream("c"))
        assert [list(stream) for stream in streams] == [["b"], ["c"]]
        batcher.reconfigure(batch_timeout=0.0)
        assert list(batcher.stream("d")) == ["d"]
    assert model.called_with == [["a"], ["b", "c"], ["d"]]


@pytest.mark.rule(20, 29)
def test_one_worker_is_woken_by_a_change_and_it_wakes_the_next():
    options = BatcherOptions(
        EndRules(),
        max_batch_size=4,
        max_pending=9,
        max_buffered=1,
        on_overflow="cancel",
        workers=2,
        batch_timeout=5.0,
    )
    scheduler = Scheduler(options, reuses_workers=True)
    requests = []

    def submit(group, now):
        requests.append(Request(0, Submission(group), None, scheduler.ended_requests))
        requests[-1].group = group
        scheduler.submit(requests[-1], now)

    submit("a", 0.0)
    wakeup = scheduler.workers.wakeups.pop()
    scheduler.workers.claim_start(wakeup.worker, object())
    assert scheduler.next_batch(wakeup.worker, "its waiter", 0.0).wait == 5.0
    for group in "bab":
        submit(group, 3.0)
    assert not scheduler.workers.wakeups
    scheduler.change_limits(options.limits.now._replace(max_batch_size=2))
    again = scheduler.workers.wakeups.pop()
    assert not scheduler.workers.wakeups
    assert (again.worker, again.waiter) == (wakeup.worker, "its waiter")
    assert scheduler.next_batch(wakeup.worker, None, 3.0).requests == requests[::2]
    assert len(scheduler.workers.wakeups) == 1, "another is started for the other batch"


@pytest.mark.rule(29)
def test_in_a_loop_a_worker_that_waits_takes_a_batch_that_is_ready_now(monkeypatch):
    knobs.set_clock(monkeypatch, lambda: asyncio.get_running_loop().time())

    async def main():
        model = Model(lambda: None)
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        async with DynamicBatcher(model.agenerate, max_batch_size=4, batch_timeout=9.0) as batcher:
            streams = [batcher.astream("a"), batcher.astream("b")]
            await asyncio.sleep(1.0)
            assert model.called_with == []
            batcher.reconfigure(max_batch_size=2)
            assert [[output async for output in stream] for stream in streams] == [["a"], ["b"]]
            assert loop.time() - began == pytest.approx(1.0)
            last = batcher.astream("c")
            await asyncio.sleep(1.0)
            batcher.reconfigure(batch_timeout=3.0)
            assert [output async for output in last] == ["c"]
            assert loop.time() - began == pytest.approx(4.0)

    explore(main, 50)


@every_batcher
@pytest.mark.parametrize("limit", ["max_pending", "max_pending_cost", "max_pending_per_tenant"])
async def test_a_caller_that_waits_for_room_is_woken_by_a_raised_limit(form, limit):
    options = {"cost": len, "max_batch_cost": 1, "tenant": lambda _: "one"}
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, **options, **{limit: 1})
    streams = await form.submit_behind(batcher, gate, "a", "b")

    async def wait():
        if isinstance(form, InLoop):
            await batcher.await_for_room(3600, request="c")
        else:
            batcher.wait_for_room(3600, request="c")
        streams.append(form.submit(batcher, "c"))

    async def raise_limit():
        await form.all_wait()
        batcher.reconfigure(**{limit: 2})

    await form.concurrently(wait, raise_limit)
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [["a"], ["b"], ["c"]]


# ---- broken off


@pytest.mark.rule(9, 29)
@pytest.mark.parametrize(("before", "after"), [(3600.0, 0.0), (0.0, 3600.0)])
def test_an_interrupt_anywhere_leaves_all_limits_or_none_and_no_request_waits_in_vain(
    monkeypatch, before, after
):
    """If there is a timeout before, the worker waits; by the new limits its batch is ready."""
    files = knobs.files_of_submission() | knobs.files_of_limits()
    outcomes, lines = set(), 0
    while True:
        lines += 1
        clock = ManualClock.install(monkeypatch)
        batcher = DynamicBatcher(
            echo, max_batch_size=4, batch_timeout=before, cost=len, max_batch_cost=9, tenant=str
        )
        first = batcher.stream("a") if before else None
        if first is not None:
            clock.wait_for_sleeper()
        change = partial(
            batcher.reconfigure,
            max_batch_size=1,
            batch_timeout=after,
            max_batch_cost=3,
            max_pending_cost=3,
            max_pending_per_tenant=1,
        )
        where = interrupts.at_line(lines, change, files=files)
        limits = (batcher.max_batch_size, batcher.batch_timeout, batcher.max_batch_cost)
        limits += bounds_of(batcher)
        assert limits in {(4, before, 9, None, None), (1, after, 3, 3, 1)}, where
        outcomes.add(limits)
        change()
        last = batcher.stream("b")
        for stream in filter(None, (first, last)):
            assert stream.receive(timeout=TIMEOUT) in {"a", "b"}, where
        batcher.close()
        if where is None:
            break
    assert lines > 30
    assert len(outcomes) == 2


def test_a_signal_handler_that_has_interrupted_the_batcher_changes_nothing(monkeypatch):
    with DynamicBatcher(echo, max_batch_size=4) as batcher:
        refusals = []

        def change():
            try:
                batcher.reconfigure(max_batch_size=2)
            except RuntimeError as error:
                refusals.append(str(error))

        knobs.before_arrival(monkeypatch, change)
        assert list(batcher.stream("a")) == ["a"]
        assert refusals == ["a signal's handler has interrupted the batcher it reconfigures"]
        assert batcher.max_batch_size == 4


@pytest.mark.rule(24)
def test_what_is_given_is_asked_for_its_number_without_the_lock():
    options = {"cost": len, "max_batch_cost": 5, "tenant": str}
    with DynamicBatcher(echo, max_batch_size=4, **options) as batcher:
        asked = []

        class Number:
            def __index__(self):
                asked.append(batcher._dispatcher.lock._is_owned())
                return 2

            def __float__(self):
                return float(self.__index__())

        two = Number()
        batcher.reconfigure(
            **dict.fromkeys(("max_batch_size", "max_pending", "batch_timeout"), two),
            **dict.fromkeys(("max_batch_cost", "max_pending_cost", "max_pending_per_tenant"), two),
        )
        assert len(asked) >= 6
        assert not any(asked)
        limits = (*limits_of(batcher), *bounds_of(batcher), batcher.batch_timeout)
        assert {type(it) for it in limits} == {int, float}


# ---- the life of a batcher


@every_batcher
async def test_a_batcher_that_drains_goes_by_new_limits_and_one_that_was_closed_refuses(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=3)
    streams = await form.submit_behind(batcher, gate, *"abcde")

    async def drain():
        if isinstance(form, InLoop):
            await batcher.aclose(drain=3600)
        else:
            batcher.close(drain=3600)

    async def change():
        await form.all_wait()
        assert batcher.state == "draining"
        batcher.reconfigure(max_batch_size=1, max_pending=3)
        gate.open()

    await form.concurrently(drain, change)
    assert [await form.rest(stream) for stream in streams] == [[each] for each in "abcde"]
    assert {len(requests) for requests in model.worked_on} == {1}
    with pytest.raises(ClosedError, match="the batcher was closed"):
        batcher.reconfigure(max_batch_size=2)
    assert batcher.max_batch_size == 1


@pytest.mark.rule(27)
@needs_fork
def test_a_forked_child_begins_with_the_limits_of_that_time():
    batcher = DynamicBatcher(echo, max_batch_size=4)
    assert list(batcher.stream("a")) == ["a"]
    batcher.reconfigure(max_batch_size=2)

    def use():
        outputs = list(batcher.stream("b"))
        batcher.reconfigure(max_pending=3)
        batcher.close()
        return [outputs, batcher.max_batch_size, batcher.max_pending]

    assert in_forked_child(use) == "[['b'], 2, 3]"
    assert limits_of(batcher) == (2, 1024, None)
    batcher.close()


@pytest.mark.rule(27)
@needs_fork
def test_a_batcher_that_had_requests_refuses_in_a_forked_child():
    gate = Gate()
    model = Model(on_step=lambda _: gate.pass_through())
    with DynamicBatcher(model.generate, max_batch_size=4) as batcher:
        stream = batcher.stream("a")
        assert gate.reached.wait(TIMEOUT)
        told = in_forked_child(lambda: batcher.reconfigure(max_batch_size=2))
        assert told.startswith("ForkedError: this batcher had")
        gate.opened.set()
        assert list(stream) == ["a"]


@batched(max_batch_size=4, batch_timeout=0.0)
def spell(words):
    yield from zip(*words, strict=True)


@pytest.mark.rule(27)
def test_a_pickle_has_the_limits_of_the_definition():
    cloudpickle = pytest.importorskip("cloudpickle")

    @batched(max_batch_size=4, batch_timeout=0.0)
    def local(words):
        yield from zip(*words, strict=True)

    for function in (spell, local):
        function.reconfigure(max_batch_size=2, batch_timeout=1.0)
        assert (function.max_batch_size, function.batch_timeout) == (2, 1.0)
    copied = cloudpickle.loads(cloudpickle.dumps(local))
    assert copied is not local
    assert (copied.max_batch_size, copied.batch_timeout) == (4, 0.0)
    assert pickle.loads(pickle.dumps(spell)) is spell  # noqa: S301 - our own
    spell.reconfigure(max_batch_size=4, batch_timeout=0.0)


def test_each_instance_of_a_class_has_limits_of_its_own():
    class Speller:
        @batched(max_batch_size=4)
        def spell(self, words):
            yield list(words)

    one, other = Speller(), Speller()
    one.spell.reconfigure(max_batch_size=2)
    assert (one.spell.max_batch_size, other.spell.max_batch_size) == (2, 4)
    with pytest.raises(TypeError, match="each instance has a batcher of its own"):
        Speller.spell.reconfigure(max_batch_size=2)
    for each in (one, other):
        each.spell.close()


# ---- what reads limits


@every_batcher
async def test_the_figures_go_by_the_size_at_each_step(form):
    metrics = form.recorder()
    batcher, _, gate = form.held_batcher(1, max_batch_size=4, metrics=metrics)
    first = form.submit(batcher, "abcd")
    await gate.reached.wait()
    batcher.reconfigure(max_batch_size=2)
    gate.open()
    assert await form.rest(first) == list("abcd")
    steps = metrics.named("stepped")
    assert steps == [(1, 4), *[(1, 2)] * (len(steps) - 1)]
    assert batcher.statistics().occupancy == pytest.approx(len(steps) / (2 + 2 * len(steps)))


@dynamic_batchers
async def test_a_batch_that_is_larger_than_another_would_be_is_full(form):
    metrics = form.recorder()
    streams = await form.submit_together({"metrics": metrics}, {}, "ab", "cd", "e")
    batcher = form.last_batcher
    batcher.reconfigure(max_batch_size=1)
    for stream in streams:
        await form.rest(stream)
    assert all(live <= capacity for live, capacity in metrics.named("stepped"))
    assert batcher.statistics().occupancy <= 1.0


def test_a_notebook_shows_as_many_slots_as_a_batch_has_above_a_lowered_size():
    began, goes_on = Event(), Event()

    def model(words):
        yield [word[0] for word in words]
        began.set()
        goes_on.wait()
        yield [EOS for _ in words]

    with DynamicBatcher(model, max_batch_size=3, batch_timeout=60.0, eos=EOS) as batcher:
        streams = [batcher.stream(word) for word in ("ab", "cd", "ef")]
        assert began.wait(TIMEOUT)
        batcher.reconfigure(max_batch_size=1)
        assert "3 of 3 slots live in 1 batch" in batcher._repr_html_()
        goes_on.set()
        assert [list(stream) for stream in streams] == [["a"], ["c"], ["e"]]


def test_a_map_has_as_many_requests_in_flight_as_fit_now():
    taken, came = [], Event()

    def numbers():
        for number in range(12):
            taken.append(number)
            if number == 6:
                came.set()
            yield number

    def model(requests):
        if 3 in requests:
            assert came.wait(TIMEOUT)  # with one in a batch and one that waits it never comes
        return echo(requests)

    with DynamicBatcher(model, max_batch_size=1) as batcher:
        replies = batcher.map(numbers())
        assert next(replies) == [0]
        assert len(taken) <= 3
        batcher.reconfigure(max_batch_size=4)
        assert list(replies) == [[number] for number in range(1, 12)]
    assert max(batcher.statistics().batch_sizes) > 1


@pytest.mark.rule(29)
@dynamic_batchers
async def test_a_warm_up_goes_by_the_limits_of_that_time(form):
    batcher, model, gate = form.held_batcher(9, max_batch_size=4, max_pending=1)
    batcher.reconfigure(max_batch_size=2)
    gate.open()
    if isinstance(form, InLoop):
        await batcher.awarm_up(["a", "b", "c"])
    else:
        batcher.warm_up(["a", "b", "c"])
    assert model.called_with == [["a", "b"], ["c"]]
