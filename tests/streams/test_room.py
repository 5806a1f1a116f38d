"""What a pump that waits for room and a consumer that makes some do at the same moment."""

from __future__ import annotations

import asyncio

import pytest

from batchstream import AsyncBatchedStream, BatchedStream
from batchstream._core.arguments import Bound
from batchstream._handoff.buffer import Buffer
from batchstream._pumps.room import Room
from batchstream._streams.async_stream import AsyncStreamReader
from batchstream._streams.stream import StreamReader
from support.sources import TIMEOUT

STEPS = [["a", "x"], ["b", "y"], ["c", "z"]]


class Pump:
    """A pump that waits for room in one stream, and goes on in the very call that resumes it.

    Args:
        steps: How many steps it has to make.
    """

    def __init__(self, steps):
        self.buffer = Buffer(0)
        self.room = Room(Bound(1, "wait"), "collect()")
        self.steps = steps
        self.go_on()

    def go_on(self):
        self.room.stop_asking([self.buffer])
        while self.steps and not self.buffer.is_full(1):
            self.buffer.outputs.append(self.steps)
            self.steps -= 1
        if self.steps:
            self.room.ask([self.buffer], self.go_on)


@pytest.mark.rule(9, 19)
def test_a_consumer_in_a_thread_resumes_a_pump_that_asks_anew_while_it_is_being_resumed():
    pump = Pump(steps=3)
    reader = StreamReader(pump.buffer, upstream=None)  # where an output is buffered, none is needed
    held = [(next(reader), list(pump.buffer.outputs)) for _ in range(3)]
    assert held == [(3, [2]), (2, [1]), (1, [])]


@pytest.mark.rule(9, 19)
def test_a_consumer_in_a_loop_resumes_a_pump_that_asks_anew_while_it_is_being_resumed():
    async def main():
        pump = Pump(steps=3)
        reader = AsyncStreamReader(pump.buffer, upstream=None)
        held = [(await anext(reader), list(pump.buffer.outputs)) for _ in range(3)]
        assert held == [(3, [2]), (2, [1]), (1, [])]

    asyncio.run(main())


@pytest.mark.rule(9)
def test_room_that_was_made_before_the_pump_asked_is_seen():
    resumed = []
    room, buffer = Room(Bound(1, "wait"), "collect()"), Buffer(0)
    room.ask([buffer], lambda: resumed.append("resumed"))
    assert resumed
    assert not room.full


@pytest.mark.rule(9)
def test_the_last_of_several_streams_to_have_room_resumes_the_pump():
    resumed = []
    room, buffers = Room(Bound(1, "wait"), "collect()"), [Buffer(0), Buffer(1)]
    for buffer in buffers:
        buffer.outputs.append("output")
    room.ask(buffers, lambda: resumed.append("resumed"))
    for count, buffer in enumerate(buffers):
        assert len(resumed) == 0, count
        buffer.outputs.popleft()
        buffer.on_room(buffer)
    assert resumed
    room.stop_asking(buffers)
    assert [buffer.on_room for buffer in buffers] == [None, None]


@pytest.mark.rule(13)
def test_a_stream_that_was_cancelled_a_moment_ago_counts_as_full():
    buffer = Buffer(0)
    buffer.shut()
    assert buffer.is_full(1)


# ---- a stream that was read once, and is not read again, has room


@pytest.mark.rule(9, 19)
def test_an_output_that_was_taken_in_a_thread_lets_the_source_go_on_for_the_others():
    first, second = BatchedStream(STEPS, 2, background=True, max_buffered=1)
    received = [stream.receive(TIMEOUT) for stream in (first, second, second)]
    assert received == ["a", "x", "y"]
    assert first.receive(TIMEOUT) == "b"


@pytest.mark.rule(9, 19)
@pytest.mark.parametrize("moved_by", ["a task", "a thread"])
def test_an_output_that_was_taken_in_a_loop_lets_the_source_go_on_for_the_others(moved_by):
    async def source():
        for step in STEPS:
            yield step

    async def main():
        moved = STEPS if moved_by == "a thread" else source()
        async with AsyncBatchedStream(moved, 2, max_buffered=1) as (first, second):
            received = [await anext(stream) for stream in (first, second, second)]
            assert received == ["a", "x", "y"]
            assert await anext(first) == "b"

    asyncio.run(main())


# ---- a stream that is cancelled is not waited for


@pytest.mark.rule(9, 13)
def test_a_cancel_of_the_stream_that_a_task_waits_for_lets_the_source_go_on():
    async def source():
        for step in STEPS:
            yield step

    async def main():
        async with AsyncBatchedStream(source(), 2, max_buffered=1) as batch:
            first, second = batch
            assert await anext(first) == "a"
            reading = asyncio.create_task(anext(first))
            while batch.statistics().waiting_for != (1,):  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(0)
            second.cancel()
            assert await asyncio.wait_for(reading, TIMEOUT) == "b"

    asyncio.run(main())


@pytest.mark.rule(9, 13)
def test_a_cancel_of_the_stream_that_a_thread_waits_for_lets_the_source_go_on():
    with BatchedStream(STEPS, 2, background=True, max_buffered=1) as batch:
        first, second = batch
        assert first.receive(TIMEOUT) == "a"
        while batch.statistics().waiting_for != (1,):
            pass
        second.cancel()
        assert first.receive(TIMEOUT) == "b"
