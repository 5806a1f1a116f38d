"""The recipes, used as a reader uses them: each block alone in a file, served and asked.

The top-level conftest.py runs the same blocks as they stand; here their servers get clients.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import re
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import grpc.aio
import httpx
import pytest
from django.conf import settings
from django.http import StreamingHttpResponse
from django.utils.functional import empty
from fastapi import FastAPI
from flask import Response
from litserve import LitAPI
from starlette.responses import StreamingResponse

import batchstream.integrations.litserve
import batchstream.integrations.prometheus
import batchstream.integrations.starlette
import batchstream.text
from batchstream import DynamicBatcher
from support.serving import SECONDS, free_port, is_open, running
from support.texts import BYTES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-do-i.md"
RECIPES = ROOT / "docs" / "recipes.md"
TWO_SCREENS = 90  # lines

SECTION = re.compile(
    r"^## (?P<name>.+?)\n.*?^```python\n(?P<block>.*?)^```$", re.MULTILINE | re.DOTALL
)
BLOCKS = {match["name"]: match["block"] for match in SECTION.finditer(RECIPES.read_text())}


def run(name):
    """Run the block of a section in a namespace of its own, and return that."""
    namespace = {"__name__": "recipe"}
    exec(compile(BLOCKS[name], name, "exec"), namespace)  # noqa: S102
    return namespace


# ---- the page


def test_the_page_has_two_screens_at_most():
    assert len(PAGE.read_text().splitlines()) <= TWO_SCREENS


def test_every_recipe_is_a_task_of_the_page():
    linked = set(re.findall(r"recipes\.md#([a-z-]+)", PAGE.read_text()))
    headings = re.findall(r"^## (.+)$", RECIPES.read_text(), re.MULTILINE)
    assert linked == {heading.lower().replace(" ", "-") for heading in headings}
    assert set(BLOCKS) == set(headings)


ROWS = re.findall(r"^\| .+ \| (.+) \| \[", PAGE.read_text(), re.MULTILINE)
LINES = [line for row in ROWS for line in re.findall(r"`([^`]+)`", row)]


class Chat(LitAPI):
    def predict(self, requests):
        yield requests


def test_every_task_of_the_page_has_a_line_that_is_run():
    table = PAGE.read_text().partition("\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert len(ROWS) == len(table.splitlines())
    assert all(re.search("`[^`]+`", row) for row in ROWS)


def names_of_transformers():
    """Return the names that lines on transformers use; skip the test if it is not there."""
    transformers = pytest.importorskip("batchstream.integrations.transformers")
    network, tokenizer = pytest.importorskip("support.tiny_models").tiny_text()
    return {**vars(transformers), "network": network, "tokenizer": tokenizer}


@pytest.fixture
def django_settings():
    """Settings of Django that end with the test: a page's program may have its own after it."""
    if settings.configured:
        yield
    else:
        settings.configure()
        yield
        settings._wrapped = empty


class Library:
    """One that calls back with each output, for all requests or for one."""

    def __call__(self, callback):
        callback(["a"])

    def submit(self, _, on_token, on_done):
        assert on_token("a") is True
        on_done()


class Socket:
    """A WebSocket that is open, and whose client says nothing."""

    async def receive(self):
        await asyncio.Event().wait()

    async def send_text(self, text):
        assert text in "so"

    async def close(self, code, reason):
        assert (code, reason) == (1000, "eos")


def model_of_words(requests):
    for n in range(max(map(len, requests)) + 1):
        yield [request[n] if n < len(request) else None for request in requests]


def names_of_the_page(batcher):
    """Return the names that the lines use, each with a thing that does what its name says."""
    return {
        **vars(batchstream),
        **vars(batchstream.integrations.starlette),
        "PrometheusMetrics": batchstream.integrations.prometheus.PrometheusMetrics,
        "app": FastAPI(),
        "BatchedStreamLoop": batchstream.integrations.litserve.BatchedStreamLoop,
        "TextDecoder": batchstream.text.TextDecoder,
        "tokenizer": BYTES,
        "model": model_of_words,
        "channel": batchstream.Channel(1),
        "library": Library(),
        "embed": lambda texts: [1] * len(texts),
        "batcher": batcher,
        "self": SimpleNamespace(batcher=batcher),
        "engine": SimpleNamespace(add=lambda slot, request: None, step=dict, remove=id),
        "Adapter": lambda: SimpleNamespace(add=lambda slot, request: None, step=dict, remove=id),
        "batch": lambda model: model,  # Ray is not in this environment
        "TransformersEngine": lambda _: None,  # not made before a request comes
        "Chat": Chat,
        "prompt": "so",
        "prompts": ["so", "it"],
        "text": "so",
        "step": ["a"],
        "stream": batcher.astream("so"),
        "socket": Socket(),
        "Response": Response,
        "StreamingHttpResponse": StreamingHttpResponse,
        "StreamingResponse": StreamingResponse,
    }


@pytest.mark.usefixtures("django_settings")
@pytest.mark.parametrize("line", dict.fromkeys(LINES))
def test_a_line_of_the_page_works(line):
    """With the names that the page gives it, in a function of an event loop."""
    of_transformers = {"stream_text", "BatchStreamer"}.intersection(re.findall(r"\w+", line))
    more = names_of_transformers() if of_transformers else {}

    async def main():
        async with DynamicBatcher(model_of_words, max_batch_size=8) as batcher:
            names = {**names_of_the_page(batcher), **more}
            if line.startswith("for "):  # it waits, so it has a thread of its own
                await asyncio.to_thread(exec, f"{line} pass", names)
            elif "batcher.stream(" in line:  # so does this
                response = await asyncio.to_thread(eval, line, names)
                assert await asyncio.to_thread(response.get_data) == b"so"
            else:
                await run_line(line, names)

    asyncio.run(main())


async def run_line(line, names):
    """Run a line in a function, as far as its first step if it yields."""
    block = f"{line} pass" if line.endswith(":") else line
    if is_expression(line):
        block = f"return {line}"
    exec(f"async def function():\n    {block}\n", names)  # noqa: S102
    called = names["function"]()
    if inspect.isasyncgen(called):
        await anext(called)
        await called.aclose()
        return
    value = await called
    if isinstance(value, StreamingHttpResponse):
        assert [part async for part in value] == [b"s", b"o"]
    elif isinstance(value, Response):
        assert await asyncio.to_thread(value.get_data) == b"so"


def is_expression(line):
    try:
        compile(line, line, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize("page", [PAGE, RECIPES], ids=lambda page: page.name)
def test_what_is_linked_to_on_a_page_is_a_heading_there(page):
    for name, anchor in re.findall(r"\]\(([a-z-]+\.md)#([a-z-]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.+)$", (page.parent / name).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^a-z -]", "", it.lower()).replace(" ", "-") for it in headings}
        assert anchor in anchors, f"{name}#{anchor}"


# ---- servers


@contextlib.contextmanager
def serving(name, tmp_path, command=("uvicorn", "recipe:app", "--port")):
    """Run the block as a file, as the page says, and give a client; the file is `recipe.py`."""
    (tmp_path / "recipe.py").write_text(BLOCKS[name])
    port = free_port()
    with (
        running(["-m", *command, str(port)], partial(is_open, port), tmp_path / "log"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client,
    ):
        yield client


def test_the_loop_of_pytorch_streams_through_fastapi(tmp_path):
    with serving("PyTorch loop and FastAPI", tmp_path) as client:
        assert client.get("/generate", params={"token": 1}).text == "it\ngoes\non\n"
        assert client.get("/generate", params={"token": 3}).text == "on\n"


def test_a_model_stops_when_its_client_leaves(tmp_path):
    log = tmp_path / "log"
    with serving("A client that leaves", tmp_path) as client:
        with client.stream("GET", "/count", params={"to": 1_000_000}) as response:
            lines = response.iter_lines()  # which would close the connection if it were dropped
            assert next(lines) == "1"
            assert "stopped" not in log.read_text()
        while "stopped" not in log.read_text():  # only the log says so
            time.sleep(0.01)


def test_the_loop_runs_on_tensors():
    pytest.importorskip("torch")
    generate = run("PyTorch loop and FastAPI")["generate"]
    with generate:
        assert list(generate.map([1, 3])) == [[2, 3, 4], [4]]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_recipe_runs_as_a_file_of_its_own(tmp_path, name):
    (tmp_path / "recipe.py").write_text(BLOCKS[name])
    done = subprocess.run(
        [sys.executable, "-W", "error", "recipe.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- batchers that keep their streams


class Keeping(DynamicBatcher):
    """Holds its streams: in a recipe that cancels none, Python frees no slot in its place."""

    kept = ()

    def astream(self, *args, **kwargs):
        stream = super().astream(*args, **kwargs)
        self.kept = (*self.kept, stream)
        return stream


# ---- a library that calls back


class Calls:
    """The library's side: the callbacks of a request, which the test calls."""

    def submit(self, _, on_token, on_done):
        self.on_token, self.on_done = on_token, on_done

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


async def read(stream):
    return "".join([text async for text in stream])


def test_a_callback_engine_is_served(tmp_path):
    with serving("A callback engine behind a server", tmp_path) as client:
        for prompt, reply in (("so it goes STOP and on", "so it goes "), ("日本 ST", "日本 ST")):
            assert client.get("/generate", params={"prompt": prompt}).text == reply


def test_a_callback_engine_is_told_to_stop():
    recipe = run("A callback engine behind a server")

    async def main():
        recipe["library"] = calls = Calls()
        stream = recipe["generate"]("", stop=["!"])
        assert [calls.on_token(token) for token in b"a!"] == [True, False]
        calls.on_done()
        assert await read(stream) == "a"
        stream = recipe["generate"]("")
        assert calls.on_token(97)
        stream.cancel()
        assert not calls.on_token(97)
        calls.on_done()

    asyncio.run(main())


def test_a_callback_engine_does_not_wait_for_a_slow_client():
    recipe = run("A callback engine behind a server")

    async def main():
        recipe["library"] = calls = Calls()
        stream = recipe["generate"]("")
        assert sum(calls.on_token(97) for _ in range(2000)) == 1000
        calls.on_done()
        with pytest.raises(batchstream.SlowConsumerError):
            await read(stream)

    asyncio.run(main())


@contextlib.contextmanager
def waiting_batcher():
    """Give a batcher whose model makes one step, and the second when all clients are gone."""
    go_on, closed = threading.Event(), threading.Event()

    def model(requests):
        try:
            yield ["x"]
            go_on.wait()  # without a limit: a wait that failed would free the slot, too
            yield ["x"]
            raise AssertionError("the model made a third step")
        finally:
            closed.set()

    with Keeping(model, max_batch_size=1) as batcher:
        try:
            yield batcher
            assert batcher.statistics().live == 0
        finally:
            go_on.set()
        assert closed.wait(SECONDS)


# ---- gRPC and Ray


def test_a_method_of_grpc_streams_and_frees_its_slot():
    recipe = run("gRPC")
    batcher = recipe["spell"]

    async def main():
        async with serving_grpc(recipe) as call:
            words = [b"so", b"it", b"goes"]
            replies = await asyncio.gather(*(read(call(word)) for word in words))
            assert replies == words
            await batcher.aclose()
            with waiting_batcher() as recipe["spell"]:
                cancelled = call(b"word")
                assert await cancelled.read() == b"x"
                cancelled.cancel()
                async with asyncio.timeout(SECONDS):
                    while recipe["spell"].statistics().live:  # noqa: ASYNC110 - gRPC is silent
                        await asyncio.sleep(0)

    async def read(call):
        return b"".join([output async for output in call])

    asyncio.run(main())


@contextlib.asynccontextmanager
async def serving_grpc(recipe):
    """Give the method of a server of gRPC."""
    server, port = await recipe["start"]("127.0.0.1:0")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel.unary_stream("/Speller/Spell")
    finally:
        await server.stop(None)


# ---- continuous batching


def test_a_request_joins_and_ends_while_another_one_goes_on():
    recipe = run("Continuous batching")
    steps = threading.Semaphore(0)

    class Counted(recipe["Speller"]):
        def step(self):
            assert steps.acquire(timeout=SECONDS)
            return super().step()

    with recipe["ContinuousBatcher"](Counted, max_batch_size=2) as batcher:
        long = batcher.stream("goes on")
        steps.release()
        assert next(long) == "g"
        short = batcher.stream("so")  # joins one step later: the engine waits in one already
        steps.release(4)
        assert "".join(short) == "so"
        assert long.finish_reason is None
        steps.release(3)
        assert "".join(long) == "oes on"
