"""What went wrong once, each with the order that shows it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import subprocess
import sys
import threading
import weakref
from contextlib import suppress

import pytest

from batchstream import (
    AsyncBatchedStream,
    BatchedStream,
    ClosedError,
    ConcurrentConsumerError,
    FinishReason,
    SourceError,
    demux,
)
from batchstream._core.arguments import DEFAULT_MAX_BUFFERED
from batchstream._core.records import StreamEnd
from batchstream._handoff.buffer import SEGMENT_LENGTH
from batchstream._pumps.thread import ThreadPump
from support.forms import OVER, every_form, forms_with_async_sources, pump_threads
from support.shuffled_loop import run
from support.sources import TIMEOUT, Gate, ScriptedSource, run_in_threads


async def rest(stream):
    return [output async for output in stream]


async def following(stream):
    return await anext(stream)


async def read(stream):
    """Return what a stream gives, and the type of the error after that, if any."""
    outputs = []
    try:
        async for output in stream:
            outputs.append(output)  # noqa: PERF401 - to keep them when an error comes
    except Exception as error:  # noqa: BLE001 - the result
        return outputs, type(error)
    return outputs, None


def read_blocking(stream):
    """Do the same in a thread."""
    outputs = []
    try:
        outputs.extend(stream)
    except Exception as error:  # noqa: BLE001 - the result
        return outputs, type(error)
    return outputs, None


async def waiting_for(coroutine):
    """Return a task that has gone as far as it can."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task


@pytest.fixture
def unheard(monkeypatch):
    """Collect what `sys.unraisablehook` is given."""
    errors = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: errors.append(about.exc_value))
    return errors


# ---- drain, and the last output


def test_R09_a_drain_where_a_segment_ends_leaves_the_next_receive_its_wake_up():
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
            for number in range(SEGMENT_LENGTH):
                assert await receive(number) == number
            assert stream.drain() == []
            assert await receive("more") == "more"

    run(main())


def test_R09_a_drain_where_a_segment_ends_leaves_no_consumer_waiting_beside_a_full_buffer():
    async def main():
        going_on = asyncio.Event()

        async def source():
            for number in itertools.count():
                if number == SEGMENT_LENGTH:
                    await going_on.wait()
                yield [number]

        async with AsyncBatchedStream(source(), 1, max_buffered=8) as batch:
            (stream,) = batch
            for number in range(SEGMENT_LENGTH):
                assert await anext(stream) == number
            assert stream.drain() == []
            receiving = await waiting_for(anext(stream))
            going_on.set()
            assert await receiving == SEGMENT_LENGTH

    run(main())


def hold(stream, tail):
    """Let this list be what an unread stream holds, and where its pump appends."""
    buffer = stream._buffer
    buffer.tail = tail
    buffer.segments[0] = (tail, buffer.segments[0][1])
    return buffer


def test_R02_draining_while_the_pump_appends_loses_and_repeats_nothing():
    class Tail(list):
        def __getitem__(self, where):
            if "d" not in self:  # the pump strikes here
                self.append("d")
            return super().__getitem__(where)

    (stream,) = AsyncBatchedStream([], 1)  # nothing begins: this test plays the pump
    buffer = hold(stream, Tail("abc"))
    next(buffer.segments[0][1])  # "a" was received
    assert stream.drain() == ["b", "c", "d"]


def test_R05_the_end_is_not_seen_before_the_output_that_came_with_it():
    class Tail(list):
        def __len__(self):
            counted = super().__len__()
            if not buffer.ends:  # the pump strikes here
                self.append("last")
                buffer.finish(StreamEnd(FinishReason.EOS, 1))
            return counted

    (stream,) = AsyncBatchedStream([], 1)  # as above
    buffer = hold(stream, Tail())
    stream._outputs = ("others",)  # it looks its buffer up anew
    assert asyncio.run(rest(stream)) == ["last"]


# ---- by time


def test_R21_a_second_consumer_by_time_is_refused_and_the_first_served():
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
            assert batch.steps() is steps
            del steps
            assert [delivery.outputs async for delivery in batch.steps()] == [[(0, "c")], []]

    run(main())


# ---- trio


@pytest.mark.parametrize("count", [3, 1_000_000])
def test_R01_a_source_may_yield_inside_a_cancel_scope(count):
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


def test_R01_a_source_may_yield_inside_a_nursery():
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


# ---- a loop that is closed around the pump


def two_streams():
    """Return streams of an asynchronous source that stays in its second step."""

    async def source():
        yield ["a", "x"]
        await asyncio.Event().wait()

    return demux(source(), 2)


def begun_in_a_loop(stream):
    """Return a loop in which the pump has begun, and that does not run."""
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(following(stream)) == "a"
    return loop


def test_R09_a_loop_closed_around_the_pump_ends_the_streams_in_a_later_loop():
    first, second = two_streams()
    begun_in_a_loop(first).close()
    assert asyncio.run(read(second)) == (["x"], ClosedError)
    assert asyncio.run(rest(second)) == []


def test_R10_closing_is_over_when_the_loop_was_closed_around_the_pump():
    first, second = two_streams()
    begun_in_a_loop(first).close()

    async def close():
        await first.aclose()
        await second.aclose()

    asyncio.run(close())


def test_R09_a_loop_closed_around_the_pump_is_noticed_by_who_waits_for_an_output_elsewhere():
    first, second = two_streams()
    loop = begun_in_a_loop(first)
    waits = threading.Event()
    results = []

    async def wait_abroad():
        receiving = await waiting_for(read(second))
        waits.set()
        results.append(await receiving)

    def close():
        assert waits.wait(TIMEOUT)
        loop.close()

    run_in_threads(lambda: asyncio.run(wait_abroad()), close)
    assert results == [(["x"], ClosedError)]


def test_R10_a_loop_closed_around_the_pump_is_noticed_by_who_waits_for_the_end_elsewhere():
    first, second = two_streams()
    loop = begun_in_a_loop(first)
    waits = threading.Event()

    async def close_abroad():
        first.cancel()
        closing = await waiting_for(second.aclose())
        waits.set()
        await closing

    def close():
        assert waits.wait(TIMEOUT)
        loop.close()

    run_in_threads(lambda: asyncio.run(close_abroad()), close)
    assert second.finish_reason is FinishReason.CANCELLED


def test_R28_loops_closed_around_their_pumps_leave_no_noise_and_nothing_behind():
    program = """
import asyncio, gc, weakref
from batchstream import demux

class Output:
    pass

async def source():
    output = Output()
    yield [output]
    waiting.append(asyncio.get_running_loop().create_future())
    await waiting[-1]

waiting = []
outputs = weakref.WeakSet()
for _ in range(3):
    loop = asyncio.new_event_loop()
    stream, = demux(source(), 1)
    outputs.add(loop.run_until_complete(anext(stream)))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    waiting.clear()
    del stream, loop
gc.collect()
assert not outputs
kept = asyncio.new_event_loop()
streams = demux(source(), 1)
kept.run_until_complete(anext(streams[0]))
kept.close()
"""
    ended = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


# ---- a pump that is cancelled or cannot start


def test_R09_a_pump_cancelled_before_its_first_step_tells_everybody():
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


def test_R09_a_timeout_that_the_source_set_ends_the_streams_though_the_pump_pauses():
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
        assert second._buffer.buffered == 4
        deadline.reschedule(0)
        for _ in range(10):  # the pump's task is cancelled, and ends
            await asyncio.sleep(0)
        assert first.finish_reason is FinishReason.ERROR
        assert await read(first) == ([1, 2, 3], ClosedError)
        assert await read(second) == ([0, 1, 2, 3], ClosedError)
        assert await rest(first) == await rest(second) == []

    run(main())


def test_R09_a_task_that_cannot_be_started_fails_every_stream(monkeypatch):
    def fail(*_):
        raise RuntimeError("no task today")

    async def source():
        yield ["a", "x"]

    async def main():
        batch = AsyncBatchedStream(source(), 2)
        assert [await read(stream) for stream in batch] == [([], RuntimeError)] * 2
        assert [await rest(stream) for stream in batch] == [[], []]
        await batch.aclose()

    monkeypatch.setattr("batchstream._eventloops.asyncio.AsyncioEventLoop.spawn", fail)
    run(main())


def test_R09_a_task_factory_that_takes_no_options_does_not_stop_the_pump():
    async def source():
        yield ["a", "x"]

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))
        async with AsyncBatchedStream(source(), 2) as batch:
            assert [await read(stream) for stream in batch] == [(["a"], None), (["x"], None)]

    asyncio.run(main())


@pytest.fixture
def starting(monkeypatch):
    """Let no pump's thread start; return the gate at which it fails."""
    gate = Gate()
    start = threading.Thread.start

    def fail(thread):
        if thread.name != "batchstream pump":
            start(thread)
            return
        gate.pass_through()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    return gate


def test_R09_a_thread_that_cannot_be_started_fails_every_stream(starting):
    source = ScriptedSource([["a", "x"]])
    batch = BatchedStream(source, 2, background=True)
    results = {}

    def first():
        results[0] = read_blocking(batch[0])

    def second():
        assert starting.reached.wait(TIMEOUT)
        results[1] = read_blocking(batch[1])

    def open_the_gate():
        while batch._pump.buffers[1] not in batch._pump._places._threads.waiting:
            os.sched_yield()
        starting.opened.set()

    run_in_threads(first, second, open_the_gate)
    assert results == {0: ([], RuntimeError), 1: ([], RuntimeError)}
    assert source.closed == 1
    batch.close()
    assert [list(stream) for stream in batch] == [[], []]
    assert (source.closed, source.told) == (1, [])


def test_R09_a_thread_that_cannot_be_started_fails_every_stream_in_event_loops(starting):
    source = ScriptedSource([["a", "x"]])
    starting.opened.set()

    async def main():
        batch = AsyncBatchedStream(source, 2)
        assert [await read(stream) for stream in batch] == [([], RuntimeError)] * 2
        assert source.closed == 1
        await batch.aclose()

    asyncio.run(main())
    assert (source.closed, source.told) == (1, [])


def test_R10_closing_while_a_thread_cannot_be_started_returns(starting):
    source = ScriptedSource([["a"]])
    batch = BatchedStream(source, 1, background=True)

    def close():
        assert starting.reached.wait(TIMEOUT)
        with suppress(RuntimeError):  # whoever comes first has it
            batch.close()

    def open_the_gate():
        while not batch._pump._closing:
            os.sched_yield()
        starting.opened.set()

    run_in_threads(lambda: read_blocking(batch[0]), close, open_the_gate)
    assert source.closed == 1
    assert batch.live == ()


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


@needs_eager_tasks
def test_R14_a_source_that_is_cancelled_at_once_in_an_eager_task_gives_an_error():
    async def source():
        raise asyncio.CancelledError
        yield

    async def main():
        assert [await read(stream) for stream in demux(source(), 2)] == [([], SourceError)] * 2

    run_eagerly(main)


@needs_eager_tasks
def test_R24_a_source_in_an_eager_task_that_waits_for_its_own_stream_is_told_so():
    async def source():
        yield [await anext(second), "x"]

    first, second = demux(source(), 2)

    async def main():
        with pytest.raises(RuntimeError, match="the source of this batch waits for a step of its"):
            await anext(first)

    run_eagerly(main)


# ---- errors of the source while it is closed


class CleanUpError(Exception):
    pass


def cleaned_up_badly(reached):
    async def source():
        try:
            yield ["a"]
            reached.set()
            await asyncio.Event().wait()
        finally:
            raise CleanUpError

    return source()


def test_R10_what_a_source_raises_when_it_is_broken_off_is_raised_by_aclose():
    async def main():
        reached = asyncio.Event()
        batch = AsyncBatchedStream(cleaned_up_badly(reached), 1)
        assert await anext(batch[0]) == "a"
        await reached.wait()
        with pytest.raises(CleanUpError):
            await batch.aclose()
        await batch.aclose()

    run(main())


def test_R10_what_a_source_raises_when_it_is_broken_off_is_raised_by_close():
    gate = Gate()

    def source():
        yield ["a"]
        gate.pass_through()
        raise CleanUpError

    def close():
        with pytest.raises(CleanUpError):
            batch.close()

    def open_the_gate():
        while batch.live:
            os.sched_yield()
        gate.opened.set()

    batch = BatchedStream(source(), 1, background=True)
    assert next(batch[0]) == "a"
    assert gate.reached.wait(TIMEOUT)
    run_in_threads(close, open_the_gate)


def test_R10_what_a_source_raises_when_its_last_stream_is_cancelled_goes_to_the_hook(unheard):
    async def main():
        reached = asyncio.Event()
        (stream,) = demux(cleaned_up_badly(reached), 1)
        assert await anext(stream) == "a"
        await reached.wait()
        await stream.aclose()

    run(main())
    assert [type(error) for error in unheard] == [CleanUpError]


@every_form
async def test_R10_an_error_in_a_step_that_nobody_needs_any_more_goes_to_the_hook(form):
    unheard, heard = [], form.flag()

    def hear(about):
        unheard.append(about.exc_value)
        heard.set()

    def cancel(number):
        if number == 1:
            batch.cancel(0)
            batch.cancel(1)

    original = OSError("nobody waits")
    gate = form.gate()
    script = form.script([["a", "x"], original], gates={1: gate}, on_step=cancel)
    batch = form.open(script, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", hear)
        assert await form.receive(batch[0]) == "a"
        gate.open()
        assert await form.receive(batch[0]) is OVER
        await heard.wait()
    assert unheard == [original]


@forms_with_async_sources
async def test_R10_a_source_that_closes_its_batch_in_its_clean_up_is_no_deadlock(form):
    async def source():
        try:
            while True:
                yield ["a"]
        finally:
            await batch.aclose()

    batch = form.open(source(), 1, max_outputs=1)
    assert await form.rest(batch[0]) == ["a"]
    await form.close(batch)


def test_R10_leaving_the_block_waits_until_the_thread_has_ended(monkeypatch):
    gate = Gate()  # the thread's last lines

    async def main():
        async with AsyncBatchedStream(itertools.repeat([0]), 1, max_buffered=2) as batch:
            assert await anext(batch[0]) == 0
            pump = batch._pump
            thread = pump._worker._thread
            join = thread.join

            def let_go_and_join(timeout=None):
                gate.opened.set()
                join(timeout)

            monkeypatch.setattr(pump._ending, "set", gate.pass_through)
            monkeypatch.setattr(thread, "join", let_go_and_join)
        try:
            assert not thread.is_alive()
        finally:
            gate.opened.set()

    asyncio.run(main())


# ---- errors of the library's own


def test_R09_a_wake_up_that_fails_leaves_no_consumer_waiting():
    def source():
        while not place.waiting:
            os.sched_yield()
        yield ["a"]

    def fail_once(_):
        place.resume = resume
        raise MemoryError

    with BatchedStream(source(), 1, background=True) as batch:
        place = batch._pump._places._threads
        resume, place.resume = place.resume, fail_once
        assert read_blocking(batch[0]) == (["a"], MemoryError)


@pytest.mark.parametrize("place", ["_end", "_closed"])
def test_R10_an_error_at_the_end_of_the_pump_leaves_no_close_waiting(place, monkeypatch, unheard):
    def fail(*_):
        raise MemoryError(place)

    batch = BatchedStream([["a"]], 1, background=True)
    monkeypatch.setattr(batch._pump, place, fail)
    assert list(batch[0]) == ["a"]
    batch.close()
    assert [repr(error) for error in unheard] == [f"MemoryError('{place}')"]


def test_R04_a_pull_interrupted_at_any_line_leaves_the_next_receive_alone():
    gate = Gate()

    def source():
        yield ["a"]
        gate.pass_through()
        yield ["b"]

    pull = ThreadPump.pull.__code__
    before = sys.gettrace()

    def receive_interrupted_at(line):
        def interrupt(frame, event, _):
            if event == "line" and frame.f_lineno == line:
                sys.settrace(before)
                raise KeyboardInterrupt
            return interrupt

        sys.settrace(lambda frame, *_: interrupt if frame.f_code is pull else None)
        try:
            stream.receive(0)
        finally:
            sys.settrace(before)

    with BatchedStream(source(), 1, background=True) as batch:
        (stream,) = batch
        assert next(stream) == "a"
        try:
            for line in sorted({line for _, _, line in pull.co_lines() if line}):
                with pytest.raises((KeyboardInterrupt, TimeoutError)):
                    receive_interrupted_at(line)
                with pytest.raises(TimeoutError):
                    stream.receive(0)
        finally:
            gate.opened.set()
        assert list(stream) == ["b"]


# ---- what only the cycle collector would free


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


@pytest.mark.usefixtures("_no_collector")
def test_R25_an_error_in_the_first_step_in_a_thread_is_freed_without_the_cycle_collector():
    source = BrokenModel()
    freed = weakref.ref(source)
    with suppress(BrokenModel.Error):
        BatchedStream(source, background=True)
    del source
    have_ended(pump_threads())
    assert freed() is None


@pytest.mark.usefixtures("_no_collector")
def test_R25_an_error_in_the_first_step_of_an_async_batch_is_freed_without_the_cycle_collector():
    async def main():
        source = BrokenModel()
        with suppress(BrokenModel.Error):
            async with AsyncBatchedStream(source):
                pass
        return weakref.ref(source)

    freed = asyncio.run(main())
    have_ended(pump_threads())
    assert freed() is None


@pytest.mark.usefixtures("_no_collector")
def test_R25_a_batch_left_by_time_is_freed_without_the_cycle_collector():
    batch = BatchedStream(itertools.repeat([0, 0]), 2, background=True, max_buffered=4)
    freed = weakref.ref(batch)
    pump = weakref.ref(batch._pump)
    for _ in batch.steps():
        break
    batch.close()
    del batch
    assert freed() is None
    assert pump() is None


@pytest.mark.usefixtures("_no_collector")
def test_R25_a_batch_in_the_background_is_freed_without_the_cycle_collector():
    batch = BatchedStream([["a"]], 1, background=True)
    freed = weakref.ref(batch._pump)
    assert list(batch[0]) == ["a"]
    batch.close()
    del batch
    assert freed() is None


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="asyncio itself keeps a task that asyncio.run cancelled"
)
@pytest.mark.usefixtures("_no_collector")
def test_R25_a_batch_whose_loop_ends_before_it_is_freed_without_the_cycle_collector():
    async def source():
        while True:
            yield [0, 0]
            await asyncio.sleep(0)

    async def main():
        streams = demux(source(), 2)
        assert await anext(streams[0]) == 0
        return streams

    streams = asyncio.run(main())
    freed = weakref.ref(streams[0]._pump)
    del streams
    assert freed() is None


# ---- arguments, and blocks


def test_R04_a_timeout_is_refused_where_consumers_pull_whatever_is_buffered():
    batch = BatchedStream([["a", "x"], ["b", "y"]], 2)
    assert next(batch[0]) == "a"
    for stream in batch:  # one has nothing buffered, the other has
        with pytest.raises(ValueError, match="timeout needs a batch with background=True"):
            stream.receive(timeout=1)
    assert [list(stream) for stream in batch] == [["b"], ["x", "y"]]


def test_R19_no_bound_means_the_same_for_every_batch_that_runs_ahead():
    async def source():
        yield [0]

    batches = [
        AsyncBatchedStream([[0]], 1, max_buffered=None),
        AsyncBatchedStream(source(), 1, max_buffered=None),
        BatchedStream([[0]], 1, background=True, max_buffered=None),
    ]
    for batch in batches:
        assert batch._pump._max_buffered == DEFAULT_MAX_BUFFERED


def test_R10_a_batch_closed_while_it_is_entered_raises_and_closes_its_source():
    gate = Gate()
    source = ScriptedSource([["a", "x"], ["b", "y"]], on_step=gate.pass_through)

    async def main():
        batch = AsyncBatchedStream(source)
        entering = await waiting_for(batch.__aenter__())
        assert await asyncio.to_thread(gate.reached.wait, TIMEOUT)
        await batch.aclose()
        gate.opened.set()
        with pytest.raises(ClosedError, match="this batch was closed before it was entered"):
            await entering
        assert source.closed == 1
        assert batch.live == ()

    asyncio.run(main())


@pytest.mark.parametrize("size", [2, None])
def test_R10_a_batch_closed_before_it_is_entered_raises(size):
    source = ScriptedSource([["a", "x"]])

    async def main():
        batch = AsyncBatchedStream(source, size)
        await batch.aclose()
        with pytest.raises(ClosedError, match="this batch was closed before it was entered"):
            await batch.__aenter__()

    asyncio.run(main())
    assert (source.closed, source.told) == (1, [])
