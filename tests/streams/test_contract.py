"""What every form of batch promises: outputs, consumers, buffers and loops."""

from __future__ import annotations

import threading
from functools import partial
from itertools import cycle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchstream import (
    EOS,
    AsyncBatchedStream,
    BatchedStream,
    BufferOverflowError,
    ClosedError,
    ConcurrentConsumerError,
    End,
    FinishReason,
    Last,
    Many,
    SlowConsumerError,
    token_ids,
)
from support import knobs
from support.forms import (
    FORMS,
    OVER,
    PATIENCE,
    Background,
    every_form,
    forms_in_loops,
    forms_that_run_ahead,
    forms_with_async_sources,
)
from support.sources import OfUnhashableType, Untouchable, pairs
from support.strategies import batches, same

RAGGED = [
    ["a", "x", "p"],
    ["b", None, "q"],
    ["c", "pad", Last("r", "length")],
    [Many(["d", "e"]), "pad", "pad"],
    [None, None, None],
]
OUTPUTS = [["a", "b", "c", "d", "e"], ["x"], ["p", "q", "r"]]
REASONS = [FinishReason.EOS, FinishReason.EOS, FinishReason.LENGTH]


# ---- outputs


@every_form
async def test_is_eos_may_say_how_and_with_what_a_stream_ends(form):
    usage = {"tokens": 2}

    def is_eos(output):
        return output in ("b", "y") and End("length" if output == "y" else "eos", usage)

    script = form.script([["a", "x", "p"], ["b", "y", "q"], ["late", "late", None]])
    batch = form.open(script, 3, is_eos=is_eos, include_eos=True)
    assert [await form.rest(stream) for stream in batch] == [["a", "b"], ["x", "y"], ["p", "q"]]
    assert [stream.finish_reason for stream in batch] == ["eos", "length", "eos"]
    assert [stream.end.info for stream in batch] == [usage, usage, None]


@every_form
async def test_a_source_that_wraps_streams_hands_on_each_reason(form):
    script = form.script(
        [[End("eos"), End("length"), Last("p", "exhausted"), End(FinishReason.CANCELLED)]]
    )
    batch = form.open(script, 4)
    assert [await form.rest(stream) for stream in batch] == [[], [], ["p"], []]
    reasons = [stream.finish_reason for stream in batch]
    assert reasons == ["eos", "length", "exhausted", "cancelled"]


@pytest.mark.rule(32)
@every_form
async def test_an_is_eos_that_was_never_true_warns(form):
    batch = form.open(form.script([["a", "x"], ["b", "y"]]), 2, is_eos=token_ids(2))
    with pytest.warns(RuntimeWarning, match=r"true of none of the 4 outputs.*token_ids\(2\)"):
        assert [await form.rest(stream) for stream in batch] == [["a", "b"], ["x", "y"]]
    assert [stream.finish_reason for stream in batch] == ["exhausted", "exhausted"]


@pytest.mark.rule(5, 32)
@every_form
async def test_where_warnings_are_errors_an_is_eos_that_was_never_true_is_one(form):
    batch = form.open(form.script([["a", "x"], ["b", "y"]]), 2, is_eos=token_ids(2))
    for stream, outputs in zip(batch, [["a", "b"], ["x", "y"]], strict=True):
        received, [error] = await form.read(stream)
        assert received == outputs
        assert isinstance(error, RuntimeWarning)


@pytest.mark.rule(32)
@every_form
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"is_eos": token_ids(2)}, [[1, 2], [3, 2]]),
        ({"is_eos": token_ids(2), "max_outputs": 2}, [[1, 1], [3, 3]]),
        ({"is_eos": token_ids(None)}, [[1, 1], [3, 3]]),
        ({"is_eos": token_ids(2)}, [[1, None], [3, 3]]),
        ({"is_eos": token_ids(2)}, [[1, 1], [End("exhausted"), End("exhausted")]]),
        ({"is_eos": token_ids(2)}, []),
    ],
    ids=["matched", "limited", "no id", "marked", "said by the source", "no output"],
)
async def test_what_is_eos_need_not_end_warns_of_nothing(form, options, steps):
    batch = form.open(form.script(steps), 2, **options)
    assert [(await form.read(stream))[1] for stream in batch] == [[], []]


@pytest.mark.rule(2, 3)
@every_form
async def test_each_stream_gives_its_own_outputs_in_order_and_ends(form):
    script = form.script(RAGGED)
    batch = form.open(script, 3)
    assert [await form.rest(stream) for stream in batch] == OUTPUTS
    assert [stream.finish_reason for stream in batch] == REASONS
    assert [stream.end.outputs for stream in batch] == [5, 1, 3]


@pytest.mark.rule(2, 3)
@every_form
async def test_consumers_at_the_same_time_get_each_its_own_outputs(form):
    batch = form.open(form.script(RAGGED), 3)
    readers = [partial(form.rest, stream) for stream in batch]
    assert await form.concurrently(*readers) == OUTPUTS


@pytest.mark.rule(2)
@every_form
async def test_streams_give_the_same_if_no_other_reference_is_held(form):
    streams = form.streams(form.script(RAGGED), 3)
    assert [await form.rest(stream) for stream in streams] == OUTPUTS


@pytest.mark.rule(1, 2)
@every_form
async def test_a_generator_is_a_source_like_any_other(form):
    sent = []

    def model():
        for step in RAGGED:
            sent.append((yield step))  # noqa: PERF401 - no comprehension can yield

    batch = form.open(form.generator(model()), 3)
    assert [await form.rest(stream) for stream in batch] == OUTPUTS
    assert sent == [(0, 1, 2), (0, 2), (0,), (0,)]


@pytest.mark.rule(2)
@every_form
async def test_what_drain_takes_is_not_given_again(form):
    gate = form.gate()
    script = form.script([*pairs(3), ["c", "z"], [None, None]], gates={3: gate})
    first, second = form.open(script, 2)
    for number in range(3):
        assert await form.receive(first) == ("a", number)

    async def look():
        await gate.reached.wait()
        assert await form.receive(second) == ("b", 0)
        assert second.drain() == [("b", 1), ("b", 2)]
        assert second.drain() == []
        gate.open()

    assert await form.concurrently(partial(form.rest, first), look) == [["c"], None]
    assert await form.rest(second) == ["z"]


@pytest.mark.rule(5)
@every_form
async def test_a_finished_stream_stays_finished(form):
    [stream] = form.open(form.script([["a"], [None], ["late"]]), 1)
    assert await form.rest(stream) == ["a"]
    for _ in range(3):
        assert await form.receive(stream) is OVER
    assert stream.drain() == []


@pytest.mark.rule(6)
@every_form
async def test_outputs_of_every_kind_pass_untouched(form):
    kinds = [
        Untouchable(),
        OfUnhashableType(),
        np.zeros(2),
        StopIteration,
        StopIteration(),
        StopAsyncIteration(),
        ValueError("data"),
        None,
        0,
        [],
    ]
    batch = form.open(form.script([[kind, kind] for kind in kinds] + [[EOS, EOS]]), 2, eos=EOS)
    for stream in batch:
        assert same(await form.rest(stream), kinds)


@pytest.mark.rule(6)
@every_form
async def test_outputs_for_a_finished_slot_are_dropped_and_counted(form):
    script = form.script([["a", None], ["b", Untouchable()], ["c", "pad"], [None, None]])
    batch = form.open(script, 2)
    assert [await form.rest(stream) for stream in batch] == [["a", "b", "c"], []]
    figures = batch.statistics()
    assert (figures.outputs, figures.dropped, figures.live, figures.buffered) == (3, 2, 0, 0)


@pytest.mark.rule(7)
@every_form
async def test_a_stream_has_ended_before_the_source_is_asked_again(form):
    reasons = []
    steps = [["a", "x"], ["b", None], ["c", None], [None, None]]
    script = form.script(steps, on_step=lambda _: reasons.append(second.finish_reason))
    first, second = form.open(script, 2)
    assert await form.rest(second) == ["x"]
    assert await form.rest(first) == ["a", "b", "c"]
    assert reasons == [None, None, FinishReason.EOS, FinishReason.EOS]


@pytest.mark.rule(7)
@forms_that_run_ahead
async def test_a_stream_ends_while_the_source_is_held_in_the_next_step(form):
    gate = form.gate()
    steps = [["a", "x"], ["b", None], ["c", None], [None, None]]
    first, second = form.open(form.script(steps, gates={2: gate}), 2)
    assert await form.rest(second) == ["x"]
    gate.open()
    assert await form.rest(first) == ["a", "b", "c"]


@pytest.mark.rule(7)
@forms_that_run_ahead
async def test_an_output_does_not_wait_for_the_next_step(form):
    gate = form.gate()
    first, second = form.open(form.script(pairs(2), gates={1: gate}), 2)
    assert await form.receive(first) == ("a", 0)
    await gate.reached.wait()
    assert await form.receive(second) == ("b", 0)


# ---- receives that are broken off


@pytest.mark.rule(4)
@forms_that_run_ahead
@pytest.mark.parametrize("held", [0, 1])
async def test_a_receive_broken_off_while_it_waits_takes_nothing(form, held):
    gate = form.gate()
    script = form.script([*pairs(2), [None, None]], gates={held: gate})
    first, second = form.open(script, 2)
    for number in range(held):
        assert await form.receive(first) == ("a", number)
    for _ in range(3):
        await form.broken_off(first)
    gate.open()
    assert await form.rest(first) == [("a", n) for n in range(held, 2)]
    assert await form.rest(second) == [("b", 0), ("b", 1)]
    assert script.sent == [None, (0, 1), (0, 1)]


@pytest.mark.rule(4, 23)
@forms_in_loops
@pytest.mark.parametrize("when", ["before", "with", "after"])
async def test_a_receive_cancelled_by_the_step_that_brings_its_output_loses_nothing(form, when):
    gate = form.gate()
    scope = form.scope()
    soon = form.soon(scope.cancel)

    def cancel(step):
        if step == (2 if when == "after" else 1):
            # At once where the source is in the loop: then the output finds a waiter that has gone.
            (scope.cancel if form.source_is_async and when == "before" else soon)()

    first, _ = form.open(form.script([*pairs(3), [None, None]], gates={1: gate}, on_step=cancel), 2)
    received = [await form.receive(first)]

    async def receive():
        received.append(await form.receive(first))

    async def release():
        await gate.reached.wait()
        await form.all_wait()
        gate.open()

    await form.concurrently(partial(scope.run, receive), release)
    assert received + await form.rest(first) == [("a", number) for number in range(3)]


@pytest.mark.rule(4, 23)
@forms_in_loops
async def test_a_receive_cancelled_when_it_was_already_woken_loses_nothing(form):
    rounds = 20
    gates = {number: form.gate() for number in range(rounds)}
    batch = form.open(form.script(pairs(rounds), gates=gates), 2)
    received = [[], []]
    for number in range(rounds):
        scopes = [form.scope(), form.scope()]

        async def consume(slot, scopes):
            async def receive():
                received[slot].append(await form.receive(batch[slot]))
                scopes[1 - slot].cancel()  # of two that are woken together the first does this

            await scopes[slot].run(receive)

        async def release(gate):
            await form.all_wait()
            gate.open()

        await form.concurrently(
            partial(consume, 0, scopes),
            partial(consume, 1, scopes),
            partial(release, gates[number]),
        )
    for slot, letter in enumerate("ab"):
        assert received[slot] + await form.rest(batch[slot]) == [(letter, n) for n in range(rounds)]


@pytest.mark.rule(14)
@forms_in_loops
async def test_a_cancelled_consumer_is_cancelled_and_no_other(form):
    gate = form.gate()
    first, second = form.open(form.script([["a", "x"], [None, None]], gates={0: gate}), 2)
    scope = form.scope()

    async def cancel():
        await gate.reached.wait()
        await form.all_wait()
        scope.cancel()
        await form.all_wait()
        gate.open()

    cancelled, outputs, _ = await form.concurrently(
        partial(scope.run, partial(form.receive, first)), partial(form.rest, second), cancel
    )
    assert cancelled
    assert outputs == ["x"]
    assert await form.rest(first) == ["a"]


# ---- consumers


@pytest.mark.rule(4, 21)
@every_form
async def test_a_second_consumer_at_the_same_time_is_refused_and_the_first_served(form):
    gate = form.gate()
    [stream] = form.open(form.script([["a"], [None]], gates={0: gate}), 1)

    async def interfere():
        await gate.reached.wait()  # the receive that lets the source begin is waiting
        for _ in range(2):
            with pytest.raises(
                ConcurrentConsumerError, match=r"stream 0 has .*let one t[a-z]+ rec"
            ):
                await form.receive(stream)
            with pytest.raises(ConcurrentConsumerError):
                stream.drain()
        gate.open()

    assert await form.concurrently(partial(form.receive, stream), interfere) == ["a", None]
    assert await form.rest(stream) == []


@pytest.mark.rule(21, 22)
@forms_in_loops
async def test_streams_of_one_batch_may_live_in_different_loops(form):
    batch = form.open(form.script(pairs(50)), 2, max_buffered=2)

    async def elsewhere():
        return await form.in_another_loop(partial(form.rest, batch[1]))

    assert await form.concurrently(partial(form.rest, batch[0]), elsewhere) == [
        [("a", number) for number in range(50)],
        [("b", number) for number in range(50)],
    ]


@pytest.mark.rule(22)
@forms_in_loops
async def test_a_receive_that_would_wait_in_another_loop_is_refused(form):
    gate = form.gate()
    [stream] = form.open(form.script([["a"], ["b"], [None]], gates={1: gate}), 1)
    assert await form.receive(stream) == "a"
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stream 0 belongs to the event loop"):
            await form.in_another_loop(partial(form.receive, stream))
    gate.open()
    assert await form.rest(stream) == ["b"]


@pytest.mark.rule(22)
@forms_in_loops
async def test_the_streams_of_a_closed_loop_are_cancelled_and_the_others_go_on(form):
    gate = form.gate()
    script = form.script([*pairs(8), [None, None]], gates={0: gate})
    batch = form.open(script, 2, max_buffered=2)

    async def wait_in_vain():
        await form.broken_off(batch[1])

    async def elsewhere():
        await gate.reached.wait()
        await form.in_another_loop(wait_in_vain)
        gate.open()

    outputs, _ = await form.concurrently(partial(form.rest, batch[0]), elsewhere)
    assert outputs == [("a", number) for number in range(8)]
    assert batch[1].finish_reason is FinishReason.CANCELLED
    assert script.sent[-1] == (0,)


@pytest.mark.rule(22)
@forms_with_async_sources
async def test_when_the_loop_of_the_pump_ends_streams_in_other_loops_fail(form):
    """The batch begins in the loop in which one stream is waited for first."""
    begun, wait = form.flag(), threading.Event()
    gate = form.gate()
    batch = form.open(form.script(pairs(2), gates={1: gate}), 2)

    async def begin():
        assert await form.receive(batch[1]) == ("b", 0)
        begun.set()
        assert wait.wait(PATIENCE)

    async def read():
        await begun.wait()
        assert await form.receive(batch[0]) == ("a", 0)

        async def end():
            await form.all_wait()
            wait.set()

        (outputs, errors), _ = await form.concurrently(partial(form.read, batch[0]), end)
        assert outputs == []
        assert [type(error) for error in errors] == [ClosedError]

    await form.concurrently(read, partial(form.in_another_loop, begin))
    assert batch[1].finish_reason is FinishReason.ERROR


# ---- buffers


class Room:
    """Notes at each step of a source how much its streams hold at most."""

    def __init__(self):
        self.batch = None
        self.held = []

    def look(self, _):
        self.held.append(max(knobs.buffered(stream) for stream in self.batch))


@pytest.mark.rule(19)
@forms_that_run_ahead
@pytest.mark.parametrize("max_buffered", [1, 3])
async def test_the_source_waits_for_the_stream_that_is_not_read(form, max_buffered):
    room = Room()
    script = form.script(pairs(10), on_step=room.look)
    batch = room.batch = form.open(script, 2, max_buffered=max_buffered)
    first, second = batch
    for number in range(max_buffered):
        assert await form.receive(first) == ("a", number)
    await form.broken_off(first)
    assert script.asked == max_buffered
    assert batch.statistics().buffered == max_buffered
    for number in range(10 - max_buffered):
        assert await form.receive(second) == ("b", number)
        assert await form.receive(first) == ("a", number + max_buffered)
    assert max(room.held) < max_buffered


@pytest.mark.rule(19)
@forms_that_run_ahead
async def test_draining_makes_room_for_the_next_step(form):
    script = form.script(pairs(5))
    first, second = form.open(script, 2, max_buffered=2)
    await form.receive(first)
    await form.receive(first)
    await form.broken_off(first)
    assert second.drain() == [("b", 0), ("b", 1)]
    assert await form.receive(first) == ("a", 2)


@pytest.mark.rule(19)
@forms_that_run_ahead
async def test_the_other_streams_go_on_when_the_unread_one_is_cancelled(form):
    script = form.script([*pairs(6), [None, None]])
    first, second = form.open(script, 2, max_buffered=2)
    await form.receive(first)
    await form.receive(first)
    await form.broken_off(first)
    second.cancel()
    assert await form.rest(first) == [("a", number) for number in range(2, 6)]


@pytest.mark.rule(19)
@forms_that_run_ahead
async def test_many_outputs_in_one_step_exceed_the_bound_by_that_step_alone(form):
    room = Room()
    script = form.script([["a", Many(range(5))], ["b", "x"], [None, None]], on_step=room.look)
    first, second = room.batch = form.open(script, 2, max_buffered=2)
    assert await form.receive(first) == "a"
    await form.broken_off(first)
    assert script.asked == 1
    assert await form.rest(second) == [0, 1, 2, 3, 4, "x"]
    assert await form.rest(first) == ["b"]
    assert max(room.held) < 2


@pytest.mark.rule(19)
@every_form
async def test_a_bound_without_policy_is_refused_or_waited_for_but_never_exceeded(form):
    script = form.script([*pairs(6), [None, None]])
    first, second = form.open(script, 2, max_buffered=2)
    assert [await form.receive(first) for _ in range(2)] == [("a", 0), ("a", 1)]
    if not form.runs_ahead:
        with pytest.raises(BufferOverflowError):
            await form.receive(first)
    assert script.asked == 2
    assert await form.receive(second) == ("b", 0)
    assert await form.receive(first) == ("a", 2)


@pytest.mark.rule(19)
@forms_that_run_ahead
@pytest.mark.parametrize("max_buffered", [1, 3])
async def test_a_slow_stream_is_ended_where_the_policy_says_so(form, max_buffered):
    gates = {number: form.gate() for number in range(10)}
    script = form.script([*pairs(10), [None, None]], gates=gates)
    batch = form.open(script, 2, max_buffered=max_buffered, on_overflow="cancel")
    first, second = batch
    for number in range(10):
        gates[number].open()
        assert await form.receive(first) == ("a", number)
        assert batch.statistics().buffered <= max_buffered + 1
    assert await form.rest(first) == []
    assert second.finish_reason is FinishReason.ERROR
    outputs, [error] = await form.read(second)
    assert outputs == [("b", number) for number in range(max_buffered + 1)]
    assert isinstance(error, SlowConsumerError)
    assert (error.slot, error.max_buffered) == (1, max_buffered)
    assert "read the streams at the same time; or pass a larger max_buffered; or" in str(error)
    assert "take all outputs with collect(); or pass on_overflow='wait'" in str(error)
    assert script.sent[max_buffered + 1 :] == [(0,)] * (10 - max_buffered)


@pytest.mark.rule(19)
def test_no_bound_means_the_same_for_every_batch_that_runs_ahead():
    async def source():
        yield [0]

    batches = [
        AsyncBatchedStream([[0]], 1, max_buffered=None),
        AsyncBatchedStream(source(), 1, max_buffered=None),
        BatchedStream([[0]], 1, background=True, max_buffered=None),
    ]
    for batch in batches:
        assert knobs.bound_of(batch) == knobs.DEFAULT_MAX_BUFFERED


# ---- event loops


@pytest.mark.rule(20)
@forms_in_loops
async def test_a_consumer_with_much_to_read_gives_its_turn_to_the_others(form):
    gate = form.gate()
    first, _ = form.open(form.script(pairs(320), gates={319: gate}), 2, max_buffered=320)
    await form.receive(first)
    await gate.reached.wait()
    turns = 0
    reading = True

    async def read():
        nonlocal reading
        for number in range(1, 319):
            assert await form.receive(first) == ("a", number)
        reading = False

    async def count():
        nonlocal turns
        while reading:
            turns += 1
            await form.checkpoint()

    await form.concurrently(read, count)
    assert turns >= 318 // knobs.OUTPUTS_PER_TURN


@pytest.mark.rule(20)
@forms_with_async_sources
async def test_a_source_that_is_always_ready_gives_its_turn_to_other_tasks(form):
    first, _ = form.open(form.script([*pairs(200), [None, None]]), 2)
    turns = 0

    async def count():
        nonlocal turns
        while first.finish_reason is None:
            turns += 1
            await form.checkpoint()

    await form.concurrently(partial(form.rest, first), count)
    assert turns >= 100


@pytest.mark.rule(20)
@forms_in_loops
async def test_a_step_wakes_all_its_consumers_with_one_call_into_their_loop(form):
    if form.source_is_async:
        return  # in its own loop it makes none
    with form.counting_wakeups() as wakeups:
        gates = {number: form.gate() for number in range(5)}
        batch = form.open(form.script([range(8)] * 5 + [[None] * 8], gates=gates), 8)
        for gate in gates.values():

            async def release(gate=gate):
                await form.all_wait()
                gate.open()

            *outputs, _ = await form.concurrently(
                *(partial(form.receive, stream) for stream in batch), release
            )
            assert outputs == list(range(8))
    assert len(wakeups) == 5


# ---- by time


@pytest.mark.rule(2)
@every_form
async def test_by_time_every_output_and_end_is_in_the_step_that_brought_it(form):
    batch = form.open(form.script(RAGGED), 3)
    delivered = [
        (delivery.outputs, [(slot, end.reason) for slot, end in delivery.ends])
        for delivery in await form.rest(batch.steps())
    ]
    assert delivered == [
        ([(0, "a"), (1, "x"), (2, "p")], []),
        ([(0, "b"), (2, "q")], [(1, FinishReason.EOS)]),
        ([(0, "c"), (2, "r")], [(2, FinishReason.LENGTH)]),
        ([(0, "d"), (0, "e")], []),
        ([], [(0, FinishReason.EOS)]),
    ]


@every_form
async def test_a_batch_is_read_by_slot_or_by_time_never_both(form):
    by_time = form.open(form.script(pairs(3)), 2, max_buffered=1)
    await form.receive(by_time.steps())
    with pytest.raises(RuntimeError, match=r"steps\(\) has begun, streams cannot be read"):
        await form.receive(by_time[0])
    with pytest.raises(RuntimeError, match=r"steps\(\) has begun"):
        by_time[0].drain()
    by_slot = form.open(form.script(pairs(3)), 2, max_buffered=1)
    await form.receive(by_slot[0])
    with pytest.raises(RuntimeError, match=r"a stream has been read, steps\(\) cannot begin"):
        await form.receive(by_slot.steps())


@every_form
async def test_a_batch_that_has_ended_by_slot_is_not_read_by_time_either(form):
    script = form.script([["a", "x"], [None, None]])
    batch = form.open(script, 2)
    assert await form.rest(batch[0]) == ["a"]
    await script.closed.wait()
    with pytest.raises(RuntimeError, match=r"a stream has been read, steps\(\) cannot begin"):
        await form.receive(batch.steps())


@every_form
async def test_by_time_a_cancelled_slot_is_delivered_once(form):
    script = form.script([*pairs(6), [None, None]])
    batch = form.open(script, 2, max_buffered=1)
    steps = batch.steps()
    await form.receive(steps)
    batch.cancel(1)
    batch.cancel(1)
    delivered = [end for delivery in await form.rest(steps) for end in delivery.ends]
    assert [(slot, end.reason) for slot, end in delivered] == [
        (1, FinishReason.CANCELLED),
        (0, FinishReason.EOS),
    ]


@pytest.mark.rule(19)
@forms_that_run_ahead
async def test_by_time_the_source_waits_for_the_reader_of_the_deliveries(form):
    asked = []
    script = form.script(pairs(9), on_step=lambda _: asked.append(knobs.buffered_deliveries(batch)))
    batch = form.open(script, 2, max_buffered=2)
    assert len(await form.rest(batch.steps())) == 10
    assert max(asked) <= 1


# ---- batches of every kind


async def consume(form, stream, give_up_after):
    """Read a stream to its end, or up to where it is given up."""
    outputs, errors = [], []
    while give_up_after is None or len(outputs) < give_up_after:
        try:
            output = await form.receive(stream)
        except ValueError as error:
            errors.append(error)
        else:
            if output is OVER:
                return outputs, errors
            outputs.append(output)
    stream.cancel()
    assert await form.receive(stream) is OVER
    return outputs, errors


@pytest.mark.rule(2, 3, 6, 11)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(
    batch=batches(),
    max_buffered=st.integers(1, 3),
    give_up_after=st.lists(st.none() | st.none() | st.integers(0, 4), min_size=5, max_size=5),
)
def test_streams_of_any_batch_equal_the_reference(form, batch, max_buffered, give_up_after):
    async def scenario(form):
        options = {"max_buffered": max_buffered} if form.runs_ahead else {}
        opened = form.open(form.script(batch.steps), len(batch.slots), eos=batch.eos, **options)
        results = await form.concurrently(
            *(partial(consume, form, *each) for each in zip(opened, give_up_after, strict=False))
        )
        for stream, slot, limit, (outputs, errors) in zip(
            opened, batch.slots, give_up_after, results, strict=False
        ):
            if limit is not None and len(outputs) == limit:
                assert same(outputs, slot.outputs[:limit])
                assert stream.finish_reason in {FinishReason.CANCELLED, slot.reason}
                continue
            assert same(outputs, slot.outputs)
            assert stream.finish_reason is slot.reason
            assert stream.end.info is slot.info
            assert [error.__cause__ for error in errors] == [slot.error] * bool(slot.error)

    form.run(scenario)


@pytest.mark.rule(4)
@given(
    batch=batches(),
    max_buffered=st.integers(1, 3),
    timeouts=st.lists(st.sampled_from([0, 1e-6, 1e-4]), min_size=1, max_size=5),
)
def test_receives_that_time_out_at_any_moment_lose_nothing(batch, max_buffered, timeouts):
    async def consume_in_haste(stream):
        outputs, errors = [], []
        for timeout in cycle([*timeouts, PATIENCE]):
            try:
                outputs.append(stream.receive(timeout))
            except TimeoutError:
                assert timeout != PATIENCE
            except ValueError as error:
                errors.append(error)
            except StopIteration:
                return outputs, errors
        return None

    async def scenario(form):
        opened = form.open(
            form.script(batch.steps), len(batch.slots), eos=batch.eos, max_buffered=max_buffered
        )
        results = await form.concurrently(*(partial(consume_in_haste, s) for s in opened))
        for slot, (outputs, errors) in zip(batch.slots, results, strict=True):
            assert same(outputs, slot.outputs)
            assert [error.__cause__ for error in errors] == [slot.error] * bool(slot.error)

    Background.run(scenario)
