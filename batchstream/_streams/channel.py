"""A batch whose producer pushes its steps: a streamer, a callback, the thread of an engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, final

from typing_extensions import TypeVar

from batchstream._core.arguments import DEFAULT_MAX_BUFFERED, Bound, OnOverflow, check_size
from batchstream._core.cores import core_of
from batchstream._core.errors import SourceError, type_name
from batchstream._core.markers import End
from batchstream._core.records import FinishReason
from batchstream._core.rules import EndRules
from batchstream._eventloops.current import current_loop
from batchstream._pumps.push import PushPump
from batchstream._streams.async_stream import AsyncStream
from batchstream._streams.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from batchstream._core.elements import Step, StepWithNone
    from batchstream._core.records import Statistics

T = TypeVar("T", default=Any)


@final
class Channel(Generic[T]):
    """The end of a batch into which a producer puts its steps; the streams are the other ends.

    For code that calls you with each step: a streamer, a callback, an engine with a thread of its
    own. Where you can write a generator, `BatchedStream` does the same with less.

    The producer's end is used as a context manager: leaving the block closes the channel, and an
    exception that leaves it fails every stream. A channel that is dropped without either, because
    its thread has died for example, fails them with `SourceError`.

    Args:
        size: How many slots the batch has.
        eos: See `BatchedStream`, as for the other options not explained here.
        is_eos: It runs in the thread or task that puts.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: Finish a stream with `length` once it has been given so many outputs.
        require_eos: Streams that are live when the channel is closed raise `MissingEOSError`.
        max_buffered: How many outputs a live stream may hold unread; 1024 if it is None.
        on_overflow: Where a live stream holds so many, `"wait"` lets `put` wait until all have
            room. `"cancel"` ends a stream that holds more, with `SlowConsumerError` after what it
            holds, so that `put` never waits. Nor does it with `"merge"`, which loses nothing: what
            is put is merged with the last output that the stream holds.
        merge: With `"merge"`, see `AsyncBatchedStream`. It runs in the thread or task that puts.
        max_buffered_bytes: How many bytes a live stream may hold unread; see `AsyncBatchedStream`.
        size_of: How many bytes an output has; see `AsyncBatchedStream`.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.

    Blocking: never.
    Threads: any thread may put, end, fail and close. Puts of several threads, and of a task beside
        them, take turns.

    Example:
        >>> import threading
        >>> import batchstream
        >>> def engine(callback):  # of another library: it calls you
        ...     for step in [["a", "x"], ["b", None], [None, None]]:
        ...         if not callback(step):
        ...             break
        >>> channel = batchstream.Channel(2)
        >>> def produce(channel):
        ...     with channel:
        ...         engine(channel.put)
        >>> short, long = channel.streams()
        >>> threading.Thread(target=produce, args=[channel]).start()
        >>> list(long), list(short)
        (['x'], ['a', 'b'])
    """

    __slots__ = ("__weakref__", "_handed_out", "_pump")

    def __init__(
        self,
        size: int,
        *,
        eos: object = None,
        is_eos: Callable[[T], object] | None = None,
        include_eos: bool = False,
        max_outputs: int | Sequence[int | None] | None = None,
        require_eos: bool = False,
        max_buffered: int | None = None,
        on_overflow: OnOverflow = "wait",
        merge: Callable[[T, T], T] | None = None,
        max_buffered_bytes: int | None = None,
        size_of: Callable[[T], int] | None = None,
    ) -> None:
        bound = Bound.checked(
            DEFAULT_MAX_BUFFERED if max_buffered is None else max_buffered,
            on_overflow,
            merge=merge,
            max_buffered_bytes=max_buffered_bytes,
            size_of=size_of,
        )
        rules: EndRules[T] = EndRules(
            eos=eos, is_eos=is_eos, include_eos=include_eos, require_eos=require_eos
        )
        core = core_of(rules, check_size(size, max_outputs), max_outputs)
        self._handed_out: list[str] = []
        self._pump: PushPump[T] = PushPump(core, bound)  # last: a channel that has one is closed

    # ---- the streams

    def streams(self) -> tuple[Stream[T], ...]:
        """Hand out the streams for consumers in threads, one for each slot.

        Once: their only references are yours, so that a stream that is dropped is cancelled.

        Raises:
            RuntimeError: The streams were handed out before.
        """
        self._hand_out("streams")
        return tuple(Stream._of(it, self._pump) for it in self._pump.fanout.buffers)  # noqa: SLF001

    def astreams(self) -> tuple[AsyncStream[T], ...]:
        """Hand out the streams for consumers in event loops; in place of `streams`.

        Raises:
            RuntimeError: The streams were handed out before.
        """
        self._hand_out("astreams")
        return tuple(AsyncStream._of(it, self._pump) for it in self._pump.fanout.buffers)  # noqa: SLF001

    def _hand_out(self, name: str) -> None:
        self._handed_out.append(name)  # of two threads one comes first
        if len(self._handed_out) > 1:
            raise RuntimeError(
                f"the streams of this channel were handed out by {self._handed_out[0]}() before: "
                "keep what it returned"
            )

    @property
    def live(self) -> tuple[int, ...]:
        """The slots of the streams that have neither finished nor been cancelled.

        Threads: any.
        """
        return self._pump.fanout.live

    def statistics(self) -> Statistics:
        """Return the figures up to now.

        Threads: any.
        """
        return self._pump.fanout.statistics()

    def __len__(self) -> int:
        return len(self._pump.fanout.buffers)

    def __repr__(self) -> str:
        figures = self.statistics()
        return (
            f"<Channel, {figures.live} of {len(self)} streams live, {figures.steps} steps, "
            f"{figures.buffered} buffered>"
        )

    # ---- the producer

    def put(self, step: StepWithNone[T] | Step[T]) -> Sequence[int]:
        """Hand out one step, and return the slots that are live behind it.

        Args:
            step: One output per slot: a sequence or an array, or a mapping from slot to output.
                Slots that are not live may be missing.

        Returns:
            The live slots. None is live where every stream has ended or was cancelled, and the
            engine may stop. The tuple is the same object for as long as nothing has changed.

        Raises:
            StepError: It is no step; every stream has failed with the same error.
            ClosedError: The channel was closed or failed before.
            ForkedError: The process was forked from the one that opened the channel.
            RuntimeError: It is called by a `put` in this thread: by `is_eos`, for example. Or an
                `aput` is under way in an event loop of this thread, which a wait would stop.

        Blocking: with `on_overflow="wait"`, while a live stream has no room; and while another
            thread puts. In an event loop use `aput`.
        Cancellation: an exception from a signal while it waits leaves the step out, and the
            channel as it was: put it again.
        Threads: any; puts take turns. Of two threads that wait for room either may be the next.
        """
        return self._pump.put(step)

    async def aput(self, step: StepWithNone[T] | Step[T]) -> Sequence[int]:
        """Do the same in asyncio or trio.

        Where it need not wait it lets the other tasks of the loop run, if none has had a turn since
        the last `aput`.

        Raises:
            RuntimeError: Another `aput` is under way in this loop, or no event loop runs here.
            Exception: See `put`.

        Cancellation: while it waits it leaves the step out, and the channel as it was.
        """
        return await self._pump.put_in_loop(step, current_loop())

    def end(
        self,
        slot: int,
        reason: FinishReason | str = FinishReason.EOS,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """End the stream of a slot, behind what it was given; one that has ended stays as it is.

        Args:
            slot: The slot.
            reason: See `End`.
            info: Anything the consumer should find in `StreamEnd.info`.

        Raises:
            TypeError: The slot is no whole number.
            IndexError: There is no such slot.
            ValueError: The reason is not one that a source can give.

        Blocking: never. While a put is under way, it takes effect behind that.
        Threads: any thread, callback, finalizer or signal handler.
        """
        if not hasattr(type(slot), "__index__"):
            raise TypeError(f"end takes a slot, a whole number, got {slot!r}")
        if not 0 <= slot < len(self):
            raise IndexError(f"no slot {slot!r}, expected slots from 0 to {len(self) - 1}")
        self._pump.end_slot(slot, End(reason, info))

    def fail(self, error: BaseException) -> None:
        """Fail every live stream, behind what it was given, and close the channel.

        Each consumer gets a copy of its own. After the end it does nothing.

        Raises:
            TypeError: The error is not an exception instance.

        Blocking: never. While a put is under way, it takes effect behind that, and ends its wait.
        Threads: any thread, callback, finalizer or signal handler.
        """
        if not isinstance(error, BaseException):
            raise TypeError(f"fail takes an exception instance, got {type_name(error)}")
        self._pump.fail_live(error)

    def close(self) -> None:
        """Say that no step follows: live streams end as `exhausted`. Repeated calls do nothing.

        With `require_eos` they raise `MissingEOSError`.

        Blocking: never. While a put is under way, it takes effect behind that, and ends its wait.
        Threads: any thread, callback, finalizer or signal handler.
        """
        self._pump.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            self.close()
        else:
            self.fail(exc)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # One that was refused by __init__ has no pump.
        if hasattr(self, "_pump") and not _is_finalizing() and not self._pump.ended:
            self._pump.fail_live(
                SourceError(
                    "the channel was dropped before its end, perhaps as its thread died: "
                    "call close or fail, or put in a `with channel:` block"
                )
            )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Channel cannot be pickled or copied: it is one end of a running batch")
