"""How a consumer in a thread reads a buffer, without running Python code for most outputs.

Theory of operation
-------------------

A stream is an `itertools.chain`, and what it chains are C iterators over segments. Only when such
an iterator is used up does the chain come to `Inlet.__next__`, which gives it the next segment or
asks the pump for a step. A chain stays alive through an exception raised there, as it would not if
the exception came out of the iterator that it takes its parts from: that one is a bare
`deque.popleft`, which cannot raise while `__next__` keeps it filled.

An inlet knows its buffer and the pump, and nobody knows an inlet but its own stream.
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
    from batchstream._handoff.upstream import SyncFeed

T = TypeVar("T", default=Any)


class Inlet(Generic[T]):
    """Where a stream's chain comes when it has read all that it was handed."""

    __slots__ = ("_buffer", "_empty_since", "_entry", "_parts", "_pump", "deadline")

    def __init__(self, buffer: Buffer[T], pump: SyncFeed) -> None:
        self._buffer = buffer
        self._pump = pump
        # Until when a receive waits, on the monotonic clock; None for ever.
        self.deadline: float | None = None
        # How the chain comes here. Its `__iter__` is in C: while a chain is between two parts no
        # other thread must find it there.
        self._entry: Iterator[T] = map(Inlet.__next__, repeat(self))
        # What the chain is to read next. None ends it for good.
        self._parts: deque[Iterator[T] | None] = deque((self._entry,))
        # The number of moves at which it took the only output there was.
        self._empty_since = -1

    @property
    def parts(self) -> Iterator[Iterator[T]]:
        """The iterators to chain; ends where the stream does."""
        return iter(self._parts.popleft, None)

    def __next__(self) -> T:
        """Hand over what there is, or pull; raise `StopIteration` for the chain to go on."""
        buffer, pump = self._buffer, self._pump
        me = get_ident()
        if buffer.consumer.setdefault("thread", me) != me:
            raise self._concurrent()
        try:
            pulled = False
            if pump.moves == self._empty_since:
                pump.pull(buffer, self._empty_since, self.deadline)
                pulled = True
            while not self._parts:
                # In this order: whoever ends a stream has added its last output before, and what
                # was added after the outputs were looked at shows in the number of moves.
                moves, ended = pump.moves, bool(buffer.ends)
                segments = buffer.segments
                segment = segments[0] if len(segments) == 1 else buffer.first_unread()
                outputs, gate = segment
                received = GATE - length_hint(gate)
                unread = len(outputs) - received
                if ended and (buffer.cancelled or not unread):
                    pump.check_view("by slot")
                    buffer.conclude()
                    self._parts.append(None)
                elif not unread:
                    pump.pull(buffer, moves, self.deadline)
                    pulled = True
                elif (unread == 1 and pulled) or buffer.watches != buffer.told:
                    if unread == 1:
                        self._empty_since = moves
                    output, nowhere = outputs[received], NOWHERE
                    # Counts it. A loop, because a signal's exception may strike after a call, but
                    # not on this way out: the output would be lost.
                    for _ in gate:
                        # This is `tell`, after the output was counted, and without a call.
                        watches, telling = buffer.watches, buffer.telling
                        if telling is not None:
                            nowhere += telling
                        buffer.told = watches
                        return output
                else:
                    self._parts.extend((buffer.read(segment), self._entry))
        finally:
            del buffer.consumer["thread"]  # no call, for the same reason
        raise StopIteration

    def receive(self, chained: Iterator[T], deadline: float) -> T:
        """Return the next of what was chained, or give up when the clock says so."""
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
        """Let go of itself, once there is no chain that could come here."""
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
    buffered. With `background=True`, and of a batcher, it waits instead, for whoever runs the
    source ahead of everybody.

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

    __slots__ = ("__weakref__", "_buffer", "_inlet", "_pump")
    _inlet: Inlet[T]
    _pump: SyncFeed

    def __new__(cls, *_: object, **__: object) -> Self:
        raise TypeError("a Stream is made by demux, BatchedStream or a batcher only")

    @classmethod
    def from_iterable(cls, _: object, /) -> NoReturn:
        """Refuse; inherited, and without a meaning here."""
        raise TypeError("a Stream is made by demux, BatchedStream or a batcher only")

    @classmethod
    def _of(cls, buffer: Buffer[T], pump: SyncFeed) -> Stream[T]:
        inlet = Inlet(buffer, pump)
        stream = cast("Stream[T]", super().from_iterable(inlet.parts))
        stream._attach(buffer, inlet, pump)  # noqa: SLF001 - __new__ refuses, so no __init__ runs
        return stream

    def _attach(self, buffer: Buffer[T], inlet: Inlet[T], pump: SyncFeed) -> None:
        self._buffer = buffer
        self._inlet = inlet
        self._pump = pump

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _is_finalizing():  # the interpreter drops the source as well
            self.cancel()
            self._inlet.abandon()

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
        self._pump.check_timeouts()
        if not timeout >= 0:
            raise ValueError(f"timeout must be 0 or more seconds, got {timeout!r}")
        return self._inlet.receive(self, time.monotonic() + timeout)

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
        self._pump.check_view("by slot")
        return self._inlet.drain()

    def cancel(self) -> None:
        """Give this stream up: what is buffered is discarded, and the next receive sees the end.

        The other streams go on. The source is told with its next step, and closed if this was
        the last live stream. Repeated calls, and calls after the end, change nothing but to
        discard what was not received. Dropping the last reference to a stream does the same.

        Blocking: never, but for the source's own clean-up if this ends a batch that is pulled.
        Cancellation: nothing to cancel.
        Threads: any thread, callback, finalizer or signal handler.
        """
        self._pump.cancel(self._buffer)

    def close(self) -> None:
        """Do the same as `cancel`, for `contextlib.closing`."""
        self.cancel()
