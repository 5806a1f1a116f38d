"""LitServe's own loop for batched streams, and ours in the same server with the same model.

Everything is real: LitServe as it is released, its processes, HTTP over 127.0.0.1. In each round
every contestant gets a new server, one after another, which is warmed up and then measured; ratios
are of the same round.

- equal: a backlog of responses of one length, which is all that LitServe's loop does well.
- ragged: a short response in a batch with long ones. When does its client learn of the end?
- transport: how many messages the worker sends, what one takes it, and which process is busy.
- continuous: a backlog of all lengths, in batches that run to their ends and in refilled slots.
- idle: what a server costs that has nothing to do.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from harness import machine, ratios, spread, table
from litserve_clients import Load, Options, Server, load, running
from models import SEED, Request, batched_steps, refilled_steps

ROUNDS, QUICK_ROUNDS = 5, 1
SIZE, LENGTH, REQUESTS = 8, 32, 200
STEPS = (0.0, 0.005)  # seconds
# Longer than clients whose batch has ended take to ask again, so that batches are full.
TIMEOUT = 0.05

STOCK, BATCHED, CONTINUOUS = "LitServe's loop", "BatchedStreamLoop", "ContinuousBatchLoop"
PROCESSES = "worker", "manager", "server"  # the worker's messages go through the manager
LOOPS = {STOCK: "stock", BATCHED: "batched", CONTINUOUS: "continuous"}

Result = TypeVar("Result")
Job = Callable[[int], None]


def turns(
    contestants: Mapping[str, Options], measure: Callable[[Server], Result], rounds: int
) -> dict[str, list[Result]]:
    """Measure each contestant in turn, round by round, on a server of its own."""
    said: dict[str, list[Result]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            with running(contestants[name]) as server:
                warm_up(server, contestants[name].size)
                said[name].append(measure(server))
    return said


def warm_up(server: Server, size: int) -> None:
    """Serve a few batches."""
    load(server, equal_lengths(3 * size, 8), size)


def equal_lengths(count: int, length: int) -> list[Request]:
    """Return requests for as many outputs each."""
    return [Request(number, length) for number in range(count)]


def options(*names: str) -> dict[str, Options]:
    """Return how the servers of some loops are set up."""
    return {name: Options(LOOPS[name], SIZE, TIMEOUT) for name in names}


def milliseconds(seconds: float) -> str:
    """Return this as a step's time."""
    return f"{seconds * 1e3:.0f} ms" if seconds else "no time"


# ---- equal


def equal(rounds: int) -> None:
    """Print what a backlog of equal lengths takes."""
    loads = [(clients, seconds) for seconds in STEPS for clients in (SIZE, 4 * SIZE)]

    def measure(server: Server) -> list[Load]:
        requests = equal_lengths(REQUESTS, LENGTH)
        return [load(server, requests, clients, seconds) for clients, seconds in loads]

    said = turns(options(STOCK, BATCHED), measure, rounds)
    rows = []
    for number, (clients, seconds) in enumerate(loads):
        runs = {name: [by_load[number] for by_load in said[name]] for name in said}
        per_second = {name: [REQUESTS / run.seconds for run in runs[name]] for name in runs}
        row = [str(clients), milliseconds(seconds)]
        for scale in (1, LENGTH):
            row += [spread(per_second[name], scale) for name in (STOCK, BATCHED)]
        row.append(spread(ratios(per_second[BATCHED], per_second[STOCK]), 1, 2))
        clients_cpu = [run.cpu["client"] / run.seconds for one in runs.values() for run in one]
        rows.append([*row, f"{max(clients_cpu):.0%}"])
    print(
        f"{REQUESTS} requests for {LENGTH} outputs each, batches of {SIZE} ({machine(rounds)}); "
        f"the last column is how much of a core the clients have taken, at most:\n"
    )
    head = ["clients", "a step takes", f"requests/s: {STOCK}", BATCHED]
    head += [f"outputs/s: {STOCK}", BATCHED, "ours / LitServe's", "clients"]
    print(table(head, rows))


# ---- ragged

SHORT, LONG = 3, 30
RAGGED_STEP = 0.02
BATCHES = 4  # of one server


def ragged(rounds: int) -> None:
    """Print when the client of a short response learns of its end."""
    lengths = (SHORT, LONG, LONG, LONG)
    size = len(lengths)
    requests = [Request(number, length) for number, length in enumerate(lengths)]
    contestants = {
        f'{STOCK}, "" after the end': Options("stock", size, 0.5),
        f"{BATCHED}, None after the end": Options("batched", size, 0.5, "None"),
        f"{BATCHED}, Last": Options("batched", size, 0.5, "Last"),
    }

    def measure(server: Server) -> list[Load]:
        runs = [load(server, requests, size, RAGGED_STEP) for _ in range(BATCHES)]
        # LitServe's loop may end its collecting between two requests: that is no batch of ours.
        whole = [run for run in runs if run.diary["steps"] == LONG]
        assert whole
        return whole

    rows = []
    for name, by_round in turns(contestants, measure, rounds).items():
        shorts = [run.answers[0] for runs in by_round for run in runs]
        last = [answer.last - answer.asked for answer in shorts]
        end = [answer.ended - answer.asked for answer in shorts]
        rows.append([name, spread(last, 1e3), spread(end, 1e3), spread(ratios(end, last), 1, 2)])
    print(
        f"A response of {SHORT} outputs in a batch with {size - 1} of {LONG}, "
        f"{milliseconds(RAGGED_STEP)} for a step; {BATCHES} batches a round ({machine(rounds)}):\n"
    )
    print(table(["loop, and what the model yields", "last output, ms", "end, ms", "ratio"], rows))


# ---- transport


def transport(rounds: int) -> None:
    """Print how many messages there are, what they take, and which process is busy."""
    clients = 4 * SIZE
    requests = equal_lengths(REQUESTS, LENGTH)

    def measure(server: Server) -> list[Load]:
        return [load(server, requests, clients, seconds) for seconds in STEPS]

    said = turns(options(STOCK, BATCHED, CONTINUOUS), measure, rounds)
    rows = []
    for number, seconds in enumerate(STEPS):
        for name, by_round in said.items():
            rows.append(
                [name, milliseconds(seconds), *traffic([runs[number] for runs in by_round])]
            )
    print(
        f"{REQUESTS} requests for {LENGTH} outputs each, {clients} clients, {SIZE} slots "
        f"({machine(rounds)}); busy is a process's CPU time, in percent of the time that passed:\n"
    )
    head = ["loop", "a step takes", "outputs/s", "messages per step", "per output"]
    head += ["µs per message", "beyond the model, µs per step", "of it sending, %"]
    head += ["busy: worker, %", "manager, %", "server, %"]
    print(table(head, rows))


def traffic(runs: Sequence[Load]) -> list[str]:
    """Return the figures of a loop's messages."""
    diaries = [run.diary for run in runs]
    beyond = [diary["end"] - diary["begin"] - diary["model"] for diary in diaries]
    sends, sending, steps, outputs = (
        [diary[key] for diary in diaries] for key in ("sends", "sending", "steps", "outputs")
    )
    figures = [
        spread(ratios(outputs, [run.seconds for run in runs]), 1),
        f"{statistics.median(ratios(sends, steps)):.2f}",
        f"{statistics.median(ratios(sends, outputs)):.2f}",
        spread(ratios(sending, sends), 1e6),
        spread(ratios(beyond, steps), 1e6),
        spread(ratios(sending, beyond), 100),
    ]
    busy = [[run.cpu[process] / run.seconds for run in runs] for process in PROCESSES]
    return figures + [spread(of_one, 100) for of_one in busy]


# ---- continuous

SLOTS, LONGEST = 16, 64
CONTINUOUS_STEP = 0.01


def continuous(rounds: int) -> None:
    """Print what refilling slots gains."""
    chance = random.Random(SEED)
    requests = [Request(number, chance.randint(1, LONGEST)) for number in range(REQUESTS)]
    lengths = [request.length for request in requests]
    names = (BATCHED, CONTINUOUS)
    contestants = {name: Options(LOOPS[name], SLOTS, TIMEOUT, "Last") for name in names}

    def measure(server: Server) -> Load:
        return load(server, requests, REQUESTS, CONTINUOUS_STEP)

    said = turns(contestants, measure, rounds)
    seconds = {name: [run.seconds for run in runs] for name, runs in said.items()}
    least = {BATCHED: batched_steps(lengths, SLOTS), CONTINUOUS: refilled_steps(lengths, SLOTS)}
    rows = []
    for name, runs in said.items():
        steps = [run.diary["steps"] for run in runs]
        occupancy = [sum(lengths) / (count * SLOTS) for count in steps]
        beyond = [(run.seconds - run.diary["model"]) / run.diary["steps"] for run in runs]
        row = [name, str(least[name]), spread(steps, 1), spread(occupancy, 100, 1)]
        rows.append([*row, spread(seconds[name], 1, 2), spread(beyond, 1e3, 2)])
    print(
        f"{REQUESTS} requests at once for 1 to {LONGEST} outputs, {sum(lengths)} in all, {SLOTS} "
        f"slots, {milliseconds(CONTINUOUS_STEP)} for a step ({machine(rounds)}):\n"
    )
    head = ["loop", "steps needed", "steps made", "occupancy, %", "time, s"]
    print(table([*head, "beyond the model, ms per step"], rows))
    ideal = least[BATCHED] / least[CONTINUOUS]
    made = ratios(*([run.diary["steps"] for run in said[name]] for name in names))
    faster = ratios(seconds[BATCHED], seconds[CONTINUOUS])
    print(
        f"\nRefilling can be {ideal:.2f} times as fast, by the steps needed. It is "
        f"{spread(made, 1, 2)} times by the steps made, and {spread(faster, 1, 2)} times by the "
        f"clock: {spread(faster, 1 / ideal, 3)} of what is possible."
    )


# ---- idle

SECONDS = 3.0


def idle(rounds: int) -> None:
    """Print what servers take that have nothing to do, one after another."""

    def measure(server: Server) -> dict[str, float]:
        load(server, equal_lengths(8 * SIZE, 4), SIZE)
        time.sleep(0.5)
        begin, cpu, wakes = time.perf_counter(), server.cpu(), server.wakes("worker")
        time.sleep(SECONDS)
        lasted = time.perf_counter() - begin
        figures = {name: (took - cpu[name]) / lasted for name, took in server.cpu().items()}
        return figures | {"wakes": (server.wakes("worker") - wakes) / lasted}

    contestants = {name: Options(loop, SIZE, 0.0) for name, loop in LOOPS.items()}
    rows = []
    for name, by_round in turns(contestants, measure, rounds).items():
        by_process = [[figures[process] for figures in by_round] for process in PROCESSES]
        wakes = [figures["wakes"] for figures in by_round]
        rows.append([name, *(spread(cpu, 1e3, 2) for cpu in by_process), spread(wakes, 1)])
    print(f"Idle for {SECONDS:.0f} s with batch_timeout=0, CPU in ms per s ({machine(rounds)}):\n")
    print(table(["loop", "worker", "manager", "server", "worker wakes up, per s"], rows))


JOBS: dict[str, Job] = {
    "equal": equal,
    "ragged": ragged,
    "transport": transport,
    "continuous": continuous,
    "idle": idle,
}


def main(*, quick: bool = False, jobs: Sequence[str] = tuple(JOBS), rounds: int = 0) -> None:
    """Print the tables."""
    count = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    print(f"LitServe {importlib.metadata.version('litserve')}, over HTTP on 127.0.0.1.")
    for name in jobs:
        print()
        JOBS[name](count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("job", nargs="?", choices=JOBS, help="all, if none is said")
    parser.add_argument("rounds", nargs="?", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one round")
    chosen = parser.parse_args()
    # So that no server outlives a benchmark that is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    main(quick=chosen.quick, jobs=[chosen.job] if chosen.job else tuple(JOBS), rounds=chosen.rounds)
