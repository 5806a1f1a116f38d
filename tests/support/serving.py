"""What the tests of servers share: a server, clients, and a gate that the model waits at."""

import contextlib
import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import httpx

SECONDS = 45  # for what should happen at once, on a machine that may be busy


def free_port():
    """Find a port below the range that outgoing connections, of other tests say, get."""
    while True:
        port = random.randrange(10_000, 30_000)  # noqa: S311
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def running(command, is_ready, log_path):
    """Run a server for as long as the block lasts; its session is gone afterwards.

    Args:
        command: What Python runs, in the folder of the log.
        is_ready: Returns whether it can be asked; or its address, whose `/health` says so.
        log_path: The file of its log.
    """
    with log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=log_path.parent,
        )
    try:
        ready = partial(is_healthy, is_ready) if isinstance(is_ready, str) else is_ready
        wait_until_ready(process, ready, log_path)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(3)  # over ZMQ, LitServe 0.2.19 does not stop at all
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_ready(process, is_ready, log_path, seconds=100):
    """Poll a server that has been started, until it can be asked."""
    deadline = time.monotonic() + seconds
    while not is_ready():
        assert process.poll() is None, log_path.read_text()
        assert time.monotonic() < deadline, f"not ready:\n{log_path.read_text()}"
        time.sleep(0.05)


def wait_until_logged(log_path, text):
    """Poll the log of a server until it holds the text."""
    deadline = time.monotonic() + SECONDS
    while text not in (log := log_path.read_text(errors="replace")):
        assert time.monotonic() < deadline, log
        time.sleep(0.01)


def without_monitor(log):
    """Return a log without the traceback that LitServe's monitor of workers may leave at the end.

    It asks a process of LitServe's each second whether the server has ended, and once more a moment
    after that process has ended too.
    """
    lines = r"\n|(?:Traceback |During handling | |[\w.]+Error\b).*\n?"
    return re.sub(rf"(?m)^.*Monitoring worker crashed\n(?:{lines})+", "", log)


def is_healthy(url):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    return False


def is_open(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def marked(mark):
    """Return the processes that have this text in their environment, as only Linux shows."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environment.read_bytes():
                found.append(environment.with_name("cmdline").read_bytes().replace(b"\0", b" "))
    return found


class Call:
    """One request in a thread of its own, and what its client has seen up to now."""

    def __init__(self, client, path, request):
        self.path = path
        self._chunks = queue.Queue()
        self._over = threading.Event()
        self.status = None
        self.headers = None
        self.body = b""
        self.error = None
        self._thread = threading.Thread(target=self._run, args=(client, path, request))
        self._thread.start()

    def _run(self, client, path, request):
        try:
            with client.stream("POST", path, json=request) as response:
                self.status = response.status_code
                self.headers = response.headers
                for chunk in response.iter_raw():
                    self.body += chunk
                    self._chunks.put(chunk)
        except httpx.HTTPError as error:
            self.error = error
        finally:
            self._over.set()

    def wait_for_chunk(self):
        return self._chunks.get(timeout=SECONDS)

    def wait_for_lines(self, lines):
        """Wait until so many have come; outputs that are there together may share a chunk."""
        while self.body.count(b"\n") < lines:
            self.wait_for_chunk()

    @property
    def over(self):
        return self._over.is_set()

    def wait(self):
        assert self._over.wait(SECONDS), f"not over, has {self.body!r}"
        self._thread.join(SECONDS)
        return self


class Gate:
    """Where the model waits before each step, for the test to let it through."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(SECONDS)
        self.port = self._listener.getsockname()[1]
        self._connection = None
        self._lines = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Leave the model without an answer."""
        for end in (self._lines, self._connection, self._listener):
            if end is not None:
                end.close()

    def next_line(self):
        """Wait for what the model tells next: `step N` before it waits, or `closed`."""
        if self._connection is None:
            self._connection, _ = self._listener.accept()
            self._connection.settimeout(SECONDS)
            self._lines = self._connection.makefile()
        return self._lines.readline().strip()

    def let_through(self, step):
        assert self.next_line() == f"step {step}"
        self.go_on()

    def go_on(self):
        """Let the model make the step that it has told."""
        self._connection.sendall(b"go\n")
