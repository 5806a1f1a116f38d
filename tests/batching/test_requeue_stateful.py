"""An engine that gives back what it likes, against the requests served one by one."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from batchstream import (
    EOS,
    SKIP,
    ContinuousBatcher,
    Fail,
    FinishReason,
    Many,
    NotNow,
    RequestError,
    Requeue,
)
from support.sources import TIMEOUT

SLOTS = 3
DEEDS = "oooo" + "m" + "ss" + "rr" + "RR" + "c" + "f" + "M"
"""What a step does for a slot: an output, several, none; it gives the slot back, in place of an
output or behind one; the client leaves meanwhile; the request fails; the end comes with outputs."""


@dataclass(eq=False)
class Ask:
    """A request, and what the engine knows of it."""

    number: int
    length: int
    limit: int | None
    made: int = 0
    silent: int = 0  # how often it was given back without an output in between
    left: bool = False
    failed: bool = False
    stream: Any = None

    @property
    def has_more(self):
        return self.made < self.length

    @property
    def is_over(self):
        return self.limit is not None and self.made >= self.limit

    def output(self):
        self.made += 1
        self.silent = 0
        return self.number, self.made - 1

    @property
    def whole(self):
        """What it is given alone."""
        length = self.length if self.limit is None else min(self.length, self.limit)
        return [(self.number, count) for count in range(length)]


class Whimsical:
    """Does what a list says, as long as it lasts, and from then on what an engine should."""

    def __init__(self, deeds, refusals):
        self.deeds, self.refusals = iter(deeds), iter(refusals)
        self.seats = {}
        self.waiting = set()  # what was given back
        self.given_back = 0
        self.faults = []
        self.begun = threading.Event()
        self.steps = 0

    def check(self, condition, fault):
        if not condition:
            self.faults.append(fault)

    def add(self, slot, request):
        ask, again = request if type(request) is tuple else (request, False)
        waiting = [it for it in self.waiting if it.stream.finish_reason is None]
        self.check(slot not in self.seats, "a slot was occupied twice")
        self.check(again is (ask in self.waiting), "added again, or not, against its content")
        self.check(
            ask.number <= min((it.number for it in waiting), default=ask.number), "overtaken"
        )
        self.check(again or not waiting, "one that never joined has overtaken another")
        if self.seats and next(self.refusals, False):
            raise NotNow
        self.waiting.discard(ask)
        self.seats[slot] = ask
        self.check(len(self.seats) <= SLOTS, "too many")

    def step(self):
        self.begun.wait(TIMEOUT)
        self.check(self.seats, "a step without a request")
        self.steps += 1
        return {slot: self.element(ask) for slot, ask in self.seats.items()}

    def element(self, ask):
        deed = next(self.deeds, "o")
        if deed in "rR":
            return self.give_back(
                ask, outputs=[ask.output()] if deed == "R" and ask.has_more else []
            )
        if deed == "c":
            ask.left = ask.stream.finish_reason is None
            ask.stream.cancel()
            return SKIP
        if deed == "f":
            ask.failed = True
            return Fail(ValueError(ask.number))
        if deed == "s":
            return SKIP
        outputs = [ask.output() for _ in range(2 if deed in "mM" else 1) if ask.has_more]
        if deed == "M" or not outputs:
            outputs += [] if ask.has_more else [EOS]
        return outputs[0] if len(outputs) == 1 else Many(outputs)

    def give_back(self, ask, outputs):
        if ask.is_over:  # the limit ends it in this step
            return Many(outputs)
        if not outputs:
            ask.silent += 1
        self.given_back += 1
        self.waiting.add(ask)
        return Many([*outputs, Requeue((ask, True))])

    def remove(self, slot):
        self.check(self.seats.pop(slot, None) is not None, "removed, and not there")


@pytest.mark.rule(2, 3, 5, 29, 30)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=7),
    limit=st.sampled_from([None, None, 1, 3]),
    deeds=st.lists(st.sampled_from(DEEDS), max_size=60),
    refusals=st.lists(st.booleans(), max_size=20),
)
def test_whatever_is_given_back_each_request_gets_what_it_gets_alone(
    lengths, limit, deeds, refusals
):
    engine = Whimsical(deeds, refusals)
    asks = [Ask(number, length, limit) for number, length in enumerate(lengths)]
    with ContinuousBatcher(engine, max_batch_size=SLOTS, max_outputs=limit) as batcher:
        for ask in asks:
            ask.stream = batcher.stream(ask)
        engine.begun.set()
        for ask in asks:
            check(ask, engine)
        figures = batcher.statistics()
    assert engine.faults == []
    assert engine.seats == {}
    assert figures.requeued <= engine.given_back
    assert (figures.opened, figures.live, figures.waiting) == (len(asks), 0, 0)
    assert (figures.buffered, figures.prefilling) == (0, 0)
    assert sum(size * count for size, count in figures.batch_sizes.items()) == len(asks)
    # No starvation: each step makes an output, unless `deeds` says otherwise for it.
    assert engine.steps <= len(deeds) + 2 * sum(len(ask.whole) + 1 for ask in asks)


def check(ask, engine):
    outputs, error = [], None
    try:
        outputs.extend(ask.stream)
    except (ValueError, RequestError) as raised:
        error = raised
    reason = ask.stream.finish_reason
    if ask.left:
        assert reason is FinishReason.CANCELLED
        assert outputs == ask.whole[: len(outputs)]
    elif error is not None:
        assert outputs == ask.whole[: len(outputs)]
        assert type(error) is RequestError or ask.failed
        assert ask.failed or ask.silent >= 2
    else:
        assert outputs == ask.whole
        assert str(reason) == ("length" if ask.limit == len(outputs) else "eos")
    assert ask.left or ask.stream.end.outputs == len(outputs)
