"""What is decided under a batcher's lock, and not done: no clock, lock, thread or event loop.

Which requests wait, join a batch and have ended; which worker runs, waits or has to be woken.

Theory of operation
-------------------

A request is submitted and waits in the queue, is taken for a batch by a worker that asks, joins it
and is reaped when it has ended. Which worker asks, and when, is decided in `workers.py`.

Requests end in any thread, without the lock: each queues itself in `ended_requests`, and the next
holder of the lock reaps it, once. Metrics and traces hear of a request in the order in which things
happen to it, and hear it without the lock. So a request is in `untold` while they are told that it
has joined, or had its first output; it is reaped when that is done, and then they hear of its end.

What the holder of the lock has to do afterwards is queued in `Workers.wakeups`, or returned.

Not safe for threads: every method is for the holder of the batcher's lock. None of them runs code
of the user's, or drops the last reference to an object of the user's.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic

from typing_extensions import TypeVar

from batchstream._batching.life import BATCHER_LIFE, BatcherState, draining_error
from batchstream._batching.reporting.totals import Totals
from batchstream._batching.requests.request import FREED, REQUEST_LIFE, closed_error
from batchstream._batching.scheduling.decisions import NOTHING_REAPED, Decision, Reaped
from batchstream._batching.scheduling.departures import DepartureRate
from batchstream._batching.scheduling.measuring import Candidates
from batchstream._batching.scheduling.warm_up_queue import WarmUpQueue
from batchstream._batching.scheduling.workers import Workers
from batchstream._batching.waiting.budget import Budget
from batchstream._batching.waiting.queue import WaitingQueue
from batchstream._core.errors import CostError, OverloadedError
from batchstream._core.records import FinishReason, StreamEnd

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from batchstream._batching.batches.request_batch import RequestBatch
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.requests.request import Request, Submission
    from batchstream._batching.scheduling.measuring import Measured
    from batchstream._batching.scheduling.workers import Worker
    from batchstream._batching.waiting.limits import Limits
    from batchstream._core.errors import ClosedError
    from batchstream._core.records import BatcherStatistics

T = TypeVar("T")

_TAKEN: Final = ("taken", "retaken")


class Scheduler(Generic[T]):
    """The state of one batcher.

    Args:
        options: What the batcher was made with.
        reuses_workers: Whether a worker that is idle can be started again.
        may_put_back: Whether requests that were taken for a batch may be put back. They have joined
            it only when `join` is called.

    Attributes:
        ended_requests: Requests that have ended and were not reaped.
        untold: Requests of which metrics or traces are just told, which are reaped only then.
        workers: Which of them run, wait or are idle, and what to do without the lock.
        queue: The requests that wait.
        batches: The batches that run.
        totals: The figures.
        state: Where it is in its life.
        closing: By what and when it was closed or its drain begun, for the text of the error.
        drains_until: When the drain is over, of one that is draining.
        departures: How fast requests leave the queue.
        requeued: The requests whose slots were given back, and that wait again.
        warm_up: The requests of warm-ups.
    """

    def __init__(
        self, options: BatcherOptions[Any, T], *, reuses_workers: bool, may_put_back: bool = False
    ) -> None:
        self.ended_requests: deque[Request[T]] = deque()
        self.untold: set[Request[T]] = set()
        self.queue: WaitingQueue[Request[T]] = WaitingQueue(
            options.limits,
            has_places=options.places is not None,
            is_measured=options.batch_cost is not None,
        )
        self.warm_up: WarmUpQueue[T] = WarmUpQueue(options)
        self.workers = Workers(
            options.workers, are_reused=reuses_workers, queue=self.queue, warm_up=self.warm_up
        )
        self.departures = DepartureRate()
        self.batches: set[RequestBatch[T]] = set()
        self.totals = Totals()
        self.state: BatcherState = "accepting"
        self.closing = ""
        self.drains_until = math.inf
        self.requeued: set[Request[T]] = set()
        self._limits = options.limits
        self._is_observed = options.is_observed
        self._measures = options.batch_cost is not None
        self._may_put_back = may_put_back
        self._begins_with_one = may_put_back and options.joins_one_by_one

    def submit(self, request: Request[T], now: float) -> None:
        """Let a request wait, and queue the wake-up of the worker that has to ask for it.

        Raises:
            ClosedError: The batcher was closed, or is draining.
            OverloadedError: As many requests wait as may, or they cost as much.
            CostError: The request costs more than a batch may.
        """
        if self.state != "accepting":
            if not request.is_warm_up:
                reason = "closed" if self.state == "closed" else "draining"
                self.totals.count_refused(reason, for_room=False)
            raise self.refusal()
        request.arrived = now
        if request.is_warm_up:
            self.warm_up.queue.append(request, _room_for_all)
            request.state = REQUEST_LIFE[request.state, "submit"]
            return  # `begin_warm_up` has all of them taken together
        if request.deadlines is not None:
            request.deadlines.start(now)
        request.state = REQUEST_LIFE[request.state, "submit"]
        self.totals.open.add(request)
        try:
            self.queue.append(request, self._room)
        except BaseException as error:
            self.totals.open.discard(request)
            request.state = REQUEST_LIFE[request.state, "refuse"]
            if isinstance(error, OverloadedError):
                error.retry_after = self.departures.seconds_for(len(self.queue))
                # A request of a `map` is not refused: it is held back, and comes again.
                if request.on_end is None:
                    self.totals.count_refused(error.reason, for_room=True)
            elif isinstance(error, CostError):
                self.totals.count_refused("cost", for_room=False)
            raise
        self.workers.wake_one()

    def refusal(self) -> ClosedError:
        """Return what a request is refused with by a batcher that is closed or draining."""
        is_closed = self.state == "closed"
        return closed_error(self.closing) if is_closed else draining_error(self.closing)

    def has_room(self, cost: float, account: object = None) -> bool:
        """Whether the queue has room for a request of this cost, and of a tenant, if given.

        Args:
            cost: What it costs.
            account: What stands for its tenant.
        """
        return self.queue.has_room(cost, account, self._room)

    def has_most_of(self, account: object) -> bool:
        """Whether a tenant has as many requests waiting as it may; without the lock."""
        if self.state != "accepting":
            return False
        ended = list(self.ended_requests)  # these wait no longer, and are still to be taken out
        but = sum(it.place is not None and it.place.account is account for it in ended)
        return self.queue.has_most_of(account, but, self._room)

    def _room(self) -> int:
        """Return how many requests could join at once; also without the lock, for a hint."""
        if self.warm_up.live:
            return 0
        # Lists at once: a holder of the lock may change the sets meanwhile.
        free_workers = self.workers.most - sum(it.busy for it in list(self.workers.at_work))
        free_slots = sum(batch.free_slots for batch in list(self.batches))
        return free_workers * self._limits.now.max_batch_size + free_slots

    def change_limits(self, limits: Limits) -> None:
        """Go by other limits from now on, for batches that are formed and requests that come.

        One worker that waits is woken to ask again, before they are changed: see `workers`. It
        wakes another if there is more than one batch.
        """
        self.workers.wake_one_waiting()
        self.queue.change_limits(limits)

    def begin_warm_up(self, requests: Collection[Request[T]]) -> None:
        """Let requests of a warm-up that were submitted join batches, before all others."""
        self.warm_up.begin(requests)
        self.workers.wake_one()

    def take(
        self,
        now: float,
        *,
        slots: int,
        spent: float | None = None,
        step_spent: float | None = None,
        begins: bool = False,
    ) -> list[Request[T]]:
        """Take requests for a batch with so many free slots, which costs so much.

        Requests that join it are handed to `join`, others to `put_back` unless they have ended.

        Args:
            now: What time it is.
            slots: How many slots are free.
            spent: What the requests already in the batch cost; None if there are none.
            step_spent: What its next step costs without others, likewise.
            begins: Whether the batch begins with them. A batch of a warm-up has no other requests,
                so that none joins one while a warm-up is under way.
        """
        queue = self.queue
        taken: list[Request[T]] = []
        if self.warm_up.live:
            if not begins:
                return []
            queue, slots = self.warm_up.queue, self.warm_up.slots_for(slots, self.requeued)
        while not taken and self.state != "closed":
            most = self._limits.now.max_step_cost
            step = None if most is None else Budget(most, step_spent)
            if not (requests := queue.take(now, slots=slots, spent=spent, step=step)):
                break
            for request in requests:
                if not request.ends:
                    request.taken_at = now
                    self.requeued.discard(request)
                    request.state = REQUEST_LIFE[request.state, "take"]
                    taken.append(request)
        if taken and queue is self.queue:
            others_wait = bool(queue)
            if others_wait or self.departures.since is not None:
                self.departures.count(len(taken), now, others_wait=others_wait)
        return taken

    def _candidates(self, now: float) -> Candidates[T] | None:
        """Return the requests whose batch is to be measured now, if any; see `measuring`."""
        limits = self._limits.now
        queue = self.warm_up.queue if self.warm_up.live else self.queue
        if self.state == "closed":
            return None
        requests = queue.candidates(now, slots=limits.max_batch_size)
        contents = [request.submission.content for request in requests]
        return Candidates(requests, contents, requests[0].cost, limits) if requests else None

    def _take_measured(self, measured: Measured[T], now: float) -> list[Request[T]]:
        """Take requests that were measured, if they still make a batch."""
        queue = self.warm_up.queue if self.warm_up.live else self.queue
        fitting = [it for it in measured.requests if not it.ends]
        if self.state == "closed" or measured.limits is not self._limits.now:
            return []
        if not (fitting and all(it in queue for it in fitting)):
            return []  # another worker has taken them
        if not measured.is_full:
            for request in fitting:
                request.measured = measured.limits
            candidates = queue.candidates(now, slots=measured.limits.max_batch_size)
            if [it for it in candidates if not it.ends] != fitting:
                return []  # they wait for others; or another has come, with which to measure again
        for request in fitting:
            queue.remove(request)
            request.taken_at = now
            request.state = REQUEST_LIFE[request.state, "take"]
        if queue is self.queue:
            self.departures.count(len(fitting), now, others_wait=bool(queue))
        return fitting

    def next_batch(
        self, worker: Worker, waiter: object, now: float, measured: Measured[T] | None = None
    ) -> Decision[T] | None:
        """Decide what a worker does next.

        Args:
            worker: The worker that asks.
            waiter: What it can be woken by, if it waits.
            now: What time it is.
            measured: What the worker has measured, as the last decision has asked it to.

        Returns:
            The decision; None for a worker that is not at work any more: it was started twice.
        """
        workers = self.workers
        if worker not in workers.at_work:
            return None
        worker.busy = False
        workers.waiting.pop(worker, None)
        if not self._measures:
            is_one = self._begins_with_one and not self.warm_up.live
            slots = 1 if is_one else self._limits.now.max_batch_size
            taken = self.take(now, slots=slots, begins=True)
        else:
            taken = [] if measured is None else self._take_measured(measured, now)
            if not taken and (candidates := self._candidates(now)) is not None:
                return Decision([], candidates=candidates)
        if taken:
            if not self._may_put_back:
                self.join(taken)
            worker.busy = True
            workers.wake_one()  # for the requests that still wait
            return Decision(taken)
        queue = self.warm_up.queue if self.warm_up.live else self.queue
        at = None if self.state == "closed" else queue.ready_at()
        if at is not None and workers.let_wait(worker, at, waiter):
            return Decision([], max(at - now, 0.0))
        workers.rest(worker)  # no request waits, or another worker asks in time
        return Decision([])

    def join(self, requests: Sequence[Request[T]]) -> list[Request[T]]:
        """Count requests that have joined a batch together, and return them.

        Each has waited until it was taken: what an engine does to add it is no waiting. One that
        joins again was counted before; it is returned as well. All are `untold`.

        Args:
            requests: The requests; a request that has ended meanwhile, and was reaped, is left out.
        """
        joined: list[Request[T]] = []
        waited: list[float] = []
        for request in requests:
            if request.state in _TAKEN:
                is_first = request.state == "taken"
                request.state = REQUEST_LIFE[request.state, "join"]
                if request.is_warm_up:
                    continue
                joined.append(request)
                if is_first:
                    request.joined_at = request.taken_at
                    waited.append(request.taken_at - request.arrived)
        if self._is_observed:
            self.untold.update(joined)
        if waited:
            self.totals.count_joined(waited)
        return joined

    def count_first_outputs(self, requests: Sequence[Request[T]], now: float) -> list[Request[T]]:
        """Count requests that have had their first output, and return them; all are `untold`.

        Args:
            requests: The requests; one that was reaped meanwhile, which counts it, is left out.
            now: When they had it.
        """
        first = [it for it in requests if it in self.totals.open and it.first_output_at is None]
        if self._is_observed:
            self.untold.update(first)
        for request in first:
            self.totals.count_first_output(request, now)
        return first

    def put_back(self, requests: Sequence[Request[T]]) -> None:
        """Let requests wait again that were taken, in their order and in front of all others."""
        for request in reversed(requests):
            if request.state in _TAKEN:  # one that has ended may have been reaped meanwhile
                if request.is_warm_up:
                    self.warm_up.queue.put_back(request)
                else:
                    self.queue.put_back(request)
                    self.departures.count_back(1)
                request.state = REQUEST_LIFE[request.state, "put back"]
                if request.state == "requeued":
                    self.requeued.add(request)

    def requeue(
        self, requests: Sequence[tuple[Request[T], Submission]], now: float
    ) -> Sequence[Request[T]]:
        """Let requests wait again whose slots were given back, each with what is added next.

        They stand in front of all others, in the order in which they have arrived: so none of them
        starves, whatever an engine gives back.

        Returns:
            All that wait again, in this order.
        """
        for request, submission in requests:
            if request.state == "joined" and not request.ends:  # or else it is reaped as it is
                request.submission = submission
                request.requeued_at = now
                self.totals.requeued += not request.is_warm_up
                request.state = REQUEST_LIFE[request.state, "requeue"]
                self.requeued.add(request)
        waiting = sorted(self.requeued, key=lambda request: request.arrived)
        for request in reversed(waiting):
            queue = self.warm_up.queue if request.is_warm_up else self.queue
            queue.remove(request)
            queue.put_back(request)
        return waiting

    def lost_requests(self) -> list[Request[T]]:
        """Return the requests that a worker has taken, and that have joined no batch.

        Asked behind the end of a worker, while no other is between the two.
        """
        return [
            request
            for request in self.open_requests()
            if request.pump is None
            and not (request.ends or self.queue.can_give(request))
            and not self.warm_up.queue.can_give(request)
        ]

    def open_requests(self) -> list[Request[T]]:
        """Return the requests that were accepted, and have not been counted as finished."""
        return [*self.totals.open, *self.warm_up.live]

    def waiting_requests(self) -> list[Request[T]]:
        """Return all requests that wait."""
        return [*self.warm_up.queue.requests(), *self.queue.requests()]

    def reap(self, now: float) -> Reaped:
        """Count the requests that have ended, and take out the requests that waited too long."""
        expiries = self.queue.expiries
        has_expired = bool(expiries) and expiries[0][0] <= now
        if not (has_expired or self.ended_requests):
            return NOTHING_REAPED
        overdue = self._fail_overdue(now) if has_expired else []
        finished: list[Request[T]] = []
        first_outputs: list[Request[T]] = []
        dropped: list[object] = []
        wakes = False
        for request in tuple(self.ended_requests):
            if request in self.untold:
                continue
            # One that is overdue was taken out above, and still is in the state of waiting.
            waited = self.queue.remove(request) or self.warm_up.queue.remove(request)
            if waited or request.state in ("waiting", "requeued"):
                dropped.append(request.submission)
                request.submission = FREED
                self.requeued.discard(request)
            # No change for one that was refused, or that a reap which was broken off has counted.
            request.state = REQUEST_LIFE.get((request.state, "end"), request.state)
            had_none = request.first_output_at is None
            if self.totals.count_finished(request, now):
                finished.append(request)
                if had_none and request.first_output_at is not None:
                    first_outputs.append(request)
            else:
                dropped.append(request)
            dropped.append(request.pump)  # which refers to the other requests of its batch
            request.pump = None
            if request.is_warm_up and self.warm_up.leave(request):
                self.workers.wake_one()
                wakes = True
            # Last: an exception that breaks this off leaves the request to the next holder.
            try:
                self.ended_requests.remove(request)
            except ValueError:
                pass  # a signal's handler has closed the batcher, and reaped it, a moment ago
        return Reaped(finished, first_outputs, overdue, dropped, wakes)

    def _fail_overdue(self, now: float) -> list[Request[T]]:
        """Fail the requests that have waited too long, and take them out of the queue."""
        overdue: list[Request[T]] = []
        while (request := self.queue.first_expired(now)) is not None:
            # Ended first, then taken out: in between, an exception leaves it to the next holder.
            if (error := request.deadline_error(now)) is not None:
                end = StreamEnd(FinishReason.ERROR, request.given_before, error=error)
                request.finish_quietly(end)
                overdue.append(request)
            self.queue.remove(request)
        return overdue

    def drain(self, until: float, closing: str) -> None:
        """Accept no request any more, and let the others end until then.

        Of several drains the one that is over first counts.

        Args:
            until: When the drain is over.
            closing: By what and when it was begun.
        """
        if self.state == "closed":
            return
        self.drains_until = min(self.drains_until, until)
        if self.state == "accepting":
            self.closing = closing
            self.queue.gather_no_more()  # before a worker is woken, which asks again
            self.state = BATCHER_LIFE[self.state, "drain"]
        self.workers.wake_waiting()

    @property
    def is_empty(self) -> bool:
        """Whether no request is open."""
        return not (self.totals.open or self.warm_up.live)

    def close(self) -> tuple[list[Request[T]], list[RequestBatch[T]]]:
        """Accept no request any more; return the waiting requests, and the batches that run."""
        # In this order: a worker that is woken finds the batcher closed, and is woken once.
        self.state = BATCHER_LIFE.get((self.state, "close"), self.state)
        self.workers.wake_waiting()
        # The requests stay in the queue until they have ended and are reaped: where a signal's
        # exception breaks off their failing, another `close` finds them.
        return self.waiting_requests(), list(self.batches)

    def end_batch(self, batch: RequestBatch[T]) -> None:
        """Count a batch that has ended, once."""
        if batch in self.batches:
            self.batches.discard(batch)
            if not batch.is_warm_up:
                self.totals.count_batch(batch.step_totals())

    def statistics(self) -> BatcherStatistics:
        """Return the figures; changes none, because a signal may have interrupted a change."""
        ended = set(self.ended_requests)  # each once, though several threads may have ended it
        batches = [batch for batch in self.batches if not batch.is_warm_up]
        return self.totals.statistics(
            running=[batch.step_totals() for batch in batches],
            ended=ended,
            waiting=len(self.queue) - sum(request in self.queue for request in ended),
            buffered=sum(batch.buffered for batch in batches)
            + sum(len(it.outputs) for it in self.requeued if not (it.ends or it.is_warm_up)),
            prefilling=sum(batch.prefilling for batch in batches),
        )


def _room_for_all() -> int:
    return sys.maxsize
