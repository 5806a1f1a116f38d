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

A pump refers to its buffers, a stream to its buffer and the pump, and no object refers to a stream:
so a stream that is dropped is freed at once, without waiting for the cycle collector.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import compress, repeat
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias

from typing_extensions import TypeVar

from batchstream._core.errors import consumer_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchstream._core.records import StreamEnd

T = TypeVar("T")

SEGMENT_LENGTH: Final = 128
"""How many steps a segment is written for; its outputs may be kept a while after they were read."""

GATE: Final = sys.maxsize
"""What a gate counts down from."""

NOWHERE: Final[deque[object]] = deque(maxlen=0)
"""`nowhere += iterator` runs an iterator through without a call."""

Segment: TypeAlias = "tuple[list[T], repeat[bool]]"
"""A list of outputs, and the gate that counts how many of them were received."""


_NOTHING: Final[Iterator[Any]] = iter(())


class Buffer(Generic[T]):
    """The outputs of one slot that wait to be received, and the slot's end.

    Attributes:
        slot: The slot.
        tail: The list that the pump appends to, until it begins a new segment.
        segments: All segments that may hold something to receive, the oldest first.
        reader: The iterator that the stream reads at the moment.
        ends: The slot's end is the first entry: appending is atomic, so of two ends one wins.
        cancelled: Whether nothing more can be received, whatever is buffered.
        refusal: Why the buffer cannot be read at all, where its batch is read by the other view.
        on_room: While a pump waits for room here: an iterator that resumes the pump by being run
            through. In C, so that no signal's exception comes between.
        room_requests: How many times a pump began to wait for room here.
        room_answers: How many of these the consumer has answered by receiving an output.
        consumer: The thread that is in the reader. Setting a default is atomic. A thread that finds
            itself was interrupted on its way out, or is the source, which the pump refuses.
    """

    __slots__ = (
        "_inner",
        "_name",
        "cancelled",
        "consumer",
        "ends",
        "on_room",
        "reader",
        "refusal",
        "room_answers",
        "room_requests",
        "segments",
        "slot",
        "tail",
    )

    def __init__(self, slot: int, name: str | None = None) -> None:
        self.slot = slot
        self._name = name
        self.tail: list[T] = []
        # A list and no deque: it mostly has one entry, and an empty deque takes half a kilobyte.
        self.segments: list[Segment[T]] = [(self.tail, repeat(True, GATE))]  # noqa: FBT003
        self.reader: Iterator[T] = _NOTHING
        self._inner: Iterator[T] = _NOTHING  # the list iterator inside the reader
        self.ends: list[StreamEnd] = []
        self.cancelled = False
        self.refusal: str | None = None
        self.on_room: Iterator[object] | None = None
        self.room_requests = 0
        self.room_answers = 0
        self.consumer: dict[str, int] = {}

    # ---- from the pump, while the slot is live

    def turn_over(self) -> None:
        """Begin a new segment if there is anything in the last one."""
        if self.tail:
            self.tail = []
            self.segments.append((self.tail, repeat(True, GATE)))  # noqa: FBT003

    def discard(self) -> None:
        """Free what is buffered."""
        self.tail = []
        # At once, and a new one: a consumer on its way out keeps what it reads.
        self.segments = [(self.tail, repeat(True, GATE))]  # noqa: FBT003

    def refuse_after_fork(self) -> None:
        """Send the consumer in a forked child, the only one there, to the pump, which refuses."""
        self.consumer = {}
        if not self.ends:
            self.stop_reader()
            self.discard()

    # ---- from the consumer

    def first_unread(self) -> Segment[T]:
        """Return the first segment with something to receive or to come, and drop those before."""
        segments = self.segments
        # Length first, in this order: once there is a next segment, the pump adds nothing to this
        # one, so that what was counted as read to its end stays so.
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
        if self.cancelled or self.room_requests != self.room_answers:
            # Asked behind the assignment: the thread that asks for this may miss the reader.
            self.stop_reader()
        return self.reader

    def conclude(self) -> None:
        """Free what is held, when all was received.

        Raises:
            RuntimeError: The batch is read by the other view.
            Exception: The consumer's own copy of the error that ended the stream, once.
        """
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        error = self.ends[0].error
        if error is not None and not self.cancelled:
            self.cancelled = True  # of the error, and of what a pump may still add
            raise consumer_error(error)
        self.discard()

    def take_all(self) -> list[T]:
        """Take all that is buffered, in one go.

        Raises:
            RuntimeError: The batch is read by the other view.
        """
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        taken = list(self.reader)
        while not self.cancelled:
            outputs, gate = self.first_unread()
            received = GATE - length_hint(gate)
            if received == len(outputs):
                break
            taken.extend(compress(outputs[received:], gate))
        if taken:
            self.made_room()
        return taken

    # ---- from any thread

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return self._name or f"stream {self.slot}"

    @property
    def end(self) -> StreamEnd | None:
        """The slot's end; its last output was added before."""
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

    def ask_room(self, on_room: Iterator[object]) -> None:
        """Make the consumer take its next output by itself, and then resume the pump."""
        self.on_room = on_room
        self.room_requests += 1
        self.stop_reader()

    def made_room(self) -> None:
        """Resume a pump that waits for room here: an output was received."""
        requests = self.room_requests  # before: a request that comes meanwhile is not answered
        if (on_room := self.on_room) is not None:
            deque(on_room, maxlen=0)
        self.room_answers = requests

    def stop_reader(self) -> None:
        """End the iterator that the stream reads now, so that its consumer asks the buffer anew."""
        deque(self._inner, maxlen=0)

    @property
    def ready(self) -> bool:
        """Whether there is something to receive, or the end."""
        return bool(self.ends or self.buffered)

    @property
    def buffered(self) -> int:
        """How many outputs wait to be received."""
        return 0 if self.cancelled else self.unread

    @property
    def unread(self) -> int:
        """How many outputs are held: for a pump, also those of a stream that was just cancelled.

        Did it count none, it would run on in the moment before the cancel is queued for the core.
        """
        return sum(
            length_hint(gate) - GATE + len(outputs) for outputs, gate in self.segments.copy()
        )
