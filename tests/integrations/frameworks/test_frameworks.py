"""A client that leaves cancels its stream at once, in web frameworks of all kinds.

Real servers, in which the garbage collector never runs: only what the library does itself frees a
slot. The model waits for the test at each step, so that its steps can be counted.
"""

import contextlib
import functools
import socket
from pathlib import Path

import httpx
import pytest

from support.serving import SECONDS, Gate, free_port, running

PROGRAM = Path(__file__).parents[2] / "support" / "body_server.py"

FORMS = {
    ("starlette", "uvicorn"): ["body", "block", "generator", "events", "response"],
    ("starlette", "hypercorn"): ["body", "generator", "response"],
    ("starlette", "granian"): ["body", "generator", "response"],
    ("django", "uvicorn"): ["body", "block", "generator", "bare"],
    ("litestar", "uvicorn"): ["body", "block", "generator", "response"],
    ("litestar", "granian"): ["body"],
    ("quart", "uvicorn"): ["body", "block", "generator"],
    ("quart", "hypercorn"): ["body"],
    ("aiohttp", "its own"): ["body", "block"],
    ("blacksheep", "uvicorn"): ["mounted"],
    ("asgi", "uvicorn"): ["response"],
    ("asgi", "hypercorn"): ["response"],
    ("asgi", "granian"): ["response"],
}
"""In which forms each framework on each server is given a stream; see `support/body_server.py`."""

CASES = [(*where, form) for where, forms in FORMS.items() for form in forms]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return what starts a framework on a server once, and returns its port."""
    with contextlib.ExitStack() as servers:

        @functools.cache
        def port_of(framework, web_server):
            port = free_port()
            log = tmp_path_factory.mktemp("server") / "log"
            command = [str(PROGRAM), framework, web_server, str(port)]
            servers.enter_context(running(command, f"http://127.0.0.1:{port}", log))
            return port

        yield port_of


def read_until(connection, text):
    received = b""
    while text not in received:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk


def wait_until(port, path, count):
    """Ask the server until it has noticed that clients have come or left."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        while client.get(path).text != str(count):
            pass


@pytest.mark.rule(13, 25)
@pytest.mark.parametrize("size", [1, 2_000_000], ids=["reads", "does not read"])
@pytest.mark.parametrize(("framework", "web_server", "form"), CASES)
def test_a_client_that_leaves_frees_its_slot_at_once(server, framework, web_server, form, size):
    """Also one whose response is stuck in a write, as that client reads nothing."""
    port = server(framework, web_server)
    with Gate() as gate:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
            request = f"GET /{form}?gate={gate.port}&size={size} HTTP/1.1"
            client.sendall(f"{request}\r\nHost: localhost\r\n\r\n".encode())
            gate.let_through(1)
            read_until(client, b"output")
            assert gate.next_line() == "step 2"
        wait_until(port, "/live", 0)
        gate.go_on()
        assert gate.next_line() == "closed", "the model made a third step"


@pytest.mark.rule(13, 25)
@pytest.mark.parametrize(("framework", "web_server", "form"), CASES)
def test_four_clients_that_leave_free_the_four_slots_of_an_engine(
    server, framework, web_server, form
):
    port = server(framework, web_server)
    with contextlib.ExitStack() as clients:
        for count in range(1, 5):
            client = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
            clients.enter_context(client)
            client.sendall(f"GET /{form} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            wait_until(port, "/slots", count)
            read_until(client, b"output")
    wait_until(port, "/slots", 0)


@pytest.mark.rule(5)
@pytest.mark.parametrize("form", ["response", "lines", "json-events"])
@pytest.mark.parametrize(
    "middleware",
    ["", "/passing", "/compressing", "/passing-compressing", "/compressing-passing"],
)
@pytest.mark.parametrize("web_server", ["hypercorn", "granian"])
def test_a_response_that_fails_is_visibly_cut_on_other_servers_than_uvicorn(
    server, web_server, middleware, form
):
    """On uvicorn it is, too: see the tests of Starlette's responses."""
    port = server("starlette", web_server)
    with Gate() as gate, socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
        request = f"GET {middleware}/{form}?gate={gate.port}&size=1 HTTP/1.1"
        headers = "Host: localhost\r\nConnection: close\r\nAccept-Encoding: gzip"
        client.sendall(f"{request}\r\n{headers}\r\n\r\n".encode())
        gate.let_through(1)
        assert gate.next_line() == "step 2"
        gate.close()
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200")
    assert b"transfer-encoding: chunked" in received.lower()
    assert not received.endswith(b"0\r\n\r\n")  # as a complete body ends
