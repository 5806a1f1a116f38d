"""What a request costs a batcher beside its outputs: one-shot answers, keys, joining and leaving.

*Answers*: clients in an event loop ask for one answer after another. By hand, a request is a future
in a list, of which a task takes as many as a batch has. *Keys*: 10,000 requests wait, and
the first of them are served in batches of one, because no two have the same key, or because a batch
takes no more.
*Joining and leaving*: requests of 1 to 200 outputs share 256 slots of an engine, in terms of
requests that stay. All is processor time, of all threads.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import goals
from harness import CORES, machine, ratios, run, spread, table, take_turns
from models import Engine, Request

ROUNDS, QUICK_ROUNDS = 7, 1
PATIENCE = 60.0
BATCH, EACH, QUICK_EACH = 64, 200, 40  # of answers: size, and requests of each client
WAITING, QUICK_WAITING, SERVED, FIRST = 10_000, 2_000, 300, -1  # of keys
DEFAULT_TIMEOUT = 0.01  # of `batched`
SLOTS, LONGEST, STEPS, QUICK_STEPS = 256, 200, 600, 200


# ---- answers


async def timed_clients(ask: Callable[[int], Any], clients: int, each: int) -> float:
    """Return the processor time for a request of clients that ask one after another."""

    async def client() -> None:
        for number in range(each):
            assert await ask(number) == 2 * number

    begin = time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    return (time.process_time() - begin) / (clients * each)


async def future_each(clients: int, each: int) -> float:
    """Answer as one does by hand, in the loop."""
    waiting: list[tuple[int, asyncio.Future[int]]] = []
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def work() -> None:
        while True:
            await arrived.wait()
            arrived.clear()
            batch = waiting[:BATCH]
            del waiting[:BATCH]
            answers = [2 * number for number, _ in batch]
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
            if waiting:
                arrived.set()

    async def ask(number: int) -> int:
        future = loop.create_future()
        waiting.append((number, future))
        arrived.set()
        return await future

    worker = asyncio.create_task(work())
    seconds = await timed_clients(ask, clients, each)
    worker.cancel()
    await asyncio.wait([worker])
    return seconds


def timeout_for(clients: int) -> float:
    """Return for how long a request waits for others: not at all, if there are none."""
    return DEFAULT_TIMEOUT if clients > 1 else 0.0


async def batched_in_loop(package: ModuleType, clients: int, each: int) -> float:
    """Answer by an asynchronous function of a batch."""

    @package.batched(max_batch_size=BATCH, batch_timeout=timeout_for(clients), single=True)
    async def double(numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    return await timed_batched(double, clients, each)


async def batched_in_thread(package: ModuleType, clients: int, each: int) -> float:
    """Answer by a function of a batch, which runs in a thread."""

    @package.batched(max_batch_size=BATCH, batch_timeout=timeout_for(clients), single=True)
    def double(numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    return await timed_batched(double, clients, each)


async def timed_batched(double: Any, clients: int, each: int) -> float:
    """Return the processor time for a request."""
    seconds = await timed_clients(double.acall, clients, each)
    await double.aclose()
    return seconds


def in_loop(package: ModuleType, main: Callable, *args: object) -> float:
    """Run with a package, in an event loop of its own."""
    return run(main, package, *args)


def answers(rounds: int, each: int) -> str:
    """Return the table of answers."""
    by_hand = "a future each, by hand"
    rows = []
    for clients in (1, BATCH):
        count = each * BATCH // 4 // clients if clients == 1 else each
        runs = {by_hand: partial(run, future_each, clients, count)}
        for name, core in CORES.items():
            for where, main in {"loop": batched_in_loop, "thread": batched_in_thread}.items():
                runs[f"batched, in a {where}, {name}"] = partial(
                    core.run, in_loop, main, clients, count
                )
        seconds = take_turns(runs, rounds)
        for name, took in seconds.items():
            of_hand = ratios(took, seconds[by_hand])
            rows.append([str(clients), name, spread(took, 1e6, 1), spread(of_hand, 1, 2)])
        if clients == BATCH:
            for core in CORES:
                of_hand = ratios(seconds[f"batched, in a loop, {core}"], seconds[by_hand])
                goals.measured(goals.ANSWER, core, of_hand)
    return table(["clients", "answered by", "µs per request", "in terms of by hand"], rows)


# ---- keys


class TimedAnswers:
    """A model for batches of one: takes the first when told, and stops when so many are answered.

    The first of all keeps the worker until the others wait.
    """

    def __init__(self, last: Callable[[object], object], count: int) -> None:
        self.last, self.count = last, count
        self.held, self.go = threading.Event(), threading.Event()
        self.over, self.stop = threading.Event(), threading.Event()
        self.begin = self.end = 0.0  # in processor time

    def __call__(self, batch: list[int]) -> Iterator[list[object]]:
        """Answer a request."""
        [number] = batch
        if number == FIRST:
            self.held.set()
            assert self.go.wait(PATIENCE)
            self.begin = time.process_time()
        elif number == self.count:
            self.end = time.process_time()
            self.over.set()
            assert self.stop.wait(PATIENCE)
        yield [self.last(number)]

    def seconds_per_request(self) -> float:
        """Return the processor time for a request."""
        return (self.end - self.begin) / self.count


def serve_waiting(
    package: ModuleType, waiting: int, batch: int, timeout: float, keys: int
) -> float:
    """Return the processor time for one of the first of so many requests that wait."""
    model = TimedAnswers(package.Last, SERVED)
    with package.DynamicBatcher(
        model,
        max_batch_size=batch,
        batch_timeout=timeout,
        max_pending=waiting + 1,
        key=lambda number: number % keys,
    ) as batcher:
        streams = [batcher.stream(FIRST)]
        assert model.held.wait(PATIENCE)
        streams += [batcher.stream(number) for number in range(waiting)]
        time.sleep(2 * timeout)
        model.go.set()
        assert model.over.wait(PATIENCE)
        for number, stream in enumerate(streams[1:SERVED]):
            assert list(stream) == [number]
        model.stop.set()  # the requests behind fail as the batcher is closed
    return model.seconds_per_request()


def keys(rounds: int, waiting: int) -> str:
    """Return the table of keys."""
    rows = []
    for timeout, goal in ((0.0, goals.KEYS), (DEFAULT_TIMEOUT, goals.KEYS_LATER)):
        runs = {}
        for name, core in CORES.items():
            runs[name, "one"] = partial(core.run, serve_waiting, waiting, 1, timeout, 1)
            runs[name, "all different"] = partial(
                core.run, serve_waiting, waiting, 8, timeout, waiting
            )
        seconds = take_turns(runs, rounds)
        for (core, kind), took in seconds.items():
            of_one = ratios(took, seconds[core, "one"])
            row = [f"{timeout:g}", core, kind, spread(took, 1e6, 1), spread(of_one, 1, 2)]
            rows.append(row)
            if kind != "one":
                goals.measured(goal, core, of_one)
    head = ["batch_timeout", "core", "keys", "µs per request", "in terms of one key"]
    return table(head, rows)


# ---- joining and leaving


class TimedEngine(Engine):
    """Notes when it made its first step with all slots in use, and when the last request joined.

    It begins to step when told.
    """

    def __init__(self, requests: int) -> None:
        super().__init__()
        self.missing = requests
        self.go = threading.Event()
        self.steps = self.measured_steps = 0
        self.first = self.last = 0.0  # in processor time

    def add(self, slot: int, request: Request) -> None:
        """Take a request in."""
        super().add(slot, request)
        self.missing -= 1

    def step(self) -> dict[int, object]:
        """Make an output for each."""
        assert self.go.wait(PATIENCE)
        if len(self.outputs) == SLOTS and not self.first:
            self.first = time.process_time()
            self.steps = 0
        self.steps += 1
        made = super().step()
        if len(self.outputs) == SLOTS:
            self.last, self.measured_steps = time.process_time(), self.steps
        return made

    def seconds_per_step(self) -> float:
        """Return the processor time for a step with all slots in use."""
        assert not self.missing
        return (self.last - self.first) / (self.measured_steps - 1)


def requests_of(steps: int, *, stay: bool) -> Sequence[Request]:
    """Return requests for so many steps: one for each slot, or as many as join and leave."""
    if stay:
        return [Request(number, steps) for number in range(SLOTS)]
    rng = random.Random(SLOTS)
    count = 2 * SLOTS * steps // LONGEST
    return [Request(number, rng.randint(1, LONGEST)) for number in range(count)]


def unread(package: ModuleType, requests: Sequence[Request], steps: int) -> float:
    """Return the processor time for a step of streams that are not read before the end."""
    engine = TimedEngine(len(requests))
    with package.ContinuousBatcher(
        engine, max_batch_size=SLOTS, max_pending=len(requests), max_buffered=steps + LONGEST
    ) as batcher:
        streams = [batcher.stream(request) for request in requests]
        engine.go.set()
        while any(stream.end is None for stream in streams):
            time.sleep(0.002)
        for request, stream in zip(requests, streams, strict=True):
            request.check(list(stream))
    return engine.seconds_per_step()


async def read(package: ModuleType, requests: Sequence[Request], steps: int) -> float:
    """Return the same for streams that a task each reads."""
    engine = TimedEngine(len(requests))
    batcher = package.ContinuousBatcher(
        engine, max_batch_size=SLOTS, max_pending=len(requests), max_buffered=steps + LONGEST
    )

    async def client(request: Request, stream: Any) -> None:
        request.check([output async for output in stream])

    async with batcher, asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(client(request, batcher.astream(request)))
        await asyncio.sleep(0)
        engine.go.set()
    return engine.seconds_per_step()


def joining(rounds: int, steps: int) -> str:
    """Return the table of joining and leaving."""
    ways: dict[str, Callable] = {
        "unread": unread,
        "a task each": lambda *args: run(read, *args),
    }
    rows = []
    for way, measure in ways.items():
        runs = {}
        for name, core in CORES.items():
            for stay in (True, False):
                runs[name, stay] = partial(core.run, measure, requests_of(steps, stay=stay), steps)
        seconds = take_turns(runs, rounds)
        for (core, stay), took in seconds.items():
            of_staying = ratios(took, seconds[core, True])
            kind = "stay" if stay else f"1 to {LONGEST} steps"
            rows.append([way, core, kind, spread(took, 1e6, 1), spread(of_staying, 1, 2)])
            if not stay and way == "unread":
                goals.measured(goals.CHURN, core, of_staying)
    return table(["read by", "core", "requests", "µs per step", "in terms of staying"], rows)


def main(*, quick: bool = False) -> None:
    """Print all tables."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    print(f"One answer for a request ({machine(rounds)}; processor time):\n")
    print(answers(rounds, QUICK_EACH if quick else EACH))
    waiting = QUICK_WAITING if quick else WAITING
    print(f"\nOne of the first {SERVED} of {waiting} waiting requests, in batches of one:\n")
    print(keys(rounds, waiting))
    print(f"\nOne step of {SLOTS} slots, while requests join and leave:\n")
    print(joining(rounds, QUICK_STEPS if quick else STEPS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    main(quick=parser.parse_args().quick)
    print()
    goals.main()
