"""What goes wrong in other libraries that batch requests, and does not here; each by its rule."""

from __future__ import annotations

import asyncio
import threading
import traceback
from functools import partial

import numpy as np
import pytest

from batchstream import DynamicBatcher, Fail, FinishReason, SourceError, StepError
from support import knobs
from support.engines import (
    ManualClock,
    Model,
    batchers_in_loops,
    continuous_batchers,
    dynamic_batchers,
    every_batcher,
)
from support.sources import TIMEOUT, OfUnhashableType, Untouchable
from support.strategies import same

# ---- LitServe


@pytest.mark.rule(7)
@every_batcher
async def test_a_none_ends_a_request_at_once_and_cleanly(form):
    """LitServe: `None` for a finished request cuts its connection; `""` keeps it to the end."""
    gate = form.gate()
    short, long = await form.submit_together({}, {"gates": {3: gate}, "eos": None}, "a", "pqrstu")
    await gate.reached.wait()
    assert short.finish_reason is FinishReason.EOS
    assert await form.rest(short) == ["a"]
    gate.open()
    assert await form.rest(long) == list("pqrstu")


@pytest.mark.rule(8)
@dynamic_batchers
@pytest.mark.parametrize("step", [["a"], ["a", "b", "c"], []])
async def test_a_step_of_another_width_reaches_no_consumer_as_an_output(form, step):
    """LitServe: a short step is paired by `zip`; a client gets another client's output."""

    def fn(requests):
        yield [f"for {request}" for request in requests]
        yield step

    async def afn(requests):
        for each in fn(requests):
            yield each

    batcher = form.batcher(
        afn if form.source_is_async else fn, max_batch_size=2, batch_timeout=3600.0
    )
    streams = [form.submit(batcher, request) for request in "xy"]
    results = await form.concurrently(*(partial(form.read, stream) for stream in streams))
    for request, (outputs, [error]) in zip("xy", results, strict=True):
        assert outputs == [f"for {request}"]
        assert type(error) is StepError


@pytest.mark.rule(5, 9)
@every_batcher
async def test_an_error_in_mid_stream_differs_from_an_end(form):
    """LitServe: an exception in mid-stream is status 200 and a body that ends early."""
    batcher = form.batcher(form.model(raises={2: ValueError("the model broke")}))
    stream = form.submit(batcher, "abcdef")
    outputs, errors = await form.read(stream)
    assert outputs == ["a", "b"]
    assert [str(error) for error in errors] == ["the model broke"]
    assert stream.finish_reason is FinishReason.ERROR


@pytest.mark.rule(15)
@every_batcher
async def test_one_bad_request_does_not_fail_the_others_of_its_batch(form):
    """LitServe: one HTTPException(400) is a 400 for all; mixedbread: fails the batch."""
    bad = [Fail(ValueError("bad request"))]
    streams = await form.submit_together({}, {}, "abc", bad, "de")
    (_, [error]), *others = [await form.read(stream) for stream in (streams[1], *streams[::2])]
    assert str(error) == "bad request"
    assert others == [(list("abc"), []), (["d", "e"], [])]


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.lock = threading.Lock()

    def __reduce__(self):
        raise TypeError("this error cannot be pickled")


@pytest.mark.rule(16, 18)
@every_batcher
async def test_an_error_that_cannot_be_pickled_or_copied_kills_no_worker(form):
    """LitServe: an unpicklable exception ends the worker, and the server with it."""
    batcher = form.batcher(form.model(raises={0: Unpicklable(1, 2)}))
    for request in ("abc", "de"):
        outputs, errors = await form.read(form.submit(batcher, request))
        if request == "abc":
            assert isinstance(errors[0], Unpicklable | SourceError)
            assert isinstance(errors[0].__cause__, Unpicklable)
        else:
            assert outputs == ["d", "e"]


@pytest.mark.rule(13)
@every_batcher
async def test_when_all_clients_have_gone_at_most_one_more_step_is_made(form):
    """LitServe: all 50 steps still run. Ray Serve: 63 of 200 became 200, never closed."""
    gate, recorder = form.gate(), form.recorder()
    streams = await form.submit_together(
        {"metrics": recorder}, {"gates": {3: gate}}, "a" * 50, "b" * 50
    )
    await gate.reached.wait()
    for stream in streams:
        stream.cancel()
    gate.open()
    await form.close(form.last_batcher)
    assert form.last_model.steps == 4


@pytest.mark.rule(29)
def test_an_idle_batcher_searches_for_no_request():
    """LitServe: with `batch_timeout=0` an idle server burns 64 % of a core."""
    batcher = DynamicBatcher(Model().generate, max_batch_size=4, batch_timeout=0.0)
    found, idle = [], threading.Event()

    def note(requests):
        found.append(requests)
        if requests is None:
            idle.set()

    stop_watching = knobs.watch_decisions(batcher, note)
    for requests in range(1, 4):
        idle.clear()
        assert list(batcher.stream("abc")) == ["a", "b", "c"]
        assert idle.wait(TIMEOUT)
        # One look that finds the request, and one that finds nothing; none in between.
        assert [each is None for each in found] == [False, True] * requests
    stop_watching()
    batcher.close()


@pytest.mark.rule(29)
def test_a_worker_that_gathers_a_batch_looks_once_and_not_all_the_time(monkeypatch):
    """LitServe again: waiting for others is no polling either."""
    clock = ManualClock.install(monkeypatch)
    model = Model()
    batcher = DynamicBatcher(model.generate, max_batch_size=4, batch_timeout=3600.0)
    found = []
    stop_watching = knobs.watch_decisions(batcher, found.append)
    stream = batcher.stream("a")
    assert clock.wait_for_sleeper() == pytest.approx(3600.0)
    assert found == [pytest.approx(3600.0)]
    clock.move(3600.0)
    assert list(stream) == ["a"]
    stop_watching()
    batcher.close()


@pytest.mark.rule(29)
@continuous_batchers
async def test_continuous_batching_serves_the_first_request(form):
    """LitServe: its default continuous loop raises TypeError at the first request."""
    assert await form.rest(form.submit(form.batcher(), "abc")) == ["a", "b", "c"]


# ---- Ray Serve


@pytest.mark.rule(6)
@every_batcher
async def test_outputs_may_be_arrays_and_stop_iterations(form):
    """Ray Serve: `result in [StopIteration]` fails the batch, and takes an instance for data."""
    outputs = [np.array([1, 2]), np.zeros(0), StopIteration, StopIteration(), Untouchable()]
    outputs += [OfUnhashableType(), StopAsyncIteration()]
    assert same(await form.rest(form.submit(form.batcher(), outputs)), outputs)


@pytest.mark.rule(10, 13)
@every_batcher
async def test_a_generator_is_closed_when_all_its_requests_have_finished(form):
    """Ray Serve: the generator runs on from step 4 to step 100, and is never closed."""
    batcher = form.batcher(model := form.model(), max_outputs=4)
    assert await form.rest(form.submit(batcher, "x" * 100)) == ["x"] * 4
    await form.close(batcher)
    assert model.steps == 4
    model.check()


@pytest.mark.rule(9, 14)
@every_batcher
async def test_a_cancelled_error_in_the_model_is_an_error_of_the_model(form):
    """Ray Serve: every caller hangs."""
    batcher = form.batcher(form.model(raises={1: asyncio.CancelledError()}))
    outputs, [error] = await form.read(form.submit(batcher, "abc"))
    assert (outputs, type(error)) == (["a"], SourceError)
    assert await form.rest(form.submit(batcher, "de")) == ["d", "e"]


@pytest.mark.rule(29)
@every_batcher
async def test_a_cost_that_raises_leaves_the_queue_alive(form):
    """Ray Serve: when `batch_size_fn` raises the queue is dead for good (issue 66140)."""

    def cost(request):
        return {"good": 1}[request]

    batcher, _, gate = form.held_batcher(0, cost=cost, max_batch_cost=2)
    streams = await form.submit_behind(batcher, gate, "good", "good")
    for _ in range(3):
        with pytest.raises(KeyError):
            form.submit(batcher, "bad")
    streams.append(form.submit(batcher, "good"))
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [list("good")] * 3


@pytest.mark.rule(16)
@every_batcher
async def test_each_caller_is_raised_an_error_of_its_own(form):
    """Ray Serve: one exception object is shared by all callers, and collects their tracebacks."""
    error = ValueError("of the step")
    gate = form.gate()
    options = {"raises": {2: error}, "gates": {2: gate}}
    streams = await form.submit_together({}, options, *["abcdef"] * 4)
    await gate.reached.wait()
    gate.open()
    results = await form.concurrently(*(partial(form.read, stream) for stream in streams))
    raised = [errors[0] for _, errors in results]
    assert len({id(each) for each in [*raised, error]}) == 5
    assert all(each.__cause__ is error for each in raised)
    assert len({len(traceback.extract_tb(each.__traceback__)) for each in raised}) == 1
    assert all(each.__context__ in (None, error) for each in raised)


@pytest.mark.rule(19)
@every_batcher
async def test_a_consumer_that_does_not_read_holds_no_more_than_its_bound(form):
    """Ray Serve: 19 999 outputs buffered, without a bound."""
    recorder, most = form.recorder(), []

    def look(_):
        most.append(knobs.buffered(stream))

    first = form.gate()
    batcher = form.batcher(
        form.model(gates={0: first}, on_step=look), max_buffered=8, metrics=recorder
    )
    stream = form.submit(batcher, "x" * 20_000)
    first.open()
    await recorder.finished_once.wait()
    assert max(most) <= 8
    assert knobs.buffered(stream) == 9  # and the step that showed it


@pytest.mark.rule(29)
@dynamic_batchers
async def test_a_batch_is_formed_when_a_worker_is_free_and_not_before(form):
    """Ray Serve: under backlog 16 batches of one request each."""
    batcher, model, gate = form.held_batcher(0, max_batch_size=16)
    streams = await form.submit_behind(batcher, gate, "a", *["b"] * 16)
    gate.open()
    for stream in streams:
        await form.rest(stream)
    assert [len(requests) for requests in model.called_with] == [1, 16]


# ---- mixedbread batched


@pytest.mark.rule(9)
@every_batcher
async def test_after_a_system_exit_the_next_call_is_answered(form):
    """mixedbread: SystemExit in the function hangs every later call."""
    if form.source_is_async:
        error = BaseException("as good as SystemExit, which stops an event loop")
    else:
        error = SystemExit(3)
    batcher = form.batcher(form.model(raises={0: error}))
    _, [raised] = await form.read(form.submit(batcher, "abc"))
    assert type(raised) is SourceError
    for request in ("de", "f"):
        assert await form.rest(form.submit(batcher, request)) == list(request)


@pytest.mark.rule(29)
@dynamic_batchers
async def test_a_lone_request_without_batch_timeout_does_not_wait(form):
    """mixedbread: an idle call takes 5.4 ms at least. Here its worker never waits."""
    waits = []
    batcher = form.batcher(batch_timeout=0.0)
    stop_watching = knobs.watch_decisions(batcher, waits.append)
    for request in ("ab", "c"):
        assert await form.rest(form.submit(batcher, request)) == list(request)
    assert [found for found in waits if isinstance(found, float)] == []
    stop_watching()


# ---- async-batcher


@pytest.mark.rule(11)
@batchers_in_loops
async def test_a_caller_that_is_cancelled_leaves_the_rest_of_its_batch_alone(form):
    """async-batcher: one cancelled caller hangs the rest of its batch."""
    gate = form.gate()
    streams = await form.submit_together({}, {"gates": {2: gate}}, "abcd", "pqrs", "wxyz")
    await gate.reached.wait()
    streams[1].drain()
    await form.broken_off(streams[1])
    del streams[1]
    gate.open()
    results = await form.concurrently(*(partial(form.rest, stream) for stream in streams))
    assert results == [list("abcd"), list("wxyz")]


# ---- mosec


@pytest.mark.rule(30)
@every_batcher
async def test_a_late_output_goes_to_no_other_request(form):
    """mosec: an event that comes late goes to the next batch's request."""
    batcher, _, gate = form.held_batcher(1, max_batch_size=1)
    first = form.submit(batcher, "abcdef")
    await gate.reached.wait()
    second = form.submit(batcher, "xy")
    first.cancel()  # while the model is about to give "b" for this very slot
    gate.open()
    assert await form.rest(second) == ["x", "y"]
    assert first.drain() == []


# ---- transformers, vLLM


@pytest.mark.rule(3, 9)
@every_batcher
async def test_results_keep_their_order_and_a_cancelled_request_leaves_no_consumer_hanging(form):
    """transformers: `get_result` reorders outputs; iterating hangs after `cancel_request`."""
    gate = form.gate()
    streams = await form.submit_together({}, {"gates": {1: gate}}, "abcdefgh", "pqrstuvw")
    await gate.reached.wait()

    async def cancel():
        streams[1].cancel()
        gate.open()

    outputs, _, cancelled = await form.concurrently(
        partial(form.rest, streams[0]), cancel, partial(form.rest, streams[1])
    )
    assert outputs == list("abcdefgh")
    assert cancelled in ([], ["p"])


@pytest.mark.rule(5)
@every_batcher
async def test_an_error_overwrites_no_unread_output(form):
    """vLLM: an error replaces an output that was not read."""
    gate = form.gate()
    model = form.model(gates={3: gate}, raises={3: ValueError("no")})
    batcher = form.batcher(model, max_batch_size=1)
    stream = form.submit(batcher, "abcdef")
    await gate.reached.wait()
    next_one = form.submit(batcher, "x")
    gate.open()
    assert await form.rest(next_one) == ["x"]  # so the error has come
    assert stream.finish_reason is FinishReason.ERROR
    outputs, [error] = await form.read(stream)
    assert (outputs, str(error)) == (["a", "b", "c"], "no")
