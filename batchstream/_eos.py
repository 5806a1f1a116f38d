"""Telling the end: what the caller passes as `eos`, `is_eos` and `max_outputs`."""

from __future__ import annotations

import enum
import operator
import sys
from collections.abc import Sequence
from numbers import Number
from typing import Final, final

from batchstream._markers import EOS, MARKER_TYPES

# Equal values of these types need not be one object, so identity could miss the mark for ever.
_COMPARED_BY_VALUE: Final = (Number, str, bytes, bytearray, tuple, frozenset)

UNLIMITED: Final = sys.maxsize


@final
class TokenIds:
    """The predicate that `token_ids` makes."""

    __slots__ = ("_ids",)

    def __init__(self, ids: frozenset[int]) -> None:
        self._ids = ids

    def __call__(self, output: object) -> bool:
        if not hasattr(type(output), "__index__"):
            return False
        try:
            number = operator.index(output)  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - an array of several numbers has the method, and refuses
            return False
        return number in self._ids

    def in_none_of(self, outputs: tuple[object, ...]) -> bool:
        """Tell whether surely none of the outputs is one of the ids, quickly.

        Only built-in integers are compared here; outputs of other types get False, and then have
        to be asked one by one.
        """
        return set(map(type, outputs)) == {int} and self._ids.isdisjoint(outputs)

    def __repr__(self) -> str:
        return f"token_ids({', '.join(map(str, sorted(self._ids)))})"

    def __reduce__(self) -> tuple[type[TokenIds], tuple[frozenset[int]]]:
        return TokenIds, (self._ids,)


def token_ids(*ids: int) -> TokenIds:
    """Return a predicate for `is_eos` that is true of these token ids.

    It compares whole numbers: Python's, NumPy's and zero-dimensional tensors. An output of any
    other kind is not a token id, and is never compared.

    Args:
        ids: One or more ids, as in a model's `eos_token_id`.

    Raises:
        TypeError: An id is not a whole number.
        ValueError: No id was given.

    Example:
        >>> import batchstream
        >>> ends = batchstream.token_ids(2, 32000)
        >>> ends(2), ends(5), ends("2")
        (True, False, False)
    """
    if not ids:
        raise ValueError("token_ids takes at least one id, got none")
    for number in ids:
        if isinstance(number, bool) or not hasattr(type(number), "__index__"):
            raise TypeError(f"token_ids takes whole numbers, got {number!r}")
    return TokenIds(frozenset(map(operator.index, ids)))


def check_eos(eos: object, is_eos: object) -> None:
    """Refuse an end mark that could never be recognised."""
    by_value = isinstance(eos, _COMPARED_BY_VALUE) or hasattr(type(eos), "__index__")
    if by_value and not isinstance(eos, bool | enum.Enum):
        hint = (
            f"token_ids({eos!r})" if isinstance(eos, int) else f"lambda output: output == {eos!r}"
        )
        raise ValueError(
            f"eos is compared by identity, which does not hold for {type(eos).__name__} {eos!r}: "
            f"pass is_eos={hint}"
        )
    if eos is not EOS and type(eos) in MARKER_TYPES:
        raise ValueError(f"eos must not be a marker that means something else, got {eos!r}")
    if is_eos is not None and not callable(is_eos):
        raise TypeError(f"is_eos takes a function of one output, got {is_eos!r}")


def check_max_outputs(max_outputs: object, size: int) -> list[int]:
    """Return the limit of each slot, `UNLIMITED` where it has none."""
    if max_outputs is None:
        return [UNLIMITED] * size
    if not isinstance(max_outputs, Sequence) or isinstance(max_outputs, str | bytes):
        return [check_count("max_outputs", max_outputs, at_least=1)] * size
    if len(max_outputs) != size:
        raise ValueError(
            f"max_outputs has {len(max_outputs)} entries, expected {size} (one per slot)"
        )
    return [
        UNLIMITED if limit is None else check_count("max_outputs", limit, at_least=1)
        for limit in max_outputs
    ]


def check_count(name: str, value: object, *, at_least: int) -> int:
    """Return a whole number that an argument has to be."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} takes a whole number, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"{name} takes a whole number, got {value!r}") from error
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    return number
