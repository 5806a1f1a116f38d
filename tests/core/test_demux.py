"""The core: what a step means, state by state and marker by marker."""

from __future__ import annotations

import array
import enum
import functools
import math
import re
import sys
from collections import UserList, deque
from concurrent.futures import Future
from types import MappingProxyType

import numpy as np
import pytest

from batchstream import (
    EOS,
    SKIP,
    ClosedError,
    Demultiplexer,
    End,
    Fail,
    FinishReason,
    Last,
    Many,
    MissingEOSError,
    Requeue,
    StepError,
    demux,
    token_ids,
)
from batchstream._core.cores import core_of
from batchstream._core.demultiplexer import BATCH_TRANSITIONS
from batchstream._core.rules import EndRules
from support.interrupts import needs_lines
from support.sources import OfUnhashableType, Untouchable


class Mark(enum.Enum):
    END = "end"


class Token(enum.IntEnum):
    END = 2


class Text(enum.StrEnum):
    END = "</s>"


def is_stop(output):
    return output == "stop"


class OneAgain:
    """A key like a tensor: equal to no other, and a slot all the same."""

    def __index__(self):
        return 1

    def __repr__(self):  # the same in every process that collects the tests
        return "OneAgain()"


class Unreadable:
    """A step that fails as soon as it is looked at, as a lazy array may."""

    @property
    def ndim(self):
        raise OSError("device lost")


class FakeTensor:
    """What the core may use of a tensor, and nothing more."""

    def __init__(self, data):
        self._data = data
        self.ndim = 1 + isinstance(data[0], list)

    def tolist(self):
        return list(self._data)

    def __iter__(self):
        return (FakeTensor(row) for row in self._data)

    def _refuse(self, *_):
        raise AssertionError("Boolean value of Tensor with more than one value is ambiguous")

    __bool__ = __eq__ = _refuse
    __hash__ = None


def ends(delivery):
    return [(slot, str(end.reason), end.outputs) for slot, end in delivery.ends]


@pytest.mark.parametrize(
    ("element", "delivered", "reason"),
    [
        ("x", ["x"], None),
        (None, [], "eos"),
        (EOS, [], "eos"),
        (SKIP, [], None),
        (Last("x"), ["x"], "eos"),
        (Last("x", reason="length"), ["x"], "length"),
        (End(), [], "eos"),
        (End(reason=FinishReason.CANCELLED), [], "cancelled"),
        (Fail(ValueError("no")), [], "error"),
        (Many(["x", "y"]), ["x", "y"], None),
        (Many([]), [], None),
        (Many(["x", EOS, "y"]), ["x"], "eos"),
        (Many(["x", Last("y"), "z"]), ["x", "y"], "eos"),
        (Many([Many(["x"]), SKIP, "y"]), ["x", "y"], None),
        (Many(["x", Fail(ValueError("no"))]), ["x"], "error"),
    ],
)
@pytest.mark.parametrize("as_mapping", [False, True])
def test_each_element_of_a_step_means_what_it_says(element, delivered, reason, as_mapping):
    core = Demultiplexer(2)
    step = {1: element} if as_mapping else [SKIP, element]
    delivery = core.feed(step)
    assert delivery.outputs == [(1, output) for output in delivered]
    assert ends(delivery) == ([(1, reason, len(delivered))] if reason else [])
    assert core.live == ((0,) if reason else (0, 1))


def test_metadata_and_errors_arrive_with_the_end():
    error = ValueError("no")
    usage = {"tokens": 3}
    delivery = Demultiplexer(3).feed([Last("x", info=usage), End("length", usage), Fail(error)])
    (_, last), (_, end), (_, failed) = delivery.ends
    assert last.info is usage
    assert end.info is usage
    assert failed.error is error


@pytest.mark.parametrize(
    "step",
    [
        [1, 2],
        (1, 2),
        {0: 1, 1: 2},
        MappingProxyType({1: 2, 0: 1}),
        {np.int64(0): 1, np.int64(1): 2},
        np.array([1, 2]),
        array.array("i", [1, 2]),
        deque([1, 2]),
        UserList([1, 2]),
        range(1, 3),
    ],
)
def test_a_step_may_have_any_of_these_shapes(step):
    assert sorted(Demultiplexer(2).feed(step).outputs) == [(0, 1), (1, 2)]


def test_numbers_out_of_an_array_are_plain_python_numbers():
    [(_, output)] = Demultiplexer(1).feed(np.array([7])).outputs
    assert type(output) is int


def test_an_array_of_more_dimensions_gives_one_sub_array_per_slot():
    step = np.arange(6).reshape(2, 3)
    (_, first), (_, second) = Demultiplexer(2).feed(step).outputs
    assert np.array_equal(first, [0, 1, 2])
    assert np.array_equal(second, [3, 4, 5])


def test_a_tensor_is_asked_for_a_list_or_for_its_rows_and_never_compared():
    assert Demultiplexer(2).feed(FakeTensor([3, 4])).outputs == [(0, 3), (1, 4)]
    (_, first), (_, second) = Demultiplexer(2).feed(FakeTensor([[1, 2], [3, 4]])).outputs
    assert [first.tolist(), second.tolist()] == [[1, 2], [3, 4]]


@pytest.mark.rule(6)
def test_token_ids_leave_outputs_of_other_kinds_untouched():
    outputs = [Untouchable(), 5, "2", np.array([2, 2])]
    core = Demultiplexer(len(outputs), is_eos=token_ids(2))
    received = [output for _, output in core.feed(outputs).outputs]
    assert all(a is b for a, b in zip(received, outputs, strict=True))
    assert len(received) == len(outputs)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_tensor_is_read_like_an_array(dimensions):
    torch = pytest.importorskip("torch")
    step = torch.arange(2 * dimensions).reshape((2, 2)[:dimensions])
    outputs = [output for _, output in Demultiplexer(2).feed(step).outputs]
    if dimensions == 1:
        assert outputs == [0, 1]
        assert all(type(output) is int for output in outputs)
    else:
        assert [output.tolist() for output in outputs] == [[0, 1], [2, 3]]


class NamelessError(Exception):
    def __str__(self):
        raise ZeroDivisionError

    @classmethod
    def raiser(cls):
        class Raiser:
            @property
            def ndim(self):
                raise cls

        return Raiser()


class Disguised:
    @property
    def __class__(self):
        raise OSError("no class")


@pytest.mark.rule(8)
def test_a_step_that_refuses_to_name_its_class_cannot_be_read():
    [(_, end), _] = Demultiplexer(2).feed(Disguised()).ends
    assert str(end.error) == "step 0 could not be read: OSError: no class"


@pytest.mark.rule(6, 8)
@pytest.mark.parametrize("eos", [None, EOS])
def test_a_missing_value_in_a_later_array_is_no_end_either(eos):
    arrays = [np.ma.array([1, 2], mask=[False, missing]) for missing in (False, False, True)]
    for stream, output in zip(demux(arrays, 2, eos=eos), (1, 2), strict=True):
        assert [next(stream), next(stream)] == [output, output]
        with pytest.raises(StepError, match="int64 has no value at position 1"):
            next(stream)


@pytest.mark.rule(6)
def test_none_in_an_array_of_objects_is_an_end_mark_as_in_a_list():
    steps = [np.array(row, dtype=object) for row in (["a", "b"], ["c", None])]
    first, second = demux(steps, 2)
    assert list(second) == ["b"]
    assert second.finish_reason is FinishReason.EOS
    assert list(first) == ["a", "c"]


@pytest.mark.rule(8)
def test_a_missing_value_among_many_outputs_is_refused_where_they_are_made():
    with pytest.raises(ValueError, match="has no value at position 1"):
        Many(np.ma.array([1, 2], mask=[False, True]))


@pytest.mark.rule(8)
@pytest.mark.parametrize(
    "step", [{"for": "client A"}.values(), {"client A": 1}, "client A", {b"client A"}]
)
def test_the_error_of_a_step_shows_no_output(step):
    [(_, end), _] = Demultiplexer(2).feed(step).ends
    assert "client" not in str(end.error)


ONE_EACH = "(one per slot; a dict {slot: output} may leave slots out)"


@pytest.mark.rule(8)
@pytest.mark.parametrize(
    ("step", "says"),
    [
        ([1], f"step 0 has 1 outputs, expected 2 {ONE_EACH}"),
        ([1, 2, 3], f"step 0 has 3 outputs, expected 2 {ONE_EACH}"),
        ([], f"step 0 has 0 outputs, expected 2 {ONE_EACH}"),
        (np.zeros(3), f"step 0 has 3 outputs, expected 2 {ONE_EACH}"),
        (np.float64(1.0), "step 0 is no sequence, mapping or array"),
        (np.array(1), "step 0 is no sequence, mapping or array"),
        (
            "ab",
            "step 0 is no sequence, mapping or array of outputs, one per slot, got str: make it a",
        ),
        (b"ab", "got bytes: make it a list"),
        (bytearray(b"ab"), "got bytearray"),
        ({1, 2}, "got set"),
        (None, "got NoneType"),
        (5, "got int"),
        (iter([1, 2]), "list_iterator: make it a list, or yield from it where it is a source"),
        ((n for n in [1, 2]), "got generator"),
        ({2: 1}, "step 0 names slot 2, expected slots from 0 to 1"),
        ({-1: 1}, "step 0 names slot -1, expected slots from 0 to 1"),
        ({"a": 1}, "step 0 names a slot of type str, expected slots from 0 to 1"),
        ({True: 1}, "step 0 names a slot of type bool, expected slots from 0 to 1"),
        ({OneAgain(): 1, OneAgain(): 2}, "step 0 names slot 1 twice"),
        ({10**5000: 1}, "step 0 names a slot of 16610 bits, expected slots from 0 to 1"),
        (Unreadable(), "step 0 could not be read: OSError: device lost"),
        (NamelessError.raiser(), "step 0 could not be read: NamelessError: <no text>"),
        (np.ma.array([1, 2], mask=[False, True]), "int64 has no value at position 1"),
        (np.array(["2020-01-01", "NaT"], "datetime64[s]"), "has no value at position 1"),
    ],
)
def test_a_malformed_step_fails_every_live_stream_and_delivers_nothing(step, says):
    core = Demultiplexer(2)
    delivery = core.feed(step)
    assert delivery.outputs == []
    assert [slot for slot, _ in delivery.ends] == [0, 1]
    for _, end in delivery.ends:
        assert isinstance(end.error, StepError)
        assert says in str(end.error)
        assert end.error.step == 0
    assert core.live == ()


@pytest.mark.rule(8)
def test_the_error_counts_the_steps():
    core = Demultiplexer(1)
    core.feed(["a"])
    core.feed(["b"])
    (_, end), *_ = core.feed(["c", "d"]).ends
    assert str(end.error) == f"step 2 has 2 outputs, expected 1 {ONE_EACH}"
    assert end.error.step == 2


@pytest.mark.rule(8)
def test_a_step_that_fails_to_be_read_is_a_step_error_with_the_cause():
    class Broken(UserList):
        def __iter__(self):
            raise OSError("device lost")

    (_, end), *_ = Demultiplexer(2).feed(Broken([1, 2])).ends
    assert isinstance(end.error, StepError)
    assert isinstance(end.error.__cause__, OSError)


@pytest.mark.rule(8)
def test_a_huge_or_unprintable_step_makes_a_short_message():
    class Unprintable:
        def __repr__(self):
            raise ValueError("no repr")

    (_, end), *_ = Demultiplexer(1).feed("x" * 10_000).ends
    assert len(str(end.error)) < 200
    (_, end), *_ = Demultiplexer(1).feed(Unprintable()).ends
    assert "got Unprintable" in str(end.error)


def test_an_absent_slot_gets_nothing_and_goes_on():
    core = Demultiplexer(3)
    assert core.feed({1: "x"}).outputs == [(1, "x")]
    assert core.feed({}).outputs == []
    assert core.live == (0, 1, 2)


def test_live_is_the_same_object_until_something_changes():
    core = Demultiplexer(2)
    before = core.live
    core.feed(["a", "x"])
    core.feed({0: SKIP})
    assert core.live is before
    core.feed(["b", None])
    assert core.live == (0,)
    assert core.live is core.live


@pytest.mark.rule(6)
def test_what_a_finished_slot_is_given_is_dropped_and_outputs_are_counted():
    core = Demultiplexer(3)
    core.feed([None, "x", None])
    for element, counted in [
        ("pad", 1),
        (None, 0),
        (EOS, 0),
        (SKIP, 0),
        (End(), 0),
        (Fail(ValueError()), 0),
        (Last("late"), 1),
        (Many(["late", EOS, "later"]), 2),
    ]:
        for step in ([element, "y", None], [element, SKIP, None], {0: element, 1: "y"}):
            before = core.statistics().dropped
            delivery = core.feed(step)
            assert core.statistics().dropped - before == counted, element
            assert {slot for slot, _ in delivery.outputs} <= {1}
            assert not delivery.ends


@pytest.mark.rule(6)
def test_all_the_padding_of_finished_slots_is_counted():
    core = Demultiplexer(4, eos=EOS)
    core.feed([EOS, EOS, "x", EOS])
    core.feed([0, 0, "y", 0])
    core.feed([0, EOS, "y", None])
    assert core.statistics().dropped == 5


def hostile_outputs():
    return [
        Untouchable(),
        OfUnhashableType(),
        np.array([1.0, 2.0]),
        ValueError("data"),
        StopIteration("data"),
        StopIteration,
        StopAsyncIteration,
        GeneratorExit,
        Demultiplexer,
        float("nan"),
        NotImplemented,
        type,
        ...,
    ]


@pytest.mark.rule(6)
@pytest.mark.parametrize("beside", ["plain", None, Last("x"), SKIP])
def test_outputs_of_every_kind_pass_untouched(beside):
    data = hostile_outputs()
    core = Demultiplexer(len(data) + 1)
    delivery = core.feed([*data, beside])
    received = [output for slot, output in delivery.outputs if slot < len(data)]
    assert len(received) == len(data)
    assert all(a is b for a, b in zip(received, data, strict=True))
    core.feed([*data, "for a finished slot, or not"])
    assert len(core.live) >= len(data)


@pytest.mark.rule(6)
def test_hostile_outputs_for_finished_slots_are_dropped_untouched():
    data = hostile_outputs()
    core = Demultiplexer(len(data) + 1)
    core.feed([*[None] * len(data), "x"])
    core.feed([*data, "y"])
    assert core.statistics().dropped == len(data)


@pytest.mark.rule(6)
@pytest.mark.parametrize("mark", [object(), StopIteration, EOS, True, Mark.END, ...])
def test_the_end_mark_is_recognised_by_identity(mark):
    class EqualToAll:
        def __eq__(self, other):
            return True

        __hash__ = None

    core = Demultiplexer(2, eos=mark)
    delivery = core.feed([EqualToAll(), None])
    assert len(delivery.outputs) == 2
    assert core.feed([mark, "x"]).ends[0][0] == 0
    assert core.live == (1,)


def test_a_delivery_shows_outputs_and_reasons():
    delivery = Demultiplexer(3).feed(["a", Last("b", "length"), None])
    assert repr(delivery) == (
        "<Delivery, outputs [(0, 'a'), (1, 'b')], ends {1: 'length', 2: 'eos'}>"
    )


def test_where_none_is_not_the_mark_it_is_an_output():
    [first] = demux([[None], [1], [EOS]], eos=EOS)
    assert list(first) == [None, 1]


FOUND_OTHERWISE = [
    (2, "is_eos=token_ids(2)"),
    (32000, "is_eos=token_ids(32000)"),
    (0.5, "is_eos=lambda output: output == 0.5"),
    (math.nan, "is_eos=lambda output: output != output"),
    ("</s>", "is_eos=lambda output: output == '</s>'"),
    (b"", "is_eos=lambda output: output == b''"),
    ((2, 3), "is_eos=token_ids(2, 3)"),
    (("a", "b"), "is_eos=lambda output: output in ('a', 'b')"),
    (frozenset(), "is_eos=a function of one output"),
    ([2, 3], "is_eos=token_ids(2, 3)"),
    ({2, 3}, "is_eos=token_ids(2, 3)"),
    (["a", 2], "is_eos=lambda output: output in ['a', 2]"),
    ({2: "end"}, "is_eos=token_ids(2)"),
    (range(2, 4), "is_eos=token_ids(2, 3)"),
    (deque([2]), "is_eos=token_ids(2)"),
    (np.int64(1), "is_eos=token_ids(1)"),
    (np.float64(1.5), "is_eos=lambda output: output == 1.5"),
    (np.float32("nan"), "is_eos=lambda output: output != output"),
    (np.array([2, 3]), "is_eos=token_ids(2, 3)"),
    (np.array(2), "is_eos=token_ids(2)"),
    (Token.END, "is_eos=token_ids(Token.END)"),
    (Text.END, "is_eos=lambda output: output == Text.END"),
    (FinishReason.EOS, "is_eos=lambda output: output == FinishReason.EOS"),
    (OneAgain(), "is_eos=token_ids(1)"),
]


@pytest.mark.rule(32)
@pytest.mark.parametrize(("mark", "instead"), FOUND_OTHERWISE, ids=repr)
def test_an_end_mark_that_identity_cannot_find_is_refused(mark, instead):
    with pytest.raises(ValueError, match=r"compared by identity") as raised:
        Demultiplexer(1, eos=mark)
    assert f"pass {instead}" in str(raised.value)


@pytest.mark.rule(32)
@pytest.mark.parametrize(
    ("function", "instead"),
    [
        (token_ids(2, 3), "pass is_eos=token_ids(2, 3)"),
        (token_ids(2, key="id"), "pass is_eos=token_ids(2, key='id')"),
        (is_stop, "pass is_eos=is_stop"),
        (math.isnan, "pass is_eos=isnan"),
        (lambda output: output == "stop", "pass it as is_eos"),
        (functools.partial(is_stop), "pass it as is_eos"),
    ],
)
def test_a_function_is_no_end_mark(function, instead):
    with pytest.raises(ValueError, match="eos takes the object that marks an end") as raised:
        Demultiplexer(1, eos=function)
    assert str(raised.value).endswith(instead)


def test_an_object_that_is_called_like_a_coroutine_function_is_no_predicate():
    class Predicate:
        async def __call__(self, output):
            return output == "b"

    with pytest.raises(TypeError, match="whose coroutine is true of every output"):
        Demultiplexer(1, is_eos=Predicate())


@pytest.mark.rule(32)
@pytest.mark.parametrize(
    ("value", "instead"),
    [*FOUND_OTHERWISE, (EOS, "eos=EOS"), (True, "eos=True")],
    ids=repr,
)
def test_what_is_no_function_is_no_predicate(value, instead):
    with pytest.raises(TypeError, match="is_eos takes a function of one output") as raised:
        Demultiplexer(1, is_eos=value)
    assert f"pass {instead}" in str(raised.value)


def test_a_coroutine_function_is_no_predicate():
    async def is_eos(output):
        return output == 2

    with pytest.raises(TypeError, match="true of every output: write it with def"):
        Demultiplexer(1, is_eos=is_eos)


@pytest.mark.parametrize("mark", [SKIP, Last("x"), Many([]), End(), Fail(ValueError())])
def test_a_marker_that_means_something_else_is_no_end_mark(mark):
    with pytest.raises(ValueError, match="means something else"):
        Demultiplexer(1, eos=mark)


def test_a_predicate_ends_its_slot_and_delivers_the_match_only_if_asked():
    for include in (False, True):
        core = Demultiplexer(2, is_eos=lambda n: n < 0, include_eos=include)
        delivery = core.feed([-1, 5])
        assert delivery.outputs == ([(0, -1)] if include else []) + [(1, 5)]
        assert ends(delivery) == [(0, "eos", int(include))]


def test_a_predicate_is_asked_once_for_each_output_and_not_about_markers():
    asked = []
    core = Demultiplexer(4, is_eos=asked.append)
    core.feed(["a", Last("b"), None, Many(["c", "d"])])
    core.feed(["e", "for a finished slot", "too", SKIP])
    assert asked == ["a", "c", "d", "e"]


@pytest.mark.rule(15)
def test_a_predicate_that_raises_fails_its_own_slot_alone():
    def is_eos(output):
        return 1 / output < 0

    core = Demultiplexer(3, is_eos=is_eos)
    delivery = core.feed([1, 0, 1])
    assert delivery.outputs == [(0, 1), (2, 1)]
    [(slot, end)] = delivery.ends
    assert slot == 1
    assert isinstance(end.error, ZeroDivisionError)


def test_the_result_of_a_predicate_may_be_anything_with_a_truth_value():
    [stream] = demux(np.array([[3], [2], [7]]), is_eos=lambda n: np.bool_(n == 2))
    assert list(stream) == [3]
    [stream] = demux([["a"], ["b<eos>"]], is_eos=re.compile("<eos>").search)
    assert list(stream) == ["a"]


async def answers_later(output):
    return output == "b"


@pytest.mark.rule(15, 32)
@pytest.mark.parametrize("with_limit", [False, True])  # one goes through the elements one by one
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda _: token_ids(2), "is_eos returned an object of type TokenIds, which is true of"),
        (lambda _: list, "of type type, which is true of every output: let it return True or"),
        (answers_later, "is_eos returned an object of type coroutine, which is true of every"),
        (lambda output: (output == mark for mark in "b"), "of type generator, which is true of"),
        (lambda output: map(ord, output), "of type map, which is true of every output"),
        (lambda _: Future(), "of type Future, which is true of every output"),
        (lambda _: np.ones(2), "of type ndarray, which is neither true nor false: let it return"),
    ],
)
def test_an_answer_that_tells_nothing_fails_its_own_slot_and_names_is_eos(answer, says, with_limit):
    core = Demultiplexer(
        3,
        is_eos=lambda output: answer(output) if output == "b" else None,
        max_outputs=9 if with_limit else None,
    )
    delivery = core.feed(["a", "b", "c"])
    assert delivery.outputs == [(0, "a"), (2, "c")]
    [(slot, end)] = delivery.ends
    assert slot == 1
    assert type(end.error) is TypeError
    assert says in str(end.error)


@pytest.mark.rule(32)
def test_what_makes_a_predicate_is_none():
    with pytest.raises(TypeError, match=r"got token_ids, which makes one: call it"):
        Demultiplexer(1, is_eos=token_ids)

    def generates(output):
        yield output == 2

    async def generates_later(output):
        yield output == 2

    for wrong in (generates, generates_later):
        with pytest.raises(TypeError, match="whose generator is true of every output: let it"):
            Demultiplexer(1, is_eos=wrong)


def test_to_include_what_no_predicate_recognises_is_refused():
    with pytest.raises(ValueError, match="there is no is_eos: pass is_eos, or leave include_eos"):
        demux([["a"]], include_eos=True)


@pytest.mark.rule(6)
@pytest.mark.parametrize("within_many", [False, True])
@pytest.mark.parametrize(
    ("marker", "call"),
    [
        (Last, "Last(output)"),
        (End, "End()"),
        (Fail, "Fail(error)"),
        (Many, "Many(outputs)"),
    ],
)
def test_the_class_of_a_marker_fails_its_slot_alone_and_other_classes_are_outputs(
    marker, call, within_many
):
    core = Demultiplexer(3)
    assert core.feed([int, Untouchable, "a"]).outputs == [(0, int), (1, Untouchable), (2, "a")]
    delivery = core.feed(["b", Many([marker]) if within_many else marker, Demultiplexer])
    assert delivery.outputs == [(0, "b"), (2, Demultiplexer)]
    [(slot, end)] = delivery.ends
    assert (slot, type(end.error), end.error.step) == (1, StepError, 1)
    assert str(end.error) == (
        f"step 1 holds the class {marker.__name__} for slot 1, expected an instance: yield {call}"
    )
    assert core.live == (0, 2)


def test_token_ids_match_whole_numbers_of_every_kind_and_nothing_else():
    ends_it = token_ids(2, 32000)
    assert ends_it(2)
    assert ends_it(np.int64(32000))
    assert ends_it(np.array(2))
    for other in [3, "2", 2.0, None, Untouchable, np.array([2, 2]), [2], b"2"]:
        assert not ends_it(other)
    assert repr(ends_it) == "token_ids(2, 32000)"


def test_token_ids_match_tensors():
    torch = pytest.importorskip("torch")
    assert token_ids(2)(torch.tensor(2))
    assert not token_ids(2)(torch.tensor([2, 3]))
    assert not token_ids(2)(torch.tensor(2.0))


def test_token_ids_end_plain_steps_of_numbers_and_of_mixed_kinds():
    streams = demux([[5, "x"], [2, np.int64(4)], [2, 2]], is_eos=token_ids(2))
    assert [list(stream) for stream in streams] == [[5], ["x", 4]]


def test_a_token_id_that_is_equal_to_no_number_ends_its_stream():
    """As a tensor without dimensions does: by its hash it is no number."""
    first, second = demux([[5, 5], [OneAgain(), 6], [7, 7]], is_eos=token_ids(1))
    assert [list(first), list(second)] == [[5], [5, 6, 7]]


@pytest.mark.rule(32)
@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ((), ValueError),
        (([],), ValueError),
        (("2",), TypeError),
        ((["2"],), TypeError),
        ((2.0,), TypeError),
        ((True,), TypeError),
        ((np.array([2.0]),), TypeError),
        (([[2]],), TypeError),
        (([None],), TypeError),
        (({2: 3},), TypeError),
    ],
)
def test_token_ids_refuse_what_is_no_id(ids, error):
    with pytest.raises(error, match="token_ids takes"):
        token_ids(*ids)


@pytest.mark.rule(32)
@pytest.mark.parametrize(
    "ids",
    [(2, 7), ([2, 7],), ({2, 7},), ((2, 7), None), (2, [7]), (np.array([2, 7]),), (np.int64(2), 7)],
)
def test_token_ids_are_one_or_many_or_none_as_a_tokenizer_has_them(ids):
    ends_it = token_ids(*ids)
    assert repr(ends_it) == "token_ids(2, 7)"
    assert [ends_it(2), ends_it(7), ends_it(5)] == [True, True, False]


def test_without_a_token_id_no_output_ends_a_sequence():
    assert repr(token_ids(None)) == "token_ids(None)"
    [stream] = demux([[2], [None], [3]], is_eos=token_ids(None))
    assert list(stream) == [2]


@pytest.mark.rule(32)
def test_token_ids_are_found_in_arrays_of_one_number():
    steps = [np.array([[5], [6]]), np.array([[2], [7]]), np.array([[2], [2]])]
    first, second = demux(steps, is_eos=token_ids(2))
    assert [list(first), list(second)] == [[[5]], [[6], [7]]]
    assert not token_ids(1)(np.array([True]))
    assert not token_ids(2)(np.array([2.0]))
    assert not token_ids(1)(True)


@pytest.mark.rule(32)
@pytest.mark.parametrize(
    ("key", "output"),
    [
        (0, lambda token: (token, -0.5)),
        ("id", lambda token: {"id": token}),
        (lambda output: output[1], lambda token: ["text", token]),
        (0, lambda token: np.array([token])),
    ],
    ids=["in a tuple", "in a dict", "by a function", "in an array"],
)
def test_token_ids_are_found_within_outputs(key, output):
    steps = [[output(5), output(6)], [output(2), output(7)], [output(2), output(2)]]
    first, second = demux(steps, is_eos=token_ids(2, key=key))
    assert [list(first), list(second)] == [[output(5)], [output(6), output(7)]]


def test_plain_numbers_are_no_ids_where_ids_are_found_within_outputs():
    """The quick way looks at the outputs themselves, and is not for token ids with a key."""
    [stream] = demux([[1], [2], [3]], is_eos=token_ids(2, key=lambda output: output - 1))
    assert list(stream) == [1, 2]


@pytest.mark.rule(15)
def test_an_output_without_an_id_fails_its_own_slot():
    first, second = demux([[(5, 0.1), 5], [(2, 0.1), 2]], is_eos=token_ids(2, key=0))
    assert list(first) == [(5, 0.1)]
    says = r"token_ids\(2, key=0\) finds no token id in an output of type int: pass the key"
    with pytest.raises(TypeError, match=says):
        next(second)
    with pytest.raises(TypeError, match=r"key='id'\) finds no token id in an output of type tuple"):
        token_ids(2, key="id")((2, 0.1))
    with pytest.raises(AttributeError, match="no attribute 'token'"):
        token_ids(2, key=lambda output: output.token)((2, 0.1))


def test_a_text_is_no_token_id_and_the_error_says_what_finds_texts():
    with pytest.raises(TypeError, match=r"got '</s>': .* is_eos=lambda output: output == '</s>'"):
        token_ids("</s>")


@pytest.mark.parametrize("key", [True, 0.5, [0], None.__class__])
def test_the_key_of_token_ids_is_a_position_a_key_or_a_function(key):
    if callable(key):
        assert token_ids(2, key=key).key is key
    else:
        with pytest.raises(TypeError, match="key takes a position, a key or a function"):
            token_ids(2, key=key)


@pytest.mark.rule(32)
def test_rules_warn_once_that_is_eos_was_never_true_and_never_after_it_was():
    def end_a_batch(rules, step):
        core = core_of(rules, 2)
        core.feed(step)
        core.finish()

    rules = EndRules(is_eos=token_ids(2, key=0))
    with pytest.warns(RuntimeWarning, match=r"token_ids\(2, key=0\)") as caught:
        end_a_batch(rules, [(1,), (1,)])
    assert caught[0].filename == __file__
    end_a_batch(rules, [(1,), (1,)])
    rules = EndRules(is_eos=lambda output: output == 2)
    end_a_batch(rules, [2, 1])
    end_a_batch(rules, [1, 1])


@pytest.mark.rule(32)
def test_a_warning_that_is_an_error_leaves_the_core_as_it_was():
    core = Demultiplexer(1, is_eos=token_ids(2))
    core.feed([1])
    with pytest.raises(RuntimeWarning):
        core.finish()
    assert core.live == (0,)
    assert ends(core.finish()) == [(0, "exhausted", 1)]


def test_a_limit_finishes_the_slot_in_the_step_that_reaches_it():
    core = Demultiplexer(3, max_outputs=[2, None, 1])
    delivery = core.feed(["a", "b", "c"])
    assert len(delivery.outputs) == 3
    assert ends(delivery) == [(2, "length", 1)]
    assert ends(core.feed(["a", "b", "pad"])) == [(0, "length", 2)]
    for _ in range(5):
        assert core.feed(["pad", "b", "pad"]).outputs == [(1, "b")]


@pytest.mark.parametrize("last", [Last("z"), Many(["z", EOS]), "</s>"])
def test_eos_comes_before_the_limit_when_both_fall_on_one_output(last):
    core = Demultiplexer(1, max_outputs=2, is_eos=lambda o: o == "</s>", include_eos=True)
    core.feed(["a"])
    delivery = core.feed([last])
    reason = "length" if type(last) is Many else "eos"  # there the mark is a second element
    assert ends(delivery) == [(0, reason, 2)]


def test_a_limit_cuts_many_outputs_and_counts_the_rest_as_dropped():
    core = Demultiplexer(1, max_outputs=2)
    delivery = core.feed([Many(["a", "b", "c", "d"])])
    assert delivery.outputs == [(0, "a"), (0, "b")]
    assert core.statistics().dropped == 2


def test_the_end_of_the_source_exhausts_what_is_live():
    core = Demultiplexer(3)
    core.feed(["a", None, "b"])
    assert ends(core.finish()) == [(0, "exhausted", 1), (2, "exhausted", 1)]


def test_the_end_of_the_source_is_an_error_where_eos_is_required():
    core = Demultiplexer(2, require_eos=True)
    core.feed(["a", None])
    [(slot, end)] = core.finish().ends
    assert slot == 0
    assert end.reason is FinishReason.ERROR
    assert isinstance(end.error, MissingEOSError)
    assert (end.error.slot, end.error.outputs) == (0, 1)
    assert "after 1 outputs for slot 0, before its end mark" in str(end.error)


def test_failing_ends_each_live_slot_with_the_error_and_latches():
    core = Demultiplexer(2)
    core.feed(["a", None])
    error = OSError("gone")
    [(slot, end)] = core.fail(error).ends
    assert (slot, end.reason, end.error) == (0, FinishReason.ERROR, error)
    for call in (lambda: core.feed(["a", "b"]), core.finish, lambda: core.open(0)):
        with pytest.raises(ClosedError, match="the batch has failed") as caught:
            call()
        assert caught.value.__cause__ is error


def test_a_malformed_step_latches():
    core = Demultiplexer(1)
    core.feed("no step")
    assert not core.running
    with pytest.raises(ClosedError, match="has failed; make another Demultiplexer"):
        core.feed(["a"])


def test_cancelling_ends_one_slot_once():
    core = Demultiplexer(2)
    core.feed(["a", "b"])
    assert ends(core.cancel(0)) == [(0, "cancelled", 1)]
    assert ends(core.cancel(0)) == []
    assert core.feed(["late", "c"]).outputs == [(1, "c")]
    core.finish()
    assert ends(core.cancel(1)) == []


@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_that_does_not_exist_is_refused(slot):
    core = Demultiplexer(2)
    for call in (core.cancel, core.open):
        with pytest.raises(IndexError, match=f"no slot {slot}, expected slots from 0 to 1"):
            call(slot)


@pytest.mark.rule(30)
def test_an_opened_slot_counts_from_zero():
    core = Demultiplexer(2, max_outputs=2)
    core.feed(["a", None])
    with pytest.raises(ValueError, match="slot 0 is live"):
        core.open(0)
    core.open(1)
    assert core.live == (0, 1)
    assert ends(core.feed(["a", "x"])) == [(0, "length", 2)]
    assert ends(core.feed([SKIP, "y"])) == [(1, "length", 2)]
    figures = core.statistics()
    assert figures.opened == 3
    assert figures.finished == {FinishReason.EOS: 1, FinishReason.LENGTH: 2}
    assert figures.outputs == 4


@pytest.mark.rule(30)
def test_opened_is_always_live_and_finished_together():
    core = Demultiplexer(2)
    for element in (None, "a", Last("b"), SKIP):
        core.feed({1: element})
        if core.live == (0,):
            core.open(1)
        figures = core.statistics()
        assert figures.opened == figures.live + sum(figures.finished.values())


@pytest.mark.parametrize("state", ["running", "ended", "failed"])
@pytest.mark.parametrize("event", ["feed", "finish", "fail", "open"])
def test_what_the_table_does_not_list_raises_and_what_it_lists_does_not(state, event):
    core = Demultiplexer(1)
    core.cancel(0)
    {"running": lambda: None, "ended": core.finish, "failed": lambda: core.fail(OSError())}[state]()
    calls = {
        "feed": lambda: core.feed(["a"]),
        "finish": core.finish,
        "fail": lambda: core.fail(OSError()),
        "open": lambda: core.open(0),
    }
    if (state, event) in BATCH_TRANSITIONS:
        calls[event]()
        assert core.running == (BATCH_TRANSITIONS[state, event] == "running")
    else:
        with pytest.raises(ClosedError, match=f"cannot {event}: the batch has {state}"):
            calls[event]()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"size": -1}, ValueError, "size must be at least 0, got -1"),
        ({"size": "2"}, TypeError, "size takes a whole number, got '2'"),
        ({"size": True}, TypeError, "size takes a whole number, got True"),
        ({"is_eos": 2}, TypeError, "is_eos takes a function of one output, got 2"),
        ({"max_outputs": 0}, ValueError, "max_outputs must be at least 1, got 0"),
        ({"max_outputs": [1]}, ValueError, r"max_outputs has 1 entries, expected 2 \(one per"),
        ({"max_outputs": [1, "x"]}, TypeError, "max_outputs takes a whole number, got 'x'"),
        ({"max_outputs": "12"}, TypeError, "max_outputs takes a whole number, got '12'"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, error, says):
    with pytest.raises(error, match=says):
        Demultiplexer(**{"size": 2, **arguments})


def test_a_batch_without_slots_is_legal():
    core = Demultiplexer(0)
    assert core.live == ()
    assert not core.has_live
    assert core.feed([]).outputs == []


def test_a_demultiplexer_shows_where_it_is():
    core = Demultiplexer(3)
    core.feed(["a", None, "b"])
    assert repr(core) == "<Demultiplexer running, 2 of 3 slots live, 1 steps>"
    assert core.size == 3
    assert core.given(0) == 1
    assert core.given(1) == 0


@pytest.mark.rule(2)
def test_what_a_step_that_was_broken_off_has_asked_is_forgotten():
    core = Demultiplexer(2, is_eos=lambda output: output == ".")
    assert core.feed_plain([".", "x"]) is None  # and no more: an interrupt strikes here
    assert core.feed(["a", SKIP]).outputs == [(0, "a")]
    assert core.live == (0, 1)


def test_an_output_for_a_finished_slot_beside_one_that_is_eos_recognises_counts_as_dropped():
    core = Demultiplexer(3, is_eos=lambda output: output == ".")
    core.cancel(0)
    delivery = core.feed(["late", ".", "x"])
    assert delivery.outputs == [(2, "x")]
    assert [slot for slot, _ in delivery.ends] == [1]
    assert core.statistics().dropped == 1


@pytest.mark.parametrize("make", [list, tuple, lambda ids: dict(enumerate(ids)), np.array])
def test_is_eos_is_asked_once_about_each_output(make):
    asked = []

    def is_eos(output):
        asked.append(output)
        return output in {2, 3}

    core = Demultiplexer(4, is_eos=is_eos)
    for _ in range(2):  # an array is known as one from the second on
        assert [slot for slot, _ in core.feed(make([0, 1, 4, 5])).outputs] == [0, 1, 2, 3]
    delivery = core.feed(make([0, 2, 1, 3]))
    assert [slot for slot, _ in delivery.outputs] == [0, 2]
    assert [slot for slot, _ in delivery.ends] == [1, 3]
    assert asked == [0, 1, 4, 5, 0, 1, 4, 5, 0, 2, 1, 3]


@needs_lines
def test_outputs_that_are_read_in_another_thread_amid_a_step_are_never_less_than_before():
    """As metrics are read while a batch runs."""
    core = core_of(EndRules(is_eos=lambda output: output == "."), 4, 5, requeues=True)
    readings = []

    def trace(frame, *_):
        if "_core" in frame.f_code.co_filename:
            readings.append(core.outputs)
        return trace

    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        core.feed(["a", "b", "c", "d"])
        core.feed(["a", SKIP, SKIP, "d"])
        core.feed({0: "a", 2: "c"})
        core.feed(["a", ".", Many(["c", "c"]), "d"])
        core.open(1)
        core.feed(["a", Requeue(), Last("c"), "d"])
        core.cancel(0)
        core.finish()
    finally:
        sys.settrace(tracer)
    assert readings == sorted(readings)
    assert core.outputs == 15
