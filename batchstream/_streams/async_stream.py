"""The stream of one request for a consumer in an event loop, and how it reads its buffer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, Self, final, overload

from typing_extensions import TypeVar

from batchstream._core.errors import concurrent_error
from batchstream._eventloops.base import OUTPUTS_PER_TURN, WAITERS_PER_TURN
from batchstream._eventloops.current import current_loop
from batchstream._native.selection import native
from batchstream._streams.base import AnyStream
from batchstream._streams.body import OwnedBody

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from types import TracebackType

    from batchstream._eventloops.base import Waiter
    from batchstream._handoff.buffer import Buffer
    from batchstream._handoff.parking import Lot
    from batchstream._handoff.upstream import AsyncUpstream

T_co = TypeVar("T_co", covariant=True, default=Any)
ChunkT = TypeVar("ChunkT")


class LoopBinding(Generic[T_co]):
    """How a consumer is bound to its event loop, by its first wait; and what it rarely does there.

    Attributes:
        _lot: Where it waits.
        _waiting: The waiters in that lot.
        _waiter: Its own; None before the first wait.
        _polls: Whether it polls its upstream as it waits.
        _checkpoint: Lets the other tasks of the loop run.
    """

    if not TYPE_CHECKING:  # the slots are in what derives from this
        __slots__ = ()
    _buffer: Buffer[T_co]
    _upstream: AsyncUpstream
    _lot: Lot | None
    _waiting: dict[object, Any]
    _waiter: Waiter | None
    _polls: bool
    _checkpoint: Callable[[], Awaitable[None]]

    def _attach(self) -> Waiter:
        """Bind the stream to the event loop that runs this, and return its waiter."""
        upstream, buffer = self._upstream, self._buffer
        try:
            loop = current_loop()
            lot = upstream.attach(buffer, loop)
        except BaseException:
            del self  # as in `__anext__`
            raise
        lot.streams.add(self)
        self._waiting = lot.waiting
        self._lot = lot
        self._checkpoint = loop.checkpoint
        self._polls = upstream.poll_after(buffer, loop) is not None
        # Last: what breaks this off before leaves it to the next receive.
        waiter = self._waiter = loop.new_waiter()
        return waiter

    def _cancel_with_loop(self) -> None:
        """Cancel the stream if it has not ended, as the event loop was closed."""
        if not self._buffer.ends:
            self._upstream.cancel(self._buffer)

    def _check_loop(self) -> None:
        """Raise if an output is awaited in another loop than the first."""
        lot, buffer = self._lot, self._buffer
        del self  # as in `__anext__`
        if lot is not None and lot.loop is not None and not lot.loop.is_here:
            raise RuntimeError(
                f"{buffer.name} belongs to the event loop that first waited for it, "
                f"and cannot be waited for in another"
            ) from None

    async def _wait_and_poll(self) -> None:
        """Wait, and poll from time to time where it may be that no pump wakes this consumer."""
        lot, waiter, upstream, buffer = self._lot, self._waiter, self._upstream, self._buffer
        del self  # as in `__anext__`
        assert lot is not None  # noqa: S101 - for the type checker
        assert waiter is not None  # noqa: S101
        loop = lot.loop
        assert loop is not None  # noqa: S101
        await loop.wait(waiter, upstream.poll_after(buffer, loop))
        upstream.poll(buffer)


class AsyncStreamReader(LoopBinding[T_co]):
    """One consumer's end of a buffer, in an event loop.

    It takes what is buffered; where nothing is, it waits until the pump wakes it.

    Args:
        buffer: What it reads.
        upstream: What fills the buffer; it is attached at the first wait.
    """

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_checkpoint",
        "_left",
        "_lot",
        "_polls",
        "_upstream",
        "_waiter",
        "_waiting",
    )

    def __init__(self, buffer: Buffer[T_co], upstream: AsyncUpstream) -> None:
        self._upstream = upstream
        self._left = OUTPUTS_PER_TURN  # how many outputs to take before the others have their turn
        # Known from the first wait on, which binds this to its event loop.
        self._lot = None
        self._waiting = {}
        self._waiter = None
        self._polls = False
        self._buffer = buffer  # last: a stream that has one can be cancelled

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:  # noqa: C901, PLR0912 - one frame per receive, for its speed
        buffer = self._buffer
        try:
            while True:
                if buffer.awaited:
                    raise concurrent_error(buffer.name, "task")  # noqa: TRY301 - one frame
                outputs = buffer.outputs  # in a local: a cancel takes it from the buffer
                if outputs and not self._left:
                    waiter = self._waiter or self._attach()
                    buffer.awaited = True
                    try:
                        await self._checkpoint()
                    finally:
                        buffer.awaited = False
                    self._left = OUTPUTS_PER_TURN
                elif outputs:
                    try:
                        output = outputs.popleft()
                    except IndexError:  # another thread has just cancelled the stream
                        continue
                    self._left -= 1
                    if (on_room := buffer.on_room) is not None:
                        on_room(buffer)
                    return output
                elif not buffer.ends:
                    if (on_room := buffer.on_room) is not None:  # the last receive was broken off
                        on_room(buffer)
                    waiter = self._waiter or self._attach()
                    self._waiting[buffer] = waiter
                    buffer.awaited = True
                    try:
                        # Once more: what came before the parking wakes no waiter.
                        if not (buffer.outputs or buffer.ends):
                            if self._polls:
                                await self._wait_and_poll()
                            else:
                                await waiter
                    except (RuntimeError, TypeError):  # of asyncio, and of trio
                        self._check_loop()
                        raise
                    finally:
                        buffer.awaited = False  # first: an exception may strike behind the call
                        self._waiting.pop(buffer, None)
                    self._left = OUTPUTS_PER_TURN
                elif not buffer.outputs:  # behind the end: the last output was added before it
                    buffer.conclude()
                    raise StopAsyncIteration  # noqa: TRY301
        except BaseException:
            del self  # which this frame would keep alive, and the error keeps the frame
            raise

    def drain(self) -> list[T_co]:
        """Return every buffered output at once."""
        if self._buffer.awaited:
            raise concurrent_error(self._buffer.name, "task")
        return self._buffer.take_all()


if native is not None and not TYPE_CHECKING:
    native.set_turns(OUTPUTS_PER_TURN, WAITERS_PER_TURN)

    class AsyncStreamReader(LoopBinding[T_co], native.AsyncStreamReader):
        """The same, natively."""

        __slots__ = ()


@final
class AsyncStream(AnyStream[T_co], AsyncStreamReader[T_co]):
    """The outputs of one request, as an asynchronous iterator that ends at the request's own end.

    Made by `demux`, `AsyncBatchedStream` and batchers. The source runs by itself, ahead of the
    streams; a stream that has nothing buffered waits until it is woken. It belongs to
    the event loop, of asyncio or trio, in which it first waits.

    After its outputs a stream that ended in an error raises it, once, in a copy that is this
    stream's own, with the original as `__cause__`; from then on it is simply finished.

    Raises (on iteration):
        SlowConsumerError: It held more than `max_buffered` outputs, with `on_overflow="cancel"`.
        DeadlineError: Of a batcher: the request was not finished in the time it was given.
        ConcurrentConsumerError: Another task is waiting for an output of this same stream.
        RuntimeError: The batch is read by time, or the stream belongs to another event loop.
        ClosedError: The event loop that ran the source has ended, or the batch or batcher was
            closed.
        ForkedError: The process was forked from the one that opened the batch.
        Exception: What the source raised, or `Fail` for this slot alone.

    Blocking: never; it waits until there is an output. An output that is buffered is received
        without waiting, except that after every 64 the others in the loop have their turn.
    Cancellation: a receive that is cancelled, by a timeout for example, takes nothing: the next
        one returns what it would have returned. The source does not notice.
    Threads: one consumer at a time, in the event loop that the stream belongs to. Other streams
        may be consumed in other loops and threads.

    Example:
        >>> import asyncio
        >>> import batchstream
        >>> async def model():
        ...     yield ["a", "x"]
        ...     yield ["b", None]
        ...     yield [None, None]
        >>> async def main():
        ...     first, second = batchstream.demux(model(), size=2)
        ...     async for output in first:
        ...         print(output)
        ...     print([output async for output in second], second.finish_reason)
        >>> asyncio.run(main())
        a
        b
        ['x'] eos

    Whatever leaves an `async with stream:` block cancels the stream, without waiting. To a web
    framework hand `stream.body()` over, and not the stream.
    """

    __slots__ = ()

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError("an AsyncStream is made by demux, AsyncBatchedStream or a batcher only")

    @classmethod
    def _of(cls, buffer: Buffer[T_co], upstream: AsyncUpstream) -> AsyncStream[T_co]:
        stream = cls.__new__(cls)
        AsyncStreamReader.__init__(stream, buffer, upstream)
        return stream

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # One that was refused by __init__ has no buffer.
        if hasattr(self, "_buffer") and not _is_finalizing():
            self.cancel()

    def drain(self) -> list[T_co]:
        """Return every buffered output at once: one network write for many outputs.

        The list may be empty. It never raises the stream's error: the next receive does.

        Raises:
            ConcurrentConsumerError: Another task is waiting for an output of this stream.
            RuntimeError: The batch is read by time.

        Blocking: never.
        Cancellation: nothing to cancel.
        Threads: one consumer at a time.
        """
        return super().drain()

    def cancel(self) -> None:
        """Give this stream up: what is buffered is discarded, and the next receive sees the end.

        A consumer that waits for it is woken, and sees the end too. The other streams go on. The
        source learns of it with its next step; if this was the last live stream the source is
        closed, and an asynchronous one is broken off where it waits. Repeated calls, and calls
        after the end, change nothing but to discard what was not received. Dropping the last
        reference to a stream does the same.

        Blocking: never.
        Cancellation: nothing to cancel.
        Threads: any thread, callback, finalizer or signal handler.
        """
        self._upstream.cancel(self._buffer)

    def close(self) -> None:
        """Do the same as `cancel`, for frameworks that close what they send, as Django does.

        Blocking: never.
        Cancellation: nothing to cancel.
        Threads: any thread, callback, finalizer or signal handler.
        """
        self.cancel()

    async def aclose(self) -> None:
        """Cancel this stream, and if none is live any more wait until the source is closed.

        A batcher's stream waits for nothing, as the model goes on with others.

        An error that the source raises while it is closed goes to `sys.unraisablehook`.

        Blocking: never; it waits while the source is in a step, if that cannot be broken off.
        Cancellation: the stream is cancelled all the same, and the source closed later.
        Threads: any event loop.
        """
        self.cancel()
        await self._upstream.wait_closed_if_idle(current_loop())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    @overload
    def body(self, *, encode: None = None) -> AsyncGenerator[T_co, None]: ...
    @overload
    def body(self, *, encode: Callable[[T_co], ChunkT]) -> AsyncGenerator[ChunkT, None]: ...
    def body(self, *, encode: Callable[[T_co], Any] | None = None) -> AsyncGenerator[Any, None]:
        """Return this stream as the body of a response, for any framework that sends one.

        The body is an asynchronous generator of the outputs, and owns the stream. It cancels the
        stream at once if a receive is broken off, as by a client that leaves, if `encode` raises,
        and when the body is closed; `close` and `aclose` do the same. A framework that is given
        the stream itself, or a generator that refers to it, keeps both until Python's garbage
        collector comes, and the model works on for a client that has disconnected.

        Args:
            encode: Makes an output what the framework sends: text, bytes, an event. It runs in
                the event loop.

        Raises (on iteration):
            ClosedError: The stream was cancelled from elsewhere, or its error was raised to an
                earlier reader: to end here would make half a body look whole.
            Exception: What iterating over the stream raises, or what `encode` raised.

        Blocking: never; it waits until there is an output.
        Cancellation: a receive that is cancelled, by a timeout too, cancels the stream.
        Threads: one consumer at a time, in the event loop that the stream belongs to; `close` from
            any thread.

        Example:
            >>> import asyncio
            >>> import batchstream
            >>> async def model():
            ...     yield ["so"]
            ...     yield ["it ends"]
            >>> async def main():
            ...     (stream,) = batchstream.demux(model(), size=1)
            ...     return [chunk async for chunk in stream.body(encode=str.encode)]
            >>> asyncio.run(main())
            [b'so', b'it ends']
        """
        return OwnedBody(self, encode)

    @overload
    async def begin(self, *, encode: None = None) -> AsyncGenerator[T_co, None]: ...
    @overload
    async def begin(self, *, encode: Callable[[T_co], ChunkT]) -> AsyncGenerator[ChunkT, None]: ...
    async def begin(
        self, *, encode: Callable[[T_co], Any] | None = None
    ) -> AsyncGenerator[Any, None]:
        """Wait for the first output, and return the `body` that has it and all others.

        A framework sends the status of a response before it asks for the first output. So an error
        that comes earlier, such as a `RequestError` of the model, is to be raised before the
        response is made: `return StreamingHttpResponse(await batcher.astream(prompt).begin())`.

        Args:
            encode: As for `body`.

        Raises:
            ClosedError: The stream was cancelled from elsewhere, or its error was raised earlier.
            Exception: The stream has failed before its first output, or `encode` has.

        Blocking: until there is an output, or the stream has ended.
        Cancellation: the stream is cancelled, as by everything that breaks off its body.
        Threads: as for `body`.

        Example:
            >>> import asyncio
            >>> import batchstream
            >>> async def model():
            ...     yield ["so"]
            ...     yield ["it ends"]
            >>> async def main():
            ...     (stream,) = batchstream.demux(model(), size=1)
            ...     return [output async for output in await stream.begin()]
            >>> asyncio.run(main())
            ['so', 'it ends']
        """
        body = OwnedBody(self, encode)
        del self  # the body cancels it, and the error of a wait keeps this frame
        await body.begin()
        return body
