"""Deadlines for the first output of a request, and for the gap between two."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from batchstream import SKIP, ContinuousBatcher, DeadlineError, DynamicBatcher, FinishReason, Many
from batchstream._batching.options import BatcherOptions
from batchstream._batching.requests.request import Deadlines, Request, Submission
from batchstream._batching.scheduling.scheduler import Scheduler
from batchstream._core.rules import EndRules
from support import knobs
from support.engines import every_batcher
from support.sources import TIMEOUT

LONG = 3600.0
SOON = 0.01


class Clock:
    """A clock that goes on as a test says, for batchers alone: threads wait in real time."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        knobs.set_clock(monkeypatch, lambda: self.now)


class Timed:
    """An engine whose steps take the time that a request says: pairs of seconds and an output."""

    def __init__(self, clock):
        self.slots = {}
        self.removed = []
        self._clock = clock

    def add(self, slot, request):
        self.slots[slot] = iter(request)

    def step(self):
        outputs = {}
        for slot, steps in self.slots.items():
            seconds, outputs[slot] = next(steps, (0.0, None))
            self._clock.now += seconds
        return outputs

    def remove(self, slot):
        del self.slots[slot]
        self.removed.append(slot)


def answers(stream):
    """Return what a stream gives, and the error behind it, if any."""
    outputs = []
    try:
        outputs.extend(stream)
    except DeadlineError as error:
        return outputs, error
    return outputs, None


# ---- told while the model is in a step


@pytest.mark.rule(9)
@every_batcher
async def test_a_first_output_that_is_late_is_told_while_the_model_is_in_a_step(form):
    batcher, _, gate = form.held_batcher(0)
    stream = form.submit(batcher, "abc", first_timeout=LONG)
    await gate.reached.wait()
    knobs.expire_in(stream, SOON)
    outputs, [error] = await form.read(stream)
    assert outputs == []
    assert type(error) is DeadlineError
    assert error.timeout == LONG
    assert f"was given no output within {LONG} seconds (first_timeout): submit it" in str(error)
    assert str(error).endswith("with a longer first_timeout")
    gate.open()
    assert await form.rest(form.submit(batcher, "x")) == ["x"]


@pytest.mark.rule(9)
@every_batcher
async def test_a_gap_that_is_too_long_is_told_while_the_model_is_in_a_step(form):
    batcher, _, gate = form.held_batcher(2)
    stream = form.submit(batcher, "abcd", gap_timeout=LONG)
    await gate.reached.wait()
    knobs.expire_in(stream, SOON)
    outputs, [error] = await form.read(stream)
    assert outputs == ["a", "b"]
    assert type(error) is DeadlineError
    assert error.timeout == LONG
    says = f"was given no output within {LONG} seconds of its last, number 2 (gap_timeout): submit"
    assert says in str(error)
    assert stream.finish_reason is FinishReason.ERROR
    gate.open()
    assert await form.rest(form.submit(batcher, "x")) == ["x"]


@pytest.mark.rule(5, 13)
@every_batcher
async def test_what_is_buffered_is_delivered_before_a_gap_is_told_and_the_slot_is_free(form):
    batcher, model, gate = form.held_batcher(2)
    stream = form.submit(batcher, "abc", gap_timeout=LONG)
    await gate.reached.wait()
    knobs.let_deadline_pass(stream)
    outputs, errors = await form.read(stream)
    assert outputs == ["a", "b"]
    assert [type(error) for error in errors] == [DeadlineError]
    gate.open()
    assert await form.rest(form.submit(batcher, "x")) == ["x"]
    assert model.worked_on[3:] == [("x",), ("x",)]


@pytest.mark.rule(29)
@every_batcher
async def test_a_request_that_waits_too_long_for_its_first_output_is_not_sent(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=1)
    first, second = await form.submit_behind(batcher, gate, "a", "b", first_timeout=LONG)
    knobs.expire_in(second, SOON)
    outputs, [error] = await form.read(second)
    assert (outputs, type(error)) == ([], DeadlineError)
    assert "(first_timeout)" in str(error)
    gate.open()
    assert await form.rest(first) == ["a"]
    assert ("b",) not in model.worked_on


@every_batcher
async def test_a_request_that_is_answered_in_time_is_not_touched(form):
    stream = form.submit(form.batcher(), "abc", first_timeout=LONG, gap_timeout=LONG)
    assert await form.rest(stream) == ["a", "b", "c"]
    assert stream.finish_reason is FinishReason.EOS


# ---- measured where the steps are made


def test_each_output_lets_the_time_begin_anew_and_one_that_is_late_ends_its_stream(monkeypatch):
    clock = Clock(monkeypatch)
    with ContinuousBatcher(Timed(clock), max_batch_size=1) as batcher:
        steps = [(1.0, number) for number in range(50)]
        assert answers(batcher.stream(steps, gap_timeout=1.5)) == ([*range(50)], None)
        late = [*steps[:2], (1.0, SKIP), (1.0, SKIP), (0.0, 2)]
        outputs, error = answers(batcher.stream(late, gap_timeout=1.5))
        assert outputs == [0, 1]
        assert "within 1.5 seconds of its last, number 2 (gap_timeout)" in str(error)


@pytest.mark.rule(11, 13)
def test_a_stream_that_is_late_leaves_the_engine_and_the_other_goes_on(monkeypatch):
    clock = Clock(monkeypatch)
    engine = Timed(clock)
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        other = batcher.stream([(1.0, number) for number in range(9)], gap_timeout=5.0)
        late = batcher.stream([(0.0, "a"), *[(0.0, SKIP)] * 9], gap_timeout=2.5)
        assert answers(late)[0] == ["a"]
        assert answers(other) == ([*range(9)], None)
        assert engine.removed == [1, 0]


def test_the_first_output_has_a_time_of_its_own(monkeypatch):
    clock = Clock(monkeypatch)
    with ContinuousBatcher(Timed(clock), max_batch_size=1) as batcher:
        steps = [(8.0, "first"), (1.0, "second"), (8.0, "third")]
        outputs, error = answers(batcher.stream(steps, first_timeout=10.0, gap_timeout=2.0))
        assert outputs == ["first", "second", "third"]  # it came with the step that was late
        assert error is None
        skips = [(8.0, "first"), (1.0, SKIP), (8.0, SKIP), (0.0, "second")]
        assert answers(batcher.stream(skips, first_timeout=10.0, gap_timeout=2.0))[0] == ["first"]
        late = [(8.0, SKIP), (8.0, SKIP), (0.0, "first")]
        outputs, error = answers(batcher.stream(late, first_timeout=10.0, gap_timeout=2.0))
        assert outputs == []
        assert "(first_timeout)" in str(error)
        assert answers(batcher.stream([(8.0, "a"), *[(8.0, SKIP)] * 3], first_timeout=10.0)) == (
            ["a"],
            None,
        )


def test_several_outputs_of_one_step_and_one_that_is_decoded_to_nothing_count(monkeypatch):
    class Held:
        matched, info = None, {}

        def __init__(self):
            self.held = []

        def feed(self, *outputs):
            self.held.extend(outputs)

        def finish(self):
            return self.held

    clock = Clock(monkeypatch)
    options = {"max_batch_size": 1, "decode": lambda _: Held()}
    with ContinuousBatcher(Timed(clock), **options) as batcher:
        steps = [(1.0, "a"), (1.0, Many(["b", "c"])), (1.0, "d")]
        assert answers(batcher.stream(steps, first_timeout=1.5, gap_timeout=1.5)) == (
            [["a", "b", "c", "d"]],
            None,
        )


def test_a_request_that_waits_for_a_batch_fails_by_its_first_deadline_in_virtual_time():
    options = BatcherOptions(
        EndRules(has_requests=True),
        max_batch_size=1,
        max_pending=9,
        max_buffered=9,
        on_overflow="cancel",
    )
    scheduler = Scheduler(options, reuses_workers=True)
    deadlines = Deadlines.checked(9.0, 5.0, 2.0, 1.0)
    request = Request(0, Submission("content"), deadlines, scheduler.ended_requests)
    scheduler.submit(request, 0.0)
    assert request.wait_until == request.deadline == 2.0
    assert request.look_after(0.0) == 1.0  # for a gap, which may begin at any time
    assert not scheduler.reap(1.9).overdue
    assert scheduler.reap(2.0).overdue == [request]
    assert "(first_timeout)" in str(request.end.error)
    assert len(scheduler.queue) == 0


def test_an_output_that_was_given_a_moment_ago_is_not_late():
    deadlines = Deadlines(None, None, 2.0, 3.0)
    request = Request(0, Submission("content"), deadlines, [])
    deadlines.start(0.0)
    request.state = "joined"
    request.pump = SimpleNamespace(given=lambda _: given)
    given = 0
    assert "(first_timeout)" in str(request.deadline_error(2.0))
    given = 1  # and the pump has not moved the deadline yet
    assert request.deadline_error(2.0) is None
    assert request.look_after(2.0) == 3.0
    deadlines.await_next(1, 2.5)
    assert request.deadline == 5.5
    assert request.deadline_error(5.4) is None
    assert "(gap_timeout)" in str(request.deadline_error(5.5))


# ---- a stream that is not read


def test_a_stream_that_its_consumer_leaves_full_is_not_late(monkeypatch):
    clock = Clock(monkeypatch)
    options = {"max_batch_size": 1, "max_buffered": 1, "on_overflow": "wait"}
    with ContinuousBatcher(Timed(clock), **options) as batcher:
        stream = batcher.stream([(1.0, number) for number in range(9)], gap_timeout=2.0)
        for number in range(9):
            while stream.end is None and not knobs.is_paused_for(stream):
                pass
            clock.now += 100.0
            assert next(stream) == number
        assert answers(stream) == ([], None)


def test_the_time_goes_on_when_a_full_stream_is_read_though_another_is_full(monkeypatch):
    clock = Clock(monkeypatch)
    knobs.watch_no_stalls(monkeypatch)  # or the pump would see it in the end
    options = {"max_batch_size": 2, "max_buffered": 1, "on_overflow": "wait"}
    with ContinuousBatcher(Timed(clock), **options) as batcher:
        unread = batcher.stream([(0.0, number) for number in range(9)], gap_timeout=LONG)
        stream = batcher.stream([(0.0, number) for number in range(9)], gap_timeout=0.05)
        while not (knobs.buffered(unread) and knobs.buffered(stream)):
            pass
        while not knobs.is_paused_for(stream):
            pass
        clock.now += 100.0
        assert next(stream) == 0
        while knobs.next_output_deadline(stream) is None:
            pass
        assert knobs.next_output_deadline(stream) == clock.now + 0.05
        clock.now += 1.0
        outputs, error = answers(stream)
        assert outputs == []
        assert "(gap_timeout)" in str(error)
        assert unread.end is None
        unread.cancel()


# ---- of many requests, and of single results


def test_map_fails_by_the_first_reply_that_is_late():
    gate = threading.Event()

    def spell(words):
        yield [word[0] for word in words]
        gate.wait(TIMEOUT)
        yield [word[1] for word in words]

    with DynamicBatcher(spell, max_batch_size=2) as batcher:
        replies = batcher.map(["ab", "cd"], gap_timeout=0.05)
        with pytest.raises(DeadlineError, match="gap_timeout"):
            list(replies)
        gate.set()


def test_a_call_fails_by_the_deadline_of_its_first_output():
    gate = threading.Event()

    def measure(words):
        gate.wait(TIMEOUT)
        return [len(word) for word in words]

    with DynamicBatcher(measure, max_batch_size=2, single=True) as batcher:
        with pytest.raises(DeadlineError, match="first_timeout"):
            batcher.call("ab", first_timeout=0.05, gap_timeout=1.0)
        gate.set()


# ---- arguments


@pytest.mark.parametrize("option", ["first_timeout", "gap_timeout"])
@pytest.mark.parametrize(
    ("value", "error"),
    [("1", TypeError), (True, TypeError), (-1, ValueError), (float("inf"), ValueError)],
)
def test_a_timeout_that_cannot_be_is_refused(option, value, error):
    with DynamicBatcher(lambda _: [], max_batch_size=1) as batcher:
        for submit in (batcher.stream, lambda request, **how: batcher.map([request], **how)):
            with pytest.raises(error, match=option):
                submit("a", **{option: value})
        assert batcher.statistics().opened == 0


def test_a_gap_of_no_time_is_refused():
    with (
        DynamicBatcher(lambda _: [], max_batch_size=1) as batcher,
        pytest.raises(ValueError, match="gap_timeout must be more than 0 seconds"),
    ):
        batcher.stream("a", gap_timeout=0)
