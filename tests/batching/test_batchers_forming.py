"""When a dynamic batch is formed, in which worker, and what a function is decorated into."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from contextvars import ContextVar

import pytest

import batchstream
from batchstream import DeadlineError, DynamicBatcher, batched
from support import knobs
from support.engines import ManualClock, Model, dynamic_batchers, every_batcher
from support.shuffled_loop import explore, run
from support.sources import TIMEOUT, Gate, run_in_threads


@pytest.fixture
def clock(monkeypatch):
    return ManualClock.install(monkeypatch)


# ---- batch_timeout, in threads


@pytest.mark.rule(29)
def test_alone_a_request_waits_for_batch_timeout_and_no_longer(clock):
    model = Model()
    with DynamicBatcher(model.generate, max_batch_size=4, batch_timeout=5.0) as batcher:
        stream = batcher.stream("ab")
        assert clock.wait_for_sleeper() == pytest.approx(5.0)
        assert model.called_with == []
        clock.move(5.0)
        assert list(stream) == ["a", "b"]
    assert model.called_with == [["ab"]]
    assert batcher.statistics().longest_wait == pytest.approx(5.0)


@pytest.mark.rule(29)
def test_the_time_runs_from_the_oldest_request_on(clock):
    model = Model()
    with DynamicBatcher(model.generate, max_batch_size=4, batch_timeout=5.0) as batcher:
        streams = [batcher.stream("a")]
        clock.wait_for_sleeper()
        clock.move(3.0)
        streams.append(batcher.stream("b"))
        assert clock.wait_for_sleeper() == pytest.approx(2.0)
        clock.move(2.0)
        assert [list(stream) for stream in streams] == [["a"], ["b"]]
        figures = batcher.statistics()
    assert model.called_with == [["a", "b"]]
    assert figures.waited == pytest.approx(7.0)
    assert figures.longest_wait == pytest.approx(5.0)


@pytest.mark.rule(29)
def test_a_full_batch_does_not_wait(clock):
    model = Model()
    with DynamicBatcher(model.generate, max_batch_size=3, batch_timeout=5.0) as batcher:
        streams = [batcher.stream(request) for request in "abc"]
        assert [list(stream) for stream in streams] == [["a"], ["b"], ["c"]]
    assert model.called_with == [["a", "b", "c"]]


@pytest.mark.rule(29)
def test_a_batch_whose_cost_is_full_does_not_wait(clock):
    model = Model()
    options = {"max_batch_size": 9, "batch_timeout": 5.0, "cost": len, "max_batch_cost": 4}
    with DynamicBatcher(model.generate, **options) as batcher:
        streams = [batcher.stream(request) for request in ("ab", "cd", "e")]
        assert [list(stream) for stream in streams[:2]] == [["a", "b"], ["c", "d"]]
        clock.wait_for_sleeper()
        clock.move(5.0)
        assert list(streams[2]) == ["e"]
    assert model.called_with == [["ab", "cd"], ["e"]]


@pytest.mark.rule(29)
def test_waiting_for_the_worker_counts_as_waiting_for_other_requests(clock):
    gate = Gate()
    model = Model(on_step=lambda number: number or gate.pass_through())
    with DynamicBatcher(model.generate, max_batch_size=3, batch_timeout=5.0) as batcher:
        first = batcher.stream("a")
        clock.wait_for_sleeper()
        clock.move(5.0)
        assert gate.reached.wait(TIMEOUT)
        second = batcher.stream("b")
        clock.move(5.0)
        gate.opened.set()
        assert [list(first), list(second)] == [["a"], ["b"]]
    assert model.called_with == [["a"], ["b"]]


@pytest.mark.rule(29)
def test_a_group_that_is_full_goes_before_one_that_waits(clock):
    model = Model()
    options = {"max_batch_size": 2, "batch_timeout": 5.0, "key": lambda request: request[0]}
    with DynamicBatcher(model.generate, **options) as batcher:
        lone = batcher.stream("a1")
        clock.wait_for_sleeper()
        pair = [batcher.stream("b1"), batcher.stream("b2")]
        assert [list(stream) for stream in pair] == [["b", "1"], ["b", "2"]]
        clock.wait_for_sleeper()
        clock.move(5.0)
        assert list(lone) == ["a", "1"]
    assert model.called_with == [["b1", "b2"], ["a1"]]


@pytest.mark.rule(29)
def test_of_several_ready_groups_the_oldest_request_goes_first(clock):
    gate = Gate()
    model = Model(on_step=lambda number: number or gate.pass_through())
    with DynamicBatcher(model.generate, max_batch_size=1, key=lambda request: request) as batcher:
        streams = [batcher.stream("x")]
        assert gate.reached.wait(TIMEOUT)
        for request in "dacb":
            streams.append(batcher.stream(request))
            clock.move(1.0)
        gate.opened.set()
        assert [list(stream) for stream in streams] == [["x"], ["d"], ["a"], ["c"], ["b"]]
    assert model.called_with == [["x"], ["d"], ["a"], ["c"], ["b"]]


@pytest.mark.rule(29)
@pytest.mark.parametrize("limit", ["timeout", "wait_timeout"])
def test_a_batch_goes_earlier_for_a_request_that_may_not_wait_so_long(clock, limit):
    model = Model()
    with DynamicBatcher(model.generate, max_batch_size=3, batch_timeout=5.0) as batcher:
        stream = batcher.stream("a", **{limit: 1.0})
        assert clock.wait_for_sleeper() == pytest.approx(0.5)
        assert model.called_with == []
        clock.move(0.5)
        assert list(stream) == ["a"]


@pytest.mark.rule(13)
@pytest.mark.parametrize("continuous", [False, True])
def test_a_request_that_has_timed_out_leaves_before_the_next_step(clock, continuous):
    gate = Gate()
    model = Model(on_step=lambda number: gate.pass_through() if number == 1 else None)
    with (
        batchstream.ContinuousBatcher(model, max_batch_size=2)
        if continuous
        else DynamicBatcher(model.generate, max_batch_size=2)
    ) as batcher:
        late, other = batcher.stream("abcdefg", timeout=5.0), batcher.stream("wxyz", timeout=9.0)
        assert gate.reached.wait(TIMEOUT)
        clock.move(5.0)
        gate.opened.set()
        assert list(other) == list("wxyz")
        with pytest.raises(DeadlineError) as raised:
            list(late)
        assert raised.value.timeout == 5.0
    assert not any("abcdefg" in requests for requests in model.worked_on[2:])


# ---- batch_timeout, in an event loop with a virtual clock


@pytest.fixture
def loop_clock(monkeypatch):
    knobs.set_clock(monkeypatch, lambda: asyncio.get_running_loop().time())


@pytest.mark.rule(29)
def test_in_a_loop_a_request_waits_for_batch_timeout_and_no_longer(loop_clock):
    async def main():
        model = Model(lambda: None)
        async with DynamicBatcher(model.agenerate, max_batch_size=9, batch_timeout=5.0) as batcher:
            loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
            first = batcher.astream("ab")
            await asyncio.sleep(3.0)
            assert model.called_with == []
            second = batcher.astream("c")
            assert await anext(first) == "a"
            assert loop.time() - began == pytest.approx(5.0)
            assert [output async for output in first] == ["b"]
            assert [output async for output in second] == ["c"]
        return model.called_with

    for called_with in explore(main, 100):
        assert called_with == [["ab", "c"]]


@pytest.mark.rule(29)
def test_in_a_loop_a_full_batch_does_not_wait(loop_clock):
    async def main():
        model = Model(lambda: None)
        async with DynamicBatcher(model.agenerate, max_batch_size=2, batch_timeout=5.0) as batcher:
            began = asyncio.get_running_loop().time()
            first = batcher.astream("ab")
            await asyncio.sleep(1.0)
            second = batcher.astream("c")
            assert await anext(first) == "a"
            assert asyncio.get_running_loop().time() - began == pytest.approx(1.0)
            assert await anext(second) == "c"

    explore(main, 100)


def test_in_a_loop_timeouts_are_raised_when_they_are_over(loop_clock):
    async def main():
        never = asyncio.Event()

        async def fn(requests):
            yield ["a"]
            await never.wait()

        loop = asyncio.get_running_loop()
        async with DynamicBatcher(fn, max_batch_size=1) as batcher:
            running = batcher.astream("x", timeout=7.0)
            waiting = batcher.astream("y", wait_timeout=3.0)

            async def read(stream):
                outputs = []
                try:
                    async for output in stream:
                        outputs.append(output)  # noqa: PERF401 - kept when the error comes
                except DeadlineError:
                    return outputs, loop.time()
                raise AssertionError("it ended as if nothing had happened")

            return await asyncio.gather(read(running), read(waiting))

    for (outputs, over), (nothing, missed) in explore(main, 100):
        assert (outputs, nothing) == (["a"], [])
        assert (over, missed) == (pytest.approx(7.0), pytest.approx(3.0))


def test_in_any_order_each_task_gets_its_own_outputs_whatever_is_cancelled(loop_clock):
    async def main():
        model = Model(lambda: None)
        requests = ["abc", "d", "", "efgh", "ij", "klmno", "p"]

        async def ask(batcher, number, request):
            if number % 3 == 2:
                stream = batcher.astream(request)
                await asyncio.sleep(0)
                stream.cancel()
                return list(request)
            return [output async for output in batcher.astream(request)]

        options = {"max_batch_size": 3, "batch_timeout": 1.0, "workers": 2}
        async with DynamicBatcher(model.agenerate, **options) as batcher:
            asking = [ask(batcher, *numbered) for numbered in enumerate(requests)]
            assert await asyncio.gather(*asking) == [list(request) for request in requests]
        model.check()
        figures = batcher.statistics()
        assert (figures.live, figures.waiting, figures.buffered) == (0, 0, 0)
        assert sum(figures.finished.values()) == figures.opened == len(requests)

    explore(main, 300)


# ---- workers


@pytest.mark.rule(29)
@dynamic_batchers
async def test_two_workers_run_two_batches_at_once(form):
    gates = [form.gate(), form.gate()]
    model = form.model(gates=dict(enumerate(gates)))
    batcher = form.batcher(model, max_batch_size=2, workers=2)
    streams = [form.submit(batcher, "ab")]
    await gates[0].reached.wait()
    streams.append(form.submit(batcher, "cd"))
    await gates[1].reached.wait()
    streams += [form.submit(batcher, request) for request in ("e", "f", "g")]
    assert batcher.statistics().waiting == 3
    gates[1].open()
    assert await form.rest(streams[1]) == ["c", "d"]
    assert await form.rest(streams[4]) == ["g"]
    assert model.called_with == [["ab"], ["cd"], ["e", "f"], ["g"]]
    gates[0].open()
    assert [await form.rest(stream) for stream in streams] == [["a", "b"], [], ["e"], ["f"], []]


@pytest.mark.rule(29)
@dynamic_batchers
async def test_no_more_than_workers_run_at_once(form):
    gates = [form.gate() for _ in range(3)]
    model = form.model(gates=dict(enumerate(gates)))
    batcher = form.batcher(model, max_batch_size=1, workers=3)
    streams = [form.submit(batcher, "a") for _ in range(9)]
    for gate in gates:
        await gate.reached.wait()
    figures = batcher.statistics()
    assert (figures.batches, figures.waiting, figures.live) == (3, 6, 9)
    assert len(model.called_with) == 3
    for gate in gates:
        gate.open()
    for stream in streams:
        assert await form.rest(stream) == ["a"]


# ---- the context


variable = ContextVar("variable", default="no context's")


@pytest.mark.rule(26)
@every_batcher
async def test_the_model_runs_in_a_copy_of_the_context_in_which_the_batcher_was_made(form):
    seen = []

    def look(_):
        seen.append(variable.get())
        variable.set("the model's")

    token = variable.set("the maker's")
    try:
        batcher = form.batcher(form.model(on_step=look))
        variable.set("the caller's")
        assert await form.rest(form.submit(batcher, "a")) == ["a"]
        assert variable.get() == "the caller's"
    finally:
        variable.reset(token)
    assert seen[0] == "the maker's"


# ---- batched


def test_a_function_becomes_a_batcher_with_and_without_arguments():
    @batched
    def bare(words):
        """Spell."""
        yield list(words)

    @batched(max_batch_size=2, batch_timeout=0.0, max_outputs=1)
    def limited(words):
        yield list(words)
        yield list(words)

    with bare, limited:
        assert list(bare.stream("x")) == ["x"]
        assert list(limited.stream("y")) == ["y"]
    assert isinstance(bare, DynamicBatcher)
    assert (bare.__name__, bare.__doc__, bare.__module__) == ("bare", "Spell.", __name__)
    assert list(bare.__wrapped__(["z"])) == [["z"]]


def test_batched_refuses_wrong_arguments_when_the_function_is_decorated():
    with pytest.raises(ValueError, match="max_batch_size"):
        batched(max_batch_size=0)(lambda words: [words])
    with pytest.raises(TypeError):
        batched(max_size=3)(lambda words: [words])
    with pytest.raises(TypeError, match="fn takes a function"):
        batched("function")


class Speller:
    def __init__(self, end):
        self.end = end

    @batched(max_batch_size=4, batch_timeout=0.0)
    def spell(self, words):
        yield list(words)
        yield [self.end] * len(words)


class LoudSpeller(Speller):
    pass


class OverridingSpeller(Speller):
    @batched(max_batch_size=1, batch_timeout=0.0)
    def spell(self, words):
        yield [word.upper() for word in words]


@pytest.mark.parametrize("kind", [Speller, LoudSpeller])
def test_of_a_method_there_is_one_batcher_for_each_instance(kind):
    one, other = kind("!"), kind("?")
    assert one.spell is one.spell
    assert one.spell is not other.spell
    with one.spell, other.spell:
        assert list(one.spell.stream("a")) == ["a", "!"]
        assert list(other.spell.stream("a")) == ["a", "?"]
    assert kind("again").spell is not one.spell


def test_a_method_may_be_overridden_by_another_batched_one():
    speller = OverridingSpeller("!")
    with speller.spell:
        assert list(speller.spell.stream("a")) == ["A"]


def test_an_asynchronous_method_becomes_a_batcher_too():
    class Model:
        @batched(batch_timeout=0.0)
        async def spell(self, words):
            yield list(words)

    async def main():
        model = Model()
        async with model.spell as spell:
            return [output async for output in spell.astream("x")]

    assert run(main()) == ["x"]


def test_all_threads_get_the_same_batcher_of_an_instance():
    speller, found = Speller("!"), []
    barrier = threading.Barrier(4)

    def look():
        barrier.wait(TIMEOUT)
        found.append(speller.spell)

    run_in_threads(*[look] * 4)
    assert len({id(batcher) for batcher in found}) == 1
    speller.spell.close()


def test_an_instance_without_dict_is_refused_with_a_reason():
    class Slotted:
        __slots__ = ()

        @batched
        def spell(self, words):
            yield list(words)

    with pytest.raises(TypeError, match="its batcher is kept in the instance"):
        Slotted().spell  # noqa: B018 - looking it up is the test


@pytest.mark.rule(25)
def test_an_instance_and_its_batcher_can_be_collected():
    speller = Speller("!")
    assert list(speller.spell.stream("a")) == ["a", "!"]
    threads = knobs.worker_threads_of(speller.spell)
    gone = weakref.ref(speller)
    del speller
    gc.collect()
    assert gone() is None
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


class Greeter:
    def __init__(self, name):
        self.name = name

    @batched(max_batch_size=4)
    def generate(self, requests):
        yield [f"{self.name} {request}" for request in requests]


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda greeter: pickle.loads(pickle.dumps(greeter))],  # noqa: S301 - its own
)
def test_a_copy_of_an_instance_has_a_batcher_of_its_own(copied):
    first = Greeter("first")
    assert list(first.generate.stream("a")) == ["first a"]
    second = copied(first)
    second.name = "second"
    assert list(second.generate.stream("a")) == ["second a"]
    assert list(first.generate.stream("a")) == ["first a"]
    assert second.generate is second.generate is not first.generate
    first.generate.close()
    second.generate.close()
