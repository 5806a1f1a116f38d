"""Telling markers from outputs, many elements at a time and without touching them.

Elements are told apart by their exact type and by identity alone. That is asked in C where it can
be: `set(map(type, elements))` runs no Python code per element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchstream._core.markers import BLANK_TYPES, MARKER_TYPES, SKIP, Many

if TYPE_CHECKING:
    from collections.abc import Sequence


class Marks:
    """What is no output in a batch: the markers, and the end mark in use.

    Args:
        eos: The end mark, told by identity. Its type makes an element suspect, no more.
    """

    __slots__ = ("_blank_types", "_eos", "types")

    def __init__(self, eos: object) -> None:
        self._eos = eos
        self.types = MARKER_TYPES | {type(eos)}
        # Elements of these types hold no output; None is nothing else but the mark where it is one.
        self._blank_types = BLANK_TYPES | ({type(None)} if eos is None else set())

    def suspects_in(self, elements: Sequence[object]) -> list[int]:
        """Return the positions of the elements that may be markers."""
        types = self.types
        try:
            return [n for n, kind in enumerate(map(type, elements)) if kind in types]
        except Exception:  # noqa: BLE001 - a type refuses to be hashed
            return [n for n, element in enumerate(elements) if _is_one_of(types, element)]

    def outputs_in(self, elements: tuple[object, ...]) -> int:
        """Return how many outputs the elements hold, those within markers included."""
        try:
            types = frozenset(map(type, elements))
        except Exception:  # noqa: BLE001 - a type refuses to be hashed: look at each element
            types = self.types
        if types <= self._blank_types:
            return 0
        if types.isdisjoint(self.types):
            return len(elements)
        return sum(map(self._outputs_in_one, elements))

    def _outputs_in_one(self, element: object) -> int:
        if element is self._eos or element is SKIP:
            return 0
        if type(element) is Many:
            return self.outputs_in(tuple(element.outputs))
        return not _is_one_of(self._blank_types, element)


def _is_one_of(types: frozenset[type], element: object) -> bool:
    try:
        return type(element) in types
    except Exception:  # noqa: BLE001 - a type that refuses to be hashed is none of ours
        return False
