"""Streams over WebSockets: an application of ASGI, called as a server calls it.

Real servers and clients are in ../servers.
"""

import asyncio
import contextlib
import logging
import threading

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import WebSocketRoute

from batchstream import (
    SKIP,
    ClosedError,
    DynamicBatcher,
    Fail,
    FinishReason,
    OverloadedError,
    RequestError,
)
from batchstream.integrations.starlette import exception_handlers, send_stream
from support.serving import SECONDS


class Client:
    """The server's side of a WebSocket: what the client sends, and what the server has sent."""

    def __init__(self, *texts, extensions=()):
        self.sent = []
        self.inbox = asyncio.Queue()
        self.inbox.put_nowait({"type": "websocket.connect"})
        self.blocks_at = None  # how many messages are taken before one is not
        self._extensions = {name: {} for name in extensions}
        for text in texts:
            self.say(text)

    def say(self, text):
        self.inbox.put_nowait({"type": "websocket.receive", "text": text})

    def leave(self):
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": 1001})

    async def send(self, message):
        if len(self.sent) == self.blocks_at:
            await asyncio.Event().wait()
        self.sent.append(message)

    async def until_sent(self, count):
        async with asyncio.timeout(SECONDS):
            while len(self.sent) < count:  # noqa: ASYNC110 - only the server's side knows
                await asyncio.sleep(0)

    @property
    def contents(self):
        return [m.get("text", m.get("bytes")) for m in self.sent if m["type"] == "websocket.send"]

    @property
    def close(self):
        last = self.sent[-1]
        assert last["type"] == "websocket.close", last
        return last["code"], last.get("reason")

    async def talk(self, endpoint, handlers=exception_handlers):
        app = Starlette(routes=[WebSocketRoute("/", endpoint)], exception_handlers=handlers)
        scope = {
            "type": "websocket",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": [],
            "subprotocols": [],
            "extensions": self._extensions,
        }
        await asyncio.wait_for(app(scope, self.inbox.get, self.send), SECONDS)


def spell(words):
    for n in range(max(map(len, words)) + 1):
        yield [word[n] if n < len(word) else None for word in words]


def answering(batcher, **options):
    """Return an endpoint that sends what the first message asks for, and what it has returned."""
    returned = []

    async def endpoint(websocket):
        await websocket.accept()
        stream = batcher.astream(await websocket.receive_text())
        returned.append(await send_stream(websocket, stream, **options))

    return endpoint, returned


def talked(model, client, **options):
    """Let a client talk to a model, and return what `send_stream` has returned."""
    with DynamicBatcher(model, max_batch_size=8) as batcher:
        endpoint, returned = answering(batcher, **options)
        asyncio.run(client.talk(endpoint))
        assert batcher.statistics().live == 0
    return returned


def test_a_stream_is_a_message_for_each_output_and_the_reason_of_its_end():
    client = Client("so")
    assert talked(spell, client) == [True]
    assert (client.contents, client.close) == (["s", "o"], (1000, "eos"))


def test_outputs_are_text_bytes_or_json():
    def model(_):
        yield from [["é"], [b"\xff"], [{"n": 1}], [None]]

    client = Client("")
    talked(model, client)
    assert client.contents == ["é", b"\xff", '{"n":1}']


def test_an_encoder_makes_outputs_and_the_end_what_is_sent():
    client = Client("abc")
    talked(
        spell,
        client,
        encode=lambda output: SKIP if output == "b" else {"text": output},
        encode_end=lambda end: {"end": end.reason, "outputs": end.outputs},
    )
    assert client.contents == ['{"text":"a"}', '{"text":"c"}', '{"end":"eos","outputs":3}']


def test_a_socket_that_stays_open_takes_the_next_request():
    async def endpoint(websocket):
        await websocket.accept()
        async for word in websocket.iter_text():
            assert await send_stream(
                websocket, batcher.astream(word), encode_end=lambda _: "!", close=False
            )

    async def main():
        client = Client("so")
        talking = asyncio.create_task(client.talk(endpoint))
        await client.until_sent(4)
        client.say("it")
        await client.until_sent(7)
        client.leave()
        await talking
        assert "".join(client.contents) == "so!it!"

    with DynamicBatcher(spell, max_batch_size=8) as batcher:
        asyncio.run(main())


# ---- clients that leave, and clients that speak


@contextlib.contextmanager
def waiting_batcher():
    """Give a batcher whose model makes one step, and the second when the client has left."""
    go_on, closed = threading.Event(), threading.Event()

    def model(_):
        try:
            yield ["x"]
            go_on.wait()  # without a limit: a wait that failed would free the slot, too
            yield ["x"]
            raise AssertionError("the model made a third step")
        finally:
            closed.set()

    with DynamicBatcher(model, max_batch_size=1) as batcher:
        try:
            yield batcher
            assert batcher.statistics().live == 0
        finally:
            go_on.set()
        assert closed.wait(SECONDS)


@pytest.mark.rule(13)
@pytest.mark.parametrize("blocks_at", [None, 1], ids=["that reads", "that reads nothing"])
def test_a_client_that_leaves_cancels_its_stream_at_once(blocks_at):
    async def main(batcher):
        client = Client("word")
        client.blocks_at = blocks_at
        endpoint, returned = answering(batcher)
        talking = asyncio.create_task(client.talk(endpoint))
        await client.until_sent(2 if blocks_at is None else 1)
        while not batcher.statistics().outputs:  # noqa: ASYNC110 - the model is in a thread
            await asyncio.sleep(0)
        client.leave()
        await talking
        assert returned == [False]
        assert batcher.statistics().finished == {FinishReason.CANCELLED: 1}

    with waiting_batcher() as batcher:
        asyncio.run(main(batcher))


@pytest.mark.rule(12)
def test_a_message_of_the_client_may_cancel_the_stream():
    async def main(batcher):
        client = Client("word")

        async def endpoint(websocket):
            await websocket.accept()
            stream = batcher.astream(await websocket.receive_text())

            def on_message(text):
                received.append(text)
                if text == "stop":
                    stream.cancel()

            assert await send_stream(websocket, stream, on_message=on_message)

        talking = asyncio.create_task(client.talk(endpoint))
        await client.until_sent(2)
        client.say("what?")
        client.say("stop")
        await talking
        assert client.close == (1000, "cancelled")

    received = []
    with waiting_batcher() as batcher:
        asyncio.run(main(batcher))
    assert received == ["what?", "stop"]


def test_an_error_of_what_is_done_with_a_message_is_raised_and_the_stream_cancelled():
    async def main(batcher):
        client = Client("word")

        def on_message(_):
            raise KeyError("no such command")

        endpoint, _ = answering(batcher, on_message=on_message)
        talking = asyncio.create_task(client.talk(endpoint))
        await client.until_sent(2)
        client.say("what?")
        with pytest.raises(KeyError, match="no such command"):
            await talking
        assert client.close == (1011, "Internal Server Error")

    with waiting_batcher() as batcher:
        asyncio.run(main(batcher))


# ---- errors


def failing(error):
    def model(requests):
        yield ["x"] * len(requests)
        yield [Fail(error)] * len(requests)

    return model


def test_an_error_of_the_model_closes_the_socket_and_is_raised():
    client = Client("word")
    with pytest.raises(OSError, match="device lost"):
        talked(failing(OSError("device lost")), client)
    assert (client.contents, client.close) == (["x"], (1011, "Internal Server Error"))


def test_a_request_that_cannot_be_served_closes_the_socket_with_its_text(caplog):
    client = Client("word")
    text = "é" * 100  # in UTF-8 more than a reason may have
    assert talked(failing(RequestError(text)), client) == [True]
    code, reason = client.close
    assert (code, reason) == (1008, "é" * 61)
    [record] = [it for it in caplog.records if "a WebSocket was closed" in it.message]
    assert (record.levelno, record.kind, record.reason) == (logging.WARNING, "cut", "RequestError")


@pytest.mark.rule(5)
def test_a_stream_that_is_cancelled_from_elsewhere_does_not_look_whole():
    async def main(batcher):
        client = Client("word")

        async def endpoint(websocket):
            await websocket.accept()
            streams.append(batcher.astream(await websocket.receive_text()))
            await send_stream(websocket, streams[0])

        talking = asyncio.create_task(client.talk(endpoint))
        await client.until_sent(2)
        streams[0].cancel()
        await talking
        assert client.close == (1013, "Service Unavailable")

    streams = []
    with waiting_batcher() as batcher:
        asyncio.run(main(batcher))


def test_an_error_that_the_application_has_a_handler_for_is_a_line_in_the_log(caplog):
    client = Client("word")
    with DynamicBatcher(failing(HTTPException(418, "a teapot")), max_batch_size=8) as batcher:
        endpoint, _ = answering(batcher)
        asyncio.run(client.talk(endpoint))
    assert client.close == (1011, "Internal Server Error")
    assert "a teapot" in caplog.text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverloadedError("full", pending=1, max_pending=1), 1013),
        (ClosedError("closed"), 1013),
        (RequestError("too long"), 1008),
    ],
    ids=["overloaded", "closed", "at fault"],
)
def test_an_endpoint_that_raises_closes_its_socket(error, code):
    async def endpoint(websocket):
        await websocket.accept()
        raise error

    client = Client()
    asyncio.run(client.talk(endpoint))
    assert client.close[0] == code


async def overloaded(_):
    raise OverloadedError("full", pending=1, max_pending=1)


def test_a_socket_that_was_not_accepted_is_refused_with_the_status_where_the_server_can():
    client = Client(extensions=["websocket.http.response"])
    asyncio.run(client.talk(overloaded))
    start, *_ = client.sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
    assert (b"retry-after", b"1") in start["headers"]


def test_a_socket_that_was_not_accepted_is_refused_on_any_other_server_too():
    client = Client()
    asyncio.run(client.talk(overloaded))
    assert [message["type"] for message in client.sent] == ["websocket.close"]


def test_what_is_no_stream_is_refused():
    async def endpoint(websocket):
        await websocket.accept()
        await send_stream(websocket, spell(["so"]))

    with pytest.raises(TypeError, match="stream must be an AsyncStream, got <generator"):
        asyncio.run(Client().talk(endpoint))


def test_no_task_is_left_behind():
    async def main():
        client = Client("word")
        endpoint, _ = answering(batcher)
        with pytest.raises(OSError, match="device lost"):
            await client.talk(endpoint)
        async with asyncio.timeout(SECONDS):
            while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - one that is cancelled ends soon
                await asyncio.sleep(0)

    with DynamicBatcher(failing(OSError("device lost")), max_batch_size=8) as batcher:
        asyncio.run(main())
