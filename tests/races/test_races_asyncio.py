"""Races in an event loop: each scenario in plain order and in thousands of shuffled ones.

Source and consumers share one loop, so that a schedule is decided by its seed alone. Whatever a
scenario is about, it ends in `assert_settled`: nothing waits any more, the source was closed
once, and never entered by two.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import weakref

import pytest

from batchstream import (
    AsyncBatchedStream,
    ClosedError,
    ConcurrentConsumerError,
    FinishReason,
    Last,
    demux,
)
from support import knobs
from support.racing import (
    SCHEDULES,
    Reader,
    WatchedSource,
    assert_closed,
    assert_settled,
    assert_whole_or_too_slow,
    by_slot,
    cancelled_often,
    explore_schedules,
    is_prefix,
    opened,
    read_while,
    together,
    turns,
)
from support.shuffled_loop import explore
from support.sources import ScriptedSource

pytestmark = pytest.mark.usefixtures("short_turns")

THREADED_SCHEDULES = min(SCHEDULES, 300)

STEPS = [["a", "x"], ["b", "y"], ["c", Last("z")], ["d", None], [None, None]]
EXPECTED = [["a", "b", "c", "d"], ["x", "y", "z"]]
ENDLESS = [[f"a{n}", f"x{n}"] for n in range(20)]  # more than any consumer reads


async def receive_within_a_second(stream):
    async with asyncio.timeout(1):
        return await anext(stream)


class Output:
    """What can be referred to weakly."""


def assert_prefixes_of_endless(readers, *errors):
    for slot, reader in enumerate(readers):
        assert is_prefix(reader.outputs, [step[slot] for step in ENDLESS])
        assert [type(error) for error in reader.errors] == [*errors]
        assert reader.ended


# ---- receive and cancel


@pytest.mark.rule(4)
def test_receives_that_are_cancelled_anywhere_lose_and_repeat_nothing():
    cancels = []

    async def scenario():
        batch, source, readers = opened(STEPS)
        await read_while(
            readers,
            *map(cancelled_often, readers),
        )
        assert [reader.outputs for reader in readers] == EXPECTED
        assert [stream.finish_reason for stream in batch] == [FinishReason.EOS] * 2
        await assert_settled(batch, source)
        cancels.append(sum(reader.cancels for reader in readers))

    explore_schedules(scenario)
    assert {1, 2, 3, 4} <= set(cancels)


@pytest.mark.rule(4)
def test_a_timeout_at_the_instant_of_delivery_loses_and_repeats_nothing():
    timeouts = []

    async def scenario():
        batch, source, _ = opened(STEPS, wait=lambda _: asyncio.sleep(1))
        readers = [Reader(stream, receive_within_a_second) for stream in batch]
        await read_while(readers)
        assert [reader.outputs for reader in readers] == EXPECTED
        await assert_settled(batch, source)
        timeouts.append(sum(reader.cancels for reader in readers))

    explore_schedules(scenario)
    assert len(set(timeouts)) > 3


@pytest.mark.rule(4)
def test_a_timeout_and_a_cancel_at_the_instant_of_delivery_lose_nothing_together():
    async def scenario():
        batch, source, _ = opened(STEPS, wait=lambda _: asyncio.sleep(1))
        readers = [Reader(stream, receive_within_a_second) for stream in batch]
        for instant in range(1, 4):
            for reader in readers:
                asyncio.get_running_loop().call_later(instant, reader.cancel)
        await read_while(readers)
        assert [reader.outputs for reader in readers] == EXPECTED
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(12)
def test_a_stream_that_is_cancelled_at_any_time_gives_a_prefix_and_then_its_end():
    lengths = []

    async def scenario():
        batch, source, readers = opened(STEPS)

        def cancel():
            batch.cancel(0)
            lengths.append(len(readers[0].outputs))

        await read_while(readers, turns(3, cancel))
        assert readers[0].outputs == EXPECTED[0][: lengths[-1]], "an output after the cancel"
        assert readers[1].outputs == EXPECTED[1]
        assert readers[0].errors == readers[1].errors == []
        await assert_settled(batch, source)

    explore_schedules(scenario)
    assert {0, 1, 2, 3} <= set(lengths)


@pytest.mark.rule(12)
def test_a_receive_is_woken_by_the_cancel_of_its_stream_though_the_source_is_in_a_step():
    async def scenario():
        source = WatchedSource(ENDLESS, wait=lambda _: asyncio.Event().wait())
        batch = AsyncBatchedStream(source, 2)
        reader = Reader(batch[0])
        await together(reader.read(), turns(3, batch[0].cancel))
        assert reader.outputs == []
        assert batch.live == (1,)
        await batch.aclose()
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(12)
def test_a_receive_is_cancelled_while_its_stream_is():
    async def scenario():
        batch, source, readers = opened(ENDLESS, max_buffered=1)
        await read_while(
            readers,
            cancelled_often(readers[0]),
            turns(3, batch[0].cancel),
            turns(8, batch[1].cancel),
        )
        assert_prefixes_of_endless(readers)
        assert [stream.finish_reason for stream in batch] == [FinishReason.CANCELLED] * 2
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(4)
def test_a_drain_between_cancelled_receives_loses_and_repeats_nothing():
    async def scenario():
        source = WatchedSource(STEPS)
        batch = AsyncBatchedStream(source, 2, max_buffered=2)
        reader = Reader(batch[0])

        def drain():
            if not reader.ended:
                with contextlib.suppress(ConcurrentConsumerError):
                    reader.outputs += batch[0].drain()

        other = Reader(batch[1])
        await together(
            reader.read(),
            other.read(),
            cancelled_often(reader),
            *[turns(number, drain) for number in range(1, 5)],
        )
        assert [reader.outputs, other.outputs] == EXPECTED
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(12)
def test_a_cancel_after_the_end_of_the_source_frees_what_is_buffered():
    async def scenario():
        references = []

        async def source():
            for _ in range(3):
                output = Output()
                references.append(weakref.ref(output))
                yield [output, "x"]
                del output

        batch = AsyncBatchedStream(source(), 2)
        assert [output async for output in batch[1]] == ["x"] * 3
        batch.cancel(0)
        assert [reference() for reference in references] == [None] * 3

    explore(scenario, 20, leftovers="fail")


# ---- receive and close


@pytest.mark.rule(10)
def test_two_closings_of_a_batch_and_its_readers_end_all_and_close_the_source_once():
    async def scenario():
        batch, source, readers = opened(ENDLESS)

        async def close():
            await turns(2)
            await batch.aclose()
            assert source.closed == 1, "aclose did not wait for the source"

        await read_while(readers, close(), close())
        assert_prefixes_of_endless(readers, ClosedError)
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(10)
def test_streams_that_are_closed_one_by_one_close_the_source_with_the_last():
    async def scenario():
        batch, source, readers = opened(ENDLESS)

        async def close(stream):
            await turns(2)
            await stream.aclose()
            assert source.closed or batch.live
            assert not source.closed or not batch.live

        await read_while(readers, *map(close, batch))
        assert_prefixes_of_endless(readers)
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(10)
def test_a_closing_that_is_cancelled_closes_the_source_all_the_same():
    async def scenario():
        batch, source, readers = opened(ENDLESS)

        async def close():
            await turns(1)
            closing = asyncio.create_task(batch.aclose())
            await turns(1, closing.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await closing

        await read_while(readers, close())
        # A task that is cancelled before its first turn closes nothing, and all is read.
        closed = batch[0].finish_reason is FinishReason.ERROR
        assert_prefixes_of_endless(readers, *[ClosedError] * closed)
        await assert_settled(batch, source)

    explore_schedules(scenario)


# ---- the source ends by itself


@pytest.mark.rule(5)
def test_an_error_comes_once_and_after_all_outputs_however_receives_are_cancelled():
    async def scenario():
        error = ValueError("broken")
        batch, source, readers = opened([*STEPS[:2], error])
        await read_while(
            readers,
            *map(cancelled_often, readers),
        )
        assert [reader.outputs for reader in readers] == [["a", "b"], ["x", "y"]]
        for reader in readers:
            [own] = reader.errors
            assert type(own) is ValueError
            assert own is not error
            assert own.__cause__ is error
        assert readers[0].errors[0] is not readers[1].errors[0]
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(5)
def test_a_stream_has_one_end_where_the_source_fails_as_the_stream_is_cancelled():
    ends = []

    async def scenario():
        batch, source, readers = opened([*STEPS[:2], ValueError("broken")])
        await read_while(readers, turns(4, batch[0].cancel))
        first, second = readers
        assert is_prefix(first.outputs, ["a", "b"])
        if batch[0].finish_reason == FinishReason.CANCELLED:
            assert first.errors == []
        assert len(first.errors) <= 1
        assert second.outputs == ["x", "y"]
        assert len(second.errors) == 1
        await assert_settled(batch, source)
        ends.append((batch[0].finish_reason, len(first.errors)))

    explore_schedules(scenario)
    assert {(FinishReason.CANCELLED, 0), (FinishReason.ERROR, 1)} <= set(ends)


@pytest.mark.rule(5)
def test_the_end_of_the_source_is_seen_by_receives_that_are_cancelled_meanwhile():
    async def scenario():
        batch, source, readers = opened(STEPS[:2])
        await read_while(
            readers,
            *[cancelled_often(reader, 4) for reader in readers],
        )
        assert [reader.outputs for reader in readers] == [["a", "b"], ["x", "y"]]
        assert [stream.finish_reason for stream in batch] == [FinishReason.EXHAUSTED] * 2
        await assert_settled(batch, source)

    explore_schedules(scenario)


# ---- bounded buffers


def bounded_batch(steps, **options):
    """Return a batch with room for one output, and its source, which holds it to that."""

    def check_room():
        assert all(knobs.buffered(stream) < 1 for stream in batch if stream.end is None)

    slack = options.get("on_overflow") == "cancel"
    source = WatchedSource(steps, on_step=(lambda: None) if slack else check_room)
    batch = AsyncBatchedStream(source, 2, max_buffered=1, **options)
    return batch, source


@pytest.mark.rule(19)
def test_a_source_that_waits_for_room_goes_on_with_the_slowest_and_loses_nothing():
    async def scenario():
        batch, source = bounded_batch(STEPS)
        fast, slow = readers = [Reader(stream) for stream in batch]

        async def read_late():
            await turns(6)
            await slow.read()

        await together(fast.read(), read_late(), cancelled_often(fast), cancelled_often(slow, 12))
        assert [reader.outputs for reader in readers] == EXPECTED
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(11)
def test_a_source_that_waits_for_one_stream_goes_on_when_that_is_cancelled():
    async def scenario():
        batch, source = bounded_batch(STEPS)
        reader = Reader(batch[0])
        await together(reader.read(), turns(5, batch[1].cancel), cancelled_often(reader, 2))
        assert reader.outputs == EXPECTED[0]
        assert batch[1].finish_reason == FinishReason.CANCELLED
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(25)
def test_a_source_that_waits_for_one_stream_goes_on_when_that_is_dropped():
    async def scenario():
        source = WatchedSource(STEPS)
        streams = list(demux(source, 2, max_buffered=1))
        reader = Reader(streams[0])
        await together(reader.read(), turns(5, streams.pop))
        assert reader.outputs == EXPECTED[0]
        await assert_closed(source)

    explore_schedules(scenario)


@pytest.mark.rule(19)
def test_the_source_goes_on_when_a_stream_is_cancelled_as_it_is_read():
    async def scenario():
        batch, source = bounded_batch(STEPS)
        readers = [Reader(stream) for stream in batch]
        await read_while(readers, turns(6, batch[1].cancel))
        assert readers[0].outputs == EXPECTED[0]
        assert is_prefix(readers[1].outputs, EXPECTED[1])
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(19)
def test_a_slow_stream_gives_what_it_holds_before_its_error_and_the_others_do_not_wait():
    reasons = []

    async def scenario():
        batch, source = bounded_batch(STEPS, on_overflow="cancel")
        fast, slow = Reader(batch[0]), Reader(batch[1])

        async def read_late():
            await turns(4)
            assert knobs.buffered(batch[1]) <= 2
            await slow.read()

        await together(fast.read(), read_late(), cancelled_often(slow, 6))
        assert_whole_or_too_slow([fast, slow], batch, EXPECTED)
        await assert_settled(batch, source)
        reasons.append(batch[1].finish_reason)

    explore_schedules(scenario)
    assert set(reasons) == {FinishReason.ERROR, FinishReason.EOS}


# ---- consumers that compete or leave


@pytest.mark.rule(21)
def test_one_of_two_consumers_at_a_stream_is_refused_and_no_output_goes_astray():
    refused = []

    async def scenario():
        source = WatchedSource(STEPS)
        batch = AsyncBatchedStream(source, 2)
        received = []
        refusals = itertools.count()

        async def read():
            while True:
                try:
                    received.append(await anext(batch[0]))
                except StopAsyncIteration:
                    return
                except ConcurrentConsumerError:
                    next(refusals)
                    await turns(1)

        other = Reader(batch[1])
        await together(read(), read(), other.read())
        assert [received, other.outputs] == EXPECTED
        await assert_settled(batch, source)
        refused.append(next(refusals))

    explore_schedules(scenario)
    assert max(refused) > 0


@pytest.mark.rule(25)
def test_consumers_that_leave_drop_their_streams_and_the_source_is_closed():
    async def scenario():
        source = WatchedSource(ENDLESS)
        streams = list(demux(source, 2, max_buffered=2))

        async def read(stream):
            async for _ in stream:
                pass

        tasks = [asyncio.create_task(read(streams.pop())) for _ in range(2)]
        await turns(3)
        for task in tasks:
            task.cancel()
            await turns(1)
        await asyncio.wait(tasks)
        del tasks, task
        await assert_closed(source)

    explore_schedules(scenario)


# ---- the last one leaves while the source waits


@pytest.mark.rule(10)
def test_a_waiting_source_is_broken_off_once_when_no_stream_is_live():
    async def scenario():
        batch, source, readers = opened(ENDLESS, wait=lambda _: asyncio.Event().wait())

        async def cancel(stream):
            while not source.sent:
                await turns(1)
            stream.cancel()

        await read_while(readers, *map(cancel, batch))
        assert [reader.outputs for reader in readers] == [[], []]
        await assert_settled(batch, source)
        assert source.cancelled == 1

    explore_schedules(scenario)


@pytest.mark.rule(10)
def test_a_source_that_goes_on_by_itself_as_it_is_broken_off_is_closed_once():
    cancelled = []

    async def scenario():
        goes_on = asyncio.Event()
        batch, source, readers = opened(ENDLESS, wait=lambda _: goes_on.wait())
        await read_while(
            readers,
            turns(4, batch[0].cancel),
            turns(4, batch[1].cancel),
            turns(5, goes_on.set),
        )
        assert_prefixes_of_endless(readers)
        await assert_settled(batch, source)
        cancelled.append(source.cancelled)

    explore_schedules(scenario)
    assert set(cancelled) == {0, 1}


@pytest.mark.rule(10)
def test_a_pause_is_broken_off_when_no_stream_is_live():
    async def scenario():
        batch, source = bounded_batch(ENDLESS)
        reader = Reader(batch[0])
        await together(reader.read(), turns(6, batch[1].cancel), turns(6, batch[0].cancel))
        assert_prefixes_of_endless([reader])
        await assert_settled(batch, source)

    explore_schedules(scenario)


@pytest.mark.rule(9)
def test_cancelling_the_task_of_the_pump_fails_every_stream_and_closes_the_source():
    async def scenario():
        batch, source, readers = opened(ENDLESS, max_buffered=2)

        async def cancel_pump():
            while not source.sent:
                await turns(1)
            await turns(2)
            [pump] = [task for task in asyncio.all_tasks() if task.get_name() == "batchstream pump"]
            pump.cancel()

        await read_while(readers, cancel_pump())
        for slot, reader in enumerate(readers):
            assert is_prefix(reader.outputs, [step[slot] for step in ENDLESS])
            errors = [] if batch[slot].finish_reason == FinishReason.CANCELLED else [ClosedError]
            assert [type(error) for error in reader.errors] == errors
        await assert_settled(batch, source)

    explore_schedules(scenario)


# ---- by time


@pytest.mark.rule(5)
def test_by_time_every_slot_has_one_end_after_its_outputs_however_it_is_cancelled():
    async def scenario():
        source = WatchedSource(STEPS)
        batch = AsyncBatchedStream(source, 2, max_buffered=1)
        reader = Reader(batch.steps())
        await together(reader.read(), cancelled_often(reader), turns(4, batch[1].cancel))
        outputs, ends = by_slot(reader.outputs)
        assert reader.errors == []
        assert [len(each) for each in ends] == [1, 1]
        assert outputs[0] == EXPECTED[0]
        assert is_prefix(outputs[1], EXPECTED[1])
        assert ends[1][0] == batch[1].end
        await assert_closed(source)

    explore_schedules(scenario)


# ---- a synchronous source, in its thread


@pytest.mark.rule(4)
def test_receives_that_are_cancelled_lose_nothing_that_a_thread_hands_over():
    async def scenario():
        source = ScriptedSource(STEPS)
        async with AsyncBatchedStream(source, 2, max_buffered=1) as batch:
            readers = [Reader(stream) for stream in batch]
            await read_while(
                readers,
                *map(cancelled_often, readers),
            )
            assert [reader.outputs for reader in readers] == EXPECTED
        assert source.closed == 1

    explore(scenario, THREADED_SCHEDULES, threads=True, leftovers="fail")


@pytest.mark.rule(12)
def test_streams_that_are_cancelled_at_any_time_end_the_thread_and_close_the_source():
    async def scenario():
        source = ScriptedSource(ENDLESS)
        batch = AsyncBatchedStream(source, 2, max_buffered=1)
        readers = [Reader(stream) for stream in batch]
        await read_while(
            readers,
            *[turns(5, stream.cancel) for stream in batch],
        )
        assert_prefixes_of_endless(readers)
        await batch.aclose()
        assert source.closed == 1

    explore(scenario, THREADED_SCHEDULES, threads=True, leftovers="fail")
