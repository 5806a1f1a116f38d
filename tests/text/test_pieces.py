"""Text together with the outputs that it was made of."""

from __future__ import annotations

import pytest

from batchstream import Last, Many, demux
from batchstream.text import Piece, PieceDecoder, TextDecoder, decode_steps
from support.texts import BYTES, END


def pairs(data):
    return [(token, -position / 10) for position, token in enumerate(data)]


def test_each_output_comes_with_the_first_text_that_follows_it():
    decoder = PieceDecoder(TextDecoder(BYTES, stop="XY"))
    given = pairs("aéXb".encode())
    pieces = [decoder.feed(output) for output in given]
    assert pieces == [
        Piece("a", tuple(given[:1])),
        None,
        Piece("é", tuple(given[1:3])),
        None,
        Piece("Xb", tuple(given[3:])),
    ]


def test_outputs_of_the_stop_string_and_behind_it_are_dropped():
    decoder = PieceDecoder(TextDecoder(BYTES, stop="XY"))
    given = pairs(b"aXYb")
    assert decoder.feed(*given) == Piece("a", tuple(given[:1]))
    assert (decoder.matched, decoder.feed((99, 0.0)), decoder.finish()) == ("XY", None, None)
    assert decoder.info == {"stop": "XY", "completion_tokens": 3}
    assert decoder.stops == ("XY",)


@pytest.mark.parametrize(
    ("stops", "data", "pieces"),
    [
        (["ab!", "bc"], b"abc", [(None), None, ("a", 1)]),
        ("aab", b"aaab", [None, None, ("a", 1), None]),
        ("aab", b"aac", [None, None, ("aac", 3)]),
        ("bc", [97, END, 98, END, 99], [("a", 1), None, None, None, None]),
        ("bc", [97, END, 98, 97], [("a", 1), None, None, ("ba", 3)]),
        ("\ufffd", [97, 0xC3, 0xC3], [("a", 1), None, None]),
        ("<|end|>", [97, END], [("a", 1), None]),
        (["ab", "<|end|>"], [97, END], [None, ("a", 1)]),
    ],
)
def test_an_output_comes_only_with_text_that_begins_before_the_stop_string(stops, data, pieces):
    decoder = PieceDecoder(TextDecoder(BYTES, stop=stops))
    given = pairs(data)
    position = 0
    for output, piece in zip(given, pieces, strict=True):
        text, count = piece or (None, 0)
        expected = Piece(text, tuple(given[position : position + count])) if piece else None
        assert decoder.feed(output) == expected
        position += count
    assert decoder.matched is None or decoder.finish() is None


def test_text_that_belongs_to_an_output_before_has_none_of_its_own():
    class Words:
        def decode(self, ids):
            return "".join(["ab S", "T", "UV"][token] for token in ids)

    decoder = PieceDecoder(TextDecoder(Words(), stop=["STOP", "TUX"]))
    given = [(0,), (1,), (2,)]
    assert [decoder.feed(output) for output in given] == [
        Piece("ab ", ((0,),)),
        None,
        Piece("STUV", ((1,), (2,))),
    ]
    decoder = PieceDecoder(TextDecoder(Words(), stop=["STX", "TUV"]))
    assert decoder.feed(*given) == Piece("ab S", ((0,),))
    decoder = PieceDecoder(TextDecoder(Words(), stop=["STX", "TUV"]))
    assert [decoder.feed(output) for output in given][-1] == Piece("S", ())


def test_of_a_decoder_that_counts_no_characters_outputs_come_with_the_text_that_follows():
    class Upper:
        matched = None
        info = {}  # noqa: RUF012 - one object

        def feed(self, token):
            return chr(token).upper() if token != 46 else ""

        def finish(self):
            return "!"

    decoder = PieceDecoder(Upper())
    given = pairs(b".a.")
    assert [decoder.feed(output) for output in given] == [None, Piece("A", tuple(given[:2])), None]
    assert decoder.finish() == Piece("!", (given[2],))


def test_with_the_stop_string_in_the_text_its_outputs_are_there_too():
    decoder = PieceDecoder(TextDecoder(BYTES, stop="XY", include_stop=True))
    given = pairs(b"aXYb")
    assert decoder.feed(*given) == Piece("aXY", tuple(given[:3]))


def test_the_end_brings_what_is_held_back_and_outputs_without_text():
    decoder = PieceDecoder(TextDecoder(BYTES, stop="XY"))
    given = pairs(b"X")
    assert (decoder.feed(*given), decoder.finish()) == (None, Piece("X", tuple(given)))
    decoder = PieceDecoder(TextDecoder(BYTES))
    assert (decoder.feed((END, -0.5)), decoder.finish()) == (None, Piece("", ((END, -0.5),)))
    assert PieceDecoder(TextDecoder(BYTES)).finish() is None


@pytest.mark.parametrize(
    ("key", "output"), [(1, (0, 97)), ("id", {"id": 97}), (lambda it: it[0][0], [[97]])]
)
def test_the_key_says_where_the_token_is(key, output):
    assert PieceDecoder(TextDecoder(BYTES), key=key).feed(output) == Piece("a", (output,))


@pytest.mark.parametrize("output", [97, (), None])
def test_an_output_without_the_key_is_refused_with_what_to_do(output):
    with pytest.raises(TypeError, match=r"finds no token id in an output of type .* with key=0"):
        PieceDecoder(TextDecoder(BYTES)).feed(output)


def test_the_last_output_of_a_stream_and_what_it_holds_back_are_two_pieces():
    decoder = PieceDecoder(TextDecoder(BYTES, stop="bc"))
    steps = [[(97, -0.1)], [Many([(97, -0.2), Last((98, -0.3))])]]
    [stream] = demux(decode_steps(steps, [decoder]))
    assert [piece.text for piece in stream] == ["a", "a", "b"]
    assert stream.finish_reason == "eos"
    assert stream.end.info == {"stop": None, "completion_tokens": 3}


def test_what_is_no_decoder_is_refused():
    with pytest.raises(TypeError, match="decoder must have the methods feed and finish"):
        PieceDecoder(BYTES)


def test_a_stream_of_pieces_joins_the_outputs_of_one_step():
    steps = [[(97, -0.1)], [(0xC3, -0.2)], [(0xA9, -0.3)], [(0xC3, -0.4)]]
    [stream] = demux(decode_steps(steps, [PieceDecoder(TextDecoder(BYTES))]))
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == "aé\ufffd"
    assert [output for piece in pieces for output in piece.outputs] == [step[0] for step in steps]
