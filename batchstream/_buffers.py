"""What one stream holds between the pump that writes it and the consumer that reads it.

Theory of operation
-------------------

A buffer is a queue of *segments*, lists of outputs. The pump appends to the last one; the consumer
reads the first. They are often the same list, read while it grows.

Reading costs no Python code: a stream is an `itertools.chain`, and what it chains are C iterators
over segments. Only when such an iterator is used up does the chain come to `Inlet.__next__`, which
gives it the next segment or asks the pump for a step. A chain stays alive through an exception
raised there, as it would not if the exception came out of the iterator that it takes its parts
from: that one is a bare `deque.popleft`, which cannot raise while `__next__` keeps it filled.

Where a segment has been read up to is known exactly, whatever thread writes it meanwhile: outputs
pass through a *gate*, `compress(outputs, repeat(True))`, and the `repeat` counts them. A list
iterator alone would not do. It is spent for good once it has met the end of its list, and cannot
say whether an output that stands there now was appended before or after.

No lock is needed for any of it. `deque.append`, `list.append` and a step of a C iterator are each
atomic, and every pair of threads touches each of these from one side only.

A pump knows its buffers, an inlet its buffer and the pump, and nobody knows an inlet but its own
stream: so what is dropped is freed at once, without waiting for the cycle collector.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import chain, compress, repeat
from operator import length_hint
from threading import get_ident
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeAlias

from typing_extensions import TypeVar

from batchstream._errors import ConcurrentConsumerError, consumer_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchstream._events import StreamEnd

T = TypeVar("T")

SEGMENT_LENGTH: Final = 128
"""How many steps a segment is written for; its outputs may be kept a while after their receipt."""

GATE: Final = sys.maxsize
"""What a gate counts down from."""

Segment: TypeAlias = "tuple[list[T], repeat[bool]]"
"""A list of outputs, and the gate that counts how many of them were received."""


class Pull(Protocol[T]):
    """What an inlet asks for when its buffer is empty.

    Attributes:
        moves: How many steps were handed out; for `pull` to tell whether one was missed.
        pauses: Whether this pump waits for room, and lets full buffers be watched.
    """

    moves: int
    pauses: bool

    def pull(self, buffer: Buffer[T], moves: int, deadline: float | None) -> None:
        """Return when the buffer may hold something that it did not when `moves` was read."""

    def telling_of_room(self) -> Iterator[object]:
        """Return what tells a pump, by being run through, that a watched buffer was read from."""


class Buffer(Generic[T]):
    """The outputs of one slot that wait to be received, and the slot's end."""

    __slots__ = (
        "_error_raised",
        "_inner",
        "cancelled",
        "consumer",
        "ends",
        "reader",
        "segments",
        "slot",
        "tail",
        "watched",
    )

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.segments: deque[Segment[T]] = deque()
        self._begin_segment()
        # What the stream's chain is reading now, and the list iterator inside it.
        self.reader: Iterator[T] = iter(())
        self._inner: Iterator[T] = iter(())
        # The first entry counts: appending is atomic, so that of two ends one wins for everybody.
        self.ends: list[StreamEnd] = []
        self.cancelled = False
        # Whether a pump waits for room here, and wants to be told of each output received.
        self.watched = False
        # The thread that is in the inlet. Setting a default is atomic; a thread that finds itself
        # was interrupted on its way out, or is the source, which the pump refuses.
        self.consumer: dict[str, int] = {}
        self._error_raised = False

    # ---- the pump's side, while the slot is live

    def turn_over(self) -> None:
        """Begin a new segment if there is anything in the last one."""
        if self.tail:
            self._begin_segment()

    def discard(self) -> None:
        """Free what is buffered."""
        self.segments = deque()  # a consumer on its way out keeps what it is looking at
        self._begin_segment()

    def _begin_segment(self) -> None:
        # The list to append to; the pump's alone, until it turns over.
        self.tail: list[T] = []
        self.segments.append((self.tail, repeat(True, GATE)))  # noqa: FBT003

    def refuse_after_fork(self) -> None:
        """Let the consumer in a forked child, who is the only one there, come to the pump."""
        self.consumer = {}
        if not self.ends:
            self.stop_reader()
            self.discard()

    # ---- the consumer's side

    def first_unread(self) -> Segment[T]:
        """Return the first segment with something to receive or to come, and drop those before."""
        segments = self.segments
        # The order matters: once there is a next segment, nothing is added to this one.
        while len(segments) > 1:
            outputs, gate = segments[0]
            if len(outputs) + length_hint(gate) > GATE:
                break
            segments.popleft()
        return segments[0]

    def read(self, segment: Segment[T]) -> Iterator[T]:
        """Return an iterator over what a segment still has to give and will have."""
        outputs, gate = segment
        self._inner = iter(outputs)
        received = GATE - length_hint(gate)
        if received:
            self._inner.__setstate__(received)  # type: ignore[attr-defined]
        self.reader = compress(self._inner, gate)
        if self.cancelled or self.watched:  # by another thread, which may have missed this reader
            self.stop_reader()
        return self.reader

    def conclude(self) -> None:
        """Let go of what is held, when all was received.

        Raises:
            Exception: The consumer's own copy of the error that ended the stream, once.
        """
        error = self.ends[0].error
        if error is not None and not self._error_raised and not self.cancelled:
            self._error_raised = True
            raise consumer_error(error)
        self.discard()

    # ---- anybody's

    @property
    def end(self) -> StreamEnd | None:
        """The slot's end; whoever sees it can see its last output as well."""
        return self.ends[0] if self.ends else None

    def finish(self, end: StreamEnd) -> None:
        """Set the end, unless there is one."""
        self.ends.append(end)

    def cancel(self, end: StreamEnd) -> None:
        """Let the stream end now, with nothing more received, whatever is buffered."""
        self.finish(end)
        self.cancelled = True
        self.stop_reader()

    def watch(self) -> None:
        """Let the consumer take one output at a time, and tell the pump of it, once."""
        self.watched = True
        self.stop_reader()

    def stop_reader(self) -> None:
        """Let what the stream is reading now be over."""
        deque(self._inner, maxlen=0)

    @property
    def buffered(self) -> int:
        """How many outputs wait to be received."""
        if self.cancelled:
            return 0
        return sum(
            length_hint(gate) - GATE + len(outputs) for outputs, gate in self.segments.copy()
        )


class Inlet(Generic[T]):
    """Where a stream's chain comes when it has read all that it was handed."""

    __slots__ = ("_buffer", "_empty_since", "_parts", "_pump", "deadline")

    def __init__(self, buffer: Buffer[T], pump: Pull[T]) -> None:
        self._buffer = buffer
        self._pump = pump
        # Until when a receive waits, on the monotonic clock; None for ever.
        self.deadline: float | None = None
        # What the chain is to read next. None ends it for good.
        self._parts: deque[Iterator[T] | None] = deque((self,))
        # The number of moves at which it took the only output there was.
        self._empty_since = -1

    @property
    def parts(self) -> Iterator[Iterator[T]]:
        """The iterators to chain; ends where the stream does."""
        return iter(self._parts.popleft, None)

    def chain(self) -> chain[T]:
        """Return what the buffer holds and will hold, as an iterator."""
        return chain.from_iterable(self.parts)

    def __iter__(self) -> Iterator[T]:
        return self

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
                    buffer.conclude()
                    self._parts.append(None)
                elif not unread:
                    pump.pull(buffer, moves, self.deadline)
                    pulled = True
                elif unread == 1 and pulled and not pump.pauses:
                    self._empty_since = moves
                    output = outputs[received]
                    # Counts it. A loop, because a signal's exception may strike after a call, but
                    # not on this way out: the output would be lost.
                    for _ in gate:
                        return output
                elif pump.pauses and (unread == 1 or buffer.watched):
                    output, telling = outputs[received], pump.telling_of_room()
                    nowhere: deque[object] = deque(maxlen=0)
                    for _ in gate:
                        if buffer.watched:  # asked after the output was counted
                            buffer.watched = False
                            nowhere += telling  # in C, and no call either
                        return output
                else:
                    self._parts.extend((buffer.read(segment), self))
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
            taken = list(buffer.reader)
            while not buffer.cancelled:
                outputs, gate = buffer.first_unread()
                received = GATE - length_hint(gate)
                if received == len(outputs):
                    break
                taken.extend(compress(outputs[received:], gate))
            if buffer.watched and taken:
                buffer.watched = False
                deque(self._pump.telling_of_room(), maxlen=0)
            return taken
        finally:
            buffer.consumer.clear()

    def abandon(self) -> None:
        """Let go of itself, once there is no chain that could come here."""
        self._parts.clear()

    def _concurrent(self) -> ConcurrentConsumerError:
        return ConcurrentConsumerError(
            f"stream {self._buffer.slot} has one consumer at a time, and another thread waits "
            f"for it"
        )
