"""How closing goes wrong: errors of the source and of the library while a batch is closed."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading

import pytest

from batchstream import AsyncBatchedStream, BatchedStream, demux
from support import knobs
from support.forms import OVER, every_form, forms_with_async_sources
from support.shuffled_loop import run
from support.sources import TIMEOUT, Gate, run_in_threads

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


@pytest.mark.rule(10)
def test_what_a_source_raises_when_it_is_broken_off_is_raised_by_aclose():
    async def main():
        reached = asyncio.Event()
        batch = AsyncBatchedStream(cleaned_up_badly(reached), 1)
        assert await anext(batch[0]) == "a"
        await reached.wait()
        with pytest.raises(CleanUpError):
            await batch.aclose()
        await batch.aclose()

    run(main())


@pytest.mark.rule(10)
def test_what_a_source_raises_when_it_is_broken_off_is_raised_by_close():
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


@pytest.mark.rule(10)
def test_what_a_source_raises_when_its_last_stream_is_cancelled_goes_to_the_hook(unheard):
    async def main():
        reached = asyncio.Event()
        (stream,) = demux(cleaned_up_badly(reached), 1)
        assert await anext(stream) == "a"
        await reached.wait()
        await stream.aclose()

    run(main())
    assert [type(error) for error in unheard] == [CleanUpError]


@pytest.mark.rule(10)
@every_form
async def test_an_error_in_a_step_without_live_streams_goes_to_the_hook(form):
    unheard, heard = [], form.flag()

    def hear(about):
        unheard.append(about.exc_value)
        heard.set()

    def cancel(number):
        if number == 1:
            batch.cancel(0)
            batch.cancel(1)

    original = OSError("no caller waits")
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


# ---- what closing waits for


@pytest.mark.rule(10)
@forms_with_async_sources
async def test_a_source_that_closes_its_batch_in_its_clean_up_is_no_deadlock(form):
    async def source():
        try:
            while True:
                yield ["a"]
        finally:
            await batch.aclose()

    batch = form.open(source(), 1, max_outputs=1)
    assert await form.rest(batch[0]) == ["a"]
    await form.close(batch)


@pytest.mark.rule(10)
def test_leaving_the_block_waits_until_the_thread_has_ended(monkeypatch):
    gate = Gate()  # the thread's last lines

    async def main():
        async with AsyncBatchedStream(itertools.repeat([0]), 1, max_buffered=2) as batch:
            assert await anext(batch[0]) == 0
            thread = knobs.thread_of(batch)
            join = thread.join

            def open_and_join(timeout=None):
                gate.opened.set()
                join(timeout)

            knobs.on_closed(monkeypatch, batch, gate.pass_through)
            monkeypatch.setattr(thread, "join", open_and_join)
        try:
            assert not thread.is_alive()
        finally:
            gate.opened.set()

    asyncio.run(main())


# ---- a loop that was closed around its pump


@pytest.mark.rule(9, 22)
def test_two_threads_may_end_the_pump_of_a_closed_loop_at_the_same_time(monkeypatch, unheard):
    async def source():
        while True:
            yield ["a", "b"]
            await asyncio.sleep(3600)

    loop = asyncio.new_event_loop()
    batch = AsyncBatchedStream(source(), 2)
    streams = list(batch)
    assert loop.run_until_complete(anext(streams[0])) == "a"
    loop.close()
    both = threading.Barrier(2, timeout=TIMEOUT)
    knobs.before_draining(monkeypatch, both.wait)

    def cancel():
        for stream in streams:
            stream.cancel()

    run_in_threads(cancel, lambda: knobs.poll(batch))
    assert batch.live == ()
    assert unheard == []
