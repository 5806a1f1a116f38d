"""What went wrong with stop strings elsewhere, as published; each with the text that showed it."""

from __future__ import annotations

import pytest

from batchstream import FinishReason, Last, Many, demux
from batchstream.text import StopStrings, TextDecoder, decode_steps
from support.texts import BYTES, END


class Vocabulary:
    """A tokenizer whose tokens are these texts."""

    def __init__(self, *tokens):
        self._tokens = tokens

    def decode(self, ids):
        return "".join(self._tokens[token] for token in ids)


def streamed(tokens, stop, *, many=False, **options):
    """Return the outputs and the end of a stream of one token, or all of them, in each step."""
    ids = list(range(len(tokens)))
    steps = [[Many(ids)]] if many else [[token] for token in ids]
    decoder = TextDecoder(Vocabulary(*tokens), stop=stop)
    [stream] = demux(decode_steps(steps, [decoder], **options))
    return list(stream), stream.end


@pytest.mark.parametrize(
    ("tokens", "stop"),
    [
        pytest.param(["to", " Paris", "."], "Pari", id="TGI #1039: in the middle of a token"),
        pytest.param(["to", " j;", "x"], ";", id="TGI #10: at the end of a longer token"),
        pytest.param(["to", " a\n", "\nb"], "\n\n", id="mlx-examples #524: across two tokens"),
    ],
)
def test_a_stop_string_is_found_wherever_it_lies_in_the_tokens(tokens, stop):
    outputs, end = streamed(tokens, stop)
    assert "".join(outputs) == "".join(tokens).partition(stop)[0]
    assert (end.reason, end.info["stop"]) == (FinishReason.EOS, stop)


@pytest.mark.parametrize(
    ("tokens", "stop", "outputs"),
    [
        pytest.param(
            ["ABC", "DEF", "G", "HI", "J"], "DEFGHIJ", ["ABC"], id="vLLM #3574: sent until the last"
        ),
        pytest.param(
            ["hello", ".", " st", "op", " here"], " stop", ["hello", "."], id="TGI #1254: a half"
        ),
        pytest.param(["ok", "\nUs", "er", ":"], "\nUser:", ["ok"], id="TextStreamer"),
    ],
)
def test_no_part_of_a_stop_string_is_sent(tokens, stop, outputs):
    assert streamed(tokens, stop)[0] == outputs


def test_of_two_stop_strings_the_order_of_the_list_says_nothing():
    """vLLM takes the first of the list; candle #3811 asks for the earliest."""
    for stops in (["world", "lo w"], ["lo w", "world"]):
        outputs, end = streamed(["hel", "lo world"], stops)
        assert ("".join(outputs), end.info["stop"]) == ("hel", "lo w")


@pytest.mark.parametrize("many", [False, True], ids=["one by one", "SGLang #23802: at once"])
def test_a_stop_string_in_the_midst_of_many_tokens_is_found_and_the_rest_is_dropped(many):
    """Speculative decoding; of vLLM #47616, tokens behind it were counted and sent."""
    outputs, end = streamed(["a", " b", "STOP", " c", " d"], "STOP", many=many)
    assert ("".join(outputs), end.info["completion_tokens"]) == ("a b", 3)


def test_there_are_no_empty_outputs():
    """vLLM #11089, #13087: a client was sent "" while the text was held back."""
    outputs, _ = streamed(["S", "T", "x", "", "S", "T", "OP"], "STOP")
    assert outputs == ["STx"]


def test_a_tail_that_may_be_a_stop_string_is_neither_lost_nor_sent_twice():
    """llama.cpp #9867, #10997, #13785."""
    for tokens, max_outputs in ((["a", "ST"], None), (["a", "ST", "OP"], 2)):
        outputs, end = streamed(tokens, "STOP", max_outputs=max_outputs)
        assert outputs == ["a", "ST"]
        assert end.info["stop"] is None


def test_a_last_output_with_its_end_is_followed_by_what_it_held_back():
    [stream] = demux(decode_steps([[Last(97)]], [TextDecoder(BYTES, stop="ab")]))
    assert (list(stream), stream.finish_reason) == (["a"], FinishReason.EOS)


def test_a_stop_string_that_is_a_control_token_is_found():
    """llama.cpp #6772: it never shows in the text."""
    decoder = TextDecoder(BYTES, stop="<|end|>")
    [stream] = demux(decode_steps([[97], [END], [98]], [decoder]))
    assert (list(stream), stream.end.info["stop"]) == (["a"], "<|end|>")


def test_no_more_is_held_back_than_may_be_a_stop_string():
    """smg #2203 withholds as many characters as the longest has; vLLM does so as well."""
    finder = StopStrings("a very long stop string", "STOP")
    assert finder.feed("nothing to hold back. S") == "nothing to hold back. "
    assert finder.feed("o") == "So"


def test_a_stop_string_in_the_last_token_that_is_allowed_is_why_the_stream_ended():
    """candle #3811: a stop comes before the limit."""
    outputs, end = streamed(["a", "STOP"], "STOP", max_outputs=2)
    assert (outputs, end.reason, end.info["stop"]) == (["a"], FinishReason.EOS, "STOP")


def test_text_that_a_later_token_would_change_does_not_repeat_or_lose_any():
    """candle #3811: decoders rewrite what they showed before."""

    class Rewrites:
        def decode(self, ids):
            return "".join("ab"[token] for token in ids) if ids != [0, 1] else "x!"

    decoder = TextDecoder(Rewrites())
    assert [decoder.feed(token) for token in (0, 1, 0)] == ["a", "b", "a"]
