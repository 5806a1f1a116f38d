"""The user's metrics and the log, as a server process calls them: for what no worker sees."""

from __future__ import annotations

import os
import time
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from batchstream import OverloadedError, StreamEnd
from batchstream._batching.log import BatcherLog
from batchstream._batching.metrics import MetricsCaller

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream import FinishReason, Metrics
    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._link.ordering import Tenant

_callers: WeakKeyDictionary[Link, dict[int, MetricsCaller]] = WeakKeyDictionary()
_refusals: WeakKeyDictionary[Link, dict[int, Refusals]] = WeakKeyDictionary()
_made: dict[tuple[int, object], Any] = {}
"""All by process: a fork inherits its parent's objects. A link's pipes close with the link."""


def metrics_of(link: Link) -> MetricsCaller | None:
    """Return what calls this process's metrics of an endpoint, made at the first call.

    Raises:
        TypeError: The loop's `metrics` returns what has not the methods.
        Exception: What it raises. The next call tries again.
    """
    if link.metrics is None:
        return None
    callers = _callers.setdefault(link, {})
    caller = callers.get(os.getpid())
    if caller is None:
        # Here, and not where the link is made: the main process has not forked this one yet then.
        caller = MetricsCaller(partial(_make_once, link.metrics), link.name or "")
        caller = callers.setdefault(os.getpid(), caller)
    if caller.unmade:
        caller.make(copy_context())
    return caller


class Refusals:
    """Tells the log when requests of an endpoint begin to be refused, and when that is over.

    Args:
        name: What the log calls the API.
    """

    def __init__(self, name: str) -> None:
        self._log = BatcherLog(name)
        self._count = 0

    @classmethod
    def of(cls, link: Link) -> Refusals:
        """Return the object of this process for an endpoint, made at the first call."""
        refusals = _refusals.setdefault(link, {})
        if os.getpid() not in refusals:
            refusals[os.getpid()] = cls(link.name or "")
        return refusals[os.getpid()]

    def note(self, error: OverloadedError, request_id: str) -> None:
        """Note one that was refused."""
        self._log.refused(error, request_id, time.monotonic(), self._count)
        self._count += 1

    def note_accepted(self) -> None:
        """Note one that was not."""
        if self._log.is_refusing:
            self._log.accepted(time.monotonic(), self._count)

    def end(self) -> None:
        """Note that none is accepted any more."""
        self._log.accepts_no_more(self._count)


class Reports:
    """What a server process reports of the requests of one client.

    Args:
        link: Of the endpoint.
        tenant: Whose they are.

    Raises:
        Exception: What the loop's `metrics` raises.
    """

    def __init__(self, link: Link, tenant: Tenant) -> None:
        self._metrics = metrics_of(link)
        self._refusals = Refusals.of(link)
        self._tenant = tenant
        self._submitted = time.monotonic()

    def submitted(self) -> None:
        """Report a request that waits."""
        self._refusals.note_accepted()
        if self._metrics is not None:
            self._metrics("submitted", tenant=self._tenant)

    def refused(self, reason: str) -> None:
        """Report that they were refused."""
        if self._metrics is not None:
            self._metrics("refused", reason, tenant=self._tenant)

    def overloaded(self, error: OverloadedError, request_id: str) -> None:
        """Report that they were refused for a bound."""
        self._refusals.note(error, request_id)
        self.refused(error.reason)

    def finished(self, reason: FinishReason, *, joined: bool) -> None:
        """Report the end of a request of which no worker can."""
        if self._metrics is not None:
            self._metrics(
                "finished",
                StreamEnd(reason, 0),
                joined=joined,
                lasted=time.monotonic() - self._submitted,
                in_slot=0.0,
                tenant=self._tenant,
            )


def _make_once(factory: Callable[[], Metrics]) -> Metrics:
    """Return what a function makes, the same for all APIs of this process that have it."""
    key = os.getpid(), factory
    if key not in _made:
        _made[key] = factory()
    metrics: Metrics = _made[key]
    return metrics
