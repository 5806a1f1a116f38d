"""What happens between the steps of a batch of requests: deadlines, and what is counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, Protocol

from typing_extensions import TypeVar

from batchstream._batching import clock
from batchstream._batching.reporting.step_log import StepLog
from batchstream._batching.reporting.totals import StepTotals
from batchstream._batching.requests.request import FREED, closed_error
from batchstream._batching.waiting.limits import slots_of_step
from batchstream._handoff.parking import earliest

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Sequence, Sized

    from batchstream._batching import life
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.reporting.log import BatcherLog
    from batchstream._batching.requests.ends import Ends
    from batchstream._batching.requests.request import Request, Submission
    from batchstream._handoff.buffer import Buffer
    from batchstream._pumps.background import BackgroundPump

T = TypeVar("T")


class BatcherState(Protocol[T]):
    """What a batch reads of the scheduler, without the lock.

    Attributes:
        state: Where the batcher is in its life; if that is closed, all requests are to fail.
        closing: By what and when it was closed.
        ended_requests: Requests that have ended and were not reaped.
        queue: The requests that wait.
        requeued: The requests whose slots were given back, and that wait again.
    """

    state: life.BatcherState
    closing: str
    ended_requests: deque[Request[T]]
    requeued: set[Request[T]]

    @property
    def queue(self) -> Sized: ...


class BatchOwner(Protocol[T]):
    """What a batch needs of the dispatcher whose requests it serves.

    Attributes:
        options: What the batcher was made with.
        log: Writes the batcher's lines in the log.
        scheduler: The batcher's state.
        ends: Ends requests from outside, and tells what waits for room.
    """

    options: BatcherOptions[Any, T]
    log: BatcherLog
    ends: Ends[T]

    @property
    def scheduler(self) -> BatcherState[T]: ...

    def reap(self) -> None:
        """Count the requests that have ended since the last time."""

    def take_joining(
        self, slots: int, spent: float | None, step_spent: float | None
    ) -> Sequence[Request[T]]:
        """Take requests for a running batch.

        Args:
            slots: How many free slots it has.
            spent: What it costs; None if it has no request.
            step_spent: What its next step costs without others, if that is bounded; likewise.
        """

    def count_joined(self, requests: Sequence[Request[T]]) -> None:
        """Count requests that have joined the batch together."""

    def count_first_outputs(self, requests: Sequence[Request[T]], now: float) -> None:
        """Count requests that had their first output in a step."""

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
        next_deadline: When the next deadline of a request that has joined passes, if any, or
            earlier; infinity if none can pass before a stream has room.
        is_warm_up: Whether its requests are a warm-up's, and it counts in no figures.
    """

    pump: BackgroundPump[T]

    def __init__(self, owner: BatchOwner[T]) -> None:
        self._owner = owner
        self.next_deadline: float | None = None
        self.is_warm_up = False
        self._limits = owner.options.limits
        # The requests that have a deadline for their next output, and some that have ended.
        self._timed: list[Request[T]] = []
        # The requests that can get no output, as their own consumers have left no room.
        self._held_up: set[Buffer[Any]] = set()
        self._log = StepLog(owner.options, owner.count_first_outputs)

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
            request.deadlines.join()
            self.next_deadline = earliest(self.next_deadline, request.deadline)
            if request.deadlines.of_outputs:
                self._timed.append(request)
                if request.given_before and self._is_held_up_by(request):
                    self._stop_time_of(request, request.given_before)
        if request.is_warm_up:
            self.is_warm_up = True
        request.pump = self.pump
        # In this order: a thread that ended the request, or closed the batcher, a moment ago may
        # not have seen the pump; see `Ends`, which looks in the other order.
        if request.ends:
            self.pump.depart(request)
        elif self._owner.scheduler.state == "closed":
            self.pump.fail_stream(request, closed_error(self._owner.scheduler.closing))

    def _unseat(self, request: Request[T]) -> None:
        """Look at the deadlines of a request no more, whose slot is given back."""
        if request in self._timed:
            self._timed.remove(request)
        if request in self._held_up:  # it waits for a slot from now on, not for its consumer
            self._held_up.discard(request)
            assert request.deadlines is not None  # noqa: S101 - for the type checker
            request.deadlines.await_next(request.given_before, clock.monotonic())

    def _is_held_up_by(self, request: Request[T]) -> bool:
        """Whether a request gets no output because its own consumer has left it no room."""
        waits = self._owner.options.bound.on_overflow == "wait"
        return waits and request.is_full(self.pump.fanout.limit)

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
        counts = self._log.counts
        live_slots = counts.live  # before steps and slots: `after_step` adds behind them
        core = self.pump.fanout.core.statistics()
        return StepTotals(
            core.steps,
            live_slots,
            counts.slot_steps,
            core.outputs,
            core.dropped,
            counts.wasted,
        )

    def end_log(self) -> None:
        """Note no step any more: the batch has ended."""
        self._log.end()

    def close(self) -> None:
        """Fail the streams that have not ended: the batcher was closed."""
        buffers: list[Buffer[T]] = list(self.pump.fanout.buffers)
        for buffer in buffers:
            self.pump.fail_stream(buffer, closed_error(self._owner.scheduler.closing))

    # ---- hooks

    def before_step(self) -> None:
        """Fail the streams whose deadline has passed; called if there is a next deadline."""
        now = clock.monotonic()
        if self._held_up:
            self._let_time_go_on(now)
        if self.next_deadline is None or self.next_deadline > now:
            return
        requests: list[Any] = list(self.pump.fanout.live_buffers)
        for request in requests:
            if (error := request.deadline_error(now)) is not None:
                self.pump.fail_stream(request, error)
        deadlines = [request.deadline for request in requests if not request.ends]
        self.next_deadline = earliest(*deadlines, math.inf if self._held_up else None)

    def _let_time_go_on(self, now: float) -> None:
        """Let the time for the next output begin where a stream has been read, and has room."""
        limit = self.pump.fanout.limit
        held_up: list[Any] = list(self._held_up)
        for request in held_up:
            if request.ends:
                self._held_up.discard(request)
            elif not request.is_full(limit):
                self._held_up.discard(request)
                request.deadlines.await_next(request.deadlines.next_output[0], now)
                self.next_deadline = earliest(self.next_deadline, request.deadline)

    def refill(self) -> tuple[int, ...]:
        """Count the requests that have ended, and return the live slots."""
        if self._owner.scheduler.ended_requests:
            self._owner.reap()
        return self.pump.fanout.core.live

    def after_step(self, live: tuple[int, ...]) -> None:
        """Count a step that was made for these slots."""
        log = self._log
        capacity = slots_of_step(self._limits.now, len(live), len(self.pump.fanout.buffers))
        log.counts.slot_steps += capacity
        log.counts.live += len(live)
        if self._timed:
            self._time_outputs()
        if log.awaiting or log.departures or live is not log.alike:
            if (log.wants_all or log.awaiting or log.departures) and not self.is_warm_up:
                log.note(live, capacity)
        else:
            log.add(clock.monotonic(), capacity)

    def _time_outputs(self) -> None:
        """Let the time for the next output begin where the step has given one."""
        now, fanout, soonest = clock.monotonic(), self.pump.fanout, self.next_deadline
        over: set[Request[T]] = set()
        for request in self._timed:
            deadlines = request.deadlines
            if request.ends or deadlines is None:
                over.add(request)
                continue
            given = fanout.core.given(request.slot)
            if given == deadlines.next_output[0]:
                continue
            gap = deadlines.gap_timeout
            if gap is None:
                deadlines.await_next(given, None)
                over.add(request)
            elif self._is_held_up_by(request):
                self._stop_time_of(request, given)
            else:
                deadlines.await_next(given, now)
                # Mostly there is a deadline before, if only one that an output has moved since.
                if soonest is None or now + gap < soonest:
                    soonest = now + gap
        self.next_deadline = soonest
        if self._held_up:
            self.next_deadline = earliest(soonest, math.inf)
        if over:
            self._timed = [request for request in self._timed if request not in over]

    def _stop_time_of(self, request: Request[T], given: int) -> None:
        """Let the time stand still for a request whose own consumer has left it no room."""
        assert request.deadlines is not None  # noqa: S101 - for the type checker
        request.deadlines.await_next(given, None)
        self._held_up.add(request)
        self.pump.resume_for_room_in(self._held_up)

    def pause_limit(self) -> float | None:
        """Return for how many seconds the pump may wait for room: until the next deadline."""
        if self.next_deadline is None or self.next_deadline == math.inf:
            return None
        return max(self.next_deadline - clock.monotonic(), 0.0)

    def failed(self) -> None:
        """Do nothing: the source is closed."""

    def drained(self) -> None:
        """Do nothing: every request has a slot."""
