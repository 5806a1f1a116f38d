"""What cannot be a batcher's argument is refused, with a reason."""

from __future__ import annotations

from functools import partial

import pytest

import batchstream
from batchstream import ContinuousBatcher, DynamicBatcher
from support.engines import Echo, Model, echo, for_ever


def test_an_engine_needs_its_three_methods():
    class Half:
        def add(self, slot, request):
            pass

    for engine in (Half(), 5, None, []):
        with pytest.raises(TypeError, match="engine must have the methods add, step and remove"):
            ContinuousBatcher(engine, max_batch_size=1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_batch_size": 1.5}, TypeError),
        ({"max_batch_size": 1, "batch_timeout": -1}, ValueError),
        ({"max_batch_size": 1, "batch_timeout": float("nan")}, ValueError),
        ({"max_batch_size": 1, "batch_timeout": "1"}, TypeError),
        ({"max_batch_size": 1, "workers": 0}, ValueError),
        ({"max_batch_size": 1, "max_pending": 0}, ValueError),
        ({"max_batch_size": 1, "max_buffered": 0}, ValueError),
        ({"max_batch_size": 1, "max_buffered": None}, TypeError),
        ({"max_batch_size": 1, "cost": len}, TypeError),
        ({"max_batch_size": 1, "max_batch_cost": 3}, TypeError),
        ({"max_batch_size": 1, "key": "name"}, TypeError),
        ({"max_batch_size": 1, "eos": "</s>"}, ValueError),
        ({"max_batch_size": 1, "max_outputs": 0}, ValueError),
        ({"max_batch_size": 1, "on_overflow": "drop"}, ValueError),
    ],
)
def test_wrong_arguments_are_refused_at_construction(options, error):
    with pytest.raises(error):
        DynamicBatcher(Model().generate, **options)


def test_a_coroutine_function_is_refused_at_construction():
    async def fn(requests):
        return []

    for each in (fn, partial(fn)):
        with pytest.raises(TypeError, match="got the coroutine function"):
            DynamicBatcher(each, max_batch_size=1)
    with pytest.raises(TypeError, match="fn takes a function"):
        DynamicBatcher("fn", max_batch_size=1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((lambda: None,), "what the engine's factory returns must have the methods add, step"),
        ((lambda: 5,), "got 5 without add, step, remove"),
    ],
)
def test_a_factory_that_makes_no_engine_is_named(arguments, text):
    batcher = ContinuousBatcher(*arguments, max_batch_size=2)
    with batcher, pytest.raises(TypeError, match=text):
        next(batcher.stream("a"))


def test_an_engine_whose_step_is_asynchronous_is_refused():
    class Wrong(Echo):
        async def step(self):
            return {}

    with pytest.raises(TypeError, match="whose step is a coroutine function"):
        ContinuousBatcher(Wrong(), max_batch_size=2)


def test_a_function_that_hides_an_asynchronous_one_gets_an_error_with_the_remedy():
    batcher = DynamicBatcher(lambda requests: for_ever(requests), max_batch_size=2)  # noqa: PLW0108
    with batcher, pytest.raises(TypeError, match="fn returns an asynchronous iterator"):
        next(batcher.stream("a"))


def test_limits_for_slots_are_no_limit_of_requests():
    with pytest.raises(TypeError, match=r"max_outputs takes a whole number, or a function"):
        DynamicBatcher(echo, max_batch_size=2, max_outputs=[5])


def test_calling_a_batched_function_raises_and_says_how_to_submit():
    with pytest.raises(TypeError, match=r"submit a request with \.stream\(request\)"):
        batchstream.batched(echo)(["a"])
