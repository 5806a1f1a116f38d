"""Priorities, tenants and shares of a batcher's requests, in all forms of batcher."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

import pytest

from batchstream import NotNow, OverloadedError
from support import knobs
from support.engines import continuous_batchers, every_batcher


def joined(model):
    """Return the requests in the order in which they joined."""
    return list(dict.fromkeys(request for step in model.worked_on for request in step))


@pytest.mark.rule(29)
@every_batcher
async def test_the_tenants_of_a_batcher_take_turns(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=1, tenant=lambda request: request[0])
    streams = await form.submit_behind(batcher, gate, "x", "a1", "a2", "a3", "b1", "b2")
    gate.open()
    for stream in streams:
        await form.rest(stream)
    assert joined(model) == ["x", "a1", "b1", "a2", "b2", "a3"]


@pytest.mark.rule(29)
@every_batcher
async def test_what_a_tenant_gets_is_by_cost_and_share(form):
    batcher, model, gate = form.held_batcher(
        0,
        max_batch_size=1,
        cost=len,
        max_batch_cost=99,
        tenant=lambda request: request[0],
        share=lambda request: 2 if request[0] == "a" else 1,
    )
    requests = ["aaaa", "aaa", "aaaaa", "b", "bb", "bbb"]
    streams = await form.submit_behind(batcher, gate, "x", *requests)
    gate.open()
    for stream in streams:
        await form.rest(stream)
    # Up to: b 1, aaaa 2, bb 3, aaa 3.5, aaaaa 6, bbb 6; of the two at 6, the first to come.
    assert joined(model) == ["x", "b", "aaaa", "bb", "aaa", "aaaaa", "bbb"]


@pytest.mark.rule(29)
@every_batcher
async def test_a_lower_number_joins_first(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=1, priority=len)
    streams = await form.submit_behind(batcher, gate, "x", "ccc", "bb", "a", "dd")
    gate.open()
    for stream in streams:
        await form.rest(stream)
    assert joined(model) == ["x", "a", "bb", "dd", "ccc"]


@pytest.mark.rule(29)
@every_batcher
async def test_a_tenant_that_has_enough_waiting_is_refused_and_no_other(form):
    batcher, _, gate = form.held_batcher(
        0, max_batch_size=1, tenant=lambda request: request[0], max_pending_per_tenant=2
    )
    streams = await form.submit_behind(batcher, gate, "a", "a1", "a2")
    with pytest.raises(OverloadedError, match="2 requests of its tenant") as raised:
        form.submit(batcher, "a3")
    assert raised.value.reason == "tenant"
    streams.append(form.submit(batcher, "b"))
    streams[1].cancel()
    streams.append(form.submit(batcher, "a4"))
    assert batcher.statistics().refused == 1
    gate.open()
    assert [await form.rest(stream) for stream in streams[2:]] == [["a", "2"], ["b"], ["a", "4"]]


@pytest.mark.rule(29)
@every_batcher
async def test_requests_that_would_cost_too_much_waiting_are_refused(form):
    batcher, _, gate = form.held_batcher(
        0, max_batch_size=1, cost=len, max_batch_cost=4, max_pending_cost=5
    )
    streams = await form.submit_behind(batcher, gate, "a", "bbb", "c")
    with pytest.raises(OverloadedError, match="max_pending_cost") as raised:
        form.submit(batcher, "dd")
    assert raised.value.reason == "pending_cost"
    assert (raised.value.pending_cost, raised.value.max_pending_cost) == (4.0, 5)
    streams.append(form.submit(batcher, "e"))
    gate.open()
    assert [len(await form.rest(stream)) for stream in streams] == [1, 3, 1, 1]


@pytest.mark.rule(29)
@every_batcher
@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("priority", "urgent", TypeError),
        ("priority", None, TypeError),
        ("priority", 1.5, TypeError),
        ("priority", True, TypeError),
        ("share", 0, ValueError),
        ("share", -1, ValueError),
        ("share", float("inf"), ValueError),
        ("share", float("nan"), ValueError),
        ("share", "much", TypeError),
        ("tenant", ["a"], TypeError),
    ],
)
async def test_what_priority_tenant_and_share_return_is_checked(form, option, value, error):
    values = iter([value, 1])
    options = {"tenant": str} | {option: lambda _: next(values)}
    batcher = form.batcher(**options)
    with pytest.raises(error, match=option):
        form.submit(batcher, "a")
    assert await form.rest(form.submit(batcher, "a")) == ["a"]


class Tenant:
    """Notes whether the batcher's lock is held where it is hashed or compared."""

    def __init__(self, name, is_locked):
        self.name = name
        self.is_locked = is_locked

    def __hash__(self):
        assert not self.is_locked()
        return hash(self.name)

    def __eq__(self, other):
        assert not self.is_locked()
        return self.name == other.name

    def __del__(self):
        assert not self.is_locked()


@pytest.mark.rule(24, 29)
@every_batcher
async def test_no_tenant_is_hashed_compared_or_freed_under_the_lock(form, monkeypatch):
    knobs.set_many_keys(monkeypatch, 4)
    batcher, _, gate = form.held_batcher(
        0, max_batch_size=2, tenant=lambda request: Tenant(request, lock._is_owned)
    )
    lock = knobs.lock_of(batcher)
    streams = await form.submit_behind(batcher, gate, "a", *"bcdbcd")
    gate.open()
    for number in range(40):
        streams.append(form.submit(batcher, str(number)))
        if number % 5 == 0:
            for stream in streams:
                await form.rest(stream)
            streams.clear()
    for stream in streams:
        await form.rest(stream)
    assert knobs.tenants_of(batcher) < 30


@pytest.mark.rule(29)
@every_batcher
async def test_a_tenant_stays_one_though_it_is_forgotten_as_its_request_comes(form):
    batcher, _, gate = form.held_batcher(
        0, max_batch_size=1, tenant=lambda request: request[0], max_pending_per_tenant=1
    )
    streams = await form.submit_behind(batcher, gate, "x")
    tenants = knobs.forget_tenants_once(batcher, "a")
    streams.append(form.submit(batcher, "a1"))
    assert tenants == ["a", "a"], "it was asked for once more"
    with pytest.raises(OverloadedError):
        form.submit(batcher, "a2")
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [["x"], ["a", "1"]]


@pytest.mark.rule(29)
@continuous_batchers
async def test_a_request_for_which_there_is_no_room_is_before_urgent_ones(form):
    """And before the requests of a tenant that has had less."""
    gate = form.gate()
    model = form.model(gates={0: gate})
    add, refused = model.add, []

    def add_unless_full(slot, request):
        if request == "big" and not refused:
            refused.append(request)
            streams.append(form.submit(batcher, "urgent"))
            streams.append(form.submit(batcher, "other"))
            raise NotNow
        add(slot, request)

    model.add = add_unless_full
    batcher = form.batcher(
        model, max_batch_size=3, priority=lambda request: int(request != "urgent"), tenant=str
    )
    streams = await form.submit_behind(batcher, gate, "abc", "big")
    gate.open()
    for number in range(2):
        await form.rest(streams[number])
    for stream in streams[2:]:
        await form.rest(stream)
    assert joined(model) == ["abc", "big", "urgent", "other"]


class Roomy:
    """What an engine of a form's model has room for, at the most."""

    def __init__(self, model, room):
        self.inside, self._room = set(), room
        self._add, self._remove = model.add, model.remove
        model.add, model.remove = self.add, self.remove

    def add(self, slot, request):
        if len(self.inside) == self._room:
            raise NotNow
        self._add(slot, request)
        self.inside.add(slot)

    def remove(self, slot):
        self.inside.discard(slot)
        self._remove(slot)


BOUNDS = {
    "slots": {"max_batch_size": 2},
    "room": {"max_batch_size": 8},
    "batch cost": {"max_batch_size": 8, "cost": lambda _: 1, "max_batch_cost": 2},
    "step cost": {"max_batch_size": 8, "step_cost": lambda _: 1, "max_step_cost": 2},
}
"""What an engine may be full by, when two requests are in it."""


@pytest.mark.rule(29)
@continuous_batchers
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("place", "before"),
    [({"priority": lambda it: int(it != "urgent")}, 1), ({"tenant": lambda it: it[0]}, 2)],
    ids=["band", "tenant"],
)
async def test_an_engine_that_is_full_takes_no_request_out_of_its_turn(form, bound, place, before):
    """But for the one that it has refused, which keeps its place."""
    gates = [form.gate(), form.gate()]
    model = form.model(gates=dict(enumerate(gates)))
    if bound == "room":
        Roomy(model, 2)
    batcher = form.batcher(model, **BOUNDS[bound], **place)
    flood = [f"a{number}" for number in range(7)]
    streams = await form.submit_behind(batcher, gates[0], "aaaaaaaa", *flood)
    gates[0].open()
    await gates[1].reached.wait()  # one of the flood has joined, and the engine is full
    streams.append(form.submit(batcher, "urgent"))
    gates[1].open()
    for stream in streams:
        await form.rest(stream)
    order = joined(model)
    assert order[:2] == ["aaaaaaaa", "a0"]
    assert order.index("urgent") <= 2 + before, order
    assert [request for request in order if request in flood] == flood


@pytest.mark.rule(29)
@continuous_batchers
async def test_a_request_that_comes_while_another_is_added_has_waited_for_no_less_than_nothing(
    form,
):
    told = form.recorder()
    batcher = form.batcher(model := form.model(), priority=lambda _: 0, metrics=told)
    add = model.add

    def add_and_submit(slot, request):
        add(slot, request)
        if request == "a":
            streams.append(form.submit(batcher, "b"))

    model.add = add_and_submit
    streams = [form.submit(batcher, "a")]
    assert await form.rest(streams[0]) == ["a"]
    assert await form.rest(streams[1]) == ["b"]
    statistics = batcher.statistics()
    assert statistics.waited >= statistics.longest_wait >= 0
    assert statistics.slot_time <= statistics.first_output_time + statistics.output_time


@pytest.mark.rule(29)
@continuous_batchers
async def test_requests_that_fail_as_they_are_added_do_not_hold_up_the_others(form):
    gate = form.gate()
    model = form.model(gates={0: gate})
    batcher = form.batcher(model, max_batch_size=4, priority=lambda _: 0)
    bad = [KeyError(number) for number in range(20)]
    stream, *failing = await form.submit_behind(batcher, gate, "aaaaaaaa", *bad)
    gate.open()
    assert await form.rest(stream) == ["a"] * 8
    runs = [(call, len(list(run))) for call, run in groupby(model.calls, itemgetter(0))]
    assert max(length for call, length in runs if call == "add") <= 3, "one for each free slot"
    for failed in failing:
        with pytest.raises(KeyError):
            await form.rest(failed)
