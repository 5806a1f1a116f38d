"""Reading one step: which element belongs to which slot, and which elements are no outputs.

A source may yield any of several shapes. `read_step` brings each into one of two: a list or tuple
as wide as the batch, or a dict by slot; it refuses anything else, and never looks at an element.

`Marks` finds the markers among the elements, many elements at a time and without touching them:
by their exact type, and by identity. C code asks that where it can: `set(map(type, elements))`
runs no Python code per element.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from typing_extensions import TypeIs

from batchstream._core.errors import StepError, error_text, type_name
from batchstream._core.markers import BLANK_TYPES, MARKER_TYPES, SKIP, Many, listed

_SHOWN_BITS: Final = 64
"""A slot of as many bits is not shown: Python may refuse to print so many digits."""

Elements = list[Any] | tuple[Any, ...] | dict[int, Any]


def read_step(step: object, size: int, number: int) -> Elements:
    """Return the step's elements by slot.

    Args:
        step: A sequence of `size` elements; a mapping from slot to element; a 1-D array or tensor,
            read with one `tolist`; an array of more dimensions, one sub-array for each slot.
        size: How many slots the batch has.
        number: Which step this is, counted from 0; for the message.

    Raises:
        StepError: The step is none of these, has another width, or names a slot that does not
            exist.
    """
    if type(step) is list or type(step) is tuple:  # most steps by far, so checked first
        elements = step
    elif _is_mapping(step, number):
        return _read_mapping(step, size, number)
    else:
        elements = _read_sequence(step, number)
    if len(elements) != size:
        raise StepError(
            f"step {number} has {len(elements)} outputs, expected {size} (one per slot; a dict "
            "{slot: output} may leave slots out)",
            step=number,
        )
    return elements


def step_width(step: object) -> int:
    """Return how many slots a batch has whose first step this is.

    Raises:
        StepError: The step has no width. A mapping has none, as it may leave slots out.
    """
    if _is_mapping(step, 0):
        raise StepError(
            f"step 0 is a mapping, which does not say how many slots there are: pass size=, "
            f"got {type_name(step)}",
            step=0,
        )
    return len(_read_sequence(step, 0))


def picker(slots: Sequence[int]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that takes the elements of these slots out of a step that was read.

    The function raises `KeyError` where a mapping leaves one of the slots out.
    """
    if len(slots) == 0:
        return lambda _: ()
    if len(slots) == 1:
        only = slots[0]
        return lambda elements: (elements[only],)
    return operator.itemgetter(*slots)


def are_numbers(keys: Collection[Any]) -> bool:
    """Whether all keys are plain numbers. Quick, and runs no code of the keys' own."""
    try:
        return set(map(type, keys)) <= {int}
    except Exception:  # noqa: BLE001 - a type refuses to be hashed
        return False


class Marks:
    """Finds in a step what is no output: markers, and the end mark of the batch.

    Args:
        eos: The end mark, recognised by identity. An element of its type is a suspect, no more.

    Attributes:
        types: An element of none of these types is surely an output.
    """

    __slots__ = ("_blank_types", "_eos", "types")

    def __init__(self, eos: object) -> None:
        self._eos = eos
        self.types = MARKER_TYPES | {type, type(eos)}  # a class may be that of a marker
        # Elements of these types hold no output. None is one of them only where it is the end mark.
        self._blank_types = BLANK_TYPES | ({type(None)} if eos is None else set())

    def suspects_in(self, elements: Sequence[object]) -> list[int]:
        """Return the positions of the elements that may be markers."""
        types = self.types
        try:
            suspects = [n for n, kind in enumerate(map(type, elements)) if kind in types]
        except Exception:  # noqa: BLE001 - a type refuses to be hashed
            suspects = [n for n, element in enumerate(elements) if _is_one_of(types, element)]
        return [n for n in suspects if type(elements[n]) is not type or self._is_mark(elements[n])]

    def _is_mark(self, class_: object) -> bool:
        return class_ is self._eos or class_ in MARKER_TYPES

    def outputs_in(self, elements: tuple[object, ...]) -> int:
        """Return how many outputs the elements hold, including outputs within markers."""
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


def _is_mapping(step: object, number: int) -> TypeIs[Mapping[Any, Any]]:
    try:
        return isinstance(step, Mapping)
    except Exception as error:
        raise _unreadable(number, error) from error


def _read_sequence(step: object, number: int) -> list[Any] | tuple[Any, ...]:
    if type(step) is list or type(step) is tuple:
        return step
    try:
        dimensions = getattr(step, "ndim", None)
        if isinstance(dimensions, int) and dimensions > 0 and hasattr(step, "tolist"):
            array: Any = step
            return listed(array) if dimensions == 1 else list(array)
        if isinstance(step, Sequence) and not isinstance(step, str | bytes | bytearray):
            return list(step)
    except Exception as error:
        raise _unreadable(number, error) from error
    instead = "make it a list"
    if isinstance(step, Iterator):
        instead += ", or yield from it where it is a source"
    raise StepError(
        f"step {number} is no sequence, mapping or array of outputs, one per slot, "
        f"got {type_name(step)}: {instead}",
        step=number,
    )


def _read_mapping(step: Mapping[Any, Any], size: int, number: int) -> dict[int, Any]:
    if (
        type(step) is dict
        and are_numbers(step)
        and (not step or 0 <= min(step) <= max(step) < size)
    ):
        return step  # most mappings by far, and checked in C
    try:
        items = list(step.items())
    except Exception as error:
        raise _unreadable(number, error) from error
    elements = {}
    for key, element in items:
        slot = _slot(key)
        if slot is None or not 0 <= slot < size:
            raise StepError(
                f"step {number} names {_shown(key, slot)}, expected slots from 0 to {size - 1}",
                step=number,
            )
        if slot in elements:
            raise StepError(f"step {number} names slot {slot} twice", step=number)
        elements[slot] = element
    return elements


def _slot(key: object) -> int | None:
    try:
        return None if isinstance(key, bool) else operator.index(key)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - a key that cannot be a number is no slot
        return None


def _unreadable(number: int, error: Exception) -> StepError:
    return StepError(
        f"step {number} could not be read: {type_name(error)}: {error_text(error)}", step=number
    )


def _shown(key: object, slot: int | None) -> str:
    """Return a short text of a key that is no slot.

    A number is shown, and nothing else: every stream gets this text, and a key may well be what one
    request sent or was to get.
    """
    if slot is None:
        return f"a slot of type {type_name(key)}"
    bits = slot.bit_length()
    return f"slot {slot}" if bits < _SHOWN_BITS else f"a slot of {bits} bits"


def _is_one_of(types: frozenset[type], element: object) -> bool:
    try:
        return type(element) in types
    except Exception:  # noqa: BLE001 - a type that refuses to be hashed is none of ours
        return False
