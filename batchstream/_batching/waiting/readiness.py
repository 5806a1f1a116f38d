"""Which group of the requests that wait makes a batch, and when. No clock, lock or thread.

Theory of operation
-------------------

A group is *ready* when it fills a batch already, or when one of the requests that would join has
waited for others as long as it should: for `batch_timeout`, or for half of the time that it may
wait at all. Where only a function of the user's says what a batch costs, a group is ready to be
*measured* as well, when a request has come since it was measured last; see `measuring`. Of several
ready groups the one goes first whose next request does, so that none starves: the oldest one, where
requests go in the order of arrival.

No call looks at every group. Two heaps say which to look at: `_due` has the time when a group may
be ready; `_ready` has the groups that were ready once, by their next request. The entries are
hints. One may be too early, or of a group that is gone, and is then put right or dropped; a group
has none that is too late. So what may make a group ready earlier, or its next request an earlier
one, adds its hint first, and then makes the change.

Not safe for threads, as the queue, whose groups these are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from itertools import count, islice, takewhile
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias

from typing_extensions import TypeVar

from batchstream._batching.waiting.budget import Budget

if TYPE_CHECKING:
    from batchstream._batching.waiting.fair_order import FairOrder
    from batchstream._batching.waiting.limits import LimitsInForce
    from batchstream._batching.waiting.places import Place

_TIDY_ABOVE: Final = 64
"""How many stale hints may stay before they are dropped."""


class Waiting(Protocol):
    """What the queue reads of a request.

    Attributes:
        group: Stands for its key; compared by identity.
        cost: What it takes of `max_batch_cost`.
        step_cost: What its first step takes of `max_step_cost`.
        arrived: When it came.
        wait_until: Until when it may wait, if not for ever.
        place: Its band and its tenant; None where there are none.
        measured: The limits by which its group was measured last with it, if ever.
    """

    group: object
    arrived: float
    place: Place | None
    measured: object

    @property
    def cost(self) -> float: ...
    @property
    def step_cost(self) -> float: ...
    @property
    def wait_until(self) -> float | None: ...


RequestT = TypeVar("RequestT", bound=Waiting)

Group: TypeAlias = OrderedDict[RequestT, None]
"""Requests that were put back, and behind them the others in the order of arrival."""


class Readiness(Generic[RequestT]):
    """The groups that make a batch, now or later.

    Args:
        groups: The requests that wait, by group.
        order: Which request of a group is the next; None for the oldest.
        limits: How large batches are, and for how long requests wait for others.
        is_measured: Whether only a function of the user's says what a batch costs.
    """

    def __init__(
        self,
        groups: dict[object, Group[RequestT]],
        order: FairOrder[RequestT] | None,
        *,
        limits: LimitsInForce,
        is_measured: bool,
    ) -> None:
        self._groups = groups
        self._order = order
        self._limits = limits
        self._is_measured = is_measured
        self._gathers = True
        self._numbers = count()
        self._due: list[tuple[float, int, Group[RequestT]]] = []
        # By the arrival, or the rank, of the next request: all of one queue are of one kind.
        self._ready: list[tuple[Any, int, Group[RequestT]]] = []
        self._looked_at = -math.inf  # when a group was last put into `_ready`

    def hint(self, request: RequestT, group: Group[RequestT]) -> None:
        """Take note that a request is about to be added to a group."""
        at = request.arrived
        if self._order is None:
            waiting = len(group) + 1
            limits = self._limits.now
            if waiting < limits.max_batch_size and limits.max_batch_cost is None:
                if waiting > 1 and request.wait_until is None:
                    return  # it does not change when the group is ready
                at = self._waits_for_others_until(request)
        heappush(self._due, (at, next(self._numbers), group))

    def hint_now(self, request: RequestT, group: Group[RequestT]) -> None:
        """Take note that a request was put back in front of a group."""
        heappush(self._due, (request.arrived, next(self._numbers), group))

    def first(self, now: float) -> Group[RequestT] | None:
        """Return the ready group whose next request is the first of all."""
        try:
            while True:
                self._look_at_due(now)
                rank, number, group = self._ready[0]
                oldest = self._oldest_in(group)
                if oldest is not None:
                    due = self._due_at(group)
                    if due <= now and self._rank(oldest) == rank:
                        return group
                    heappush(self._due, (due, number, group))
                heappop(self._ready)
        except IndexError:  # none is ready; or a signal's handler has just closed the batcher
            return None

    def next_at(self) -> float | None:
        """Return when a group is ready next; a time that has passed if one is."""
        while self._ready:
            _, number, group = self._ready[0]
            if self._oldest_in(group) is not None:
                due = self._due_at(group)
                if due <= self._looked_at:
                    return due
                heappush(self._due, (due, number, group))
            heappop(self._ready)
        while self._due:
            hinted, number, group = self._due[0]
            if self._oldest_in(group) is not None:
                due = self._due_at(group)
                if due <= hinted:
                    return due
                heappush(self._due, (due, number, group))
            heappop(self._due)
        return None

    def gather_no_more(self) -> None:
        """Let all groups be ready, now and from now on."""
        self._gathers = False
        self.hint_all()

    def hint_all(self) -> None:
        """Take note that any group may be ready earlier than it was."""
        for group in list(self._groups.values()):
            # Twice: a signal's handler may call this where a hint is about to be removed.
            for request in [*islice(group, 1)] * 2:
                self.hint_now(request, group)

    def _fitting(self, group: Group[RequestT]) -> list[RequestT]:
        """Return the oldest of a group, as many as a batch has room for.

        Where batches are measured, they may be too many.
        """
        limits = self._limits.now
        first = islice(group, limits.max_batch_size)
        if limits.max_batch_cost is None or self._is_measured:
            return list(first)
        budget = Budget(limits.max_batch_cost, 0.0)
        return list(takewhile(lambda request: budget.admit(request.cost), first))

    def tidy(self) -> None:
        """Drop the hints of groups that are gone, and all but one of others, if there are many."""
        if len(self._due) + len(self._ready) <= 2 * len(self._groups) + _TIDY_ABOVE:
            return
        groups = list(self._groups.values())
        hints = [(self._due_at(it), next(self._numbers), it) for it in groups if it]
        heapify(hints)
        self._due, self._ready = hints, []

    def _look_at_due(self, now: float) -> None:
        """Put into `_ready` the groups that are ready by now."""
        self._looked_at = now
        while self._due and self._due[0][0] <= now:
            _, number, group = self._due[0]
            oldest = self._oldest_in(group)
            if oldest is not None:
                due = self._due_at(group)
                if due <= now:
                    heappush(self._ready, (self._rank(oldest), number, group))
                else:
                    heappush(self._due, (due, number, group))
            heappop(self._due)

    def _oldest_in(self, group: Group[RequestT]) -> RequestT | None:
        """Return the oldest request of a group; None if the group is gone."""
        oldest = next(iter(group), None)
        if oldest is None or self._groups.get(oldest.group) is not group:
            return None
        # None of it is in the order if the removal of its last request was broken off a moment ago.
        if self._order is not None and self._order.first(oldest.group) is None:
            return None
        return oldest

    def _rank(self, oldest: RequestT) -> object:
        """Return by what the group of this request comes before another: the least goes first."""
        return oldest.arrived if self._order is None else self._order.rank(oldest.group)

    def _due_at(self, group: Group[RequestT]) -> float:
        """Return when no request of a group waits for others any more: at once if it is full.

        Whether it is full does not depend on the order: it is not if all of them fit.
        """
        limits = self._limits.now
        if not (limits.batch_timeout and self._gathers):
            return next(iter(group)).arrived
        if self._is_measured and next(reversed(group)).measured is not limits:
            return next(iter(group)).arrived
        fitting = self._fitting(group)
        if len(fitting) == limits.max_batch_size or len(fitting) < len(group):
            return next(iter(group)).arrived
        return min(map(self._waits_for_others_until, fitting))

    def _waits_for_others_until(self, request: RequestT) -> float:
        until = request.arrived + self._limits.now.batch_timeout
        if request.wait_until is not None:
            until = min(until, (request.arrived + request.wait_until) / 2)
        return until
