"""What every form of batch promises when it is left: cancelled, closed, dropped, or forgotten."""

from __future__ import annotations

import copy
import gc
import pickle
from contextvars import ContextVar
from functools import partial

import pytest

from batchstream import BatchedStream, ClosedError, FinishReason, ForkedError, Last
from support.forms import (
    FORMS,
    OVER,
    every_form,
    forms_in_loops,
    forms_that_run_ahead,
    pump_threads,
)
from support.programs import run_program
from support.sources import TIMEOUT, in_forked_child, needs_fork, pairs, run_in_threads

CANCELLED = FinishReason.CANCELLED


# ---- the source is closed


@pytest.mark.rule(10)
@every_form
async def test_the_source_is_closed_with_the_last_end_and_not_asked_again(form):
    script = form.script([["a", None], [Last("b"), None], ["never", "asked"]])
    first, second = form.open(script, 2)
    assert await form.rest(first) == ["a", "b"]
    await script.closed.wait()
    assert script.asked == 2
    assert await form.rest(second) == []


@pytest.mark.rule(10)
@every_form
async def test_cancelling_the_last_stream_closes_the_source(form):
    script = form.script(pairs(100))
    first, second = form.open(script, 2, max_buffered=2)
    await form.receive(first)
    first.cancel()
    assert await form.receive(second) == ("b", 0)
    assert script.closings == 0
    second.cancel()
    await script.closed.wait()
    assert script.asked <= 3


@pytest.mark.rule(10)
@every_form
async def test_a_batch_that_was_never_read_is_closed_without_a_step(form):
    script = form.script(pairs(2))
    batch = form.open(script, 2)
    await form.close(batch)
    assert (script.asked, script.closings) == (0, 1)
    for stream in batch:
        outputs, errors = await form.read(stream)
        assert outputs == []
        assert [type(error) for error in errors] == [ClosedError]


@pytest.mark.rule(10)
@every_form
async def test_streams_cancelled_before_the_first_receive_close_the_source(form):
    script = form.script(pairs(2))
    for stream in form.streams(script, 2):
        stream.cancel()
    await script.closed.wait()
    assert script.asked == 0


@pytest.mark.rule(10)
@every_form
async def test_closing_in_mid_batch_fails_what_is_live_and_keeps_what_had_finished(form):
    script = form.script([["a", Last("x")], ["b", None], *pairs(100)])
    batch = form.open(script, 2, max_buffered=2)
    assert await form.receive(batch[0]) == "a"
    for _ in range(2):
        await form.close(batch)
        assert script.closings == 1
        assert batch.live == ()
    assert batch[0].finish_reason is FinishReason.ERROR
    outputs, (error,) = await form.read(batch[0])
    assert outputs == ["b"][: len(outputs)]
    assert isinstance(error, ClosedError)
    assert str(error).startswith("the batch was closed before stream 0 had ended: ")
    assert await form.rest(batch[0]) == []
    assert await form.rest(batch[1]) == ["x"]


@pytest.mark.rule(5)
@every_form
async def test_a_closed_batch_fails_the_stream_behind_what_it_holds(form):
    batch = form.open(form.script([["a", "x"], ["b", "y"], *pairs(100)]), 2, max_buffered=2)
    assert [await form.receive(batch[0]) for _ in "ab"] == ["a", "b"]
    await form.close(batch)
    outputs, errors = await form.read(batch[1])
    assert outputs == ["x", "y"]
    assert [type(error) for error in errors] == [ClosedError]


@pytest.mark.rule(5)
@every_form
async def test_a_stream_that_was_cancelled_before_its_batch_was_closed_simply_ends(form):
    batch = form.open(form.script(pairs(100)), 2, max_buffered=2)
    await form.receive(batch[0])
    batch.cancel(0)
    await form.close(batch)
    batch.cancel(1)
    assert batch[0].finish_reason is CANCELLED
    assert [await form.read(stream) for stream in batch] == [([], []), ([], [])]


@pytest.mark.rule(5)
@every_form
async def test_a_batch_closed_before_it_had_ended_says_so_by_time_too(form):
    batch = form.open(form.script(pairs(100)), 2, max_buffered=2)
    steps = form.iterator(batch.steps())
    assert (await form.receive(steps)).outputs
    await form.close(batch)
    _, (error,) = await form.read(steps)
    assert isinstance(error, ClosedError)
    assert "closed before its steps had ended" in str(error)
    _, errors = await form.read(form.iterator(batch.steps()))
    assert errors == []


@pytest.mark.rule(5)
@every_form
async def test_every_end_is_in_exactly_one_delivery_of_a_batch_that_is_closed(form):
    batch = form.open(form.script(pairs(100)), 2, max_buffered=2)
    steps = form.iterator(batch.steps())
    await form.receive(steps)
    batch.cancel(1)
    await form.close(batch)
    deliveries, _ = await form.read(steps)
    ends = [(slot, str(end.reason)) for delivery in deliveries for slot, end in delivery.ends]
    assert sorted(ends) == [(0, "error"), (1, "cancelled")]


@pytest.mark.rule(5)
@every_form
async def test_a_batch_closed_after_its_end_has_steps_that_end(form):
    batch = form.open(form.script([[Last("a")]]), 1)
    steps = form.iterator(batch.steps())
    assert (await form.receive(steps)).outputs == [(0, "a")]
    await form.close(batch)
    assert await form.read(steps) == ([], [])


@pytest.mark.rule(10, 14)
@every_form
async def test_an_error_that_leaves_the_block_closes_the_source_and_passes(form):
    script = form.script(pairs(99))
    batch = form.open(script, None if not form.source_is_async else 2, max_buffered=2)
    error = KeyError("of the consumer")
    with pytest.raises(KeyError) as caught:
        await form.in_block(batch, partial(read_one_and_raise, form, batch, error))
    assert caught.value is error
    assert script.closings == 1
    assert [type(stream.end.error) for stream in batch] == [ClosedError, ClosedError]


async def read_one_and_raise(form, batch, error):
    assert await form.receive(batch[0]) == ("a", 0)
    raise error


@pytest.mark.rule(10)
@every_form
async def test_a_batch_closed_from_many_sides_at_once_is_closed_once(form):
    script = form.script(pairs(100))
    batch = form.open(script, 2, max_buffered=5)
    await form.receive(batch[0])
    await form.concurrently(*[partial(form.close, batch)] * 3)
    assert script.closings == 1


@pytest.mark.rule(10)
@every_form
async def test_closing_while_the_source_is_in_a_step_waits_for_it_or_breaks_it_off(form):
    gate = form.gate()
    script = form.script(pairs(9), gates={1: gate})
    batch = form.open(script, 2)

    async def close():
        await gate.reached.wait()
        await form.close(batch)
        assert script.closings == 1

    async def release():
        await gate.reached.wait()
        await form.all_wait()
        if not form.source_is_async:
            assert script.closings == 0
            gate.open()

    assert await form.receive(batch[0]) == ("a", 0)
    read, _, _ = await form.concurrently(partial(form.read, batch[0]), close, release)
    outputs, errors = read
    assert outputs == [] if form.source_is_async else outputs in ([], [("a", 1)])
    assert [type(error) for error in errors] == [ClosedError]
    assert script.asked == 2


@pytest.mark.rule(10)
@every_form
async def test_closing_returns_when_the_source_is_closed_and_not_before(form):
    """The close begins while the source is in a step, unless consumers pull."""
    held = {1: form.gate()} if form.runs_ahead else {}
    gate = form.gate()
    script = form.script(pairs(99), gates=held, gate_at_close=gate)
    batch = form.open(script, 2)
    await form.receive(batch[0])
    for step in held.values():
        await step.reached.wait()
    returned = []

    async def close():
        await form.close(batch)
        returned.append(script.closings)

    async def release():
        for step in held.values():
            await form.all_wait()
            step.open()
        await gate.reached.wait()
        await form.all_wait()
        assert returned == []
        gate.open()

    await form.concurrently(close, release)
    assert returned == [1]


@pytest.mark.rule(10)
@forms_in_loops
async def test_closing_that_is_cancelled_closes_the_source_later(form):
    gate = form.gate()
    script = form.script(pairs(9), gates={1: gate})
    batch = form.open(script, 2)
    await form.receive(batch[0])
    await gate.reached.wait()
    scope = form.scope()

    async def cancel():
        await form.all_wait()
        scope.cancel()

    await form.concurrently(partial(scope.run, partial(form.close, batch)), cancel)
    assert batch.live == ()
    gate.open()
    await script.closed.wait()
    outputs, errors = await form.read(batch[1])
    assert outputs[:1] == [("b", 0)]
    assert [type(error) for error in errors] == [ClosedError]


@pytest.mark.rule(10)
@forms_in_loops
async def test_closing_the_last_stream_waits_until_the_source_is_closed(form):
    script = form.script(pairs(9))
    first, second = form.open(script, 2, max_buffered=1)
    await form.receive(first)
    await first.aclose()
    assert script.closings == 0
    await second.aclose()
    assert script.closings == 1
    await second.aclose()


@pytest.mark.rule(10)
@every_form
async def test_closing_from_inside_the_source_is_no_deadlock(form):
    holder = []
    gate = form.gate()
    closed = form.flag()

    def model():
        try:
            yield ["a", "x"]
            gate.hold()
            holder[0].close()
            yield ["b", "y"]
            raise AssertionError("asked again")
        finally:
            closed.set()

    async def async_model():
        try:
            yield ["a", "x"]
            await gate.hold_async()
            await holder[0].aclose()
            raise AssertionError("asked again")
        finally:
            closed.set()

    if form.name in {"asyncio, sync source", "trio, sync source"}:
        return  # its source cannot await
    holder.append(form.open(async_model() if form.source_is_async else model(), 2))
    first, second = holder[0]
    assert await form.receive(first) == "a"
    gate.open()
    for stream in (first, second):
        _, errors = await form.read(stream)
        assert [type(error) for error in errors] == [ClosedError]
    await closed.wait()


@pytest.mark.rule(10)
@every_form
async def test_an_error_of_closing_is_raised_by_closing_once(form):
    script = form.script(pairs(99), raise_at_close=OSError("cannot free"))
    batch = form.open(script, 2, max_buffered=2)
    await form.receive(batch[0])
    with pytest.raises(OSError, match="cannot free"):
        await form.close(batch)
    await form.close(batch)
    assert batch.live == ()


@pytest.mark.rule(10)
@every_form
async def test_an_error_of_closing_goes_to_the_hook_where_no_caller_waits_for_it(form):
    heard = []
    original = OSError("cannot free")
    script = form.script([["a", "x"], [None, None]], raise_at_close=original)
    batch = form.open(script, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", lambda args: heard.append(args.exc_value))
        assert [await form.rest(stream) for stream in batch] == [["a"], ["x"]]
        await script.closed.wait()
        if form.runs_ahead:
            await form.all_wait()
            for thread in pump_threads():
                thread.join(TIMEOUT)
    assert heard == [original]
    await form.close(batch)


# ---- cancel


@pytest.mark.rule(11, 12)
@every_form
async def test_cancelling_one_changes_nothing_for_the_others(form):
    script = form.script([*pairs(6), [None, None]])
    first, second = form.open(script, 2, max_buffered=3)
    assert await form.receive(second) == ("b", 0)
    for _ in range(3):
        second.cancel()
    assert await form.receive(second) is OVER
    assert second.drain() == []
    assert second.finish_reason is CANCELLED
    assert await form.rest(first) == [("a", number) for number in range(6)]


@pytest.mark.rule(12)
@every_form
async def test_a_receive_after_a_cancel_sees_the_end_whatever_was_buffered(form):
    script = form.script(pairs(9))
    first, second = form.open(script, 2, max_buffered=5)
    for number in range(5):
        assert await form.receive(first) == ("a", number)
    assert await form.receive(second) == ("b", 0)  # its reader holds the others
    second.cancel()
    assert await form.receive(second) is OVER
    assert await form.receive(first) == ("a", 5)


@pytest.mark.rule(12)
@every_form
async def test_cancelling_after_the_end_discards_only_what_was_not_received(form):
    first, second = form.open(form.script([["a", "x"], ["b", None], [None, None]]), 2)
    assert await form.rest(first) == ["a", "b"]
    second.cancel()
    assert await form.rest(second) == []
    assert second.finish_reason is FinishReason.EOS


@pytest.mark.rule(12)
@forms_that_run_ahead
@pytest.mark.parametrize("where", ["here", "in a thread", "in the source"])
async def test_a_consumer_that_waits_sees_the_end_when_its_stream_is_cancelled(form, where):
    gates = {1: form.gate(), 2: form.gate()}

    def on_step(step):
        if step == 1 and where == "in the source":
            second.cancel()

    script = form.script([*pairs(3), [None, None]], gates=gates, on_step=on_step)
    first, second = form.open(script, 2)

    async def cancel():
        await gates[1].reached.wait()
        await form.all_wait()
        if where == "here":
            second.cancel()
        elif where == "in a thread":
            run_in_threads(second.cancel)
        else:
            gates[1].open()

    assert await form.receive(second) == ("b", 0)
    assert await form.concurrently(partial(form.rest, second), cancel) == [[], None]
    gates[1].open()
    gates[2].open()
    assert await form.rest(first) == [("a", number) for number in range(3)]


@pytest.mark.rule(12)
@forms_in_loops
async def test_a_stream_may_be_cancelled_from_a_callback_of_the_loop(form):
    gate = form.gate()
    first, second = form.open(form.script([*pairs(2), [None, None]], gates={1: gate}), 2)
    cancel = form.soon(second.cancel)

    async def release():
        await gate.reached.wait()
        await form.all_wait()
        cancel()

    assert await form.receive(second) == ("b", 0)
    assert await form.concurrently(partial(form.rest, second), release) == [[], None]
    gate.open()
    assert await form.rest(first) == [("a", 0), ("a", 1)]


@pytest.mark.rule(13)
@every_form
async def test_the_source_is_sent_each_departure_with_its_next_step(form):
    def on_step(step):
        if step in {1, 3}:
            streams[step].cancel()

    steps = [[0, 1, 2, 3]] * 5 + [[Last(0), 1, 2, 3], [None, 1, Last(2), 3]]
    script = form.script(steps, on_step=on_step)
    streams = form.open(script, 4)
    assert await form.rest(streams[0]) == [0] * 6
    assert await form.rest(streams[2]) == [2] * 7
    everyone = (0, 1, 2, 3)
    assert script.sent == [None, everyone, (0, 2, 3), (0, 2, 3), (0, 2), (0, 2), (2,)]
    assert script.sent[2] is script.sent[3]


# ---- locks


@pytest.mark.rule(24)
@every_form
@pytest.mark.parametrize("place", ["step", "predicate", "close"])
async def test_live_statistics_and_cancel_never_wait_for_user_code(form, place):
    holder = []

    def look():
        [batch] = holder
        assert batch.live is not None
        assert batch.statistics().steps >= 0
        batch[1].cancel()

    def look_from_a_thread():
        run_in_threads(look)
        looked.append(place)

    def is_eos(_):
        if place == "predicate":
            look_from_a_thread()
        return False

    def model():
        try:
            yield ["a", "x"]
            if place == "step":
                look_from_a_thread()
            yield ["b", None]
            yield [None, None]
        finally:
            if place == "close":
                look_from_a_thread()

    looked = []
    holder.append(form.open(form.generator(model()), 2, is_eos=is_eos))
    assert await form.rest(holder[0][0]) == ["a", "b"]
    await form.close(holder[0])
    assert set(looked) == {place}


# ---- dropped


@pytest.mark.rule(25)
@every_form
async def test_dropping_the_last_reference_to_a_stream_cancels_it(form):
    gates = {1: form.gate(), 2: form.gate()}
    if not form.runs_ahead:
        gates = {}
    script = form.script([*pairs(3), [None, None]], gates=gates)
    streams = form.streams(script, 2)
    assert await form.receive(streams[0]) == ("a", 0)
    for gate in gates.values():
        await gate.reached.wait()
        if len(streams) == 2:
            del streams[1]
        gate.open()
    del streams[1:]
    assert await form.rest(streams[0]) == [("a", 1), ("a", 2)]
    assert script.sent[2] == (0,)


@pytest.mark.rule(25)
@every_form
async def test_dropping_all_streams_closes_the_source_without_noise(form):
    script = form.script(pairs(99))
    streams = form.streams(script, 2, max_buffered=2)
    await form.receive(streams[0])
    streams.clear()
    await script.closed.wait()
    assert script.asked <= 3
    gc.collect()


@pytest.mark.rule(25)
@every_form
async def test_a_batch_that_is_dropped_unread_closes_its_source_without_noise(form):
    script = form.script(pairs(9))
    form.streams(script, 2)
    await script.closed.wait()
    gc.collect()


@pytest.mark.rule(25)
@every_form
async def test_a_generator_that_is_left_in_mid_batch_is_closed_without_noise(form):
    left = form.flag()

    def model():
        try:
            yield from (step for step in pairs(99))  # one that can be sent to
        finally:
            left.set()

    streams = form.streams(form.generator(model()), 2, max_buffered=2)
    await form.receive(streams[1])
    streams.clear()
    await left.wait()
    gc.collect()


@pytest.mark.rule(25)
@forms_in_loops
async def test_a_loop_that_ends_before_its_batch_closes_the_source_without_noise(form):
    gate = form.gate()
    script = form.script(pairs(9), gates={1: gate})

    async def leave():
        streams = form.streams(script, 2)
        assert await form.receive(streams[0]) == ("a", 0)
        await form.broken_off(streams[0])
        return streams

    streams = await form.in_another_loop(leave)
    streams.clear()
    gate.open()
    await script.closed.wait()
    gc.collect()


# ---- context

variable = ContextVar("variable", default="default")


@pytest.mark.rule(26)
@every_form
async def test_the_source_runs_in_a_copy_of_the_context_in_which_the_batch_was_opened(form):
    seen = []

    def model():
        try:
            seen.append(variable.get())
            variable.set("of the source")
            yield ["a"]
            seen.append(variable.get())
            yield ["b"]
            yield [None]
        finally:
            seen.append(variable.get())

    variable.set("of the opener")
    batch = form.open(form.generator(model()), 1)
    variable.set("changed later")
    assert await form.rest(batch[0]) == ["a", "b"]
    await form.close(batch)
    assert seen == ["of the opener", "of the source", "of the source"]
    assert variable.get() == "changed later"


# ---- other processes


@pytest.mark.rule(27)
@every_form
async def test_streams_and_batches_refuse_to_be_pickled_or_copied(form):
    batch = form.open(form.script(pairs(1)), 2)
    for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="stream 0 cannot be pickled or copied"):
            refuse(batch[0])
        with pytest.raises(TypeError, match="BatchedStream cannot be pickled or copied"):
            refuse(batch)


@pytest.mark.rule(27)
def test_the_steps_of_a_batch_refuse_to_be_pickled_or_copied():
    steps = BatchedStream(pairs(1), 2).steps()
    for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="steps of a batch cannot be pickled or copied"):
            refuse(steps)
    assert next(steps).slots == (0, 1)


@pytest.mark.rule(27)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Trio's signal handling:RuntimeWarning")  # a fork's doing
@every_form
@pytest.mark.parametrize("view", ["waited for before", "not read yet", "by time", "never begun"])
async def test_use_in_a_forked_child_raises_and_the_parent_goes_on(form, view):
    gate = form.gate()
    script = form.script([*pairs(3), [None, None]], gates={1: gate})
    batch = form.open(script, 2)
    steps = batch.steps()
    if view == "by time":
        await form.receive(steps)
    elif view != "never begun":
        await form.receive(batch[0])
    reader = {"not read yet": batch[1], "by time": steps}.get(view, batch[0])
    results = []

    def use_in_child():
        async def use():
            with pytest.raises(ForkedError, match="this batch was opened in another process"):
                await form.receive(reader)
            batch[0].cancel()
            await form.close(batch)
            return script.closings

        return form.in_own_loop(use)

    # In a thread of its own, which in the child runs no loop.
    run_in_threads(lambda: results.append(in_forked_child(use_in_child)))
    assert results == ["0"]
    gate.open()
    if view == "by time":
        assert len(await form.rest(steps)) == 3
    else:
        assert (await form.rest(batch[0]))[-1:] == [("a", 2)]


FROM_ASYNC_SOURCE = """
    async def main():
        global streams
        streams = batchstream.demux(async_source(), 2)
        await anext(streams[0])
"""
FROM_SYNC_SOURCE = """
    async def main():
        global batch
        batch = batchstream.AsyncBatchedStream(source(), 2)
        await anext(batch[0])
"""
IN_ASYNCIO = """
    asyncio.run(main())
"""
IN_TRIO = """
    import trio
    trio.run(main)
"""

# A name of a form, and what reads one output and leaves all else.
PROGRAMS = {
    "pulled": [
        """
        stream = batchstream.demux(source(), 2)[0]
        next(stream)
        """
    ],
    "background": [
        """
        batch = batchstream.BatchedStream(source(), 2, background=True)
        next(batch[0])
        """
    ],
    "asyncio, async source": [FROM_ASYNC_SOURCE, IN_ASYNCIO],
    "asyncio, sync source": [FROM_SYNC_SOURCE, IN_ASYNCIO],
    "trio, async source": [FROM_ASYNC_SOURCE, IN_TRIO],
    "trio, sync source": [FROM_SYNC_SOURCE, IN_TRIO],
}

SOURCES = """
    import asyncio
    import threading
    import batchstream

    def source():
        yield ["a", "x"]
        while {condition}:
            yield ["a", "x"]

    async def async_source():
        for step in source():
            yield step
"""


@pytest.mark.rule(28)
@pytest.mark.parametrize("condition", ["True", "threading.Event().wait()"], ids=["ready", "stuck"])
@pytest.mark.parametrize(
    "form", [form for form in FORMS if form.name in PROGRAMS], ids=lambda form: form.name
)
def test_a_program_that_abandons_streams_exits_silently_and_soon(form, condition):
    if condition != "True" and (form.source_is_async or not form.runs_ahead):
        pytest.skip("a source that blocks its consumer's own thread cannot be left")
    if form.name.startswith("trio"):
        pytest.importorskip("trio")
    ended = run_program(SOURCES.format(condition=condition), *PROGRAMS[form.name])
    assert ended == (0, "", "")


@pytest.mark.rule(28)
@every_form
async def test_once_a_batch_is_closed_its_thread_has_ended(form):
    batch = form.open(form.script(pairs(99)), 2, max_buffered=2)
    await form.receive(batch[0])
    await form.close(batch)
    for thread in pump_threads():
        if form.name != "background":  # in a loop the end is waited for, and not the last instant
            thread.join(TIMEOUT)
        assert not thread.is_alive()
