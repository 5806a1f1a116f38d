"""Token ids as a predicate for `is_eos`, compared safely."""

from __future__ import annotations

import operator
from typing import final


@final
class TokenIds:
    """The predicate that `token_ids` makes.

    Attributes:
        ids: The ids.
    """

    __slots__ = ("ids",)

    def __init__(self, ids: frozenset[int]) -> None:
        self.ids = ids

    def __call__(self, output: object) -> bool:
        if not hasattr(type(output), "__index__"):
            return False
        try:
            number = operator.index(output)  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - an array of several numbers has the method, and refuses
            return False
        return number in self.ids

    def __repr__(self) -> str:
        return f"token_ids({', '.join(map(str, sorted(self.ids)))})"

    def __reduce__(self) -> tuple[type[TokenIds], tuple[frozenset[int]]]:
        return TokenIds, (self.ids,)


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
