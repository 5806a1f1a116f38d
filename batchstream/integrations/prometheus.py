"""Prometheus: what a batcher does, as counters, gauges and histograms."""

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
    """What a batcher tells its `metrics`, in a registry of prometheus-client.

    With the name `batchstream` there are:

    - `batchstream_requests_submitted_total`, `batchstream_requests_refused_total`: requests that
      were accepted, and those refused with `OverloadedError`.
    - `batchstream_requests_finished_total`, by `reason`: requests that have ended.
    - `batchstream_outputs_total`: outputs of the requests that have ended.
    - `batchstream_requests_waiting`, `batchstream_requests_live`: how many wait at the moment for
      their batch, and how many have not ended, those that wait among them.
    - `batchstream_steps_total`; and how full the steps were, as two counters:
      `batchstream_slot_steps_live_total` adds up the live slots of all steps, and
      `batchstream_slot_steps_total` adds up `max_batch_size`. The rate of the first divided by
      the rate of the second is the occupancy.
    - `batchstream_batch_size`: a histogram of how many requests joined a batch together.
    - `batchstream_wait_seconds`: how long those who joined a batch had waited for it.
    - `batchstream_request_seconds`: how long requests lasted, from when they were submitted.

    An end counts when the batcher takes note of it: after a cancel with the next step; and where a
    request waits for others to come, within `batch_timeout`. A request may join a batch before it
    counts as submitted, for the moment that its caller takes to say so.

    One object may serve several batchers, which are then added up. Batchers to be told apart have
    an object each, with a name each. With prometheus-client's multiprocess mode the gauges are the
    sums over the processes that live.

    Args:
        name: What the names begin with.
        registry: Where they are registered. It keeps them for good, so make one object for a
            batcher's whole life, and not one for each request.

    Raises:
        ValueError: The registry has such names already, or they would be none of Prometheus.

    Threads: any.

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
    """

    def __init__(
        self, name: str = "batchstream", *, registry: CollectorRegistry = REGISTRY
    ) -> None:
        def counter(what: str, meaning: str) -> Counter:
            return Counter(f"{name}_{what}", meaning, registry=registry)

        def gauge(what: str, meaning: str) -> Gauge:
            return Gauge(f"{name}_{what}", meaning, registry=registry, multiprocess_mode="livesum")

        def histogram(what: str, meaning: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"{name}_{what}", meaning, registry=registry, buckets=buckets)

        self._submitted = counter("requests_submitted", "Requests that were accepted")
        self._refused = counter("requests_refused", "Requests refused with OverloadedError")
        finished = Counter(
            f"{name}_requests_finished", "Requests that have ended", ["reason"], registry=registry
        )
        # All from the beginning: a rate is not to miss the first of its kind.
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
        """Count a request that waits."""
        self._submitted.inc()
        self._live.inc()
        self._waiting.inc()

    def refused(self) -> None:
        """Count a request that was refused."""
        self._refused.inc()

    def joined(self, waited: Sequence[float]) -> None:
        """Count requests that joined a batch, and for how long they had waited."""
        self._waiting.dec(len(waited))
        self._size.observe(len(waited))
        for seconds in waited:
            self._wait.observe(seconds)

    def stepped(self, live: int, capacity: int) -> None:
        """Count a step."""
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
