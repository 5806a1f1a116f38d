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
    """The stream was cancelled."""
    ERROR = "error"
    """The source failed, or this slot alone; or the batch was closed before the stream's end."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamEnd:
    """How one stream ended.

    Attributes:
        reason: Why it ended.
        outputs: How many outputs the source had given it by then; a count.
        info: What the source sent along with `Last` or `End`.
        error: The original exception where the reason is `error`. What a consumer sees
            raised is a copy of its own.
    """

    reason: FinishReason
    outputs: int
    info: Mapping[str, Any] | None = None
    error: BaseException | None = None


class Delivery(NamedTuple, Generic[T]):
    """The outputs of one step, by slot, and the slots that finished in it.

    The outputs are two columns of equal length, for speed; `outputs` returns them as pairs. A slot
    occurs once for each of its outputs: twice or more where the source put `Many` in the step, not
    at all where the step has no output for it. In which order the slots come is not promised.

    Attributes:
        slots: The slot of each of `values`.
        values: The outputs; outputs of one slot are in their order.
        ends: The slots that finished in this step, each with its end. The outputs came before.
    """

    slots: Sequence[int]
    values: Sequence[T]
    ends: Sequence[tuple[int, StreamEnd]] = ()

    def __repr__(self) -> str:
        ends = {slot: str(end.reason) for slot, end in self.ends}
        return f"<Delivery, outputs {self.outputs!r}, ends {ends!r}>"

    def _repr_html_(self) -> str:
        """Return a row for each slot with its outputs and its end, for a notebook."""
        from batchstream._core.html import delivery_table  # noqa: PLC0415 - notebooks alone need it

        return delivery_table(
            self.slots, self.values, [(slot, end.reason, end.error) for slot, end in self.ends]
        )

    @property
    def outputs(self) -> list[tuple[int, T]]:
        """The outputs as pairs `(slot, output)`."""
        return list(zip(self.slots, self.values, strict=True))


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """The figures of one batcher at one moment, over all its batches.

    Attributes:
        batches: Batches that were formed; in continuous batching, groups of requests that joined
            before the same step.
        batch_sizes: How many of them had how many requests. It is not how many slots were in use:
            that is `occupancy`.
        steps: Steps that were made.
        occupancy: Which part of `max_batch_size` was live, as a mean over the steps; of what it was
            at each, if it was changed. Where that is no limit (`sys.maxsize`), which part of the
            requests that began the batch.
        outputs: Outputs given to streams, whether they were read or not.
        dropped: Outputs for slots that had finished.
        opened: Requests that were accepted: always `live` plus all that have finished.
        refused: Requests that were refused with `OverloadedError`.
        refusals: Requests that were refused, by reason: `pending` for `max_pending`, and whatever
            other limit an `OverloadedError` names; `cost` for one that costs more than a batch may;
            `closed`, and `draining`. A request of a `map` that waits for room was not refused.
        live: Requests that have not finished, waiting ones included.
        waiting: Requests that wait to join a batch, for the first time or again.
        running: Requests that are in a batch: `live` without `waiting`.
        prefilling: Running requests that have had no output since they joined the batch.
        finished: Requests that have finished, by reason.
        buffered: Outputs that wait in live streams to be received.
        waited: How long the requests that have joined a batch waited for it, added up, in seconds.
        longest_wait: The longest of these waits, in seconds.
        requeued: How often an engine has given a slot back with `Requeue`; the request counts as
            opened once, and its first wait alone counts as such.
        first_outputs: Requests that have had their first output.
        first_output_time: How long these waited for it since they were submitted, added up, in
            seconds.
        output_time: How long requests that have ended took from their first output on, added up, in
            seconds.
        slot_time: How long requests that have ended were in a batch, added up, in seconds.
        wasted: Slots in steps that were made for a request which had left meanwhile: cancelled,
            overdue, or closed with the batcher.
    """

    batches: int
    batch_sizes: Mapping[int, int]
    steps: int
    occupancy: float
    outputs: int
    dropped: int
    opened: int
    refused: int
    live: int
    waiting: int
    finished: Mapping[FinishReason, int]
    buffered: int
    waited: float
    longest_wait: float
    running: int
    prefilling: int
    refusals: Mapping[str, int]
    first_outputs: int
    first_output_time: float
    output_time: float
    slot_time: float
    wasted: int
    requeued: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of one batch at one moment.

    Attributes:
        steps: Steps that the source has yielded.
        outputs: Outputs given to streams, whether they were read or not.
        dropped: Outputs that the source yielded for slots that had finished.
        opened: Streams that were opened: always `live` plus all that have finished.
        live: Streams that have not finished.
        finished: Streams that have finished, by reason.
        buffered: Outputs that wait in streams to be received.
        waiting_for: Slots of the streams that the source waits for: they hold `max_buffered`
            outputs, and it makes no step before each is read.
    """

    steps: int
    outputs: int
    dropped: int
    opened: int
    live: int
    finished: Mapping[FinishReason, int]
    buffered: int = 0
    waiting_for: tuple[int, ...] = ()
