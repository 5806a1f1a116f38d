"""Both batchers against a model that is too plain to be wrong, one step at a time.

The engine, or the function, waits in each of its steps until the machine lets it make one. So the
machine knows at each moment which requests are in the batch, and what each request has been given.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchstream import (
    EOS,
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    Fail,
    FinishReason,
    OverloadedError,
)
from support import knobs
from support.engines import ManualClock, Turnstile

SIZE = 3
COST = 6
PENDING = 4
NEAR, FAR = 1.0, 1e6

CANCELLED, ERROR = FinishReason.CANCELLED, FinishReason.ERROR


@dataclass(eq=False)
class Ask:
    """A request, and what the machine knows of it."""

    number: int
    length: int
    cost: int
    key: str
    until: float | None = None
    wait_until: float | None = None
    stream: Any = None
    given: int = 0
    received: list[Any] = field(default_factory=list)
    fails: bool = False
    given_up: bool = False
    raised: bool = False
    # Why it has ended; several where it depends on which thread notices first.
    ends: frozenset[FinishReason] = frozenset()
    error: type | None = None

    def end(self, reason, error=None):
        self.ends, self.error = frozenset({reason}), error

    def is_overdue(self, now, *, joined):
        times = [self.until] if joined else [self.until, self.wait_until]
        return any(time is not None and time <= now for time in times)


class Seats:
    """The engine and the function; both wait in each step, and check which requests are there."""

    def __init__(self):
        self.turnstile = Turnstile()
        self.seats = {}
        self.given = {}
        self.joined = []
        self.faults = []
        self.groups = 0
        self.closings = 0
        self.raises = None
        self._thread = None

    def check(self, condition, fault):
        if not condition:
            self.faults.append(fault)

    def sit(self, slot, ask):
        self.check(slot not in self.seats, "a slot was occupied twice")
        self.seats[slot] = ask
        self.given[slot] = 0
        self.joined.append(ask)
        self.check(len(self.seats) <= SIZE, "more than max_batch_size")
        self.check(sum(each.cost for each in self.seats.values()) <= COST, "too costly a batch")

    def make_step(self):
        self.turnstile.hold()
        if self.raises is not None:
            error, self.raises = self.raises, None
            raise error
        step = {}
        for slot, ask in self.seats.items():
            if ask.fails:
                step[slot] = Fail(ValueError("this one alone"))
            elif self.given[slot] == ask.length:
                step[slot] = EOS
            else:
                step[slot] = (ask.number, self.given[slot])
                self.given[slot] += 1
        return step

    # An engine.

    def add(self, slot, ask):
        here = threading.get_ident()
        self._thread = self._thread or here
        self.check(here == self._thread, "another thread")
        self.sit(slot, ask)

    def step(self):
        self.check(threading.get_ident() == self._thread, "another thread")
        self.check(self.seats, "a step without a request")
        return self.make_step()

    def remove(self, slot):
        self.check(slot in self.seats, "removed, and not there")
        self.seats.pop(slot, None)
        self.turnstile.notify()

    # A function.

    def generate(self, asks):
        self.groups += 1
        self.check(not self.seats, "two batches at once")
        self.check(len({ask.key for ask in asks}) == 1, "different keys in a batch")
        for slot, ask in enumerate(asks):
            self.sit(slot, ask)
        try:
            while True:
                live = yield self.make_step()
                self.check(live, "a step without a request")
                self.check(set(live) <= set(self.seats), "sent a slot that was not live")
                self.seats = {slot: self.seats[slot] for slot in live}
        finally:
            self.seats = {}
            self.closings += 1
            self.turnstile.notify()


class BatcherMachine(RuleBasedStateMachine):
    """Submits, steps, cancels, lets time pass; knows what each request has to get."""

    continuous = False

    @initialize()
    def begin(self):
        self.patch = pytest.MonkeyPatch()
        self.clock = ManualClock()
        knobs.set_clock(self.patch, self.clock)
        self.unheard = []
        self.patch.setattr(sys, "unraisablehook", lambda it: self.unheard.append(it.exc_value))
        self.model = Seats()
        options = {
            "max_batch_size": SIZE,
            "max_pending": PENDING,
            "cost": lambda ask: ask.cost,
            "max_batch_cost": COST,
        }
        if self.continuous:
            self.batcher = ContinuousBatcher(self.model, **options)
        else:
            self.batcher = DynamicBatcher(self.model.generate, key=lambda ask: ask.key, **options)
        self.asks = []
        self.waiting = []
        self.running = []  # the requests in the step that the model waits in
        self.refused = 0

    # ---- what has to happen

    def fit(self, asks, running):
        """Return the waiting requests that fit, first come first served."""
        joining = []
        spent = sum(ask.cost for ask in running)
        for ask in asks:
            spent += ask.cost
            if len(running) + len(joining) == SIZE or spent > COST:
                break
            joining.append(ask)
        return joining

    def expire(self):
        for ask in list(self.waiting):
            if ask.is_overdue(self.clock(), joined=False):
                ask.end(ERROR, DeadlineError)
                self.waiting.remove(ask)

    def go_on(self):
        """Set which requests are in the batch after a step or an arrival; wait until they are."""
        now = self.clock()
        for ask in self.running:
            if not ask.ends and ask.is_overdue(now, joined=True):
                ask.end(ERROR, DeadlineError)
        self.running = [ask for ask in self.running if not ask.ends]
        self.expire()
        if self.continuous or not self.running:
            group = [
                ask for ask in self.waiting if self.continuous or ask.key == self.waiting[0].key
            ]
            joining = self.fit(group, self.running)
            self.waiting = [ask for ask in self.waiting if ask not in joining]
            self.running += joining

    def wait(self, arrived):
        turnstile = self.model.turnstile
        if self.running:
            turnstile.wait_until(lambda: turnstile.arrived == arrived)
            assert set(self.model.seats.values()) == set(self.running)
        else:
            turnstile.wait_until(
                lambda: not self.model.seats and self.model.closings == self.model.groups
            )
            for run in knobs.runs_of(self.batcher):
                run.closed.wait()  # the model has ended; the worker has still to end the streams

    # ---- what the machine does

    @rule(
        length=st.integers(0, 5),
        cost=st.integers(1, 4),
        key=st.sampled_from("ab"),
        timeout=st.sampled_from([None, None, NEAR, FAR]),
        wait_timeout=st.sampled_from([None, None, NEAR, FAR]),
    )
    def submit(self, length, cost, key, timeout, wait_timeout):
        self.clock.move(0.001)  # no two requests come at the same time
        now = self.clock()
        ask = Ask(len(self.asks), length, cost, key)
        ask.until = None if timeout is None else now + timeout
        ask.wait_until = None if wait_timeout is None else now + wait_timeout
        self.expire()
        arrived = self.model.turnstile.arrived + 1
        # A request that finds a free slot, or a free worker, does not count as waiting.
        free = SIZE - len(self.running) if self.continuous or not self.running else 0
        may_wait = PENDING + free
        try:
            ask.stream = self.batcher.stream(ask, timeout=timeout, wait_timeout=wait_timeout)
        except OverloadedError as error:
            assert len(self.waiting) == may_wait
            assert error.pending == PENDING  # noqa: PT017 - not always raised
            self.refused += 1
            return
        assert len(self.waiting) < may_wait
        self.asks.append(ask)
        self.waiting.append(ask)
        if not self.running:
            self.go_on()
            self.wait(arrived)

    @rule(cost=st.integers(COST + 1, 99))
    def submit_what_never_fits(self, cost):
        with pytest.raises(ValueError, match="more than a batch may cost"):
            self.batcher.stream(Ask(-1, 1, cost, "a"))
        self.expire()

    @precondition(lambda self: self.running)
    @rule()
    def step(self):
        arrived = self.model.turnstile.arrived + 1
        self.model.turnstile.let()
        for ask in self.running:
            if ask.ends:
                continue
            if ask.fails:
                ask.end(ERROR, ValueError)
            elif ask.given == ask.length:
                ask.end(FinishReason.EOS)
            else:
                ask.given += 1
        self.go_on()
        self.wait(arrived)

    @precondition(lambda self: self.running)
    @rule()
    def raise_in_step(self):
        arrived = self.model.turnstile.arrived + 1
        error = self.model.raises = ArithmeticError("of the step")
        heard = any(not ask.ends for ask in self.running)
        self.model.turnstile.let()
        for ask in self.running:
            if not ask.ends:
                ask.end(ERROR, ArithmeticError)
        self.go_on()
        self.wait(arrived)
        if heard:
            assert error not in self.unheard

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def let_one_fail(self, data):
        data.draw(st.sampled_from(self.running)).fails = True

    @precondition(lambda self: any(ask.stream is not None for ask in self.asks))
    @rule(data=st.data(), drop=st.booleans())
    def cancel(self, data, drop):
        ask = data.draw(st.sampled_from([ask for ask in self.asks if ask.stream is not None]))
        ask.given_up = True  # after the end this discards what was not received
        if not ask.ends:
            ask.end(CANCELLED)
            if ask in self.waiting:
                self.waiting.remove(ask)
                if ask.is_overdue(self.clock(), joined=False):
                    ask.ends = frozenset({CANCELLED, ERROR})  # whatever was noted first
        elif ask.error is DeadlineError and ask.stream.finish_reason is None:
            ask.ends = frozenset({CANCELLED, ERROR})  # overdue, and no thread has noted it so far
        if drop:
            ask.stream = None
        else:
            ask.stream.cancel()
            assert list(ask.stream) == []
            assert ask.stream.finish_reason in ask.ends

    @precondition(lambda self: self.asks)
    @rule(data=st.data())
    def receive(self, data):
        ask = data.draw(st.sampled_from(self.asks))
        if ask.stream is None:
            return
        outputs = ask.stream.drain()
        ask.received += outputs
        if not ask.given_up:
            assert len(ask.received) == ask.given, "an output is missing, or one too many"
        assert ask.received == [(ask.number, n) for n in range(len(ask.received))]

    @precondition(lambda self: self.asks)
    @rule(data=st.data())
    def receive_one(self, data):
        ask = data.draw(st.sampled_from(self.asks))
        if ask.stream is not None and not ask.given_up and len(ask.received) < ask.given:
            assert ask.stream.receive(timeout=0) == (ask.number, len(ask.received))
            ask.received.append((ask.number, len(ask.received)))

    @precondition(lambda self: any(ask.ends for ask in self.asks))
    @rule(data=st.data())
    def read_to_the_end(self, data):
        ask = data.draw(st.sampled_from([ask for ask in self.asks if ask.ends]))
        if ask.stream is not None:
            self.read_all(ask)

    def read_all(self, ask):
        if ask.error is not DeadlineError:
            assert ask.stream.finish_reason is not None, "it has not ended"
        errors = []
        for _ in range(2):
            try:
                ask.received.extend(ask.stream)
            except (ClosedError, DeadlineError, ValueError, ArithmeticError) as error:
                errors.append(type(error))
        assert len(errors) <= 1, "an error was raised twice"
        if ask.ends and not ask.given_up:
            assert errors == [ask.error] * (ask.error is not None and not ask.raised)
            assert len(ask.received) == ask.given
            ask.raised = True
        assert ask.received == [(ask.number, n) for n in range(len(ask.received))]

    @rule(seconds=st.sampled_from([0.4, NEAR, NEAR]))
    def let_time_pass(self, seconds):
        self.clock.move(seconds)

    # ---- what is always so

    @invariant()
    def nothing_went_wrong_in_the_model(self):
        assert self.model.faults == []
        for key in "ab":
            order = [ask.number for ask in self.model.joined if self.continuous or ask.key == key]
            assert order == sorted(set(order)), "a request jumped the queue, or joined twice"

    @invariant()
    def every_request_is_live_or_has_finished(self):
        figures = self.batcher.statistics()
        assert figures.opened == len(self.asks)
        assert figures.opened == figures.live + sum(figures.finished.values())
        assert figures.refused == self.refused
        assert figures.steps <= self.model.turnstile.arrived
        assert sum(n * count for n, count in figures.batch_sizes.items()) == len(self.model.joined)

    @invariant()
    def streams_know_how_they_have_ended(self):
        for ask in self.asks:
            if ask.stream is not None:
                reason = ask.stream.finish_reason
                if ask.ends:
                    assert reason in ask.ends or (reason is None and ask.error is DeadlineError)
                else:
                    assert reason is None or ask.is_overdue(self.clock(), joined=False)

    def teardown(self):
        if not hasattr(self, "batcher"):
            return
        self.model.turnstile.open()
        self.batcher.close()
        self.patch.undo()
        for ask in self.asks:
            if ask.stream is not None:
                ended_before, given = ask.ends, ask.given
                self.read_all_after_close(ask)
                assert ask.stream.finish_reason is not None
                if ended_before:
                    assert ask.stream.finish_reason in ended_before
                    assert len(ask.received) <= given
        assert {type(error) for error in self.unheard} <= {ArithmeticError}
        self.nothing_went_wrong_in_the_model()
        figures = self.batcher.statistics()
        assert (figures.live, figures.waiting, figures.buffered) == (0, 0, 0)
        assert figures.opened == len(self.asks) == sum(figures.finished.values())
        assert self.model.seats == {}, "an add has no remove"
        assert self.model.closings == self.model.groups

    def read_all_after_close(self, ask):
        if not ask.ends:
            ask.given_up = True  # nothing is known of how far it came
        self.read_all(ask)


class DynamicMachine(BatcherMachine):
    """A dynamic batcher."""


class ContinuousMachine(BatcherMachine):
    """A continuous batcher."""

    continuous = True


LIMITS = settings(max_examples=120, stateful_step_count=40)

TestDynamic = DynamicMachine.TestCase
TestDynamic.settings = LIMITS
TestContinuous = ContinuousMachine.TestCase
TestContinuous.settings = LIMITS
