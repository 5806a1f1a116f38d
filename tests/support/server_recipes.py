"""Starts the programs of `examples/servers/` as their texts say, and checks what works.

A recipe is a folder there with a `server.py`, whose text has the command that starts it. It runs in
a folder of its own beside `server_model.py` under the name of `model.py`; or the model runs in
another process, and what the recipe imports is connected to that.

Each check returns the words that the table on the page of servers has in this cell. They are few,
and a test compares them: so a cell cannot say what is not so, be it good or bad.
"""

import ast
import contextlib
import json
import shlex
import shutil
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from support.rpc_clients import GrpcReply, KServeReply, PostReply
from support.server_clients import HttpReply, WebSocketReply
from support.serving import SECONDS, Gate, free_port, is_open, running

EXAMPLES = Path(__file__).parents[2] / "examples" / "servers"
MODEL = EXAMPLES / "model.py"
STAND_IN = Path(__file__).with_name("server_model.py")
PORT = "8000"  # which the texts have
APART = Path(__file__).with_name("apart.py")
SOCKET = "model.sock"
CLIENTS = {
    "http": HttpReply,
    "websocket": WebSocketReply,
    "post": PostReply,
    "kserve": KServeReply,
    "grpc": GrpcReply,
}
"""The kinds of clients, by the word that servers.toml has for each."""

AT_ONCE = "at once"
BY_A_WRITE = "by a failed write"
FROM_THE_FIRST_OUTPUT = "at once, from the first output on"
ERROR = "the gate is gone"  # the text of the stand-in's
STEPS = 60  # of outputs of 1 MB: what no server may take for a client that reads nothing
NOTICES = 2  # seconds within which a server has noticed SIGTERM
FEW = 6  # outputs that may pass before a write fails


def command_of(recipe, command):
    """Return what Python runs to start a recipe, with the port as its text has it.

    Args:
        recipe: The name of its folder.
        command: The first word of the command, of which a text may have several.
    """
    program = ast.parse((EXAMPLES / recipe / "server.py").read_text())
    text = ast.get_docstring(program, clean=False)
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    [line] = [it for it in lines if it.startswith(f"{command} ")]
    first, *others = shlex.split(line)
    return others if first == "python" else ["-m", first, *others]


class Server:
    """A recipe that runs.

    Args:
        reply: The kind of client.
        port: The server's.
        process: Of the server.
        folder: Where it runs, with what the model has written.
    """

    def __init__(self, reply, port, process, folder):
        self.port, self.process = port, process
        self._reply = reply
        self._folder = folder

    def ask(self, gate, letters, size=10, *, reads=True):
        """Begin a request."""
        return self._reply(self.port, f"{gate.port}.{letters}.{size}", reads=reads)

    def ask_for(self, text):
        """Begin a request of this text."""
        return self._reply(self.port, text)

    def figures(self):
        """Return what the batcher counts; zeros before the first request."""
        file = self._folder / "figures"
        if not file.exists():
            return {"live": 0, "running": 0}
        with socket.create_connection(("127.0.0.1", int(file.read_text())), SECONDS) as told:
            return json.loads(told.makefile().read())

    def wait_until(self, seconds=SECONDS, **expected):
        """Ask the batcher until it counts this; return whether it has come to that."""
        until = time.monotonic() + seconds
        while any(self.figures()[name] != count for name, count in expected.items()):
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def log(self, start=0):
        """Return what the server has logged, from this byte on."""
        return (self._folder / "log").read_bytes()[start:].decode(errors="replace")

    @contextlib.contextmanager
    def logs(self, text):
        """Wait until the server has logged this text, from the beginning of the block on."""
        start = len((self._folder / "log").read_bytes())
        yield
        until = time.monotonic() + SECONDS
        while text not in (log := self.log(start)):
            assert time.monotonic() < until, f"{text!r} is not logged:\n{log}"
            time.sleep(0.01)

    def tell_to_stop(self):
        """Send SIGTERM, and give the server the time to notice.

        Most say so in their log, or listen no more. Hypercorn shows nothing, so the time is short.
        """
        log = self._folder / "log"
        size = log.stat().st_size
        self.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + NOTICES
        while log.stat().st_size == size and is_open(self.port) and time.monotonic() < until:
            time.sleep(0.1)

    def wait_for_its_end(self):
        """Wait until the process has ended; show its log if it does not."""
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server has not ended:\n{self.log()}")

    def asked(self, gate, *letters):
        """Begin requests, each in the batcher before the next.

        The model waits at the gate in its first step, for the first of them alone.
        """
        replies = []
        for n, count in enumerate(letters, 1):
            replies.append(self.ask(gate, count))
            assert self.wait_until(live=n), replies[-1].end
            if n == 1:  # behind an error, slots are free only when the model begins anew
                assert gate.next_line() == "step 1"
        return replies


@contextlib.contextmanager
def serving(recipe, command, reply, folder, model=STAND_IN, *, apart=False, remote=False):
    """Run a recipe in a folder for as long as the block lasts, and give the `Server`.

    Args:
        recipe: The name of its folder in the examples.
        command: The words that its command begins with.
        reply: The kind of its clients.
        folder: Where it runs.
        model: What it imports as its model.
        apart: Whether `apart.py` runs it.
        remote: Whether the model runs in a process of its own.
    """
    port = free_port()
    shutil.copytree(EXAMPLES / recipe, folder / recipe)
    command = [word.replace(PORT, str(port)) for word in command_of(recipe, command)]
    if apart:
        command = [str(APART), *command[1:]]  # in place of -m
    with contextlib.ExitStack() as stack:
        if remote:
            stack.enter_context(model_apart(model, folder))
        else:
            shutil.copy(model, folder / "model.py")
        log = folder / "log"
        process = stack.enter_context(running(command, partial(is_open, port), log))
        yield Server(reply, port, process, folder)


@contextlib.contextmanager
def model_apart(model, folder):
    """Run a model in a process of its own, and put a batcher in its place that is connected to it.

    The window is as small as the stand-in's `max_buffered`, for clients that do not read.
    """
    shutil.copy(model, folder / "model_apart.py")
    (folder / "model.py").write_text(
        "from batchstream.remote import connect\n"
        f"batcher = connect({SOCKET!r}, window=8, drain=60)\n"
    )
    (folder / "serve_model.py").write_text(
        "from batchstream.remote import serve\n"
        "from model_apart import batcher\n"
        f"serve(batcher, {SOCKET!r})\n"
    )
    with running(["serve_model.py"], (folder / SOCKET).exists, folder / "model.log"):
        yield


def let_all_through(gate):
    """Let the model make the step that it has told, and every other until it is closed."""
    line = None
    while line not in {"closed", ""}:
        gate.go_on()
        line = gate.next_line()


def ends(server, _expected):
    """Three streams of different lengths: each ends in the step after its last output."""
    with Gate() as gate:
        first, second, third = server.asked(gate, 1, 3, 5)
        gate.go_on()
        first.wait_for(1)
        for step in range(2, 7):
            assert gate.next_line() == f"step {step}"
            gate.go_on()
            if step == 2:
                assert first.wait() == "whole"
                assert (second.wait_for(1), second.end, third.end) == (None, None, None)
            elif step == 5:
                assert second.wait() == "whole"
                assert (third.wait_for(4), third.end) == (None, None)
        gate.let_through(7)
        assert third.wait() == "whole"
        assert gate.next_line() == "closed"
        assert [reply.outputs for reply in (first, second, third)] == [1, 3, 5]
    return "yes"


def disconnect(server, expected):
    """Clients leave in the queue, before their first output and after it."""
    early, late = leave_early(server, expected), leave_late(server, expected)
    if (early, late) == (BY_A_WRITE, AT_ONCE):
        return FROM_THE_FIRST_OUTPUT
    return late if early == late else f"early: {early}, late: {late}"


def leave_early(server, expected):
    """A client leaves in the queue, and then those in the slots, during the first step."""
    seconds = SECONDS if expected == AT_ONCE else 1
    with Gate() as gate:
        *in_slots, waiting = server.asked(gate, 100, 100, 100, 100)
        waiting.leave()
        left_queue = server.wait_until(seconds, live=len(in_slots))
        for reply in in_slots:
            reply.leave()
        left_slots = server.wait_until(seconds, live=0)
        if left_queue != left_slots:
            gate.close()
            return f"queue: {left_queue}, slots: {left_slots}"
        return how_it_leaves(server, gate, at_once=left_slots)


def leave_late(server, expected):
    """A client leaves after its first output, while the model is in the second step."""
    with Gate() as gate:
        [reply] = server.asked(gate, 100)
        gate.go_on()
        reply.wait_for(1)
        assert gate.next_line() == "step 2"
        reply.leave()
        at_once = server.wait_until(1 if expected == BY_A_WRITE else SECONDS, live=0)
        return how_it_leaves(server, gate, at_once=at_once)


def how_it_leaves(server, gate, *, at_once):
    """Let the model go on without clients, and return in which words it comes to its end."""
    if at_once:
        gate.go_on()
        assert gate.next_line() == "closed", "the model makes another step"
        return AT_ONCE
    for _ in range(FEW):
        gate.go_on()
        if gate.next_line() == "closed":
            return BY_A_WRITE
        server.wait_until(1, live=0)  # a write of before may still be in the making
    gate.close()
    return "no"


def back_pressure(server, _expected):
    """A client reads nothing; another in its batch does, and paces the model."""
    with Gate() as gate:
        slow = server.ask(gate, 10 * STEPS, 1_000_000, reads=False)
        gate.let_through(1)
        assert gate.next_line() == "step 2"
        quick = server.ask(gate, STEPS)
        assert server.wait_until(live=2)
        felt = False
        for step in range(2, STEPS + 2):
            gate.go_on()
            quick.wait_for(step - 2)
            assert gate.next_line() == f"step {step + 1}"
            felt = felt or server.figures()["live"] == 1
        slow.leave()
        server.wait_until(1, live=1)
        let_all_through(gate)
        assert quick.wait() == "whole"
        assert quick.outputs == STEPS
    return "felt" if felt else "not felt"


def early_error(server, _expected):
    """The model fails before the first output; the log says why."""
    with server.logs(ERROR), Gate() as gate:
        [reply] = server.asked(gate, 100)
        gate.close()
        end = reply.wait()
    assert server.wait_until(live=0)
    return end


def error(server, _expected):
    """The model fails after an output; the log says why."""
    with server.logs(ERROR), Gate() as gate:
        [reply] = server.asked(gate, 100)
        gate.go_on()
        reply.wait_for(1)
        assert gate.next_line() == "step 2"
        gate.close()
        end = reply.wait()
    assert server.wait_until(live=0)
    return "looks complete" if end == "whole" else end


def overload(server, _expected):
    """All slots are in use, and as many requests wait as may."""
    with Gate() as gate:
        replies = server.asked(gate, 100, 100, 100, 100)
        end = server.ask(gate, 1).wait()
        for reply in replies:
            reply.leave()
        gate.close()
    assert server.wait_until(live=0)
    return end


def bad_request(server, _expected):
    """The model refuses a request as its client's fault."""
    end = server.ask_for("no.word").wait()
    assert server.wait_until(live=0)
    return end


def drain(server, _expected):
    """The server is told to stop while streams are under way, and another request waits."""
    start = len(server.log().encode())
    with Gate() as gate:
        replies = server.asked(gate, 2, 3, 3, 2)
        gate.go_on()
        replies[0].wait_for(1)
        assert gate.next_line() == "step 2"
        server.tell_to_stop()
        let_all_through(gate)
        ends = [reply.wait() for reply in replies]
        server.wait_for_its_end()
    assert "Traceback" not in server.log(start)
    return "yes" if set(ends) == {"whole"} else "no"


CHECKS = {
    "ends": ends,
    "disconnect": disconnect,
    "back-pressure": back_pressure,
    "early error": early_error,
    "error": error,
    "overload": overload,
    "bad request": bad_request,
    "drain": drain,
}
"""The columns of the table. `drain` ends the server, so it needs one of its own."""
