"""The arguments of `batch`: checked as `serve.batch` checks them, and as `DynamicBatcher` has them.

A function of a request among them is called as the decorated function is, by one request's
arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Self

from batchstream import per_request
from batchstream._core.arguments import UNLIMITED, check_known, check_number, check_seconds
from batchstream._core.markers import EOS
from batchstream.integrations.ray._arguments import Call, Parameters
from batchstream.integrations.ray._types import BatchOptions

# Options of `DynamicBatcher` that are functions of a request. `key` is made apart.
_OF_A_REQUEST: Final = ("cost", "decode", "max_outputs", "priority", "share", "tenant")
_OF_STREAMS: Final = (
    *("eos", "is_eos", "include_eos", "max_outputs", "require_eos", "decode", "max_buffered"),
    *("on_overflow", "merge", "max_buffered_bytes", "size_of", "pace"),
)
_OF_CALLS: Final = ("pace", "timeout")  # what `DynamicBatcher` has for a call, or not at all
_BY_ANOTHER_NAME: Final = {
    "batch_cost": "batch_size_fn",
    "batch_timeout": "batch_wait_timeout_s",
    "workers": "max_concurrent_batches",
    "single": "a function that returns a list, in place of one that yields lists",
}
# The settings stand among them to be found where one is misspelt.
_NAMES: Final = (
    *BatchOptions.__annotations__,
    *("decode", "max_batch_size", "batch_wait_timeout_s", "max_concurrent_batches"),
    *("batch_size_fn", "pace"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments that `serve.batch` has, too; see `batch` for their meaning.

    The errors have the same types as in `serve.batch`.

    Raises:
        TypeError: One is of the wrong kind; or `max_concurrent_batches` is less than 1.
        ValueError: One cannot work.
    """

    max_batch_size: int
    batch_wait_timeout_s: float
    max_concurrent_batches: int
    batch_size_fn: Callable[[list[Any]], Any] | None

    def __post_init__(self) -> None:
        size: object = self.max_batch_size
        if isinstance(size, float) and size.is_integer():
            size = int(size)
            object.__setattr__(self, "max_batch_size", size)
        if not isinstance(size, int):
            raise TypeError(f"max_batch_size must be integer >= 1, got {size!r}")
        if size < 1:
            raise ValueError(f"max_batch_size must be an integer >= 1, got {size!r}")
        wait: object = self.batch_wait_timeout_s
        if not isinstance(wait, float | int):
            raise TypeError(f"batch_wait_timeout_s must be a float >= 0, got {wait!r}")
        check_seconds("batch_wait_timeout_s", float(wait))
        batches: object = self.max_concurrent_batches
        if not isinstance(batches, int) or batches < 1:
            raise TypeError(f"max_concurrent_batches must be an integer >= 1, got {batches!r}")
        measure: object = self.batch_size_fn
        if measure is not None and not callable(measure):
            raise TypeError(f"batch_size_fn must be a callable or None, got {type(measure)}")

    def changed(self, **changes: Any) -> Self:
        """Return the same with another value, which is checked."""
        return dataclasses.replace(self, **changes)


def check_options(settings: Settings, options: dict[str, Any]) -> None:
    """Refuse options that `batch` has by another name, or that do not go with its own.

    Raises:
        TypeError, ValueError: There is one, or `pace` or `timeout` is no duration.
    """
    for name, instead in _BY_ANOTHER_NAME.items():
        if name in options:
            raise TypeError(f"batch takes no {name}: pass {instead}")
    check_known("batch", options, _NAMES)
    for name in _OF_CALLS:
        value = options.get(name)
        if value is not None and not (name == "timeout" and callable(value)):
            check_seconds(name, value)
    if settings.batch_size_fn is None:
        return
    for name in ("cost", "max_batch_cost", "max_pending_cost", "priority", "tenant"):
        if name in options:
            raise TypeError(
                f"{name} and batch_size_fn exclude each other: batch_size_fn says how large a "
                f"whole batch is, which max_batch_size bounds, and not what each request adds"
            )


def batcher_options(
    settings: Settings, options: dict[str, Any], parameters: Parameters, *, streams: bool
) -> dict[str, Any]:
    """Return the arguments of the `DynamicBatcher`.

    Raises:
        TypeError: An option is for functions that yield lists, and this one does not.
    """
    made = {name: value for name, value in options.items() if name not in _OF_CALLS}
    # Ray bounds what a replica is given, and None is an output, unless the options say otherwise.
    made.setdefault("max_pending", UNLIMITED)
    if streams:
        made.setdefault("eos", EOS)
        if isinstance(made.get("is_eos"), per_request):
            made["is_eos"] = per_request(_of_call(made["is_eos"].function))
    elif given := [name for name in _OF_STREAMS if name in options]:
        raise TypeError(
            f"{' and '.join(given)} is for functions that yield lists: a request to one that "
            f"returns a list has one result, whatever it is"
        )
    else:
        made["single"] = True
    for name in _OF_A_REQUEST:
        if callable(made.get(name)):
            made[name] = _of_call(made[name])
    made["key"] = _key_of(options.get("key"), parameters)
    made["batch_timeout"] = settings.batch_wait_timeout_s
    made["workers"] = settings.max_concurrent_batches
    measure = settings.batch_size_fn
    if measure is None:
        made["max_batch_size"] = settings.max_batch_size
    else:
        made["max_batch_size"] = UNLIMITED
        made["max_batch_cost"] = settings.max_batch_size
        made["batch_cost"] = lambda calls: check_number(
            "what batch_size_fn returns", measure([call.item for call in calls])
        )
    return made


def timeout_of_call(options: dict[str, Any]) -> Callable[[Call], float | None]:
    """Return a function that says for how long a call may last."""
    timeout = options.get("timeout")
    return _of_call(timeout) if callable(timeout) else lambda _: timeout


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
