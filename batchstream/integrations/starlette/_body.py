"""A stream as the body of a response: drained and encoded, in any format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from anyio.lowlevel import checkpoint
from typing_extensions import TypeVar

from batchstream import AsyncStream
from batchstream._eventloops.base import OUTPUTS_PER_TURN
from batchstream._streams.body import check_complete
from batchstream.integrations._http import Body

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream import StreamEnd

T = TypeVar("T")
ValueT = TypeVar("ValueT")


class StreamBody(Body, Generic[T]):
    """The outputs of a stream, encoded; a chunk is all that was buffered, and waits for no more.

    Args:
        stream: From now on only this object reads it.
        encode: Makes an output bytes. It runs in the event loop.
        encode_end: Makes the stream's end the last chunk; None for a body without one.

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
        """Cancel the stream."""
        self._stream.cancel()

    async def _next(self) -> bytes | None:
        """Wait for the next chunk; None is the end.

        Raises:
            ClosedError: The stream was cancelled from elsewhere, or its error was raised there.
            Exception: The stream's error, or what encoding raised.
        """
        if self._ended:
            return None
        try:
            output = await anext(self._stream)
        except StopAsyncIteration:
            return self._end_of_stream()
        more = self._stream.drain()
        if not more:  # by far the most, where the model takes its time
            return _call(self._encode, output)
        outputs = [output, *more]
        parts: list[bytes] = []
        for start in range(0, len(outputs), OUTPUTS_PER_TURN):
            if start:
                await checkpoint()
            some = outputs[start : start + OUTPUTS_PER_TURN]
            parts += [_call(self._encode, output) for output in some]
        return b"".join(parts)

    def _end_of_stream(self) -> bytes | None:
        check_complete(self._stream)  # the response itself has not cancelled it yet
        end = self._stream.end
        assert end is not None  # noqa: S101 - for the type checker
        self._ended = True
        return None if self._encode_end is None else _call(self._encode_end, end)


def _call(encode: Callable[[ValueT], bytes], value: ValueT) -> bytes:
    """Encode, and raise a `RuntimeError` for one that would pass for the end of an iteration."""
    try:
        return encode(value)
    except (StopIteration, StopAsyncIteration) as error:
        raise RuntimeError(f"encoding an output raised {error!r}") from error
