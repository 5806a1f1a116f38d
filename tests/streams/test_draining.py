"""Outputs that lie ready: what draining leaves, and the last output before an end."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from batchstream import AsyncBatchedStream, FinishReason, StreamEnd
from support import knobs
from support.reading import rest, waiting_for
from support.shuffled_loop import run


@pytest.mark.rule(9)
def test_a_drain_where_a_segment_ends_leaves_the_next_receive_its_wake_up():
    async def main():
        given = asyncio.Queue()

        async def source():
            while True:
                yield [await given.get()]

        async def receive(number):
            receiving = await waiting_for(anext(stream))
            given.put_nowait(number)
            return await receiving

        async with AsyncBatchedStream(source(), 1, max_buffered=8) as batch:
            (stream,) = batch
            for number in range(knobs.SEGMENT_LENGTH):
                assert await receive(number) == number
            assert stream.drain() == []
            assert await receive("more") == "more"

    run(main())


@pytest.mark.rule(9)
def test_a_drain_where_a_segment_ends_leaves_no_consumer_waiting_beside_a_full_buffer():
    async def main():
        going_on = asyncio.Event()

        async def source():
            for number in itertools.count():
                if number == knobs.SEGMENT_LENGTH:
                    await going_on.wait()
                yield [number]

        async with AsyncBatchedStream(source(), 1, max_buffered=8) as batch:
            (stream,) = batch
            for number in range(knobs.SEGMENT_LENGTH):
                assert await anext(stream) == number
            assert stream.drain() == []
            receiving = await waiting_for(anext(stream))
            going_on.set()
            assert await receiving == knobs.SEGMENT_LENGTH

    run(main())


@pytest.mark.rule(2)
def test_draining_while_the_pump_appends_loses_and_repeats_nothing():
    class Tail(list):
        def __getitem__(self, where):
            if "d" not in self:  # the pump strikes here
                self.append("d")
            return super().__getitem__(where)

    (stream,) = AsyncBatchedStream([], 1)  # nothing begins: this test plays the pump
    buffer = knobs.hold(stream, Tail("abc"))
    next(buffer.segments[0][1])  # "a" was received
    assert stream.drain() == ["b", "c", "d"]


@pytest.mark.rule(5)
def test_the_end_is_not_seen_before_the_output_that_came_with_it():
    class Tail(list):
        def __len__(self):
            counted = super().__len__()
            if not buffer.ends:  # the pump strikes here
                self.append("last")
                buffer.finish(StreamEnd(FinishReason.EOS, 1))
            return counted

    (stream,) = AsyncBatchedStream([], 1)  # as above
    buffer = knobs.hold(stream, Tail())
    stream._outputs = ("others",)  # it looks its buffer up anew
    assert asyncio.run(rest(stream)) == ["last"]
