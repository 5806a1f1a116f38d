"""`batch` outside of a replica: it needs no cluster, unlike `serve.batch`."""

import asyncio
import functools
import gc
import inspect
import math
import pickle
import re
import threading
import weakref
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

import numpy as np
from ray import serve
from ray.serve.exceptions import RayServeException

import batchstream.integrations.ray
from batchstream.integrations.ray import ItemSizeError, batch, warn_if_never_full
from support import shuffled_loop
from support.ray_scenarios import collected, raised, turns, until
from support.serving import SECONDS

MARKS = {
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "an instance": StopIteration(),
    "an asynchronous instance": StopAsyncIteration("over"),
    "EOS": batchstream.EOS,
}


class Model:
    """Methods of all four kinds; `lengths` says how many outputs each request has."""

    def __init__(self, mark=StopIteration, steps=100):
        self.mark = mark
        self.steps = steps
        self.sizes = []
        self.closed = 0

    def outputs(self, lengths):
        self.sizes.append(len(lengths))
        try:
            for position in range(self.steps):
                yield [position if position < length else self.mark for length in lengths]
        finally:
            self.closed += 1

    @batch(max_batch_size=4)
    async def astream(self, lengths):
        outputs = self.outputs(lengths)
        try:
            for step in outputs:
                yield step
        finally:
            outputs.close()

    @batch(max_batch_size=4)
    def stream(self, lengths):
        yield from self.outputs(lengths)

    @batch(max_batch_size=4)
    async def acall(self, requests):
        self.sizes.append(len(requests))
        return [-request for request in requests]

    @batch(max_batch_size=4)
    def call(self, requests):
        self.sizes.append(len(requests))
        return [-request for request in requests]


# ---- what comes out


@pytest.mark.rule(1, 2, 3)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=9),
    mark=st.sampled_from(sorted(MARKS)),
    kind=st.sampled_from(["astream", "stream"]),
)
def test_each_stream_has_its_outputs_and_ends_exactly(lengths, mark, kind):
    model = Model(MARKS[mark])

    async def main():
        outputs = await asyncio.gather(
            *(collected(getattr(model, kind)(length)) for length in lengths)
        )
        await until(lambda: model.closed == len(model.sizes))
        return outputs

    assert asyncio.run(main()) == [list(range(length)) for length in lengths]
    assert sum(model.sizes) == len(lengths)


@given(
    requests=st.lists(st.integers(), min_size=1, max_size=9),
    kind=st.sampled_from(["acall", "call"]),
)
def test_each_caller_gets_its_own_result(requests, kind):
    model = Model()

    async def main():
        return await asyncio.gather(*(getattr(model, kind)(request) for request in requests))

    assert asyncio.run(main()) == [-request for request in requests]
    assert sum(model.sizes) == len(requests)
    assert max(model.sizes) <= 4


def test_none_is_an_output_unless_an_option_says_otherwise():
    async def outputs(_):
        yield [None]
        yield [StopIteration]

    async def results(requests):
        return [None for _ in requests]

    async def main():
        assert await collected(batch(outputs)(0)) == [None]
        assert await collected(batch(eos=None)(outputs)(0)) == []
        assert await batch(results)(0) is None

    asyncio.run(main())


def test_a_list_of_results_may_hold_a_failure():
    @batch(max_batch_size=2)
    async def halves(numbers):
        return [n // 2 if n % 2 == 0 else batchstream.Fail(KeyError(n)) for n in numbers]

    async def main():
        return await asyncio.gather(halves(4), halves(3), return_exceptions=True)

    result, error = asyncio.run(main())
    assert result == 2
    assert type(error) is KeyError


def test_a_deployment_runs_in_ray_s_local_testing_mode(page):
    handle = serve.run(page.letters, _local_testing_mode=True)
    assert list(handle.options(stream=True).generate.remote("local")) == list("local")


def test_our_markers_are_understood():
    @batch(max_batch_size=6)
    async def model(requests):
        yield [
            batchstream.Last("a"),
            batchstream.Many(["b", "c", StopIteration, "never"]),
            batchstream.SKIP,
            batchstream.End("length"),
            batchstream.Fail(KeyError("f")),
            "g",
        ]
        yield {2: batchstream.Last("d"), 5: StopIteration}

    async def main():
        streams = [collected(model(number)) for number in range(6)]
        *outputs, failed, last = await asyncio.gather(*streams, return_exceptions=True)
        assert [*outputs, last] == [["a"], ["b", "c"], ["d"], [], ["g"]]
        assert isinstance(failed, KeyError)

    asyncio.run(main())


@pytest.mark.parametrize("dtype", [int, object])
def test_a_step_may_be_an_array(dtype):
    @batch(max_batch_size=2)
    async def model(requests):
        yield np.array(requests, dtype)
        yield [StopIteration] * len(requests)

    async def main():
        assert await asyncio.gather(*(collected(model(n)) for n in (3, 4))) == [[3], [4]]

    asyncio.run(main())


def test_an_object_array_may_hold_the_mark():
    @batch(max_batch_size=2)
    async def model(requests):
        yield np.array([7, StopIteration], object)
        yield np.array([StopIteration, 8], object)

    async def main():
        assert await asyncio.gather(*(collected(model(n)) for n in range(2))) == [[7], []]

    asyncio.run(main())


@pytest.mark.rule(13)
@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
def test_a_generator_is_told_which_slots_are_left(kind):
    told = []

    def steps(lengths):
        live = range(len(lengths))
        for position in range(20):
            told.append(tuple(live))
            live = yield {
                slot: position if position < lengths[slot] else StopIteration for slot in live
            }

    async def asteps(lengths):
        source = steps(lengths)
        live = yield next(source)
        for _ in range(19):
            live = yield source.send(live)

    model = batch(max_batch_size=3)(asteps if kind == "asynchronous" else steps)

    async def main():
        return await asyncio.gather(*(collected(model(n)) for n in (1, 3, 0)))

    assert asyncio.run(main()) == [[0], [0, 1, 2], []]
    assert told == [(0, 1, 2), (0, 1), (1,), (1,)]


def test_a_synchronous_function_leaves_the_event_loop_alone():
    seen = threading.Event()

    @batch
    def model(requests):
        assert seen.wait(30)
        assert threading.current_thread() is not threading.main_thread()
        return requests

    async def main():
        task = asyncio.ensure_future(model("reply"))
        await until(lambda: model.statistics().running)
        seen.set()
        assert await task == "reply"

    asyncio.run(main())


def test_it_works_in_one_event_loop_after_the_other():
    model = Model()

    async def main():
        assert await collected(model.astream(2)) == [0, 1]
        assert await model.acall(2) == -2

    for _ in range(3):
        asyncio.run(main())


# ---- how it is called


def test_several_parameters_are_a_list_each():
    @batch(max_batch_size=8, batch_wait_timeout_s=0)
    async def model(xs, ys, *, zs=None):
        return [repr((xs, ys, zs))] * len(xs)

    async def main():
        return await asyncio.gather(model(1, 2), model(3, ys=4), model(ys=6, xs=5))

    assert asyncio.run(main()) == ["([1, 3, 5], [2, 4, 6], None)"] * 3


def test_a_parameter_that_some_leave_out_has_its_default_in_their_places():
    @batch(max_batch_size=8, batch_wait_timeout_s=0)
    async def model(xs, first=7, second=8):
        return [repr((xs, first, second))] * len(xs)

    async def main():
        return await asyncio.gather(model(1, second=2), model(3))

    assert asyncio.run(main()) == ["([1, 3], 7, [2, 8])"] * 2


def test_calls_with_other_numbers_of_arguments_do_not_share_a_batch():
    sizes = []

    @batch(max_batch_size=8, batch_wait_timeout_s=0)
    async def model(*columns, **named):
        sizes.append((len(columns), sorted(named)))
        return [sum(row) for row in zip(*columns, *named.values(), strict=True)]

    async def main():
        return await asyncio.gather(model(1, 2), model(3), model(4, 5), model(6, more=7))

    assert asyncio.run(main()) == [3, 3, 9, 13]
    assert sorted(sizes) == [(1, []), (1, ["more"]), (2, [])]


def test_a_call_that_does_not_fit_the_function_is_refused():
    with pytest.raises(TypeError, match="missing a required argument"):
        Model().astream()
    with pytest.raises(TypeError, match="too many positional arguments"):
        asyncio.run(raise_from(Model().acall(1, 2)))


async def raise_from(awaitable):
    raise await raised(awaitable)


def test_instances_do_not_share_batches():
    first, second = Model(), Model()

    async def main():
        await asyncio.gather(first.acall(1), second.acall(2), first.acall(3), second.acall(4))

    asyncio.run(main())
    assert first.sizes == second.sizes == [2]


def test_a_method_may_be_overridden_and_called_by_super():
    class Louder(Model):
        @batch(batch_wait_timeout_s=0)
        async def acall(self, requests):
            return [await super(Louder, self).acall(request) * 10 for request in requests]

    assert asyncio.run(Louder().acall(4)) == -40


def test_a_method_may_have_another_name_and_another_decorator():
    def passed(function):
        @functools.wraps(function)
        async def wrapper(*args):
            return await function(*args)

        return wrapper

    class Named:
        async def _reply(self, requests):
            assert isinstance(self, Named)
            return requests

        reply = passed(batch(_reply))

        @staticmethod
        @batch
        async def alone(requests):
            return requests

    assert asyncio.run(Named().reply(1)) == 1
    assert asyncio.run(Named().alone(2)) == 2


def test_the_instance_is_let_go_of_when_its_requests_have_ended():
    model = Model()
    assert asyncio.run(model.acall(1)) == -1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# ---- options


def test_options_of_a_request_are_called_with_its_arguments():
    made = []

    class Counts(batchstream.Metrics):
        def __init__(self):
            self.sizes = []
            made.append(self)

        def joined(self, waited, **_):
            self.sizes.append(len(waited))

    @batch(
        max_batch_size=8,
        key=lambda prompt, limit=None: len(prompt),
        max_outputs=lambda prompt, limit=None: limit,
        is_eos=batchstream.per_request(lambda prompt, limit=None: prompt[-1].__eq__),
        metrics=Counts,
    )
    async def model(prompts, limits=None):
        for position in range(10):
            yield [prompt[position % len(prompt)] for prompt in prompts]

    async def main():
        return await asyncio.gather(
            *(collected(model(*call)) for call in [("abc", 1), ("de",), ("fgh",)])
        )

    assert asyncio.run(main()) == [["a"], ["d"], ["f", "g"]]
    (metrics,) = made
    assert sorted(metrics.sizes) == [1, 2]


BAD = [
    {"max_batch_size": "8"},
    {"max_batch_size": 2.5},
    {"max_batch_size": 0},
    {"max_batch_size": -1.0},
    {"batch_wait_timeout_s": "1"},
    {"batch_wait_timeout_s": None},
    {"batch_wait_timeout_s": -0.1},
    {"max_concurrent_batches": 0},
    {"max_concurrent_batches": 1.0},
    {"batch_size_fn": 3},
]


@pytest.mark.parametrize("arguments", BAD, ids=repr)
def test_bad_arguments_are_refused_as_serve_batch_refuses_them(arguments):
    (name,) = arguments
    with pytest.raises((TypeError, ValueError)) as theirs:
        serve.batch(**arguments)
    with pytest.raises(theirs.type, match=name):
        batch(**arguments)


@pytest.mark.parametrize("seconds", [math.inf, math.nan])
def test_a_wait_that_never_ends_is_refused(seconds):
    with pytest.raises(ValueError, match="batch_wait_timeout_s must be"):
        batch(batch_wait_timeout_s=seconds)


def test_arguments_may_come_by_position_and_as_whole_floats():
    model = batch(None, 3.0, 0.5, 2, None)(Model.acall.__wrapped__)
    assert model._get_max_batch_size() == 3
    assert model._get_batch_wait_timeout_s() == 0.5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"workers": 2}, "batch takes no workers: pass max_concurrent_batches"),
        ({"batch_timeout": 2}, "batch takes no batch_timeout: pass batch_wait_timeout_s"),
        ({"single": True}, "batch takes no single"),
        ({"batch_cost": len}, "batch takes no batch_cost: pass batch_size_fn"),
        ({"batch_size_fn": len, "cost": len}, "cost and batch_size_fn exclude each other"),
        ({"batch_size_fn": len, "tenant": len}, "tenant and batch_size_fn exclude each other"),
        ({"unknown": 1}, "batch takes no unknown$"),
        ({"max_batchsize": 1}, r"batch takes no max_batchsize: did you mean max_batch_size\?"),
        ({"key": 1}, "key takes a function of one request"),
        ({"pace": "soon"}, "pace must be a number"),
        ({"timeout": "soon"}, "timeout must be a number"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(options, match):
    with pytest.raises(TypeError, match=match):
        batch(**options)(Model.astream.__wrapped__)


def test_options_of_streams_are_refused_for_results():
    with pytest.raises(TypeError, match="eos and max_outputs is for functions that yield lists"):
        batch(eos=None, max_outputs=3)(Model.acall.__wrapped__)
    with pytest.raises(TypeError, match="pace is for functions that yield lists"):
        batch(pace=0.02)(Model.acall.__wrapped__)


@pytest.mark.parametrize("thing", [3, "model", Model])
def test_only_functions_and_methods_are_decorated(thing):
    with pytest.raises(TypeError, match="batch can only be used to decorate functions or methods"):
        batch()(thing)


# ---- errors


@pytest.mark.rule(8, 15)
@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
def test_another_number_of_results_fails_the_batch_and_not_the_next(kind):
    @batch(max_batch_size=2)
    async def model(requests):
        return requests if 0 in requests else requests[1:]

    @batch(max_batch_size=2)
    def sync_model(requests):
        return requests if 0 in requests else requests[1:]

    model = model if kind == "asynchronous" else sync_model

    async def main():
        errors = await asyncio.gather(raised(model(1)), raised(model(2)))
        text = "doesn't preserve batch size. The input list has length 2 but the returned list has"
        assert [type(error) for error in errors] == [RayServeException] * 2
        assert all(text in str(error) for error in errors)
        assert await model(0) == 0

    asyncio.run(main())


@pytest.mark.rule(8)
def test_another_number_of_outputs_fails_the_batch():
    @batch(max_batch_size=2)
    async def model(requests):
        yield requests
        yield requests[1:]

    async def main():
        first, second = model(1), model(2)
        assert await asyncio.gather(anext(first), anext(second)) == [1, 2]
        for outputs in (first, second):
            with pytest.raises(RayServeException, match="doesn't preserve batch size"):
                await anext(outputs)

    asyncio.run(main())


@pytest.mark.rule(15, 16)
def test_an_error_fails_its_batch_alone():
    @batch(max_batch_size=2, batch_wait_timeout_s=0)
    async def model(requests):
        if "bad" in requests:
            raise KeyError("bad")
        return requests

    async def main():
        assert isinstance(await raised(model("bad")), KeyError)
        assert await model("good") == "good"

    asyncio.run(main())


@pytest.mark.rule(13, 25)
@pytest.mark.parametrize("how", ["cancelled", "closed", "thrown", "dropped", "dropped unread"])
def test_a_caller_that_leaves_frees_its_slot(how):
    closed = []

    @batch(max_batch_size=1, batch_wait_timeout_s=0)
    async def model(requests):
        try:
            while True:
                yield requests
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def client(outputs):
        async for _ in outputs:
            await asyncio.Event().wait()

    async def main():
        outputs = model(0)
        if how == "cancelled":
            task = asyncio.ensure_future(client(outputs))
            await turns(10)
            task.cancel()
            await raised(task)
        elif how == "closed":
            await anext(outputs)
            await outputs.aclose()
        elif how == "thrown":
            await anext(outputs)
            kept = await raised(outputs.athrow(KeyError()))
            await turns(10)  # fewer than outputs that a stream may hold
            assert kept.__traceback__  # which has the generator's frame, and what that holds
            assert model.statistics().live == 0
        elif how == "dropped":
            await anext(outputs)
        del outputs
        await until(lambda: model.statistics().live == 0)
        await until(lambda: closed or model.statistics().batches == 0)

    asyncio.run(main())


@pytest.mark.rule(11)
def test_a_time_limit_around_the_reading_ends_the_model():
    closed = asyncio.Event()

    @batch
    async def silent(requests):
        try:
            await asyncio.Event().wait()
            yield requests
        finally:
            closed.set()

    async def generate():
        async with asyncio.timeout(0.01):
            async for output in silent(0):
                yield output

    async def main():
        with pytest.raises(TimeoutError):
            await collected(generate())
        await closed.wait()
        assert silent.statistics().live == 0

    asyncio.run(main())


@pytest.mark.rule(11)
@pytest.mark.parametrize(
    ("options", "arguments"),
    [({"timeout": 0.01}, ()), ({"timeout": lambda _, seconds: seconds}, (0.01,))],
    ids=["of all", "of each"],
)
@pytest.mark.parametrize("kind", ["stream", "result"])
def test_a_call_that_lasts_too_long_fails_and_ends_the_model(options, arguments, kind):
    closed = asyncio.Event()

    async def silence():
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    @batch(**options)
    async def silent(requests, seconds=None):
        await silence()
        yield requests

    @batch(**options)
    async def silent_result(requests, seconds=None):
        await silence()
        return requests

    async def main():
        if kind == "stream":
            call = collected(silent(0, *arguments))
        else:
            call = silent_result(0, *arguments)
        with pytest.raises(batchstream.DeadlineError, match="timeout"):
            await asyncio.wait_for(call, SECONDS)
        await closed.wait()

    asyncio.run(main())


def test_a_function_may_give_a_call_any_time():
    @batch(timeout=lambda _: None)
    async def model(requests):
        return requests

    assert asyncio.run(model(1)) == 1


@pytest.mark.rule(2, 3)
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_with_a_pace_outputs_come_in_lists_of_what_has_come_since(kind):
    steps = 5

    @batch(pace=0)
    async def model(requests):
        for position in range(steps):
            yield [position for _ in requests]

    @batch(pace=0)
    def model_in_thread(requests):
        for position in range(steps):
            yield [position for _ in requests]

    paced = model if kind == "async" else model_in_thread

    async def main():
        outputs = paced(0)
        assert inspect.isasyncgen(outputs), "by which Ray tells a stream from a result"
        first = await anext(outputs)
        await until(lambda: paced.statistics().live == 0)
        return first, await collected(outputs)

    first, rest = asyncio.run(main())
    assert first[0] == 0
    assert len(rest) <= 1
    assert sum(rest, first) == list(range(steps))


def test_a_pace_lets_a_list_come_at_most_every_so_many_seconds():
    @batch(pace=0.01, batch_wait_timeout_s=0)
    async def model(requests):
        for position in range(9):
            await asyncio.sleep(0.003)
            yield [position for _ in requests]

    async def main():
        return await collected(model(0))

    assert shuffled_loop.run(main()) == [[0], [1, 2, 3], [4, 5, 6], [7, 8]]


@pytest.mark.rule(13)
def test_a_caller_that_leaves_what_is_paced_frees_its_slot():
    @batch(pace=0)
    async def model(requests):
        while True:
            yield requests
            await asyncio.sleep(0)

    async def main():
        outputs = model(0)
        await anext(outputs)
        await outputs.aclose()
        await until(lambda: model.statistics().live == 0)

    asyncio.run(main())


def test_a_caller_that_is_cancelled_leaves_the_others_of_its_batch_alone():
    gate = asyncio.Event()

    @batch(max_batch_size=2)
    async def model(requests):
        await gate.wait()
        return requests

    async def main():
        first, second = (asyncio.ensure_future(model(n)) for n in range(2))
        await until(lambda: model.statistics().running == 2)
        first.cancel()
        assert isinstance(await raised(first), asyncio.CancelledError)
        gate.set()
        assert await second == 1

    asyncio.run(main())


# ---- settings, hooks, pickles


def test_the_hooks_that_ray_s_own_tests_use_are_there():
    gate = asyncio.Event()

    @batch(batch_wait_timeout_s=0)
    async def model(requests):
        await gate.wait()
        return requests

    async def main():
        assert await model._is_batching_task_alive()
        assert await model._get_handling_task_stack() is None
        none = model._get_curr_iteration_start_times()
        assert (none.num_requests, none.min_start_time, none.mean_start_time) == (0, None, None)
        assert none.max_start_time is None
        task = asyncio.ensure_future(model(1))
        await until(lambda: model.statistics().running)
        await turns(10)
        times = model._get_curr_iteration_start_times()
        assert times.num_requests == 1
        assert times.min_start_time == times.mean_start_time == times.max_start_time > 1e9
        gate.set()
        assert await task == 1
        await turns(10)
        assert model._get_curr_iteration_start_times().num_requests == 0
        await model.aclose()
        assert not await model._is_batching_task_alive()
        with pytest.raises(batchstream.ClosedError):
            await model(2)

    asyncio.run(main())


@pytest.mark.rule(27)
def test_a_local_function_pickles_by_value_with_its_settings_and_makes_its_own_batcher():
    class Local(Model):
        @batch(max_batch_size=3, key=len)
        async def spell(self, words):
            for position in range(9):
                yield [w[position] if position < len(w) else StopIteration for w in words]

    async def main(kind):
        return await asyncio.gather(*(collected(kind().spell(word)) for word in ("ab", "c")))

    assert asyncio.run(main(Local)) == [["a", "b"], ["c"]]
    copied = cloudpickle.loads(cloudpickle.dumps(Local.spell))
    assert copied is not Local.spell
    assert copied._get_max_batch_size() == 3
    assert copied.statistics().opened == 0
    Copy = type("Copy", (), {"spell": copied})  # noqa: N806 - a class
    assert asyncio.run(main(Copy)) == [["a", "b"], ["c"]]
    assert copied.statistics().opened == Local.spell.statistics().opened == 2


@batch
async def importable(requests):
    return requests


@pytest.mark.rule(27)
def test_a_function_of_a_module_pickles_by_name():
    assert pickle.loads(pickle.dumps(importable)) is importable  # noqa: S301


def test_the_reference_has_every_public_name_and_no_other():
    page = Path(__file__).parents[3] / "docs" / "reference.md"
    named = re.findall(
        r"^\.\. auto\w+:: batchstream\.integrations\.ray\.(\w+)", page.read_text(), re.MULTILINE
    )
    assert sorted(named) == sorted(batchstream.integrations.ray.__all__)


def test_there_is_nothing_to_warn_of_outside_of_a_replica():
    assert not warn_if_never_full(100, 2)
    with pytest.raises(ValueError, match="max_batch_size must be at least 1"):
        warn_if_never_full(0)


def test_an_item_that_no_batch_can_hold_is_the_fault_of_its_request():
    @batch(max_batch_size=4, batch_size_fn=lambda words: max(map(len, words)) * len(words))
    async def model(words):
        return [f"{word} of {len(words)}" for word in words]

    async def main():
        error = await raised(model("large"))
        assert type(error) is ItemSizeError
        assert isinstance(error, RuntimeError)
        assert isinstance(error, batchstream.RequestError)
        assert "Size of item is greater than max_batch_size" in str(error)
        assert await asyncio.gather(model("a"), model("bc"), model("d")) == [
            *("a of 2", "bc of 2"),
            "d of 1",
        ]

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["acall", "call"])
def test_results_are_asked_for_in_words_that_its_user_has(kind):
    async def anone(requests):
        return None

    def none(requests):
        return None

    error = asyncio.run(raised_by({"acall": anone, "call": none}[kind]))
    assert "returned a NoneType for 1 requests" in str(error)
    assert "single" not in str(error)


async def raised_by(function):
    return await raised(batch(function)(0))


def test_slots_of_a_batch_without_a_limit_of_requests_are_its_requests():
    @batch(max_batch_size=9, batch_size_fn=len)
    async def model(counts):
        for position in range(max(counts)):
            yield [position if position < count else StopIteration for count in counts]

    async def main():
        await asyncio.gather(*(collected(model(count)) for count in (1, 3)))
        return model.statistics()

    figures = asyncio.run(main())
    assert figures.batch_sizes == {2: 1}
    assert figures.occupancy == pytest.approx((2 + 2 + 1) / 6)  # the mark ends one in a step


def test_a_call_in_a_thread_says_what_a_handle_has_to_call_instead():
    model = Model()
    with pytest.raises(RuntimeError, match=r"async for output in self\.astream\(\.\.\.\)"):
        model.astream(1)
    assert asyncio.run(collected(model.stream(1))) == [0]  # its worker is a thread


def test_the_settings_change_while_requests_wait():
    sizes = []
    gate = asyncio.Event()

    @batch(max_batch_size=2, batch_wait_timeout_s=0)
    async def model(requests):
        sizes.append(len(requests))
        await gate.wait()
        return requests

    async def main():
        tasks = [asyncio.ensure_future(model(number)) for number in range(12)]
        await until(lambda: sizes)
        model.set_max_batch_size(5)
        model.set_batch_wait_timeout_s(0.5)
        assert model._get_max_batch_size() == 5
        assert model._get_batch_wait_timeout_s() == 0.5
        gate.set()
        assert await asyncio.gather(*tasks) == list(range(12))
        assert sizes == [2, 5, 5]

    asyncio.run(main())


@pytest.mark.parametrize("size", [0, "4", 2.5, None])
def test_a_bad_setting_is_refused_and_changes_nothing(size):
    with pytest.raises((TypeError, ValueError), match="max_batch_size"):
        importable.set_max_batch_size(size)
    with pytest.raises((TypeError, ValueError), match="batch_wait_timeout_s"):
        importable.set_batch_wait_timeout_s(-1)
    assert importable._get_max_batch_size() == 10
    assert importable._get_batch_wait_timeout_s() == 0.01
