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
    "starlette": ["body", "block", "generator", "events", "response"],
    "django": ["body", "block", "generator", "bare"],
    "litestar": ["body", "block", "generator", "response"],
    "quart": ["body", "block", "generator"],
    "aiohttp": ["body", "block"],
    "blacksheep": ["mounted"],
    "asgi": ["response"],
}
"""In which forms each framework is given a stream; see `support/body_server.py`."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return what starts the server of a framework once, and returns its port."""
    with contextlib.ExitStack() as servers:

        @functools.cache
        def port_of(framework):
            port = free_port()
            log = tmp_path_factory.mktemp("server") / "log"
            command = [str(PROGRAM), framework, str(port)]
            servers.enter_context(running(command, f"http://127.0.0.1:{port}", log))
            return port

        yield port_of


def read_until(connection, text):
    received = b""
    while text not in received:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk


def wait_until_none_is_live(port):
    """Ask the server until it has noticed that the client has left."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        while client.get("/live").text != "0":
            pass


@pytest.mark.rule(13, 25)
@pytest.mark.parametrize("size", [1, 2_000_000], ids=["reads", "does not read"])
@pytest.mark.parametrize(
    ("framework", "form"), [(name, form) for name, forms in FORMS.items() for form in forms]
)
def test_a_client_that_leaves_frees_its_slot_at_once(server, framework, form, size):
    """Also one whose response is stuck in a write, as that client reads nothing."""
    port = server(framework)
    with Gate() as gate:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
            request = f"GET /{form}?gate={gate.port}&size={size} HTTP/1.1"
            client.sendall(f"{request}\r\nHost: localhost\r\n\r\n".encode())
            gate.let_through(1)
            read_until(client, b"output")
            assert gate.next_line() == "step 2"
        wait_until_none_is_live(port)
        gate.go_on()
        assert gate.next_line() == "closed", "the model made a third step"
