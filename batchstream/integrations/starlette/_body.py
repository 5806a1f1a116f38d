"""A stream, or an iterator around one, as the body of a response: encoded, in any format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self

from anyio import CancelScope
from anyio.lowlevel import checkpoint
from typing_extensions import TypeVar

from batchstream import AsyncStream, FinishReason, StreamEnd
from batchstream._eventloops.base import OUTPUTS_PER_TURN
from batchstream._streams.body import check_complete
from batchstream.integrations._http import Body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

T = TypeVar("T")
ValueT = TypeVar("ValueT")


class Encoders(Generic[T]):
    """How a format writes what a stream gives; each returns None for what is left out.

    Attributes:
        output: Makes an output bytes.
        end: Makes the end bytes; None for a body without a word for it.
        error: Makes an error bytes; None for a body without a word for it.
    """

    def __init__(
        self,
        output: Callable[[T], bytes | None],
        end: Callable[[StreamEnd], bytes | None] | None,
        error: Callable[[Exception], bytes | None] | None,
    ) -> None:
        self.output = output
        self.end = end
        self.error = error


class OutputsBody(Body, Generic[T]):
    """Outputs, encoded. If one cannot be encoded, the outputs before it are sent.

    Args:
        outputs: From now on only this object reads it.
        encoders: Make outputs, the end and an error bytes. They run in the event loop.
    """

    def __init__(self, outputs: AsyncIterator[T], encoders: Encoders[T]) -> None:
        super().__init__()
        self._outputs = outputs
        self._encoders = encoders
        self._chunks = 0
        self._ended = False
        self._failure: Exception | None = None

    def word_for(self, error: Exception) -> bytes | None:
        """Return the last chunk of a body that fails, or None for none."""
        return None if self._encoders.error is None else _call(self._encoders.error, error)

    async def _next(self) -> bytes | None:
        """Wait for the next chunk; None is the end.

        Raises:
            ClosedError: The stream was cancelled from elsewhere, or its error was raised there.
            Exception: The error of the outputs, or what encoding raised.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        while not self._ended:
            try:
                # In this frame: each coroutine in between would be gone through for every chunk.
                output = await anext(self._outputs)
            except StopAsyncIteration:
                end = self._end()
                self._ended = True
                return None if self._encoders.end is None else _call(self._encoders.end, end)
            except BaseException as error:
                self._break_off(error)
                raise
            more = self._drain()
            chunk = (
                await self._join([output, *more])
                if more
                else _call(self._encoders.output, output)  # by far the most, with a slow model
            )
            self._chunks += 1
            if not self._chunks % OUTPUTS_PER_TURN:
                await checkpoint()  # neither the outputs nor a server need ever wait
            if chunk is not None:
                return chunk
        return None

    async def _join(self, outputs: list[T]) -> bytes | None:
        parts: list[bytes] = []
        for start in range(0, len(outputs), OUTPUTS_PER_TURN):
            if start:
                await checkpoint()
            for output in outputs[start : start + OUTPUTS_PER_TURN]:
                try:
                    part = _call(self._encoders.output, output)
                except Exception as error:
                    if not parts:
                        raise
                    self.cancel()  # before the good ones are written, which may take its time
                    self._failure = error
                    return b"".join(parts)
                if part is not None:
                    parts.append(part)
        return b"".join(parts) if parts else None

    def _drain(self) -> Sequence[T]:
        """Return the outputs that can be had without waiting."""
        return ()

    def _break_off(self, error: BaseException) -> None:
        """Take note that the outputs have failed, or that waiting for one was cancelled."""

    @abstractmethod
    def _end(self) -> StreamEnd:
        """Return how the outputs ended, once they have.

        Raises:
            ClosedError: Some may be missing.
        """


class StreamBody(OutputsBody[T]):
    """The outputs of a stream; a chunk is all that was buffered, and waits for no more."""

    def __init__(self, stream: AsyncStream[T], encoders: Encoders[T]) -> None:
        super().__init__(stream, encoders)
        self._stream = stream

    def cancel(self) -> None:
        """Cancel the stream."""
        self._stream.cancel()

    def _drain(self) -> Sequence[T]:
        return self._stream.drain()

    def _end(self) -> StreamEnd:
        check_complete(self._stream)  # the response itself has not cancelled it yet
        end = self._stream.end
        assert end is not None  # noqa: S101 - for the type checker
        return end


class IteratorBody(OutputsBody[T]):
    """The outputs of an asynchronous iterator, such as a generator that reads a stream.

    It closes the iterator. The frames of one that an error or a cancellation has ended would keep
    its stream for as long as a framework keeps the error, so their variables are dropped.
    """

    def __init__(self, outputs: AsyncIterable[T], encoders: Encoders[T]) -> None:
        super().__init__(aiter(outputs), encoders)

    def cancel(self) -> None:
        """Do nothing: an iterator can only be closed."""

    async def aclose(self) -> None:
        """Close the iterator, also in a task that is being cancelled."""
        close: Any = getattr(self._outputs, "aclose", None)
        self._outputs = _Closed()
        if close is not None:
            with CancelScope(shield=True):
                await close()

    def _break_off(self, error: BaseException) -> None:
        clear_frames(error.__traceback__)

    def _end(self) -> StreamEnd:
        return StreamEnd(FinishReason.EXHAUSTED, self._chunks)


class _Closed:
    """Takes the place of an iterator, which refers to a stream, once it is closed."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NoReturn:
        raise StopAsyncIteration


def body_of(outputs: AsyncStream[T] | AsyncIterable[T], encoders: Encoders[T]) -> OutputsBody[T]:
    """Return the body that sends what a response was given.

    Raises:
        TypeError: It is neither a stream nor another asynchronous iterator.
    """
    if isinstance(outputs, AsyncStream):
        return StreamBody(outputs, encoders)
    if isinstance(outputs, AsyncIterable):
        return IteratorBody(outputs, encoders)
    raise TypeError(
        f"stream must be an AsyncStream or another asynchronous iterator, got {outputs!r}"
    )


def _call(encode: Callable[[ValueT], bytes | None], value: ValueT) -> bytes | None:
    """Encode, and raise a `RuntimeError` for one that would pass for the end of an iteration."""
    try:
        return encode(value)
    except (StopIteration, StopAsyncIteration) as error:
        raise RuntimeError(f"encoding an output raised {error!r}") from error
