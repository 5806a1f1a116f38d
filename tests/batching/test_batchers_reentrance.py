"""Models that use the batcher which runs them."""

from __future__ import annotations

import asyncio

import pytest

from batchstream import ClosedError, DynamicBatcher
from support.engines import batchers_with_threads, dynamic_batchers
from support.sources import TIMEOUT


@pytest.mark.rule(9)
def test_a_blocking_receive_in_the_loop_of_an_asynchronous_function_is_refused():
    async def echo_here(requests):
        yield list(requests)

    async def main():
        async with DynamicBatcher(echo_here, max_batch_size=4) as batcher:
            with pytest.raises(RuntimeError, match="would block the event loop"):
                list(batcher.stream("a"))

    asyncio.run(main())


@pytest.mark.rule(9)
@pytest.mark.parametrize("deed", ["wait", "close"])
def test_a_plain_function_that_waits_for_its_own_batcher_gets_an_error(deed):
    def fn(requests):
        if deed == "wait":
            next(batcher.stream("another"))
        else:
            batcher.close()
        return iter([list(requests)])

    batcher = DynamicBatcher(fn, max_batch_size=4)
    stream = batcher.stream("a")
    with pytest.raises(RuntimeError if deed == "wait" else ClosedError):
        stream.receive(timeout=TIMEOUT)
    batcher.close()


@pytest.mark.rule(9)
@batchers_with_threads
async def test_a_batcher_closed_by_its_own_model_does_not_wait_for_itself(form):
    model = form.model(on_step=lambda number: batcher.close() if number == 1 else None)
    batcher = form.batcher(model, max_batch_size=1)
    streams = [form.submit(batcher, "abc"), form.submit(batcher, "d")]
    outputs, [error] = await form.read(streams[0])
    assert outputs in (["a"], ["a", "b"])  # that of the step in which it was closed may come
    assert type(error) is ClosedError
    _, [error] = await form.read(streams[1])
    assert type(error) is ClosedError


@pytest.mark.rule(9)
@dynamic_batchers
async def test_an_asynchronous_model_may_close_its_own_batcher(form):
    if not form.source_is_async:
        pytest.skip("for asynchronous functions")
    began = []

    async def fn(requests):
        yield ["a"]
        began.append("closing")
        await batcher.aclose()
        began.append("closed")
        yield ["b"]

    batcher = form.batcher(fn)
    outputs, errors = await form.read(form.submit(batcher, "x"))
    assert outputs in (["a"], ["a", "b"])
    assert [type(error) for error in errors] == [ClosedError]
    assert began[0] == "closing"


@pytest.mark.rule(9)
@batchers_with_threads
async def test_a_model_that_reads_a_stream_of_its_own_batcher_gets_an_error(form):
    errors = []

    def ask(number):
        if number == 0:
            inner = batcher.stream("x")
            try:
                next(inner)
            except RuntimeError as error:
                errors.append(str(error))

    batcher = form.batcher(form.model(on_step=ask))
    assert await form.rest(form.submit(batcher, "ab")) == ["a", "b"]
    assert errors == ["the source of a batch waits for a request to its own batcher"]
