"""Engines whose step waits for something, and that are woken for what happens meanwhile."""

from __future__ import annotations

import asyncio
import gc
import itertools
import queue
import sys
import threading
from contextvars import copy_context

import pytest

from batchstream import ClosedError, ContinuousBatcher, DeadlineError, Last, NotNow, SourceError
from batchstream._batching.engine import Engine
from batchstream._pumps.thread import ThreadPump
from batchstream.text import DecodingEngine
from support import knobs
from support.engines import ManualClock
from support.sources import TIMEOUT
from support.waiting_engine import Waiting, taken


class Makes:
    """Makes engines.

    Attributes:
        made: The engines that were made, to be taken.
    """

    def __init__(self):
        self.made = queue.SimpleQueue()

    def __call__(self):
        engine = Waiting()
        self.made.put(engine)
        return engine


def test_a_request_joins_an_engine_that_waits():
    make = Makes()
    with ContinuousBatcher(make, max_batch_size=2) as batcher:
        first = batcher.stream("a")
        engine = taken(make.made)
        assert taken(engine.added) == "a"
        assert engine.inside.wait(TIMEOUT)
        second = batcher.stream("b")
        assert taken(engine.added) == "b"
        engine.give({0: Last(1), 1: Last(2)})
        assert (list(first), list(second)) == ([1], [2])


def waiting(batcher, engine, *requests):
    """Submit requests, and return their streams once a step waits for them."""
    streams = [batcher.stream(request) for request in requests]
    assert [taken(engine.added) for _ in requests] == list(requests)
    assert engine.inside.wait(TIMEOUT)
    return streams


@pytest.mark.rule(13)
def test_a_request_that_is_cancelled_leaves_an_engine_that_waits():
    engine = Waiting()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        first, second = waiting(batcher, engine, "a", "b")
        first.cancel()
        assert taken(engine.removed) == "a"
        engine.give({1: Last(2)})
        assert list(second) == [2]


# ---- requests that wait for what is no step


@pytest.mark.rule(29)
@pytest.mark.parametrize("limit", ["max_batch_size", "max_batch_cost", "max_step_cost"])
def test_a_request_joins_an_engine_that_waits_as_a_limit_is_raised(limit):
    engine = Waiting()
    options = {"cost": len, "max_batch_cost": 2, "step_cost": len, "max_step_cost": 2}
    with ContinuousBatcher(engine, max_batch_size=2, **options) as batcher:
        batcher.reconfigure(**{limit: 1})
        first = batcher.stream("a")
        taken(engine.entered)
        second = batcher.stream("b")
        taken(engine.entered)  # it has looked at the queue: there is no room by the limit
        batcher.reconfigure(**{limit: 2})
        assert [taken(engine.added), taken(engine.added)] == ["a", "b"]
        engine.give({0: Last(1), 1: Last(2)})
        assert (list(first), list(second)) == ([1], [2])


class Small(Waiting):
    """Has room for requests of one letter, beside others."""

    def add(self, slot, request):
        if len(request) > 1:
            raise NotNow
        super().add(slot, request)


def cancel(stream, batcher, clock):
    stream.cancel()


def see_its_time_is_over(stream, batcher, clock):
    clock.move(9.0)
    with pytest.raises(DeadlineError):
        next(stream)


def let_another_caller_see_it(stream, batcher, clock):
    clock.move(9.0)
    batcher.wait_for_room()


@pytest.mark.rule(29)
@pytest.mark.parametrize("end", [cancel, see_its_time_is_over, let_another_caller_see_it])
def test_the_next_request_joins_an_engine_that_waits_when_the_one_before_it_ends(end, monkeypatch):
    clock, engine = ManualClock.install(monkeypatch), Small()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        streams = []
        for request, seconds in (("a", None), ("large", 5.0), ("b", None)):
            streams.append(batcher.stream(request, wait_timeout=seconds))
            taken(engine.entered)  # the second is refused, and the third waits behind it
        end(streams[1], batcher, clock)
        assert [taken(engine.added), taken(engine.added)] == ["a", "b"]
        engine.give({0: Last(1), 1: Last(2)})
        assert [list(stream) for stream in streams[::2]] == [[1], [2]]


def test_a_request_joins_an_engine_that_waits_when_a_warm_up_is_given_up():
    engine = Waiting()

    async def main():
        first = batcher.stream("a")
        taken(engine.entered)
        warm_up = asyncio.create_task(batcher.awarm_up(["w"]))  # once "a" has ended
        await asyncio.sleep(0)
        taken(engine.entered)
        second = batcher.stream("b")
        taken(engine.entered)  # it has to wait for the warm-up
        warm_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await warm_up
        assert [taken(engine.added), taken(engine.added)] == ["a", "b"]
        first.cancel()
        second.cancel()

    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        asyncio.run(main())


class EverySecondTime:
    """An attribute that is None when it is looked at again, as if another thread had reset it."""

    def __init__(self):
        self._reads = itertools.count(1)

    def __get__(self, instance, owner):
        return int if next(self._reads) % 2 else None

    def __set__(self, instance, value):
        pass


@pytest.mark.parametrize("kind", [Engine, ThreadPump])
def test_a_batch_that_ends_as_its_engine_is_to_be_woken_is_no_error(kind, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: reported.append(event.exc_value))
    attribute = "waker" if kind is Engine else "wake_source"
    monkeypatch.setattr(kind, attribute, EverySecondTime(), raising=False)
    engine = Waiting()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        stream = waiting(batcher, engine, "a")[0]
        stream.cancel()
        engine.wake()
    assert reported == []


# ---- what leaves


@pytest.mark.rule(25)
def test_a_stream_that_is_dropped_leaves_an_engine_that_waits():
    engine = Waiting()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        streams = waiting(batcher, engine, "a", "b")
        gc.disable()  # without the help of the cycle collector
        try:
            del streams[0]
            assert taken(engine.removed) == "a"
        finally:
            gc.enable()
        engine.give({1: Last(2)})
        assert list(streams[0]) == [2]


def test_a_request_whose_time_is_over_leaves_an_engine_that_waits():
    engine = Waiting()
    with ContinuousBatcher(engine, max_batch_size=1) as batcher:
        stream = batcher.stream("a", timeout=0)
        with pytest.raises(DeadlineError):
            next(stream)
        waiting(batcher, engine, "b")[0].cancel()


@pytest.mark.rule(9)
@pytest.mark.parametrize("live", [1, 2])
def test_a_batcher_that_is_closed_does_not_wait_for_an_engine_that_waits(live):
    make = Makes()
    batcher = ContinuousBatcher(make, max_batch_size=2)
    streams = [batcher.stream(number) for number in range(live)]
    engine = taken(make.made)
    for _ in streams:
        taken(engine.added)
    assert engine.inside.wait(TIMEOUT)
    batcher.close()
    assert engine.closed.is_set()
    for stream in streams:
        with pytest.raises(ClosedError):
            next(stream)


class BetweenRefillAndStep(Waiting):
    """Calls something as a step begins, before it waits."""

    before = None

    def step(self):
        before, self.before = self.before, None
        if before is not None:
            before()
        return super().step()


def test_a_request_that_comes_between_the_refill_and_the_step_joins():
    engine = BetweenRefillAndStep()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        late = []
        engine.before = lambda: late.append(batcher.stream("late"))
        first = batcher.stream("early")
        assert [taken(engine.added), taken(engine.added)] == ["early", "late"]
        engine.give({0: Last(1), 1: Last(2)})
        assert (list(first), list(late[0])) == ([1], [2])


def test_a_cancel_that_comes_between_the_refill_and_the_step_is_seen():
    engine = BetweenRefillAndStep()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        streams = []
        submitted = threading.Event()

        def cancel():
            assert submitted.wait(TIMEOUT)
            streams[0].cancel()

        engine.before = cancel
        streams += [batcher.stream("a"), batcher.stream("b")]
        submitted.set()
        assert taken(engine.removed) == "a"
        streams[1].cancel()


class Eager(Waiting):
    """Lets the engine's thread do what it can before `wake` returns.

    Attributes:
        done: What that is: an event that `wake` waits for.
    """

    done = None

    def wake(self):
        super().wake()
        done, self.done = self.done, None
        if done is not None:
            self.seen = taken(done)


def test_a_request_can_be_found_when_the_engine_is_woken_for_it():
    engine = Eager()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        first = waiting(batcher, engine, "a")[0]
        engine.done = engine.added  # before `stream` returns
        second = batcher.stream("b")
        assert engine.seen == "b"
        engine.done = engine.removed
        first.cancel()
        assert engine.seen == "a"
        second.cancel()


def test_an_engine_is_woken_while_a_batch_runs_and_not_before_or_after():
    engine = knobs.engine(Waiting())
    assert engine.waker is None
    for _ in range(2):
        engine.drive(copy_context())
        assert engine.waker is not None
        engine.close()
        assert engine.waker is None


def test_an_engine_that_is_made_after_an_error_is_woken():
    make = Makes()
    with ContinuousBatcher(make, max_batch_size=2) as batcher:
        first = batcher.stream("a")
        failing = taken(make.made)
        taken(failing.added)
        failing.give(OSError("gone"))
        with pytest.raises(OSError, match="gone"):
            next(first)
        assert failing.closed.wait(TIMEOUT)
        first = batcher.stream("b")
        engine = taken(make.made)
        assert taken(engine.added) == "b"
        first.cancel()
        assert taken(engine.removed) == "b"


def test_what_wake_raises_is_reported_and_fails_no_caller(monkeypatch):
    class Broken(Waiting):
        def wake(self):
            super().wake()
            raise OSError("no bell")

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: reported.append(event.exc_value))
    engine = Broken()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        first = waiting(batcher, engine, "a")[0]
        second = batcher.stream("b")
        assert taken(engine.added) == "b"
        first.cancel()
        assert taken(engine.removed) == "a"
        second.cancel()
        assert taken(engine.removed) == "b"
    assert {str(error) for error in reported} == {"no bell"}
    assert len(reported) == 3


class NotPlain(Waiting):
    async def wake(self):
        """Do nothing."""


class WithArgument(Waiting):
    def wake(self, slot):
        """Do nothing."""


@pytest.mark.parametrize(
    ("kind", "text"), [(NotPlain, "a coroutine function"), (WithArgument, r"\(slot\)")]
)
def test_a_wake_that_could_not_be_called_is_refused(kind, text):
    with pytest.raises(TypeError, match=rf"wake of an engine is called .*{text}"):
        ContinuousBatcher(kind(), max_batch_size=1)
    with ContinuousBatcher(kind, max_batch_size=1) as batcher:
        stream = batcher.stream("a")
        with pytest.raises(TypeError, match=rf"wake of an engine is called .*{text}"):
            next(stream)


def test_an_engine_that_is_refused_for_its_wake_is_closed():
    closed = []

    class Closing(NotPlain):
        def close(self):
            closed.append(self)

    with ContinuousBatcher(Closing, max_batch_size=1) as batcher:
        stream = batcher.stream("a")
        with pytest.raises(TypeError, match="wake of an engine"):
            next(stream)
        assert len(closed) == 1
    assert len(closed) == 1


def test_a_wake_that_is_no_function_is_an_attribute_like_others():
    engine = Waiting()
    engine.wake = 5
    with ContinuousBatcher(engine, max_batch_size=1) as batcher:
        stream = batcher.stream("a")
        engine.give({0: Last(1)})
        assert list(stream) == [1]


def test_an_engine_that_decodes_hands_the_call_on():
    engine = Waiting()
    with ContinuousBatcher(
        DecodingEngine(engine, lambda _: None, slots=2), max_batch_size=2
    ) as batcher:
        first = waiting(batcher, engine, "a")[0]
        batcher.stream("b").cancel()
        first.cancel()
        assert taken(engine.removed)
    assert engine.wakes


def test_a_request_that_the_engine_refuses_fails_alone_while_another_waits():
    engine = Waiting()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        first = waiting(batcher, engine, "a")[0]
        with pytest.raises(SourceError, match="not this one"):
            next(batcher.stream(SourceError("not this one")))
        engine.give({0: Last(1)})
        assert list(first) == [1]
