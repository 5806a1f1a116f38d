"""What metrics and traces cost for each step of 64 slots, and for each request.

Run `python benchmarks/metrics.py`. A continuous batcher drives an engine whose steps are made
already. What passes in the worker's thread from one step to the next is the batcher's own work;
with metrics it is more. Both are measured by turns in one run, in processor time of that thread,
and the smallest of many short stretches counts for each: other programs make a stretch longer,
and never shorter. Not one stretch counts, which may be luck, but the mean of the shortest tenth
of all. Streams are not read meanwhile: what consumers and their wake-ups cost is left out, and
would make metrics a smaller part of the whole. Nor is the registry, as a server does every few
seconds. A dynamic batcher is measured in the same way, with a batch of as many requests.

What a request costs is measured from its submission to its reply, with one output, in processor
time of all threads. Spans are recorded, and not exported.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from harness import table
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry

from batchstream import EOS, ContinuousBatcher, DynamicBatcher, Last, Metrics
from batchstream.integrations.opentelemetry import OpenTelemetryTraces
from batchstream.integrations.prometheus import PrometheusMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLOTS = 64
STEPS = 64  # in a stretch
STRETCHES = 64
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


def continuous(engine: Engine, options: dict[str, Any]) -> ContinuousBatcher[Any, Any]:
    """Return a batcher that drives the engine."""
    return ContinuousBatcher(engine, max_batch_size=SLOTS, max_buffered=10**9, **options)


def dynamic(engine: Engine, options: dict[str, Any]) -> DynamicBatcher[Any, Any]:
    """Return a batcher whose function takes its steps from the engine."""

    def generate(requests: list[int]) -> Iterator[list[object]]:
        for slot, request in enumerate(requests):
            engine.add(slot, request)
        while (step := list(engine.step().values()))[0] is not EOS:
            yield step
        for slot in range(SLOTS):
            engine.remove(slot)
        yield step

    return DynamicBatcher(
        generate,
        max_batch_size=SLOTS,
        batch_timeout=60,
        max_buffered=10**9,
        eos=EOS,
        **options,
    )


def per_step(make: Callable[[Engine, dict[str, Any]], Any], options: dict[str, Any]) -> list[float]:
    """Return how many microseconds a step takes, in each stretch."""
    engine = Engine(STRETCHES)
    with make(engine, options) as batcher:
        streams = [batcher.stream(number) for number in range(SLOTS)]
        engine.may_begin.set()
        engine.has_ended.wait()
        del streams
    assert batcher.statistics().steps == WARM_UP + STEPS * STRETCHES + 1
    return [nanoseconds / STEPS / 1000 for nanoseconds in engine.nanoseconds]


class Called(Metrics):
    """Metrics that are called for each step."""

    def stepped(self, *_: object, **__: object) -> None:
        """Do nothing."""


def both() -> list[PrometheusMetrics]:
    """Return metrics with both tables of names, in one registry."""
    registry = CollectorRegistry()
    return [
        PrometheusMetrics(registry=registry),
        PrometheusMetrics(registry=registry, names="vllm"),
    ]


def mean_of_shortest(times: list[float]) -> float:
    """Return the mean of the shortest tenth."""
    return statistics.mean(sorted(times)[: max(len(times) // 10, 1)])


def main() -> None:
    """Measure by turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for a first look")
    turns = 3 if parser.parse_args().quick else 30
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "neither": dict,
        "metrics of which no method does anything": lambda: {"metrics": Metrics()},
        "PrometheusMetrics": lambda: {"metrics": PrometheusMetrics(registry=CollectorRegistry())},
        "PrometheusMetrics by vLLM's names": lambda: {
            "metrics": PrometheusMetrics(registry=CollectorRegistry(), names="vllm")
        },
        "both of these in a list": lambda: {"metrics": both()},
        "Metrics with a `stepped`, which is called": lambda: {"metrics": Called()},
        "OpenTelemetryTraces": lambda: {
            "traces": OpenTelemetryTraces(tracer_provider=TracerProvider(shutdown_on_exit=False))
        },
        "OpenTelemetryTraces, not sampled": lambda: {
            "traces": OpenTelemetryTraces(
                tracer_provider=TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
            )
        },
    }
    names = list(kinds)
    measure: dict[str, Callable[[dict[str, Any]], list[float]]] = {
        "step of a continuous batcher": partial(per_step, continuous),
        "step of a dynamic batcher": partial(per_step, dynamic),
        "request": lambda options: [per_request(options)],
    }
    times: dict[str, dict[str, list[float]]] = {
        unit: {name: [] for name in kinds} for unit in measure
    }
    for _ in range(turns):
        random.shuffle(names)  # what comes behind another measurement may be slower by that
        for name in names:
            for unit, of in measure.items():
                times[unit][name] += of(kinds[name]())
    for unit, by_name in times.items():
        best = {name: mean_of_shortest(found) for name, found in by_name.items()}
        rows = []
        for name, found in by_name.items():
            noise = statistics.median(found) - best[name]
            more = best[name] / best["neither"] - 1
            rows.append([name, f"{best[name]:.2f}", f"{noise:.2f}", f"{more:+.1%}"])
        print(table(["", f"µs per {unit}", "median is more by", "more than with neither"], rows))


if __name__ == "__main__":
    main()
