import contextlib
import functools
import json
from pathlib import Path

import httpx
import pytest

from batchstream.integrations.litserve._link.request_queue import OrderedRequests
from batchstream.integrations.litserve._server import setup, watch
from support import stepwise
from support.serving import Call, Gate, free_port, running

API = Path(stepwise.__file__).with_name("litserve_api.py")

PLAIN = {"stock": False, "zmq": False, "middleware": False, "http": "httptools"}
OURS = {
    "mp": PLAIN,
    "zmq": PLAIN | {"zmq": True},
    # What else is between a response and its client: Starlette's base class of most middleware,
    # which passes responses on through a stream of its own, and uvicorn's other implementation.
    "middleware": PLAIN | {"middleware": True, "http": "h11"},
}
STOCK = {"stock": PLAIN | {"stock": True}}

SIZES = {"/three": 3, "/one": 1}
IDLE = {"tag": "idle", "plan": []}


class Server:
    """A running server, and the clients of a test."""

    def __init__(self, url, log_path):
        self._log_path = log_path
        limits = httpx.Limits(max_connections=20)
        self.client = httpx.Client(base_url=url, timeout=60, limits=limits)

    def log(self):
        return self._log_path.read_text(errors="replace")

    def call(self, *requests, path="/three"):
        """Send requests that make a batch, with idle ones in the places that are left."""
        idle = [IDLE] * (SIZES[path] - len(requests))
        return call_together(self.client, path, [*requests, *idle])


@pytest.fixture
def no_process(monkeypatch):
    """Let an endpoint be set up without another process, and without signal handlers."""
    monkeypatch.setattr(setup, "install_signal_handlers", lambda *_: None)
    monkeypatch.setattr(setup, "start_queue", OrderedRequests)


@pytest.fixture
def drains():
    """What draining calls when it is over, and the process serves again after the test."""
    drained = []
    yield drained
    watch.begin_anew()


@contextlib.contextmanager
def serve(options, folder):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log_path = folder / "log"
    command = [str(API), json.dumps(options | {"port": port})]
    with running(command, url, log_path):
        server = Server(url, log_path)
        if options["zmq"]:
            wait_for_subscribers(url)
        with server.client:
            yield server


def wait_for_subscribers(url):
    """Ask until there is an answer: ZMQ drops what is published before the subscriber is known."""
    with httpx.Client(base_url=url, timeout=2) as client:
        for path, size in SIZES.items():
            while any(call.wait().error for call in call_together(client, path, [IDLE] * size)):
                pass


def call_together(client, path, requests):
    return [Call(client, path, request) for request in requests]


@contextlib.contextmanager
def started_when_asked_for(start):
    """Give a function that enters what `start` returns for a name, when first called with that."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda name: stack.enter_context(start(name)))


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Return the server of a name."""

    def start(name):
        return serve(OURS[name], tmp_path_factory.mktemp(name))

    with started_when_asked_for(start) as servers:
        yield servers


# For one file: an idle worker of LitServe's own batched loop takes a whole processor.
@pytest.fixture(scope="module")
def stock_servers(tmp_path_factory):
    """Return the server of a name, with LitServe's own loop."""

    def start(name):
        return serve(STOCK[name], tmp_path_factory.mktemp(name))

    with started_when_asked_for(start) as servers:
        yield servers


@pytest.fixture(params=OURS)
def server(servers, request):
    return servers(request.param)


# Rules that LitServe's own loop breaks: a test of them must fail on it, or it proves nothing.
@pytest.fixture(params=[*OURS, pytest.param("stock", marks=pytest.mark.xfail(strict=True))])
def any_server(servers, stock_servers, request):
    return (stock_servers if request.param in STOCK else servers)(request.param)


@pytest.fixture
def stock_server(stock_servers):
    return stock_servers("stock")


@pytest.fixture
def doomed_stock_server(tmp_path):
    """One that the test will bring down."""
    with serve(STOCK["stock"], tmp_path) as server:
        yield server


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


# ---- servers whose models a test leads step by step

APIS = ["predict", "encode", "continuous"]
STEPWISE = {
    "one worker": {"apis": [*APIS, "narrow", "prompt", "single", "single_encode"]},
    "two workers on zmq": {"apis": APIS, "workers": 2, "zmq": True},
    "two workers, two servers, middleware": {
        "apis": APIS,
        "workers": 2,
        "servers": 2,
        "middleware": True,
    },
    "operated": {"apis": ["operated", "operated_single"], "workers": 2, "servers": 2},
}
STOCK_STEPWISE = {"stock": {"apis": ["stock"]}}


@pytest.fixture(scope="session")
def stepwise_servers(tmp_path_factory):
    """Return the server of a name."""

    def start(name):
        return stepwise.serve(tmp_path_factory.mktemp("stepwise"), **STEPWISE[name])

    with started_when_asked_for(start) as servers:
        yield servers


@pytest.fixture(scope="module")
def stock_stepwise_servers(tmp_path_factory):
    """Return the server of a name, with LitServe's own loop; for one file, as `stock_servers`."""

    def start(name):
        return stepwise.serve(tmp_path_factory.mktemp("stepwise"), **STOCK_STEPWISE[name])

    with started_when_asked_for(start) as servers:
        yield servers


@pytest.fixture(params=[name for name in STEPWISE if name != "operated"])
def guests(stepwise_servers, request):
    with stepwise.guests_of(stepwise_servers(request.param)) as guests:
        yield guests


@pytest.fixture
def guests_of_one_worker(stepwise_servers):
    with stepwise.guests_of(stepwise_servers("one worker")) as guests:
        yield guests


@pytest.fixture
def operated_guests(stepwise_servers):
    with stepwise.guests_of(stepwise_servers("operated")) as guests:
        yield guests


@pytest.fixture
def stock_guests(stock_stepwise_servers):
    with stepwise.guests_of(stock_stepwise_servers("stock")) as guests:
        yield guests
