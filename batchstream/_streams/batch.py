"""The shell for threads: streams that pull a step for everybody, or wait for a pump ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, final, overload

from typing_extensions import TypeVar

from batchstream._core.arguments import DEFAULT_MAX_BUFFERED, check_count, check_on_overflow
from batchstream._pumps.opening import Opening
from batchstream._pumps.pull import PullPump
from batchstream._pumps.source import Source
from batchstream._pumps.thread import ThreadPump
from batchstream._pumps.worker_thread import WorkerThread
from batchstream._streams.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from batchstream._core.arguments import OnOverflow
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.records import Delivery, Statistics

T = TypeVar("T", default=Any)


@final
class BatchedStream(Sequence[Stream[T]]):
    """One stream per slot of a batched source, and the batch as a whole.

    Use it as a context manager, so that the source is closed wherever the block is left. It is a
    sequence of its streams; or read it by time with `steps`.

    Args:
        source: An iterable of steps: of sequences with one output per slot, of mappings from slot
            to output, or of arrays. If it is a generator, or has a `send` method like one, it is
            told who is live at each step: `live = yield step`. The tuple is the same object for
            as long as nothing has changed. It may then yield a mapping of the live slots only.
        size: How many slots the batch has. Without it the first step is pulled now, to see;
            needed where that step is a mapping. An empty source without size gives no streams.
        eos: The end mark, compared by identity; where None is an ordinary output pass `EOS`.
        is_eos: A predicate on outputs that is true of the one that ends its sequence,
            `token_ids(2)` for example. It runs in the thread that pulls. One that raises fails
            that slot alone.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: Finish a stream with `length` once it has been given so many outputs: one
            number for all, or one (or None) for each slot.
        require_eos: Where the source ends while streams are live they raise `MissingEOSError`;
            without it they finish as `exhausted`.
        max_buffered: How many outputs a live stream may hold unread. A pull that could exceed it
            raises `BufferOverflowError` before the source is touched. Without it a stream that
            nobody reads holds all its outputs; or up to 1024 with `background`.
        background: Let a thread of its own run the source, ahead of the consumers. It begins with
            the first receive, and ends with the last live stream.
        on_overflow: With `background`, where a live stream holds `max_buffered` outputs: `"wait"`
            lets the source wait until all have room. `"cancel"` ends a stream that holds more,
            with `SlowConsumerError` after what it holds, so that the others never wait for it.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work. The source has
            not been touched, unless its first step showed that `max_outputs` has another size;
            then it is closed.
        StepError: The first step, pulled to learn the size, tells none; the source is closed.
        Exception: What the source raised when the first step was pulled.

    Blocking: only without `size`: until the source has yielded its first step.
    Cancellation: an exception from a signal during the first step closes the source.
    Threads: any. The source runs in a copy of the context in which this object was made, in
        whichever thread pulls, one at a time; with `background`, in a thread of its own.

    Example:
        >>> import batchstream
        >>> def countdown(starts):
        ...     counts = list(starts)
        ...     live = range(len(counts))
        ...     while True:
        ...         step = {slot: counts[slot] or batchstream.EOS for slot in live}
        ...         counts = [count - 1 for count in counts]
        ...         live = yield step
        >>> with batchstream.BatchedStream(countdown([3, 1]), size=2) as batch:
        ...     for stream in batch:
        ...         print(stream.slot, list(stream))
        0 [3, 2, 1]
        1 [1]
    """

    __slots__ = ("__weakref__", "_pump", "_streams")

    def __init__(
        self,
        source: Iterable[Any],
        size: int | None = None,
        *,
        eos: object = None,
        is_eos: Callable[[T], object] | None = None,
        include_eos: bool = False,
        max_outputs: int | Sequence[int | None] | None = None,
        require_eos: bool = False,
        max_buffered: int | None = None,
        background: bool = False,
        on_overflow: OnOverflow = "wait",
    ) -> None:
        if max_buffered is not None:
            max_buffered = check_count("max_buffered", max_buffered, at_least=1)
        if check_on_overflow(on_overflow) == "cancel" and not background:
            raise ValueError(
                "on_overflow='cancel' needs a source that runs by itself, with background=True or "
                "in an AsyncBatchedStream: where consumers pull, a pull too many is refused"
            )
        opening: Opening[T] = Opening(
            size,
            eos=eos,
            is_eos=is_eos,
            include_eos=include_eos,
            max_outputs=max_outputs,
            require_eos=require_eos,
        )
        reader = Source(source)
        if not background:
            core = opening.learn(reader) if size is None else opening.core
            self._pump: PullPump[T] | ThreadPump[T] = PullPump(
                reader, core, max_buffered=max_buffered
            )
        else:
            worker = None if size is not None else WorkerThread()
            core = opening.core if worker is None else _learn_in(worker, opening, reader)
            self._pump = ThreadPump(
                reader,
                core,
                max_buffered=max_buffered or DEFAULT_MAX_BUFFERED,
                on_overflow=on_overflow,
                worker=worker,
            )
        self._streams = tuple(
            Stream._of(buffer, self._pump)  # noqa: SLF001
            for buffer in self._pump.buffers
        )

    def __repr__(self) -> str:
        return f"<BatchedStream, {len(self.live)} of {len(self)} streams live>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a BatchedStream cannot be pickled or copied: it holds a running source")

    def __len__(self) -> int:
        return len(self._streams)

    @overload
    def __getitem__(self, index: int) -> Stream[T]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Stream[T], ...]: ...
    def __getitem__(self, index: int | slice) -> Stream[T] | tuple[Stream[T], ...]:
        return self._streams[index]

    def __iter__(self) -> Iterator[Stream[T]]:
        return iter(self._streams)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def live(self) -> tuple[int, ...]:
        """The slots of the streams that have neither finished nor been cancelled.

        Threads: any.
        """
        return self._pump.live

    def steps(self) -> Iterator[Delivery[T]]:
        """Return an iterator over what each step gives to whom, for loops that serve by time.

        It lets the source go on by one step at a time and buffers nothing; with `background`, up to
        `max_buffered` deliveries wait. Every slot's end is in exactly one delivery, that of a
        cancelled slot in a later one; an error of the source is an end like the others, and is not
        raised. The iterator stops when no slot is live.

        Raises (on iteration):
            RuntimeError: A stream of this batch has been read, or the source waits for itself.
            ClosedError: The process was forked from the one that opened the batch.

        Blocking: until the source has yielded.
        Cancellation: an exception from a signal during a step fails the batch.
        Threads: any, one at a time.

        Example:
            >>> import batchstream
            >>> batch = batchstream.BatchedStream([["a", "x"], ["b", None], [None, None]])
            >>> for delivery in batch.steps():
            ...     print(
            ...         delivery.outputs, [(slot, str(end.reason)) for slot, end in delivery.ends]
            ...     )
            [(0, 'a'), (1, 'x')] []
            [(0, 'b')] [(1, 'eos')]
            [] [(0, 'eos')]
        """
        return iter(self._next_step, None)

    def _next_step(self) -> Delivery[T] | None:
        # A method of the batch, so that whoever has the iterator holds the batch and its streams.
        return self._pump.pull_by_time()

    def cancel(self, slot: int) -> None:
        """Give one slot up, as `Stream.cancel` does.

        Raises:
            IndexError: There is no such slot.

        Blocking: never, but for the source's own clean-up if this ends the batch.
        Cancellation: nothing to cancel.
        Threads: any thread, callback, finalizer or signal handler.
        """
        if not 0 <= slot < len(self):
            raise IndexError(f"no slot {slot!r}, expected slots from 0 to {len(self) - 1}")
        self._streams[slot].cancel()

    def close(self) -> None:
        """Cancel every live stream and close the source. Repeated calls do nothing.

        A stream that had finished keeps what is buffered for it. An error that the source raises
        while it is closed here is raised here; where it is closed because its last stream ended
        it goes to `sys.unraisablehook`.

        Blocking: while another thread is in the source; with `background`, until that thread has
            ended.
        Cancellation: an exception from a signal leaves the batch cancelled; close it again.
        Threads: any. Called by the source itself, it takes effect after the source's step.
        """
        self._pump.close()

    def statistics(self) -> Statistics:
        """Return the figures up to now.

        Threads: any.
        """
        return self._pump.statistics()


def _learn_in(worker: WorkerThread, opening: Opening[T], source: Source) -> Demultiplexer[T]:
    """Let the source make its first step in the thread that will go on with it."""
    try:
        return worker.call(partial(opening.learn, source)).result()
    except BaseException:
        worker.end_after(source.close_quietly)
        raise
