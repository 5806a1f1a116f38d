"""What one stream holds between the pump that writes it and the consumer that reads it.

Theory of operation
-------------------

A buffer is a deque of outputs and an end. The pump appends to the right, and sets the end behind
the last output. The consumer takes from the left; if there is nothing, and an end, it looks once
more for an output. No lock is needed: `append` and `popleft` are atomic, and outputs have one
writer and one reader. An end may be set from any thread; the first one stands.

A pump refers to its buffers, a stream to its buffer and the pump, and no object refers to a stream:
so a stream that is dropped is freed at once, without waiting for the cycle collector.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol

from typing_extensions import TypeVar

from batchstream._core.errors import consumer_error
from batchstream._native.selection import native

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream._core.records import StreamEnd

T = TypeVar("T")

_CLOSED: Final[deque[Any]] = deque(maxlen=0)
"""The outputs of all streams of which nothing can be received: what is appended is discarded."""


class BufferSizes(Protocol):
    """What counts the bytes of a stream; see `_pumps/intake.py`."""

    def held(self, unread: int) -> int:
        """Return how many bytes so many outputs have, which the stream holds."""

    def are_full(self, unread: int) -> bool:
        """Whether so many outputs, which the stream holds, have as many bytes as make it full."""

    def add(self, size: int, unread: int) -> None:
        """Add an output, behind so many that the stream holds."""

    def replace_last(self, size: int) -> None:
        """Measure the last output anew, which was merged with another."""


class Buffer(Generic[T]):
    """The outputs of one slot that wait to be received, and the slot's end.

    Args:
        slot: The slot.
        name: What to call it in an error, if not by its slot.

    Attributes:
        slot: The slot.
        outputs: What waits to be received, the oldest first.
        ends: The slot's end is the first entry: appending is atomic, so of two ends one wins.
        cancelled: Whether nothing more can be received, whatever is buffered.
        awaited: Whether a task waits for it.
        refusal: Why the buffer cannot be read at all, where its batch is read by the other view.
        on_room: While a pump waits for room here: what the consumer calls when it has made some.
        sizes: Where its bytes have a bound: how many it holds.
    """

    __slots__ = (
        "_name",
        "awaited",
        "cancelled",
        "ends",
        "on_room",
        "outputs",
        "refusal",
        "sizes",
        "slot",
    )

    def __init__(self, slot: int, name: str | None = None) -> None:
        self.slot = slot
        self._name = name
        self.outputs: deque[T] = deque()
        self.ends: list[StreamEnd] = []
        self.cancelled = False
        self.awaited = False
        self.refusal: str | None = None
        self.on_room: Callable[[Buffer[T]], object] | None = None
        self.sizes: BufferSizes | None = None

    # ---- from the consumer

    def take_all(self) -> list[T]:
        """Take all that is buffered, in one go.

        Raises:
            RuntimeError: The batch is read by the other view.
        """
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        outputs = self.outputs
        taken: list[T] = []
        try:
            # One call: nothing strikes between taking an output and keeping it.
            with suppress(IndexError):  # another thread has just cancelled the stream
                taken.extend(map(deque.popleft, repeat(outputs, len(outputs))))
            if (on_room := self.on_room) is not None:
                on_room(self)
            return taken
        except BaseException:  # a signal's: the caller does not get the list
            outputs.extendleft(reversed(taken))
            raise

    def conclude(self) -> None:
        """Raise what the stream ended with, when all was received.

        Raises:
            RuntimeError: The batch is read by the other view.
            Exception: The consumer's own copy of the error that ended the stream, once.
        """
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        error = self.ends[0].error
        if error is not None and not self.cancelled:
            own = consumer_error(error)
            try:
                # No call from here on: what broke this off would take the error along.
                self.outputs, self.cancelled = _CLOSED, True
                raise own
            finally:
                del own  # it holds this frame

    # ---- from any thread

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return self._name or f"stream {self.slot}"

    @property
    def end(self) -> StreamEnd | None:
        """The slot's end; its last output was added before."""
        return self.ends[0] if self.ends else None

    @property
    def ready(self) -> bool:
        """Whether there is something to receive, or the end."""
        return bool(self.outputs or self.ends)

    def finish(self, end: StreamEnd) -> None:
        """Set the end, unless there is one."""
        self.ends.append(end)

    def cancel(self, end: StreamEnd) -> None:
        """Let the stream end now, with nothing more received, whatever is buffered."""
        self.finish(end)
        self.shut()

    def shut(self) -> None:
        """Let nothing more be received of a stream that has ended."""
        self.cancelled = True
        outputs, self.outputs = self.outputs, _CLOSED
        outputs.clear()

    def refuse_after_fork(self) -> None:
        """Forget what a live stream holds: its consumer asks the pump, which refuses."""
        self.awaited = False
        if not self.ends:
            self.outputs = deque()

    def is_full(self, limit: int) -> bool:
        """Whether so many outputs wait, or as many bytes as may; for a pump.

        A stream that was cancelled counts as full until the core knows of it: its cancel is being
        queued, and resumes the pump. Otherwise the pump could make a step for it before.
        """
        unread = len(self.outputs)
        if self.cancelled or unread >= limit:
            return True
        return self.sizes is not None and self.sizes.are_full(unread)


if native is not None and not TYPE_CHECKING:
    Buffer = native.Buffer
