"""`batched`: a function or a method of a list of requests becomes a `DynamicBatcher`."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, Callable, Iterable
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, TypedDict, overload

from typing_extensions import TypeVar, Unpack

from batchstream._batching.dynamic import DynamicBatcher
from batchstream._pumps.process import forkable

if TYPE_CHECKING:
    from collections.abc import Hashable

    from batchstream._batching.metrics import Metrics
    from batchstream._core.arguments import OnOverflow

T = TypeVar("T", default=Any)
RequestT = TypeVar("RequestT", default=Any)

_Steps: TypeAlias = "Iterable[Any] | AsyncIterable[Any]"


class BatchedArguments(TypedDict, total=False):
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
    *, max_batch_size: int = 8, batch_timeout: float = 0.01, **options: Unpack[BatchedArguments]
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
    in the instance, for the instance's owner to close; or its threads end when the garbage
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
        self._making = _Making()
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
            with self._making.lock:
                kept = attributes.get(self._kept_as)
                if kept is None or kept.instance_id != id(instance):
                    bound = self._fn.__get__(instance, owner)
                    kept = _Kept(DynamicBatcher(bound, **self._options), id(instance))
                    attributes[self._kept_as] = kept
        batcher: DynamicBatcher[RequestT, T] = kept.batcher
        return batcher


class _Making:
    """The lock under which a method's batchers are made.

    Attributes:
        lock: The lock.
    """

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = Lock()
        forkable.add(self)

    def refuse_after_fork(self) -> None:
        """Refuse nothing, but take another lock: a thread of the parent may hold the old one."""
        self.lock = Lock()


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
