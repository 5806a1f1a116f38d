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
    max_concurrent_batches: int = 1,
) -> bool:
    """Log a warning if Ray gives this replica too few requests at once to fill its batches.

    `batch` does so by itself. Call it where a deployment makes a `ContinuousBatcher` or a
    `DynamicBatcher`: Ray gives a replica 5 requests at once unless its deployment says otherwise,
    and keeps the others elsewhere, where no batcher sees them.

    Args:
        batcher: The batcher; or its `max_batch_size`.
        max_concurrent_batches: How many batches run at once: `workers` of a `DynamicBatcher`.

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
    batches = check_count("max_concurrent_batches", max_concurrent_batches, at_least=1)
    most = _private.max_ongoing_requests()
    if most is None or most >= size * batches:
        return False
    _log.warning(
        "max_ongoing_requests=%d of this deployment is less than max_batch_size=%d times "
        "max_concurrent_batches=%d: the batches are never all full. Set "
        "@serve.deployment(max_ongoing_requests=%d), or more, so that requests wait in the replica "
        "for the next batch.",
        most,
        size,
        batches,
        size * batches,
    )
    return True
