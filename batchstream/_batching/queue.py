"""Requests that wait, and which of them join a batch when. No clock, lock or thread.

Theory of operation
-------------------

Each waiting request is in one *group*, from which alone a batch is made, in the order of arrival. A
group is *ready* when it fills a batch already, or when one of the requests that would join has
waited for others as long as it should: for `batch_timeout`, or for half of the time that it may
wait at all. Of several ready groups the one with the oldest request goes first, so that none
starves.

No call looks at every group. Two heaps say which to look at: `_due`, when a group may be ready, and
`_ready`, those that were ready once, by their oldest request. Their entries are hints. One may be
too early, or of a group that is gone, and is then put right or dropped; a group has none that is
too late. So what may make a group ready earlier adds its hint first, and then makes the change.

The scheduler calls `take` whenever a worker or a slot is free, and not before: what arrives
meanwhile makes the batch larger. If that gives no request the worker waits until `ready_at`, or
until a request arrives.

In continuous batching there is one group, no timeout, and `take` is asked before each step for as
many requests as there are free slots.

Not safe for threads: the holder of the batcher's lock makes one call at a time. Groups are
compared by identity; nothing of the caller's is compared, hashed or called.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import TYPE_CHECKING, Final, Generic, Protocol

from typing_extensions import TypeVar

from batchstream._core.errors import CostError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

_TIDY_ABOVE: Final = 64
"""How many stale entries, or keys, may stay before they are dropped."""


class Waiting(Protocol):
    """What the queue reads of a request.

    Attributes:
        group: Stands for its key; compared by identity.
        cost: What it takes of `max_batch_cost`.
        arrived: When it came.
        wait_until: Until when it may wait, if not for ever.
    """

    group: object
    arrived: float

    @property
    def cost(self) -> float: ...
    @property
    def wait_until(self) -> float | None: ...


RequestT = TypeVar("RequestT", bound=Waiting)


class WaitingQueue(Generic[RequestT]):
    """The requests that wait for a batch. Times are in seconds, and given by the caller.

    Args:
        max_batch_size: How many requests a batch has at most.
        batch_timeout: For how long a request waits for others at most, while a worker is free.
        max_batch_cost: What the requests of a batch may cost together.
        max_pending: How many may wait.

    Attributes:
        expiries: Until when requests may wait, as a heap of pairs with a number; also of requests
            that do not wait any more.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        batch_timeout: float = 0.0,
        max_batch_cost: float | None = None,
        max_pending: int,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._batch_timeout = batch_timeout
        self._max_batch_cost = max_batch_cost
        self._max_pending = max_pending
        self._groups: dict[object, OrderedDict[RequestT, None]] = {}
        self._due: list[tuple[float, int, OrderedDict[RequestT, None]]] = []
        self._ready: list[tuple[float, int, OrderedDict[RequestT, None]]] = []
        self._looked_at = -math.inf  # when a group was last put into `_ready`
        # Of numbers, not of requests: a stale entry must not hold the user's objects.
        self.expiries: list[tuple[float, int]] = []
        self._expiring: dict[int, RequestT] = {}
        self._numbers = count()
        # Every request that waits, in the order of arrival, with the numbers of those that expire.
        # It may be in its group a moment earlier or later, if a signal's exception comes between.
        # Not a dict, whose first key is the farther the more were deleted.
        self._all: OrderedDict[RequestT, int | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, request: object) -> bool:
        return request in self._all

    def can_give(self, request: RequestT) -> bool:
        """Whether `take` will give a request: not while its taking has been broken off."""
        group = self._groups.get(request.group)
        return request in self._all and group is not None and request in group

    def append(self, request: RequestT, room: Callable[[], int]) -> None:
        """Add a request that has not arrived before any that came earlier.

        Args:
            request: The request.
            room: Returns how many requests could join at once, and do not count as waiting; called
                if as many wait as may.

        Raises:
            OverloadedError: As many requests wait as may.
            CostError: It costs more than a batch may, and would wait for ever.
        """
        if self._max_batch_cost is not None and request.cost > self._max_batch_cost:
            raise CostError(
                f"the request costs {request.cost!r}, more than a batch may cost: "
                f"{self._max_batch_cost!r} (max_batch_cost)"
            )
        waiting = len(self._all)
        if waiting >= self._max_pending and (pending := waiting - room()) >= self._max_pending:
            raise OverloadedError(
                f"{pending} requests are waiting, and no more than {self._max_pending} may "
                f"(max_pending): submit the request again when some have joined a batch",
                pending=pending,
                max_pending=self._max_pending,
            )
        number, wait_until = None, request.wait_until
        if wait_until is not None:
            number = next(self._numbers)
        self._all[request] = number  # first, so that one that an exception breaks off is removed
        if number is not None and wait_until is not None:
            self._expiring[number] = request
            heappush(self.expiries, (wait_until, number))
        group = self._groups.setdefault(request.group, OrderedDict())
        if self._batch_timeout:
            waiting = len(group) + 1
            if waiting >= self._max_batch_size or self._max_batch_cost is not None:
                heappush(self._due, (request.arrived, next(self._numbers), group))
            elif waiting == 1 or wait_until is not None:
                due = self._waits_for_others_until(request)
                heappush(self._due, (due, next(self._numbers), group))
        group[request] = None

    def put_back(self, request: RequestT) -> None:
        """Add a request again that was taken, in front of all others, whether there is room or not.

        Of several that were taken, the last is put back first.
        """
        self.append(request, room=self.__len__)
        group = self._groups[request.group]
        if self._batch_timeout:
            heappush(self._due, (request.arrived, next(self._numbers), group))
        self._all.move_to_end(request, last=False)
        group.move_to_end(request, last=False)

    def has_room(self, room: Callable[[], int]) -> bool:
        """Whether `append` would not refuse another request; `room` as there."""
        waiting = len(self._all)
        return waiting < self._max_pending or waiting - room() < self._max_pending

    def gather_no_more(self) -> None:
        """Let no request wait for others any more: from now on each that waits is ready."""
        self._batch_timeout = 0.0

    def has_group(self, group: object) -> bool:
        """Whether requests of this group wait."""
        return group in self._groups

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

    def take(self, now: float, *, slots: int, spent: float = 0.0) -> list[RequestT]:
        """Take out the requests that join a batch now; none, if it is better to wait.

        No request overtakes another of its group: where the oldest does not fit, the requests
        behind it wait with it.

        Args:
            now: What time it is.
            slots: How many there is room for.
            spent: What the requests already in the batch cost.
        """
        if slots < 1:
            return []
        group = self._first_ready(now) if self._batch_timeout else self._oldest_group()
        if group is None:
            return []
        joining = self._fitting(group, slots, spent)
        self._remove(joining)
        return joining

    def requests(self) -> list[RequestT]:
        """Return all requests that wait, the oldest first."""
        return sorted(self._all, key=lambda request: request.arrived)

    def ready_at(self) -> float | None:
        """Return when `take` or `expire` will give a request, if no other arrives.

        A time that has passed if a batch is ready; None if no request waits.
        """
        earliest: float | None = None
        if self._batch_timeout:
            earliest = self._next_due()
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

    # ---- which group is ready, and when

    def _oldest_group(self) -> OrderedDict[RequestT, None] | None:
        for request in self._all:
            group = self._groups.get(request.group)
            # An empty one: the adding of its first request was broken off a moment ago.
            if group is not None and group:
                return group
        return None

    def _first_ready(self, now: float) -> OrderedDict[RequestT, None] | None:
        """Return the ready group with the oldest request."""
        try:
            while True:
                self._look_at_due(now)
                arrived, number, group = self._ready[0]
                oldest = self._oldest_in(group)
                if oldest is not None:
                    due = self._due_at(group)
                    if due <= now and oldest.arrived == arrived:
                        return group
                    heappush(self._due, (due, number, group))
                heappop(self._ready)
        except IndexError:  # none is ready; or a signal's handler has just closed the batcher
            return None

    def _look_at_due(self, now: float) -> None:
        """Put into `_ready` the groups that are ready by now."""
        self._looked_at = now
        while self._due and self._due[0][0] <= now:
            _, number, group = self._due[0]
            oldest = self._oldest_in(group)
            if oldest is not None:
                due = self._due_at(group)
                if due <= now:
                    heappush(self._ready, (oldest.arrived, number, group))
                else:
                    heappush(self._due, (due, number, group))
            heappop(self._due)

    def _next_due(self) -> float | None:
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

    def _oldest_in(self, group: OrderedDict[RequestT, None]) -> RequestT | None:
        """Return the oldest request of a group; None if the group is gone."""
        oldest = next(iter(group), None)
        in_use = oldest is not None and self._groups.get(oldest.group) is group
        return oldest if in_use else None

    def _due_at(self, group: OrderedDict[RequestT, None]) -> float:
        """Return when no request of a group waits for others any more: at once if it is full."""
        fitting = self._fitting(group, self._max_batch_size, 0.0)
        if len(fitting) == self._max_batch_size or len(fitting) < len(group):
            return next(iter(group)).arrived
        return min(map(self._waits_for_others_until, fitting))

    def _waits_for_others_until(self, request: RequestT) -> float:
        until = request.arrived + self._batch_timeout
        if request.wait_until is not None:
            until = min(until, (request.arrived + request.wait_until) / 2)
        return until

    def _fitting(
        self, group: OrderedDict[RequestT, None], slots: int, spent: float
    ) -> list[RequestT]:
        first = list(islice(group, slots))
        if self._max_batch_cost is not None:
            for position, request in enumerate(first):
                spent += request.cost
                if spent > self._max_batch_cost:
                    return first[:position]
        return first

    def _remove(self, requests: Iterable[RequestT]) -> None:
        for request in requests:
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
        # A request that has joined may take long, and its entry would stay until it had expired.
        if len(self.expiries) > 2 * len(self._all) + _TIDY_ABOVE:
            self.expiries = [entry for entry in self.expiries if entry[1] in self._expiring]
            heapify(self.expiries)
        if len(self._due) + len(self._ready) > 2 * len(self._groups) + _TIDY_ABOVE:
            self._tidy_hints()

    def _tidy_hints(self) -> None:
        """Drop the hints of groups that are gone, and all but one of each other."""
        groups = list(self._groups.values())
        hints = [(self._due_at(it), next(self._numbers), it) for it in groups if it]
        heapify(hints)
        self._due, self._ready = hints, []


class KeyInterner:
    """Turns equal keys into one object for as long as requests with that key wait.

    Keys are the user's: to hash and compare them is the user's code, which must not run under a
    lock. So `intern` is called without one, and what it returned is checked with it, by
    `is_current`.

    There are two generations. A key that is interned is in the younger one; when that has grown it
    becomes the older one, and that is dropped once none of its requests waits any more.
    """

    def __init__(self) -> None:
        self._generations: tuple[dict[Hashable, object], dict[Hashable, object]] = {}, {}

    def intern(self, key: Hashable) -> tuple[object, object]:
        """Return the object for a key, and what to ask `is_current` with.

        Raises:
            TypeError: The key cannot be hashed.
            Exception: What hashing or comparing it raises.
        """
        generations = young, old = self._generations
        try:
            group = young.get(key)
        except TypeError as error:
            raise TypeError(f"key returns {key!r}, which cannot be hashed: {error}") from error
        if group is None:
            # Setting a default is atomic, so that of two threads both get the same.
            group = young.setdefault(key, old.get(key) or object())
        return group, generations

    def is_current(self, generations: object) -> bool:
        """Whether the object that was returned with these may be used; with the lock."""
        return generations is self._generations

    def tidy(self, has_group: Callable[[object], bool]) -> object:
        """Drop keys of which no request waits, if there are many; with the lock.

        Args:
            has_group: Returns whether requests of a group wait.

        Returns:
            What the caller frees without the lock: to free a key may run the user's code.
        """
        young, old = self._generations
        if len(young) <= _TIDY_ABOVE or any(map(has_group, old.values())):
            return None
        self._generations = {}, young
        return old
