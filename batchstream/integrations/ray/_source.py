"""What the batcher runs: the decorated function, called as `serve.batch` calls it."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from batchstream._core.arguments import is_kind
from batchstream._core.markers import EOS, Many
from batchstream.integrations.ray import _private
from batchstream.integrations.ray._arguments import Call, Parameters
from batchstream.integrations.ray._errors import check_length

_MARKS: Final = (StopIteration, StopAsyncIteration)
# The types of what may be a mark of Ray's, or hold one: a step without them is taken as it is.
_SUSPECTS: Final = frozenset({type, Many, *_MARKS})
_NOTHING: Final = object()


def streams(function: Callable[..., Any]) -> bool:
    """Whether a function gives many outputs for each request, and not one result."""
    return is_kind(inspect.isasyncgenfunction, function) or is_kind(
        inspect.isgeneratorfunction, function
    )


def source_of(
    function: Callable[..., Any], parameters: Parameters, running: dict[object, float]
) -> Callable[[list[Call]], Any]:
    """Make what `DynamicBatcher` takes: a function of a list of calls.

    Args:
        function: The decorated function; of a synchronous one the source is synchronous too, and
            runs in a thread.
        parameters: Its parameters.
        running: The batches that run, each with the time at which it has begun: it is kept here.
    """

    @contextmanager
    def serving(calls: list[Call]) -> Iterator[None]:
        """Tell Ray which requests the code in the block serves: it is that of a worker."""
        batch = object()
        running[batch] = time.time()
        _private.enter_batch([call.context for call in calls])
        try:
            with _private.trace(calls[0].trace):  # a span has one trace: Ray takes the first, too
                yield
        finally:
            _private.enter_batch([])
            del running[batch]

    def called(calls: list[Call]) -> Any:
        args, kwargs = parameters.merged(calls)
        if calls[0].instance is not None:
            args.insert(0, calls[0].instance)
        return function(*args, **kwargs)

    async def async_steps(calls: list[Call]) -> AsyncIterator[Any]:
        with serving(calls):
            generator = called(calls)
            try:
                step = await anext(generator, _NOTHING)
                while step is not _NOTHING:
                    live = yield _step(step, len(calls))
                    try:
                        step = await generator.asend(live)
                    except StopAsyncIteration:
                        return
            finally:
                await generator.aclose()

    def steps(calls: list[Call]) -> Iterator[Any]:
        with serving(calls):
            generator = called(calls)
            try:
                step = next(generator, _NOTHING)
                while step is not _NOTHING:
                    live = yield _step(step, len(calls))
                    try:
                        step = generator.send(live)
                    except StopIteration:
                        return
            finally:
                generator.close()

    async def async_results(calls: list[Call]) -> Any:
        with serving(calls):
            found = await called(calls)
        check_length(found, len(calls))
        return found

    def results(calls: list[Call]) -> Any:
        with serving(calls):
            found = called(calls)
        check_length(found, len(calls))
        return found

    source: Callable[[list[Call]], Any] = results
    if is_kind(inspect.isasyncgenfunction, function):
        source = async_steps
    elif is_kind(inspect.isgeneratorfunction, function):
        source = steps
    elif is_kind(inspect.iscoroutinefunction, function):
        source = async_results
    for name in ("__module__", "__name__", "__qualname__"):  # by which errors and metrics call it
        if hasattr(function, name):
            setattr(source, name, getattr(function, name))
    return source


def _step(step: Any, size: int) -> Any:
    """Return a step in which `StopIteration` is our end mark, if it holds one.

    Raises:
        RayServeException: It does not have one element for each request.
    """
    if isinstance(step, Mapping):
        if _SUSPECTS.isdisjoint(map(type, step.values())):
            return step
        return {slot: _element(element) for slot, element in step.items()}
    check_length(step, size)
    if getattr(getattr(step, "dtype", None), "kind", None) == "O":
        step = list(step)
    if not isinstance(step, list | tuple) or _SUSPECTS.isdisjoint(map(type, step)):
        return step
    return [_element(element) for element in step]


def _element(element: Any) -> Any:
    if type(element) is Many:
        return Many([_element(output) for output in element.outputs])
    # By identity: equality of arrays is an array, and has no truth.
    if element is StopIteration or element is StopAsyncIteration or type(element) in _MARKS:
        return EOS
    return element
