"""Signals and interrupts in the midst of submitting, of closing and of forming a batch."""

from __future__ import annotations

import asyncio
import signal
from functools import partial

import pytest

from batchstream import ClosedError, ContinuousBatcher, DynamicBatcher, SourceError
from support import interrupts, knobs
from support.engines import ManualClock, Model, Recorder, echo
from support.sources import TIMEOUT, Gate

at_line = partial(interrupts.at_line, files=knobs.files_of_submission())


def interrupted_submission(batcher, line):
    """Submit, with an interrupt before the so-manyth line of the batcher; return that line."""
    return at_line(line, lambda: batcher.stream("interrupted"))


@pytest.mark.rule(9)
@pytest.mark.parametrize("warm", [False, True])
def test_an_interrupt_anywhere_in_stream_leaves_the_batcher_in_order(warm):
    lines = 0
    while True:
        batcher = DynamicBatcher(echo, max_batch_size=4, max_pending=8)
        if warm:
            assert list(batcher.stream("before")) == ["before"]
        lines += 1
        where = interrupted_submission(batcher, lines)
        if where is not None:
            assert batcher.stream("next").receive(timeout=TIMEOUT) == "next", where
        batcher.close()
        figures = batcher.statistics()
        assert (figures.live, figures.waiting) == (0, 0), where
        if where is None:
            break
    assert lines > 60


@pytest.mark.rule(9, 25)
@pytest.mark.parametrize("submit", ["stream", "astream"])
def test_an_interrupt_anywhere_in_submitting_leaves_no_request_without_a_stream(
    monkeypatch, submit
):
    """The request waits for others, and would do so for an hour."""
    files = knobs.files_of_submission() | knobs.files_of_streams()
    lines = 0
    while True:
        lines += 1
        ManualClock.install(monkeypatch)
        batcher = DynamicBatcher(echo, max_batch_size=2, batch_timeout=3600.0)
        where = at_line(lines, partial(getattr(batcher, submit), "struck"), files=files)
        figures = batcher.statistics()
        assert (figures.live, figures.waiting) == (0, 0), where
        batcher.close()
        if where is None:
            break
    assert lines > 60


@pytest.mark.rule(9)
def test_closing_in_a_signal_handler_that_interrupts_stream_forgets_no_request(monkeypatch):
    batcher = DynamicBatcher(echo, max_batch_size=4)
    list(batcher.stream("before"))
    before = signal.signal(signal.SIGUSR1, lambda *_: batcher.close())
    knobs.before_arrival(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1))
    try:
        with pytest.raises(ClosedError):
            batcher.stream("interrupted").receive(timeout=TIMEOUT)
    finally:
        signal.signal(signal.SIGUSR1, before)
    monkeypatch.undo()
    batcher.close()


@pytest.mark.rule(14)
def test_an_interrupt_in_metrics_reaches_the_caller():
    class Interrupted:
        def submitted(self, **_):
            raise KeyboardInterrupt

        def __getattr__(self, _):
            return lambda *_, **__: None

    with DynamicBatcher(echo, max_batch_size=4, metrics=Interrupted()) as batcher:
        with pytest.raises(KeyboardInterrupt):
            batcher.stream("a")
        assert batcher.statistics().live == 0


@pytest.mark.rule(29)
def test_an_interrupt_where_a_worker_is_woken_does_not_keep_the_next_batch_waiting(monkeypatch):
    """The worker waits for others; the interrupted request would have filled its batch."""
    lines = 0
    while True:
        lines += 1
        clock = ManualClock.install(monkeypatch)
        batcher = DynamicBatcher(echo, max_batch_size=2, batch_timeout=3600.0)
        first = batcher.stream("first")
        clock.wait_for_sleeper()
        where = at_line(lines, partial(batcher.stream, "struck"), within=knobs.CODE_OF_WAKING)
        if where is None:
            batcher.close()
            break
        last = batcher.stream("last")
        assert not clock.holds, where
        assert first.receive(timeout=TIMEOUT) == "first", where
        assert last.receive(timeout=TIMEOUT) == "last", where
        batcher.close()
    assert lines > 5


def batcher_at_work(monkeypatch):
    """Return a batcher with requests of all kinds, their streams, and a model that is held."""
    gate = Gate()
    model = Model(on_step=lambda number: number or gate.pass_through())
    clock = ManualClock.install(monkeypatch)
    batcher = DynamicBatcher(
        model.generate, max_batch_size=1, key=lambda request: request[0], metrics=Recorder()
    )
    streams = [batcher.stream("abc")]
    assert gate.reached.wait(TIMEOUT)
    streams += [batcher.stream("d"), batcher.stream("ef", timeout=1.0), batcher.stream("g")]
    streams[-1].cancel()
    clock.move(2.0)  # of the deadline
    return batcher, streams, model, gate


def assert_all_have_ended(batcher, streams, where):
    knobs.assert_nothing_is_left(batcher)
    figures = batcher.statistics()
    assert (figures.live, figures.waiting) == (0, 0), where
    assert all(stream.end is not None for stream in streams), where


@pytest.mark.rule(9)
def test_after_an_interrupt_anywhere_in_closing_another_close_forgets_no_request(monkeypatch):
    lines = 0
    while True:
        lines += 1
        batcher, streams, model, gate = batcher_at_work(monkeypatch)
        where = at_line(lines, knobs.dispatcher_of(batcher).request_close)
        gate.opened.set()
        batcher.close()
        assert_all_have_ended(batcher, streams, where)
        assert batcher.statistics().opened == 4, where
        with pytest.raises(ClosedError):
            list(streams[1])
        model.check()
        if where is None:
            break
    assert lines > 60


@pytest.mark.rule(9)
def test_a_signal_handler_may_close_anywhere_in_reaping(monkeypatch):
    lines = 0
    while True:
        lines += 1
        batcher, streams, model, gate = batcher_at_work(monkeypatch)

        def submit(batcher=batcher):
            try:
                batcher.stream("late")
            except ClosedError:
                pass

        try:
            where = at_line(lines, submit, batcher.close, within=knobs.CODE_OF_REAPING)
        finally:
            gate.opened.set()
        batcher.close()
        assert_all_have_ended(batcher, streams, where)
        model.check()
        if where is None:
            break
    assert lines > 15


class InterruptedOnce(Recorder):
    """Metrics that raise an interrupt in the first event of a kind."""

    def __init__(self, event):
        super().__init__()
        self._left = [event]

    def joined(self, waited, **_):
        super().joined(waited)
        self._interrupt("joined")

    def finished(self, end, *, joined, lasted, **_):
        super().finished(end, joined=joined, lasted=lasted)
        self._interrupt("finished")

    def _interrupt(self, event):
        if event in self._left:
            self._left.remove(event)
            raise KeyboardInterrupt


async def echo_in_task(requests):
    yield list(requests)


@pytest.mark.rule(9, 14)
@pytest.mark.parametrize("event", ["joined", "finished"])
def test_an_interrupt_as_a_worker_takes_a_batch_in_a_loop_fails_that_batch_alone(event):
    batcher = DynamicBatcher(echo_in_task, max_batch_size=1, metrics=InterruptedOnce(event))
    ends = []

    async def read(*requests):
        streams = [batcher.astream(request) for request in requests]
        if event == "finished":
            streams.pop().cancel()  # counted where the others join
        for stream in streams:
            try:
                async with asyncio.timeout(TIMEOUT):
                    ends.append([output async for output in stream])
            except SourceError as error:  # in place of an interrupt
                ends.append(type(error.__cause__))

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(read("a", "b", "c"))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        loop.run_until_complete(task)
        assert ends[:2] == [KeyboardInterrupt, ["b"]]
        loop.run_until_complete(batcher.aclose())
    knobs.assert_nothing_is_left(batcher)
    figures = batcher.statistics()
    assert (figures.opened, figures.live) == (3, 0)


@pytest.mark.rule(9)
def test_an_error_as_a_request_joins_a_running_batch_leaves_no_request_behind(monkeypatch):
    """Out of memory, perhaps, in the worker's thread."""
    gate = Gate()
    model = Model(on_step=lambda number: number or gate.pass_through())
    with ContinuousBatcher(model, max_batch_size=2) as batcher:
        first = batcher.stream("abc")
        assert gate.reached.wait(TIMEOUT)
        knobs.fail_as_requests_join(monkeypatch, batcher, MemoryError())
        second = batcher.stream("de")
        gate.opened.set()
        for stream in (first, second):
            with pytest.raises(MemoryError):
                list(iter(partial(stream.receive, timeout=TIMEOUT), "no output"))
        assert list(batcher.stream("fg")) == ["f", "g"]
    knobs.assert_nothing_is_left(batcher)
    model.check()


def interrupted_decision(line):
    """Let two requests be taken for a batch in a loop, with an interrupt before that line.

    Returns:
        The batcher, which is closed, the streams, and where the interrupt was.
    """
    batcher = DynamicBatcher(echo_in_task, max_batch_size=2)
    where, errors = None, []

    def decide(call):
        nonlocal where
        decisions = []
        where = at_line(line, lambda: decisions.append(call()))
        if not decisions:
            raise KeyboardInterrupt
        return decisions[0]

    async def submit():
        streams = [batcher.astream(request) for request in "ab"]
        for _ in range(5):
            await asyncio.sleep(0)
        return streams

    knobs.around_first_decision(batcher, decide)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        task = loop.create_task(submit())
        while not task.done():
            try:
                loop.run_until_complete(task)
            except KeyboardInterrupt:
                pass
        loop.run_until_complete(batcher.aclose())
    assert errors == [], where
    return batcher, task.result(), where


@pytest.mark.rule(9)
def test_an_interrupt_anywhere_as_a_worker_takes_a_batch_in_a_loop_forgets_no_request():
    lines = 0
    while True:
        lines += 1
        batcher, streams, where = interrupted_decision(lines)
        assert all(stream.end is not None for stream in streams), where
        figures = batcher.statistics()
        assert (figures.live, figures.waiting) == (0, 0), where
        if where is None:
            break
    assert lines > 60
