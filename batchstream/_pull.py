"""The pull-driven pump: a consumer that finds nothing buffered lets the source go one step on.

Theory of operation
-------------------

The pump has one *role*, and whoever holds it may touch the source and the core: advance, feed,
deliver, close. It is taken with a lock, so that of several consumers in several threads one pulls
while the others wait, and then look again at what they have got. No state is guarded by it that
another thread would need while the source runs: `cancel`, `live` and `statistics` never wait.

A cancel is *noted* in a deque and settled by whoever holds the role next: by the canceller at once
if the role is free, otherwise by its holder after the step. A holder looks for notes once more
after it gave the role back, so that none is left lying. Nothing in it blocks, so a cancel may
come from a signal handler or a finalizer that interrupted the holder itself.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections import Counter, deque
from dataclasses import replace
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Final, Generic, Literal

from typing_extensions import TypeVar

from batchstream._buffers import SEGMENT_LENGTH, Buffer
from batchstream._errors import (
    PASSING,
    BufferOverflowError,
    ClosedError,
    begin_in_source,
    forget_context,
)
from batchstream._events import Delivery, FinishReason, StreamEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._demux import Demultiplexer
    from batchstream._events import Statistics
    from batchstream._source import Source

R = TypeVar("R")
T = TypeVar("T")

_append: Final = list.append
_NOBODY: Final = 0
_NOTHING: Final[Delivery[Any]] = Delivery((), ())

_BY_TIME: Final = "a batch is read by slot or by time: steps() has begun, streams cannot be read"
_BY_SLOT: Final = "a batch is read by slot or by time: a stream has been read, steps() cannot begin"


class Pump(Generic[T]):
    """The source, the core and the buffers of one batch, and the role of whoever moves them.

    Args:
        source: Closed by the pump, as soon as no slot is live.
        core: Tells what a step gives to whom.
        max_buffered: How many outputs a live stream may hold before a pull is refused.
    """

    def __init__(
        self, source: Source, core: Demultiplexer[T], *, max_buffered: int | None = None
    ) -> None:
        self._source = source
        self._core = core
        self._max_buffered = max_buffered
        self._room = 0

        self._role = Lock()
        self._holder = _NOBODY
        self._cancels: deque[int] = deque()
        self._forked = False
        self._view: Literal["by slot", "by time"] | None = None

        self.buffers: list[Buffer[T]] = [Buffer(slot) for slot in range(core.size)]
        # What `moves` counts: every time that something was added to buffers.
        self.moves = 0
        # The lists to append to, by slot; those of the last step; and the slots these belong to.
        self._all_tails = [buffer.tail for buffer in self.buffers]
        self._tails: list[list[T]] = []
        self._tails_of: Sequence[int] = ()
        self._until_turn = SEGMENT_LENGTH
        # For the next delivery of the view by time: ends of cancelled slots, and all that could not
        # be delivered because something was raised instead.
        self._unreported: list[tuple[int, StreamEnd]] = []
        self._withheld: Delivery[T] | None = None
        _pumps.add(self)
        self._close_if_idle()

    # ---- from any thread, never waiting

    @property
    def live(self) -> tuple[int, ...]:
        """The slots that have neither finished nor been cancelled."""
        return tuple(buffer.slot for buffer in self.buffers if buffer.end is None)

    def cancel(self, buffer: Buffer[T]) -> None:
        """Give one stream up."""
        if self._forked or buffer.cancelled:
            return
        self._note_cancel(buffer)
        self._settle()

    def _note_cancel(self, buffer: Buffer[T]) -> None:
        given = self._core.given(buffer.slot)
        buffer.cancel(StreamEnd(FinishReason.CANCELLED, given))
        self._cancels.append(buffer.slot)

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

    def pull(self, buffer: Buffer[T], moves: int) -> None:
        """Let the source go one step on, unless it has done so since `moves` was read.

        Raises:
            BufferOverflowError: A live stream has no room for another step.
            RuntimeError: The batch is read by time, or its source waits for itself.
            ClosedError: This is a fork of the process that opened the batch.
        """
        # This is `_with_role`, written out: it is run for every step.
        me = get_ident()
        if self._holder == me or self._forked:
            raise self._refusal()
        try:
            with self._role:
                self._holder = me
                try:
                    if self._view != "by slot":
                        self._choose_view("by slot")
                    if self._cancels:
                        self._apply_cancels()
                    if self.moves == moves and not buffer.ends:
                        if self._max_buffered is not None:
                            self._check_room(self._max_buffered)
                        self._move()
                finally:
                    self._holder = _NOBODY
        finally:
            if self._cancels:
                self._settle()

    def pull_by_time(self) -> Delivery[T] | None:
        """Return what the next step gives to whom, or None after the last.

        Raises:
            RuntimeError: The batch is read by slot, or its source waits for itself.
            ClosedError: This is a fork of the process that opened the batch.
        """
        return self._with_role(self._pull_by_time)

    def check_read_by_slot(self) -> None:
        """Refuse a stream that the view by time leaves nothing to."""
        if self._view == "by time":
            raise RuntimeError(_BY_TIME)

    def close(self) -> None:
        """Cancel what is live and close the source, once nobody is in it.

        Raises:
            BaseException: What the source raises when it is closed here.
        """
        for buffer in self.buffers:
            if buffer.end is None:
                self._note_cancel(buffer)
        # A source that closes its own batch leaves the rest to the holder, after this step.
        if not (self._forked or self._holder == get_ident()):
            self._with_role(self._close)

    # ---- the role

    def _with_role(self, action: Callable[[], R]) -> R:
        """Take the role, do something, and give it back."""
        me = get_ident()
        if self._holder == me or self._forked:
            raise self._refusal()
        try:
            with self._role:
                self._holder = me
                try:
                    return action()
                finally:
                    self._holder = _NOBODY
        finally:
            if self._cancels:
                self._settle()

    def _refusal(self) -> Exception:
        if self._forked:
            return ClosedError(
                "this batch was opened in another process, and cannot be used in a fork of it"
            )
        return RuntimeError("the source of this batch waits for a step of its own")

    def _settle(self) -> None:
        """Apply the cancels noted by now, unless the role's holder will."""
        while self._cancels and not self._forked:
            taken: list[bool] = []
            try:
                # One call in C takes the role and says so: a signal's exception finds it noted.
                taken.extend(filter(None, map(self._role.acquire, (False,))))
                if not taken:
                    return
                self._holder = get_ident()
                self._apply_cancels()
            finally:
                if taken:
                    self._holder = _NOBODY
                    self._role.release()

    # ---- with the role

    def _pull_by_time(self) -> Delivery[T] | None:
        if self._view != "by time":
            self._choose_view("by time")
        if self._withheld is not None:
            withheld, self._withheld = self._withheld, None
            return withheld
        if self._cancels:
            self._apply_cancels()
        core = self._core
        delivery: Delivery[T] = self._move() if core.has_live else Delivery((), ())
        if self._unreported or delivery.ends:
            # A slot has one end, and whoever noted it first has set it.
            ends = [(slot, self.buffers[slot].ends[0]) for slot, _ in delivery.ends]
            delivery = delivery._replace(ends=[*self._unreported, *ends])
            self._unreported.clear()
        if core.has_live or delivery.values or delivery.ends:
            return delivery
        return None

    def _close(self) -> None:
        try:
            self._source.close()
        finally:
            self._apply_cancels()
            self._unreported.clear()

    def _choose_view(self, view: Literal["by slot", "by time"]) -> None:
        if self._view is not None:
            raise RuntimeError(_BY_TIME if view == "by slot" else _BY_SLOT)
        self._view = view

    def _apply_cancels(self) -> None:
        while self._cancels:
            slot = self._cancels.popleft()
            buffer = self.buffers[slot]
            if self._core.cancel(slot).ends:
                self._unreported.append((slot, buffer.ends[0]))
            buffer.discard()
            if self._core.has_live:
                self._all_tails[slot] = buffer.tail
            self._tails, self._tails_of = [], ()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not self._core.has_live:
            self._all_tails, self._tails, self._tails_of = [], [], ()
            self._source.close_quietly()

    def _check_room(self, limit: int) -> None:
        """Refuse to pull what a live stream has no room for, before the source is touched."""
        if not self._room:
            held = {slot: self.buffers[slot].buffered for slot in self._core.live}
            full = tuple(slot for slot, count in held.items() if count >= limit)
            if full:
                raise BufferOverflowError(
                    f"streams {', '.join(map(str, full))} hold {limit} unread outputs or more "
                    f"(max_buffered): read or cancel them before another step is pulled",
                    slots=full,
                    max_buffered=limit,
                )
            self._room = limit - max(held.values())
        self._room -= 1

    def _move(self) -> Delivery[T]:
        """Let the source go one step on, hand out what it gives, and close it after its last.

        Whatever breaks this off, be it a signal in the midst of it, fails the streams that have no
        end yet: nobody misses an output without being told.
        """
        core = self._core
        live = core.live
        failure: BaseException | None = None
        try:
            try:
                step = self._source.advance(live)
            except StopIteration:
                delivery = core.finish()
            else:
                # Most steps go this way, and pass no further stop.
                if live is self._tails_of and (values := core.feed_plain(step)) is not None:
                    self._append(values)
                    self.moves += 1
                    return _NOTHING
                delivery = core.feed(step)
            self._hand_out(delivery)
        except BaseException as error:  # noqa: BLE001 - told to all streams, and raised on if need be
            failure = error
        if failure is not None:
            return self._break_off(failure)
        if delivery.ends:
            try:
                self._close_if_idle()
            except BaseException:
                if self._view == "by time":
                    self._withheld = delivery
                raise
        return delivery

    def _break_off(self, error: BaseException) -> Delivery[T]:
        forget_context(error, sys.exception())
        begin_in_source(error)
        if self._core.running:
            self._core.fail(error)
        ends = []
        for buffer in self.buffers:  # not the core's: what it said of this step may be lost
            if buffer.end is None:
                given = self._core.given(buffer.slot)
                buffer.finish(StreamEnd(FinishReason.ERROR, given, error=error))
                ends.append((buffer.slot, buffer.ends[0]))
        self._close_if_idle()
        if isinstance(error, PASSING):
            self._unreported.extend(ends)
            raise error
        return Delivery((), (), ends)

    def _hand_out(self, delivery: Delivery[T]) -> None:
        slots, values, ends = delivery
        if self._view == "by slot":
            if slots is not self._tails_of:
                self._tails = list(map(self._all_tails.__getitem__, slots))
                self._tails_of = slots
                self._room = 0  # one may have got more than one output: look again
            self._append(values)
        for slot, end in ends:
            self.buffers[slot].finish(end)
        self.moves += 1

    def _append(self, values: Sequence[T]) -> None:
        any(map(_append, self._tails, values))  # in C: append returns None
        self._until_turn -= 1
        if not self._until_turn:
            self._turn_over()

    def _turn_over(self) -> None:
        for slot in self._core.live:
            self.buffers[slot].turn_over()
        self._all_tails = [buffer.tail for buffer in self.buffers]
        self._tails, self._tails_of = [], ()
        self._until_turn = SEGMENT_LENGTH

    # ---- after a fork, in the child

    def refuse_after_fork(self) -> None:
        """Let every use fail: the source belongs to the parent, and so may the role."""
        self._forked = True
        self._role = Lock()
        for buffer in self.buffers:
            buffer.refuse_after_fork()


_pumps: Final[weakref.WeakSet[Pump[Any]]] = weakref.WeakSet()


def _refuse_after_fork() -> None:
    for pump in list(_pumps):
        pump.refuse_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_refuse_after_fork)
