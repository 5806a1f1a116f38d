"""Defects that batchers had: each test failed on the code that had the defect."""

from __future__ import annotations

import asyncio
import copy
import gc
import linecache
import pickle
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

import batchstream
from batchstream import (
    ClosedError,
    ContinuousBatcher,
    DynamicBatcher,
    FinishReason,
    OverloadedError,
    SlowConsumerError,
    StreamEnd,
    batched,
)
from batchstream._batching import batcher, dispatcher, queue, thread_dispatcher, workers
from batchstream._batching.request import Request
from batchstream._eventloops.asyncio import _tasks
from support.sources import TIMEOUT, Gate

pytestmark = pytest.mark.timeout(60)


def echo(requests):
    yield list(requests)


class Echo:
    """An engine that gives each request back, again and again, and says who was in each step."""

    def __init__(self):
        self.slots = {}
        self.steps = []
        self.gate = None

    def add(self, slot, request):
        self.slots[slot] = request

    def step(self):
        if self.gate is not None:
            self.gate.pass_through()
        self.steps.append(sorted(map(str, self.slots.values())))
        return dict(self.slots)

    def remove(self, slot):
        del self.slots[slot]


# ---- interrupts


SUBMITTING = {
    module.__file__ for module in (batcher, dispatcher, queue, thread_dispatcher, workers)
}


def interrupted_submission(batcher, line):
    """Submit, with an interrupt before the so-manyth line of the batcher; tell where, if at all."""
    where = None
    left = line

    def trace(frame, event, _):
        nonlocal left, where
        code = frame.f_code
        if code.co_filename not in SUBMITTING:
            return None
        text = linecache.getline(code.co_filename, frame.f_lineno)
        # A signal strikes between instructions that a trace function does not tell apart: neither
        # as a lock is taken or given back, nor at a `try` that does nothing.
        if event == "line" and "with self._lock" not in text and text.strip() != "try:":
            left -= 1
            if not left:
                where = f"{code.co_name}:{frame.f_lineno} {text.strip()}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    tracer = sys.gettrace()
    gc.disable()  # what is collected meanwhile is none of the batcher's
    sys.settrace(trace)
    try:
        batcher.stream("interrupted")
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracer)
        gc.enable()
    return where


@pytest.mark.parametrize("warm", [False, True])
def test_R09_an_interrupt_anywhere_in_stream_leaves_the_batcher_in_order(warm):
    lines = 0
    while True:
        batcher = DynamicBatcher(echo, max_batch_size=4, max_pending=8)
        if warm:
            assert list(batcher.stream("before")) == ["before"]
        lines += 1
        where = interrupted_submission(batcher, lines)
        if where is not None:
            assert batcher.stream("next").receive(timeout=TIMEOUT) == "next", where
        batcher.close()
        figures = batcher.statistics()
        assert (figures.live, figures.waiting) == (0, 0), where
        if where is None:
            break
    assert lines > 60


def test_R09_closing_in_a_signals_handler_that_interrupts_stream_forgets_nobody(monkeypatch):
    batcher = DynamicBatcher(echo, max_batch_size=4)
    list(batcher.stream("before"))
    arrive = Request.arrive

    def arrive_and_be_interrupted(request, now):
        signal.raise_signal(signal.SIGUSR1)
        arrive(request, now)

    before = signal.signal(signal.SIGUSR1, lambda *_: batcher.close())
    monkeypatch.setattr(Request, "arrive", arrive_and_be_interrupted)
    try:
        with pytest.raises(ClosedError):
            batcher.stream("interrupted").receive(timeout=TIMEOUT)
    finally:
        signal.signal(signal.SIGUSR1, before)
    monkeypatch.undo()
    batcher.close()


def test_R14_an_interrupt_in_metrics_reaches_the_caller():
    class Interrupted:
        def submitted(self):
            raise KeyboardInterrupt

        def __getattr__(self, _):
            return lambda *_, **__: None

    with DynamicBatcher(echo, max_batch_size=4, metrics=Interrupted()) as batcher:
        with pytest.raises(KeyboardInterrupt):
            batcher.stream("a")
        assert batcher.statistics().live == 0


# ---- waiting for oneself


def test_R09_a_blocking_receive_in_the_loop_of_an_asynchronous_function_is_refused():
    async def echo_here(requests):
        yield list(requests)

    async def main():
        async with DynamicBatcher(echo_here, max_batch_size=4) as batcher:
            with pytest.raises(RuntimeError, match="would block the event loop"):
                list(batcher.stream("a"))

    asyncio.run(main())


@pytest.mark.parametrize("deed", ["wait", "close"])
def test_R09_a_plain_function_that_waits_for_its_own_batcher_is_told_so(deed):
    def fn(requests):
        if deed == "wait":
            next(batcher.stream("another"))
        else:
            batcher.close()
        return [list(requests)]

    batcher = DynamicBatcher(fn, max_batch_size=4)
    stream = batcher.stream("a")
    with pytest.raises(RuntimeError if deed == "wait" else ClosedError):
        stream.receive(timeout=TIMEOUT)
    batcher.close()


# ---- loops that end


async def for_ever(requests):
    while True:
        yield list(requests)
        await asyncio.sleep(3600)


def test_R09_closing_does_not_wait_for_a_loop_that_was_stopped():
    batcher = DynamicBatcher(for_ever, max_batch_size=4)
    loop = asyncio.new_event_loop()

    async def main():
        stream = batcher.astream("a")
        await anext(stream)
        return stream

    stream = loop.run_until_complete(main())
    batcher.close()
    assert isinstance(stream.end.error, ClosedError)
    loop.close()


def test_R25_a_loop_that_is_closed_around_its_workers_keeps_none_of_their_tasks():
    before = len(_tasks)
    batcher = DynamicBatcher(for_ever, max_batch_size=4, batch_timeout=30)
    for _ in range(3):
        loop = asyncio.new_event_loop()

        async def main():
            stream = batcher.astream("a")
            await asyncio.sleep(0)
            return stream

        stream = loop.run_until_complete(main())
        loop.close()
        del stream
    batcher.close()
    assert len(_tasks) == before


def test_R11_a_task_of_a_loop_closed_before_fails_nobody_in_the_next_one():
    async def fn(requests):
        if "old" in requests:
            await asyncio.sleep(3600)
        yield list(requests)

    batcher = DynamicBatcher(fn, max_batch_size=2, batch_timeout=30)
    loop = asyncio.new_event_loop()

    async def old():
        streams = [batcher.astream("old"), batcher.astream("old")]
        for _ in range(5):
            await asyncio.sleep(0)
        return streams

    async def new():
        waiting = batcher.astream("first")
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()  # the task of the loop that is gone
        streams = [waiting, batcher.astream("second")]
        return [[output async for output in stream] for stream in streams]

    gc.disable()
    try:
        loop.run_until_complete(old())
        loop.close()
        assert asyncio.run(new()) == [["first"], ["second"]]
    finally:
        gc.enable()
    batcher.close()


def test_R09_a_loop_that_cancels_its_tasks_gets_no_other_batch():
    called_with = []

    async def fn(requests):
        called_with.append(requests)
        yield list(requests)
        await asyncio.sleep(3600)

    batcher = DynamicBatcher(fn, max_batch_size=4)
    outcomes = []

    async def clean_up_slowly():
        try:
            await asyncio.sleep(3600)
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            try:
                batcher.astream("late")
            except ClosedError as error:
                outcomes.append(error)

    async def main():
        task = asyncio.create_task(clean_up_slowly())
        await anext(batcher.astream("a"))
        return task

    asyncio.run(main())
    assert len(outcomes) == 1
    assert called_with == [["a"]]
    batcher.close()


# ---- what is kept


def test_R25_a_run_that_never_ends_keeps_nothing_of_those_who_have_left():
    engine = Echo()
    with ContinuousBatcher(engine, max_batch_size=2, max_buffered=10**6) as batcher:
        stays = batcher.stream("stays")
        for number in range(50):
            leaves = batcher.stream(number)
            next(leaves)
            leaves.cancel()
            stays.drain()
        (run,) = batcher._dispatcher._runs
        assert not run._unreported


def test_R25_a_request_that_was_cancelled_while_it_waited_lets_go_of_what_was_submitted():
    gate = Gate()

    def fn(requests):
        gate.pass_through()
        yield list(requests)

    with DynamicBatcher(fn, max_batch_size=1) as batcher:
        running = batcher.stream("a")
        gate.reached.wait(TIMEOUT)
        waiting = batcher.stream("b")
        waiting.cancel()
        batcher.stream("c").cancel()  # takes note
        assert waiting._buffer.content is None
        gate.opened.set()
        assert list(running) == ["a"]


class Model:
    def __init__(self, name):
        self.name = name

    @batched(max_batch_size=4)
    def generate(self, requests):
        yield [f"{self.name} {request}" for request in requests]


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],  # noqa: S301 - its own
)
def test_a_copy_of_an_instance_has_a_batcher_of_its_own(copied):
    first = Model("first")
    assert list(first.generate.stream("a")) == ["first a"]
    second = copied(first)
    second.name = "second"
    assert list(second.generate.stream("a")) == ["second a"]
    assert list(first.generate.stream("a")) == ["first a"]
    assert second.generate is second.generate is not first.generate
    first.generate.close()
    second.generate.close()


# ---- time and room


def test_R28_a_program_with_several_stuck_workers_is_not_held_up_for_each():
    program = """
import threading
import batchstream
reached = threading.Barrier(5)
def stuck(requests):
    reached.wait(20)
    threading.Event().wait()
    yield
batcher = batchstream.DynamicBatcher(stuck, max_batch_size=1, workers=4)
streams = [batcher.stream(number) for number in range(4)]
reached.wait(20)
from batchstream._pumps import thread as _thread
joined = []
class Clock:  # the patience of all together is that of one
    time = 0.0
    @classmethod
    def monotonic(cls):
        return cls.time
from batchstream._batching import thread_dispatcher as _thread_dispatcher
_thread.time = _thread_dispatcher.time = Clock
def join(self, timeout=None):
    joined.append(timeout)
    Clock.time += timeout
_thread.Worker.join = join
_thread._end_all()
assert joined[0] > 0 and sum(joined) <= _thread.EXIT_PATIENCE, joined
print("bounded", flush=True)
import os
os._exit(0)
"""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("bounded\n", "", 0)


def test_a_long_timeout_does_not_hurt_the_others_in_a_pause():
    def fn(requests):
        for number in range(20):
            yield [number] * len(requests)

    options = {"max_buffered": 4, "on_overflow": "wait"}
    with DynamicBatcher(fn, max_batch_size=2, **options) as batcher:
        stream = batcher.stream("a", timeout=1e10)
        assert list(stream) == list(range(20))
        with pytest.raises(ValueError, match="timeout must be finite"):
            batcher.stream("a", timeout=10**400)


def test_R13_an_engine_makes_no_step_with_a_request_that_was_too_slow():
    engine = Echo()
    permits = threading.Semaphore(0)
    engine.gate = SimpleNamespace(pass_through=lambda: permits.acquire(timeout=TIMEOUT))
    with ContinuousBatcher(engine, max_batch_size=2, max_buffered=5) as batcher:
        fast, slow = batcher.stream("fast"), batcher.stream("slow")
        for _ in range(12):
            permits.release()
            assert next(fast) == "fast"
        assert sum("slow" in step for step in engine.steps) == slow.end.outputs == 6
        assert slow.drain() == ["slow"] * 6
        with pytest.raises(SlowConsumerError):
            next(slow)
        fast.cancel()
        permits.release()
    assert batcher.statistics().dropped == 0


def test_those_for_whom_there_is_room_do_not_count_as_waiting():
    engine = Echo()
    engine.gate = gate = Gate()
    batcher = ContinuousBatcher(engine, max_batch_size=8, max_pending=2)
    streams = [batcher.stream(0)]
    gate.reached.wait(TIMEOUT)
    streams += [batcher.stream(number) for number in range(1, 10)]
    with pytest.raises(OverloadedError):
        batcher.stream(10)
    for stream in streams:
        stream.cancel()
    gate.opened.set()
    batcher.close()


def test_a_request_that_two_have_ended_is_counted_once_before_anybody_takes_note():
    gate = Gate()

    def fn(requests):
        gate.pass_through()
        yield list(requests)

    with DynamicBatcher(fn, max_batch_size=1) as batcher:
        running, waiting = batcher.stream("a"), batcher.stream("b")
        gate.reached.wait(TIMEOUT)
        for _ in range(2):  # its consumer, say, and its deadline
            waiting._buffer.finish(StreamEnd(FinishReason.CANCELLED, 0))
        figures = batcher.statistics()
        assert (figures.opened, figures.live, figures.waiting) == (2, 1, 0)
        assert figures.finished == {FinishReason.CANCELLED: 1}
        gate.opened.set()
        assert list(running) == ["a"]
    assert batcher.statistics().finished == {FinishReason.CANCELLED: 1, FinishReason.EXHAUSTED: 1}


# ---- clear errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((lambda: None,), "what the engine's factory returns must have the methods add, step"),
        ((lambda: 5,), "got 5 without add, step, remove"),
    ],
)
def test_a_factory_that_makes_no_engine_is_named(arguments, text):
    batcher = ContinuousBatcher(*arguments, max_batch_size=2)
    with batcher, pytest.raises(TypeError, match=text):
        next(batcher.stream("a"))


def test_an_engine_whose_step_is_asynchronous_is_refused():
    class Wrong(Echo):
        async def step(self):
            return {}

    with pytest.raises(TypeError, match="whose step is a coroutine function"):
        ContinuousBatcher(Wrong(), max_batch_size=2)


def test_a_function_that_hides_an_asynchronous_one_is_told_what_to_do():
    batcher = DynamicBatcher(lambda requests: for_ever(requests), max_batch_size=2)  # noqa: PLW0108
    with batcher, pytest.raises(TypeError, match="fn returns an asynchronous iterator"):
        next(batcher.stream("a"))


def test_limits_for_slots_are_no_limit_of_requests():
    with pytest.raises(TypeError, match=r"max_outputs takes a whole number, or a function"):
        DynamicBatcher(echo, max_batch_size=2, max_outputs=[5])


def test_a_batched_function_that_is_called_says_how_to_submit():
    with pytest.raises(TypeError, match=r"submit a request with \.stream\(request\)"):
        batchstream.batched(echo)(["a"])


def test_a_stream_that_waits_is_named_by_its_request():
    gate = Gate()

    def fn(requests):
        gate.pass_through()
        yield list(requests)

    with DynamicBatcher(fn, max_batch_size=1) as batcher:
        batcher.stream("a").cancel()
        running, waiting = batcher.stream("b"), batcher.stream("c")
        assert repr(waiting) == "<Stream request 2, live, 0 buffered>"
        with pytest.raises(TypeError, match="request 2 cannot be pickled"):
            pickle.dumps(waiting)
        gate.opened.set()
        assert [*running, *waiting] == ["b", "c"]
