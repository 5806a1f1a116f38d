"""Each request of a batcher ends by a predicate of its own, where `is_eos` is `per_request`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchstream import (
    ContinuousBatcher,
    DynamicBatcher,
    End,
    FinishReason,
    MissingEOSError,
    batched,
    per_request,
    token_ids,
)
from support.engines import (
    CONTINUOUS,
    DYNAMIC,
    Model,
    dynamic_batchers,
    every_batcher,
)
from support.mixtures import run_quickly

EOS, LENGTH, ERROR = FinishReason.EOS, FinishReason.LENGTH, FinishReason.ERROR


class Ask(list):
    """A request: what the model gives for it, and by which predicate it ends."""

    def __init__(self, outputs, is_eos=None):
        super().__init__(outputs)
        self.is_eos = is_eos


def own(ask):
    return ask.is_eos


def is_even(output):
    return output % 2 == 0


def fails_at_three(output):
    if output == 3:
        raise ArithmeticError("three")


TOKENS = st.integers(0, 5)
STOPS = st.one_of(
    st.none(),
    st.sampled_from([is_even, token_ids(None)]),
    st.lists(TOKENS, min_size=1, max_size=2).map(token_ids),
)
ASKS = st.builds(Ask, st.lists(TOKENS, max_size=8), STOPS)


def expected(ask, *, include_eos):
    for position, output in enumerate(ask):
        if ask.is_eos is not None and ask.is_eos(output):
            return ask[: position + include_eos]
    return list(ask)


@pytest.mark.rule(3, 7, 30)
@pytest.mark.parametrize("form", DYNAMIC + CONTINUOUS, ids=lambda form: form.name)
@given(asks=st.lists(ASKS, min_size=1, max_size=6), size=st.integers(1, 3), include=st.booleans())
def test_each_stream_ends_exactly_at_its_own_requests_stop(form, asks, size, include):
    run_quickly(form, read, asks=asks, size=size, include=include)


async def read(form, asks, size, include):
    batcher = form.batcher(max_batch_size=size, is_eos=per_request(own), include_eos=include)
    streams = [form.submit(batcher, ask) for ask in asks]
    for ask, stream in zip(asks, streams, strict=True):
        assert await form.rest(stream) == expected(ask, include_eos=include)
        assert stream.finish_reason is EOS


@pytest.mark.rule(15)
@every_batcher
async def test_limits_ends_with_a_reason_and_errors_are_each_requests_own(form):
    asks = [
        Ask([1, 3, 5], is_even),
        Ask([1, 3, 5], fails_at_three),
        Ask([1, 3, 5], lambda output: End("length", {"at": output}) if output == 5 else None),
        Ask([1, 3, 4], is_even),
    ]
    options = {"is_eos": per_request(own), "max_outputs": lambda ask: 2 if ask is asks[0] else None}
    streams = await form.submit_together(options, {}, *asks)
    read = [await form.read(stream) for stream in streams]
    assert [outputs for outputs, _ in read] == [[1, 3], [1], [1, 3], [1, 3]]
    assert [str(error) for _, errors in read for error in errors] == ["three"]
    assert [stream.finish_reason for stream in streams] == [LENGTH, ERROR, LENGTH, EOS]
    assert streams[2].end.info == {"at": 5}


@pytest.mark.rule(29)
@every_batcher
async def test_its_function_is_asked_once_for_each_request_when_that_is_submitted(form):
    asked = []

    def note(request):
        asked.append(request)

    batcher, _, gate = form.held_batcher(0, is_eos=per_request(note), max_batch_size=1)
    streams = await form.submit_behind(batcher, gate, "a", "b")
    assert asked == ["a", "b"]
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [["a"], ["b"]]
    assert asked == ["a", "b"]


@pytest.mark.rule(29)
@every_batcher
async def test_an_error_of_its_function_is_raised_to_the_submitter_alone(form):
    def fail(request):
        if request == "bad":
            raise ArithmeticError("of this request")

    batcher, _, gate = form.held_batcher(0, is_eos=per_request(fail))
    streams = await form.submit_behind(batcher, gate, "a", "b")
    for _ in range(3):
        with pytest.raises(ArithmeticError, match="of this request"):
            form.submit(batcher, "bad")
    streams.append(form.submit(batcher, "c"))
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [["a"], ["b"], ["c"]]
    assert batcher.statistics().opened == 3


@pytest.mark.rule(29)
@every_batcher
@pytest.mark.parametrize("answer", [2, [2, 3], "</s>", True, End("length")], ids=repr)
async def test_what_its_function_returns_has_to_be_a_predicate(form, answer):
    answers = iter([answer, None])
    batcher = form.batcher(is_eos=per_request(lambda _: next(answers)))
    with pytest.raises(
        TypeError, match=r"what per_request\(.*\) returns must be a function of one"
    ):
        form.submit(batcher, "a")
    assert await form.rest(form.submit(batcher, "a")) == ["a"]


@dynamic_batchers
async def test_a_request_that_is_not_ended_by_its_predicate_misses_its_end(form):
    def fn(requests):
        for token in (1, 2):
            yield [token for _ in requests]

    async def afn(requests):
        for step in fn(requests):
            yield step

    batcher = form.batcher(
        afn if form.source_is_async else fn,
        is_eos=per_request(token_ids),
        require_eos=True,
        max_batch_size=2,
        batch_timeout=3600.0,
    )
    ended, missing = form.submit(batcher, 2), form.submit(batcher, 3)
    assert await form.read(ended) == ([1], [])
    outputs, [error] = await form.read(missing)
    assert (outputs, type(error)) == ([1, 2], MissingEOSError)


@pytest.mark.rule(32)
@dynamic_batchers
async def test_the_warning_that_no_output_matched_names_per_request(form, recwarn):
    def fn(requests):
        yield [1 for _ in requests]

    async def afn(requests):
        yield [1 for _ in requests]

    batcher = form.batcher(
        afn if form.source_is_async else fn, is_eos=per_request(token_ids), max_batch_size=1
    )
    for _ in range(2):
        assert await form.rest(form.submit(batcher, 2)) == [1]
    [warning] = recwarn.list
    assert "got is_eos=per_request(token_ids): let it look" in str(warning.message)


def test_map_and_batched_take_it():
    @batched(max_batch_size=2, is_eos=per_request(token_ids))
    def count(stops):
        for number in range(9):
            yield [number for _ in stops]

    with count:
        assert list(count.map([3, 1, 2])) == [[0, 1, 2], [0], [0, 1]]


def test_it_excludes_single_as_is_eos_does():
    with pytest.raises(TypeError, match="is_eos and single exclude each other"):
        DynamicBatcher(len, max_batch_size=1, single=True, is_eos=per_request(own))


@pytest.mark.parametrize("answer", [None, token_ids(None)])
def test_a_slot_is_free_for_another_predicate_after_a_cancel(answer):
    with ContinuousBatcher(Model(), max_batch_size=1, is_eos=per_request(own)) as batcher:
        batcher.stream(Ask(range(99), answer)).cancel()
        assert list(batcher.stream(Ask([1, 3, 4, 5], is_even))) == [1, 3]
        assert list(batcher.stream(Ask([1, 3, 4, 5]))) == [1, 3, 4, 5]
