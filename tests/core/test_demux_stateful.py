"""The core and the streams against a model that is too plain to be wrong."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchstream import (
    EOS,
    SKIP,
    BatchedStream,
    ClosedError,
    Demultiplexer,
    End,
    Fail,
    Last,
    Many,
    StepError,
)
from support.sources import ScriptedSource, Untouchable

SIZE = 3
ELEMENTS = st.one_of(
    st.builds(Untouchable),
    st.builds(Untouchable),
    st.builds(Untouchable),
    st.sampled_from([None, EOS, SKIP]),
    st.builds(lambda: Last(Untouchable())),
    st.builds(lambda: End("length")),
    st.builds(lambda: Fail(ValueError("alone"))),
    st.builds(lambda n: Many([Untouchable() for _ in range(n)]), st.integers(0, 3)),
    st.builds(lambda: Many([Untouchable(), None, Untouchable()])),
)


class ModelSlot:
    """What one slot has been given since it was opened, and how it ended."""

    def __init__(self):
        self.outputs = []
        self.reason = None

    def take(self, element, limit):
        for part in element.outputs if type(element) is Many else [element]:
            if self.reason is not None or part is SKIP:
                continue
            if part is None or part is EOS:
                self.reason = "eos"
            elif type(part) is End:
                self.reason = "length"
            elif type(part) is Fail:
                self.reason = "error"
            else:
                self.outputs.append(part.output if type(part) is Last else part)
                if type(part) is Last:
                    self.reason = "eos"
                elif limit is not None and len(self.outputs) == limit:
                    self.reason = "length"


class CoreMachine(RuleBasedStateMachine):
    """Feeds, cancels, opens, fails and finishes one Demultiplexer."""

    @initialize(limit=st.none() | st.integers(1, 4))
    def begin(self, limit):
        self.limit = limit
        self.core = Demultiplexer(SIZE, max_outputs=limit)
        self.slots = [ModelSlot() for _ in range(SIZE)]
        self.given = [[] for _ in range(SIZE)]
        self.reasons = [None] * SIZE
        self.opened = SIZE
        self.running = True

    def take(self, delivery):
        for slot, output in delivery.outputs:
            assert self.reasons[slot] is None
            self.given[slot].append(output)
        for slot, end in delivery.ends:
            assert self.reasons[slot] is None, "a slot ended twice"
            self.reasons[slot] = str(end.reason)
            assert end.outputs == len(self.given[slot])

    @precondition(lambda self: self.running)
    @rule(elements=st.lists(ELEMENTS, min_size=SIZE, max_size=SIZE), as_dict=st.booleans())
    def feed(self, elements, as_dict):
        step = dict(enumerate(elements)) if as_dict else elements
        for slot, element in zip(self.slots, elements, strict=True):
            slot.take(element, self.limit)
        self.take(self.core.feed(step))

    @precondition(lambda self: self.running)
    @rule(only=st.sets(st.integers(0, SIZE - 1)), element=ELEMENTS)
    def feed_some(self, only, element):
        for slot in only:
            self.slots[slot].take(element, self.limit)
        self.take(self.core.feed(dict.fromkeys(only, element)))

    @rule(slot=st.integers(0, SIZE - 1))
    def cancel(self, slot):
        if self.slots[slot].reason is None:
            self.slots[slot].reason = "cancelled"
        self.take(self.core.cancel(slot))

    @precondition(lambda self: self.running and any(s.reason for s in self.slots))
    @rule(data=st.data())
    def open(self, data):
        finished = [n for n, slot in enumerate(self.slots) if slot.reason]
        slot = data.draw(st.sampled_from(finished))
        self.core.open(slot)
        self.slots[slot] = ModelSlot()
        self.given[slot], self.reasons[slot] = [], None
        self.opened += 1

    @precondition(lambda self: self.running)
    @rule(how=st.sampled_from(["finish", "fail", "malformed"]))
    def end(self, how):
        reason = "exhausted" if how == "finish" else "error"
        for slot in self.slots:
            slot.reason = slot.reason or reason
        if how == "finish":
            self.take(self.core.finish())
        elif how == "fail":
            self.take(self.core.fail(OSError("gone")))
        else:
            delivery = self.core.feed([None] * (SIZE + 1))
            assert all(isinstance(end.error, StepError) for _, end in delivery.ends)
            self.take(delivery)
        self.running = False

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "core"):
            return
        live = tuple(n for n, slot in enumerate(self.slots) if slot.reason is None)
        assert self.core.live == live
        assert self.core.has_live == bool(live)
        assert self.core.running == self.running
        for number, slot in enumerate(self.slots):
            assert self.reasons[number] == slot.reason
            assert len(self.given[number]) == len(slot.outputs) == self.core.given(number)
            assert all(a is b for a, b in zip(self.given[number], slot.outputs, strict=True))
        figures = self.core.statistics()
        assert figures.opened == self.opened == figures.live + sum(figures.finished.values())


class StreamsMachine(RuleBasedStateMachine):
    """Receives, drains, cancels, drops and closes the streams of one batch."""

    @initialize(
        script=st.lists(st.lists(ELEMENTS, min_size=SIZE, max_size=SIZE), max_size=12),
        error=st.none() | st.just(OSError("gone")),
    )
    def begin(self, script, error):
        self.script = [*script, error] if error else script
        self.source = ScriptedSource(self.script)
        self.batch = BatchedStream(self.source, SIZE)
        self.slots = [ModelSlot() for _ in range(SIZE)]
        self.unread = [[] for _ in range(SIZE)]
        self.pulled = 0
        self.error_raised = [False] * SIZE

    def pull(self):
        """Move the model one step on."""
        step = self.script[self.pulled] if self.pulled < len(self.script) else None
        self.pulled += 1
        for slot, model in enumerate(self.slots):
            if model.reason is not None:
                continue
            if step is None:
                model.reason = "exhausted"
            elif isinstance(step, Exception):
                model.reason = "error"
            else:
                before = len(model.outputs)
                model.take(step[slot], None)
                self.unread[slot] += model.outputs[before:]

    @rule(slot=st.integers(0, SIZE - 1))
    def receive(self, slot):
        model = self.slots[slot]
        while not self.unread[slot] and model.reason is None:
            self.pull()
        expected = self.unread[slot].pop(0) if self.unread[slot] else None
        try:
            received = next(self.batch[slot], None)
        except (ValueError, OSError, ClosedError):
            assert expected is None
            assert model.reason == "error"
            assert not self.error_raised[slot]
            self.error_raised[slot] = True
        else:
            assert received is expected
            assert expected is not None or model.reason != "error" or self.error_raised[slot]

    @rule(slot=st.integers(0, SIZE - 1))
    def drain(self, slot):
        received = self.batch[slot].drain()
        assert len(received) == len(self.unread[slot])
        assert all(a is b for a, b in zip(received, self.unread[slot], strict=True))
        self.unread[slot].clear()

    @rule(slot=st.integers(0, SIZE - 1))
    def cancel(self, slot):
        self.batch.cancel(slot)
        self.unread[slot].clear()
        self.slots[slot].reason = self.slots[slot].reason or "cancelled"
        self.error_raised[slot] = True  # nothing is raised after a cancel

    @rule()
    def close(self):
        self.batch.close()
        for model in self.slots:
            model.reason = model.reason or "error"

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "batch"):
            return
        assert self.source.pulled == min(self.pulled, len(self.script))
        live = tuple(n for n, slot in enumerate(self.slots) if slot.reason is None)
        assert self.batch.live == live
        assert self.source.closed == (not live)
        for slot, model in enumerate(self.slots):
            reason = self.batch[slot].finish_reason
            assert (reason and str(reason)) == model.reason
        assert self.batch.statistics().buffered == sum(map(len, self.unread))


CoreMachine.TestCase.settings = settings(stateful_step_count=30)
StreamsMachine.TestCase.settings = settings(stateful_step_count=30)
TestCoreAgainstModel = CoreMachine.TestCase
TestStreamsAgainstModel = StreamsMachine.TestCase
