"""A queue of requests that orders them, in a process of its own.

Theory of operation
-------------------

LitServe's request queue is one for all server processes and all workers of an API, in a process of
its own, and its order is that of arrival. Where a loop orders the requests that wait, or bounds
them, this queue takes its place: also one for all, also in a process of its own, and with the
methods that LitServe and the loops call. In it lies the `WaitingQueue` of the batchers. So what
that one guarantees holds for the API as a whole, with any number of workers and of server
processes: whichever worker has a free slot takes the request that is next at this moment, of all
that wait. One lock is around each call, so that no more wait than may.

The functions that say where a request stands are called in the server process, before the request
is put. What comes here is plain data.

A worker takes a request in two calls: it waits until there is one, and then takes it without
waiting. A worker that is killed while it waits leaves nothing behind: with LitServe's queue its
wait takes one more request out of the queue, which is never served.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import deque
from contextlib import suppress
from multiprocessing.managers import BaseManager, BaseProxy
from queue import Empty
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batchstream import OverloadedError
from batchstream._batching.scheduling.departures import DepartureRate
from batchstream._batching.waiting.limits import Limits, LimitsInForce
from batchstream._batching.waiting.places import Place
from batchstream._batching.waiting.queue import WaitingQueue
from batchstream.integrations.litserve._link.process_end import wait_for_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchstream._core.errors import OverloadReason
    from batchstream.integrations.litserve._link.ordering import Standing

QUEUE_PROCESS: Final = "RequestQueueManager-"
"""What the name of the queue's process begins with."""


class QueuedRequest:
    """A request that waits.

    Args:
        element: As LitServe puts it into its queue.
        standing: Where it stands.
        arrived: When it came.
    """

    __slots__ = ("arrived", "cost", "element", "group", "place", "wait_until")
    measured: object = None
    step_cost = 0.0

    def __init__(self, element: tuple[Any, ...], standing: Standing, arrived: float) -> None:
        self.element = element
        self.arrived = arrived
        self.group: object = None
        self.cost = standing.cost
        self.wait_until: float | None = None
        self.place: Place | None = Place(standing.priority, standing.tenant, standing.share)


class Refusal(NamedTuple):
    """Why a request may not wait.

    Attributes:
        reason: That of an `OverloadedError`.
        retry_after: After how many seconds there may be room for it; None if that is unknown.
        pending: How many requests wait; of the same tenant, if that is the reason.
        pending_cost: What they cost, if that is the reason.
    """

    reason: OverloadReason
    retry_after: float | None
    pending: int
    pending_cost: float | None = None


class OrderedRequests:
    """The queue itself. A thread of its process serves each thread of other processes.

    Args:
        max_pending: How many requests may wait; None for any number.
        max_pending_per_tenant: How many of one tenant may wait; None for any number.
        max_pending_cost: What the waiting requests may cost together; None for any cost.

    Threads: any.
    """

    def __init__(
        self,
        max_pending: int | None,
        max_pending_per_tenant: int | None,
        max_pending_cost: float | None = None,
    ) -> None:
        limits = Limits(
            *(1, sys.maxsize if max_pending is None else max_pending),
            max_pending_cost=max_pending_cost,
            max_pending_per_tenant=max_pending_per_tenant,
        )
        self._waiting: WaitingQueue[QueuedRequest] = WaitingQueue(
            LimitsInForce(limits), has_places=True
        )
        self._by_uid: dict[object, QueuedRequest] = {}
        self._accounts: dict[object, object] = {}
        self._others: deque[Any] = deque()  # what is no request, such as LitServe's sentinel
        self._rate = DepartureRate()
        self._changed = Condition()

    def put_all(self, elements: Sequence[tuple[Any, ...]], standing: Standing) -> Refusal | None:
        """Add requests of one client, or none of them.

        Returns:
            Why none was added: as many requests wait as may, of all or of this tenant, or they
            cost as much.
        """
        added: list[QueuedRequest] = []
        with self._changed:
            try:
                for element in elements:
                    request = QueuedRequest(element, standing, time.monotonic())
                    assert request.place is not None  # noqa: S101 - for the type checker
                    account = self._accounts.setdefault(standing.tenant, object())
                    request.place.account = account
                    self._waiting.append(request, room=_no_room)
                    added.append(request)
            except OverloadedError as error:
                for request in added:
                    self._waiting.remove(request)
                self._forget_tenant(standing.tenant)
                # Tenants take turns: one of its own has left when each has had one.
                turns = len(self._accounts) if error.reason == "tenant" else 1
                pending, pending_cost = error.pending - len(added), error.pending_cost
                if pending_cost is not None:
                    pending_cost -= len(added) * standing.cost
                return Refusal(error.reason, self._rate.seconds_for(turns), pending, pending_cost)
            self._by_uid |= {request.element[1]: request for request in added}
            self._changed.notify_all()
        return None

    def put(self, element: Any) -> None:
        """Add what is no request; it is taken when no request waits."""
        with self._changed:
            self._others.append(element)
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait until there is something to take, for so many seconds; return whether there is."""
        with self._changed:
            return self._changed.wait_for(self.qsize, timeout) > 0

    def take(self) -> tuple[Any, bool]:
        """Take the next request, and return it with whether there is more to take.

        Raises:
            queue.Empty: None waits.
        """
        with self._changed:
            taken = self._waiting.take(time.monotonic(), slots=1)
            if taken:
                [request] = taken
                self._forget(request)
                self._rate.count(1, time.monotonic(), others_wait=len(self._waiting) > 0)
                return request.element, self.qsize() > 0
            if self._others:
                return self._others.popleft(), self.qsize() > 0
            raise Empty

    def discard(self, uid: object) -> bool:
        """Take a request out that nothing waits for any more; False if a worker has it."""
        with self._changed:
            request = self._by_uid.get(uid)
            if request is None:
                return False
            self._waiting.remove(request)
            self._forget(request)
            return True

    def qsize(self) -> int:
        """Return how many wait."""
        return len(self._waiting) + len(self._others)

    def _forget(self, request: QueuedRequest) -> None:
        self._by_uid.pop(request.element[1], None)
        if request.place is not None:
            self._forget_tenant(request.place.tenant)

    def _forget_tenant(self, tenant: object) -> None:
        account = self._accounts.get(tenant)
        if account is not None and not self._waiting.has_tenant(account):
            del self._accounts[tenant]


def _no_room() -> int:
    return 0


class RequestQueueProxy(BaseProxy):
    """The queue, as other processes have it."""

    _exposed_ = ("put_all", "put", "wait", "take", "discard", "qsize")

    def _call(self, method: str, *arguments: object) -> Any:
        call: Any = self._callmethod
        return call(method, arguments)

    def put_all(self, elements: Sequence[tuple[Any, ...]], standing: Standing) -> Refusal | None:
        """See `OrderedRequests`."""
        refusal: Refusal | None = self._call("put_all", list(elements), standing)
        return refusal

    def put(self, element: Any) -> None:
        """See `OrderedRequests`."""
        self._call("put", element)

    def wait(self, timeout: float) -> bool:
        """See `OrderedRequests`."""
        return bool(self._call("wait", timeout))

    def take(self, *, block: bool = True, timeout: float | None = None) -> tuple[Any, bool]:
        """Take the next request, and return it with whether there is more to take.

        Raises:
            queue.Empty: None waits, or none has come in that time.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while block:
            left = 60.0 if until is None else max(0.0, until - time.monotonic())
            if self.wait(left):
                # Another worker may be faster.
                with suppress(Empty):
                    return self._take_nowait()
            elif until is not None:
                raise Empty
        return self._take_nowait()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002 - as of a queue
        """Take the next request, as `queue.Queue` does."""
        if block:
            # Saves a call where a request waits.
            with suppress(Empty):
                return self.get_nowait()
        return self.take(block=block, timeout=timeout)[0]

    def get_nowait(self) -> Any:
        """Take the next request, as `queue.Queue` does."""
        return self._take_nowait()[0]

    def _take_nowait(self) -> tuple[Any, bool]:
        taken: tuple[Any, bool] = self._call("take")
        return taken

    def discard(self, uid: object) -> bool:
        """See `OrderedRequests`."""
        return bool(self._call("discard", uid))

    def qsize(self) -> int:
        """See `OrderedRequests`."""
        return int(self._call("qsize"))

    def empty(self) -> bool:
        """Return whether none waits."""
        return not self.qsize()


class RequestQueueManager(BaseManager):
    """The process of a queue. It ends with the main process, also if that is killed."""


RequestQueueManager.register("OrderedRequests", OrderedRequests, RequestQueueProxy)


def start_queue(
    max_pending: int | None,
    max_pending_per_tenant: int | None,
    max_pending_cost: float | None = None,
) -> RequestQueueProxy:
    """Start the process of a queue, and return the queue; the process lives as long as that."""
    methods = multiprocessing.get_all_start_methods()
    # As LitServe starts its servers. To spawn it would import the program once more.
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    manager = RequestQueueManager(ctx=context)
    manager.start(_end_with, (os.getpid(),))
    make: Any = manager.OrderedRequests  # type: ignore[attr-defined]
    queue: RequestQueueProxy = make(max_pending, max_pending_per_tenant, max_pending_cost)
    return queue


def _end_with(process: int) -> None:
    """End this process when another one has ended."""

    def end() -> None:
        wait_for_end(process)
        os._exit(0)

    Thread(target=end, name="batchstream parent watch", daemon=True).start()
