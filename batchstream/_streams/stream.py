"""The stream of one request for a consumer in a thread, and how it reads its buffer."""

from __future__ import annotations

import sys
import time
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, Self, final

from typing_extensions import TypeVar

from batchstream._core.errors import concurrent_error
from batchstream._native.selection import native
from batchstream._streams.base import AnyStream

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from batchstream._handoff.buffer import Buffer
    from batchstream._handoff.upstream import SyncUpstream

T_co = TypeVar("T_co", covariant=True, default=Any)


class StreamReader(Generic[T_co]):
    """One consumer's end of a buffer, in a thread.

    It takes what is buffered; where nothing is, it has the upstream make a step, or waits until a
    pump has made one.

    Args:
        buffer: What it reads.
        upstream: What fills the buffer.
    """

    __slots__ = ("__weakref__", "_buffer", "_upstream")

    def __init__(self, buffer: Buffer[T_co], upstream: SyncUpstream) -> None:
        self._upstream = upstream
        self._buffer = buffer  # last: a stream that has one can be cancelled

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T_co:
        buffer = self._buffer
        while True:
            outputs = buffer.outputs  # in a local: a cancel takes it from the buffer
            if not outputs:
                try:
                    self._wait(None)
                except BaseException:
                    del self  # which this frame would keep alive, and the error keeps the frame
                    raise
                continue
            try:
                output = outputs.popleft()
            except IndexError:  # another thread has just received it, or cancelled the stream
                continue
            if (on_room := buffer.on_room) is not None:
                on_room(buffer)
            return output

    def drain(self) -> list[T_co]:
        """Take all that is buffered."""
        me = get_ident()
        if self._upstream.consumers.get(self._buffer, me) != me:
            raise concurrent_error(self._buffer.name, "thread")
        return self._buffer.take_all()

    def _wait(self, deadline: float | None) -> None:
        """Let the upstream fill the empty buffer, for as long as the stream has not ended.

        Args:
            deadline: Until when to wait, on the monotonic clock.

        Raises:
            StopIteration: The stream has ended.
            Exception: The stream's error, once.
            TimeoutError: The deadline came first.
            ConcurrentConsumerError: Another thread waits.
        """
        buffer, upstream = self._buffer, self._upstream
        del self  # a wait does not keep the stream alive
        me = get_ident()
        if (on_room := buffer.on_room) is not None:  # the receive before was broken off
            on_room(buffer)
        if buffer.ends:
            if not buffer.outputs:  # behind the end: the last output was added before it
                buffer.conclude()
                raise StopIteration
        # Both asked and claimed, so that of two threads that come at once one is refused.
        elif upstream.consumers.setdefault(buffer, me) != me:
            raise concurrent_error(buffer.name, "thread")
        else:
            try:
                upstream.wait(buffer, deadline)
            finally:
                upstream.consumers.pop(buffer, None)


if native is not None and not TYPE_CHECKING:
    StreamReader = native.StreamReader


@final
class Stream(AnyStream[T_co], StreamReader[T_co]):
    """The outputs of one request, as an iterator that ends at the request's own end.

    Made by `demux`, `BatchedStream` and batchers. Asked for an output while none is buffered, a
    stream lets the source go one step on *for every stream of the batch*; the others find theirs
    buffered. With `background=True`, and of a batcher, it waits instead: a thread or a task runs
    the source ahead of all consumers.

    After its outputs a stream that ended in an error raises it, once, in a copy that is this
    stream's own, with the original as `__cause__`; from then on it is simply finished.

    Raises (on iteration):
        BufferOverflowError: A stream of the batch has `max_buffered` unread outputs. Nothing was
            pulled; read or cancel that one, then go on.
        SlowConsumerError: It held more than `max_buffered` outputs, with `on_overflow="cancel"`.
        DeadlineError: Of a batcher: the request was not finished in the time it was given.
        ConcurrentConsumerError: Another thread is waiting for an output of this same stream.
        RuntimeError: The batch is read by time, or its source waits for a stream of its own.
        ClosedError: The batch or batcher was closed.
        ForkedError: The process was forked from the one that opened the batch.
        Exception: What the source raised, or `Fail` for this slot alone.

    Blocking: until the source has yielded, and while another thread is in the source.
    Cancellation: a receive broken off by a signal's exception keeps what was buffered; broken off
        inside a source that runs in this thread, it fails the batch, as that cannot go on.
    Threads: one consumer per stream at a time; different streams in different threads.

    Example:
        >>> import batchstream
        >>> steps = [["a", "x"], ["b", None], ["c", None], [None, None]]
        >>> first, second = batchstream.demux(steps)
        >>> list(second), list(first)
        (['x'], ['a', 'b', 'c'])
        >>> str(second.finish_reason)
        'eos'

    Whatever leaves a `with stream:` block cancels the stream.
    """

    __slots__ = ()

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError("a Stream is made by demux, BatchedStream or a batcher only")

    @classmethod
    def _of(cls, buffer: Buffer[T_co], upstream: SyncUpstream) -> Stream[T_co]:
        stream = cls.__new__(cls)
        StreamReader.__init__(stream, buffer, upstream)
        return stream

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # One that was refused by __init__ has no buffer; at exit the source is dropped too.
        if hasattr(self, "_buffer") and not _is_finalizing():
            self.cancel()

    def receive(self, timeout: float | None = None) -> T_co:
        """Return the next output, as `next(stream)` does, or give up after a while.

        Args:
            timeout: For how long to wait, in seconds; 0 not at all, None for ever. It needs a
                batch with `background=True` or a batcher, as otherwise the source runs in this very
                thread.

        Raises:
            StopIteration: The stream has ended.
            TimeoutError: No output came in time. The stream is unchanged.
            ValueError: There is a timeout, but no background; or it is negative.
            Exception: What iteration raises.

        Blocking: until there is an output, the stream has ended or the timeout has passed.
        Cancellation: a receive that timed out, or was broken off by a signal's exception while it
            waited, takes nothing.
        Threads: one consumer per stream at a time.
        """
        if timeout is None:
            return next(self)
        if not self._upstream.times_out:
            raise ValueError(
                "timeout needs a batch with background=True: here the source runs in the thread "
                "that receives, and cannot be broken off"
            )
        if not timeout >= 0:
            raise ValueError(f"timeout must be 0 or more seconds, got {timeout!r}")
        deadline = time.monotonic() + timeout
        try:
            while not self._buffer.outputs:
                self._wait(deadline)
            return next(self)
        except BaseException:
            del self  # as in `__next__`
            raise

    def begin(self) -> Self:
        """Wait for the first output, and return this stream: the body of a response.

        A server of threads sends the status of a response before the first output. So an error that
        comes earlier, such as a `RequestError` of the model, is to be raised before the response is
        made: `return Response(batcher.stream(prompt).begin())`. Nothing is taken.

        Raises:
            Exception: The stream has failed before its first output; what iteration raises.

        Blocking: until there is an output, or the stream has ended.
        Cancellation: one that was broken off by a signal's exception leaves the stream unchanged.
        Threads: one consumer per stream at a time.

        Example:
            >>> import batchstream
            >>> (stream,) = batchstream.demux([["so"], ["it ends"]])
            >>> list(stream.begin())
            ['so', 'it ends']
        """
        buffer = self._buffer
        try:
            while not buffer.outputs:
                self._wait(None)
        except StopIteration:
            pass  # it has ended without an output
        except BaseException:
            del self  # as in `__next__`
            raise
        return self

    def drain(self) -> list[T_co]:
        """Return every buffered output at once, without letting the source go on.

        The list may be empty. It never raises the stream's error: the next receive does.

        Raises:
            ConcurrentConsumerError: Another thread is waiting for an output of this stream.
            RuntimeError: The batch is read by time.

        Blocking: never.
        Cancellation: nothing to cancel.
        Threads: one consumer per stream at a time.
        """
        return super().drain()

    def cancel(self) -> None:
        """Give this stream up: what is buffered is discarded, and the next receive sees the end.

        The other streams go on. The source learns of it with its next step, and is closed if this
        was the last live stream. Repeated calls, and calls after the end, change nothing but to
        discard what was not received. Dropping the last reference to a stream does the same.

        Blocking: never, but for the source's own clean-up if this ends a batch that is pulled.
        Cancellation: nothing to cancel.
        Threads: any thread, callback, finalizer or signal handler.
        """
        self._upstream.cancel(self._buffer)

    def close(self) -> None:
        """Do the same as `cancel`, for `contextlib.closing`."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()
