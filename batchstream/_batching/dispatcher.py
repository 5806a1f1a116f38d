"""Requests in, batches out: what every batcher does, whoever its workers are.

Theory of operation
-------------------

A request is its own stream's buffer from its arrival on. It waits in the *admission*, which decides
who joins a batch; then the pump of that batch fills it. Consumers wait in places that all batches
of the dispatcher share, so they need not know where their request is.

A *worker*, a thread or a task, works while there is anything to do. It looks: takes a batch if one
is ready and runs it, listens if the batch could still grow, and rests if nobody waits. Who submits
a request calls a worker if need be, see `_workers`. Deciding that and looking happen under one
lock, so no request is forgotten; whatever follows, and every call of the user's code, happens
outside of it.

Whoever ends a request, from whichever thread, does so by its buffer and takes no lock. The buffer
puts itself into `_told`; whoever next has the lock takes note, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from contextvars import copy_context
from itertools import count
from threading import Event, RLock
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from typing_extensions import TypeVar

from batchstream._batching.groups import Groups
from batchstream._batching.request import Request
from batchstream._batching.request_feed import RequestFeed
from batchstream._batching.runs import closed_error
from batchstream._batching.totals import Ledger
from batchstream._batching.workers import AnyWorker, Workers
from batchstream._core.arguments import check_seconds
from batchstream._core.errors import (
    ClosedError,
    OverloadedError,
    begin_in_source,
    report_unraisable,
)
from batchstream._core.records import FinishReason, StreamEnd
from batchstream._eventloops.current import current_loop
from batchstream._pumps.process import forkable

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from batchstream._batching.options import Terms
    from batchstream._batching.runs import BatchRun
    from batchstream._core.records import BatcherStatistics

T = TypeVar("T")


class Dispatcher(ABC, RequestFeed[T]):
    """The requests of one batcher, and its workers.

    Args:
        terms: What the batcher was made with.

    Attributes:
        terms: The same.
        closed: Whether no request is accepted any more, and all fail; set under the lock.
        context: A copy of the context in which this object was made.
        awaiting_end: See `Places.wait_for_end`.
    """

    def __init__(self, terms: Terms[Any, T]) -> None:
        super().__init__()
        self.terms = terms
        self.context = copy_context()
        self.awaiting_end: list[object] = []
        # Re-entrant for the sake of `statistics`, which a signal's handler may call.
        self._lock = RLock()
        self._told: deque[Request[T]] = deque()
        self._numbers = count()
        self._groups = Groups()

        # Changed under the lock alone.
        self.closed = False
        self._admission = terms.admission()
        self._workers: Workers[Any] = Workers(terms.workers, self._new_worker)
        self._ledger = Ledger()
        self._all_left = Event()
        forkable.add(self)

    @property
    def _has_interrupted_itself(self) -> bool:
        """Whether the calling code is in a signal's handler, and has struck in the lock."""
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return] # noqa: SLF001 - as Condition asks

    @property
    def has_waiting(self) -> bool:
        """Whether requests wait; from any thread, and a moment later it may be otherwise."""
        return self._admission.waiting > 0

    @property
    def state(self) -> str:
        """How it is, in words."""
        state = "closed" if self.closed else "open"
        return f"{state}, {self._admission.waiting} requests waiting, {len(self._runs)} batches run"

    # ---- from whoever submits

    def submit(
        self, content: Any, *, timeout: float | None, wait_timeout: float | None
    ) -> Request[T]:
        """Accept a request.

        Raises:
            OverloadedError: As many requests wait as may.
            ClosedError: The batcher was closed, or is in use in the process this is a fork of.
            RuntimeError: There is nobody who could work on it.
            TypeError, ValueError: A timeout, or what the request costs or is limited to, is not a
                number that it can be.
            Exception: What `key`, `cost` or `max_outputs` raise.
        """
        if self.forked:
            raise self._forked_error()
        if self._has_interrupted_itself:
            raise RuntimeError("a signal's handler has interrupted the batcher it submits to")
        request: Request[T] = Request(next(self._numbers), content, self._told)
        request.timeout = None if timeout is None else check_seconds("timeout", timeout)
        if wait_timeout is not None:
            request.wait_timeout = check_seconds("wait_timeout", wait_timeout)
        request.cost = self.terms.cost_of(content)
        request.max_outputs = self.terms.limit_of(content)
        key = self.terms.key_of(content)
        self.prepare()
        try:
            refusal = self._enter(request, key)
            self._make_calls()
            if self.closed:  # meanwhile
                self._fail(request, closed_error())
        except BaseException:  # be it a signal's: nothing is left half done
            self.cancel(request)
            self._call_again()
            raise
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # it holds this frame
        return request

    def _enter(self, request: Request[T], key: Hashable) -> Exception | None:
        """Let a request wait, or return why it is refused."""
        refusal = None
        while True:
            request.group, groups = self._groups.of(key)
            with self._lock:
                if not self._groups.is_current(groups):
                    continue
                noted = self._take_note()
                try:
                    self._admit(request, noted.now)
                except (ClosedError, OverloadedError, ValueError) as error:
                    refusal = error
            break
        self._follow_up(noted)
        if refusal is None:
            self.terms.reports("submitted")
        elif isinstance(refusal, OverloadedError):
            self.terms.reports("refused")
        return refusal

    def prepare(self) -> None:
        """See to it that there can be workers.

        Raises:
            RuntimeError: There cannot.
        """

    def _admit(self, request: Request[T], now: float) -> None:
        """With the lock: let a request wait, and note what is to be done about it."""
        self._check_open()
        request.arrive(now)
        self._ledger.open.add(request)
        try:
            room = self._room() if self._admission.is_full else 0
            self._admission.submit(request, room=room)
        except BaseException as error:
            self._ledger.open.discard(request)
            self._ledger.refused += isinstance(error, OverloadedError)
            raise
        self._workers.note_call(self._admission.wake_at)

    def _check_open(self) -> None:
        if self.closed:
            raise closed_error()

    def _room(self) -> int:
        """With the lock: return how many requests need not really wait."""
        in_runs = sum(run.free_slots for run in self._runs)
        return self._workers.free * self.terms.max_batch_size + in_runs

    # ---- whoever is to look

    def _make_calls(self) -> None:
        """Let those look who were noted, by whomever."""
        calls = self._workers.calls
        while calls:
            try:
                worker, waiter = calls.popleft()
            except IndexError:  # another thread has just done it
                return
            if waiter is None:
                self._try_to_start(worker)
            else:
                self._ring(waiter)

    def _call_again(self) -> None:
        """Let those look of whom it is not sure that they will; one that listens wakes up."""
        with self._lock:
            self._workers.note_calls_again()
        self._make_calls()

    def _call_for_help(self) -> None:
        """Let another worker look, if it can be had."""
        try:
            self._make_calls()
        except Exception as error:  # noqa: BLE001 - no thread to be had, perhaps
            report_unraisable(error)

    def _try_to_start(self, worker: AnyWorker) -> None:
        try:
            self._check_open()
            self._start(worker)
            worker.called = True
        except BaseException as error:
            with self._lock:
                self._workers.rest(worker)
                waiting = [] if self._workers.at_work else self._admission.take_all()
            self.fail_all(waiting, error)  # for nobody would ever look
            self._look_whether_ended()
            if not isinstance(error, ClosedError):
                raise

    @abstractmethod
    def _new_worker(self) -> AnyWorker:
        """Make a worker, which has not begun to work."""

    @abstractmethod
    def _start(self, worker: Any) -> None:
        """Let a worker look, and go on until it finds nothing; once, even if called twice."""

    @abstractmethod
    def _ring(self, waiter: Any) -> None:
        """Let a worker look that waits."""

    # ---- from a worker

    def look(self, worker: AnyWorker, waiter: object) -> list[Request[T]] | float | None:
        """Take a batch if one is ready.

        Args:
            worker: Who looks.
            waiter: What can be rung to let it look again.

        Returns:
            The requests of a batch; or for how long to wait, in seconds, before looking again; or
            None, and the worker has stopped working.
        """
        with self._lock:
            if worker not in self._workers:  # it was called twice, by an interrupted submission
                return None
            self._workers.look(worker)
            noted = self._take_note()
            joining = self._take(noted.now, self.terms.max_batch_size, 0.0)
            at = self._admission.wake_at()
            seconds = None
            unneeded = self._groups.tidy(self._admission.has_waiting)
            if joining:
                worker.busy = True
                self._workers.note_call(self._admission.wake_at)
            elif at is not None and self._workers.listen(worker, at, waiter):
                seconds = max(at - noted.now, 0.0)
            else:
                self._workers.rest(worker)
        del unneeded  # outside of the lock, as with all of the user's
        self._follow_up(noted)
        if joining:
            self._report_joined(joining, noted.now)
            self._call_for_help()
            return joining
        if seconds is None:
            self._look_whether_ended()
        return seconds

    def take_joining(self, slots: int, spent: float) -> list[Request[T]]:
        """Take those that join a running batch with so many free slots, which costs so much."""
        with self._lock:
            noted = self._take_note()
            joining = self._take(noted.now, slots, spent)
        self._follow_up(noted)
        self._report_joined(joining, noted.now)
        return joining

    def _take(self, now: float, slots: int, spent: float) -> list[Request[T]]:
        """With the lock: take those who join now, and have not left at this very moment."""
        joining: list[Request[T]] = []
        while not joining and (taken := self._admission.take(now, slots=slots, spent=spent)):
            joining = [request for request in taken if not request.ends]
        for request in joining:
            request.joined = now
        self._ledger.join([now - request.arrived for request in joining])
        return joining

    def _report_joined(self, joining: list[Request[T]], now: float) -> None:
        if joining and self.terms.reports.wanted:
            self.terms.reports("joined", [now - request.arrived for request in joining])

    def _leave(self, worker: AnyWorker) -> None:
        """Take note that a worker is not at work, however that came."""
        with self._lock:
            if worker in self._workers:
                self._workers.rest(worker)
                self._workers.note_call(self._admission.wake_at)
        self._call_for_help()
        self._look_whether_ended()

    def add(self, run: BatchRun[T]) -> None:
        """Take note of a batch that begins to run."""
        with self._lock:
            self._runs.add(run)
        if self.closed:
            self._close_runs([run])

    def remove(self, run: BatchRun[T]) -> None:
        """Take note of a batch that has ended."""
        with self._lock:
            if run in self._runs:
                self._runs.discard(run)
                self._ledger.past.add(run.tally())
        self.take_note()

    def take_note(self) -> None:
        """Count those that have ended, and let go of those whose time is over."""
        while self._told:
            with self._lock:
                noted = self._take_note()
            self._follow_up(noted)

    def _take_note(self) -> _Noted[T]:
        """With the lock: see what has happened, and return what is to be done about it."""
        gone: list[Request[T]] = []
        refused: list[Request[T]] = []
        contents: list[object] = []
        while self._told:
            request = self._told[0]
            if self._admission.withdraw(request):
                contents.append(request.content)
                request.content = None
            (gone if self._ledger.finish(request) else refused).append(request)
            request.pump = None  # which knows the others of its batch
            self._told.popleft()
        now = monotonic()
        return _Noted(now, gone, self._admission.expire(now), (refused, contents))

    def _follow_up(self, noted: _Noted[T]) -> None:
        for request in noted.overdue:
            if (error := request.overdue(noted.now)) is not None:
                self._fail(request, error)
        if self.terms.reports.wanted:
            for request in noted.gone:
                self.terms.reports(
                    "finished",
                    request.ends[0],
                    joined=request.joined is not None,
                    lasted=noted.now - request.arrived,
                )
        if noted.overdue:  # who are told of now, perhaps by nobody else for a long time
            self.take_note()

    def fail_all(self, requests: Iterable[Request[T]], error: BaseException) -> None:
        """Let requests fail that have not joined a batch."""
        begin_in_source(error)
        for request in requests:
            self._fail(request, error)
        self.take_note()

    # ---- from the owner

    @property
    def ended(self) -> bool:
        """Whether it was closed, and no worker is at work any more."""
        return self.closed and not self._workers.at_work

    def request_close(self) -> None:
        """Let every request fail that has not ended, and accept no other."""
        if self.forked:
            return
        with self._lock:
            self.closed = True
            noted = self._take_note()
            waiting = self._admission.take_all()
            self._workers.ring_all()
            runs = list(self._runs)
        self._follow_up(noted)
        self.fail_all(waiting, closed_error())
        self._make_calls()
        self._close_runs(runs)
        self.take_note()
        self._look_whether_ended()

    def _close_runs(self, runs: Iterable[BatchRun[T]]) -> None:
        for run in runs:
            for buffer in list(run.buffers):
                run.break_off(buffer, closed_error())

    def _look_whether_ended(self) -> None:
        """Tell who waits for the end, if it has come."""
        if self.ended:
            self.take_note()
            self._all_left.set()
            self.places.wake(self.awaiting_end.copy())

    def close(self) -> None:
        """Let every request fail that has not ended, and wait until no worker is at work."""
        self.look_after(None)
        self.request_close()
        if not self.forked and self._may_block():
            while self._may_block() and not self._all_left.wait(self.patience(None, None)):
                self.look_after(None)
            if self.ended:
                self.join()

    async def aclose(self) -> None:
        """Do the same in an event loop."""
        self.look_after(None)
        self.request_close()
        if not (self.forked or self._is_waited_for()):
            await self.places.wait_for_end(current_loop(), self)
            self.join()

    def _may_block(self) -> bool:
        """Whether workers go on while the calling thread waits."""
        return not (self._has_interrupted_itself or self._is_waited_for())

    def join(self, timeout: float | None = None) -> None:
        """Wait for what workers still have to do after the end; next to nothing."""

    def statistics(self) -> BatcherStatistics:
        """Return the figures up to now, and change none: a signal may have interrupted who does."""
        with self._lock:
            told = set(self._told)  # each once, though several may have ended it
            waiting = self._admission.waiting - sum(map(self._admission.waits, told))
            return self._ledger.statistics(
                running=[run.tally() for run in self._runs],
                told=told,
                waiting=waiting,
                buffered=sum(run.buffered for run in self._runs),
                max_batch_size=self.terms.max_batch_size,
            )

    # ---- after a fork, in the child

    def refuse_after_fork(self) -> None:
        """Let every use fail, unless it was not used before: its workers are in the parent."""
        self._lock = RLock()
        if self._ledger.opened:
            self.forked = True
            for request in self._admission.take_all():
                request.refuse_after_fork()
                request.finish(StreamEnd(FinishReason.ERROR, 0, error=self._forked_error()))


class _Noted(NamedTuple, Generic[T]):
    """What the lock's holder has seen, to be followed up without it."""

    now: float
    gone: list[Request[T]]
    overdue: list[Request[T]]
    unneeded: object  # only to be let go of
