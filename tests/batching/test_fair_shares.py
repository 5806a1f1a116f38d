"""Bands, fair shares and the bounds by cost and by tenant, in the queue: no clock, no thread."""

from __future__ import annotations

import random
from functools import partial

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchstream import OverloadedError
from batchstream._batching.waiting.places import ALONE
from batchstream._core.errors import CostError
from support import interrupts, knobs
from support.fairness import FairRules, Ticket
from support.joining import CHANGES, JoiningRules, waiting_queue

SIZE = 3


def no_room():
    return 0


def queue_of(tickets=(), **options):
    """Return a queue in which these wait; each comes a second after the other."""
    options = {"max_batch_size": SIZE, "max_pending": 10**9, "has_places": True} | options
    made = waiting_queue(**options)
    for number, ticket in enumerate(tickets):
        ticket.arrived = float(number)
        made.append(ticket, no_room)
    return made


def names(tickets):
    return [ticket.name for ticket in tickets]


def drained(made, now=1e9, slots=1):
    """Take everything, and return the names in order."""
    order = []
    while taken := made.take(now, slots=slots):
        order += names(taken)
    return order


def assert_nothing_is_kept(made):
    order = made._order
    assert len(made) == 0
    assert (order._bands, order._lines, order._by_account, made._groups) == ({}, {}, {}, {})


# ---- bands and shares, one by one


@pytest.mark.rule(29)
@pytest.mark.parametrize("slots", [1, 2, 9])
def test_a_lower_number_goes_first_and_a_band_in_the_order_of_arrival(slots):
    bands = [("a", 1), ("b", 0), ("c", -5), ("d", 1), ("e", 0), ("f", 10**30)]
    made = queue_of([Ticket(name, priority=priority) for name, priority in bands])
    assert drained(made, slots=slots) == list("cbeadf")
    assert_nothing_is_kept(made)


@pytest.mark.rule(29)
def test_tenants_take_turns_whatever_each_has_waiting():
    made = queue_of([Ticket(f"a{number}", "a") for number in range(6)])
    made.append(Ticket("b0", "b", arrived=6.0), no_room)
    made.append(Ticket("b1", "b", arrived=7.0), no_room)
    assert drained(made) == ["a0", "b0", "a1", "b1", "a2", "a3", "a4", "a5"]


@pytest.mark.rule(29)
def test_a_tenant_with_a_greater_share_gets_as_much_more():
    tickets = [Ticket("a", "a", share=3.0) for _ in range(9)] + [Ticket("b", "b") for _ in range(9)]
    order = drained(queue_of(tickets))
    assert order[:8].count("a") == 6
    assert order[:12].count("a") == 9


@pytest.mark.rule(29)
def test_tenants_share_by_cost_and_not_by_number():
    tickets = [Ticket("a", "a", cost=4.0) for _ in range(3)]
    tickets += [Ticket("b", "b", cost=1.0) for _ in range(12)]
    order = drained(queue_of(tickets, max_batch_cost=9.0))
    assert "".join(order) == "bbbabbbbabbbbab"


@pytest.mark.rule(29)
def test_what_is_cancelled_costs_its_tenant_nothing():
    tickets = [Ticket("a", "a", cost=1.0 if number else 9.0) for number in range(4)]
    tickets += [Ticket("b", "b") for _ in range(3)]
    made = queue_of(tickets)
    assert made.remove(tickets[0])
    assert drained(made) == list("ababab")


@pytest.mark.rule(29)
def test_an_idle_tenant_saves_nothing_up():
    made = queue_of([Ticket("a", "a") for _ in range(100)])
    for _ in range(50):
        made.take(1e9, slots=1)
    for number in range(50):
        made.append(Ticket("b", "b", arrived=100.0 + number), no_room)
    assert drained(made)[:20].count("b") == 10


@pytest.mark.rule(29)
def test_a_tenant_that_comes_again_has_paid_for_what_it_had():
    """It has one request at a time, so that none waits after each."""
    made = queue_of([Ticket("a", "a") for _ in range(200)])
    taken, number = [], 0
    while len(taken) < 80:
        if "b" not in names(made.requests()):
            number += 1
            made.append(Ticket("b", "b", cost=9.0, arrived=200.0 + number), no_room)
        taken += names(made.take(1e9, slots=1))
    cost_of_b = 9 * taken.count("b")
    assert abs(cost_of_b - taken.count("a")) <= 9


@pytest.mark.rule(29)
def test_no_request_overtakes_one_that_does_not_fit():
    made = queue_of([Ticket("a", "a", cost=4.0), Ticket("b", "b", cost=4.5)], max_batch_cost=5.0)
    assert names(made.take(9.0, slots=3, spent=4.5)) == []
    assert names(made.take(9.0, slots=3)) == ["a"]


@pytest.mark.rule(29)
def test_what_was_put_back_goes_before_every_band_and_is_not_charged_again():
    tickets = [Ticket("a0", "a"), Ticket("a1", "a"), Ticket("b0", "b"), Ticket("b1", "b")]
    made = queue_of(tickets)
    taken = made.take(9.0, slots=2)
    assert names(taken) == ["a0", "b0"]
    for ticket in reversed(taken):
        made.put_back(ticket)
    made.append(Ticket("urgent", "c", priority=-1, arrived=9.0), no_room)
    assert drained(made) == ["a0", "b0", "urgent", "a1", "b1"]
    assert_nothing_is_kept(made)


@pytest.mark.rule(29)
def test_a_tenant_is_charged_once_for_a_request_that_was_put_back():
    made = queue_of([Ticket("a0", "a"), Ticket("a1", "a"), Ticket("b0", "b"), Ticket("b1", "b")])
    [taken] = made.take(9.0, slots=1)
    made.put_back(taken)
    assert drained(made) == ["a0", "b0", "a1", "b1"]


@pytest.mark.rule(29)
def test_of_several_groups_the_one_goes_first_whose_next_request_does():
    tickets = [Ticket("x1", "a", group="x"), Ticket("x2", "a", group="x")]
    tickets += [Ticket("y1", "a", group="y", priority=-1), Ticket("z1", "b", group="z")]
    made = queue_of(tickets)
    assert [names(made.take(9.0, slots=3)) for _ in range(3)] == [["y1"], ["x1", "x2"], ["z1"]]


@pytest.mark.rule(29)
def test_without_tenants_the_oldest_request_of_a_band_goes_first_whatever_it_costs():
    costs = {"a": 5.0, "b": 1.0, "c": 3.0}
    tickets = [Ticket(name, cost=cost, share=ALONE, group=name) for name, cost in costs.items()]
    assert drained(queue_of(tickets, max_batch_cost=9.0)) == ["a", "b", "c"]


@pytest.mark.rule(29)
def test_requests_that_cost_nothing_hold_no_other_up_for_ever():
    made = queue_of([Ticket("b", "b", cost=0.5), Ticket("b", "b", cost=2.0)], max_batch_cost=9.0)
    for number in range(20):
        made.append(Ticket("free", "a", cost=0.0, arrived=2.0 + number), no_room)
    assert drained(made)[:7] == ["b", *["free"] * 4, "b", "free"]


@pytest.mark.rule(29)
def test_tenants_that_come_once_each_hold_no_other_up():
    made = queue_of([Ticket("a", "a") for _ in range(3)])
    taken = []
    for number in range(30):
        while len(made) < 10:
            made.append(Ticket("new", f"new {number} {len(made)}", arrived=3.0 + number), no_room)
        taken += names(made.take(1e9, slots=1))
    assert taken.count("a") == 3


def test_memory_of_tenants_that_have_nothing_waiting_is_freed():
    made = queue_of([Ticket("a", "a") for _ in range(50)])
    for number in range(1000):
        ticket = Ticket("new", number, priority=number % 7, arrived=50.0 + number)
        made.append(ticket, no_room)
        assert made.remove(ticket) if number % 2 else ticket in made.take(1e9, slots=60)
        for again in range(60 - len(made)):
            made.append(Ticket("a", "a", priority=8, arrived=51.0 + number + again / 99), no_room)
    order = made._order
    assert len(order._by_account) == len(order._bands) == 1
    assert sum(len(line.hints) for line in order._lines.values()) < 200
    assert len(made._readiness._due) + len(made._readiness._ready) < 400


# ---- bounds


@pytest.mark.rule(29)
def test_a_tenant_may_have_only_so_many_requests_waiting():
    made = queue_of([Ticket("a", "a"), Ticket("a", "a")], max_pending_per_tenant=2)
    with pytest.raises(OverloadedError, match=r"max_pending_per_tenant") as raised:
        made.append(Ticket("a", "a", priority=5), no_room)
    assert (raised.value.pending, raised.value.max_pending) == (2, 2)
    assert raised.value.reason == "tenant"
    made.append(Ticket("b", "b", arrived=2.0), no_room)
    made.append(Ticket("a", "a", arrived=2.0), lambda: 2), "one of three waits for room"
    [taken] = made.take(9.0, slots=1)
    with pytest.raises(OverloadedError):
        made.append(Ticket("a", "a"), no_room)
    made.put_back(taken)
    assert len(made) == 4


@pytest.mark.rule(29)
def test_what_waits_costs_no_more_than_it_may():
    options = {"max_batch_cost": 4.0, "max_pending_cost": 5.0, "has_places": False}
    tickets = [Ticket("a", cost=2.0), Ticket("b", cost=2.5)]
    made = queue_of(tickets, **options)
    with pytest.raises(OverloadedError, match=r"cost 4.5 are waiting.* of 1.0, .* 5.0 ") as raised:
        made.append(Ticket("c", cost=1.0), no_room)
    error = raised.value
    assert (error.reason, error.pending, error.pending_cost) == ("pending_cost", 2, 4.5)
    made.append(Ticket("c", cost=1.0, arrived=2.0), lambda: 1), "the first joins at once"
    assert made.remove(tickets[1])
    made.append(Ticket("d", cost=2.0, arrived=3.0), no_room)
    with pytest.raises(OverloadedError):
        made.append(Ticket("e", cost=0.5), no_room)
    assert drained(made) == ["a", "c", "d"]
    made.append(Ticket("f", cost=4.0), no_room)


@pytest.mark.rule(29)
def test_what_waits_is_counted_right_although_its_adding_was_broken_off():
    lines = 0
    while True:
        lines += 1
        options = {"max_pending_cost": 5.0, "max_pending_per_tenant": 2}
        made = queue_of([Ticket("first", "b")], max_batch_cost=4.0, **options)
        struck = Ticket("struck", "a", cost=3.0)
        files = knobs.files_of_submission()
        where = interrupts.at_line(lines, partial(made.append, struck, no_room), files=files)
        made.remove(struck)
        made.append(Ticket("a", "a", cost=4.0), no_room)
        with pytest.raises(OverloadedError):
            made.append(Ticket("b", "b", cost=0.5), no_room)
        if where is None:
            break
    assert lines > 20


# ---- broken off


def calls_to_break_off():
    """Return changes of a queue, each with the requests that it is about."""

    def append(made, tickets):
        ticket = Ticket("new", "b", arrived=50.0)
        return partial(made.append, ticket, no_room), [ticket]

    def append_to_new_group(made, tickets):
        ticket = Ticket("new", "c", priority=3, group="new", arrived=50.0)
        return partial(made.append, ticket, no_room), [ticket]

    def remove(made, tickets):
        return partial(made.remove, tickets[0]), tickets[:1]

    def remove_last(made, tickets):
        return partial(made.remove, tickets[-1]), tickets[-1:]

    def take(made, tickets):
        return partial(made.take, 99.0, slots=2), tickets

    def put_back(made, tickets):
        [ticket] = made.take(99.0, slots=1)
        return partial(made.put_back, ticket), [ticket]

    return [append, append_to_new_group, remove, remove_last, take, put_back]


@pytest.mark.rule(9)
@pytest.mark.parametrize("batch_timeout", [0.0, 10.0])
@pytest.mark.parametrize("change", calls_to_break_off(), ids=lambda change: change.__name__)
def test_no_request_is_lost_where_a_change_is_broken_off(change, batch_timeout):
    """What it was about is removed, as its worker or its caller does; all others come out once."""
    line, where = 0, ""
    while where is not None:
        line += 1
        tickets = [Ticket(f"a{number}", "a", cost=3.0 - number) for number in range(3)]
        tickets += [Ticket("b0", "b", priority=1), Ticket("c0", "c", group="other")]
        made = queue_of(tickets, batch_timeout=batch_timeout, max_batch_cost=9.0)
        call, about = change(made, tickets)
        where = interrupts.at_line(line, call, files=knobs.files_of_submission())
        lost = [ticket for ticket in about if not made.can_give(ticket)]
        if change.__name__ in {"append", "append_to_new_group", "put_back", "remove"}:
            lost = about  # cancelled by its caller
        other = Ticket("late", "a", arrived=60.0)
        made.append(other, no_room)
        first = made.take(999.0, slots=2)  # by another worker, before what was lost is removed
        assert first, where
        for ticket in lost:
            made.remove(ticket)
        rest = [*first, *drained_tickets(made)]
        kept = [ticket for ticket in [*tickets, other] if ticket not in lost]
        assert sorted(names(set(rest) - set(lost))) == sorted(names(kept)), where
        assert len(rest) == len(set(rest)), where
        assert_nothing_is_kept(made)
    assert line > 10


def drained_tickets(made):
    taken = []
    while more := made.take(9999.0, slots=2):
        taken += more
    return taken


# ---- properties

COSTS = st.one_of(st.sampled_from([1.0, 1.0, 7.0]), st.floats(0.01, 10.0))


@pytest.mark.rule(29)
@given(
    shares=st.lists(st.floats(0.25, 8.0), min_size=2, max_size=5),
    costs=st.lists(COSTS, min_size=3, max_size=30),
    slots=st.integers(1, 9),
)
@settings(max_examples=12)
def test_tenants_under_saturation_never_differ_by_more_than_a_request_of_each(shares, costs, slots):
    """Which is the fairness of the algorithm; and what is left of it in the long run."""
    made = queue_of(max_batch_size=9, max_batch_cost=1000.0)
    taken = dict.fromkeys(range(len(shares)), 0.0)
    dearest = max(costs)
    number = 0
    for _ in range(150):
        for tenant, share in enumerate(shares):
            while made._order.waiting_of(tenant) < slots + 1:
                cost = costs[(number * 7 + tenant) % len(costs)]
                made.append(Ticket("t", tenant, cost, share, arrived=float(number)), no_room)
                number += 1
        for ticket in made.take(1e9, slots=slots):
            taken[ticket.tenant] += ticket.cost
        served = [taken[tenant] / share for tenant, share in enumerate(shares)]
        for one, share in zip(served, shares, strict=True):
            for other, other_share in zip(served, shares, strict=True):
                assert abs(one - other) <= dearest / share + dearest / other_share + 1e-6


@pytest.mark.rule(29)
@pytest.mark.parametrize("seed", range(2))
def test_in_the_long_run_each_tenant_gets_its_share_within_five_percent(seed):
    shares = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 0.5}
    costs = {
        "a": lambda chance: chance.expovariate(0.1),
        "b": lambda chance: 1.0,
        "c": lambda chance: chance.choice([0.1, 99.0]),
        "d": lambda chance: chance.uniform(0.0, 50.0),
    }
    chance = random.Random(seed)  # noqa: S311 - no secret
    made = queue_of(max_batch_size=8, max_batch_cost=1e9)
    taken = dict.fromkeys(shares, 0.0)
    for number in range(knobs.SATURATED_TAKES):
        for tenant, share in shares.items():
            while made._order.waiting_of(tenant) < 5:
                cost = costs[tenant](chance)
                made.append(Ticket("t", tenant, cost, share, arrived=float(number)), no_room)
        for ticket in made.take(1e9, slots=chance.randint(1, 5)):
            taken[ticket.tenant] += ticket.cost
    total, weights = sum(taken.values()), sum(shares.values())
    for tenant, share in shares.items():
        assert taken[tenant] / total == pytest.approx(share / weights, rel=0.05)


ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "new", "new"]),
        st.sampled_from([0.5, 1.0, 1.0, 3.0, 8.0]),
        st.sampled_from(["take", "take", "take two", "wait", "cancel"]),
    ),
    min_size=20,
    max_size=150,
)


@pytest.mark.rule(29)
@given(arrivals=ARRIVALS)
@settings(max_examples=40)
def test_no_request_waits_for_more_than_the_bound(arrivals):
    """That is `W * C / w + L`; see the theory of operation of the order."""
    shares = {"a": 1.0, "b": 4.0, "c": 0.5}
    made = queue_of(max_batch_size=9, max_batch_cost=1000.0)
    dearest, waits = {}, {}

    def take(slots):
        for ticket in made.take(1e9, slots=slots):
            bound = waits.pop(ticket)
            assert bound.cost_before <= bound.allowed() + 1e-9
            for other in waits.values():
                other.note_taken(ticket, made)

    for number, (tenant, cost, then) in enumerate(arrivals):
        tenant = f"new {number}" if tenant == "new" else tenant  # noqa: PLW2901
        ticket = Ticket(str(number), tenant, cost, shares.get(tenant, 2.0), arrived=float(number))
        waiting = made.requests()
        made.append(ticket, no_room)
        dearest[tenant] = max(cost, dearest.get(tenant, 0.0))
        waits[ticket] = _Bound(ticket, waiting, dearest)
        for bound in waits.values():
            bound.note_waiting(made)
        if then == "cancel":
            cancelled = made.requests()[number % len(made)]
            made.remove(cancelled)
            del waits[cancelled]
        elif then != "wait":
            take(2 if then == "take two" else 1)
    while made:
        take(1)
    assert not waits


class _Bound:
    """What may go before one request, and what has gone."""

    def __init__(self, ticket, waiting, dearest):
        self.ticket = ticket
        own = [other.cost for other in waiting if other.tenant == ticket.tenant]
        self.backlog = ticket.cost + sum(own)
        others = {other.tenant for other in waiting} - {ticket.tenant}
        self.dearest = sum(dearest[tenant] for tenant in others)
        self.shares = 0.0
        self.cost_before = 0.0

    def note_waiting(self, made):
        shares = {other.tenant: other.share for other in made.requests()}
        shares.pop(self.ticket.tenant, None)
        self.shares = max(self.shares, sum(shares.values()))

    def note_taken(self, ticket, made):
        if ticket.tenant != self.ticket.tenant:
            self.cost_before += ticket.cost

    def allowed(self):
        return self.shares * self.backlog / self.ticket.share + self.dearest


# ---- against a naive model


class FairQueueMachine(RuleBasedStateMachine):
    """Each request comes out exactly once, when and as the model says."""

    @initialize(
        timeout=st.sampled_from([0.0, 2.0]),
        max_cost=st.sampled_from([None, 5.0]),
        max_pending=st.integers(6, 12),
        bounds=st.booleans(),
    )
    def begin(self, timeout, max_cost, max_pending, bounds):
        joining = JoiningRules(timeout, max_cost, SIZE)
        self.rules = FairRules(joining)
        self.max_pending = max_pending
        self.max_cost = 9.0 if bounds and max_cost else None
        self.max_per_tenant = 3 if bounds else None
        self.queue = queue_of(
            batch_timeout=timeout,
            max_batch_cost=max_cost,
            max_pending=max_pending,
            max_pending_cost=self.max_cost,
            max_pending_per_tenant=self.max_per_tenant,
        )
        self.now = 100.0
        self.waiting = []  # first what was put back, then the others as they arrived
        self.submitted = 0
        self.out = []
        self.taken = []  # at last, and not put back

    def come_out(self, tickets):
        for ticket in tickets:
            self.waiting.remove(ticket)
            self.out.append(ticket)

    @rule(
        group=st.sampled_from("aaab"),
        tenant=st.sampled_from("xyz"),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        cost=st.sampled_from([0.0, 1.0, 0.5, 2.0, 5.0]),
        share=st.sampled_from([1.0, 1.0, 2.0, 0.5]),
        patience=st.none() | st.sampled_from([0.0, 1.0, 3.0]),
    )
    def submit(self, *, group, tenant, priority, cost, share, patience):
        self.now += 0.125  # exact, and no two requests come at the same time
        ticket = Ticket(str(self.submitted), tenant, cost, share, priority, group, self.now)
        ticket.wait_until = None if patience is None else self.now + patience
        of_tenant = sum(other.tenant == tenant for other in self.waiting)
        total = sum(other.cost for other in self.waiting)
        reason = None
        if self.rules.joining.max_cost is not None and cost > self.rules.joining.max_cost:
            with pytest.raises(CostError):
                self.queue.append(ticket, no_room)
            return
        if len(self.waiting) >= self.max_pending:
            reason = "pending"
        elif self.max_cost is not None and total + cost > self.max_cost:
            reason = "pending_cost"
        elif self.max_per_tenant is not None and of_tenant >= self.max_per_tenant:
            reason = "tenant"
        if reason is not None:
            with pytest.raises(OverloadedError) as raised:
                self.queue.append(ticket, no_room)
            assert raised.value.reason == reason
            return
        self.queue.append(ticket, no_room)
        self.rules.arrive(self.waiting, ticket)
        self.submitted += 1
        self.waiting.append(ticket)

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.0]))
    def let_time_pass(self, seconds):
        self.now += seconds

    @rule(
        changes=st.fixed_dictionaries(CHANGES),
        max_cost=st.none() | st.sampled_from([3.0, 6.0, 9.0]),
        max_per_tenant=st.none() | st.integers(1, 4),
    )
    def change_limits(self, changes, max_cost, max_per_tenant):
        """Change some limits at any moment, also to what had no bound before."""
        self.max_pending = changes["max_pending"] or self.max_pending
        self.max_cost = max_cost or self.max_cost
        self.max_per_tenant = max_per_tenant or self.max_per_tenant
        limits = self.rules.joining.changed(**changes | {"max_pending": self.max_pending})
        self.rules.joining.go_by(limits)
        limits = limits._replace(
            max_pending_cost=self.max_cost, max_pending_per_tenant=self.max_per_tenant
        )
        self.queue.change_limits(limits)

    @rule(slots=st.integers(0, SIZE), spent=st.sampled_from([None, None, 0.0, 3.0]))
    def take(self, slots, spent):
        expected = self.rules.expected(self.waiting, self.now, slots, spent)
        taken = self.queue.take(self.now, slots=slots, spent=spent)
        assert taken == expected
        assert len(taken) <= slots
        if self.rules.joining.max_cost is not None and taken:
            cost = (spent or 0.0) + sum(ticket.cost for ticket in taken)
            assert cost <= self.rules.joining.max_cost or (spent is None and len(taken) == 1)
        for ticket in taken:
            self.check_order(ticket)
            self.rules.take(ticket)
            self.come_out([ticket])
        self.taken = taken

    def check_order(self, ticket):
        """Check a ticket against the tickets left waiting, without the model's figures."""
        others = [it for it in self.waiting if it.group == ticket.group and it is not ticket]
        if ticket in self.rules.put_back:
            return
        assert self.rules.put_back.isdisjoint(others)
        assert all(ticket.priority <= other.priority for other in others)
        own = [other for other in others if other.account == ticket.account]
        assert all(ticket.arrived < other.arrived for other in own)

    @precondition(lambda self: self.taken)
    @rule(keep=st.integers(0, SIZE))
    def put_back(self, keep):
        for ticket in reversed(self.taken[keep:]):
            self.queue.put_back(ticket)
            self.out.remove(ticket)
            self.waiting.insert(0, ticket)
            self.rules.put_back.add(ticket)
        self.taken = []

    @rule()
    def expire(self):
        overdue = [it for it in self.waiting if it.wait_until is not None]
        overdue = [it for it in overdue if it.wait_until <= self.now]
        while (ticket := self.queue.first_expired(self.now)) is not None:
            assert ticket.wait_until == min(other.wait_until for other in overdue)
            assert self.queue.remove(ticket)
            overdue.remove(ticket)
            self.leave(ticket)
        assert not overdue

    @rule()
    def jump_to_ready_at(self):
        """No request comes out before that time, and one does then."""
        at = self.queue.ready_at()
        assert (at is None) == (not self.waiting)
        if at is None:
            return
        if at > self.now:
            assert self.queue.take((self.now + at) / 2, slots=SIZE) == []
            self.now = at
        expected = self.rules.expected(self.waiting, self.now, SIZE, None)
        overdue = [ticket for ticket in self.waiting if (ticket.wait_until or 1e9) <= self.now]
        assert expected or overdue
        self.expire()
        self.take(SIZE, None)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def withdraw(self, data):
        ticket = data.draw(st.sampled_from(self.waiting + self.out))
        waits = ticket in self.waiting
        assert self.queue.remove(ticket) is waits
        if waits:
            self.leave(ticket)

    def leave(self, ticket):
        self.come_out([ticket])
        self.rules.put_back.discard(ticket)

    @rule()
    def remove_all(self):
        assert self.queue.requests() == sorted(self.waiting, key=lambda ticket: ticket.arrived)
        for ticket in self.queue.requests():
            assert self.queue.remove(ticket)
            self.leave(ticket)
        assert self.queue.ready_at() is None
        assert_nothing_is_kept(self.queue)

    @invariant()
    def as_many_wait_as_have_not_come_out(self):
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.waiting)
            assert self.submitted == len(self.waiting) + len(self.out)
            assert all(self.queue.can_give(ticket) for ticket in self.waiting)
            for tenant in "xyz":
                of_tenant = sum(ticket.tenant == tenant for ticket in self.waiting)
                assert self.queue.has_tenant(tenant) is (of_tenant > 0)

    def teardown(self):
        if hasattr(self, "queue"):
            self.remove_all()
            assert len({id(ticket) for ticket in self.out}) == len(self.out) == self.submitted


TestFairQueue = FairQueueMachine.TestCase
TestFairQueue.settings = settings(max_examples=60, stateful_step_count=40)
