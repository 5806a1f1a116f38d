"""A batch of streams for consumers in threads, which pull its steps, or wait for a pump ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypedDict, final, overload

from typing_extensions import TypeVar, Unpack

from batchstream._core.arguments import (
    DEFAULT_MAX_BUFFERED,
    Bound,
    OnOverflow,
    check_size,
)
from batchstream._core.cores import core_of
from batchstream._core.rules import EndRules
from batchstream._pumps.pull import PullPump
from batchstream._pumps.source import Source
from batchstream._pumps.thread import FirstStep, ThreadPump
from batchstream._streams.base import Batch
from batchstream._streams.stream import Stream, StreamReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from batchstream._core.elements import Step, StepWithNone
    from batchstream._core.records import Delivery
    from batchstream._pumps.fanout import Fanout

T = TypeVar("T", default=Any)


class _Options(TypedDict, total=False):
    include_eos: bool
    max_outputs: int | Sequence[int | None] | None
    require_eos: bool
    max_buffered: int | None
    background: bool
    on_overflow: OnOverflow
    merge: Callable[[Any, Any], Any] | None
    max_buffered_bytes: int | None
    size_of: Callable[[Any], int] | None


@final
class BatchedStream(Batch[Stream[T], T]):
    """One stream per slot of a batched source, and the batch as a whole.

    Use it as a context manager, so that the source is closed however the block ends. It is a
    sequence of its streams; or read it by time with `steps`.

    Args:
        source: An iterable of steps: of sequences with one output per slot, of mappings from slot
            to output, or of arrays. If it is a generator, or has a `send` method like one, it
            receives the live slots at each step: `live = yield step`. The tuple is the same object
            for as long as nothing has changed. It may then yield a mapping of the live slots only.
        size: How many slots the batch has. Without it the first step is pulled now, to see;
            needed where that step is a mapping. An empty source without size gives no streams.
        eos: The end mark, compared by identity; where None is an ordinary output pass `EOS`.
        is_eos: A predicate on outputs that is true of the one that ends its sequence,
            `token_ids(2)` for example. It may return an `End`, with a reason and an info. It runs
            in the thread that pulls. One that raises fails that slot alone. One that was true of
            no output, in a batch whose streams all end as `exhausted`, gives a `RuntimeWarning`.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: Finish a stream with `length` once it has been given so many outputs: one
            number for all, or one (or None) for each slot.
        require_eos: Where the source ends while streams are live they raise `MissingEOSError`;
            without it they finish as `exhausted`.
        max_buffered: How many outputs a live stream may hold unread. A pull that could exceed it
            raises `BufferOverflowError` before the source is touched. Without it a stream that is
            not read holds all its outputs; or up to 1024 with `background`.
        background: Let a thread of its own run the source, ahead of the consumers. It begins with
            the first receive, and ends with the last live stream.
        on_overflow: With `background`, where a live stream holds `max_buffered` outputs: `"wait"`
            lets the source wait until all have room. `"cancel"` ends a stream that holds more,
            with `SlowConsumerError` after what it holds, so that the others never wait for it.
            `"merge"` loses nothing and waits for no stream: what comes is merged with the last
            output that the stream holds. A batch that is read by time waits in any case.
        merge: With `"merge"`, see `AsyncBatchedStream`.
        max_buffered_bytes: With `background`, how many bytes a live stream may hold unread; see
            `AsyncBatchedStream`.
        size_of: How many bytes an output has; see `AsyncBatchedStream`.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work. The source has
            not been touched, unless its first step showed that `max_outputs` has another size;
            then it is closed.
        StepError: The first step, pulled to learn the size, has none; the source is closed.
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

    @overload
    def __init__(
        self,
        source: Iterable[StepWithNone[T]],
        size: int | None = None,
        *,
        eos: None = None,
        is_eos: Callable[[T], object] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: Iterable[Step[T]],
        size: int | None = None,
        *,
        eos: object,
        is_eos: Callable[[T], object] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: Iterable[Any],
        size: int | None = None,
        *,
        eos: object = None,
        is_eos: Callable[[Any], object] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
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
        if not background and (on_overflow != "wait" or max_buffered_bytes is not None):
            option = "max_buffered_bytes"
            if on_overflow != "wait":
                option = f"on_overflow={on_overflow!r}"
            raise ValueError(
                f"{option} needs a source that runs by itself, with background=True or "
                f"in an AsyncBatchedStream: where consumers pull, a pull too many is refused"
            )
        rules: EndRules[T] = EndRules(
            eos=eos, is_eos=is_eos, include_eos=include_eos, require_eos=require_eos
        )
        core = core_of(rules, check_size(size, max_outputs), max_outputs)
        steps = Source(source)
        if not background:
            if size is None:
                core = steps.learn_core(rules, max_outputs)
            self._pump: PullPump[T] | ThreadPump[T] = PullPump(
                steps, core, max_buffered=None if max_buffered is None else bound.max_buffered
            )
        else:
            first = FirstStep(steps, rules, max_outputs) if size is None else None
            self._pump = ThreadPump(
                steps,
                core if first is None else first.core(),
                bound,
                thread=None if first is None else first.thread,
            )
        self._streams = tuple(
            Stream._of(buffer, self._pump)  # noqa: SLF001
            for buffer in self._pump.fanout.buffers
        )

    @property
    def _fanout(self) -> Fanout[T]:
        return self._pump.fanout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def steps(self) -> Iterator[Delivery[T]]:
        """Return an iterator over what each step gives to which slots: one `Delivery` a step.

        It lets the source go on by one step at a time and buffers nothing; with `background`, up to
        `max_buffered` deliveries wait. Every slot's end is in exactly one delivery, that of a
        cancelled slot in a later one; an error of the source is an end like the others, and is not
        raised. The iterator stops when no slot is live.

        Raises (on iteration):
            RuntimeError: A stream of this batch has been read, or the source waits for itself.
            ClosedError: The batch was closed before its end.
            ForkedError: The process was forked from the one that opened the batch.

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
        return _Steps(self, self._pump)

    def collect(self) -> list[list[T]]:
        """Return all outputs of all streams: a list for each slot, in their order.

        It returns when every stream has ended, and takes what no other consumer has received. All
        outputs are in memory then: `max_buffered` and `on_overflow` do not hold meanwhile. Where
        streams have failed it takes nothing, and raises the error of the lowest slot among them:
        each stream can still be read, to its own end or error. A stream that was cancelled gives
        an empty list.

        Raises:
            RuntimeError: The batch is read by time, or its source waits for itself.
            ClosedError: The batch was closed meanwhile, or the interpreter exits.
            ForkedError: The process was forked from the one that opened the batch.
            Exception: What a stream ended with, in a copy of its own.

        Blocking: until the source has ended, or no stream is live.
        Cancellation: an exception from a signal leaves the outputs in the streams, to be read
            later, and the bound holds again; during a step of a source that is pulled it fails the
            batch. If it strikes as the outputs are handed out it takes them along.
        Threads: any, one at a time. Read no stream meanwhile, or the lists lack what you read.

        Example:
            >>> import batchstream
            >>> batch = batchstream.BatchedStream([["a", "x"], ["b", None], [None, None]])
            >>> batch.collect()
            [['a', 'b'], ['x']]
        """
        self._pump.collect()
        return self._take_all()

    def close(self) -> None:
        """Fail every live stream and close the source. Repeated calls do nothing.

        A stream that was live delivers what it holds, and then raises `ClosedError`; so does
        `steps`. A stream that had finished keeps what it holds and its end. An error that the
        source raises while it is closed here is raised here; where it is closed because its last
        stream ended it goes to `sys.unraisablehook`.

        Blocking: while another thread is in the source; with `background`, until that thread has
            ended.
        Cancellation: an exception from a signal leaves its streams failed; close it again.
        Threads: any. Called by the source itself, it takes effect after the source's step.
        """
        self._pump.close()


class _Steps(StreamReader["Delivery[T]"], Generic[T]):
    """The deliveries of a batch as an iterator; it keeps the batch and its streams alive."""

    __slots__ = ("_batch",)

    def __init__(self, batch: BatchedStream[T], pump: PullPump[T] | ThreadPump[T]) -> None:
        super().__init__(pump.fanout.deliveries, pump)
        self._batch = batch

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "the steps of a batch cannot be pickled or copied: it holds a running source"
        )
