"""Dynamic batching: requests are gathered into a batch, and the batch is run to its end."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from typing_extensions import TypeVar, Unpack

from batchstream._batching.batcher import Batcher
from batchstream._batching.batches.request_batch import RequestBatch
from batchstream._batching.calls.reconfiguration import reconfigure
from batchstream._batching.calls.upstream import RequestUpstream
from batchstream._batching.dispatching.task_dispatcher import TaskDispatcher
from batchstream._batching.dispatching.thread_dispatcher import ThreadDispatcher
from batchstream._batching.options import BatcherOptions
from batchstream._batching.single import (
    async_steps_of_results,
    check_parameters,
    check_steps,
    steps_of_results,
)
from batchstream._core.arguments import DEFAULT_MAX_BUFFERED, DEFAULT_MAX_PENDING, is_kind
from batchstream._core.errors import ClosedError
from batchstream._core.markers import EOS
from batchstream._core.rules import EndRules
from batchstream._pumps.source import AsyncSource, Source
from batchstream._pumps.task import TaskPump
from batchstream._pumps.thread import ThreadPump

if TYPE_CHECKING:
    from collections.abc import Hashable

    from batchstream._batching.dispatching.dispatcher import Dispatcher
    from batchstream._batching.requests.request import Request
    from batchstream._batching.telemetry.metrics import MetricsOrFactory
    from batchstream._batching.telemetry.traces import Traces
    from batchstream._core.arguments import OnOverflow
    from batchstream._core.elements import Step, StepWithNone
    from batchstream._core.per_request import per_request
    from batchstream._pumps.worker_thread import WorkerThread
    from batchstream._text.decoder import Decoder

T = TypeVar("T", default=Any)
S = TypeVar("S")
RequestT = TypeVar("RequestT", default=Any)


class _Options(TypedDict, total=False):
    batch_timeout: float
    max_pending: int
    workers: int
    max_batch_cost: float | None
    include_eos: bool
    require_eos: bool
    max_buffered: int
    on_overflow: OnOverflow
    merge: Callable[[Any, Any], Any] | None
    max_buffered_bytes: int | None
    size_of: Callable[[Any], int] | None
    metrics: MetricsOrFactory | None
    traces: Traces | None
    name: str | None
    max_pending_cost: float | None
    max_pending_per_tenant: int | None
    drain: float | None


class DynamicBatcher(Batcher[RequestT, T]):
    """Gathers requests from anywhere into batches, and returns a stream for each request.

    A batch is formed when a worker is free, and not before: so it has as many requests as wait
    then, up to `max_batch_size`, and only where there are fewer does it wait for more. The others
    wait for a worker; a batch that runs is never joined.

    Args:
        fn: Called with the list of a batch's requests, returns a source of steps, as
            `BatchedStream` takes it: a generator function, or any other that returns an iterable
            without a length. One that returns a list, a tuple, an array or a dict fails the batch
            with `StepError`: most likely it holds one result for each request, for which there is
            `single`.
            It runs in a worker's thread. An asynchronous generator function runs in a task, in the
            event loop that first submits a request (or enters the batcher with `async with`).
            Either is called in a copy of the context in which this object was made.
        single: `fn` returns one result for each request, in their order, as a list, a tuple or an
            array; or is a coroutine function that does. A result may be any object, None included,
            and is its request's only output; a `Fail` fails its request. `call` and `acall` wait
            for it. Another number of results fails the batch with `StepError`. The options for
            ends and buffers do not apply.
        max_batch_size: How many requests a batch has at most.
        batch_timeout: For how long a request waits for others while a worker is free, in seconds
            since it was submitted; one with a deadline does so for half of the time that it may
            wait, if that is shorter.
        max_pending: How many requests may wait while all workers are busy; others are refused with
            `OverloadedError`.
        workers: How many batches may run at once.
        key: A function of a request. Only requests with equal keys share a batch; among them the
            first to come is the first to be served.
        cost: A function of a request that says what it takes of `max_batch_cost`, such as its
            number of tokens.
        max_batch_cost: What the requests of a batch may cost together.
        batch_cost: In place of `cost`, where costs do not add up: a function of the list of a
            batch's requests, such as its padded size, the longest times their number. A batch has
            as many of the oldest requests as cost no more than `max_batch_cost` together. It should
            not fall when a request is added. A request with which it raises fails alone. It is
            called by the caller for each single request, and by the worker for the requests that
            wait, about as often as requests come while it waits for others; in the event loop, if
            `fn` is asynchronous. It excludes `max_pending_cost`, `priority` and `tenant`.
        eos: See `BatchedStream`, as for the other options not explained here.
        is_eos: A predicate on outputs, or `per_request` of a function that returns a request's own.
            It runs where `fn` does.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: Finish a stream with `length` once it has been given so many outputs; a
            number, or a function of a request that returns one or None.
        decode: A function of a request that returns its decoder, such as a `TextDecoder` of
            `batchstream.text`, or None for a request whose outputs stay as they are; it is called
            when the request is submitted. `eos`, `is_eos` and `max_outputs` are about the outputs
            of the model, such as token ids, and so are the counts in statistics and ends; the
            stream has what the decoder makes of them. A stop string ends the stream in the step
            that completes it.
        require_eos: Streams that are live when the source ends raise `MissingEOSError`.
        max_buffered: How many outputs a live stream may hold unread.
        on_overflow: `"cancel"` ends a stream that holds more, with `SlowConsumerError` after what
            it holds: requests that share a batch have nothing to do with each other. `"wait"` lets
            the batch wait for it. `"merge"` does neither and loses nothing: what comes is merged
            with the last output that the stream holds.
        merge: With `"merge"`: a function of two neighbouring outputs, the earlier one first, that
            returns one and changes neither, such as `operator.add` for text and lists; see
            `AsyncBatchedStream`.
        max_buffered_bytes: How many bytes a live stream may hold unread; see `AsyncBatchedStream`.
        size_of: A function of an output that returns its bytes; for text and bytes none is needed.
        metrics: Its methods are called as things happen; see `Metrics`. Or a function without
            arguments that returns such an object, such as its class: it is called once, in the
            process and by the call that submits the first request. Or several, in a list.
        traces: Its methods are called for each single request, to trace it; see `Traces`.
        name: What metrics, logs and errors call the batcher; without it metrics and logs call it
            by the name of what it runs.
        max_pending_cost: What the requests that wait may cost together; one that would be too much
            is refused as well.
        priority: A function of a request that returns a whole number, its band. While a request of
            a lower number waits, none of a higher one joins a batch. 0 for all if it is None.
        tenant: A function of a request that returns whose it is, such as an account, hashable. The
            tenants of a band share the batches by what their requests cost, or by their number
            if there is no `cost`. Within a band, a tenant's requests are served in the order of
            arrival.
        share: A function of a request that returns the weight of its tenant; 1 if it is None.
        max_pending_per_tenant: How many requests of one tenant may wait.
        drain: For how many seconds the end of a `with` or `async with` block lets requests end
            before it closes the batcher, as `close(drain=...)` does. None closes it at once, and so
            does an error that leaves the block. For a server whose lifespan is such a block.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.

    Blocking: never.
    Threads: any. Threads of its own begin with the first request; idle ones take no time.

    Example:
        >>> import batchstream
        >>> def countdown(starts):
        ...     for passed in range(max(starts) + 1):
        ...         yield [start - passed or batchstream.EOS for start in starts]
        >>> with batchstream.DynamicBatcher(countdown, max_batch_size=8) as batcher:
        ...     three, one = batcher.stream(3), batcher.stream(1)
        ...     print(list(three), list(one))
        [3, 2, 1] [1]

        A function of results, where each request has one:

        >>> def double(numbers):
        ...     return [2 * number for number in numbers]
        >>> with batchstream.DynamicBatcher(double, max_batch_size=8, single=True) as batcher:
        ...     batcher.call(21)
        42
    """

    __slots__ = ("__weakref__", "_single")
    _may_be_method = False

    @overload
    def __init__(
        self,
        fn: Callable[[list[RequestT]], Awaitable[Iterable[T]]],
        *,
        single: Literal[True],
        max_batch_size: int,
        batch_timeout: float = 0.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        workers: int = 1,
        key: Callable[[RequestT], Hashable] | None = None,
        cost: Callable[[RequestT], float] | None = None,
        batch_cost: Callable[[list[RequestT]], float] | None = None,
        max_batch_cost: float | None = None,
        metrics: MetricsOrFactory | None = None,
        traces: Traces | None = None,
        name: str | None = None,
        max_pending_cost: float | None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        max_pending_per_tenant: int | None = None,
        drain: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        fn: Callable[[list[RequestT]], Iterable[T]],
        *,
        single: Literal[True],
        max_batch_size: int,
        batch_timeout: float = 0.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        workers: int = 1,
        key: Callable[[RequestT], Hashable] | None = None,
        cost: Callable[[RequestT], float] | None = None,
        batch_cost: Callable[[list[RequestT]], float] | None = None,
        max_batch_cost: float | None = None,
        metrics: MetricsOrFactory | None = None,
        traces: Traces | None = None,
        name: str | None = None,
        max_pending_cost: float | None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        max_pending_per_tenant: int | None = None,
        drain: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        fn: Callable[[list[RequestT]], Iterable[StepWithNone[T]] | AsyncIterable[StepWithNone[T]]],
        *,
        single: Literal[False] = False,
        max_batch_size: int,
        key: Callable[[RequestT], Hashable] | None = None,
        cost: Callable[[RequestT], float] | None = None,
        batch_cost: Callable[[list[RequestT]], float] | None = None,
        eos: None = None,
        is_eos: Callable[[T], object] | per_request[RequestT, T] | None = None,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        decode: None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        fn: Callable[[list[RequestT]], Iterable[Step[T]] | AsyncIterable[Step[T]]],
        *,
        single: Literal[False] = False,
        max_batch_size: int,
        key: Callable[[RequestT], Hashable] | None = None,
        cost: Callable[[RequestT], float] | None = None,
        batch_cost: Callable[[list[RequestT]], float] | None = None,
        eos: object,
        is_eos: Callable[[T], object] | per_request[RequestT, T] | None = None,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        decode: None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        fn: Callable[[list[RequestT]], Iterable[Any] | AsyncIterable[Any]],
        *,
        single: Literal[False] = False,
        max_batch_size: int,
        key: Callable[[RequestT], Hashable] | None = None,
        cost: Callable[[RequestT], float] | None = None,
        batch_cost: Callable[[list[RequestT]], float] | None = None,
        eos: object = None,
        is_eos: Callable[[Any], object] | per_request[RequestT, Any] | None = None,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        decode: None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        fn: Callable[[list[RequestT]], Iterable[Any] | AsyncIterable[Any]],
        *,
        single: Literal[False] = False,
        max_batch_size: int,
        key: Callable[[RequestT], Hashable] | None = None,
        cost: Callable[[RequestT], float] | None = None,
        batch_cost: Callable[[list[RequestT]], float] | None = None,
        eos: object = None,
        is_eos: Callable[[Any], object] | per_request[RequestT, Any] | None = None,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        decode: Callable[[RequestT], Decoder[Any, T] | None],
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    def __init__(
        self,
        fn: Callable[[list[RequestT]], Any],
        *,
        single: bool = False,
        max_batch_size: int,
        batch_timeout: float = 0.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        workers: int = 1,
        key: Callable[[RequestT], Hashable] | None = None,
        cost: Callable[[RequestT], float] | None = None,
        batch_cost: Callable[[list[RequestT]], float] | None = None,
        max_batch_cost: float | None = None,
        eos: object = None,
        is_eos: Callable[[T], object] | per_request[RequestT, T] | None = None,
        include_eos: bool = False,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        decode: Callable[[RequestT], Decoder[Any, T] | None] | None = None,
        require_eos: bool = False,
        max_buffered: int = DEFAULT_MAX_BUFFERED,
        on_overflow: OnOverflow = "cancel",
        merge: Callable[[T, T], T] | None = None,
        max_buffered_bytes: int | None = None,
        size_of: Callable[[T], int] | None = None,
        metrics: MetricsOrFactory | None = None,
        traces: Traces | None = None,
        name: str | None = None,
        max_pending_cost: float | None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        max_pending_per_tenant: int | None = None,
        drain: float | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"fn takes a function of a list of requests, got {fn!r}")
        check_parameters(fn, may_be_method=self._may_be_method)
        function = fn  # as it was given
        runs_in_task = is_kind(inspect.isasyncgenfunction, fn)
        if single:
            if runs_in_task or is_kind(inspect.isgeneratorfunction, fn):
                raise TypeError(
                    f"single takes a function that returns one result for each request, got the "
                    f"generator function {fn!r}: leave single out, or let it return its results"
                )
            for_streams = {
                "eos": eos is not None,
                "is_eos": is_eos is not None,
                "include_eos": include_eos,
                "max_outputs": max_outputs is not None,
                "decode": decode is not None,
                "require_eos": require_eos,
                "max_buffered": max_buffered != DEFAULT_MAX_BUFFERED,
                "on_overflow": on_overflow != "cancel",
                "merge": merge is not None,
                "max_buffered_bytes": max_buffered_bytes is not None,
                "size_of": size_of is not None,
            }
            if given := [name for name, is_given in for_streams.items() if is_given]:
                raise TypeError(
                    f"{' and '.join(given)} and single exclude each other: "
                    f"every request has one output, whatever it is"
                )
            eos = EOS
            runs_in_task = is_kind(inspect.iscoroutinefunction, fn)
            fn = async_steps_of_results(fn) if runs_in_task else steps_of_results(fn)
        elif is_kind(inspect.iscoroutinefunction, fn):
            raise TypeError(
                f"fn must return a source of steps, got the coroutine function {fn!r}: "
                f"let it yield its steps, which makes it an asynchronous generator function; "
                f"or pass single=True, if it returns one result for each request"
            )
        options: BatcherOptions[RequestT, T] = BatcherOptions(
            EndRules(
                eos=eos,
                is_eos=is_eos,
                include_eos=include_eos,
                require_eos=require_eos,
                has_requests=True,
            ),
            max_batch_size=max_batch_size,
            batch_timeout=batch_timeout,
            max_pending=max_pending,
            workers=workers,
            key=key,
            cost=cost,
            max_batch_cost=max_batch_cost,
            batch_cost=batch_cost,
            max_outputs=max_outputs,
            decode=decode,
            max_buffered=max_buffered,
            on_overflow=on_overflow,
            merge=merge,
            max_buffered_bytes=max_buffered_bytes,
            size_of=size_of,
            metrics=metrics,
            traces=traces,
            name=name,
            runs=function,
            max_pending_cost=max_pending_cost,
            priority=priority,
            tenant=tenant,
            share=share,
            max_pending_per_tenant=max_pending_per_tenant,
            drain=drain,
        )
        self._single = single
        self._dispatcher = _dispatcher_for(fn, options, runs_in_task=runs_in_task)
        self._upstream = RequestUpstream(self._dispatcher)

    def reconfigure(
        self,
        *,
        max_batch_size: int | None = None,
        batch_timeout: float | None = None,
        max_pending: int | None = None,
        max_batch_cost: float | None = None,
        max_pending_cost: float | None = None,
        max_pending_per_tenant: int | None = None,
    ) -> None:
        """Change limits while requests are served: all given limits at once, or none.

        Batches that are formed from now on go by them; batches that run, and requests that were
        accepted, go on. A request that costs more than a lowered `max_batch_cost` joins a batch
        that has no other. More requests may wait than a lowered `max_pending`,
        `max_pending_cost` or `max_pending_per_tenant` allows, until they have joined a batch. A
        batcher that is draining takes them too, though no batch waits for others.

        The limits hold for this batcher in this process: a child that is forked later begins with
        them, and the pickle of a `batched` function has the limits of its definition.

        Args:
            max_batch_size: How many requests a batch has at most; None leaves it as it is.
            batch_timeout: For how long a request waits for others, in seconds since it was
                submitted; None leaves it.
            max_pending: How many requests may wait; None leaves it.
            max_batch_cost: What the requests of a batch may cost together, where the batcher was
                made with a cost; None leaves it.
            max_pending_cost: What the requests that wait may cost together, where the batcher was
                made with a `cost`; None leaves it, and `math.inf` takes the bound away.
            max_pending_per_tenant: How many requests of one tenant may wait, where the batcher was
                made with a `tenant`; None leaves it, and `sys.maxsize` takes the bound away.

        Raises:
            TypeError, ValueError: An argument is of the wrong kind, or cannot work: nothing is
                changed.
            ClosedError: The batcher was closed.
            ForkedError: The batcher had requests when this process was forked.
            RuntimeError: A signal's handler has interrupted the batcher.

        Blocking: never.
        Cancellation: a signal's exception leaves all limits as they were, or changes all.
        Threads: any, also the model's own.

        Example:
            >>> import batchstream
            >>> @batchstream.batched(max_batch_size=4, batch_timeout=0.0, single=True)
            ... def sizes(numbers):
            ...     return [len(numbers)] * len(numbers)
            >>> sizes.reconfigure(max_batch_size=2)
            >>> sizes.max_batch_size, sizes.batch_timeout
            (2, 0.0)
            >>> sizes.close()
        """
        self._check_own()
        reconfigure(
            self._dispatcher,
            max_batch_size=max_batch_size,
            batch_timeout=batch_timeout,
            max_pending=max_pending,
            max_batch_cost=max_batch_cost,
            max_pending_cost=max_pending_cost,
            max_pending_per_tenant=max_pending_per_tenant,
        )

    def _check_own(self) -> None:
        """Refuse where instances have the batchers that serve requests."""

    @property
    def batch_timeout(self) -> float:
        """For how long a request waits for others, in seconds; see `reconfigure`.

        Threads: any.
        """
        return self._dispatcher.options.batch_timeout

    def call(
        self,
        request: RequestT,
        *,
        timeout: float | None = None,
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        request_id: str | None = None,
    ) -> T:
        """Submit a request, wait for its one result and return it, with `single=True`.

        Args:
            request: Whatever the function takes.
            timeout: For how long to wait for the result, in seconds.
            wait_timeout: For how long the request may wait until it joins a batch.
            first_timeout: For how long to wait for its first output: the same as `timeout`, as the
                result is its only one.
            gap_timeout: Without effect, as no other follows; see `stream`.
            request_id: What errors and logs call the request; see `stream`.

        Raises:
            TypeError: The batcher was made without `single=True`.
            DeadlineError: There was no result in this time.
            ClosedError: The batcher was closed, or the request was cancelled.
            ForkedError: The batcher had requests when this process was forked.
            Exception: What the function raises, as a copy of this caller's own; what `stream`
                raises.

        Blocking: until there is a result.
        Cancellation: a signal's exception cancels the request.
        Threads: any.
        """
        self._check_single("call", "stream")
        stream = self.stream(
            request,
            timeout=timeout,
            wait_timeout=wait_timeout,
            first_timeout=first_timeout,
            gap_timeout=gap_timeout,
            request_id=request_id,
        )
        try:
            return next(stream)  # the end came with it
        except StopIteration:
            raise _cancelled() from None
        except BaseException:
            stream.cancel()  # the error may be kept, and this frame with it
            raise

    async def acall(
        self,
        request: RequestT,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the request's, which its batch goes by
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        request_id: str | None = None,
    ) -> T:
        """Do the same in an event loop.

        Args:
            request: Whatever the function takes.
            timeout: For how long to wait for the result, in seconds.
            wait_timeout: For how long the request may wait until it joins a batch.
            first_timeout: For how long to wait for its first output: the same as `timeout`, as the
                result is its only one.
            gap_timeout: Without effect, as no other follows; see `stream`.
            request_id: What errors and logs call the request; see `stream`.

        Raises:
            Exception: What `call` raises.

        Blocking: never; it waits until there is a result.
        Cancellation: the request is cancelled; the function is not broken off, as the batch has
            other requests.
        Threads: any event loop.
        """
        self._check_single("acall", "astream")
        stream = self.astream(
            request,
            timeout=timeout,
            wait_timeout=wait_timeout,
            first_timeout=first_timeout,
            gap_timeout=gap_timeout,
            request_id=request_id,
        )
        try:
            return await anext(stream)
        except StopAsyncIteration:
            raise _cancelled() from None
        except BaseException:
            stream.cancel()
            raise

    def _check_single(self, name: str, instead: str) -> None:
        if not self._single:
            raise TypeError(
                f"{name} is for functions that return one result for each request (single=True): "
                f"here a request may have many outputs, so use {instead}"
            )


def _cancelled() -> ClosedError:
    return ClosedError("the request was cancelled before it had a result")


def _dispatcher_for(
    fn: Callable[..., Any], options: BatcherOptions[Any, T], *, runs_in_task: bool
) -> Dispatcher[T]:
    def open_in_task(
        dispatcher: TaskDispatcher[T], requests: list[Request[T]]
    ) -> tuple[TaskPump[T], RequestBatch[T]]:
        source = _open(AsyncSource, fn, requests, dispatcher)
        batch: RequestBatch[T] = RequestBatch(dispatcher)
        pump: TaskPump[T] = TaskPump(
            source,
            options.core([request.submission for request in requests]),
            options.bound,
            hooks=batch,
            parking=dispatcher.parking,
            buffers=requests,
        )
        batch.serve(pump, requests)
        return pump, batch

    def open_in_thread(
        dispatcher: ThreadDispatcher[T], requests: list[Request[T]], thread: WorkerThread
    ) -> tuple[ThreadPump[T], RequestBatch[T]]:
        source = _open(Source, fn, requests, dispatcher)
        batch: RequestBatch[T] = RequestBatch(dispatcher)
        pump: ThreadPump[T] = ThreadPump(
            source,
            options.core([request.submission for request in requests]),
            options.bound,
            thread=thread,
            hooks=batch,
            parking=dispatcher.parking,
            buffers=requests,
        )
        batch.serve(pump, requests)
        return pump, batch

    if runs_in_task:
        return TaskDispatcher(options, open_in_task)
    return ThreadDispatcher(options, open_in_thread)


def _open(
    kind: Callable[[Any], S],
    fn: Callable[..., Any],
    requests: list[Request[T]],
    dispatcher: Dispatcher[T],
) -> S:
    """Call the function, in a context of the batch's own."""
    contents = [request.submission.content for request in requests]
    return dispatcher.context.copy().run(_call, kind, fn, contents)


def _call(kind: Callable[[Any], S], fn: Callable[..., Any], contents: list[Any]) -> S:
    try:
        source = fn(contents)
    except TypeError:
        check_parameters(fn)  # a method, perhaps, that was looked up in its class
        raise
    if kind is Source and hasattr(source, "__aiter__"):
        raise TypeError(
            f"fn returns an asynchronous iterator, got {fn!r}: "
            f"an asynchronous generator function has to be given as it is"
        )
    check_steps(fn, source, for_results="pass single=True")
    return kind(source)
