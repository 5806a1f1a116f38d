"""Dynamic batching: requests are gathered into a batch, and the batch is run to its end."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterable, Callable, Iterable
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, TypedDict, overload

from typing_extensions import TypeVar, Unpack

from batchstream._batcher import AnyBatcher
from batchstream._running import DEFAULT_MAX_BUFFERED
from batchstream._source import AsyncSource, Source
from batchstream._task_dispatcher import TaskDispatcher, TaskRun
from batchstream._terms import DEFAULT_MAX_PENDING, Terms
from batchstream._thread_dispatcher import ThreadDispatcher, ThreadRun

if TYPE_CHECKING:
    from collections.abc import Hashable

    from batchstream._dispatcher import Dispatcher
    from batchstream._metrics import Metrics
    from batchstream._request import Request
    from batchstream._running import OnOverflow
    from batchstream._thread import Worker

T = TypeVar("T", default=Any)
S = TypeVar("S")
RequestT = TypeVar("RequestT", default=Any)


class DynamicBatcher(AnyBatcher[RequestT, T]):
    """Gathers requests from anywhere into batches, and returns a stream for each request.

    A batch is formed when a worker is free, and not before: so it has as many requests as wait
    then, up to `max_batch_size`, and only where there are fewer does it wait for more. The others
    wait for a worker; a batch that runs is never joined.

    Args:
        fn: Called with the list of a batch's requests, returns a source of steps, as
            `BatchedStream` takes it: a generator function, or any other that returns an iterable.
            It runs in a worker's thread. An asynchronous generator function runs in a task, in the
            event loop that first submits a request (or enters the batcher with `async with`).
            Either is called in a copy of the context in which this object was made.
        max_batch_size: How many requests a batch has at most.
        batch_timeout: For how long a request waits for others while a worker is free, in seconds
            since it was submitted; one with a deadline does so for half of the time that it may
            wait, if that is shorter.
        max_pending: How many requests may wait while all workers are busy; others are refused with
            `OverloadedError`.
        workers: How many batches may run at once.
        key: A function of a request. Only requests with equal keys share a batch; among those the
            first to come is the first to be served.
        cost: A function of a request that says what it takes of `max_batch_cost`, such as its
            number of tokens.
        max_batch_cost: What the requests of a batch may cost together.
        eos: See `BatchedStream`, as for the other options not explained here.
        is_eos: It runs where `fn` does.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: Finish a stream with `length` once it has been given so many outputs; a
            number, or a function of a request that returns one or None.
        require_eos: Streams that are live when the source ends raise `MissingEOSError`.
        max_buffered: How many outputs a live stream may hold unread.
        on_overflow: `"cancel"` ends a stream that holds more, with `SlowConsumerError` after what
            it holds: those who share a batch are strangers. `"wait"` lets the batch wait for it.
        metrics: Is told what happens; see `Metrics`.

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
    """

    __slots__ = ("__weakref__",)

    def __init__(
        self,
        fn: Callable[[list[RequestT]], Iterable[Any] | AsyncIterable[Any]],
        *,
        max_batch_size: int,
        batch_timeout: float = 0.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        workers: int = 1,
        key: Callable[[RequestT], Hashable] | None = None,
        cost: Callable[[RequestT], float] | None = None,
        max_batch_cost: float | None = None,
        eos: object = None,
        is_eos: Callable[[T], object] | None = None,
        include_eos: bool = False,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        require_eos: bool = False,
        max_buffered: int = DEFAULT_MAX_BUFFERED,
        on_overflow: OnOverflow = "cancel",
        metrics: Metrics | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"fn takes a function of a list of requests, got {fn!r}")
        if _is(inspect.iscoroutinefunction, fn):
            raise TypeError(
                f"fn must return a source of steps, got the coroutine function {fn!r}: "
                f"let it yield its steps, which makes it an asynchronous generator function"
            )
        terms: Terms[RequestT, T] = Terms(
            max_batch_size=max_batch_size,
            batch_timeout=batch_timeout,
            max_pending=max_pending,
            workers=workers,
            key=key,
            cost=cost,
            max_batch_cost=max_batch_cost,
            eos=eos,
            is_eos=is_eos,
            include_eos=include_eos,
            max_outputs=max_outputs,
            require_eos=require_eos,
            max_buffered=max_buffered,
            on_overflow=on_overflow,
            metrics=metrics,
        )
        self._dispatcher = _dispatcher_for(fn, terms)


_Steps: TypeAlias = "Iterable[Any] | AsyncIterable[Any]"


class BatcherOptions(TypedDict, total=False):
    """The arguments of `DynamicBatcher` that `batched` passes on."""

    max_pending: int
    workers: int
    key: Callable[[Any], Hashable] | None
    cost: Callable[[Any], float] | None
    max_batch_cost: float | None
    eos: object
    is_eos: Callable[[Any], object] | None
    include_eos: bool
    max_outputs: int | Callable[[Any], int | None] | None
    require_eos: bool
    max_buffered: int
    on_overflow: OnOverflow
    metrics: Metrics | None


class _Method(Protocol[RequestT]):
    """A batched method, as the class has it."""

    def __get__(self, instance: object, owner: type) -> DynamicBatcher[RequestT]: ...


class _Decorator(Protocol):
    """What `batched` returns: the function's requests are the batcher's."""

    @overload
    def __call__(self, fn: Callable[[list[RequestT]], _Steps], /) -> DynamicBatcher[RequestT]: ...
    @overload
    def __call__(self, fn: Callable[[Any, list[RequestT]], _Steps], /) -> _Method[RequestT]: ...


@overload
def batched(
    *, max_batch_size: int = 8, batch_timeout: float = 0.01, **options: Unpack[BatcherOptions]
) -> _Decorator: ...
@overload
def batched(fn: Callable[[list[RequestT]], _Steps], /) -> DynamicBatcher[RequestT]: ...
def batched(
    fn: Any = None,
    /,
    *,
    max_batch_size: int = 8,
    batch_timeout: float = 0.01,
    **options: Any,
) -> Any:
    """Turn a function of a list of requests into a `DynamicBatcher`, as a decorator.

    Of a method it makes one batcher for each instance, when it is first looked up there. It is kept
    in the instance, and closed by whoever closes the instance; or its threads end when the garbage
    collector finds that both are out of use. A copy of the instance gets its own.

    Args:
        fn: The function, where the decorator is used without arguments.
        max_batch_size: How many requests a batch has at most.
        batch_timeout: For how long a request waits for others while a worker is free, in seconds.
        **options: The other arguments of `DynamicBatcher`.

    Raises:
        TypeError, ValueError: See `DynamicBatcher`.

    Example:
        >>> import batchstream
        >>> @batchstream.batched(max_batch_size=4)
        ... def spell(words):
        ...     for position in range(max(map(len, words)) + 1):
        ...         yield [word[position] if position < len(word) else None for word in words]
        >>> "-".join(spell.stream("batch"))
        'b-a-t-c-h'
        >>> spell.close()
    """
    options.update(max_batch_size=max_batch_size, batch_timeout=batch_timeout)
    if fn is None:
        return functools.partial(BatchedFunction, **options)
    return BatchedFunction(fn, **options)


class BatchedFunction(DynamicBatcher[RequestT, T]):
    """What `batched` makes of a function; or of a method, and then it is never used itself."""

    def __init__(self, fn: Callable[..., Any], **options: Any) -> None:
        super().__init__(fn, **options)
        self._fn = fn
        self._options = options
        self._kept_as: str | None = None
        self._making = Lock()
        for name in functools.WRAPPER_ASSIGNMENTS:  # an object that is called may have none
            if hasattr(fn, name):
                setattr(self, name, getattr(fn, name))
        self.__wrapped__ = fn

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refuse: requests come one by one."""
        raise TypeError(
            f"{self._fn!r} is batched: submit a request with .stream(request) or .astream(request)"
        )

    def __set_name__(self, owner: type, name: str) -> None:
        # Not by its name alone: a subclass may have its own, and use this one through super().
        self._kept_as = f"{name} of {owner.__module__}.{owner.__qualname__}"

    def __get__(self, instance: object, owner: type | None = None) -> DynamicBatcher[RequestT, T]:
        if instance is None or self._kept_as is None:
            return self
        try:
            attributes = instance.__dict__
        except AttributeError:
            raise TypeError(
                f"{self._kept_as} is batched, and its batcher is kept in the instance: "
                f"{type(instance).__name__} needs a __dict__ for that"
            ) from None
        kept: Any = attributes.get(self._kept_as)
        if kept is None or kept.instance_id != id(instance):
            with self._making:
                kept = attributes.get(self._kept_as)
                if kept is None or kept.instance_id != id(instance):
                    bound = self._fn.__get__(instance, owner)
                    kept = _Kept(DynamicBatcher(bound, **self._options), id(instance))
                    attributes[self._kept_as] = kept
        batcher: DynamicBatcher[RequestT, T] = kept.batcher
        return batcher


class _Kept:
    """The batcher of one instance, which a copy of the instance or its pickle does without.

    Attributes:
        batcher: The batcher.
        instance_id: Of which instance; that of a copy is another.
    """

    __slots__ = ("batcher", "instance_id")

    def __init__(
        self, batcher: DynamicBatcher[Any, Any] | None = None, instance_id: int | None = None
    ) -> None:
        self.batcher = batcher
        self.instance_id = instance_id

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


def _dispatcher_for(fn: Callable[..., Any], terms: Terms[Any, T]) -> Dispatcher[T]:
    def run_in_task(dispatcher: TaskDispatcher[T], requests: list[Request[T]]) -> TaskRun[T]:
        return TaskRun(dispatcher, _open(AsyncSource, fn, requests, dispatcher), requests)

    def run_in_thread(
        dispatcher: ThreadDispatcher[T], requests: list[Request[T]], thread: Worker
    ) -> ThreadRun[T]:
        return ThreadRun(dispatcher, _open(Source, fn, requests, dispatcher), requests, thread)

    if _is(inspect.isasyncgenfunction, fn):
        return TaskDispatcher(terms, run_in_task)
    return ThreadDispatcher(terms, run_in_thread)


def _open(
    kind: Callable[[Any], S],
    fn: Callable[..., Any],
    requests: list[Request[T]],
    dispatcher: Dispatcher[T],
) -> S:
    """Call the function, in a context of the batch's own."""
    contents = [request.content for request in requests]
    return dispatcher.context.copy().run(_call, kind, fn, contents)


def _call(kind: Callable[[Any], S], fn: Callable[..., Any], contents: list[Any]) -> S:
    source = fn(contents)
    if kind is Source and hasattr(source, "__aiter__"):
        raise TypeError(
            f"fn returns an asynchronous iterator, got {fn!r}: "
            f"an asynchronous generator function has to be given as it is"
        )
    return kind(source)


def _is(kind: Callable[[Any], bool], function: Any) -> bool:
    """Whether a function is of this kind, or an object that is called like one."""
    while isinstance(function, functools.partial):
        function = function.func
    return kind(function) or kind(getattr(type(function), "__call__", None))  # noqa: B004
