"""Interceptors of gRPC: real servers, of `grpc.aio` and of threads, and real clients."""

import asyncio
import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import pytest

from batchstream import (
    EOS,
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    ForkedError,
    OverloadedError,
    RequestError,
    SlowConsumerError,
    StepError,
)
from batchstream.integrations.grpc import (
    AsyncServerInterceptor,
    ServerInterceptor,
    status_of,
    timeout_of,
)
from support.serving import SECONDS

CODES = grpc.StatusCode
BIG = 1_000_000  # bytes of an output of which few fit between a server and a client


class Model:
    """An engine that makes a step whenever it is allowed one; a request is its outputs."""

    def __init__(self):
        self.requests = {}
        self.allowed = threading.Semaphore(0)
        self.removed = threading.Semaphore(0)

    def add(self, slot, outputs):
        if isinstance(outputs, Exception):
            raise outputs
        self.requests[slot] = iter(outputs)

    def step(self):
        assert self.allowed.acquire(timeout=SECONDS)
        return {slot: next(outputs, EOS) for slot, outputs in self.requests.items()}

    def remove(self, slot):
        del self.requests[slot]
        self.removed.release()

    def allow(self, steps):
        for _ in range(steps):
            self.allowed.release()


class Service:
    """A model behind every kind of method, in both kinds of server.

    A request is bytes: how many outputs of one byte there are to be.
    """

    def __init__(self, **options):
        self.model = Model()
        self.batcher = ContinuousBatcher(
            self.model, **{"max_batch_size": 1, "max_pending": 1} | options
        )
        self.error = None  # raised by the methods, if there is one

    def request(self, number):
        if self.error is not None:
            raise self.error
        return [b"."] * int(number)

    async def stream(self, number, context):
        async for output in self.batcher.astream(self.request(number), timeout=timeout_of(context)):
            yield output

    async def write(self, number, context):
        async for output in self.batcher.astream(self.request(number)).body():
            await context.write(output)

    async def join(self, number, context):
        context.set_trailing_metadata((("made-by", "the method"),))
        return b"".join([output async for output in self.batcher.astream(self.request(number))])

    async def stream_all(self, numbers, context):
        async for number in numbers:
            async for output in self.batcher.astream(self.request(number)):
                yield output

    async def join_all(self, numbers, context):
        outputs = [output async for output in self.stream_all(numbers, context)]
        return b"".join(outputs)

    def stream_in_thread(self, number, context):
        with self.batcher.stream(self.request(number), timeout=timeout_of(context)) as stream:
            context.add_callback(stream.cancel)
            yield from stream

    def join_in_thread(self, number, context):
        context.set_trailing_metadata((("made-by", "the method"),))
        return b"".join(self.batcher.stream(self.request(number)))

    def handlers(self, *, asynchronous):
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        handlers = {
            "stream_in_thread": stream(self.stream_in_thread),
            "join_in_thread": unary(self.join_in_thread),
        }
        if asynchronous:
            handlers |= {
                "stream": stream(self.stream),
                "write": stream(self.write),
                "join": unary(self.join),
                "stream_all": grpc.stream_stream_rpc_method_handler(self.stream_all),
                "join_all": grpc.stream_unary_rpc_method_handler(self.join_all),
            }
        return grpc.method_handlers_generic_handler("S", handlers)


@contextlib.contextmanager
def in_loop(service):
    """Serve in an event loop, in a thread of its own, and give the port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start():
        server = grpc.aio.server(interceptors=[AsyncServerInterceptor()])
        server.add_generic_rpc_handlers([service.handlers(asynchronous=True)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(SECONDS)

    server, port = run(start())
    try:
        yield port
    finally:
        run(server.stop(0))
        service.model.allow(1000)
        run(service.batcher.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SECONDS)
        loop.close()


@contextlib.contextmanager
def in_threads(service):
    """Serve in threads, and give the port."""
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, interceptors=[ServerInterceptor()])
        server.add_generic_rpc_handlers([service.handlers(asynchronous=False)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(0)
            service.model.allow(1000)
            service.batcher.close()


@contextlib.contextmanager
def client(port, **config):
    options = [("grpc.max_receive_message_length", -1)]
    if config:
        options.append(("grpc.service_config", json.dumps(config)))
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield channel


def call(channel, method, number, **options):
    """Begin a call, and return what gives its responses."""
    if method.startswith("join"):
        kind = channel.stream_unary if method == "join_all" else channel.unary_unary
        requests = iter([number]) if method == "join_all" else number
        answer = kind(f"/S/{method}").future(requests, timeout=SECONDS, **options)
        return map(lambda it: it.result(), [answer])  # noqa: C417 - an error comes when it is asked
    kind = channel.stream_stream if method == "stream_all" else channel.unary_stream
    requests = iter([number]) if method == "stream_all" else number
    return kind(f"/S/{method}")(requests, **{"timeout": SECONDS} | options)


def status(responses):
    """Read to the end, and return its code, its details and its trailing metadata."""
    with pytest.raises(grpc.RpcError) as raised:
        list(responses)
    error = raised.value
    return error.code(), error.details(), dict(error.trailing_metadata())


SERVERS = {"loop": in_loop, "threads": in_threads}
METHODS = [
    ("loop", "stream"),
    ("loop", "write"),
    ("loop", "join"),
    ("loop", "stream_all"),
    ("loop", "join_all"),
    ("loop", "stream_in_thread"),
    ("loop", "join_in_thread"),
    ("threads", "stream_in_thread"),
    ("threads", "join_in_thread"),
]


@pytest.mark.parametrize(("server", "method"), METHODS)
def test_a_call_gets_its_outputs_and_an_error_of_the_batcher_its_status(server, method):
    service = Service()
    with SERVERS[server](service) as port, client(port) as channel:
        service.model.allow(4)
        assert b"".join(call(channel, method, b"3")) == b"..."
        service.error = OverloadedError("none of its business", pending=1, max_pending=1)
        code, details, metadata = status(call(channel, method, b"3"))
        assert (code, details) == (CODES.RESOURCE_EXHAUSTED, "the server is overloaded")
        assert metadata["retry-after"] == "1"
        assert metadata["grpc-retry-pushback-ms"] == "1000"
        if method == "join" or (server, method) == ("threads", "join_in_thread"):
            assert metadata["made-by"] == "the method"


@pytest.mark.parametrize(("server", "method"), METHODS)
def test_any_other_error_stays_that_of_grpc(server, method):
    service = Service()
    service.error = ForkedError("the server is set up in the wrong order")
    with SERVERS[server](service) as port, client(port) as channel:
        code, details, _ = status(call(channel, method, b"1"))
        assert code is CODES.UNKNOWN
        assert "wrong order" in details
        service.error = ValueError("no error of a batcher")
        code, details, _ = status(call(channel, method, b"1"))
        assert code is CODES.UNKNOWN
        assert "no error of a batcher" in details


@pytest.mark.parametrize(
    ("error", "code", "details", "metadata"),
    [
        (
            OverloadedError("of the server", pending=8, max_pending=8, retry_after=1.2345),
            CODES.RESOURCE_EXHAUSTED,
            "the server is overloaded",
            {"retry-after": "2", "grpc-retry-pushback-ms": "1235"},
        ),
        (
            ClosedError("of the server"),
            CODES.UNAVAILABLE,
            "the server is closing",
            {"retry-after": "1", "grpc-retry-pushback-ms": "1000"},
        ),
        (
            DeadlineError("of the server", timeout=1),
            CODES.DEADLINE_EXCEEDED,
            "the request took too long",
            {},
        ),
        (RequestError("the client's fault"), CODES.INVALID_ARGUMENT, "the client's fault", {}),
        (
            SlowConsumerError("of the server", slot=0, max_buffered=1),
            CODES.RESOURCE_EXHAUSTED,
            "the client reads too slowly",
            {},
        ),
    ],
    ids=lambda it: type(it).__name__ if isinstance(it, Exception) else "",
)
def test_each_error_of_a_batcher_has_a_status(error, code, details, metadata):
    assert status_of(error) == (code, details, tuple(metadata.items()))


@pytest.mark.parametrize(
    "error", [StepError("the model's fault", step=1), ForkedError("the operator's"), ValueError()]
)
def test_an_error_of_the_server_is_raised_for_grpc(error):
    with pytest.raises(type(error)) as raised:
        status_of(error)
    assert raised.value is error


@pytest.mark.parametrize("server", SERVERS)
def test_a_method_that_does_not_exist_is_unimplemented(server):
    with SERVERS[server](Service()) as port, client(port) as channel:
        assert status(channel.unary_stream("/S/other")(b"1"))[0] is CODES.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("server", "method"), [("loop", "stream"), ("threads", "stream_in_thread")]
)
def test_a_client_is_refused_and_retries_by_itself_once_there_is_room(caplog, server, method):
    service = Service()
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    with (
        SERVERS[server](service) as port,
        client(port) as channel,
        client(port, methodConfig=[{"name": [{}], "retryPolicy": policy}]) as retrying,
    ):
        occupying = [call(channel, method, b"100") for _ in range(2)]
        while service.batcher.statistics().waiting < 1:
            pass
        responses = call(retrying, method, b"2")
        while "requests are refused" not in caplog.text:
            pass
        for it in occupying:
            it.cancel()
        service.model.allow(1000)  # the server may learn of it later
        assert list(responses) == [b".", b"."]


@pytest.mark.rule(13, 25)
@pytest.mark.parametrize(
    ("server", "method"),
    [("loop", "stream"), ("loop", "write"), ("threads", "stream_in_thread")],
)
def test_a_client_that_leaves_frees_its_slot_at_once(server, method):
    service = Service()
    with SERVERS[server](service) as port, client(port) as channel:
        responses = call(channel, method, b"100")
        service.model.allow(1)
        assert next(responses) == b"."
        responses.cancel()
        while service.batcher.statistics().live:
            pass
        service.model.allow(1)
        assert service.model.removed.acquire(timeout=SECONDS)
        assert not service.model.requests


class Kept(partial):
    """A method that refers to the generators that it has made."""

    def __call__(self, *args):
        self.generators.append(super().__call__(*args))
        return self.generators[-1]


@pytest.mark.rule(13, 25)
def test_a_client_that_reads_nothing_and_leaves_frees_its_slot_at_once():
    """The generator is suspended, and something refers to it: only its end frees the slot."""
    service = Service(on_overflow="wait", max_buffered=1)
    service.request = lambda _: [b"." * BIG] * 100
    service.stream = Kept(service.stream)
    service.stream.generators = []
    with in_loop(service) as port, client(port) as channel:
        responses = call(channel, "stream", b"")
        service.model.allow(100)
        while not service.stream.generators:
            pass
        [generator] = service.stream.generators
        while generator.ag_await is not None or service.batcher.statistics().buffered < 1:
            pass
        responses.cancel()
        while service.batcher.statistics().live:
            pass
        assert service.model.removed.acquire(timeout=SECONDS)


@pytest.mark.rule(13)
@pytest.mark.parametrize(
    ("server", "method"), [("loop", "stream"), ("threads", "stream_in_thread")]
)
def test_the_deadline_of_a_client_is_that_of_its_request(server, method):
    service = Service(max_pending=1)
    seen = []
    service.request = lambda number: seen.append(number) or [b"."] * int(number)
    with SERVERS[server](service) as port, client(port) as channel:
        first = call(channel, method, b"100")
        while not service.batcher.statistics().live:
            pass
        code, _, _ = status(call(channel, method, b"1", timeout=0.05))
        assert code is CODES.DEADLINE_EXCEEDED
        while service.batcher.statistics().waiting:
            pass
        assert seen == [b"100", b"1"]
        first.cancel()


class Context:
    def __init__(self, left):
        self.left = left

    def time_remaining(self):
        return self.left


def test_the_time_of_a_call_is_that_of_its_deadline_or_of_the_server():
    assert timeout_of(Context(None)) is None
    assert timeout_of(Context(9.2e18)) is None, "a server of threads says so of no deadline"
    assert timeout_of(Context(0)) == 0
    assert timeout_of(Context(2.5)) == 2.5
    assert timeout_of(Context(2.5), at_most=1) == 1
    assert timeout_of(Context(2.5), at_most=3) == 2.5
    assert timeout_of(Context(None), at_most=3) == 3
    with pytest.raises(ValueError, match="at_most"):
        timeout_of(Context(None), at_most=-1)
