"""Streams that are owned: by a block, or as the body of a response."""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from contextlib import aclosing, closing

import pytest

from batchstream import BatchedStream, ClosedError, ConcurrentConsumerError, FinishReason, demux
from support.forms import OVER, every_form, forms_in_loops
from support.reading import read, waiting_for
from support.sources import pairs

CANCELLED = FinishReason.CANCELLED


@pytest.fixture
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ---- blocks


@pytest.mark.rule(12)
@every_form
async def test_leaving_the_block_of_a_stream_cancels_it_alone(form):
    first, second = form.open(form.script(pairs(3)), 2, max_buffered=2)

    async def receive_one():
        assert await form.receive(first) == ("a", 0)

    await form.in_block(first, receive_one)
    assert first.finish_reason is CANCELLED
    assert await form.rest(first) == []
    assert await form.rest(second) == [("b", 0), ("b", 1), ("b", 2)]


@pytest.mark.rule(12, 14)
@every_form
async def test_an_error_that_leaves_the_block_of_a_stream_cancels_it_and_passes(form):
    first, _ = form.open(form.script(pairs(99)), 2, max_buffered=2)

    async def fail():
        raise KeyError("of the consumer")

    with pytest.raises(KeyError, match="of the consumer"):
        await form.in_block(first, fail)
    assert first.finish_reason is CANCELLED


@pytest.mark.rule(5)
@every_form
async def test_a_stream_that_was_read_to_its_end_in_its_block_keeps_its_end(form):
    [stream] = form.open(form.script([["a"], [None]]), 1)

    async def read_all():
        assert await form.rest(stream) == ["a"]

    await form.in_block(stream, read_all)
    assert stream.finish_reason is FinishReason.EOS


@pytest.mark.rule(12)
@forms_in_loops
async def test_close_of_a_stream_in_an_event_loop_cancels_it_from_any_thread(form):
    first, _ = form.open(form.script(pairs(99)), 2, max_buffered=2)
    with closing(first):
        await form.receive(first)
    assert first.finish_reason is CANCELLED
    assert await form.receive(first) is OVER


# ---- bodies


@pytest.mark.rule(2)
@forms_in_loops
async def test_a_body_gives_the_outputs_as_they_are_or_encoded(form):
    first, second = form.open(form.script([["a", "x"], ["b", None], [None, None]]), 2)
    assert await form.rest(first.body()) == ["a", "b"]
    assert await form.rest(second.body(encode=str.encode)) == [b"x"]
    assert first.finish_reason is FinishReason.EOS


@pytest.mark.rule(5)
@forms_in_loops
async def test_a_body_raises_the_error_of_its_stream_behind_its_outputs_and_then_ends(form):
    [stream] = form.open(form.script([["a"], OSError("of the model")]), 1)
    outputs, (error,) = await form.read(stream.body())
    assert outputs == ["a"]
    assert isinstance(error, OSError)


@pytest.mark.rule(12, 25)
@forms_in_loops
async def test_a_receive_of_a_body_that_is_broken_off_cancels_the_stream(form):
    gate = form.gate()
    batch = form.open(form.script(pairs(9), gates={1: gate}), 2)
    body = batch[0].body()
    assert await form.receive(body) == ("a", 0)
    await gate.reached.wait()
    await form.broken_off(body)
    assert batch[0].finish_reason is CANCELLED
    assert batch.live == (1,)
    assert await form.receive(body) is OVER
    gate.open()


@pytest.mark.rule(12)
@pytest.mark.parametrize("close", ["aclose", "close", "athrow"])
@forms_in_loops
async def test_closing_a_body_cancels_its_stream_even_one_that_was_never_read(form, close):
    batch = form.open(form.script(pairs(99)), 2, max_buffered=2)
    body = batch[0].body()
    if close == "aclose":
        async with aclosing(body):
            pass
    elif close == "close":
        body.close()
    else:
        with pytest.raises(GeneratorExit):
            await body.athrow(GeneratorExit)
    assert batch[0].finish_reason is CANCELLED
    assert await form.receive(body) is OVER


@pytest.mark.rule(5)
@forms_in_loops
async def test_a_body_does_not_end_as_if_it_were_whole_where_its_stream_was_cut(form):
    batch = form.open(form.script(pairs(99)), 2, max_buffered=2)
    body = batch[0].body()
    assert await form.receive(body) == ("a", 0)
    batch.cancel(0)
    outputs, (error,) = await form.read(body)
    assert outputs == []
    assert isinstance(error, ClosedError)
    assert "stream 0 had ended with 'cancelled'" in str(error)
    await form.close(batch)
    _, (error,) = await form.read(batch[1].body())
    assert isinstance(error, ClosedError)
    assert "the batch was closed before stream 1 had ended" in str(error)


@pytest.mark.rule(17)
@pytest.mark.parametrize("stop", [StopIteration, StopAsyncIteration, ValueError])
@forms_in_loops
async def test_an_error_of_encoding_cancels_the_stream_and_never_ends_the_body_in_silence(
    form, stop
):
    def encode(output):
        raise stop(output)

    [stream] = form.open(form.script([["a"], ["b"]] * 9), 1, max_buffered=2)
    outputs, (error,) = await form.read(stream.body(encode=encode))
    assert outputs == []
    assert isinstance(error, ValueError if stop is ValueError else RuntimeError)
    assert stream.finish_reason is CANCELLED


@pytest.mark.rule(21)
def test_a_second_consumer_of_a_body_is_refused_and_the_first_is_served():
    async def model():
        await asyncio.sleep(0)
        yield ["a"]

    async def main():
        [stream] = demux(model(), size=1)
        body = stream.body()
        first = await waiting_for(body.asend(None))
        with pytest.raises(ConcurrentConsumerError):
            await anext(body)
        assert await first == "a"
        assert await read(body) == ([], None)

    asyncio.run(main())


# ---- streams that begin before a response is made


async def begun(stream, **options):
    """Return what is sent of a stream, in a thread or in an event loop, once it has begun."""
    body = stream.begin(**options)
    return await body if inspect.isawaitable(body) else body


@pytest.mark.rule(2, 3)
@every_form
async def test_a_stream_that_has_begun_gives_all_its_outputs(form):
    first, second = form.open(form.script([["a", "x"], ["b", None], [None, None]]), 2)
    body = await begun(first)
    assert await form.rest(body) == ["a", "b"]
    assert await form.rest(await begun(second)) == ["x"]
    assert first.finish_reason is FinishReason.EOS


@pytest.mark.rule(5)
@every_form
async def test_a_stream_without_outputs_begins_and_ends(form):
    [stream] = form.open(form.script([[None]]), 1)
    assert await form.rest(await begun(stream)) == []
    assert stream.finish_reason is FinishReason.EOS


@pytest.mark.rule(5)
@every_form
async def test_an_error_before_the_first_output_is_raised_as_a_stream_begins(form):
    [stream] = form.open(form.script([OSError("of the model")]), 1)
    with pytest.raises(OSError, match="of the model"):
        await begun(stream)
    assert await form.receive(stream) is OVER


@pytest.mark.rule(2)
@forms_in_loops
async def test_a_body_that_has_begun_is_encoded_and_drops_its_first_output_when_it_is_closed(form):
    first, second = form.open(form.script([["a", "x"], ["b", "y"], [None, None]]), 2)
    assert await form.rest(await begun(first, encode=str.encode)) == [b"a", b"b"]
    body = await begun(second)
    body.close()
    assert await form.receive(body) is OVER


@pytest.mark.rule(5)
@forms_in_loops
async def test_a_stream_that_was_cancelled_does_not_begin_as_if_it_were_empty(form):
    batch = form.open(form.script(pairs(99)), 2, max_buffered=2)
    batch.cancel(0)
    with pytest.raises(ClosedError, match="stream 0 had ended with 'cancelled'"):
        await begun(batch[0])


@pytest.mark.rule(12, 25)
@pytest.mark.usefixtures("_no_collector")
def test_a_stream_whose_beginning_is_broken_off_is_cancelled_at_once():
    async def model():
        await asyncio.Event().wait()
        yield ["a"]

    async def main():
        batch = demux(model(), size=1)

        async def send():
            try:
                await batch[0].begin()
            except asyncio.CancelledError as error:
                kept.append(error)
                raise

        kept = []
        sending = await waiting_for(send())
        sending.cancel()
        await asyncio.wait([sending])
        assert kept
        assert batch[0].finish_reason is CANCELLED

    asyncio.run(main())


# ---- what a framework keeps


def body_of(streams):
    return streams.pop(0).body()


async def block(streams):
    async with streams.pop(0) as stream:
        async for output in stream:
            yield output


async def generator(streams):
    async for output in streams.pop(0):
        yield output


@pytest.mark.rule(25)
@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("body_of", [body_of, block, generator])
def test_a_framework_that_keeps_what_it_sent_keeps_no_slot(body_of):
    """As Starlette does: its frame holds the body, the error holds the frame, and it the error."""

    async def model():
        yield ["a", "x"]
        await asyncio.Event().wait()

    async def main():
        streams = list(demux(model(), size=2))
        stream = weakref.ref(streams[0])
        body = body_of(streams)

        async def send():
            try:
                async for _ in body:
                    received.set()
            except asyncio.CancelledError as error:
                kept.append(error)
                raise

        kept, received = [], asyncio.Event()
        sending = await waiting_for(send())
        await received.wait()
        await asyncio.sleep(0)  # and the body waits for its next output
        sending.cancel()
        await asyncio.wait([sending])
        assert kept
        assert stream() is None or stream().finish_reason is CANCELLED
        await streams[0].aclose()

    asyncio.run(main())


@pytest.mark.rule(12)
def test_a_thread_that_leaves_the_block_of_a_stream_cancels_it():
    batch = BatchedStream([["a", "x"]] * 9, 2, background=True, max_buffered=2)
    with batch, batch[0] as stream:
        assert next(stream) == "a"
    assert batch[0].finish_reason is CANCELLED
