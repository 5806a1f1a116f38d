"""In the worker: handing out what the model's steps give to whom."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from batchstream import FinishReason, StreamEnd
from batchstream.integrations.litserve._worker.reply import fail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchstream import Delivery
    from batchstream.integrations.litserve._worker.context import Desk
    from batchstream.integrations.litserve._worker.reply import Reply
    from batchstream.integrations.litserve._worker.request import Member

_RETURNED: Final = StreamEnd(FinishReason.EOS, 0)
"""How a request ends whose own `encode_response` has returned."""

_DEEPEST: Final = 8
"""How many may look ahead, each while another does; each takes some of Python's stack."""


class Serving(ABC):
    """Requests in the slots of a model that makes steps.

    Args:
        desk: What the loop works with.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._members: dict[int, Member] = {}  # by slot: who is there
        self._slots: dict[str, int] = {}  # of those who are there, by uid
        self._unsettled: dict[Member, None] = {}  # whoever has not been told of an end
        # Of those who are unsettled: who has got something to encode, in that order, and how those
        # end who get nothing more.
        self._to_encode: dict[Member, None] = {}
        self._ends: list[tuple[Member, StreamEnd]] = []
        self._depth = 0  # of those who look ahead while another does

    @abstractmethod
    def _pull(self) -> Delivery[Any] | None:
        """Let the model make a step; None if there is nobody left to make one for."""

    @abstractmethod
    def _vacate(self, slot: int) -> None:
        """Take the slot's member out of the model, before its next step at the latest."""

    def _run(self) -> None:
        """Serve everybody to the end.

        Raises:
            BaseException: What `_pull` raises.
        """
        while self.advance():
            while self._to_encode or self._ends:
                self._hand_out()

    def advance(self) -> bool:
        """Let the model make a step, and hand out its outputs; tell whether there was one.

        All that has been said to clients is sent before: nobody waits for the step of others.
        """
        self._catch_up()
        delivery = self._pull()
        if delivery is None:
            return False
        members = self._members
        for slot, output in zip(delivery.slots, delivery.values, strict=True):
            member = members.get(slot)
            if member is None:
                pass  # one of the outputs before was its last
            elif member.encoding is None:
                self._send((output,), member)
            else:
                member.encoding.give(output)
                self._to_encode[member] = None
        for slot, end in delivery.ends:
            member = members.pop(slot, None)
            if member is not None:
                self._note_end(member, end)
        return True

    def _catch_up(self) -> None:
        """Say what there is to say to clients, and hear which of them have left."""
        self._desk.outbox.flush()
        for uid in self._desk.departures.news():
            if uid in self._slots:
                member = self._members[self._slots[uid]]
                member.reply.give_up()
                self._dismiss(member)

    def _seat(self, slot: int, member: Member) -> None:
        self._members[slot] = member
        self._unsettled[member] = None
        self._slots[str(member.reply.uid)] = slot

    def _note_end(self, member: Member, end: StreamEnd) -> None:
        self._slots.pop(str(member.reply.uid), None)
        self._ends.append((member, end))
        member.context.live = False
        if member.encoding is not None:
            member.encoding.end(failed=end.error is not None)

    def _dismiss(self, member: Member) -> None:
        """Serve a member no more, who has been told so, or cannot be."""
        slot = self._slots.pop(str(member.reply.uid), None)
        if slot is not None:
            self._members.pop(slot, None)
            self._vacate(slot)
        self._unsettled.pop(member, None)
        self._to_encode.pop(member, None)
        member.leave()

    def _hand_out(self, *, aside: bool = False) -> None:
        """Encode and send what was given, and let those end who have ended.

        Args:
            aside: Whether somebody looks ahead, so that no other should: it would hold up all who
                wait for it to come back.
        """
        for member in tuple(self._to_encode):
            encoding = member.encoding
            if member not in self._to_encode or encoding is None:
                continue  # somebody has looked ahead, and it had its turn then
            if encoding.running or (aside and not encoding.is_steady):
                continue
            del self._to_encode[member]
            self._send(encoding.elements(), member)
            if encoding.over and str(member.reply.uid) in self._slots:
                member.reply.finish(_RETURNED)
                self._dismiss(member)
        self._settle()

    def _look_ahead(self, member: Member) -> bool:
        """Get a member the output that its encoding waits for, if there is to be one.

        Others do not wait for that, if they can do without looking ahead themselves.
        """
        if self._depth < _DEEPEST:
            self._depth += 1
            try:
                self._hand_out(aside=True)
            finally:
                self._depth -= 1
        self._catch_up()
        encoding = member.encoding
        if encoding is None or not encoding.wants:
            return True  # its client has left, or one of the others has looked ahead after all
        return self.advance()

    def _send(self, elements: Iterable[Any], member: Member) -> None:
        """Send what a member gets; what cannot be encoded or sent fails its own request alone."""

        def put(member: Member) -> None:
            for element in elements:
                member.reply.put(element, self._desk.lit_api.format_encoded_response)

        if not self._desk.attempt(member, put):
            self._dismiss(member)

    def _break_off(self, replies: Iterable[Reply], error: BaseException) -> None:
        """Fail everybody who has not been told of an end, and others who were to join."""
        unsettled = [member.reply for member in self._unsettled]
        fail(dict.fromkeys([*unsettled, *replies]), error)
        for member in self._unsettled:
            member.leave()

    def _settle(self) -> None:
        """Let those end who have ended; an error of several is told, and logged, once."""
        ends: list[tuple[Member, StreamEnd]] = []
        later: list[tuple[Member, StreamEnd]] = []
        for pair in self._ends:
            (ends if self._has_all(pair[0]) else later).append(pair)
        self._ends = later
        errors: dict[int, tuple[BaseException, list[Member]]] = {}
        for member, end in ends:
            if end.error is not None:
                errors.setdefault(id(end.error), (end.error, []))[1].append(member)
        for error, members in errors.values():
            fail([member.reply for member in members], error)
        for member, end in ends:
            if member.encoding is not None and not member.reply.ended:
                self._send(member.encoding.elements(), member)
            member.reply.finish(end)
            self._unsettled.pop(member, None)
            member.leave()

    def _has_all(self, member: Member) -> bool:
        encoding = member.encoding
        return encoding is None or not (encoding.running or member in self._to_encode)
