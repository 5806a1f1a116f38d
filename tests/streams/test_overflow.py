"""Streams that are full: what comes is merged, and what they hold is bounded in bytes."""

from __future__ import annotations

import operator

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from batchstream import (
    AsyncBatchedStream,
    BatchedStream,
    Channel,
    ContinuousBatcher,
    DynamicBatcher,
    FinishReason,
    Last,
    Many,
    SlowConsumerError,
    SourceError,
    batched,
    demux,
)
from batchstream._pumps.intake import Sizes
from support import knobs
from support.engines import echo, every_batcher
from support.forms import OVER, forms_that_run_ahead

JOINED = {"on_overflow": "merge", "merge": operator.add}


def letters(text):
    """Return steps of two slots: each letter, and the same in capitals."""
    return [[letter, letter.upper()] for letter in text]


class Spy:
    """A function that is recorded, and does something more at one of its calls.

    Args:
        function: What it returns.
        at: The number of that call, from 1 on.
        then: What is done; it may raise.
    """

    def __init__(self, function=operator.add, *, at=1, then=lambda: None):
        self.calls = []
        self._function = function
        self._at = at
        self._then = then

    def __call__(self, *outputs):
        self.calls.append(outputs)
        if len(self.calls) == self._at:
            self._then()
        return self._function(*outputs)


async def held_back(form, steps, **options):
    """Return the streams of a batch that is in its last step, and has given all others; its gate.

    One stream is read to that step, and the other is not.
    """
    gate = form.gate()
    script = form.script(steps, gates={len(steps) - 1: gate})
    batch = form.open(script, 2, **options)
    outputs = [await form.receive(batch[0])]
    await gate.reached.wait()
    return batch, outputs, gate


# ---- merging


@pytest.mark.rule(2, 3, 19)
@forms_that_run_ahead
@pytest.mark.parametrize("max_buffered", [1, 3])
async def test_what_comes_for_a_full_stream_is_merged_with_the_last_that_it_holds(
    form, max_buffered
):
    options = {"max_buffered": max_buffered, **JOINED}
    (_, unread), _, gate = await held_back(form, [*letters("abcdefg"), [None, None]], **options)
    assert knobs.buffered(unread) == max_buffered
    whole = list("ABCDEFG")
    expected = [*whole[: max_buffered - 1], "".join(whole[max_buffered - 1 :])]
    gate.open()
    assert await form.rest(unread) == expected
    assert (unread.end.reason, unread.end.outputs) == (FinishReason.EOS, 7)


@forms_that_run_ahead
async def test_a_stream_that_is_read_in_time_has_nothing_merged(form):
    merge = Spy()
    gates = {number: form.gate() for number in range(6)}
    script = form.script([*letters("abcde"), [None, None]], gates=gates)
    first, second = form.open(script, 2, max_buffered=1, on_overflow="merge", merge=merge)
    for number, letter in enumerate("abcde"):
        gates[number].open()
        assert await form.receive(first) == letter
        assert await form.receive(second) == letter.upper()
    gates[5].open()
    assert await form.rest(second) == []
    assert merge.calls == []


@pytest.mark.rule(3)
@forms_that_run_ahead
async def test_the_earlier_output_comes_first_and_each_is_merged_once(form):
    merge = Spy(lambda earlier, later: (*earlier, *later))
    steps = [[(f"a{n}",), (f"b{n}",)] for n in range(4)]
    options = {"max_buffered": 1, "on_overflow": "merge", "merge": merge}
    (_, unread), _, gate = await held_back(form, [*steps, [None, None]], **options)
    gate.open()
    assert await form.rest(unread) == [("b0", "b1", "b2", "b3")]
    assert [later for earlier, later in merge.calls if earlier[0] == "b0"] == [
        ("b1",),
        ("b2",),
        ("b3",),
    ]


@pytest.mark.rule(2, 3)
@forms_that_run_ahead
async def test_outputs_of_one_step_are_merged_one_by_one_and_so_is_the_last(form):
    steps = [["a", "A"], ["b", Many(["B", "C", Last("D")])], [None, None]]
    (_, unread), _, gate = await held_back(form, steps, max_buffered=1, **JOINED)
    gate.open()
    assert await form.rest(unread) == ["ABCD"]
    assert unread.end.outputs == 4


@pytest.mark.rule(2)
@forms_that_run_ahead
async def test_an_output_that_its_consumer_takes_as_it_is_merged_comes_once(form):
    taken = []
    merge = Spy(at=2, then=lambda: taken.extend(stream.drain()))
    first, last = form.gate(), form.gate()
    script = form.script([*([letter] for letter in "ABCDE"), [None]], gates={1: first, 5: last})
    options = {"max_buffered": 1, "on_overflow": "merge", "merge": merge}
    [stream] = form.open(script, 1, **options)
    assert await form.receive(stream) == "A"
    first.open()
    await last.reached.wait()
    last.open()
    assert merge.calls == [("B", "C"), ("BC", "D"), ("D", "E")]
    assert taken == ["BC"]
    assert await form.rest(stream) == ["DE"]
    assert stream.end.outputs == 5


@pytest.mark.rule(12)
@forms_that_run_ahead
async def test_a_stream_that_is_cancelled_as_it_is_merged_has_nothing_more(form):
    streams = []
    merge = Spy(then=lambda: streams[1].cancel())  # noqa: PLW0108 - there is none yet
    gate = form.gate()
    script = form.script([*letters("abc"), ["d", None], [None, None]], gates={0: gate})
    batch = form.open(script, 2, max_buffered=1, on_overflow="merge", merge=merge)
    streams.extend(batch)
    gate.open()
    outputs = "".join(await form.rest(streams[0]))
    assert outputs == "abcd"
    assert streams[1].finish_reason is FinishReason.CANCELLED
    assert await form.rest(streams[1]) == []


@pytest.mark.rule(15)
@forms_that_run_ahead
@pytest.mark.parametrize("error", [ValueError, StopIteration, StopAsyncIteration])
async def test_a_merge_that_raises_fails_that_stream_alone_behind_what_it_holds(form, error):
    def merge(earlier, later):
        if later == "D":
            raise error("no")
        return earlier + later

    steps = [*letters("abcdef"), [None, None]]
    options = {"max_buffered": 2, "on_overflow": "merge", "merge": merge}
    (first, unread), outputs, gate = await held_back(form, steps, **options)
    gate.open()
    assert "".join(outputs + await form.rest(first)) == "abcdef"
    outputs, [raised] = await form.read(unread)
    assert outputs == ["A", "BC"]
    assert type(raised) is (ValueError if error is ValueError else SourceError)
    assert str(raised).endswith("no")
    assert unread.finish_reason is FinishReason.ERROR


@pytest.mark.rule(5, 15)
@forms_that_run_ahead
async def test_a_stream_whose_last_output_is_not_merged_ends_with_the_error_alone(form):
    def merge(earlier, later):
        raise ValueError(later)

    steps = [["a", "A"], [None, Last("B")]]
    first, second = form.open(
        form.script(steps), 2, max_buffered=1, on_overflow="merge", merge=merge
    )
    assert await form.rest(first) == ["a"]
    outputs, errors = await form.read(second)
    assert outputs == ["A"]
    assert [(type(error), str(error)) for error in errors] == [(ValueError, "B")]
    assert second.finish_reason is FinishReason.ERROR


@pytest.mark.rule(13)
@forms_that_run_ahead
async def test_the_source_learns_of_a_stream_that_a_merge_has_failed(form):
    def merge(earlier, later):
        raise ValueError

    gates = {number: form.gate() for number in range(5)}
    script = form.script([*letters("abcd"), [None, None]], gates=gates)
    first, _ = form.open(script, 2, max_buffered=1, on_overflow="merge", merge=merge)
    for number, letter in enumerate("abcd"):
        gates[number].open()
        assert await form.receive(first) == letter
    gates[4].open()
    await form.rest(first)
    assert script.sent[2:] == [(0,)] * 3


@pytest.mark.rule(19)
@forms_that_run_ahead
@pytest.mark.parametrize("max_buffered_bytes", [None, 1])
async def test_collect_merges_nothing_and_has_no_bound(form, max_buffered_bytes):
    merge = Spy()
    script = form.script([*letters("abcd"), [None, None]])
    options = {"max_buffered": 1, "max_buffered_bytes": max_buffered_bytes}
    batch = form.open(script, 2, on_overflow="merge", merge=merge, **options)
    collected = batch.collect()
    if hasattr(collected, "__await__"):
        collected = await collected
    assert collected == [list("abcd"), list("ABCD")]
    assert merge.calls == []


@forms_that_run_ahead
async def test_a_batch_that_is_read_by_time_waits_and_merges_nothing(form):
    merge = Spy()
    script = form.script([*letters("abcd"), [None, None]])
    batch = form.open(script, 2, max_buffered=1, on_overflow="merge", merge=merge)
    steps = batch.steps()
    values = []
    while (delivery := await form.receive(steps)) is not OVER:
        values.append(list(delivery.values))
        assert knobs.buffered_deliveries(batch) <= 1
    assert [value for value in values if value] == letters("abcd")
    assert merge.calls == []


@st.composite
def merged_batches(draw):
    """Return the texts of two streams, what each step adds to them, and how far they are read."""
    pieces = st.text("abcé", min_size=0, max_size=3)
    steps = draw(st.lists(st.tuples(pieces, st.lists(pieces, max_size=3)), max_size=25))
    return steps, draw(st.integers(1, 4)), draw(st.lists(st.integers(0, 3), max_size=25))


@pytest.mark.rule(2, 3)
@given(merged_batches())
@settings(deadline=None)
def test_what_was_merged_is_joined_what_the_model_gave_however_it_is_read(batch):
    steps, max_buffered, reads = batch
    channel = Channel(2, max_buffered=max_buffered, **JOINED)
    streams = channel.streams()
    received = [[], []]
    with channel:
        for number, (one, several) in enumerate(steps):
            channel.put([one, Many(several)])
            assert all(knobs.buffered(stream) <= max_buffered + 3 for stream in streams)
            for _ in range(reads[number] if number < len(reads) else 0):
                for own, stream in zip(received, streams, strict=True):
                    if knobs.buffered(stream):
                        own.append(next(stream))
    for own, stream in zip(received, streams, strict=True):
        own.extend(stream)
    assert "".join(received[0]) == "".join(one for one, _ in steps)
    assert "".join(received[1]) == "".join("".join(several) for _, several in steps)
    assert [stream.end.outputs for stream in streams] == [
        len(steps),
        sum(len(several) for _, several in steps),
    ]


# ---- bytes


@pytest.mark.rule(19)
@forms_that_run_ahead
@pytest.mark.parametrize("outputs", [["aaaa", b"aaaa"], ["éé", bytearray(4)]])
async def test_the_source_waits_for_a_stream_that_holds_as_many_bytes_as_it_may(form, outputs):
    script = form.script([outputs] * 6 + [[None, None]])
    unread, read = form.open(script, 2, max_buffered_bytes=10)
    assert [await form.receive(read) for _ in range(3)] == [outputs[1]] * 3
    await form.broken_off(read)
    assert knobs.buffered(unread) == 3  # 8 bytes were not too many
    assert await form.receive(unread) == outputs[0]
    assert await form.receive(read) == outputs[1]
    await form.broken_off(read)
    assert knobs.buffered(unread) == 3
    assert unread.drain() == [outputs[0]] * 3
    assert await form.receive(read) == outputs[1]


@pytest.mark.rule(9, 19)
@forms_that_run_ahead
async def test_an_output_that_is_larger_than_the_bound_is_given_to_an_empty_stream(form):
    script = form.script([["a", "x" * 100]] * 3 + [[None, None]])
    first, second = form.open(script, 2, max_buffered_bytes=10)
    for _ in range(3):
        assert await form.receive(first) == "a"
        await form.broken_off(first)
        assert await form.receive(second) == "x" * 100
    assert await form.rest(first) == []


@pytest.mark.rule(19)
@forms_that_run_ahead
async def test_a_stream_with_too_many_bytes_is_ended_where_the_policy_says_so(form):
    gates = {number: form.gate() for number in range(6)}
    script = form.script([*letters("abcdef"), [None, None]], gates=gates)
    options = {"max_buffered_bytes": 30, "size_of": lambda _: 10, "on_overflow": "cancel"}
    first, second = form.open(script, 2, **options)
    for number in range(6):
        gates[number].open()
        assert await form.receive(first) == "abcdef"[number]
    assert await form.rest(first) == []
    outputs, [error] = await form.read(second)
    assert outputs == list("ABCD")  # with the one that showed it
    assert type(error) is SlowConsumerError
    assert "4 unread outputs of 40 bytes, more than 30 bytes (max_buffered_bytes)" in str(error)
    assert "or pass a larger max_buffered_bytes" in str(error)
    assert script.sent[4:] == [(0,)] * 3


@pytest.mark.rule(19)
@forms_that_run_ahead
async def test_a_stream_that_was_merged_beyond_its_bytes_is_ended(form):
    gates = {number: form.gate() for number in range(6)}
    script = form.script([*letters("abcdef"), [None, None]], gates=gates)
    options = {"max_buffered": 2, "max_buffered_bytes": 3, **JOINED}
    first, second = form.open(script, 2, **options)
    for number in range(6):
        gates[number].open()
        assert await form.receive(first) == "abcdef"[number]
    assert await form.rest(first) == []
    outputs, [error] = await form.read(second)
    assert outputs == ["A", "BCD"]
    assert type(error) is SlowConsumerError
    assert "2 unread outputs of 4 bytes, more than 3 bytes" in str(error)
    assert "(on_overflow='merge')" in str(error)


@pytest.mark.rule(19)
@forms_that_run_ahead
async def test_a_merge_that_keeps_an_output_small_never_exceeds_the_bytes(form):
    options = {"max_buffered": 1, "max_buffered_bytes": 1, "on_overflow": "merge"}
    steps = [*letters("abcdef"), [None, None]]
    batch, _, gate = await held_back(form, steps, merge=lambda _, later: later, **options)
    gate.open()
    assert await form.rest(batch[1]) == ["F"]


class Unmeasured:
    """What nothing is asked of."""

    __len__ = __eq__ = __bool__ = __hash__ = None


@pytest.mark.rule(6, 15)
@forms_that_run_ahead
@pytest.mark.parametrize(
    ("returned", "error"),
    [
        ("1", "a whole number of at least 0, got '1'"),
        (-1, "a whole number of at least 0, got -1"),
        (True, "a whole number of at least 0, got True"),
        (StopIteration("no"), "size_of raised StopIteration: no"),
    ],
)
async def test_an_output_that_cannot_be_measured_fails_its_stream_alone(form, returned, error):
    def size_of(output):
        if output == "a":
            return 1
        if isinstance(returned, Exception):
            raise returned
        return returned

    script = form.script([["a", "A"], ["a", "A"], [None, None]])
    first, second = form.open(script, 2, max_buffered_bytes=100, size_of=size_of)
    assert await form.rest(first) == ["a", "a"]
    outputs, [raised] = await form.read(second)
    assert outputs == []
    assert error in str(raised)


@pytest.mark.rule(6, 15)
@forms_that_run_ahead
async def test_an_output_that_is_no_text_needs_a_function_for_its_size(form):
    script = form.script([["a", Unmeasured()], ["a", None], [None, None]])
    first, second = form.open(script, 2, max_buffered_bytes=100)
    assert await form.rest(first) == ["a", "a"]
    outputs, [error] = await form.read(second)
    assert outputs == []
    assert type(error) is TypeError
    assert "got an output of type Unmeasured: pass size_of, a function of an output" in str(error)


@forms_that_run_ahead
async def test_each_output_is_measured_once_and_a_merged_one_again(form):
    size_of = Spy(len)
    options = {"max_buffered": 2, "max_buffered_bytes": 1000, "size_of": size_of, **JOINED}
    steps = [["a", letter] for letter in "ABCD"] + [[None, None]]
    batch, _, gate = await held_back(form, steps, **options)
    gate.open()
    assert await form.rest(batch[1]) == ["A", "BCD"]
    assert [output for (output,) in size_of.calls if output.isupper()] == ["A", "B", "BC", "BCD"]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 5))))
def test_sizes_add_up_to_what_is_held(events):
    sizes, held = Sizes(20), []
    for size, merges, taken in events:
        if merges and held:
            held[-1] += size
            sizes.replace_last(held[-1])
        else:
            sizes.add(size, len(held))
            held.append(size)
        assert sizes.held(len(held)) == sum(held)
        del held[:taken]
        assert sizes.held(len(held)) == sum(held)
        assert sizes.are_full(len(held)) == (sum(held) >= 20)
    assert len(sizes._sums) <= len(events) + 1


def test_what_is_kept_of_sizes_does_not_grow_with_the_outputs():
    sizes = Sizes(10)
    for _ in range(1000):
        sizes.add(1, 2)
    assert len(sizes._sums) == 4


# ---- batchers


@pytest.mark.rule(2, 3, 19)
@every_batcher
async def test_a_batcher_merges_for_a_slow_consumer_and_the_others_do_not_wait_for_it(form):
    gate = form.gate()
    model = form.model(gates={6: gate})
    batcher = form.batcher(model, max_buffered=3, **JOINED)
    slow = form.submit(batcher, "pqrstuvw")
    await gate.reached.wait()
    assert knobs.buffered(slow) == 3
    gate.open()
    assert await form.rest(form.submit(batcher, "ab")) == ["a", "b"]
    assert "".join(await form.rest(slow)) == "pqrstuvw"
    assert slow.end.outputs == 8


@pytest.mark.rule(19)
@every_batcher
async def test_a_batcher_bounds_the_bytes_of_a_stream(form):
    recorder = form.recorder()
    batcher = form.batcher(max_buffered_bytes=6, metrics=recorder)
    slow = form.submit(batcher, ["pp", "qq", "rr", "ss", "tt"])
    await recorder.finished_once.wait()
    outputs, [error] = await form.read(slow)
    assert outputs == ["pp", "qq", "rr", "ss"]
    assert type(error) is SlowConsumerError
    assert "(max_buffered_bytes)" in str(error)


@pytest.mark.rule(19)
def test_map_merges_nothing_and_has_no_bound_in_bytes():
    merge = Spy()

    def spell(words):
        for position in range(6):
            yield [word[position] if position < len(word) else None for word in words]

    options = {"max_buffered": 1, "max_buffered_bytes": 1, "on_overflow": "merge", "merge": merge}
    with DynamicBatcher(spell, max_batch_size=2, **options) as batcher:
        assert list(batcher.map(["abcd", "xyz"])) == [list("abcd"), list("xyz")]
    assert merge.calls == []


# ---- arguments


async def nothing():
    yield


class Engine:
    add = step = remove = None


BATCHES = {
    "BatchedStream": lambda **options: BatchedStream([], 1, background=True, **options),
    "AsyncBatchedStream": lambda **options: AsyncBatchedStream(nothing(), 1, **options),
    "demux": lambda **options: demux(nothing(), 1, **options),
    "Channel": lambda **options: Channel(1, **options),
    "DynamicBatcher": lambda **options: DynamicBatcher(echo, max_batch_size=1, **options),
    "ContinuousBatcher": lambda **options: ContinuousBatcher(Engine, max_batch_size=1, **options),
    "batched": lambda **options: batched(**options)(echo),
}


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"on_overflow": "merge"}, TypeError, "on_overflow='merge' needs merge"),
        ({"merge": operator.add}, TypeError, "merge goes with on_overflow='merge', got"),
        ({"on_overflow": "merge", "merge": 1}, TypeError, "merge takes a function of two outputs"),
        ({"on_overflow": "merge", "merge": len}, TypeError, "merge is called with two outputs"),
        ({"on_overflow": "merge", "merge": nothing}, TypeError, "that returns at once, got"),
        ({"on_overflow": "drop"}, ValueError, "must be 'wait', 'cancel' or 'merge', got 'drop'"),
        ({"max_buffered_bytes": 0}, ValueError, "max_buffered_bytes must be at least 1, got 0"),
        ({"max_buffered_bytes": "1"}, TypeError, "max_buffered_bytes takes a whole number"),
        ({"size_of": len}, TypeError, "size_of says what an output takes of max_buffered_bytes"),
        ({"max_buffered_bytes": 9, "size_of": 1}, TypeError, "size_of takes a function of one"),
    ],
)
def test_options_that_cannot_work_are_refused_where_the_batch_is_made(make, options, error, text):
    with pytest.raises(error, match=text):
        make(**options)


@pytest.mark.parametrize("option", [{"max_buffered_bytes": 9}, JOINED])
def test_a_batch_that_is_pulled_refuses_what_needs_a_source_that_runs_by_itself(option):
    with pytest.raises(ValueError, match="needs a source that runs by itself"):
        BatchedStream([["a"]], 1, **option)


@pytest.mark.parametrize("option", [{"max_buffered_bytes": 9}, {"merge": operator.add}])
def test_single_results_have_no_bound(option):
    with pytest.raises(TypeError, match="and single exclude each other"):
        DynamicBatcher(lambda requests: requests, single=True, max_batch_size=1, **option)


def test_a_put_never_waits_where_outputs_are_merged():
    with Channel(1, max_buffered=1, **JOINED) as channel:
        [stream] = channel.streams()
        for letter in "abcdef":
            channel.put([letter])
    assert list(stream) == ["abcdef"]
