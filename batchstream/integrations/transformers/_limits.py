"""How many tokens each slot may have: a number for all, or one for each."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any


def limits_of(max_new_tokens: Any, size: int) -> list[Any]:
    """Return the limit of each slot.

    Raises:
        ValueError: There are not as many limits as slots.
    """
    if isinstance(max_new_tokens, int):
        return [max_new_tokens] * size
    if len(max_new_tokens) != size:
        raise ValueError(
            f"max_new_tokens has {len(max_new_tokens)} limits, expected {size}: a number for all "
            "slots or one for each, and a prompt has num_return_sequences slots"
        )
    return list(max_new_tokens)


def highest(max_new_tokens: int | Sequence[int]) -> int:
    """Return the limit of the slot that may go on for longest."""
    return max_new_tokens if isinstance(max_new_tokens, int) else max(max_new_tokens)


def limits_of_slots(max_new_tokens: Any, size: int) -> list[int | None]:
    """Return the limit of each slot, None where it has none.

    Raises:
        TypeError, ValueError: See `checked_limits` and `limits_of`.
    """
    if max_new_tokens is None:
        return [None] * size
    return limits_of(checked_limits(max_new_tokens, or_none=True), size)


def checked_limits(max_new_tokens: Any, *, or_none: bool = False) -> int | tuple[Any, ...]:
    """Return the limits as whole numbers; with `or_none`, slots may have None for no limit.

    Raises:
        TypeError: They are not whole numbers.
        ValueError: One is below 1, or there is none.
    """
    if hasattr(type(max_new_tokens), "tolist"):
        max_new_tokens = max_new_tokens.tolist()
    if not isinstance(max_new_tokens, list | tuple):
        return _checked(max_new_tokens)
    if not max_new_tokens:
        raise ValueError("max_new_tokens is empty: pass a number for all slots or one for each")
    return tuple(None if or_none and limit is None else _checked(limit) for limit in max_new_tokens)


def _checked(limit: Any) -> int:
    if isinstance(limit, bool) or not hasattr(type(limit), "__index__"):
        raise TypeError(f"max_new_tokens takes whole numbers, got {limit!r}")
    number = operator.index(limit)
    if number < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {number}")
    return number
