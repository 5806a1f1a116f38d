"""Streams of one batch in several event loops, loops that close, and programs that end midway."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from batchstream import (
    AsyncBatchedStream,
    BatchedStream,
    ClosedError,
    FinishReason,
    SourceError,
    demux,
)
from support.sources import TIMEOUT, Gate, ScriptedSource, run_in_threads

STEPS = [[f"{number}a", f"{number}b"] for number in range(300)]


async def rest(stream):
    return [output async for output in stream]


def column(slot):
    return [step[slot] for step in STEPS]


def test_R22_streams_of_one_batch_are_consumed_in_several_event_loops_at_once():
    batch = AsyncBatchedStream(STEPS, 2, max_buffered=3)
    received = {}

    def consume(slot):
        received[slot] = asyncio.run(rest(batch[slot]))

    run_in_threads(lambda: consume(0), lambda: consume(1))
    assert received == {0: column(0), 1: column(1)}


def test_R22_an_asynchronous_source_feeds_streams_in_other_loops_than_its_own():
    source = ScriptedSource(STEPS)

    async def steps():
        for step in source:
            yield step

    first, second = demux(steps(), 2, max_buffered=3)
    received = {}

    def consume(stream):
        received[stream.slot] = asyncio.run(rest(stream))

    run_in_threads(lambda: consume(first), lambda: consume(second))
    assert received == {0: column(0), 1: column(1)}


class LoopInThread:
    """An event loop that runs in a thread of its own, until it is closed in the midst of it."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def call(self, coroutine):
        """Run a coroutine there, and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT)

    def close(self):
        """Close the loop, whatever waits in it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()
        self.loop.close()


async def following(stream):
    return await anext(stream)


def test_R22_a_loop_that_closes_takes_only_its_own_streams_with_it():
    batch = AsyncBatchedStream(STEPS, 2, max_buffered=2)
    other = LoopInThread()
    assert other.call(following(batch[1])) == "0b"
    other.close()  # its stream is full soon, and nobody will ever make room
    assert asyncio.run(rest(batch[0])) == column(0)
    assert batch[1].finish_reason is FinishReason.CANCELLED
    assert batch[0].finish_reason is FinishReason.EXHAUSTED


def test_R22_a_loop_that_closes_with_a_waiting_consumer_ends_its_stream():
    gate = Gate()

    def source():
        yield ["a", "x"]
        gate.pass_through()
        yield ["b", "y"]
        yield ["c", "z"]

    async def wait_again(stream):
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        return task

    batch = AsyncBatchedStream(source(), 2)
    other = LoopInThread()
    assert other.call(following(batch[1])) == "x"
    waiting = other.call(wait_again(batch[1]))
    assert gate.reached.wait(TIMEOUT)
    other.close()
    waiting._log_destroy_pending = False  # a loop closed like this leaves its tasks behind
    gate.opened.set()
    assert asyncio.run(rest(batch[0])) == ["a", "b", "c"]
    assert batch[1].finish_reason is FinishReason.CANCELLED
    waiting.get_coro().close()


def test_R09_streams_in_other_loops_are_told_when_the_loop_that_ran_the_source_has_gone():
    stepping = asyncio.Event()

    async def source():
        yield ["a", "x"]
        await stepping.wait()
        yield ["b", "y"]

    async def leave_one_behind():
        assert await anext(first) == "a"

    first, second = demux(source(), 2)
    other = LoopInThread()
    runner = asyncio.Runner()
    runner.run(leave_one_behind())
    assert other.call(following(second)) == "x"
    runner.close()  # cancels all tasks of its loop, and the pump is one of them

    async def see_the_end():
        with pytest.raises(ClosedError, match="the task that ran the source was cancelled"):
            await anext(second)
        return await rest(second)

    assert other.call(see_the_end()) == []
    assert first.finish_reason is FinishReason.ERROR
    other.close()


def test_R22_a_stream_is_not_waited_for_in_another_loop_than_the_first():
    gate = Gate()

    def source():
        yield ["a"]
        gate.pass_through()
        yield ["b"]

    batch = AsyncBatchedStream(source(), 1)
    with asyncio.Runner() as runner:
        assert runner.run(following(batch[0])) == "a"
        with pytest.raises(RuntimeError, match="stream 0 belongs to the event loop that first"):
            asyncio.run(following(batch[0]))
        gate.opened.set()
        assert runner.run(rest(batch[0])) == ["b"]


def test_R14_a_source_that_is_broken_off_is_closed_in_a_task_that_is_not_cancelled():
    class Source:
        def __init__(self):
            self.steps = iter([["a"]])
            self.is_waiting = asyncio.Event()
            self.cancels = []

        def __aiter__(self):
            return self

        async def __anext__(self):
            for step in self.steps:
                return step
            self.is_waiting.set()
            return await asyncio.Event().wait()

        async def aclose(self):
            self.cancels.append(asyncio.current_task().cancelling())

    async def main():
        source = Source()
        async with AsyncBatchedStream(source, 1) as batch:
            assert await anext(batch[0]) == "a"
            await source.is_waiting.wait()
        assert source.cancels == [0]

    asyncio.run(main())


# ---- programs that end midway


PROGRAM = """
import asyncio, itertools, os, signal, sys, threading, time
from batchstream import AsyncBatchedStream, BatchedStream, demux

def endless():
    for number in itertools.count():
        yield [number, number]

def stuck():
    yield [0, 0]
    threading.Event().wait()

async def endless_async():
    for number in itertools.count():
        yield [number, number]

async def stuck_async():
    yield [0, 0]
    await asyncio.Event().wait()

"""

ENDINGS = {
    "background threads": "batch = BatchedStream({}(), 2, background=True)\nnext(batch[0])",
    "a thread that waits for room": (
        "batch = BatchedStream({}(), 2, background=True, max_buffered=1)\nnext(batch[0])"
    ),
    "streams alone": "kept = list(BatchedStream({}(), 2, background=True))\nnext(kept[1])",
    "asyncio": """
batch = AsyncBatchedStream({}(), 2)
async def main():
    await anext(batch[0])
asyncio.run(main())
""",
    "asyncio, async source": """
streams = demux({}_async(), 2, max_buffered=4)
async def main():
    await anext(streams[0])
asyncio.run(main())
""",
    "in the midst of asyncio": """
async def main():
    batch = AsyncBatchedStream({}(), 2)
    waiting = asyncio.create_task(anext(batch[0]))
    await waiting
    sys.exit(0)
asyncio.run(main())
""",
}


@pytest.mark.parametrize("source", ["endless", "stuck"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_R28_a_program_with_open_streams_ends_silently(ending, source):
    program = PROGRAM + textwrap.dedent(ENDINGS[ending].format(source))
    ended = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


@pytest.fixture
def _interruptible():
    """Undo what a shell does to programs in the background: they ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal to itself")
def test_R14_an_interrupt_of_a_waiting_consumer_loses_no_output():
    gate = Gate()

    def source():
        yield ["a"]
        gate.pass_through()
        yield ["b"]

    def interrupt():
        assert gate.reached.wait(TIMEOUT)
        while not batch._pump._places._threads.waiting:
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGINT)

    with BatchedStream(source(), 1, background=True) as batch:
        (stream,) = batch
        assert next(stream) == "a"
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        interrupter.join(TIMEOUT)
        gate.opened.set()
        assert list(stream) == ["b"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal to itself")
def test_R14_an_interrupt_ends_a_program_of_asyncio_and_closes_the_source():
    program = PROGRAM + textwrap.dedent(
        """
        def source():
            try:
                yield [0, 0]
                os.kill(os.getpid(), signal.SIGINT)
                while True:
                    yield [1, 1]
            finally:
                print("closed", flush=True)

        async def main():
            async with AsyncBatchedStream(source(), 2, max_buffered=2) as batch:
                async for _ in batch[0]:
                    pass

        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    ended = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
        encoding="utf-8",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\ninterrupted\n", "")


def test_R24_an_asynchronous_source_that_waits_for_its_own_stream_is_told_so():
    async def source():
        yield ["a", "x"]
        yield [await anext(second), "y"]  # that is buffered
        await anext(second)
        yield [await anext(second), "z"]  # that is not

    first, second = demux(source(), 2)

    async def main():
        with pytest.raises(RuntimeError, match="the source of this batch waits for a step of its"):
            await rest(first)

    asyncio.run(main())


# ---- a pump that fails itself


@pytest.mark.parametrize("form", ["thread", "task"])
@pytest.mark.parametrize("place", ["_take", "_settle_with", "_tell", "_goes_on", "_without_room"])
def test_R09_a_pump_that_fails_itself_leaves_nobody_waiting(form, place, monkeypatch):
    unheard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: unheard.append(about.exc_value))

    async def steps():
        yield ["a"]
        raise ValueError("the source")

    async def main():
        source = steps() if form == "task" else iter([["a"], "no step"])
        async with AsyncBatchedStream(source, 1) as batch:

            def fail(*_):
                raise MemoryError(place)

            monkeypatch.setattr(batch._pump, place, fail)
            with pytest.raises((MemoryError, SourceError, ValueError)):
                await rest(batch[0])
            assert await rest(batch[0]) == []
            assert batch[0].finish_reason is FinishReason.ERROR

    asyncio.run(main())
