"""What an output becomes on a line: JSON, whatever it is, or an error that says what to do."""

import enum
import json
import math
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from itertools import count

import numpy as np
import pytest
from pydantic import BaseModel
from pydantic.dataclasses import dataclass as pydantic_dataclass

from batchstream.integrations.starlette import _json
from batchstream.integrations.starlette._json import to_json


class Color(enum.Enum):
    RED = "red"


class Token(BaseModel):
    text: str
    score: object


@dataclass(slots=True)
class Pair:
    left: object
    right: object


@pydantic_dataclass
class Checked:
    number: int


@dataclass
class Opaque:
    def __eq__(self, other):
        raise AssertionError

    def __bool__(self):
        raise AssertionError

    __hash__ = __bool__


TOKEN = {"text": "so", "score": 2}
WITHOUT_PYDANTIC = [
    (np.float32(0.5), 0.5),
    (np.float64(0.5), 0.5),
    (np.int64(7), 7),
    (np.bool_(True), True),
    (np.str_("so"), "so"),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (np.datetime64("2026-01-02"), "2026-01-02"),
    (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00"),
    (date(2026, 1, 2), "2026-01-02"),
    (time(3, 4), "03:04:00"),
    (Pair(np.int8(1), [date(2026, 1, 2)]), {"left": 1, "right": ["2026-01-02"]}),
    ({"logits": np.arange(2), "at": date(2026, 1, 2)}, {"logits": [0, 1], "at": "2026-01-02"}),
    (Opaque(), {}),
]
WITH_PYDANTIC = [
    (Token(text="so", score=1), {"text": "so", "score": 1}),
    ([Token(text="so", score=np.float32(0.5))], [{"text": "so", "score": 0.5}]),
    (
        Pair(Token(text="so", score=None), Color.RED),
        {"left": {"text": "so", "score": None}, "right": "red"},
    ),
    (Checked(3), {"number": 3}),
    (Color.RED, "red"),
    (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    ({np.int64(1)}, [1]),
    (b"so", "so"),
]


@pytest.mark.parametrize(
    ("value", "expected"), WITHOUT_PYDANTIC + WITH_PYDANTIC, ids=map(str, count())
)
def test_every_kind_of_output_is_written_as_what_it_is(value, expected):
    assert json.loads(to_json(value)) == expected


@pytest.mark.parametrize(("value", "expected"), WITHOUT_PYDANTIC, ids=map(str, count()))
def test_arrays_dates_and_dataclasses_need_no_pydantic(value, expected, monkeypatch):
    monkeypatch.setattr(_json, "to_jsonable_python", None)
    assert json.loads(to_json(value)) == expected


def test_what_only_pydantic_knows_names_it_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(_json, "to_jsonable_python", None)
    with pytest.raises(
        TypeError, match=r"Color cannot be written as JSON: install pydantic, .* or pass encode="
    ):
        to_json(Color.RED)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: [x], lambda x: Pair(x, 1), lambda x: {x}],
    ids=["itself", "in a list", "in a dataclass", "in a set"],
)
def test_what_nothing_knows_is_refused_and_not_taken_apart(wrap):
    class Secret:
        def __init__(self):
            self.key = "not for clients"

    with pytest.raises(
        TypeError, match="Secret cannot be written as JSON: pass encode=, a function"
    ):
        to_json(wrap(Secret()))


@pytest.mark.parametrize(
    "value", [math.nan, np.float32("inf"), {(1, 2): 3}, {"a": [math.inf]}], ids=repr
)
def test_what_json_refuses_says_what_to_pass(value):
    with pytest.raises((TypeError, ValueError)) as caught:
        to_json(value)
    assert any("encode=" in note for note in caught.value.__notes__)


def test_no_character_ends_a_line():
    everything = "".join(map(chr, range(0x3000)))
    [line] = to_json({everything: everything}).splitlines()
    assert json.loads(line) == {everything: everything}


def test_most_characters_are_written_as_they_are():
    assert to_json("zwölf 😀") == '"zwölf 😀"'


def test_half_a_character_can_be_sent():
    text = "\ud83d and 😀"
    assert json.loads(to_json(text).encode()) == text


def test_a_class_is_no_object_of_it():
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        to_json(Pair)
