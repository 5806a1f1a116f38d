"""Signals and interrupts in the midst of a submission."""

from __future__ import annotations

import gc
import linecache
import signal
import sys

import pytest

from batchstream import ClosedError, DynamicBatcher
from support import knobs
from support.engines import echo
from support.sources import TIMEOUT

SUBMITTING = knobs.files_of_submission()


def interrupted_submission(batcher, line):
    """Submit, with an interrupt before the so-manyth line of the batcher; return that line."""
    where = None
    left = line

    def trace(frame, event, _):
        nonlocal left, where
        code = frame.f_code
        if code.co_filename not in SUBMITTING:
            return None
        text = linecache.getline(code.co_filename, frame.f_lineno)
        # A signal strikes between instructions that a trace function does not distinguish: neither
        # as a lock is taken or given back, nor at a `try` that does nothing.
        if event == "line" and "with self._lock" not in text and text.strip() != "try:":
            left -= 1
            if not left:
                where = f"{code.co_name}:{frame.f_lineno} {text.strip()}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    tracer = sys.gettrace()
    gc.disable()  # what is collected meanwhile is none of the batcher's
    sys.settrace(trace)
    try:
        stream = batcher.stream("interrupted")  # noqa: F841 - its finalizer is not to be interrupted
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracer)
        gc.enable()
    return where


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
        def submitted(self):
            raise KeyboardInterrupt

        def __getattr__(self, _):
            return lambda *_, **__: None

    with DynamicBatcher(echo, max_batch_size=4, metrics=Interrupted()) as batcher:
        with pytest.raises(KeyboardInterrupt):
            batcher.stream("a")
        assert batcher.statistics().live == 0
