"""What a notebook shows of a delivery, and of any output: a short text, escaped and harmless."""

from __future__ import annotations

import sys

import pytest

from batchstream import Delivery, Demultiplexer, Fail, Last, Many
from batchstream._core.html import notice, short
from support.sources import OfUnhashableType, Untouchable
from support.tables import Table


class Silent:
    def __repr__(self):
        raise ValueError("no repr")


class Hostile(Silent):
    """Neither its `__repr__` nor its class can be had."""

    @property
    def __class__(self):
        raise RuntimeError


class Text(str):
    """A text that refuses all that is done to it."""

    __slots__ = ()

    def _refuse(self, *_):
        raise AssertionError("a user's text was touched")

    __len__ = __getitem__ = __iter__ = __str__ = __format__ = __add__ = replace = _refuse


class Wordy:
    def __repr__(self):
        return Text("<b>" + "long " * 1000)


def make_array():
    class array:  # noqa: N801 - what some libraries call theirs
        def _refuse(self, *_):
            raise AssertionError("an array was computed")

        __bool__ = __len__ = __iter__ = _refuse

        def __repr__(self):
            return "array(...)"

    return array()


def test_the_text_of_an_output_is_its_repr_if_that_is_short():
    for value in (1, "text", None, 1.5, b"bytes", [1, "a"], (1,), {"b": 1, "a": 2}, (), {}, []):
        assert short(value) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        "a" * 10**6,
        b"a" * 10**6,
        10**4000,
        list(range(10**5)),
        dict.fromkeys(range(10**5), "a" * 1000),
        [["a" * 1000] * 1000] * 1000,
        Wordy(),
        [Wordy()] * 9,
        type("C" * 1000, (Silent,), {})(),
    ],
    ids=["str", "bytes", "int", "list", "dict", "lists", "repr", "reprs", "type"],
)
def test_the_text_of_a_large_output_is_short_all_the_same(value):
    assert len(short(value)) <= 80


def test_outputs_that_raise_or_refuse_are_named_by_their_type():
    assert short(Hostile()) == "<Hostile, whose repr raises>"
    assert short([Hostile(), 1]) == "[<Hostile, whose repr raises>, 1]"
    digits = sys.get_int_max_str_digits() + 1
    assert short(10**digits) == "<int, whose repr raises>"
    assert short(Untouchable()).startswith("<Untouchable ")
    assert "OfUnhashableType" in short(OfUnhashableType())
    assert short({Untouchable: Untouchable()}).startswith("{<class ")
    assert short(make_array()) == "array(...)"


def test_what_a_page_cannot_hold_becomes_blank():
    assert notice("<\x00\x1b\ud800&\n>") == "<div>&lt;   &amp; &gt;</div>"


def test_a_delivery_shows_its_outputs_and_ends_by_slot():
    core = Demultiplexer(4)
    delivery = core.feed(
        ["<script>", Many([1, 2, 3, 4, 5, 6]), Fail(ValueError("<i>why")), Last(Hostile())]
    )
    table = Table.of(delivery)
    assert table.caption.startswith("Delivery")
    assert table.head == ["slot", "outputs", "end"]
    assert table.rows == [
        ["slot 0", "'<script>'", ""],
        ["slot 1", "1, 2, 3, 4 and 2 more", ""],
        ["slot 2", "", "error: ValueError: <i>why"],
        ["slot 3", "<Hostile, whose repr raises>", "eos"],
    ]
    assert table.notes == ["8 outputs, 2 ends"]


def test_a_delivery_without_outputs_or_of_very_many_slots_is_shown_too():
    assert Table.of(Delivery((), ())).notes == ["0 outputs, 0 ends"]
    table = Table.of(Demultiplexer(4096).feed([1] * 4096))
    assert len(table.rows) == 32
    assert table.notes == ["and 4,064 more slots", "4,096 outputs, 0 ends"]
