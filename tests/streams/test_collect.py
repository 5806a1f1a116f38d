"""`collect`: all outputs of all streams at once, whatever the bound, and what an error leaves."""

from __future__ import annotations

from functools import partial

import pytest

from batchstream import SKIP, BatchedStream, Fail, Many, SlowConsumerError
from support import knobs
from support.forms import OVER, every_form, forms_in_loops, forms_that_run_ahead

pytestmark = pytest.mark.rule(2, 32)

STEPS = [[n, -n, None if n == 3 else str(n)] for n in range(20)]
COLUMNS = [list(range(20)), [-n for n in range(20)], ["0", "1", "2"]]


async def collect(form, batch):
    result = batch.collect()
    return result if isinstance(batch, BatchedStream) else await result


@every_form
async def test_all_outputs_come_slot_by_slot_and_a_bound_neither_stalls_nor_overflows(form):
    for options in ({}, {"max_buffered": 1}):
        batch = form.open(form.script(STEPS), 3, **options)
        assert await collect(form, batch) == COLUMNS
        assert [str(stream.finish_reason) for stream in batch] == ["exhausted", "exhausted", "eos"]
        assert await collect(form, batch) == [[], [], []]


@forms_that_run_ahead
async def test_a_pump_that_waits_for_room_goes_on(form, monkeypatch):
    knobs.set_stall(monkeypatch, 3600.0)  # until then it looks around by itself
    batch = form.open(form.script(STEPS), 3, max_buffered=2)
    assert [await form.receive(batch[0]) for _ in range(2)] == [0, 1]
    await form.all_wait()
    assert await collect(form, batch) == [COLUMNS[0][2:], *COLUMNS[1:]]


@forms_that_run_ahead
async def test_no_stream_is_ended_for_being_slow(form):
    batch = form.open(form.script(STEPS), 3, max_buffered=1, on_overflow="cancel")
    assert await collect(form, batch) == COLUMNS


@every_form
async def test_a_stream_that_has_nothing_for_long_holds_up_no_other(form):
    steps = [[SKIP, Many([n, n])] for n in range(30)] + [["late", "last"]]
    batch = form.open(form.script(steps), 2, max_buffered=2)
    others = [n for n in range(30) for _ in range(2)] + ["last"]
    assert await collect(form, batch) == [["late"], others]


@every_form
async def test_what_was_received_before_is_not_collected_again(form):
    batch = form.open(form.script(STEPS), 3, max_buffered=4)
    assert [await form.receive(batch[0]) for _ in range(2)] == [0, 1]
    assert await form.receive(batch[1]) == 0
    assert await collect(form, batch) == [COLUMNS[0][2:], COLUMNS[1][1:], COLUMNS[2]]


@every_form
async def test_the_error_of_the_lowest_slot_is_raised_and_every_stream_can_still_be_read(form):
    steps = [["a", "x", "u"], [SKIP, Fail(KeyError("x")), Fail(OSError("u"))], {0: "b"}]
    batch = form.open(form.script(steps), 3)
    for _ in range(2):
        with pytest.raises(KeyError) as raised:
            await collect(form, batch)
        assert raised.value.__cause__ is batch[1].end.error
    assert await form.read(batch[0]) == (["a", "b"], [])
    outputs, [error] = await form.read(batch[1])
    assert (outputs, type(error)) == (["x"], KeyError)
    outputs, [error] = await form.read(batch[2])
    assert (outputs, type(error)) == (["u"], OSError)
    assert await collect(form, batch) == [[], [], []]


@every_form
async def test_a_stream_that_was_cancelled_gives_an_empty_list(form):
    batch = form.open(form.script(STEPS), 3)
    assert await form.receive(batch[0]) == 0
    batch.cancel(1)
    assert await collect(form, batch) == [COLUMNS[0][1:], [], COLUMNS[2]]


@every_form
async def test_a_batch_of_no_streams_has_nothing_to_collect(form):
    assert await collect(form, form.open(form.script([]), 0)) == []


@every_form
async def test_a_batch_that_is_read_by_time_cannot_be_collected(form):
    batch = form.open(form.script(STEPS), 3)
    assert await form.receive(form.iterator(batch.steps())) is not OVER
    with pytest.raises(RuntimeError, match="by slot or by time"):
        await collect(form, batch)


@every_form
async def test_a_batch_that_is_being_collected_may_be_read_and_gives_each_output_once(form):
    batch = form.open(form.script(STEPS), 3, max_buffered=2)
    lists, read = await form.concurrently(
        partial(collect, form, batch), partial(form.rest, batch[0])
    )
    assert lists[1:] == COLUMNS[1:]
    assert sorted(lists[0] + read) == COLUMNS[0]


@forms_in_loops
@pytest.mark.rule(4, 19)
async def test_a_collect_that_is_cancelled_leaves_the_outputs_and_the_bound(form):
    gate, scope = form.gate(), form.scope()
    script = form.script(STEPS, gates={7: gate})
    batch = form.open(script, 3, max_buffered=5)

    async def cancel():
        await gate.reached.wait()
        scope.cancel()

    cancelled, _ = await form.concurrently(
        partial(scope.run, partial(collect, form, batch)), cancel
    )
    assert cancelled
    gate.open()
    first = await form.receive(batch[2])
    while (output := await form.receive(batch[2])) is not OVER:
        first += output
    assert first == "012"
    await form.all_wait()
    assert script.asked == 8  # the others hold more than they may: the source waits
    assert await collect(form, batch) == [*COLUMNS[:2], []]


@forms_in_loops
@pytest.mark.rule(19)
async def test_where_slow_streams_are_ended_a_cancelled_collect_ends_them_after_what_they_hold(
    form,
):
    gate, scope = form.gate(), form.scope()
    script = form.script(STEPS, gates={7: gate})
    batch = form.open(script, 3, max_buffered=5, on_overflow="cancel")

    async def cancel():
        await gate.reached.wait()
        scope.cancel()

    await form.concurrently(partial(scope.run, partial(collect, form, batch)), cancel)
    gate.open()
    await script.closed.wait()
    outputs, [error] = await form.read(batch[0])
    assert (outputs, type(error)) == (COLUMNS[0][:8], SlowConsumerError)


def test_a_source_cannot_collect_its_own_batch():
    batch = BatchedStream(iter(lambda: [batch.collect()], None), 1)
    with pytest.raises(RuntimeError, match="waits for a step of its own"):
        batch.collect()


def test_a_bound_holds_again_after_a_collect_that_a_signal_has_broken_off():
    def source():
        yield ["a", "x"]
        yield ["b", "y"]
        raise KeyboardInterrupt

    batch = BatchedStream(source(), 2, max_buffered=1)
    with pytest.raises(KeyboardInterrupt):
        batch.collect()
    assert [stream.drain() for stream in batch] == [["a", "b"], ["x", "y"]]
