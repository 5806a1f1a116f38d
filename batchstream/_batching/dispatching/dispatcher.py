"""Requests in, batches out: what every batcher does, in threads and in an event loop.

Theory of operation
-------------------

A request is its own stream's buffer from its arrival on. It waits in the scheduler's queue; then
the pump of the batch that it joins fills it. Consumers wait in a parking lot that all batches of
the dispatcher share, so they need not know where their request is.

The `Scheduler` decides under one lock; this module holds the lock, and carries out without it what
was decided: it wakes workers, fails requests, reports and frees the user's objects. So no code of
the user's runs under the lock.

What callers and consumers do stands in modules above this one: `submission.py` submits a request,
`upstream.py` is what its stream holds, `closing.py` closes the batcher. What this one is made of
stands below: `waking.py` starts and wakes workers, `ends.py` ends requests from outside,
`reports.py` tells metrics, traces and the log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import copy_context
from functools import partial
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from batchstream._batching import clock
from batchstream._batching.dispatching.waking import wake_another, wake_workers
from batchstream._batching.life import WarmUps, forked_error, said_of, state_text
from batchstream._batching.reporting.log import BatcherLog
from batchstream._batching.reporting.reports import Reports
from batchstream._batching.requests.ends import Ends
from batchstream._batching.requests.request import closed_error
from batchstream._batching.scheduling.decisions import NOTHING_REAPED
from batchstream._batching.scheduling.keys import RequestKeys
from batchstream._batching.scheduling.measuring import measure
from batchstream._batching.scheduling.scheduler import Scheduler
from batchstream._core.errors import begin_in_source
from batchstream._core.records import FinishReason, StreamEnd
from batchstream._handoff.event import Event
from batchstream._handoff.parking import ParkingLot
from batchstream._pumps.process import forkable_batchers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batchstream._batching.batches.request_batch import RequestBatch
    from batchstream._batching.engine import Model
    from batchstream._batching.life import BatcherState
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.requests.request import Request, Submission
    from batchstream._batching.scheduling.decisions import Decision, Reaped
    from batchstream._batching.scheduling.measuring import Measured
    from batchstream._batching.scheduling.workers import Worker
    from batchstream._core.records import BatcherStatistics
    from batchstream._eventloops.base import EventLoop

T = TypeVar("T")


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
        ends: Ends requests from outside.
        scheduler: What decides, for the holder of the lock.
        lock: The batcher's only one.
        numbers: The numbers of the requests to come.
        keys: What stands for their keys and tenants.
        forked: Whether this is a copy in a forked child, of no use there.
        log: Writes the batcher's lines in the log.
        reports: Tells metrics, traces and the log of requests.
        all_ended: Set when the batcher is closed, and no worker is at work.
        readiness: Whether the model is warm.
        model: What all batches share, if they share anything.
        needs_loop: Whether the workers are tasks, and `prepare` and `poll` have something to do.
    """

    needs_loop = False
    _reuses_workers = True

    def __init__(
        self,
        options: BatcherOptions[Any, T],
        model: Model | None = None,
    ) -> None:
        self.options = options
        self.model = model
        self.context = copy_context()
        self.parking = ParkingLot()
        self.ends: Ends[T] = Ends(self.parking, model)
        self.forked = False
        self.readiness = WarmUps()
        self.scheduler = self._new_scheduler()
        # Re-entrant for the sake of `statistics`, which a signal's handler may call.
        self.lock = RLock()
        self.all_ended = Event(self.parking)
        self.numbers = count()
        self.keys = RequestKeys(options)
        self.log = BatcherLog(options.label)
        self.reports: Reports[T] = Reports(options, self.log)
        forkable_batchers.add(self)
        if options.metrics is not None:
            options.metrics.watch(self)

    def _new_scheduler(self) -> Scheduler[T]:
        return Scheduler(
            self.options,
            reuses_workers=self._reuses_workers,
            may_put_back=self.model is not None,
        )

    @property
    def ended(self) -> bool:
        """Whether it was closed, and no worker is at work any more."""
        return self.scheduler.state == "closed" and not self.scheduler.workers.at_work

    @property
    def summary(self) -> str:
        """Its state in words."""
        scheduler = self.scheduler
        state = state_text(scheduler.state)
        waiting, running = len(scheduler.queue), len(scheduler.batches)
        requests = "request" if waiting == 1 else "requests"
        batches = "batch runs" if running == 1 else "batches run"
        return f"{state}, {waiting} {requests} waiting, {running} {batches}"

    @property
    def state(self) -> BatcherState:
        """Where the batcher is in its life."""
        return self.scheduler.state

    # ---- of the workers: threads or tasks

    @abstractmethod
    def start(self, worker: Worker) -> None:
        """Let a worker ask for batches until there is none."""

    @abstractmethod
    def resume(self, waiter: Any) -> None:
        """Wake a worker that waits; harmless if it was woken already."""

    def prepare(self) -> None:
        """Find the event loop for the workers, for a dispatcher that `needs_loop`.

        Raises:
            RuntimeError: There is none.
        """

    def poll(self) -> None:
        """Bring about an end that no worker can bring about any more: none, for threads."""

    def poll_after(self, seconds: float | None, loop: EventLoop | None) -> float | None:  # noqa: ARG002 - see TaskDispatcher
        """Return after how many seconds a consumer polls that would do so after these."""
        return seconds

    def interrupts_of(self, worker: Worker) -> tuple[type[BaseException], ...]:  # noqa: ARG002 - see TaskDispatcher
        """Return what a worker raises if code of the user's does: nothing, for threads."""
        return ()

    def check_waitable(self, loop: EventLoop | None) -> None:  # noqa: ARG002 - see TaskDispatcher
        """Refuse to wait in vain.

        Raises:
            RuntimeError: The calling code is that of a batch, which would wait for its own worker.
            ForkedError: The batcher had requests when this process was forked.
        """
        if self.forked:
            raise forked_error()
        if self.runs_here():
            raise RuntimeError("the source of a batch waits for a request to its own batcher")

    def runs_here(self) -> bool:
        """Whether a batch waits for the calling code, which is its source's."""
        return any(batch.pump.runs_here for batch in tuple(self.scheduler.batches))

    def may_block(self) -> bool:
        """Whether workers go on while the calling thread waits."""
        in_lock = self.lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001
        return not (in_lock or self.runs_here())

    def join(self, timeout: float | None = None) -> None:
        """Wait for what workers still have to do after the end; next to nothing."""

    # ---- from a worker

    def next_batch(self, worker: Worker, waiter: object) -> Decision[T] | None:
        """Decide what a worker does next; see `Scheduler.next_batch`."""
        decision, now, reaped = self._decide(worker, waiter)
        try:
            if reaped is not NOTHING_REAPED:
                self.follow_up(reaped, now)
            if decision is not None:
                if self.ends.room_waiters:  # a worker that waits makes room, too
                    self.ends.tell_of_room()
                if decision.requests:
                    is_counted = self.model is None and not decision.requests[0].is_warm_up
                    if is_counted and self.options.is_observed:
                        self._tell(self.reports.joined, decision.requests)
                    if self.scheduler.workers.wakeups:
                        wake_another(self)
                elif decision.wait is None:
                    self.check_ended()
        except BaseException as error:  # KeyboardInterrupt too: no other code knows the batch
            if decision is not None:
                self.fail_all(decision.requests, error)
            raise
        return decision

    def _decide(self, worker: Worker, waiter: object) -> tuple[Decision[T] | None, float, Reaped]:
        """Return what was decided and when, and what is to be followed up."""
        measured: Measured[T] | None = None
        while True:
            with self.lock:
                now = clock.monotonic()
                reaped = self.scheduler.reap(now)
                decision = self.scheduler.next_batch(worker, waiter, now, measured)
                stale = self.keys.tidy(self.scheduler.queue)
            del stale  # without the lock: the keys are the user's
            if decision is None or (candidates := decision.candidates) is None:
                return decision, now, reaped
            if reaped is not NOTHING_REAPED:
                self.follow_up(reaped, now)
            # In the context in which the batcher was made, as the model.
            run, cost_of = self.context.copy().run, self.options.batch_cost_of
            passing = self.interrupts_of(worker)
            measured = run(measure, candidates, cost_of, self.fail_all, passing)
            del decision, candidates

    def take_joining(
        self, slots: int, spent: float | None, step_spent: float | None
    ) -> list[Request[T]]:
        """Take the requests that join a running batch, which costs so much, in its free slots."""
        with self.lock:
            now = clock.monotonic()
            reaped = self.scheduler.reap(now)
            taken = self.scheduler.take(now, slots=slots, spent=spent, step_spent=step_spent)
            stale = self.keys.tidy(self.scheduler.queue)
        del stale  # without the lock, as in `next_batch`
        try:
            self.follow_up(reaped, now)
            if self.ends.room_waiters and taken:
                self.ends.tell_of_room()
        except BaseException as error:
            self.fail_all(taken, error)
            raise
        return taken

    def count_joined(self, requests: Sequence[Request[T]]) -> None:
        """Count requests that have joined a running batch together."""
        with self.lock:
            joined = self.scheduler.join(requests)
        if joined and self.options.is_observed:
            self._tell(self.reports.joined, joined)

    def count_first_outputs(self, requests: Sequence[Request[T]], now: float) -> None:
        """Count requests that had their first output in a step."""
        with self.lock:
            first = self.scheduler.count_first_outputs(requests, now)
        if first and self.options.is_observed:
            self._tell(partial(self.reports.first_outputs, now=now), first)

    def _tell(
        self,
        report: Callable[[Sequence[Request[T]]], object],
        requests: Sequence[Request[T]],
    ) -> None:
        """Tell metrics and traces of requests that are `untold`; then they can be reaped."""
        try:
            report(requests)
        finally:
            self.scheduler.untold.difference_update(requests)
        if self.scheduler.ended_requests:
            self.reap()

    def put_back(self, requests: Sequence[Request[T]]) -> None:
        """Let requests wait again that were taken, in their order and in front of all others."""
        with self.lock:
            closed = self.scheduler.state == "closed"
            if not closed:  # or else they would be left there: `request_close` has looked
                self.scheduler.put_back(requests)
        if closed:
            self.fail_all(requests, closed_error(self.scheduler.closing))

    def requeue(self, requests: Sequence[tuple[Request[T], Submission]]) -> Sequence[Request[T]]:
        """Let requests wait again whose slots were given back; see `Scheduler.requeue`."""
        with self.lock:
            closed = self.scheduler.state == "closed"
            waiting = () if closed else self.scheduler.requeue(requests, clock.monotonic())
        if closed:  # as in `put_back`
            self.fail_all(
                [request for request, _ in requests], closed_error(self.scheduler.closing)
            )
        if self.options.is_observed:
            self.reports.requeued(request for request, _ in requests if request in waiting)
        return waiting

    def rest(self, worker: Worker) -> None:
        """Take a worker from work that has ended without asking for another batch."""
        with self.lock:
            self.scheduler.untold.clear()  # of what the worker was telling, if it was broken off
            if self.scheduler.workers.rest(worker):
                self.scheduler.workers.wake_one()
        wake_another(self)
        self.check_ended()

    def add_batch(self, batch: RequestBatch[T]) -> None:
        """Count a batch as running."""
        with self.lock:
            self.scheduler.batches.add(batch)
        # Behind the adding: `request_close` may not have seen it.
        if self.scheduler.state == "closed":
            batch.close()

    def end_batch(self, batch: RequestBatch[T]) -> None:
        """Count a batch that has ended."""
        batch.end_log()
        with self.lock:
            self.scheduler.end_batch(batch)
        self.reap()

    def reap(self) -> None:
        """Count the requests that have ended since the last time."""
        scheduler = self.scheduler
        while not scheduler.untold.issuperset(scheduler.ended_requests):
            with self.lock:
                now = clock.monotonic()
                reaped = self.scheduler.reap(now)
            self.follow_up(reaped, now)

    def follow_up(self, reaped: Reaped, now: float) -> None:
        """Do without the lock what the reaping asks for."""
        if reaped.overdue:
            self._wake_overdue(reaped.overdue)
        if reaped is not NOTHING_REAPED:
            if self.ends.room_waiters:
                self.ends.tell_of_room()
            if self.ends.closers and self.scheduler.is_empty:
                self.ends.tell_closers()
            if reaped.wakes:
                wake_another(self)
        if reaped.first_outputs and self.options.is_observed:
            self.reports.first_outputs(reaped.first_outputs, now)
        if reaped.finished:
            closed = self.scheduler.state == "closed"
            so_far = self.scheduler.totals.refused
            self.reports.ended(reaped.finished, now, closed=closed, so_far=so_far)
        if reaped.wakes or reaped.overdue:  # others may join now
            self.ends.wake_model()

    def _wake_overdue(self, requests: Sequence[Request[T]]) -> None:
        """Wake the consumers of requests that were failed because their time is over."""
        self.parking.wake(requests)
        for request in requests:
            if (on_end := request.on_end) is not None:
                on_end(request)

    def fail_all(self, requests: Iterable[Request[T]], error: BaseException) -> None:
        """Fail requests that are in no batch."""
        begin_in_source(error)
        for request in requests:
            self.ends.fail(request, error)
        self.reap()

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
            closing = said_of(by)
            if self.scheduler.state == "draining":
                closing += ", before its drain was over"
        with self.lock:
            is_first = self.scheduler.state != "closed"
            if is_first:
                self.scheduler.closing = closing  # the first says it
            now = clock.monotonic()
            reaped = self.scheduler.reap(now)
            waiting, batches = self.scheduler.close()
            unfinished = len(self.scheduler.totals.open)
            refused = self.scheduler.totals.refused
        self.follow_up(reaped, now)
        self.fail_all(waiting, closed_error(self.scheduler.closing))
        wake_workers(self)
        for batch in batches:
            batch.close()
        self.reap()
        self.ends.tell_of_room()  # there is none, as it finds
        self.ends.tell_closers()
        if is_first:  # only now: a handler of the user's may take long, or be broken off
            self.reports.state_changed()
            self.log.closed(self.scheduler.closing, unfinished, now, refused)
        self.check_ended()

    def request_exit(self) -> None:
        """Cancel every request, and accept no other: the interpreter exits."""
        with self.lock:
            requests = self.scheduler.open_requests()
        for request in requests:
            self.ends.cancel(request)
        self.request_close()

    def check_ended(self) -> None:
        """Set the event of the end, if it has come."""
        if self.ended:
            self.reap()
            self.all_ended.set()

    def statistics(self) -> BatcherStatistics:
        """Return the figures up to now."""
        with self.lock:
            return self.scheduler.statistics()

    def check_not_forked(self) -> None:
        """Raise where this is a copy in a forked child that had requests.

        Raises:
            ForkedError: It is.
        """
        if self.forked:
            raise forked_error()

    # ---- after a fork, in the child

    def after_fork(self) -> None:
        """Begin anew if no request is open, and else make every use fail: workers do not fork."""
        self.lock = RLock()
        self.ends = Ends(self.parking, self.model)  # without what waits in other threads
        self.readiness.after_fork()
        if self.options.metrics is not None:
            self.options.metrics.after_fork()
        # What the parent's requests do from now on is told in the parent.
        for request in (*self.scheduler.totals.open, *self.scheduler.ended_requests):
            request.trace = None
        in_use = any(not request.ends for request in self.scheduler.open_requests())
        if not in_use and (self.model is None or self.model.begin_anew()):
            self._begin_anew()
            return
        self.forked = True
        # Every request without a pump, not the requests in the queue: a worker may just have taken
        # some out of it, and have no pump for them yet.
        for request in self.scheduler.open_requests():
            if request.pump is None:
                request.refuse_after_fork()
                given = request.given_before
                request.finish(StreamEnd(FinishReason.ERROR, given, error=forked_error()))

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
        self.ends = Ends(self.parking, self.model)
        self.all_ended = Event(self.parking)
        self.keys = RequestKeys(self.options)
        self.context = self.context.copy()  # an engine's call in the parent may never leave it
