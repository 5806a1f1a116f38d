"""The user's metrics, traces and the log, as a server process calls them: for what no worker sees.

A request that a worker has taken is the worker's to report: it knows how many outputs the request
had, and for how long it was in a slot. All others are reported here, and so are the requests of a
worker that has ended without having reported them. So a worker says when it takes a request, its
*claim*, and when it has reported its end (`pipes.py`).
"""

from __future__ import annotations

import os
import time
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from batchstream import FinishReason, OverloadedError, StreamEnd
from batchstream._batching.reporting.log import BatcherLog
from batchstream._batching.telemetry.metrics import MetricsCaller
from batchstream._batching.telemetry.traces import TracesCaller, carrier_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batchstream import Metrics
    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._link.ordering import Tenant

_callers: WeakKeyDictionary[Link, dict[int, MetricsCaller]] = WeakKeyDictionary()
_tracers: WeakKeyDictionary[Link, dict[int, TracesCaller]] = WeakKeyDictionary()
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


def traces_of(link: Link) -> TracesCaller | None:
    """Return what calls an endpoint's traces in this process, made at the first call."""
    if link.traces is None:
        return None
    tracers = _tracers.setdefault(link, {})
    if os.getpid() not in tracers:
        tracers[os.getpid()] = TracesCaller(link.traces, link.name or "")
    return tracers[os.getpid()]


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
        name: The client's name for them.
        tenant: Whose they are.
        headers: Of the HTTP request.

    Attributes:
        carrier: The trace context of the call, for workers; None without traces.
        is_traced: Whether there are traces.

    Raises:
        Exception: What the loop's `metrics` raises.
    """

    def __init__(self, link: Link, name: str, tenant: Tenant, headers: Mapping[str, str]) -> None:
        self._metrics = metrics_of(link)
        self._traces = traces_of(link)
        self.is_traced = self._traces is not None
        self._refusals = Refusals.of(link)
        self._name = name
        self._tenant = tenant
        self._submitted = time.monotonic()
        self.carrier = None if link.traces is None else carrier_of(link.traces, headers)
        # What is current in the call that submits, such as a span, is the parent of its spans.
        self._context = None if link.traces is None else copy_context()

    def submitted(self) -> None:
        """Report a request that waits."""
        self._refusals.note_accepted()
        if self._metrics is not None:
            self._metrics("submitted", tenant=self._tenant)

    def refused(self, reason: str, error: Exception, payloads: Sequence[Any]) -> None:
        """Report that these were refused."""
        for payload in payloads:
            if isinstance(error, OverloadedError):
                self._refusals.note(error, self._name)
            if self._metrics is not None:
                self._metrics("refused", reason, tenant=self._tenant)
            self._trace(payload, StreamEnd(FinishReason.ERROR, 0, error=error))

    def finished(self, payload: Any, end: StreamEnd, *, joined: bool) -> None:
        """Report the end of a request of which no worker can."""
        lasted = time.monotonic() - self._submitted
        if self._metrics is not None:
            self._metrics(
                "finished", end, joined=joined, lasted=lasted, in_slot=0.0, tenant=self._tenant
            )
        self._trace(payload, end, waited=lasted)

    def _trace(self, payload: Any, end: StreamEnd, *, waited: float = 0.0) -> None:
        """Tell traces of a request from its submission to its end, all at once."""
        if self._traces is None or self._context is None:
            return
        trace = self._context.run(
            self._traces.submitted,
            payload,
            request_id=self._name,
            tenant=self._tenant,
            max_outputs=None,
            carrier=self.carrier,
            waited=waited,
        )
        if trace is not None:
            trace.ended(end)


class RequestReport:
    """The report of one request's end, which is made once: by a worker, or here.

    Args:
        reports: Of its client.
        uid: The request's.
        payload: As `decode_request` will be given it.
        due: Where it is, by its uid, from its submission until its end has been reported.

    Attributes:
        worker: The process id of the worker that has taken the request; None if none has said so.
        error: With what this process has failed it; None if it has not, or its client has left.
    """

    def __init__(
        self, reports: Reports, uid: str, payload: Any, due: dict[str, RequestReport]
    ) -> None:
        self._reports = reports
        self._uid = uid
        self._payload = payload if reports.is_traced else None
        self._due = due
        self.worker: int | None = None
        self.error: Exception | None = None

    def submitted(self) -> None:
        """Report that the request waits."""
        self._due[self._uid] = self
        self._reports.submitted()

    def ended(self) -> None:
        """Report the end, unless it was reported; called only where no worker will report it."""
        if self._due.pop(self._uid, None) is None:
            return
        reason = FinishReason.CANCELLED if self.error is None else FinishReason.ERROR
        end = StreamEnd(reason, 0, error=self.error)
        self._reports.finished(self._payload, end, joined=self.worker is not None)


def _make_once(factory: Callable[[], Metrics]) -> Metrics:
    """Return what a function makes, the same for all APIs of this process that have it."""
    key = os.getpid(), factory
    if key not in _made:
        _made[key] = factory()
    metrics: Metrics = _made[key]
    return metrics
