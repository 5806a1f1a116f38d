"""What comes out of a batch besides outputs: deliveries, ends, figures. Frozen records."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T")


class FinishReason(enum.StrEnum):
    """Why a stream has ended."""

    EOS = "eos"
    """The source marked the end of this sequence."""
    LENGTH = "length"
    """The stream has delivered `max_outputs`, or the source says that it reached a limit."""
    EXHAUSTED = "exhausted"
    """The source ended while the slot was live."""
    CANCELLED = "cancelled"
    """The consumer gave the stream up, or its owner closed the batch."""
    ERROR = "error"
    """The source, or this slot alone, failed."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamEnd:
    """How one stream ended.

    Attributes:
        reason: Why it ended.
        outputs: How many outputs the source had given it by then; a count.
        info: What the source sent along with `Last` or `End`.
        error: The original exception where the reason is `error`. What a consumer is raised is a
            copy of it that belongs to that consumer alone.
    """

    reason: FinishReason
    outputs: int
    info: Mapping[str, Any] | None = None
    error: BaseException | None = None


class Delivery(NamedTuple, Generic[T]):
    """What one step gave to whom.

    The outputs stand in two columns of equal length, which is how they travel fastest;
    `outputs` reads them as pairs. A slot occurs once for each of its outputs: twice or more where
    the source put `Many` in the step, not at all where it gave nothing.

    Attributes:
        slots: To whom each of `values` belongs.
        values: The outputs, those of one slot in their order.
        ends: The slots that finished in this step, each with its end. Outputs come before ends.
    """

    slots: Sequence[int]
    values: Sequence[T]
    ends: Sequence[tuple[int, StreamEnd]] = ()

    @property
    def outputs(self) -> list[tuple[int, T]]:
        """The outputs as pairs `(slot, output)`."""
        return list(zip(self.slots, self.values, strict=True))


@dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of one batch at one moment.

    Attributes:
        steps: Steps that the source has yielded.
        outputs: Outputs given to streams, whether they were read or not.
        dropped: Outputs that the source yielded for slots that had finished.
        opened: Streams opened; always the live and the finished together.
        live: Streams that have not finished.
        finished: Streams that have, by reason.
        buffered: Outputs that wait in streams to be received.
    """

    steps: int
    outputs: int
    dropped: int
    opened: int
    live: int
    finished: Mapping[FinishReason, int]
    buffered: int = 0
