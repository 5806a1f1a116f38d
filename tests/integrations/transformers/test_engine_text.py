"""From requests to text: the engine, a batcher, and decoders with stop strings."""

import asyncio

import pytest

from batchstream import ContinuousBatcher, FinishReason
from batchstream.integrations.transformers import Generation, TransformersEngine
from batchstream.text import DecodingEngine, PieceDecoder, TextDecoder
from support.driving import Visit, drive
from support.engine_models import alone, new
from support.tiny_models import Forwards, tiny


class Letters:
    """Each id is a letter."""

    def decode(self, ids):
        return "".join(chr(ord(" ") + number) for number in ids)


def decoder_of(request):
    return TextDecoder(Letters(), stop=request.stop_strings, prompt_ids=request.ids)


def text_of(ids, max_new_tokens):
    """Return the whole text, and a stop string of two letters in its middle."""
    tokens = [token for token, _ in alone("Llama", ids, max_new_tokens, eos=None)]
    text = Letters().decode(tokens)
    stop = text[9:11]
    assert 2 < text.index(stop) < max_new_tokens - 4
    return text, stop


def test_a_stop_string_ends_the_text_and_frees_the_slot_in_the_same_step():
    text, stop = text_of((5, 6), 16)
    other, _ = text_of((7, 8, 9), 16)
    model = new()
    with (
        Forwards(model) as forwards,
        ContinuousBatcher(
            TransformersEngine(model, eos_token_id=()), max_batch_size=2, decode=decoder_of
        ) as batcher,
    ):
        stopped = batcher.stream(Generation([5, 6], 16, stop=[stop]))
        whole = batcher.stream(Generation([7, 8, 9], 16))
        assert "".join(whole) == other
        assert "".join(stopped) == text[: text.index(stop)]
    tokens = text.index(stop) + len(stop)
    assert stopped.end.reason is FinishReason.EOS
    assert stopped.end.info == {"stop": stop, "completion_tokens": tokens, "prompt_tokens": 2}
    assert whole.end.reason is FinishReason.LENGTH
    assert whole.end.info == {"stop": None, "completion_tokens": 16, "prompt_tokens": 3}
    # The first token of each is that of its prompt.
    assert sum(forwards.rows) == tokens + 16


def test_the_slot_of_a_client_that_leaves_goes_to_the_next_one():
    text, stop = text_of((5, 6), 16)

    async def main():
        model = new()
        async with ContinuousBatcher(
            TransformersEngine(model, eos_token_id=()), max_batch_size=1, decode=decoder_of
        ) as batcher:
            leaving = batcher.astream(Generation([9, 10], 500))
            waiting = batcher.astream(Generation([5, 6], 16, stop=stop))
            assert await anext(leaving)
            leaving.cancel()
            assert "".join([piece async for piece in waiting]) == text[: text.index(stop)]
            assert waiting.end.info["stop"] == stop

    asyncio.run(main())


def test_a_decoding_engine_takes_it():
    text, stop = text_of((5, 6), 16)
    engine = DecodingEngine(TransformersEngine(tiny(), eos_token_id=()), decoder_of, slots=2)
    requests = [Generation([5, 6], 16, stop=[stop]), Generation([5, 6], 16)]
    stopped, whole = drive(engine, list(map(Visit, requests)), slots=2)
    engine.close()
    assert "".join(stopped.outputs) == text[: text.index(stop)]
    assert "".join(whole.outputs) == text


def test_pieces_of_text_keep_the_tokens_with_their_probabilities():
    expected = alone("Llama", (5, 6), 16, eos=None)

    def decode(request):
        return PieceDecoder(decoder_of(request), key=0)

    engine = TransformersEngine(tiny(), eos_token_id=())
    with ContinuousBatcher(engine, max_batch_size=2, decode=decode) as batcher:
        pieces = list(batcher.stream(Generation([5, 6], 16, logprobs=True)))
    assert "".join(piece.text for piece in pieces) == text_of((5, 6), 16)[0]
    outputs = [output for piece in pieces for output in piece.outputs]
    assert [output.id for output in outputs] == [token for token, _ in expected]
    assert [output.logprob for output in outputs] == pytest.approx(
        [logprob for _, logprob in expected], abs=1e-3
    )
