"""The native core against the reference: the same calls, and the same observations after each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import UserDict
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchstream import (
    EOS,
    SKIP,
    Delivery,
    Demultiplexer,
    End,
    Fail,
    Last,
    Many,
    Requeue,
    token_ids,
)
from batchstream._core.cores import core_of
from batchstream._core.rules import EndRules
from support.natively import needs_native
from support.sources import OfUnhashableType, Untouchable
from support.strategies import SENTINEL

pytestmark = needs_native

# ---- what a step may hold

STAND_IN = "of an unhashable type"
"""Drawn in place of an output whose type Hypothesis would hash."""

REASONS = st.sampled_from(["eos", "length", "cancelled"])
INFOS = st.none() | st.just({"tokens": 3})
TOKENS = st.integers(0, 5)
OUTPUTS = st.one_of(
    st.builds(Untouchable),
    TOKENS,
    TOKENS,
    st.sampled_from([True, 2**70, "text", 1.5, Last, np.int64(1), (), STAND_IN]),
)
MARKERS = st.recursive(
    st.one_of(
        st.sampled_from([None, EOS, SKIP, SENTINEL]),
        st.builds(Last, OUTPUTS | st.none(), REASONS, INFOS),
        st.builds(End, REASONS, INFOS),
        st.builds(lambda: Fail(ValueError("this slot alone"))),
        st.builds(Requeue, TOKENS),
    ),
    lambda parts: st.builds(Many, st.lists(OUTPUTS | parts, max_size=4)),
    max_leaves=4,
)
ELEMENTS = st.one_of(OUTPUTS, OUTPUTS, OUTPUTS, OUTPUTS, MARKERS)


class Row(Sequence):
    """A step of a type of the user's own."""

    def __init__(self, elements):
        self._elements = elements

    def __len__(self):
        return len(self._elements)

    def __getitem__(self, index):
        return self._elements[index]


class Refuses:
    """A step that looks like an array, and cannot be read."""

    ndim = 1

    def tolist(self):
        raise ValueError("no list")


class RefusesToSay:
    @property
    def ndim(self):
        raise ValueError("no dimensions")


def in_place(element):
    """Return what a drawn element stands for."""
    return OfUnhashableType() if element is STAND_IN else element


def object_array(elements):
    array = np.empty(len(elements), dtype=object)
    for slot, element in enumerate(elements):
        array[slot] = element
    return array


SEQUENCES = st.sampled_from([list, tuple, list, tuple, Row, object_array])
MAPPINGS = st.sampled_from([dict, dict, UserDict, MappingProxyType])
UNREADABLE = st.sampled_from(
    [5, None, "text", b"abc", {1, 2, 3}, iter(()), EOS, Refuses(), RefusesToSay(), np.zeros(())]
)
KEYS = st.sampled_from([-1, 2**70, True, "0", 0.0, None, np.int64(1), STAND_IN])

# ---- how slots end

asked = []
"""The outputs of which a predicate has been asked in the present call."""


def is_one(output):
    asked.append(output)
    return type(output) is int and output == 1


def fails_sometimes(output):
    asked.append(output)
    if type(output) is not int:
        return None
    if output == 2:
        raise ValueError("is_eos fails")
    if output == 3:
        raise StopIteration
    return output == 1 and Untouchable()


def has_no_truth(output):
    asked.append(output)
    return np.zeros(2) if type(output) is int and output == 2 else []


def stops_the_program(output):
    if type(output) is int and output == 4:
        raise KeyboardInterrupt("in is_eos")
    return is_one(output)


def asked_of(output):
    asked.append(output)
    return output


def says_how(output):
    return End("length", {"n": 1}) if is_one(output) else None


PREDICATES = [
    None,
    None,
    token_ids(1, 2**70),
    token_ids(1, key=asked_of),
    is_one,
    says_how,
    fails_sometimes,
    has_no_truth,
]


def outcome(function, *args, **keywords):
    try:
        return function(*args, **keywords), None
    except BaseException as error:  # noqa: BLE001 - an interrupt of is_eos, too
        return None, error


def described(error):
    """Return what is to be the same of two errors."""
    if error is None:
        return None
    own = {name: value for name, value in vars(error).items() if name != "__notes__"}
    return type(error), str(error), own, described(error.__cause__)


def in_order(delivery, made):
    """Return the columns of a plain step, which stand in the order of the slots."""
    return list(delivery.slots), [as_it_shows(value, made) for value in delivery.values]


def as_it_shows(value, made):
    """Return what is to be the same of an output: the object, unless reading the step made it."""
    if made and isinstance(value, np.ndarray):
        return "an array", value.dtype, value.tolist()
    return (type(value).__name__, repr(value)) if made else id(value)


def ends_of(ends):
    return [
        (slot, end.reason, end.outputs, end.info is None or end.info, described(end.error))
        for slot, end in ends
    ]


def by_slot(delivery, made):
    """Return what a delivery holds for each slot, in the order in which the slot gets it."""
    given = {}
    for slot, value in delivery.outputs:
        given.setdefault(slot, []).append(as_it_shows(value, made))
    return given, sorted(ends_of(delivery.ends), key=lambda end: end[0])


class BothCores(RuleBasedStateMachine):
    """Makes the same calls of both cores, and compares what they return, raise and say."""

    @initialize(
        data=st.data(),
        size=st.integers(0, 4),
        vacant=st.integers(0, 4).map(lambda n: not n),
        requeues=st.booleans(),
        rules=st.fixed_dictionaries(
            {
                "eos": st.sampled_from([None, None, EOS, SENTINEL, True]),
                "is_eos": st.sampled_from([*PREDICATES, stops_the_program]),
                "include_eos": st.booleans(),
                "require_eos": st.booleans(),
            }
        ),
    )
    def begin(self, data, size, vacant, requeues, rules):
        limits = st.none() | st.integers(1, 4)
        max_outputs = data.draw(limits | st.lists(limits, min_size=size, max_size=size))
        self.size = size
        self.broken_off = False
        asked.clear()
        predicates = st.sampled_from([*PREDICATES, stops_the_program])
        own = data.draw(st.none() | st.lists(predicates, min_size=size, max_size=size))
        self.reference = Demultiplexer.__new__(Demultiplexer)
        self.reference._start(
            EndRules(**rules, opens_slots=True), size, max_outputs, own, vacant=vacant
        )
        self.native = core_of(
            EndRules(**rules, opens_slots=True),
            size,
            max_outputs,
            predicates=own,
            vacant=vacant,
            requeues=requeues,
        )
        if requeues:
            self.reference._requeued = {}
        assert type(self.reference) is not type(self.native)

    # ---- what is compared

    def both(self, method, *args, made=False, **keywords):
        """Make a call of both, and compare; return what the reference returns."""
        live = self.reference.live
        expected, raised = outcome(getattr(self.reference, method), *args, **keywords)
        asked_first = sorted(str(as_it_shows(output, made)) for output in asked)
        asked.clear()
        found, raised_too = outcome(getattr(self.native, method), *args, **keywords)
        assert sorted(str(as_it_shows(output, made)) for output in asked) == asked_first
        asked.clear()
        assert described(raised_too) == described(raised)
        if isinstance(expected, Delivery):
            assert type(found) is Delivery
            assert by_slot(found, made) == by_slot(expected, made)
            if expected.slots is live:
                assert in_order(found, made) == in_order(expected, made)
        else:
            assert found == expected
        if isinstance(raised, KeyboardInterrupt):
            self.fail_as_a_pump_does(raised)
        return expected

    def fail_as_a_pump_does(self, error):
        """Fail both after a step that was broken off; what that step has counted may differ."""
        expected, found = self.reference.fail(error), self.native.fail(error)
        for delivery in (expected, found):
            assert not delivery.values
        assert [slot for slot, _ in found.ends] == [slot for slot, _ in expected.ends]
        assert [(end.reason, end.error) for _, end in found.ends] == [
            (end.reason, end.error) for _, end in expected.ends
        ]
        self.broken_off = True

    def feed(self, step, *, made=False):
        self.both("feed", step, made=made)

    @staticmethod
    def drawn(data, elements, count):
        return list(map(in_place, data.draw(st.lists(elements, min_size=count, max_size=count))))

    # ---- what is called

    @rule(data=st.data(), shape=SEQUENCES)
    def feed_sequence(self, data, shape):
        self.feed(shape(self.drawn(data, ELEMENTS, self.size)))

    @rule(data=st.data(), shape=st.sampled_from([list, tuple]))
    def feed_plain(self, data, shape):
        self.feed(shape(self.drawn(data, OUTPUTS, self.size)))

    @rule(data=st.data(), shape=MAPPINGS, numpy=st.booleans())
    def feed_mapping(self, data, shape, numpy):
        slots = st.permutations(range(self.size)).flatmap(
            lambda order: st.integers(0, self.size).map(lambda count: order[:count])
        )
        drawn = data.draw(slots)
        elements = dict(zip(drawn, self.drawn(data, ELEMENTS, len(drawn)), strict=True))
        self.feed(shape({np.int64(k): v for k, v in elements.items()} if numpy else elements))

    @rule(data=st.data())
    def feed_the_live(self, data):
        slots = data.draw(st.permutations(self.live))
        elements = self.drawn(data, data.draw(st.sampled_from([ELEMENTS, OUTPUTS])), len(slots))
        self.feed(dict(zip(slots, elements, strict=True)))

    @property
    def live(self):
        return list(self.reference.live)

    @rule(data=st.data(), dtype=st.sampled_from([np.int64, np.float32, np.bool_]))
    def feed_array(self, data, dtype):
        elements = data.draw(st.lists(TOKENS, min_size=self.size, max_size=self.size))
        self.feed(np.array(elements, dtype=dtype), made=True)

    @rule(width=st.integers(0, 2), layers=st.integers(1, 2))
    def feed_array_of_rows(self, width, layers):
        shape = (self.size, width) if layers == 1 else (self.size, width, 2)
        self.feed(np.zeros(shape, dtype=np.int64), made=True)

    @rule(step=UNREADABLE)
    def feed_what_is_no_step(self, step):
        self.feed(step)

    @rule(data=st.data(), shape=SEQUENCES, more=st.sampled_from([-1, 1, 3]))
    def feed_another_width(self, data, shape, more):
        width = max(self.size + more, 0)
        self.feed(shape(self.drawn(data, OUTPUTS, width)))

    @rule(key=KEYS, element=ELEMENTS, shape=MAPPINGS, before=st.booleans())
    def feed_another_key(self, key, element, shape, before):
        items = [(0, "zero"), (in_place(key), in_place(element))]
        self.feed(shape(dict(items if before else reversed(items))))

    @rule(slot=st.integers(-1, 4))
    def cancel(self, slot):
        self.both("cancel", slot)

    @rule(
        data=st.data(),
        limit=st.sampled_from([None, None, 1, 2, 3, 0, True, "x", 2**70]),
        is_eos=st.sampled_from([*[None] * len(PREDICATES), *PREDICATES, stops_the_program, 2]),
    )
    def open(self, data, limit, is_eos):
        slot = data.draw(st.integers(-1, 4))
        self.both("open", slot, max_outputs=limit, is_eos=is_eos)

    @precondition(lambda self: self.reference.running and self.reference._requeued)
    @rule(data=st.data(), how=st.sampled_from(["go on", "end", "leave"]))
    def give_back(self, data, how):
        """Do what a batch does with the slots that are given back, before it makes a step."""
        slot = data.draw(st.sampled_from(sorted(self.reference._requeued)))
        given = self.reference.given(slot)
        if how == "end":
            for core in (self.reference, self.native):
                assert core._end_slot(slot, "eos").outputs == given
        for core in (self.reference, self.native):
            core._requeued.clear()
        if how == "go on":
            self.both("open", slot)
            self.both("_go_on", slot, given)

    @precondition(lambda self: not self.reference.live)
    @rule(data=st.data())
    def open_all(self, data):
        for slot in range(self.size):
            self.both("open", slot, max_outputs=data.draw(st.none() | st.integers(1, 4)))

    @precondition(lambda self: not self.reference.live)
    @rule(error=st.sampled_from([OSError("gone"), KeyboardInterrupt(), None]))
    def end(self, error):
        self.both("finish") if error is None else self.both("fail", error)

    @rule(often=st.integers(0, 7), how=st.sampled_from(["finish", "fail"]))
    def end_early(self, often, how):
        if not often:
            self.both("finish") if how == "finish" else self.both("fail", OSError("gone"))

    @invariant()
    def both_say_the_same(self):
        if not hasattr(self, "native"):
            return
        reference, native = self.reference, self.native
        assert native.size == reference.size
        assert native.live == reference.live
        assert native.live is native.live
        assert native.has_live == reference.has_live
        assert native.running == reference.running
        if self.broken_off:
            return
        assert native._requeued == reference._requeued  # the same markers: they have no equality
        assert repr(native) == repr(reference)
        assert native.statistics() == reference.statistics()
        for slot in range(self.size):
            assert native.given(slot) == reference.given(slot)


BothCores.TestCase.settings = settings(stateful_step_count=40)
TestBothCores = BothCores.TestCase


# ---- whole programs

ACTIONS = int(os.environ.get("NATIVE_ACTIONS", "20000"))
PROGRAMS = Path(__file__).parents[1] / "support" / "native_programs.py"


def logged(seed, actions, folder, **environment):
    """Run random programs in a process of their own, and return the path of what they log."""
    path = folder / f"log{len(list(folder.iterdir()))}"
    with path.open("w") as log:
        subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-X", "faulthandler", PROGRAMS, str(seed), str(actions)],
            env={**os.environ, "PYTHONHASHSEED": "0", **environment},
            stdout=log,
            check=True,
        )
    return path


def first_difference(expected, found):
    """Return the program in which two logs differ first, up to that line; None if they do not."""
    program = []
    with expected.open() as left, found.open() as right:
        for wanted, line in zip_longest(left, right, fillvalue="(nothing)\n"):
            if line.startswith("----"):
                program.clear()
            if wanted != line:
                return "".join([*program, "expected: ", wanted, "found:    ", line])
            program.append(line)
    return None


@pytest.mark.timeout(60 + ACTIONS // 500)
@pytest.mark.parametrize("seed", range(max(ACTIONS // 100_000, 1)))
def test_whole_programs_see_the_same_of_both_cores(seed, tmp_path):
    actions = min(ACTIONS, 100_000)
    expected = logged(seed, actions, tmp_path, BATCHSTREAM_PURE="1")
    found = logged(seed, actions, tmp_path, BATCHSTREAM_PURE="")
    assert first_difference(expected, found) is None
    last = found.read_text().rpartition("----")[2].splitlines()[-1]
    assert int(last.split()[0]) >= actions
