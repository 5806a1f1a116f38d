"""What a batcher tells its metrics and its log of requests; always without the lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from batchstream._core.errors import CostError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchstream._batching.life import BatcherState
    from batchstream._batching.log import BatcherLog
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.request import Request

T = TypeVar("T")


class Reports(Generic[T]):
    """Tells metrics, if the batcher has any, and the log.

    Args:
        options: What the batcher was made with.
        log: Writes the batcher's lines in the log.
    """

    def __init__(self, options: BatcherOptions[Any, T], log: BatcherLog) -> None:
        self._options = options
        self._log = log

    def refused(
        self,
        request: Request[T],
        refusal: Exception,
        now: float,
        *,
        so_far: int,
        state: BatcherState,
    ) -> None:
        """Tell metrics and the log of a request that was refused; not of one that comes again.

        Args:
            request: The request.
            refusal: What it is refused with.
            now: What time it is.
            so_far: How many were refused for want of room, this one included.
            state: Where the batcher is in its life.
        """
        if isinstance(refusal, OverloadedError):
            if request.on_end is not None:
                return
            reason: str = refusal.reason
            self._log.refused(refusal, request, now, so_far - 1)
        elif isinstance(refusal, CostError):
            reason = "cost"
        else:
            reason = "draining" if state == "draining" else "closed"
        if self._options.name is not None:
            refusal.add_note(f"This came from the batcher {self._options.name!r}.")
        if self._options.metrics is not None and not request.is_warm_up:
            self._options.metrics("refused", reason, tenant=request.tenant)

    def joined(self, requests: Sequence[Request[T]], now: float) -> None:
        """Tell metrics, which there are, of requests that have joined a batch together."""
        assert self._options.metrics is not None  # noqa: S101 - for the type checker
        self._options.metrics(
            "joined",
            [
                now - (request.arrived if (back := request.requeued_at) is None else back)
                for request in requests
            ],
            tenants=[request.tenant for request in requests],
        )

    def requeued(self, requests: Iterable[Request[T]]) -> None:
        """Tell metrics, which there are, of requests whose slots were given back."""
        assert self._options.metrics is not None  # noqa: S101 - for the type checker
        for request in requests:
            if not request.is_warm_up:
                self._options.metrics("requeued", tenant=request.tenant)

    def ended(self, finished: Sequence[Request[T]], now: float, *, closed: bool) -> None:
        """Tell metrics and the log of requests that were counted as finished.

        Args:
            finished: The requests.
            now: What time it is.
            closed: Whether the batcher was closed, which has had its line.
        """
        metrics = self._options.metrics
        if metrics is not None:
            for request in finished:
                joined, joined_at = request.state == "finished", request.joined_at
                metrics(
                    "finished",
                    request.ends[0],
                    joined=joined,
                    lasted=now - request.arrived,
                    in_slot=now - joined_at if joined and joined_at is not None else 0.0,
                    tenant=request.tenant,
                )
        if any(request.ends[0].error is not None for request in finished):
            self._log.failed(finished, closed=closed)
