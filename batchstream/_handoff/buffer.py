"""What one stream holds between the pump that writes it and the consumer that reads it.

Theory of operation
-------------------

A buffer is a queue of *segments*, lists of outputs. The pump appends to the last one; the consumer
reads the first. They are often the same list, read while it grows.

Where a segment has been read up to is known exactly, whatever thread writes it meanwhile: outputs
pass through a *gate*, `compress(outputs, repeat(True))`, and the `repeat` counts them. A list
iterator alone would not do. It is spent for good once it has met the end of its list, and cannot
say whether an output that stands there now was appended before or after.

No lock is needed for any of it. `deque.append`, `list.append` and a step of a C iterator are each
atomic, and every pair of threads touches each of these from one side only.

A pump knows its buffers, a stream its buffer and the pump, and nobody knows a stream: so what is
dropped is freed at once, without waiting for the cycle collector.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import compress, repeat
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias

from typing_extensions import TypeVar

from batchstream._core.errors import consumer_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchstream._core.records import StreamEnd

T = TypeVar("T")

SEGMENT_LENGTH: Final = 128
"""How many steps a segment is written for; its outputs may be kept a while after their receipt."""

GATE: Final = sys.maxsize
"""What a gate counts down from."""

View: TypeAlias = Literal["by slot", "by time"]
"""How a batch is read: stream by stream, or step by step."""

NOWHERE: Final[deque[object]] = deque(maxlen=0)
"""`nowhere += iterator` runs an iterator through without a call."""

Segment: TypeAlias = "tuple[list[T], repeat[bool]]"
"""A list of outputs, and the gate that counts how many of them were received."""


_NOTHING: Final[Iterator[Any]] = iter(())


def _segment(outputs: list[T]) -> Segment[T]:
    return outputs, repeat(True, GATE)  # noqa: FBT003


class Buffer(Generic[T]):
    """The outputs of one slot that wait to be received, and the slot's end."""

    __slots__ = (
        "_inner",
        "_name",
        "cancelled",
        "consumer",
        "ends",
        "reader",
        "segments",
        "slot",
        "tail",
        "telling",
        "told",
        "watches",
    )

    def __init__(self, slot: int, name: str | None = None) -> None:
        self.slot = slot
        self._name = name
        # The list to append to; the pump's alone, until it turns over.
        self.tail: list[T] = []
        # A list and no deque: it mostly has one entry, and an empty deque takes half a kilobyte.
        self.segments: list[Segment[T]] = [_segment(self.tail)]
        # What the stream is reading now, and the list iterator inside it.
        self.reader: Iterator[T] = _NOTHING
        self._inner: Iterator[T] = _NOTHING
        # The first entry counts: appending is atomic, so that of two ends one wins for everybody.
        self.ends: list[StreamEnd] = []
        self.cancelled = False
        # While a pump waits for room here: what tells it, by being run through, that an output was
        # received. In C, so that no signal's exception comes between.
        self.telling: Iterator[object] | None = None
        # How many times a pump began to wait here, and how many of them the consumer has answered.
        self.watches = 0
        self.told = 0
        # The thread that is in the inlet. Setting a default is atomic; a thread that finds itself
        # was interrupted on its way out, or is the source, which the pump refuses.
        self.consumer: dict[str, int] = {}

    # ---- the pump's side, while the slot is live

    def turn_over(self) -> None:
        """Begin a new segment if there is anything in the last one."""
        if self.tail:
            self.tail = []
            self.segments.append(_segment(self.tail))

    def discard(self) -> None:
        """Free what is buffered."""
        self.tail = []
        # At once, and a new one: a consumer on its way out keeps what it is looking at.
        self.segments = [_segment(self.tail)]

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
            del segments[0]
        return segments[0]

    def read(self, segment: Segment[T]) -> Iterator[T]:
        """Return an iterator over what a segment still has to give and will have."""
        outputs, gate = segment
        self._inner = iter(outputs)
        received = GATE - length_hint(gate)
        if received:
            self._inner.__setstate__(received)  # type: ignore[attr-defined]
        self.reader = compress(self._inner, gate)
        if self.cancelled or self.watches != self.told:  # by a thread that missed this reader
            self.stop_reader()
        return self.reader

    def conclude(self) -> None:
        """Let go of what is held, when all was received.

        Raises:
            Exception: The consumer's own copy of the error that ended the stream, once.
        """
        error = self.ends[0].error
        if error is not None and not self.cancelled:
            self.cancelled = True  # of the error, and of what a pump may still add
            raise consumer_error(error)
        self.discard()

    def take_all(self) -> list[T]:
        """Take all that is buffered, in one go."""
        taken = list(self.reader)
        while not self.cancelled:
            outputs, gate = self.first_unread()
            received = GATE - length_hint(gate)
            if received == len(outputs):
                break
            taken.extend(compress(outputs[received:], gate))
        if taken:
            self.tell()
        return taken

    # ---- anybody's

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return self._name or f"stream {self.slot}"

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

    def shut(self) -> None:
        """Let nothing more be received of a stream that has ended, and free what is buffered."""
        self.cancelled = True
        self.stop_reader()
        self.discard()

    def watch(self, telling: Iterator[object]) -> None:
        """Let the consumer take one output by itself, and tell the pump of it."""
        self.telling = telling
        self.watches += 1
        self.stop_reader()

    def tell(self) -> None:
        """Tell a pump that waits for room here that an output was received."""
        watches = self.watches
        if (telling := self.telling) is not None:
            deque(telling, maxlen=0)
        self.told = watches

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
