"""Which waiting requests join a batch, and when: what models of the queue expect of it.

Everything is worked out anew from a plain list of requests, in the order of their arrival.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st

from batchstream._batching.waiting.limits import Limits, LimitsInForce
from batchstream._batching.waiting.queue import WaitingQueue


def groups_of(waiting):
    """Return the requests by group, the group of the oldest request first."""
    groups = {}
    for request in waiting:
        groups.setdefault(request.group, []).append(request)
    return list(groups.values())


CHANGES = {
    "size": st.none() | st.integers(1, 4),
    "timeout": st.none() | st.sampled_from([0.0, 1.0, 2.0, 6.0]),
    "max_cost": st.none() | st.sampled_from([1.0, 3.0, 5.0]),
    "max_pending": st.none() | st.integers(1, 8),
}
"""Limits that change, and others that stay."""


def waiting_queue(**options):
    """Return a queue whose limits are among these options."""
    limits = Limits(**{name: options.pop(name) for name in Limits._fields if name in options})
    return WaitingQueue(LimitsInForce(limits), **options)


@dataclass
class JoiningRules:
    """What the options of a batcher say of it.

    Args:
        batch_timeout: How long a request waits for others.
        max_cost: Of a batch; None for any.
        max_size: Of a batch.
        rank: By what requests come before others, besides their arrival: the least goes first.
        pads: Whether each request of a batch costs as much as the dearest.
    """

    batch_timeout: float
    max_cost: float | None
    max_size: int
    rank: Callable[[object], object] = lambda _: 0
    pads: bool = False

    def changed(self, *, size, timeout, max_cost, max_pending):
        """Return the limits, with each argument that is not None in place of its limit.

        Args:
            size: Of a batch.
            timeout: How long a request waits for others.
            max_cost: Of a batch; it stays None where there is none.
            max_pending: How many may wait.
        """
        return Limits(
            size or self.max_size,
            max_pending,
            self.batch_timeout if timeout is None else timeout,
            self.max_cost and (max_cost or self.max_cost),
        )

    def go_by(self, limits):
        """Go by other limits from now on."""
        self.max_size, self.batch_timeout = limits.max_batch_size, limits.batch_timeout
        self.max_cost = limits.max_batch_cost

    def fitting(self, group, slots, spent):
        """Return the requests of a group for which a batch has room.

        Args:
            group: The requests.
            slots: How many there is room for.
            spent: What the batch costs already; None if it has no request.
        """
        fitting = []
        if spent is None and self.max_cost is not None and group[0].cost > self.max_cost:
            return group[: min(slots, 1)]
        spent = spent or 0.0
        for request in group[:slots]:
            cost = spent + self.cost_of([*fitting, request])
            if self.max_cost is not None and cost > self.max_cost:
                break
            fitting.append(request)
        return fitting

    def cost_of(self, requests):
        """Return what these cost together."""
        costs = [request.cost for request in requests]
        return len(costs) * max(costs) if self.pads else sum(costs)

    def ready_at(self, group):
        """Return when a group makes a batch: now, if it is full or need not wait for others."""
        fitting = self.fitting(group, self.max_size, 0.0)
        if not self.batch_timeout or len(fitting) in {self.max_size, *range(len(group))}:
            return group[0].arrived
        times = [request.arrived + self.batch_timeout for request in fitting]
        times += [(r.arrived + r.wait_until) / 2 for r in fitting if r.wait_until is not None]
        return min(times)

    def expected(self, waiting, now, slots, spent):
        """Return the requests that join a batch now."""
        ready = [group for group in groups_of(waiting) if slots and self.ready_at(group) <= now]
        if not ready:
            return []
        ordered = [sorted(group, key=self.rank) for group in ready]
        first = min(ordered, key=lambda group: (self.rank(group[0]), waiting.index(group[0])))
        return self.fitting(first, slots, spent)
