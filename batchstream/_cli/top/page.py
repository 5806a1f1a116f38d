"""What a metrics page says of each batcher, whatever its figures are called there."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from batchstream._cli.errors import CommandError
from batchstream.integrations.prometheus._figures import TABLES, Names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.samples import Sample

Labels: TypeAlias = "tuple[tuple[str, str], ...]"
"""The labels of a series, in the order of their names."""

Figures: TypeAlias = "Mapping[str, Mapping[Labels, float]]"
"""The figures of a batcher by their keys in `TABLES`; of each its series."""

_SUFFIXES: Final = {"counter": "_total", "gauge": "", "histogram": "_bucket"}


def _keys(names: Names) -> dict[str, str]:
    """Return what each name of a table stands for; the name is without what all begin with."""
    return {figure.name + _SUFFIXES[figure.kind]: figure.key for figure in TABLES[names]}


# Behind the name of all metrics: `batchstream_steps_total` and `vllm:num_requests_running`.
_OURS: Final = _keys("batchstream") | {
    "request_outputs_sum": "outputs_of_ended",
    "requests_live": "unfinished",  # up to 0.1
}
_VLLM: Final = _keys("vllm")
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
        prefix, key = place
        labels = dict(sample.labels)
        name = next((labels.pop(label) for label in _BATCHER if label in labels), "")
        figure = found.setdefault((prefix, name), defaultdict(dict))[key]
        # The first is kept: vLLM has the gap by an old name and by a new one.
        figure.setdefault(tuple(sorted(labels.items())), sample.value)
    shown = {
        place: figures
        for place, figures in sorted(found.items())
        if any(needed <= figures.keys() for needed in _NEEDED)
    }
    # A batcher may be there by the names of vLLM as well, which say less.
    whole = {name for (_, name), figures in shown.items() if "steps" in figures}
    shown = {
        (prefix, name): figures
        for (prefix, name), figures in shown.items()
        if "steps" in figures or name not in whole
    }
    names = Counter(name for _, name in shown)
    for (prefix, name), figures in shown.items():
        alone = names[name] == 1
        yield (name or prefix) if alone else f"{prefix} {name}".rstrip(), figures


def _place(name: str) -> tuple[str, str] | None:
    """Return what the names of all metrics begin with, and which figure this is."""
    prefix, colon, rest = name.partition(":")
    if colon:
        return (prefix, _VLLM[rest]) if rest in _VLLM else None
    parts = name.split("_")
    for number in range(1, len(parts)):  # the longest end first
        if (key := _OURS.get("_".join(parts[number:]))) is not None:
            return "_".join(parts[:number]), key
    return None
