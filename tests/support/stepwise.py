"""The test's side of `litserve_stepwise_api.py`: servers, clients that can leave, and doors."""

import contextlib
import http.client
import json
import select
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from support.serving import SECONDS, free_port, running, wait_until_logged

API = Path(__file__).with_name("litserve_stepwise_api.py")
SIZE = 3  # of every batch, but where it says otherwise
MANY = 1_000  # outputs: more than any test waits for


class Client:
    """One request. Its client can leave at any time; it reads in the test's own thread."""

    def __init__(self, url, path, request, headers=()):
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            address.hostname, address.port, timeout=SECONDS
        )
        body = json.dumps(request)
        headers = {"content-type": "application/json", **dict(headers)}
        self._connection.request("POST", path, body, headers)
        self._response = None

    @property
    def response(self):
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    def next_output(self):
        return json.loads(self.response.readline())

    def outputs(self):
        """Read to the end; a response that breaks off is an error."""
        assert self.response.status == 200, self.response.read()
        return [json.loads(line) for line in self.response.read().splitlines()]

    def has_answer(self, seconds=0.05):
        return bool(select.select([self._connection.sock], [], [], seconds)[0])

    def answer(self):
        return self.response.status, json.loads(self.response.read())

    def leave(self):
        with contextlib.suppress(AttributeError, OSError):  # it has left before, or is answered
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        if self._response is not None:
            self._response.close()
        self._connection.close()


class Door:
    """A worker at the test's door: what it reports, and when it may go on."""

    def __init__(self, connection):
        self._connection = connection
        self._lines = connection.makefile()
        self.slots = {}  # of an engine's requests, at its last step

    def next_line(self):
        """What it does next, or nothing once it has closed the door."""
        return self._lines.readline().strip()

    def next_lines(self, lines):
        return [self.next_line() for _ in range(lines)]

    def decoded(self, requests=SIZE):
        """The tags of the requests that it decodes next."""
        words = [line.split() for line in self.next_lines(requests)]
        assert {word for word, _ in words} == {"decode"}, words
        return [tag for _, tag in words]

    def is_at_step_of(self, *tags):
        """It is about to make a step for these: so say the live slots, and their contexts."""
        live = " ".join(tags)
        assert self.next_line() == f"step {live} | {live}"

    def go(self):
        self._send("go")

    def finish(self):
        """Let it make its last step, in which all requests end."""
        self._send("finish")

    def make_steps_until(self, holds):
        """Let it make steps until it is at one where something holds of the tags in it.

        When a request reaches an engine cannot be said. Returns the lines up to that step.
        """
        lines = []
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            lines.append(self.next_line())
            if lines[-1].startswith("step"):
                words = lines[-1].partition(" |")[0].split()[1:]
                self.slots = {tag: slot for tag, _, slot in (word.partition("@") for word in words)}
                if holds(set(self.slots)):
                    return lines
                self.go()
        raise AssertionError(lines[-20:])

    def make_steps_until_it_serves(self, *tags):
        return self.make_steps_until(lambda served: served == set(tags))

    def wait_for_departure_of(self, name):
        """Wait until it has heard of it."""
        self._send(f"departure {name}")
        assert self.next_line() == f"departure {name}"

    def departures(self):
        """The departed clients it knows of, since it was last without any."""
        self._send("departures")
        return self.next_line().split()

    def step_of(self, *tags):
        """What an engine reports before a step of these, if each is in the slot where it was."""
        places = sorted((self.slots[tag], tag) for tag in tags)
        return " ".join(["step", *(f"{tag}@{slot}" for slot, tag in places)])

    def _send(self, command):
        self._connection.sendall(f"{command}\n".encode())

    def close(self):
        self._lines.close()
        self._connection.close()


class Street:
    """Where workers find the doors of a test."""

    def __init__(self, stack):
        self._stack = stack
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(SECONDS)
        self.port = self.listener.getsockname()[1]

    def door(self):
        """Wait for the next worker."""
        connection, _ = self.listener.accept()
        connection.settimeout(SECONDS)
        door = Door(connection)
        self._stack.callback(door.close)
        return door


class Server:
    """A running server."""

    def __init__(self, url, log_path, *, workers, process):
        self.url = url
        self.folder = log_path.parent
        self.workers = workers
        self.process = process
        self._log_path = log_path

    def log(self):
        return self._log_path.read_text(errors="replace")

    def wait_until_it_has_logged(self, text):
        wait_until_logged(self._log_path, text)

    def view(self):
        with urlopen(f"{self.url}/view", timeout=SECONDS) as response:  # noqa: S310
            return json.load(response)

    def wait_until(self, holds):
        """Wait until something holds of the view."""
        deadline = time.monotonic() + SECONDS
        while not holds(view := self.view()):
            assert time.monotonic() < deadline, view

    def wait_until_it_answers(self, number):
        self.wait_until(lambda view: len(view["answering"]) == number)

    def wait_until_there_wait(self, number, path):
        self.wait_until(lambda view: view["waiting"][path] == number)


class Guests:
    """The clients of one test; all of them have left when it is over."""

    def __init__(self, server, stack):
        self.server = server
        self._stack = stack
        self.street = Street(stack)

    def send(self, path, tag, outputs, *, at_door=True, headers=(), **more):
        request = {"tag": tag, "outputs": outputs, **more}
        if at_door:
            request["port"] = self.street.port
        client = Client(self.server.url, path, request, headers)
        self._stack.callback(client.leave)
        return client

    def fill(self, path, outputs, **more):
        """Send a batch to every worker; return the clients by their tags."""
        tags = "abcdefghi"[: SIZE * self.server.workers]
        return {tag: self.send(path, tag, outputs, **more) for tag in tags}

    def doors(self):
        return [self.street.door() for _ in range(self.server.workers)]


@contextlib.contextmanager
def guests_of(server):
    with contextlib.ExitStack() as stack:
        yield Guests(server, stack)


def numbers_of(outputs, tag):
    """The numbers of outputs, all of which have this tag."""
    assert {output["tag"] for output in outputs} <= {tag}, outputs
    return [output["output"] for output in outputs]


@contextlib.contextmanager
def serve(folder, *, apis, workers=1, zmq=False, **more):
    """Run a server for as long as the block lasts."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log_path = folder / "log"
    options = {"port": port, "apis": apis, "workers": workers, "zmq": zmq, **more}
    with running([str(API), json.dumps(options)], url, log_path) as process:
        server = Server(url, log_path, workers=workers, process=process)
        if zmq:
            for kind in apis:
                while not _all_answer(server, f"/{kind}"):
                    pass
        yield server


def _all_answer(server, path):
    """Tell whether every worker can be heard: ZMQ drops what comes before subscribers are known."""
    with guests_of(server) as guests:
        clients = guests.fill(path, 1).values()
        for door in guests.doors():  # while each worker waits there, none gets all requests
            door.close()
        deadline = time.monotonic() + 1
        return all(client.has_answer(max(0.0, deadline - time.monotonic())) for client in clients)
