"""What a response costs the server for each output: 64 streams, and a step every 5 ms.

One server has all contestants, which take turns, and says how much CPU time it has taken. *By hand*
is what one writes without a library: a thread makes the steps, and with one call for each step puts
the outputs into a queue for each request, over which a generator is the body of a
`StreamingResponse`. The model takes no time of its own.

usage: responses.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from harness import machine, ratios, spread, table
from models import Engine, Request

from batchstream import ContinuousBatcher, Last

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.serving import free_port, running

STREAMS, SECONDS_PER_STEP, OUTPUTS = 64, 0.005, 300
ROUNDS, QUICK_ROUNDS = 5, 2
HOST = "127.0.0.1"
PATIENCE = 60.0

LINES = ("by hand", "batchstream, StreamingResponse", "batchstream, NDJSONResponse")
EVENTS = ("frames by hand", "batchstream, sse-starlette", "batchstream, EventsResponse")


# ---- the server


class ByHand:
    """The model with a thread that makes its steps while there are requests."""

    def __init__(self) -> None:
        self._engine = Engine(SECONDS_PER_STEP)
        self._queues: dict[int, asyncio.Queue[str | Last[str]]] = {}
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def outputs(self, request: Request) -> AsyncIterator[str]:
        """Let a request join, and return its outputs."""
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | Last[str]] = asyncio.Queue()
        with self._lock:
            slot = next(slot for slot in range(STREAMS) if slot not in self._queues)
            self._queues[slot] = queue
            self._engine.add(slot, request)
        self._arrived.set()
        return self._read(queue)

    async def _read(self, queue: asyncio.Queue[str | Last[str]]) -> AsyncIterator[str]:
        while type(output := await queue.get()) is not Last:
            yield output
        yield output.output

    def _run(self) -> None:
        while self._arrived.wait():
            with self._lock:
                step = self._engine.step()
                queues = dict(self._queues)
                for slot, output in step.items():
                    if type(output) is Last:
                        del self._queues[slot]
                        self._engine.remove(slot)
                if not self._queues:
                    self._arrived.clear()
            if step:
                self._loop.call_soon_threadsafe(self._give, step, queues)

    @staticmethod
    def _give(step: Mapping[int, Any], queues: Mapping[int, asyncio.Queue[Any]]) -> None:
        for slot, output in step.items():
            queues[slot].put_nowait(output)


def application() -> Any:
    """Return the server's application, with a route for each contestant."""
    from fastapi import FastAPI  # noqa: PLC0415 - for the server alone
    from sse_starlette import EventSourceResponse  # noqa: PLC0415
    from starlette.responses import StreamingResponse  # noqa: PLC0415

    from batchstream.integrations.starlette import EventsResponse, NDJSONResponse  # noqa: PLC0415

    engine = partial(Engine, SECONDS_PER_STEP)
    batcher: ContinuousBatcher[Request, str] = ContinuousBatcher(engine, max_batch_size=STREAMS)
    by_hand = ByHand()

    async def lines(outputs: AsyncIterator[object]) -> AsyncIterator[bytes]:
        async for output in outputs:
            yield (json.dumps(output) + "\n").encode()

    async def frames(outputs: AsyncIterator[object]) -> AsyncIterator[bytes]:
        async for output in outputs:
            yield f"data: {json.dumps(output)}\r\n\r\n".encode()

    async def texts(outputs: AsyncIterator[object]) -> AsyncIterator[str]:
        async for output in outputs:
            yield json.dumps(output)

    responses: dict[str, Callable[[Request], Any]] = {
        LINES[0]: lambda request: StreamingResponse(lines(by_hand.outputs(request))),
        LINES[1]: lambda request: StreamingResponse(lines(batcher.astream(request))),
        LINES[2]: lambda request: NDJSONResponse(batcher.astream(request)),
        EVENTS[0]: lambda request: StreamingResponse(frames(by_hand.outputs(request))),
        EVENTS[1]: lambda request: EventSourceResponse(texts(batcher.astream(request))),
        EVENTS[2]: lambda request: EventsResponse(batcher.astream(request)),
    }
    app = FastAPI()

    @app.get("/health")
    async def health() -> str:
        return "up"

    @app.get("/cpu")
    async def cpu() -> float:
        return time.process_time()

    @app.get("/{contestant}")
    async def respond(contestant: int, outputs: int) -> Any:
        return list(responses.values())[contestant](Request(0, outputs))

    return app


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """Run the server in a process of its own; yield its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [__file__, "--serve", str(port)]
        with running(command, f"http://{HOST}:{port}", Path(folder, "log")):
            yield port


# ---- the clients


def cpu_time(port: int) -> float:
    """Return how much CPU time the server has taken."""
    return float(httpx.get(f"http://{HOST}:{port}/cpu", timeout=PATIENCE).text)


async def read_stream(port: int, path: str) -> int:
    """Return how many outputs a response has."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    body = await reader.read()
    writer.close()
    return body.count(b'"0:')


async def read_all(port: int, contestant: int) -> None:
    """Read as many streams as there are slots, at once."""
    path = f"/{contestant}?outputs={OUTPUTS}"
    async with asyncio.timeout(PATIENCE):
        counts = await asyncio.gather(*(read_stream(port, path) for _ in range(STREAMS)))
    assert set(counts) == {OUTPUTS}, counts


def measured(rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of CPU time for each output, by contestant and round."""
    names = [*LINES, *EVENTS]
    figures: dict[str, list[float]] = {name: [] for name in names}
    with serving() as port:
        for number in range(rounds + 1):
            for shift in range(len(names)):
                contestant = (number + shift) % len(names)
                before = cpu_time(port)
                asyncio.run(read_all(port, contestant))
                taken = cpu_time(port) - before
                if number:  # the first round is not measured
                    figures[names[contestant]].append(taken / (STREAMS * OUTPUTS) * 1e6)
    return figures


def main(*, quick: bool = False) -> None:
    """Print both tables."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    figures = measured(rounds)
    print(f"{STREAMS} streams, a step every {SECONDS_PER_STEP * 1e3:.0f} ms ({machine(rounds)}):")
    for names, title in ((LINES, "lines"), (EVENTS, "events")):
        rows = [
            [
                name,
                spread(figures[name], 1, 1),
                spread(ratios(figures[name], figures[names[0]]), 1, 2),
            ]
            for name in names
        ]
        print()
        print(table([title, "CPU for an output, µs", f"in terms of {names[0]}"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What a response costs for each output.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", type=int, metavar="PORT")
    arguments = parser.parse_args()
    if arguments.serve is None:
        main(quick=arguments.quick)
    else:
        import uvicorn

        uvicorn.run(application(), host=HOST, port=arguments.serve, log_level="critical")
