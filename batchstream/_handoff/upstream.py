"""What a stream asks of whoever fills its buffer: the pump of its batch, or a batcher.

Either is given back the buffers that it made itself, of whatever class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.buffer import View
    from batchstream._handoff.parking import Place


class Feed(Protocol):
    """What a stream asks for, however its consumer waits."""

    def check_view(self, view: View) -> None:
        """Raise if the batch is read by the other view."""

    def cancel(self, buffer: Any) -> None:
        """Give one stream up."""


class SyncFeed(Feed, Protocol):
    """What a stream asks for whose consumer is a thread.

    Attributes:
        moves: How many steps were handed out; for `pull` to tell whether one was missed.
    """

    moves: int

    def pull(self, buffer: Any, moves: int, deadline: float | None) -> None:
        """Return when the buffer may hold something that it did not when `moves` was read.

        Raises:
            TimeoutError: The deadline, a time on the monotonic clock, came first.
        """

    def check_timeouts(self) -> None:
        """Raise if a receive cannot have one."""


class AsyncFeed(Feed, Protocol):
    """What a stream asks for whose consumer is in an event loop."""

    def read_by(self, view: View) -> None:
        """Settle which view is read, or raise if it is the other."""

    def begin(self, loop: EventLoop) -> None:
        """Begin to fill buffers, if nobody has; raise where waiting would be for ever."""

    def place_in(self, loop: EventLoop) -> Place:
        """Return where the consumers of a loop wait."""

    def patience(self, buffer: Any, loop: EventLoop) -> float | None:
        """Return after how many seconds whoever waits in this loop is to `look_after`, if ever."""

    def look_after(self, buffer: Any) -> None:
        """Bring an end about that nobody else may tell of."""

    async def wait_if_idle(self, loop: EventLoop) -> None:
        """Wait until the source is closed, if no stream is live any more."""
