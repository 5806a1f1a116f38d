"""Runs the two servers: the program of `server.py`, and the same with one line changed."""

from __future__ import annotations

import contextlib
import difflib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchstream._cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST: Final = "127.0.0.1"
OURS: Final = "batchstream's loop"
THEIRS: Final = "LitServe's loop"
_FOLDER: Final = Path(__file__).parent
_LINE: Final = "LOOP = BatchedStreamLoop("
_INSTEAD: Final = 'LOOP = "auto"  # LitServe\'s own\n'
_SECONDS_TO_START: Final = 90.0
_SECONDS_TO_STOP: Final = 5.0
_POLL: Final = 0.05


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        name: Of its loop.
        port: On 127.0.0.1.
        diary: The file in which its worker notes each step.
    """

    name: str
    port: int
    diary: Path


def programs() -> dict[str, str]:
    """Return the two programs by the names of their loops. They differ in one line."""
    ours = (_FOLDER / "server.py").read_text()
    theirs = "".join(
        _INSTEAD if line.startswith(_LINE) else line for line in ours.splitlines(keepends=True)
    )
    return {THEIRS: theirs, OURS: ours}


def difference() -> list[str]:
    """Return the line that differs, as a diff shows it, with a line before and after."""
    theirs, ours = (program.splitlines() for program in programs().values())
    return list(difflib.unified_diff(theirs, ours, "server.py", "server.py", lineterm="", n=0))[3:]


@contextlib.contextmanager
def running(slots: int, seconds: float) -> Iterator[list[Server]]:
    """Run both servers for as long as the block lasts; none of their processes is left afterwards.

    Raises:
        CommandError: One does not start; the text has what it printed last.
    """
    with (
        tempfile.TemporaryDirectory(prefix="batchstream-demo-") as folder,
        contextlib.ExitStack() as stack,
    ):
        watched = stack.enter_context(_kept())
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, processes)
        servers = []
        for number, (name, program) in enumerate(programs().items()):
            place = Path(folder, str(number))
            place.mkdir()
            server = Server(name, _free_port(), place / "diary")
            server.diary.touch()
            (place / "server.py").write_text(program)
            arguments = [str(server.port), str(slots), str(seconds), str(server.diary)]
            log = stack.enter_context((place / "log").open("wb"))
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, str(place / "server.py"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=place,
                start_new_session=True,
            )
            processes.append(process)
            watched(process.pid)
            servers.append(server)
        for server, process in zip(servers, processes, strict=True):
            _wait_until_ready(server, process)
        yield servers


@contextlib.contextmanager
def _kept() -> Iterator[Callable[[int], None]]:
    """Start the keeper; yield what tells it of a session to end if this process is killed."""
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-I", str(_FOLDER / "keeper.py")],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C at the terminal is for this process alone
    ) as keeper:
        assert keeper.stdin is not None  # noqa: S101 - it is a pipe

        def tell(line: object) -> None:
            assert keeper.stdin is not None  # noqa: S101 - as above
            with contextlib.suppress(BrokenPipeError):  # if it was ended, nothing else is wrong
                print(line, file=keeper.stdin, flush=True)

        yield tell
        # Only here, where the servers have ended: whatever comes in between is for the keeper.
        tell("done")


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the servers, all at the same time, and every process of theirs."""
    for process in processes:
        process.send_signal(signal.SIGINT)  # LitServe stops its workers at SIGINT only
    try:
        deadline = time.monotonic() + _SECONDS_TO_STOP
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the whole session
            process.wait()


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise CommandError(
                f"the server with {server.name} did not start, its exit status is "
                f"{process.returncode}. It printed:\n{_last_lines(server)}"
            )
        if _is_healthy(server.port):
            return
        time.sleep(_POLL)
    raise CommandError(
        f"the server with {server.name} was not ready within {_SECONDS_TO_START:.0f} s. "
        f"It printed:\n{_last_lines(server)}"
    )


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_lines(server: Server) -> str:
    return (server.diary.parent / "log").read_text(errors="replace")[-2000:]


def _free_port() -> int:
    """Find a free port, below the ports that outgoing connections are given."""
    while True:
        port = random.randrange(10_000, 30_000)  # noqa: S311 - no secret
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port
