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
MANY = 250  # outputs: five seconds, for what happens at once or not before the end


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


class Client:
    """One request, and what its client has seen up to now."""

    def __init__(self, http: httpx.AsyncClient, name: str, outputs: int, **more: Any) -> None:
        self.http = http
        self.request = {"name": name, "outputs": outputs, **more}
        self.status: int | None = None
        self.text = ""
        self.chunks = 0
        self.cut = self.ended = False

    async def read(self) -> AsyncIterator[str]:
        """Yield what comes."""
        try:
            async with self.http.stream("POST", "/predict", json=self.request) as response:
                self.status = response.status_code
                async for text in response.aiter_text():
                    self.text += text
                    self.chunks += 1
                    yield text
        except httpx.RemoteProtocolError:
            self.cut = True
        self.ended = True

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
    clients = [Client(http, "a", 50), Client(http, "b", 50)]
    await asyncio.gather(*(client.run() for client in clients))
    return [client.text for client in clients] == ["a\n" * 50, "b\n" * 50] and (
        min(client.chunks for client in clients) > 1
    )


async def own_end(http: httpx.AsyncClient) -> bool:
    """A stream ends at its own end, while the model works for the others."""
    short, long = Client(http, "short", 2), Client(http, "long", MANY)
    reading = asyncio.create_task(long.run())
    await short.run()
    early = long.text.count("\n") < MANY / 2
    await reading
    return early and not short.cut


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
    await asyncio.gather(*(Client(http, "a", MANY).peek() for _ in range(2)))
    return await steps(http) - before < MANY


async def slow(http: httpx.AsyncClient) -> bool:
    """What is held for a client that does not read has a bound."""
    before = await steps(http)
    client = Client(http, "a", 200, size=50_000)
    async with contextlib.aclosing(client.read()) as texts:
        await anext(texts)
        return await steps(http) - before < 200  # it is answered behind that batch


async def joins(http: httpx.AsyncClient) -> bool:
    """A request joins a batch that runs already."""
    running, late = Client(http, "running", MANY), Client(http, "late", 1)
    async with contextlib.aclosing(running.read()) as texts:
        await anext(texts)
        reading = asyncio.create_task(late.run())
        async for _ in texts:
            if late.ended:
                break
        joined = late.ended
        await reading
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
