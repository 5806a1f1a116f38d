"""Which waiting requests join a batch when: by tables, and against a naive model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchstream import OverloadedError
from batchstream._batching.scheduling.keys import KeyInterner
from batchstream._core.errors import CostError
from support import interrupts, knobs
from support.joining import CHANGES, JoiningRules, waiting_queue

SIZE = 3


@dataclass(eq=False)
class Ticket:
    """A request that waits; equal to no other."""

    name: str
    group: object = "one"
    cost: float = 1.0
    arrived: float = 0.0
    wait_until: float | None = None
    measured: object = None

    def __repr__(self):
        return self.name


def no_room():
    return 0


def queue_of(tickets=(), **options):
    """Return a queue in which these wait, given as pairs of name and group."""
    made = waiting_queue(**{"max_batch_size": SIZE, "max_pending": 99} | options)
    waiting = []
    for number, ticket in enumerate(tickets):
        if isinstance(ticket, str):
            ticket = Ticket(ticket, ticket[0], arrived=float(number))  # noqa: PLW2901
        waiting.append(ticket)
        made.append(ticket, no_room)
    return made, waiting


def expire(made, now):
    """Remove the requests that have waited too long, and return them."""
    expired = []
    while (request := made.first_expired(now)) is not None:
        assert made.remove(request)
        expired.append(request)
    return expired


def names(tickets):
    return [ticket.name for ticket in tickets]


# ---- broken off


@pytest.mark.rule(9)
@pytest.mark.parametrize("batch_timeout", [0.0, 10.0])
def test_a_queue_serves_the_others_although_the_adding_of_a_request_was_broken_off(batch_timeout):
    """The request stays until it is removed; meanwhile another thread may ask for a batch."""
    lines = 0
    while True:
        lines += 1
        made, _ = queue_of(batch_timeout=batch_timeout)
        struck = Ticket("struck", "s", arrived=0.0)
        where = interrupts.at_line(
            lines, partial(made.append, struck, no_room), files=knobs.files_of_submission()
        )
        if where is None:
            break
        made.ready_at()
        made.append(Ticket("other", "o", arrived=1.0), no_room)
        assert made.ready_at() is not None, where
        taken = [name for _ in range(2) for name in names(made.take(99.0, slots=SIZE))]
        assert "other" in taken, where
        made.remove(struck)
        assert len(made) == 0, where
    assert lines > 5


# ---- take


@pytest.mark.rule(29)
@pytest.mark.parametrize(
    ("waiting", "slots", "taken"),
    [
        ([], 3, []),
        (["a1"], 3, ["a1"]),
        (["a1", "a2", "a3", "a4"], 3, ["a1", "a2", "a3"]),
        (["a1", "a2"], 1, ["a1"]),
        (["a1", "a2"], 0, []),
        (["a1", "b1", "a2", "b2"], 3, ["a1", "a2"]),
        (["b1", "a1", "a2", "a3"], 3, ["b1"]),
    ],
)
def test_without_timeout_the_oldest_group_goes_at_once(waiting, slots, taken):
    made, _ = queue_of(waiting)
    assert names(made.take(9.0, slots=slots)) == taken
    assert len(made) == len(waiting) - len(taken)


@pytest.mark.rule(29)
@pytest.mark.parametrize(
    ("waiting", "now", "taken"),
    [
        (["a1"], 4.9, []),
        (["a1"], 5.0, ["a1"]),
        (["a1", "a2"], 4.9, []),
        (["a1", "a2"], 5.0, ["a1", "a2"]),
        (["a1", "a2", "a3"], 2.0, ["a1", "a2", "a3"]),  # it is full
        (["a1", "b1", "b2", "b3"], 3.0, ["b1", "b2", "b3"]),  # is full, a1 still waits
        (["a1", "b1", "b2", "b3"], 5.0, ["a1"]),  # of two that are ready the oldest
        (["a1", "b1"], 5.5, ["a1"]),
    ],
)
def test_a_group_is_ready_when_it_is_full_or_its_oldest_has_waited(waiting, now, taken):
    made, _ = queue_of(waiting, batch_timeout=5.0)
    assert names(made.take(now, slots=SIZE)) == taken


@pytest.mark.rule(29)
@pytest.mark.parametrize(
    ("costs", "slots", "spent", "taken"),
    [
        ([2, 2, 2], 3, 0, 2),
        ([2, 3], 3, 0, 2),  # exactly the limit
        ([5, 1], 3, 0, 1),
        ([3, 1], 3, 3, 0),  # no request jumps the queue
        ([1, 3, 1], 3, 2, 1),
        ([0, 0, 0, 0], 3, 5, 3),
        ([1, 1], 1, 0, 1),
    ],
)
def test_the_cost_of_a_batch_never_exceeds_its_limit(costs, slots, spent, taken):
    tickets = [Ticket(str(number), cost=cost) for number, cost in enumerate(costs)]
    made, _ = queue_of(tickets, max_batch_cost=5.0)
    assert len(made.take(0.0, slots=slots, spent=spent)) == taken


@pytest.mark.rule(29)
def test_a_group_whose_next_request_does_not_fit_is_full():
    tickets = [Ticket("a", cost=3.0), Ticket("b", cost=3.0)]
    made, _ = queue_of(tickets[:1], max_batch_cost=5.0, batch_timeout=9.0)
    assert made.take(0.0, slots=SIZE) == []
    made.append(tickets[1], no_room)
    assert made.ready_at() == 0.0
    assert names(made.take(0.0, slots=SIZE)) == ["a"]
    assert made.ready_at() == 9.0


@pytest.mark.rule(29)
def test_what_costs_more_than_a_batch_is_refused_and_does_not_wait():
    made, _ = queue_of(max_batch_cost=5.0)
    with pytest.raises(ValueError, match=r"costs 5.5, more than a batch may cost: 5.0"):
        made.append(Ticket("a", cost=5.5), no_room)
    assert len(made) == 0
    assert made.ready_at() is None


@pytest.mark.rule(29)
def test_more_than_may_wait_are_refused_and_counted_right():
    made, waiting = queue_of(["a1", "b1"], max_pending=2)
    with pytest.raises(OverloadedError) as raised:
        made.append(Ticket("c"), no_room)
    assert (raised.value.pending, raised.value.max_pending) == (2, 2)
    assert made.remove(waiting[0])
    made.append(Ticket("c"), no_room)
    assert len(made) == 2


@pytest.mark.rule(29)
def test_requests_that_are_put_back_are_in_front_of_all_others_in_their_order():
    made, waiting = queue_of(["a1", "b1", "a2", "a3"])
    taken = made.take(10.0, slots=3)
    assert names(taken) == ["a1", "a2", "a3"]
    for ticket in reversed(taken[1:]):
        made.put_back(ticket)
    assert names(made.requests()) == ["b1", "a2", "a3"]
    assert made.can_give(waiting[2])
    assert names(made.take(11.0, slots=3)) == ["a2", "a3"]
    assert names(made.take(11.0, slots=3)) == ["b1"]
    assert len(made) == 0


@pytest.mark.rule(29)
def test_a_request_that_is_put_back_makes_its_group_ready_as_early_as_before():
    made, [first] = queue_of([Ticket("first", arrived=2.0)], batch_timeout=10.0)
    assert made.take(12.0, slots=1) == [first]
    made.append(Ticket("second", arrived=12.0), no_room)
    assert made.ready_at() == 22.0
    made.put_back(first)
    assert made.ready_at() == 12.0
    assert names(made.take(12.0, slots=3)) == ["first", "second"]


@pytest.mark.rule(29)
def test_a_request_that_is_put_back_may_wait_as_long_as_before_and_counts():
    made, [first] = queue_of([Ticket("first", wait_until=5.0)], max_pending=1)
    assert made.take(1.0, slots=1) == [first]
    made.append(Ticket("second"), no_room)
    made.put_back(first)  # one more than may wait: it had its place
    assert len(made) == 2
    with pytest.raises(OverloadedError):
        made.append(Ticket("third"), no_room)
    assert made.ready_at() == 0.0
    assert expire(made, 4.0) == []
    assert expire(made, 5.0) == [first]
    assert names(made.take(6.0, slots=3)) == ["second"]


def test_groups_are_distinguished_by_identity():
    class Key:
        def __eq__(self, other):
            raise AssertionError("a group was compared")

        __hash__ = object.__hash__

    key, other = Key(), Key()
    tickets = [Ticket("a", key), Ticket("b", other), Ticket("c", key)]
    made, _ = queue_of(tickets)
    assert names(made.take(0.0, slots=SIZE)) == ["a", "c"]
    assert names(made.take(0.0, slots=SIZE)) == ["b"]


# ---- requests that leave


def test_a_request_is_withdrawn_once():
    made, (first, second) = queue_of(["a1", "a2"])
    assert made.remove(first)
    assert not made.remove(first)
    assert names(made.take(9.0, slots=SIZE)) == ["a2"]
    assert not made.remove(second)
    assert not made.remove(Ticket("stranger"))


def test_expired_requests_come_out_the_earliest_first():
    tickets = [Ticket(str(until), wait_until=until) for until in (3.0, 1.0, None, 2.0, 1.0)]
    made, _ = queue_of(tickets)
    assert expire(made, 0.9) == []
    assert expire(made, 2.0) == [tickets[1], tickets[4], tickets[3]]
    assert expire(made, 2.0) == []
    assert made.ready_at() == 0.0  # for the others
    assert expire(made, 99.0) == [tickets[0]]
    assert made.requests() == [tickets[2]]


def test_no_request_expires_that_has_joined_or_was_withdrawn():
    tickets = [Ticket(name, wait_until=1.0) for name in "abc"]
    made, _ = queue_of(tickets)
    made.remove(tickets[1])
    made.take(0.0, slots=1)
    assert expire(made, 5.0) == [tickets[2]]


def test_wake_at_is_the_earliest_of_all_reasons():
    made, _ = queue_of(batch_timeout=5.0)
    assert made.ready_at() is None
    made.append(Ticket("a", arrived=1.0), no_room)
    assert made.ready_at() == 6.0
    made.append(late := Ticket("b", "other", arrived=2.0, wait_until=4.0), no_room)
    assert made.ready_at() == 3.0  # half of the time that it may wait
    made.remove(late)
    assert made.ready_at() == 6.0
    made.append(Ticket("c", arrived=3.0, wait_until=9.5), no_room)
    assert made.ready_at() == 6.0


@pytest.mark.rule(29)
def test_a_batch_goes_at_half_of_the_time_that_its_request_may_wait():
    made, _ = queue_of(batch_timeout=5.0)
    made.append(Ticket("a", arrived=1.0), no_room)
    made.append(Ticket("b", arrived=2.0, wait_until=4.0), no_room)
    assert made.take(2.9, slots=SIZE) == []
    assert names(made.take(3.0, slots=SIZE)) == ["a", "b"]


@pytest.mark.rule(29)
def test_requests_for_which_there_is_room_do_not_count_as_waiting():
    made, _ = queue_of(["a1"], max_pending=1)
    with pytest.raises(OverloadedError):
        made.append(Ticket("b"), no_room)
    made.append(Ticket("b"), lambda: 1)
    with pytest.raises(OverloadedError, match=r"^1 requests are waiting") as raised:
        made.append(Ticket("c"), lambda: 1)
    assert (raised.value.pending, raised.value.max_pending) == (1, 1)


def test_all_requests_are_in_the_order_of_arrival():
    made, waiting = queue_of(["a1", "b1", "a2", "c1", "b2"])
    assert made.requests() == waiting
    assert len(made) == 5


def test_memory_entries_of_requests_that_have_left_are_tidied_up():
    made, _ = queue_of()
    for number in range(1000):
        made.append(ticket := Ticket(str(number), wait_until=1e9), no_room)
        assert made.remove(ticket) if number % 2 else made.take(0.0, slots=1) == [ticket]
    assert len(made.expiries) < 200
    assert not made._groups


@pytest.mark.parametrize("batch_timeout", [0.0, 1.0])
def test_memory_of_keys_that_come_once_is_level(batch_timeout):
    made, _ = queue_of(batch_timeout=batch_timeout)
    for number in range(1000):
        made.append(ticket := Ticket(str(number), group=number, arrived=number), no_room)
        assert made.remove(ticket) if number % 2 else made.take(number + 9.0, slots=1) == [ticket]
    assert len(made._readiness._due) + len(made._readiness._ready) < 200


@pytest.mark.parametrize("batch_timeout", [0.0, 1.0])
def test_a_request_whose_adding_was_interrupted_leaves_no_group_behind(batch_timeout):
    class Interrupted(Ticket):
        hashed = 0

        def __hash__(self):
            self.hashed += 1
            if self.hashed == 2:  # as it is added to its group
                raise KeyboardInterrupt
            return super().__hash__()

    made, _ = queue_of(batch_timeout=batch_timeout)
    request = Interrupted("a1", "a")
    with pytest.raises(KeyboardInterrupt):
        made.append(request, no_room)
    assert made.remove(request)
    assert not made.has_group("a")
    assert made.ready_at() is None
    assert made.take(5.0, slots=SIZE) == []


# ---- against a naive model


class QueueMachine(RuleBasedStateMachine):
    """Each request comes out exactly once, when and as the model says."""

    @initialize(
        timeout=st.sampled_from([0.0, 2.0]),
        max_cost=st.sampled_from([None, 5.0]),
        max_pending=st.integers(3, 8),
    )
    def begin(self, timeout, max_cost, max_pending):
        self.joining = JoiningRules(timeout, max_cost, SIZE)
        self.max_pending = max_pending
        self.queue = waiting_queue(
            max_batch_size=SIZE,
            batch_timeout=timeout,
            max_batch_cost=max_cost,
            max_pending=max_pending,
        )
        self.now = 100.0
        self.waiting = []  # in the order of arrival
        self.submitted = 0
        self.out = []

    def come_out(self, tickets):
        for ticket in tickets:
            self.waiting.remove(ticket)
            self.out.append(ticket)

    @rule(
        group=st.sampled_from("abc"),
        cost=st.sampled_from([0.0, 1.0, 2.0, 5.0]),
        patience=st.none() | st.sampled_from([0.0, 1.0, 3.0]),
    )
    def submit(self, group, cost, patience):
        self.now += 0.125  # exact, and no two requests come at the same time
        ticket = Ticket(str(self.submitted), group, cost, self.now)
        ticket.wait_until = None if patience is None else self.now + patience
        if self.joining.max_cost is not None and cost > self.joining.max_cost:
            with pytest.raises(CostError):
                self.queue.append(ticket, no_room)
            return
        if len(self.waiting) >= self.max_pending:
            with pytest.raises(OverloadedError) as raised:
                self.queue.append(ticket, no_room)
            assert raised.value.pending == len(self.waiting)
            return
        self.queue.append(ticket, no_room)
        self.submitted += 1
        self.waiting.append(ticket)

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.0]))
    def let_time_pass(self, seconds):
        self.now += seconds

    @rule(changes=st.fixed_dictionaries(CHANGES))
    def change_limits(self, changes):
        """Change some limits at any moment: no request comes out by that, and none is lost."""
        self.max_pending = changes["max_pending"] or self.max_pending
        limits = self.joining.changed(**changes | {"max_pending": self.max_pending})
        self.joining.go_by(limits)
        self.queue.change_limits(limits)

    @rule(slots=st.integers(0, SIZE + 1), spent=st.sampled_from([None, None, 0.0, 3.0]))
    def take(self, slots, spent):
        expected = self.joining.expected(self.waiting, self.now, slots, spent)
        taken = self.queue.take(self.now, slots=slots, spent=spent)
        assert taken == expected
        assert len(taken) <= slots
        assert len({ticket.group for ticket in taken}) <= 1
        if self.joining.max_cost is not None and taken:
            cost = (spent or 0.0) + sum(ticket.cost for ticket in taken)
            assert cost <= self.joining.max_cost or (spent is None and len(taken) == 1)
        self.come_out(taken)

    @rule()
    def expire(self):
        overdue = [
            ticket
            for ticket in self.waiting
            if ticket.wait_until is not None and ticket.wait_until <= self.now
        ]
        overdue.sort(key=lambda ticket: ticket.wait_until)
        assert expire(self.queue, self.now) == overdue
        self.come_out(overdue)

    @rule()
    def jump_to_ready_at(self):
        """No request comes out before that time, and one does then."""
        at = self.queue.ready_at()
        assert (at is None) == (not self.waiting)
        if at is None:
            return
        if at > self.now:
            before = (self.now + at) / 2
            assert expire(self.queue, before) == []
            assert self.queue.take(before, slots=SIZE) == []
            self.now = at
        expected = self.joining.expected(self.waiting, self.now, SIZE, None)
        overdue = [ticket for ticket in self.waiting if (ticket.wait_until or 1e9) <= self.now]
        assert expected or overdue
        self.expire()
        self.take(SIZE, None)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def withdraw(self, data):
        known = self.waiting + self.out
        ticket = data.draw(st.sampled_from(known))
        waits = ticket in self.waiting
        assert self.queue.remove(ticket) is waits
        if waits:
            self.come_out([ticket])

    @rule()
    def remove_all(self):
        assert self.queue.requests() == self.waiting
        for ticket in self.queue.requests():
            assert self.queue.remove(ticket)
        self.come_out(list(self.waiting))
        assert self.queue.ready_at() is None

    @invariant()
    def as_many_wait_as_have_not_come_out(self):
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.waiting)
            assert self.submitted == len(self.waiting) + len(self.out)

    def teardown(self):
        if hasattr(self, "queue"):
            self.remove_all()
            assert len({id(ticket) for ticket in self.out}) == len(self.out) == self.submitted


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=40)


# ---- keys


def test_equal_keys_are_one_object_while_requests_wait_and_are_freed_later():
    keys = KeyInterner()
    waiting, generations = keys.intern(("a", 1))
    assert keys.intern(("a", 1))[0] is waiting
    for number in range(knobs.MANY_KEYS + 1):
        keys.intern(number)
    keys.tidy(lambda group: group is waiting)
    assert not keys.is_current(generations), "a key that was interned before is interned again"
    for number in range(knobs.MANY_KEYS + 1):
        keys.intern(number)
    assert keys.tidy(lambda group: group is waiting) is None, "the elder generation is needed"
    assert keys.intern(("a", 1))[0] is waiting
    for number in range(knobs.MANY_KEYS):
        keys.intern(number)
    dropped = keys.tidy(lambda _: False)
    assert any(("a", 1) in generation for generation in dropped)
    assert keys.intern(("a", 1))[0] is waiting, "it was asked for since, and went on"


def test_keys_are_freed_although_requests_with_one_of_them_always_wait():
    keys = KeyInterner()
    patient, _ = keys.intern("patient")
    noisy, _ = keys.intern("noisy")
    for number in range(100 * knobs.MANY_KEYS):
        keys.intern(number)
        assert keys.intern("noisy")[0] is noisy
        keys.tidy(lambda group: group in {patient, noisy})
    assert sum(map(len, keys._generations)) < 5 * knobs.MANY_KEYS
    assert keys.intern("patient")[0] is patient


def test_a_key_that_cannot_be_hashed_is_named():
    with pytest.raises(TypeError, match=r"key returns \['a'\], which cannot be hashed"):
        KeyInterner().intern(["a"])
