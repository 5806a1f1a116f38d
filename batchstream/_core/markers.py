"""What a source may put in a step besides plain outputs.

A step holds one element for each slot. Most elements are outputs, and are delivered untouched. An
element of a type in this module is an instruction about its slot instead. These types are final,
and recognised by exact type and identity, never by equality: no output of another kind can be
mistaken for a marker.
"""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, final

from typing_extensions import TypeVar

from batchstream._core.errors import type_name
from batchstream._core.records import FinishReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T_co = TypeVar("T_co", covariant=True)

# The reasons that a source may hand on from a stream that it wraps; `Fail` hands on an error.
_SOURCE_REASONS: Final = tuple(reason for reason in FinishReason if reason != FinishReason.ERROR)


@final
class Signal(enum.Enum):
    """The two elements that carry no output: `EOS` and `SKIP`.

    Enum members are looked up by name when they are copied or unpickled, so they are the same
    object in every copy and in every process.
    """

    EOS = "eos"
    SKIP = "skip"

    def __repr__(self) -> str:
        return self.name


EOS: Final[Literal[Signal.EOS]] = Signal.EOS
"""This slot has finished; nothing is delivered."""

SKIP: Final[Literal[Signal.SKIP]] = Signal.SKIP
"""Nothing for this slot in this step; it goes on."""


def _source_reason(marker: str, reason: FinishReason | str) -> FinishReason:
    """Return the reason as a `FinishReason` that a source may give."""
    try:
        known = FinishReason(reason)
    except ValueError:
        known = None
    if known not in _SOURCE_REASONS:
        allowed = ", ".join(repr(str(r)) for r in _SOURCE_REASONS)
        hint = "; for an error use Fail(error)" if known is FinishReason.ERROR else ""
        raise ValueError(f"{marker} takes one of {allowed} as reason, got {reason!r}{hint}")
    return known


@final
@dataclass(frozen=True, slots=True, eq=False)
class Last(Generic[T_co]):
    """Deliver `output`, then finish the slot in the same step.

    With it a stream ends together with its last output; an end mark on its own ends it one step
    later, when the mark arrives. `is_eos` is not asked about the output.

    Args:
        output: The slot's last output.
        reason: Why the slot ends: `eos`, `length`, `exhausted` or `cancelled`.
        info: Anything the consumer should find in `StreamEnd.info`, usage counts for example.

    Raises:
        ValueError: The reason is not one that a source can give.
    """

    output: T_co
    reason: FinishReason | str = FinishReason.EOS
    info: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.reason is not FinishReason.EOS:  # which most have
            object.__setattr__(self, "reason", _source_reason("Last", self.reason))


@final
@dataclass(frozen=True, slots=True, eq=False)
class End:
    """Finish the slot now, with a reason and anything else the consumer should know.

    In a step, or returned by `is_eos` of the output that ends the slot.

    Args:
        reason: Why the slot ends: `eos`, `length`, `exhausted` or `cancelled`.
        info: Anything the consumer should find in `StreamEnd.info`.

    Raises:
        ValueError: The reason is not one that a source can give.
    """

    reason: FinishReason | str = FinishReason.EOS
    info: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", _source_reason("End", self.reason))


@final
@dataclass(frozen=True, slots=True, eq=False)
class Fail:
    """Fail this slot alone with `error`; the others go on.

    Args:
        error: Raised in the slot's consumer, as a copy of its own.

    Raises:
        TypeError: The error is not an exception instance.
    """

    error: BaseException

    def __post_init__(self) -> None:
        if not isinstance(self.error, BaseException):
            raise TypeError(f"Fail takes an exception instance, got {type_name(self.error)}")


@final
@dataclass(frozen=True, slots=True, eq=False)
class Many(Generic[T_co]):
    """Several outputs for one slot in one step, as speculative decoding gives them.

    Its elements are read like elements of a step: an end mark among them ends the slot there.

    Args:
        outputs: The outputs in their order; kept as a tuple. May be empty, like `SKIP`.

    Raises:
        TypeError: The outputs are text, bytes or not iterable.
        ValueError: They are an array in which a value is missing: masked, or not a time.
    """

    outputs: Iterable[T_co]

    def __post_init__(self) -> None:
        outputs: Any = self.outputs
        if isinstance(outputs, str | bytes | bytearray):
            # Not the outputs: what the source raises reaches every request of the batch.
            raise TypeError(f"Many takes an iterable of outputs, got {type_name(outputs)}")
        if getattr(outputs, "ndim", 0) == 1 and hasattr(outputs, "tolist"):
            outputs = listed(outputs)
        object.__setattr__(self, "outputs", tuple(outputs))


def listed(array: Any) -> list[Any]:
    """Return the elements of an array or tensor of one dimension as a list.

    Raises:
        ValueError: A value is missing. It would read as None, the usual end mark.
    """
    elements: list[Any] = array.tolist()
    # Where the array holds objects, None is one of them.
    if has_none(elements) and not _holds_objects(array):
        at = [element is None for element in elements].index(True)
        raise ValueError(
            f"an array of {array.dtype} has no value at position {at}: it is masked, or not a "
            f"time; fill it in, or yield a list with the end mark"
        )
    return elements


def has_none(elements: list[Any]) -> bool:
    """Whether None is among the elements; runs no code of theirs."""
    return any(map(operator.is_, elements, repeat(None)))


def _holds_objects(array: Any) -> bool:
    return getattr(getattr(array, "dtype", None), "kind", "O") == "O"


@final
class Same(enum.Enum):
    """Stands for the request that was added to the engine before."""

    SAME = "the same"

    def __repr__(self) -> str:
        return self.name


SAME: Final[Literal[Same.SAME]] = Same.SAME


@final
@dataclass(frozen=True, slots=True, eq=False)
class Requeue:
    """Take the request out of this slot, and let it go on later: it is preempted.

    For the step of an engine that `ContinuousBatcher` drives. The engine's `remove` is called for
    the slot, and the request waits again, in front of all that have never joined. When it is added
    again, to any slot, its stream goes on where it stopped: nothing is given twice, and its limit,
    its predicate, its decoder and its deadlines go on.

    It is added again after another request has left the engine. If none is left in it, the
    requests that were given back join again one by one, the oldest first.

    Args:
        request: What `add` is called with then, such as the prompt with all that was generated;
            without it, with the request as it was: then the engine has to know how to go on. If
            that engine is discarded meanwhile, as a step of it has failed, so does a request that
            has outputs already. Its cost for `max_batch_cost` stays what it was.
    """

    request: Any = SAME


MARKER_TYPES: Final[frozenset[type]] = frozenset({Signal, Last, End, Fail, Many, Requeue})
BLANK_TYPES: Final[frozenset[type]] = frozenset({Signal, End, Fail, Requeue})
