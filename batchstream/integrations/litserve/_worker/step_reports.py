"""What the metrics of a worker hear of each step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batchstream import Delivery
    from batchstream._batching.telemetry.metrics import MetricsCaller
    from batchstream.integrations.litserve._worker.request import ServedRequest


class StepReports:
    """The steps of one batch, for metrics.

    Args:
        metrics: The worker's.
        capacity: How many slots there are.
    """

    def __init__(self, metrics: MetricsCaller, capacity: int) -> None:
        self._metrics = metrics
        self._capacity = capacity
        self._last: float | None = None

    def pause(self) -> None:
        """Note that the next step is a first one: no slot is live until then."""
        self._last = None

    def note(
        self,
        live: int,
        delivery: Delivery[object],
        requests: Mapping[int, ServedRequest],
        left: Iterable[str],
    ) -> None:
        """Report a step, before its ends have been noted.

        Args:
            live: How many slots it was made for.
            delivery: What it has given.
            requests: The requests in the slots.
            left: The uids of requests whose clients have left since the step before.
        """
        now = time.monotonic()
        gap = None if self._last is None else now - self._last
        self._last = now
        going_on = sum(request.has_output for request in requests.values())
        for slot in set(delivery.slots):
            request = requests.get(slot)
            if request is not None and not request.has_output:
                request.note_output(self._metrics)
        ended = {slot for slot, _ in delivery.ends}
        gone = set(left)
        prefilling = sum(
            not request.has_output for slot, request in requests.items() if slot not in ended
        )
        wasted = sum(str(request.uid) in gone for request in requests.values())
        outputs = len(delivery.slots)
        self._metrics("stepped", live, self._capacity, outputs, gap, going_on, prefilling, wasted)
