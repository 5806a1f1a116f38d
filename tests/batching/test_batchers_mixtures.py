"""However the consumer of a request mixes the ways to read, every output and end comes once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchstream import EOS, SKIP, Fail
from support.engines import CONTINUOUS, DYNAMIC
from support.mixtures import Mixture, bounds, mixtures, run_quickly
from support.strategies import outputs, reference

ENDS = st.sampled_from(["eos", "eos", "eos", "error"])


@st.composite
def requests(draw):
    """Draw a request: what the model gives for it, one element a step."""
    elements = draw(st.lists(outputs(), min_size=2, max_size=12))
    return elements + [Fail(ValueError("this one alone"))] * (draw(ENDS) == "error")


@pytest.mark.rule(2, 3, 4, 5, 9, 12, 19, 25)
@pytest.mark.parametrize("form", DYNAMIC + CONTINUOUS, ids=lambda form: form.name)
@given(requests=st.lists(requests(), min_size=1, max_size=2), bound=bounds, actions=mixtures())
def test_a_reply_read_in_every_way_by_turns_has_every_output_once(form, requests, bound, actions):
    run_quickly(form, read, requests=requests, bound=bound, actions=actions)


async def read(form, requests, bound, actions):
    # The first is in a step of its own where the others join a batch that runs.
    joined_at = [int(form.continuous and number > 0) for number in range(len(requests))]
    slots = [
        reference([SKIP] * joined + request + [EOS], EOS)
        for joined, request in zip(joined_at, requests, strict=True)
    ]
    ends_after = [slot.ends_at + 1 for slot in slots]
    gates = [form.gate() for _ in range(max(ends_after) + 1)]
    options = {"max_buffered": bound, "on_overflow": "wait"} if bound else {}
    held = {"gates": dict(enumerate(gates[1:], start=1))}
    mixture = Mixture(
        form,
        await form.submit_together(options, held, *requests),
        slots,
        ends_after,
        gates,
        bound=bound,
    )
    mixture.begin_at(1)
    await mixture.run(actions)
