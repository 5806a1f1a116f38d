"""Starts the servers of litserve_loops.py, and is their clients.

Clients speak HTTP over bare connections: the two cores have to do for them and the server, and what
a client takes the server does not have. Each answer is compared with what was asked for, and counts
as complete if its HTTP message is.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httptools
from models import Request

PROGRAM = Path(__file__).with_name("litserve_server.py")
HOST = "127.0.0.1"
PATIENCE = 90.0  # for the load of a round
START, STOP = 30.0, 5.0


@dataclass(frozen=True)
class Options:
    """How a server is set up; see litserve_server.py."""

    loop: str
    size: int
    timeout: float
    ends: str = "together"


# ---- the server


@dataclass
class Server:
    """A running server."""

    port: int
    pids: dict[str, int] = field(default_factory=dict)

    def cpu(self) -> dict[str, float]:
        """Return the seconds of CPU time that each of its processes has taken.

        The clock of another process has this number on Linux; see `clock_getcpuclockid`.
        """
        return {name: time.clock_gettime((~pid << 3) | 2) for name, pid in self.pids.items()}

    def wakes(self, name: str) -> int:
        """Return how often the threads of a process have waited for something."""
        count = 0
        for status in Path(f"/proc/{self.pids[name]}/task").glob("*/status"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                [line] = [
                    line for line in status.read_text().splitlines() if line.startswith("volun")
                ]
                count += int(line.split()[1])
        return count

    def get(self, path: str) -> bytes:
        """Return what it answers.

        Raises:
            OSError: It does not answer, or not with status 200.
        """
        connection = http.client.HTTPConnection(HOST, self.port, timeout=START)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status != 200:
                raise OSError(response.status, response.reason)
            return response.read()


def free_port() -> int:
    """Find a port below the range that outgoing connections get."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port


@contextlib.contextmanager
def running(options: Options) -> Iterator[Server]:
    """Run a server for as long as the block lasts; none of its processes is left afterwards."""
    server = Server(free_port())
    arguments = json.dumps({"port": server.port} | vars(options))
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, str(PROGRAM), arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_until_ready(server, process)
            server.pids = json.loads(server.get("/processes"))
            yield server
        except BaseException:
            sys.stderr.write(_tail(log))
            raise
        finally:
            _end(process)


def _wait_until_ready(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        assert process.poll() is None, process.returncode
        with contextlib.suppress(OSError):
            server.get("/health")
            return
        time.sleep(0.05)
    raise TimeoutError(f"not ready within {START} seconds")


def _end(process: subprocess.Popen) -> None:
    try:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-4000:]


# ---- its clients


@dataclass
class Answer:
    """What a client has received, with the times at which it did; they are None until then."""

    asked: float
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    last: float | None = None  # output
    ended: float | None = None


class Client(asyncio.Protocol):
    """A connection with one request after another."""

    def __init__(self) -> None:
        self._answer = Answer(0.0)
        self._over: asyncio.Future[None] | None = None

    async def ask(self, request: dict[str, Any]) -> Answer:
        """Send a request, and wait for the end of its answer."""
        body = json.dumps(request).encode()
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        assert not self._transport.is_closing(), "the server has closed an idle connection"
        self._parser = httptools.HttpResponseParser(self)
        self._over = asyncio.get_running_loop().create_future()
        self._answer = answer = Answer(time.perf_counter())
        self._transport.write(head.encode() + body)
        await self._over
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._transport.abort()

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._now = time.perf_counter()
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up an answer that is not complete."""
        if self._over is not None and not self._over.done():
            lost = ConnectionError(f"connection lost after {bytes(self._answer.body)!r}")
            lost.__cause__ = exc
            self._over.set_exception(lost)

    # ---- what the parser calls

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._answer.body += body
        self._answer.last = self._now

    def on_message_complete(self) -> None:
        """Note the end."""
        self._answer.status = self._parser.get_status_code()
        self._answer.ended = self._now
        self._over.set_result(None)


async def _connect(port: int) -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, HOST, port)
    return client


async def _ask(
    client: Client, requests: Iterable[Request], seconds: float, answers: dict[Request, Answer]
) -> None:
    for request in requests:
        asked = {"number": request.number, "length": request.length, "seconds": seconds}
        answer = answers[request] = await client.ask(asked)
        assert answer.status == 200, answer
        request.check(answer.body.decode().splitlines())


@dataclass
class Load:
    """What became of the requests, and what it took.

    Attributes:
        answers: In the order of the requests.
        seconds: From the first request to the last end.
        cpu: CPU seconds of the server's processes, and the `client`'s.
        diary: What the worker has noted down.
    """

    answers: list[Answer]
    seconds: float
    cpu: dict[str, float]
    diary: dict[str, float]


def load(server: Server, requests: Sequence[Request], clients: int, seconds: float = 0.0) -> Load:
    """Let so many clients ask for all of this, each for the next when it has an answer."""
    return asyncio.run(_load(server, requests, clients, seconds))


async def _load(server: Server, requests: Sequence[Request], clients: int, seconds: float) -> Load:
    answers: dict[Request, Answer] = {}
    async with asyncio.timeout(PATIENCE):
        connections = [await _connect(server.port) for _ in range(clients)]
        left = iter(requests)
        tasks = [_ask(client, left, seconds, answers) for client in connections]
        cpu = server.cpu() | {"client": time.process_time()}
        begin = time.perf_counter()
        await asyncio.gather(*tasks)
        lasted = time.perf_counter() - begin
        after = server.cpu() | {"client": time.process_time()}
        connections.append(await _connect(server.port))  # the server closes idle connections
        report = await connections[-1].ask({"report": True})
        for client in connections:
            client.close()
    diary = json.loads(report.body)
    assert diary["outputs"] == sum(request.length for request in requests), diary
    return Load(
        answers=[answers[request] for request in requests],
        seconds=lasted,
        cpu={name: after[name] - cpu[name] for name in cpu},
        diary=diary,
    )
