"""Requests that wait, and which of them join a batch when. No clock, lock or thread.

Theory of operation
-------------------

Each waiting request is in one *group*, from which alone a batch is made. Which group makes the next
one, and when, is what `readiness` says. The requests of a group join in the order of arrival: that
of one tenant in one band. Where requests have priorities or tenants, a `FairOrder` says which of
them is next; all else is as it was.

The scheduler calls `take` whenever a worker or a slot is free, and not before: what arrives
meanwhile makes the batch larger. If that gives no request the worker waits until `ready_at`, or
until a request arrives.

In continuous batching there is one group, no timeout, and `take` is asked before each step for as
many requests as there are free slots.

A request that costs more than a batch may, since the limit was lowered while it waited, joins one
that has no other.

Not safe for threads: the holder of the batcher's lock makes one call at a time. Groups are
compared by identity; nothing of the caller's is compared, hashed or called.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count, islice, takewhile
from typing import TYPE_CHECKING, Final, Generic

from typing_extensions import TypeVar

from batchstream._batching.waiting.budget import Budget
from batchstream._batching.waiting.fair_order import FairOrder
from batchstream._batching.waiting.pending import PendingBounds
from batchstream._batching.waiting.readiness import Readiness, Waiting
from batchstream._core.errors import CostError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batchstream._batching.waiting.limits import Limits, LimitsInForce
    from batchstream._batching.waiting.readiness import Group

_TIDY_ABOVE: Final = 64
"""How many stale entries may stay before they are dropped."""

RequestT = TypeVar("RequestT", bound=Waiting)


class WaitingQueue(Generic[RequestT]):
    """The requests that wait for a batch. Times are in seconds, and given by the caller.

    Args:
        limits: How large batches are, how long requests wait for them, and how many may.
        has_places: Whether requests have a `place`, by which they are in order.
        is_measured: Whether only a function of the user's says what a batch costs.

    Attributes:
        expiries: Until when requests may wait, as a heap of pairs with a number; also of requests
            that do not wait any more.
    """

    def __init__(
        self,
        limits: LimitsInForce,
        *,
        has_places: bool = False,
        is_measured: bool = False,
    ) -> None:
        self._limits = limits
        self._groups: dict[object, Group[RequestT]] = {}
        # Of numbers, not of requests: a stale entry must not hold the user's objects.
        self.expiries: list[tuple[float, int]] = []
        self._expiring: dict[int, RequestT] = {}
        self._numbers = count()
        # Every request that waits, in the order of arrival, with its number if it expires.
        # It may be in its group a moment earlier or later, if a signal's exception comes between.
        # Not a dict, whose first key is the farther the more were deleted.
        self._all: OrderedDict[RequestT, int | None] = OrderedDict()
        self._order: FairOrder[RequestT] | None = None
        if has_places:
            self._order = FairOrder()
        self._readiness: Readiness[RequestT] = Readiness(
            self._groups,
            self._order,
            limits=limits,
            is_measured=is_measured,
        )
        self._gathers = True
        # Else the group of the oldest request is always ready.
        self._has_hints = limits.now.batch_timeout > 0 or self._order is not None
        self._bounds: PendingBounds[RequestT] | None = None
        # Besides `max_pending`, which is looked at first: most requests need no more.
        self._has_bounds = limits.now.max_batch_cost is not None
        self._make_bounds(limits.now)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, request: object) -> bool:
        return request in self._all

    def can_give(self, request: RequestT) -> bool:
        """Whether `take` will give a request: not while its taking has been broken off."""
        group = self._groups.get(request.group)
        if request not in self._all or group is None or request not in group:
            return False
        return self._order is None or self._order.has(request)

    def append(self, request: RequestT, room: Callable[[], int] | None) -> None:
        """Add a request that has not arrived before any that came earlier.

        Args:
            request: The request.
            room: Returns how many requests could join at once, and do not count as waiting; called
                if as many wait as may. None for a request that is put back: it had its place.

        Raises:
            OverloadedError: As many requests wait as may, or they cost as much.
            CostError: It costs more than a batch may, and would wait for ever.
        """
        most = self._limits.now.max_pending
        if room is not None and (self._has_bounds or len(self._all) >= most):
            self._check(request, room)
        bounds, order = self._bounds, self._order
        if bounds is not None:
            bounds.announce()
        number, wait_until = None, request.wait_until
        if wait_until is not None:
            number = next(self._numbers)
        self._all[request] = number  # first, so that one that an exception breaks off is removed
        if number is not None and wait_until is not None:
            self._expiring[number] = request
            heappush(self.expiries, (wait_until, number))
        group = self._groups.setdefault(request.group, OrderedDict())
        if self._has_hints:
            self._readiness.hint(request, group)
        if order is not None:
            order.add(request, put_back=room is None)
        group[request] = None
        if bounds is not None:
            bounds.count(request.cost)

    def _check(self, request: RequestT, room: Callable[[], int]) -> None:
        """Check whether a request may wait.

        Raises:
            OverloadedError, CostError: See `append`.
        """
        limits = self._limits.now
        if limits.max_batch_cost is not None and request.cost > limits.max_batch_cost:
            raise cost_error(request.cost, limits.max_batch_cost)
        waiting, most = len(self._all), limits.max_pending
        if waiting >= most and (pending := waiting - room()) >= most:
            raise OverloadedError(
                f"{pending} requests are waiting, and no more than {most} may "
                f"(max_pending): submit the request again when some have joined a batch",
                pending=pending,
                max_pending=most,
            )
        if self._bounds is not None:
            self._bounds.check(request, room)

    def put_back(self, request: RequestT) -> None:
        """Add a request again that was taken, in front of all others, whether there is room or not.

        Of several that were taken, the last is put back first.
        """
        self.append(request, None)
        group = self._groups[request.group]
        if self._has_hints:
            self._readiness.hint_now(request, group)
        self._all.move_to_end(request, last=False)
        group.move_to_end(request, last=False)

    def has_room(self, cost: float, account: object, room: Callable[[], int]) -> bool:
        """Whether `append` would not refuse a request for the others.

        Args:
            cost: What it costs.
            account: What stands for its tenant; None for any tenant with room.
            room: As in `append`.
        """
        waiting, most = len(self._all), self._limits.now.max_pending
        if waiting >= most and waiting - room() >= most:
            return False
        return self._bounds is None or self._bounds.has_room(cost, account, room)

    def has_most_of(self, account: object, but: int, room: Callable[[], int]) -> bool:
        """Whether as many requests of a tenant wait as may; without the lock.

        Args:
            account: What stands for the tenant.
            but: How many of its waiting requests are not to be counted.
            room: As in `append`.
        """
        return self._bounds is not None and self._bounds.has_most_of(account, but, room)

    def gather_no_more(self) -> None:
        """Let no request wait for others any more: from now on each that waits is ready."""
        self._gathers = False
        if self._order is None:
            self._has_hints = False
        else:
            self._readiness.gather_no_more()

    def change_limits(self, limits: Limits) -> None:
        """Go by other limits from now on, of all that share them with this queue."""
        if self._gathers and (limits.batch_timeout > 0 or self._has_hints):
            self._readiness.hint_all()
            self._has_hints = True
        self._make_bounds(limits)
        self._limits.now = limits
        if not limits.batch_timeout and self._order is None:
            self._has_hints = False
        if self._has_hints:
            self._readiness.tidy()

    def _make_bounds(self, limits: Limits) -> None:
        """Keep from now on what the requests that wait cost, if a limit asks for it."""
        if limits.max_pending_cost is None and limits.max_pending_per_tenant is None:
            return
        self._has_bounds = True  # first: harmless alone, if a signal's exception comes between
        if self._bounds is None:
            self._bounds = PendingBounds(self._all, limits=self._limits, order=self._order)

    def has_group(self, group: object) -> bool:
        """Whether requests of this group wait."""
        return group in self._groups

    def has_tenant(self, account: object) -> bool:
        """Whether requests of the tenant wait that this object stands for."""
        return self._order is not None and self._order.waiting_of(account) > 0

    def remove(self, request: RequestT) -> bool:
        """Take a request out; False if it was not waiting."""
        if request not in self._all:
            return False
        self._remove((request,))
        return True

    def first_expired(self, now: float) -> RequestT | None:
        """Return the request that has waited too long for the longest; the caller removes it."""
        try:
            while self.expiries[0][0] <= now:
                request = self._expiring.get(self.expiries[0][1])
                if request is not None and request in self._all:
                    return request
                heappop(self.expiries)
        except IndexError:  # also in the midst of it, if a signal's handler closes the batcher
            pass
        return None

    def take(
        self,
        now: float,
        *,
        slots: int,
        spent: float | None = None,
        step: Budget | None = None,
    ) -> list[RequestT]:
        """Take out the requests that join a batch now; none, if it is better to wait.

        No request overtakes another of its group: where the next does not fit, the requests behind
        it wait with it.

        Args:
            now: What time it is.
            slots: How many there is room for.
            spent: What the requests already in the batch cost; None if there are none.
            step: What the next step of the batch may cost, if that is bounded.
        """
        if slots < 1:
            return []
        group = self._readiness.first(now) if self._has_hints else self._oldest_group()
        if group is None:
            return []
        most = self._limits.now.max_batch_cost
        batch = None if most is None else Budget(most, spent)
        fits = None if batch is step is None else partial(_fits, batch, step)
        if self._order is not None:
            return self._take_in_turn(group, self._order, slots, fits)
        first = islice(group, slots)
        joining = list(first if fits is None else takewhile(fits, first))
        self._remove(joining)
        return joining

    def candidates(self, now: float, *, slots: int) -> list[RequestT]:
        """Return the requests that join a batch now if its cost allows; they still wait."""
        group = self._readiness.first(now) if self._has_hints else self._oldest_group()
        return [] if group is None else list(islice(group, slots))

    def _take_in_turn(
        self,
        group: Group[RequestT],
        order: FairOrder[RequestT],
        slots: int,
        fits: Callable[[RequestT], bool] | None,
    ) -> list[RequestT]:
        joining: list[RequestT] = []
        oldest = next(iter(group), None)
        while oldest is not None and len(joining) < slots:
            request = order.first(oldest.group)
            if request is None or not (fits is None or fits(request)):
                break
            order.charge(request)
            joining.append(request)
            self._remove((request,))
        return joining

    def requests(self) -> list[RequestT]:
        """Return all requests that wait, the oldest first."""
        return sorted(self._all, key=lambda request: request.arrived)

    def ready_at(self) -> float | None:
        """Return when `take` or `expire` will give a request, if no other arrives.

        A time that has passed if a batch is ready; None if no request waits.
        """
        earliest: float | None = None
        if self._has_hints:
            earliest = self._readiness.next_at()
        else:
            for request in self._all:
                if self._groups.get(request.group):  # see `_oldest_group`
                    earliest = request.arrived
                    break
        while self.expiries and self.expiries[0][1] not in self._expiring:
            heappop(self.expiries)
        if self.expiries and (earliest is None or self.expiries[0][0] < earliest):
            earliest = self.expiries[0][0]
        return earliest

    def _oldest_group(self) -> Group[RequestT] | None:
        for request in self._all:
            group = self._groups.get(request.group)
            # An empty one: the adding of its first request was broken off a moment ago.
            if group is not None and group:
                return group
        return None

    def _remove(self, requests: Iterable[RequestT]) -> None:
        for request in requests:
            if self._bounds is not None:
                self._bounds.announce()
            if self._order is not None:
                self._order.discard(request)
            number = self._all.get(request)
            if number is not None:
                self._expiring.pop(number, None)
            group = self._groups.get(request.group)
            if group is not None:
                # A group goes before its last request: none is ever empty, but one to which the
                # adding of its first request was broken off.
                if not group or (len(group) == 1 and request in group):
                    self._groups.pop(request.group, None)
                group.pop(request, None)
            self._all.pop(request, None)  # last, so that one that was broken off is removed again
            if self._bounds is not None:
                self._bounds.count(-request.cost)
        # A request that has joined may take long, and its entry would stay until it had expired.
        if len(self.expiries) > 2 * len(self._all) + _TIDY_ABOVE:
            self.expiries = [entry for entry in self.expiries if entry[1] in self._expiring]
            heapify(self.expiries)
        if self._has_hints:
            self._readiness.tidy()


def _fits(batch: Budget | None, step: Budget | None, request: Waiting) -> bool:
    """Count a request that is to join, and return True; False if it costs too much."""
    in_batch = batch is None or batch.admit(request.cost)
    return in_batch and (step is None or step.admit(request.step_cost))


def cost_error(cost: float, max_batch_cost: float) -> CostError:
    """Return the error of a request that costs more than a batch may, and would wait for ever."""
    return CostError(
        f"the request costs {cost!r}, more than a batch may cost: {max_batch_cost!r} "
        f"(max_batch_cost)"
    )
