"""What a step may cost: which requests join, as the cost of the slots changes over their lives."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from batchstream import (
    EOS,
    SKIP,
    ContinuousBatcher,
    DynamicBatcher,
    Many,
    RequestError,
    Requeue,
    SourceError,
)
from support.engines import continuous_batchers
from support.sources import Gate


class Prefilling:
    """Computes so many tokens of a prompt in a step, and then gives so many outputs.

    A request is a pair of both numbers.

    Args:
        chunk: How many tokens of a prompt it computes in a step.
        gate: Held in the first step, if there is one.
    """

    def __init__(self, chunk=10**9, gate=None):
        self.costs = []
        self.seats = {}
        self._chunk = chunk
        self._gate = gate

    def add(self, slot, request):
        self.seats[slot] = list(request)

    def cost_of(self, slot):
        prompt, _ = self.seats[slot]
        return min(prompt, self._chunk) if prompt else 1

    def step(self):
        self.costs.append(sum(map(self.cost_of, self.seats)))
        if self._gate is not None:
            self._gate.pass_through()
        return {slot: self._advance(seat) for slot, seat in self.seats.items()}

    def _advance(self, seat):
        prompt, outputs = seat
        if prompt > self._chunk:
            seat[0] -= self._chunk
            return SKIP
        seat[0], seat[1] = 0, outputs - 1
        return "x" if outputs else EOS

    def remove(self, slot):
        del self.seats[slot]


class Telling(Prefilling):
    """The same, and says what its next step costs for a slot."""

    def step_cost(self, slot):
        return self.cost_of(slot)


def first_step(chunk):
    return lambda request: min(request[0], chunk)


def served(engine, requests, **options):
    """Serve requests that all wait before the first step; return their batcher's figures."""
    engine._gate = gate = Gate()
    with ContinuousBatcher(engine, max_batch_size=4, **options) as batcher:
        streams = [batcher.stream(requests[0])]
        assert gate.reached.wait(30)
        streams += [batcher.stream(request) for request in requests[1:]]
        gate.opened.set()
        assert [len(list(stream)) for stream in streams] == [length for _, length in requests]
        return batcher.statistics()


def test_a_prompt_counts_in_the_step_that_computes_it_and_an_output_from_then_on():
    engine = Prefilling()
    served(engine, [(5, 3), (6, 2), (4, 2)], step_cost=lambda it: it[0], max_step_cost=7)
    # 5; then 1 + 6; then 4 behind the two that decode; then all decode, and leave.
    assert engine.costs == [5, 1 + 6, 1 + 1 + 4, 1 + 1 + 1, 1]


def test_an_engine_that_says_what_a_slot_costs_is_asked():
    told, not_told = Telling(chunk=4), Prefilling(chunk=4)
    requests = [(9, 3), (3, 3), (3, 3)]
    options = {"step_cost": first_step(4), "max_step_cost": 5}
    served(told, requests, **options)
    served(not_told, requests, **options)
    # The last chunk of 9 is one token, and then there is room for 3 more; else it counts as 4.
    assert told.costs[:4] == [4, 4, 1 + 3, 1 + 1 + 3]
    assert not_told.costs[:4] == [4, 4, 1, 1 + 3]


def test_none_overtakes_the_one_that_waits_for_a_cheaper_step():
    engine = Prefilling()
    served(engine, [(2, 5), (8, 1), (1, 1)], step_cost=lambda it: it[0], max_step_cost=8)
    assert engine.costs == [2, 1, 1, 1, 1, 1, 8, 1 + 1, 1]


def test_a_first_step_that_costs_too_much_is_refused():
    batcher = ContinuousBatcher(
        Prefilling(), max_batch_size=4, step_cost=lambda it: it[0], max_step_cost=8
    )
    with batcher, pytest.raises(RequestError) as raised:
        batcher.stream((9, 1))
    assert isinstance(raised.value, ValueError)
    assert str(raised.value) == (
        "the first step of the request costs 9.0, more than a step may cost: 8 (max_step_cost)"
    )


def test_one_that_was_given_back_and_costs_more_than_a_step_may_joins_alone():
    class Growing(Prefilling):
        grown = False

        def step(self):
            step = super().step()
            if not self.grown and len(self.seats) == 2:
                self.grown = True
                step[0] = Many([step[0], Requeue((12, self.seats[0][1]))])
            return step

    engine = Growing()
    served(engine, [(2, 3), (3, 2)], step_cost=lambda it: it[0], max_step_cost=8)
    assert engine.costs == [2, 1 + 3, 1, 1, 12, 1]


@continuous_batchers
async def test_what_step_cost_raises_fails_its_request_alone(form):
    def step_cost(request):
        if request == "bad":
            raise KeyError(request)
        return len(request)

    batcher = form.batcher(step_cost=step_cost, max_step_cost=9)
    with pytest.raises(KeyError):
        form.submit(batcher, "bad")
    assert await form.rest(form.submit(batcher, "ab")) == ["a", "b"]


@pytest.mark.rule(9, 15)
@pytest.mark.parametrize("answer", [-1, "much", float("nan"), KeyError("slot"), StopIteration()])
def test_what_the_engine_says_wrongly_fails_its_requests_and_none_that_waits(answer):
    class Wrong(Telling):
        def step_cost(self, slot):
            if isinstance(answer, Exception):
                raise answer
            return answer

    made = []

    def make():
        made.append(Telling() if made else Wrong(gate=gate))
        return made[-1]

    gate = Gate()
    with ContinuousBatcher(
        make, max_batch_size=2, step_cost=lambda it: it[0], max_step_cost=9
    ) as batcher:
        first = batcher.stream((2, 5))
        assert gate.reached.wait(30)
        second = batcher.stream((2, 2))
        gate.opened.set()
        with pytest.raises((TypeError, ValueError, KeyError, SourceError)):
            list(first)
        assert list(second) == ["x", "x"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"step_cost": len}, "step_cost and max_step_cost go together"),
        ({"max_step_cost": 3}, "step_cost and max_step_cost go together"),
        ({"step_cost": 3, "max_step_cost": 3}, "step_cost takes a function of one request, got 3"),
        ({"step_cost": len, "max_step_cost": "3"}, "max_step_cost must be a number, got '3'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, text):
    with pytest.raises(TypeError, match=text):
        ContinuousBatcher(Prefilling, max_batch_size=2, **options)


@given(
    requests=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=8),
    chunk=st.integers(1, 9),
    budget=st.integers(9, 14),
    tells=st.booleans(),
)
def test_no_step_costs_more_than_it_may_and_all_are_served(requests, chunk, budget, tells):
    engine = (Telling if tells else Prefilling)(chunk)
    figures = served(engine, requests, step_cost=first_step(chunk), max_step_cost=budget)
    assert max(engine.costs) <= budget
    assert figures.finished == {"eos": len(requests)}


# ---- requests that have joined, and have no output yet


def test_a_request_is_prefilling_from_when_it_joins_until_its_first_output():
    gate = Gate()
    seen = []

    class Watched(Prefilling):
        def step(self):
            seen.append(batcher.statistics().prefilling)
            return super().step()

    engine = Watched(chunk=2, gate=gate)
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        first = batcher.stream((5, 2))
        assert gate.reached.wait(30)
        second = batcher.stream((1, 1))
        assert batcher.statistics().prefilling == 1  # the other waits
        gate.opened.set()
        assert (list(first), list(second)) == (["x", "x"], ["x"])
        assert batcher.statistics().prefilling == 0
    assert seen == [1, 2, 1, 0, 0]


def test_one_that_has_joined_again_is_prefilling_until_its_next_output():
    seen = []

    class Forgetful(Prefilling):
        def step(self):
            seen.append(batcher.statistics().prefilling)
            step = super().step()
            return {0: Many([step[0], Requeue((4, 1))])} if len(seen) == 1 else step

    with ContinuousBatcher(Forgetful(chunk=2), max_batch_size=1) as batcher:
        assert list(batcher.stream((1, 2))) == ["x", "x"]
    assert seen == [1, 1, 1, 0]


def test_in_a_batch_of_a_function_it_is_likewise():
    seen = []

    def generate(requests):
        for step in ([SKIP, "x"], ["y", SKIP], [None, None]):
            seen.append(batcher.statistics().prefilling)
            yield step

    with DynamicBatcher(generate, max_batch_size=2, batch_timeout=3600.0) as batcher:
        streams = [batcher.stream(number) for number in range(2)]
        assert [list(stream) for stream in streams] == [["y"], ["x"]]
    assert seen == [2, 1, 0]
