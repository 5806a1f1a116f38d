"""Models that record how a batcher treats them, and every form of batcher behind one interface.

A request is a sequence of elements. Its stream gives one of them in each step, and then ends. So
`"abc"` is a request for three outputs, and a list may hold markers.

The forms are the same as in `forms`, for batchers: a scenario written once says what all of them
promise. After every scenario the form makes sure that the model was treated well, and that nothing
is left.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter

from batchstream import EOS, ContinuousBatcher, DynamicBatcher
from support import knobs
from support.forms import (
    AsyncioAsync,
    AsyncioSync,
    Background,
    Blocking,
    InLoop,
    TrioAsync,
    TrioSync,
    in_forms,
)
from support.sources import TIMEOUT

TOLERANCE = 1e-6
"""Seconds, of sums of times."""


class Model:
    """Gives each request its elements one by one, and then the end mark.

    It is an engine for a `ContinuousBatcher`; `generate` and `agenerate` are for a
    `DynamicBatcher`. All of them record what is done to them.

    Args:
        home: Returns in which thread or task the calling code runs.
        gates: By number of step, over all batches: the gate to wait at in it.
        on_step: Called with the number of each step, once it is past its gate.
        raises: By number of step: what it raises.
        eos: The end mark that it gives.

    Attributes:
        worked_on: For each step, the requests that it was made for.
        called_with: The requests of each batch; an engine has none.
        calls: What was called of an engine, in order.
        faults: How it was treated badly.
    """

    def __init__(self, home=threading.get_ident, *, gates=None, on_step=None, raises=None, eos=EOS):
        self.worked_on = []
        self.called_with = []
        self.calls = []
        self.faults = []
        self.closings = 0
        self.seats = {}
        self._home = home
        self._gates = gates or {}
        self._on_step = on_step or (lambda _: None)
        self._raises = raises or {}
        self._eos = eos
        self._inside = Counter()
        self._homes = set()

    @property
    def steps(self):
        return len(self.worked_on)

    def _begin_step(self, requests):
        self.worked_on.append(tuple(requests))
        return self.steps - 1

    def _end_step(self, number):
        self._on_step(number)
        if number in self._raises:
            raise self._raises[number]

    # ---- a function of a list of requests

    def generate(self, requests):
        home = self._home()
        self.called_with.append(list(requests))
        replies = [iter(request) for request in requests]
        live = range(len(requests))
        try:
            while True:
                number = self._begin_step([requests[slot] for slot in live])
                if number in self._gates:
                    self._gates[number].hold()
                self._end_step(number)
                live = yield {slot: next(replies[slot], self._eos) for slot in live}
                self._check(self._home() == home, "advanced in another thread")
                self._check(live, "advanced without a live request")
        finally:
            self._check(self._home() == home, "closed in another thread")
            self.closings += 1

    async def agenerate(self, requests):
        home = self._home()
        self.called_with.append(list(requests))
        replies = [iter(request) for request in requests]
        live = range(len(requests))
        try:
            while True:
                number = self._begin_step([requests[slot] for slot in live])
                if number in self._gates:
                    await self._gates[number].hold_async()
                self._end_step(number)
                live = yield {slot: next(replies[slot], self._eos) for slot in live}
                self._check(self._home() == home, "advanced in another task")
                self._check(live, "advanced without a live request")
        finally:
            self._check(self._home() == home, "closed in another task")
            self.closings += 1

    # ---- an engine

    def add(self, slot, request):
        with self._call("add", slot):
            self._check(slot not in self.seats, f"slot {slot} was added twice")
            if isinstance(request, BaseException):
                raise request
            self.seats[slot] = (request, iter(request))

    def step(self):
        with self._call("step"):
            self._check(self.seats, "a step without a request")
            number = self._begin_step([request for request, _ in self.seats.values()])
            if number in self._gates:
                self._gates[number].hold()
            self._end_step(number)
            return {slot: next(reply, self._eos) for slot, (_, reply) in self.seats.items()}

    def remove(self, slot):
        with self._call("remove", slot):
            self._check(slot in self.seats, f"slot {slot} was removed and not there")
            self.seats.pop(slot, None)

    def _call(self, *call):
        self.calls.append(call)
        self._homes.add(self._home())
        return _Inside(self)

    def _check(self, condition, fault):
        if not condition:
            self.faults.append(fault)

    def check(self):
        """Fail if it was treated badly; when its batcher was closed."""
        assert self.faults == []
        assert self.closings == len(self.called_with), "not every generator was closed once"
        assert not self.seats, "an add has no remove"
        assert len(self._homes) <= 1, "an engine was called in several threads"


class _Inside:
    """One call at a time."""

    def __init__(self, model):
        self._model = model

    def __enter__(self):
        self._model._inside["calls"] += 1
        self._model._check(self._model._inside["calls"] == 1, "two calls at once")

    def __exit__(self, *_):
        self._model._inside["calls"] -= 1


class Turnstile:
    """Lets a model's steps through one by one, as often as a test says."""

    def __init__(self):
        self._changed = threading.Condition()
        self.arrived = 0
        self._passed = 0
        self._permitted = 0

    def hold(self):
        """Wait in a step until it may be made."""
        with self._changed:
            self.arrived += 1
            self._changed.notify_all()
            may_pass = self._changed.wait_for(lambda: self._passed < self._permitted, TIMEOUT)
            assert may_pass, "a step was never let through"
            self._passed += 1

    def let(self, count=1):
        """Let so many steps more through."""
        with self._changed:
            self._permitted += count
            self._changed.notify_all()

    def open(self):
        """Let all steps through from now on."""
        self.let(sys.maxsize)

    def notify(self):
        """Wake the threads that wait, to check their conditions again."""
        with self._changed:
            self._changed.notify_all()

    def wait_until(self, condition):
        """Wait until this is so; it can be when a model arrives, or `notify` is called."""
        with self._changed:
            assert self._changed.wait_for(condition, TIMEOUT), "what is waited for never happened"

    @property
    def holds(self):
        """Whether a model waits here."""
        return self.arrived > self._passed


# ---- metrics


class Recorder:
    """Metrics that record their calls.

    Attributes:
        calls: Name and arguments of each call, in order.
        finished_once: Set when a request has finished.
    """

    def __init__(self, flag=threading.Event):
        self.calls = []
        self.finished_once = flag()

    def submitted(self, **_):
        self.calls.append(("submitted",))

    def refused(self, reason, **_):
        self.calls.append(("refused", reason))

    def joined(self, waited, **_):
        self.calls.append(("joined", waited))

    def stepped(self, live, capacity, *_):
        self.calls.append(("stepped", live, capacity))

    def finished(self, end, *, joined, lasted, **_):
        self.calls.append(("finished", end, joined, lasted))
        self.finished_once.set()

    def named(self, name):
        """Return the arguments of all calls of this name."""
        return [call[1:] for call in self.calls if call[0] == name]


# ---- time


class ManualClock:
    """A clock that stands still until it is moved; threads that wait by it then go on."""

    def __init__(self):
        self._moved = threading.Condition()
        self._now = time.monotonic()
        self._sleepers = []

    def __call__(self):
        return self._now

    def move(self, seconds):
        with self._moved:
            self._now += seconds
            self._moved.notify_all()

    def wait_for_sleeper(self):
        """Wait until a thread waits by this clock; return for how long it does."""
        with self._moved:
            assert self._moved.wait_for(lambda: self._sleepers, TIMEOUT), "no thread waits"
            return self._sleepers[0][0] - self._now

    def wait_for_sleep_of(self, seconds):
        """Wait until a thread waits by this clock for so long, and was not woken."""

        def sleeps():
            left = [until - self._now for until, lock in self._sleepers if not lock._free]
            return any(abs(each - seconds) < TOLERANCE for each in left)

        with self._moved:
            assert self._moved.wait_for(sleeps, TIMEOUT), f"no thread waits for {seconds}"

    @property
    def holds(self):
        """Whether a thread waits by this clock that was not woken."""
        with self._moved:
            return any(not lock._free for _, lock in self._sleepers)

    def lock(self):
        """Make a lock that can be waited for by this clock."""
        return _ClockLock(self)

    @classmethod
    def install(cls, monkeypatch):
        """Let the library's batchers go by such a clock."""
        clock = cls()
        knobs.set_clock(monkeypatch, clock)
        knobs.set_lock_of_workers(monkeypatch, clock.lock)
        return clock


class _ClockLock:
    def __init__(self, clock):
        self._clock = clock
        self._free = True

    def acquire(self, blocking=True, timeout=-1):
        clock = self._clock
        with clock._moved:
            until = clock._now + timeout
            if not self._free:
                clock._sleepers.append((until, self))
                clock._moved.notify_all()
                clock._moved.wait_for(
                    lambda: self._free or (timeout >= 0 and clock._now >= until), TIMEOUT
                )
                clock._sleepers.remove((until, self))
            acquired, self._free = self._free, False
            return acquired

    def release(self):
        with self._clock._moved:
            self._free = True
            self._clock._moved.notify_all()


# ---- forms


class BatcherForm:
    """One way of submitting requests and reading their streams, for one scenario."""

    continuous = False

    def __init__(self):
        super().__init__()
        self._models = []

    def model(self, **options):
        self._models.append(Model(self.home, **options))
        return self._models[-1]

    def batcher(self, model=None, *, max_batch_size=4, **options):
        """Return a batcher, which is closed after the scenario at the latest."""
        model = self.model() if model is None else model
        if self.continuous:
            batcher = ContinuousBatcher(model, max_batch_size=max_batch_size, **options)
        else:
            fn = getattr(model, "agenerate" if self.source_is_async else "generate", model)
            batcher = DynamicBatcher(fn, max_batch_size=max_batch_size, **options)
        self._batches.append(batcher)
        return batcher

    def held_batcher(self, step, **options):
        """Return a batcher, its model, and a gate at which the model is held in this step."""
        gate = self.gate()
        model = self.model(gates={step: gate})
        return self.batcher(model, **options), model, gate

    def submit(self, batcher, request, **options):
        submit = batcher.astream if isinstance(self, InLoop) else batcher.stream
        return submit(request, **options)

    async def close(self, batcher):
        if isinstance(self, InLoop):
            await batcher.aclose()
        else:
            batcher.close()

    def recorder(self, **options):
        """Return metrics that record their calls."""
        return Recorder(self.flag, **options)

    async def submit_behind(self, batcher, gate, request, *others, **options):
        """Submit a request that is held at a gate in its first step, then the others."""
        streams = [self.submit(batcher, request)]
        await gate.reached.wait()
        return streams + [self.submit(batcher, other, **options) for other in others]

    async def submit_together(self, options, of_model, *requests, **how):
        """Submit requests that share a batch: from the second step on, at the latest."""
        first = self.gate()
        if not self.continuous:
            options = {"batch_timeout": 3600.0} | options  # it never passes: the batch is full
        of_model = dict(of_model)
        gates = {0: first} | of_model.pop("gates", {})
        self.last_model = model = self.model(gates=gates, **of_model)
        batcher = self.last_batcher = self.batcher(model, max_batch_size=len(requests), **options)
        if self.continuous:
            streams = await self.submit_behind(batcher, first, *requests, **how)
        else:
            streams = [self.submit(batcher, request, **how) for request in requests]
            await first.reached.wait()
        first.open()
        return streams

    async def _main(self, scenario, arguments):
        await super()._main(scenario, arguments)
        for model in self._models:
            model.check()
        for batcher in self._batches:
            figures = batcher.statistics()
            assert (figures.live, figures.waiting, figures.buffered) == (0, 0, 0)
            assert figures.opened == sum(figures.finished.values())
            assert figures.batches == sum(figures.batch_sizes.values())


THREADS, LOOPS, ASYNC = [Background], [AsyncioSync, TrioSync], [AsyncioAsync, TrioAsync]


def _form(base, what):
    name = "threads" if issubclass(base, Blocking) else base.name
    fields = {"continuous": what == "continuous", "name": f"{what}, {name}"}
    return type(f"{what.title()}{base.__name__}", (BatcherForm, base), fields)


DYNAMIC = [_form(base, "dynamic") for base in THREADS + LOOPS + ASYNC]
CONTINUOUS = [_form(base, "continuous") for base in THREADS + LOOPS]

every_batcher = in_forms(DYNAMIC + CONTINUOUS)
dynamic_batchers = in_forms(DYNAMIC)
continuous_batchers = in_forms(CONTINUOUS)
batchers_in_threads = in_forms([DYNAMIC[0], CONTINUOUS[0]])
batchers_in_loops = in_forms(DYNAMIC[1:] + CONTINUOUS[1:])
batchers_with_threads = in_forms(DYNAMIC[:3] + CONTINUOUS)


# ---- models that give each request back


def echo(requests):
    yield list(requests)


class Echo:
    """An engine that gives each request back, again and again, and records each step's requests."""

    def __init__(self):
        self.slots = {}
        self.steps = []
        self.gate = None

    def add(self, slot, request):
        self.slots[slot] = request

    def step(self):
        if self.gate is not None:
            self.gate.pass_through()
        self.steps.append(sorted(map(str, self.slots.values())))
        return dict(self.slots)

    def remove(self, slot):
        del self.slots[slot]


async def for_ever(requests):
    while True:
        yield list(requests)
        await asyncio.sleep(3600)
