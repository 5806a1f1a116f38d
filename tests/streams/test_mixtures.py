"""However consumers mix the ways to read, every output comes once, in order, and the end once."""

from __future__ import annotations

import math
from functools import partial

import pytest
from hypothesis import given

from batchstream import FinishReason
from support import knobs
from support.forms import FORMS, OVER, Background, InLoop
from support.mixtures import Mixture, Stepped, again_and_again, bounds, mixtures, run_quickly
from support.strategies import batches, same


def held_script(form, batch):
    """Return a source that is held in each step where it runs by itself, and the gates."""
    gates = [form.gate() for _ in range(len(batch.steps) + 1) if form.runs_ahead]
    return form.script(batch.steps, gates=dict(enumerate(gates))), gates


def steps_to_ends(batch):
    """Return for each slot how many steps it takes until it ends."""
    return [batch.steps_needed([number]) for number in range(len(batch.slots))]


@pytest.mark.rule(2, 3, 4, 5, 9, 12, 19, 25)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(batch=batches(2, at_least=4), bound=bounds, actions=mixtures())
def test_a_stream_read_in_every_way_by_turns_gives_every_output_once(form, batch, bound, actions):
    run_quickly(form, read_by_slot, batch=batch, bound=bound, actions=actions)


async def read_by_slot(form, batch, bound, actions):
    script, gates = held_script(form, batch)
    mixture = Mixture(
        form,
        form.streams(script, len(batch.slots), eos=batch.eos, max_buffered=bound),
        batch.slots,
        steps_to_ends(batch),
        gates,
        bound=bound,
        closed=script.closed,
    )
    await mixture.run(actions)


class Deliveries(Stepped):
    """A batch that is read by time in every way by turns, and what it has to give."""

    def __init__(self, form, opened, batch, gates, *, bound, closed):
        super().__init__(form, gates, closed)
        self.opened = opened
        self.steps = opened.steps()
        self.slots = batch.slots
        self.ends_after = steps_to_ends(batch)
        self.bound = bound or math.inf
        self.received = 0
        self.given = [0 for _ in self.slots]
        self.cancelled = set()
        self.ended = set()
        self.is_over = False
        if isinstance(form, Background):
            knobs.as_threads_wait(opened, self.open_due)

    def is_live(self):
        return any(self.made < ends_after for ends_after in self.ends_after)

    def is_full(self):
        return self.made - self.received >= self.bound

    async def begin(self):
        await (self.break_off() if isinstance(self.form, InLoop) else self.receive(self.steps))

    async def run(self, actions):
        for action, slot, count in again_and_again(actions):
            if action == "step":
                await self.step(count)
            elif action == "receive":
                await self.receive(self.steps)
            elif action == "iterate":
                iterator = self.form.iterator(self.steps)
                for _ in range(count):
                    await self.receive(iterator)
            elif action == "break off" and isinstance(self.form, InLoop):
                await self.break_off()
            elif action == "cancel":
                self.cancel(slot % len(self.slots))
        while not self.is_over:
            await self.receive(self.steps)
        await self.receive(self.steps)
        assert self.is_over

    async def break_off(self):
        """Break a receive off while it waits."""
        self.go_on()
        if self.is_live() and self.received == self.made:
            self.begun = True
            await self.form.broken_off(self.steps)

    def cancel(self, slot):
        self.opened.cancel(slot)
        self.cancelled.add(slot)
        self.ends_after[slot] = 0

    async def receive(self, iterator):
        self.go_on()
        while self.is_live() and self.received == self.made:
            self.let_one()
        if not self.is_live():
            self._due += self.gates
        delivery = await self.as_it_waits(partial(self.form.receive, iterator))
        if delivery is OVER:
            self.is_over = True
            assert self.ended == set(range(len(self.slots)))
        else:
            assert not self.is_over
            self.check(*delivery)
            self.received += 1

    def check(self, slots, values, ends):
        for number, output in zip(slots, values, strict=True):
            assert number not in self.ended
            slot, given = self.slots[number], self.given[number]
            assert same([output], slot.outputs[given : given + 1])
            assert slot.steps_of_outputs[given] == self.received
            self.given[number] += 1
        for number, end in ends:
            assert number not in self.ended
            self.ended.add(number)
            slot = self.slots[number]
            if number in self.cancelled:
                assert end.reason in {slot.reason, FinishReason.CANCELLED}
            else:
                assert end.reason is slot.reason
                assert self.given[number] == len(slot.outputs)


WAYS_BY_TIME = ["step", "receive", "iterate", "break off"]


@pytest.mark.rule(2, 3, 4, 5, 9, 19)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(batch=batches(2, at_least=4), bound=bounds, actions=mixtures([*WAYS_BY_TIME * 3, "cancel"]))
def test_a_batch_read_by_time_in_every_way_gives_every_step_once(form, batch, bound, actions):
    run_quickly(form, read_by_time, batch=batch, bound=bound, actions=actions)


async def read_by_time(form, batch, bound, actions):
    script, gates = held_script(form, batch)
    opened = form.open(script, len(batch.slots), eos=batch.eos, max_buffered=bound)
    mixture = Deliveries(form, opened, batch, gates, bound=bound, closed=script.closed)
    await mixture.run(actions)
