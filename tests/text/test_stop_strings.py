"""Stop strings, against a search that looks at one character after another."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchstream.text import StopStrings
from support.text_search import search
from support.texts import CASES

LETTERS = st.text(alphabet="abc", max_size=6)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4)


def longest_beginning(text, stops):
    """Return how much of the end of a text is a beginning of a stop string, but not all of it."""
    beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
    return max((len(it) for it in beginnings if text.endswith(it)), default=0)


@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS, include=st.booleans())
@example(pieces=["ab", "ac"], stops=["abab", "bac"], include=False)
@example(pieces=["aab", "aaab"], stops=["aabaaab", "aaa"], include=False)
@example(pieces=["abcab", "cabd"], stops=["abcabd"], include=True)
def test_the_cuts_make_no_difference_and_no_more_is_held_back_than_has_to_be(
    pieces, stops, include
):
    compare(pieces, stops, include=include)


def test_ten_thousand_texts_are_cut_as_if_they_came_character_by_character():
    numbers = random.Random(1)  # noqa: S311 - which texts are tried

    def text(longest):
        return "".join(numbers.choices("aaabc", k=numbers.randint(0, longest)))

    for _ in range(CASES):
        pieces = [text(4) for _ in range(numbers.randint(1, 6))]
        stops = [text(4) + numbers.choice("abc") for _ in range(numbers.randint(1, 3))]
        compare(pieces, stops, include=numbers.random() < 0.5)


def compare(pieces, stops, *, include):
    finder = StopStrings(*stops, include=include)
    seen = given_out = ""
    for piece in pieces:
        seen += piece
        given_out += finder.feed(piece)
        assert (finder.matched is not None) == (search(seen, stops, include=True)[1] is not None)
        if finder.matched is None:
            assert len(seen) - len(given_out) == longest_beginning(seen, stops)
    given_out += finder.finish()
    assert (given_out, finder.matched) == search(seen, stops, include=include)


@given(text=st.text(alphabet="ab👍é\n", max_size=30), stops=STOPS, data=st.data())
def test_what_is_let_through_is_the_same_for_any_two_ways_to_cut(text, stops, data):
    def cut():
        places = data.draw(st.lists(st.integers(0, len(text)), max_size=5).map(sorted))
        finder = StopStrings(*stops)
        pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        return "".join(map(finder.feed, pieces)) + finder.finish(), finder.matched

    assert cut() == cut()


def test_behind_a_stop_string_all_text_is_dropped():
    finder = StopStrings("STOP")
    assert finder.feed("a STOP b") == "a "
    assert finder.matched == "STOP"
    assert (finder.feed("c"), finder.feed(""), finder.finish()) == ("", "", "")


def test_without_stop_strings_all_text_is_let_through():
    finder = StopStrings()
    assert (finder.feed("a"), finder.feed("b", "c"), finder.finish()) == ("a", "bc", "")
    assert finder.matched is None


def test_several_texts_are_read_as_one():
    finder = StopStrings("bc")
    assert (finder.feed("a", "b", "c", "d"), finder.matched) == ("a", "bc")


def test_what_is_held_back_is_given_once():
    finder = StopStrings("ab")
    assert (finder.feed("a"), finder.finish(), finder.finish()) == ("", "a", "")
    assert finder.feed("b") == "b"  # the text has ended between the two


def test_each_character_of_a_long_stop_string_is_looked_at_about_once():
    """A client may send a stop string of any length, such as one that nearly repeats itself."""
    stop = "a" * 20_000 + "b"
    finder = StopStrings(stop)
    lines = 0

    def count(frame, event, _):
        nonlocal lines
        lines += event == "line" and frame.f_code.co_filename.endswith("stop_strings.py")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        texts = [finder.feed("a" * 100) for _ in range(400)]
    finally:
        sys.settrace(before)
    assert lines < 40_000 * 15
    assert "".join(texts) == "a" * 20_000
    assert finder.feed("b") == ""
    assert finder.matched == stop


def test_its_text_names_the_stop_strings():
    assert repr(StopStrings("a", "b", "a")) == "StopStrings('a', 'b')"
    assert repr(StopStrings("a", include=True)) == "StopStrings('a', include=True)"
    assert StopStrings("a", "b", "a").stops == ("a", "b")


@pytest.mark.parametrize(
    ("stops", "error", "says"),
    [
        ([""], ValueError, "a stop string must not be empty: leave it out"),
        ([3], TypeError, "a stop string must be text, got 3"),
        ([["a", "b"]], TypeError, r"got \['a', 'b'\]: pass StopStrings\(\*stops\)"),
        ([b"a"], TypeError, "a stop string must be text, got b'a'"),
    ],
)
def test_what_is_no_stop_string_is_refused(stops, error, says):
    with pytest.raises(error, match=says):
        StopStrings(*stops)
