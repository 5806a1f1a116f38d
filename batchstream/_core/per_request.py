"""A predicate of each request's own: what `is_eos` takes besides in batchers and loops."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Generic, final

from typing_extensions import TypeVar

from batchstream._core.arguments import is_kind
from batchstream._core.token_ids import TokenIds

_RequestT_contra = TypeVar("_RequestT_contra", contravariant=True)
_T_contra = TypeVar("_T_contra", contravariant=True)


@final
class per_request(Generic[_RequestT_contra, _T_contra]):  # noqa: N801 - used as a function is
    """Give each request an `is_eos` of its own, where a batcher or a loop takes `is_eos`.

    It is asked once for each request, when that is submitted, as a function for `max_outputs` is.

    Args:
        function: A function of a request that returns what `is_eos` takes: a predicate on outputs,
            such as `token_ids(...)`, or None for a request that no output ends. In batchers it gets
            what was submitted; in LitServe's loops, the request's context. It pickles if this
            function does.

    Raises:
        TypeError: It is no function of a request, but a coroutine function or `token_ids(...)`, for
            example.

    Example:
        >>> import batchstream
        >>> def countdown(requests):
        ...     for passed in range(10):
        ...         yield [9 - passed for request in requests]
        >>> with batchstream.DynamicBatcher(
        ...     countdown,
        ...     max_batch_size=8,
        ...     is_eos=batchstream.per_request(
        ...         lambda request: batchstream.token_ids(request["stop"])
        ...     ),
        ... ) as batcher:
        ...     early, late = batcher.stream({"stop": 7}), batcher.stream({"stop": [4, 5]})
        ...     print(list(early), list(late))
        [9, 8] [9, 8, 7, 6]
    """

    __slots__ = ("function",)

    def __init__(
        self, function: Callable[[_RequestT_contra], Callable[[_T_contra], object] | None]
    ) -> None:
        if isinstance(function, TokenIds):
            raise TypeError(
                f"per_request takes a function of one request, got {function!r}, which looks at "
                f"outputs: pass is_eos={function!r}, or per_request(lambda request: {function!r})"
            )
        if not callable(function):
            raise TypeError(
                f"per_request takes a function of one request that returns what is_eos takes, "
                f"got {function!r}"
            )
        if is_kind(inspect.iscoroutinefunction, function):
            raise TypeError(
                f"per_request takes a function that answers at once, got the coroutine function "
                f"{function!r}: write it with def"
            )
        self.function = function

    def __repr__(self) -> str:
        return f"per_request({getattr(self.function, '__qualname__', repr(self.function))})"

    def __reduce__(
        self,
    ) -> tuple[type[per_request[_RequestT_contra, _T_contra]], tuple[object, ...]]:
        return per_request, (self.function,)
