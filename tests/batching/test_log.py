"""The lines of batchers in the log, and none where all is as it should be."""

import logging
import math
import sys
import threading
from functools import partial

import pytest

from batchstream import (
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    Fail,
    Last,
    OverloadedError,
    RequestError,
    SlowConsumerError,
)
from batchstream._batching import clock
from batchstream._batching.reporting import log
from batchstream._log import logger
from support import knobs
from support.engines import Model, Turnstile
from support.scripted import Run
from support.sources import TIMEOUT


class Lines:
    """What is logged."""

    def __init__(self, caplog):
        self._caplog = caplog

    @property
    def records(self):
        return [record for record in self._caplog.records if record.name == "batchstream"]

    def __call__(self, level=logging.INFO):
        """Return level, kind and extra fields of each line from this level on."""
        return [
            (
                record.levelname,
                record.kind,
                {
                    field: getattr(record, field)
                    for field in ("reason", "requests", "request_id")
                    if hasattr(record, field)
                },
            )
            for record in self.records
            if record.levelno >= level
        ]


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.DEBUG, "batchstream")
    return Lines(caplog)


def test_the_lines_of_a_run_that_is_known(lines, monkeypatch):
    Run(monkeypatch)
    assert lines() == [
        (
            "WARNING",
            "refusals_started",
            {"reason": "pending", "request_id": "e"},
        ),
        ("ERROR", "failed", {"reason": "ValueError", "requests": 1, "request_id": "c"}),
        ("WARNING", "engine_discarded", {}),
        ("ERROR", "failed", {"reason": "RuntimeError", "requests": 2, "request_id": "g"}),
        ("INFO", "engine_made", {}),
        ("INFO", "refusals_ended", {"requests": 1}),
        ("WARNING", "closed", {"requests": 2}),
    ]
    assert {record.batcher for record in lines.records} == {"chat"}
    texts = [record.getMessage() for record in lines.records if record.levelno > logging.DEBUG]
    assert texts[0].startswith("chat: requests are refused: 2 requests are waiting, and no more")
    assert texts[3] == "chat: 2 requests were ended by RuntimeError: out of memory"
    assert texts[6].startswith("chat: closed by close() in thread ")
    assert texts[6].endswith(": 2 requests were cut short")
    [_, failure] = [record for record in lines.records if record.kind == "failed"]
    assert isinstance(failure.exc_info[1], RuntimeError)


def test_there_is_no_line_while_requests_end_as_they_should(lines):
    with ContinuousBatcher(Model(), max_batch_size=2) as batcher:
        streams = [batcher.stream("ab") for _ in range(20)]
        streams[3].cancel()
        for stream in streams:
            stream.drain()
            list(stream)
        assert lines(logging.DEBUG) == []
    assert lines() == [("INFO", "closed", {"requests": 0})]


def test_a_drain_has_a_line_as_it_begins_and_one_as_the_batcher_is_closed(lines):
    batcher = ContinuousBatcher(Model(), max_batch_size=2, name="chat")
    batcher.close(drain=60)
    assert lines() == [("INFO", "draining", {"requests": 0}), ("INFO", "closed", {"requests": 0})]
    first = lines.records[0].getMessage()
    assert first.startswith("chat: draining, as asked for by close(drain=60) in thread ")
    assert first.endswith(": all requests have ended")


def test_the_line_of_a_close_says_how_long_the_drain_before_it_took(lines, monkeypatch):
    now = [100.0]
    knobs.set_clock(monkeypatch, lambda: now[0])
    monkeypatch.setattr(clock, "time_of_day", lambda: "12:34:56")
    gate = Turnstile()
    has_line, on_line = threading.Event(), logging.Handler()
    monkeypatch.setattr(on_line, "emit", lambda _: has_line.set())
    monkeypatch.setattr(logger, "handlers", [on_line])
    model = Model(gates=dict.fromkeys(range(1000), gate))
    batcher = ContinuousBatcher(model, max_batch_size=2, name="chat")
    stream = batcher.stream("a")
    gate.wait_until(lambda: gate.holds)
    closer = threading.Thread(target=partial(batcher.close, drain=math.inf), name="closer")
    closer.start()
    assert has_line.wait(TIMEOUT)  # of the drain
    now[0] += 6.21
    gate.open()
    assert list(stream) == ["a"]
    closer.join()
    asked = "as asked for by close(drain=inf) in thread 'closer' at 12:34:56"
    assert [record.getMessage() for record in lines.records] == [
        f"chat: draining, {asked}: 1 request has not ended, and may go on to the end",
        f"chat: closed after 6.2 s of draining, {asked}",
    ]


@pytest.mark.parametrize("drain", [None, 60])
def test_refusals_that_go_on_to_the_close_have_their_last_line_before_it(lines, drain):
    gate = Turnstile()
    model = Model(gates=dict.fromkeys(range(1000), gate))
    batcher = DynamicBatcher(model.generate, max_batch_size=1, max_pending=1, name="chat")
    streams = [batcher.stream("a")]
    gate.wait_until(lambda: gate.holds)
    streams.append(batcher.stream("b"))
    for _ in range(2):
        with pytest.raises(OverloadedError):
            batcher.stream("c")
    for stream in streams:
        stream.cancel()
    gate.open()
    batcher.close(drain=drain)
    kinds = ["refusals_started", "refusals_ended", *(["draining"] if drain else []), "closed"]
    assert [kind for _, kind, _ in lines()] == kinds
    over = "chat: the overload is over, as no more requests are accepted: 2 requests were refused "
    assert lines.records[1].getMessage().startswith(over)


@pytest.mark.parametrize(
    ("seconds", "unfinished", "text"),
    [
        (60.0, 0, "all requests have ended"),
        (60.0, 1, "1 request has not ended, and may go on for 60 s at most"),
        (0.5, 1200, "1,200 requests have not ended, and may go on for 0.5 s at most"),
        (math.inf, 2, "2 requests have not ended, and may go on to the end"),
    ],
)
def test_the_line_of_a_drain_says_how_many_requests_may_go_on(lines, seconds, unfinished, text):
    log.BatcherLog("chat").drains(" by a test", seconds, unfinished, 0.0, 0)
    [record] = lines.records
    assert record.getMessage() == f"chat: draining, as asked for by a test: {text}"


def test_refusals_have_a_line_as_they_begin_and_one_when_they_have_been_over_for_a_while(
    lines, monkeypatch
):
    now = [100.0]
    knobs.set_clock(monkeypatch, lambda: now[0])
    gate = Turnstile()
    model = Model(gates=dict.fromkeys(range(1000), gate))
    with DynamicBatcher(model.generate, max_batch_size=1, max_pending=1, name="chat") as batcher:
        streams = [batcher.stream("a")]
        gate.wait_until(lambda: gate.holds)
        streams.append(batcher.stream("b"))
        for _ in range(5):
            now[0] += 1
            with pytest.raises(OverloadedError):
                batcher.stream("c", request_id="refused")
        gate.open()
        for stream in streams:
            list(stream)
        now[0] += log.QUIET_SECONDS / 2
        assert list(batcher.stream("d")) == ["d"]  # too soon to say that it is over
        started = ("WARNING", "refusals_started", {"reason": "pending", "request_id": "refused"})
        assert lines() == [started]
        now[0] += log.QUIET_SECONDS / 2
        assert list(batcher.stream("e")) == list(batcher.stream("e")) == ["e"]
        assert lines() == [started, ("INFO", "refusals_ended", {"requests": 5})]
    [_, over, _] = [record.getMessage() for record in lines.records]
    assert over == ("chat: requests are accepted again: 5 requests were refused within 4 s")


def test_what_is_the_clients_fault_is_told_at_debug_level(lines):
    def serve(requests):
        yield [Fail(RequestError("too long")) if it == "long" else Last(it) for it in requests]

    with DynamicBatcher(serve, max_batch_size=1) as batcher:
        with pytest.raises(RequestError):
            list(batcher.stream("long"))
        batcher.close()
        assert [line for line in lines(logging.DEBUG) if line[1] == "request_error"] == [
            (
                "DEBUG",
                "request_error",
                {"reason": "RequestError", "requests": 1, "request_id": "0"},
            )
        ]


def test_a_stream_that_is_not_read_and_one_that_is_overdue_have_a_line(lines):
    gate = Turnstile()
    model = Model(gates=dict.fromkeys(range(1, 1000), gate))
    with ContinuousBatcher(model, max_batch_size=2, max_buffered=2) as batcher:
        slow = batcher.stream("abcdef", request_id="slow")
        late = batcher.stream("abcdef", timeout=3600.0, request_id="late")
        gate.wait_until(lambda: gate.holds)
        knobs.let_deadline_pass(late)
        with pytest.raises(DeadlineError):
            list(late)
        gate.open()
        with pytest.raises(SlowConsumerError):
            list(slow)
    found = {(level, kind, extra.get("request_id")) for level, kind, extra in lines()}
    assert found >= {("WARNING", "overdue", "late"), ("WARNING", "slow", "slow")}


def failing():
    """Return a batcher whose first step raises."""
    return DynamicBatcher(Model(raises={0: ValueError("no")}).generate, max_batch_size=1)


@pytest.mark.rule(24)
def test_a_handler_that_raises_fails_no_request_and_is_called_without_the_lock(monkeypatch):
    reported, figures = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: reported.append(event.exc_value))

    class Broken(logging.Handler):
        def handle(self, record):
            assert not knobs.lock_of(batcher)._is_owned()
            figures.append(batcher.statistics())
            raise OSError("disk is full")

    logger = logging.getLogger("batchstream")
    handler = Broken()
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.INFO)  # so that the close has a line as well
    logger.manager._clear_cache()
    try:
        batcher = failing()
        with batcher, pytest.raises(ValueError, match="no"):
            list(batcher.stream("a"))
        with pytest.raises(ClosedError):
            batcher.stream("b")
    finally:
        logger.removeHandler(handler)
        logger.manager._clear_cache()
    assert [type(error) for error in reported] == [OSError] * len(figures)
    assert figures


def test_extra_fields_do_not_get_in_the_way_of_the_fields_of_the_log():
    """A formatter for JSON or structlog takes every other attribute of a record for a field."""
    own = set(vars(logging.makeLogRecord({}))) | {
        "message",
        "asctime",
        "event",
        "timestamp",
        "level",
    }
    assert own.isdisjoint({"batcher", "kind", "reason", "requests", "request_id"})


def test_a_program_that_sets_up_no_logging_sees_no_line(capfd):
    batcher = failing()
    with batcher, pytest.raises(ValueError, match="no"):
        list(batcher.stream("a"))
    assert any(isinstance(it, logging.NullHandler) for it in logger.handlers)
    assert capfd.readouterr().err == ""
