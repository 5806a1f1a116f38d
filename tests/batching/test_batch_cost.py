"""A function says what a whole batch costs: which requests join, when, and what if it raises."""

from __future__ import annotations

import asyncio
import math
from contextvars import ContextVar
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given

from batchstream import ClosedError, ContinuousBatcher, DynamicBatcher, RequestError, batched
from batchstream._batching.scheduling.measuring import Candidates, measure
from batchstream._batching.waiting.limits import Limits
from support import knobs
from support.engines import InLoop, ManualClock, Model, dynamic_batchers, echo
from support.shuffled_loop import explore
from support.sources import TIMEOUT, Gate, run_in_threads


def padded(requests):
    """Return the size of these as one block: the longest times their number."""
    return max(map(len, requests)) * len(requests)


@pytest.fixture
def clock(monkeypatch):
    return ManualClock.install(monkeypatch)


# ---- which requests fit


@dataclass(eq=False)
class Asked:
    """A request, by its place among the others."""

    place: int


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    most=st.integers(0, 40),
    bad=st.sets(st.integers(1, 11)),
)
def test_as_many_fit_as_are_within_the_bound_and_one_that_makes_it_raise_fails_alone(
    lengths, most, bad
):
    requests = [Asked(place) for place in range(len(lengths))]
    calls, failed = [], []

    def cost_of(places):
        assert places == sorted(places)
        assert len(places) > 1, "what one costs is known"
        calls.append(places)
        if not bad.isdisjoint(places):
            raise ArithmeticError
        return max(lengths[place] for place in places) * len(places)

    candidates = Candidates(
        requests, list(range(len(lengths))), lengths[0], Limits(99, 99, 0.0, most)
    )
    measured = measure(candidates, cost_of, lambda failing, error: failed.extend(failing))
    expected, faulty = [0], []
    for place in range(1, len(lengths)):
        if lengths[0] > most:
            break
        if place in bad:
            faulty.append(place)
            continue
        longer = [*expected, place]
        if max(lengths[it] for it in longer) * len(longer) > most:
            break
        expected = longer
    assert [it.place for it in measured.requests] == expected
    assert [it.place for it in failed] == faulty
    left = len(lengths) - len(failed)
    assert measured.is_full is (len(expected) < left or lengths[0] > most)
    assert len(calls) <= (len(failed) + 1) * (1 + math.ceil(math.log2(len(lengths) + 1)))


@pytest.mark.rule(29)
@dynamic_batchers
async def test_a_batch_has_the_largest_number_of_requests_that_are_within_the_bound(form):
    batcher, model, gate = form.held_batcher(0, batch_cost=padded, max_batch_cost=6)
    requests = ["ab", "c", "def", "ghi", "j", "k", "lmn", "o", "p", "q"]
    streams = await form.submit_behind(batcher, gate, "x", *requests)
    gate.open()
    for stream, request in zip(streams, ["x", *requests], strict=True):
        assert await form.rest(stream) == list(request)
    assert model.called_with == [
        ["x"],
        ["ab", "c"],
        ["def", "ghi"],
        ["j", "k"],
        ["lmn", "o"],
        ["p", "q"],
    ]


@pytest.mark.rule(29)
@dynamic_batchers
async def test_requests_with_equal_keys_alone_are_measured_together(form):
    seen = []

    def cost(requests):
        seen.append({request[0] for request in requests})
        return padded(requests)

    batcher, model, gate = form.held_batcher(
        0, batch_cost=cost, max_batch_cost=6, key=lambda request: request[0]
    )
    streams = await form.submit_behind(batcher, gate, "x", "a1", "b1", "a2", "b234", "a3", "a4")
    gate.open()
    for stream in streams:
        await form.rest(stream)
    assert model.called_with == [["x"], ["a1", "a2", "a3"], ["b1"], ["b234"], ["a4"]]
    assert all(len(keys) == 1 for keys in seen)


@pytest.mark.rule(29)
@dynamic_batchers
async def test_a_request_that_costs_more_than_a_batch_may_by_itself_is_refused(form):
    batcher = form.batcher(batch_cost=padded, max_batch_cost=3)
    for kind in (RequestError, ValueError):
        with pytest.raises(kind, match=r"costs 4\.0, more than a batch may cost: 3 "):
            form.submit(batcher, "abcd")
    assert await form.rest(form.submit(batcher, "abc")) == ["a", "b", "c"]
    assert batcher.statistics().refusals == {"cost": 2}


@pytest.mark.rule(29)
@dynamic_batchers
async def test_one_that_costs_more_than_a_lowered_bound_goes_alone(form):
    batcher, model, gate = form.held_batcher(0, batch_cost=padded, max_batch_cost=9)
    streams = await form.submit_behind(batcher, gate, "x", "a", "bcdef", "g", "h")
    batcher.reconfigure(max_batch_cost=2)
    gate.open()
    for stream in streams:
        await form.rest(stream)
    assert model.called_with == [["x"], ["a"], ["bcdef"], ["g", "h"]]


@pytest.mark.rule(29)
@dynamic_batchers
async def test_a_warm_up_is_measured_too(form):
    batcher = form.batcher(model := form.model(), batch_cost=padded, max_batch_cost=4)
    requests = ["ab", "cd", "e"]
    if isinstance(form, InLoop):
        await batcher.awarm_up(requests)
    else:
        batcher.warm_up(requests)
    assert model.called_with == [["ab", "cd"], ["e"]]


# ---- when


@pytest.mark.rule(29)
def test_a_batch_whose_cost_is_full_does_not_wait_and_another_does(clock):
    model = Model()
    options = {"batch_timeout": 5.0, "batch_cost": padded, "max_batch_cost": 4}
    with DynamicBatcher(model.generate, max_batch_size=9, **options) as batcher:
        streams = [batcher.stream("ab")]
        clock.wait_for_sleep_of(5.0)
        clock.move(1.0)
        streams.append(batcher.stream("c"))
        clock.wait_for_sleep_of(4.0)
        streams.append(batcher.stream("d"))  # for which there is no room
        assert [list(stream) for stream in streams[:2]] == [["a", "b"], ["c"]]
        clock.wait_for_sleep_of(5.0)
        assert model.called_with == [["ab", "c"]]
        clock.move(5.0)
        assert list(streams[2]) == ["d"]
        assert batcher.statistics().longest_wait == pytest.approx(5.0)


@pytest.mark.rule(29)
def test_in_a_loop_a_batch_whose_cost_is_full_does_not_wait_and_another_does(monkeypatch):
    knobs.set_clock(monkeypatch, lambda: asyncio.get_running_loop().time())

    async def main():
        model = Model(lambda: None)
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        options = {"batch_timeout": 5.0, "batch_cost": padded, "max_batch_cost": 4}
        async with DynamicBatcher(model.agenerate, max_batch_size=9, **options) as batcher:
            streams = [batcher.astream(request) for request in ("ab", "c", "d")]
            outputs = [[output async for output in stream] for stream in streams[:2]]
            assert outputs == [["a", "b"], ["c"]]
            assert loop.time() == pytest.approx(began)
            assert [output async for output in streams[2]] == ["d"]
            assert loop.time() - began == pytest.approx(5.0)
        assert model.called_with == [["ab", "c"], ["d"]]

    explore(main, 50)


def test_a_batch_that_fits_is_measured_once_and_another_a_few_times():
    calls = []

    def cost(requests):
        calls.append(len(requests))
        return padded(requests)

    gate = Gate()
    model = Model(on_step=lambda number: number or gate.pass_through())
    options = {"max_batch_size": 64, "batch_cost": cost, "max_batch_cost": 40}
    with DynamicBatcher(model.generate, **options) as batcher:
        streams = [batcher.stream("x")]
        assert gate.reached.wait(TIMEOUT)
        streams += [batcher.stream("a") for _ in range(60)]
        assert calls == [1] * 61
        calls.clear()
        gate.opened.set()
        for stream in streams:
            list(stream)
    assert [len(requests) for requests in model.called_with] == [1, 40, 20]
    assert len(calls) <= 9
    assert calls[-1] == 20


# ---- what the function does


@pytest.mark.rule(29)
@dynamic_batchers
@pytest.mark.parametrize("returned", ["raises", "much", -1, float("nan")])
async def test_a_request_with_which_the_function_fails_fails_alone(form, returned):
    def cost(requests):
        if len(requests) > 1 and "bad" in requests:
            return {}["of this request"] if returned == "raises" else returned
        return len(requests)

    batcher, model, gate = form.held_batcher(0, batch_cost=cost, max_batch_cost=3)
    streams = await form.submit_behind(batcher, gate, "a", "b", "bad", "c", "bad", "d", "e")
    gate.open()
    for place, request in enumerate(["a", "b", "bad", "c", "bad", "d", "e"]):
        if request == "bad":
            with pytest.raises((KeyError, TypeError, ValueError), match=r"of this|batch_cost ret"):
                await form.rest(streams[place])
        else:
            assert await form.rest(streams[place]) == [request]
    assert model.called_with == [["a"], ["b", "c", "d"], ["e"]]
    with pytest.raises(ZeroDivisionError):
        form.submit(form.batcher(batch_cost=lambda _: 1 / 0, max_batch_cost=3), "a")


@pytest.mark.rule(29)
@dynamic_batchers
async def test_one_that_is_first_when_the_function_fails_behind_it_is_served(form):
    """The first of a batch was measured as it was submitted: another is at fault."""

    def cost(requests):
        if len(requests) > 1:
            raise ArithmeticError
        return 1

    batcher, model, gate = form.held_batcher(0, batch_cost=cost, max_batch_cost=3)
    streams = await form.submit_behind(batcher, gate, "a", "b", "c", "d")
    gate.open()
    assert [await form.rest(stream) for stream in streams[:2]] == [["a"], ["b"]]
    for stream in streams[2:]:
        with pytest.raises(ArithmeticError):
            await form.rest(stream)
    assert await form.rest(form.submit(batcher, "e")) == ["e"]
    assert model.called_with == [["a"], ["b"], ["e"]]


@pytest.mark.rule(14, 29)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_it_ends_the_loop_and_fails_no_request(kind):
    interrupts = [kind()]

    def cost(requests):
        if len(requests) > 1 and interrupts:
            raise interrupts.pop()
        return len(requests)

    model = Model(lambda: None)
    batcher = DynamicBatcher(model.agenerate, max_batch_size=4, batch_cost=cost, max_batch_cost=3)

    async def submit():
        streams = [batcher.astream(request) for request in "abc"]
        return [[output async for output in stream] for stream in streams]

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(submit())
        with pytest.raises(kind):
            loop.run_until_complete(task)
        assert loop.run_until_complete(task) == [["a"], ["b"], ["c"]]
        loop.run_until_complete(batcher.aclose())


@pytest.mark.rule(24)
@dynamic_batchers
async def test_it_is_called_without_the_lock_and_may_submit_a_request(form):
    inner, owned = [], []

    def cost(requests):
        owned.append(batcher._dispatcher.lock._is_owned())
        if len(requests) > 1 and not inner:
            inner.append(None)
            inner[0] = form.submit(batcher, "inner")
        return len(requests)

    batcher, _, gate = form.held_batcher(0, batch_cost=cost, max_batch_cost=3)
    streams = await form.submit_behind(batcher, gate, "a", "b", "c")
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [["a"], ["b"], ["c"]]
    assert await form.rest(inner[0]) == list("inner")
    assert not any(owned)


@pytest.mark.rule(11, 24)
def test_while_it_takes_long_others_submit_cancel_and_change_limits():
    gate, model_gate = Gate(), Gate()

    def cost(requests):
        if requests == ["b", "c", "d"]:
            gate.pass_through()
        return len(requests)

    model = Model(on_step=lambda number: number or model_gate.pass_through())
    options = {"max_batch_size": 9, "batch_cost": cost, "max_batch_cost": 9}
    with DynamicBatcher(model.generate, **options) as batcher:
        first = batcher.stream("a")
        assert model_gate.reached.wait(TIMEOUT)
        streams = [batcher.stream(request) for request in "bcd"]
        model_gate.opened.set()
        assert gate.reached.wait(TIMEOUT)
        late = batcher.stream("e")
        assert batcher.statistics().waiting == 4
        streams.pop(1).cancel()
        batcher.reconfigure(max_batch_cost=2)
        gate.opened.set()
        assert [list(stream) for stream in (first, *streams, late)] == [["a"], ["b"], ["d"], ["e"]]
    assert model.called_with == [["a"], ["b", "d"], ["e"]]


@pytest.mark.rule(9)
def test_a_close_while_it_takes_long_waits_for_it_and_fails_the_requests():
    gate = Gate()

    def cost(requests):
        if len(requests) > 1:
            gate.pass_through()
        return len(requests)

    batcher = DynamicBatcher(
        echo, max_batch_size=2, batch_timeout=3600, batch_cost=cost, max_batch_cost=9
    )
    streams = [batcher.stream("a"), batcher.stream("b")]
    assert gate.reached.wait(TIMEOUT)

    def close():
        batcher.close()

    def go_on():
        for stream in streams:
            with pytest.raises(ClosedError):
                list(stream)
        gate.opened.set()

    run_in_threads(close, go_on)


@pytest.mark.rule(29)
def test_two_workers_that_measure_the_same_requests_serve_each_once_and_in_order():
    gates = [Gate(), Gate()]
    entered = []

    def cost(requests):
        if len(requests) == 3 and len(entered) < 2:
            entered.append(requests)
            gates[len(entered) - 1].pass_through()
        return len(requests)

    model = Model()
    options = {"batch_timeout": 3600.0, "batch_cost": cost, "max_batch_cost": 2, "workers": 2}
    with DynamicBatcher(model.generate, max_batch_size=9, **options) as batcher:
        streams = [batcher.stream(request) for request in "abc"]
        assert gates[0].reached.wait(TIMEOUT)
        streams.append(batcher.stream("d"))
        assert gates[1].reached.wait(TIMEOUT)
        gates[1].opened.set()  # of the worker that has begun later
        assert [list(stream) for stream in streams[:2]] == [["a"], ["b"]]
        gates[0].opened.set()
        batcher.reconfigure(batch_timeout=0.0)
        assert [list(stream) for stream in streams[2:]] == [["c"], ["d"]]
    assert model.called_with == [["a", "b"], ["c", "d"]]


@pytest.mark.rule(26)
@pytest.mark.parametrize("kind", ["generate", "agenerate"])
def test_for_a_batch_it_runs_in_a_copy_of_the_context_of_the_batcher(kind):
    variable = ContextVar("variable", default="none")
    seen = []

    def cost(requests):
        seen.append((len(requests), variable.get()))
        variable.set("set by cost")
        return len(requests)

    async def ask(batcher):
        variable.set("of a request")
        streams = [batcher.astream("a"), batcher.astream("b")]
        return [[output async for output in stream] for stream in streams]

    variable.set("of the batcher")
    model = Model(lambda: None)
    batcher = DynamicBatcher(
        getattr(model, kind), max_batch_size=2, batch_timeout=9, batch_cost=cost, max_batch_cost=9
    )

    async def main():
        outputs = await asyncio.create_task(ask(batcher))
        await batcher.aclose()
        return outputs

    assert asyncio.run(main()) == [["a"], ["b"]]
    assert {value for number, value in seen if number > 1} == {"of the batcher"}


# ---- arguments


@pytest.mark.rule(29)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_cost": padded}, "batch_cost and max_batch_cost go together"),
        ({"batch_cost": 3, "max_batch_cost": 3}, "function of the list of a batch's requests"),
        ({"batch_cost": padded, "max_batch_cost": 3, "cost": len}, "cost and batch_cost exclude"),
        (
            {"batch_cost": padded, "max_batch_cost": 3, "max_pending_cost": 9},
            "max_pending_cost and batch_cost exclude",
        ),
        ({"batch_cost": padded, "max_batch_cost": 3, "priority": len}, "priority and batch_cost"),
        ({"batch_cost": padded, "max_batch_cost": 3, "tenant": len}, "tenant and batch_cost"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, said):
    with pytest.raises(TypeError, match=said):
        DynamicBatcher(echo, max_batch_size=4, **options)
    with pytest.raises(TypeError, match=said):
        batched(**options)(echo)


def test_continuous_batching_has_no_cost_of_a_whole_batch():
    with pytest.raises(TypeError, match="batch_cost"):
        ContinuousBatcher(Model, max_batch_size=4, batch_cost=padded, max_batch_cost=3)
