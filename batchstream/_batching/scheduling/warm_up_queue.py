"""The requests of warm-ups that wait, apart from all others; under the batcher's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from batchstream._batching.waiting.queue import WaitingQueue

if TYPE_CHECKING:
    from collections.abc import Collection

    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.requests.request import Request

T = TypeVar("T")


class WarmUpQueue(Generic[T]):
    """The requests of one batcher's warm-ups; part of its `Scheduler`.

    Args:
        options: What the batcher was made with.

    Attributes:
        queue: The requests of warm-ups that wait. They are taken before all others, once they are
            in `live`.
        live: The requests of warm-ups that have begun, and not ended. No others are taken
            meanwhile.
    """

    def __init__(self, options: BatcherOptions[Any, T]) -> None:
        self.queue: WaitingQueue[Request[T]] = WaitingQueue(
            options.limits, is_measured=options.batch_cost is not None
        )
        self.queue.gather_no_more()
        self.live: set[Request[T]] = set()

    def begin(self, requests: Collection[Request[T]]) -> None:
        """Let requests that were submitted be taken, before all others."""
        # One that has ended may have been reaped already, and would stay.
        self.live.update(request for request in requests if not request.ends)

    def slots_for(self, slots: int, requeued: Collection[Request[T]]) -> int:
        """Return how many requests may begin a batch, of which so many were given back."""
        if any(request.is_warm_up for request in requeued):
            return 1  # none joins it later: together they might be given back again for ever
        return slots

    def leave(self, request: Request[T]) -> bool:
        """Whether a request that has ended was the last, for which others have waited."""
        self.live.discard(request)
        return not self.live
