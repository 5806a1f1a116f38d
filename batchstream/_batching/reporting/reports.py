"""What a batcher tells its metrics, traces and log of requests; always without the lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from batchstream._batching.requests.request import refusal_reason
from batchstream._core.errors import CostError, OverloadedError
from batchstream._core.records import FinishReason, StreamEnd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchstream._batching.life import BatcherState
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.reporting.log import BatcherLog
    from batchstream._batching.requests.request import Request
    from batchstream._batching.telemetry.traces import RequestTracing

T = TypeVar("T")


class Reports(Generic[T]):
    """Tells metrics and traces, if the batcher has any, and the log.

    Args:
        options: What the batcher was made with.
        log: Writes the batcher's lines in the log.
    """

    def __init__(self, options: BatcherOptions[Any, T], log: BatcherLog) -> None:
        self._options = options
        self._log = log

    def state_changed(self) -> None:
        """Tell metrics that the batcher has another state."""
        if self._options.metrics is not None:
            self._options.metrics.state_changed()

    def traced(self, request: Request[T]) -> RequestTracing | None:
        """Return what to tell of a request that is about to be submitted, if it is traced."""
        submission, traces = request.submission, self._options.traces
        assert traces is not None  # noqa: S101 - for the type checker
        return traces.submitted(
            submission.content,
            request_id=request.id,
            tenant=request.tenant,
            max_outputs=submission.max_outputs,
        )

    def refused(
        self,
        request: Request[T],
        refusal: Exception,
        now: float,
        *,
        so_far: int,
        state: BatcherState,
    ) -> None:
        """Tell of a request that was refused; not of one that comes again.

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
            self._log.refused(refusal, request.id, now, so_far - 1)
        elif isinstance(refusal, CostError):
            reason = "cost"
        else:
            reason = "draining" if state == "draining" else "closed"
        if self._options.name is not None:
            refusal.add_note(f"This came from the batcher {self._options.name!r}.")
        if self._options.metrics is not None and not request.is_warm_up:
            self._options.metrics("refused", reason, tenant=request.tenant)
        if request.trace is not None:
            request.trace.ended(StreamEnd(FinishReason.ERROR, 0, error=refusal))

    def joined(self, requests: Sequence[Request[T]]) -> None:
        """Tell metrics and traces of requests that have joined a batch together."""
        if self._options.metrics is not None:
            self._options.metrics(
                "joined",
                [
                    it.taken_at - (it.arrived if it.requeued_at is None else it.requeued_at)
                    for it in requests
                ],
                tenants=[request.tenant for request in requests],
            )
        if self._options.traces is not None:
            traces = [request.trace for request in requests]
            self._options.traces.joined([trace for trace in traces if trace is not None])

    def first_outputs(self, requests: Sequence[Request[T]], now: float) -> None:
        """Tell metrics and traces of requests that had their first output at this time."""
        metrics = self._options.metrics
        for request in requests:
            if metrics is not None:
                metrics("first_output", now - request.arrived, tenant=request.tenant)
            if (trace := request.trace) is not None:
                trace.first_output()

    def requeued(self, requests: Iterable[Request[T]]) -> None:
        """Tell metrics and traces of requests whose slots were given back."""
        metrics = self._options.metrics
        for request in requests:
            if metrics is not None and not request.is_warm_up:
                metrics("requeued", tenant=request.tenant)
            if (trace := request.trace) is not None:
                trace.requeued()

    def ended(
        self, finished: Sequence[Request[T]], now: float, *, closed: bool, so_far: int
    ) -> None:
        """Tell metrics, traces and the log of requests that were counted as finished or refused.

        Args:
            finished: The requests.
            now: What time it is.
            closed: Whether the batcher was closed, which has had its line.
            so_far: How many requests were refused for want of room, these included.
        """
        metrics = self._options.metrics
        if metrics is not None:
            for request in finished:
                more: dict[str, Any] = {}
                if (refusal := request.remote_refusal) is not None:
                    metrics("refused", refusal_reason(refusal), tenant=request.tenant)
                    more["refused"] = True
                joined, joined_at = request.state == "finished", request.joined_at
                first_output = request.first_output_at
                metrics(
                    "finished",
                    request.ends[0],
                    joined=joined,
                    lasted=now - request.arrived,
                    in_slot=now - joined_at if joined and joined_at is not None else 0.0,
                    first_output=None if first_output is None else first_output - request.arrived,
                    tenant=request.tenant,
                    **more,
                )
        if self._options.traces is not None:
            for request in finished:
                trace, request.trace = request.trace, None  # the stream may be kept for long
                if trace is not None:
                    trace.ended(request.ends[0])
        failed = [it for it in finished if it.ends[0].error is not None]
        if failed:
            refused = [it for it in failed if it.remote_refusal is not None]
            if refused:
                self._log_refused(refused, now, so_far)
                failed = [it for it in failed if it.remote_refusal is None]
            self._log.failed(failed, closed=closed)

    def _log_refused(self, requests: Sequence[Request[T]], now: float, so_far: int) -> None:
        """Log requests that were refused in another process, as if they had been refused here."""
        overloads = [it for it in requests if isinstance(it.refused_with, OverloadedError)]
        if overloads:
            error: Any = overloads[0].refused_with
            self._log.refused(error, overloads[0].id, now, so_far - len(overloads))
