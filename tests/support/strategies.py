"""What batches can look like: scripts of elements per slot, and the steps they make up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from batchstream import EOS, SKIP, End, Fail, FinishReason, Last, Many
from support.sources import Untouchable

SENTINEL = object()
PAD = "<pad>"


def outputs(*, none=False):
    """Outputs of every kind: none of them may be touched on its way through."""
    kinds = [
        st.integers(),
        st.text(max_size=3),
        st.floats(allow_nan=True),
        st.booleans(),
        st.builds(Untouchable),
        st.sampled_from([StopIteration, StopIteration(), ValueError("data"), type, int]),
        st.builds(np.zeros, st.integers(0, 3)),
        st.lists(st.integers(), max_size=2),
        st.just({}),
    ]
    if none:
        kinds.append(st.none())
    return st.one_of(kinds)


@dataclass
class Slot:
    """One slot's elements, step by step, and what its stream has to give."""

    elements: list[Any]
    outputs: list[Any]
    reason: FinishReason
    ends_at: int | None
    """The step that ends it; None where only the end of the source does."""
    steps_of_outputs: list[int]
    error: BaseException | None = None
    info: Any = None


def reference(elements, eos):
    """Say what a stream gives for these elements, in the plainest way there is."""
    given, steps = [], []
    for step, element in enumerate(elements):
        for part in element.outputs if type(element) is Many else [element]:
            if part is eos or part is EOS:
                return Slot(elements, given, FinishReason.EOS, step, steps)
            if type(part) is End:
                return Slot(elements, given, part.reason, step, steps, info=part.info)
            if type(part) is Fail:
                return Slot(elements, given, FinishReason.ERROR, step, steps, error=part.error)
            if part is not SKIP:
                given.append(part.output if type(part) is Last else part)
                steps.append(step)
            if type(part) is Last:
                return Slot(elements, given, part.reason, step, steps, info=part.info)
    return Slot(elements, given, FinishReason.EXHAUSTED, None, steps)


@st.composite
def slots(draw, eos, at_least=0):
    none = eos is not None
    ordinary = st.one_of(
        outputs(none=none),
        outputs(none=none),
        outputs(none=none),
        st.just(SKIP),
        st.builds(Many, st.lists(outputs(none=none), max_size=3)),
    )
    reasons = st.sampled_from(["eos", "length", "cancelled"])
    info = st.none() | st.just({"tokens": 3})
    terminal = st.one_of(
        st.sampled_from([eos, EOS]),
        st.builds(Last, outputs(none=none), reasons, info),
        st.builds(End, reasons, info),
        st.builds(lambda: Fail(ValueError("this slot alone"))),
        st.builds(lambda o: Many([o, eos, "after the end"]), outputs(none=none)),
    )
    elements = draw(st.lists(ordinary, min_size=at_least, max_size=at_least + 8))
    if draw(st.integers(0, 7)):  # most end of their own accord
        elements.append(draw(terminal))
    return reference(elements, eos)


@dataclass
class Batch:
    """A batch: the slots, what the source yields for them, and the end mark in use."""

    slots: list[Slot]
    steps: list[Any]
    eos: Any

    def steps_needed(self, upto=None):
        """How many steps it takes until these slots (all, without) have ended."""
        ends = [self.slots[i].ends_at for i in (range(len(self.slots)) if upto is None else upto)]
        return len(self.steps) + 1 if None in ends else max((e + 1 for e in ends), default=0)


@st.composite
def batches(draw, max_size=5, at_least=0):
    """Ragged batches, in every shape a step may have, of at least so many steps."""
    eos = draw(st.sampled_from([None, EOS, SENTINEL]))
    members = draw(st.lists(slots(eos, at_least), min_size=1, max_size=max_size))
    length = max(len(slot.elements) for slot in members)
    steps = []
    for number in range(length):
        row = []
        for slot in members:
            if number < len(slot.elements):
                row.append(slot.elements[number])
            elif slot.ends_at is None:
                row.append(SKIP)
            else:  # whatever the source says of a finished slot
                row.append(draw(st.sampled_from([None, eos, EOS, PAD, Last(PAD), SKIP])))
        steps.append(in_shape(draw(SHAPES), row))
    return Batch(members, steps, eos)


SHAPES = st.sampled_from(["list", "tuple", "array", "mapping", "mapping backwards"])


def in_shape(shape, row):
    """Return the same step in one of its shapes."""
    if shape == "array":
        array = np.empty(len(row), dtype=object)
        for slot, element in enumerate(row):
            array[slot] = element
        return array
    if shape.startswith("mapping"):
        items = [(slot, element) for slot, element in enumerate(row) if element is not SKIP]
        return dict(items if shape == "mapping" else reversed(items))
    return tuple(row) if shape == "tuple" else list(row)


def same(received, expected):
    """Whether these are the very same objects, in order."""
    return len(received) == len(expected) and all(
        a is b for a, b in zip(received, expected, strict=True)
    )
