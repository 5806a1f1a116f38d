"""Prometheus: the figures of a batcher as counters, gauges and histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from batchstream._core.records import FinishReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchstream._core.records import StreamEnd

_SIZES: Final = tuple(2**exponent for exponent in range(11))
_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class PrometheusMetrics:
    """The figures of a batcher in a registry of prometheus-client; pass it as `metrics`.

    With the name `batchstream` these are:

    - `batchstream_requests_submitted_total`, `batchstream_requests_refused_total`: requests that
      were accepted, and requests that were refused with `OverloadedError`.
    - `batchstream_requests_finished_total`, by `reason`: requests that have ended.
    - `batchstream_outputs_total`: outputs of the requests that have ended.
    - `batchstream_requests_waiting`, `batchstream_requests_live`: how many requests wait for their
      batch at the moment, and how many have not ended, waiting ones included.
    - `batchstream_steps_total`: steps that were made. Two more counters say how full they were:
      `batchstream_slot_steps_live_total` adds up the live slots of all steps, and
      `batchstream_slot_steps_total` adds up `max_batch_size`. The rate of the first divided by
      the rate of the second is the occupancy.
    - `batchstream_batch_size`: a histogram of how many requests joined a batch together.
    - `batchstream_wait_seconds`: how long the requests that joined a batch had waited for it.
    - `batchstream_request_seconds`: how long requests lasted, from when they were submitted.

    The end of a cancelled request counts with the batcher's next step; if the request waited for
    others to fill its batch, within `batch_timeout`. For a moment a request may have joined a batch
    and not count as submitted yet: its caller counts it, and a worker may be faster.

    One object may serve several batchers; their figures are then added up. To keep batchers apart,
    give each an object and a name of its own. In prometheus-client's multiprocess mode a gauge is
    the sum over the processes that are alive.

    Args:
        name: What the names of the metrics begin with.
        registry: Where the metrics are registered. It keeps them for good, so make one object for
            a batcher's whole life, and not one for each request.

    Raises:
        ValueError: The registry has such names already, or Prometheus does not allow them.

    Threads: any thread.

    Example:
        >>> import batchstream, prometheus_client
        >>> registry = prometheus_client.CollectorRegistry()
        >>> def spell(words):
        ...     for position in range(max(map(len, words)) + 1):
        ...         yield [word[position] if position < len(word) else None for word in words]
        >>> metrics = PrometheusMetrics(registry=registry)
        >>> with batchstream.DynamicBatcher(spell, max_batch_size=4, metrics=metrics) as batcher:
        ...     print(*batcher.stream("batch"))
        b a t c h
        >>> registry.get_sample_value("batchstream_requests_finished_total", {"reason": "eos"})
        1.0

    With `metrics=PrometheusMetrics`, without a call, the object is made with the first request.
    """

    def __init__(
        self, name: str = "batchstream", *, registry: CollectorRegistry = REGISTRY
    ) -> None:
        def counter(figure: str, meaning: str) -> Counter:
            return Counter(f"{name}_{figure}", meaning, registry=registry)

        def gauge(figure: str, meaning: str) -> Gauge:
            return Gauge(
                f"{name}_{figure}", meaning, registry=registry, multiprocess_mode="livesum"
            )

        def histogram(figure: str, meaning: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"{name}_{figure}", meaning, registry=registry, buckets=buckets)

        self._submitted = counter("requests_submitted", "Requests that were accepted")
        self._refused = counter("requests_refused", "Requests refused with OverloadedError")
        finished = Counter(
            f"{name}_requests_finished", "Requests that have ended", ["reason"], registry=registry
        )
        # All reasons from the beginning: a counter that first appears as 1 has had no increase, and
        # its rate would miss the first end.
        self._finished = {reason: finished.labels(reason.value) for reason in FinishReason}
        self._outputs = counter("outputs", "Outputs of the requests that have ended")
        self._waiting = gauge("requests_waiting", "Requests that have not joined a batch")
        self._live = gauge("requests_live", "Requests that have not ended, waiting ones included")
        self._steps = counter("steps", "Steps that were made")
        self._live_slots = counter("slot_steps_live", "Live slots, added up over the steps")
        self._slots = counter("slot_steps", "max_batch_size, added up over the steps")
        self._size = histogram("batch_size", "Requests that joined a batch together", _SIZES)
        self._wait = histogram("wait_seconds", "From submitted to joined", _SECONDS)
        self._duration = histogram("request_seconds", "From submitted to ended", _SECONDS)

    def submitted(self) -> None:
        """Count a request that was accepted and waits."""
        self._submitted.inc()
        self._live.inc()
        self._waiting.inc()

    def refused(self) -> None:
        """Count a request that was refused."""
        self._refused.inc()

    def joined(self, waited: Sequence[float]) -> None:
        """Count requests that joined a batch together, and how long each had waited."""
        self._waiting.dec(len(waited))
        self._size.observe(len(waited))
        for seconds in waited:
            self._wait.observe(seconds)

    def stepped(self, live: int, capacity: int) -> None:
        """Count a step, its live slots and its slots."""
        self._steps.inc()
        self._live_slots.inc(live)
        self._slots.inc(capacity)

    def finished(self, end: StreamEnd, *, joined: bool, lasted: float) -> None:
        """Count a request that has ended."""
        self._live.dec()
        if not joined:
            self._waiting.dec()
        self._finished[end.reason].inc()
        self._outputs.inc(end.outputs)
        self._duration.observe(lasted)
