"""The metrics of the conventions: the object that a user passes as `metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry.metrics import MeterProvider, get_meter

from batchstream import FinishReason, Metrics
from batchstream.integrations.opentelemetry._names import (
    BATCHER,
    ERROR_TYPE,
    REASON,
    REFUSED,
    REQUEST_DURATION,
    RUNNING,
    SCOPE,
    TIME_PER_OUTPUT,
    TIME_TO_FIRST,
    VERSION,
    WAITING,
    Operation,
    error_type,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from batchstream import StreamEnd

# The bounds that the conventions ask for, in seconds.
_DURATIONS: Final = [0.01 * 2**power for power in range(14)]
_FIRST: Final = [
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
]
_PER_OUTPUT: Final = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]


class OpenTelemetryMetrics(Metrics):
    """The metrics of batchers by OpenTelemetry's conventions; pass it as `metrics`.

    An output counts as a token. All have the attributes `gen_ai.operation.name`,
    `gen_ai.provider.name`, `gen_ai.request.model` and `batchstream.batcher`.

    - `gen_ai.server.request.duration`: histogram, seconds to the end; `error.type` of a failure.
    - `gen_ai.server.time_to_first_token`: histogram, seconds to the first output.
    - `gen_ai.server.time_per_output_token`: histogram, seconds per output after the first.
    - `batchstream.requests.waiting`: how many requests wait.
    - `batchstream.requests.running`: how many requests are in a batch.
    - `batchstream.requests.refused`: how many were refused, by `batchstream.reason`.

    Seconds count from the submission of a request. The time per output is one figure for each
    request with two or more that was not cancelled and has not failed: the mean of them.
    `PrometheusMetrics` has more, about steps and tenants; a collector can read that as well.

    Args:
        operation: See `OpenTelemetryTraces`, as for `model` and `provider`.
        model: The model's name; that of the batcher if it is None.
        provider: What serves it.
        meter_provider: OpenTelemetry's; the global one if it is None.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind.

    Threads: any.
    """

    def __init__(
        self,
        *,
        operation: str = "text_completion",
        model: str | None = None,
        provider: str = "batchstream",
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._operation = Operation(operation, model, provider)
        self._instruments = _Instruments(meter_provider)

    def for_batcher(self, name: str) -> Metrics:
        """Return what the batcher of this name calls."""
        return _Recorder(self._instruments, self._operation.attributes(name))


class _Instruments:
    """The instruments of one meter, which all batchers share."""

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = get_meter(SCOPE, VERSION, meter_provider=provider)
        self.duration = meter.create_histogram(
            REQUEST_DURATION,
            unit="s",
            description="Time from the submission of a request to its end.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self.first = meter.create_histogram(
            TIME_TO_FIRST,
            unit="s",
            description="Time from the submission of a request to its first output.",
            explicit_bucket_boundaries_advisory=_FIRST,
        )
        self.per_output = meter.create_histogram(
            TIME_PER_OUTPUT,
            unit="s",
            description="Time per output after the first, of a request that has not failed.",
            explicit_bucket_boundaries_advisory=_PER_OUTPUT,
        )
        self.waiting = meter.create_up_down_counter(
            WAITING, unit="{request}", description="Requests that wait."
        )
        self.running = meter.create_up_down_counter(
            RUNNING, unit="{request}", description="Requests that are in a batch."
        )
        self.refused = meter.create_counter(
            REFUSED, unit="{request}", description="Requests that were refused."
        )


class _Recorder(Metrics):
    """What one batcher calls."""

    def __init__(self, instruments: _Instruments, attributes: dict[str, Any]) -> None:
        self._to = instruments
        self._attributes = attributes
        self._own = {BATCHER: attributes[BATCHER]}

    def submitted(self, **_: object) -> None:
        self._to.waiting.add(1, self._own)

    def refused(self, reason: str, *, tenant: Hashable = None) -> None:
        del tenant
        self._to.refused.add(1, {**self._own, REASON: reason})

    def joined(self, waited: Sequence[float], **_: object) -> None:
        self._to.waiting.add(-len(waited), self._own)
        self._to.running.add(len(waited), self._own)

    def requeued(self, **_: object) -> None:
        self._to.waiting.add(1, self._own)
        self._to.running.add(-1, self._own)

    def first_output(self, seconds: float, **_: object) -> None:
        self._to.first.record(seconds, self._attributes)

    def finished(
        self,
        end: StreamEnd,
        *,
        joined: bool,
        lasted: float,
        in_slot: float,
        first_output: float | None = None,
        tenant: Hashable = None,
        refused: bool = False,
    ) -> None:
        del in_slot, tenant
        (self._to.running if joined else self._to.waiting).add(-1, self._own)
        if refused:
            return
        kind = error_type(end)
        attributes = self._attributes if kind is None else {**self._attributes, ERROR_TYPE: kind}
        self._to.duration.record(lasted, attributes)
        is_whole = end.reason not in (FinishReason.CANCELLED, FinishReason.ERROR)
        if is_whole and end.outputs > 1 and first_output is not None:
            per_output = (lasted - first_output) / (end.outputs - 1)
            self._to.per_output.record(per_output, self._attributes)
