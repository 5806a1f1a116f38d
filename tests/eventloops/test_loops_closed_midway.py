"""An event loop that is stopped and closed around the pump, which is never cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from batchstream import ClosedError, FinishReason, demux
from support.programs import run_program
from support.reading import following, read, rest, waiting_for
from support.sources import TIMEOUT, run_in_threads


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


@pytest.mark.rule(9)
def test_a_loop_closed_around_the_pump_ends_the_streams_in_a_later_loop():
    first, second = two_streams()
    begun_in_a_loop(first).close()
    assert asyncio.run(read(second)) == (["x"], ClosedError)
    assert asyncio.run(rest(second)) == []


@pytest.mark.rule(10)
def test_closing_is_over_when_the_loop_was_closed_around_the_pump():
    first, second = two_streams()
    begun_in_a_loop(first).close()

    async def close():
        await first.aclose()
        await second.aclose()

    asyncio.run(close())


@pytest.mark.rule(9)
def test_a_consumer_in_another_loop_notices_that_the_pumps_loop_was_closed():
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


@pytest.mark.rule(10)
def test_closing_in_another_loop_notices_that_the_pumps_loop_was_closed():
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


@pytest.mark.rule(28)
def test_loops_closed_around_their_pumps_leave_no_noise_and_nothing_behind():
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
    assert run_program(program, flags=("-W", "error")) == (0, "", "")
