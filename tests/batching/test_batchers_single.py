"""Functions that return one result for each request, with `single=True` and without."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque

import numpy as np
import pytest

from batchstream import (
    EOS,
    ClosedError,
    DeadlineError,
    DynamicBatcher,
    Fail,
    FinishReason,
    Last,
    StepError,
    batched,
)
from support.engines import dynamic_batchers
from support.sources import TIMEOUT, Gate


def embed(texts):
    return [[text + ".0", text + ".1", text + ".2"] for text in texts]


async def embed_async(texts):
    await asyncio.sleep(0)
    return embed(texts)


async def called(batcher, *requests):
    return await asyncio.gather(*map(batcher.acall, requests), return_exceptions=True)


# ---- results without `single`


@pytest.mark.rule(8)
@pytest.mark.parametrize("kind", [list, tuple, np.array, deque, lambda rows: dict(enumerate(rows))])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_results_that_were_not_announced_are_refused_and_never_read_as_steps(kind, size):
    def model(texts):
        return kind(embed(texts))

    with DynamicBatcher(model, max_batch_size=size, batch_timeout=TIMEOUT) as batcher:
        streams = [batcher.stream(text) for text in "abc"[:size]]
        for stream in streams:
            with pytest.raises(StepError, match=r"not a source of steps.*single=True") as raised:
                list(stream)
            assert "model" in str(raised.value)
            assert raised.value.step == 0


def test_an_iterator_or_an_iterable_without_a_length_is_a_source_of_steps():
    class Steps:
        def __iter__(self):
            return iter([["a"], [None]])

    class Sized:
        def __init__(self):
            self.steps = iter([["a"], [None]])

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.steps)

        def __len__(self):
            return 2

    for make in (Steps, Sized, lambda: iter([["a"], [None]]), lambda: map(list, ["a"])):
        with DynamicBatcher(lambda _, make=make: make(), max_batch_size=1) as batcher:
            assert list(batcher.stream("x")) == ["a"]


# ---- results with `single`


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_each_request_gets_its_result_in_a_thread(kind):
    with DynamicBatcher(lambda t: kind(embed(t)), single=True, max_batch_size=3) as batcher:
        for text in "abc":
            assert list(batcher.call(text)) == [text + ".0", text + ".1", text + ".2"]
        assert batcher.statistics().finished == {FinishReason.EOS: 3}


@pytest.mark.parametrize("fn", [embed, embed_async, functools.partial(embed_async)])
def test_each_request_gets_its_result_in_an_event_loop(fn):
    async def main():
        async with DynamicBatcher(fn, single=True, max_batch_size=3, batch_timeout=0.0) as batcher:
            assert await called(batcher, *"abcd") == embed("abcd")
            assert [output async for output in batcher.astream("e")] == embed("e")
            assert batcher.statistics().finished == {FinishReason.EOS: 5}

    asyncio.run(main())


def test_each_request_gets_its_result_in_trio():
    trio = pytest.importorskip("trio")

    async def double(numbers):
        await trio.lowlevel.checkpoint()
        return [2 * number for number in numbers]

    async def main():
        async with DynamicBatcher(double, single=True, max_batch_size=2) as batcher:
            return await batcher.acall(2)

    assert trio.run(main) == 4


class Opaque:
    """Data that cannot be compared, hashed, measured or asked whether it is true."""

    def _refuse(self, *_):
        raise AssertionError("a result was looked into")

    __eq__ = __hash__ = __bool__ = __len__ = __iter__ = _refuse


@pytest.mark.rule(6)
@pytest.mark.parametrize(
    "result",
    [None, EOS, [], "text", Opaque(), Last("x"), ValueError("as data"), StopIteration, object()],
)
def test_a_result_may_be_any_object(result):
    with DynamicBatcher(lambda _: [result], single=True, max_batch_size=1) as batcher:
        assert batcher.call("a") is result


@pytest.mark.rule(15)
def test_a_fail_among_the_results_fails_its_request_alone():
    def invert(numbers):
        return [1 / number if number else Fail(ValueError("nought")) for number in numbers]

    with DynamicBatcher(invert, single=True, max_batch_size=2, batch_timeout=TIMEOUT) as batcher:
        nought, two = batcher.stream(0), batcher.stream(2)
        with pytest.raises(ValueError, match="nought"):
            list(nought)
        assert list(two) == [0.5]


@pytest.mark.rule(8)
@pytest.mark.parametrize(
    ("returned", "what"),
    [
        ([1], "returned 1 results for 2 requests"),
        ([1, 2, 3], "returned 3 results for 2 requests"),
        ("ab", "returned a str for 2 requests"),
        ({0: 1, 1: 2}, "returned a dict for 2 requests"),
        ({1, 2}, "returned a set for 2 requests"),
        (None, "returned a NoneType for 2 requests"),
        (iter([1, 2]), "returned a list_iterator for 2 requests"),
    ],
)
def test_what_is_not_one_result_for_each_request_fails_the_batch(returned, what):
    answers = [returned, ["a", "b"]]
    with DynamicBatcher(
        lambda _: answers.pop(0), single=True, max_batch_size=2, batch_timeout=TIMEOUT
    ) as batcher:
        for stream in [batcher.stream("x"), batcher.stream("y")]:
            with pytest.raises(StepError, match=what):
                list(stream)
        assert [list(s) for s in [batcher.stream("x"), batcher.stream("y")]] == [["a"], ["b"]]


def test_a_function_that_returns_a_coroutine_is_refused_with_a_reason():
    def model(texts):
        return embed_async(texts)

    batcher = DynamicBatcher(model, single=True, max_batch_size=1)
    with batcher, pytest.raises(StepError, match="returned a coroutine"):
        batcher.call("a")


@pytest.mark.rule(15)
@pytest.mark.parametrize("error", [ValueError("bad"), StopIteration("bad")])
def test_an_error_of_the_function_fails_the_batch_and_not_the_next(error):
    errors = [error]

    def model(texts):
        if errors:
            raise errors.pop()
        return texts

    with DynamicBatcher(model, single=True, max_batch_size=1) as batcher:
        with pytest.raises(ValueError if isinstance(error, ValueError) else RuntimeError):
            batcher.call("a")
        assert batcher.call("b") == "b"


def test_a_request_that_is_cancelled_or_late_does_not_hold_up_its_caller():
    gate = Gate()

    def model(texts):
        gate.pass_through()
        return texts

    async def main():
        batcher = DynamicBatcher(model, single=True, max_batch_size=1)
        first = asyncio.ensure_future(batcher.acall("a"))
        await asyncio.to_thread(gate.reached.wait, TIMEOUT)
        with pytest.raises(DeadlineError):
            await batcher.acall("b", wait_timeout=0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert batcher.statistics().live == 0
        gate.opened.set()
        await batcher.aclose()

    asyncio.run(main())


@pytest.mark.rule(9)
def test_a_call_in_a_batcher_that_is_closed_raises():
    gate, raised = Gate(), []

    def model(texts):
        gate.pass_through()
        return texts

    batcher = DynamicBatcher(model, single=True, max_batch_size=1)

    def call():
        with pytest.raises(ClosedError) as error:
            batcher.call("a")
        raised.append(error.value)

    caller = threading.Thread(target=call)
    caller.start()
    assert gate.reached.wait(TIMEOUT)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    caller.join(TIMEOUT)
    assert len(raised) == 1
    gate.opened.set()
    closer.join(TIMEOUT)


# ---- arguments


@dynamic_batchers
async def test_call_is_refused_where_a_request_may_have_many_outputs(form):
    batcher = form.batcher()
    with pytest.raises(TypeError, match=r"single=True.*use stream"):
        batcher.call("a")
    with pytest.raises(TypeError, match=r"single=True.*use astream"):
        await batcher.acall("a")
    assert batcher.statistics().opened == 0


def test_arguments_that_single_excludes_are_refused():
    def steps(texts):
        yield texts

    async def async_steps(texts):
        yield texts

    for fn in (steps, async_steps):
        with pytest.raises(TypeError, match="single takes a function that returns one result"):
            DynamicBatcher(fn, single=True, max_batch_size=1)
    for option in (
        {"eos": 1},
        {"is_eos": bool},
        {"include_eos": True},
        {"max_outputs": 1},
        {"require_eos": True},
        {"max_buffered": 1},
        {"on_overflow": "wait"},
    ):
        with pytest.raises(TypeError, match=f"{next(iter(option))} and single exclude"):
            DynamicBatcher(embed, single=True, max_batch_size=1, **option)
    with pytest.raises(TypeError, match=r"coroutine function.*single=True"):
        DynamicBatcher(embed_async, max_batch_size=1)


def test_an_option_that_there_is_not_is_called_by_its_name():
    with pytest.raises(
        TypeError, match=r"batched takes no max_batchsize: did you mean max_batch_s"
    ):
        batched(max_batchsize=2)
    with pytest.raises(TypeError, match=r"batched takes no function$"):
        batched(function=len)
    for name in ("step_cost", "max_step_cost"):  # and not: did you mean batch_cost?
        with pytest.raises(TypeError, match=rf"batched takes no {name}: .* a ContinuousBatcher"):
            batched(**{name: len})


def test_a_decorated_function_or_method_can_be_single():
    @batched(max_batch_size=2, single=True)
    def double(numbers):
        return [2 * number for number in numbers]

    class Model:
        @batched(single=True)
        async def triple(self, numbers):
            return [3 * number for number in numbers]

    with double:
        assert double.call(2) == 4
        with pytest.raises(TypeError, match=r"submit a request with .call\(request\)"):
            double([2])

    async def main():
        async with Model().triple as triple:
            return await triple.acall(2)

    assert asyncio.run(main()) == 6
