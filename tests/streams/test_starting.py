"""Pumps whose thread or task cannot be started, and batches closed before they have begun."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress

import pytest

from batchstream import AsyncBatchedStream, BatchedStream, ClosedError
from support import knobs
from support.reading import read, read_blocking, rest, waiting_for
from support.shuffled_loop import run
from support.sources import TIMEOUT, Gate, ScriptedSource, run_in_threads

# ---- threads


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


@pytest.mark.rule(9)
def test_a_thread_that_cannot_be_started_fails_every_stream(starting):
    source = ScriptedSource([["a", "x"]])
    batch = BatchedStream(source, 2, background=True)
    results = {}

    def first():
        results[0] = read_blocking(batch[0])

    def second():
        assert starting.reached.wait(TIMEOUT)
        results[1] = read_blocking(batch[1])

    def open_the_gate():
        while not knobs.is_waited_for_in_threads(batch, 1):
            os.sched_yield()
        starting.opened.set()

    run_in_threads(first, second, open_the_gate)
    assert results == {0: ([], RuntimeError), 1: ([], RuntimeError)}
    assert source.closed == 1
    batch.close()
    assert [list(stream) for stream in batch] == [[], []]
    assert (source.closed, source.sent) == (1, [])


@pytest.mark.rule(9)
def test_a_thread_that_cannot_be_started_fails_every_stream_in_event_loops(starting):
    source = ScriptedSource([["a", "x"]])
    starting.opened.set()

    async def main():
        batch = AsyncBatchedStream(source, 2)
        assert [await read(stream) for stream in batch] == [([], RuntimeError)] * 2
        assert source.closed == 1
        await batch.aclose()

    asyncio.run(main())
    assert (source.closed, source.sent) == (1, [])


@pytest.mark.rule(10)
def test_closing_while_a_thread_cannot_be_started_returns(starting):
    source = ScriptedSource([["a"]])
    batch = BatchedStream(source, 1, background=True)

    def close():
        assert starting.reached.wait(TIMEOUT)
        with suppress(RuntimeError):  # the first thread is raised it
            batch.close()

    def open_the_gate():
        while not knobs.is_closing(batch):
            os.sched_yield()
        starting.opened.set()

    run_in_threads(lambda: read_blocking(batch[0]), close, open_the_gate)
    assert source.closed == 1
    assert batch.live == ()


# ---- tasks


@pytest.mark.rule(9)
def test_a_task_that_cannot_be_started_fails_every_stream(monkeypatch):
    def fail(*_):
        raise RuntimeError("no task today")

    async def source():
        yield ["a", "x"]

    async def main():
        batch = AsyncBatchedStream(source(), 2)
        assert [await read(stream) for stream in batch] == [([], RuntimeError)] * 2
        assert [await rest(stream) for stream in batch] == [[], []]
        await batch.aclose()

    knobs.replace_spawn(monkeypatch, fail)
    run(main())


@pytest.mark.rule(9)
def test_a_task_factory_that_takes_no_options_does_not_stop_the_pump():
    async def source():
        yield ["a", "x"]

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))
        async with AsyncBatchedStream(source(), 2) as batch:
            assert [await read(stream) for stream in batch] == [(["a"], None), (["x"], None)]

    asyncio.run(main())


# ---- batches that are closed before they have begun


@pytest.mark.rule(10)
def test_an_unread_batch_is_ended_and_closed_in_the_thread_that_made_its_first_step(monkeypatch):
    class Source(ScriptedSource):
        def close(self):
            super().close()
            threads["closed"] = threading.current_thread()

    def end():
        threads["ended"] = threading.current_thread()

    threads = {}
    source = Source([["a", "x"]])
    batch = BatchedStream(source, background=True)
    thread = knobs.thread_of(batch)
    knobs.before_draining(monkeypatch, end)
    for stream in batch:
        stream.cancel()
    thread.join(TIMEOUT)
    assert threads == {"ended": thread, "closed": thread}
    assert batch.live == ()


@pytest.mark.rule(10)
def test_a_batch_closed_while_it_is_entered_raises_and_closes_its_source():
    gate = Gate()
    source = ScriptedSource([["a", "x"], ["b", "y"]], on_step=gate.pass_through)

    async def main():
        batch = AsyncBatchedStream(source)
        entering = await waiting_for(batch.__aenter__())
        assert await asyncio.to_thread(gate.reached.wait, TIMEOUT)
        await batch.aclose()
        gate.opened.set()
        with pytest.raises(ClosedError, match="closed before it was entered: make another"):
            await entering
        assert source.closed == 1
        assert batch.live == ()

    asyncio.run(main())


@pytest.mark.rule(10)
@pytest.mark.parametrize("size", [2, None])
def test_a_batch_closed_before_it_is_entered_raises(size):
    source = ScriptedSource([["a", "x"]])

    async def main():
        batch = AsyncBatchedStream(source, size)
        await batch.aclose()
        with pytest.raises(ClosedError, match="closed before it was entered: make another"):
            await batch.__aenter__()

    asyncio.run(main())
    assert (source.closed, source.sent) == (1, [])
