"""Batchers with `decode`: the model gives tokens, and each stream has text."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchstream import (
    ContinuousBatcher,
    DynamicBatcher,
    FinishReason,
    Last,
    Many,
    batched,
    per_request,
    token_ids,
)
from batchstream.text import PieceDecoder, StopStrings, TextDecoder
from support.engines import CONTINUOUS, DYNAMIC, continuous_batchers, every_batcher
from support.mixtures import run_quickly
from support.text_search import search
from support.texts import BYTES


class Ask(list):
    """A request: the tokens that the model gives for it, and the stop strings of its client."""

    def __init__(self, text, stop=(), *, limit=None, eos=None):
        super().__init__(text.encode() if isinstance(text, str) else text)
        self.stop = stop
        self.limit = limit
        self.eos = eos


def decode(ask):
    return None if ask.stop is None else TextDecoder(BYTES, stop=ask.stop)


def limit(ask):
    return ask.limit


LETTERS = st.text(alphabet="abé", max_size=8)
STOPS = st.lists(st.text(alphabet="abé", min_size=1, max_size=3), max_size=2)


@pytest.mark.rule(2, 3, 7, 30)
@pytest.mark.parametrize("form", DYNAMIC + CONTINUOUS, ids=lambda form: form.name)
@given(
    asks=st.lists(st.builds(Ask, LETTERS, STOPS), min_size=1, max_size=6), size=st.integers(1, 3)
)
def test_each_stream_is_its_requests_text_up_to_its_own_stop_string(form, asks, size):
    run_quickly(form, read, asks=asks, size=size)


async def read(form, asks, size):
    batcher = form.batcher(max_batch_size=size, decode=decode)
    streams = [form.submit(batcher, ask) for ask in asks]
    for ask, stream in zip(asks, streams, strict=True):
        text, stop = search(bytes(ask).decode(), ask.stop, include=False)
        assert "".join(await form.rest(stream)) == text
        assert (stream.finish_reason, stream.end.info["stop"]) == (FinishReason.EOS, stop)


@every_batcher
async def test_limits_predicates_and_counts_are_about_tokens(form):
    asks = [
        Ask("日本", limit=4),
        Ask("ab\nc", eos=10),
        Ask("ab", None),
        Ask([97, Many([98, 99]), Last(100)], "bcd"),
    ]
    is_eos = per_request(lambda ask: token_ids(ask.eos))
    batcher = form.batcher(decode=decode, is_eos=is_eos, max_outputs=limit)
    streams = [form.submit(batcher, ask) for ask in asks]
    assert ["".join(map(str, await form.rest(it))) for it in streams] == [
        "日\ufffd",
        "ab",
        "9798",
        "a",
    ]
    assert [str(stream.finish_reason) for stream in streams] == ["length", "eos", "eos", "eos"]
    assert [stream.end.outputs for stream in streams] == [4, 2, 2, 4]
    assert streams[2].end.info is None
    assert streams[3].end.info == {"stop": "bcd", "completion_tokens": 4}
    assert batcher.statistics().outputs == 12


@pytest.mark.rule(13, 30)
@continuous_batchers
async def test_a_slot_is_refilled_with_the_step_behind_a_stop_string(form):
    first = form.gate()
    model = form.model(gates={0: first})
    batcher = form.batcher(model, max_batch_size=1, decode=decode)
    long = Ask("aX" + 100 * "b", "X")
    streams = [form.submit(batcher, long)]
    await first.reached.wait()
    streams.append(form.submit(batcher, Ask("c")))
    first.open()
    assert ["".join(await form.rest(stream)) for stream in streams] == ["a", "c"]
    assert model.worked_on == [(long,), (long,), ([99],), ([99],)]


@pytest.mark.rule(15)
@every_batcher
async def test_an_error_of_a_decoder_fails_its_request_alone(form):
    asks = [Ask(["no token"]), Ask("ab")]
    streams = await form.submit_together({"decode": decode}, {}, *asks)
    _, [error] = await form.read(streams[0])
    assert isinstance(error, TypeError)
    assert "a TextDecoder takes token ids" in str(error)
    assert await form.rest(streams[1]) == ["a", "b"]


@pytest.mark.rule(29)
@every_batcher
async def test_what_makes_no_decoder_refuses_its_request_when_that_is_submitted(form):
    batcher = form.batcher(decode=decode)
    with pytest.raises(ValueError, match="a stop string must not be empty"):
        form.submit(batcher, Ask("ab", [""]))
    other = form.batcher(decode=lambda ask: BYTES)
    with pytest.raises(TypeError, match="what decode returns must have the methods feed"):
        form.submit(other, Ask("ab"))
    assert await form.rest(form.submit(batcher, Ask("ab"))) == ["a", "b"]


@pytest.mark.rule(32)
@every_batcher
async def test_a_decoder_that_has_ended_a_request_is_refused_for_the_next(form):
    shared = TextDecoder(BYTES, stop="X")
    batcher = form.batcher(decode=lambda ask: shared)
    assert await form.rest(form.submit(batcher, Ask("aX"))) == ["a"]
    with pytest.raises(ValueError, match="what decode returns must be new for each stream"):
        form.submit(batcher, Ask("aX"))


@every_batcher
async def test_logprobs_stay_with_the_text_of_their_tokens(form):
    ask = Ask([(97, -0.1), (0xC3, -0.2), (0xA9, -0.3)])
    batcher = form.batcher(decode=lambda ask: PieceDecoder(TextDecoder(BYTES)))
    pieces = await form.rest(form.submit(batcher, ask))
    assert [(piece.text, len(piece.outputs)) for piece in pieces] == [("a", 1), ("é", 2)]


@every_batcher
async def test_a_model_of_text_needs_stop_strings_alone(form):
    batcher = form.batcher(decode=lambda ask: StopStrings("STOP"))
    assert await form.rest(form.submit(batcher, Ask(["so S", "TOP", "x"]))) == ["so "]


def test_a_decorated_function_takes_it_too():
    @batched(max_batch_size=2, decode=decode)
    def model(asks):
        for step in range(max(map(len, asks)) + 1):
            yield [ask[step] if step < len(ask) else None for ask in asks]

    assert list(model.stream(Ask("abXc", "X"))) == ["a", "b"]
    model.close()


def test_a_map_returns_texts():
    with DynamicBatcher(
        lambda asks: iter([[97 for _ in asks]]), max_batch_size=2, decode=decode
    ) as it:
        assert list(it.map([Ask("a"), Ask("a")])) == [["a"], ["a"]]


def test_the_model_may_be_asynchronous():
    async def model(asks):
        for token in b"aXb":
            yield [token for _ in asks]

    async def main():
        async with DynamicBatcher(model, max_batch_size=1, decode=decode) as batcher:
            return [text async for text in batcher.astream(Ask("", "X"))]

    assert asyncio.run(main()) == ["a"]


class Tokenizer:
    """Has what tells a tokenizer of `tokenizers` from other objects that decode."""

    def decode(self, ids):
        return "".join(map(self.id_to_token, ids))

    def id_to_token(self, token):
        return chr(token)


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        (TextDecoder(BYTES), "a decoder is for one stream, so pass lambda request"),
        (Tokenizer().decode, "of a tokenizer: pass lambda request: TextDecoder"),
        (3, "decode takes a function of one request that returns a decoder, got 3"),
    ],
)
@pytest.mark.parametrize("kind", [DynamicBatcher, ContinuousBatcher])
def test_what_makes_no_decoders_is_refused_when_the_batcher_is_made(kind, decode, says):
    with pytest.raises(TypeError, match=says):
        kind(lambda *_: None, max_batch_size=1, decode=decode)


def test_a_function_of_results_has_no_tokens_to_decode():
    with pytest.raises(TypeError, match="decode and single exclude each other"):
        DynamicBatcher(lambda asks: asks, max_batch_size=1, single=True, decode=decode)
