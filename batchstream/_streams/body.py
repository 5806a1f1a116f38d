"""A stream as the body of a response, which the code of a web framework reads and then forgets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import TypeVar

from batchstream._core.errors import ClosedError, ConcurrentConsumerError
from batchstream._core.records import FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from batchstream._core.records import StreamEnd

ChunkT = TypeVar("ChunkT")


class Owned(Protocol):
    """What a body reads: a stream for consumers in an event loop."""

    @property
    def slot(self) -> int:
        """See `AsyncStream.slot`."""

    @property
    def end(self) -> StreamEnd | None:
        """See `AsyncStream.end`."""

    async def __anext__(self) -> Any:
        """Wait for the next output."""

    def cancel(self) -> None:
        """Cancel the stream."""


class OwnedBody(AsyncGenerator[ChunkT, None]):
    """What `AsyncStream.body` returns: an asynchronous generator, with `close` besides.

    The frames of a framework refer to it from the error that broke them off, so it cannot wait to
    be dropped: it cancels the stream in the frame through which the error passes.

    Args:
        stream: What it reads, and cancels.
        encode: Makes an output a chunk; None for a body of outputs.
    """

    __slots__ = ("_encode", "_first", "_over", "_stream")

    def __init__(self, stream: Owned, encode: Callable[[Any], ChunkT] | None) -> None:
        self._stream = stream
        self._encode = encode
        self._first: list[ChunkT] = []
        self._over = False

    def __repr__(self) -> str:
        return f"<the body of {self._stream!r}>"

    async def begin(self) -> None:
        """Wait for the first chunk, or the end of an empty body, and keep the chunk."""
        try:
            self._first.append(await self.__anext__())
        except StopAsyncIteration:
            pass

    async def __anext__(self) -> ChunkT:
        if self._first:
            return self._first.pop()
        if self._over:
            raise StopAsyncIteration
        try:
            output = await self._stream.__anext__()
        except StopAsyncIteration:
            self._over = True
            check_complete(self._stream)
            raise
        except ConcurrentConsumerError:
            raise  # the task that came first goes on
        except BaseException:
            self.close()
            raise
        return output if self._encode is None else self._encoded(output)

    def _encoded(self, output: object) -> ChunkT:
        assert self._encode is not None  # noqa: S101 - for the type checker
        try:
            return self._encode(output)
        except StopAsyncIteration as error:  # which would pass for the end of the body
            self.close()
            raise RuntimeError(f"encoding an output raised {error!r}") from error
        except BaseException:
            self.close()
            raise

    async def asend(self, value: None) -> ChunkT:
        """Return the next chunk, as `anext` does."""
        del value
        return await self.__anext__()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> ChunkT:
        """Cancel the stream, and raise the error."""
        self.close()
        error = typ if isinstance(typ, BaseException) else val
        if not isinstance(error, BaseException):
            error = typ() if isinstance(typ, type) else RuntimeError(typ)
        raise error.with_traceback(tb)

    def close(self) -> None:
        """Cancel the stream, unless it has ended, and end the body."""
        self._over = True
        self._first.clear()
        self._stream.cancel()

    async def aclose(self) -> None:
        """Do the same as `close`."""
        self.close()


def check_complete(stream: Owned) -> None:
    """Refuse to take the end of a stream for the end of a body, where outputs may be missing.

    Raises:
        ClosedError: The stream was cancelled from elsewhere, or its error was raised there.
    """
    end = stream.end
    assert end is not None  # noqa: S101 - for the type checker
    # An error that arrives as a mere end was raised to an earlier reader.
    if end.reason in (FinishReason.CANCELLED, FinishReason.ERROR):
        raise ClosedError(
            f"stream {stream.slot} had ended with {end.reason.value!r} "
            f"after {end.outputs} outputs, expected it to reach its own end"
        )
