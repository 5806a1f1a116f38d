"""Which waiting requests join a batch, and when: what models of the queue expect of it.

Everything is worked out anew from a plain list of requests, in the order of their arrival.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def groups_of(waiting):
    """Return the requests by group, the group of the oldest request first."""
    groups = {}
    for request in waiting:
        groups.setdefault(request.group, []).append(request)
    return list(groups.values())


@dataclass
class JoiningRules:
    """What the options of a batcher say of it.

    Args:
        batch_timeout: How long a request waits for others.
        max_cost: Of a batch; None for any.
        max_size: Of a batch.
        rank: By what requests come before others, besides their arrival: the least goes first.
    """

    batch_timeout: float
    max_cost: float | None
    max_size: int
    rank: Callable[[object], object] = lambda _: 0

    def fitting(self, group, slots, spent):
        """Return the requests of a group for which a batch has room."""
        fitting = []
        for request in group[:slots]:
            spent += request.cost
            if self.max_cost is not None and spent > self.max_cost:
                break
            fitting.append(request)
        return fitting

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
