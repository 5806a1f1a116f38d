"""The pull-driven streams: what a consumer sees, rule by rule."""

from __future__ import annotations

import asyncio
import enum
import functools
import gc
import threading
import traceback
from collections import deque
from contextlib import closing
from contextvars import ContextVar

import pytest

import batchstream
from batchstream import (
    AsyncBatchedStream,
    BatchedStream,
    BufferOverflowError,
    ClosedError,
    ConcurrentConsumerError,
    Fail,
    FinishReason,
    Last,
    Many,
    MissingEOSError,
    SourceError,
    StepError,
    Stream,
    demux,
)
from support.reading import read_blocking
from support.sources import TIMEOUT, Gate, ScriptedSource, run_in_threads


def endless(size=2):
    """Yield steps of distinct outputs for ever, to all slots."""
    number = 0
    while True:
        yield [(slot, number) for slot in range(size)]
        number += 1


# ---- opening


def test_without_size_the_first_step_is_pulled_to_learn_it_and_none_is_lost():
    source = ScriptedSource([["a", "x"], ["b", None]])
    streams = demux(source)
    assert source.pulled == 1
    assert [list(stream) for stream in streams] == [["a", "b"], ["x"]]


def test_with_size_nothing_is_pulled_before_the_first_receive():
    source = ScriptedSource([["a", "x"]])
    streams = demux(source, 2)
    assert source.sent == []
    next(streams[0])
    assert source.pulled == 1


def test_an_empty_source_without_size_gives_no_streams_and_is_closed():
    source = ScriptedSource([])
    assert demux(source) == ()
    assert source.closed == 1
    assert demux(ScriptedSource([]), max_outputs=[1, 2]) == ()


def test_a_batch_of_no_slots_closes_its_source_untouched():
    source = ScriptedSource([["a"]])
    assert demux(source, 0) == ()
    assert source.sent == []
    assert source.closed == 1


def test_an_empty_source_with_size_exhausts_its_streams():
    streams = demux([], 2)
    assert [list(stream) for stream in streams] == [[], []]
    assert {stream.finish_reason for stream in streams} == {FinishReason.EXHAUSTED}


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ({0: "a"}, "step 0 is a mapping.*pass size="),
        ("ab", "step 0 is no sequence"),
        (5, "got int: make it a list"),
    ],
)
def test_a_first_step_without_a_size_is_refused_and_closes_the_source(first, says):
    source = ScriptedSource([first])
    with pytest.raises(StepError, match=says):
        demux(source)
    assert source.closed == 1


def test_an_error_in_the_first_step_is_raised_as_it_is():
    error = OSError("no device")
    source = ScriptedSource([error])
    with pytest.raises(OSError, match="no device") as caught:
        demux(source)
    assert caught.value is error
    assert source.closed == 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"eos": 2}, ValueError, "compared by identity"),
        ({"size": -1}, ValueError, "size must be at least 0"),
        ({"max_buffered": 0}, ValueError, "max_buffered must be at least 1, got 0"),
        ({"max_outputs": 0}, ValueError, "max_outputs must be at least 1"),
        ({"is_eos": "x"}, TypeError, "is_eos takes a function"),
    ],
)
def test_wrong_arguments_are_refused_before_the_source_is_touched(arguments, error, says):
    source = ScriptedSource([["a"]])
    with pytest.raises(error, match=says):
        demux(source, **arguments)
    assert source.sent == []
    assert source.closed == 0


def test_limits_for_another_number_of_slots_close_the_source():
    source = ScriptedSource([["a", "b"]])
    with pytest.raises(ValueError, match="max_outputs has 3 entries, expected 2"):
        demux(source, max_outputs=[1, 2, 3])
    assert source.closed == 1


async def async_steps():
    yield ["a"]


@pytest.mark.rule(16)
def test_an_error_that_the_library_has_made_is_shown_once():
    first, second = demux([["a", "x"], ["b"]])
    for stream in (first, second):
        with pytest.raises(StepError) as raised:
            list(stream)
        text = "".join(traceback.format_exception(raised.value))
        assert text.count("step 1 has 1 outputs") == 1
        assert text.count("Traceback") == 1
        assert raised.value is not stream.end.error


class Steps:
    def __iter__(self):
        return iter([["a"]])


async def coroutine():
    return [["a"]]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (5, "got int 5: pass what yields the steps"),
        (None, "got NoneType None: pass what yields the steps"),
        (async_steps, "got the function async_steps: call it, and pass what it returns: async_st"),
        (test_limits_for_another_number_of_slots_close_the_source, "got the function test_limits"),
        (Steps, "got the class Steps: call it, and pass what it returns: Steps(…)"),
        (functools.partial(Steps), "call it, and pass what it returns: source(…)"),
        ("text", "got str 'text': pass a list of steps"),
        ({0: "a"}, "got dict {0: 'a'}: pass a list of steps"),
        ("a" * 1000, "aaa…: pass a list of steps"),
    ],
    ids=["a number", "None", "async", "function", "class", "partial", "text", "dict", "long text"],
)
@pytest.mark.parametrize("take", [demux, BatchedStream, AsyncBatchedStream])
def test_a_source_that_is_none_is_refused_with_what_to_pass_instead(take, source, says):
    with pytest.raises(TypeError, match="source must be an iterable of steps, got ") as raised:
        take(source, 1)
    assert says in str(raised.value)


def test_a_coroutine_is_no_source_and_python_says_nothing_more_of_it():
    with pytest.raises(TypeError, match=r"got the coroutine of coroutine\(\): let coroutine yield"):
        demux(coroutine(), 1)


def test_a_class_whose_members_are_steps_is_a_source():
    class Step(enum.Enum):
        ONE = 1

    [stream] = demux(Step, 1)
    with pytest.raises(StepError):
        next(stream)


def test_a_source_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="source must be a synchronous iterable"):
        BatchedStream(async_steps(), 1)
    with pytest.raises(TypeError, match="an asynchronous source needs size="):
        demux(async_steps())


def test_a_list_of_steps_is_a_source():
    [stream] = demux([["a"], ["b"]])
    assert list(stream) == ["a", "b"]


# ---- receiving


@pytest.mark.rule(7)
def test_a_stream_has_ended_before_the_source_is_asked_again():
    source = ScriptedSource([["a", "x"], ["b", Last("y")], ["c", None], [None, None]])
    first, second = demux(source, 2)
    assert list(second) == ["x", "y"]
    assert source.pulled == 2
    assert list(first) == ["a", "b", "c"]
    assert source.pulled == 4


@pytest.mark.rule(10)
def test_the_source_is_closed_with_the_last_end_and_not_asked_again():
    source = ScriptedSource([["a", None], [Last("b"), None], ["never", "asked"]])
    first, second = demux(source, 2)
    assert list(first) == ["a", "b"]
    assert source.closed == 1
    assert source.pulled == 2
    assert list(second) == []
    assert source.closed == 1


@pytest.mark.rule(10)
def test_a_generator_is_closed_at_its_yield():
    left = []

    def source():
        try:
            yield from endless(1)
        finally:
            left.append(True)

    [stream] = demux(source(), 1)
    next(stream)
    stream.cancel()
    assert left == [True]


@pytest.mark.rule(5)
def test_a_finished_stream_stays_finished():
    [stream] = demux([["a"], [None], ["late"]])
    assert list(stream) == ["a"]
    for _ in range(3):
        assert next(stream, "end") == "end"
    assert stream.drain() == []


def test_a_stream_has_its_finish_reason_as_soon_as_the_source_has_ended_it():
    first, second = demux([["a", "x"], ["b", Last("y", reason="length", info={"n": 2})]], 2)
    assert first.end is None
    assert first.finish_reason is None
    next(first)
    next(first)
    assert second.finish_reason is FinishReason.LENGTH
    assert second.end.info == {"n": 2}
    assert second.end.outputs == 2
    assert list(second) == ["x", "y"]


def test_breaking_off_a_loop_and_going_on_later_loses_nothing():
    [stream] = demux([[n] for n in range(500)])
    received = []
    while stream.finish_reason is None or len(received) < 500:
        for output in stream:
            received.append(output)
            if output % 7 == 0:
                break
    assert received == list(range(500))


def test_drain_takes_what_is_buffered_and_asks_the_source_for_nothing():
    source = ScriptedSource([["a", "x"], ["b", "y"], ["c", Many(["z", "!"])], ["d", "."]])
    first, second = demux(source, 2)
    assert second.drain() == []
    assert source.sent == []
    for _ in range(3):
        next(first)
    assert next(second) == "x"
    assert second.drain() == ["y", "z", "!"]
    assert second.drain() == []
    assert source.pulled == 3
    assert list(second) == ["."]


def test_long_streams_pass_through_every_way_of_reading():
    first, second, third = demux(([n, -n, n * n] for n in range(2_000)), 3)
    assert [next(first) for _ in range(1_000)] == list(range(1_000))
    assert second.drain() == [-n for n in range(1_000)]
    for n in range(1_000, 2_000):
        assert next(first) == n
        assert next(second) == -n
    assert list(third) == [n * n for n in range(2_000)]
    assert next(first, None) is next(second, None) is None


@pytest.mark.rule(4)
def test_a_timeout_is_refused_where_consumers_pull_whatever_is_buffered():
    batch = BatchedStream([["a", "x"], ["b", "y"]], 2)
    assert next(batch[0]) == "a"
    for stream in batch:  # one has nothing buffered, the other has
        with pytest.raises(ValueError, match="timeout needs a batch with background=True"):
            stream.receive(timeout=1)
    assert [list(stream) for stream in batch] == [["b"], ["x", "y"]]


# ---- feedback


def test_a_generator_may_delegate_to_iterators_that_do_not_listen():
    sent = []

    def inner():
        yield from (["a"], ["b"])
        sent.append((yield ["c"]))

    def source():
        yield from inner()
        yield from map(list, "de")
        sent.append((yield ["f"]))

    (stream,) = demux(source(), size=1)
    assert list(stream) == ["a", "b", "c", "d", "e", "f"]
    assert sent == [(0,), (0,)]


@pytest.mark.rule(13)
def test_the_source_is_sent_each_departure_with_its_next_step():
    source = ScriptedSource([["a", "b", "c"]] * 6)
    streams = demux(source, 3)
    next(streams[0])
    next(streams[0])
    streams[1].cancel()
    next(streams[0])
    next(streams[0])
    streams[2].cancel()
    next(streams[0])
    everyone = source.sent[1]
    assert source.sent == [None, (0, 1, 2), (0, 2), (0, 2), (0,)]
    assert source.sent[2] is source.sent[3]
    assert everyone == (0, 1, 2)


@pytest.mark.rule(13)
def test_an_end_in_a_step_is_sent_with_the_next_one():
    source = ScriptedSource([["a", "b"], ["c", None], ["d", None], [None, None]])
    first, _ = demux(source, 2)
    list(first)
    assert source.sent == [None, (0, 1), (0,), (0,)]


def test_a_source_that_ignores_what_it_is_sent_works_as_well():
    def deaf():
        for n in range(3):
            yield [n, n]

    assert [list(stream) for stream in demux(deaf(), 2)] == [[0, 1, 2]] * 2


# ---- cancelling and closing


@pytest.mark.rule(12)
def test_a_receive_after_a_cancel_sees_the_end_whatever_was_buffered():
    first, second = demux(endless(), 2)
    for _ in range(5):
        next(first)
    assert next(second) == (1, 0)
    second.cancel()
    assert next(second, "end") == "end"
    assert second.finish_reason is FinishReason.CANCELLED
    assert second.end.outputs == 5
    assert second.drain() == []
    assert next(first) == (0, 5)


@pytest.mark.rule(12)
def test_cancelling_after_the_end_only_discards_what_was_not_received():
    first, second = demux([["a", "x"], ["b", None], [None, None]], 2)
    list(first)
    second.cancel()
    assert list(second) == []
    assert second.finish_reason is FinishReason.EOS
    assert first.finish_reason is FinishReason.EOS


@pytest.mark.rule(12)
def test_a_cancel_from_inside_the_source_takes_effect_after_the_step():
    streams = []

    def source():
        yield ["a", "x"]
        streams[1].cancel()
        assert streams[1].finish_reason is FinishReason.CANCELLED
        live = yield ["b", "y"]
        assert live == (0,)
        yield [None, None]

    streams += demux(source(), 2)
    assert list(streams[0]) == ["a", "b"]
    assert list(streams[1]) == []


@pytest.mark.rule(12)
def test_a_cancel_while_another_thread_is_in_the_source_does_not_wait():
    gate = Gate()
    source = ScriptedSource([["a", "x"], ["b", "y"], ["c", "z"]], gates={1: gate})
    first, second = demux(source, 2)
    assert next(first) == "a"
    received = []
    reader = threading.Thread(target=lambda: received.extend(first), daemon=True)
    reader.start()
    assert gate.reached.wait(TIMEOUT)
    second.cancel()
    assert list(second) == []
    assert second.finish_reason is FinishReason.CANCELLED
    gate.opened.set()
    reader.join(TIMEOUT)
    assert received == ["b", "c"]
    assert source.sent[2] == (0,)


@pytest.mark.rule(10)
def test_streams_cancelled_during_the_last_step_close_the_source_after_it():
    gate = Gate()
    closed = threading.Event()

    def source():
        try:
            gate.pass_through()
            yield ["a", "x"]
        finally:
            closed.set()

    first, second = demux(source(), 2)
    reader = threading.Thread(target=lambda: list(first), daemon=True)
    reader.start()
    assert gate.reached.wait(TIMEOUT)
    first.cancel()
    second.cancel()
    assert not closed.is_set()
    gate.opened.set()
    reader.join(TIMEOUT)
    assert closed.is_set()


@pytest.mark.rule(10)
def test_cancelling_the_last_stream_closes_the_source_at_once():
    source = ScriptedSource([["a", "b"]] * 3)
    first, second = demux(source, 2)
    next(first)
    first.cancel()
    assert source.closed == 0
    second.cancel()
    assert source.closed == 1


@pytest.mark.rule(25)
def test_dropping_the_last_reference_cancels():
    source = ScriptedSource([["a", "b"]] * 9)
    streams = list(demux(source, 2))
    next(streams[0])
    del streams[1]
    next(streams[0])
    assert source.sent == [None, (0,)]
    streams.clear()
    assert source.closed == 1


@pytest.mark.rule(25)
def test_dropping_a_whole_batch_closes_its_source():
    source = ScriptedSource([["a", "b"]] * 9)
    batch = BatchedStream(source, 2)
    next(batch[0])
    del batch
    gc.collect()
    assert source.closed == 1


def test_leaving_the_block_fails_what_is_live_and_closes_the_source():
    source = ScriptedSource([["a", Last("x")], ["b", None]])
    with BatchedStream(source, 2) as batch:
        assert next(batch[0]) == "a"
    assert source.closed == 1
    with pytest.raises(ClosedError, match="the batch was closed before stream 0 had ended"):
        next(batch[0])
    assert batch[0].finish_reason is FinishReason.ERROR
    assert list(batch[1]) == ["x"], "it had finished, and keeps what is buffered"
    batch.close()
    assert source.closed == 1


def test_closing_from_inside_the_source_takes_effect_after_the_step():
    batches = []

    def source():
        yield ["a", "x"]
        batches[0].close()
        returned.append(True)
        yield ["b", "y"]
        raise AssertionError("asked again")

    returned = []
    with BatchedStream(source(), 2) as batch:
        batches.append(batch)
        assert read_blocking(batch[0]) == (["a", "b"], ClosedError)
        assert read_blocking(batch[1]) == (["x", "y"], ClosedError)
    assert returned == [True]


@pytest.mark.rule(24)
def test_closing_waits_for_a_step_in_another_thread():
    gate = Gate()

    def source():
        try:
            gate.pass_through()
            yield ["a"]
        finally:
            assert gate.opened.is_set()

    batch = BatchedStream(source(), 1)

    def close():
        assert gate.reached.wait(TIMEOUT)
        threading.Thread(target=gate.opened.set, daemon=True).start()
        batch.close()

    run_in_threads(lambda: read_blocking(batch[0]), close)
    assert batch.live == ()


@pytest.mark.rule(10)
def test_an_error_of_closing_is_raised_by_close_itself():
    source = ScriptedSource([["a"]] * 2, raise_at_close=OSError("cannot free"))
    batch = BatchedStream(source, 1)
    next(batch[0])
    with pytest.raises(OSError, match="cannot free"):
        batch.close()
    assert batch.live == ()
    batch.close()
    assert source.closed == 1


@pytest.mark.rule(10)
def test_an_error_of_closing_goes_to_the_hook_where_no_caller_waits_for_it(monkeypatch):
    heard = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: heard.append(args.exc_value))
    error = OSError("cannot free")
    first, second = demux(ScriptedSource([[Last("a"), "b"], [None, None]], raise_at_close=error), 2)
    assert list(first) == ["a"]
    assert list(second) == ["b"]
    assert heard == [error]
    [third] = demux(ScriptedSource([["a"]], raise_at_close=error), 1)
    third.cancel()
    assert heard == [error, error]


def test_a_stream_can_be_closed_by_contextlib():
    [stream] = demux(endless(1), 1)
    with closing(stream):
        next(stream)
    assert stream.finish_reason is FinishReason.CANCELLED


# ---- errors


@pytest.mark.rule(5)
def test_outputs_come_before_the_error_and_the_error_once():
    first, second = demux(ScriptedSource([["a", "x"], ["b", "y"], OSError("gone")]), 2)
    assert next(first) == "a"
    assert next(first) == "b"
    with pytest.raises(OSError, match="gone"):
        next(first)
    assert next(first, "end") == "end"
    assert next(second) == "x"
    assert second.drain() == ["y"]
    with pytest.raises(OSError, match="gone"):
        next(second)
    assert list(second) == []


@pytest.mark.rule(16)
def test_each_consumer_is_raised_an_instance_of_its_own_with_the_original_as_cause():
    class ModelError(Exception):
        def __init__(self, code):
            super().__init__(f"failed with code {code}")
            self.code = code

    original = ModelError(7)
    streams = demux(ScriptedSource([original]), 3)
    raised = []
    for stream in streams:
        try:
            {}["what this consumer was doing"]
        except KeyError:
            with pytest.raises(ModelError) as caught:
                next(stream)
            raised.append(caught.value)
    assert len({id(error) for error in [*raised, original]}) == 4
    for error in raised:
        assert error.__cause__ is original
        assert (str(error), error.code) == ("failed with code 7", 7)
    assert original.__context__ is None
    assert {stream.end.error for stream in streams} == {original}


@pytest.mark.rule(16)
def test_tracebacks_do_not_grow_with_the_number_of_consumers():
    def length(traceback):
        return 0 if traceback is None else 1 + length(traceback.tb_next)

    def source():
        yield ["a"] * 50
        raise OSError("gone")

    lengths = []
    for stream in demux(source(), 50):
        next(stream)
        with pytest.raises(OSError, match="gone") as caught:
            next(stream)
        lengths.append(
            (length(caught.value.__traceback__), length(caught.value.__cause__.__traceback__))
        )
    assert len(set(lengths[1:])) == 1


@pytest.mark.rule(17)
@pytest.mark.parametrize("stop", [StopIteration("x"), StopAsyncIteration("x")])
def test_a_stop_out_of_user_code_is_an_error(stop):
    def is_eos(_):
        raise stop

    [by_predicate] = demux([["a"]], is_eos=is_eos)
    [by_marker] = demux([[Fail(stop)]])
    for stream in (by_predicate, by_marker):
        with pytest.raises(
            SourceError, match=f"the stream failed with {type(stop).__name__}: x"
        ) as caught:
            next(stream)
        assert caught.value.__cause__ is stop


@pytest.mark.rule(17)
def test_a_stop_inside_a_generator_is_an_error():
    def source():
        yield ["a"]
        yield [next(iter(()))]

    [stream] = demux(source(), 1)
    assert next(stream) == "a"
    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        next(stream)


@pytest.mark.rule(9, 14)
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_stops_the_program_passes_through_and_ends_the_other_streams(interrupt):
    error = interrupt("stop")
    source = ScriptedSource([["a", "x"], error])
    first, second = demux(source, 2)
    next(first)
    with pytest.raises(interrupt) as caught:
        next(first)
    assert caught.value is error
    assert source.closed == 1
    assert next(second) == "x"
    for stream in (first, second):
        with pytest.raises(SourceError, match=f"the stream failed with {interrupt.__name__}: stop"):
            next(stream)
        assert next(stream, "end") == "end"


@pytest.mark.rule(14)
def test_a_cancelled_error_of_the_source_is_an_error_and_cancels_no_consumer():
    error = asyncio.CancelledError("model gave up")
    first, second = demux(ScriptedSource([["a", "x"], error]), 2)
    next(first)
    for stream in (first, second):
        stream.drain()
        with pytest.raises(SourceError, match="the stream failed with CancelledError") as caught:
            next(stream)
        assert caught.value.__cause__ is error
        assert stream.finish_reason is FinishReason.ERROR


@pytest.mark.rule(14)
def test_an_interrupt_in_a_predicate_fails_the_batch_and_leaves_no_consumer_hanging():
    def is_eos(output):
        if output == "b":
            raise KeyboardInterrupt
        return False

    first, second = demux([["a", "x"], ["b", "y"]], is_eos=is_eos)
    next(first)
    with pytest.raises(KeyboardInterrupt):
        next(first)
    assert second.drain() == ["x"]
    with pytest.raises(SourceError):
        next(second)


@pytest.mark.rule(9)
def test_memory_error_reaches_every_stream():
    streams = demux(ScriptedSource([MemoryError("oom")]), 3)
    for stream in streams:
        with pytest.raises(MemoryError):
            next(stream)


@pytest.mark.rule(9, 10)
@pytest.mark.parametrize("at", range(4))
def test_a_source_that_raises_at_any_step_is_closed_once(at):
    source = ScriptedSource([["a", "b"]] * at + [OSError("gone")])
    streams = demux(source, 2)
    for stream in streams:
        for _ in range(at):
            next(stream)
        with pytest.raises(OSError, match="gone"):
            next(stream)
    assert source.closed == 1


@pytest.mark.rule(15)
def test_fail_ends_its_own_slot_alone():
    first, second = demux([["a", "x"], [Fail(ValueError("too long")), "y"], [None, "z"]], 2)
    assert next(first) == "a"
    with pytest.raises(ValueError, match="too long"):
        next(first)
    assert list(second) == ["x", "y", "z"]


@pytest.mark.rule(8)
def test_a_step_of_the_wrong_width_fails_every_stream_and_closes_the_source():
    source = ScriptedSource([["a", "x"], ["b"], ["never", "asked"]])
    first, second = demux(source, 2)
    for stream, output in ((first, "a"), (second, "x")):
        assert next(stream) == output
        with pytest.raises(StepError, match="step 1 has 1 outputs, expected 2"):
            next(stream)
    assert source.closed == 1


def test_a_source_that_ends_too_early_is_an_error_where_eos_is_required():
    first, second = demux([["a", "x"], ["b", None]], require_eos=True)
    assert list(second) == ["x"]
    assert [next(first), next(first)] == ["a", "b"]
    with pytest.raises(MissingEOSError, match="after 2 outputs for slot 0"):
        next(first)


# ---- bounds


@pytest.mark.rule(4, 19)
def test_a_full_stream_stops_the_pull_before_the_source_is_touched():
    source = ScriptedSource([[n, -n] for n in range(10)])
    first, second = demux(source, 2, max_buffered=3)
    assert [next(first) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(BufferOverflowError, match=r"stream 1 holds 3 .*collect") as caught:
            next(first)
        assert caught.value.slots == (1,)
        assert caught.value.max_buffered == 3
        assert source.pulled == 3
    assert next(second) == 0
    assert next(first) == 3
    with pytest.raises(BufferOverflowError):
        next(first)
    second.cancel()
    assert list(first) == [4, 5, 6, 7, 8, 9]


@pytest.mark.rule(19)
def test_many_outputs_in_one_step_exceed_the_bound_by_that_step_at_most():
    source = ScriptedSource([["a", Many(range(5))], ["b", "x"]])
    first, second = demux(source, 2, max_buffered=2)
    assert next(first) == "a"
    with pytest.raises(BufferOverflowError):
        next(first)
    assert second.drain() == [0, 1, 2, 3, 4]
    assert next(first) == "b"


@pytest.mark.rule(19)
def test_a_bound_holds_while_others_end_and_leave():
    source = ScriptedSource([["a"] * 4, ["a", None, "c", "d"], *[["a", None, "c", "d"]] * 4])
    streams = demux(source, 4, max_buffered=2)
    next(streams[0])
    next(streams[0])
    streams[2].cancel()
    with pytest.raises(BufferOverflowError) as caught:
        next(streams[0])
    assert caught.value.slots == (3,)


# ---- by time


def test_by_time_ends_are_delivered_with_their_step_and_errors_are_not_raised():
    error = OSError("gone")
    source = ScriptedSource([["a", "x"], [Last("b"), "y"], [None, Fail(ValueError())], error])
    batch = BatchedStream(source, 2)
    delivered = [
        (sorted(d.outputs), [(s, str(e.reason)) for s, e in d.ends]) for d in batch.steps()
    ]
    assert delivered == [
        ([(0, "a"), (1, "x")], []),
        ([(0, "b"), (1, "y")], [(0, "eos")]),
        ([], [(1, "error")]),
    ]
    assert source.closed == 1
    assert batch[0].finish_reason is FinishReason.EOS


def test_by_time_an_error_of_the_source_is_an_end_of_every_live_slot():
    error = OSError("gone")
    batch = BatchedStream(ScriptedSource([["a", "x"], error]), 2)
    *_, last = batch.steps()
    assert [(slot, end.error) for slot, end in last.ends] == [(0, error), (1, error)]


def test_by_time_a_cancelled_slot_is_delivered_once_with_the_next_step():
    batch = BatchedStream(endless(3), 3)
    steps = batch.steps()
    next(steps)
    batch.cancel(1)
    batch.cancel(1)
    delivery = next(steps)
    assert [slot for slot, _ in delivery.outputs] == [0, 2]
    assert [(slot, str(end.reason)) for slot, end in delivery.ends] == [(1, "cancelled")]
    assert next(steps).ends == ()
    batch.cancel(0)
    batch.cancel(2)
    assert [slot for slot, _ in next(steps).ends] == [0, 2]
    assert next(steps, "over") == "over"


def test_by_time_an_interrupt_passes_through_and_the_ends_are_delivered_after():
    batch = BatchedStream(ScriptedSource([["a"], KeyboardInterrupt()]), 1)
    steps = batch.steps()
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    [(slot, end)] = next(steps).ends
    assert (slot, end.reason) == (0, FinishReason.ERROR)
    assert next(steps, "over") == "over"


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt])
def test_by_time_an_error_of_closing_takes_no_delivery_with_it(error, monkeypatch):
    heard = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: heard.append(args.exc_value))
    close_error = error("in close")
    source = ScriptedSource([["a"], [Last("z")]], raise_at_close=close_error)
    steps = BatchedStream(source, 1).steps()
    next(steps)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            next(steps)
    last = next(steps)
    assert last.outputs == [(0, "z")]
    assert [slot for slot, _ in last.ends] == [0]
    assert next(steps, "over") == "over"
    assert heard == ([close_error] if error is asyncio.CancelledError else [])


def test_by_time_a_step_broken_off_delivers_the_end_of_every_slot():
    class BreakOff(BaseException):
        pass

    def is_eos(output):
        if output == "break":
            raise BreakOff
        return False

    batch = BatchedStream([["a", "b", "c"], [None, "b", "break"]], 3, is_eos=is_eos)
    *_, last = batch.steps()
    assert sorted(slot for slot, _ in last.ends) == [0, 1, 2]
    assert batch.statistics().finished == {FinishReason.ERROR: 3}


def test_by_time_closing_stops_the_steps():
    source = ScriptedSource([["a"]] * 3)
    with BatchedStream(source, 1) as batch:
        steps = batch.steps()
        next(steps)
    assert [str(end.reason) for _, end in next(steps).ends] == ["error"]
    with pytest.raises(ClosedError, match="the batch was closed before its steps had ended"):
        next(steps)
    assert next(steps, "over") == "over"
    assert source.closed == 1


def test_by_time_the_first_step_is_delivered_even_if_it_was_pulled_to_learn_the_size():
    batch = BatchedStream([["a", "x"], ["b", None]])
    assert [delivery.outputs for delivery in batch.steps()][:2] == [
        [(0, "a"), (1, "x")],
        [(0, "b")],
    ]


def test_a_batch_is_read_by_slot_or_by_time_never_both():
    by_time = BatchedStream(endless(), 2)
    next(by_time.steps())
    with pytest.raises(RuntimeError, match="steps\\(\\) has begun, streams cannot be read"):
        next(by_time[0])
    with pytest.raises(RuntimeError, match="steps\\(\\) has begun"):
        by_time[0].drain()
    by_slot = BatchedStream(endless(), 2)
    next(by_slot[0])
    with pytest.raises(RuntimeError, match="a stream has been read, steps\\(\\) cannot begin"):
        next(by_slot.steps())


def test_by_time_the_iterator_holds_its_batch():
    steps = BatchedStream([["a"], ["b"]], 1).steps()
    gc.collect()
    assert [delivery.outputs for delivery in steps] == [[(0, "a")], [(0, "b")], []]


# ---- the batch as a whole


def test_a_batch_is_a_sequence_of_its_streams():
    with BatchedStream(endless(3), 3) as batch:
        assert len(batch) == 3
        assert [stream.slot for stream in batch] == [0, 1, 2]
        assert batch[-1].slot == 2
        assert [stream.slot for stream in batch[1:]] == [1, 2]
        assert batch[1] is batch[1]
        assert batch[2] in batch
        with pytest.raises(IndexError):
            batch[3]
        for slot in (3, -1):
            with pytest.raises(IndexError, match=f"no slot {slot}, expected slots from 0 to 2"):
                batch.cancel(slot)
        with pytest.raises(TypeError, match=r"got <Stream 0, .*: call the cancel of the stream"):
            batch.cancel(batch[0])
        assert repr(batch) == "<BatchedStream, 3 of 3 streams live, 0 steps, 0 buffered>"
        next(batch[0])
        assert repr(batch) == "<BatchedStream, 3 of 3 streams live, 1 step, 2 buffered>"
        assert repr(batch[1]) == "<Stream 1, live, 1 buffered>"
        batch.cancel(1)
        assert repr(batch[1]) == "<Stream 1, cancelled, 0 buffered>"
        assert batch.live == (0, 2)


def test_statistics_agree_with_the_streams_while_a_cancel_waits_for_the_step():
    batches = []

    def source():
        yield ["a", "x"]
        batches[0].cancel(1)
        assert batches[0].live == (0,)
        assert batches[0].statistics().live == 1
        assert batches[0].statistics().finished == {FinishReason.CANCELLED: 1}
        yield ["b", Last("late")]
        yield [None, None]

    batches.append(BatchedStream(source(), 2))
    assert list(batches[0][0]) == ["a", "b"]
    assert batches[0][1].finish_reason is FinishReason.CANCELLED
    assert batches[0].statistics().finished == {FinishReason.CANCELLED: 1, FinishReason.EOS: 1}


def test_statistics_count_what_happened():
    batch = BatchedStream([["a", "x"], ["b", None], ["c", "pad"], [None, None]], 2)
    for _ in range(3):
        next(batch[0])
    next(batch[1])
    figures = batch.statistics()
    assert figures == batchstream.Statistics(
        steps=3,
        outputs=4,
        dropped=1,
        opened=2,
        live=1,
        finished={FinishReason.EOS: 1},
        buffered=0,
    )
    fuller = BatchedStream(endless(3), 3)
    deque(zip(range(100), fuller[0], strict=False), maxlen=0)
    assert fuller.statistics().buffered == 200
    fuller.cancel(1)
    assert fuller.statistics().buffered == 100
    fuller.close()
    assert fuller.statistics().live == 0
    assert len(fuller[2].drain()) == 100
    assert fuller.statistics().buffered == 0


def test_streams_are_made_by_the_library_only():
    for make in (Stream, lambda: Stream([[1]])):
        with pytest.raises(TypeError, match="made by demux, BatchedStream or a batcher only"):
            make()


# ---- threads and re-entrance


@pytest.mark.rule(4, 21)
def test_a_second_consumer_at_the_same_time_is_refused_and_the_first_served():
    gate = Gate()
    [stream] = demux(ScriptedSource([["a"]], gates={0: gate}), 1)
    received = []
    first = threading.Thread(target=lambda: received.append(next(stream)), daemon=True)
    first.start()
    assert gate.reached.wait(TIMEOUT)
    for _ in range(2):
        with pytest.raises(ConcurrentConsumerError, match="stream 0 has one consumer at a time"):
            next(stream)
        with pytest.raises(ConcurrentConsumerError):
            stream.drain()
    gate.opened.set()
    first.join(TIMEOUT)
    assert received == ["a"]
    assert list(stream) == []


@pytest.mark.rule(1)
def test_of_two_readers_one_pulls_and_the_other_finds_its_output():
    gate = Gate()
    source = ScriptedSource([["a", "x"], ["b", "y"]], gates={0: gate})
    first, second = demux(source, 2)
    received = {}

    def read(stream):
        received[stream.slot] = next(stream)

    def release():
        assert gate.reached.wait(TIMEOUT)
        gate.opened.set()

    run_in_threads(lambda: read(first), lambda: read(second), release)
    assert received == {0: "a", 1: "x"}
    assert len(source.sent) == 1, "one step was enough for both"
    assert first.finish_reason is second.finish_reason is None


@pytest.mark.rule(24)
def test_a_source_that_reads_its_own_stream_gets_an_error():
    streams = []

    def source():
        yield ["a", "x"]
        next(streams[1])
        next(streams[1])
        yield ["b", "y"]

    streams += demux(source(), 2)
    assert next(streams[0]) == "a"
    with pytest.raises(RuntimeError, match="waits for a step of its own"):
        next(streams[0])


def test_a_buffered_output_is_received_while_another_thread_is_in_the_source():
    gate = Gate()
    first, second = demux(ScriptedSource([["a", "x"], ["b", "y"]], gates={1: gate}), 2)
    assert next(first) == "a"
    reader = threading.Thread(target=lambda: next(first), daemon=True)
    reader.start()
    assert gate.reached.wait(TIMEOUT)
    assert next(second) == "x"
    assert second.drain() == []
    gate.opened.set()
    reader.join(TIMEOUT)
    assert next(second) == "y"


@pytest.mark.rule(24)
@pytest.mark.parametrize("place", ["predicate", "close", "step"])
def test_live_statistics_and_cancel_never_wait_for_user_code(place):
    """Call them from another thread while user code runs, and wait for them there."""
    batches = []

    def look_from_another_thread(*_):
        def look():
            assert batches[0].live is not None
            assert batches[0].statistics().steps >= 0
            batches[0][1].cancel()

        run_in_threads(look)

    def source():
        try:
            yield ["a", "x"]
            if place == "step":
                look_from_another_thread()
            yield [None, None]
        finally:
            if place == "close":
                look_from_another_thread()

    predicate = look_from_another_thread if place == "predicate" else None
    with BatchedStream(source(), 2, is_eos=predicate) as batch:
        batches.append(batch)
        assert list(batch[0]) == ["a"]


# ---- context


variable = ContextVar("variable", default="default")


@pytest.mark.rule(26)
def test_the_source_runs_in_a_copy_of_the_context_in_which_the_batch_was_opened():
    def source():
        while True:
            seen = variable.get()
            variable.set("set by the source")
            yield [seen]

    variable.set("of the opener")
    [stream] = demux(source(), 1)
    variable.set("changed later")
    assert [next(stream), next(stream)] == ["of the opener", "set by the source"]
    assert variable.get() == "changed later"


@pytest.mark.rule(26)
def test_closing_happens_in_the_same_context():
    seen = []

    def source():
        try:
            variable.set("set by the source")
            yield ["a"]
        finally:
            seen.append(variable.get())

    with BatchedStream(source(), 1) as batch:
        next(batch[0])
    assert seen == ["set by the source"]
