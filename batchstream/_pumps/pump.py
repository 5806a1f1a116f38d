"""What every pump does: read what a step gives to whom, and hand it out into the buffers.

A pump is the one place where source, core and buffers of a batch come together. Its subclasses say
who moves it: a consumer that finds nothing (`_pull`), a thread (`_thread`) or a task (`_task`).
Whoever it is calls the methods under "whoever moves the pump", one at a time.

Theory of operation
-------------------

No lock guards any state: `cancel`, `live` and `statistics` never wait. A cancel sets the stream's
end at once and is *noted* in a deque; whoever moves the pump applies it to the core before the
next step. Of two ends for one stream the first wins, for everybody: see `Buffer.ends`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Generic

from typing_extensions import TypeVar

from batchstream._core.errors import ClosedError, begin_in_source, forget_context
from batchstream._core.records import Delivery, FinishReason, StreamEnd
from batchstream._handoff.buffer import SEGMENT_LENGTH, Buffer, View
from batchstream._pumps.process import forkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.records import Statistics

T = TypeVar("T")

_append: Final = list.append

_REFUSED: Final[dict[View, str]] = {
    "by slot": "a batch is read by slot or by time: steps() has begun, streams cannot be read",
    "by time": "a batch is read by slot or by time: a stream has been read, steps() cannot begin",
}


class Pump(ABC, Generic[T]):
    """The core and the buffers of one batch, and how they are moved.

    Args:
        core: Tells what a step gives to whom.
        max_buffered: How many outputs a live stream may hold.
        buffers: One for each slot, where they were made before.

    Attributes:
        buffers: One for each slot: that of its present occupant, or of the last it had.
        moves: How many times something was added to the buffers.
        forked: Whether this is a copy in a forked child, of no use there.
    """

    def __init__(
        self,
        core: Demultiplexer[T],
        *,
        max_buffered: int | None,
        buffers: Iterable[Buffer[T]] | None = None,
    ) -> None:
        self._core = core
        self._max_buffered = max_buffered
        # How many plain steps every live stream has room for at least.
        self._room = max_buffered or 0
        # Streams that ended otherwise than by a step, for the core to be told.
        self._departed: deque[Buffer[T]] = deque()
        self._view: dict[str, View] = {}  # a dict, because setting a default is atomic
        self.forked = False

        if buffers is None:
            buffers = map(Buffer, range(core.size))
        self.buffers: list[Buffer[T]] = list(buffers)
        # Those that have no end. Discarding is atomic, and so is adding, for whoever may occupy.
        self._endless = {buffer for buffer in self.buffers if not buffer.ends}
        self.moves = 0
        # The lists to append to, by slot; those of the last step; the slots these belong to, and
        # their buffers.
        self._all_tails = [buffer.tail for buffer in self.buffers]
        self._tails: list[list[T]] = []
        self._tails_of: Sequence[int] = ()
        self._given_to: Sequence[Buffer[T]] = ()
        self._until_turn = SEGMENT_LENGTH
        # For the next delivery of the view by time: ends of cancelled slots, and of those that
        # something broke off before it could be delivered.
        self._unreported: list[tuple[int, StreamEnd]] = []
        forkable.add(self)

    # ---- from any thread, never waiting

    @property
    def live(self) -> tuple[int, ...]:
        """The slots that have neither finished nor been cancelled."""
        return tuple(buffer.slot for buffer in self.buffers if buffer.end is None)

    @abstractmethod
    def cancel(self, buffer: Buffer[T]) -> None:
        """Give one stream up."""

    def _note_cancel(self, buffer: Buffer[T]) -> None:
        given = self._core.given(buffer.slot)
        buffer.cancel(StreamEnd(FinishReason.CANCELLED, given))
        self._note_departure(buffer)

    def _note_departure(self, buffer: Buffer[T]) -> None:
        self._endless.discard(buffer)
        self._departed.append(buffer)

    def _note_all_cancels(self) -> None:
        for buffer in self.buffers:
            if buffer.end is None:
                self._note_cancel(buffer)

    def statistics(self) -> Statistics:
        """Return the figures up to now."""
        # In one pass over the ends, which no thread takes back: live and finished always add up.
        ends = [buffer.end for buffer in self.buffers]
        reasons = Counter(end.reason for end in ends if end is not None)
        return replace(
            self._core.statistics(),
            opened=len(ends),
            live=ends.count(None),
            finished={reason: reasons[reason] for reason in FinishReason if reasons[reason]},
            buffered=sum(buffer.buffered for buffer in self.buffers),
        )

    # ---- from a consumer

    def read_by(self, view: View) -> None:
        """Settle which view of the batch is read, or refuse the other one.

        Raises:
            RuntimeError: The batch is read by the other view.
        """
        if self._view.setdefault("view", view) != view:
            raise RuntimeError(_REFUSED[view])

    def check_view(self, view: View) -> None:
        """Refuse a view if the other one is read, without settling on it.

        Raises:
            RuntimeError: The batch is read by the other view.
        """
        if self._view.get("view", view) != view:
            raise RuntimeError(_REFUSED[view])

    # ---- whoever moves the pump

    def _apply_departures(self) -> None:
        while self._departed:
            buffer = self._departed.popleft()
            slot = buffer.slot
            if buffer.cancelled:
                buffer.discard()
            if self.buffers[slot] is not buffer:
                continue  # the slot has another occupant since
            if self._core.cancel(slot).ends and self._view.get("view") != "by slot":
                self._unreported.append((slot, buffer.ends[0]))
            if self._core.has_live:
                self._all_tails[slot] = buffer.tail
            self._forget_tails()

    def _occupy(self, slot: int, buffer: Buffer[T], max_outputs: int | None) -> None:
        """Let a buffer have a slot whose last occupant has finished."""
        self._core.open(slot, max_outputs=max_outputs)
        self.buffers[slot] = buffer
        self._endless.add(buffer)
        self._all_tails[slot] = buffer.tail
        self._forget_tails()

    def _full_slots(self, limit: int) -> tuple[int, ...]:
        """Return the live streams without room for another output; else count one step off."""
        if not self._room:
            held = {slot: self.buffers[slot].buffered for slot in self._core.live}
            full = tuple(slot for slot, count in held.items() if count >= limit)
            if full:
                return full
            self._room = limit - max(held.values(), default=0)
        self._room -= 1
        return ()

    def _take(self, step: object, live: tuple[int, ...]) -> Delivery[T] | None:
        """Hand out a step, and return what it gave to whom, or None if one output to each live."""
        # Most steps go this way, and pass no further stop.
        if live is self._tails_of and (values := self._core.feed_plain(step)) is not None:
            self._append(values)
            self.moves += 1
            return None
        delivery = self._core.feed(step)
        self._hand_out(delivery)
        return delivery

    def _hand_out(self, delivery: Delivery[T]) -> None:
        slots, values, ends = delivery
        if self._view.get("view") == "by slot":
            if slots is not self._tails_of:
                self._tails = list(map(self._all_tails.__getitem__, slots))
                self._given_to = list(map(self.buffers.__getitem__, slots))
                self._tails_of = slots
                if len(set(slots)) < len(slots):
                    self._room = 0  # one has got more than one output: look again
            self._append(values)
        for slot, end in ends:
            self._finish_stream(self.buffers[slot], end)
        self.moves += 1

    def _finish_stream(self, buffer: Buffer[T], end: StreamEnd) -> None:
        buffer.finish(end)
        self._endless.discard(buffer)

    def _fail_stream(self, buffer: Buffer[T], error: BaseException) -> StreamEnd:
        given = self._core.given(buffer.slot)
        self._finish_stream(buffer, StreamEnd(FinishReason.ERROR, given, error=error))
        return buffer.ends[0]

    def _append(self, values: Sequence[T]) -> None:
        any(map(_append, self._tails, values))  # in C: append returns None
        self._until_turn -= 1
        if not self._until_turn:
            self._turn_over()

    def _turn_over(self) -> None:
        for slot in self._core.live:
            self.buffers[slot].turn_over()
        self._all_tails = [buffer.tail for buffer in self.buffers]
        self._forget_tails()
        self._until_turn = SEGMENT_LENGTH

    def _settle_with(self, error: BaseException) -> list[tuple[int, StreamEnd]]:
        """Let the streams that have no end yet fail, and return their ends."""
        forget_context(error, sys.exception())
        begin_in_source(error)
        if self._core.running:
            self._core.fail(error)
        # Not the core's ends: what it said of this step may be lost.
        endless = [buffer for buffer in self.buffers if not buffer.ends]
        return [(buffer.slot, self._fail_stream(buffer, error)) for buffer in endless]

    def _forget_tails(self) -> None:
        self._tails, self._tails_of, self._given_to = [], (), ()

    def _let_go_of_tails(self) -> None:
        self._all_tails = []
        self._forget_tails()

    def _with_reported(self, delivery: Delivery[T]) -> Delivery[T]:
        """Return the delivery with the ends that stand, and with those not reported yet."""
        if not (self._unreported or delivery.ends):
            return delivery
        # A slot has one end, and whoever noted it first has set it.
        ends = [(slot, self.buffers[slot].ends[0]) for slot, _ in delivery.ends]
        delivery = delivery._replace(ends=[*self._unreported, *ends])
        self._unreported.clear()
        return delivery

    # ---- after a fork, in the child

    def _forked_error(self) -> ClosedError:
        return ClosedError(
            "this batch was opened in another process, and cannot be used in a fork of it"
        )

    def refuse_after_fork(self) -> None:
        """Let every use fail: the source belongs to the parent."""
        self.forked = True
        for buffer in self.buffers:
            buffer.refuse_after_fork()
