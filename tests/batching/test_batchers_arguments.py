"""What cannot be a batcher's argument is refused, with a reason."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable
from functools import partial

import pytest

import batchstream
from batchstream import ContinuousBatcher, DynamicBatcher
from support.engines import Echo, Model, echo, for_ever
from support.sources import TIMEOUT, in_forked_child, needs_fork


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
        ({"max_batch_size": 1, "priority": 1}, TypeError),
        ({"max_batch_size": 1, "tenant": "name"}, TypeError),
        ({"max_batch_size": 1, "tenant": str, "share": 1}, TypeError),
        ({"max_batch_size": 1, "share": len}, TypeError),
        ({"max_batch_size": 1, "max_pending_per_tenant": 3}, TypeError),
        ({"max_batch_size": 1, "tenant": str, "max_pending_per_tenant": 0}, ValueError),
        ({"max_batch_size": 1, "max_pending_cost": 3}, TypeError),
        (
            {"max_batch_size": 1, "cost": len, "max_batch_cost": 3, "max_pending_cost": 2},
            ValueError,
        ),
        (
            {"max_batch_size": 1, "tenant": str, "cost": len, "max_batch_cost": float("inf")},
            ValueError,
        ),
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


class Sized(Echo):
    def __init__(self, size):
        super().__init__()


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (Sized, r"without arguments, which the class Sized\(size\) does not take: pass an engine"),
        (for_ever, "which for_ever"),
        (echo, "a generator function of a list of requests is for DynamicBatcher"),
    ],
)
def test_a_factory_that_needs_arguments_is_refused(factory, says):
    with pytest.raises(TypeError, match=says):
        ContinuousBatcher(factory, max_batch_size=2)


def test_an_engine_whose_step_returns_no_step_is_refused():
    class Coroutine(Echo):
        async def step(self):
            return {}

    class Generator(Echo):
        def step(self):
            yield {}

    class Both(Echo):
        async def step(self):
            yield {}

    for engine, kind in (
        (Coroutine(), "a coroutine function"),
        (Generator(), "a generator function"),
        (Both(), "an asynchronous generator function"),
    ):
        says = f"whose step is {kind}: let it return the step"
        with pytest.raises(TypeError, match=says):
            ContinuousBatcher(engine, max_batch_size=2)


class StepOfOutputs(Echo):
    def step(self, outputs):
        """Make a step of the outputs before it."""


class AddOfSlot(Echo):
    def add(self, slot):
        """Add what there is no request of."""


class RemoveOfNothing(Echo):
    def remove(self):
        """Remove what there is no slot of."""


WRONG_METHODS = [
    (StepOfOutputs, r"is called by step\(\), .* whose step is step\(outputs\): give it the param"),
    (AddOfSlot, r"is called by add\(slot, request\), .* whose add is add\(slot\): give it"),
    (RemoveOfNothing, r"is called by remove\(slot\), .* whose remove is remove\(\): give it"),
]


@pytest.mark.parametrize(("kind", "says"), WRONG_METHODS)
def test_an_engine_whose_methods_cannot_be_called_is_refused_at_once(kind, says):
    with pytest.raises(TypeError, match=says):
        ContinuousBatcher(kind(), max_batch_size=2)


@pytest.mark.parametrize(("kind", "says"), WRONG_METHODS)
def test_an_engine_that_was_made_and_is_refused_is_closed(kind, says):
    closed = []

    class Closing(kind):
        def close(self):
            closed.append(self)

    with ContinuousBatcher(Closing, max_batch_size=2) as batcher:
        for count in (1, 2):
            stream = batcher.stream("a")
            with pytest.raises(TypeError, match=says):
                next(stream)
            assert len(closed) == count
    assert len(closed) == 2


@dataclasses.dataclass
class Fields:
    add: Callable[..., None] = lambda slot, request: None
    step: Callable[..., dict] = lambda: {0: None}
    remove: Callable[..., None] = print


class Bound:
    add = staticmethod(lambda slot, request: None)
    remove = print

    def __init__(self):
        self.step = partial(self.step, {0: None})

    def step(self, step):
        return step


@pytest.mark.parametrize("kind", [Fields, Bound])
def test_what_the_instances_of_a_class_have_is_not_told_from_the_class(kind):
    with ContinuousBatcher(kind, max_batch_size=1) as batcher:
        assert list(batcher.stream("a")) == []


def test_an_engine_that_another_batcher_drives_is_refused_until_that_has_ended_its_batch():
    entered, may_go_on = threading.Event(), threading.Event()

    class Slow(Echo):
        def step(self):
            entered.set()
            assert may_go_on.wait(TIMEOUT)
            return super().step()

    engine = Slow()
    with (
        ContinuousBatcher(engine, max_batch_size=1) as one,
        ContinuousBatcher(lambda: engine, max_batch_size=1) as other,
    ):
        first = one.stream("a")
        assert entered.wait(TIMEOUT)
        with pytest.raises(RuntimeError, match=r"driven by another ContinuousBatcher.*make an"):
            other.stream("b").receive(TIMEOUT)
        may_go_on.set()
        assert first.receive(TIMEOUT) == "a"
        one.close()
        assert other.stream("b").receive(TIMEOUT) == "b"


@pytest.mark.rule(9)
def test_an_engine_whose_batch_could_not_begin_serves_another_batcher(monkeypatch):
    def out_of_memory(*args, **options):
        raise MemoryError

    engine = Echo()
    with (
        ContinuousBatcher(engine, max_batch_size=1) as one,
        ContinuousBatcher(engine, max_batch_size=1) as other,
    ):
        with monkeypatch.context() as broken:
            broken.setattr(
                "batchstream._batching.dispatching.engine_dispatcher.ThreadPump", out_of_memory
            )
            with pytest.raises(MemoryError):
                one.stream("a").receive(TIMEOUT)
        assert other.stream("b").receive(TIMEOUT) == "b"


@needs_fork
def test_an_engine_that_was_driven_at_a_fork_serves_a_batcher_of_the_child():
    entered, may_go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    class Slow(Echo):
        def step(self):
            if os.getpid() == parent:
                entered.set()
                assert may_go_on.wait(TIMEOUT)
            return super().step()

    engine = Slow()

    def in_child():
        with ContinuousBatcher(engine, max_batch_size=1) as batcher:
            return batcher.stream("b").receive(TIMEOUT)

    with ContinuousBatcher(engine, max_batch_size=1) as batcher:
        stream = batcher.stream("a")
        assert entered.wait(TIMEOUT)
        assert in_forked_child(in_child) == "b"
        may_go_on.set()
        assert stream.receive(TIMEOUT) == "a"


def test_a_decorator_that_passes_more_along_is_a_function_of_requests_alone():
    def answer(model, requests):
        yield [f"{model}: {request}" for request in requests]
        yield [None for _ in requests]

    @functools.wraps(answer)
    def with_model(requests):
        return answer("small", requests)

    with DynamicBatcher(with_model, max_batch_size=1) as batcher:
        assert list(batcher.stream("a")) == ["small: a"]


def test_what_has_no_method_of_metrics_is_refused_before_any_request_is_served():
    class Other:
        def finish(self, **_):
            pass

    says = (
        r"metrics must have one of the methods submitted, refused, joined, requeued, first_output, "
        r"stepped and finished, got .*: derive its class from batchstream\.Metrics, and write the "
        r"methods that you need"
    )
    with pytest.raises(TypeError, match=says):
        DynamicBatcher(echo, max_batch_size=1, metrics=Other())
    batcher = DynamicBatcher(echo, max_batch_size=1, metrics=Other)
    with pytest.raises(TypeError, match=says):
        batcher.stream("a")


def test_metrics_that_derive_from_the_base_need_no_method_of_their_own():
    class Nothing(batchstream.Metrics):
        pass

    for metrics in (Nothing, Nothing(), batchstream.Metrics()):
        with DynamicBatcher(echo, max_batch_size=1, metrics=metrics) as batcher:
            assert list(batcher.stream("a")) == ["a"]


def test_a_method_that_metrics_lack_is_not_called():
    seen = []

    class Ends:
        def finished(self, end, **_):
            seen.append(str(end.reason))

    with ContinuousBatcher(Model(), max_batch_size=1, metrics=Ends()) as batcher:
        assert list(batcher.stream("a")) == ["a"]
    assert seen == ["eos"]


@pytest.mark.parametrize(("name", "error"), [(1, TypeError), ("", ValueError)])
def test_a_name_of_a_batcher_or_a_request_is_a_string_with_something_in_it(name, error):
    with pytest.raises(error, match="name"):
        DynamicBatcher(echo, max_batch_size=1, name=name)
    with DynamicBatcher(echo, max_batch_size=1) as batcher:
        with pytest.raises(error, match="request_id"):
            batcher.stream("a", request_id=name)
        assert batcher.statistics().opened == 0


def test_texts_have_the_names_of_batcher_and_request():
    with DynamicBatcher(echo, max_batch_size=1, name="chat") as batcher:
        assert repr(batcher).startswith("<DynamicBatcher 'chat', open")
        named, numbered = batcher.stream("a", request_id="b-1"), batcher.stream("c")
        assert "request 'b-1' of 'chat'" in repr(named)
        assert "request 1 of 'chat'" in repr(numbered)
        assert list(named) + list(numbered) == ["a", "c"]


def test_a_function_that_does_not_take_a_list_of_requests_alone_is_refused():
    def with_temperature(prompts, temperature):
        yield prompts

    def with_default(prompts, temperature=1.0):
        yield prompts
        yield [None for _ in prompts]

    says = r"which with_temperature\(prompts, temperature\) does not take: put what else it needs"
    for wrong in (with_temperature, partial(with_temperature)):
        with pytest.raises(TypeError, match="fn is called with one argument"):
            DynamicBatcher(wrong, max_batch_size=1)
    with pytest.raises(TypeError, match=says):
        DynamicBatcher(with_temperature, max_batch_size=1)
    with DynamicBatcher(with_default, max_batch_size=1) as batcher:
        assert list(batcher.stream("a")) == ["a"]


def test_a_batched_class_is_refused_where_it_is_decorated():
    says = r"which the class Reply\(\) does not take: decorate its method"
    with pytest.raises(TypeError, match=says):

        @batchstream.batched
        class Reply:
            def __call__(self, prompts):
                yield prompts


def test_a_batched_function_of_more_than_the_requests_is_no_method_and_is_refused_at_its_call():
    @batchstream.batched(max_batch_size=1)
    def reply(prompts, temperature):
        yield prompts

    with reply, pytest.raises(TypeError, match=r"which reply\(prompts, temperature\) does not"):
        reply.stream("a").receive(TIMEOUT)


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
