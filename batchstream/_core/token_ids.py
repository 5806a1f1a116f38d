"""Token ids as a predicate for `is_eos`, compared safely."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, final


@final
class TokenIds:
    """The predicate that `token_ids` makes.

    Attributes:
        ids: The ids.
        key: Where in an output its id is found; None if the output is the id.
    """

    __slots__ = ("_find", "ids", "key")

    def __init__(
        self, ids: frozenset[int], key: int | str | Callable[[Any], object] | None = None
    ) -> None:
        self.ids = ids
        self.key = key
        self._find: Callable[[Any], object] | None = None
        if key is not None:
            self._find = key if callable(key) else operator.itemgetter(key)

    def __call__(self, output: object) -> bool:
        token = output if self._find is None else self._found_in(output)
        if isinstance(token, bool) or not hasattr(type(token), "__index__"):
            return False
        try:
            number = operator.index(token)  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - an array has the method, and refuses
            return _only_number(token) in self.ids
        return number in self.ids

    def _found_in(self, output: object) -> object:
        find = self._find
        assert find is not None  # noqa: S101 - for the type checker
        if find is self.key:  # a function, whose errors are its own
            return find(output)
        try:
            return find(output)
        except Exception as error:
            raise TypeError(
                f"{self!r} finds no token id in an output of type {type(output).__name__}: "
                f"pass the key under which outputs hold it, such as key=0 for pairs (token, "
                f"logprob); or none, if the outputs are the ids"
            ) from error

    def __repr__(self) -> str:
        arguments = list(map(str, sorted(self.ids))) or ["None"]
        if self.key is not None:
            arguments.append(f"key={self.key!r}")
        return f"token_ids({', '.join(arguments)})"

    def __reduce__(self) -> tuple[type[TokenIds], tuple[object, ...]]:
        return TokenIds, (self.ids, self.key)


def _only_number(array: Any) -> int | None:
    """Return the whole number of an array that holds one number and nothing more."""
    try:
        item: Any = array.item() if all(length == 1 for length in array.shape) else None
        return None if isinstance(item, bool) else operator.index(item)
    except Exception:  # noqa: BLE001 - whatever else it is, it is no token id
        return None


def token_ids(
    *ids: int | Iterable[int] | None, key: int | str | Callable[[Any], object] | None = None
) -> TokenIds:
    """Return a predicate for `is_eos` that is true of these token ids.

    It compares whole numbers: Python's, NumPy's, and arrays and tensors of one number, as in a step
    of shape `(slots, 1)`. An output of any other kind is not a token id, and is never compared.

    Args:
        ids: One or more ids; or a list, a set or an array of them, or None, as a tokenizer's
            `eos_token_id` may be. With None alone the predicate is true of no output.
        key: Where an output holds its token id: the position in a tuple, `key=0` for
            `(token, logprob)`; the key in a dict; or a function that returns the id. An output that
            has none there fails its own slot, with `TypeError` or what the function raises.

    Raises:
        TypeError: An id is not a whole number: no output would ever match. Or the key is of the
            wrong kind.
        ValueError: No id was given.

    Example:
        >>> import batchstream
        >>> ends = batchstream.token_ids(2, 32000)
        >>> ends(2), ends(5), ends("2")
        (True, False, False)
        >>> with_logprobs = batchstream.token_ids([2, 32000], key=0)
        >>> with_logprobs((2, -0.1)), with_logprobs((5, -0.7))
        (True, False)
    """
    if isinstance(key, bool) or not (key is None or isinstance(key, int | str) or callable(key)):
        raise TypeError(
            f"key takes a position, a key or a function of one output, got {key!r} (token_ids)"
        )
    found = [number for each in ids for number in _members(each)]
    for number in found:
        if isinstance(number, bool) or not hasattr(type(number), "__index__"):
            instead = ""
            if isinstance(number, str | bytes):
                finds = f"is_eos=lambda output: output == {number!r}"
                instead = f": for outputs that are texts pass {finds}"
            raise TypeError(f"token_ids takes whole numbers, got {number!r}{instead}")
    if not found and not any(each is None for each in ids):
        raise ValueError(
            "token_ids takes at least one id, got none: pass None where the model has no id that "
            "ends a sequence"
        )
    return TokenIds(frozenset(map(operator.index, found)), key)


def _members(ids: Any) -> Iterable[Any]:
    """Return the ids in one argument: a number, None, or several numbers."""
    if ids is None:
        return ()
    if hasattr(type(ids), "tolist"):
        ids = ids.tolist()  # of an array of no dimension, or a NumPy scalar, a number
    if isinstance(ids, Iterable) and not isinstance(ids, str | bytes | bytearray | dict):
        return ids
    return (ids,)
