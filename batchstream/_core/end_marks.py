"""Which objects identity can find as an end mark; for the others, what a program passes instead."""

from __future__ import annotations

import enum
import operator
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from numbers import Number
from typing import Any, Final

from batchstream._core.token_ids import TokenIds

# Equal values of these types need not be one object, so that identity could miss the end mark.
_COMPARED_BY_VALUE: Final = (Number, str, bytes, bytearray)
_SEVERAL: Final = (Sequence, AbstractSet, Mapping)


def what_finds(mark: object) -> str | None:
    """Return the argument to pass in place of an end mark that identity could miss.

    None if identity finds it: it is a class, a member of a plain enum, a marker, or an object of
    the program's own.
    """
    if mark is None or isinstance(mark, bool | type):
        return None
    if isinstance(mark, enum.Enum):
        # A member that is a number or a text is there once, too. But an output that was read from
        # an array or a model is the number or the text alone.
        return f"is_eos={_finds_member(mark)}" if isinstance(mark, _COMPARED_BY_VALUE) else None
    if hasattr(type(mark), "tolist"):  # an array, a tensor or a NumPy scalar
        return f"is_eos={_finds_value(mark.tolist())}"  # type: ignore[attr-defined]
    if isinstance(mark, _COMPARED_BY_VALUE) or hasattr(type(mark), "__index__"):
        return f"is_eos={_finds_value(mark)}"
    if isinstance(mark, _SEVERAL):
        return f"is_eos={_finds_members(mark)}"
    return _as_is_eos(mark) if callable(mark) else None


def _finds_member(member: enum.Enum) -> str:
    text = f"{type(member).__name__}.{member.name}"
    return f"token_ids({text})" if isinstance(member, int) else f"lambda output: output == {text}"


def _finds_value(value: Any) -> str:
    """Return the text of a function that is true of outputs that equal the value."""
    if isinstance(value, list):
        return _finds_members(value)
    number = _whole_number(value)
    if number is not None:
        return f"token_ids({number})"
    if isinstance(value, Number) and value != value:  # noqa: PLR0124 - only a NaN is unequal
        return "lambda output: output != output"
    return f"lambda output: output == {value!r}"


def _finds_members(values: Any) -> str:
    """Return the text of a function that is true of outputs that equal one of the values."""
    numbers = [_whole_number(value) for value in values]
    if not numbers:
        return "a function of one output that is true of the last"
    if None in numbers:
        return f"lambda output: output in {values!r}"
    return f"token_ids({', '.join(map(str, numbers))})"


def _whole_number(value: Any) -> int | None:
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        return None
    try:
        return operator.index(value)
    except Exception:  # noqa: BLE001 - it has the method, and refuses
        return None


def _as_is_eos(function: object) -> str:
    """Return how a program passes a function that it has passed as the mark."""
    name = getattr(function, "__name__", None)
    if isinstance(function, TokenIds):
        name = repr(function)
    return f"is_eos={name}" if isinstance(name, str) and name != "<lambda>" else "it as is_eos"
