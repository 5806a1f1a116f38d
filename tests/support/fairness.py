"""Which waiting request is next, by bands and shares: what models of the queue expect of it.

Everything is worked out anew from a plain list of requests. Beside it there are two figures for
each tenant and band, up to where it was served, and how far the band is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchstream._batching.waiting.places import Place
from support.joining import JoiningRules

PUT_BACK = -math.inf


@dataclass(eq=False)
class Ticket:
    """A request that waits; equal to no other."""

    name: str
    tenant: object = None
    cost: float = 1.0
    share: float = 1.0
    priority: int = 0
    group: object = "one"
    arrived: float = 0.0
    wait_until: float | None = None
    measured: object = None
    step_cost: float = 0.0

    def __post_init__(self):
        self.place = Place(self.priority, self.tenant, self.share)
        self.place.account = self.tenant

    @property
    def account(self):
        return self.priority, self.tenant

    def __repr__(self):
        return self.name


class FairRules:
    """What bands and shares say of the requests that wait.

    Args:
        joining: What the other options say.
    """

    def __init__(self, joining: JoiningRules):
        self.joining = joining
        self.least_cost = None
        self.charges = {}
        self.served = {}
        self.clocks = {}
        self.put_back = set()

    def in_turn(self, waiting):
        return [ticket for ticket in waiting if ticket not in self.put_back]

    def arrive(self, waiting, ticket):
        """Take note of one that comes when these wait."""
        if ticket.cost:
            self.least_cost = min(ticket.cost, self.least_cost or ticket.cost)
        self.charges[ticket] = (ticket.cost or self.least_cost or 1.0) / ticket.share
        others = [other for other in self.in_turn(waiting) if other.priority == ticket.priority]
        if not others:
            self.clocks[ticket.priority] = 0.0
        if ticket.account not in {other.account for other in others}:
            self.served[ticket.account] = self.clocks[ticket.priority]

    def tag(self, ticket, served):
        return served[ticket.account] + self.charges[ticket]

    def rank(self, ticket, served):
        if ticket in self.put_back:
            return PUT_BACK, PUT_BACK, ticket.arrived
        return ticket.priority, self.tag(ticket, served), ticket.arrived

    def ordered(self, group):
        """Return the requests of a group in the order in which they are taken."""
        served, left = dict(self.served), list(group)
        ordered = [ticket for ticket in left if ticket in self.put_back]  # in front of the group
        left = self.in_turn(left)
        while left:
            heads = {ticket.account: ticket for ticket in reversed(left)}.values()
            head = min(heads, key=lambda ticket: self.rank(ticket, served))
            served[head.account] = self.tag(head, served)
            left.remove(head)
            ordered.append(head)
        return ordered

    def expected(self, waiting, now, slots, spent):
        """Return the requests that join a batch now."""
        groups = {}
        for ticket in waiting:
            groups.setdefault(ticket.group, []).append(ticket)
        ready = [group for group in groups.values() if self.joining.ready_at(group) <= now]
        if not (slots and ready):
            return []
        ordered = [self.ordered(group) for group in ready]
        first = min(ordered, key=lambda group: self.rank(group[0], self.served))
        return self.joining.fitting(first, slots, spent)

    def take(self, ticket):
        """Charge one that is taken."""
        if ticket in self.put_back:
            self.put_back.discard(ticket)
            return
        self.served[ticket.account] = self.tag(ticket, self.served)
        clock = self.clocks[ticket.priority]
        self.clocks[ticket.priority] = max(clock, self.served[ticket.account])
