"""A pump that waits for streams that are not read, while others are waited for, says so once."""

from __future__ import annotations

import logging
from functools import partial

import pytest

from batchstream import AsyncBatchedStream, BatchedStream
from batchstream._handoff.buffer import Buffer
from batchstream._pumps.stall import StallWatch
from support import knobs
from support.engines import every_batcher
from support.forms import OVER, InLoop, forms_that_run_ahead

pytestmark = pytest.mark.rule(32)


class Log(logging.Handler):
    """Keeps what the library logs, and sets a flag at the first record."""

    def __init__(self, flag=None):
        super().__init__()
        self.lines = []
        self.warned = flag

    def emit(self, record):
        assert record.levelno == logging.WARNING
        self.lines.append(record.getMessage())
        if self.warned is not None:
            self.warned.set()


@pytest.fixture
def logged():
    """Return what takes what is logged from now on."""
    logger = logging.getLogger("batchstream")
    handlers = []

    def log(flag=None):
        handlers.append(Log(flag))
        logger.addHandler(handlers[-1])
        return handlers[-1]

    yield log
    for handler in handlers:
        logger.removeHandler(handler)


# ---- when it warns, by a clock that stands still


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    time = Time()
    knobs.set_clock(monkeypatch, time)
    return time


def buffers(*counts):
    made = [Buffer(slot) for slot in range(len(counts))]
    for buffer, count in zip(made, counts, strict=True):
        for _ in range(count):
            buffer.outputs.append("output")
    return made


def test_a_pump_warns_after_five_seconds_and_once(time, logged):
    log = logged()
    empty, full = buffers(0, 7)
    watch = StallWatch("collect()")
    watch.begin([full])
    assert watch.time_left() == 5.0
    time.now += 4.5
    watch.look([full], lambda: [empty])
    assert log.lines == []
    assert watch.time_left() == 0.5
    time.now += 0.5
    watch.look([full], lambda: [empty])
    [line] = log.lines
    assert line.startswith("stream 1 holds 7 unread outputs: no consumer reads it, ")
    assert "waited for room for 5 seconds, while a consumer waits for stream 0" in line
    for way_out in (
        "stream 0: read the streams at the same time",
        "take all outputs with collect()",
        "on_overflow='cancel'",
    ):
        assert way_out in line
    time.now += 50.0
    watch.begin([full])
    watch.look([full], lambda: [empty])
    assert len(log.lines) == 1
    assert watch.time_left() is None


def test_a_stream_that_was_read_meanwhile_is_not_named_and_its_time_begins_anew(time, logged):
    log = logged()
    empty, read, unread = buffers(0, 2, 3)
    watch = StallWatch("collect()")
    watch.begin([read, unread])
    time.now += 4.0
    watch.look([unread], lambda: [empty])
    watch.begin([read, unread])
    time.now += 1.0
    watch.look([read], lambda: [empty])
    assert log.lines == []
    watch.begin([read, unread])
    watch.over()
    watch.begin([read])
    time.now += 4.0
    watch.look([read], lambda: [empty])
    assert log.lines == []


def test_without_a_stream_that_is_waited_for_there_is_no_stall_until_one_is(time, logged):
    log = logged()
    empty, full = buffers(0, 2)
    watch = StallWatch("collect()")
    watch.begin([full])
    time.now += 60.0
    watch.look([full], list)
    assert log.lines == []
    assert watch.time_left() == 5.0
    watch.look([full], lambda: [empty])
    assert len(log.lines) == 1
    assert "60 seconds" in log.lines[0]


def test_a_warning_names_three_streams_and_counts_the_others(time, logged):
    log = logged()
    empty, *full = buffers(0, 1, 2, 3, 4, 5)
    watch = StallWatch("collect()")
    watch.begin(full)
    time.now += 5.0
    watch.look(full, lambda: [empty])
    assert "stream 1 holds 1 unread outputs, stream 2 holds" in log.lines[0]
    assert "stream 3 holds 3 unread outputs and 2 more: no consumer reads them" in log.lines[0]


def test_a_filter_that_raises_fails_no_batch(time, logged, unheard):
    def refuse(_):
        raise OSError("no log")

    log = logged()
    empty, full = buffers(0, 2)
    watch = StallWatch("collect()")
    watch.begin([full])
    time.now += 5.0
    logger = logging.getLogger("batchstream")
    logger.addFilter(refuse)
    try:
        watch.look([full], lambda: [empty])
    finally:
        logger.removeFilter(refuse)
    assert log.lines == []
    assert [type(error) for error in unheard] == [OSError]


# ---- in every form that runs ahead


STEPS = [[n, -n] for n in range(10)]


@forms_that_run_ahead
async def test_streams_that_are_read_one_after_another_are_named(form, monkeypatch, logged):
    knobs.set_stall(monkeypatch, 0.0)
    log = logged(form.flag())
    first, second = batch = form.open(form.script(STEPS), 2, max_buffered=3)

    async def look():
        await log.warned.wait()
        assert batch.statistics().waiting_for == (1,)
        assert "the source waits for slots 1>" in repr(batch)
        assert repr(second).endswith("live, 3 buffered, the source waits for it>")
        assert not repr(first).endswith("the source waits for it>")
        return await form.rest(second)

    received, others = await form.concurrently(partial(form.rest, first), look)
    assert received == [n for n, _ in STEPS]
    assert others == [n for _, n in STEPS]
    [line] = log.lines
    assert line.startswith("stream 1 holds 3 unread outputs: no consumer reads it")
    assert "a consumer waits for stream 0" in line
    assert batch.statistics().waiting_for == ()


@forms_that_run_ahead
async def test_a_source_that_is_slow_does_not_warn(form, monkeypatch, logged):
    knobs.set_stall(monkeypatch, 0.0)
    log, gate = logged(), form.gate()
    first, _ = form.open(form.script(STEPS[:2], gates={1: gate}), 2, max_buffered=3)
    assert await form.receive(first) == 0

    async def release():
        await gate.reached.wait()
        await form.all_wait()
        gate.open()

    await form.concurrently(partial(form.receive, first), release)
    assert await form.receive(first) is OVER
    assert log.lines == []


@every_batcher
async def test_a_batcher_whose_batch_waits_for_a_stream_names_the_request(
    form, monkeypatch, logged
):
    knobs.set_stall(monkeypatch, 0.0)
    log = logged(form.flag())
    options = {"max_buffered": 2, "on_overflow": "wait"}
    first, second = await form.submit_together(options, {}, "abcdef", "uvwxyz")

    async def look():
        await log.warned.wait()
        assert repr(second).endswith("live, 2 buffered, the source waits for it>")
        return await form.rest(second)

    received = await form.concurrently(partial(form.rest, first), look)
    assert ["".join(outputs) for outputs in received] == ["abcdef", "uvwxyz"]
    assert log.lines[0].startswith("request 1 holds 2 unread outputs: no consumer reads it")
    assert "or take all outputs with map() or amap()" in log.lines[0]


@every_batcher
async def test_a_request_that_waits_for_a_batch_behind_an_unread_stream_is_waited_for(
    form, monkeypatch, logged
):
    knobs.set_stall(monkeypatch, 0.0)
    log = logged(form.flag())
    batcher = form.batcher(max_batch_size=1, max_buffered=2, on_overflow="wait")
    first = form.submit(batcher, "abcdef")
    second = form.submit(batcher, "xyz")

    async def look():
        await log.warned.wait()
        return await form.rest(first)

    received = await form.concurrently(look, partial(form.rest, second))
    assert ["".join(outputs) for outputs in received] == ["abcdef", "xyz"]
    assert "request 0 holds 2 unread outputs" in log.lines[0]
    assert "a consumer waits for request 1" in log.lines[0]


@every_batcher
async def test_a_map_that_waits_behind_an_unread_stream_is_waited_for(form, monkeypatch, logged):
    knobs.set_stall(monkeypatch, 0.0)
    log = logged(form.flag())
    batcher = form.batcher(max_batch_size=1, max_buffered=2, on_overflow="wait")
    stream = form.submit(batcher, "abcdef")
    replies = batcher.amap(["xyz"]) if isinstance(form, InLoop) else batcher.map(["xyz"])

    async def look():
        await log.warned.wait()
        return await form.rest(stream)

    others, received = await form.concurrently(look, partial(form.rest, replies))
    assert (others, received) == (list("abcdef"), [list("xyz")])
    assert "a consumer waits for request 1" in log.lines[0]


@every_batcher
async def test_a_map_that_shares_a_batch_with_an_unread_stream_is_waited_for(
    form, monkeypatch, logged
):
    knobs.set_stall(monkeypatch, 0.0)
    log = logged(form.flag())
    options = {} if form.continuous else {"batch_timeout": 3600.0}  # it never passes
    batcher = form.batcher(max_batch_size=2, max_buffered=2, on_overflow="wait", **options)
    stream = form.submit(batcher, "abcdef")
    replies = batcher.amap(["uvwxyz"]) if isinstance(form, InLoop) else batcher.map(["uvwxyz"])

    async def look():
        await log.warned.wait()
        return await form.rest(stream)

    others, received = await form.concurrently(look, partial(form.rest, replies))
    assert (others, received) == (list("abcdef"), [list("uvwxyz")])
    assert log.lines[0].startswith("request 0 holds 2 unread outputs")
    assert "a consumer waits for request 1" in log.lines[0]


def test_a_batch_that_is_not_held_up_waits_for_nothing():
    with BatchedStream(STEPS, max_buffered=3) as batch:
        next(batch[0])
        assert batch.statistics().waiting_for == ()
        assert repr(batch) == "<BatchedStream, 2 of 2 streams live, 1 step, 1 buffered>"
    assert AsyncBatchedStream(STEPS, 2).statistics().waiting_for == ()
