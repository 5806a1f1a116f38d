"""What a deployment tells Ray's autoscaler of its batchers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from batchstream import BatcherStatistics


class WithStatistics(Protocol):
    """A batcher, or a decorated function."""

    def statistics(self) -> BatcherStatistics:
        """Return its figures."""


def autoscaling_stats(*batchers: WithStatistics) -> dict[str, float]:
    """Return what a deployment's `record_autoscaling_stats` returns, for a policy to scale by.

    Ray's own policy goes by the requests that a replica has, and cannot tell one that waits from
    one that is in a batch. A policy finds the figures in its context's `aggregated_metrics`, each
    as a mean over `look_back_period_s`, by replica.

    Args:
        batchers: The batchers of the deployment, whose figures are added up; or decorated
            functions.

    Returns:
        `waiting`, how many requests wait for a batch, and `running`, how many are in one.

    Raises:
        TypeError: There is no batcher, or what is given has no statistics.

    Blocking: never.
    Threads: any thread.

    Example:
        >>> import batchstream
        >>> with batchstream.DynamicBatcher(list, max_batch_size=8, single=True) as batcher:
        ...     autoscaling_stats(batcher)
        {'waiting': 0.0, 'running': 0.0}
    """
    if not batchers:
        raise TypeError("autoscaling_stats takes the batchers of the deployment, got none")
    for batcher in batchers:
        if not callable(getattr(batcher, "statistics", None)):
            raise TypeError(
                f"autoscaling_stats takes batchers and decorated functions, got {batcher!r}"
            )
    figures = [batcher.statistics() for batcher in batchers]
    return {
        "waiting": float(sum(each.waiting for each in figures)),
        "running": float(sum(each.running for each in figures)),
    }
