"""`batch`: a function of lists becomes one of single requests, as `serve.batch` does it."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any

from batchstream.integrations.ray._handler import Handler
from batchstream.integrations.ray._source import streams


def batch(
    _func: Any = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.01,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], Any] | None = None,
    **options: Any,
) -> Any:
    if _func is None:
        return functools.partial(
            _decorated,
            max_batch_size,
            batch_wait_timeout_s,
            max_concurrent_batches,
            batch_size_fn,
            options,
        )
    return _decorated(
        max_batch_size,
        batch_wait_timeout_s,
        max_concurrent_batches,
        batch_size_fn,
        options,
        _func,
    )


def _decorated(
    max_batch_size: Any,
    batch_wait_timeout_s: Any,
    max_concurrent_batches: Any,
    batch_size_fn: Any,
    options: dict[str, Any],
    function: Any,
) -> Any:
    if not callable(function) or isinstance(function, type):
        raise TypeError(
            f"batch can only be used to decorate functions or methods, got {function!r}"
        )
    handler = Handler(
        function,
        max_batch_size,
        batch_wait_timeout_s,
        max_concurrent_batches,
        batch_size_fn,
        options,
    )

    # Functions, and no objects that are called: Ray asks `inspect` what a method is.
    wrapper: Any
    if streams(function):

        @functools.wraps(function)
        def outputs(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            return handler.outputs(args, kwargs)

        wrapper = outputs
    else:

        @functools.wraps(function)
        async def result(*args: Any, **kwargs: Any) -> Any:
            return await handler.result(args, kwargs)

        wrapper = result
    wrapper.set_max_batch_size = handler.set_max_batch_size
    wrapper.set_batch_wait_timeout_s = handler.set_batch_wait_timeout_s
    wrapper.statistics = handler.statistics
    wrapper.aclose = handler.aclose
    # By these names Ray's own code and tests, and its users', look into a handler.
    wrapper._get_max_batch_size = handler.get_max_batch_size
    wrapper._get_batch_wait_timeout_s = handler.get_batch_wait_timeout_s
    wrapper._get_curr_iteration_start_times = handler.start_times
    wrapper._is_batching_task_alive = handler.is_alive
    wrapper._get_handling_task_stack = handler.stack
    return wrapper
