"""The rules, tried on a LitServe server: by its own loop for batches, or by this library's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

SERVER = Path(__file__).with_name("litserve_server.py")
LONGEST = 60.0  # seconds, until a server counts as broken
MANY = 250  # outputs; before each the client has seen the last, so a server has time for more


@contextlib.contextmanager
def serving(loop: str) -> Iterator[str]:
    """Run a server, and give its address; all of its processes are ended afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(SERVER), str(port), loop],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            while not is_ready(url):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the server does not start:\n{log.read()}")
                time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_ready(url: str) -> bool:
    """Return whether a server answers, with its workers."""
    try:
        return httpx.get(f"{url}/health", timeout=LONGEST).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


class Gate:
    """Where a model waits before each step until it is let through, by a client in this process."""

    def __init__(self) -> None:
        self.let_through = asyncio.Semaphore(0)
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a model: a byte for each of its own."""
        with contextlib.closing(writer):
            while await reader.read(1):
                await self.let_through.acquire()
                writer.write(b".")


@contextlib.asynccontextmanager
async def open_gate() -> AsyncIterator[Gate]:
    """Give a gate; behind the block the model goes on by itself."""
    gate = Gate()
    tasks = []

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(gate.serve(reader, writer)))

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as server:
        gate.port = server.sockets[0].getsockname()[1]
        try:
            yield gate
        finally:
            for task in tasks:
                task.cancel()


class Client:
    """One request, and what its client has seen up to now."""

    def __init__(self, http: httpx.AsyncClient, name: str, outputs: int, **more: Any) -> None:
        self.http = http
        self.request = {"name": name, "outputs": outputs, **more}
        self.status: int | None = None
        self.text = ""
        self.chunks = 0
        self.cut = self.ended = False
        self.came = asyncio.Event()

    async def read(self) -> AsyncIterator[str]:
        """Yield what comes."""
        try:
            async with self.http.stream("POST", "/predict", json=self.request) as response:
                self.status = response.status_code
                async for text in response.aiter_text():
                    self.text += text
                    self.chunks += 1
                    self.came.set()
                    yield text
        except httpx.RemoteProtocolError:
            self.cut = True
        self.ended = True
        self.came.set()

    async def has(self, outputs: int) -> None:
        """Wait until so many outputs have come, or the end."""
        while self.text.count("\n") < outputs and not self.ended:
            self.came.clear()
            await self.came.wait()

    async def run(self) -> None:
        """Read to the end."""
        async for _ in self.read():
            pass

    async def peek(self) -> None:
        """Read the first output, and leave."""
        async with contextlib.aclosing(self.read()) as texts:
            await anext(texts)


async def several(http: httpx.AsyncClient) -> bool:
    """A batch of more than one request is streamed."""
    async with open_gate() as gate:
        clients = [Client(http, name, 3, gate=gate.port) for name in ("a", "b")]
        reading = [asyncio.create_task(client.run()) for client in clients]
        for number in range(1, 4):
            gate.let_through.release()
            await asyncio.gather(*(client.has(number) for client in clients))
    await asyncio.gather(*reading)
    return [client.text for client in clients] == ["a\n" * 3, "b\n" * 3] and (
        min(client.chunks for client in clients) > 1
    )


async def own_end(http: httpx.AsyncClient) -> bool:
    """A stream ends at its own end, while the model works for the others."""
    async with open_gate() as gate:
        short, long = Client(http, "short", 2), Client(http, "long", MANY, gate=gate.port)
        reading = [asyncio.create_task(client.run()) for client in (short, long)]
        early = await ends_before(short, long, gate)
    await asyncio.gather(*reading)
    return early and not short.cut


async def ends_before(client: Client, long: Client, gate: Gate) -> bool:
    """Return whether a client is through before another has all of its outputs but one."""
    for number in range(1, MANY):
        gate.let_through.release()
        await long.has(number)
        if client.ended:
            return True
    return False


async def short_step(http: httpx.AsyncClient) -> bool:
    """A step that lacks an output gives no client what belongs to another."""
    clients = [Client(http, "a", 4, lacks=1), Client(http, "b", 4, lacks=2)]
    await asyncio.gather(*(client.run() for client in clients))
    return all(set(it.text.split()) <= {it.request["name"]} for it in clients)


async def error(http: httpx.AsyncClient) -> bool:
    """An error of the model reaches each client, after what it was given."""
    clients = [Client(http, "a", 5, fails_at=2), Client(http, "b", 5)]
    await asyncio.gather(*(client.run() for client in clients))
    return all(client.cut for client in clients)


async def one_fails(http: httpx.AsyncClient) -> bool:
    """One request fails, and the others of its batch go on."""
    bad, good = Client(http, "bad", 2, refuse=True), Client(http, "good", 2)
    await asyncio.gather(bad.run(), good.run())
    return (bad.status, good.status) == (400, 200)


async def leave(http: httpx.AsyncClient) -> bool:
    """The model stops when all of its clients are gone."""
    before = await steps(http)
    async with open_gate() as gate:
        gate.let_through.release()
        await asyncio.gather(*(Client(http, "a", MANY, gate=gate.port).peek() for _ in range(2)))
        report = asyncio.create_task(steps(http))  # answered behind the batch
        for _ in range(MANY):
            if report.done():
                break
            await http.get("/health")  # so that the server has seen more than the answer
            gate.let_through.release()
    return await report - before < MANY


async def slow(http: httpx.AsyncClient) -> bool:
    """What is held for a client that does not read has a bound."""
    before = await steps(http)
    client = Client(http, "a", 200, size=50_000)
    async with contextlib.aclosing(client.read()) as texts:
        await anext(texts)
        return await steps(http) - before < 200  # it is answered behind that batch


async def joins(http: httpx.AsyncClient) -> bool:
    """A request joins a batch that runs already."""
    async with open_gate() as gate:
        running, late = Client(http, "running", MANY, gate=gate.port), Client(http, "late", 1)
        gate.let_through.release()
        reading = [asyncio.create_task(running.run())]
        await running.has(1)
        reading.append(asyncio.create_task(late.run()))
        joined = await ends_before(late, running, gate)
    await asyncio.gather(*reading)
    return joined


async def steps(http: httpx.AsyncClient) -> int:
    """Return how many steps the model has made."""
    report = Client(http, "report", 1)
    await report.run()
    return int(report.text)


RULES: dict[str, Callable[[httpx.AsyncClient], Any]] = {
    "several": several,
    "own-end": own_end,
    "short-step": short_step,
    "error": error,
    "one-fails": one_fails,
    "leave": leave,
    "slow": slow,
    "joins": joins,
}


def cells(loop: str, names: list[str]) -> dict[str, bool]:
    """Try rules on one server, one after another."""

    async def main(url: str) -> dict[str, bool]:
        async with httpx.AsyncClient(base_url=url, timeout=LONGEST) as http:
            return {name: await RULES[name](http) for name in names}

    with serving(loop) as url:
        return asyncio.run(main(url))
