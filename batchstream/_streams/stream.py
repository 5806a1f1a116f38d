"""The stream of one request for a consumer in a thread, and how it reads its buffer.

Theory of operation
-------------------

A stream is an `itertools.chain`, and what it chains are C iterators over segments: most outputs are
read without running Python code. Only when such an iterator is used up does the chain come to
`StreamReader.__next__`, which gives it the next segment, or waits. A chain stays alive through an
exception raised there, as it would not if the exception came out of the iterator that it takes its
parts from: that one is a bare `deque.popleft`, which cannot raise while `__next__` keeps it filled.

A reader refers to its buffer and to what fills it; only its own stream refers to the reader.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from itertools import chain, repeat
from operator import length_hint
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, cast, final

from typing_extensions import TypeVar

from batchstream._core.errors import ConcurrentConsumerError
from batchstream._handoff.buffer import GATE, NOWHERE
from batchstream._streams.base import AnyStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchstream._handoff.buffer import Buffer
    from batchstream._handoff.upstream import SyncUpstream

T = TypeVar("T", default=Any)


class StreamReader(Generic[T]):
    """Gives a stream's chain more to read when it has read all that it was given.

    Args:
        buffer: What is read.
        upstream: What fills the buffer.

    Attributes:
        deadline: Until when a receive waits, on the monotonic clock; None for ever.
    """

    __slots__ = ("_buffer", "_empty_since", "_entry", "_parts", "_upstream", "deadline")

    def __init__(self, buffer: Buffer[T], upstream: SyncUpstream) -> None:
        self._buffer = buffer
        self._upstream = upstream
        self.deadline: float | None = None
        # How the chain comes here. Its `__iter__` is in C: no other thread may find a chain between
        # two of its parts.
        self._entry: Iterator[T] = map(StreamReader.__next__, repeat(self))
        # What the chain is to read next. None ends it for good.
        self._parts: deque[Iterator[T] | None] = deque((self._entry,))
        # The upstream's version at which this took the only output there was.
        self._empty_since = -1

    @property
    def parts(self) -> Iterator[Iterator[T]]:
        """The iterators to chain; ends where the stream does."""
        return iter(self._parts.popleft, None)

    def __next__(self) -> T:
        """Return an output, or raise `StopIteration` for the chain to go on to the next part."""
        buffer, upstream = self._buffer, self._upstream
        me = get_ident()
        if buffer.consumer.setdefault("thread", me) != me:
            raise self._concurrent()
        try:
            waited = False
            if upstream.version == self._empty_since:
                upstream.wait(buffer, self._empty_since, self.deadline)
                waited = True
            while not self._parts:
                # In this order: the last output was added before the end, and what is added
                # behind the count of the outputs shows in the version.
                version, ended = upstream.version, bool(buffer.ends)
                segments = buffer.segments
                segment = segments[0] if len(segments) == 1 else buffer.first_unread()
                outputs, gate = segment
                received = GATE - length_hint(gate)
                unread = len(outputs) - received
                if ended and (buffer.cancelled or not unread):
                    buffer.conclude()
                    self._parts.append(None)
                elif not unread:
                    upstream.wait(buffer, version, self.deadline)
                    waited = True
                elif (unread == 1 and waited) or buffer.room_requests != buffer.room_answers:
                    if unread == 1:
                        self._empty_since = version
                    output, nowhere = outputs[received], NOWHERE
                    # Counts the output. No line from here to the return makes a call: a signal's
                    # exception strikes behind calls, and would lose the output.
                    for _ in gate:
                        # This is `Buffer.made_room`, behind the count, and without a call.
                        requests, on_room = buffer.room_requests, buffer.on_room
                        if on_room is not None:
                            nowhere += on_room
                        buffer.room_answers = requests
                        return output
                else:
                    self._parts.extend((buffer.read(segment), self._entry))
        finally:
            del buffer.consumer["thread"]  # not `pop`: no call, for the same reason
        raise StopIteration

    def receive(self, chained: Iterator[T], deadline: float) -> T:
        """Return the next output of the chain, until a time on the monotonic clock."""
        self.deadline = deadline
        try:
            return next(chained)
        finally:
            self.deadline = None

    def drain(self) -> list[T]:
        """Take all that is buffered."""
        buffer = self._buffer
        me = get_ident()
        if buffer.consumer.setdefault("thread", me) != me:
            raise self._concurrent()
        try:
            return buffer.take_all()
        finally:
            buffer.consumer.clear()

    def abandon(self) -> None:
        """Free itself without the cycle collector, once there is no chain that could come here."""
        self._parts.clear()
        self._entry = iter(())

    def _concurrent(self) -> ConcurrentConsumerError:
        return ConcurrentConsumerError(
            f"{self._buffer.name} has one consumer at a time, and another thread waits for it"
        )


@final
class Stream(AnyStream[T], chain[T]):
    """The outputs of one request, as an iterator that ends at the request's own end.

    Made by `demux`, `BatchedStream` and batchers. Asked for an output while none is buffered, a
    stream lets the source go one step on *for every stream of the batch*; the others find theirs
    buffered. With `background=True`, and of a batcher, it waits instead: a thread or a task runs
    the source ahead of all consumers.

    After its outputs a stream that ended in an error raises it, once, in a copy that is this
    stream's own, with the original as `__cause__`; from then on it is simply finished.

    Memory: what is buffered, and the outputs of up to 128 steps that were received lately.
    `itertools.chain` is a base class for speed alone: what is buffered is read without running
    Python code.

    Raises (on iteration):
        BufferOverflowError: A stream of the batch has `max_buffered` unread outputs. Nothing was
            pulled; read or cancel that one, then go on.
        SlowConsumerError: It held more than `max_buffered` outputs, with `on_overflow="cancel"`.
        DeadlineError: Of a batcher: the request was not finished in the time it was given.
        ConcurrentConsumerError: Another thread is waiting for an output of this same stream.
        RuntimeError: The batch is read by time, or its source waits for a stream of its own.
        ClosedError: The batcher was closed, or the process was forked from the one that opened the
            batch.
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
    """

    __slots__ = ("__weakref__", "_buffer", "_reader", "_upstream")
    _reader: StreamReader[T]
    _upstream: SyncUpstream

    def __new__(cls, *_: object, **__: object) -> Self:
        raise TypeError("a Stream is made by demux, BatchedStream or a batcher only")

    @classmethod
    def from_iterable(cls, _: object, /) -> NoReturn:
        """Refuse; inherited, and without a meaning here."""
        raise TypeError("a Stream is made by demux, BatchedStream or a batcher only")

    @classmethod
    def _of(cls, buffer: Buffer[T], upstream: SyncUpstream) -> Stream[T]:
        reader = StreamReader(buffer, upstream)
        stream = cast("Stream[T]", super().from_iterable(reader.parts))
        stream._attach(buffer, reader, upstream)  # noqa: SLF001 - __new__ refuses, so no __init__ runs
        return stream

    def _attach(self, buffer: Buffer[T], reader: StreamReader[T], upstream: SyncUpstream) -> None:
        self._buffer = buffer
        self._reader = reader
        self._upstream = upstream

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _is_finalizing():  # the interpreter drops the source as well
            self.cancel()
            self._reader.abandon()

    def receive(self, timeout: float | None = None) -> T:
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
        return self._reader.receive(self, time.monotonic() + timeout)

    def drain(self) -> list[T]:
        """Return every buffered output at once, without letting the source go on.

        The list may be empty. It never raises the stream's error: the next receive does.

        Raises:
            ConcurrentConsumerError: Another thread is waiting for an output of this stream.
            RuntimeError: The batch is read by time.

        Blocking: never.
        Cancellation: nothing to cancel.
        Threads: one consumer per stream at a time.
        """
        return self._reader.drain()

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
