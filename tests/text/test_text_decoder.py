"""A stream's decoder: text up to a stop string, and how many tokens that took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchstream.text import StopStrings, TextDecoder
from support.text_search import search
from support.texts import BYTES, END, TRAINED, needs_tokenizers


def read(decoder, ids):
    """Return the text of ids that come one by one."""
    return "".join(map(decoder.feed, ids)) + decoder.finish()


@needs_tokenizers
@pytest.mark.parametrize("include", [False, True])
@given(data=st.data())
def test_any_ids_cut_anywhere_give_the_text_up_to_the_stop_string(include, data):
    tokenizer = TRAINED["byte level"]()
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=20))
    whole = tokenizer.decode(ids)
    places = st.integers(0, len(whole))
    part = st.tuples(places, places).map(lambda ends: whole[min(ends) : max(ends)][:6])
    stops = data.draw(st.lists(part.filter(bool), max_size=3)) if whole else []
    decoder = TextDecoder(tokenizer, stop=stops, include_stop=include)
    text, position = "", 0
    while position < len(ids):
        count = data.draw(st.integers(1, 4))
        text += decoder.feed(*ids[position : position + count])
        position += count
    text += decoder.finish()
    assert (text, decoder.matched) == search(whole, stops, include=include)
    if decoder.matched is None:
        assert decoder.completion_tokens == len(ids)


def test_the_end_says_what_stopped_it_and_how_many_tokens_that_took():
    decoder = TextDecoder(BYTES, stop=["STOP", "\n"], prompt_ids=list(b"abc"))
    assert read(decoder, b"so STOP and on") == "so "
    assert decoder.matched == "STOP"
    assert decoder.info == {"stop": "STOP", "completion_tokens": 7, "prompt_tokens": 3}


def test_without_a_stop_string_the_end_says_none_and_without_ids_of_a_prompt_no_number():
    decoder = TextDecoder(BYTES)
    assert read(decoder, b"so") == "so"
    assert decoder.info == {"stop": None, "completion_tokens": 2}


def test_tokens_behind_the_stop_string_in_the_same_call_are_dropped_and_not_counted():
    decoder = TextDecoder(BYTES, stop="STOP")
    assert decoder.feed(*b"a STOP b") == "a "
    assert decoder.completion_tokens == 6
    assert (decoder.feed(98), decoder.finish(), decoder.completion_tokens) == ("", "", 6)


def test_text_behind_the_stop_string_in_the_same_token_is_dropped():
    class Words:
        def decode(self, ids):
            return "".join(["so be", " it. STOP", "PED"][token] for token in ids)

    assert read(TextDecoder(Words(), stop=["it"]), [0, 1, 2]) == "so be "
    assert read(TextDecoder(Words(), stop=["it"], include_stop=True), [0, 1, 2]) == "so be it"


def test_a_stop_string_that_the_last_tokens_complete_only_as_they_are_shown_stops_the_text():
    decoder = TextDecoder(BYTES, stop="\ufffd")
    assert decoder.feed(97, 0xF0) == "a"
    assert (decoder.finish(), decoder.matched) == ("", "\ufffd")


@pytest.mark.parametrize("stop", ["b", ["b"], ("b", "c"), {"b"}, iter(["b"]), StopStrings("b")])
def test_stop_is_a_text_or_several_or_what_finds_them(stop):
    assert read(TextDecoder(BYTES, stop=stop), b"abc") == "a"


@pytest.mark.parametrize("stop", [None, (), [], StopStrings()])
def test_there_may_be_no_stop_string(stop):
    assert read(TextDecoder(BYTES, stop=stop), b"abc") == "abc"


def test_an_object_of_the_callers_own_may_find_the_stop():
    class AnyDigit:
        matched = None

        def feed(self, text):
            for position, letter in enumerate(text):
                if letter.isdigit():
                    self.matched = letter
                    return text[:position]
            return text

        def finish(self):
            return ""

    decoder = TextDecoder(BYTES, stop=AnyDigit())
    assert (read(decoder, b"ab7c"), decoder.matched, decoder.stops) == ("ab", "7", None)


@pytest.mark.rule(32)
@pytest.mark.parametrize("include", [False, True])
def test_stop_strings_of_the_program_serve_any_number_of_streams(include):
    shared = StopStrings("b", include=include)
    for data in (b"ab", b"cbd"):
        decoder = TextDecoder(BYTES, stop=shared)
        whole = data.decode()
        assert read(decoder, data) == whole[: whole.index("b") + include]
        assert decoder.matched == "b"
    assert shared.matched is None
    assert read(TextDecoder(BYTES, stop=shared, include_stop=True), b"ab") == "ab"


@pytest.mark.rule(32)
def test_an_object_that_has_ended_a_text_is_refused_for_another():
    class Own(StopStrings):
        pass

    own = Own("b")
    assert read(TextDecoder(BYTES, stop=own), b"ab") == "a"
    says = r"stop must be new for each stream, got StopStrings\('b'\), which has ended one at 'b'"
    with pytest.raises(ValueError, match=says):
        TextDecoder(BYTES, stop=own)


# ---- special tokens


@pytest.mark.parametrize("several", [list, lambda stops: StopStrings(*stops)])
@pytest.mark.parametrize(("include", "text"), [(False, "hello"), (True, "hello<|end|>")])
def test_a_stop_string_that_is_a_special_token_is_found_by_its_id(include, text, several):
    decoder = TextDecoder(BYTES, stop=several(["<|end|>"]), include_stop=include)
    assert read(decoder, [*b"hello", END, *b" and on"]) == text
    assert decoder.info == {"stop": "<|end|>", "completion_tokens": 6}


def test_what_was_held_back_comes_before_a_special_token_that_stops():
    decoder = TextDecoder(BYTES, stop=["<|end|>", "STOP"])
    assert decoder.feed(*b"a ST") == "a "
    assert decoder.feed(END) == "ST"


def test_what_was_held_back_may_itself_be_the_stop_string():
    decoder = TextDecoder(BYTES, stop=["<|end|>", "\ufffd"])
    assert (decoder.feed(97, 0xF0), decoder.feed(END), decoder.matched) == ("a", "", "\ufffd")


def test_a_special_token_written_in_letters_is_found_as_well():
    assert read(TextDecoder(BYTES, stop="<|end|>"), b"a<|end|>b") == "a"


def test_where_special_tokens_are_shown_they_are_found_in_the_text():
    decoder = TextDecoder(BYTES, stop="<|end|>", skip_special_tokens=False)
    assert (read(decoder, [97, END, 98]), decoder.matched) == ("a", "<|end|>")


@needs_tokenizers
@pytest.mark.parametrize("name", TRAINED)
def test_special_tokens_of_each_tokenizer_are_found_and_others_are_not_taken_for_them(name):
    tokenizer = TRAINED[name]()
    ids = [*tokenizer.encode("hello").ids, tokenizer.token_to_id("<|im_end|>")]
    decoder = TextDecoder(tokenizer, stop=["<|im_end|>"])
    assert (read(decoder, [*ids, *ids]), decoder.matched) == ("hello", "<|im_end|>")
    decoder = TextDecoder(tokenizer, stop=["the"])  # a token, and no special one
    assert read(decoder, [*ids, *ids]) == tokenizer.decode(ids + ids)


def test_a_stop_string_that_the_tokenizer_takes_for_its_unknown_token_is_no_stop_id():
    class Slow:
        def convert_tokens_to_ids(self, token):
            return 0

        def decode(self, ids, skip_special_tokens=False):
            return "".join(
                "" if skip_special_tokens and not it else "<unk>a"[it * 5 :] for it in ids
            )

    decoder = TextDecoder(Slow(), stop="STOP")
    assert (read(decoder, [1, 0, 1]), decoder.matched) == ("aa", None)


# ---- arguments


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ((5, -0.5), r"PieceDecoder\(decoder, key=0\) for pairs"),
        ({"token": 5}, r"PieceDecoder\(decoder, key=0\) for pairs"),
        ("text", r"pass StopStrings\(\.\.\.\) as its decoder"),
        (None, "got an output of type NoneType: let the source yield token ids"),
    ],
)
def test_an_output_that_is_no_token_is_refused_with_what_to_do(output, says):
    decoder = TextDecoder(BYTES)
    with pytest.raises(TypeError, match=says):
        decoder.feed(output)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"stop": 3}, TypeError, "stop takes a text or several, got 3"),
        ({"stop": [3]}, TypeError, "a stop string must be text, got 3"),
        ({"stop": [""]}, ValueError, "a stop string must not be empty"),
        ({"prompt_ids": "text"}, TypeError, "prompt_ids takes the token ids of one prompt"),
    ],
)
def test_what_cannot_work_is_refused_when_the_decoder_is_made(arguments, error, says):
    with pytest.raises(error, match=says):
        TextDecoder(BYTES, **arguments)
