"""The programs of examples/migrations: what clients get is the same before and after.

The programs of Ray and of LitServe are tested beside their integrations.
"""

import asyncio
import contextlib
import importlib.util
import json
import queue
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import httpx
import pytest
import show_migrations
import uvicorn
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from batchstream import AsyncStream
from support.serving import SECONDS

PROGRAMS = Path(__file__).parents[3] / "examples" / "migrations"


def load(name):
    spec = importlib.util.spec_from_file_location(name, PROGRAMS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # for pydantic
    spec.loader.exec_module(module)
    return module


def at_once(function, requests):
    """Call a function for each request in a thread of its own; return the results."""
    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(function, requests, timeout=SECONDS))


def test_the_page_shows_what_changes():
    page = show_migrations.PAGE.read_text()
    names = {path.stem.rpartition("_")[0] for path in PROGRAMS.glob("*.py")}
    assert {match["name"] for match in show_migrations.BLOCK.finditer(page)} == names
    assert show_migrations.with_differences(page) == page


class Server(uvicorn.Server):
    """A server in a thread, which knows when a client has left, and when a response is over."""

    def __init__(self, app):
        super().__init__(
            uvicorn.Config(self.respond, interface="asgi3", lifespan="on", log_config=None)
        )
        self.app = app
        self.ready, self.left, self.over = (threading.Event() for _ in range(3))

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.ready.set()

    async def respond(self, scope, receive, send):
        async def noted():
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
            return message

        await self.app(scope, noted, send)
        if scope["type"] == "http":
            self.over.set()


@contextlib.contextmanager
def served(app):
    """Serve an application, and return the server and a client."""
    server = Server(app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            assert server.ready.wait(SECONDS)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=SECONDS) as client:
                yield server, client
        finally:
            server.should_exit = server.force_exit = True
            thread.join(SECONDS)
    assert not thread.is_alive()


# ---- a queue per request


class Letters:
    """Stands in the place of `forward`, and notes which letters the model makes for which words.

    The letter before `stop_at` is the last that it makes before `go_on` is set, and at `fail_at` it
    raises.
    """

    def __init__(self, module, monkeypatch, stop_at=None, fail_at=None):
        self.forward, self.stop_at, self.fail_at = module.forward, stop_at, fail_at
        self.stopped, self.go_on, self.made = threading.Event(), threading.Event(), []
        monkeypatch.setattr(module, "forward", self)

    def __call__(self, words, step):
        if step == self.stop_at and not self.go_on.is_set():
            self.stopped.set()
            assert self.go_on.wait(SECONDS)
        if step == self.fail_at:
            raise OSError("device lost")
        self.made += [(word, step) for word in words]
        return self.forward(words, step)


QUEUES = ["queue_before", "queue_after"]


@pytest.mark.parametrize("name", QUEUES)
def test_queue_clients_get_the_same_text(name):
    words = ["so", "it", "goes", "o" * 21]
    with served(load(name).app) as (_, client):
        responses = at_once(lambda word: client.get(f"/spell/{word}"), words)
    assert [(it.status_code, it.text) for it in responses] == [(200, word) for word in words]
    assert {it.headers["content-type"] for it in responses} == {"text/plain; charset=utf-8"}


def letters_for_a_client_that_leaves(module, monkeypatch):
    """Return which letters of a word the model makes whose client leaves after the first."""
    letters = Letters(module, monkeypatch, stop_at=1)
    with served(module.app) as (server, client):
        with client.stream("GET", "/spell/long") as response:
            text = response.iter_text()  # which would close the connection if it were dropped
            assert next(text) == "l"
            assert letters.stopped.wait(SECONDS)
        assert server.left.wait(SECONDS)
        if module.__name__ == "queue_after":  # before, the response waits for the next letter
            assert server.over.wait(SECONDS)
        letters.go_on.set()
        assert client.get("/spell/a").text == "a", "the next batch: the one before is over"
    assert [step for word, step in letters.made if word == "a"] == [0, 1]
    return [step for word, step in letters.made if word == "long"]


EACH = [0, 1, 2, 3, 4]  # step that it takes to spell `long`, up to None


def test_queue_before_the_model_makes_all_steps_for_a_client_that_has_left(monkeypatch):
    assert letters_for_a_client_that_leaves(load("queue_before"), monkeypatch) == EACH


@pytest.mark.rule(11)
def test_queue_after_the_model_is_closed_in_the_step_that_runs_when_its_client_leaves(monkeypatch):
    assert letters_for_a_client_that_leaves(load("queue_after"), monkeypatch) == [0, 1]


async def without_a_block(stream):
    async for letter in stream:
        yield letter


async def with_a_block(stream):
    async with stream:
        async for letter in stream:
            yield letter


@pytest.mark.rule(11)
@pytest.mark.parametrize(
    ("own", "made"),
    [(without_a_block, EACH), (with_a_block, [0, 1]), (AsyncStream.body, [0, 1])],
)
def test_queue_a_generator_of_ones_own_has_to_own_its_stream(own, made, monkeypatch):
    module, streams = load("queue_after"), []

    def response_of(stream):
        streams.append(stream)  # garbage collection does not help out
        return StreamingResponse(own(stream), media_type="text/plain")

    monkeypatch.setattr(module, "TextResponse", response_of)
    assert letters_for_a_client_that_leaves(module, monkeypatch) == made


def test_queue_before_all_clients_hang_if_the_model_raises(monkeypatch):
    module = load("queue_before")
    Letters(module, monkeypatch, fail_at=1)
    ended, queues = threading.Event(), []

    class Queue(queue.Queue):
        def __init__(self):
            super().__init__()
            queues.append(self)

    # For the queues of requests; the inbox is there already.
    monkeypatch.setattr(module, "queue", SimpleNamespace(Queue=Queue, Empty=queue.Empty))
    monkeypatch.setattr(threading, "excepthook", lambda _: ended.set())
    with (
        served(module.app) as (_, client),
        ThreadPoolExecutor(2) as threads,
        client.stream("GET", "/spell/long") as response,
    ):
        chunks = response.iter_text()
        assert next(chunks) == "l"
        following = threads.submit(next, chunks, "the end")
        assert ended.wait(SECONDS)
        later = threads.submit(client.get, "/spell/later")
        try:
            word, _ = module.inbox.get(timeout=SECONDS)
            assert word == "later", "no thread takes it from there"
            assert [outputs.empty() for outputs in queues] == [True, True]
            assert not following.done(), "the thread that would put its end there has ended"
        finally:
            for outputs in queues:
                outputs.put(None)
        assert following.result(SECONDS) == "the end"
        assert later.result(SECONDS).text == ""


def test_queue_before_what_a_client_does_not_read_fills_its_queue(monkeypatch):
    module = load("queue_before")
    many = 10_000
    letters, unread = Letters(module, monkeypatch, stop_at=many), queue.Queue()
    threading.Thread(target=module.work, daemon=True).start()
    module.inbox.put(("o" * many, unread))
    assert letters.stopped.wait(SECONDS)
    assert unread.qsize() == many
    letters.go_on.set()


@pytest.mark.rule(15)
def test_queue_after_a_client_gets_500_or_a_cut_if_the_model_raises(monkeypatch):
    module = load("queue_after")
    letters = Letters(module, monkeypatch, fail_at=0)
    with served(module.app) as (_, client):
        client.headers["connection"] = "close"  # uvicorn closes it after an error
        assert client.get("/spell/long").status_code == 500
        letters.fail_at = 1
        with client.stream("GET", "/spell/long") as response:
            assert response.status_code == 200
            chunks = response.iter_text()
            assert next(chunks) == "l"
            with pytest.raises(httpx.RemoteProtocolError):
                next(chunks)
        letters.fail_at = None
        assert client.get("/spell/long").text == "long"


# ---- TorchServe


@pytest.fixture
def responses(monkeypatch):
    """Put a stand-in in the place of TorchServe's function, and return what it has sent."""
    sent = []

    def send_intermediate_predict_response(ret, req_id_map, message, code, context=None):
        assert (list(req_id_map), code) == (list(range(len(ret))), 200)
        sent.append(list(ret))

    utils = ModuleType("ts.handler_utils.utils")
    utils.send_intermediate_predict_response = send_intermediate_predict_response
    for name in ("ts", "ts.handler_utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    return sent


def test_torchserve_clients_get_the_same_text(responses):
    words = ["so", "it", "goes", "o" * 21]  # the last is longer than a response may be
    handler = load("torchserve_before").Handler()
    context = SimpleNamespace(request_ids=dict(enumerate("abcd")))
    handler.initialize(context)
    last = handler.handle([{"body": word.encode()} for word in words], context)
    before = ["".join(pieces) for pieces in zip(*responses, last, strict=True)]
    with TestClient(load("torchserve_after").app) as client:
        after = at_once(lambda word: client.post("/predictions/speller", content=word).text, words)
    assert before == after == [word[:20] for word in words]


@pytest.mark.rule(7)
def test_torchserve_a_short_request_ends_with_its_last_output_and_not_with_the_batch(responses):
    handler = load("torchserve_before").Handler()
    context = SimpleNamespace(request_ids={0: "a", 1: "b"})
    handler.handle([{"body": b"a"}, {"body": b"bcd"}], context)
    assert [first for first, _ in responses] == ["a", "", ""], "it is answered three times"
    with load("torchserve_after").handle as handle:
        short, long = handle.stream("a"), handle.stream("bcd")
        assert list(short) == ["a"]
        assert list(long) == ["b", "c", "d"]
        assert handle.statistics().batches == 1


# ---- TGI


def post(client, request):
    """Return the events of a request."""
    with client.stream("POST", "/generate_stream", json=request) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data:") for line in lines)
    return [json.loads(line.removeprefix("data:")) for line in lines]


REQUESTS = [
    {"inputs": "a"},
    {"inputs": "abcd", "parameters": {"max_new_tokens": 3}},
    {"inputs": "abc", "parameters": {"max_new_tokens": 1}},
    {"inputs": "", "parameters": {"max_new_tokens": 5}},
]


def test_tgi_clients_get_the_same_events():
    answers = []
    for name in ("tgi_before", "tgi_after"):
        with TestClient(load(name).app) as client:
            answers.append(at_once(lambda request: post(client, request), REQUESTS))
    before, after = answers
    assert before == after
    assert [events[-1]["details"]["finish_reason"] for events in after] == [
        "eos_token",
        "eos_token",
        "length",
        "eos_token",
    ]


@pytest.mark.parametrize("name", ["tgi_before", "tgi_after"])
def test_tgi_a_request_for_no_token_is_a_bad_one(name):
    request = {"inputs": "a", "parameters": {"max_new_tokens": 0}}
    with TestClient(load(name).app) as client:
        assert client.post("/generate_stream", json=request).status_code == 422


@pytest.mark.rule(30)
def test_tgi_one_step_of_the_model_serves_all_requests(monkeypatch):
    module = load("tgi_after")
    begun, go_on, sizes = threading.Event(), threading.Event(), []
    forward = module.forward

    def gated(tokens):
        begun.set()
        assert go_on.wait(SECONDS)
        sizes.append(len(tokens))
        return forward(tokens)

    monkeypatch.setattr(module, "forward", gated)
    requests = [module.Request(inputs="a") for _ in range(4)]
    with module.batcher as batcher:
        first = batcher.stream(requests[0])
        assert begun.wait(SECONDS)
        others = [batcher.stream(request) for request in requests[1:]]
        go_on.set()
        assert [list(it) for it in (first, *others)] == [[2, 3, 4, 0]] * 4
    assert sizes == [1, 4, 4, 4, 3]


@pytest.mark.rule(30)
def test_tgi_before_the_model_is_called_for_each_request_alone(monkeypatch):
    module = load("tgi_before")
    sizes = []
    forward = module.forward

    def counted(token):
        sizes.append(1)
        return forward(token)

    monkeypatch.setattr(module, "forward", counted)
    with TestClient(module.app) as client:
        at_once(lambda request: post(client, request), [{"inputs": "a"}] * 4)
    assert sizes == [1] * 16, "four calls for each, as one step after another"


@pytest.mark.rule(11, 13)
def test_tgi_the_slot_of_a_client_that_leaves_is_free_after_the_step_that_runs(monkeypatch):
    module = load("tgi_after")
    gate, left, sizes = threading.Semaphore(1), threading.Event(), []
    forward = module.forward
    request = {"inputs": "abcd", "parameters": {"max_new_tokens": 1_000}}

    def gated(tokens):
        assert gate.acquire(timeout=SECONDS)
        sizes.append(len(tokens))
        return [token or 1 for token in forward(tokens)]  # its text has no end

    monkeypatch.setattr(module, "forward", gated)
    remove = module.Model.remove

    def noted(model, slot):
        remove(model, slot)
        left.set()

    monkeypatch.setattr(module.Model, "remove", noted)
    with served(module.app) as (server, client):
        with client.stream("POST", "/generate_stream", json=request) as response:
            lines = response.iter_lines()  # which would close the connection if it were dropped
            assert next(lines).startswith("data:")
        assert server.over.wait(SECONDS)
        gate.release()  # for the step that waits
        assert left.wait(SECONDS)
    assert sizes == [1, 1]
