"""What a stream asks of the pump or the batcher that fills its buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.parking import Lot


class Upstream(Protocol):
    """What fills the buffers of streams: a pump, or a batcher.

    A stream hands the buffer back that it was made with, of whatever class it is.
    """

    def cancel(self, buffer: Any) -> None:
        """Cancel one stream; from any thread, and without waiting."""

    def waits_for(self, buffer: Any) -> bool:
        """Whether the source waits until this stream is read; from any thread."""

    def given(self, buffer: Any) -> int:
        """How many outputs this stream was given; from any thread."""


class SyncUpstream(Upstream, Protocol):
    """What a stream asks for whose consumer is a thread.

    Attributes:
        times_out: Whether a receive can have a timeout.
        consumers: Which thread waits for which buffer.
    """

    times_out: bool
    consumers: dict[Any, int]

    def wait(self, buffer: Any, deadline: float | None) -> None:
        """Return when the buffer may hold something that it did not before.

        Raises:
            TimeoutError: The deadline, a time on the monotonic clock, came first.
        """


class AsyncUpstream(Upstream, Protocol):
    """What a stream asks for whose consumer is in an event loop."""

    def attach(self, buffer: Any, loop: EventLoop) -> Lot:
        """Begin to fill buffers, and return the lot in which the consumers of a loop wait.

        Raises:
            RuntimeError: To wait here would be for ever, or the batch is read by the other view.
            ForkedError: This is a fork of the process in which the buffers are filled.
        """

    def poll_after(self, buffer: Any, loop: EventLoop) -> float | None:
        """Return after how many seconds a consumer that waits in this loop polls, if ever."""

    def poll(self, buffer: Any) -> None:
        """Bring about an end that no other code may bring about."""

    async def wait_closed_if_idle(self, loop: EventLoop) -> None:
        """Wait until the source is closed, if no stream is live any more."""
