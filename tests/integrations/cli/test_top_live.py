"""`top` as a user runs it: a process of its own, and a real server whose batcher a test leads."""

import contextlib
import fcntl
import http.server
import importlib.util
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time

import prometheus_client
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from batchstream import ContinuousBatcher, OverloadedError
from batchstream._cli import errors
from batchstream._cli.commands import main
from batchstream.integrations.prometheus import PrometheusMetrics
from support.engines import Model, Turnstile
from support.serving import SECONDS, free_port

TOP = [sys.executable, "-m", "batchstream", "top", "--interval", "0.1"]


class Served:
    """A batcher with two slots whose steps wait, and a server that shows its figures."""

    def __init__(self, stack):
        registry = CollectorRegistry()
        self.gate = Turnstile()
        self.batcher = ContinuousBatcher(
            Model(gates=dict.fromkeys(range(1000), self.gate)),
            max_batch_size=2,
            max_pending=1,
            metrics=PrometheusMetrics(registry=registry),
            name="chat",
        )
        stack.enter_context(self.batcher)
        stack.callback(self.gate.open)
        app = prometheus_client.make_asgi_app(registry)
        self.port = free_port()
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="warning")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        stack.callback(self.stop)
        deadline = time.monotonic() + SECONDS
        while not self.server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # until it listens

    def stop(self):
        self.server.should_exit = True
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()

    def fill(self):
        """Let two requests run, one wait, and refuse one."""
        streams = [self.batcher.stream("ab")]
        self.gate.wait_until(lambda: self.gate.arrived == 1)
        streams += [self.batcher.stream("ab") for _ in range(2)]
        with pytest.raises(OverloadedError):
            self.batcher.stream("ab")
        self.gate.let()  # one more joins before the next step
        self.gate.wait_until(lambda: self.gate.arrived == 2)
        return streams


@pytest.fixture
def served():
    with contextlib.ExitStack() as stack:
        yield Served(stack)


def once(*arguments):
    return subprocess.run(  # noqa: S603
        [*TOP, "--once", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_the_figures_of_a_running_server_are_printed_once(served):
    streams = served.fill()
    done = once(f"127.0.0.1:{served.port}")
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.splitlines()
    assert shown[0] == "chat"
    assert "  slots         ##  2 of 2 running" in shown
    assert "  waiting       1" in shown
    assert "  refused       1  max_pending 1" in shown
    served.gate.open()
    assert [list(stream) for stream in streams] == [["a", "b"]] * 3


class Answer(http.server.BaseHTTPRequestHandler):
    """Gives every request the answer that the server has."""

    def do_GET(self):
        status, body = self.server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def answering():
    """Run a server whose answer the test says; give its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def address(status, body):
            server.answer = status, body
            return f"http://127.0.0.1:{server.server_port}/metrics"

        yield address
        server.shutdown()
        thread.join(SECONDS)


def test_a_server_that_is_not_there_is_said_in_one_line():
    done = once(f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("batchstream top: no server answers at http://127.0.0.1:")


def test_a_page_that_is_not_there_or_of_something_else_says_what_to_do(answering, capsys):
    for (status, body), text in {
        (404, "nothing"): "is not there (404): let it serve one, as in app.mount(",
        (500, "oh"): "answers 500 Internal Server Error",
        (200, "<html>"): "is no page of metrics",
        (200, "up 1\n"): "has no figures of a batcher, among 1 of others: make the batcher with",
    }.items():
        assert main(["top", "--once", answering(status, body)]) == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert text in error


@pytest.mark.parametrize("missing", ["prometheus_client", "rich"])
def test_what_is_not_installed_is_named_with_its_extra(missing, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.setattr(sys, "stdout", Tty())
    assert main(["top", "127.0.0.1:1"]) == 1
    assert 'pip install ".[cli]"' in capsys.readouterr().err


class Tty(io.StringIO):
    def isatty(self):
        return True


class Terminal:
    """A terminal, the program that runs on it, and what it has shown."""

    def __init__(self, command, lines=40):
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 110, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(  # noqa: S603
            command,
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "110", "LINES": f"{lines}"},
        )
        self.shown = ""

    def wait_for(self, text):
        """Read until the program shows something that it has not shown up to now."""
        deadline = time.monotonic() + SECONDS
        self.shown = ""
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.ours], [], [], 1)[0]:
                new = os.read(self.ours, 65536).decode(errors="replace")
                self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", new)

    def press(self, key):
        os.write(self.ours, key.encode())

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(served):
    terminal = Terminal([*TOP, f"http://127.0.0.1:{served.port}/metrics"])
    yield terminal
    terminal.close()


def test_a_terminal_that_is_too_low_for_all_rows_says_so(served):
    terminal = Terminal([*TOP, f"http://127.0.0.1:{served.port}/metrics"], lines=6)
    try:
        terminal.wait_for("more rows, for which this terminal is too low")
        terminal.press("q")
        assert terminal.process.wait(SECONDS) == 0
    finally:
        terminal.close()


def test_a_terminal_shows_what_changes_until_q_is_pressed(served, terminal):
    terminal.wait_for("0 running")
    streams = served.fill()
    terminal.wait_for("■■  2 of 2 running")
    terminal.press("x")  # no key of its
    served.gate.open()
    assert [list(stream) for stream in streams] == [["a", "b"]] * 3
    terminal.wait_for("□□  0 of 2 running")
    served.stop()
    terminal.wait_for("no server answers")
    terminal.wait_for("0 of 2 running")  # the last figures stay
    assert terminal.process.poll() is None
    terminal.press("q")
    assert terminal.process.wait(SECONDS) == 0
    assert termios.tcgetattr(terminal.theirs) == terminal.before
