"""Streams that are read in lists, at most one in so many seconds: in loops with virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from batchstream import ClosedError, Fail, FinishReason, demux, paced
from support import shuffled_loop


@contextlib.asynccontextmanager
async def trio_limit(seconds):
    with trio.move_on_after(seconds):
        yield


def in_asyncio(scenario):
    loop = SimpleNamespace(
        sleep=asyncio.sleep, now=lambda: asyncio.get_running_loop().time(), limit=asyncio.timeout
    )
    return shuffled_loop.run(scenario(loop))


def in_trio(scenario):
    loop = SimpleNamespace(sleep=trio.sleep, now=trio.current_time, limit=trio_limit)
    return trio.run(scenario, loop, clock=trio.testing.MockClock(autojump_threshold=0))


in_loops = pytest.mark.parametrize("run", [in_asyncio, in_trio])


async def model(loop, gap, steps):
    """Yield the steps for one slot, each so many seconds after the one before."""
    for step in steps:
        await loop.sleep(gap)
        yield [step]


async def timed(loop, lists):
    """Return the lists, each with when it came, in milliseconds since the beginning."""
    begin = loop.now()
    return [(round((loop.now() - begin) * 1000), each) async for each in lists]


@pytest.mark.rule(2, 3)
@in_loops
def test_the_first_output_comes_at_once_and_then_a_list_at_most_every_so_many_seconds(run):
    async def scenario(loop):
        [stream] = demux(model(loop, 0.003, range(9)), 1)
        return await timed(loop, paced(stream, every=0.01))

    # Outputs come at 3, 6, 9, …, 27 ms; the pauses end at 13, 23 and 33 ms.
    assert run(scenario) == [(3, [0]), (13, [1, 2, 3]), (23, [4, 5, 6]), (33, [7, 8])]


@in_loops
def test_outputs_that_are_further_apart_than_the_pause_are_not_held_up(run):
    async def scenario(loop):
        [stream] = demux(model(loop, 0.03, range(3)), 1)
        return await timed(loop, paced(stream, every=0.02))

    assert run(scenario) == [(30, [0]), (60, [1]), (90, [2])]


@in_loops
def test_the_time_that_a_consumer_takes_counts_as_a_part_of_the_pause(run):
    async def scenario(loop):
        [stream] = demux(model(loop, 0.003, range(9)), 1)
        begin, came = loop.now(), []
        async for each in paced(stream, every=0.01):
            came.append((round((loop.now() - begin) * 1000), each))
            await loop.sleep(0.008)
        return came

    assert run(scenario)[:3] == [(3, [0]), (13, [1, 2, 3]), (23, [4, 5, 6])]


@in_loops
def test_without_a_pause_a_list_has_what_has_come_since_the_one_before(run):
    async def scenario(loop):
        [stream] = demux(model(loop, 0, range(5)), 1)
        lists = paced(stream, every=0)
        first = await anext(lists)
        await loop.sleep(1)
        return [first, *[each async for each in lists]]

    first, second = run(scenario)
    assert first + second == list(range(5))


@in_loops
def test_lists_are_encoded(run):
    async def scenario(loop):
        [stream] = demux(model(loop, 0.003, "paced"), 1)
        return await timed(loop, paced(stream, every=0.01, encode="".join))

    assert run(scenario) == [(3, "p"), (13, "ace"), (23, "d")]


@pytest.mark.rule(5)
@in_loops
def test_an_error_comes_behind_all_outputs_that_came_before(run):
    async def scenario(loop):
        [stream] = demux(model(loop, 0.001, ["a", "b", Fail(OSError("of the model"))]), 1)
        lists = paced(stream, every=0.01)
        got = [await anext(lists), await anext(lists)]
        with pytest.raises(OSError, match="of the model"):
            await anext(lists)
        return got, [each async for each in lists], stream.finish_reason

    assert run(scenario) == ([["a"], ["b"]], [], FinishReason.ERROR)


@pytest.mark.rule(12, 14)
@in_loops
def test_a_receive_that_is_cancelled_in_the_pause_cancels_the_stream(run):
    async def scenario(loop):
        [stream] = demux(model(loop, 0.001, range(1000)), 1)
        lists = paced(stream, every=10)
        assert await anext(lists) == [0]
        with contextlib.suppress(TimeoutError):
            async with loop.limit(0.5):
                await anext(lists)
        return stream.finish_reason, [each async for each in lists]

    assert run(scenario) == (FinishReason.CANCELLED, [])


@pytest.mark.rule(12)
@in_loops
def test_closing_the_lists_cancels_the_stream(run):
    async def scenario(loop):
        [stream] = demux(model(loop, 0.001, range(99)), 1)
        async with aclosing(paced(stream)) as lists:
            assert await anext(lists) == [0]
        return stream.finish_reason

    assert run(scenario) is FinishReason.CANCELLED


@pytest.mark.rule(5)
@in_loops
def test_a_stream_that_was_cancelled_elsewhere_does_not_end_as_if_it_were_whole(run):
    async def scenario(loop):
        [stream] = demux(model(loop, 0.001, range(99)), 1)
        lists = paced(stream)
        assert await anext(lists) == [0]
        stream.cancel()
        with pytest.raises(ClosedError, match="cancelled"):
            await anext(lists)

    run(scenario)


@pytest.mark.parametrize(
    ("every", "error", "says"),
    [(-1, ValueError, "every"), ("soon", TypeError, "every"), (float("inf"), ValueError, "finite")],
)
def test_what_is_no_duration_is_refused_at_once(every, error, says):
    [stream] = demux(model(None, 0, []), 1)
    with pytest.raises(error, match=says):
        paced(stream, every=every)


def test_a_stream_for_threads_is_refused_with_what_to_pass_instead():
    [stream] = demux([["a"]])
    with pytest.raises(TypeError, match=r"read in an event loop, such as `batcher\.astream"):
        paced(stream)
