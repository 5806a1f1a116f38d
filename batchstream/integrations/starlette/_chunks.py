"""A stream as pieces of a body: drained and encoded, in whatever format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic

from anyio.lowlevel import checkpoint
from typing_extensions import TypeVar

from batchstream import AsyncStream, FinishReason
from batchstream._core.errors import ClosedError
from batchstream.integrations._response import Body

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream import StreamEnd

T = TypeVar("T")
ValueT = TypeVar("ValueT")

_TURN: Final = 64
"""After how many outputs the event loop's other tasks have their turn."""


class Chunks(Body, Generic[T]):
    """The outputs of a stream, encoded; one chunk is all that was buffered, and never late.

    Args:
        stream: Read by this object alone from now on.
        encode: Makes an output bytes. It runs in the event loop.
        encode_end: Makes the stream's end the last chunk, if there is to be one.

    Raises:
        TypeError: The stream is no `AsyncStream`.
    """

    def __init__(
        self,
        stream: AsyncStream[T],
        encode: Callable[[T], bytes],
        encode_end: Callable[[StreamEnd], bytes] | None,
    ) -> None:
        super().__init__()
        if not isinstance(stream, AsyncStream):
            raise TypeError(f"stream must be an AsyncStream, got {stream!r}")
        self._stream = stream
        self._encode = encode
        self._encode_end = encode_end
        self._ended = False

    def cancel(self) -> None:
        """Give the stream up."""
        self._stream.cancel()

    async def _next(self) -> bytes | None:
        """Wait for the next chunk; None is the end.

        Raises:
            ClosedError: The stream was cancelled, not by whoever reads it here.
            Exception: The stream's error, or what encoding raised.
        """
        if self._ended:
            return None
        try:
            outputs = [await anext(self._stream)]
        except StopAsyncIteration:
            return self._end_of_stream()
        outputs += self._stream.drain()
        parts: list[bytes] = []
        for start in range(0, len(outputs), _TURN):
            if start:
                await checkpoint()
            parts += [_call(self._encode, output) for output in outputs[start : start + _TURN]]
        return b"".join(parts)

    def _end_of_stream(self) -> bytes | None:
        end = self._stream.end
        assert end is not None  # noqa: S101 - for the type checker
        # Nobody cancels here before the last chunk was taken, and an error that comes as a mere end
        # was raised elsewhere. Either way the body would look complete, and is not.
        if end.reason in (FinishReason.CANCELLED, FinishReason.ERROR):
            raise ClosedError(
                f"stream {self._stream.slot} had ended with {end.reason.value!r} "
                f"after {end.outputs} outputs, expected it to reach its own end"
            )
        self._ended = True
        return None if self._encode_end is None else _call(self._encode_end, end)


def _call(encode: Callable[[ValueT], bytes], value: ValueT) -> bytes:
    """Encode, but let no error of it pass for the end of an iteration."""
    try:
        return encode(value)
    except (StopIteration, StopAsyncIteration) as error:
        raise RuntimeError(f"encoding an output raised {error!r}") from error
