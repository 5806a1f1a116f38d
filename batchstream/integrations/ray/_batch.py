"""`batch`: a function of lists becomes one of single requests, as `serve.batch` does it."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any, overload

from typing_extensions import Unpack

from batchstream.integrations.ray._handler import Handler
from batchstream.integrations.ray._options import Settings, check_options
from batchstream.integrations.ray._types import (
    BatchOptions,
    DecodingDecorator,
    Decorator,
    OneResult,
    OneResultMethod,
    PacedDecorator,
    RequestT,
    Results,
    Steps,
    Streaming,
    StreamingMethod,
    T,
    Unknown,
)


@overload
def batch(_func: Callable[[list[Any], list[Any]], Any], /) -> Unknown: ...
@overload
def batch(_func: Callable[[list[RequestT]], Steps[T]], /) -> Streaming[RequestT, T]: ...
@overload
def batch(_func: Callable[[Any, list[RequestT]], Steps[T]], /) -> StreamingMethod[RequestT, T]: ...
@overload
def batch(_func: Callable[[list[RequestT]], Results[T]], /) -> OneResult[RequestT, T]: ...
@overload
def batch(
    _func: Callable[[Any, list[RequestT]], Results[T]], /
) -> OneResultMethod[RequestT, T]: ...
@overload
def batch(
    _func: None = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.01,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], float] | None = None,
    *,
    decode: Callable[..., Any],
    pace: float | None = None,
    **options: Unpack[BatchOptions],
) -> DecodingDecorator: ...
@overload
def batch(
    _func: None = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.01,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], float] | None = None,
    *,
    pace: float,
    **options: Unpack[BatchOptions],
) -> PacedDecorator: ...
@overload
def batch(
    _func: None = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.01,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], float] | None = None,
    **options: Unpack[BatchOptions],
) -> Decorator: ...
@overload
def batch(_func: Callable[..., Any], /) -> Any: ...
def batch(
    _func: Any = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.01,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], float] | None = None,
    **options: Any,
) -> Any:
    """Turn a function of lists of requests into one of single requests, as `serve.batch` does.

    A deployment changes one import for it. What differs is what happens then:

    - A batch is formed when one may run, and not before: under a backlog it is full.
    - The model stops when all requests of the batch have ended, or have been cancelled: a generator
      is closed at its `yield`, so what it has to do at its end belongs into `finally`.
    - Outputs may be arrays, and each caller is raised an error of its own.
    - A batch is of one multiplexed model, and of one instance. Batches of several models are
      `max_concurrent_batches` at most, as all others; `serve.batch` runs one for each at once.

    The function, or method, is asynchronous as `serve.batch` requires, or synchronous: then it runs
    in a thread, and the event loop of the replica goes on. It returns one result for each request,
    or is a generator that yields lists of one output for each. In these `StopIteration` and
    `StopAsyncIteration`, the class or an instance, end a request, and so do the markers of this
    package: `EOS`, `Last`, `End`, `Fail`; `SKIP` and `Many` are understood too. None is an output,
    unless `eos=None` says otherwise. A generator may ask which requests are left, with
    `live = yield outputs`, and then yield a dict with an output for each of them.

    The caller passes one request, and gets a coroutine or an asynchronous generator. To cancel, it
    is cancelled or closed. Several parameters are a list each; what all callers of a batch leave
    out has its default, which is no list then.

    The result is a function, with these attributes: `set_max_batch_size` and
    `set_batch_wait_timeout_s`, to be called in `reconfigure`: no request is lost, waiting ones
    join batches of the new size; `statistics()` of this replica, and `aclose(drain=)`. Ray pickles
    it with its deployment as its definition; each replica has workers of its own.

    Args:
        _func: The function, where the decorator is used without arguments.
        max_batch_size: How many requests a batch has at most; with `batch_size_fn`, the most that
            this may return.
        batch_wait_timeout_s: For how long a request waits for others while a batch might run, in
            seconds.
        max_concurrent_batches: How many batches may run at once.
        batch_size_fn: A function of the list of the first arguments of a batch's requests, which
            returns how large that batch is: padded tokens, for example. It need not be a sum, but
            must not become less with another request. What it raises fails the request that asks
            to join.
        **options: `pace` makes outputs come in lists, the first at once and then one every so many
            seconds at most, as `paced` does: for a model that is faster than Ray's messages.
            `timeout` is for how long a call may last, in seconds; then it fails with
            `DeadlineError`. The others are those of `DynamicBatcher` but `workers`, `batch_timeout`
            and `batch_cost`, which have other names here. A function of a request (`key`, `cost`,
            `decode`, `max_outputs`, `priority`, `share`, `tenant`, `timeout`) is called with the
            arguments of the call. `max_pending` has no limit of its own, as Ray limits what a
            replica is given.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work; as `serve.batch`,
            when the function is decorated.

    Threads: the coroutine and the generator belong to the event loop of their caller.

    Example:
        >>> import asyncio
        >>> from batchstream.integrations.ray import batch
        >>> class Model:
        ...     @batch(max_batch_size=4)
        ...     async def spell(self, words):
        ...         for position in range(100):
        ...             yield [
        ...                 word[position] if position < len(word) else StopIteration
        ...                 for word in words
        ...             ]
        >>> async def spelled(model, word):
        ...     return "-".join([letter async for letter in model.spell(word)])
        >>> async def main(model):
        ...     return await asyncio.gather(spelled(model, "ray"), spelled(model, "serve"))
        >>> asyncio.run(main(Model()))
        ['r-a-y', 's-e-r-v-e']

        A function that returns a result for each request:

        >>> @batch(batch_wait_timeout_s=0)
        ... async def measure(words):
        ...     return [len(word) for word in words]
        >>> asyncio.run(measure("serve"))
        5
    """
    settings = Settings(max_batch_size, batch_wait_timeout_s, max_concurrent_batches, batch_size_fn)
    check_options(settings, options)
    if _func is None:
        return functools.partial(_decorated, settings, options)
    return _decorated(settings, options, _func)


def _decorated(settings: Settings, options: dict[str, Any], function: Any) -> Any:
    if not callable(function) or isinstance(function, type):
        raise TypeError(
            f"batch can only be used to decorate functions or methods, got {function!r}"
        )
    handler = Handler(function, settings, options)

    # Functions, and no objects that are called: Ray asks `inspect` what a method is.
    wrapper: Any
    if handler.streams:

        @functools.wraps(function)
        def outputs(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            return handler.outputs(args, kwargs)

        wrapper = outputs
    else:

        @functools.wraps(function)
        async def result(*args: Any, **kwargs: Any) -> Any:
            return await handler.result(args, kwargs)

        wrapper = result
    for name, method in handler.attributes.items():
        setattr(wrapper, name, method)
    return wrapper
