"""Whether Ray gives a replica as many requests at once as its batches take."""

from __future__ import annotations

import logging
from typing import Any, Final

from batchstream import ContinuousBatcher, DynamicBatcher
from batchstream._core.arguments import check_count
from batchstream.integrations.ray import _private

# Ray's own logger: its handlers write into the log of the replica.
_log: Final = logging.getLogger("ray.serve")


def warn_if_never_full(
    batcher: DynamicBatcher[Any, Any] | ContinuousBatcher[Any, Any] | int,
    max_concurrent_batches: int | None = None,
    *,
    name: str | None = None,
) -> bool:
    """Log a warning if Ray gives this replica too few requests at once to fill its batches.

    `batch` does so by itself. Call it where a deployment makes a `ContinuousBatcher` or a
    `DynamicBatcher`: Ray gives a replica 5 requests at once unless its deployment says otherwise,
    and keeps the others elsewhere, where no batcher sees them.

    Args:
        batcher: The batcher; or its `max_batch_size`.
        max_concurrent_batches: How many batches run at once; without it the `workers` of the
            batcher, or 1.
        name: What the warning calls it; else what metrics call the batcher.

    Returns:
        Whether it has warned; never outside of a replica.

    Raises:
        TypeError, ValueError: An argument is no whole number of at least 1.

    Threads: any.

    Example:
        Outside of a replica there is nothing to warn of:

        >>> from batchstream.integrations.ray import warn_if_never_full
        >>> warn_if_never_full(8, max_concurrent_batches=2)
        False
    """
    size = check_count("max_batch_size", getattr(batcher, "max_batch_size", batcher), at_least=1)
    factor = "max_concurrent_batches"
    if max_concurrent_batches is None:
        factor, max_concurrent_batches = "workers", _workers_of(batcher)
    batches = check_count("max_concurrent_batches", max_concurrent_batches, at_least=1)
    most = _private.max_ongoing_requests()
    if most is None or most >= size * batches:
        return False
    filling = size * batches
    times = f" times {factor}={batches}" if batches > 1 else ""
    _log.warning(
        "%s: max_ongoing_requests=%d of this deployment is less than max_batch_size=%d%s, so its "
        "batches are never all full. %d fills them: set "
        "@serve.deployment(max_ongoing_requests=%d), and add max_pending for requests that wait in "
        "the replica.",
        name or _name_of(batcher),
        most,
        size,
        times,
        filling,
        filling,
    )
    return True


def _workers_of(batcher: DynamicBatcher[Any, Any] | ContinuousBatcher[Any, Any] | int) -> int:
    return 1 if isinstance(batcher, int) else batcher._dispatcher.options.workers  # noqa: SLF001 - as metrics do


def _name_of(batcher: DynamicBatcher[Any, Any] | ContinuousBatcher[Any, Any] | int) -> str:
    if isinstance(batcher, int):
        return "a batcher"
    return f"{type(batcher).__name__} {batcher._dispatcher.options.label!r}"  # noqa: SLF001 - as metrics do
