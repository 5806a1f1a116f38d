"""`@serve.batch`, `batch` and `ContinuousBatcher` in replicas of Ray Serve, with the same model.

The model sleeps 20 ms for each step, whatever the batch: in `asyncio.sleep` where the batch is
closed, which is the best case of `@serve.batch`, as its model never holds up the event loop. Three
requests in four ask for 5 outputs and one for 60. Contestants take turns with each load, in a Ray
of their own that listens on loopback alone: `make ray-bench` runs this.

Not `ray.py`: a script of that name would be imported in place of Ray.

usage: ray_replicas.py [ROUNDS]
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness import ratios, spread, table

from support.ray_cluster import running_ray, why_not

STEP = 0.02
SLOTS = 8
REPLICAS = 2
SHORT, LONG = 5, 60
OUTPUTS_BEFORE_LEAVING = 3
ROUNDS = 5

DEFAULT, TUNED = "serve.batch", "serve.batch, 0.3 s"
BATCH, TUNED_BATCH, CONTINUOUS = "batch", "batch, 0.3 s", "ContinuousBatcher"
OURS = (BATCH, TUNED_BATCH, CONTINUOUS)

Load = Callable[["Contestant", "Run", random.Random], Awaitable[None]]
Request = tuple[int, int]  # a number, which tells it apart, and how many outputs it asks for


class Counted:
    """What all replicas count: steps, and for each request when the steps that served it began."""

    def __init__(self) -> None:
        self.steps = 0
        self.begun: dict[int, list[float]] = {}

    def count(self, began: float, numbers: list[int]) -> None:
        """Count a step for these requests."""
        self.steps += 1
        for number in numbers:
            self.begun.setdefault(number, []).append(began)

    async def figures(self) -> tuple[int, int]:
        """Return which process this is, and its steps."""
        return os.getpid(), self.steps

    async def steps_since(self, left: dict[int, float]) -> dict[int, int]:
        """Return how many steps began after these times for each of the requests it has had."""
        return {
            number: sum(began > time for began in self.begun[number])
            for number, time in left.items()
            if number in self.begun
        }


def batching(decorator: Callable[..., Any], wait: float) -> type:
    """Return a deployment's class whose batches are closed, by one of the two decorators."""

    class Batching(Counted):
        @decorator(max_batch_size=SLOTS, batch_wait_timeout_s=wait)
        async def reply(self, requests: list[Request]) -> Any:
            slots = range(len(requests))
            for position in range(max(length for _, length in requests)):
                began = time.time()
                await asyncio.sleep(STEP)
                self.count(
                    began, [requests[slot][0] for slot in slots if position < requests[slot][1]]
                )
                # `serve.batch` tells nothing: all slots are served to the end of the batch.
                told = yield [
                    position if position < length else StopIteration for _, length in requests
                ]
                slots = range(len(requests)) if told is None else told

        async def generate(self, number: int, length: int) -> Any:
            async for output in self.reply((number, length)):
                yield output

    return Batching


def continuous() -> type:
    """Return a deployment's class whose batch is refilled."""
    from batchstream import ContinuousBatcher, Last  # noqa: PLC0415 - not before Ray is running

    class Engine:
        def __init__(self, counted: Counted) -> None:
            self.counted = counted
            self.left: dict[int, list[int]] = {}

        def add(self, slot: int, request: Request) -> None:
            self.left[slot] = list(request)

        def step(self) -> dict[int, Any]:
            began = time.time()
            time.sleep(STEP)
            self.counted.count(began, [number for number, _ in self.left.values()])
            step = {}
            for slot, pair in self.left.items():
                pair[1] -= 1
                step[slot] = pair[1] or Last(pair[1])
            return step

        def remove(self, slot: int) -> None:
            del self.left[slot]

    class Continuous(Counted):
        def __init__(self) -> None:
            super().__init__()
            self.batcher = ContinuousBatcher(Engine(self), max_batch_size=SLOTS)

        async def generate(self, number: int, length: int) -> Any:
            async for output in self.batcher.astream((number, length)).body():
                yield output

    return Continuous


@dataclass
class Run:
    """One run of a load: what clients saw, and what the replicas counted."""

    first: list[float] = field(default_factory=list)
    last_to_end: list[float] = field(default_factory=list)
    received: Counter[int] = field(default_factory=Counter)
    left: dict[int, float] = field(default_factory=dict)  # when, by the machine's clock
    seconds: float = 0.0
    steps: int = 0
    wasted: float = 0.0

    @property
    def rate(self) -> float:
        """Outputs that clients received, per second."""
        return self.received.total() / self.seconds

    @property
    def requests(self) -> float:
        """Requests that ended, per second."""
        return len(self.received) / self.seconds

    def quantile(self, part: float) -> float:
        """Return how long it took to the first output."""
        ordered = sorted(self.first)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class Contestant:
    """One deployment under test, and its clients."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._outputs = handle.options(stream=True)
        self._numbers = 0

    async def steps(self) -> dict[int, int]:
        """Return the steps of each replica; Ray chooses which one answers."""
        found: dict[int, int] = {}
        while len(found) < REPLICAS:
            process, steps = await self._handle.figures.remote()
            found[process] = steps
        return found

    async def settled(self) -> dict[int, int]:
        """Return the steps of each replica once they make none any more."""
        before: dict[int, int] = {}
        while before != (after := await self.steps()):
            before = after
            await asyncio.sleep(5 * STEP)
        return after

    async def steps_after_leaving(self, left: dict[int, float]) -> float:
        """Return how many steps began for a client after it had left, as a mean."""
        found: dict[int, int] = {}
        while len(found) < len(left):
            found |= await self._handle.steps_since.remote(left)
        return fmean(found.values())

    async def request(self, run: Run, length: int, *, leaves: bool = False) -> None:
        """Make a request, and read its outputs; or leave after some."""
        self._numbers += 1
        number, begin = self._numbers, time.perf_counter()
        outputs = self._outputs.generate.remote(number, length)
        latest = None
        async for _ in outputs:
            now = time.perf_counter()
            if latest is None:
                run.first.append(now - begin)
            latest = now
            run.received[number] += 1
            if leaves and run.received[number] == OUTPUTS_BEFORE_LEAVING:
                outputs.cancel()
                run.left[number] = time.time()
                return
        assert run.received[number] == length, (run.received[number], length)
        run.last_to_end.append((time.perf_counter() - begin) / (latest - begin))

    async def run(self, load: Load, seed: int) -> Run:
        """Run a load to its end."""
        run, before = Run(), await self.steps()
        begin = time.perf_counter()
        await load(self, run, random.Random(seed))
        run.seconds = time.perf_counter() - begin
        run.steps = sum((await self.settled()).values()) - sum(before.values())
        if run.left:
            run.wasted = await self.steps_after_leaving(run.left)
        return run


# ---- loads


def length_of(random_: random.Random) -> int:
    """Return how many outputs a request asks for."""
    return random_.choice([SHORT, SHORT, SHORT, LONG])


def arriving(rate: float, count: int) -> Load:
    """Requests that arrive by themselves, so many a second."""

    async def load(contestant: Contestant, run: Run, random_: random.Random) -> None:
        async with asyncio.TaskGroup() as clients:
            for _ in range(count):
                clients.create_task(contestant.request(run, length_of(random_)))
                await asyncio.sleep(random_.expovariate(rate))

    return load


def clients(count: int, each: int) -> Load:
    """Clients that make a request when they have the reply to the one before."""

    async def load(contestant: Contestant, run: Run, random_: random.Random) -> None:
        async def client(lengths: list[int]) -> None:
            for length in lengths:
                await contestant.request(run, length)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(client([length_of(random_) for _ in range(each)]))

    return load


def leaving(count: int) -> Load:
    """Clients that come at once, of which each fourth leaves after some outputs."""

    async def load(contestant: Contestant, run: Run, random_: random.Random) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                length = length_of(random_)
                group.create_task(contestant.request(run, length, leaves=number % 4 == 0))

    return load


LOADS = {
    "8 requests a second": arriving(8, 48),
    "16 requests a second": arriving(16, 96),
    "16 clients": clients(16, 3),
    "64 clients at once, of which 16 leave": leaving(64),
}


async def measure(handles: dict[str, Any], rounds: int) -> None:
    """Run all loads, and print a table for each."""
    contestants = {name: Contestant(handle) for name, handle in handles.items()}
    for contestant in contestants.values():
        await contestant.run(clients(8, 1), 0)  # unmeasured
    for title, load in LOADS.items():
        runs: dict[str, list[Run]] = {name: [] for name in contestants}
        for number in range(rounds):
            names = [*contestants]
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                runs[name].append(await contestants[name].run(load, number))
        print(f"{title}:\n\n{table(*rows(runs))}\n\n{table(*against(runs))}\n", flush=True)


FIGURES: dict[str, tuple[Callable[[Run], float], float, int]] = {
    "steps": (lambda run: run.steps, 1, 0),
    "outputs/s": (lambda run: run.rate, 1, 0),
    "requests/s": (lambda run: run.requests, 1, 1),
    "first output, p50, ms": (lambda run: run.quantile(0.5), 1000, 0),
    "first output, p99, ms": (lambda run: run.quantile(0.99), 1000, 0),
    "end / last output": (lambda run: fmean(run.last_to_end), 1, 2),
    "steps for one that has left": (lambda run: run.wasted, 1, 1),
}


def shown(runs: dict[str, list[Run]]) -> list[str]:
    """Return which figures the load has."""
    some_leave = any(run.left for all_runs in runs.values() for run in all_runs)
    return [name for name in FIGURES if some_leave or "left" not in name]


def rows(runs: dict[str, list[Run]]) -> tuple[list[str], list[list[str]]]:
    """Return a table of what was measured."""
    names = shown(runs)
    return ["", *names], [
        [
            contestant,
            *(spread([FIGURES[name][0](run) for run in its], *FIGURES[name][1:]) for name in names),
        ]
        for contestant, its in runs.items()
    ]


def against(runs: dict[str, list[Run]]) -> tuple[list[str], list[list[str]]]:
    """Return a table of ratios, round by round."""
    names = [name for name in shown(runs) if "left" not in name and "end /" not in name]
    return ["", *(name.removesuffix(", ms") for name in names)], [
        [
            f"{ours} / {theirs}",
            *(
                spread(
                    ratios(
                        [FIGURES[name][0](run) for run in runs[ours]],
                        [FIGURES[name][0](run) for run in runs[theirs]],
                    ),
                    1,
                    2,
                )
                for name in names
            ),
        ]
        for ours in OURS
        for theirs in (DEFAULT, TUNED)
    ]


def main(rounds: int) -> None:
    """Run Ray, the deployments and all loads."""
    if reason := why_not():
        sys.exit(f"no Ray is started: {reason}")
    from ray import serve  # noqa: PLC0415 - its import takes seconds

    from batchstream.integrations.ray import batch  # noqa: PLC0415

    kinds = {
        DEFAULT: batching(serve.batch, 0.01),
        TUNED: batching(serve.batch, 0.3),
        BATCH: batching(batch, 0.01),
        TUNED_BATCH: batching(batch, 0.3),
        CONTINUOUS: continuous(),
    }
    options = {
        "num_replicas": REPLICAS,
        "max_ongoing_requests": 100,
        "ray_actor_options": {"num_cpus": 0.1},
    }
    with running_ray():
        names = {name: f"app{number}" for number, name in enumerate(kinds)}
        handles = serve.run_many(
            [
                serve.RunTarget(
                    target=serve.deployment(**options)(kind).bind(),
                    name=names[name],
                    route_prefix=f"/{names[name]}",
                )
                for name, kind in kinds.items()
            ],
            wait_for_applications_running=True,
        )
        asyncio.run(measure(dict(zip(kinds, handles, strict=True)), rounds))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
