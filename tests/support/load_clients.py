"""A round of load on `load_server.py`: many clients at once, some of which leave or never read."""

import asyncio
import contextlib
import random
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from support.serving import SECONDS, free_port, running

SERVER = Path(__file__).with_name("load_server.py")
CLIENTS = 500
LEAVE = CLIENTS // 10
NEVER_READ = 5


@dataclass
class Round:
    """What one round has shown.

    Attributes:
        wrong: The clients that did not receive what they should have, and why.
        outputs: How many outputs the clients have received.
        seconds: How long they took.
    """

    wrong: list = field(default_factory=list)
    outputs: int = 0
    seconds: float = 0.0


class Load:
    """A running server, and what its clients do to it."""

    def __init__(self, process, client, log_path):
        self._process = process
        self._client = client
        self._address = (client.base_url.host, client.base_url.port)
        self._log_path = log_path
        self._stuck = 0
        self._idle_tasks = self.statistics()["tasks"]

    def run(self, seed):
        """Run one round, and return what it has shown once the server is idle again."""
        round_ = Round()
        asyncio.run(self._run(random.Random(seed), round_))  # noqa: S311
        return round_

    async def _run(self, chance, round_):
        kinds = ["reads"] * (CLIENTS - LEAVE - NEVER_READ)
        kinds += ["leaves"] * LEAVE + ["never reads"] * NEVER_READ
        chance.shuffle(kinds)
        begin = time.perf_counter()
        async with asyncio.timeout(SECONDS), contextlib.AsyncExitStack() as stack:
            for name, kind in enumerate(kinds):
                if kind == "never reads":
                    stack.enter_context(await self._never_read(name))
            async with asyncio.TaskGroup() as clients:
                for name, kind in enumerate(kinds):
                    length = chance.randrange(1, 100)
                    leaves_after = chance.randrange(length) if kind == "leaves" else None
                    if kind != "never reads":
                        clients.create_task(self._read(round_, name, length, leaves_after))
            round_.seconds = time.perf_counter() - begin
            self._stuck += NEVER_READ
            # They have lost their streams while they are still there.
            self.wait_until(lambda figures: figures["finished"].get("error") == self._stuck)
        self.wait_until(self.is_idle)

    def is_idle(self, figures):
        """Whether nothing is left of any request: no slot, no stream, no task of a response."""
        gone = ("live", "waiting", "buffered", "slots", "streams")
        return not any(figures[gauge] for gauge in gone) and figures["tasks"] == self._idle_tasks

    async def _never_read(self, name):
        client = socket.socket()
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, self._address)
        await loop.sock_sendall(client, _request(name, length=10**9, padding=8000))
        return client

    async def _read(self, round_, name, length, leaves_after):
        expected = [f"{name}:{number}" for number in range(length)]
        reader, writer = await asyncio.open_connection(*self._address)
        received = []
        try:
            writer.write(_request(name, length=length, padding=0))
            received = [line async for line in _lines(reader, leaves_after)]
            if leaves_after is None and received != expected:
                round_.wrong.append((name, f"expected {expected}, received {received}"))
            elif received != expected[: len(received)]:
                round_.wrong.append((name, f"not its own, or out of order: {received}"))
        except (OSError, asyncio.IncompleteReadError, AssertionError) as error:
            round_.wrong.append((name, repr(error)))
        finally:
            writer.transport.abort()
        round_.outputs += len(received)

    def statistics(self):
        return self._client.get("/statistics").json()

    def wait_until(self, predicate):
        deadline = time.monotonic() + SECONDS
        while not predicate(figures := self.statistics()):
            assert time.monotonic() < deadline, figures

    def logged_errors(self):
        """Return the errors that the server has logged, of which each ends a traceback."""
        lines = self._log_path.read_text().splitlines()
        return [line for line in lines if re.match(r"[\w.]*(Error|Exception|Warning)\b", line)]

    def memory(self, what="VmRSS"):
        """Return a figure of the server's process in megabytes: VmRSS, or VmHWM for the peak."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(what))
        return int(line.split()[1]) / 1024


def _request(name, **query):
    query = "&".join(f"{key}={value}" for key, value in query.items())
    head = f"GET /generate?name={name}&{query} HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n"
    return head.encode()


async def _lines(reader, leaves_after):
    """Yield the lines of a response with chunks, up to the one after which the client leaves."""
    if leaves_after == 0:
        return
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    count = 0
    while size := int(await reader.readuntil(b"\r\n"), 16):
        chunk = (await reader.readexactly(size + 2))[:-2]
        for line in chunk.decode().splitlines():
            yield line
            count += 1
            if count == leaves_after:
                return
    assert await reader.read() == b"\r\n"


@contextlib.contextmanager
def serving(folder):
    """Run the server for as long as the block lasts."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log_path = folder / "log"
    with (
        running([str(SERVER), str(port)], url, log_path) as process,
        httpx.Client(base_url=url, timeout=SECONDS) as client,
    ):
        yield Load(process, client, log_path)
