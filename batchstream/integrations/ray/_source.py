"""What the batcher runs: the decorated function, called as `serve.batch` calls it."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from batchstream._core.arguments import is_kind
from batchstream._pumps.source import AsyncSource, Source
from batchstream.integrations.ray import _private
from batchstream.integrations.ray._arguments import Call, Parameters
from batchstream.integrations.ray._steps import check_length, read_step


class Function:
    """A decorated function, which is called for a batch.

    Attributes:
        running: When the batches that run have begun, in seconds since the epoch.

    Args:
        function: The function, as it was before.
        parameters: Its parameters.
    """

    def __init__(self, function: Callable[..., Any], parameters: Parameters) -> None:
        self._function = function
        self._parameters = parameters
        self.running: dict[object, float] = {}

    @property
    def streams(self) -> bool:
        """Whether it gives many outputs for each request, and not one result."""
        kinds = inspect.isasyncgenfunction, inspect.isgeneratorfunction
        return any(is_kind(kind, self._function) for kind in kinds)

    @property
    def is_async(self) -> bool:
        """Whether it runs in an event loop, and not in a thread."""
        kinds = inspect.isasyncgenfunction, inspect.iscoroutinefunction
        return any(is_kind(kind, self._function) for kind in kinds)

    def source(self) -> Callable[[list[Call]], Any]:
        """Return what `DynamicBatcher` takes: a function of a list of calls.

        It is of the function's own kind: synchronous, so that it runs in a thread, if that is.
        """
        if is_kind(inspect.isasyncgenfunction, self._function):
            source: Callable[[list[Call]], Any] = _async_steps(self)
        elif is_kind(inspect.isgeneratorfunction, self._function):
            source = _steps(self)
        elif is_kind(inspect.iscoroutinefunction, self._function):
            source = _async_results(self)
        else:
            source = _results(self)
        for name in ("__module__", "__name__", "__qualname__"):  # what errors and metrics call it
            if hasattr(self._function, name):
                setattr(source, name, getattr(self._function, name))
        return source

    def call(self, calls: list[Call]) -> Any:
        """Call it with one list for each parameter."""
        args, kwargs = self._parameters.merged(calls)
        instance = calls[0].instance  # of them all: it is part of their key
        if instance is not None:
            args.insert(0, instance)
        return self._function(*args, **kwargs)

    @contextmanager
    def serving(self, calls: list[Call]) -> Iterator[None]:
        """Tell Ray which requests the code in the block serves: it is that of a worker."""
        batch = object()
        self.running[batch] = time.time()
        _private.enter_batch([call.context for call in calls])
        try:
            with _private.trace(calls[0].trace):  # a span has one trace: Ray takes the first, too
                yield
        finally:
            _private.enter_batch([])
            del self.running[batch]


def _async_steps(function: Function) -> Callable[[list[Call]], AsyncIterator[Any]]:
    async def steps(calls: list[Call]) -> AsyncIterator[Any]:
        with function.serving(calls):
            source = AsyncSource(function.call(calls))
            live: Any = ()
            try:
                while True:
                    try:
                        step = await source.advance(live)
                    except StopAsyncIteration:
                        return
                    live = yield read_step(step, len(calls))
            finally:
                await source.aclose()

    return steps


def _steps(function: Function) -> Callable[[list[Call]], Iterator[Any]]:
    def steps(calls: list[Call]) -> Iterator[Any]:
        with function.serving(calls):
            source = Source(function.call(calls))
            live: Any = ()
            try:
                while True:
                    try:
                        step = source.advance(live)
                    except StopIteration:
                        return
                    live = yield read_step(step, len(calls))
            finally:
                source.close()

    return steps


def _async_results(function: Function) -> Callable[[list[Call]], Awaitable[Any]]:
    async def results(calls: list[Call]) -> Any:
        with function.serving(calls):
            found = await function.call(calls)
        check_length(found, len(calls))
        return found

    return results


def _results(function: Function) -> Callable[[list[Call]], Any]:
    def results(calls: list[Call]) -> Any:
        with function.serving(calls):
            found = function.call(calls)
        check_length(found, len(calls))
        return found

    return results
