"""Asynchronous sources: what they may do, and what may happen to the task that runs them."""

from __future__ import annotations

import asyncio
import itertools
import sys

import pytest

from batchstream import (
    AsyncBatchedStream,
    ClosedError,
    ConcurrentConsumerError,
    FinishReason,
    SourceError,
    demux,
)
from support import knobs
from support.reading import read, rest, waiting_for
from support.shuffled_loop import run
from support.sources import TIMEOUT

# ---- by time


@pytest.mark.rule(21)
def test_a_second_consumer_by_time_is_refused_and_the_first_served():
    async def main():
        going_on = asyncio.Event()

        async def source():
            yield ["a"]
            await going_on.wait()
            yield ["b"]
            yield ["c"]

        async with AsyncBatchedStream(source(), 1) as batch:
            steps = batch.steps()
            assert (await anext(steps)).outputs == [(0, "a")]
            receiving = await waiting_for(anext(steps))
            with pytest.raises(ConcurrentConsumerError, match="the batch has one consumer"):
                await anext(batch.steps())
            going_on.set()
            assert (await receiving).outputs == [(0, "b")]
            assert [delivery.outputs async for delivery in batch.steps()] == [[(0, "c")], []]

    run(main())


@pytest.mark.rule(21)
def test_a_second_consumer_is_refused_while_the_first_gives_its_turn_away(monkeypatch):
    knobs.set_turns(monkeypatch, receives=2, calls=1)

    async def main():
        async def source():
            for number in range(4):
                yield [number]

        async with AsyncBatchedStream(source(), 1) as batch:
            (stream,) = batch
            assert [await anext(stream) for _ in range(2)] == [0, 1]
            receiving = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)  # the receive has begun, and the loop has its turn
            assert not receiving.done()
            with pytest.raises(ConcurrentConsumerError):
                await anext(stream)
            assert await receiving == 2
            assert await rest(stream) == [3]

    asyncio.run(main())


# ---- scopes of trio around a yield


@pytest.mark.rule(1)
@pytest.mark.parametrize("count", [3, 1_000_000])
def test_a_source_may_yield_inside_a_cancel_scope(count):
    trio = pytest.importorskip("trio")

    async def source():
        with trio.move_on_after(TIMEOUT):
            for number in range(count):
                await trio.lowlevel.checkpoint()
                yield [number]

    async def main():
        async with AsyncBatchedStream(source(), 1, max_buffered=8) as batch:
            assert [await anext(batch[0]) for _ in range(3)] == [0, 1, 2]
            if count == 3:
                assert await rest(batch[0]) == []

    trio.run(main)


@pytest.mark.rule(1)
def test_a_source_may_yield_inside_a_nursery():
    trio = pytest.importorskip("trio")

    async def source():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            for number in range(3):
                await trio.lowlevel.checkpoint()
                yield [number]
            nursery.cancel_scope.cancel()

    async def main():
        async with AsyncBatchedStream(source(), 1) as batch:
            assert await rest(batch[0]) == [0, 1, 2]

    trio.run(main)


# ---- the task is cancelled


@pytest.mark.rule(9)
def test_a_pump_cancelled_before_its_first_step_fails_every_stream():
    async def source():
        yield ["a", "x"]

    async def main():
        batch = AsyncBatchedStream(source(), 2)
        reading = [asyncio.create_task(read(stream)) for stream in batch]
        await asyncio.sleep(0)  # the pump's task is made, and has not run
        (pump,) = asyncio.all_tasks() - {asyncio.current_task(), *reading}
        pump.cancel()
        assert await asyncio.gather(*reading) == [([], ClosedError)] * 2
        await batch.aclose()

    run(main())


@pytest.mark.rule(9)
def test_a_timeout_that_the_source_set_ends_the_streams_though_the_pump_pauses():
    async def main():
        deadline = asyncio.timeout(None)

        async def source():
            async with deadline:
                for number in itertools.count():
                    yield [number, number]

        first, second = demux(source(), 2, max_buffered=4)
        assert await anext(first) == 0
        for _ in range(10):  # steps that fill the buffers
            await asyncio.sleep(0)
        assert knobs.buffered(second) == 4
        deadline.reschedule(0)
        for _ in range(10):  # the pump's task is cancelled, and ends
            await asyncio.sleep(0)
        assert first.finish_reason is FinishReason.ERROR
        assert await read(first) == ([1, 2, 3], ClosedError)
        assert await read(second) == ([0, 1, 2, 3], ClosedError)
        assert await rest(first) == await rest(second) == []

    run(main())


@pytest.mark.rule(14)
def test_a_source_that_is_broken_off_is_closed_in_a_task_that_is_not_cancelled():
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


# ---- a task factory that runs at once


needs_eager_tasks = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="tasks are never eager here"
)


def run_eagerly(main):
    async def eager():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with asyncio.timeout(TIMEOUT):
            await main()

    asyncio.run(eager())


@pytest.mark.rule(14)
@needs_eager_tasks
def test_a_source_that_is_cancelled_at_once_in_an_eager_task_gives_an_error():
    async def source():
        raise asyncio.CancelledError
        yield

    async def main():
        assert [await read(stream) for stream in demux(source(), 2)] == [([], SourceError)] * 2

    run_eagerly(main)


@pytest.mark.rule(24)
@needs_eager_tasks
def test_a_source_in_an_eager_task_that_waits_for_its_own_stream_gets_an_error():
    async def source():
        yield [await anext(second), "x"]

    first, second = demux(source(), 2)

    async def main():
        with pytest.raises(RuntimeError, match="the source of this batch waits for a step of its"):
            await anext(first)

    run_eagerly(main)


# ---- a source that reads its own stream


@pytest.mark.rule(24)
def test_an_asynchronous_source_that_waits_for_its_own_stream_gets_an_error():
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
