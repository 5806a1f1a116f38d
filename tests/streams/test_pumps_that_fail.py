"""Errors of the library's own, out of memory say: no consumer and no `close` waits for ever."""

from __future__ import annotations

import asyncio
import os

import pytest

from batchstream import AsyncBatchedStream, BatchedStream, FinishReason, SourceError
from support import knobs
from support.reading import read_blocking, rest
from support.sources import ScriptedSource


@pytest.mark.rule(9)
def test_a_wake_up_that_fails_leaves_no_consumer_waiting():
    def source():
        while not knobs.waiters_in_threads(batch):
            os.sched_yield()
        yield ["a"]

    with BatchedStream(source(), 1, background=True) as batch:
        knobs.fail_next_wake_up(batch, MemoryError())
        assert read_blocking(batch[0]) == (["a"], MemoryError)


@pytest.mark.rule(10)
@pytest.mark.parametrize("step", knobs.LAST_STEPS_OF_PUMPS)
def test_an_error_at_the_end_of_the_pump_leaves_no_close_waiting(step, monkeypatch, unheard):
    batch = BatchedStream([["a"]], 1, background=True)
    knobs.fail_in_pump(monkeypatch, batch, step, MemoryError(step))
    assert list(batch[0]) == ["a"]
    batch.close()
    # The streams are ended once more if that fails.
    attempts = 2 if step == "ending the streams" else 1
    assert [repr(error) for error in unheard] == [f"MemoryError('{step}')"] * attempts


@pytest.mark.rule(10)
@pytest.mark.parametrize("size", [1, None])
def test_an_error_as_an_unread_batch_is_dropped_closes_its_source(size, monkeypatch, unheard):
    source = ScriptedSource([["a"]])
    batch = BatchedStream(source, size, background=True)
    knobs.fail_in_pump(monkeypatch, batch, "ending the streams", MemoryError("of ours"))
    batch[0].cancel()
    batch.close()
    assert source.closed == 1
    assert [repr(error) for error in unheard] == ["MemoryError('of ours')"] * 2  # tried again


@pytest.mark.rule(10)
def test_an_error_as_an_unread_batch_is_dropped_outside_a_loop_leaves_no_aclose_waiting(
    monkeypatch, unheard
):
    async def source():
        yield ["a"]

    batch = AsyncBatchedStream(source(), 1)
    knobs.fail_in_pump(monkeypatch, batch, "ending the streams", MemoryError("of ours"))
    batch[0].cancel()
    asyncio.run(batch.aclose())
    assert [repr(error) for error in unheard] == ["MemoryError('of ours')"] * 2  # tried again


@pytest.mark.rule(9)
@pytest.mark.parametrize("form", ["thread", "task"])
@pytest.mark.parametrize("step", knobs.STEPS_OF_PUMPS)
def test_a_pump_that_fails_itself_leaves_no_consumer_waiting(form, step, monkeypatch, unheard):
    async def steps():
        yield ["a"]
        raise ValueError("the source")

    async def main():
        source = steps() if form == "task" else iter([["a"], "no step"])
        async with AsyncBatchedStream(source, 1) as batch:
            knobs.fail_in_pump(monkeypatch, batch, step, MemoryError())
            with pytest.raises((MemoryError, SourceError, ValueError)):
                await rest(batch[0])
            assert await rest(batch[0]) == []
            assert batch[0].finish_reason is FinishReason.ERROR

    asyncio.run(main())
