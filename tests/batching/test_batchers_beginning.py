"""Requests that end after their batch was formed, and before its first step."""

from __future__ import annotations

import threading

import pytest

from batchstream import ClosedError, DeadlineError, FinishReason
from support import knobs
from support.engines import Recorder, dynamic_batchers
from support.sources import TIMEOUT


class Once:
    """Calls a function with the first request's stream, the first time it is itself called."""

    def __init__(self, function):
        self._function = function
        self._stream = None
        self._submitted = threading.Event()

    def submitted(self, stream):
        self._stream = stream
        self._submitted.set()

    def __call__(self):
        if self._function is not None:
            assert self._submitted.wait(TIMEOUT), "no request was submitted"
            function, self._function = self._function, None
            function(self._stream)


async def check_served(form, batcher, iterators):
    """The next request is answered by the same worker, and each source is closed once."""
    threads = list(knobs.worker_threads_of(batcher)) if not form.source_is_async else []
    assert await form.rest(form.submit(batcher, "xy")) == ["x", "y"]
    if not form.source_is_async:
        assert knobs.worker_threads_of(batcher) == threads
        assert len(threads) == 1
        assert threads[0].is_alive()
    await form.close(batcher)
    assert [iterator.closings for iterator in iterators] == [1] * len(iterators)
    knobs.assert_nothing_is_left(batcher)


@pytest.mark.rule(9, 10, 29)
@dynamic_batchers
async def test_a_request_that_is_cancelled_as_its_batch_begins_leaves_the_worker(form, monkeypatch):
    once = Once(lambda stream: stream.cancel())
    iterators = knobs.as_batch_begins(monkeypatch, once)
    batcher = form.batcher()
    stream = form.submit(batcher, "abc")
    once.submitted(stream)
    assert await form.rest(stream) == []
    await check_served(form, batcher, iterators)
    assert len(iterators) == 2


@pytest.mark.rule(9, 10, 29)
@dynamic_batchers
async def test_a_deadline_that_passes_as_a_batch_begins_leaves_the_worker(form, monkeypatch):
    once = Once(knobs.let_deadline_pass)
    iterators = knobs.as_batch_begins(monkeypatch, once)
    batcher = form.batcher()
    stream = form.submit(batcher, "abc", timeout=3600.0)
    once.submitted(stream)
    outputs, [error] = await form.read(stream)
    assert (outputs, type(error)) == ([], DeadlineError)
    await check_served(form, batcher, iterators)
    assert len(iterators) == 2


@pytest.mark.rule(9, 10, 29)
@dynamic_batchers
async def test_a_request_that_metrics_cancel_as_it_joins_leaves_the_worker(form, monkeypatch):
    once = Once(lambda stream: stream.cancel())

    class Cancelling(Recorder):
        def joined(self, waited, **_):
            super().joined(waited)
            once()

    recorder = Cancelling()
    iterators = knobs.as_batch_begins(monkeypatch, lambda: None)
    batcher = form.batcher(metrics=recorder)
    stream = form.submit(batcher, "abc")
    once.submitted(stream)
    assert await form.rest(stream) == []
    await check_served(form, batcher, iterators)
    reasons = [end.reason for end, _, _ in recorder.named("finished")]
    assert reasons == [FinishReason.CANCELLED, FinishReason.EOS]


@pytest.mark.rule(9, 10)
@dynamic_batchers
async def test_a_batcher_that_is_closed_as_a_batch_begins_ends(form, monkeypatch):
    once = Once(lambda _: batcher.close())
    iterators = knobs.as_batch_begins(monkeypatch, once)
    batcher = form.batcher()
    stream = form.submit(batcher, "abc")
    once.submitted(stream)
    outputs, [error] = await form.read(stream)
    assert (outputs, type(error)) == ([], ClosedError)
    await form.close(batcher)
    assert [iterator.closings for iterator in iterators] == [1]
    knobs.assert_nothing_is_left(batcher)


@pytest.mark.rule(11)
@dynamic_batchers
async def test_of_two_requests_one_may_end_as_their_batch_begins(form, monkeypatch):
    once = Once(lambda stream: stream.cancel())
    iterators = knobs.as_batch_begins(monkeypatch, once)
    batcher = form.batcher(max_batch_size=2, batch_timeout=3600.0)
    first, second = form.submit(batcher, "abc"), form.submit(batcher, "de")
    once.submitted(first)
    assert await form.rest(first) == []
    assert await form.rest(second) == ["d", "e"]
    await form.close(batcher)
    assert [iterator.closings for iterator in iterators] == [1]
