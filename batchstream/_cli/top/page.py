"""What a metrics page says of each batcher, whatever its figures are called there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from batchstream._cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.samples import Sample

Labels: TypeAlias = "tuple[tuple[str, str], ...]"
"""The labels of a series, in the order of their names."""

Figures: TypeAlias = "Mapping[str, Mapping[Labels, float]]"
"""The figures of a batcher by their names here; of each its series."""

# What a name ends with, behind the name of the batcher's metrics: `batchstream_steps_total`.
_OURS: Final = {
    "requests_submitted_total": "submitted",
    "requests_refused_total": "refused",
    "requests_finished_total": "finished",
    "requests_waiting": "waiting",
    "requests_live": "live",
    "requests_running": "running",
    "requests_prefilling": "prefilling",
    "slots": "slots",
    "outputs_total": "outputs",
    "steps_total": "steps",
    "slot_steps_live_total": "live slot steps",
    "slot_steps_total": "slot steps",
    "first_output_seconds_bucket": "first output",
    "gap_seconds_bucket": "gap",
    "wait_seconds_bucket": "wait",
    "request_seconds_bucket": "request",
}
# What vLLM calls its own figures, and a batcher that takes its names.
_VLLM: Final = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:request_success_total": "finished",
    "vllm:generation_tokens_total": "outputs",
    "vllm:time_to_first_token_seconds_bucket": "first output",
    "vllm:inter_token_latency_seconds_bucket": "gap",
    "vllm:time_per_output_token_seconds_bucket": "gap",
    "vllm:request_queue_time_seconds_bucket": "wait",
    "vllm:e2e_request_latency_seconds_bucket": "request",
}
# Whichever a page has of these tells batchers apart whose metrics have one name.
_BATCHER: Final = ("batcher", "model_name")
# Other programs have a `requests_waiting` too; a batcher has all of these.
_NEEDED: Final = ({"submitted", "steps"}, {"running", "waiting"})


@dataclass(frozen=True)
class Reading:
    """What a page said.

    Attributes:
        time: When it was read, in seconds of a clock that never goes back.
        batchers: The figures of each batcher, by its name.
    """

    time: float
    batchers: Mapping[str, Figures]


def read_page(text: str, time: float, address: str) -> Reading:
    """Find the batchers on a page.

    Raises:
        CommandError: It is no metrics page, or has no figures of a batcher.
    """
    try:
        samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]
    except ValueError:
        samples = []
        if not text.lstrip().startswith("#"):
            raise CommandError(
                f"{address} is no page of metrics: pass the address of the page that Prometheus "
                f"reads"
            ) from None
        raise CommandError(f"{address} is no page of metrics that can be read to its end") from None
    batchers = dict(_batchers(samples))
    if not batchers:
        raise CommandError(
            f"{address} has no figures of a batcher, among {len(samples)} of others: make the "
            f"batcher with metrics=PrometheusMetrics(), or send it a first request if it is made "
            f"with metrics=PrometheusMetrics"
        )
    return Reading(time, batchers)


def _batchers(samples: list[Sample]) -> Iterator[tuple[str, Figures]]:
    found: dict[tuple[str, str], dict[str, dict[Labels, float]]] = {}
    for sample in samples:
        if (place := _place(sample.name)) is None:
            continue
        prefix, figure = place
        labels = dict(sample.labels)
        name = next((labels.pop(label) for label in _BATCHER if label in labels), "")
        figures = found.setdefault((prefix, name), defaultdict(dict))
        series = tuple(sorted(labels.items()))
        if figure == "gap" and series in figures[figure]:
            continue  # vLLM has it by an old name and a new one
        figures[figure][series] = sample.value
    for (prefix, name), figures in sorted(found.items()):
        if any(needed <= figures.keys() for needed in _NEEDED):
            yield _shown_name(prefix, name), figures


def _place(name: str) -> tuple[str, str] | None:
    """Return the name of the batcher's metrics, and which figure this is; None for any other."""
    if name in _VLLM:
        return "vllm", _VLLM[name]
    parts = name.split("_")
    for number in range(1, len(parts)):  # the longest end first
        if (figure := _OURS.get("_".join(parts[number:]))) is not None:
            return "_".join(parts[:number]), figure
    return None


def _shown_name(prefix: str, name: str) -> str:
    return f"{prefix} {name}" if name else prefix
