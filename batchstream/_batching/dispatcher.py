"""Requests in, batches out: what every batcher does, in threads and in an event loop.

Theory of operation
-------------------

A request is its own stream's buffer from its arrival on. It waits in the scheduler's queue; then
the pump of the batch that it joins fills it. Consumers wait in a parking lot that all batches of
the dispatcher share, so they need not know where their request is.

The `Scheduler` decides under one lock; this module holds the lock, and carries out without it what
was decided: it starts and wakes workers, fails requests, calls metrics and frees the user's
objects. So no code of the user's runs under the lock.

A request is ended by its buffer, from any thread and without the lock. A thread that ends a request
which has not joined a batch sets its end, and then checks whether it has joined one since. A worker
that lets it join sets its pump, and then checks whether it has ended. So at least one of the two
reaches the batch.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from contextvars import copy_context
from itertools import count
from threading import RLock, current_thread
from typing import TYPE_CHECKING, Any, Generic, Protocol

from typing_extensions import TypeVar

from batchstream._batching import clock
from batchstream._batching.keys import KeyInterner
from batchstream._batching.life import WarmUps, state_text
from batchstream._batching.log import BatcherLog
from batchstream._batching.request import (
    Deadlines,
    Request,
    Submission,
    closed_error,
    without_stream,
)
from batchstream._batching.scheduler import NOTHING_REAPED, Scheduler
from batchstream._core.errors import (
    ClosedError,
    CostError,
    ForkedError,
    OverloadedError,
    begin_in_source,
    report_unraisable,
    warn_user,
)
from batchstream._core.records import FinishReason, StreamEnd
from batchstream._eventloops.current import current_loop, loop_if_any
from batchstream._handoff.buffer import Buffer
from batchstream._handoff.event import Event
from batchstream._handoff.parking import LoopBound, ParkingLot, earliest
from batchstream._pumps.intake import sizes_of
from batchstream._pumps.process import forkable_batchers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from batchstream._batching.life import BatcherState
    from batchstream._batching.notice import Notice
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.request_batch import RequestBatch
    from batchstream._batching.scheduler import Decision, Reaped, Worker
    from batchstream._batching.traces import RequestTracing
    from batchstream._core.records import BatcherStatistics
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.parking import Lot
    from batchstream._pumps.background import BackgroundPump

T = TypeVar("T")
StreamT = TypeVar("StreamT")


class AnyFlight(LoopBound, Protocol[T]):
    """What the dispatcher needs of a `Flight`, the requests of one `map`; or of a `Notice`.

    Attributes:
        ready: Whether there is something to do for a consumer that waits.
        live: The requests that have not ended.
        passes_on: Whether it wakes the next itself, as it leaves. See `room.py`.
    """

    passes_on: bool

    @property
    def ready(self) -> bool: ...
    @property
    def live(self) -> list[Request[T]]: ...
    def note_room(self) -> None:
        """Take note that the queue has room again, and wake the consumer."""


class Model(Protocol):
    """What all batches of a dispatcher share: an engine.

    Attributes:
        is_open: Whether there is one to be closed. It is until `discard` has returned.
    """

    @property
    def is_open(self) -> bool: ...
    def discard(self) -> None:
        """Close it; where that is not this object's to do, do nothing.

        Raises:
            BaseException: One of `INTERRUPTS`.
        """

    def begin_anew(self) -> bool:
        """Get ready for a forked child, in which no request is open; False if that cannot be."""


class Dispatcher(ABC, Generic[T]):
    """The requests of one batcher, and its workers.

    Args:
        options: What the batcher was made with.
        model: What all batches share, if they share anything: an engine. Its batches may put
            requests back that were taken for them.

    Attributes:
        options: The same.
        context: A copy of the context in which this object was made.
        parking: Where consumers wait.
        scheduler: What decides, for the holder of the lock.
        forked: Whether this is a copy in a forked child, of no use there.
        log: Writes the batcher's lines in the log.
        room_waiters: What is to be woken by room in the queue, in the order in which it came:
            flights with a request for which there was none, and other callers. See `room.py`.
        closers: What is to be woken when the last request has ended, in a drain. See `drain.py`.
        readiness: Whether the model is warm.
        consumers: Which thread waits for which buffer.
        times_out: Whether a receive can have a timeout.
    """

    times_out = True
    _needs_loop = False
    _reuses_workers = True

    def __init__(
        self,
        options: BatcherOptions[Any, T],
        model: Model | None = None,
    ) -> None:
        self.options = options
        self._model = model
        self.context = copy_context()
        self.parking = ParkingLot()
        self.forked = False
        self.consumers: dict[Request[T], int] = {}
        self.room_waiters: dict[AnyFlight[T], None] = {}
        self.closers: dict[Notice, None] = {}
        self.readiness = WarmUps()
        self.scheduler = self._new_scheduler()
        # Re-entrant for the sake of `statistics`, which a signal's handler may call.
        self._lock = RLock()
        self._ended = Event(self.parking)  # closed, and no worker is at work
        self._numbers = count()
        self._has_warned = False  # see `_warn_if_a_loop_stops`
        self._keys = KeyInterner()
        self.log = BatcherLog(options.label)
        self._tenants = KeyInterner("tenant")
        forkable_batchers.add(self)

    def _new_scheduler(self) -> Scheduler[T]:
        return Scheduler(
            self.options,
            reuses_workers=self._reuses_workers,
            may_put_back=self._model is not None,
        )

    @property
    def ended(self) -> bool:
        """Whether it was closed, and no worker is at work any more."""
        return self.scheduler.state == "closed" and not self.scheduler.at_work

    @property
    def summary(self) -> str:
        """Its state in words."""
        scheduler = self.scheduler
        state = state_text(scheduler.state)
        waiting, running = len(scheduler.queue), len(scheduler.batches)
        requests = "request" if waiting == 1 else "requests"
        batches = "batch runs" if running == 1 else "batches run"
        return f"{state}, {waiting} {requests} waiting, {running} {batches}"

    # ---- from the caller that submits

    def submit(
        self,
        content: Any,
        make_stream: Callable[[Request[T], Any], StreamT],
        *,
        timeout: float | None,
        wait_timeout: float | None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        on_end: Callable[[Request[T]], object] | None = None,
        is_warm_up: bool = False,
        request_id: str | None = None,
    ) -> StreamT:
        """Accept a request, and return its stream.

        Args:
            content: The request.
            make_stream: Makes a stream of the request's buffer and this dispatcher.
            timeout: For how long the request may last, in seconds.
            wait_timeout: For how long it may wait for a batch, in seconds.
            first_timeout: For how long it may be without its first output, in seconds.
            gap_timeout: For how long it may be without another, from the first on.
            on_end: See `Request`, for one that a `map` submits.
            is_warm_up: Whether it waits for `begin_warm_up`, to be taken before all others.
            request_id: What errors and logs call it, if not by a number.

        Raises:
            OverloadedError: As many requests wait as may, or they cost as much.
            RequestError: The request costs more than a batch may. It is a `ValueError`, too.
            ClosedError: The batcher was closed, or is draining.
            ForkedError: The batcher had requests when this process was forked.
            RuntimeError: No worker could run it.
            TypeError, ValueError: A timeout, or a number that a function has returned for the
                request, is not one that it can be; or what `per_request` or `decode` returned is no
                predicate or no decoder.
            Exception: What `key`, `cost`, `step_cost`, `max_outputs`, `decode`, `priority`,
                `tenant`, `share`, the function of `per_request` or the factory of the metrics
                raise.
        """
        if self.forked:
            raise _forked_error()
        if self._lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - as Condition asks
            raise RuntimeError("a signal's handler has interrupted the batcher it submits to")
        options, scheduler = self.options, self.scheduler
        if options.metrics is not None and options.metrics.unmade:
            options.metrics.make(self.context.copy())
        deadlines = None
        has_one = timeout is not None or wait_timeout is not None
        if has_one or first_timeout is not None or gap_timeout is not None:
            deadlines = Deadlines.checked(timeout, wait_timeout, first_timeout, gap_timeout)
        bytes_are_bounded = options.bound.max_buffered_bytes is not None and on_end is None
        submission = Submission(
            content,
            1.0 if options.cost is None else options.cost_of(content),
            None if options.max_outputs is None else options.limit_of(content),
            None if options.rules.per_request is None else options.rules.is_eos_of(content),
            None if options.decode is None else options.decoder_of(content),
            0.0 if options.step_cost is None else options.step_cost_of(content),
        )
        key = None if options.key is None else options.key(content)
        place = None if options.places is None else options.places.place_of(content)
        request: Request[T] = Request(
            next(self._numbers),
            submission,
            deadlines,
            scheduler.ended_requests,
            on_end,
            is_warm_up=is_warm_up,
            request_id=request_id,
            batcher=options.name,
        )
        request.place = place
        request.sizes = sizes_of(options.bound) if bytes_are_bounded else None
        if self._needs_loop:
            self.prepare()
        # Before the request waits: whatever breaks this off drops the stream, and so cancels it.
        stream = make_stream(request, self)
        try:
            refusal = self._enqueue(request, key)
            if scheduler.wakeups:
                self._wake_workers()
            if refusal is None and scheduler.state == "closed":  # meanwhile
                self._fail(request, closed_error(scheduler.closing))
            if refusal is None:
                return stream
        except BaseException:  # KeyboardInterrupt too: nothing stays half done
            self._take_back(request)
            raise
        # It was never counted: let it not be reaped, as its stream is dropped.
        Buffer.finish(request, StreamEnd(FinishReason.CANCELLED, 0))
        try:
            raise refusal
        finally:
            del refusal  # it holds this frame

    def _take_back(self, request: Request[T]) -> None:
        """Cancel a request whose submission was broken off."""
        self.cancel(request)
        if request.trace is not None and request not in self.scheduler.totals.open:
            request.trace.ended(request.ends[0])  # it is never counted
        self._wake_unstarted()

    def _enqueue(self, request: Request[T], key: Any) -> Exception | None:
        """Let a request wait, or return why it is refused."""
        scheduler, metrics = self.scheduler, self.options.metrics
        if self.options.traces is not None and not request.is_warm_up:
            request.trace = self._new_trace(request)
        # In a list, to be popped: an error holds the frame in which it was raised, and its locals.
        refusals: list[Exception] = []
        while True:
            generations = None
            if key is not None or request.place is not None:
                generations = self._intern(request, key)
            with self._lock:
                if generations is not None and not self._are_current(*generations):
                    continue
                now = clock.monotonic()
                reaped = scheduler.reap(now)
                try:
                    scheduler.submit(request, now)
                except (ClosedError, OverloadedError, CostError) as error:
                    refusals.append(error)
            break
        if reaped is not NOTHING_REAPED:
            self._follow_up(reaped, now)
        if refusals:
            self._tell_of_refusal(request, refusals[0], now)
        elif metrics is not None and not request.is_warm_up:
            metrics("submitted", tenant=request.tenant)
        if self.log.is_refusing and not refusals:
            self.log.accepted(now, scheduler.totals.refused)
        return refusals.pop() if refusals else None

    def _new_trace(self, request: Request[T]) -> RequestTracing | None:
        """Return what to tell of a request that is about to be submitted, if it is traced."""
        submission, traces = request.submission, self.options.traces
        assert traces is not None  # noqa: S101 - for the type checker
        return traces.submitted(
            submission.content,
            request_id=request.id,
            tenant=request.tenant,
            max_outputs=submission.max_outputs,
        )

    def _tell_of_refusal(self, request: Request[T], refusal: Exception, now: float) -> None:
        """Tell metrics and the log of a request that was refused; not of one that comes again."""
        if isinstance(refusal, OverloadedError):
            if request.on_end is not None:
                return
            reason: str = refusal.reason
            self.log.refused(refusal, request.id, now, self.scheduler.totals.refused - 1)
        elif isinstance(refusal, CostError):
            reason = "cost"
        else:
            reason = "draining" if self.scheduler.state == "draining" else "closed"
        if self.options.name is not None:
            refusal.add_note(f"This came from the batcher {self.options.name!r}.")
        if self.options.metrics is not None and not request.is_warm_up:
            self.options.metrics("refused", reason, tenant=request.tenant)
        if request.trace is not None:
            request.trace.ended(StreamEnd(FinishReason.ERROR, 0, error=refusal))

    def _intern(self, request: Request[T], key: Any) -> tuple[object, object]:
        """Set what stands for a request's key and tenant; return what `_are_current` takes."""
        keys = tenants = None
        if key is not None:
            request.group, keys = self._keys.intern(key)
        if (place := request.place) is not None:
            place.account, tenants = self._tenants.intern(place.tenant)
        return keys, tenants

    def _are_current(self, keys: object, tenants: object) -> bool:
        """Whether what stands for a request's key and tenant may be used; with the lock."""
        if keys is not None and not self._keys.is_current(keys):
            return False
        return tenants is None or self._tenants.is_current(tenants)

    def prepare(self) -> None:
        """Find the event loop for the workers, for a dispatcher that `_needs_loop`.

        Raises:
            RuntimeError: There is none.
        """

    def submit_warm_up(self, content: Any, on_end: Callable[[Request[T]], object]) -> Request[T]:
        """Accept a request of a warm-up, which waits for `begin_warm_up`; see `submit`."""
        return self.submit(
            content,
            without_stream,
            timeout=None,
            wait_timeout=None,
            on_end=on_end,
            is_warm_up=True,
        )

    def begin_warm_up(self, requests: Collection[Request[T]]) -> None:
        """Let requests of a warm-up that were submitted join batches, before all others."""
        with self._lock:
            self.scheduler.begin_warm_up(requests)
        self._wake_workers()

    # ---- waking workers

    def _wake_workers(self) -> None:
        """Start or wake the workers queued in the scheduler's `wakeups`."""
        wakeups = self.scheduler.wakeups
        while wakeups:
            try:
                wakeup = wakeups[0]
            except IndexError:  # another thread has just carried it out
                return
            # Carried out before it is removed: a signal's exception in between costs a second
            # wake-up, and no wake-up is lost.
            if wakeup.waiter is None:
                self._try_to_start(wakeup.worker)
            else:
                self._resume(wakeup.waiter)
            with suppress(ValueError):  # another thread has carried it out as well
                wakeups.remove(wakeup)

    def _wake_unstarted(self) -> None:
        """Start all workers of which it is not sure that they were started."""
        with self._lock:
            self.scheduler.wake_unstarted()
        self._wake_workers()

    def _wake_another(self) -> None:
        """Start or wake another worker, if that is possible; from a worker."""
        if self.scheduler.wakeups:
            try:
                self._wake_workers()
            except Exception as error:  # noqa: BLE001 - the system refuses a thread, perhaps
                report_unraisable(error)

    def _try_to_start(self, worker: Worker) -> None:
        claim = object()
        try:
            with self._lock:
                if not self.scheduler.claim_start(worker, claim):
                    return
            if self.scheduler.state == "closed":
                raise closed_error(self.scheduler.closing)  # noqa: TRY301 - it ends as the others
            self._start(worker)
        except BaseException as error:
            with self._lock:
                if worker.claim is claim:
                    self.scheduler.rest(worker)
                stuck = [] if self.scheduler.at_work else self.scheduler.waiting_requests()
            self.fail_all(stuck, error)  # for no worker would ever ask for them
            self._check_ended()
            if not isinstance(error, ClosedError):
                raise

    @abstractmethod
    def _start(self, worker: Worker) -> None:
        """Let a worker ask for batches until there is none."""

    @abstractmethod
    def _resume(self, waiter: Any) -> None:
        """Wake a worker that waits; harmless if it was woken already."""

    # ---- from a worker

    def next_batch(self, worker: Worker, waiter: object) -> Decision[T] | None:
        """Decide what a worker does next; see `Scheduler.next_batch`."""
        with self._lock:
            now = clock.monotonic()
            reaped = self.scheduler.reap(now)
            decision = self.scheduler.next_batch(worker, waiter, now)
            stale = self._tidy_keys()
        del stale  # without the lock: the keys are the user's
        try:
            if reaped is not NOTHING_REAPED:
                self._follow_up(reaped, now)
            if decision is not None:
                if self.room_waiters:  # a worker that waits makes room, too
                    self.tell_of_room()
                if decision.requests:
                    is_counted = self._model is None and not decision.requests[0].is_warm_up
                    if is_counted and self.options.is_observed:
                        self._tell_of_joining(decision.requests, now)
                    self._wake_another()
                elif decision.wait is None:
                    self._check_ended()
        except BaseException as error:  # KeyboardInterrupt too: no other code knows the batch
            if decision is not None:
                self.fail_all(decision.requests, error)
            raise
        return decision

    def _tidy_keys(self) -> object:
        """Drop keys and tenants of which no request waits; return what to free without the lock."""
        options, queue = self.options, self.scheduler.queue
        if options.key is None and options.places is None:
            return None
        return self._keys.tidy(queue.has_group), self._tenants.tidy(queue.has_tenant)

    def take_joining(self, slots: int, spent: float) -> list[Request[T]]:
        """Take the requests that join a running batch, which costs so much, in its free slots."""
        if not self.scheduler.queue:  # asked without the lock: a moment later there may be one
            return []
        with self._lock:
            now = clock.monotonic()
            reaped = self.scheduler.reap(now)
            taken = self.scheduler.take(now, slots=slots, spent=spent)
            stale = self._tidy_keys()
        del stale  # without the lock, as in `next_batch`
        try:
            self._follow_up(reaped, now)
            if self.room_waiters and taken:
                self.tell_of_room()
        except BaseException as error:
            self.fail_all(taken, error)
            raise
        return taken

    def count_joined(self, requests: Sequence[Request[T]], now: float) -> None:
        """Count requests that have joined a running batch together."""
        with self._lock:
            joined = self.scheduler.join(requests, now)
        if joined and self.options.is_observed:
            self._tell_of_joining(joined, now)

    def _tell_of_joining(self, requests: Sequence[Request[T]], now: float) -> None:
        """Tell metrics and traces of requests that have joined a batch together."""
        if self.options.metrics is not None:
            self.options.metrics(
                "joined",
                [
                    now - (request.arrived if (back := request.requeued_at) is None else back)
                    for request in requests
                ],
                tenants=[request.tenant for request in requests],
            )
        if self.options.traces is not None:
            traces = [request.trace for request in requests]
            self.options.traces.joined([trace for trace in traces if trace is not None])

    def put_back(self, requests: Sequence[Request[T]]) -> None:
        """Let requests wait again that were taken, in their order and in front of all others."""
        with self._lock:
            closed = self.scheduler.state == "closed"
            if not closed:  # or else they would be left there: `request_close` has looked
                self.scheduler.put_back(requests)
        if closed:
            self.fail_all(requests, closed_error(self.scheduler.closing))

    def requeue(self, requests: Sequence[tuple[Request[T], Submission]]) -> Sequence[Request[T]]:
        """Let requests wait again whose slots were given back; see `Scheduler.requeue`."""
        with self._lock:
            closed = self.scheduler.state == "closed"
            waiting = () if closed else self.scheduler.requeue(requests, clock.monotonic())
        if closed:  # as in `put_back`
            self.fail_all(
                [request for request, _ in requests], closed_error(self.scheduler.closing)
            )
        metrics = self.options.metrics
        for request, _ in requests:
            if request in waiting:
                if metrics is not None and not request.is_warm_up:
                    metrics("requeued", tenant=request.tenant)
                if (trace := request.trace) is not None:
                    trace.requeued()
        return waiting

    def _rest(self, worker: Worker) -> None:
        """Take a worker from work that has ended without asking for another batch."""
        with self._lock:
            if self.scheduler.rest(worker):
                self.scheduler.wake_worker()
        self._wake_another()
        self._check_ended()

    def add_batch(self, batch: RequestBatch[T]) -> None:
        """Count a batch among those that run."""
        with self._lock:
            self.scheduler.batches.add(batch)
        if (
            self.scheduler.state == "closed"
        ):  # behind the adding: `request_close` may not have seen it
            batch.close()

    def end_batch(self, batch: RequestBatch[T]) -> None:
        """Count a batch that has ended."""
        with self._lock:
            self.scheduler.end_batch(batch)
        self.reap()

    def reap(self) -> None:
        """Count the requests that have ended since the last time."""
        while self.scheduler.ended_requests:
            with self._lock:
                now = clock.monotonic()
                reaped = self.scheduler.reap(now)
            self._follow_up(reaped, now)

    def _follow_up(self, reaped: Reaped, now: float) -> None:
        """Do without the lock what the reaping asks for."""
        if reaped.overdue:
            self.parking.wake(reaped.overdue)
            for request in reaped.overdue:
                if (on_end := request.on_end) is not None:
                    on_end(request)
        if reaped is not NOTHING_REAPED:
            if self.room_waiters:
                self.tell_of_room()
            if self.closers and self.scheduler.is_empty:
                self._tell_closers()
            if reaped.wakes:
                self._wake_another()
        if reaped.finished:
            self._tell_of_ends(reaped.finished, now)

    def _tell_of_ends(self, finished: Sequence[Request[T]], now: float) -> None:
        """Tell metrics, traces and the log of requests that were counted as finished."""
        metrics = self.options.metrics
        if metrics is not None:
            for request in finished:
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
                )
        if self.options.traces is not None:
            for request in finished:
                trace, request.trace = request.trace, None  # the stream may be kept for long
                if trace is not None:
                    trace.ended(request.ends[0])
        if any(request.ends[0].error is not None for request in finished):
            self.log.failed(finished, closed=self.scheduler.state == "closed")

    def tell_of_room(self) -> None:
        """Wake what waits for room, up to the first waiter that wakes the next itself."""
        for waiter in list(self.room_waiters):
            waiter.note_room()
            if waiter.passes_on:
                return

    def _tell_closers(self) -> None:
        """Let callers that wait for the end of a drain look whether it has come."""
        for closer in list(self.closers):
            closer.wake()

    def has_room(self, cost: float) -> bool:
        """Whether a request of this cost would not be refused at the moment.

        Raises:
            ClosedError: It would be, as the batcher was closed or is draining.
        """
        with self._lock:
            now = clock.monotonic()
            reaped = self.scheduler.reap(now)
            accepts = self.scheduler.state == "accepting"
            refusal = None if accepts else self.scheduler.refusal()
            has_room = self.scheduler.has_room(cost)
        self._follow_up(reaped, now)
        if refusal is not None:
            raise refusal
        return has_room

    def fail_all(self, requests: Iterable[Request[T]], error: BaseException) -> None:
        """Fail requests that are in no batch."""
        begin_in_source(error)
        for request in requests:
            self._fail(request, error)
        self.reap()

    # ---- from a consumer; see `_handoff/upstream.py`. None of it takes the lock.

    def cancel(self, request: Request[T]) -> None:
        """Cancel a request, wherever it is."""
        if self.forked:
            return
        while True:
            pump = request.pump  # in a local: it is reset when the request is reaped
            if pump is not None:
                pump.cancel(request)
            elif request.ends:
                request.shut()
                return
            else:
                request.cancel(StreamEnd(FinishReason.CANCELLED, request.given_before))
            if request.ends:  # or else its slot was given back meanwhile
                break
        if pump is None or request.pump is not pump:
            self._ended_outside(request, pump)

    def waits_for(self, request: Request[T]) -> bool:
        """Whether the batch of a request waits until its stream is read."""
        pump = request.pump
        return pump is not None and pump.waits_for(request)

    def given(self, request: Request[T]) -> int:
        """How many outputs a request was given."""
        pump = request.pump  # in a local: it is reset when the request is reaped, behind its end
        if pump is not None:
            return pump.given(request)
        end = request.end
        return request.given_before if end is None else end.outputs

    def _fail(self, request: Request[T], error: BaseException) -> None:
        """Fail a request, wherever it is."""
        while True:
            pump = request.pump
            if pump is not None:
                pump.fail_stream(request, error)
            else:
                request.finish(StreamEnd(FinishReason.ERROR, request.given_before, error=error))
            if request.ends:  # or else its slot was given back meanwhile
                break
        if pump is None or request.pump is not pump:
            self._ended_outside(request, pump)

    def _ended_outside(self, request: Request[T], pump: BackgroundPump[T] | None) -> None:
        """Follow up the end of a request that was set outside of any batch, or by way of this one.

        Wake its consumer, unless the batch has.
        """
        if pump is None:
            self.parking.wake((request,))
        if self.room_waiters:  # with the lock they see that it waits no longer
            self.tell_of_room()
        if self.closers:
            self._tell_closers()
        # Behind the end: it may have joined a batch meanwhile, which then has to know.
        joined = request.pump
        if joined is not None and joined is not pump:
            joined.depart(request)

    def wait(self, request: Request[T], deadline: float | None) -> None:
        """Wait until the buffer may hold something, or its stream has ended.

        Raises:
            TimeoutError: The deadline has passed.
            RuntimeError, ForkedError: See `_check_waitable`.
        """
        self._check_waitable(None)
        self._warn_if_a_loop_stops()
        poll_after = self.poll_after(request, None)
        poll_at = None if poll_after is None else clock.monotonic() + poll_after
        if self.parking.wait_in_thread(request, earliest(poll_at, deadline)):
            return
        self.poll(request)
        if deadline is not None and deadline <= clock.monotonic():
            raise TimeoutError("no output came within the timeout; the stream is unchanged")

    def wait_for_any(self, flight: AnyFlight[T], deadline: float | None = None) -> None:
        """Wait in a thread until a request of a flight has ended, or there may be room.

        Args:
            flight: The flight; or a notice, until it is woken.
            deadline: Until when at most.

        Raises:
            RuntimeError, ClosedError: See `_check_waitable`.
        """
        self._check_waitable(None)
        self._warn_if_a_loop_stops()
        seconds = self._poll_any_after(flight, None)
        until = None if seconds is None else clock.monotonic() + seconds
        if not self.parking.wait_in_thread(flight, earliest(until, deadline)):
            self._poll_any(flight)

    async def wait_for_any_in_loop(
        self, flight: AnyFlight[T], loop: EventLoop, deadline: float | None = None
    ) -> None:
        """Do the same in an event loop; from within the loop."""
        self._check_waitable(loop)
        lot, waiter = self.parking.in_loop(loop), loop.new_waiter()
        lot.streams.add(flight)
        lot.waiting[flight] = waiter
        try:
            if not flight.ready:  # once more: what came before the parking wakes no waiter
                seconds = self._poll_any_after(flight, loop)
                if deadline is not None:
                    seconds = earliest(seconds, max(deadline - clock.monotonic(), 0.0))
                await loop.wait(waiter, seconds)
        finally:
            lot.waiting.pop(flight, None)
        if not flight.ready:
            self._poll_any(flight)

    def _poll_any_after(self, flight: AnyFlight[T], loop: EventLoop | None) -> float | None:
        requests: list[Request[T] | None] = [None, *flight.live]
        return earliest(*[self.poll_after(request, loop) for request in requests])

    def _poll_any(self, flight: AnyFlight[T]) -> None:
        requests: list[Request[T] | None] = [None, *flight.live]
        for request in requests:
            self.poll(request)

    def attach(self, request: Request[T], loop: EventLoop) -> Lot:
        """Return the lot in which the consumers of a loop wait; from within that loop.

        Raises:
            RuntimeError, ForkedError: See `_check_waitable`.
        """
        del request
        self._check_waitable(loop)
        return self.parking.in_loop(loop)

    def _check_waitable(self, loop: EventLoop | None) -> None:  # noqa: ARG002 - see TaskDispatcher
        """Refuse to wait in vain.

        Raises:
            RuntimeError: The calling code is that of a batch, which would wait for its own worker.
            ForkedError: The batcher had requests when this process was forked.
        """
        if self.forked:
            raise _forked_error()
        if self.runs_here():
            raise RuntimeError("the source of a batch waits for a request to its own batcher")

    def _warn_if_a_loop_stops(self) -> None:
        """Warn once of a wait in a thread whose event loop cannot go on meanwhile."""
        # In a notebook every cell runs in an event loop, and what it waits for is all there is. The
        # package alone may be imported by a program that starts notebooks.
        if self._has_warned or "ipykernel.kernelapp" in sys.modules or loop_if_any() is None:
            return
        self._has_warned = True
        warn_user(
            "a stream or result of a batcher is waited for in a thread whose event loop stands "
            "still meanwhile, so that no other request comes and no batch fills: use astream, "
            "acall or amap there, or wait in another thread"
        )

    def poll_after(self, request: Request[T] | None, loop: EventLoop | None) -> float | None:
        """Return after how many seconds a consumer that waits in this loop or a thread polls."""
        del loop
        if request is None or request.deadlines is None:
            return None
        return request.look_after(clock.monotonic())

    def poll(self, request: Request[T] | None = None) -> None:
        """Fail a request whose deadline has passed, even if its worker is in a long step."""
        if request is not None:
            error = request.deadline_error(clock.monotonic())
            if error is not None:
                self._fail(request, error)

    async def wait_closed_if_idle(self, loop: EventLoop) -> None:
        """Wait for nothing: other requests keep the model busy."""

    def runs_here(self) -> bool:
        """Whether a batch waits for the calling code, which is its source's."""
        return any(batch.pump.runs_here for batch in tuple(self.scheduler.batches))

    # ---- from the owner

    def request_close(
        self, by: str = "the exit of the program", closing: str | None = None
    ) -> None:
        """Fail every request that has not ended, and accept no other.

        Args:
            by: What closes it.
            closing: The same and when, for the text of the error, if it is known.
        """
        if self.forked:
            return
        if closing is None:
            closing = _said_of(by)
            if self.scheduler.state == "draining":
                closing += ", before its drain was over"
        with self._lock:
            is_first = self.scheduler.state != "closed"
            if is_first:
                self.scheduler.closing = closing  # the first says it
            now = clock.monotonic()
            reaped = self.scheduler.reap(now)
            waiting, batches = self.scheduler.close()
            unfinished = len(self.scheduler.totals.open)
        self._follow_up(reaped, now)
        self.fail_all(waiting, closed_error(self.scheduler.closing))
        self._wake_workers()
        for batch in batches:
            batch.close()
        self.reap()
        self.tell_of_room()  # there is none, as it finds
        self._tell_closers()
        if is_first:  # only now: a handler of the user's may take long, or be broken off
            self.log.closed(self.scheduler.closing, unfinished)
        self._check_ended()

    def request_drain(self, by: str, seconds: float) -> bool:
        """Accept no request any more; return whether the requests that there are may end.

        Args:
            by: What asks for it, for the text of errors.
            seconds: For how long, from now on.
        """
        if self.forked or self.scheduler.state == "closed":
            return False
        closing = _said_of(by)
        with self._lock:
            now = clock.monotonic()
            reaped = self.scheduler.reap(now)
            is_first = self.scheduler.state == "accepting"
            self.scheduler.drain(now + seconds, closing)
            unfinished = len(self.scheduler.totals.open)
        self._follow_up(reaped, now)
        self._wake_workers()
        self.tell_of_room()  # there is none, as it finds
        self._tell_closers()  # of a drain before this one, which may be over earlier now
        if is_first:
            self.log.drains(closing, seconds, unfinished)
        return True

    def drain_state(self) -> tuple[BatcherState, float, bool]:
        """Return the state, until when a drain goes on, and whether no request is open."""
        with self._lock:
            now = clock.monotonic()
            reaped = self.scheduler.reap(now)
            state = self.scheduler.state, self.scheduler.drains_until, self.scheduler.is_empty
        self._follow_up(reaped, now)
        return state

    def end_drain(self, *, is_over_time: bool) -> None:
        """Close a batcher behind its drain, because all requests have ended or the time is over."""
        closing = self.scheduler.closing
        if is_over_time:
            closing += ", whose time was over before all requests had ended"
        self.request_close(closing=closing)

    def request_exit(self) -> None:
        """Cancel every request, and accept no other: the interpreter exits."""
        with self._lock:
            requests = self.scheduler.open_requests()
        for request in requests:
            self.cancel(request)
        self.request_close()

    def _check_ended(self) -> None:
        """Set the event of the end, if it has come."""
        if self.ended:
            self.reap()
            self._ended.set()

    def close(self, by: str) -> None:
        """Fail every request that has not ended, and wait until no worker is at work.

        Args:
            by: What has closed it, for the text of the error.
        """
        self.poll()
        self.request_close(by)
        if not self.forked:
            while self.may_block() and not self._ended.wait(self.poll_after(None, None)):
                self.poll()
            if self.ended and self.may_block():
                self.join()

    async def aclose(self, by: str) -> None:
        """Do the same in an event loop."""
        self.poll()
        self.request_close(by)
        if not (self.forked or self.runs_here()):
            loop = current_loop()
            await self._ended.wait_in_loop(loop, lambda: self.poll_after(None, loop), self.poll)
            self.join()

    def may_block(self) -> bool:
        """Whether workers go on while the calling thread waits."""
        in_lock = self._lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001
        return not (in_lock or self.runs_here())

    def join(self, timeout: float | None = None) -> None:
        """Wait for what workers still have to do after the end; next to nothing."""

    def statistics(self) -> BatcherStatistics:
        """Return the figures up to now."""
        with self._lock:
            return self.scheduler.statistics()

    def check_not_forked(self) -> None:
        """Raise where this is a copy in a forked child that had requests.

        Raises:
            ForkedError: It is.
        """
        if self.forked:
            raise _forked_error()

    # ---- after a fork, in the child

    def after_fork(self) -> None:
        """Begin anew if no request is open, and else make every use fail: workers do not fork."""
        self._lock = RLock()
        self.consumers = {}
        self.room_waiters, self.closers = {}, {}
        self.readiness.after_fork()
        if self.options.metrics is not None:
            self.options.metrics.after_fork()
        # What the parent's requests do from now on is told in the parent.
        for request in (*self.scheduler.totals.open, *self.scheduler.ended_requests):
            request.trace = None
        in_use = any(not request.ends for request in self.scheduler.open_requests())
        if not in_use and (self._model is None or self._model.begin_anew()):
            self._begin_anew()
            return
        self.forked = True
        # Not those in the queue: a worker may just have taken some, and have no pump for them yet.
        for request in self.scheduler.open_requests():
            if request.pump is None:
                request.refuse_after_fork()
                given = request.given_before
                request.finish(StreamEnd(FinishReason.ERROR, given, error=_forked_error()))

    def _begin_anew(self) -> None:
        """Forget the workers, the batches that were being closed, and what another thread held."""
        before = self.scheduler
        self.scheduler = self._new_scheduler()
        if before.state != "accepting":  # what waits for the end of a drain is not in this process
            self.scheduler.close()
            self.scheduler.closing = before.closing
        # The figures go on, as the metrics do that were copied along; and so do the requests that
        # are still to be counted as ended.
        self.scheduler.totals = before.totals
        self.scheduler.ended_requests = before.ended_requests
        self.parking = ParkingLot()
        self._ended = Event(self.parking)
        self._keys = KeyInterner()
        self._tenants = KeyInterner("tenant")
        self.context = self.context.copy()  # an engine's call in the parent may never leave it


def _said_of(by: str) -> str:
    """Return by what and when a batcher is closed, for the text of errors."""
    return f" by {by} in thread {current_thread().name!r} at {clock.time_of_day()}"


def _forked_error() -> ForkedError:
    return ForkedError(
        "this batcher had requests when its process was forked, and cannot be used in the fork: "
        "fork before the first request, or when all have ended; or make a batcher in each process"
    )
