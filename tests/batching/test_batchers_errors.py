"""What becomes of a batcher's requests when the model fails, or the batcher is closed."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from functools import partial

import pytest

from batchstream import (
    ClosedError,
    ContinuousBatcher,
    FinishReason,
    SourceError,
    StepError,
)
from support.engines import (
    Model,
    batchers_in_loops,
    batchers_in_threads,
    continuous_batchers,
    dynamic_batchers,
    every_batcher,
)
from support.forms import OVER
from support.sources import run_in_threads


class OddError(BaseException):
    """No Exception, and no signal's."""


# ---- what the model raises


@pytest.mark.rule(15, 16)
@every_batcher
@pytest.mark.parametrize("step", [2, 3])
async def test_an_error_of_a_step_fails_the_live_requests_each_with_its_own(form, step):
    error = ValueError("out of memory")
    gate = form.gate()
    options = {"raises": {step: error}, "gates": {step: gate}}
    streams = await form.submit_together({}, options, "abcdef", "pqrstu")
    await gate.reached.wait()
    waiting = [form.submit(form.last_batcher, request) for request in ("xyz", "uv")]
    gate.open()
    results = await form.concurrently(*(partial(form.read, stream) for stream in streams))
    for stream, (outputs, [raised]) in zip(streams, results, strict=True):
        assert "".join(outputs) == ("abcdef" if stream is streams[0] else "pqrstu")[: len(outputs)]
        assert (type(raised), str(raised), raised.__cause__) == (ValueError, "out of memory", error)
        assert stream.finish_reason is FinishReason.ERROR
        assert stream.end.error is error
    (first, [one]), (second, [other]) = results
    assert len(first) == step
    assert len(second) in (step, step - 1)
    assert one is not other
    lengths = {len(traceback.extract_tb(raised.__traceback__)) for raised in (one, other)}
    assert len(lengths) == 1
    assert [await form.rest(each) for each in waiting] == [["x", "y", "z"], ["u", "v"]]


@pytest.mark.rule(9, 17)
@every_batcher
@pytest.mark.parametrize(
    "kind",
    [
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        asyncio.CancelledError,
        StopIteration,
        StopAsyncIteration,
        MemoryError,
        OddError,
    ],
)
async def test_whatever_a_step_raises_fails_its_requests_and_the_next_request_is_served(form, kind):
    error = kind("of the model")
    batcher = form.batcher(form.model(raises={1: error}))
    if form.source_is_async and form.passes(error):
        pytest.skip("it stops the event loop, see the next test")
    outputs, [raised] = await form.read(form.submit(batcher, "abc"))
    assert outputs == ["a"]
    assert isinstance(raised, Exception)
    assert "of the model" in "".join(traceback.format_exception(raised))
    if kind is MemoryError:
        assert type(raised) is MemoryError
    assert await form.rest(form.submit(batcher, "xyz")) == ["x", "y", "z"]


@pytest.mark.rule(14)
@dynamic_batchers
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_what_stops_a_program_is_raised_out_of_its_event_loop(form, kind):
    if not form.source_is_async or not form.passes(kind()):
        pytest.skip("only asyncio is stopped by a task")
    batcher = form.batcher(form.model(raises={1: kind("of the model")}))
    outputs, [raised] = await form.read(form.submit(batcher, "abc"))
    assert outputs == ["a"]
    assert type(raised) is SourceError
    assert [type(error) for error in form.passed] == [kind]
    assert await form.rest(form.submit(batcher, "xyz")) == ["x", "y", "z"]


MALFORMED = ["text", 5, {7: "x"}, {"0": "x"}, None, [1, 2, 3, 4, 5, 6]]


@pytest.mark.rule(8)
@dynamic_batchers
@pytest.mark.parametrize("step", MALFORMED)
async def test_a_malformed_step_fails_its_batch_and_the_next_is_served(form, step):
    steps = [[["a"], [None]], [["a"], step, [None]]]

    def fn(requests):
        yield from steps.pop()

    async def afn(requests):
        for each in steps.pop():
            yield each

    batcher = form.batcher(afn if form.source_is_async else fn)
    outputs, [error] = await form.read(form.submit(batcher, "x"))
    assert outputs == ["a"]
    assert type(error) is StepError
    assert await form.rest(form.submit(batcher, "x")) == ["a"]


@pytest.mark.rule(8, 15)
@continuous_batchers
@pytest.mark.parametrize("step", MALFORMED)
async def test_after_a_malformed_step_waiting_requests_are_served(form, step):
    class Malformed(Model):
        def step(self):
            given = super().step()
            return step if self.steps == 2 else given

    gate = form.gate()
    model = Malformed(form.home, gates={1: gate})
    batcher = form.batcher(model, max_batch_size=1)
    running = form.submit(batcher, "abc")
    await gate.reached.wait()
    waiting = form.submit(batcher, "xy", timeout=3600.0)
    gate.open()
    outputs, [error] = await form.read(running)
    assert outputs == ["a"]
    assert type(error) is StepError
    assert await form.rest(waiting) == ["x", "y"]
    await form.close(batcher)
    model.check()


@pytest.mark.rule(24)
@every_batcher
async def test_an_end_mark_predicate_that_raises_fails_only_its_request(form):
    def is_eos(output):
        if output == "bad":
            raise ArithmeticError("is_eos")
        return output == "end"

    batcher = form.batcher(is_eos=is_eos)
    requests = [["a", "bad", "late"], ["a", "b", "c", "end"]]
    streams = [form.submit(batcher, request) for request in requests]
    _, [error] = await form.read(streams[0])
    assert type(error) is ArithmeticError
    assert await form.rest(streams[1]) == ["a", "b", "c"]


@pytest.mark.rule(15)
@dynamic_batchers
@pytest.mark.parametrize("kind", [ValueError, SystemExit, StopIteration, OddError])
async def test_a_function_that_raises_when_it_is_called_fails_its_batch_only(form, kind):
    if form.source_is_async:
        pytest.skip("an asynchronous generator function runs nothing when it is called")
    gate, model = form.gate(), form.model()

    def fn(requests):
        if "bad" in requests:
            gate.hold()
            raise kind("at the call")
        return model.generate(requests)

    batcher = form.batcher(fn)
    streams = await form.submit_behind(batcher, gate, "bad", "ab", "c")
    gate.open()
    outputs, [error] = await form.read(streams[0])
    assert outputs == []
    assert "at the call" in str(error)
    assert isinstance(error, kind if kind is ValueError else SourceError)
    assert [await form.rest(stream) for stream in streams[1:]] == [["a", "b"], ["c"]]


@pytest.mark.rule(9)
@dynamic_batchers
@pytest.mark.parametrize(
    ("result", "kind", "says"),
    [
        (None, StepError, "returned None, and not a source of steps: yield the steps"),
        (5, TypeError, "source must be an iterable of steps, got int 5"),
    ],
)
async def test_a_function_that_returns_no_source_fails_its_batch_only(form, result, kind, says):
    if form.source_is_async:
        pytest.skip("an asynchronous generator function cannot")
    results = [iter([["a"], [None]]), result]
    batcher = form.batcher(lambda _: results.pop())
    _, [error] = await form.read(form.submit(batcher, "x"))
    assert type(error) is kind
    assert says in str(error)
    assert await form.rest(form.submit(batcher, "x")) == ["a"]


@pytest.mark.rule(14)
@batchers_in_threads
async def test_a_cancelled_error_of_the_model_cancels_no_consumer(form):
    batcher = form.batcher(form.model(raises={0: asyncio.CancelledError()}))

    async def consume():
        with pytest.raises(SourceError, match="CancelledError"):
            await anext(batcher.astream("a"))
        return "not cancelled"

    assert asyncio.run(consume()) == "not cancelled"


@pytest.mark.rule(9)
@dynamic_batchers
@pytest.mark.parametrize("kind", [ValueError, SystemExit, OddError])
async def test_what_a_generator_raises_while_it_is_closed_fails_no_request(form, unheard, kind):
    def fn(requests):
        try:
            while True:
                yield ["a"]
        finally:
            raise kind("while it is closed")

    async def afn(requests):
        try:
            while True:
                yield ["a"]
        finally:
            raise kind("while it is closed")

    if form.source_is_async and kind is SystemExit:
        pytest.skip("it stops the event loop")
    batcher = form.batcher(afn if form.source_is_async else fn, max_outputs=1)
    for _ in range(2):
        assert await form.rest(form.submit(batcher, "x")) == ["a"]
    await form.close(batcher)
    assert [type(error) for error in unheard] == [kind, kind]


# ---- engines


@pytest.mark.rule(15)
@continuous_batchers
async def test_an_add_that_raises_fails_only_its_request(form):
    batcher, model, gate = form.held_batcher(0)
    error = ValueError("too long for this engine")
    streams = await form.submit_behind(batcher, gate, "abc", error, "xy")
    gate.open()
    outputs, [raised] = await form.read(streams[1])
    assert outputs == []
    assert (type(raised), raised.__cause__) == (ValueError, error)
    assert [await form.rest(stream) for stream in (streams[0], streams[2])] == [
        list("abc"),
        ["x", "y"],
    ]
    await form.close(batcher)
    assert [call for call in model.calls if call[0] != "step"] == [
        ("add", 0),
        ("add", 1),
        ("add", 1),
        ("remove", 0),
        ("remove", 1),
    ]


@pytest.mark.rule(15)
@continuous_batchers
async def test_when_no_request_could_be_added_no_step_is_made(form):
    model = form.model()
    batcher = form.batcher(model)
    for _ in range(3):
        _, [error] = await form.read(form.submit(batcher, SystemExit("no")))
        assert type(error) is SourceError
    assert model.steps == 0
    assert await form.rest(form.submit(batcher, "ab")) == ["a", "b"]


@pytest.mark.rule(30)
@continuous_batchers
async def test_after_a_step_that_raised_every_request_is_removed_from_the_engine(form):
    gate = form.gate()
    model = form.model(gates={0: gate}, raises={2: ValueError("no")})
    batcher = form.batcher(model, max_batch_size=2)
    streams = await form.submit_behind(batcher, gate, "abcd", "pqrs", "xy")
    gate.open()
    for stream in streams[:2]:
        _, [error] = await form.read(stream)
        assert type(error) is ValueError
    assert await form.rest(streams[2]) == ["x", "y"]
    await form.close(batcher)
    calls = [call for call in model.calls if call[0] != "step"]
    assert calls == [
        ("add", 0),
        ("add", 1),
        ("remove", 0),
        ("remove", 1),
        ("add", 0),
        ("remove", 0),
    ]


class Factory:
    """Makes engines, and fails as often as it is asked to."""

    def __init__(self, *models):
        self.models = list(models)
        self.made = 0

    def __call__(self):
        model = self.models[self.made]
        self.made += 1
        if isinstance(model, BaseException):
            raise model
        return model


@pytest.mark.rule(15)
@continuous_batchers
async def test_after_a_step_that_raised_a_factory_makes_another_engine(form):
    gate = form.gate()
    broken = Model(form.home, gates={0: gate}, raises={0: ValueError("broken")})
    fresh = form.model()
    factory = Factory(broken, fresh)
    batcher = form.batcher(factory)
    assert factory.made == 0
    streams = await form.submit_behind(batcher, gate, "abc", "de")
    gate.open()
    _, [error] = await form.read(streams[0])
    assert type(error) is ValueError
    assert await form.rest(streams[1]) == ["d", "e"]
    assert await form.rest(form.submit(batcher, "fg")) == ["f", "g"]
    assert factory.made == 2
    await form.close(batcher)
    assert broken.calls == [("add", 0), ("step",)], "it is not used again"
    assert fresh.calls[0] == ("add", 0)


@pytest.mark.rule(9)
@continuous_batchers
@pytest.mark.parametrize("error", [ValueError("no engine"), SystemExit("no engine")])
async def test_a_factory_that_raises_fails_the_requests_that_were_to_join_and_is_called_again(
    form, error
):
    factory = Factory(error, form.model())
    batcher = form.batcher(factory)
    _, [raised] = await form.read(form.submit(batcher, "abc"))
    assert "no engine" in str(raised)
    assert raised.__cause__ is error
    assert await form.rest(form.submit(batcher, "abc")) == ["a", "b", "c"]
    assert factory.made == 2


@continuous_batchers
async def test_a_class_is_a_factory_and_made_in_the_thread_that_uses_it(form):
    homes = []

    class Engine(Model):
        def __init__(self):
            super().__init__()
            homes.append(self._home())

        def remove(self, slot):
            super().remove(slot)
            homes.append(self._home())

    batcher = form.batcher(Engine)
    assert await form.rest(form.submit(batcher, "ab")) == ["a", "b"]
    await form.close(batcher)
    assert homes[0] == homes[1] != threading.get_ident()


@pytest.mark.rule(30)
@continuous_batchers
async def test_a_remove_that_raises_is_unheard_and_its_slot_is_used_again(form, unheard):
    class Engine(Model):
        def remove(self, slot):
            super().remove(slot)
            raise SystemExit("remove")

    batcher = form.batcher(Engine(), max_batch_size=1)
    for request in ("ab", "c", "de"):
        stream = form.submit(batcher, request)
        assert await form.rest(stream) == list(request)
        assert stream.slot == 0
    await form.close(batcher)
    assert [type(error) for error in unheard] == [SystemExit] * 3


def test_python_prints_which_call_of_the_engine_has_raised(capfd, monkeypatch):
    class Engine(Model):
        def remove(self, slot):
            super().remove(slot)
            raise KeyError(slot)

        def close(self):
            raise OSError("in use")

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    with ContinuousBatcher(Engine, max_batch_size=1) as batcher:
        assert list(batcher.stream("ab")) == ["a", "b"]
    printed = capfd.readouterr().err
    assert "in: remove(0) of the engine\n" in printed
    assert "in: close() of the engine\n" in printed


@pytest.mark.rule(15)
@continuous_batchers
async def test_a_remove_that_raises_fails_no_live_request(form, unheard):
    gate = form.gate()

    class Engine(Model):
        def remove(self, slot):
            super().remove(slot)
            raise SystemExit("remove")

    batcher = form.batcher(Engine(gates={0: gate}))
    streams = await form.submit_behind(batcher, gate, "abcdef", "p", "xy")
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [list("abcdef"), ["p"], ["x", "y"]]
    await form.close(batcher)
    assert [type(error) for error in unheard] == [SystemExit] * 3


@pytest.mark.rule(30)
@continuous_batchers
async def test_an_output_for_the_former_occupant_never_reaches_the_next(form):
    """The engine answers for the request that had the slot when the step began."""
    start, gate = form.gate(), form.gate()
    model = form.model(gates={0: start, 1: gate})
    batcher = form.batcher(model, max_batch_size=1)
    streams = await form.submit_behind(batcher, start, "abcdef", "xy")
    start.open()
    await gate.reached.wait()
    streams[0].cancel()
    gate.open()  # and the step gives "b" for slot 0
    assert await form.rest(streams[1]) == ["x", "y"]
    assert [stream.slot for stream in streams] == [0, 0]


@pytest.mark.rule(30)
@continuous_batchers
async def test_outputs_for_empty_slots_are_dropped_and_counted(form):
    class Talkative(Model):
        def step(self):
            return dict.fromkeys(range(4), "ghost") | super().step()

    model = Talkative()
    batcher = form.batcher(model, max_batch_size=4)
    streams = [form.submit(batcher, request) for request in ("abc", "d", "ef", "ghij")]
    outputs = [await form.rest(stream) for stream in streams]
    later = [await form.rest(form.submit(batcher, request)) for request in ("kl", "m")]
    assert outputs == [list("abc"), ["d"], ["e", "f"], list("ghij")]
    assert later == [["k", "l"], ["m"]]
    assert batcher.statistics().outputs == 13


@pytest.mark.rule(13, 30)
@continuous_batchers
async def test_an_engine_is_not_stepped_for_ended_requests(form):
    """The first ends in the very step during which the second is submitted."""
    batcher, model, gate = form.held_batcher(1)
    first = form.submit(batcher, "a")
    await gate.reached.wait()
    second = form.submit(batcher, "xyz")
    gate.open()
    assert await form.rest(first) == ["a"]
    assert await form.rest(second) == ["x", "y", "z"]
    assert model.worked_on == [("a",), ("a",), ("xyz",), ("xyz",), ("xyz",), ("xyz",)]


# ---- closing


@pytest.mark.rule(9)
@every_batcher
async def test_close_fails_live_requests_after_what_is_buffered_and_waiting_ones(form):
    batcher, _, gate = form.held_batcher(2, max_batch_size=1)
    streams = [form.submit(batcher, request) for request in ("abcd", "x", "y")]
    await gate.reached.wait()

    async def settle():
        results = await form.concurrently(*(partial(form.read, stream) for stream in streams))
        gate.open()
        return results

    results, _ = await form.concurrently(settle, partial(form.close, batcher))
    assert [outputs for outputs, _ in results] == [["a", "b"], [], []]
    for stream, (_, [error]) in zip(streams, results, strict=True):
        assert type(error) is ClosedError
        assert str(error).startswith("the batcher was closed by ")
        assert stream.finish_reason is FinishReason.ERROR
        assert await form.receive(stream) is OVER


@pytest.mark.rule(9)
@every_batcher
async def test_after_close_every_request_is_refused(form):
    batcher = form.batcher()
    assert await form.rest(form.submit(batcher, "a")) == ["a"]
    for _ in range(3):
        await form.close(batcher)
        with pytest.raises(ClosedError, match="the batcher was closed"):
            form.submit(batcher, "b")
    assert batcher.statistics().opened == 1


@every_batcher
async def test_a_batcher_that_was_never_used_can_be_closed(form):
    batcher = form.batcher()
    for _ in range(2):
        await form.close(batcher)
    with pytest.raises(ClosedError):
        form.submit(batcher, "b")


@pytest.mark.rule(28)
@every_batcher
async def test_close_leaves_no_thread_and_no_task(form):
    before = set(threading.enumerate())
    batcher, _, gate = form.held_batcher(0)
    streams = await form.submit_behind(batcher, gate, "abc", "de")
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [list("abc"), ["d", "e"]]
    await form.close(batcher)
    new = [thread for thread in threading.enumerate() if thread not in before]
    assert [thread.name for thread in new if thread.name == "batchstream pump"] == []
    if not form.continuous and form.source_is_async:
        await form.all_wait()
        assert form.other_tasks() == []


@pytest.mark.rule(9)
@every_batcher
async def test_several_may_close_at_the_same_time(form):
    batcher, _, gate = form.held_batcher(0)
    stream = form.submit(batcher, "abc")
    await gate.reached.wait()

    async def settle():
        _, [error] = await form.read(stream)
        gate.open()
        return type(error)

    close = partial(form.close, batcher)
    assert await form.concurrently(settle, close, close, close) == [ClosedError, None, None, None]


@every_batcher
async def test_a_block_closes_the_batcher(form):
    batcher = form.batcher()
    streams = []

    async def submit():
        streams.append(form.submit(batcher, "abc"))
        assert await form.rest(streams[0]) == ["a", "b", "c"]
        streams.append(form.submit(batcher, "abc"))

    await form.in_block(batcher, submit)
    _, errors = await form.read(streams[1])
    assert [type(error) for error in errors] in ([ClosedError], [])
    with pytest.raises(ClosedError):
        form.submit(batcher, "b")


@pytest.mark.rule(9)
@batchers_in_threads
async def test_close_from_another_thread_waits_for_the_step_and_wakes_consumers_before(form):
    batcher, _, gate = form.held_batcher(1)
    stream = form.submit(batcher, "abc")
    await gate.reached.wait()
    closed = []

    def close():
        batcher.close()
        closed.append(gate._opened.happened.is_set())

    def read():
        with pytest.raises(ClosedError):
            list(stream)
        assert closed == []
        gate.open()

    run_in_threads(close, read)
    assert closed == [True]


@pytest.mark.rule(12)
@batchers_in_loops
async def test_a_request_may_be_cancelled_in_any_thread(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    streams = await form.submit_behind(batcher, gate, "abc", "def", "x")
    run_in_threads(streams[0].cancel, streams[1].cancel)
    assert [await form.rest(stream) for stream in streams[:2]] == [[], []]
    gate.open()
    assert await form.rest(streams[2]) == ["x"]
