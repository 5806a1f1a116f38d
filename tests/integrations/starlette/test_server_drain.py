"""Servers that are told to stop: what ends in time ends as a whole, and nothing is left."""

import http.client
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from batchstream import DynamicBatcher, OverloadedError, batched
from batchstream.integrations.starlette import exception_handlers, readiness
from support.serving import (
    SECONDS,
    Call,
    Gate,
    free_port,
    is_open,
    running,
    wait_until_logged,
)

EVENTS = b"data: 0\r\n\r\ndata: 1\r\n\r\ndata: 2\r\n\r\n"
EXIT_STATUS = {"uvicorn": -signal.SIGTERM, "hypercorn": 0, "granian": 0}

IN_FLIGHT = 8  # requests of a map: as many as the engine has slots for, and one batch more

SERVER = Path(__file__).parents[2] / "support" / "drain_server.py"


class Service:
    """A server in a process of its own, its gate, and a client that keeps its connections."""

    def __init__(self, port, process, gate, job):
        self.port, self.process, self.gate = port, process, gate
        self._job = job
        self.connections = []
        limits = httpx.Limits(max_connections=20)
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=SECONDS, limits=limits
        )

    def call(self, request, path="/generate"):
        return Call(self.client, path, request)

    def connection(self):
        """Return a connection of its own, to be closed with the service."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        self.connections.append(connection)
        return connection

    def wait_until_refused(self):
        """Wait until the server's socket is closed: a connection that waits for long is none."""

        def is_refused():
            try:
                socket.create_connection(("127.0.0.1", self.port), SECONDS).close()
            except ConnectionRefusedError:
                return True
            return False

        self.wait_until(is_refused)

    def wait_until_live(self, live):
        """Wait until so many requests have been submitted, and have not ended."""
        self.wait_until(lambda: self.client.get("/statistics").json()["live"] == live)

    def wait_until(self, condition):
        until = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < until, "what is waited for never happened"
            time.sleep(0.01)

    def let_all_through(self):
        """Let the model make every step from now on, until it is closed."""

        def work():
            while self.gate.next_line():
                self.gate.go_on()

        threading.Thread(target=work).start()

    def job(self):
        return self._job.read_text()


@pytest.fixture
def serve(tmp_path, request):
    """Start a server by its name; the test has to stop it."""
    services = []

    def start(server):
        port, gate, job = free_port(), Gate(), tmp_path / "job"
        command = [str(SERVER), server, str(port), str(gate.port), str(job)]
        block = running(command, lambda: is_open(port), tmp_path / "log")
        service = Service(port, block.__enter__(), gate, job)
        services.append((service, block))
        return service

    yield start
    for service, block in services:
        for connection in (service.client, *service.connections):
            connection.close()
        block.__exit__(None, None, None)
        service.gate.close()


@pytest.mark.rule(9)
@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
def test_a_server_that_is_told_to_stop_lets_every_stream_end(serve, server):
    """What a page says of SIGTERM: of responses, of connections, and of the exit status."""
    service = serve(server)
    idle = service.connection()
    idle.request("GET", "/statistics")
    assert idle.getresponse().read() == b'{"live":0}'
    calls = [service.call(3, path) for path in ("/generate", "/events") * 2]
    service.wait_until_live(4)
    calls += [service.call(3, path) for path in ("/generate", "/events") * 2]
    service.wait_until_live(8)  # as many wait as are in slots
    service.gate.let_through(0)  # of the first request alone, perhaps
    service.gate.let_through(1)
    service.wait_until(lambda: sum(call.body.count(b"\n") > 0 for call in calls) == 4)
    service.process.send_signal(signal.SIGTERM)
    assert idle.sock.recv(1) == b"", "a connection that is kept is closed"
    if server == "hypercorn":  # whose first process goes on to listen
        late = service.connection()
        late.request("GET", "/ready")
    else:
        service.wait_until_refused()
    service.let_all_through()
    for call in calls:
        assert call.wait().error is None
        body = b"0\n1\n2\n" if call.path == "/generate" else EVENTS
        assert (call.status, call.body) == (200, body)
    assert service.process.wait(SECONDS) == EXIT_STATUS[server]
    if server == "hypercorn":
        with pytest.raises(ConnectionError):  # of which `RemoteDisconnected` is one
            late.getresponse()


def test_the_first_process_of_uvicorn_with_workers_goes_on_to_listen(serve, tmp_path):
    service, log = serve("uvicorn-workers"), tmp_path / "log"
    service.wait_until(lambda: log.read_text().count("Application startup complete") == 2)
    call = service.call(3)
    service.gate.let_through(0)
    call.wait_for_lines(1)
    service.process.send_signal(signal.SIGTERM)
    # The worker with the response, and the other one: both have closed their sockets.
    wait_until_logged(log, "Waiting for connections to close")
    wait_until_logged(log, "Finished server process")
    late = service.connection()
    late.request("GET", "/ready")
    service.let_all_through()
    assert call.wait().body == b"0\n1\n2\n"
    assert service.process.wait(SECONDS) == 0
    with pytest.raises(ConnectionError):
        late.getresponse()


def test_hypercorn_waits_for_three_seconds_if_not_told_otherwise():
    assert Config().graceful_timeout == 3


def test_what_no_connection_waits_for_ends_at_the_end_of_the_lifespan(serve):
    service = serve("uvicorn")
    assert service.client.post("/job", json=2).status_code == 202
    service.wait_until_live(IN_FLIGHT)
    service.process.send_signal(signal.SIGTERM)
    service.wait_until_refused()
    service.let_all_through()
    assert service.process.wait(SECONDS) == EXIT_STATUS["uvicorn"]
    replies, error = service.job().splitlines()
    assert int(replies) >= IN_FLIGHT, "what was submitted has its replies"
    assert "the batcher is draining, as asked for by the end of its async with block" in error


def test_while_a_server_drains_its_probe_and_new_requests_get_503(serve):
    service = serve("uvicorn")
    call = service.call(3)
    service.gate.let_through(0)
    call.wait_for_lines(1)
    assert service.client.get("/ready").json() == {
        "ready": True,
        "batchers": [{"state": "accepting", "ready": True}],
    }
    assert service.client.post("/drain").status_code == 202
    service.wait_until(lambda: service.client.get("/ready").status_code == 503)
    assert service.client.get("/ready").json()["batchers"] == [
        {"state": "draining", "ready": False}
    ]
    refused = service.client.post("/generate", json=3)  # in a connection that is kept
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    service.let_all_through()
    assert call.wait().body == b"0\n1\n2\n"
    states = [{"state": "closed", "ready": False}]
    service.wait_until(lambda: service.client.get("/ready").json()["batchers"] == states)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(SECONDS) == EXIT_STATUS["uvicorn"]


def test_uvicorn_closes_websockets_at_once_when_it_is_told_to_stop(serve):
    """So a client of a WebSocket has to come again; what a page says of it is shown here."""
    service = serve("uvicorn")
    with connect(f"ws://127.0.0.1:{service.port}/chat") as websocket:
        websocket.send("3")
        service.gate.let_through(0)
        assert websocket.recv(SECONDS) == "0"
        service.process.send_signal(signal.SIGTERM)
        service.wait_until_refused()
        service.let_all_through()
        with pytest.raises(ConnectionClosedError) as closed:
            list(websocket)
    assert closed.value.rcvd.code == 1012  # service restart
    assert service.process.wait(SECONDS) == EXIT_STATUS["uvicorn"]


# ---- the probe and Retry-After, without a server


def model(requests):
    yield requests


@pytest.mark.parametrize("make_app", ["starlette", "fastapi", "fastapi api"])
def test_a_probe_says_the_state_of_all_batchers(make_app):
    one, other = (DynamicBatcher(model, max_batch_size=2) for _ in range(2))
    endpoint = readiness(one, other)
    if make_app == "fastapi":
        app = FastAPI()
        app.add_route("/ready", endpoint)
    elif make_app == "fastapi api":
        app = FastAPI()
        app.add_api_route("/ready", endpoint)
    else:
        app = Starlette(routes=[Route("/ready", endpoint)])
    client = TestClient(app)
    if make_app != "fastapi api":  # where GET is the only method unless there are others
        assert client.head("/ready").status_code == 200
    response = client.get("/ready")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    one.close()
    response = client.get("/ready")
    assert response.status_code == 503
    states = [{"state": "closed", "ready": False}, {"state": "accepting", "ready": True}]
    assert response.json() == {"ready": False, "batchers": states}


def test_a_probe_names_the_batchers_that_have_a_name():
    chat = DynamicBatcher(model, max_batch_size=2, name="chat")
    app = Starlette(routes=[Route("/ready", readiness(chat, batched(model)))])
    assert TestClient(app).get("/ready").json()["batchers"] == [
        {"name": "chat", "state": "accepting", "ready": True},
        {"state": "accepting", "ready": True},
    ]


@pytest.mark.parametrize("wrong", [(), (model,)])
def test_a_probe_of_no_batcher_is_refused(wrong):
    with pytest.raises(TypeError, match="readiness takes"):
        readiness(*wrong)


@pytest.mark.parametrize(
    ("measured", "header"), [(None, "1"), (0.2, "1"), (1.5, "2"), (30.0, "30")]
)
def test_retry_after_is_what_was_measured(measured, header):
    async def endpoint(_):
        raise OverloadedError("full", pending=3, max_pending=3, retry_after=measured)

    app = Starlette(routes=[Route("/", endpoint)], exception_handlers=exception_handlers)
    response = TestClient(app).get("/")
    assert (response.status_code, response.headers["retry-after"]) == (503, header)
