"""The same model behind several batchers: requests per second, first output, end.

Clients ask one after another: a new request begins when the last has been answered. Under a
*closed load* there are many of them, more than a batch takes; under a *light load* there is one,
whose time is what a call costs at least. Every client compares what it gets with what it asked for.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from harness import machine, ratios, spread, table, take_turns
from models import Request, ragged
from servers import (
    ANSWERS,
    CAPACITY,
    RAY,
    STREAMS,
    Answer,
    Server,
    Stream,
    answer_to,
    ray_serve,
    versions,
)

PATIENCE = 60.0
MEAN = 16  # outputs of a stream
ROUNDS, QUICK_ROUNDS = 5, 1
QUICK_SHARE = 4  # each client of a quick run has a fourth of the requests


@dataclass(frozen=True)
class Load:
    """So many clients with so many requests each, and a model that takes so long for a step.

    Ray Serve collects a batch for as long as it is told, even while another one runs. It is told
    each of `waits`: what suits it depends on the load.
    """

    name: str
    clients: int
    each: int
    seconds: float
    waits: Sequence[float]

    def dealt(self) -> list[list[Request]]:
        """Return the requests of each client, the same in every run."""
        requests = ragged(self.clients * self.each, MEAN)
        return [requests[client :: self.clients] for client in range(self.clients)]


STREAM_LOADS = (
    Load("64 clients, 1 ms for a step", 64, 2, 0.001, (0.01, 0.1)),
    Load("64 clients, no time for a step", 64, 6, 0.0, (0.01, 0.1)),
    Load("one client, no time for a step", 1, 100, 0.0, (0.0,)),
)
ANSWER_LOADS = (
    Load("64 clients, 2 ms for a batch", 64, 16, 0.002, (0.0, 0.01)),
    Load("64 clients, no time for a batch", 64, 16, 0.0, (0.0, 0.01)),
    Load("one client, no time for a batch", 1, 50, 0.0, (0.0,)),
)


@dataclass
class Times:
    """How long everything took, and each request until its first output and its end."""

    seconds: float = 0.0
    firsts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return what is compared."""
        return {
            "rate": len(self.ends) / self.seconds,
            "first": statistics.median(self.firsts),
            "first, p95": p95(self.firsts),
            "end": statistics.median(self.ends),
            "end, p95": p95(self.ends),
        }


def p95(values: Sequence[float]) -> float:
    """Return what one in twenty exceeds."""
    return sorted(values)[int(len(values) * 0.95)]


def exact_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop in which a sleep of the model is not rounded up to milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def read(stream: Stream, requests: Sequence[Request], times: Times) -> None:
    """Ask for streams, one after another."""
    clock = time.perf_counter
    for request in requests:
        received: list[str] = []
        first = None
        begin = clock()
        async for output in stream(request):
            if first is None:
                first = clock()
            received.append(output)
        end = clock()
        assert first is not None, request
        request.check(received)
        times.firsts.append(first - begin)
        times.ends.append(end - begin)


async def ask(answer: Answer, requests: Sequence[Request], times: Times) -> None:
    """Ask for answers, one after another."""
    clock = time.perf_counter
    for request in requests:
        begin = clock()
        received = await answer(request)
        end = clock()
        assert received == answer_to(request), (request, received)
        times.firsts.append(end - begin)
        times.ends.append(end - begin)


# What does a job, what each client does, and what is compared.
JOBS = {
    "Streams": (STREAMS, read, ("rate", "first", "end")),
    "Answers": (ANSWERS, ask, ("rate", "end")),
}


async def served(server: Server, client: Callable, load: Load) -> dict[str, float]:
    """Return the figures of a run, after some requests that are not measured."""
    times = Times()
    async with asyncio.timeout(PATIENCE), server.serve(load.seconds) as serve:
        await asyncio.gather(*(client(serve, [one], Times()) for one in ragged(4, 2)))
        tasks = [client(serve, requests, times) for requests in load.dealt()]
        begin = time.perf_counter()
        await asyncio.gather(*tasks)
        times.seconds = time.perf_counter() - begin
    return times.figures()


def run(server: Server, client: Callable, load: Load) -> dict[str, float]:
    """Return the figures of a run in an event loop of its own."""
    with asyncio.Runner(loop_factory=exact_loop) as runner:
        return runner.run(served(server, client, load))


def taking_part(servers: Mapping[str, Server], load: Load) -> dict[str, Server]:
    """Return what is installed, as often as there are limits to try."""
    part = {}
    for name, server in servers.items():
        if server.available and not server.waits:
            part[name] = server
        elif server.available:
            for wait in load.waits:
                serve = partial(server.serve, wait=wait)
                part[f"{name}, waits {wait * 1e3:.0f} ms"] = replace(server, serve=serve)
    return part


Rounds = dict[str, dict[str, list[float]]]


def measured(servers: Mapping[str, Server], client: Callable, load: Load, rounds: int) -> Rounds:
    """Return every figure of each round, by server."""
    runs = {name: partial(run, server, client, load) for name, server in servers.items()}
    return {
        name: {key: [figures[key] for figures in by_round] for key in by_round[0]}
        for name, by_round in take_turns(runs, rounds).items()
    }


def better(ours: Rounds, name: str, against: str, key: str) -> list[float]:
    """Return how many times better ours is than this, by round."""
    mine, theirs = ours[against][key], ours[name][key]
    return ratios(mine, theirs) if key == "rate" else ratios(theirs, mine)


def rows_of(servers: Mapping[str, Server], rounds: Rounds, keys: Sequence[str]) -> list[list[str]]:
    """Return a row for each server: requests per second, then milliseconds."""
    rows = []
    for name, figures in rounds.items():
        row = [name, spread(figures["rate"], 1)]
        for key in keys:
            if key != "rate":
                row.append(spread(figures[key], 1e3, 2))
                row.append(f"{statistics.median(figures[f'{key}, p95']) * 1e3:.2f}")
            against = servers[name].against
            times = "" if name == against else spread(better(rounds, name, against, key), 1, 2)
            row.append(times)
        rows.append(row)
    return rows


def job(title: str, loads: Sequence[Load], *, quick: bool) -> list[list[str]]:
    """Print the tables of a job, and return where ours is not ahead."""
    contestants, client, keys = JOBS[title]
    head = ["batcher, and where the model runs", "requests/s", "ours"]
    for key in keys[1:]:
        head += [f"{key}: p50, ms", "p95", "ours"]
    behind = []
    count = QUICK_ROUNDS if quick else ROUNDS
    for load in loads:
        servers = taking_part(contestants, load)
        each = max(1, load.each // (QUICK_SHARE if quick else 1))
        rounds = measured(servers, client, replace(load, each=each), count)
        print(f"\n{title}; {load.name} ({machine(count)}):\n")
        print(table(head, rows_of(servers, rounds, keys)))
        for name, server in servers.items():
            for key in keys if server.against != name else ():
                times = better(rounds, name, server.against, key)
                if statistics.median(times) <= 1:
                    behind.append([f"{title}; {load.name}", name, key, spread(times, 1, 2)])
    return behind


def main(*, quick: bool = False) -> None:
    """Print all tables."""
    if RAY:
        ray_serve()
    gc.collect()
    gc.freeze()  # what the others' imports brought is not looked at again before each run
    found, missing = versions()
    print(f"Serving in batches of {CAPACITY}, with {', '.join(found)}.")
    if missing:
        print(f"Left out, as not installed here: {', '.join(missing)}.")
    print("'Ours' is how many times better batchstream is with the model in the same place.")
    behind = job("Streams", STREAM_LOADS, quick=quick)
    behind += job("Answers", ANSWER_LOADS, quick=quick)
    print()
    if behind:
        print("Where batchstream is not ahead, in the median:\n")
        print(table(["load", "batcher", "of what", "ours"], behind))
    else:
        print("batchstream is ahead of each in each, in the median.")


if __name__ == "__main__":
    main()
