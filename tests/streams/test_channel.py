"""Channels: what a producer puts, and how it hears of the ends.

What streams promise in every form of batch is in `test_contract.py`, where a channel is one form.
"""

import asyncio
import gc
import threading
import warnings
import weakref
from functools import partial

import pytest

from batchstream import (
    BatchedStream,
    Channel,
    ClosedError,
    MissingEOSError,
    SlowConsumerError,
    SourceError,
    StepError,
)
from batchstream._pumps import stall
from support import knobs
from support.reading import read_blocking
from support.sources import TIMEOUT, in_forked_child, needs_fork, run_in_threads


def started(function, *arguments):
    """Run a function in a thread of its own, and return the thread."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def joined(thread):
    thread.join(TIMEOUT)
    assert not thread.is_alive()


# ---- steps


def test_each_put_gives_one_output_to_each_live_stream_and_returns_the_live_slots():
    channel = Channel(2)
    first, second = channel.streams()
    assert channel.put(["a", "x"]) == (0, 1)
    assert channel.put(["b", None]) == (0,)
    assert channel.live == (0,)
    assert channel.put({0: "c"}) == (0,)
    assert channel.put({0: None}) == ()
    assert (list(first), list(second)) == (["a", "b", "c"], ["x"])


def test_the_rules_of_other_batches_hold():
    channel = Channel(
        3, is_eos=lambda output: output == 2, include_eos=True, max_outputs=[None, 1, None]
    )
    streams = channel.streams()
    channel.put([1, 1, 1])
    channel.put({0: 2, 2: 5})
    channel.close()
    assert [list(stream) for stream in streams] == [[1, 2], [1], [1, 5]]
    reasons = [str(stream.finish_reason) for stream in streams]
    assert reasons == ["eos", "length", "exhausted"]


def test_the_live_slots_become_fewer_as_consumers_cancel_until_none_is_live():
    channel = Channel(2)
    first, second = channel.streams()
    assert channel.put([1, 1]) == (0, 1)
    first.cancel()
    assert channel.put([2, 2]) == (1,)
    second.cancel()
    assert channel.put([3, 3]) == ()


def test_a_stream_that_is_dropped_is_cancelled():
    channel = Channel(2)
    first, second = channel.streams()
    del second
    assert channel.put([1, 1]) == (0,)
    assert first.drain() == [1]


def test_the_streams_are_handed_out_once():
    channel = Channel(1)
    kept = channel.streams()
    with pytest.raises(RuntimeError, match=r"handed out by streams\(\) before: keep"):
        channel.astreams()
    assert len(kept) == len(channel) == 1


@pytest.mark.rule(9)
def test_what_is_no_step_fails_every_stream_and_is_raised_for_the_producer():
    channel = Channel(2)
    first, second = channel.streams()
    channel.put([1, 1])
    with pytest.raises(StepError, match="step 1"):
        channel.put([2, 2, 2])
    assert channel.put([3, 3]) == ()
    for stream in (first, second):
        assert next(stream) == 1
        with pytest.raises(StepError):
            next(stream)


def test_a_channel_of_no_slot_has_ended():
    channel = Channel(0)
    assert channel.streams() == ()
    assert channel.put([]) == ()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"size": -1}, ValueError, "size"),
        ({"size": 1, "max_buffered": 0}, ValueError, "max_buffered"),
        ({"size": 1, "on_overflow": "drop"}, ValueError, "on_overflow"),
        ({"size": 1, "is_eos": 2}, TypeError, "is_eos"),
        ({"size": 2, "max_outputs": [1]}, ValueError, "max_outputs"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        Channel(**arguments)


# ---- ends


def test_a_slot_is_ended_behind_what_it_was_given():
    channel = Channel(2)
    first, second = channel.streams()
    channel.put([1, 1])
    channel.end(0, "length", {"tokens": 1})
    channel.end(0)  # it stays as it is
    assert channel.put({1: 2}) == (1,)
    assert list(first) == [1]
    assert first.end is not None
    assert (str(first.end.reason), first.end.info) == ("length", {"tokens": 1})
    channel.end(1)
    assert list(second) == [1, 2]
    assert channel.put({}) == ()


def test_an_end_is_no_step_and_silences_the_warning_of_a_predicate_that_was_never_true():
    channel = Channel(2, is_eos=lambda output: output == 9)
    first, second = channel.streams()
    channel.put([1, 1])
    channel.end(0, "length")
    statistics = channel.statistics()
    assert (statistics.steps, statistics.live, statistics.outputs) == (1, 1, 2)
    assert {str(reason): n for reason, n in statistics.finished.items()} == {"length": 1}
    channel.close()  # with a filter that makes errors of warnings
    assert (list(first), list(second)) == ([1], [1])
    assert channel.statistics().steps == 1


@pytest.mark.parametrize(("slot", "error"), [(2, IndexError), (-1, IndexError), ("a", TypeError)])
def test_only_slots_can_be_ended(slot, error):
    with pytest.raises(error, match="slot"):
        Channel(2).end(slot)


def test_an_error_comes_behind_what_was_put_once_for_each_stream():
    channel = Channel(2)
    streams = channel.streams()
    channel.put([1, 1])
    channel.fail(KeyError("k"))
    channel.fail(ValueError("the second error changes nothing"))
    for stream in streams:
        assert next(stream) == 1
        with pytest.raises(KeyError):
            next(stream)
        assert list(stream) == []
    with pytest.raises(ClosedError, match="its producer has closed or failed"):
        channel.put([2, 2])


class _UncopyableError(Exception):
    def __new__(cls, *args, key):
        return super().__new__(cls, *args)

    def __init__(self, *args, key):
        super().__init__(*args)

    def __reduce__(self):
        raise TypeError("it cannot be copied")


@pytest.mark.rule(9)
@pytest.mark.parametrize(
    "error",
    [
        StopIteration("z"),
        StopAsyncIteration("z"),
        KeyboardInterrupt("z"),
        _UncopyableError("z", key=1),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("leave", [False, True], ids=["fail", "block"])
def test_an_error_that_no_consumer_can_be_raised_is_the_cause_of_one_of_ours(error, leave):
    channel = Channel(1)
    [stream] = channel.streams()
    channel.put([1])
    if leave:
        with pytest.raises(type(error)), channel:
            raise error
    else:
        channel.fail(error)
    assert next(stream) == 1
    name = type(error).__name__
    with pytest.raises(SourceError, match=f"the stream failed with {name}: z") as caught:
        next(stream)
    assert caught.value.__cause__ is error


def test_only_an_error_can_be_what_a_channel_fails_with():
    with pytest.raises(TypeError, match="exception instance, got str"):
        Channel(1).fail("an error")


def test_a_stream_without_its_end_fails_where_it_has_to_have_one():
    channel = Channel(1, require_eos=True)
    [stream] = channel.streams()
    channel.close()
    with pytest.raises(MissingEOSError):
        next(stream)


def test_leaving_the_block_closes_the_channel():
    with Channel(1) as channel:
        [stream] = channel.streams()
        channel.put([1])
    assert list(stream) == [1]
    assert str(stream.finish_reason) == "exhausted"


def test_an_exception_that_leaves_the_block_fails_the_streams():
    channel = Channel(1)
    [stream] = channel.streams()
    with pytest.raises(ZeroDivisionError), channel:
        channel.put([1 / 0])
    with pytest.raises(ZeroDivisionError):
        next(stream)


@pytest.mark.rule(9)
def test_a_producer_that_dies_without_a_word_fails_its_streams():
    channels = [Channel(2)]
    first, second = channels[0].streams()

    def produce(channel):
        channel.put([1, 1])

    thread = started(produce, channels.pop())
    for stream in (first, second):
        assert next(stream) == 1
        with pytest.raises(SourceError, match="dropped before its end"):
            next(stream)
    joined(thread)


@pytest.mark.rule(9)
def test_a_channel_that_is_dropped_wakes_the_consumer_that_waits():
    channels = [Channel(1)]
    [stream] = channels[0].streams()
    errors = []

    def consume():
        with pytest.raises(SourceError) as caught:
            next(stream)
        errors.append(caught.value)

    thread = started(consume)
    channels.clear()
    joined(thread)
    assert len(errors) == 1


# ---- the bound


@pytest.mark.rule(19)
def test_put_waits_for_room_and_a_receive_makes_it():
    channel = Channel(2, max_buffered=2)
    first, second = channel.streams()
    returned = []

    def produce():
        with channel:
            returned.extend(channel.put([n, n]) for n in range(5))
        returned.append("closed")

    thread = started(produce)
    assert next(first) == 0
    assert next(second) == 0
    held = [channel.statistics().buffered]
    for n in range(1, 5):
        assert next(first) == n
        held.append(len(second.drain()))
    joined(thread)
    assert max(held) <= 4
    assert returned == [(0, 1)] * 5 + ["closed"]


@pytest.mark.rule(19)
def test_a_slow_stream_is_ended_in_place_of_a_wait():
    channel = Channel(2, max_buffered=1, on_overflow="cancel")
    slow, other = channel.streams()
    for n in range(4):
        assert 1 in channel.put([n, n])
        assert next(other) == n
    with pytest.raises(SlowConsumerError, match="max_buffered"):
        list(slow)


@pytest.mark.parametrize("way", ["cancel", "close", "fail", "end"])
def test_a_put_that_waits_for_room_is_resumed(monkeypatch, way):
    monkeypatch.setattr(stall, "STALL_SECONDS", threading.TIMEOUT_MAX)  # else it looks by itself
    channel = Channel(1, max_buffered=1)
    [stream] = channel.streams()
    channel.put([1])
    returned = []
    thread = started(lambda: returned.append(channel.put([2])))
    while not stream._upstream.waits_for(stream._buffer):  # it will: nothing else can happen
        pass
    ways = {
        "cancel": stream.cancel,
        "close": channel.close,
        "fail": lambda: channel.fail(KeyError()),
        "end": lambda: channel.end(0),
    }
    ways[way]()
    joined(thread)
    assert returned == [()]


def test_a_put_goes_on_when_the_stream_without_room_is_ended_and_another_is_live(monkeypatch):
    monkeypatch.setattr(stall, "STALL_SECONDS", threading.TIMEOUT_MAX)  # else it looks by itself
    channel = Channel(2, max_buffered=1)
    first, second = channel.streams()
    channel.put([1, 1])
    assert next(second) == 1
    returned = []
    thread = started(lambda: returned.append(channel.put([2, 2])))
    while not first._upstream.waits_for(first._buffer):  # it will: nothing else can happen
        pass
    channel.end(0)
    joined(thread)
    assert returned == [(1,)]
    assert (list(first), second.drain()) == ([1], [2])


def test_puts_of_several_threads_take_turns_and_lose_nothing():
    channel = Channel(1, max_buffered=3)
    [stream] = channel.streams()

    def produce(name):
        for n in range(50):
            channel.put([(name, n)])

    outputs = []

    def consume():
        outputs.extend(next(stream) for _ in range(150))

    run_in_threads(*(partial(produce, name) for name in "abc"), consume)
    for name in "abc":
        assert [n for producer, n in outputs if producer == name] == list(range(50))


def test_a_put_within_a_put_is_refused():
    errors = []

    def is_eos(_):
        try:
            channel.put([1])
        except RuntimeError as error:
            errors.append(str(error))
        return False

    channel = Channel(1, is_eos=is_eos)
    [stream] = channel.streams()
    channel.put([1])
    assert errors == ["put is called by a put: by is_eos, for example"]
    assert stream.drain() == [1]


def test_a_stream_that_is_cancelled_by_the_predicate_of_its_own_put_ends_there():
    streams = []

    def is_eos(output):
        if output == 2:
            streams[0].cancel()
        return False

    channel = Channel(2, is_eos=is_eos)
    streams.extend(channel.streams())
    assert channel.put([1, 1]) == (0, 1)
    assert channel.put([2, 3]) == (1,)
    assert list(streams[0]) == []
    assert streams[1].drain() == [1, 3]


# ---- event loops


def test_a_task_that_puts_waits_for_room_without_stopping_its_loop():
    async def main():
        channel = Channel(2, max_buffered=1)
        streams = channel.astreams()

        async def produce():
            async with channel:
                return [await channel.aput([n, n]) for n in range(5)]

        async def consume(stream):
            return [output async for output in stream]

        return await asyncio.gather(produce(), *map(consume, streams))

    puts, first, second = asyncio.run(main())
    assert puts == [(0, 1)] * 5
    assert first == second == [0, 1, 2, 3, 4]


@pytest.mark.rule(19)
@pytest.mark.parametrize("policy", ["wait", "cancel"])
def test_a_task_that_puts_leaves_the_consumers_of_its_loop_their_turn(policy):
    """The buffers have room for all: the task would never wait."""

    async def main():
        channel = Channel(1, max_buffered=8, on_overflow=policy)
        [stream] = channel.astreams()
        consumer = asyncio.ensure_future(_outputs_of(stream))
        for n in range(100):
            assert await channel.aput([n]) == (0,)
        channel.close()
        return await consumer

    assert asyncio.run(main()) == list(range(100))


def test_a_task_that_puts_lets_the_others_run_as_often_as_a_source_does():
    async def main():
        channel = Channel(1)
        kept = channel.astreams()
        turns = []

        async def count():
            while len(turns) < 1000:
                turns.append(None)
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        for n in range(100):
            await channel.aput([n])
        counting.cancel()
        return len(turns), len(kept)

    turns, _ = asyncio.run(main())
    assert 49 <= turns <= 51


async def _outputs_of(stream):
    return [output async for output in stream]


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_a_cancel_reaches_a_task_that_puts_where_there_is_room(name):
    """It leaves the step out, and the channel as it was."""
    put = []

    async def produce(channel):
        for n in range(10):
            await channel.aput([n])
            put.append(n)

    async def in_asyncio():
        channel = Channel(1)
        [stream] = channel.astreams()
        task = asyncio.ensure_future(produce(channel))
        await asyncio.sleep(0)  # it has begun its second put
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await followed(channel, stream)

    async def in_trio():
        channel = Channel(1)
        [stream] = channel.astreams()
        with trio.CancelScope() as scope:
            scope.cancel()
            await produce(channel)
        return await followed(channel, stream)

    async def followed(channel, stream):
        assert await channel.aput(["behind"]) == (0,)
        channel.close()
        return await _outputs_of(stream)

    if name == "trio":
        trio = pytest.importorskip("trio")
        outputs = trio.run(in_trio)
    else:
        outputs = asyncio.run(in_asyncio())
    assert outputs == [*put, "behind"]
    assert len(put) < 3


@pytest.mark.rule(9)
@pytest.mark.parametrize("way", ["close", "fail", "end", "drop", "put"])
def test_a_put_that_waits_in_a_loop_that_has_ended_keeps_nothing_from_threads(way):
    channel = Channel(1, max_buffered=1)
    [stream] = channel.streams()
    loop = asyncio.new_event_loop()

    async def leave_a_put_behind(channel):
        await channel.aput([1])
        task = loop.create_task(channel.aput([2]))
        task._log_destroy_pending = False
        while not knobs.is_paused(stream):  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0)
        return task

    left = loop.run_until_complete(leave_a_put_behind(channel))
    loop.close()
    assert next(stream) == 1
    arguments = {"fail": [SourceError("failed")], "end": [0], "put": [[None]]}
    if way != "drop":
        getattr(channel, way)(*arguments.get(way, ()))
    del left, channel  # the task holds the channel as well
    gc.collect()
    assert stream.end is not None
    assert read_blocking(stream) == ([], SourceError if way in {"fail", "drop"} else None)


def test_a_put_that_would_stop_the_loop_of_another_is_refused():
    async def main():
        channel = Channel(1, max_buffered=1)
        [stream] = channel.astreams()
        await channel.aput([1])
        waiting = asyncio.ensure_future(channel.aput([2]))
        while not knobs.is_paused(stream):  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="in an event loop await aput"):
            channel.put([3])
        assert await anext(stream) == 1
        assert await waiting == (0,)
        channel.close()
        return await _outputs_of(stream)

    assert asyncio.run(main()) == [2]


def test_a_put_that_a_put_of_its_own_thread_has_to_wait_for_is_refused(monkeypatch):
    """That of a signal's handler, for example, while the other waits for room."""
    channel = Channel(1, max_buffered=1)
    [stream] = channel.streams()
    channel.put([1])
    refused = []

    def put_again():
        with pytest.raises(RuntimeError, match="another put of this thread is under way"):
            channel.put([3])
        refused.append(next(stream))

    knobs.as_put_waits(monkeypatch, put_again)
    assert channel.put([2]) == (0,)
    channel.close()
    assert (refused, list(stream)) == ([1], [2])


@pytest.mark.rule(2)
def test_a_task_and_a_thread_that_put_take_turns():
    async def main():
        channel = Channel(1, max_buffered=2)
        [stream] = channel.astreams()

        def produce():
            for n in range(50):
                channel.put([("thread", n)])

        async def consume():
            return [await anext(stream) for _ in range(100)]

        consumer = asyncio.ensure_future(consume())
        thread = started(produce)
        for n in range(50):
            assert await channel.aput([("task", n)]) == (0,)
        outputs = await consumer
        joined(thread)
        return outputs

    outputs = asyncio.run(main())
    for name in ("thread", "task"):
        assert [n for producer, n in outputs if producer == name] == list(range(50))


def test_a_thread_puts_and_tasks_consume():
    async def main():
        channel = Channel(2, max_buffered=2)
        streams = channel.astreams()

        def produce(channel):
            with channel:
                for n in range(20):
                    channel.put([n, n])

        thread = started(produce, channel)

        async def consume(stream):
            return [output async for output in stream]

        outputs = await asyncio.gather(*map(consume, streams))
        joined(thread)
        return outputs

    assert asyncio.run(main()) == [list(range(20))] * 2


def test_a_put_that_is_cancelled_leaves_its_step_out_and_the_channel_as_it_was():
    async def main():
        channel = Channel(1, max_buffered=1)
        [stream] = channel.astreams()
        await channel.aput([1])
        put = asyncio.ensure_future(channel.aput([2]))
        while not stream._upstream.waits_for(stream._buffer):  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another put is under way"):
            await channel.aput([3])
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert await anext(stream) == 1
        assert await channel.aput([4]) == (0,)
        channel.close()
        return [output async for output in stream]

    assert asyncio.run(main()) == [4]


def test_a_producer_in_trio():
    trio = pytest.importorskip("trio")

    async def main():
        channel = Channel(1, max_buffered=1)
        [stream] = channel.astreams()
        outputs = []

        async def produce():
            async with channel:
                for n in range(5):
                    await channel.aput([n])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            outputs += [output async for output in stream]
        return outputs

    assert trio.run(main) == [0, 1, 2, 3, 4]


# ---- the object


def test_it_shows_its_figures_and_cannot_be_pickled():
    channel = Channel(2)
    kept = channel.streams()
    channel.put([1, None])
    assert repr(channel) == "<Channel, 1 of 2 streams live, 1 steps, 1 buffered>"
    with pytest.raises(TypeError, match="cannot be pickled"):
        channel.__reduce_ex__(2)
    assert len(kept) == 2


def test_it_gives_what_a_batch_of_the_same_steps_gives():
    steps = [["a", "x"], {0: "b", 1: "y"}, ["c", None], [None, None]]
    with BatchedStream(steps, size=2) as batch:
        expected = batch.collect()
    channel = Channel(2)
    streams = channel.streams()
    for step in steps:
        channel.put(step)
    assert [list(stream) for stream in streams] == expected


def test_nothing_is_kept_alive_by_a_cycle():
    gc.collect()
    gc.disable()
    try:
        channel = Channel(1)
        [stream] = channel.streams()
        channel.put([1])
        gone = [weakref.ref(channel), weakref.ref(stream), weakref.ref(channel._pump)]
        del channel, stream
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()


def test_a_warning_that_is_an_error_fails_the_stream_that_it_is_about():
    channel = Channel(1, is_eos=lambda output: output == 2)
    [stream] = channel.streams()
    channel.put([1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        channel.close()
    assert next(stream) == 1
    with pytest.raises(RuntimeWarning, match="is_eos"):
        next(stream)


@pytest.mark.rule(27)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_a_forked_child_a_put_and_a_receive_are_refused_and_the_parent_goes_on():
    channel = Channel(1)
    [stream] = channel.streams()
    channel.put([1])
    for use in (lambda: channel.put([2]), lambda: list(stream)):
        assert in_forked_child(use).startswith("ForkedError: this batch was opened in another")
    assert channel.put([2]) == (0,)
    assert stream.drain() == [1, 2]
