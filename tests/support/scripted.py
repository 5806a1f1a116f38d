"""A run of a batcher in virtual time of which every figure is known.

The engine moves the clock, and submits, cancels and closes in the midst of its steps: so one thread
does everything, in one order. Seconds are sums of powers of two, so that they add up exactly.

At 100 `a` of tenant x is submitted, and joins alone. Then, with the time when the step is made:

0. 101: `a` is prefilling. `b` of y, `c` of x and `d` of y are submitted, `e` of y finds the queue
   full, and `f` of x costs too much. Then `b` joins.
1. 103: the first outputs of `a` and `b`.
2. 103.5: `b` is cancelled while the step is made, which gives an output for `a`, and one for `b` in
   vain. Then `c` joins.
3. 103.75: `a` ends with its third output, and `c` fails alone; `g` of z is submitted. Then `d` and
   `g` join together.
4. 104.75: the first outputs of `d` and `g`; `h` of x is submitted.
5. 105.75: the engine raises: `d` and `g` fail, another engine is made, and `h` joins.
6. 106.75: `i` of y is submitted, and the batcher is closed while the step is made, which gives an
   output for `h` in vain; `j` of x is refused.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from batchstream import (
    SKIP,
    ClosedError,
    ContinuousBatcher,
    Fail,
    Last,
    OverloadedError,
)
from support import knobs
from support.sources import TIMEOUT

START = 100.0


class Request(NamedTuple):
    name: str
    tenant: str
    cost: float = 1.0


class Run:
    """One run.

    Args:
        monkeypatch: Sets the clock.
        metrics: What the batcher calls.
        traces: The same for single requests.

    Attributes:
        statistics: What the batcher says in the end.
        refusals: The errors of the requests that were refused, in order.
        streams: The streams of the others, by name.
    """

    def __init__(self, monkeypatch, metrics=None, traces=None):
        self.now = START
        knobs.set_clock(monkeypatch, lambda: self.now)
        self.refusals = []
        self.streams = {}
        self._steps = 0
        self._has_begun = threading.Event()
        self._is_over = threading.Event()
        self._batcher = ContinuousBatcher(
            lambda: _Engine(self),
            max_batch_size=2,
            max_pending=2,
            cost=lambda request: request.cost,
            max_batch_cost=10.0,
            tenant=lambda request: request.tenant,
            metrics=metrics,
            traces=traces,
            name="chat",
        )
        self.submit("a", "x")
        self._has_begun.set()
        assert self._is_over.wait(TIMEOUT)
        self._batcher.close()
        self.statistics = self._batcher.statistics()

    def submit(self, name, tenant, cost=1.0):
        request = Request(name, tenant, cost)
        try:
            self.streams[name] = self._batcher.stream(request, request_id=name)
        except (OverloadedError, ClosedError, ValueError) as error:
            self.refusals.append(error)

    def step(self, slots):
        """Make a step for the requests in these slots, by name."""
        number, self._steps = self._steps, self._steps + 1
        outputs = [self._0, self._1, self._2, self._3, self._4, self._5, self._6][number]()
        assert set(outputs) == set(slots.values()), f"step {number} was made for others"
        return {slot: outputs[name] for slot, name in slots.items()}

    def _0(self):
        assert self._has_begun.wait(TIMEOUT)
        self.now += 1
        for name, tenant in ("b", "y"), ("c", "x"), ("d", "y"), ("e", "y"):
            self.submit(name, tenant)
        self.submit("f", "x", cost=11.0)
        return {"a": SKIP}

    def _1(self):
        self.now += 2
        return {"a": 1, "b": 1}

    def _2(self):
        self.now += 0.5
        self.streams["b"].cancel()
        return {"a": 2, "b": 2}

    def _3(self):
        self.now += 0.25
        self.submit("g", "z")
        return {"a": Last(3), "c": Fail(ValueError("c cannot be served"))}

    def _4(self):
        self.now += 1
        self.submit("h", "x")
        return {"d": 1, "g": 1}

    def _5(self):
        self.now += 1
        raise RuntimeError("out of memory")

    def _6(self):
        self.now += 1
        self.submit("i", "y")
        self._batcher.close()
        self.submit("j", "x")
        self._is_over.set()
        return {"h": 1}


class _Engine:
    def __init__(self, run):
        self._run = run
        self._slots = {}

    def add(self, slot, request):
        self._slots[slot] = request.name

    def step(self):
        return self._run.step(self._slots)

    def remove(self, slot):
        del self._slots[slot]
