"""What one stream holds between the pump that writes it and the consumer that reads it.

Theory of operation
-------------------

A buffer is a queue of *segments*, lists of outputs. The pump appends to the last one; the consumer
reads the first. They are often the same list, read while it grows.

Reading costs no Python code: a stream is an `itertools.chain`, and what it chains are C iterators
over segments. Only when such an iterator is used up does the chain come to `Buffer.__next__`,
which gives it the next segment or asks the pump for a step. It stays alive through an exception
raised there, as it would not if the exception came out of the iterator that it takes its parts
from: that one is a bare `deque.popleft`, which cannot raise while `__next__` keeps it filled.

Where a segment has been read up to is known exactly, whatever thread writes it meanwhile: outputs
pass through a *gate*, `compress(outputs, repeat(True))`, and the `repeat` counts them. A list
iterator alone would not do. It is spent for good once it has met the end of its list, and cannot
say whether an output that stands there now was appended before or after.

No lock is needed for any of it. `deque.append`, `list.append` and a step of a C iterator are each
atomic, and every pair of threads touches each of these from one side only.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import compress, repeat
from operator import length_hint
from threading import get_ident
from typing import TYPE_CHECKING, Final, Generic, NoReturn, Protocol, TypeAlias

from typing_extensions import TypeVar

from batchstream._errors import ConcurrentConsumerError, consumer_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchstream._events import StreamEnd

T = TypeVar("T")

SEGMENT_LENGTH: Final = 64
"""How many outputs a segment grows to; as many may be kept a while after they were received."""

_GATE: Final = sys.maxsize

Segment: TypeAlias = "tuple[list[T], repeat[bool]]"
"""A list of outputs, and the gate that counts how many of them were received."""


class Pull(Protocol[T]):
    """What a buffer asks for when it is empty."""

    def pull(self, buffer: Buffer[T]) -> None:
        """Let the source go one step on, unless the buffer has been served meanwhile."""


class Buffer(Generic[T]):
    """The outputs of one slot that wait to be received, and the slot's end."""

    __slots__ = (
        "__weakref__",
        "_cancelled",
        "_consumer",
        "_ends",
        "_inner",
        "_parts",
        "_pump",
        "_raised",
        "_reader",
        "_segments",
        "slot",
        "tail",
    )

    def __init__(self, slot: int, pump: Pull[T]) -> None:
        self.slot = slot
        self._pump = pump
        # The thread that is at `__next__`. Setting a default is atomic; a thread that finds itself
        # was interrupted on its way out, or is the source, which the pump refuses.
        self._consumer: dict[str, int] = {}
        self._segments: deque[Segment[T]] = deque()
        self._begin()
        # What the stream's chain is to read next. None ends it for good.
        self._parts: deque[Iterator[T] | None] = deque((self,))
        # What it is reading now.
        self._reader: Iterator[T] = iter(())
        self._inner: Iterator[T] = iter(())
        # The first entry counts: appending is atomic, so that of two ends one wins for everybody.
        self._ends: list[StreamEnd] = []
        self._raised = False
        self._cancelled = False

    # ---- the consumer's side

    @property
    def parts(self) -> Iterator[Iterator[T]]:
        """The iterators to chain; ends where the stream does."""
        return iter(self._parts.popleft, None)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Go on where the stream has read all that it was handed."""
        me = get_ident()
        if self._consumer.setdefault("thread", me) != me:
            raise self._concurrent()
        try:
            pulled = False
            while not self._parts:
                # Looked at first: whoever sets the end has added the last output before.
                ended = bool(self._ends)
                outputs, gate = self._first_unread()
                received = _GATE - length_hint(gate)
                unread = len(outputs) - received
                if self._cancelled or (ended and not unread):
                    self._conclude()
                elif not unread:
                    self._pump.pull(self)
                    pulled = True
                elif unread == 1 and pulled:
                    next(gate)
                    return outputs[received]
                else:
                    self._hand_over(outputs, gate)
        finally:
            self._consumer.clear()
        raise StopIteration

    def drain(self) -> list[T]:
        """Take all that is buffered."""
        me = get_ident()
        if self._consumer.setdefault("thread", me) != me:
            raise self._concurrent()
        try:
            taken = list(self._reader)
            while not self._cancelled:
                outputs, gate = self._first_unread()
                received = _GATE - length_hint(gate)
                if received == len(outputs):
                    break
                taken.extend(compress(outputs[received:], gate))
            return taken
        finally:
            self._consumer.clear()

    def _first_unread(self) -> Segment[T]:
        """Return the first segment with something to receive or to come, and drop those before."""
        segments = self._segments
        # The order matters: once there is a next segment, nothing is added to this one.
        while len(segments) > 1:
            outputs, gate = segments[0]
            if len(outputs) + length_hint(gate) > _GATE:
                break
            segments.popleft()
        return segments[0]

    def _hand_over(self, outputs: list[T], gate: repeat[bool]) -> None:
        self._inner = iter(outputs)
        self._inner.__setstate__(_GATE - length_hint(gate))  # type: ignore[attr-defined]
        self._reader = compress(self._inner, gate)
        self._parts.extend((self._reader, self))
        if self._cancelled:  # by another thread, which may have missed this reader
            self._stop_reader()

    def _conclude(self) -> None:
        """Let the stream end, after its error if it has one to raise."""
        error = self._ends[0].error
        if error is not None and not self._raised and not self._cancelled:
            self._raised = True
            raise consumer_error(error)
        self._parts.append(None)

    def _concurrent(self) -> ConcurrentConsumerError:
        return ConcurrentConsumerError(
            f"stream {self.slot} has one consumer at a time, and another thread waits for it"
        )

    # ---- the pump's side

    def turn_over(self) -> None:
        """Begin a new segment if there is anything in the last one."""
        if self.tail:
            self._begin()

    def _begin(self) -> None:
        # The list to append to; the pump's alone, until it turns over.
        self.tail: list[T] = []
        self._segments.append((self.tail, repeat(True, _GATE)))  # noqa: FBT003

    # ---- anybody's

    @property
    def end(self) -> StreamEnd | None:
        return self._ends[0] if self._ends else None

    def finish(self, end: StreamEnd) -> None:
        """Set the end, unless there is one."""
        self._ends.append(end)

    @property
    def buffered(self) -> int:
        if self._cancelled:
            return 0
        # In this order, so that an output received meanwhile is not counted below nothing.
        segments = self._segments.copy()
        return sum(length_hint(gate) - _GATE + len(outputs) for outputs, gate in segments)

    def waits(self) -> bool:
        """Tell its own consumer, who has the pump's role, whether there is nothing yet."""
        outputs, gate = self._first_unread()
        return not self._ends and len(outputs) + length_hint(gate) == _GATE

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self, end: StreamEnd) -> None:
        """Let the stream end now, with nothing more received, whatever is buffered."""
        self.finish(end)
        self._cancelled = True
        self._stop_reader()

    def discard(self) -> None:
        """Free what is buffered; called by the pump, which alone adds to it."""
        self._segments = deque()  # a consumer on its way out keeps what it is looking at
        self._begin()

    def _stop_reader(self) -> None:
        deque(self._inner, maxlen=0)

    def refuse_after_fork(self) -> None:
        """Let the consumer in a forked child come to the pump, which refuses it."""
        self._consumer = {}
        if not self._ends:
            self._stop_reader()
            self.discard()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a buffer cannot be copied or pickled")
