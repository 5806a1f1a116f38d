"""What a decorated function does: it submits each call to the batcher of this process."""

from __future__ import annotations

import statistics
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchstream import DynamicBatcher, paced
from batchstream._batching.options import name_of
from batchstream._core.errors import CostError
from batchstream._eventloops.current import current_loop
from batchstream.integrations.ray._arguments import Call, Parameters
from batchstream.integrations.ray._errors import ItemSizeError
from batchstream.integrations.ray._ongoing import warn_if_never_full
from batchstream.integrations.ray._options import Settings, batcher_options, timeout_of_call
from batchstream.integrations.ray._source import Function

if TYPE_CHECKING:
    from batchstream import BatcherStatistics


@dataclass(frozen=True)
class StartTimes:
    """When the batches that run have begun, in seconds since the epoch.

    Attributes:
        start_times: The time of each.
    """

    start_times: list[float]

    @property
    def min_start_time(self) -> float | None:
        """The time of the oldest."""
        return min(self.start_times, default=None)

    @property
    def mean_start_time(self) -> float | None:
        """Their mean."""
        return statistics.fmean(self.start_times) if self.start_times else None

    @property
    def max_start_time(self) -> float | None:
        """The time of the newest."""
        return max(self.start_times, default=None)

    @property
    def num_requests(self) -> int:
        """How many batches run, by the name that it has in Ray."""
        return len(self.start_times)


class Handler:
    """The batcher of one decorated function in this process. It pickles as its definition.

    Args:
        function: The function, as it was before.
        settings: The arguments that `serve.batch` has, too.
        options: The other arguments of `batch`.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.
    """

    def __init__(
        self, function: Callable[..., Any], settings: Settings, options: dict[str, Any]
    ) -> None:
        self._function = function
        self._settings = settings
        self._options = options
        self._parameters = Parameters(function)
        self._runs = Function(function, self._parameters)
        self._timeout_of = timeout_of_call(options)
        self._has_checked = False
        self._batcher: DynamicBatcher[Call, Any] = DynamicBatcher(
            self._runs.source(),
            **batcher_options(settings, options, self._parameters, streams=self.streams),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self._function, self._settings, self._options)

    @property
    def streams(self) -> bool:
        """Whether the function gives many outputs for each request, and not one result."""
        return self._runs.streams

    @property
    def attributes(self) -> dict[str, Callable[..., Any]]:
        """What the decorated function has besides being called.

        Some of the names are private: by these Ray's tests, and its users, look into a handler.
        """
        return {
            "set_max_batch_size": self.set_max_batch_size,
            "set_batch_wait_timeout_s": self.set_batch_wait_timeout_s,
            "statistics": self.statistics,
            "aclose": self.aclose,
            "_get_max_batch_size": self.get_max_batch_size,
            "_get_batch_wait_timeout_s": self.get_batch_wait_timeout_s,
            "_get_curr_iteration_start_times": self.start_times,
            "_is_batching_task_alive": self.is_alive,
            "_get_handling_task_stack": self.stack,
        }

    # ---- a call

    async def result(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Submit a call, and wait for its one result."""
        call = self._call(args, kwargs)
        try:
            return await self._batcher.acall(call, timeout=self._timeout_of(call))
        except CostError as error:
            raise _too_large() from error

    def outputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Submit a call at once, and return a generator of its outputs."""
        call = self._call(args, kwargs)
        if self._runs.is_async:
            self._check_loop()
        try:
            stream = self._batcher.astream(call, timeout=self._timeout_of(call))
        except CostError as error:
            raise _too_large() from error
        pace = self._options.get("pace")
        return _read(stream.body() if pace is None else paced(stream, every=pace))

    def _check_loop(self) -> None:
        """Refuse a call where no event loop runs: by a handle, Ray makes it in a thread.

        Raises:
            RuntimeError: None does.
        """
        try:
            current_loop()
        except RuntimeError:
            name = getattr(self._function, "__name__", "function")
            raise RuntimeError(
                f"{name_of(self._function)} was called where no event loop runs, as Ray does where "
                f"a handle calls it: let the handle call a method that yields from it, "
                f"`async for output in self.{name}(...): yield output`"
            ) from None

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = self._parameters.bind(args, kwargs)
        if not self._has_checked:
            self._has_checked = True
            if self._settings.batch_size_fn is None:  # else the size is no number of requests
                warn_if_never_full(
                    self._settings.max_batch_size,
                    self._settings.max_concurrent_batches,
                    name=self._batcher.name or name_of(self._function),
                )
        return call

    # ---- what its users may ask and set

    def set_max_batch_size(self, new_max_batch_size: int) -> None:
        """Change how large the next batches may be; requests that wait already are in them."""
        settings = self._settings.changed(max_batch_size=new_max_batch_size)
        if settings.batch_size_fn is None:
            self._batcher.reconfigure(max_batch_size=settings.max_batch_size)
        else:
            self._batcher.reconfigure(max_batch_cost=settings.max_batch_size)
        self._settings = settings
        self._has_checked = False

    def set_batch_wait_timeout_s(self, new_batch_wait_timeout_s: float) -> None:
        """Change for how long the next batches wait for more requests, in seconds."""
        settings = self._settings.changed(batch_wait_timeout_s=new_batch_wait_timeout_s)
        self._batcher.reconfigure(batch_timeout=settings.batch_wait_timeout_s)
        self._settings = settings

    def get_max_batch_size(self) -> int:
        """Return how large a batch may be."""
        return self._settings.max_batch_size

    def get_batch_wait_timeout_s(self) -> float:
        """Return for how long a batch waits for more requests, in seconds."""
        return self._settings.batch_wait_timeout_s

    def statistics(self) -> BatcherStatistics:
        """Return the figures of the batcher in this process."""
        return self._batcher.statistics()

    async def aclose(self, *, drain: float | None = None) -> None:
        """Close the batcher in this process; see `DynamicBatcher.aclose`."""
        await self._batcher.aclose(drain=drain)

    def start_times(self) -> StartTimes:
        """Return when the batches that run have begun."""
        return StartTimes(list(self._runs.running.values()))

    async def is_alive(self) -> bool:
        """Whether there are workers for new requests."""
        return self._batcher.state == "accepting"

    async def stack(self) -> None:
        """Return None, as Ray does for a handler without a task that forms its batches."""


async def _read(body: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    # A generator of Python's own, by which Ray tells a stream from a result.
    try:
        async for output in body:
            yield output
    finally:
        await body.aclose()


def _too_large() -> ItemSizeError:
    return ItemSizeError(
        "Size of item is greater than max_batch_size. Please increase the max_batch_size or check "
        "the implementation of the batch_size_fn."
    )


def _made(*definition: Any) -> Handler:
    """Make a handler that was pickled, in an empty context: that of a request may run this."""
    return Context().run(Handler, *definition)
