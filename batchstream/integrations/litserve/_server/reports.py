"""The user's metrics, as a server process calls them: for what no worker sees."""

from __future__ import annotations

import os
from contextvars import copy_context
from typing import TYPE_CHECKING

from batchstream._batching.metrics import MetricsCaller

if TYPE_CHECKING:
    from batchstream.integrations.litserve._link.link import Link

_callers: dict[tuple[int, Link], MetricsCaller] = {}
"""By process: a fork inherits those of the process before it."""


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
        caller = _callers.setdefault(key, MetricsCaller(link.metrics))
    if caller.unmade:
        caller.make(copy_context())
    return caller
