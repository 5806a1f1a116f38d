"""Which worker is woken, waits and is idle: decided without lock, clock or thread."""

from __future__ import annotations

import pytest

from batchstream import ClosedError, FinishReason, Metrics, OverloadedError, StreamEnd
from batchstream._batching.options import BatcherOptions
from batchstream._batching.requests.request import Deadlines, Request, Submission
from batchstream._batching.scheduling.scheduler import Scheduler
from batchstream._batching.scheduling.workers import Worker
from batchstream._batching.waiting.places import Place
from batchstream._core.rules import EndRules


def scheduler_of(*, reuses_workers=True, may_put_back=False, **options):
    """Return a scheduler of batches of two, with two workers, where a request waits 5 seconds."""
    made = {
        "max_batch_size": 2,
        "max_pending": 9,
        "max_buffered": 1,
        "on_overflow": "cancel",
        "workers": 2,
        "batch_timeout": 5.0,
    }
    return Scheduler(
        BatcherOptions(EndRules(), **made | options),
        reuses_workers=reuses_workers,
        may_put_back=may_put_back,
    )


@pytest.fixture
def scheduler():
    return scheduler_of()


def submit(scheduler, now=0.0, *, group=None, wait_timeout=None):
    """Submit a request at that time, and return it."""
    deadlines = Deadlines(None, wait_timeout)
    request = Request(0, Submission("content"), deadlines, scheduler.ended_requests)
    request.group = group
    request.place = Place()
    request.place.account = request.place.tenant
    scheduler.submit(request, now)
    return request


def woken(scheduler):
    """Return the wake-ups that are queued, and carry them out."""
    wakeups = [(it.worker, it.waiter) for it in scheduler.workers.wakeups]
    scheduler.workers.wakeups.clear()
    for worker, waiter in wakeups:
        if waiter is None:
            assert scheduler.workers.claim_start(worker, object())
    return wakeups


def started(scheduler, now=0.0):
    """Submit a request, and return the worker that is started for it."""
    submit(scheduler, now)
    [(worker, waiter)] = woken(scheduler)
    assert waiter is None
    return worker


def end(request):
    request.finish(StreamEnd(FinishReason.EOS, 0))


def test_the_first_request_starts_a_worker_which_waits_for_others_until_the_time_is_over(scheduler):
    worker = started(scheduler, now=1.0)
    decision = scheduler.next_batch(worker, "waiter", now=2.0)
    assert (decision.requests, decision.wait) == ([], 4.0)
    assert [
        it.submission.content for it in scheduler.next_batch(worker, "waiter", now=6.0).requests
    ] == ["content"]


def test_a_worker_that_waits_is_woken_when_its_batch_is_full(scheduler):
    worker = started(scheduler)
    scheduler.next_batch(worker, "waiter", now=0.0)
    submit(scheduler, now=1.0)
    assert woken(scheduler) == [(worker, "waiter")]
    assert len(scheduler.next_batch(worker, "another", now=1.0).requests) == 2


def test_a_worker_that_waits_is_left_where_it_asks_in_time(scheduler):
    worker = started(scheduler)
    scheduler.next_batch(worker, "waiter", now=0.0)
    submit(scheduler, now=1.0, group="other")
    assert not scheduler.workers.wakeups


def test_two_workers_do_not_wait_for_the_same_request(scheduler):
    first = started(scheduler)
    second = Worker()
    scheduler.workers.wakeups.clear()
    scheduler.next_batch(first, "waiter", now=0.0)
    submit(scheduler, now=0.0)  # a full batch: the first is woken
    woken(scheduler)
    scheduler.next_batch(first, "waiter", now=0.0)
    submit(scheduler, now=0.0)
    [(second, waiter)] = woken(scheduler)
    assert waiter is None
    assert scheduler.next_batch(second, "waiter", now=0.0).wait == 5.0
    scheduler.next_batch(first, "another", now=0.0)
    assert len(scheduler.workers.at_work) == 1, "the first is idle: the second asks in time"


def test_an_idle_worker_is_started_again_before_another_is_made(scheduler):
    worker = started(scheduler)
    assert scheduler.next_batch(worker, None, now=9.0).requests
    assert scheduler.next_batch(worker, None, now=9.0).wait is None
    assert len(scheduler.workers.at_work) == 0
    assert started(scheduler, now=10.0) is worker


def test_a_start_that_two_threads_have_carried_out_removes_no_later_one(scheduler):
    submit(scheduler, group=None)
    [first] = scheduler.workers.wakeups  # which this thread carries out, and has not removed yet
    worker = first.worker
    scheduler.workers.claim_start(worker, object())
    scheduler.workers.wakeups.remove(first)  # the worker itself has carried it out as well
    while scheduler.next_batch(worker, object(), 9.0).requests:
        pass
    submit(scheduler, now=9.0)
    [second] = scheduler.workers.wakeups
    assert second.worker is worker
    assert first not in scheduler.workers.wakeups


def test_a_worker_that_cannot_be_reused_is_made_anew():
    scheduler = scheduler_of(reuses_workers=False)
    first = started(scheduler)
    assert scheduler.workers.rest(first)
    assert started(scheduler, now=1.0) is not first
    assert not scheduler.workers.rest(first)
    assert len(scheduler.workers.at_work) == 1


def test_no_worker_is_woken_while_all_are_at_work(scheduler):
    workers = [started(scheduler, now=0.0)]
    scheduler.next_batch(workers[0], None, now=5.0)
    workers.append(started(scheduler, now=5.0))
    scheduler.next_batch(workers[1], None, now=10.0)
    submit(scheduler, now=10.0)
    assert not scheduler.workers.wakeups


def test_a_worker_that_takes_a_batch_wakes_another_for_the_requests_that_are_left(scheduler):
    worker = started(scheduler)
    scheduler.next_batch(worker, "waiter", now=0.0)
    submit(scheduler, now=1.0, group="other")
    assert len(scheduler.next_batch(worker, None, now=5.0).requests) == 1
    [(other, waiter)] = woken(scheduler)
    assert other is not worker
    assert waiter is None
    assert scheduler.next_batch(other, "waiter", now=5.0).wait == 1.0


@pytest.mark.rule(29)
@pytest.mark.parametrize(("places", "count"), [({}, 2), ({"priority": len}, 1)])
def test_where_an_engine_may_refuse_a_request_none_is_taken_with_it_that_has_a_place(places, count):
    """What is put back with a refused request would be in front of all bands."""
    scheduler = scheduler_of(batch_timeout=0.0, may_put_back=True, **places)
    worker = started(scheduler)
    for _ in range(2):
        submit(scheduler)
    assert len(scheduler.next_batch(worker, "waiter", 0.0).requests) == count
    assert len(scheduler.take(0.0, slots=2, spent=0.0)) == min(2, 3 - count)


def test_a_worker_that_was_started_twice_is_dismissed_the_second_time(scheduler):
    worker = started(scheduler)
    scheduler.workers.rest(worker)
    assert scheduler.next_batch(worker, None, now=9.0) is None


def test_workers_of_which_it_is_not_sure_that_they_were_started_are_woken_again(scheduler):
    worker = started(scheduler)
    worker.claim = None
    scheduler.workers.wake_unstarted()
    assert woken(scheduler) == [(worker, None)]
    scheduler.workers.wake_unstarted()
    assert not scheduler.workers.wakeups


def test_free_workers_make_room_beyond_max_pending():
    scheduler = scheduler_of(max_pending=1, workers=1)
    worker = started(scheduler)
    submit(scheduler), submit(scheduler)
    with pytest.raises(OverloadedError):
        submit(scheduler)
    assert len(scheduler.next_batch(worker, None, now=0.0).requests) == 2
    with pytest.raises(OverloadedError):
        submit(scheduler)
    assert scheduler.statistics().refused == 2


def test_a_request_goes_through_the_states_of_its_life(scheduler):
    request = Request(0, Submission("content"), None, scheduler.ended_requests)
    states = [request.state]
    scheduler.submit(request, 0.0)
    states.append(request.state)
    [(worker, _)] = woken(scheduler)
    scheduler.next_batch(worker, None, now=5.0)
    states.append(request.state)
    end(request)
    scheduler.reap(6.0)
    states.append(request.state)
    assert states == ["new", "waiting", "joined", "finished"]


def test_a_request_that_two_threads_have_ended_is_reaped_once(scheduler):
    request = submit(scheduler)
    end(request), end(request)
    before = scheduler.statistics()
    assert (before.live, before.waiting) == (0, 0)
    assert scheduler.reap(1.0).finished == [request]
    assert scheduler.reap(1.0).finished == ()
    assert scheduler.statistics().finished == {FinishReason.EOS: 1}


@pytest.mark.rule(30)
@pytest.mark.parametrize("is_reaped", [False, True])
def test_a_request_that_another_process_refused_counts_as_refused_whenever_one_asks(is_reaped):
    scheduler = scheduler_of()
    started(scheduler)
    request = submit(scheduler)
    request.refused_with = error = OverloadedError("full", pending=1, max_pending=1)
    request.finish(StreamEnd(FinishReason.ERROR, 0, error=error))
    if is_reaped:
        scheduler.reap(1.0)
    statistics = scheduler.statistics()
    assert (statistics.opened, statistics.live, statistics.finished) == (1, 1, {})
    assert (statistics.refused, statistics.refusals) == (1, {"pending": 1})


@pytest.mark.parametrize("told", ["that they joined", "of first outputs"])
def test_requests_are_reaped_when_all_was_told_that_came_before_their_ends(told):
    scheduler = scheduler_of(metrics=Metrics())
    requests = [submit(scheduler), submit(scheduler)]
    worker, _ = woken(scheduler)[0]
    assert scheduler.next_batch(worker, None, now=5.0).requests == requests
    if told == "of first outputs":
        scheduler.untold.clear()
        assert scheduler.count_first_outputs(requests, 6.0) == requests
    end(requests[1])
    assert scheduler.reap(7.0).finished == []
    assert scheduler.statistics().finished == {FinishReason.EOS: 1}
    scheduler.untold.discard(requests[1])
    assert scheduler.reap(8.0).finished == requests[1:]
    assert scheduler.count_first_outputs(requests[1:], 8.0) == []


def test_a_request_whose_step_is_noted_behind_its_end_is_reaped_with_its_first_output(scheduler):
    request = submit(scheduler, now=1.0)
    [(worker, _)] = woken(scheduler)
    scheduler.next_batch(worker, None, now=6.0)
    request.finish(StreamEnd(FinishReason.EOS, 1))
    reaped = scheduler.reap(8.0)
    assert reaped.first_outputs == reaped.finished == [request]
    assert request.first_output_at == 8.0
    assert scheduler.count_first_outputs([request], 9.0) == []
    figures = scheduler.statistics()
    assert (figures.first_outputs, figures.first_output_time) == (1, 7.0)


def test_a_request_that_ended_while_it_waited_joins_no_batch(scheduler):
    request, worker = submit(scheduler), None
    [(worker, _)] = woken(scheduler)
    end(request)
    assert not scheduler.next_batch(worker, None, now=9.0).requests


def test_requests_that_have_waited_too_long_are_taken_out(scheduler):
    request = submit(scheduler, wait_timeout=1.0)
    assert scheduler.reap(0.5).overdue == ()
    assert list(scheduler.reap(1.0).overdue) == [request]
    assert not scheduler.queue


def test_a_scheduler_that_was_closed_gives_its_requests_back_and_wakes_its_workers(scheduler):
    worker = started(scheduler)
    scheduler.next_batch(worker, "waiter", now=0.0)
    waiting, batches = scheduler.close()
    assert (len(waiting), batches) == (1, [])
    assert woken(scheduler) == [(worker, "waiter")]
    with pytest.raises(ClosedError):
        submit(scheduler)
    assert scheduler.workers.dismiss() == [worker]
    assert len(scheduler.workers.at_work) == 0
