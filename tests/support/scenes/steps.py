"""Scenes with steps that are not what they seem, and with predicates."""

from __future__ import annotations

import collections.abc

import numpy as np

from batchstream import (
    EOS,
    BatchedStream,
    Last,
    Many,
    demux,
)
from support.scenes.stage import (
    ERRORS,
    USES,
    kind,
    outcome,
    read_all,
    say,
    scene,
    used,
)


class Array:
    """What looks like an array. Each use of it takes the next of the given behaviours."""

    def __init__(self, dimensions, *lists):
        self._dimensions = dimensions
        self._lists = list(lists)

    def __repr__(self):
        return "an array"

    @property
    def ndim(self):
        if isinstance(self._dimensions, BaseException):
            raise self._dimensions
        return self._dimensions

    def tolist(self):
        found = self._lists[0] if len(self._lists) == 1 else self._lists.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found


class Rows(Array):
    def __iter__(self):
        return iter(["row 0", "row 1"])


class Number(int):
    """A number of a class of its own, which claims to be equal to all."""

    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class List(list):
    pass


ARRAYS = {
    "plain": lambda: Array(1, ["a", "b"]),
    "a tuple": lambda: Array(1, ("a", "b")),
    "a list of a class of its own": lambda: Array(1, List(["a", "b"])),
    "a marker": lambda: Array(1, ["a", Last("b")]),
    "another width": lambda: Array(1, ["a"]),
    "a number": lambda: Array(1, 5),
    "a text": lambda: Array(1, "ab"),
    "a dict": lambda: Array(1, {0: "a", 1: "b"}),
    "a dict of another width": lambda: Array(1, {0: "a", 1: "b", 2: "c"}),
    "a set": lambda: Array(1, {7}),
    "nothing": lambda: Array(1, None),
    "an error": lambda: Array(1, ValueError("tolist")),
    "a stop": lambda: Array(1, StopIteration("tolist")),
    "an interrupt": lambda: Array(1, KeyboardInterrupt("tolist")),
    "another width, then right": lambda: Array(1, ["a"], ["a", "b"], ["a", "b"]),
    "no dimensions": lambda: Array(ValueError("ndim")),
    "a dimension that interrupts": lambda: Array(KeyboardInterrupt("ndim"), ["a", "b"]),
    "dimensions that are true": lambda: Array(True, ["a", "b"]),
    "no dimension": lambda: Array(0, ["a", "b"]),
    "too many dimensions": lambda: Array(2**70, ["a", "b"]),
    "a negative dimension": lambda: Array(-1, ["a", "b"]),
    "dimensions of a class of their own": lambda: Array(Number(1), ["a", "b"]),
    "a text as dimensions": lambda: Array("1", ["a", "b"]),
    "rows": lambda: Rows(2, ["a", "b"]),
    "a row": lambda: Rows(1, ["a", "b"]),
}


@scene
def arrays_that_are_none():
    for before in ("nothing", "plain"):
        for name, make in ARRAYS.items():
            known = [ARRAYS["plain"]()] * 2 if before == "plain" else []
            streams = demux([*known, make(), make(), make()], 2)
            say(before, name, [outcome(next, streams[0]) for _ in range(7)])
            read_all(streams)


class Lying(collections.abc.Sequence):
    """A sequence whose length is another at each look."""

    def __init__(self, *lengths):
        self.lengths = list(lengths)

    def __len__(self):
        length = self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]
        if isinstance(length, BaseException):
            raise length
        return length

    def __getitem__(self, index):
        if index >= 2:
            raise IndexError
        return f"element {index}"


class LyingList(list):
    def __len__(self):
        return 7

    def __iter__(self):
        return iter(["one", "two"])


class LyingDict(dict):
    def items(self):
        return [(0, "zero"), (1, "one")]


@scene
def sequences_that_lie():
    steps = {
        "longer": lambda: Lying(9),
        "shorter": lambda: Lying(0),
        "negative": lambda: Lying(-1),
        "huge": lambda: Lying(2**70),
        "an error": lambda: Lying(ValueError("length")),
        "longer, then right": lambda: Lying(9, 2),
        "a list": lambda: LyingList(["a", "b"]),
        "a dict": lambda: LyingDict({5: "five"}),
    }
    for name, make in steps.items():
        streams = demux([make(), make()], 2)
        say(name, [kind(next, streams[0]) for _ in range(3)])


class Key:
    """A key of a step that is a number, or refuses to be one."""

    def __init__(self, number, hashed=None):
        self.number = number
        self.hashed = number if hashed is None else hashed

    def __hash__(self):
        return self.hashed

    def __eq__(self, other):
        if isinstance(self.number, BaseException):
            raise self.number
        return self is other

    def __index__(self):
        if isinstance(self.number, BaseException):
            raise self.number
        return self.number

    def __repr__(self):
        return "a key"


class NumberKey(int):
    """A number of a class of its own, that is equal to none."""

    def __eq__(self, other):
        return False

    def __hash__(self):
        return 0


@scene
def keys_that_do_anything():
    steps = {
        "numbers by method": lambda: {Key(0): "a", Key(1): "b"},
        "one by method": lambda: {0: "a", Key(1): "b"},
        "the same slot twice": lambda: {0: "a", Key(0): "A", 1: "b"},
        "too large": lambda: {0: "a", Key(2**70): "b"},
        "negative": lambda: {0: "a", Key(-1): "b"},
        "an error": lambda: {0: "a", Key(ValueError("key"), 5): "b"},
        "all of one hash": lambda: {Key(0, 0): "a", Key(1, 0): "b", NumberKey(5): "c"},
        "a class of its own": lambda: {NumberKey(0): "a", NumberKey(1): "b"},
        "the same slot twice by class": lambda: {NumberKey(0): "a", 0: "b"},
        "true": lambda: {0: "a", True: "b"},
        "numpy": lambda: {np.int8(0): "a", np.uint64(1): "b"},
        "numpy and plain": lambda: {0: "a", np.int64(1): "b"},
        "floats": lambda: {0.0: "a", 1.0: "b"},
        "mixed": lambda: {0: "a", "1": "b"},
    }
    for name, make in steps.items():
        streams = demux([["x", "y"], make(), make()], 2)
        say(name, [outcome(next, streams[0]) for _ in range(4)])
        read_all(streams)


@scene
def steps_that_change_while_is_eos_runs():
    changes = {
        "cleared": lambda step: step.clear(),
        "with more": lambda step: step.extend("xyz") if type(step) is list else step.update({9: 9}),
        "with less": lambda step: step.pop(2),
        "with others": lambda step: [step.__setitem__(n, f"other {n}") for n in range(3)],
        "with a marker": lambda step: step.__setitem__(2, EOS),
    }
    elements = {
        "outputs": ["a", "b", "c"],
        "a marker": ["a", "b", Last("c")],
        "many": [Many(["a", "A"]), "b", "c"],
    }
    for what, row in elements.items():
        for name, change in changes.items():
            for make in (list, lambda row: dict(enumerate(row))):
                step = make(row)

                def is_eos(output, step=step, change=change):
                    if output in {"a", "b"} and len(step) == 3:
                        change(step)
                    return False

                batch = BatchedStream([step], 3, is_eos=is_eos)
                say(what, type(step).__name__, name, [outcome(next, batch[0]) for _ in range(2)])
                read_all(batch)
                say(batch.statistics())


@scene
def a_predicate_that_uses_the_batch():
    for name, use in USES.items():
        uses = [use]

        def is_eos(output, uses=uses):
            if output == "b2" and uses:
                say(outcome(uses.pop()))
            return False

        steps = [[f"{name}{number}" for name in "abc"] for number in (1, 2, 3)]
        used.clear()
        used.append(BatchedStream(steps, 3, is_eos=is_eos))
        used.extend(used[0])
        say(name, [outcome(next, used[1]) for _ in range(3)])
        read_all(used[1:])
        used.clear()


@scene
def a_predicate_that_returns_or_raises_anything():
    class NoTruth:
        def __bool__(self):
            raise ValueError("no truth")

    class WrongTruth:
        def __bool__(self):
            return 5  # noqa: PLE0304 - on purpose

    class Length:
        def __len__(self):
            return 1

    def raising(error):
        def is_eos(output):
            if output == "b2":
                raise error
            return False

        return is_eos

    def returning(answer):
        return lambda output: answer if output == "b2" else None

    for answer in (NoTruth(), WrongTruth(), Length(), np.zeros(2), np.ones(1), "", "no", 0.0):
        say(type(answer).__name__)
        streams = demux([["a1", "b1"], ["a2", "b2"], ["a3", "b3"]], is_eos=returning(answer))
        read_all(streams)
    for error in ERRORS:
        streams = demux([["a1", "b1"], ["a2", "b2"], ["a3", "b3"]], 2, is_eos=raising(error))
        say(type(error).__name__, [outcome(next, streams[0]) for _ in range(3)])
        read_all(streams)
