"""Responses over streams, served by uvicorn in a thread and read by clients over the network."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import json
import logging
import math
import re
import socket
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio
import httpx
import numpy as np
import pytest
import requests
import trio
import uvicorn
from fastapi import BackgroundTasks, FastAPI
from pydantic import BaseModel
from sse_starlette import ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from batchstream import (
    EOS,
    SKIP,
    AsyncBatchedStream,
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    End,
    Fail,
    FinishReason,
    ForkedError,
    Last,
    Many,
    OverloadedError,
    RequestError,
    SlowConsumerError,
    demux,
)
from batchstream.integrations._http import CutError, keep_cuts_out_of_the_log
from batchstream.integrations.starlette import (
    EventsResponse,
    NDJSONResponse,
    TextResponse,
    exception_handlers,
)
from support import knobs
from support.serving import SECONDS, Call

RESPONSES = {"lines": NDJSONResponse, "text": TextResponse, "events": EventsResponse}
BIG = "x" * 16_000_000  # more than a socket holds whose client does not read
LITTLE = 4096


async def pass_on(request, call_next):
    return await call_next(request)


MIDDLEWARE = Middleware(BaseHTTPMiddleware, dispatch=pass_on)
COMPRESSION = Middleware(GZipMiddleware)
KINDS = {
    "httptools": ({"http": "httptools", "loop": "uvloop"}, []),
    "h11": ({"http": "h11", "loop": "asyncio"}, []),
    # It passes responses on through a stream of its own.
    "middleware": ({"http": "httptools", "loop": "asyncio"}, [MIDDLEWARE]),
}
SEVERAL = {
    "two middlewares": ({"http": "httptools", "loop": "asyncio"}, [MIDDLEWARE] * 2),
    "three middlewares": ({"http": "h11", "loop": "asyncio"}, [MIDDLEWARE] * 3),
    "compression outside": ({"http": "h11", "loop": "asyncio"}, [COMPRESSION, MIDDLEWARE]),
    "compression inside": ({"http": "h11", "loop": "asyncio"}, [MIDDLEWARE, COMPRESSION]),
    "compression inside two": (
        {"http": "httptools", "loop": "asyncio"},
        [MIDDLEWARE, MIDDLEWARE, COMPRESSION],
    ),
    "compression between": (
        {"http": "httptools", "loop": "asyncio"},
        [MIDDLEWARE, COMPRESSION, MIDDLEWARE],
    ),
}


class Exchange:
    """One path of a server, and what passed between its application and uvicorn."""

    def __init__(self, path, endpoint):
        self.path = path
        self.endpoint = endpoint
        self.begun = []  # the messages that the application wanted to send
        self.sent = []  # the messages that the server has accepted
        self.error = None
        self.over = False
        self._changed = threading.Condition()

    @property
    def bodies(self):
        return [message["body"] for message in self.sent if message.get("body")]

    @contextlib.contextmanager
    def changing(self):
        with self._changed:
            yield
            self._changed.notify_all()

    def wait_until(self, predicate):
        with self._changed:
            assert self._changed.wait_for(lambda: predicate(self), SECONDS), vars(self)

    def wait(self):
        self.wait_until(lambda exchange: exchange.over)
        return self

    async def serve(self, app, scope, receive, send):
        async def record(message):
            with self.changing():
                self.begun.append(message)
            await send(message)
            with self.changing():
                self.sent.append(message)

        try:
            await app(scope, receive, record)
        except BaseException as error:
            self.error = error
            raise
        finally:
            with self.changing():
                self.over = True


class Server(uvicorn.Server):
    """A server in a thread with a loop of its own, for an application whose paths tests add."""

    def __init__(self, kind="httptools", make_app=Starlette):
        options, middleware = (KINDS | SEVERAL)[kind]
        self.exchanges = {}
        methods = ["GET", "HEAD", "POST"]
        self.app = make_app(
            routes=[Route("/{number}", self._respond, methods=methods)], middleware=middleware
        )
        super().__init__(
            uvicorn.Config(
                self._record,
                interface="asgi3",
                lifespan="off",
                ws="none",
                log_config=None,
                **options,
            )
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.loop = None
        self.stopping = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(SECONDS)
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.address[1]}",
            timeout=SECONDS,
            # A connection that is cut after its response must not be used for another request.
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        return self

    def __exit__(self, *_):
        self.client.close()
        self.should_exit = self.force_exit = True
        self._thread.join(SECONDS)
        self._listener.close()
        assert not self._thread.is_alive()

    def _run(self):
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve(sockets=[self._listener]))

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self._ready.set()

    async def shutdown(self, sockets=None):
        self.stopping.set()
        await super().shutdown(sockets)

    async def _record(self, scope, receive, send):
        await self.exchanges[scope["path"]].serve(self.app, scope, receive, send)

    async def _respond(self, request):
        return await self.exchanges[request.url.path].endpoint(request)

    def add(self, endpoint):
        exchange = Exchange(f"/{len(self.exchanges)}", endpoint)
        self.exchanges[exchange.path] = exchange
        return exchange

    def respond(self, make_response):
        """Add a path whose response is made in the server's loop."""

        async def endpoint(request):
            return make_response()

        return self.add(endpoint)

    def call(self, exchange):
        return Call(self.client, exchange.path, None)

    def connect(self, exchange, method="GET", version="1.1"):
        """Send a request, and return the socket: its client reads only what the test receives."""
        client = socket.socket()
        client.settimeout(SECONDS)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
        client.connect(self.address)
        client.sendall(f"{method} {exchange.path} HTTP/{version}\r\nhost: test\r\n\r\n".encode())
        return client

    def call_in_loop(self, function):
        """Call a function in the server's loop."""

        async def call():
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(SECONDS)


class Model:
    """An asynchronous source whose steps the test gives it, and that says when it is closed."""

    def __init__(self, server, *steps):
        self._server = server
        self._steps = asyncio.Queue()
        self.asked = threading.Event()
        self.closed = threading.Event()
        for step in steps:
            self._steps.put_nowait(step)

    def give(self, *steps):
        for step in steps:
            self._server.loop.call_soon_threadsafe(self._steps.put_nowait, step)

    async def __call__(self):
        try:
            while True:
                self.asked.set()
                step = await self._steps.get()
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.closed.set()


@functools.cache
def started(stack, kind, make_app):
    return stack.enter_context(Server(kind, make_app))


@pytest.fixture(scope="module")
def start():
    with contextlib.ExitStack() as stack:
        yield functools.partial(started, stack)


@pytest.fixture(params=KINDS)
def server(start, request):
    return start(request.param, Starlette)


@pytest.fixture
def plain_server(start):
    return start("httptools", Starlette)


@pytest.fixture(params=RESPONSES)
def response_class(request):
    return RESPONSES[request.param]


def stream_of(model, size=1, **options):
    return demux(model(), size=size, **options)


def respond_with(server, model, response_class=NDJSONResponse, **options):
    """Add a path that responds with the only stream of a model.

    The exchange refers to the stream, so that it is only cancelled where the response does so.
    """

    def respond():
        (exchange.stream,) = stream_of(model)
        return response_class(exchange.stream, **options)

    exchange = server.respond(respond)
    exchange.stream = None
    return exchange


def reason_of(exchange):
    """Return why a response was cut, for a reason that the server cannot help."""
    assert type(exchange.wait().error) is CutError
    return exchange.error.__cause__


def is_cancelled(exchange):
    return exchange.stream.finish_reason is FinishReason.CANCELLED


def events(body):
    return [event.splitlines() for event in body.decode().split("\r\n\r\n") if event]


# ---- formats


def test_each_output_is_a_line_of_json(server):
    outputs = ["so", "zwei\nZeilen", "ü", {"tokens": [1, 2]}, 3.5, False]
    exchange = respond_with(server, Model(server, *([output] for output in outputs), [None]))
    response = server.client.get(exchange.path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in response.text.splitlines()] == outputs
    assert response.text.count("\n") == len(outputs)
    assert exchange.error is None


def test_an_encoder_makes_outputs_and_the_end_what_json_can_say(server):
    model = Model(server, [b"so"], [End(info={"tokens": 7})])
    exchange = respond_with(
        server,
        model,
        encode=lambda output: {"text": output.decode()},
        encode_end=lambda end: {"reason": end.reason, "outputs": end.outputs, **end.info},
    )
    lines = server.client.get(exchange.path).text.splitlines()
    assert lines == ['{"text":"so"}', '{"reason":"eos","outputs":1,"tokens":7}']


def test_text_runs_on(server):
    model = Model(server, ["so "], ["ünd "], [3], [None])
    exchange = respond_with(server, model, TextResponse, encode_end=lambda end: f" [{end.reason}]")
    response = server.client.get(exchange.path)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == "so ünd 3 [eos]"


def test_each_output_is_an_event(server):
    model = Model(server, ["so"], [None], [{"a": "\n"}], [EOS])
    exchange = server.respond(
        lambda: EventsResponse(
            stream_of(model, eos=EOS)[0],
            event="token",
            encode_end=lambda end: end.reason,
            end_event="end",
        )
    )
    response = server.client.get(exchange.path)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert events(response.content) == [
        ["event: token", 'data: "so"'],
        ["event: token", "data: null"],
        ["event: token", r'data: {"a":"\n"}'],
        ["event: end", 'data: "eos"'],
    ]


def test_an_encoder_may_make_events_of_its_own(server):
    exchange = respond_with(
        server,
        Model(server, ["so"], [None]),
        EventsResponse,
        encode=lambda output: ServerSentEvent(output, id="7", event="mine"),
        sep="\n",
    )
    body = server.client.get(exchange.path).content
    assert body == b"id: 7\r\nevent: mine\r\ndata: so\r\n\r\n"


def test_pings_go_on_between_events(server):
    model = Model(server, ["so"])
    exchange = respond_with(
        server,
        model,
        EventsResponse,
        ping=0.01,
        ping_message_factory=lambda: ServerSentEvent(comment="still here"),
    )
    call = server.call(exchange)
    while call.body.count(b": still here") < 2:
        call.wait_for_chunk()
    model.give(["it ends"], [None])
    call.wait()
    assert [lines for lines in events(call.body) if lines != [": still here"]] == [
        ['data: "so"'],
        ['data: "it ends"'],
    ]


def test_status_and_headers_are_sent(server, response_class):
    model = Model(server, ["so"], [None])
    exchange = respond_with(
        server, model, response_class, status_code=203, headers={"x-model": "tiny"}
    )
    response = server.client.get(exchange.path)
    assert response.status_code == 203
    assert response.headers["x-model"] == "tiny"


def test_headers_can_be_set_after_the_response_was_made(server, response_class):
    def respond():
        (stream,) = stream_of(Model(server, ["so"], [None]))
        response = response_class(stream)
        response.set_cookie("a", "b")
        response.headers["x-model"] = "tiny"
        response.status_code = 203
        return response

    response = server.client.get(server.respond(respond).path)
    assert response.status_code == 203
    assert response.headers["x-model"] == "tiny"
    assert response.cookies["a"] == "b"


def test_no_proxy_holds_a_response_back_and_no_cache_keeps_it(server, response_class):
    exchange = respond_with(server, Model(server, ["so"], [None]), response_class)
    headers = server.client.get(exchange.path).headers
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-store"


def test_what_proxies_are_told_can_be_set(plain_server, response_class):
    exchange = respond_with(
        plain_server,
        Model(plain_server, ["so"], [None]),
        response_class,
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "yes"},
    )
    headers = plain_server.client.get(exchange.path).headers
    assert headers.get_list("cache-control") == ["no-cache"]
    assert headers.get_list("x-accel-buffering") == ["yes"]


@pytest.mark.parametrize("response_class", [NDJSONResponse, EventsResponse])
def test_outputs_of_every_kind_are_sent_as_json(server, response_class):
    outputs = [
        np.float32(0.5),
        np.arange(3),
        Token(text="so", at=datetime(2026, 1, 2, tzinfo=UTC)),
        Score(np.int64(7), datetime(2026, 1, 2, tzinfo=UTC)),
    ]
    model = Model(server, *([output] for output in outputs), [None])
    exchange = respond_with(server, model, response_class)
    response = server.client.get(exchange.path)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert [json.loads(line) for line in lines] == [
        0.5,
        [0, 1, 2],
        {"text": "so", "at": "2026-01-02T00:00:00Z"},
        {"value": 7, "at": "2026-01-02T00:00:00+00:00"},
    ]


class Token(BaseModel):
    text: str
    at: datetime


@dataclass
class Score:
    value: object
    at: datetime


@pytest.mark.parametrize("response_class", [NDJSONResponse, EventsResponse])
def test_an_output_that_json_has_no_word_for_is_an_error_before_the_first_byte(
    server, response_class
):
    response, exchange = answer(server, object(), response_class)
    assert response.status_code == 500
    assert isinstance(exchange.error, TypeError)
    assert "object cannot be written as JSON: pass encode=" in str(exchange.error)


SEPARATED = ["two\u2028lines", "x\u2028null\u2029y", "next\x85line", "\x0b\x0c\x1c\x1d\x1e", "\r\n"]


@pytest.mark.parametrize("response_class", [NDJSONResponse, EventsResponse])
def test_no_output_can_pretend_to_be_several_lines(server, response_class):
    model = Model(server, *([output] for output in SEPARATED), [None])
    exchange = respond_with(server, model, response_class, encode_end=lambda end: "\u2028null")
    body = server.client.get(exchange.path).content
    lines = [line for line in body.decode().splitlines() if line and not line.startswith("event:")]
    outputs = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert outputs == [*SEPARATED, "\u2028null"]


@pytest.mark.parametrize("read", ["httpx", "requests"])
def test_the_lines_of_clients_are_the_outputs(plain_server, read):
    model = Model(plain_server, *([output] for output in SEPARATED), [None])
    exchange = respond_with(plain_server, model)
    if read == "httpx":
        with plain_server.client.stream("GET", exchange.path) as response:
            lines = list(response.iter_lines())
    else:
        url = f"{plain_server.client.base_url}{exchange.path}"
        with requests.get(url, stream=True, timeout=SECONDS) as response:
            response.encoding = "utf-8"
            lines = list(response.iter_lines(decode_unicode=True))
    assert [json.loads(line) for line in lines] == SEPARATED


def test_text_of_bytes_is_sent_as_it_is(server):
    model = Model(server, ["ü ".encode()], [bytearray(b"so")], [None])
    exchange = respond_with(server, model, TextResponse)
    assert server.client.get(exchange.path).text == "ü so"


def test_an_encoder_of_text_that_returns_none_is_told(server):
    response, exchange = answer(server, "so", TextResponse, encode=lambda output: None)
    assert response.status_code == 500
    assert "must return text, bytes or SKIP, got None" in str(exchange.error)


def test_an_encoder_may_leave_outputs_out(server, response_class):
    def encode(output):
        return SKIP if output == "out" else output

    model = Model(server, ["out"], ["so"], [Many(["out", "on", "out"])], ["out"], [None])
    exchange = respond_with(
        server, model, response_class, encode=encode, encode_end=lambda end: SKIP
    )
    body = server.client.get(exchange.path).content
    assert b"so" in body
    assert b"on" in body
    assert b"out" not in body
    assert exchange.error is None


def test_the_status_waits_for_an_output_that_is_not_left_out(server, response_class):
    model = Model(server, ["out"], [Fail(DeadlineError("too late", timeout=1.0))])
    exchange = respond_with(server, model, response_class, encode=lambda output: SKIP)
    assert server.client.get(exchange.path).status_code == 504


def test_one_write_holds_all_that_was_buffered(server, response_class):
    words = [f"word {n} " for n in range(10)]
    exchange = respond_with(server, Model(server, [Many(words)], [None]), response_class)
    body = server.client.get(exchange.path).content
    assert all(word.strip().encode() in body for word in words)
    assert exchange.bodies == [body]


def test_what_a_slow_write_lets_pile_up_goes_with_the_next(plain_server):
    server = plain_server
    model = Model(server, [BIG])
    exchange = respond_with(server, model, TextResponse)
    with server.connect(exchange) as client:
        # The first write fills the connection, the second waits for it, the rest piles up.
        exchange.wait_until(lambda exchange: len(exchange.sent) == 2)
        model.give(["second"])
        exchange.wait_until(lambda exchange: len(exchange.begun) == 3)
        model.give(["third "], ["fourth"], [None])
        assert model.closed.wait(SECONDS)
        while client.recv(1_000_000)[-5:] != b"0\r\n\r\n":
            pass
    assert exchange.bodies[1:] == [b"second", b"third fourth"]


def test_an_empty_stream_is_an_empty_body(server, response_class):
    exchange = respond_with(server, Model(server, [None]), response_class)
    response = server.client.get(exchange.path)
    assert response.status_code == 200
    assert response.content == b""
    assert exchange.error is None


def test_an_empty_stream_has_an_end_to_encode(server):
    exchange = respond_with(
        server, Model(server, [None]), encode_end=lambda end: [end.reason, end.outputs]
    )
    assert server.client.get(exchange.path).text == '["eos",0]\n'


def test_a_stream_may_have_been_read_from(server):
    model = Model(server, ["first"], ["second"], [None])

    async def endpoint(request):
        (stream,) = stream_of(model)
        assert await anext(stream) == "first"
        return NDJSONResponse(stream)

    assert server.client.get(server.add(endpoint).path).text == '"second"\n'


# ---- arguments


@pytest.mark.parametrize("response_class", RESPONSES.values())
def test_what_is_no_asynchronous_stream_is_refused(response_class):
    with pytest.raises(
        TypeError, match=r"stream must be an AsyncStream or another asynchronous iterator, got \[\]"
    ):
        response_class([])


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_a_send_timeout_that_is_no_time_is_refused(seconds):
    (stream,) = demux(aiter_of(["so"]), size=1)
    with pytest.raises(ValueError, match="send_timeout must be None or more than 0 seconds"):
        NDJSONResponse(stream, send_timeout=seconds)


async def aiter_of(*steps):
    for step in steps:
        yield step


# ---- errors before the first output


def test_nothing_is_sent_before_the_first_output(server, response_class):
    model = Model(server)
    exchange = respond_with(server, model, response_class)
    call = server.call(exchange)
    assert model.asked.wait(SECONDS)
    assert exchange.begun == []
    model.give(["so"], [None])
    assert call.wait().status == 200


def answer(server, first, response_class=NDJSONResponse, **options):
    exchange = respond_with(server, Model(server, [first]), response_class, **options)
    response = server.client.get(exchange.path)
    exchange.wait()
    return response, exchange


def test_a_deadline_missed_before_the_first_output_is_504(server, response_class):
    error = DeadlineError("too late", timeout=1.0)
    response, exchange = answer(server, Fail(error), response_class)
    assert response.status_code == 504
    assert response.json() == {"detail": "Gateway Timeout"}
    assert exchange.error is None


class TooLongError(RequestError):
    """A user's own."""


def test_a_request_that_is_rejected_before_the_first_output_is_422(server, response_class):
    response, exchange = answer(server, Fail(TooLongError("no more than 3 words")), response_class)
    assert response.status_code == 422
    assert response.json() == {"detail": "no more than 3 words"}
    assert exchange.error is None


def test_a_batch_closed_before_the_first_output_is_503(server, response_class):
    response, exchange = answer(server, Fail(ClosedError("closed")), response_class)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert exchange.error is None


def test_a_stream_that_others_cancel_before_the_first_output_is_503(server, response_class):
    model = Model(server)
    exchange = respond_with(server, model, response_class)
    call = server.call(exchange)
    assert model.asked.wait(SECONDS)
    exchange.stream.cancel()
    assert call.wait().status == 503


def test_any_other_error_before_the_first_output_is_raised(server, response_class):
    response, exchange = answer(server, Fail(KeyError("broken")), response_class)
    assert response.status_code == 500
    assert isinstance(exchange.error, KeyError)


def test_what_json_cannot_say_is_an_error_before_the_first_output(server):
    response, exchange = answer(server, math.nan)
    assert response.status_code == 500
    assert isinstance(exchange.error, ValueError)


@pytest.mark.rule(17)
@pytest.mark.parametrize("stop", [StopIteration, StopAsyncIteration])
def test_an_encoder_that_raises_stop_iteration_ends_nothing(server, response_class, stop):
    def encode(output):
        if output == "bad":
            raise stop
        return output

    response, exchange = answer(server, "bad", response_class, encode=encode)
    assert response.status_code == 500
    model = Model(server, ["good"])
    exchange = respond_with(server, model, response_class, encode=encode)
    call = server.call(exchange)
    assert b"good" in call.wait_for_chunk()
    model.give(["bad"])
    call.wait()
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert isinstance(exchange.wait().error, RuntimeError)


def test_an_application_answers_to_errors_as_it_likes():
    async def teapot(request, error):
        return PlainTextResponse(str(error), 418)

    def make_app(**options):
        return Starlette(exception_handlers={DeadlineError: teapot}, **options)

    with Server(make_app=make_app) as server:
        response, _ = answer(server, Fail(DeadlineError("too late", timeout=1.0)))
        assert (response.status_code, response.text) == (418, "too late")
        response, _ = answer(server, Fail(ClosedError("closed")))
        assert response.status_code == 503


def test_an_error_that_was_raised_elsewhere_is_no_end(server):
    async def endpoint(request):
        (stream,) = stream_of(Model(server, [Fail(KeyError("broken"))]))
        with pytest.raises(KeyError):
            await anext(stream)
        return NDJSONResponse(stream)

    assert server.client.get(server.add(endpoint).path).status_code == 503


# ---- errors after the first output


@pytest.mark.rule(5)
def test_an_error_in_mid_stream_cuts_the_connection(server, response_class):
    model = Model(server, ["so"])
    exchange = respond_with(server, model, response_class)
    call = server.call(exchange)
    assert b"so" in call.wait_for_chunk()
    model.give(["far"], [Fail(KeyError("broken"))])
    call.wait()
    assert call.status == 200
    assert b"far" in call.body
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert isinstance(exchange.wait().error, KeyError)


@pytest.mark.rule(5)
@pytest.mark.parametrize("kind", SEVERAL)
def test_the_cut_is_visible_behind_several_middlewares(start, kind, response_class):
    server = start(kind, Starlette)
    model = Model(server, ["so"])
    call = server.call(respond_with(server, model, response_class))
    call.wait_for_chunk()  # compressed, perhaps
    model.give([Fail(KeyError("broken"))])
    assert isinstance(call.wait().error, httpx.RemoteProtocolError)


@pytest.mark.parametrize("outside", [MIDDLEWARE, COMPRESSION], ids=["passing", "compressing"])
@pytest.mark.parametrize("inside", [MIDDLEWARE, COMPRESSION], ids=["passing", "compressing"])
def test_the_cut_is_visible_where_the_server_asks_no_chunk_for_its_length(
    outside, inside, response_class
):
    """As some servers do; like all of them, this one refuses what may not follow a chunk."""
    messages = []
    errors = []

    async def send(message):
        if messages and message["type"] != "http.response.body":
            raise RuntimeError(f"a {message['type']} in the midst of a body")
        messages.append(message)

    async def model():
        yield ["so"]
        raise KeyError("broken")

    async def receive():
        await asyncio.sleep(math.inf)

    async def respond(request):
        (stream,) = demux(model(), size=1)
        return response_class(stream)

    async def serve():
        app = Starlette(routes=[Route("/", respond)], middleware=[outside, inside])
        headers = [(b"accept-encoding", b"gzip")]
        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
        try:
            await app({**scope, "query_string": b""}, receive, send)
        except Exception as error:  # noqa: BLE001 - which, depends on the middleware
            errors.append(error)

    asyncio.run(serve())
    assert len(messages) > 1
    assert all(message.get("more_body", True) for message in messages)
    assert len(errors) == 1


def test_a_stream_that_others_cancel_in_mid_stream_cuts_the_connection(server, response_class):
    exchange = respond_with(server, Model(server, ["so"]), response_class)
    call = server.call(exchange)
    assert b"so" in call.wait_for_chunk()
    exchange.stream.cancel()
    assert isinstance(call.wait().error, httpx.RemoteProtocolError)
    assert isinstance(reason_of(exchange), ClosedError)
    assert "had ended with 'cancelled' after 1 outputs" in str(reason_of(exchange))


def test_an_encoder_that_fails_in_mid_stream_cuts_the_connection_and_cancels(server):
    model = Model(server, [1.0])
    exchange = respond_with(server, model)
    call = server.call(exchange)
    assert call.wait_for_chunk() == b"1.0\n"
    model.give([math.nan])
    assert isinstance(call.wait().error, httpx.RemoteProtocolError)
    assert model.closed.wait(SECONDS)
    assert is_cancelled(exchange)


def test_an_encoder_of_the_end_that_fails_cuts_the_connection(server, response_class):
    exchange = respond_with(
        server, Model(server, ["so"], [None]), response_class, encode_end=lambda end: 1 / 0
    )
    call = server.call(exchange).wait()
    assert b"so" in call.body
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert isinstance(exchange.wait().error, ZeroDivisionError)


def test_an_error_that_has_a_handler_still_cuts_the_connection_in_mid_stream():
    def make_app(**options):
        return Starlette(exception_handlers=exception_handlers, **options)

    with Server(make_app=make_app) as server:
        model = Model(server, ["so"], [Fail(DeadlineError("too late", timeout=1.0))])
        call = server.call(respond_with(server, model)).wait()
    assert call.body == b'"so"\n'
    assert isinstance(call.error, httpx.RemoteProtocolError)


@pytest.mark.parametrize(
    "error", [DeadlineError("late", timeout=1.0), ClosedError("closed"), RequestError("no")]
)
@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE], [MIDDLEWARE, COMPRESSION]])
def test_a_cut_that_the_server_cannot_help_is_one_line_in_the_log(
    response_class, error, middleware, caplog
):
    app = Starlette(
        routes=[failing_route(error, response_class)],
        exception_handlers=exception_handlers,
        middleware=middleware,
    )
    assert cuts_in_log(app, caplog) == [f"a response was cut: {type(error).__name__}: {error}"]
    [record] = [record for record in caplog.records if record.name == "batchstream"]
    assert (record.kind, record.reason) == ("cut", type(error).__name__)


async def respond_to(request, error):
    raise AssertionError("called although the response has started")


@pytest.mark.parametrize(
    ("error", "handlers"),
    [
        (LookupError("none"), {LookupError: respond_to}),
        (KeyError("none"), {LookupError: respond_to}),
        (HTTPException(418, "teapot"), {}),
        (HTTPException(418, "teapot"), {418: respond_to}),
        (SlowConsumerError("slow", slot=0, max_buffered=1), {}),
    ],
)
def test_a_cut_by_an_error_that_the_application_knows_is_one_line_in_the_log(
    error, handlers, caplog
):
    app = Starlette(routes=[failing_route(error)], exception_handlers=handlers)
    assert cuts_in_log(app, caplog) == [f"a response was cut: {type(error).__name__}: {error}"]


def test_any_other_cut_is_logged_with_its_traceback(caplog):
    app = Starlette(routes=[failing_route(KeyError("no"))], exception_handlers=exception_handlers)
    [line] = cuts_in_log(app, caplog)
    assert "Exception in ASGI application" in line
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [type(error) for error in logged] == [KeyError]


def failing_route(error, response_class=NDJSONResponse):
    async def respond(_):
        (stream,) = demux(aiter_of(["so"], [Fail(error)]), size=1)
        return response_class(stream)

    return Route("/0", respond, methods=["POST"])


class CutErrorOfUser(Exception):
    pass


CutErrorOfUser.__name__ = "CutError"


@pytest.mark.parametrize("server", ["uvicorn.error", "_granian.utils"])
def test_an_error_that_is_raised_from_a_cut_is_logged_and_so_is_another_of_that_name(
    server, caplog
):
    keep_cuts_out_of_the_log()
    cut, failed, other = CutError(), RuntimeError("no commit"), CutErrorOfUser("of meat")
    failed.__cause__ = cut
    cut.__cause__ = failed  # a circle, which Python allows
    for error in (cut, failed, other):
        if server == "uvicorn.error":
            logging.getLogger(server).error("failed", exc_info=error)
        else:  # writes only the text
            logging.getLogger(server).error("failed\n%s: %s" % (type(error).__name__, error))  # noqa: G002, UP031
    seen = [record.exc_info[1] if record.exc_info else record.msg for record in caplog.records]
    if server == "uvicorn.error":
        assert seen == [failed, other]
    else:
        assert seen == ["failed\nRuntimeError: no commit", "failed\nCutError: of meat"]


def cuts_in_log(app, caplog):
    """Serve a response that is cut, and return what the server and the package log of it."""
    caplog.set_level("WARNING")
    with Server(make_app=lambda **_: app) as server:
        exchange = server.respond(None)
        call = server.call(exchange).wait()
        assert isinstance(call.error, httpx.RemoteProtocolError)
        exchange.wait()
    names = ("batchstream", "uvicorn.error")
    return [record.getMessage() for record in caplog.records if record.name in names]


def test_outputs_before_one_that_cannot_be_encoded_are_sent(server, response_class):
    def encode(output):
        if output == "bad":
            raise KeyError(output)
        return output

    model = Model(server, [Many(["good ", "better ", "bad", "unseen"])])
    exchange = respond_with(server, model, response_class, encode=encode)
    call = server.call(exchange).wait()
    assert b"good" in call.body
    assert b"better" in call.body
    assert b"bad" not in call.body
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert model.closed.wait(SECONDS)
    assert is_cancelled(exchange.wait())
    assert isinstance(exchange.error, KeyError)


def test_a_stream_is_cancelled_before_what_precedes_a_bad_output_is_written(response_class):
    def encode(output):
        return str(output) if output else 1 / 0

    async def main():
        (stream,) = demux(aiter_of([Many([1, 0])], [2]), size=1)
        client = Client(reads=False)
        response = response_class(stream, encode=encode, start_after=math.inf)
        task = asyncio.ensure_future(response(SCOPE, client.receive, client.send))
        await client.sent_to.wait()
        assert stream.finish_reason is FinishReason.CANCELLED
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), SECONDS))


# ---- a last word for an error


WORDS = {
    NDJSONResponse: b'{"error":"broken"}\n',
    TextResponse: b"[error: broken]",
    EventsResponse: b'event: error\r\ndata: {"error":"broken"}\r\n\r\n',
}


def word_of(response_class):
    if response_class is TextResponse:
        return lambda error: f"[error: {error.args[0]}]"
    return lambda error: {"error": error.args[0]}


def test_an_error_in_mid_stream_has_a_word_before_the_cut(server, response_class):
    model = Model(server, ["so"])
    exchange = respond_with(server, model, response_class, encode_error=word_of(response_class))
    call = server.call(exchange)
    assert b"so" in call.wait_for_chunk()
    model.give([Fail(KeyError("broken"))])
    call.wait()
    assert call.body.endswith(WORDS[response_class])
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert isinstance(exchange.wait().error, KeyError)


def test_the_word_for_a_deadline_precedes_a_cut_that_is_not_raised(server, response_class):
    model = Model(server, ["so"], [Fail(DeadlineError("broken", timeout=1.0))])
    exchange = respond_with(server, model, response_class, encode_error=word_of(response_class))
    call = server.call(exchange).wait()
    assert call.body.endswith(WORDS[response_class])
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert isinstance(reason_of(exchange), DeadlineError)


def test_an_output_that_cannot_be_encoded_has_a_word_too(server, response_class):
    def encode(output):
        if output == "bad":
            raise KeyError("broken")
        return output

    model = Model(server, [Many(["so", "bad"])])
    exchange = respond_with(
        server, model, response_class, encode=encode, encode_error=word_of(response_class)
    )
    call = server.call(exchange).wait()
    assert b"so" in call.body
    assert call.body.endswith(WORDS[response_class])


def test_an_error_before_the_status_has_no_word(server, response_class):
    words = []
    response, _ = answer(
        server, Fail(KeyError("broken")), response_class, encode_error=words.append
    )
    assert response.status_code == 500
    assert words == []


@pytest.mark.parametrize("word", [SKIP, 1 / 3], ids=["SKIP", "no text"])
def test_an_error_may_have_no_word(server, response_class, word):
    model = Model(server, ["so"], [Fail(KeyError("broken"))])

    def encode_error(error):
        return word if word is SKIP else 1 / 0

    exchange = respond_with(server, model, response_class, encode_error=encode_error)
    call = server.call(exchange).wait()
    assert b"error" not in call.body
    assert isinstance(call.error, httpx.RemoteProtocolError)
    expected = KeyError if word is SKIP else ZeroDivisionError
    assert isinstance(exchange.wait().error, expected)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (KeyError("secret"), "Internal Server Error"),
        (DeadlineError("secret", timeout=1.0), "Gateway Timeout"),
        (ClosedError("secret"), "Service Unavailable"),
        (HTTPException(418, "a teapot"), "a teapot"),
        (RequestError("no such word"), "no such word"),
    ],
)
def test_events_with_a_word_for_the_end_have_one_for_an_error(server, error, detail):
    model = Model(server, ["so"], [Fail(error)])
    exchange = respond_with(server, model, EventsResponse, encode_end=lambda end: end.reason)
    call = server.call(exchange).wait()
    assert events(call.body)[-1] == ["event: error", f'data: {{"detail":"{detail}"}}']
    assert b"secret" not in call.body
    assert isinstance(call.error, httpx.RemoteProtocolError)


def test_events_without_a_word_for_the_end_have_none_for_an_error(server):
    exchange = respond_with(
        server, Model(server, ["so"], [Fail(KeyError("broken"))]), EventsResponse
    )
    assert events(server.call(exchange).wait().body) == [['data: "so"']]


def test_a_client_of_http_10_is_told_of_an_error_by_a_word_alone(start, response_class):
    server = start("h11", Starlette)
    bodies = []
    for last in (None, Fail(KeyError("broken"))):
        model = Model(server, ["so"], [last])
        exchange = respond_with(server, model, response_class, encode_error=word_of(response_class))
        with server.connect(exchange, version="1.0") as client:
            received = b""
            while piece := client.recv(LITTLE):  # no error: the end of both looks the same
                received += piece
        bodies.append(received.partition(b"\r\n\r\n")[2])
    whole, failed = bodies
    assert failed == whole + WORDS[response_class]


# ---- a status before the first output


def test_the_status_can_be_sent_before_the_first_output(server, response_class):
    model = Model(server)
    exchange = respond_with(server, model, response_class, start_after=0)
    with server.client.stream("GET", exchange.path) as response:
        assert response.status_code == 200
        model.give(["so"], [None])
        assert b"so" in response.read()
    assert exchange.wait().error is None


@pytest.mark.parametrize("kind", SEVERAL)
def test_an_early_status_passes_through_several_middlewares(start, kind, response_class):
    if kind in {"compression outside", "compression between"} and response_class in UNPINGED:
        pytest.skip("a BaseHTTPMiddleware drops the empty chunk that a compressing one waits for")
    server = start(kind, Starlette)
    model = Model(server)
    exchange = respond_with(server, model, response_class, start_after=0)
    with server.client.stream("GET", exchange.path) as response:
        assert response.status_code == 200
        model.give(["so"], [None])
        assert b"so" in response.read()


UNPINGED = {NDJSONResponse, TextResponse}  # and events are not compressed


@pytest.mark.parametrize("error", [DeadlineError("broken", timeout=1.0), KeyError("broken")])
def test_an_error_behind_an_early_status_is_a_word_and_a_cut(server, response_class, error):
    model = Model(server)
    exchange = respond_with(
        server, model, response_class, start_after=0, encode_error=word_of(response_class)
    )
    call = server.call(exchange)
    exchange.wait_until(lambda exchange: exchange.sent)
    model.give([Fail(error)])
    call.wait()
    assert call.status == 200
    assert call.body == WORDS[response_class]
    assert isinstance(call.error, httpx.RemoteProtocolError)


def test_an_error_before_a_status_that_is_not_due_has_a_status_of_its_own(server, response_class):
    error = DeadlineError("too late", timeout=1.0)
    response, _ = answer(server, Fail(error), response_class, start_after=3600)
    assert response.status_code == 504


def test_an_output_before_a_status_is_due_begins_the_response(server, response_class):
    exchange = respond_with(server, Model(server, ["so"], [None]), response_class, start_after=3600)
    response = server.client.get(exchange.path)
    assert b"so" in response.content
    assert len([message for message in exchange.sent if "status" in message]) == 1


@pytest.mark.rule(13)
def test_a_client_that_leaves_behind_an_early_status_cancels_its_stream(server, response_class):
    model = Model(server)
    exchange = respond_with(server, model, response_class, start_after=0)
    with server.connect(exchange) as client:
        assert client.recv(LITTLE)
    assert model.closed.wait(SECONDS)
    assert is_cancelled(exchange.wait())
    assert exchange.error is None


@pytest.mark.parametrize("response_class", [NDJSONResponse, EventsResponse])
def test_a_ping_that_is_asked_for_comes_before_the_first_output(server, response_class):
    model = Model(server)
    exchange = respond_with(server, model, response_class, ping=0.01)
    call = server.call(exchange)
    while call.body.count(b"\n") < 4:
        call.wait_for_chunk()
    model.give(["so"], [None])
    call.wait()
    assert call.error is None
    sent = [line for line in call.body.splitlines() if line and not line.startswith(b": ping")]
    assert sent == [b'"so"' if response_class is NDJSONResponse else b'data: "so"']


def test_a_ping_that_fails_cuts_the_connection_and_cancels(server):
    def fail():
        raise KeyError("no ping")

    model = Model(server, ["so"])
    exchange = respond_with(server, model, EventsResponse, ping=0.01, ping_message_factory=fail)
    call = server.call(exchange).wait()
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert model.closed.wait(SECONDS)
    assert is_cancelled(exchange.wait())
    assert isinstance(exchange.error, KeyError)


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_a_time_of_the_status_that_is_none_is_refused(response_class, seconds):
    (stream,) = demux(aiter_of(["so"]), size=1)
    with pytest.raises(ValueError, match="start_after must be None or 0 seconds or more, got"):
        response_class(stream, start_after=seconds)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ping": "often"}, TypeError, "ping must be a number of seconds, got 'often'"),
        ({"ping": -1}, ValueError, "ping must be 0 seconds or more, got -1"),
        ({"ping": math.nan}, ValueError, "ping must be 0 seconds or more, got nan"),
        ({"sep": "x"}, ValueError, "sep must be one of .*, got 'x'"),
    ],
)
def test_options_of_events_that_make_no_sense_are_refused(options, error, message):
    (stream,) = demux(aiter_of(["so"]), size=1)
    with pytest.raises(error, match=message):
        EventsResponse(stream, **options)
    if "ping" in options:
        with pytest.raises(error, match=message):
            NDJSONResponse(stream, **options)


# ---- a shutdown


def test_a_response_goes_on_while_the_server_shuts_down(response_class, monkeypatch):
    with Server() as server:
        model = Model(server, ["so"])
        exchange = respond_with(server, model, response_class)
        call = server.call(exchange)
        assert b"so" in call.wait_for_chunk()
        # What a signal does; and sse-starlette's own response ends at once where it finds this.
        monkeypatch.setattr(AppStatus, "should_exit", True)
        server.should_exit = True
        assert server.stopping.wait(SECONDS)
        model.give(["it ends"], [None])
        call.wait()
    assert call.error is None
    assert b"it ends" in call.body
    assert exchange.error is None


def test_events_do_not_end_by_a_shutdown_of_another_server(plain_server, monkeypatch):
    monkeypatch.setattr(AppStatus, "should_exit", True)  # as sse-starlette leaves it behind
    exchange = respond_with(
        plain_server, Model(plain_server, ["so"], ["it ends"], [None]), EventsResponse
    )
    assert len(events(plain_server.client.get(exchange.path).content)) == 2


# ---- clients that leave


@pytest.mark.rule(13)
def test_a_client_that_leaves_before_the_first_output_cancels_its_stream(server, response_class):
    model = Model(server)
    exchange = respond_with(server, model, response_class)
    with server.connect(exchange):
        assert model.asked.wait(SECONDS)
    assert model.closed.wait(SECONDS)
    assert is_cancelled(exchange.wait())
    assert exchange.error is None


@pytest.mark.rule(13)
def test_a_client_that_leaves_in_mid_stream_cancels_its_stream(server, response_class):
    model = Model(server, ["so"])
    exchange = respond_with(server, model, response_class)
    with server.client.stream("GET", exchange.path) as response:
        assert b"so" in next(response.iter_raw())
    assert model.closed.wait(SECONDS)
    assert is_cancelled(exchange.wait())
    assert exchange.error is None


@pytest.mark.rule(13)
def test_a_client_that_leaves_while_a_write_is_stuck_cancels_its_stream(server, response_class):
    model = Model(server, [BIG])
    exchange = respond_with(server, model, response_class)
    with server.connect(exchange):
        exchange.wait_until(lambda exchange: len(exchange.sent) == 2)
        model.give(["more"])
        exchange.wait_until(lambda exchange: len(exchange.begun) == 3)
        assert not exchange.over
        assert exchange.stream.finish_reason is None
    assert model.closed.wait(SECONDS)
    assert is_cancelled(exchange.wait())


@pytest.mark.rule(11)
def test_a_client_that_leaves_does_not_disturb_the_others_of_its_batch(server):
    model = Model(server)
    streams = list(server.call_in_loop(lambda: stream_of(model, size=2)))
    leaving, staying = (server.respond(lambda: NDJSONResponse(streams.pop(0))) for _ in range(2))
    model.give(["seen", "so"])
    with server.client.stream("GET", leaving.path) as response:
        chunks = response.iter_raw()  # which would close the connection if it were dropped
        assert next(chunks) == b'"seen"\n'
        call = server.call(staying)
        assert call.wait_for_chunk() == b'"so"\n'
    leaving.wait()
    model.give([EOS, "on"], [EOS, None])
    assert call.wait().body == b'"so"\n"on"\n'


def test_starlette_alone_lets_the_stream_of_a_client_that_left_go_on(plain_server):
    """Why there are responses of our own: Starlette never closes an iterator that it dropped."""
    exchanges = {}
    for response_class in (StreamingResponse, TextResponse):
        model = Model(plain_server, ["so"])
        exchange = respond_with(plain_server, model, response_class)
        with plain_server.client.stream("GET", exchange.path) as response:
            assert next(response.iter_raw()) == b"so"
        exchange.wait()
        model.give(["unread"])
        exchanges[response_class] = exchange
    assert exchanges[StreamingResponse].stream.finish_reason is None
    assert is_cancelled(exchanges[TextResponse])
    exchanges[StreamingResponse].stream.cancel()


def test_a_head_request_gets_the_headers_and_cancels_its_stream(server, response_class):
    exchange = respond_with(server, Model(server), response_class, headers={"x-model": "tiny"})
    response = server.client.head(exchange.path)
    assert response.status_code == 200
    assert response.headers["x-model"] == "tiny"
    assert is_cancelled(exchange.wait())


# ---- clients that do not read


def endless(closed):
    async def source():
        try:
            while True:
                yield [BIG[:100_000]]
                await asyncio.sleep(0)
        finally:
            closed.set()

    return source


def read_to_the_end(client):
    """Return how a connection ends that was cut: without the last chunk."""
    tail = b""
    while chunk := client.recv(1_000_000):
        tail = (tail + chunk)[-5:]
    return tail


def stuck(server, response_class, closed, **options):
    def respond():
        batch = AsyncBatchedStream(endless(closed)(), 1, max_buffered=64, on_overflow="cancel")
        (exchange.stream,) = batch
        return response_class(exchange.stream, **options)

    exchange = server.respond(respond)
    return exchange


class WriteTimers:
    """Takes the place of `move_on_after`: the time of a write runs out when the test says so.

    Attributes:
        running: The scopes of the writes in progress.
        seconds: The time that each write was given.
    """

    def __init__(self):
        self.running = []
        self.seconds = []
        self._deadline = math.inf

    @contextlib.contextmanager
    def __call__(self, seconds):
        self.seconds.append(seconds)
        with anyio.CancelScope(deadline=self._deadline) as scope:
            self.running.append(scope)
            try:
                yield scope
            finally:
                self.running.remove(scope)

    def run_out(self):
        """Cancel the writes that wait, now and from now on."""
        self._deadline = -math.inf
        for scope in self.running:
            scope.cancel()


@pytest.fixture
def write_timers(monkeypatch):
    timers = WriteTimers()
    monkeypatch.setattr("batchstream.integrations._http.move_on_after", timers)
    return timers


@pytest.mark.rule(19)
def test_a_client_that_never_reads_loses_its_stream_and_its_response_ends_when_it_leaves(
    server, response_class
):
    closed = threading.Event()
    exchange = stuck(server, response_class, closed)
    with server.connect(exchange):
        assert closed.wait(SECONDS)
        assert isinstance(exchange.stream.end.error, SlowConsumerError)
        assert not exchange.over
    exchange.wait()


def test_a_client_that_reads_too_late_is_cut(server, response_class):
    closed = threading.Event()
    exchange = stuck(server, response_class, closed)
    with server.connect(exchange) as client:
        assert closed.wait(SECONDS)
        assert read_to_the_end(client) != b"0\r\n\r\n"
    assert isinstance(reason_of(exchange), SlowConsumerError)


def test_a_write_that_takes_too_long_cancels_the_stream_and_cuts_the_connection(
    server, response_class, write_timers
):
    model = Model(server, [BIG])
    exchange = respond_with(server, model, response_class, send_timeout=60.0)
    with server.connect(exchange) as client:
        # The first write fills the connection, so that the next has to wait.
        exchange.wait_until(lambda exchange: len(exchange.sent) == 2)
        server.call_in_loop(write_timers.run_out)
        model.give(["more"], ["and more"], ["and more"])
        assert model.closed.wait(SECONDS)
        assert is_cancelled(exchange)
        assert read_to_the_end(client) != b"0\r\n\r\n"
    assert isinstance(reason_of(exchange), TimeoutError)
    assert "send_timeout=60.0" in str(reason_of(exchange))
    assert set(write_timers.seconds) == {60.0}


def test_a_send_timeout_does_not_run_while_a_stream_has_no_output(
    plain_server, response_class, write_timers
):
    server = plain_server
    model = Model(server, ["so"])
    exchange = respond_with(server, model, response_class, send_timeout=60.0)
    call = server.call(exchange)
    call.wait_for_chunk()
    exchange.wait_until(lambda exchange: len(exchange.sent) == 2)
    assert server.call_in_loop(lambda: list(write_timers.running)) == []
    assert len(write_timers.seconds) == 2
    model.give(["on"], [None])
    call.wait()
    assert call.error is None
    assert b"on" in call.body


# ---- iterators around a stream


def respond_around(server, model, wrap, response_class=NDJSONResponse, **options):
    """Add a path whose response alone refers to the iterator around a stream of the model."""

    async def endpoint(request):
        return response_class(wrap(stream_of(model)[0]), **options)

    return server.add(endpoint)


async def in_capitals(stream):
    async for output in stream:
        yield output.upper()


@pytest.fixture
def no_collector():
    """Let nothing be freed that only the cyclic garbage collector would free."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_generator_around_a_stream_is_sent(server, response_class):
    model = Model(server, ["so"], ["on"], [None])

    def encode_end(end):
        return f"{end.reason} {end.outputs}"

    exchange = respond_around(
        server,
        model,
        in_capitals,
        response_class,
        encode=lambda text: text * 2,
        encode_end=encode_end,
    )
    body = server.client.get(exchange.path).text
    assert "SOSO" in body
    assert "ONON" in body
    assert "exhausted 2" in body
    assert exchange.error is None


@pytest.mark.rule(13, 25)
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "does not read"])
def test_a_client_that_leaves_closes_a_generator_and_cancels_its_stream(
    server, response_class, no_collector, reads
):
    model = Model(server, ["so" if reads else BIG])
    exchange = respond_around(server, model, in_capitals, response_class)
    with server.connect(exchange) as client:
        exchange.wait_until(lambda exchange: len(exchange.sent) == 2)
        if reads:
            assert client.recv(LITTLE)
        else:
            model.give(["more"])
            exchange.wait_until(lambda exchange: len(exchange.begun) == 3)
    assert model.closed.wait(SECONDS)
    assert exchange.wait().error is None


@pytest.mark.rule(25)
def test_a_generator_that_fails_lets_go_of_its_stream(server, response_class, no_collector):
    async def fail(stream):
        async for output in stream:
            yield output
            raise KeyError("broken")

    model = Model(server, ["so"])
    exchange = respond_around(server, model, fail, response_class)
    call = server.call(exchange).wait()
    assert b"so" in call.body
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert isinstance(exchange.wait().error, KeyError)
    assert model.closed.wait(SECONDS)  # although the error is kept


def test_a_generator_whose_output_is_being_written_cleans_up_where_it_ran(response_class):
    async def main():
        cleaned_up = asyncio.Event()
        context = contextvars.ContextVar("context")

        async def careful(stream):
            token = context.set("generator")
            try:
                async for output in stream:
                    yield output
            finally:
                await asyncio.sleep(0)  # raises here if the task is being cancelled
                context.reset(token)  # raises in another task
                cleaned_up.set()

        async def receive():
            await client.sent_to.wait()
            return {"type": "http.disconnect"}

        client = Client(reads=False)
        (stream,) = demux(aiter_of(["so"], ["on"]), size=1)
        await response_class(careful(stream))(SCOPE, receive, client.send)
        assert cleaned_up.is_set()

    asyncio.run(asyncio.wait_for(main(), SECONDS))


def test_what_a_generator_raises_before_its_first_output_has_a_status(server, response_class):
    error = DeadlineError("too late", timeout=1.0)
    exchange = respond_around(server, Model(server, [Fail(error)]), in_capitals, response_class)
    assert server.client.get(exchange.path).status_code == 504


def test_a_body_of_a_stream_can_be_wrapped_so_that_a_cancel_from_elsewhere_is_no_end(
    server, response_class
):
    async def endpoint(request):
        (exchange.stream,) = stream_of(model)
        return response_class(in_capitals(exchange.stream.body()))

    model = Model(server, ["so"])
    exchange = server.add(endpoint)
    call = server.call(exchange)
    assert b"SO" in call.wait_for_chunk()
    exchange.stream.cancel()
    assert isinstance(call.wait().error, httpx.RemoteProtocolError)
    assert isinstance(reason_of(exchange), ClosedError)


def test_a_head_request_closes_a_generator(server, response_class):
    model = Model(server)
    exchange = respond_around(server, model, in_capitals, response_class)
    assert server.client.head(exchange.path).status_code == 200
    exchange.wait()
    assert not model.asked.is_set()


def test_an_iterator_that_is_no_generator_is_sent(server, response_class):
    class Countdown:
        def __init__(self, stream):
            self.left = 2

        def __aiter__(self):
            return self

        async def __anext__(self):
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return str(self.left)

    exchange = respond_around(server, Model(server), Countdown, response_class)
    response = server.client.get(exchange.path)
    assert "".join(filter(str.isdigit, response.text)) == "10"


@pytest.mark.rule(20)
@pytest.mark.parametrize("skip", [False, True], ids=["sent", "left out"])
def test_an_iterator_that_never_waits_does_not_hold_the_loop(response_class, skip):
    async def main():
        stop = asyncio.Event()

        async def endless():
            asyncio.get_running_loop().call_soon(stop.set)
            for number in range(10_000):
                if stop.is_set():
                    return
                yield str(number)
            raise AssertionError("no other task has had a turn")

        client = Client()
        response = response_class(endless(), encode=lambda text: SKIP if skip else text)
        await response(SCOPE, client.receive, client.send)

    asyncio.run(asyncio.wait_for(main(), SECONDS))


# ---- background tasks


@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
def test_a_background_task_runs_after_the_response(server, response_class, leaves):
    seen = []

    async def record():
        await asyncio.sleep(0)  # raises here if the task is cancelled with the response
        seen.append(exchange.stream.finish_reason)

    model = Model(server, ["so"])
    exchange = respond_with(server, model, response_class, background=BackgroundTask(record))
    with server.client.stream("GET", exchange.path) as response:
        chunks = response.iter_raw()
        next(chunks)
        if not leaves:
            model.give([None])
            assert list(chunks) == []
    exchange.wait()
    assert seen == [FinishReason.CANCELLED if leaves else FinishReason.EOS]


def test_a_background_task_does_not_run_after_an_error(server, response_class):
    seen = []
    task = BackgroundTask(seen.append, 1)
    error = DeadlineError("too late", timeout=1.0)
    response, _ = answer(server, Fail(error), response_class, background=task)
    assert response.status_code == 504
    assert seen == []


# ---- FastAPI


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OverloadedError("full", pending=3, max_pending=3), 503),
        (ClosedError("closed"), 503),
        (DeadlineError("too late", timeout=1.0), 504),
        (TooLongError("too long"), 422),
    ],
)
def test_what_a_batcher_raises_in_an_endpoint_has_a_status(error, status):
    app = FastAPI(exception_handlers=exception_handlers)

    @app.get("/0")
    async def endpoint():
        raise error

    with Server(make_app=lambda **_: app) as server:
        server.respond(None)
        response = server.client.get("/0")
    assert response.status_code == status
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    assert "full" not in response.text


def test_a_request_that_costs_more_than_a_batch_may_is_422():
    def model(requests):
        yield requests

    batcher = DynamicBatcher(model, max_batch_size=2, cost=len, max_batch_cost=3)

    async def endpoint(request):
        return TextResponse(batcher.astream(request.query_params["text"]))

    app = Starlette(routes=[Route("/0", endpoint)], exception_handlers=exception_handlers)
    with batcher, Server(make_app=lambda **_: app) as server:
        server.respond(None)
        short, long = (server.client.get("/0", params={"text": it}) for it in ("abc", "abcd"))
    assert (short.status_code, short.text) == (200, "abc")
    says = "the request costs 4.0, more than a batch may cost: 3 (max_batch_cost)"
    assert (long.status_code, long.json()) == (422, {"detail": says})


@pytest.mark.rule(27)
@pytest.mark.parametrize("where", ["the endpoint", "the response"])
def test_what_a_fork_refuses_is_never_answered_as_overload(where):
    app = FastAPI(exception_handlers=exception_handlers)

    @app.get("/0")
    async def endpoint():
        if where == "the endpoint":
            raise ForkedError("forked")
        (stream,) = demux(aiter_of([Fail(ForkedError("forked"))]), size=1)
        return TextResponse(stream)

    with Server(make_app=lambda **_: app) as server:
        server.respond(None)
        response = server.client.get("/0")
    assert response.status_code == 500
    assert "retry-after" not in response.headers


def test_fastapi_sends_a_response_with_its_background_tasks():
    app = FastAPI(exception_handlers=exception_handlers)
    ended = []

    @app.get("/0")
    async def endpoint(background: BackgroundTasks):
        (stream,) = demux(aiter_of(["so"], [None]), size=1)
        background.add_task(lambda: ended.append(stream.finish_reason))
        return NDJSONResponse(stream)

    with Server(make_app=lambda **_: app) as server:
        exchange = server.respond(None)
        response = server.client.get("/0")
        exchange.wait()
    assert response.text == '"so"\n'
    assert ended == [FinishReason.EOS]


# ---- batchers


class Engine:
    """Counts for each request up to the number that it asks for, when the test lets it."""

    def __init__(self):
        self.rows = {}
        self.stepping = threading.Event()
        self.removed = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.output = int
        self.steps = 0  # that were begun
        self._begun = threading.Semaphore(0)

    def add(self, slot, request):
        self.rows[slot] = (request, 0)

    def wait_for_steps(self, number):
        """Wait until so many steps were begun; once for an engine."""
        for _ in range(number):
            assert self._begun.acquire(timeout=SECONDS)

    def step(self):
        self.steps += 1
        self._begun.release()
        self.stepping.set()
        assert self.gate.acquire(timeout=SECONDS)
        self.rows = {slot: (end, number + 1) for slot, (end, number) in self.rows.items()}
        return {
            slot: self.output(number) if number < end else Last(self.output(number))
            for slot, (end, number) in self.rows.items()
        }

    def remove(self, slot):
        del self.rows[slot]
        self.removed.release()

    def let_through(self, steps=1):
        self.gate.release(steps)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def batching(engine):
    """Return a function that starts a batcher, and a server which answers to its errors."""

    def make_app(**options):
        return Starlette(exception_handlers=exception_handlers, **options)

    with contextlib.ExitStack() as stack:

        def start(**options):
            batcher = stack.enter_context(ContinuousBatcher(engine, **options))
            stack.callback(engine.let_through, 100)  # or else a step would keep it from closing
            return batcher, stack.enter_context(Server(make_app=make_app))

        yield start


def submit(server, batcher, request, response_class=NDJSONResponse, *, timeout=None, overdue=False):
    """Send a request, and return its exchange and call once the batcher has it.

    With `overdue` its deadline has passed when its response begins.
    """
    submitted = threading.Event()

    def respond():
        try:
            exchange.stream = batcher.astream(request, timeout=3600.0 if overdue else timeout)
            if overdue:
                knobs.let_deadline_pass(exchange.stream)
        finally:
            submitted.set()
        return response_class(exchange.stream)

    exchange = server.respond(respond)
    call = server.call(exchange)
    assert submitted.wait(SECONDS)
    return exchange, call


@pytest.mark.rule(7)
def test_each_response_ends_at_its_own_end(batching, engine, response_class):
    batcher, server = batching(max_batch_size=2)
    _, short = submit(server, batcher, 2, response_class)
    assert engine.stepping.wait(SECONDS)  # in which the other cannot join any more
    _, long = submit(server, batcher, 4, response_class)
    engine.let_through(2)
    assert short.wait().error is None
    assert not long.over
    engine.let_through(3)
    assert long.wait().error is None
    digits = "".join(filter(str.isdigit, short.body.decode() + "/" + long.body.decode()))
    assert digits == "12" + "1234"


@pytest.mark.rule(13)
def test_the_engine_drops_the_request_of_a_client_that_leaves(batching, engine, response_class):
    batcher, server = batching(max_batch_size=2)
    exchange = server.respond(lambda: response_class(batcher.astream(10**9)))
    with server.connect(exchange):
        assert engine.stepping.wait(SECONDS)
    exchange.wait()
    engine.let_through()
    assert engine.removed.acquire(timeout=SECONDS)
    assert batcher.statistics().finished == {FinishReason.CANCELLED: 1}


_LINES = re.MULTILINE | re.DOTALL


def in_one_piece():
    """Return the function that docs/serving.md shows under this name."""
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    [block] = re.findall(r"^```python\n(async def in_one_piece.*?)^```$", page, _LINES)
    namespace = {}
    exec(block, namespace)  # noqa: S102
    return namespace["in_one_piece"]


@pytest.mark.rule(13)
@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
def test_the_client_of_an_answer_in_one_piece_may_leave(batching, engine, leaves):
    """Nothing has been sent then: the model makes the step that is under way, and no other."""
    engine.output = str
    batcher, server = batching(max_batch_size=2)
    asked = 10**9 if leaves else 5
    exchange = server.respond(lambda: TextResponse(in_one_piece()(batcher.astream(asked))))
    engine.let_through(3)
    if leaves:
        with server.connect(exchange):
            engine.wait_for_steps(4)
            assert not exchange.begun
    else:
        call = server.call(exchange)
        engine.wait_for_steps(4)
        engine.let_through(2)
        assert call.wait().body == b"12345"
    assert exchange.wait().error is None
    engine.let_through(100)
    assert engine.removed.acquire(timeout=SECONDS)
    batcher.close()
    assert engine.steps == (4 if leaves else 5)
    reason = FinishReason.CANCELLED if leaves else FinishReason.EOS
    assert batcher.statistics().finished == {reason: 1}


def test_a_request_that_is_one_too_many_is_503(batching, engine):
    batcher, server = batching(max_batch_size=1, max_pending=1)
    _, live = submit(server, batcher, 1)
    assert engine.stepping.wait(SECONDS)
    _, waiting = submit(server, batcher, 1)
    _, refused = submit(server, batcher, 1)
    assert refused.wait().status == 503
    assert refused.headers["retry-after"] == "1"
    engine.let_through(2)
    assert live.wait().body == waiting.wait().body == b"1\n"


def test_a_request_that_does_not_begin_in_time_is_504(batching, engine, response_class):
    batcher, server = batching(max_batch_size=1)
    exchange, call = submit(server, batcher, 1, response_class, overdue=True)
    assert call.wait().status == 504
    assert isinstance(exchange.stream.end.error, DeadlineError)


def test_a_request_that_begins_and_does_not_end_in_time_is_cut(batching, engine):
    batcher, server = batching(max_batch_size=1)
    engine.let_through()
    exchange, call = submit(server, batcher, 10**9, timeout=3600.0)
    assert b"1" in call.wait_for_chunk()
    knobs.let_deadline_pass(exchange.stream)
    engine.let_through()  # the deadline counts before the next step
    assert isinstance(call.wait().error, httpx.RemoteProtocolError)
    assert isinstance(exchange.stream.end.error, DeadlineError)


def test_requests_of_a_batcher_that_closes_are_cut_or_503(batching, engine, response_class):
    batcher, server = batching(max_batch_size=1)
    engine.let_through()
    _, live = submit(server, batcher, 10**9, response_class)
    assert b"1" in live.wait_for_chunk()
    _, waiting = submit(server, batcher, 1, response_class)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert isinstance(live.wait().error, httpx.RemoteProtocolError)
    assert waiting.wait().status == 503
    engine.let_through()
    closing.join(SECONDS)
    _, late = submit(server, batcher, 1, response_class)
    assert late.wait().status == 503


# ---- without a server: cancellation step by step


class Client:
    """What a server gives an application, for a client that reads or does not."""

    def __init__(self, *, reads=True):
        self.messages = []
        self.sent_to = asyncio.Event()
        self._reads = reads

    async def receive(self):
        await asyncio.Event().wait()

    async def send(self, message):
        self.messages.append(message)
        self.sent_to.set()
        if not self._reads:
            await asyncio.Event().wait()


SCOPE = {"type": "http", "method": "GET", "headers": [], "path": "/"}


@pytest.mark.rule(14)
@pytest.mark.parametrize("where", ["first output", "later output", "write"])
def test_a_cancelled_response_is_cancelled_and_so_is_its_stream(response_class, where):
    async def main():
        waits = asyncio.Event()

        async def source():
            if where != "first output":
                yield ["so"]
            waits.set()
            await asyncio.Event().wait()

        client = Client(reads=where != "write")
        (stream,) = demux(source(), size=1)
        task = asyncio.ensure_future(response_class(stream)(SCOPE, client.receive, client.send))
        await waits.wait()
        if where != "first output":
            await client.sent_to.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert stream.finish_reason is FinishReason.CANCELLED
        assert not any(message.get("more_body") is False for message in client.messages)

    asyncio.run(asyncio.wait_for(main(), SECONDS))


@pytest.mark.rule(20)
def test_a_long_write_is_encoded_in_turns(response_class):
    async def main():
        others = []

        def encode(output):
            if not output:
                asyncio.get_running_loop().call_soon(others.append, "had a turn")
            seen.append(list(others))
            return str(output)

        seen = []
        (stream,) = demux(aiter_of([Many(range(200))], [None]), size=1)
        client = Client()
        await response_class(stream, encode=encode)(SCOPE, client.receive, client.send)
        assert seen[0] == []
        assert seen[-1] == ["had a turn"]
        assert sum(bool(message.get("body")) for message in client.messages) == 1

    asyncio.run(asyncio.wait_for(main(), SECONDS))


@pytest.mark.parametrize("around", [False, True], ids=["stream", "generator"])
@pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
def test_a_response_runs_in_trio_as_well(early, around):
    async def main():
        started = trio.Event()

        async def source():
            if early:
                await started.wait()
            yield ["so"]
            yield [None]

        (stream,) = demux(source(), size=1)
        messages = []

        async def send(message):
            messages.append(message)
            started.set()

        with trio.fail_after(SECONDS):
            outputs = in_capitals(stream) if around else stream
            response = NDJSONResponse(outputs, start_after=0 if early else None)
            await response(SCOPE, trio.sleep_forever, send)
        line = b'"SO"\n' if around else b'"so"\n'
        expected = [None, b"", line, b""] if early else [None, line, b""]
        assert [message.get("body") for message in messages] == expected

    trio.run(main)


@pytest.mark.rule(14)
@pytest.mark.parametrize("output", [0, 1], ids=["first output", "later output"])
def test_what_is_no_error_passes_through_as_it_is(response_class, output):
    class Interrupt(BaseException):
        pass

    async def source():
        for number in range(100_000):
            yield [number]

    def encode(number):
        if number == output:
            raise Interrupt
        return str(number)

    async def main():
        (stream,) = demux(source(), size=1, max_buffered=1)
        client = Client()
        with pytest.raises(Interrupt):
            await response_class(stream, encode=encode)(SCOPE, client.receive, client.send)
        assert stream.finish_reason is FinishReason.CANCELLED

    asyncio.run(asyncio.wait_for(main(), SECONDS))
