"""What every form of batch promises when its source, its steps or its predicate fail."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass
from functools import partial

import pytest

from batchstream import EOS, Fail, FinishReason, Last, MissingEOSError, SourceError, StepError
from support.forms import OVER, every_form, forms_that_run_ahead

STEPS = [["a", "x"], ["b", "y"], ["c", "z"]]
COLUMNS = list(zip(*STEPS, strict=True))


@dataclass(frozen=True)
class FrozenError(Exception):
    """Its class refuses attributes, even if the interpreter sets them."""

    request: str


FAULTS = [
    FrozenError,
    OSError,
    MemoryError,
    asyncio.CancelledError,
    GeneratorExit,
    SystemExit,
    KeyboardInterrupt,
]


def check_own(own, original):
    """Make sure that a consumer was raised an error of its own for what the source raised."""
    assert own is not original
    assert own.__cause__ is original
    if isinstance(original, Exception):
        assert type(own) is type(original)
        assert str(own) == str(original)
    else:
        assert type(own) is SourceError
        assert type(original).__name__ in str(own)


# ---- the source raises


@pytest.mark.rule(5, 14, 16)
@every_form
@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_a_source_raises_comes_after_the_outputs_and_once(form, fault, at):
    original = fault("gone")
    script = form.script([*STEPS[:at], original])
    batch = form.open(script, 2)
    owned = []
    for stream, outputs in zip(batch, COLUMNS, strict=True):
        received, [*passed, own] = await form.read(stream)
        assert received == list(outputs[:at])
        check_own(own, original)
        owned.append(own)
        form.passed += passed  # to the thread that pulled
        assert stream.finish_reason is FinishReason.ERROR
        assert stream.end.error is original
        assert await form.receive(stream) is OVER
    assert owned[0] is not owned[1]
    assert form.passed == [original] * form.passes(original)
    assert script.asked == at + 1


@pytest.mark.rule(9)
@forms_that_run_ahead
@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("fault", FAULTS)
async def test_every_waiting_consumer_is_raised_what_the_source_raises(form, fault, at):
    gate = form.gate()
    original = fault("gone")
    batch = form.open(form.script([*STEPS[:at], original], gates={at: gate}), 2)

    async def release():
        await gate.reached.wait()
        await form.all_wait()
        gate.open()

    *results, _ = await form.concurrently(
        *(partial(form.read, stream) for stream in batch), release
    )
    for (received, [own]), outputs in zip(results, COLUMNS, strict=True):
        assert received == list(outputs[:at])
        check_own(own, original)
    assert form.passed == [original] * form.passes(original)


@pytest.mark.rule(5)
@every_form
async def test_a_finished_stream_does_not_raise_a_later_error(form):
    batch = form.open(form.script([["a", "x"], ["b", None], OSError("gone")]), 2)
    outputs, errors = await form.read(batch[1])
    assert (outputs, errors) == (["x"], [])
    outputs, [own] = await form.read(batch[0])
    assert outputs == ["a", "b"]
    assert type(own) is OSError
    assert batch[1].finish_reason is FinishReason.EOS


@pytest.mark.rule(17)
@every_form
async def test_a_stop_in_a_sources_own_code_is_an_error_and_no_end(form):
    def model():
        yield ["a", "x"]
        yield [next(iter(())), "y"]

    batch = form.open(form.generator(model()), 2)
    for stream, outputs in zip(batch, COLUMNS, strict=True):
        received, [own] = await form.read(stream)
        assert received == list(outputs[:1])
        assert type(own) is RuntimeError
        assert type(own.__cause__.__cause__) is StopIteration


@pytest.mark.rule(17)
@every_form
async def test_a_stop_of_the_other_kind_is_an_error_and_no_end(form):
    stop = StopIteration if form.source_is_async else StopAsyncIteration
    batch = form.open(form.script([*STEPS[:1], stop("not yours")]), 2)
    for stream in batch:
        received, [own] = await form.read(stream)
        assert len(received) == 1
        # In a coroutine Python itself makes a RuntimeError of it.
        assert type(own) is (RuntimeError if form.source_is_async else SourceError)


@pytest.mark.rule(16)
@every_form
async def test_an_error_shows_no_consumer_what_another_was_handling(form):
    batch = form.open(form.script([*STEPS[:1], OSError("gone")]), 2)

    async def read_while_handling(stream, private):
        try:
            raise private
        except KeyError:
            return await form.read(stream)

    privates = [KeyError("first"), KeyError("second")]
    for stream, private in zip(batch, privates, strict=True):
        _, [own] = await read_while_handling(stream, private)
        assert own.__context__ in {None, private}
        assert own.__cause__.__context__ is None


@pytest.mark.rule(16)
@every_form
async def test_tracebacks_do_not_grow_with_the_number_of_consumers(form):
    original = OSError("gone")
    batch = form.open(form.script([original]), 20)
    lengths, lengths_of_original = [], []
    for stream in batch:
        _, [own] = await form.read(stream)
        lengths.append(len(traceback.extract_tb(own.__traceback__)))
        lengths_of_original.append(len(traceback.extract_tb(original.__traceback__)))
    assert len(set(lengths[1:])) == 1  # the first thread that pulls did more
    assert len(set(lengths_of_original)) == 1


@pytest.mark.rule(16)
@every_form
async def test_the_traceback_of_the_cause_begins_in_the_source(form):
    def model():
        yield ["a"]
        raise OSError("gone")

    async def async_model():
        yield ["a"]
        raise OSError("gone")

    [stream] = form.open((async_model if form.source_is_async else model)(), 1)
    _, [own] = await form.read(stream)
    [frame] = traceback.extract_tb(own.__cause__.__traceback__)
    assert frame.name in {"model", "async_model"}


# ---- one slot fails


@pytest.mark.rule(15)
@every_form
async def test_fail_ends_its_own_slot_alone(form):
    original = ValueError("this one")
    script = form.script([["a", "x"], ["b", Fail(original)], ["c", "pad"], [None, None]])
    first, second = form.open(script, 2)
    assert await form.rest(first) == ["a", "b", "c"]
    received, [own] = await form.read(second)
    assert received == ["x"]
    check_own(own, original)
    assert script.sent == [None, (0, 1), (0,), (0,)]


@pytest.mark.rule(15, 17)
@every_form
@pytest.mark.parametrize("fault", [ValueError, StopIteration, StopAsyncIteration])
async def test_a_predicate_that_raises_fails_its_own_slot_alone(form, fault):
    original = fault("bad output")

    def is_eos(output):
        if output == "y":
            raise original
        return output == "."

    first, second = form.open(form.script([*STEPS, [".", "."]]), 2, is_eos=is_eos)
    assert await form.rest(first) == ["a", "b", "c"]
    received, [own] = await form.read(second)
    assert received == ["x"]
    assert own.__cause__ is original
    assert type(own) is (ValueError if fault is ValueError else SourceError)


@pytest.mark.rule(9, 14)
@every_form
@pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_what_breaks_off_a_predicate_fails_the_batch_and_leaves_no_consumer_hanging(
    form, fault
):
    def is_eos(output):
        if output == "b":
            raise original
        return False

    original = fault("stop")
    batch = form.open(form.script([*STEPS, [None, None]]), 2, is_eos=is_eos)
    for stream, outputs in zip(batch, COLUMNS, strict=True):
        received, [*passed, own] = await form.read(stream)
        assert received == list(outputs[:1])
        check_own(own, original)
        form.passed += passed
    assert form.passed == [original] * form.passes(original)


# ---- steps that are none

MALFORMED = {
    "too short": ["a"],
    "too long": ["a", "x", "?"],
    "a number": 5,
    "nothing": None,
    "a text": "ax",
    "a slot that there is not": {0: "a", 2: "?"},
    "a slot that is no number": {"0": "a"},
}


@pytest.mark.rule(8)
@every_form
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("step", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_step_fails_every_live_stream_and_delivers_nothing(form, step, at):
    script = form.script([*STEPS[:at], step, *STEPS])
    batch = form.open(script, 2)
    owned = []
    for stream, outputs in zip(batch, COLUMNS, strict=True):
        received, [own] = await form.read(stream)
        assert received == list(outputs[:at])
        assert type(own) is StepError
        assert own.step == at
        owned.append(own)
    assert owned[0] is not owned[1]
    assert script.asked == at + 1
    await script.closed.wait()


# ---- the source ends


@pytest.mark.rule(9)
@every_form
async def test_streams_without_a_mark_are_exhausted_with_their_source(form):
    batch = form.open(form.script([*STEPS[:2], ["c", Last("z")]]), 2)
    assert [await form.rest(stream) for stream in batch] == [list(column) for column in COLUMNS]
    assert [stream.finish_reason for stream in batch] == [FinishReason.EXHAUSTED, FinishReason.EOS]


@pytest.mark.rule(9)
@every_form
async def test_an_end_without_a_mark_is_an_error_where_marks_are_required(form):
    batch = form.open(form.script([["a", "x"], ["b", EOS]]), 2, require_eos=True)
    outputs, [own] = await form.read(batch[0])
    assert outputs == ["a", "b"]
    assert (type(own), own.slot, own.outputs) == (MissingEOSError, 0, 2)
    assert await form.read(batch[1]) == (["x"], [])


# ---- by time


@pytest.mark.rule(5)
@every_form
@pytest.mark.parametrize("at", range(3))
async def test_by_time_an_error_of_the_source_is_an_end_and_is_not_raised(form, at):
    original = OSError("gone")
    batch = form.open(form.script([*STEPS[:at], original]), 2)
    deliveries = await form.rest(batch.steps())
    assert len(deliveries) == at + 1
    assert [(slot, end.error) for slot, end in deliveries[-1].ends] == [
        (0, original),
        (1, original),
    ]
