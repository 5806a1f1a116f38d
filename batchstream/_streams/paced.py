"""A stream as lists of outputs, at most one in so many seconds: for what costs by the message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, overload

from typing_extensions import TypeVar

from batchstream._core.arguments import check_seconds
from batchstream._eventloops.current import current_loop
from batchstream._streams.body import Owned, OwnedBody

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from batchstream._core.records import StreamEnd

T = TypeVar("T")
ChunkT = TypeVar("ChunkT")

EVERY: Final = 0.02


class Drainable(Owned, Protocol[T]):
    """What can be paced: a stream for consumers in an event loop."""

    async def __anext__(self) -> T:
        """Wait for the next output."""

    def drain(self) -> list[T]:
        """Return all outputs that are buffered."""


class PacedReader:
    """Reads a stream in lists, and pauses between them.

    Args:
        stream: What it reads.
        every: How many seconds to let pass from one list to the next, at least.
    """

    def __init__(self, stream: Drainable[Any], every: float) -> None:
        self._stream = stream
        self._every = every
        self._due: float | None = None  # by the clock of the loop

    def __repr__(self) -> str:
        return f"{self._stream!r}, paced"

    @property
    def slot(self) -> int:
        """See `AsyncStream.slot`."""
        return self._stream.slot

    @property
    def end(self) -> StreamEnd | None:
        """See `AsyncStream.end`."""
        return self._stream.end

    async def __anext__(self) -> list[Any]:
        # First the output, then the pause: a stream that has ended ends without one.
        output = await self._stream.__anext__()
        loop = current_loop()
        if self._due is not None and (pause := self._due - loop.now()) > 0:
            await loop.wait(loop.new_waiter(), pause)
        self._due = loop.now() + self._every
        return [output, *self._stream.drain()]

    def cancel(self) -> None:
        """Cancel the stream."""
        self._stream.cancel()


@overload
def paced(
    stream: Drainable[T], *, every: float = EVERY, encode: None = None
) -> AsyncGenerator[list[T], None]: ...
@overload
def paced(
    stream: Drainable[T], *, every: float = EVERY, encode: Callable[[list[T]], ChunkT]
) -> AsyncGenerator[ChunkT, None]: ...
def paced(
    stream: Drainable[Any],
    *,
    every: float = EVERY,
    encode: Callable[[list[Any]], Any] | None = None,
) -> AsyncGenerator[Any, None]:
    """Return a stream as lists of outputs, at most one list every so many seconds.

    For a transport that costs by the message, such as a handle of Ray Serve, a WebSocket or
    server-sent events: a model of 1 ms a step sends 50 messages a second in place of 1000. The
    first output comes at once, and each other one at most `every` seconds later than without. A
    stream whose outputs are further apart than that is not slowed down.

    Outputs wait in the stream meanwhile, so `max_buffered` has to be more than the model makes in
    `every` seconds. What is returned owns the stream, as `AsyncStream.body` says.

    Args:
        stream: A stream for consumers in an event loop.
        every: Seconds from one list to the next, at least; 0 for no pause: then a list has what
            has come since the one before.
        encode: Makes a list what the framework sends: `"".join` for pieces of text.

    Raises:
        TypeError, ValueError: `every` is no duration, or the stream is none for an event loop.

    Raises (on iteration):
        ClosedError: The stream was cancelled from elsewhere.
        Exception: What iterating over the stream raises, behind all outputs that came before.

    Blocking: never; it waits until there is an output, and until the time has come.
    Cancellation: a receive that is cancelled cancels the stream.
    Threads: one consumer at a time, in the event loop that the stream belongs to.

    Example:
        >>> import asyncio
        >>> import batchstream
        >>> async def model():
        ...     for word in ("so", "it", "goes"):
        ...         yield [word]
        >>> async def main():
        ...     (stream,) = batchstream.demux(model(), size=1)
        ...     return [output async for outputs in batchstream.paced(stream) for output in outputs]
        >>> asyncio.run(main())
        ['so', 'it', 'goes']
    """
    seconds = check_seconds("every", every)
    if not (hasattr(stream, "__anext__") and hasattr(stream, "drain")):
        raise TypeError(
            f"paced takes a batcher's stream that is read in an event loop, such as "
            f"`batcher.astream(request)`, got {stream!r}"
        )
    return OwnedBody(PacedReader(stream, seconds), encode)
