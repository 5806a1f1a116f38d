"""A tenant that floods a batcher, and one that does not: how long the second one waits.

In virtual time over the scheduler itself, and once in a batcher with its thread, where time is
counted in steps.
"""

from __future__ import annotations

import random
import threading
from itertools import count

import pytest

from batchstream import EOS, ContinuousBatcher, NotNow, OverloadedError
from batchstream._batching.options import BatcherOptions
from batchstream._batching.requests.request import Request, Submission
from batchstream._batching.scheduling.scheduler import Scheduler
from batchstream._batching.waiting.places import Place
from batchstream._core.rules import EndRules
from support.sources import TIMEOUT

LOAD = 100
"""How much more the noisy tenant submits."""


def percentile_95(waits):
    return sorted(waits)[int(0.95 * len(waits))]


class Simulation:
    """A scheduler whose requests come and are served in virtual time."""

    def __init__(self, rates, seconds, **options):
        self.chance = random.Random(1)  # noqa: S311 - no secret
        made = {"max_buffered": 1, "on_overflow": "cancel", "max_pending": 10**6}
        made |= {"tenant": str, "max_pending_per_tenant": 200}
        self.scheduler = Scheduler(
            BatcherOptions(EndRules(), **made | options), reuses_workers=True
        )
        self.arrivals = sorted(
            (at, tenant) for tenant, rate in rates.items() for at in self.times(rate, seconds)
        )
        self.arrivals.reverse()
        self.waits = {tenant: [] for tenant in rates}
        self.refused = dict.fromkeys(rates, 0)

    def times(self, rate, seconds):
        at = 0.0
        while (at := at + self.chance.expovariate(rate)) < seconds:
            yield at

    def arrive(self, now):
        """Let all requests come that come until now."""
        while self.arrivals and self.arrivals[-1][0] <= now:
            at, tenant = self.arrivals.pop()
            request = Request(0, Submission(tenant), None, self.scheduler.ended_requests)
            request.place = Place(tenant=tenant)
            request.place.account = tenant
            try:
                self.scheduler.submit(request, at)
            except OverloadedError:
                self.refused[tenant] += 1

    def joined(self, requests, now):
        for request in requests:
            self.waits[request.place.tenant].append(now - request.arrived)

    def run_batches(self):
        """Let one worker run batches of a second each, however many requests are in one."""
        now, worker = 0.0, None
        while self.arrivals:
            now = max(now, self.arrivals[-1][0]) if worker is None else now
            self.arrive(now)
            if self.scheduler.workers.wakeups:
                worker = self.scheduler.workers.wakeups.popleft().worker
                assert self.scheduler.workers.claim_start(worker, object())
            decision = self.scheduler.next_batch(worker, None, now)
            self.joined(decision.requests, now)
            if decision.requests:
                now += 1.0
            else:
                worker = None
        return self.waits

    def run_steps(self, slots):
        """Let requests join between steps of a second each, and last for 1 to 20 steps."""
        live = []
        now = 0.0
        while self.arrivals:
            now += 1.0
            self.arrive(now)
            live = [end for end in live if end > now]
            taken = self.scheduler.take(now, slots=slots - len(live))
            self.joined(taken, now)
            live += [now + self.chance.randint(1, 20) for _ in taken]
        return self.waits


@pytest.mark.rule(29)
@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_a_flood_leaves_the_waits_for_batches_of_a_quiet_tenant_as_they_are(rate):
    alone = Simulation({"quiet": rate}, 150, max_batch_size=8).run_batches()
    flooded = Simulation({"quiet": rate, "noisy": LOAD * rate}, 150, max_batch_size=8)
    waits = flooded.run_batches()
    assert flooded.refused["noisy"] > 0
    assert flooded.refused["quiet"] == 0
    assert percentile_95(waits["quiet"]) <= 2 * percentile_95(alone["quiet"])
    assert percentile_95(waits["noisy"]) > 10 * percentile_95(alone["quiet"])


@pytest.mark.rule(29)
def test_a_flood_leaves_the_waits_for_slots_of_a_quiet_tenant_within_twice_of_what_they_are():
    rates = {"quiet": 0.5}
    alone = Simulation(rates, 400, max_batch_size=64).run_steps(64)
    rates["noisy"] = LOAD * rates["quiet"]
    flooded = Simulation(rates, 400, max_batch_size=64).run_steps(64)
    assert percentile_95(flooded["quiet"]) <= 2 * percentile_95(alone["quiet"])
    assert percentile_95(flooded["noisy"]) > 10 * percentile_95(alone["quiet"])


# ---- in a thread


class CountedEngine:
    """Makes each step when it may, and knows at which step each request has joined.

    A request is its tenant, its number and how many steps it takes.

    Args:
        room: For how many requests it has room.
    """

    def __init__(self, room):
        self.steps = 0
        self.joined = {}
        self.in_step = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.is_free = False
        self._left = {}
        self._room = room

    def add(self, slot, request):
        if len(self._left) == self._room:
            raise NotNow
        self.joined[request] = self.steps
        self._left[slot] = request[2]

    def step(self):
        self.steps += 1
        if not self.is_free:
            self.in_step.release()
            assert self.may_end.acquire(timeout=TIMEOUT)
        for slot in self._left:
            self._left[slot] -= 1
        return {slot: "output" if left else EOS for slot, left in self._left.items()}

    def remove(self, slot):
        del self._left[slot]


def waits_in_steps(*, noisy, steps, slots):
    """Return by how many steps each request of the quiet tenant joined later than it came."""
    engine, numbers = CountedEngine(room=16), count()
    submitted, streams = {}, []

    def submit(tenant, length):
        request = tenant, next(numbers), length
        submitted[request] = engine.steps
        try:
            streams.append(batcher.stream(request))
        except OverloadedError:
            assert tenant == "noisy"

    with ContinuousBatcher(
        engine,
        max_batch_size=slots,
        tenant=lambda request: request[0],
        max_pending_per_tenant=64,
    ) as batcher:
        submit("keeps it running", steps + 9)
        for number in range(steps):
            assert engine.in_step.acquire(timeout=TIMEOUT)
            if number % 4 == 0:
                submit("quiet", 1 + number % 9)
            if noisy:
                for more in range(LOAD // 4):
                    submit("noisy", 1 + (number + more) % 9)
            engine.may_end.release()
        assert engine.in_step.acquire(timeout=TIMEOUT)
        engine.is_free = True
        for stream in streams:
            stream.cancel()
        engine.may_end.release()
    quiet = [request for request in submitted if request[0] == "quiet"]
    # One that joins before the next step has waited for one step, that in which it came.
    return [engine.joined[request] - submitted[request] + 1 for request in quiet[:-2]]


@pytest.mark.rule(29)
@pytest.mark.parametrize("slots", [16, 64, 256])  # the engine has no room for more than 16
def test_a_flood_leaves_the_waits_of_a_quiet_tenant_in_a_real_batcher_within_twice(slots):
    alone = waits_in_steps(noisy=False, steps=120, slots=slots)
    flooded = waits_in_steps(noisy=True, steps=120, slots=slots)
    assert percentile_95(flooded) <= 2 * percentile_95(alone)
