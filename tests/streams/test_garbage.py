"""What is freed, and when: at once, without the cycle collector."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import weakref
from contextlib import suppress

import pytest

from batchstream import (
    SKIP,
    AsyncBatchedStream,
    BatchedStream,
    BufferOverflowError,
    DynamicBatcher,
    Last,
    demux,
)
from support import knobs
from support.forms import pump_threads
from support.reading import waiting_for
from support.sources import TIMEOUT, Gate


class Output:
    """What can be referred to weakly."""


def two_outputs_a_step():
    while True:
        yield [Output(), Output()]


# ---- outputs


@pytest.mark.rule(19, 25)
def test_a_received_output_is_freed_with_the_next_step():
    first, second = demux(two_outputs_a_step(), 2)
    seen = []
    for _ in range(10):
        assert not any(ref() for ref in seen[:-2])
        seen.append(weakref.ref(next(first)))
        seen.append(weakref.ref(next(second)))


@pytest.mark.rule(25)
def test_a_cancelled_stream_frees_what_it_held_at_once():
    first, second = demux(two_outputs_a_step(), 2)
    next(first)
    held = weakref.ref(knobs.content_of(second)[0])
    assert held() is not None
    second.cancel()
    assert held() is None


@pytest.mark.rule(25)
def test_an_error_that_leaves_a_receive_does_not_keep_the_stream():
    first, second = demux(two_outputs_a_step(), 2, max_buffered=1)
    next(first)
    with pytest.raises(BufferOverflowError) as raised:
        next(first)
    dropped = weakref.ref(first)
    del first
    assert dropped() is None
    assert raised.value.slots == (1,)
    assert next(second)


@pytest.mark.rule(25)
def test_a_receive_that_timed_out_does_not_keep_the_stream():
    gate = Gate()

    def source():
        gate.pass_through()
        yield ["a"]

    [stream] = BatchedStream(source(), 1, background=True)
    with pytest.raises(TimeoutError) as raised:
        stream.receive(timeout=0)
    dropped = weakref.ref(stream)
    del stream
    assert dropped() is None
    assert raised.value
    gate.opened.set()


@pytest.mark.rule(25)
@pytest.mark.parametrize("polls", [False, True])
def test_a_receive_that_was_cancelled_does_not_keep_the_stream(polls):
    gate = Gate()

    def model(requests):
        gate.pass_through()
        yield ["a" for _ in requests]

    async def main():
        async with DynamicBatcher(model, max_batch_size=2) as batcher:
            stream = batcher.astream("request", timeout=TIMEOUT if polls else None)
            receiving = await waiting_for(anext(stream))
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError) as raised:
                await receiving
            dropped = weakref.ref(stream)
            del stream, receiving
            assert dropped() is None
            assert raised.value is not None
            gate.opened.set()

    asyncio.run(main())


async def one_output():
    yield [Output()]
    await asyncio.Event().wait()


def keep_error(run_receive, receiving, errors):
    """Run a receive, and keep what it raises. No frame of this refers to the stream."""
    try:
        run_receive(receiving)
    except RuntimeError as error:
        errors.append(error)


@pytest.mark.rule(25)
def test_a_receive_that_is_refused_without_a_loop_does_not_keep_the_stream():
    errors = []
    [stream] = demux(one_output(), size=1)
    keep_error(lambda receiving: receiving.send(None), anext(stream), errors)
    dropped = weakref.ref(stream)
    del stream
    assert dropped() is None
    assert errors


@pytest.mark.rule(22, 25)
def test_a_receive_that_is_refused_in_a_second_loop_does_not_keep_the_stream():
    async def main():
        errors = []
        [stream] = demux(one_output(), size=1)
        await anext(stream)
        other = threading.Thread(target=keep_error, args=(asyncio.run, anext(stream), errors))
        other.start()
        other.join(TIMEOUT)
        dropped = weakref.ref(stream)
        del stream
        assert dropped() is None
        assert "belongs to the event loop" in str(errors)

    asyncio.run(main())


@pytest.mark.rule(25)
def test_what_the_last_step_gave_a_cancelled_stream_is_freed_though_the_batch_is_kept():
    def source():
        yield [Output(), Output()]
        batch.cancel(0)  # of which the step that is being made does not know yet
        late = Output()
        given.append(weakref.ref(late))
        yield [late, Output()]

    given = []
    batch = BatchedStream(source(), 2)
    assert len(list(batch[1])) == 2
    assert [ref() for ref in given] == [None]


def test_a_finished_stream_that_is_kept_holds_no_outputs():
    def source():
        for _ in range(5):
            output = Output()
            alive.append(weakref.ref(output))
            yield [output]
            del output

    alive = []
    [stream] = demux(source(), 1)
    assert len(list(stream)) == 5
    assert not any(ref() for ref in alive)


# ---- batches


@pytest.mark.rule(25)
def test_a_finished_batch_is_freed_without_the_cycle_collector():
    def source():
        output = Output()
        alive.append(weakref.ref(output))
        yield [output, output]
        yield [None, SKIP]
        yield [None, Last(output)]

    alive = []
    gc.collect()
    gc.disable()
    try:
        streams = list(demux(source(), 2))
        for stream in streams:
            assert len(list(stream)) > 0
        del stream
        streams.clear()
        assert alive[0]() is None
    finally:
        gc.enable()


@pytest.mark.rule(25)
def test_streams_dropped_midway_are_freed_without_the_cycle_collector():
    def source():
        while True:
            outputs = [Output(), Output()]
            alive.append(weakref.ref(outputs[1]))
            yield outputs

    alive = []
    gc.collect()
    gc.disable()
    try:
        first, second = demux(source(), 2)
        alive.append(weakref.ref(knobs.pump_of(first)))
        for _ in range(5):
            next(first)
        next(second)
        del first, second
        assert not any(ref() for ref in alive)
    finally:
        gc.enable()


@pytest.fixture
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class BrokenModel:
    """A source whose first step fails, in an error that holds the source."""

    class Error(Exception):
        pass

    def __iter__(self):
        return self

    def __next__(self):
        raise self.Error


def have_ended(threads):
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@pytest.mark.rule(25)
@pytest.mark.usefixtures("_no_collector")
def test_an_error_in_the_first_step_in_a_thread_is_freed_without_the_cycle_collector():
    source = BrokenModel()
    freed = weakref.ref(source)
    with suppress(BrokenModel.Error):
        BatchedStream(source, background=True)
    del source
    have_ended(pump_threads())
    assert freed() is None


@pytest.mark.rule(25)
@pytest.mark.usefixtures("_no_collector")
def test_an_error_in_the_first_step_of_an_async_batch_is_freed_without_the_cycle_collector():
    async def main():
        source = BrokenModel()
        with suppress(BrokenModel.Error):
            async with AsyncBatchedStream(source):
                pass
        return weakref.ref(source)

    freed = asyncio.run(main())
    have_ended(pump_threads())
    assert freed() is None


@pytest.mark.rule(25)
@pytest.mark.usefixtures("_no_collector")
def test_a_batch_left_by_time_is_freed_without_the_cycle_collector():
    batch = BatchedStream(itertools.repeat([0, 0]), 2, background=True, max_buffered=4)
    freed = weakref.ref(batch)
    pump = weakref.ref(knobs.pump_of(batch))
    for _ in batch.steps():
        break
    batch.close()
    del batch
    assert freed() is None
    assert pump() is None


@pytest.mark.rule(25)
@pytest.mark.usefixtures("_no_collector")
def test_a_batch_in_the_background_is_freed_without_the_cycle_collector():
    batch = BatchedStream([["a"]], 1, background=True)
    freed = weakref.ref(knobs.pump_of(batch))
    assert list(batch[0]) == ["a"]
    batch.close()
    del batch
    assert freed() is None


@pytest.mark.rule(25)
@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="asyncio itself keeps a task that asyncio.run cancelled"
)
@pytest.mark.usefixtures("_no_collector")
def test_a_batch_whose_loop_ends_before_it_is_freed_without_the_cycle_collector():
    async def source():
        while True:
            yield [0, 0]
            await asyncio.sleep(0)

    async def main():
        streams = demux(source(), 2)
        assert await anext(streams[0]) == 0
        return streams

    streams = asyncio.run(main())
    freed = weakref.ref(knobs.pump_of(streams[0]))
    del streams
    assert freed() is None


@pytest.mark.rule(25)
@pytest.mark.parametrize("background", [False, True])
def test_a_source_that_cannot_be_closed_is_freed_as_the_batch_is_closed(background):
    class Steps:
        def __iter__(self):
            return self

        def __next__(self):
            return ["a", "x"]

    steps = Steps()
    freed = weakref.ref(steps)
    with BatchedStream(steps, 2, background=background, max_buffered=4) as batch:
        del steps
        assert next(batch[0]) == "a"
    assert freed() is None
