"""What a decorated function gives, read as `serve.batch` reads it.

Outputs are looked at by type and identity alone: equality of arrays is an array, and has no truth.
None is an output like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ray.serve.exceptions import RayServeException

from batchstream._core.markers import EOS, Many

_MARKS: Final = (StopIteration, StopAsyncIteration)
# The types of what may be a mark of Ray's, or hold one: a step without them is taken as it is.
_SUSPECTS: Final = frozenset({type, Many, *_MARKS})


def check_length(returned: Any, size: int) -> None:
    """Refuse results, or a step, that do not have one element for each request.

    What has no length is left to the code that reads it.

    Raises:
        RayServeException: They have another length.
    """
    if hasattr(type(returned), "__len__") and len(returned) != size:
        raise RayServeException(
            f"Batched function doesn't preserve batch size. The input list has length {size} but "
            f"the returned list has length {len(returned)}."
        )


def read_step(step: Any, size: int) -> Any:
    """Return a step in which `StopIteration` is our end mark, if it holds one.

    Raises:
        RayServeException: It does not have one element for each request.
    """
    if isinstance(step, Mapping):  # by slot: slots that are left out are skipped
        if _SUSPECTS.isdisjoint(map(type, step.values())):
            return step
        return {slot: _read_element(element) for slot, element in step.items()}
    check_length(step, size)
    if getattr(getattr(step, "dtype", None), "kind", None) == "O":
        step = list(step)
    if not isinstance(step, list | tuple) or _SUSPECTS.isdisjoint(map(type, step)):
        return step
    return [_read_element(element) for element in step]


def _read_element(element: Any) -> Any:
    if type(element) is Many:
        return Many([_read_element(output) for output in element.outputs])
    if element is StopIteration or element is StopAsyncIteration or type(element) in _MARKS:
        return EOS
    return element
