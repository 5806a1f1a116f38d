"""`batched`: a function or a method of a list of requests becomes a `DynamicBatcher`."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextvars import Context
from threading import RLock
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NoReturn,
    Protocol,
    TypeAlias,
    TypedDict,
    overload,
)

from typing_extensions import TypeVar, Unpack

from batchstream._batching.dynamic import DynamicBatcher
from batchstream._core.arguments import check_known
from batchstream._pumps.process import forkable

if TYPE_CHECKING:
    from collections.abc import Hashable

    from batchstream._batching.telemetry.metrics import MetricsOrFactory
    from batchstream._batching.telemetry.traces import Traces
    from batchstream._core.arguments import OnOverflow
    from batchstream._core.elements import Step, StepWithNone
    from batchstream._core.per_request import per_request
    from batchstream._text.decoder import Decoder

T = TypeVar("T", default=Any)
RequestT = TypeVar("RequestT", default=Any)

_Steps: TypeAlias = "Iterable[Step[T]] | AsyncIterable[Step[T]]"
_StepsWithNone: TypeAlias = "Iterable[StepWithNone[T]] | AsyncIterable[StepWithNone[T]]"
_AnySteps: TypeAlias = "Iterable[Any] | AsyncIterable[Any]"


class SingleArguments(TypedDict, total=False):
    """The arguments of `DynamicBatcher` that `batched` passes on for a function of results."""

    max_pending: int
    workers: int
    key: Callable[[Any], Hashable] | None
    cost: Callable[[Any], float] | None
    max_batch_cost: float | None
    batch_cost: Callable[[list[Any]], float] | None
    metrics: MetricsOrFactory | None
    traces: Traces | None
    name: str | None
    max_pending_cost: float | None
    priority: Callable[[Any], int] | None
    tenant: Callable[[Any], Hashable] | None
    share: Callable[[Any], float] | None
    max_pending_per_tenant: int | None
    drain: float | None


class BatchedArguments(SingleArguments, total=False):
    """The same for a function of steps, besides `eos`."""

    is_eos: Callable[[Any], object] | per_request[Any, Any] | None
    include_eos: bool
    max_outputs: int | Callable[[Any], int | None] | None
    require_eos: bool
    max_buffered: int
    on_overflow: OnOverflow
    merge: Callable[[Any, Any], Any] | None
    max_buffered_bytes: int | None
    size_of: Callable[[Any], int] | None


class _Method(Protocol[RequestT, T]):
    """A batched method, as the class has it."""

    def __get__(self, instance: object, owner: type) -> DynamicBatcher[RequestT, T]: ...


class _Decorator(Protocol):
    """What `batched` returns: requests and outputs of the function are the batcher's."""

    @overload
    def __call__(
        self, fn: Callable[[list[RequestT]], _StepsWithNone[T]], /
    ) -> DynamicBatcher[RequestT, T]: ...
    @overload
    def __call__(
        self, fn: Callable[[Any, list[RequestT]], _StepsWithNone[T]], /
    ) -> _Method[RequestT, T]: ...
    @overload
    def __call__(
        self, fn: Callable[[list[RequestT]], _AnySteps], /
    ) -> DynamicBatcher[RequestT, Any]: ...
    @overload
    def __call__(
        self, fn: Callable[[Any, list[RequestT]], _AnySteps], /
    ) -> _Method[RequestT, Any]: ...


class _DecoratorWithEOS(Protocol):
    """The same where None is no end mark."""

    @overload
    def __call__(
        self, fn: Callable[[list[RequestT]], _Steps[T]], /
    ) -> DynamicBatcher[RequestT, T]: ...
    @overload
    def __call__(
        self, fn: Callable[[Any, list[RequestT]], _Steps[T]], /
    ) -> _Method[RequestT, T]: ...
    @overload
    def __call__(
        self, fn: Callable[[list[RequestT]], _AnySteps], /
    ) -> DynamicBatcher[RequestT, Any]: ...
    @overload
    def __call__(
        self, fn: Callable[[Any, list[RequestT]], _AnySteps], /
    ) -> _Method[RequestT, Any]: ...


class _SingleDecorator(Protocol):
    """What `batched` returns for a function of results, which are the batcher's outputs."""

    @overload
    def __call__(
        self, fn: Callable[[list[RequestT]], Awaitable[Iterable[T]]], /
    ) -> DynamicBatcher[RequestT, T]: ...
    @overload
    def __call__(
        self, fn: Callable[[Any, list[RequestT]], Awaitable[Iterable[T]]], /
    ) -> _Method[RequestT, T]: ...
    @overload
    def __call__(
        self, fn: Callable[[list[RequestT]], Iterable[T]], /
    ) -> DynamicBatcher[RequestT, T]: ...
    @overload
    def __call__(
        self, fn: Callable[[Any, list[RequestT]], Iterable[T]], /
    ) -> _Method[RequestT, T]: ...


class _DecodingDecorator(Protocol[T]):
    """What `batched` returns where decoders make the batcher's outputs."""

    @overload
    def __call__(
        self, fn: Callable[[list[RequestT]], _AnySteps], /
    ) -> DynamicBatcher[RequestT, T]: ...
    @overload
    def __call__(
        self, fn: Callable[[Any, list[RequestT]], _AnySteps], /
    ) -> _Method[RequestT, T]: ...


@overload
def batched(
    *,
    single: Literal[True],
    max_batch_size: int = 8,
    batch_timeout: float = 0.01,
    **options: Unpack[SingleArguments],
) -> _SingleDecorator: ...
@overload
def batched(
    *,
    single: Literal[False] = False,
    max_batch_size: int = 8,
    batch_timeout: float = 0.01,
    eos: object = None,
    decode: Callable[[Any], Decoder[Any, T] | None],
    **options: Unpack[BatchedArguments],
) -> _DecodingDecorator[T]: ...
@overload
def batched(
    *,
    single: Literal[False] = False,
    max_batch_size: int = 8,
    batch_timeout: float = 0.01,
    eos: None = None,
    **options: Unpack[BatchedArguments],
) -> _Decorator: ...
@overload
def batched(
    *,
    single: Literal[False] = False,
    max_batch_size: int = 8,
    batch_timeout: float = 0.01,
    eos: object,
    **options: Unpack[BatchedArguments],
) -> _DecoratorWithEOS: ...
@overload
def batched(
    fn: Callable[[list[RequestT]], _StepsWithNone[T]], /
) -> DynamicBatcher[RequestT, T]: ...
@overload
def batched(fn: Callable[[Any, list[RequestT]], _StepsWithNone[T]], /) -> _Method[RequestT, T]: ...
@overload
def batched(fn: Callable[[list[RequestT]], _AnySteps], /) -> DynamicBatcher[RequestT, Any]: ...
@overload
def batched(fn: Callable[[Any, list[RequestT]], _AnySteps], /) -> _Method[RequestT, Any]: ...
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

    The function, or the method of any instance, runs in copies of the context in which it was
    decorated. It is pickled as its definition: by name, or by cloudpickle by value where the
    receiver cannot import it. No worker goes along.

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

        With `single=True` the function returns one result for each request, and `call` waits for
        it:

        >>> @batchstream.batched(max_batch_size=4, single=True)
        ... def measure(words):
        ...     return [len(word) for word in words]
        >>> measure.call("batch")
        5
        >>> measure.close()
    """
    for name in ("step_cost", "max_step_cost"):
        if name in options:
            raise TypeError(
                f"batched takes no {name}: all requests of a batch join with its first step; "
                f"pass cost and max_batch_cost, or use a ContinuousBatcher, which takes it"
            )
    # Not `self`, and not `fn`.
    check_known("batched", options, list(inspect.signature(DynamicBatcher.__init__).parameters)[2:])
    options.update(max_batch_size=max_batch_size, batch_timeout=batch_timeout)
    if fn is None:
        return functools.partial(BatchedFunction, **options)
    return BatchedFunction(fn, **options)


_DEFINITION: Final = "_definition"
_FIRST_WITH_NESTED_NAMES: Final = 4  # of pickle's protocols


class BatchedFunction(DynamicBatcher[RequestT, T]):
    """What `batched` makes of a function; or of a method, and then it is never used itself.

    A pickle holds the definition, as that of a function does, and no worker. The definition is a
    function for that reason: what pickles functions by name, or as cloudpickle does by value where
    another process cannot import them, does the same with it.
    """

    _may_be_method = True

    def __init__(self, fn: Callable[..., Any], **options: Any) -> None:
        super().__init__(fn, **options)
        self._fn = fn
        self._options = options
        self._kept_as: list[str] = []  # one name, once it is known
        self._making = RLock()
        forkable.add(self)
        for name in functools.WRAPPER_ASSIGNMENTS:  # an object that is called may have none
            if hasattr(fn, name):
                setattr(self, name, getattr(fn, name))
        self.__wrapped__ = fn
        self._definition = _definition_of(fn, options, self._kept_as)

    @property
    def _kind(self) -> str:
        kind = f"batched {getattr(self._fn, '__qualname__', repr(self._fn))}"
        name = self._dispatcher.options.name
        return kind if name is None else f"{kind} {name!r}"

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refuse: requests come one by one."""
        raise _not_called(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if _found(self._definition) is self:
            if protocol < _FIRST_WITH_NESTED_NAMES:
                return self._fn.__qualname__  # by name; the definition's would refer to this
            return _from_definition, (self._definition,)
        return _from_parts, (self._fn, self._options, self._kept_as)

    def __copy__(self) -> BatchedFunction[RequestT, T]:
        return self

    def __deepcopy__(self, _: object) -> BatchedFunction[RequestT, T]:
        return self

    def _check_own(self) -> None:
        if self._kept_as:
            raise TypeError(
                f"{self._kept_as[0]} is batched, and each instance has a batcher of its own: "
                f"reconfigure that of an instance"
            )

    def __set_name__(self, owner: type, name: str) -> None:
        # Not by its name alone: a subclass may have its own, and use this one through super().
        self._kept_as[:] = [f"{name} of {owner.__module__}.{owner.__qualname__}"]

    def __get__(self, instance: object, owner: type | None = None) -> DynamicBatcher[RequestT, T]:
        if instance is None or not self._kept_as:
            return self
        name = self._kept_as[0]
        try:
            attributes = instance.__dict__
        except AttributeError:
            raise TypeError(
                f"{name} is batched, and its batcher is kept in the instance: "
                f"{type(instance).__name__} needs a __dict__ for that"
            ) from None
        kept: Any = attributes.get(name)
        if kept is None or kept.instance_id != id(instance):
            with self._making:
                kept = attributes.get(name)
                if kept is None or kept.instance_id != id(instance):
                    # The calling context may be that of a request.
                    context = self._dispatcher.context.copy()
                    batcher = context.run(BatchedMethod, self, instance, owner)
                    kept = _Kept(batcher, id(instance))
                    attributes[name] = kept
        batcher_: DynamicBatcher[RequestT, T] = kept.batcher
        return batcher_

    def after_fork(self) -> None:
        """Forget that another thread, which is not in this process, was making a batcher."""
        self._making = RLock()


class BatchedMethod(DynamicBatcher[RequestT, T]):
    """The batcher of one instance. It is pickled as a method is: as its function and its instance.

    Args:
        function: What `batched` made of the method.
        instance: The instance.
        owner: The class in which the method was looked up.
    """

    __slots__ = ("_looked_up",)

    def __init__(
        self, function: BatchedFunction[RequestT, T], instance: object, owner: type | None
    ) -> None:
        super().__init__(function._fn.__get__(instance, owner), **function._options)  # noqa: SLF001
        self._looked_up = function, instance

    @property
    def _kind(self) -> str:
        return self._looked_up[0]._kind  # noqa: SLF001 - what made this

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refuse: requests come one by one."""
        raise _not_called(self)

    def __reduce_ex__(self, protocol: object) -> Any:
        return _look_up, self._looked_up


def _not_called(batcher: BatchedFunction[Any, Any] | BatchedMethod[Any, Any]) -> TypeError:
    one, other = ("call", "acall") if batcher._single else ("stream", "astream")  # noqa: SLF001
    return TypeError(
        f"{batcher._kind} is not called: submit a request with .{one}(request) "  # noqa: SLF001
        f"or .{other}(request)"
    )


def _look_up(function: BatchedFunction[RequestT, T], instance: object) -> object:
    return function.__get__(instance, type(instance))


def _definition_of(
    fn: Callable[..., Any], options: dict[str, Any], kept_as: list[str]
) -> Callable[[], tuple[Callable[..., Any], dict[str, Any], list[str]]]:
    """Make the function that stands for a batched function in a pickle."""

    def definition() -> tuple[Callable[..., Any], dict[str, Any], list[str]]:
        return fn, options, kept_as

    definition.__module__ = getattr(fn, "__module__", None) or __name__
    definition.__name__ = _DEFINITION
    definition.__qualname__ = f"{getattr(fn, '__qualname__', '?')}.{_DEFINITION}"
    return definition


def _found(definition: Callable[[], object]) -> object:
    """Return the object of which this is the definition, if it is found by its name."""
    found: Any = sys.modules.get(definition.__module__)
    try:
        for name in definition.__qualname__.split(".")[:-1]:
            found = getattr(found, name)
    except AttributeError:
        return None
    return found if getattr(found, _DEFINITION, None) is definition else None


def _from_definition(
    definition: Callable[[], tuple[Callable[..., Any], dict[str, Any], list[str]]],
) -> object:
    """Unpickle what was pickled as its definition: by name, or by value."""
    found = _found(definition)
    return _from_parts(*definition()) if found is None else found


def _from_parts(
    fn: Callable[..., Any], options: dict[str, Any], kept_as: list[str]
) -> BatchedFunction[Any, Any]:
    # In an empty context: that of the code which unpickles may be a request's.
    made: BatchedFunction[Any, Any] = Context().run(lambda: BatchedFunction(fn, **options))
    made._kept_as[:] = kept_as  # noqa: SLF001
    return made


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
