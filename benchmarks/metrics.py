"""What metrics and traces cost for each step of 64 slots, and for each request.

Run `python benchmarks/metrics.py`. A continuous batcher drives an engine whose steps are made
already. What passes in the worker's thread from one step to the next is the batcher's own work;
with metrics it is more. Both are measured by turns in one run, in processor time of that thread,
and the smallest of many short stretches counts for each: other programs make a stretch longer,
and never shorter. Metrics keep steps, and write so many at once: each stretch is one phase of
that, and what counts is the mean of the shortest of each phase, with the writing in it. Streams
are not read meanwhile: what consumers and their wake-ups cost is left out, and would make metrics
a smaller part of the whole.

What a request costs is measured from its submission to its reply, with one output, in processor
time of all threads. Spans are recorded, and not exported.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

from harness import table
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry

from batchstream import EOS, ContinuousBatcher, Last, Metrics
from batchstream._batching.kept_steps import MOST_KEPT
from batchstream.integrations.opentelemetry import OpenTelemetryTraces
from batchstream.integrations.prometheus import PrometheusMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

SLOTS = 64
PHASES = 8
STEPS = MOST_KEPT // PHASES  # in a stretch
WARM_UP = 20  # steps
REQUESTS = 512


class Engine:
    """An engine whose steps cost nothing, and that takes the time between them."""

    def __init__(self, stretches: int) -> None:
        self.slots: dict[int, object] = {}
        self.nanoseconds: list[int] = []  # of each stretch
        self._stretches = stretches
        self._made = 0
        self._began = 0
        self._plain: dict[int, object] = {}
        self.may_begin = threading.Event()
        self.has_ended = threading.Event()

    def add(self, slot: int, request: object) -> None:
        """Take a request."""
        self.slots[slot] = request

    def step(self) -> dict[int, object]:
        """Return the same step again and again, until there were enough."""
        self.may_begin.wait()
        now = time.thread_time_ns()
        made = self._made - WARM_UP
        if made == 0:
            self._began = now
        elif made > 0 and made % STEPS == 0:
            self.nanoseconds.append(now - self._began)
            if len(self.nanoseconds) == self._stretches:
                return dict.fromkeys(self.slots, EOS)
            now = self._began = time.thread_time_ns()
        self._made += 1
        if len(self._plain) != len(self.slots):
            self._plain = dict.fromkeys(self.slots, "output")
        return self._plain

    def remove(self, slot: int) -> None:
        """Forget a request."""
        del self.slots[slot]
        if not self.slots:
            self.has_ended.set()


class Once:
    """An engine that gives each request one output, in the step behind its adding."""

    def __init__(self) -> None:
        self.slots: dict[int, object] = {}

    def add(self, slot: int, request: object) -> None:
        """Take a request."""
        self.slots[slot] = Last(request)

    def step(self) -> dict[int, object]:
        """Return the outputs of all."""
        return dict(self.slots)

    def remove(self, slot: int) -> None:
        """Forget a request."""
        del self.slots[slot]


def per_request(options: dict[str, Any]) -> float:
    """Return how many microseconds a request takes."""
    with ContinuousBatcher(Once, max_batch_size=SLOTS, **options) as batcher:
        began = time.process_time_ns()
        replies = sum(1 for _ in batcher.map(range(REQUESTS)))
        taken = time.process_time_ns() - began
    assert replies == REQUESTS
    return taken / REQUESTS / 1000


def shortest(options: dict[str, Any], stretches: int) -> list[float]:
    """Return how many microseconds a step takes, in the shortest stretch of each phase."""
    engine = Engine(stretches)
    with ContinuousBatcher(engine, max_batch_size=SLOTS, max_buffered=10**9, **options) as batcher:
        streams = [batcher.stream(number) for number in range(SLOTS)]
        engine.may_begin.set()
        engine.has_ended.wait()
        del streams
    assert batcher.statistics().steps == WARM_UP + STEPS * stretches + 1
    of_phases = [min(engine.nanoseconds[phase::PHASES]) for phase in range(PHASES)]
    return [nanoseconds / STEPS / 1000 for nanoseconds in of_phases]


def main() -> None:
    """Measure by turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for a first look")
    turns, stretches = (3, 3 * PHASES) if parser.parse_args().quick else (15, 10 * PHASES)
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "neither": dict,
        "metrics of which no method does anything": lambda: {"metrics": Metrics()},
        "PrometheusMetrics": lambda: {"metrics": PrometheusMetrics(registry=CollectorRegistry())},
        "PrometheusMetrics by vLLM's names": lambda: {
            "metrics": PrometheusMetrics(registry=CollectorRegistry(), names="vllm")
        },
        "OpenTelemetryTraces": lambda: {
            "traces": OpenTelemetryTraces(tracer_provider=TracerProvider(shutdown_on_exit=False))
        },
        "OpenTelemetryTraces, not sampled": lambda: {
            "traces": OpenTelemetryTraces(
                tracer_provider=TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
            )
        },
    }
    steps: dict[str, list[list[float]]] = {name: [] for name in kinds}
    requests: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for _ in range(turns):
        for name, make in kinds.items():
            steps[name].append(shortest(make(), stretches))
            requests[name].append([per_request(make())])
    for unit, times in (("step", steps), ("request", requests)):
        best = {
            name: statistics.mean(map(min, zip(*turns_of, strict=True)))
            for name, turns_of in times.items()
        }
        rows = []
        for name, turns_of in times.items():
            noise = statistics.median(map(statistics.mean, turns_of)) - best[name]
            more = best[name] / best["neither"] - 1
            rows.append([name, f"{best[name]:.2f}", f"{noise:.2f}", f"{more:+.1%}"])
        print(table(["", f"µs per {unit}", "median is more by", "more than with neither"], rows))


if __name__ == "__main__":
    main()
