"""The user's metrics, as a server process calls them: for what no worker sees."""

from __future__ import annotations

import os
import time
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from batchstream import StreamEnd
from batchstream._batching.metrics import MetricsCaller

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream import FinishReason, Metrics
    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._link.ordering import Tenant

_callers: dict[tuple[int, Link], MetricsCaller] = {}
_made: dict[tuple[int, object], Any] = {}
"""Both by process: a fork inherits those of the process before it."""


def metrics_of(link: Link) -> MetricsCaller | None:
    """Return what calls this process's metrics of an endpoint, made at the first call.

    Raises:
        TypeError: The loop's `metrics` returns what has not the methods.
        Exception: What it raises. The next call tries again.
    """
    if link.metrics is None:
        return None
    key = os.getpid(), link
    caller = _callers.get(key)
    if caller is None:
        # Here, and not where the link is made: the main process has not forked this one yet then.
        caller = MetricsCaller(partial(_make_once, link.metrics), link.name or "")
        caller = _callers.setdefault(key, caller)
    if caller.unmade:
        caller.make(copy_context())
    return caller


class Reports:
    """What a server process reports of the requests of one client.

    Args:
        metrics: The endpoint's; None for no metrics.
        tenant: Whose they are.
    """

    def __init__(self, metrics: MetricsCaller | None, tenant: Tenant) -> None:
        self._metrics = metrics
        self._tenant = tenant
        self._submitted = time.monotonic()

    def submitted(self) -> None:
        """Report a request that waits."""
        if self._metrics is not None:
            self._metrics("submitted", tenant=self._tenant)

    def refused(self, reason: str) -> None:
        """Report that they were refused."""
        if self._metrics is not None:
            self._metrics("refused", reason, tenant=self._tenant)

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
