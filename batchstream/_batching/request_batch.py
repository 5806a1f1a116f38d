"""What happens between the steps of a batch of requests: deadlines, and what is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol

from typing_extensions import TypeVar

from batchstream._batching import clock
from batchstream._batching.request import FREED, closed_error
from batchstream._batching.step_log import StepLog
from batchstream._batching.totals import StepTotals
from batchstream._handoff.parking import earliest

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Sequence

    from batchstream._batching.log import BatcherLog
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.request import Request, Submission
    from batchstream._handoff.buffer import Buffer
    from batchstream._pumps.background import BackgroundPump

T = TypeVar("T")


class BatcherState(Protocol[T]):
    """What a batch reads of the scheduler, without the lock.

    Attributes:
        closed: Whether all requests are to fail.
        closing: By what and when it was closed.
        ended_requests: Requests that have ended and were not reaped.
    """

    closed: bool
    closing: str
    ended_requests: deque[Request[T]]


class BatchOwner(Protocol[T]):
    """What a batch needs of the dispatcher whose requests it serves.

    Attributes:
        options: What the batcher was made with.
        log: Writes the batcher's lines in the log.
        scheduler: The batcher's state.
    """

    options: BatcherOptions[Any, T]
    log: BatcherLog

    @property
    def scheduler(self) -> BatcherState[T]: ...

    def reap(self) -> None:
        """Count the requests that have ended since the last time."""

    def take_joining(self, slots: int, spent: float) -> Sequence[Request[T]]:
        """Take requests for a running batch with so many free slots, which costs so much."""

    def count_joined(self, requests: Sequence[Request[T]], now: float) -> None:
        """Count requests that have joined the batch together."""

    def put_back(self, requests: Sequence[Request[T]]) -> None:
        """Let requests wait again that were taken, in their order and in front of all others."""

    def requeue(self, requests: Sequence[tuple[Request[T], Submission]]) -> Sequence[Request[T]]:
        """Let requests wait again whose slots were given back, each with what is added next.

        Returns:
            All that wait again, in the order in which they will join.
        """

    def fail_all(self, requests: Iterable[Request[T]], error: BaseException) -> None:
        """Fail requests that are in no batch."""


class RequestBatch(Generic[T]):
    """The hooks of a pump that serves a batch of requests.

    The pump refers to this object and this object to the pump, until the pump is closed.

    Args:
        owner: Whose requests they are.

    Attributes:
        pump: The pump; set by `serve`.
        next_deadline: When the next deadline of a request that has joined passes, if any.
    """

    pump: BackgroundPump[T]

    def __init__(self, owner: BatchOwner[T]) -> None:
        self._owner = owner
        self.next_deadline: float | None = None
        self._live_slots = 0  # summed over the steps
        self._log = StepLog(owner.options)

    def serve(self, pump: BackgroundPump[T], requests: Sequence[Request[T]]) -> None:
        """Serve these requests, in the first slots of a pump that has not started."""
        self.pump = pump
        self._log.follow(pump.fanout)
        for slot, request in enumerate(requests):
            self._seat(slot, request)

    def _seat(self, slot: int, request: Request[T]) -> None:
        """Tie a request to the slot that was opened for it, and that holds its buffer."""
        request.slot = slot
        request.submission = FREED
        if request.first_output_at is None:
            self._log.awaiting[request] = None
        if request.deadlines is not None:
            self.next_deadline = earliest(self.next_deadline, request.deadlines.until)
        request.pump = self.pump
        # In this order: a thread that ended the request, or closed the batcher, a moment ago may
        # not have seen the pump.
        if request.ends:
            self.pump.depart(request)
        elif self._owner.scheduler.closed:
            self.pump.fail_stream(request, closed_error(self._owner.scheduler.closing))

    # ---- from any thread

    @property
    def free_slots(self) -> int:
        """How many requests may join before the next step."""
        return 0

    @property
    def buffered(self) -> int:
        """How many outputs wait in live streams."""
        return sum(len(buffer.outputs) for buffer in list(self.pump.fanout.live_buffers))

    @property
    def prefilling(self) -> int:
        """How many live slots have had no output since their requests have joined."""
        fanout = self.pump.fanout
        requests: list[Any] = list(fanout.live_buffers)
        return sum(fanout.given(request) == request.given_before for request in requests)

    def step_totals(self) -> StepTotals:
        """Return what was done up to now."""
        live_slots = self._live_slots  # before the steps: `after_step` adds behind them
        core, log = self.pump.fanout.core.statistics(), self._log
        return StepTotals(
            core.steps,
            live_slots,
            core.outputs,
            core.dropped,
            log.first_outputs,
            log.first_output_time,
            log.wasted,
        )

    def close(self) -> None:
        """Fail the streams that have not ended: the batcher was closed."""
        buffers: list[Buffer[T]] = list(self.pump.fanout.buffers)
        for buffer in buffers:
            self.pump.fail_stream(buffer, closed_error(self._owner.scheduler.closing))

    # ---- hooks

    def before_step(self) -> None:
        """Fail the streams whose deadline has passed; called if there is a next deadline."""
        now = clock.monotonic()
        if self.next_deadline is None or self.next_deadline > now:
            return
        requests: list[Any] = list(self.pump.fanout.live_buffers)
        for request in requests:
            if (error := request.deadline_error(now)) is not None:
                self.pump.fail_stream(request, error)
        deadlines = [request.until for request in requests if not request.ends]
        self.next_deadline = earliest(*deadlines)

    def refill(self) -> tuple[int, ...]:
        """Count the requests that have ended, and return the live slots."""
        if self._owner.scheduler.ended_requests:
            self._owner.reap()
        return self.pump.fanout.core.live

    def after_step(self, live: tuple[int, ...]) -> None:
        """Count a step that was made for these slots."""
        self._live_slots += len(live)
        log = self._log
        if log.awaiting or log.departures or log.stepped is not None:
            log.note(live)

    def pause_limit(self) -> float | None:
        """Return for how many seconds the pump may wait for room: until the next deadline."""
        if self.next_deadline is None:
            return None
        return max(self.next_deadline - clock.monotonic(), 0.0)

    def failed(self) -> None:
        """Do nothing: the source is closed."""

    def drained(self) -> None:
        """Do nothing: every request has a slot."""
