"""A batch of streams for consumers in event loops, moved by a task or by a thread."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, Generic, Self, TypedDict, final, overload

from typing_extensions import TypeVar, Unpack

from batchstream._core.arguments import (
    DEFAULT_MAX_BUFFERED,
    Bound,
    OnOverflow,
    check_size,
)
from batchstream._core.cores import core_of
from batchstream._core.errors import ClosedError
from batchstream._core.rules import EndRules
from batchstream._eventloops.current import current_loop
from batchstream._pumps.source import AsyncSource, Source
from batchstream._pumps.task import TaskPump
from batchstream._pumps.thread import FirstStep, ThreadPump
from batchstream._streams.async_stream import AsyncStream, AsyncStreamReader
from batchstream._streams.base import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
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
    on_overflow: OnOverflow
    merge: Callable[[Any, Any], Any] | None
    max_buffered_bytes: int | None
    size_of: Callable[[Any], int] | None


@final
class AsyncBatchedStream(Batch[AsyncStream[T], T]):
    """One asynchronous stream per slot of a batched source, and the batch as a whole.

    Use it with `async with`, so that the source is closed however the block ends. It is a
    sequence of its streams; or read it by time with `steps`.

    An asynchronous source is moved by a task, a synchronous one by a thread of its own, both in a
    copy of the context in which this object was made. Either begins with the first receive, runs
    ahead of the streams by up to `max_buffered` outputs, and ends with the last live stream.

    Args:
        source: An iterable of steps, asynchronous or not; see `BatchedStream`. One with an `asend`
            or `send` method, as generators have it, receives the live slots: `live = yield step`.
        size: How many slots the batch has; needed for an asynchronous source. Without it the
            streams are there from the start of the `async with` block on, which then waits for
            the first step.
        eos: See `BatchedStream`, as for the other options not explained here.
        is_eos: It runs in the task or thread that moves the source.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: Finish a stream with `length` once it has been given so many outputs.
        require_eos: Streams that are live when the source ends raise `MissingEOSError`.
        max_buffered: How many outputs a live stream may hold unread; where the batch is read by
            time, how many deliveries may wait.
        on_overflow: Where a live stream holds so many, `"wait"` lets the source wait until all
            have room. `"cancel"` ends a stream that holds more, with `SlowConsumerError` after
            what it holds, so that the others never wait for it. `"merge"` loses nothing and waits
            for no stream: what comes is merged with the last output that the stream holds. A batch
            that is read by time waits in any case.
        merge: With `"merge"`: a function of two neighbouring outputs, the earlier one first, that
            returns one and changes neither; `operator.add` joins text and lists. It runs where
            `is_eos` does. One that raises fails that stream alone. A stream that is not read for
            long is merged again and again: joining text costs as much each time as there is.
        max_buffered_bytes: How many bytes a live stream may hold unread, besides: with `"wait"`
            and `"cancel"` whichever bound comes first holds. With `"merge"` a stream that holds
            more is ended, as with `"cancel"`. A single output may exceed it, so let it be several
            times as large as an output. A batch that is read by time has no bound in bytes.
        size_of: A function of an output, merged or not, that returns how many bytes it has; for
            text and bytes none is needed. It runs where `is_eos` does, once for each output.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.

    Blocking: never.
    Threads: any; no event loop need run yet.

    Example:
        >>> import asyncio
        >>> import batchstream
        >>> def model():  # runs in a thread: it may compute as long as it likes
        ...     yield from [["a", "x"], ["b", None], [None, None]]
        >>> async def read(stream):
        ...     return [output async for output in stream]
        >>> async def main():
        ...     async with batchstream.AsyncBatchedStream(model(), size=2) as batch:
        ...         print(await asyncio.gather(*map(read, batch)))
        >>> asyncio.run(main())
        [['a', 'b'], ['x']]
    """

    __slots__ = ("__weakref__", "_closed", "_pump", "_streams", "_unopened")

    @overload
    def __init__(
        self,
        source: Iterable[StepWithNone[T]] | AsyncIterable[StepWithNone[T]],
        size: int | None = None,
        *,
        eos: None = None,
        is_eos: Callable[[T], object] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: Iterable[Step[T]] | AsyncIterable[Step[T]],
        size: int | None = None,
        *,
        eos: object,
        is_eos: Callable[[T], object] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        size: int | None = None,
        *,
        eos: object = None,
        is_eos: Callable[[Any], object] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    def __init__(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        size: int | None = None,
        *,
        eos: object = None,
        is_eos: Callable[[T], object] | None = None,
        include_eos: bool = False,
        max_outputs: int | Sequence[int | None] | None = None,
        require_eos: bool = False,
        max_buffered: int | None = DEFAULT_MAX_BUFFERED,
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
        self._pump: TaskPump[T] | ThreadPump[T] | None = None
        self._unopened: _Unopened[T] | None = None
        self._closed = False
        self._streams: tuple[AsyncStream[T], ...] = ()
        if isinstance(source, AsyncIterable):
            if size is None:
                raise TypeError("an asynchronous source needs size=, the number of its slots")
            self._open(TaskPump(AsyncSource(source), core, bound))
        elif size is None:
            self._unopened = _Unopened(Source(source), rules, max_outputs, bound)
        else:
            self._open(ThreadPump(Source(source), core, bound))

    def _open(self, pump: TaskPump[T] | ThreadPump[T]) -> None:
        self._pump = pump
        self._streams = tuple(
            AsyncStream._of(buffer, pump)  # noqa: SLF001
            for buffer in pump.fanout.buffers
        )

    def _opened(self) -> TaskPump[T] | ThreadPump[T]:
        if self._pump is None:
            if self._closed:
                raise _closed_before_error()
            raise RuntimeError(
                "the size of this batch is known inside its async with block: "
                "enter it, or pass size="
            )
        return self._pump

    @property
    def _fanout(self) -> Fanout[T]:
        return self._opened().fanout

    def __repr__(self) -> str:
        if self._pump is None:
            return "<AsyncBatchedStream, not entered>"
        return super().__repr__()

    def _repr_html_(self) -> str:
        if self._pump is None:
            from batchstream._core.html import notice  # noqa: PLC0415 - notebooks alone need it

            return notice(repr(self))
        return super()._repr_html_()

    async def __aenter__(self) -> Self:
        if self._unopened is not None:
            unopened, self._unopened = self._unopened, None
            self._open(await unopened.open())
            if self._closed:
                await self.aclose()
        if self._closed:
            raise _closed_before_error()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def steps(self) -> AsyncIterator[Delivery[T]]:
        """Return an iterator over what each step gives to which slots: one `Delivery` a step.

        Every slot's end is in exactly one delivery, that of a cancelled slot in a later one; an
        error of the source is an end like the others, and is not raised. The iterator stops when
        no slot is live. However slow it is read, no slot is ended for it: the source waits while
        `max_buffered` deliveries are unread.

        Raises (on iteration):
            RuntimeError: A stream of this batch has been read, or another event loop waits.
            ClosedError: The batch was closed before its end.
            ForkedError: The process was forked from the one that opened the batch.

        Blocking: never; it waits until there is a delivery.
        Cancellation: a receive that is cancelled takes nothing.
        Threads: one consumer at a time, in the event loop that first waited.

        Example:
            >>> import asyncio
            >>> import batchstream
            >>> async def main():
            ...     steps = [["a", "x"], ["b", None], [None, None]]
            ...     async with batchstream.AsyncBatchedStream(steps, size=2) as batch:
            ...         async for delivery in batch.steps():
            ...             print(delivery.outputs, [slot for slot, _ in delivery.ends])
            >>> asyncio.run(main())
            [(0, 'a'), (1, 'x')] []
            [(0, 'b')] [1]
            [] [0]
        """
        return _Steps(self, self._opened())

    async def collect(self) -> list[list[T]]:
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

        Blocking: never; it waits until no stream is live, and the source is closed.
        Cancellation: the outputs stay in the streams, to be read later. The source goes on as far
            as the bound lets it: where streams hold more by then it waits for them, or with
            `on_overflow="cancel"` ends them after what they hold.
        Threads: any event loop; an asynchronous source runs in the first that waits. Read no
            stream meanwhile, or the lists lack what you read.

        Example:
            >>> import asyncio
            >>> import batchstream
            >>> async def main():
            ...     steps = [["a", "x"], ["b", None], [None, None]]
            ...     async with batchstream.AsyncBatchedStream(steps, size=2) as batch:
            ...         print(await batch.collect())
            >>> asyncio.run(main())
            [['a', 'b'], ['x']]
        """
        await self._opened().collect_in_loop(current_loop())
        return self._take_all()

    async def aclose(self) -> None:
        """Fail every live stream, and wait until the source is closed. Repeated calls do nothing.

        A stream that was live delivers what it holds, and then raises `ClosedError`; so does
        `steps`. A stream that had finished keeps what it holds and its end. An error that the
        source raises while it is closed for this is raised here; where it is closed because its
        last stream ended it goes to `sys.unraisablehook`.

        Blocking: never; it waits while the source is in a step, if that cannot be broken off.
        Cancellation: the streams fail all the same, and the source is closed later.
        Threads: any event loop.
        """
        self._closed = True
        if self._unopened is not None:
            unopened, self._unopened = self._unopened, None
            unopened.close()
        elif self._pump is not None:
            self._pump.close_streams()
            await self._pump.wait_until_closed(current_loop())


def _closed_before_error() -> ClosedError:
    return ClosedError("this batch was closed before it was entered: make another of a new source")


class _Unopened(Generic[T]):
    """A synchronous source of unknown size, and how its pump is made once the size is known."""

    def __init__(
        self,
        source: Source,
        rules: EndRules[T],
        max_outputs: int | Sequence[int | None] | None,
        bound: Bound,
    ) -> None:
        self._source = source
        self._rules = rules
        self._max_outputs = max_outputs
        self._bound = bound

    async def open(self) -> ThreadPump[T]:
        """Make the pump, after the first step has been made in its thread."""
        first = FirstStep(self._source, self._rules, self._max_outputs)
        core = await first.acore()
        return ThreadPump(self._source, core, self._bound, thread=first.thread)

    def close(self) -> None:
        """Close the source, which has made no step yet."""
        self._source.close()


class _Steps(AsyncStreamReader["Delivery[T]"], Generic[T]):
    """The deliveries of a batch as an iterator; it keeps the batch and its streams alive."""

    __slots__ = ("_batch",)

    def __init__(self, batch: AsyncBatchedStream[T], pump: TaskPump[T] | ThreadPump[T]) -> None:
        super().__init__(pump.fanout.deliveries, pump)
        self._batch = batch

    def _cancel_with_loop(self) -> None:
        """Cancel all streams, as the event loop was closed."""
        for slot in self._batch.live:
            self._batch.cancel(slot)
