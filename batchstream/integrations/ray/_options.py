"""The arguments of `batch`: checked as `serve.batch` checks them, and as `DynamicBatcher` has them.

A function of a request among them is called as the decorated function is, by one request's
arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from batchstream import per_request
from batchstream._core.arguments import UNLIMITED, check_number, check_seconds
from batchstream._core.markers import EOS
from batchstream.integrations.ray._arguments import Call, Parameters

# Options of `DynamicBatcher` that are functions of a request. `key` is made apart.
_OF_A_REQUEST: Final = ("cost", "decode", "max_outputs", "priority", "share", "tenant")
_BY_ANOTHER_NAME: Final = {
    "batch_cost": "batch_size_fn",
    "batch_timeout": "batch_wait_timeout_s",
    "workers": "max_concurrent_batches",
    "single": "an asynchronous function that returns a list, in place of one that yields lists",
}


def check_batch_size(max_batch_size: Any) -> int:
    """Return the largest size of a batch.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is less than 1.
    """
    is_whole = isinstance(max_batch_size, int) or (
        isinstance(max_batch_size, float) and max_batch_size.is_integer()
    )
    if not is_whole:
        raise TypeError(f"max_batch_size must be integer >= 1, got {max_batch_size!r}")
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size must be an integer >= 1, got {max_batch_size!r}")
    return int(max_batch_size)


def check_wait(batch_wait_timeout_s: Any) -> float:
    """Return for how long a batch waits for more requests.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, infinite or NaN.
    """
    if not isinstance(batch_wait_timeout_s, int | float):
        raise TypeError(f"batch_wait_timeout_s must be a float >= 0, got {batch_wait_timeout_s!r}")
    return check_seconds("batch_wait_timeout_s", float(batch_wait_timeout_s))


def check_concurrency(max_concurrent_batches: Any) -> int:
    """Return how many batches may run at once.

    Raises:
        TypeError: It is no whole number of at least 1: `serve.batch` does not raise a `ValueError`.
    """
    if not isinstance(max_concurrent_batches, int) or max_concurrent_batches < 1:
        raise TypeError(
            f"max_concurrent_batches must be an integer >= 1, got {max_concurrent_batches!r}"
        )
    return int(max_concurrent_batches)


def check_batch_size_fn(batch_size_fn: Any, options: dict[str, Any]) -> None:
    """Check the function that measures a batch, and that no other option does.

    Raises:
        TypeError: It cannot be called, or does not go with another option.
    """
    for name, instead in _BY_ANOTHER_NAME.items():
        if name in options:
            raise TypeError(f"batch takes no {name}: pass {instead}")
    if batch_size_fn is None:
        return
    if not callable(batch_size_fn):
        raise TypeError(f"batch_size_fn must be a callable or None, got {type(batch_size_fn)}")
    for name in ("cost", "max_batch_cost"):
        if name in options:
            raise TypeError(
                f"batch_size_fn measures a batch, and so does {name}: pass one of them; with "
                f"batch_size_fn, max_batch_size is the most that it may return"
            )


def batcher_options(
    options: dict[str, Any],
    parameters: Parameters,
    *,
    max_batch_size: int,
    batch_size_fn: Callable[[list[Any]], Any] | None,
    streams: bool,
) -> dict[str, Any]:
    """Return the arguments of the `DynamicBatcher`, besides those that `batch` has itself."""
    made = dict(options)
    # Ray bounds what a replica is given, and None is an output, unless the options say otherwise.
    made.setdefault("max_pending", UNLIMITED)
    if streams:
        made.setdefault("eos", EOS)
        if isinstance(made.get("is_eos"), per_request):
            made["is_eos"] = per_request(_of_call(made["is_eos"].function))
    else:
        made["single"] = True
    for name in _OF_A_REQUEST:
        if callable(made.get(name)):
            made[name] = _of_call(made[name])
    made["key"] = _key_of(options.get("key"), parameters)
    if batch_size_fn is None:
        made["max_batch_size"] = max_batch_size
    else:
        measure = batch_size_fn
        made["max_batch_size"] = UNLIMITED
        made["max_batch_cost"] = max_batch_size
        made["batch_cost"] = lambda calls: check_number(
            "what batch_size_fn returns", measure([call.item for call in calls])
        )
    return made


def _of_call(function: Callable[..., Any]) -> Callable[[Call], Any]:
    """Make a function of a request's arguments one of a `Call`."""
    return lambda call: function(*call.bound.args, **call.bound.kwargs)


def _key_of(key: Any, parameters: Parameters) -> Callable[[Call], tuple[Any, ...]]:
    """Make the key of a call: what the requests of a batch have in common.

    One instance, as its method is called; one multiplexed model; and one shape of the arguments.
    """
    if key is None:
        return lambda call: (id(call.instance), call.model_id, parameters.shape(call))
    if not callable(key):
        raise TypeError(f"key takes a function of one request, got {key!r}")
    of_call = _of_call(key)
    return lambda call: (id(call.instance), call.model_id, parameters.shape(call), of_call(call))
