"""Whatever happens around it, each stream stops exactly at its own end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchstream import BatchedStream, BufferOverflowError, Demultiplexer, FinishReason, Many, demux
from support import knobs
from support.sources import ScriptedSource, run_in_threads
from support.strategies import batches, same


def receive(stream):
    """Return the next output in a list, or an empty one at the end, or the error."""
    try:
        return [next(stream)]
    except StopIteration:
        return []
    except Exception as error:  # noqa: BLE001 - the slot's own, checked by the caller
        return error


def read_to_the_end(stream):
    received, error = [], None
    while got := receive(stream):
        if isinstance(got, Exception):
            assert error is None, "an error was raised twice"
            error = got
        else:
            assert error is None, "an output came after the error"
            received += got
    assert receive(stream) == [], "the stream went on after its end"
    return received, error


def check_stream(stream, slot, received, error):
    assert same(received, slot.outputs)
    assert stream.finish_reason is slot.reason
    assert stream.end.outputs == len(slot.outputs)
    assert stream.end.info is slot.info
    assert stream.end.error is slot.error
    if slot.error is None:
        assert error is None
    else:
        assert type(error) is type(slot.error)
        assert error is not slot.error
        assert error.__cause__ is slot.error


ORDERS = st.sampled_from(["one after another", "reverse", "round-robin", "random"])


def turns(order, count, rng):
    """Yield the index of the stream to receive from next, for ever."""
    if order in {"one after another", "reverse"}:
        remaining = list(range(count))
        remaining = remaining if order == "one after another" else remaining[::-1]
        while True:
            finished = yield remaining[0]
            if finished:
                remaining.pop(0)
                if not remaining:
                    return
    remaining = list(range(count))
    position = 0
    while remaining:
        position = rng.randrange(len(remaining)) if order == "random" else position
        position %= len(remaining)
        finished = yield remaining[position]
        if finished:
            remaining.pop(position)
        else:
            position += 1


@pytest.mark.rule(2, 3, 7, 10)
@given(batches(), ORDERS, st.randoms(use_true_random=False))
def test_streams_in_any_order_equal_the_reference(batch, order, rng):
    source = ScriptedSource(batch.steps)
    streams = demux(source, len(batch.slots), eos=batch.eos)
    received = [[] for _ in streams]
    errors = [None] * len(streams)
    most_steps = 0
    order_of_turns = turns(order, len(streams), rng)
    index = next(order_of_turns)
    while True:
        slot, stream = batch.slots[index], streams[index]
        position = len(received[index])
        got = receive(stream)
        if got and not isinstance(got, Exception):
            received[index] += got
            needed = slot.steps_of_outputs[position] + 1
        else:
            needed = batch.steps_needed([index])
        most_steps = max(most_steps, needed)
        assert len(source.sent) == most_steps, "advanced further than needed"
        if isinstance(got, Exception):
            errors[index] = got
            got = receive(stream)
            assert got == []
        try:
            index = order_of_turns.send(not got)
        except StopIteration:
            break
    for slot, stream, outputs, error in zip(batch.slots, streams, received, errors, strict=True):
        check_stream(stream, slot, outputs, error)
    assert source.closed == 1


@pytest.mark.rule(2, 5)
@given(batches())
def test_by_time_every_output_and_end_is_in_the_step_that_brought_it(batch):
    source = ScriptedSource(batch.steps)
    stream = BatchedStream(source, len(batch.slots), eos=batch.eos)
    given_to = [[] for _ in batch.slots]
    ends = {}
    for number, delivery in enumerate(stream.steps()):
        for slot, output in delivery.outputs:
            assert slot not in ends
            assert batch.slots[slot].steps_of_outputs[len(given_to[slot])] == number
            given_to[slot].append(output)
        for slot, end in delivery.ends:
            assert slot not in ends
            ends[slot] = end
            ends_at = batch.slots[slot].ends_at
            assert number == (len(batch.steps) if ends_at is None else ends_at)
    assert source.closed == 1
    assert len(source.sent) == batch.steps_needed()
    for slot, expected in enumerate(batch.slots):
        assert same(given_to[slot], expected.outputs)
        assert ends[slot].reason is expected.reason
        assert ends[slot].outputs == len(expected.outputs)


@pytest.mark.rule(11, 12, 25)
@given(batches(max_size=4), st.data())
def test_leaving_changes_nothing_for_the_others(batch, data):
    source = ScriptedSource(batch.steps)
    streams = list(demux(source, len(batch.slots), eos=batch.eos))
    leavers = data.draw(st.sets(st.integers(0, len(streams) - 1)))
    for index in leavers:
        for _ in range(data.draw(st.integers(0, 3))):
            if not receive(streams[index]):
                break
        if data.draw(st.booleans()):
            streams[index].cancel()
            streams[index].cancel()
            assert receive(streams[index]) == []
        else:
            streams[index] = None
    for index, stream in enumerate(streams):
        if index not in leavers:
            check_stream(stream, batch.slots[index], *read_to_the_end(stream))
    assert source.closed == 1


@pytest.mark.rule(1, 3, 21)
@given(batches(max_size=3), st.integers(2, 4))
def test_streams_read_in_threads_equal_the_reference(batch, threads):
    source = ScriptedSource(batch.steps)  # asserts that it is not entered twice
    streams = demux(source, len(batch.slots), eos=batch.eos)
    received = {}

    def read(first):
        for stream in streams[first::threads]:
            received[stream.slot] = read_to_the_end(stream)

    run_in_threads(*(lambda first=first: read(first) for first in range(threads)))
    for slot, stream in zip(batch.slots, streams, strict=True):
        check_stream(stream, slot, *received[stream.slot])
    assert source.closed == 1
    assert len(source.sent) == batch.steps_needed()


@pytest.mark.rule(12)
@given(batches(), st.randoms(use_true_random=False))
def test_draining_and_receiving_together_give_every_output_once(batch, rng):
    source = ScriptedSource(batch.steps)
    streams = demux(source, len(batch.slots), eos=batch.eos)
    received = [[] for _ in streams]
    waiting = set(range(len(streams)))
    while waiting:
        index = rng.choice(sorted(waiting))
        received[index] += streams[index].drain()
        if rng.random() < 0.7:
            got = receive(streams[index])
            if isinstance(got, Exception):
                assert receive(streams[index]) == []
                waiting.discard(index)
            elif got:
                received[index] += got
            else:
                waiting.discard(index)
    for slot, outputs in zip(batch.slots, received, strict=True):
        assert same(outputs, slot.outputs)


@pytest.mark.rule(19)
@given(batches(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_source_is_only_asked_while_every_live_stream_has_room(batch, bound, rng):
    streams = []

    def check_room():
        held = [knobs.buffered(stream) for stream in streams if stream.end is None]
        assert max(held) < bound

    source = ScriptedSource(batch.steps, on_step=check_room)
    streams += demux(source, len(batch.slots), eos=batch.eos, max_buffered=bound)
    elements = [element for slot in batch.slots for element in slot.elements]
    most_in_a_step = max((len(e.outputs) if type(e) is Many else 1 for e in elements), default=0)
    received = [[] for _ in streams]
    waiting = set(range(len(streams)))
    while waiting:
        index = rng.choice(sorted(waiting))
        got = receive(streams[index])
        if isinstance(got, BufferOverflowError):
            assert got.slots
            assert got.max_buffered == bound
            for full in got.slots:
                assert knobs.buffered(streams[full]) >= bound
                received[full] += streams[full].drain()
        elif isinstance(got, Exception) or not got:
            waiting.discard(index)
        else:
            received[index] += got
        held = [knobs.buffered(stream) for stream in streams]
        assert max(held) <= bound - 1 + most_in_a_step
    for slot, outputs in zip(batch.slots, received, strict=True):
        assert same(outputs, slot.outputs)


@given(batches())
def test_the_core_alone_gives_what_the_reference_says(batch):
    core = Demultiplexer(len(batch.slots), eos=batch.eos)
    received = [[] for _ in batch.slots]
    ends = {}

    def take(delivery):
        for slot, output in delivery.outputs:
            received[slot].append(output)
        for slot, end in delivery.ends:
            assert slot not in ends
            ends[slot] = end

    for step in batch.steps:
        if core.live:
            take(core.feed(step))
    take(core.finish())
    for slot, expected in enumerate(batch.slots):
        assert same(received[slot], expected.outputs)
        assert ends[slot].reason is expected.reason
    figures = core.statistics()
    assert figures.opened == figures.live + sum(figures.finished.values()) == len(batch.slots)
    assert figures.outputs == sum(len(slot.outputs) for slot in batch.slots)


@pytest.mark.filterwarnings("ignore:is_eos was true of none")
@pytest.mark.rule(6)
@pytest.mark.parametrize("include", [False, True])
@given(st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=4))
def test_a_predicate_ends_each_stream_at_its_first_match(include, rows):
    length = max(map(len, rows))
    steps = [[row[n] if n < len(row) else 9 for row in rows] for n in range(length)]
    streams = demux(steps, len(rows), is_eos=lambda n: n == 0, include_eos=include)
    for row, stream in zip(rows, streams, strict=True):
        padded = row + [9] * (length - len(row))
        if 0 in padded:
            stop = padded.index(0)
            assert list(stream) == padded[: stop + include]
            assert stream.finish_reason is FinishReason.EOS
        else:
            assert list(stream) == padded
            assert stream.finish_reason is FinishReason.EXHAUSTED


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.lists(st.none() | st.integers(1, 6), min_size=4, max_size=4),
)
def test_a_limit_ends_each_stream_with_its_last_output_unless_eos_came_first(lengths, limits):
    limits = limits[: len(lengths)]
    steps = [[n if n < length else None for length in lengths] for n in range(11)]
    streams = demux(steps, len(lengths), max_outputs=limits)
    for length, limit, stream in zip(lengths, limits, streams, strict=True):
        if limit is not None and limit <= length:
            assert list(stream) == list(range(limit))
            assert stream.finish_reason is FinishReason.LENGTH
        else:
            assert list(stream) == list(range(length))
            assert stream.finish_reason is FinishReason.EOS
