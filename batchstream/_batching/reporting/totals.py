"""The figures of one batcher, over all its batches."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from batchstream._batching.requests.request import refusal_reason
from batchstream._core.errors import OverloadedError
from batchstream._core.records import BatcherStatistics, FinishReason

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from batchstream._batching.requests.request import Request


class StepTotals(NamedTuple):
    """What batches have done, in numbers.

    Attributes:
        steps: Steps that were made.
        live_slots: Live slots, summed over the steps.
        slots: Slots that could have been live, summed over the steps.
        outputs: Outputs given to streams.
        dropped: Outputs for slots that had finished.
        wasted: Live slots whose request had left before the step was done, summed over the steps.
    """

    steps: int = 0
    live_slots: int = 0
    slots: int = 0
    outputs: int = 0
    dropped: int = 0
    wasted: int = 0


class Totals:
    """What is counted of requests and batches; changed and read under the batcher's lock.

    Attributes:
        open: Requests that were accepted, and have not been counted as finished.
        refused: How many requests were refused, for want of room.
        refusals: How many requests were refused, by reason.
        finished: How many requests have finished, by reason.
        requeued: How often an engine has given a slot back.
    """

    def __init__(self) -> None:
        self.open: set[Request[Any]] = set()
        self.refused = 0
        self.refusals: Counter[str] = Counter()
        self.finished: Counter[FinishReason] = Counter()
        self.requeued = 0
        self._past = StepTotals()  # of batches that have ended
        self._batch_sizes: Counter[int] = Counter()
        self._waited = 0.0
        self._longest_wait = 0.0
        self._slot_time = 0.0
        self._first_outputs = 0
        self._first_output_time = 0.0
        self._output_time = 0.0

    @property
    def opened(self) -> int:
        """How many requests were accepted."""
        return len(self.open) + self.finished.total()

    def count_refused(self, reason: str, *, for_room: bool) -> None:
        """Count a request that was refused, for want of room or otherwise."""
        self.refused += for_room
        self.refusals[reason] += 1

    def count_finished(self, request: Request[Any], now: float) -> bool:
        """Count a request that has ended; False if it was counted before, or never accepted.

        One that was refused in another process counts as refused, and as nothing else.
        """
        if request not in self.open:
            return False
        if request.first_output_at is None and request.ends[0].outputs:
            # Its batch has made the step, and is still to count it.
            self.count_first_output(request, now)
        self.open.discard(request)
        if (refusal := request.remote_refusal) is not None:
            self.count_refused(
                refusal_reason(refusal), for_room=isinstance(refusal, OverloadedError)
            )
            return True
        self.finished[request.ends[0].reason] += 1
        if request.joined_at is not None:
            self._slot_time += now - request.joined_at
        if request.first_output_at is not None:
            self._output_time += now - request.first_output_at
        return True

    def count_first_output(self, request: Request[Any], now: float) -> None:
        """Count that a request has had its first output."""
        request.first_output_at = now
        self._first_outputs += 1
        self._first_output_time += now - request.arrived

    def count_joined(self, waited: Sequence[float]) -> None:
        """Count requests that joined a batch together, after so many seconds each."""
        self._batch_sizes[len(waited)] += 1
        self._waited += sum(waited)
        self._longest_wait = max(self._longest_wait, *waited)

    def count_batch(self, steps: StepTotals) -> None:
        """Count what a batch has done that has ended."""
        self._past = _sum([self._past, steps])

    def statistics(
        self,
        *,
        running: Sequence[StepTotals],
        ended: Collection[Request[Any]],
        waiting: int,
        prefilling: int,
        buffered: int,
    ) -> BatcherStatistics:
        """Return all figures.

        Args:
            running: What the batches have done that run.
            ended: Requests that have ended and are not counted as such yet.
            waiting: How many requests wait.
            prefilling: How many requests in batches have had no output there.
            buffered: How many outputs wait in live streams.
        """
        newly = [request for request in ended if request in self.open]
        refused = [refusal for it in newly if (refusal := it.remote_refusal) is not None]
        for_room = sum(isinstance(it, OverloadedError) for it in refused)
        reasons = [it.ends[0].reason for it in newly if it.remote_refusal is None]
        total = _sum([self._past, *running])
        live = len(self.open) - len(newly)
        return BatcherStatistics(
            batches=self._batch_sizes.total(),
            batch_sizes=dict(sorted(self._batch_sizes.items())),
            steps=total.steps,
            occupancy=total.live_slots / total.slots if total.slots else 0.0,
            outputs=total.outputs,
            dropped=total.dropped,
            opened=self.opened - len(refused),
            refused=self.refused + for_room,
            live=live,
            waiting=waiting,
            finished=dict(self.finished + Counter(reasons)),
            buffered=buffered,
            waited=self._waited,
            longest_wait=self._longest_wait,
            running=live - waiting,
            prefilling=prefilling,
            refusals=dict(self.refusals + Counter(map(refusal_reason, refused))),
            first_outputs=self._first_outputs,
            first_output_time=self._first_output_time,
            output_time=self._output_time,
            slot_time=self._slot_time,
            wasted=total.wasted,
            requeued=self.requeued,
        )


def _sum(totals: Sequence[StepTotals]) -> StepTotals:
    return StepTotals(*map(sum, zip(*totals, strict=True)))
