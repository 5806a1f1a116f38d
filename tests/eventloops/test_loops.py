"""Streams of one batch in several event loops, loops that close, and programs that end midway."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from batchstream import (
    AsyncBatchedStream,
    ClosedError,
    FinishReason,
    demux,
)
from support.programs import run_program
from support.reading import following, rest
from support.sources import TIMEOUT, Gate, ScriptedSource, run_in_threads

STEPS = [[f"{number}a", f"{number}b"] for number in range(300)]


def column(slot):
    return [step[slot] for step in STEPS]


@pytest.mark.rule(22)
def test_streams_of_one_batch_are_consumed_in_several_event_loops_at_once():
    batch = AsyncBatchedStream(STEPS, 2, max_buffered=3)
    received = {}

    def consume(slot):
        received[slot] = asyncio.run(rest(batch[slot]))

    run_in_threads(lambda: consume(0), lambda: consume(1))
    assert received == {0: column(0), 1: column(1)}


@pytest.mark.rule(22)
def test_an_asynchronous_source_feeds_streams_in_other_loops_than_its_own():
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


@pytest.mark.rule(22)
def test_a_loop_that_closes_takes_only_its_own_streams_with_it():
    batch = AsyncBatchedStream(STEPS, 2, max_buffered=2)
    other = LoopInThread()
    assert other.call(following(batch[1])) == "0b"
    other.close()  # its stream is full soon, and no consumer will ever make room
    assert asyncio.run(rest(batch[0])) == column(0)
    assert batch[1].finish_reason is FinishReason.CANCELLED
    assert batch[0].finish_reason is FinishReason.EXHAUSTED


@pytest.mark.rule(22)
def test_a_loop_that_closes_with_a_waiting_consumer_ends_its_stream():
    gate = Gate()
    source = ScriptedSource([["a", "x"], ["b", "y"], ["c", "z"]], gates={1: gate})

    async def wait_again(stream):
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        return task

    batch = AsyncBatchedStream(source, 2)
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


@pytest.mark.rule(9)
def test_streams_in_other_loops_fail_when_the_loop_that_ran_the_source_has_gone():
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
        with pytest.raises(ClosedError, match=r"the task that ran .*read the streams to their"):
            await anext(second)
        return await rest(second)

    assert other.call(see_the_end()) == []
    assert first.finish_reason is FinishReason.ERROR
    other.close()


@pytest.mark.rule(22)
def test_a_stream_is_not_waited_for_in_another_loop_than_the_first():
    gate = Gate()
    batch = AsyncBatchedStream(ScriptedSource([["a"], ["b"]], gates={1: gate}), 1)
    with asyncio.Runner() as runner:
        assert runner.run(following(batch[0])) == "a"
        with pytest.raises(RuntimeError, match="stream 0 belongs to the event loop that first"):
            asyncio.run(following(batch[0]))
        gate.opened.set()
        assert runner.run(rest(batch[0])) == ["b"]


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


@pytest.mark.rule(28)
@pytest.mark.parametrize("source", ["endless", "stuck"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_with_open_streams_ends_silently(ending, source):
    ending = ENDINGS[ending].format(source)
    assert run_program(PROGRAM, ending, flags=("-W", "error")) == (0, "", "")


@pytest.mark.rule(14)
@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal to itself")
def test_an_interrupt_ends_a_program_of_asyncio_and_closes_the_source():
    program = """
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
    ended = run_program(PROGRAM, program, flags=("-W", "error"))
    assert ended == (0, "closed\ninterrupted\n", "")
