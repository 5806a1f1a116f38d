"""`per_request` itself, and a core whose slots have predicates of their own."""

from __future__ import annotations

import pickle
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from batchstream import (
    SKIP,
    AsyncBatchedStream,
    BatchedStream,
    Demultiplexer,
    End,
    Last,
    Many,
    demux,
    per_request,
    token_ids,
)
from batchstream._core.cores import Core, core_of
from batchstream._core.rules import EndRules

KINDS = list(dict.fromkeys([Demultiplexer, Core]))
"""The reference, and the native core where there is one."""

cores = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def vacant(kind, size, **options):
    core = kind.__new__(kind)
    core._start(EndRules(**options, opens_slots=True), size, None, vacant=True)
    return core


def ends(delivery):
    return [(slot, str(end.reason), end.outputs) for slot, end in delivery.ends]


def stops_of(request):
    return token_ids(request["stop_ids"])


def is_two(output):
    return output == 2


class Stops:
    """A function of a request that pickles by its own state."""

    def __init__(self, default):
        self.default = default

    def __call__(self, request):
        return token_ids(request.get("stop_ids", self.default))


# ---- the object


async def coroutine_function(request):
    return is_two


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (2, "per_request takes a function of one request that returns what is_eos takes, got 2"),
        (None, "got None"),
        ([2], r"got \[2\]"),
        (token_ids(2), r"got token_ids\(2\), which looks at outputs: pass is_eos=token_ids\(2\)"),
        (per_request(stops_of), r"got per_request\(stops_of\)"),
        (coroutine_function, "got the coroutine function"),
        (partial(coroutine_function), "got the coroutine function"),
    ],
)
def test_what_is_no_function_of_a_request_is_refused_where_it_is_written(function, said):
    with pytest.raises(TypeError, match=said):
        per_request(function)


def test_it_shows_its_function_by_name():
    assert repr(per_request(stops_of)) == "per_request(stops_of)"
    assert repr(per_request(lambda _: None)).endswith("<locals>.<lambda>)")
    assert repr(per_request(partial(stops_of))).startswith("per_request(functools.partial(<func")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_pickles_if_its_function_does(protocol):
    def sent(made):
        return pickle.loads(pickle.dumps(made, protocol))  # noqa: S301 - just pickled

    found = sent(per_request(stops_of))
    assert found.function is stops_of
    found = sent(per_request(Stops(2)))
    assert found.function({})(2)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        sent(per_request(lambda _: None))


@pytest.mark.rule(32)
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: demux([[1]], **options),
        lambda **options: demux([[1]], 1, **options),
        lambda **options: BatchedStream([[1]], **options),
        lambda **options: AsyncBatchedStream([[1]], **options),
        lambda **options: Demultiplexer(1, **options),
    ],
    ids=["demux", "demux of a size", "BatchedStream", "AsyncBatchedStream", "Demultiplexer"],
)
def test_where_there_are_no_requests_it_is_refused_with_what_to_do_instead(make):
    with pytest.raises(
        TypeError, match=r"is_eos=per_request\(stops_of\) is for batchers"
    ) as caught:
        make(is_eos=per_request(stops_of))
    for way in ("one predicate for all slots", "Last", "EOS", "open(slot, is_eos=...)"):
        assert way in str(caught.value)
    with pytest.raises(TypeError, match=r"got per_request\(stops_of\): pass it as is_eos"):
        make(eos=per_request(stops_of))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (2, r"got 2: return token_ids\(2\), or None"),
        ([2, 3], r"got \[2, 3\]: return token_ids\(2, 3\), or None"),
        (np.array([2, 3]), r"return token_ids\(2, 3\), or None"),
        ([], r"got \[\]: return a function of one output .* or None for a request that no output"),
        ("</s>", "return lambda output: output == '</s>', or None"),
        (True, "got True: pass its function as is_eos itself if it takes an output"),
        (End("length"), "return a function that is true of the last output, or None"),
        (per_request(stops_of), "return a function that is true of the last output, or None"),
        (coroutine_function, "a function that answers at once, got the coroutine"),
    ],
)
def test_what_its_function_returns_is_checked_as_is_eos_is(answer, said):
    rules = EndRules(is_eos=per_request(lambda request: request), has_requests=True)
    with pytest.raises(TypeError, match=rf"what per_request\(.*\) returns must be .*{said}"):
        rules.is_eos_of(answer)


@pytest.mark.parametrize("answer", [None, is_two, token_ids(2), token_ids(None), partial(is_two)])
def test_its_function_may_return_all_that_is_eos_takes(answer):
    rules = EndRules(is_eos=per_request(lambda request: request), has_requests=True)
    assert rules.is_eos_of(answer) is answer
    assert rules.is_eos is None


# ---- a core


@pytest.mark.rule(7, 30)
@cores
@pytest.mark.parametrize("shape", [list, tuple, np.array, lambda step: dict(enumerate(step))])
def test_each_occupant_ends_at_its_own_predicate(kind, shape):
    core = vacant(kind, 3)
    core.open(0, is_eos=token_ids(2))
    core.open(1, is_eos=token_ids(3, 4))
    core.open(2)
    assert core.feed(shape([1, 2, 3])).outputs == [(0, 1), (1, 2), (2, 3)]
    delivery = core.feed(shape([2, 3, 2]))
    assert (delivery.outputs, ends(delivery)) == ([(2, 2)], [(0, "eos", 1), (1, "eos", 1)])
    assert core.feed({2: 4}).outputs == [(2, 4)]


@pytest.mark.rule(30)
@cores
def test_the_next_occupant_of_a_slot_has_nothing_of_the_last_ones_predicate(kind):
    core = vacant(kind, 1, is_eos=token_ids(9))
    core.open(0)
    assert ends(core.feed([9])) == [(0, "eos", 0)]
    core.open(0, is_eos=is_two)
    assert core.feed([9]).outputs == [(0, 9)]
    assert ends(core.feed([2])) == [(0, "eos", 1)]
    core.open(0)
    assert core.feed([2]).outputs == [(0, 2)]
    assert ends(core.feed([9])) == [(0, "eos", 1)]


@cores
def test_a_predicate_of_a_slots_own_does_all_that_is_eos_does(kind):
    def fails(output):
        raise ValueError(output)

    core = vacant(kind, 5, include_eos=True)
    core.open(0, is_eos=is_two, max_outputs=3)
    core.open(1, is_eos=is_two)
    core.open(2, is_eos=fails)
    core.open(3, is_eos=lambda output: End("length", {"at": output}))
    core.open(4, is_eos=is_two)
    delivery = core.feed([Many([1, 2, 3]), Last(2), 7, 8, SKIP])
    assert delivery.outputs == [(0, 1), (0, 2), (1, 2), (3, 8)]
    assert ends(delivery) == [(0, "eos", 2), (1, "eos", 1), (2, "error", 0), (3, "length", 1)]
    assert str(delivery.ends[2][1].error) == "7"
    assert delivery.ends[3][1].info == {"at": 8}
    assert core.statistics().dropped == 1


@cores
def test_limits_and_predicates_of_slots_go_together(kind):
    core = vacant(kind, 2)
    core.open(0, is_eos=token_ids(2), max_outputs=2)
    core.open(1, is_eos=token_ids(2))
    core.feed([1, 1])
    assert ends(core.feed([1, 1])) == [(0, "length", 2)]
    core.open(0, max_outputs=1)
    assert ends(core.feed([2, 2])) == [(0, "length", 1), (1, "eos", 2)]


@cores
@pytest.mark.parametrize(
    ("is_eos", "said"),
    [
        (2, r"is_eos takes a function of one output, got 2: pass is_eos=token_ids\(2\)"),
        (per_request(stops_of), "open takes the is_eos of one occupant, got per_request"),
        (coroutine_function, "got the coroutine function"),
    ],
)
def test_an_occupant_with_a_wrong_predicate_is_refused_and_its_slot_stays_free(kind, is_eos, said):
    core = vacant(kind, 1)
    with pytest.raises(TypeError, match=said):
        core.open(0, is_eos=is_eos)
    assert core.live == ()
    core.open(0)
    assert core.feed([2]).outputs == [(0, 2)]


@cores
def test_a_live_slot_keeps_its_predicate_if_it_cannot_be_opened(kind):
    core = vacant(kind, 1)
    core.open(0, is_eos=token_ids(2))
    with pytest.raises(ValueError, match="slot 0 is live"):
        core.open(0, is_eos=token_ids(3))
    assert core.feed([3]).outputs == [(0, 3)]


@pytest.mark.rule(32)
def test_the_warning_names_per_request_once_and_only_where_a_predicate_could_have_matched():
    def end_a_batch(rules, *own):
        core = core_of(rules, len(own), predicates=own)
        core.feed([1] * len(own))
        core.finish()

    rules = EndRules(is_eos=per_request(stops_of), has_requests=True)
    end_a_batch(rules, None, token_ids(None))
    with pytest.warns(RuntimeWarning, match=r"got is_eos=per_request\(stops_of\): let it look"):
        end_a_batch(rules, None, token_ids(2))
    end_a_batch(rules, is_two)
    rules = EndRules(is_eos=per_request(stops_of), has_requests=True)
    end_a_batch(rules, token_ids(1), None)
    end_a_batch(rules, is_two)


@pytest.mark.rule(32)
def test_the_warning_names_the_predicate_that_a_slot_was_opened_with():
    core = Demultiplexer(1, vacant=True)
    core.open(0, is_eos=token_ids(2))
    core.feed([1])
    with pytest.warns(RuntimeWarning, match=r"got is_eos=token_ids\(2\)"):
        core.finish()


@cores
@given(data=st.data())
def test_whatever_the_steps_are_each_slot_gets_what_comes_before_its_own_stop(kind, data):
    size = data.draw(st.integers(1, 4))
    tokens = st.integers(0, 4)
    rows = data.draw(st.lists(st.lists(tokens, min_size=size, max_size=size), max_size=12))
    stops = data.draw(st.lists(st.none() | st.frozensets(tokens), min_size=size, max_size=size))
    as_ids = data.draw(st.booleans())
    core = kind.__new__(kind)
    own = [each if each is None else token_ids(None, each) for each in stops]
    if not as_ids:
        own = [each if each is None else each.ids.__contains__ for each in own]
    core._start(EndRules(), size, None, own, vacant=False)
    given_to = [[] for _ in range(size)]
    for row in rows:
        for slot, output in core.feed(row).outputs:
            given_to[slot].append(output)
    for slot, stop in enumerate(stops):
        column = [row[slot] for row in rows]
        last = next((n for n, each in enumerate(column) if stop and each in stop), len(column))
        assert given_to[slot] == column[:last]
        assert (slot in core.live) == (last == len(column))
