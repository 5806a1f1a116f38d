"""How a server ends: by a signal or in an event loop, with a drain, or killed after a fork."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchstream import ClosedError, ContinuousBatcher, Last
from batchstream._remote import server
from batchstream._remote.payloads import Terms, pickled, read_error, submission
from batchstream._remote.protocol import (
    DEFAULT_MAX_FRAME,
    END,
    FROM_SERVER,
    GOAWAY,
    REFUSED,
    SUBMIT,
    Incoming,
    Outgoing,
    client_greeting,
)
from batchstream.remote import ConnectionLostError, aserve, connect, serve, serving
from support.engines import Model
from support.sources import TIMEOUT, needs_fork
from support.waiting_engine import Waiting, taken, until

FORKING_MODEL = Path(__file__).parents[1] / "support" / "remote_forking_model.py"
PAGE = Path(__file__).parents[2] / "docs" / "remote.md"
LONG = 3600.0
"""Seconds that never pass."""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.sock")


def ask_to_end():
    os.kill(os.getpid(), signal.SIGTERM)


def serve_while(batcher, path, act, **options):
    """Serve in this thread, while another one acts, which asks the server to end."""
    has_ended = threading.Event()

    def run():
        try:
            until(lambda: Path(path).exists())
            act()
            assert has_ended.wait(TIMEOUT), "the server goes on"
        finally:
            for _ in range(2):  # nothing is left running if it has failed
                if not has_ended.wait(TIMEOUT):  # a signal behind its end would end this process
                    ask_to_end()

    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(run)
        serve(batcher, path, **options)
        has_ended.set()
        acting.result()


def refuses(other):
    """Wait until a server that ends has refused a request, and its connections end."""
    with pytest.raises(ClosedError):
        list(other.stream("refused"))


# ---- serve


@contextmanager
def reading_as_it_ends(path, batcher):
    """Connect, and read the first of 300 outputs; the model has given all, and was asked to end."""
    with connect(path, window=2) as other:
        stream = other.stream("x" * 300)
        assert next(stream) == "x"
        until(lambda: batcher.statistics().live == 0)
        ask_to_end()
        until(lambda: batcher.state == "closed")
        refuses(other)
        yield other, stream


@pytest.mark.parametrize(
    ("drain", "at_least"), [(LONG, 0.0), (math.inf, 0.0), (None, LONG), (0, LONG)]
)
@pytest.mark.parametrize("is_of_batcher", [True, False])
def test_clients_take_what_the_model_has_given_within_the_drain_and_some_time_at_least(
    path, drain, at_least, is_of_batcher, monkeypatch
):
    monkeypatch.setattr(server, "_SECONDS_FOR_LAST_OUTPUTS", at_least)
    own, options = ({"drain": drain}, {}) if is_of_batcher else ({}, {"drain": drain})
    batcher = ContinuousBatcher(Model, max_batch_size=4, max_buffered=1000, **own)

    def act():
        with reading_as_it_ends(path, batcher) as (_, stream):
            assert "".join(stream) == "x" * 299

    serve_while(batcher, path, act, **options)


def test_a_second_signal_ends_clients_that_take_what_the_model_has_given(path, monkeypatch):
    monkeypatch.setattr(server, "_SECONDS_FOR_LAST_OUTPUTS", LONG)
    batcher = ContinuousBatcher(Model, max_batch_size=4, max_buffered=1000)

    def act():
        with reading_as_it_ends(path, batcher) as (other, stream):
            ask_to_end()
            until(lambda: not other.statistics().live)
            read = []
            with pytest.raises(ClosedError, match=r"the server of the model .* by SIGTERM"):
                read.extend(stream)
            assert len(read) <= 4

    serve_while(batcher, path, act)


def test_the_page_says_how_long_clients_have_at_least():
    seconds = f"at least {server._SECONDS_FOR_LAST_OUTPUTS:g} seconds"
    assert seconds in " ".join(PAGE.read_text().split())
    assert seconds in " ".join(serve.__doc__.split())


def test_no_other_process_connects_to_a_server_that_drains(path):
    engine = Waiting()
    batcher = ContinuousBatcher(engine, max_batch_size=4, drain=LONG)

    def act():
        with connect(path) as other, connect(path) as another:
            stream = other.stream("a")
            taken(engine.added)
            ask_to_end()
            until(lambda: batcher.state == "draining")
            with pytest.raises(ConnectionLostError, match="no server listens there"):
                list(another.stream("b"))
            engine.give({0: Last("x")})
            assert list(stream) == ["x"]

    serve_while(batcher, path, act)
    assert not Path(path).exists()


def test_a_server_that_cannot_listen_closes_its_batcher_and_leaves_signals_alone(path):
    Path(path).touch()
    batcher = ContinuousBatcher(Model, max_batch_size=4)
    with pytest.raises(FileExistsError, match="no socket"):
        serve(batcher, path)
    assert batcher.state == "closed"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_is_on_its_way_to_a_client_arrives_within_the_drain(path, monkeypatch):
    monkeypatch.setattr(server, "_SECONDS_FOR_LAST_RECORDS", 0.0)
    request = submission(Terms(), pickled([bytes([n]) * 1_000_000 for n in range(10)]))
    records = Outgoing(DEFAULT_MAX_FRAME)
    records.add(SUBMIT, 1, request)
    incoming = Incoming(FROM_SERVER, DEFAULT_MAX_FRAME)
    with (
        ContinuousBatcher(Model, max_batch_size=4) as batcher,
        socket.socket(socket.AF_UNIX) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        client.settimeout(TIMEOUT)
        listening = serving(batcher, path, drain=LONG)
        listening.__enter__()
        try:
            client.connect(path)
            client.sendall(client_greeting(256, DEFAULT_MAX_FRAME) + records.take())
            until(lambda: batcher.statistics().opened and not batcher.statistics().live)
            [session] = listening._listener._sessions
        finally:
            ending = pool.submit(listening.__exit__, None, None, None)
        until(session._transport.is_closing)
        while data := client.recv(2**20):
            incoming.feed(data)
        incoming.take_line()
        found = incoming.take_records()
        assert sum(len(it.payload) for it in found) > 10_000_000
        assert {it.kind for it in found[-2:]} == {END, GOAWAY}
        ending.result()


# ---- aserve


async def comes(condition):
    await asyncio.to_thread(until, condition)


async def begun(other, batcher):
    """Return a stream of which the model has given all, and the client has read one output."""
    stream = other.astream("x" * 300)
    assert await anext(stream) == "x"
    await comes(lambda: not batcher.statistics().live)
    return stream


async def read_all(stream):
    return "".join([output async for output in stream])


def test_an_event_loop_lets_clients_take_what_the_model_has_given_within_the_drain(path):
    async def main():
        async with ContinuousBatcher(Model, max_batch_size=4, max_buffered=1000) as batcher:
            task = asyncio.create_task(aserve(batcher, path, drain=LONG))
            await comes(Path(path).exists)
            async with connect(path, window=2) as other:
                stream = await begun(other, batcher)
                await batcher.aclose(drain=LONG)
                task.cancel()
                await asyncio.to_thread(refuses, other)
                assert await read_all(stream) == "x" * 299
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert not Path(path).exists()


@pytest.mark.parametrize("drain", [None, LONG])
def test_an_event_loop_ends_clients_without_a_drain_or_if_it_is_cancelled_twice(path, drain):
    async def main():
        async with ContinuousBatcher(Model, max_batch_size=4, max_buffered=1000) as batcher:
            task = asyncio.create_task(aserve(batcher, path, drain=drain))
            await comes(Path(path).exists)
            async with connect(path, window=2) as other:
                stream = await begun(other, batcher)
                task.cancel()
                if drain is not None:
                    await asyncio.to_thread(refuses, other)
                    assert not task.done()
                    task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await comes(lambda: not other.statistics().live)
                with pytest.raises(ClosedError, match=r"the server of the model .* of aserve"):
                    await read_all(stream)

    asyncio.run(main())


@pytest.mark.parametrize("drain", [None, LONG])
def test_a_request_that_was_sent_before_an_event_loop_ends_its_server_is_refused(path, drain):
    request = Outgoing(DEFAULT_MAX_FRAME)
    request.add(SUBMIT, 1, submission(Terms(), pickled("a")))
    incoming = Incoming(FROM_SERVER, DEFAULT_MAX_FRAME)

    async def main():
        async with ContinuousBatcher(Model, max_batch_size=4) as batcher:
            task = asyncio.create_task(aserve(batcher, path, drain=drain))
            await comes(Path(path).exists)
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(client_greeting(4, DEFAULT_MAX_FRAME))
            await reader.readline()
            writer.write(request.take())  # the system has it; the server reads it when it has ended
            task.cancel()
            incoming.feed(await reader.read())
            writer.close()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    left, refused = incoming.take_records()
    assert (left.kind, refused.kind, refused.number) == (GOAWAY, REFUSED, 1)
    error = read_error(refused.payload)
    assert type(error) is ConnectionLostError
    assert "ends, as asked for by the end of aserve" in str(error)


def test_a_server_that_is_cancelled_as_it_begins_leaves_the_event_loop_as_it_was(path):
    async def main():
        polled = asyncio.get_running_loop()._selector.get_map()
        before = dict(polled)
        async with ContinuousBatcher(Model, max_batch_size=4) as batcher:
            task = asyncio.create_task(aserve(batcher, path))
            await asyncio.sleep(0)  # it listens, and has not begun to wait
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert dict(polled) == before

    asyncio.run(main())
    assert not Path(path).exists()


def test_a_server_that_cannot_find_its_file_leaves_no_socket(path, monkeypatch):
    def fails(_):
        raise FileNotFoundError("it was removed")

    monkeypatch.setattr(server, "identity_of", fails)
    with ContinuousBatcher(Model, max_batch_size=4) as batcher:
        serves = serving(batcher, path)
        with pytest.raises(FileNotFoundError, match="it was removed"), serves:
            pass
        assert serves._listener._listening is None
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(path)
        monkeypatch.undo()
        with serves, connect(path) as other:
            assert list(other.stream("ab")) == ["a", "b"]


def test_a_drain_that_is_none_is_refused(path):
    batcher = ContinuousBatcher(Model, max_batch_size=4)
    with batcher, pytest.raises(ValueError, match="drain"):
        asyncio.run(aserve(batcher, path, drain=-1))


# ---- forks


@contextmanager
def forking_model(path):
    """Run a model whose process forks with its first request."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, FORKING_MODEL, path], stdin=subprocess.PIPE
    )
    try:
        until(lambda: Path(path).exists() or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.stdin.close()
        process.wait()


@needs_fork
def test_a_model_that_is_killed_is_gone_though_a_fork_of_it_lives(path):
    with forking_model(path) as model, connect(path) as other:
        stream = other.stream("a", timeout=TIMEOUT)
        assert next(stream) == "x"
        model.kill()
        model.wait()
        with pytest.raises(ConnectionLostError):
            list(stream)
        with ContinuousBatcher(Model, max_batch_size=4) as batcher, serving(batcher, path):
            assert list(other.stream("ab", timeout=TIMEOUT)) == ["a", "b"]
