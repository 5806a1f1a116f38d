"""Responses behind nginx as it comes: it buffers, speaks HTTP/1.0, and waits for a limited time.

The model waits until the client has what was sent before: an output that nginx held back would
never come. Nothing but addresses is configured, and `proxy_read_timeout` where a test must not wait
for its default of 60 seconds. `NGINX` may name a program that is not on the path.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest

from support import serving
from support.openai_client import asking, outs, serving_openai
from support.serving import SECONDS, Call, Gate, free_port, is_open, running, wait_until_ready

NGINX = shutil.which(os.environ.get("NGINX", "nginx"))
SUPPORT = Path(serving.__file__).parent

pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx; NGINX can name one")

READ_TIMEOUT = 2

CONFIGURATION = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{upstream}; {more} }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder, upstream, more=""):
    """Run nginx in front of a server for as long as the block lasts."""
    port = free_port()
    file = folder / "nginx.conf"
    text = CONFIGURATION.format(folder=folder, port=port, upstream=upstream, more=more)
    file.write_text(text)
    log = folder / "error.log"
    process = subprocess.Popen(  # noqa: S603
        [NGINX, "-e", str(log), "-p", str(folder), "-c", str(file)], start_new_session=True
    )
    try:
        wait_until_ready(process, partial(is_open, port), log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(SECONDS)


CONFIGURATIONS = {
    "as it comes": "",
    "impatient": f"proxy_read_timeout {READ_TIMEOUT}s;",
    "HTTP/1.1": "proxy_http_version 1.1;",
}


@contextlib.contextmanager
def in_front_of(port, tmp_path_factory):
    """Yield an address for each configuration."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(nginx(tmp_path_factory.mktemp("nginx"), port, more))
            for name, more in CONFIGURATIONS.items()
        }


@pytest.fixture(scope="module", params=["uvicorn", "uvicorn-h11"])
def starlette(tmp_path_factory, request):
    port = free_port()
    command = [str(SUPPORT / "body_server.py"), "starlette", request.param, str(port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        running(command, f"http://127.0.0.1:{port}", log),
        in_front_of(port, tmp_path_factory) as addresses,
    ):
        yield addresses


@pytest.fixture(scope="module")
def litserve(tmp_path_factory):
    folder = tmp_path_factory.mktemp("litserve")
    with serving_openai(SUPPORT / "litserve_openai_echo.py", folder) as service:
        port = httpx.URL(service.url).port
        with in_front_of(port, tmp_path_factory) as addresses:
            yield addresses


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


class Client:
    """Reads what a server sends to a request for a stream, piece by piece."""

    def __init__(self, address, form, gate):
        url = httpx.URL(address)
        self._socket = socket.create_connection((url.host, url.port), timeout=SECONDS)
        target = f"/{form}?gate={gate.port}&size=1"
        head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        self._socket.sendall(head.encode())
        self.received = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def read_until(self, text, times):
        while self.received.count(text) < times:
            piece = self._socket.recv(65536)
            assert piece, self.received
            self.received += piece

    def read_to_the_end(self):
        while piece := self._socket.recv(65536):
            self.received += piece
        return self.received


@pytest.mark.parametrize("form", ["lines", "json-events", "response"])
def test_outputs_come_one_by_one(starlette, gate, form):
    with Client(starlette["as it comes"], form, gate) as client:
        for step in range(1, 6):
            gate.let_through(step)
            client.read_until(b"output", step)


def test_events_of_openai_come_one_by_one(litserve, gate):
    request = asking(outs("one", "two", "three"), stream=True, gate=gate)
    with httpx.Client(base_url=litserve["as it comes"], timeout=SECONDS) as client:
        call = Call(client, "/planned/chat/completions", request)
        for step, text in enumerate([b'"one"', b'"two"', b'"three"']):
            gate.let_through(step)
            while text not in call.body:
                call.wait_for_chunk()
        gate.let_through(3)
        assert call.wait().body.endswith(b"data: [DONE]\n\n")


# ---- a long prompt


PINGS = {"pinged-lines": (b"\n1\r\n\n", 10), "pinged-json-events": (b": ping", 10)}
"""How each form pings, and how many pings last longer than nginx waits."""


@pytest.mark.parametrize("form", ["pinged-lines", "pinged-json-events"])
def test_pings_keep_a_long_prompt_from_being_cut(starlette, gate, form):
    ping, number = PINGS[form]
    with Client(starlette["impatient"], form, gate) as client:
        client.read_until(ping, number)
        gate.let_through(1)
        client.read_until(b"output", 1)
    assert client.received.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("form", ["lines", "json-events", "response"])
def test_without_pings_nginx_gives_a_long_prompt_up(starlette, gate, form):
    with Client(starlette["impatient"], form, gate) as client:
        assert client.read_to_the_end().startswith(b"HTTP/1.1 504")


def test_pings_keep_a_long_prompt_of_openai_from_being_cut(litserve, gate):
    request = asking(outs("one"), stream=True, gate=gate)
    with httpx.Client(base_url=litserve["impatient"], timeout=SECONDS) as client:
        call = Call(client, "/pinged/chat/completions", request)
        while call.body.count(b": ping") < 300:  # one in 0.01 s
            call.wait_for_chunk()
        gate.let_through(0)
        gate.let_through(1)
        assert call.wait().body.endswith(b"data: [DONE]\n\n")
    assert b'"one"' in call.body


# ---- a failure


def received_of_a_failure(address, form):
    """Return what a client gets of a model that fails in its second step."""
    with Gate() as gate, Client(address, form, gate) as client:
        gate.let_through(1)
        client.read_until(b"output", 1)
        assert gate.next_line() == "step 2"
        gate.close()
        return client.read_to_the_end()


@pytest.mark.parametrize("form", ["pinged-lines", "pinged-json-events"])
def test_the_word_for_an_error_reaches_the_client(starlette, form):
    """On h11 it is all that does: an older nginx speaks HTTP/1.0, where a cut is like an end."""
    assert b'"failed"' in received_of_a_failure(starlette["as it comes"], form)


@pytest.mark.parametrize("form", ["lines", "json-events", "response"])
def test_where_nginx_speaks_http_11_every_failure_is_a_cut(starlette, form):
    received = received_of_a_failure(starlette["HTTP/1.1"], form)
    assert b"transfer-encoding: chunked" in received.lower()
    assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
def test_a_failure_is_an_error_of_openais_client(litserve, stream):
    url = f"{litserve['as it comes']}/planned"
    request = asking([*outs("one"), ["fail", "plain", "no"]], stream=stream)
    with (
        openai.OpenAI(api_key="none", base_url=url, max_retries=0, timeout=SECONDS) as client,
        pytest.raises(openai.APIError, match="Internal server error"),
    ):
        list(client.chat.completions.create(**request))
