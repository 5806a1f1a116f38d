"""What `batch` makes of a function, as a type checker sees it: requests and outputs are its own."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, overload

from typing_extensions import TypeVar

from batchstream._core.elements import Element

if TYPE_CHECKING:
    from batchstream import BatcherStatistics, per_request
    from batchstream._batching.telemetry.metrics import MetricsOrFactory
    from batchstream._batching.telemetry.traces import Traces
    from batchstream._core.arguments import OnOverflow

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
RequestT = TypeVar("RequestT")
RequestT_contra = TypeVar("RequestT_contra", contravariant=True)

Mark: TypeAlias = "type[StopIteration | StopAsyncIteration] | StopIteration | StopAsyncIteration"
Steps: TypeAlias = (
    "AsyncIterator[Sequence[Element[T] | Mark] | Mapping[int, Element[T] | Mark]] | "
    "Iterator[Sequence[Element[T] | Mark] | Mapping[int, Element[T] | Mark]]"
)
"""What a function yields: an element for each request, or for each slot that has one."""

Results: TypeAlias = "Awaitable[Iterable[T]] | Sequence[T]"
"""What a function returns: a result for each request."""


class BatchOptions(TypedDict, total=False):
    """What `batch` takes, and `serve.batch` does not.

    All but `timeout` are arguments of `DynamicBatcher`.
    """

    timeout: float | Callable[..., float | None] | None
    max_pending: int
    key: Callable[..., Hashable] | None
    cost: Callable[..., float] | None
    max_batch_cost: float | None
    eos: object
    is_eos: Callable[[Any], object] | per_request[Any, Any] | None
    include_eos: bool
    max_outputs: int | Callable[..., int | None] | None
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
    priority: Callable[..., int] | None
    tenant: Callable[..., Hashable] | None
    share: Callable[..., float] | None
    max_pending_per_tenant: int | None
    drain: float | None


class Configurable(Protocol):
    """What a decorated function, or a method, has besides being called."""

    def set_max_batch_size(self, new_max_batch_size: int) -> None:
        """Change how large the next batches may be; requests that wait already are in them."""

    def set_batch_wait_timeout_s(self, new_batch_wait_timeout_s: float) -> None:
        """Change for how long the next batches wait for more requests, in seconds."""

    def statistics(self) -> BatcherStatistics:
        """Return the figures of its batcher in this process."""

    async def aclose(self, *, drain: float | None = None) -> None:
        """Close its batcher in this process; see `DynamicBatcher.aclose`."""


class OneResult(Configurable, Protocol[RequestT_contra, T_co]):
    """A function of one request, whose result is waited for."""

    def __call__(self, request: RequestT_contra, /) -> Coroutine[Any, Any, T_co]:
        """Submit a request, and wait for its result."""


class Streaming(Configurable, Protocol[RequestT_contra, T_co]):
    """A function of one request, which returns its outputs one by one."""

    def __call__(self, request: RequestT_contra, /) -> AsyncGenerator[T_co, None]:
        """Submit a request at once, and return a generator of its outputs."""


class Unknown(Configurable, Protocol):
    """A function of several parameters, or of any that a type checker does not know."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a request."""


class OneResultMethod(Protocol[RequestT_contra, T_co]):
    """The same as a class has it."""

    def __get__(self, instance: object, owner: type) -> OneResult[RequestT_contra, T_co]: ...


class StreamingMethod(Protocol[RequestT_contra, T_co]):
    """The same as a class has it."""

    def __get__(self, instance: object, owner: type) -> Streaming[RequestT_contra, T_co]: ...


class Decorator(Protocol):
    """What `batch` returns where it is called with options."""

    @overload
    def __call__(self, function: Callable[[list[Any], list[Any]], Any], /) -> Unknown: ...
    @overload
    def __call__(
        self, function: Callable[[list[RequestT]], Steps[T]], /
    ) -> Streaming[RequestT, T]: ...
    @overload
    def __call__(
        self, function: Callable[[Any, list[RequestT]], Steps[T]], /
    ) -> StreamingMethod[RequestT, T]: ...
    @overload
    def __call__(
        self, function: Callable[[list[RequestT]], Results[T]], /
    ) -> OneResult[RequestT, T]: ...
    @overload
    def __call__(
        self, function: Callable[[Any, list[RequestT]], Results[T]], /
    ) -> OneResultMethod[RequestT, T]: ...
    @overload
    def __call__(self, function: Callable[..., Any], /) -> Any: ...


class PacedDecorator(Protocol):
    """The same where outputs come in lists."""

    @overload
    def __call__(self, function: Callable[[list[Any], list[Any]], Any], /) -> Unknown: ...
    @overload
    def __call__(
        self, function: Callable[[list[RequestT]], Steps[T]], /
    ) -> Streaming[RequestT, list[T]]: ...
    @overload
    def __call__(
        self, function: Callable[[Any, list[RequestT]], Steps[T]], /
    ) -> StreamingMethod[RequestT, list[T]]: ...
    @overload
    def __call__(self, function: Callable[..., Any], /) -> Any: ...


class DecodingDecorator(Protocol):
    """The same where decoders make the outputs."""

    def __call__(self, function: Callable[..., Any], /) -> Any: ...
