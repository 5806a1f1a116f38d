"""How a consumer in a thread reads a buffer, without running Python code for most outputs.

Theory of operation
-------------------

A stream is an `itertools.chain`, and what it chains are C iterators over segments. Only when such
an iterator is used up does the chain come to `Inlet.__next__`, which gives it the next segment or
asks the pump for a step. A chain stays alive through an exception raised there, as it would not if
the exception came out of the iterator that it takes its parts from: that one is a bare
`deque.popleft`, which cannot raise while `__next__` keeps it filled.

An inlet knows its buffer and the pump, and nobody knows an inlet but its own stream.
"""

from __future__ import annotations

from collections import deque
from itertools import repeat
from operator import length_hint
from threading import get_ident
from typing import TYPE_CHECKING, Generic

from typing_extensions import TypeVar

from batchstream._buffers import GATE, NOWHERE
from batchstream._errors import ConcurrentConsumerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchstream._buffers import Buffer
    from batchstream._feeds import SyncFeed

T = TypeVar("T")


class Inlet(Generic[T]):
    """Where a stream's chain comes when it has read all that it was handed."""

    __slots__ = ("_buffer", "_empty_since", "_entry", "_parts", "_pump", "deadline")

    def __init__(self, buffer: Buffer[T], pump: SyncFeed) -> None:
        self._buffer = buffer
        self._pump = pump
        # Until when a receive waits, on the monotonic clock; None for ever.
        self.deadline: float | None = None
        # How the chain comes here. Its `__iter__` is in C: while a chain is between two parts no
        # other thread must find it there.
        self._entry: Iterator[T] = map(Inlet.__next__, repeat(self))
        # What the chain is to read next. None ends it for good.
        self._parts: deque[Iterator[T] | None] = deque((self._entry,))
        # The number of moves at which it took the only output there was.
        self._empty_since = -1

    @property
    def parts(self) -> Iterator[Iterator[T]]:
        """The iterators to chain; ends where the stream does."""
        return iter(self._parts.popleft, None)

    def __next__(self) -> T:
        """Hand over what there is, or pull; raise `StopIteration` for the chain to go on."""
        buffer, pump = self._buffer, self._pump
        me = get_ident()
        if buffer.consumer.setdefault("thread", me) != me:
            raise self._concurrent()
        try:
            pulled = False
            if pump.moves == self._empty_since:
                pump.pull(buffer, self._empty_since, self.deadline)
                pulled = True
            while not self._parts:
                # In this order: whoever ends a stream has added its last output before, and what
                # was added after the outputs were looked at shows in the number of moves.
                moves, ended = pump.moves, bool(buffer.ends)
                segments = buffer.segments
                segment = segments[0] if len(segments) == 1 else buffer.first_unread()
                outputs, gate = segment
                received = GATE - length_hint(gate)
                unread = len(outputs) - received
                if ended and (buffer.cancelled or not unread):
                    pump.check_view("by slot")
                    buffer.conclude()
                    self._parts.append(None)
                elif not unread:
                    pump.pull(buffer, moves, self.deadline)
                    pulled = True
                elif (unread == 1 and pulled) or buffer.watches != buffer.told:
                    if unread == 1:
                        self._empty_since = moves
                    output, nowhere = outputs[received], NOWHERE
                    # Counts it. A loop, because a signal's exception may strike after a call, but
                    # not on this way out: the output would be lost.
                    for _ in gate:
                        # This is `tell`, after the output was counted, and without a call.
                        watches, telling = buffer.watches, buffer.telling
                        if telling is not None:
                            nowhere += telling
                        buffer.told = watches
                        return output
                else:
                    self._parts.extend((buffer.read(segment), self._entry))
        finally:
            del buffer.consumer["thread"]  # no call, for the same reason
        raise StopIteration

    def receive(self, chained: Iterator[T], deadline: float) -> T:
        """Return the next of what was chained, or give up when the clock says so."""
        self.deadline = deadline
        try:
            return next(chained)
        finally:
            self.deadline = None

    def drain(self) -> list[T]:
        """Take all that is buffered."""
        buffer = self._buffer
        me = get_ident()
        if buffer.consumer.setdefault("thread", me) != me:
            raise self._concurrent()
        try:
            return buffer.take_all()
        finally:
            buffer.consumer.clear()

    def abandon(self) -> None:
        """Let go of itself, once there is no chain that could come here."""
        self._parts.clear()
        self._entry = iter(())

    def _concurrent(self) -> ConcurrentConsumerError:
        return ConcurrentConsumerError(
            f"{self._buffer.name} has one consumer at a time, and another thread waits for it"
        )
