"""Text out of token ids: whole characters only, and all together what `decode` shows."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchstream.text import Detokenizer
from support.texts import BYTES, END, TRAINED, OnlyDecodes, byte_token, needs_tokenizers

every_tokenizer = pytest.mark.parametrize("name", TRAINED)
both_ways = pytest.mark.parametrize("way", [lambda it: it, OnlyDecodes], ids=["Rust", "decode"])

TEXTS = st.text(
    alphabet=st.sampled_from("the stop.\nUsr:'é日本👍👩\u200d👧\u0301\ufffd "), max_size=30
)


def ids_of(tokenizer):
    return st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=24)


def decoded(tokenizer, ids, **options):
    """Return the text of ids that come one by one, and what the pieces were."""
    detokenizer = Detokenizer(tokenizer, **options)
    pieces = [detokenizer.feed(token) for token in ids]
    return "".join(pieces) + detokenizer.finish(), pieces


def shown_by_runs(tokenizer, ids):
    """Return what metaspace ids mean if a character that was complete stays, whatever follows it.

    `decode` shows a U+FFFD for each byte of a run of bytes that is no UTF-8 as a whole.
    """
    text, run = "", b""
    names = [tokenizer.id_to_token(token) for token in ids]
    byte_of = {byte_token(byte): byte for byte in range(256)}
    for name in [*names, ""]:
        if name in byte_of:
            run += bytes([byte_of[name]])
            shown = bytes_shown(run)
            given = (text + shown).removeprefix(" ")  # the first space is dropped
            if given and not shown.endswith("\ufffd"):
                text, run = text + shown, b""
        elif name not in {"<unk>", "<s>", "</s>", "<|im_end|>"}:
            text, run = text + bytes_shown(run) + name.replace("▁", " "), b""
    return text.removeprefix(" ")


def bytes_shown(run):
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


# ---- equal to the whole


@needs_tokenizers
@every_tokenizer
@both_ways
@given(text=TEXTS)
def test_a_text_comes_back_as_decode_shows_it(name, way, text):
    tokenizer = TRAINED[name]()
    ids = tokenizer.encode(text).ids
    assert decoded(way(tokenizer), ids)[0] == tokenizer.decode(ids)


@needs_tokenizers
@pytest.mark.parametrize("name", ["byte level", "word piece"])
@both_ways
@given(data=st.data(), skip=st.booleans())
def test_any_ids_give_the_text_that_decode_gives_for_all_of_them(name, way, data, skip):
    tokenizer = TRAINED[name]()
    ids = data.draw(ids_of(tokenizer))
    text, pieces = decoded(way(tokenizer), ids, skip_special_tokens=skip)
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)
    assert not [piece for piece in pieces if piece.endswith("\ufffd")]


@needs_tokenizers
@both_ways
@given(data=st.data())
def test_with_byte_fallback_a_character_that_was_complete_stays(way, data):
    tokenizer = TRAINED["metaspace"]()
    byte = st.sampled_from([0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xFF, 0x41, 0x20])
    byte_ids = byte.map(lambda it: tokenizer.token_to_id(byte_token(it)))
    one_id = st.one_of(st.integers(0, tokenizer.get_vocab_size() - 1), byte_ids, byte_ids)
    ids = data.draw(st.lists(one_id, max_size=16))
    assert decoded(way(tokenizer), ids)[0] == shown_by_runs(tokenizer, ids)


@needs_tokenizers
@both_ways
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (b"\x00 \x80", "\x00 \ufffd"),
        (b"A  \x80\x80", "A  \ufffd\ufffd"),
        (b" \x80", "\ufffd\ufffd"),  # the first space is dropped, so nothing was given
        (b"A " + b"\x80" * 100, "A " + "\ufffd" * 100),
        (b"A  B\xc3\xa9 \xc3", "A  B\xe9 \ufffd"),
        (b"\x80" * 60 + b"ABCD \x80", "\ufffd" * 60 + "ABCD \ufffd"),
    ],
)
def test_a_space_of_a_byte_token_that_was_given_does_not_come_again(way, given, shown):
    tokenizer = TRAINED["metaspace"]()
    ids = [tokenizer.token_to_id(byte_token(byte)) for byte in given]
    assert decoded(way(tokenizer), ids)[0] == shown


@given(data=st.lists(st.one_of(st.integers(0, 257), st.sampled_from(list("é👍".encode())))))
def test_a_tokenizer_needs_nothing_but_decode(data):
    assert decoded(BYTES, data)[0] == BYTES.decode(data, skip_special_tokens=True)


@needs_tokenizers
@every_tokenizer
@given(prompt=TEXTS, text=TEXTS, cut=st.integers(0, 8))
def test_the_cuts_of_the_ids_make_no_difference(name, prompt, text, cut):
    tokenizer = TRAINED[name]()
    ids, prompt_ids = tokenizer.encode(text).ids, tokenizer.encode(prompt).ids
    detokenizer = Detokenizer(tokenizer, prompt_ids=prompt_ids)
    at_once = detokenizer.feed(*ids[:cut]) + detokenizer.feed(*ids[cut:]) + detokenizer.finish()
    assert at_once == decoded(tokenizer, ids, prompt_ids=prompt_ids)[0]


# ---- behind a prompt


@needs_tokenizers
@every_tokenizer
@both_ways
@given(prompt=TEXTS, text=TEXTS)
def test_the_text_goes_on_from_the_prompt(name, way, prompt, text):
    tokenizer = TRAINED[name]()
    prompt_ids, ids = tokenizer.encode(prompt).ids, tokenizer.encode(text).ids
    before, whole = tokenizer.decode(prompt_ids), tokenizer.decode(prompt_ids + ids)
    assert whole.startswith(before)
    text, _ = decoded(way(tokenizer), ids, prompt_ids=prompt_ids)
    assert text == whole.removeprefix(before)


@needs_tokenizers
@both_ways
def test_the_space_in_front_of_the_first_word_is_kept_behind_a_prompt(way):
    tokenizer = TRAINED["metaspace"]()
    prompt, ids = tokenizer.encode("the quick").ids, tokenizer.encode("brown fox").ids
    assert decoded(way(tokenizer), ids)[0] == "brown fox"
    assert decoded(way(tokenizer), ids, prompt_ids=prompt)[0] == " brown fox"


@both_ways
def test_a_prompt_that_stops_in_a_character_gives_no_text(way):
    prompt = [65, *"👍".encode()[:2]]
    assert decoded(way(BYTES), b"ab", prompt_ids=prompt) == ("ab", ["a", "b"])


@needs_tokenizers
@both_ways
def test_the_same_with_a_tokenizer_of_bytes_in_rust(way):
    tokenizer = TRAINED["byte level"]()
    prompt = tokenizer.encode("a👩").ids[:-1]
    assert tokenizer.decode(prompt).endswith("\ufffd")
    assert decoded(way(tokenizer), tokenizer.encode("the").ids, prompt_ids=prompt)[0] == "the"


# ---- characters


def test_a_character_comes_with_its_last_byte():
    assert decoded(BYTES, "a👍é".encode()) == ("a👍é", ["a", "", "", "", "👍", "", "é"])


def test_a_character_that_was_cut_off_comes_at_the_end_as_the_tokenizer_shows_it():
    assert decoded(BYTES, "a👍".encode()[:-1]) == ("a\ufffd", ["a", "", "", ""])


class Fallback:
    """Shows a run of bytes as UTF-8 if it is that as a whole; what is no byte is a word."""

    def decode(self, ids):
        text, run = "", b""
        for token in [*ids, None]:
            if token is not None and token < 256:
                run += bytes([token])
            else:
                text, run = text + bytes_shown(run) + (" word" if token else ""), b""
        return text


def test_a_character_stays_that_a_byte_behind_it_would_take_back():
    ids = [*"é".encode(), 0xA9, 256, *"é".encode()]
    assert decoded(Fallback(), ids) == ("é\ufffd wordé", ["", "é", "", "\ufffd word", "", "é"])


@needs_tokenizers
@both_ways
def test_a_byte_that_spoils_a_character_before_does_not_silence_the_stream(way):
    """`DecodeStream` raises "Invalid prefix" at each token from there on."""
    tokenizer = TRAINED["metaspace"]()
    ids = [tokenizer.token_to_id(byte_token(byte)) for byte in (0xC3, 0xA9, 0xA9)]
    ids += tokenizer.encode("hello there").ids
    assert decoded(way(tokenizer), ids)[0] == "é\ufffd hello there"


@needs_tokenizers
@both_ways
def test_a_long_run_of_bytes_is_decoded_in_parts(way):
    """`decode` shows U+FFFD for all bytes of the run."""
    tokenizer = TRAINED["metaspace"]()
    ids = [tokenizer.token_to_id(byte_token(byte)) for byte in [0xFF] * 60 + list("abé".encode())]
    assert decoded(way(tokenizer), ids)[0] == "\ufffd" * 60 + "abé"


@needs_tokenizers
@every_tokenizer
@both_ways
def test_special_tokens_are_skipped_or_shown(name, way):
    tokenizer = TRAINED[name]()
    ids = [*tokenizer.encode("the").ids, tokenizer.token_to_id("</s>")]
    assert decoded(way(tokenizer), ids)[0] == "the"
    shown, _ = decoded(way(tokenizer), ids, skip_special_tokens=False)
    assert shown == tokenizer.decode(ids, skip_special_tokens=False) != "the"


# ---- for ever


class Measured:
    """Records how many ids it was given at most."""

    def __init__(self, tokenizer):
        self.most = 0
        self._tokenizer = tokenizer

    def decode(self, ids, skip_special_tokens=False):
        self.most = max(self.most, len(ids))
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)


def test_bytes_that_complete_no_character_do_not_pile_up():
    tokenizer = Measured(BYTES)
    ids = [0xFF] * 1000 + list("👍".encode())
    text, pieces = decoded(tokenizer, ids)
    assert text == BYTES.decode(ids)
    assert pieces[-1].endswith("👍")
    assert tokenizer.most < 100


def test_special_tokens_that_are_skipped_do_not_pile_up():
    tokenizer = Measured(BYTES)
    assert decoded(tokenizer, [97, *[END] * 1000, 98])[0] == "ab"
    assert tokenizer.most < 100


@needs_tokenizers
@every_tokenizer
@both_ways
def test_the_same_with_each_tokenizer_and_the_text_goes_on_as_before(name, way):
    tokenizer = TRAINED[name]()
    special = [tokenizer.token_to_id("</s>")] * 500
    ids = [*tokenizer.encode("hello").ids, *special, *tokenizer.encode("there").ids]
    assert decoded(way(tokenizer), ids)[0] == tokenizer.decode(ids)
    if name != "word piece":
        byte = (
            "\u0122" if name == "byte level" else byte_token(0xFF)
        )  # 0x80, as it is written there
        junk = [tokenizer.token_to_id(byte)] * 500
        ids = [*junk, *tokenizer.encode("there").ids]
        assert decoded(way(tokenizer), ids)[0] == tokenizer.decode(ids)


# ---- arguments


class Index:
    def __index__(self):
        return 97


def test_a_token_may_be_any_whole_number():
    assert Detokenizer(BYTES).feed(Index(), 98) == "ab"
    assert Detokenizer(BYTES, prompt_ids=Array([97, 98])).feed(99) == "c"


class Array:
    """Has of an array what is looked at."""

    def __init__(self, elements):
        self._elements = elements

    def tolist(self):
        return self._elements


@pytest.mark.parametrize("token", ["a", 1.5, None, (97, -0.5)])
def test_what_is_no_token_is_refused(token):
    with pytest.raises(TypeError):
        Detokenizer(BYTES).feed(token)


@pytest.mark.parametrize("prompt_ids", ["the prompt", [[1, 2]], Array([[1, 2]]), 3, None])
def test_what_are_no_ids_of_a_prompt_is_refused(prompt_ids):
    with pytest.raises(TypeError, match="prompt_ids takes the token ids of one prompt"):
        Detokenizer(BYTES, prompt_ids=prompt_ids)


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(TypeError, match="tokenizer takes an object with a method decode, got None"):
        Detokenizer(None)


def test_a_decode_without_the_option_is_called_without_it():
    class Plain:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    class InC:
        decode = staticmethod(operator.methodcaller("__len__"))

    assert decoded(Plain(), "é".encode())[0] == "é"
    with pytest.raises(AttributeError):
        Detokenizer(InC()).feed(97)


def test_what_the_tokenizer_raises_is_raised():
    class Refuses:
        def decode(self, ids):
            raise LookupError("no such id")

    with pytest.raises(LookupError, match="no such id"):
        Detokenizer(Refuses()).feed(1)
