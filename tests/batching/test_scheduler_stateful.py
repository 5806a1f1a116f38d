"""All that a batcher decides, in virtual time, against a naive model of its workers and requests.

The machine does what the dispatcher does around a scheduler: it carries out wake-ups, some time
after they were queued, lets workers ask, wait and run batches, and ends requests. What it expects
of each decision it works out anew, from plain lists.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from dataclasses import dataclass, field, replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchstream import ClosedError, FinishReason, OverloadedError, StreamEnd
from batchstream._batching.options import BatcherOptions
from batchstream._batching.reporting.totals import StepTotals
from batchstream._batching.requests.request import FREED, Deadlines, Request, Submission
from batchstream._batching.scheduling import scheduler, warm_up_queue, workers
from batchstream._batching.scheduling.measuring import Candidates, measure
from batchstream._batching.scheduling.scheduler import Scheduler
from batchstream._batching.scheduling.workers import Worker
from batchstream._batching.waiting.places import ALONE, Place
from batchstream._core.rules import EndRules
from support import knobs
from support.joining import CHANGES, JoiningRules, groups_of

TICK = 0.125
"""Between two requests: exact in binary, so that sums of times are."""

SCHEDULER = {module.__file__ for module in (scheduler, warm_up_queue, workers)}


class Struck(BaseException):
    """What a signal's handler raises."""


def strike(call, lines, within=None):
    """Call a function, with an exception before the so-manyth line of the scheduler.

    Args:
        call: The function.
        lines: The number of the line, from 1 on.
        within: The method whose lines count; if it is None, the lines of all methods count.

    Returns:
        What the function returned; None if it was broken off.
    """
    left = lines

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in SCHEDULER:
            return None
        if within is not None and frame.f_code.co_name != within:
            return trace
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        # A signal cannot strike at a `try` or a `pass`, which call nothing.
        if event == "line" and text not in {"try:", "pass"} and not text.startswith("except"):
            left -= 1
            if not left:
                sys.settrace(None)
                raise Struck
        return trace

    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    except Struck:
        return None
    finally:
        sys.settrace(tracer)


@dataclass(eq=False)
class Waiter:
    """What a worker waits with."""

    until: float
    woken: bool = False


@dataclass(eq=False)
class Batch:
    """What the scheduler reads of a batch that runs."""

    requests: list[Request]
    free_slots: int
    slots: int
    buffered: int = 1
    is_warm_up: bool = False
    prefilling: int = 1

    def step_totals(self):
        return StepTotals(1, len(self.requests), self.slots, 3, 2, wasted=4)


@dataclass(eq=False)
class Run:
    """One start of a worker: it is about to ask, or it waits, or it runs a batch."""

    worker: Worker
    waiter: Waiter | None = None
    batch: Batch | None = None
    has_asked: bool = True  # since its last batch
    candidates: Candidates | None = None  # that it measures

    def asks(self, now):
        return (
            self.batch is None
            and self.candidates is None
            and (self.waiter is None or self.waiter.woken or self.waiter.until <= now)
        )


@dataclass
class Figures:
    """What the statistics have to say, counted by hand."""

    refused: int = 0
    batch_sizes: Counter = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    past_batches: list[Batch] = field(default_factory=list)


SUBMISSIONS = {
    "group": st.sampled_from("aab"),
    "cost": st.sampled_from([1.0, 1.0, 1.0, 0.0, 3.0, 6.0]),
    "timeout": st.sampled_from([None, None, None, 1.0, 8.0]),
    "wait_timeout": st.sampled_from([None, None, None, 0.0, 1.0, 3.0]),
    "first_timeout": st.sampled_from([None, None, None, None, 2.0]),
    "priority": st.sampled_from([0, 0, 1, -1]),
}


STRIKES = st.one_of(
    st.tuples(st.integers(5, 9), st.just("wake_one")),
    st.tuples(st.integers(1, 12), st.sampled_from(["wake_one", "submit", "next_batch"])),
    st.tuples(st.integers(1, 50), st.none()),
)
"""Where an exception strikes, most often where a wake-up is queued."""


class SchedulerMachine(RuleBasedStateMachine):
    """Every request is asked for in time and ends once, whatever happens, and when."""

    pads = False

    @initialize(
        size=st.sampled_from([2, 2, 3, 1]),
        workers=st.sampled_from([2, 2, 3, 1]),
        batch_timeout=st.sampled_from([5.0, 2.0, 0.0]),
        max_cost=st.sampled_from([None, 5.0]),
        max_pending=st.sampled_from([2, 4, 8]),
        threads=st.booleans(),
        bands=st.booleans(),
    )
    def begin(self, *, size, workers, batch_timeout, max_cost, max_pending, threads, bands):
        options = BatcherOptions(
            EndRules(),
            max_batch_size=size,
            max_pending=max_pending,
            max_buffered=1,
            on_overflow="cancel",
            workers=workers,
            batch_timeout=batch_timeout,
            max_batch_cost=max_cost,
            **self.functions(max_cost, bands),
        )
        bands = options.places is not None
        self.bands = bands
        self.in_front = set()  # requests that were put back
        self.joining = JoiningRules(batch_timeout, max_cost, size, self.rank, pads=self.pads)
        self.limits = options.limits
        self.max_workers = workers
        self.threads = threads
        self.scheduler = Scheduler(options, reuses_workers=threads)
        self.now = 100.0
        self.closed = False
        self.draining = False
        self.half_closed = False  # an exception has broken off a close, and there was no other
        self.runs = []  # in the order of their starts
        self.started = set()  # workers whose starts were claimed, and that are not idle
        self.claimed = []  # the workers in `started` that are started a moment later
        self.start_failed = False
        self.interrupted = set()  # what was to be woken when an exception struck
        self.half_refused = set()  # requests that were being refused when an exception struck
        self.taken = set()  # requests that ended while a worker had them, and no batch
        self.retired = set()  # workers whose tasks have ended
        # Of the requests that were accepted, each is in one of these lists. A request that was
        # taken out of the queue without joining a batch is about to end.
        self.waiting, self.taken_out, self.joined, self.finished = [], [], [], []
        self.first_outputs = {}  # when requests had them
        self.figures = Figures()

    def functions(self, max_cost, bands):
        return {
            "cost": None if max_cost is None else len,
            "priority": len if bands else None,
        }

    # ---- the model

    @property
    def accepted(self):
        return [*self.waiting, *self.taken_out, *self.joined, *self.finished]

    @property
    def size(self):
        return self.joining.max_size

    @property
    def max_pending(self):
        return self.limits.now.max_pending

    def rank(self, request):
        """Return the band of a request: what was put back is in front of all."""
        if not self.bands:
            return 0
        return (0, 0) if request in self.in_front else (1, request.place.priority)

    def at_work(self, run):
        return run.worker in knobs.workers_at_work(self.scheduler)

    def active(self):
        """Return the runs that go on: of one thread one after another, of tasks all at once."""
        if not self.threads:
            return self.runs
        first = {}
        for run in self.runs:
            first.setdefault(run.worker, run)
        return list(first.values())

    def busy(self):
        return [run for run in self.active() if run.batch is not None and self.at_work(run)]

    def next_requests(self, slots, spent=None):
        """Return the requests that join a batch now."""
        waiting = [] if self.closed else self.waiting
        return self.joining.expected(waiting, self.now, slots, spent)

    def ready_at(self):
        """Return when a worker has to ask at the latest; None if it need not."""
        if self.closed:
            return None
        groups = groups_of(self.waiting)
        times = [self.joining.ready_at(group) for group in groups]
        times += [r.wait_until for r in self.waiting if r.wait_until is not None]
        return min(times, default=None)

    def listening(self):
        """Return what workers wait with which have not been woken, and are not about to be."""
        queued = {id(it.waiter) for it in self.scheduler.workers.wakeups}
        return [
            run.waiter
            for run in self.active()
            if run.waiter and self.at_work(run) and not run.waiter.woken
            if id(run.waiter) not in queued
        ]

    # ---- what the dispatcher does

    def end(self, request, reason=FinishReason.EOS):
        request.finish(StreamEnd(reason, int(request in self.joined)))

    def reap(self):
        reaped = self.scheduler.reap(self.now)
        self.leave_queue(reaped)

    def leave_queue(self, reaped):
        """Check what was reaped; in the model, too, these requests wait no longer."""
        ended = [r for r in [*self.waiting, *self.taken_out, *self.joined] if r.ends]
        assert sorted(map(id, reaped.finished)) == sorted(map(id, ended))
        due = [request.wait_until for request in reaped.overdue]
        assert due == sorted(due)
        for request in reaped.overdue:
            assert request in self.waiting
            assert request.ends[0].reason is FinishReason.ERROR
        unnoted = [r for r in ended if r.ends[0].outputs and r not in self.first_outputs]
        assert sorted(map(id, reaped.first_outputs)) == sorted(map(id, unnoted))
        self.first_outputs.update(dict.fromkeys(unnoted, self.now))
        for request in reaped.finished:
            self.finish(request)
        assert not self.scheduler.ended_requests
        assert all((request.wait_until or 1e9) > self.now for request in self.waiting)

    def finish(self, request):
        """Check a request that was counted as ended."""
        has_joined = request in self.joined
        [among] = [of for of in (self.waiting, self.taken_out, self.joined) if request in of]
        among.remove(request)
        self.finished.append(request)
        if request not in self.half_refused:
            assert request.state == ("finished" if has_joined else "withdrawn")
            assert has_joined or request in self.taken or request.submission is FREED

    def take_out(self, request):
        """Take out a request that ends next: it has neither joined a batch nor was it reaped."""
        assert request not in self.scheduler.queue
        self.waiting.remove(request)
        self.taken_out.append(request)

    def fail(self, requests):
        for request in requests:
            self.end(request, FinishReason.ERROR)
        if requests:
            self.reap()

    def fail_waiting(self, waiting):
        """Fail all requests that wait; they do until they are reaped."""
        assert waiting == self.waiting
        assert all(request in self.scheduler.queue for request in waiting)
        self.fail(waiting)

    def count_join(self, joining):
        self.figures.batch_sizes[len(joining)] += 1
        for request in joining:
            assert not request.ends
            assert request.state == "joined"
            self.figures.waits.append(self.now - request.arrived)
            self.waiting.remove(request)
            self.joined.append(request)

    def end_run(self, run):
        """Do what is done when a thread or a task of a worker has ended by itself."""
        self.runs.remove(run)
        if not self.threads:
            self.rest(run.worker)

    def rest(self, worker):
        at_work = worker in knobs.workers_at_work(self.scheduler)
        assert self.scheduler.workers.rest(worker) is at_work
        self.started.discard(worker)
        self.retired.add(worker)
        if at_work:
            self.scheduler.workers.wake_one()

    def wake_unstarted(self):
        before = len(self.scheduler.workers.wakeups)
        self.scheduler.workers.wake_unstarted()
        # In the order in which they were started first: that of a set differs from run to run.
        wakeups = list(self.scheduler.workers.wakeups)
        order = [run.worker for run in self.runs] + [it.worker for it in wakeups]
        again = sorted(wakeups[before:], key=lambda wakeup: order.index(wakeup.worker))
        self.scheduler.workers.wakeups.clear()
        self.scheduler.workers.wakeups.extend(wakeups[:before] + again)

    def remember_interrupted(self):
        self.interrupted.update(it.waiter for it in self.scheduler.workers.wakeups if it.waiter)

    def recover(self, *requests):
        """Do what an interrupted caller does: cancel its request, and make sure of the workers."""
        self.remember_interrupted()
        for request in requests:
            self.end(request, FinishReason.CANCELLED)
            if request in self.scheduler.totals.open:
                if request.state == "refused":
                    self.half_refused.add(request)
                waits = request in self.scheduler.queue
                (self.waiting if waits else self.taken_out).append(request)
        for request in self.accepted:
            if request not in self.scheduler.totals.open and request not in self.finished:
                if request.first_output_at is not None:
                    self.first_outputs.setdefault(request, request.first_output_at)
                self.finish(request)  # counted in what was broken off
        for request in list(self.waiting):
            if request not in self.scheduler.queue:  # its consumer polls, or cancels it
                self.take_out(request)
                self.end(request, FinishReason.CANCELLED)
        self.wake_unstarted()
        self.reap()

    # ---- requests

    def request_of(self, *, group, cost, timeout, wait_timeout, first_timeout=None, priority=0):
        self.now += TICK
        deadlines = Deadlines.checked(timeout, wait_timeout, first_timeout, None)
        submission = Submission("content", cost)
        request = Request(0, submission, deadlines, self.scheduler.ended_requests)
        request.group = group
        if self.bands:
            request.place = Place(priority, share=ALONE)
        return request

    @rule(**SUBMISSIONS)
    def submit(self, **wanted):
        request = self.request_of(**wanted)
        self.reap()
        wakeups, listening = list(self.scheduler.workers.wakeups), self.listening()
        busy = [run for run in self.active() if self.at_work(run) and not run.has_asked]
        room = (self.max_workers - len(busy)) * self.size
        room += sum(batch.free_slots for batch in self.scheduler.batches)
        refusal = None
        if self.closed or self.draining:
            refusal = ClosedError
        elif self.joining.max_cost is not None and request.cost > self.joining.max_cost:
            refusal = ValueError
        elif len(self.waiting) >= self.max_pending + room:
            refusal = OverloadedError
            self.figures.refused += 1
        if refusal is not None:
            with pytest.raises(refusal):
                self.scheduler.submit(request, self.now)
            assert list(self.scheduler.workers.wakeups) == wakeups
            assert request not in self.scheduler.queue
            assert request not in self.scheduler.totals.open
            assert request.state == ("new" if self.closed or self.draining else "refused")
            return
        self.scheduler.submit(request, self.now)
        self.waiting.append(request)
        self.start_failed = False
        added = list(self.scheduler.workers.wakeups)[len(wakeups) :]
        assert len(added) <= 1
        if not self.pads and any(waiter.until <= self.ready_at() for waiter in listening):
            assert len(listening) > 1 or not added, "a worker that asks in time is woken"
        for wakeup in added:
            if wakeup.waiter is None:
                assert not listening
            else:  # not one that is woken already, but for a needless time after an interrupt
                assert wakeup.waiter in listening or wakeup.waiter in self.interrupted

    @rule(groups=st.lists(st.sampled_from("ab"), min_size=1, max_size=4))
    def submit_some(self, groups):
        """Most requests are as these are."""
        for group in groups:
            self.submit(group=group, cost=1.0, timeout=None, wait_timeout=None, priority=0)

    @rule(where=STRIKES, **SUBMISSIONS)
    def submit_interrupted(self, where, **wanted):
        request = self.request_of(**wanted)

        def call():
            self.scheduler.reap(self.now)
            try:
                self.scheduler.submit(request, self.now)
            except (ClosedError, OverloadedError, ValueError):
                pass

        refused = self.scheduler.totals.refused
        strike(call, *where)
        self.figures.refused += self.scheduler.totals.refused - refused
        self.recover(request)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data(), reason=st.sampled_from(FinishReason))
    def end_request(self, data, reason):
        """End a request of any state, for the second time perhaps; no lock is taken for it."""
        self.end(data.draw(st.sampled_from(self.accepted)), reason)

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.0, 5.0]))
    def let_time_pass(self, seconds):
        self.now += seconds

    # ---- limits

    @rule(changes=st.fixed_dictionaries(CHANGES))
    def change_limits(self, changes):
        """Limits change at any moment; a worker that waits is woken, and one only."""
        wakeups, listening = list(self.scheduler.workers.wakeups), self.listening()
        limits = self.changed(changes)
        self.scheduler.change_limits(limits)
        assert self.limits.now is limits
        self.go_by(limits)
        added = list(self.scheduler.workers.wakeups)[len(wakeups) :]
        assert len(added) == bool(listening)

    @rule(where=STRIKES, changes=st.fixed_dictionaries(CHANGES))
    def change_limits_interrupted(self, where, changes):
        """All of them change, or none."""
        before, after = self.limits.now, self.changed(changes)
        strike(lambda: self.scheduler.change_limits(after), *where)
        assert self.limits.now is before or self.limits.now is after
        self.go_by(self.limits.now)
        self.recover()

    def go_by(self, limits):
        self.joining.go_by(limits)
        if self.draining or self.closed:
            self.joining.batch_timeout = 0.0  # none waits for others any more

    def changed(self, changes):
        return self.joining.changed(
            **changes | {"max_pending": changes["max_pending"] or self.max_pending}
        )

    # ---- workers

    @precondition(lambda self: self.scheduler.workers.wakeups)
    @rule(outcome=st.sampled_from(["done"] * 3 + ["slow", "failed", "unbegun", "unremoved"]))
    def carry_out(self, outcome="done"):
        """A thread carries out the next wake-up, and removes it; it is interrupted, or is slow."""
        wakeup = self.scheduler.workers.wakeups[0]
        worker, waiter = wakeup.worker, wakeup.waiter
        if outcome == "unbegun":
            self.wake_unstarted()
            return
        if waiter is not None:
            waiter.woken = True
        elif self.claim(worker):
            if outcome == "failed" or self.closed:
                self.fail_to_start(worker)
            elif outcome == "slow":
                self.claimed.append(worker)
            else:
                self.runs.append(Run(worker))
        # Else another thread carries it out as well, and removes it.
        if outcome in {"failed", "unremoved"}:
            self.wake_unstarted()
        elif outcome == "done":
            self.scheduler.workers.wakeups.remove(wakeup)

    def claim(self, worker):
        claimed = self.scheduler.workers.claim_start(worker, object())
        is_at_work = worker in knobs.workers_at_work(self.scheduler)
        assert claimed is (is_at_work and worker not in self.started)
        if claimed:
            self.started.add(worker)
        return claimed

    @precondition(lambda self: self.claimed)
    @rule(fails=st.booleans())
    def start_claimed(self, fails=False):
        """The thread that was slow to start a worker does so, or cannot."""
        worker = self.claimed.pop()
        if fails:
            self.fail_to_start(worker)
        else:
            self.runs.append(Run(worker))

    def fail_to_start(self, worker):
        self.scheduler.workers.rest(worker)
        self.started.discard(worker)
        self.start_failed = True
        if not self.scheduler.workers.at_work:
            self.fail_waiting(self.scheduler.queue.requests())

    def asking(self):
        return [run for run in self.active() if run.asks(self.now)]

    @precondition(lambda self: self.asking())
    @rule(data=st.data())
    def ask(self, data):
        self.let_ask(data.draw(st.sampled_from(self.asking())))

    @rule()
    def let_all_ask(self):
        """All wake-ups are carried out, and all workers that wait no longer ask, at once."""
        while self.scheduler.workers.wakeups:
            self.carry_out()
        for run in self.asking():
            self.let_ask(run)

    @precondition(lambda self: self.listening())
    @rule()
    def wait(self):
        """A worker waits for as long as it was to wait, and asks."""
        self.now = max(self.now, min(waiter.until for waiter in self.listening()))
        self.let_all_ask()

    @precondition(lambda self: self.asking() and self.waiting)
    @rule(data=st.data())
    def ask_as_a_request_ends(self, data):
        """A request ends after the ended ones were reaped, and before the next batch is formed."""
        run = data.draw(st.sampled_from(self.asking()))
        self.let_ask(run, data.draw(st.sampled_from(self.waiting)))

    def let_ask(self, run, ending=None, **measuring):
        at_work = self.at_work(run)
        reaped = self.scheduler.reap(self.now)
        self.leave_queue(reaped)
        if ending is not None:
            self.end(ending)
        waiter, expected = Waiter(0.0), self.next_requests(self.size)
        decision = self.decide(run, waiter, **measuring)
        run.waiter, run.has_asked = None, True
        if decision is not None and decision.candidates is not None:
            run.candidates = decision.candidates  # it is slow
            return
        if ending in self.waiting and ending not in self.scheduler.queue:
            self.take_out(ending)
        if not at_work:
            assert decision is None
            self.end_run(run)
        elif decision.requests:
            assert decision.requests == expected or ending is not None or measuring
            self.run_batch(run, decision.requests)
        elif decision.wait is not None:
            waiter.until = self.now + decision.wait
            assert not self.next_requests(self.size)
            assert decision.wait > 0.0 or ending is not None
            assert all(other.until > waiter.until for other in self.listening())
            run.waiter = waiter
            if ending is None:
                assert waiter.until == self.ready_at()
        else:
            assert not self.next_requests(self.size)
            at = self.ready_at()
            if ending is None:
                assert at is None or any(waiter.until <= at for waiter in self.listening())
            self.started.discard(run.worker)
            self.end_run(run)
        if ending is not None:
            self.reap()

    def measuring(self):
        return [run for run in self.active() if run.candidates is not None]

    def decide(self, run, waiter):
        return self.scheduler.next_batch(run.worker, waiter, self.now)

    def run_batch(self, run, requests):
        self.count_join(requests)
        self.start_failed = False
        assert 0 < len(requests) <= self.size
        assert len({request.group for request in requests}) == 1
        if self.joining.max_cost is not None:
            cost = self.joining.cost_of(requests)
            assert cost <= self.joining.max_cost or len(requests) == 1
        run.has_asked = False
        free_slots = 0 if self.joining.batch_timeout else self.size - len(requests)
        run.batch = Batch(requests, free_slots, self.size)
        self.scheduler.batches.add(run.batch)

    @precondition(lambda self: self.asking())
    @rule(data=st.data(), where=STRIKES)
    def ask_interrupted(self, data, where):
        """The worker ends; the requests that it had taken are cancelled by their consumers."""
        run = data.draw(st.sampled_from(self.asking()))
        self.reap()
        decision = strike(
            lambda: self.scheduler.next_batch(run.worker, Waiter(self.now), self.now), *where
        )
        self.remember_interrupted()
        taken = [request for request in self.waiting if request not in self.scheduler.queue]
        for request in taken:
            self.take_out(request)
            self.taken.add(request)
            if request.state == "joined":
                self.taken_out.remove(request)
                self.joined.append(request)
            self.end(request, FinishReason.CANCELLED)
        figures = self.scheduler.statistics()
        if figures.batches > self.figures.batch_sizes.total():  # it was broken off after the count
            self.figures.batch_sizes[len(taken)] += 1
            self.figures.waits += [self.now - request.arrived for request in taken]
        del decision
        self.runs.remove(run)
        self.rest(run.worker)
        self.reap()

    @precondition(lambda self: self.joined)
    @rule(data=st.data())
    def note_first_outputs(self, data):
        """A step is noted; some of its requests may have ended, and been reaped, meanwhile."""
        among = st.sampled_from([*self.joined, *self.finished])
        requests = data.draw(st.lists(among, max_size=3, unique_by=id))
        expected = [r for r in requests if r in self.joined and r not in self.first_outputs]
        assert self.scheduler.count_first_outputs(requests, self.now) == expected
        assert not self.scheduler.untold  # as nothing hears of it
        self.first_outputs.update(dict.fromkeys(expected, self.now))

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def end_batch(self, data):
        self.finish_batch(data.draw(st.sampled_from(self.running())))

    def running(self):
        return [run for run in self.runs if run.batch is not None]

    def finish_batch(self, run):
        for request in run.batch.requests:
            if not request.ends:
                self.end(request)
        self.scheduler.end_batch(run.batch)
        self.scheduler.end_batch(run.batch)  # once more: it counts once
        self.figures.past_batches.append(run.batch)
        run.batch = None
        self.reap()

    @precondition(lambda self: self.running() and not (self.joining.batch_timeout or self.pads))
    @rule(data=st.data())
    def join_running_batch(self, data):
        """In continuous batching requests join between two steps, or are put back."""
        batch = data.draw(st.sampled_from(self.running())).batch
        spent = sum(request.cost for request in batch.requests)
        self.reap()
        taken = self.scheduler.take(self.now, slots=batch.free_slots, spent=spent)
        assert taken == self.next_requests(batch.free_slots, spent)
        joining = taken
        if len({request.group for request in self.waiting}) == 1:
            joining = taken[: data.draw(st.integers(0, len(taken)))]
        put_back = taken[len(joining) :]
        for request in put_back:
            if data.draw(st.booleans()):
                self.end(request)
        self.scheduler.put_back(put_back)
        self.in_front.update(put_back)
        assert all(request in self.scheduler.queue for request in put_back)
        assert self.scheduler.join(joining) == joining
        assert {request.joined_at for request in joining} <= {self.now}
        self.reap()
        if joining:
            self.count_join(joining)
            batch.requests += joining
            batch.free_slots -= len(joining)

    @precondition(lambda self: self.active())
    @rule(data=st.data())
    def lose_worker(self, data):
        """A worker fails, in its batch or outside of one."""
        run = data.draw(st.sampled_from(self.active()))
        if run.batch is not None:
            self.finish_batch(run)
        self.runs.remove(run)
        self.rest(run.worker)

    # Late, so that there is something to lose.
    @precondition(lambda self: not self.threads and self.scheduler.workers.at_work)
    @precondition(lambda self: len(self.accepted) > 2)
    @rule(at_once=st.booleans())
    def lose_loop(self, at_once):
        """The loop of the workers' tasks ends: tasks are gone at once, or end one by one."""
        waiting = self.scheduler.queue.requests()
        gone = self.scheduler.workers.dismiss()
        assert len(gone) == len(set(gone))
        assert len(self.scheduler.workers.at_work) == 0
        self.fail_waiting(waiting)
        if at_once:
            for run in self.running():
                self.finish_batch(run)
            self.runs.clear()

    # ---- the end

    @precondition(lambda self: len(self.accepted) > 2 and not self.closed)
    @rule(seconds=st.sampled_from([0.0, 3.0]))
    def drain(self, seconds):
        """No request waits for others any more, and every worker that waits asks again."""
        self.reap()
        listening = self.listening()
        until = min(self.now + seconds, self.scheduler.drains_until)
        self.scheduler.drain(self.now + seconds, " by the test")
        self.draining = True
        self.joining = replace(self.joining, batch_timeout=0.0)
        assert self.scheduler.drains_until == until
        woken = [it.waiter for it in self.scheduler.workers.wakeups]
        assert all(waiter in woken for waiter in listening)
        self.check_all()

    @precondition(lambda self: len(self.accepted) > 4)
    @rule()
    def close(self):
        self.reap()
        listening = self.listening()
        waiting, batches = self.scheduler.close()
        self.closed, self.half_closed = True, False
        assert set(batches) == {run.batch for run in self.running()}
        woken = [it.waiter for it in self.scheduler.workers.wakeups]
        assert all(waiter in woken for waiter in listening)
        self.fail_waiting(waiting)
        self.fail([r for batch in batches for r in batch.requests if not r.ends])

    @precondition(lambda self: len(self.accepted) > 4)
    @rule(line=st.integers(1, 5))
    def close_interrupted(self, line):
        """The requests wait for another close; workers find the batcher closed."""
        self.reap()
        strike(self.scheduler.close, line)
        self.remember_interrupted()
        self.closed = self.half_closed = self.scheduler.state == "closed"

    def teardown(self):
        """Let everything that was begun go on: all requests end, and all workers become idle."""
        if not hasattr(self, "scheduler"):
            return
        if self.half_closed:
            self.close()
        for _ in range(1000):
            if self.scheduler.workers.wakeups:
                self.carry_out()
            elif self.claimed:
                self.start_claimed()
            elif self.asking():
                self.let_ask(self.asking()[0])
            elif self.measuring():
                self.finish_measuring(self.measuring()[0])
            elif self.running():
                self.finish_batch(self.running()[0])
            elif self.runs:
                self.now = min(run.waiter.until for run in self.active())
            else:
                break
            self.check_all()
        self.reap()
        assert not self.waiting, "no worker will ask for them"
        assert len(self.scheduler.workers.at_work) == 0
        assert not self.scheduler.batches
        assert not self.scheduler.totals.open
        assert self.scheduler.is_empty

    # ---- what always holds

    @invariant()
    def check_all(self):
        if hasattr(self, "scheduler"):
            self.check_requests()
            self.check_workers()
            self.check_asked_in_time()
            self.check_statistics()
            states = {"closed": self.closed, "draining": self.draining and not self.closed}
            assert states.get(self.scheduler.state, not (self.closed or self.draining))

    def check_requests(self):
        accepted = self.accepted
        assert len(set(map(id, accepted))) == len(accepted)
        assert len(self.scheduler.queue) == len(self.waiting)
        for request in self.waiting:
            assert request in self.scheduler.queue
            assert request.state == "waiting"
        for request in self.taken_out:
            assert request not in self.scheduler.queue
            assert request.state == "waiting"
        for request in self.joined:
            assert request not in self.scheduler.queue
            assert request.state == "joined"
        for request in self.finished:
            assert request not in self.scheduler.queue
            assert request.state in {"withdrawn", "finished"} or request in self.half_refused
            assert request.ends

    def check_workers(self):
        """Each worker at work asks one day; there are not too many."""
        at_work = knobs.workers_at_work(self.scheduler)
        assert len(at_work) <= self.max_workers
        assert len(self.busy()) <= self.max_workers
        assert len({run.worker for run in self.busy()}) == len(self.busy())
        to_start = [it.worker for it in self.scheduler.workers.wakeups if it.waiter is None]
        begun = {*self.claimed, *(run.worker for run in self.runs)}
        for worker in at_work:
            assert worker in begun or (worker in to_start and worker.claim is None)
        for run in self.active():
            if self.at_work(run):
                assert run.worker.busy is not run.has_asked
        assert self.threads or at_work.isdisjoint(self.retired)

    def check_asked_in_time(self):
        """While requests wait, a worker asks when there is something to do, or all are busy."""
        at = self.ready_at()
        if at is None or len(self.busy()) == self.max_workers:
            return
        if self.start_failed and self.scheduler.workers.at_work:
            return  # it could not be helped: the next request, or the next batch, is another try
        at_work = knobs.workers_at_work(self.scheduler)
        queued = [it.waiter for it in self.scheduler.workers.wakeups]
        to_start = [
            it.worker for it in self.scheduler.workers.wakeups if not (it.waiter or it.worker.claim)
        ]
        in_time = [
            run
            for run in self.runs
            if run.worker in at_work and run.batch is None
            if run.waiter is None
            or run.waiter.woken
            or run.waiter.until <= max(at, self.now)
            or run.waiter in queued
        ]
        starting = at_work.intersection([*to_start, *self.claimed])
        assert starting or in_time, f"requests wait that have to be asked for at {at}"

    def check_statistics(self):
        figures, counted = self.scheduler.statistics(), self.figures
        accepted = self.accepted
        assert figures.opened == len(accepted) == figures.live + sum(figures.finished.values())
        ended = Counter(request.ends[0].reason for request in accepted if request.ends)
        assert figures.finished == ended
        assert figures.waiting == sum(not request.ends for request in self.waiting)
        assert figures.refused == counted.refused
        assert figures.batch_sizes == counted.batch_sizes
        assert figures.batches == counted.batch_sizes.total()
        assert figures.waited == sum(counted.waits)
        assert figures.longest_wait == max(counted.waits, default=0.0)
        running = [run.batch for run in self.running()]
        batches = counted.past_batches + running
        assert figures.steps == len(batches)
        assert figures.outputs == 3 * len(batches)
        assert figures.dropped == 2 * len(batches)
        assert figures.buffered == figures.prefilling == len(running)
        assert figures.running == figures.live - figures.waiting
        seconds = sum(at - request.arrived for request, at in self.first_outputs.items())
        assert figures.first_outputs == len(self.first_outputs)
        assert figures.first_output_time == pytest.approx(seconds)
        assert figures.wasted == 4 * len(batches)
        live = sum(len(batch.requests) for batch in batches)
        assert figures.occupancy == (live / sum(it.slots for it in batches) if batches else 0.0)


class MeasuringMachine(SchedulerMachine):
    """The same where a function says what a batch costs, without the lock: other things go on."""

    pads = True

    def functions(self, max_cost, bands):
        return {"batch_cost": len} if max_cost is not None else super().functions(None, bands)

    def measure(self, candidates):
        costs = [request.cost for request in candidates.requests]
        contents = list(range(len(costs)))

        def cost_of(chosen):
            assert chosen == contents[: len(chosen)]
            return len(chosen) * max(costs[: len(chosen)])

        return measure(candidates._replace(contents=contents), cost_of, None)

    def decide(self, run, waiter, *, measured=None, is_slow=False):
        while True:
            decision = self.scheduler.next_batch(run.worker, waiter, self.now, measured)
            if is_slow or decision is None or decision.candidates is None:
                break
            measured = self.measure(decision.candidates)
            self.reap()
        if decision is not None and decision.requests and measured is not None:
            assert decision.requests == [it for it in measured.requests if not it.ends]
        return decision

    @precondition(lambda self: self.joining.max_cost is not None and self.asking())
    @rule(data=st.data())
    def begin_to_measure(self, data):
        """A worker asks, and is slow to measure what it is told to."""
        self.let_ask(data.draw(st.sampled_from(self.asking())), is_slow=True)

    @precondition(lambda self: self.measuring())
    @rule(data=st.data())
    def end_measuring(self, data):
        """It has measured by the limits of that time, and asks again."""
        self.finish_measuring(data.draw(st.sampled_from(self.measuring())))

    def finish_measuring(self, run):
        candidates, run.candidates = run.candidates, None
        self.let_ask(run, measured=self.measure(candidates))


TestScheduler = SchedulerMachine.TestCase
TestMeasuring = MeasuringMachine.TestCase
TestScheduler.settings = TestMeasuring.settings = settings(
    max_examples=2 * settings.default.max_examples,
    stateful_step_count=50,
    report_multiple_bugs=False,
)


# ---- one by one


def scheduler_of(*, threads):
    """Return a scheduler of batches of one request, with one worker."""
    made = {"max_batch_size": 1, "max_pending": 9, "max_buffered": 1, "on_overflow": "cancel"}
    return Scheduler(BatcherOptions(EndRules(), **made), reuses_workers=threads)


def submit(scheduler, now):
    request = Request(0, Submission("content"), None, scheduler.ended_requests)
    scheduler.submit(request, now)
    return request


def test_a_worker_that_is_idle_at_once_is_started_again_after_an_interrupt():
    scheduler = scheduler_of(threads=True)
    submit(scheduler, 0.0)
    [wakeup] = scheduler.workers.wakeups
    worker = wakeup.worker
    assert scheduler.workers.claim_start(worker, object())
    assert scheduler.next_batch(worker, None, 0.0).requests
    assert scheduler.next_batch(worker, None, 0.0).wait is None  # its thread was quick
    scheduler.workers.wakeups.clear()  # in the thread that has started it
    submit(scheduler, 1.0)
    scheduler.workers.wakeups.clear()  # an exception strikes before it is started again
    scheduler.workers.wake_unstarted()
    assert [it.worker for it in scheduler.workers.wakeups] == [worker]
    assert scheduler.workers.claim_start(worker, object())


def test_a_worker_that_is_about_to_be_started_is_not_started_twice():
    scheduler = scheduler_of(threads=False)
    submit(scheduler, 0.0)
    scheduler.workers.wake_unstarted()  # another submission was interrupted
    starts = [
        scheduler.workers.claim_start(it.worker, object()) for it in scheduler.workers.wakeups
    ]
    assert starts == [True, False]


@pytest.mark.parametrize("threads", [False, True])
def test_a_request_that_an_interrupted_thread_has_counted_is_finished(threads):
    scheduler = scheduler_of(threads=threads)
    request = submit(scheduler, 0.0)
    [wakeup] = scheduler.workers.wakeups
    worker = wakeup.worker
    assert scheduler.next_batch(worker, None, 0.0).requests == [request]
    request.finish(StreamEnd(FinishReason.EOS, 0))
    for line in range(1, 20):
        strike(lambda: scheduler.reap(0.0), line, "reap")
        if request not in scheduler.totals.open:
            break
    assert scheduler.reap(0.0).finished == []
    assert not scheduler.ended_requests
    assert request.state == "finished"
