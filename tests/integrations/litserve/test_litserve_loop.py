"""The loop by itself: a queue with requests in front of it, a list of messages behind it."""

import asyncio
import pickle
import queue
import time
import uuid
from typing import ClassVar

import litserve as ls
import pytest
from fastapi import HTTPException
from litserve.callbacks import Callback, CallbackRunner, EventTypes
from litserve.loops import BatchedStreamingLoop
from litserve.loops.base import _SENTINEL_VALUE, LitLoop, _StopLoopError
from litserve.specs.base import LitSpec
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus

from batchstream import Fail, Last, Many, StepError
from batchstream.integrations.litserve import BatchedStreamLoop
from batchstream.integrations.litserve._link.messages import Failure
from batchstream.integrations.litserve._server import setup
from support.litserve_queue import RequestQueue

LOGGER = "batchstream.integrations.litserve"
FINISHED = (LitAPIStatus.FINISH_STREAMING, "")
FAILED = (LitAPIStatus.OK, Failure(500, "Internal server error", None))


def ok(*outputs):
    return [(LitAPIStatus.OK, output) for output in outputs]


def raising(error, *, at):
    """Return an `encode_response` that hands outputs on, and raises at this one."""

    def encode_response(outputs):
        for output in outputs:
            if output == at:
                raise error
            yield output

    return encode_response


class Messages(MessageTransport):
    """Keeps what is sent, by request; refuses what it is made to."""

    def __init__(self, refused=()):
        self.sent = {}
        self.refused = refused

    def send(self, item, consumer_id):
        uid, (data, status, *_) = item
        if data in self.refused:
            raise OSError(f"refused {data!r}")
        self.sent.setdefault(uid, []).append((status, data))

    async def areceive(self, *_):
        raise NotImplementedError


class Words(ls.LitAPI):
    """Streams each request's words; the tests change what is called on the way."""

    request_timeout = 30

    def decode_request(self, request):
        return request.split()

    def predict(self, inputs):
        for position in range(1 + max(map(len, inputs))):
            yield [words[position] if position < len(words) else None for words in inputs]

    def encode_response(self, output_stream):
        yield from output_stream


def served(api, *requests, transport=None, callbacks=(), waited=(), uids=("r0", "r1", "r2")):
    """Let the loop serve a batch of these requests, and return the messages to each.

    Requests numbered in `waited` come so late that they have no place in the batch.
    """
    transport = transport or Messages()
    api.max_batch_size = max(2, len(requests) - len(waited))
    waiting = queue.Queue() if isinstance(api.loop, BatchedStreamingLoop) else RequestQueue()
    for number, request in enumerate(requests):
        came = time.monotonic() - (number in waited) * (api.request_timeout + 1)
        waiting.put((0, uids[number], came, request))
    waiting.put(_SENTINEL_VALUE)
    with pytest.raises(_StopLoopError):
        api.loop(api, "cpu", 0, waiting, transport, {}, CallbackRunner(list(callbacks)))
    return [transport.sent.get(uid, []) for uid in uids[: len(requests)]]


def ready(cls):
    """An instance as it is in a worker: LitServe has set it up, and it has travelled."""
    api = cls(stream=True, max_batch_size=2, loop=BatchedStreamLoop())
    api.pre_setup()
    api.loop.pre_setup(api)
    return pickle.loads(pickle.dumps(api))  # noqa: S301


def test_each_request_has_its_outputs_and_its_end():
    assert served(ready(Words), "a b c", "x") == [
        [*ok("a", "b", "c"), FINISHED],
        [*ok("x"), FINISHED],
    ]


@pytest.mark.rule(29)
def test_a_request_is_served_even_if_the_time_to_collect_is_over_at_once(monkeypatch):
    class Clock:
        """Stands still as long as one takes a request from the queue, then leaps."""

        def __init__(self):
            self.now = 0.0

        def monotonic(self):
            self.now += 1.0
            return self.now

    looks = []
    stock = LitLoop.get_batch_requests

    def look_late(self, lit_api, request_queue, transport):
        looks.append(len(looks))
        if len(looks) == 1:
            monkeypatch.setattr("litserve.loops.base.time", Clock())
        found = stock(self, lit_api, request_queue, transport)
        monkeypatch.undo()
        return found

    api = ready(Words)
    api.batch_timeout = 0.5
    monkeypatch.setattr(LitLoop, "get_batch_requests", look_late)
    assert served(api, "a b") == [[*ok("a", "b"), FINISHED]]
    assert looks[:1] == [0]


class FailsInMidStream(Words):
    def predict(self, inputs):
        yield ["a" for _ in inputs]
        raise RuntimeError("model")


@pytest.mark.rule(9)
def test_an_end_that_cannot_be_sent_does_not_hold_back_the_other_ends():
    class RefusesOne(Messages):
        def send(self, item, consumer_id):
            uid, (data, *_) = item
            if uid == "r0" and isinstance(data, Failure):
                raise OSError("r0 unreachable")
            super().send(item, consumer_id)

    transport = RefusesOne()
    waiting = queue.Queue()
    for uid in ("r0", "r1"):
        waiting.put((0, uid, time.monotonic(), "a"))
    api = ready(FailsInMidStream)
    with pytest.raises(OSError, match="r0 unreachable"):
        api.loop(api, "cpu", 0, waiting, transport, {}, CallbackRunner([]))
    assert transport.sent["r1"] == [*ok("a"), FAILED]


class CancelledInDecode(Words):
    def decode_request(self, request):
        if request == "bad":
            raise asyncio.CancelledError("x")
        return super().decode_request(request)


@pytest.mark.rule(14)
def test_a_cancelled_error_out_of_a_hook_is_an_error_like_another():
    assert served(ready(CancelledInDecode), "bad", "a") == [[FAILED], [*ok("a"), FINISHED]]


# ---- hooks and callbacks


class Recorder(Callback):
    def __init__(self, record):
        self._record = record

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda **_: self._record.append(name)
        return super().__getattribute__(name)


class Recording(Words):
    """Records when its hooks are called."""

    record: ClassVar = []

    def _note(self, what):
        type(self).record.append(what)

    def decode_request(self, request, context):
        self._note("decode_request")
        context["words"] = len(request.split())
        return request.split()

    def batch(self, inputs, context):
        self._note(f"batch {context}")
        return inputs

    def predict(self, inputs, context):
        self._note(f"predict {context}")
        return super().predict(inputs)

    def unbatch(self, output, context):
        self._note(f"unbatch {context}")
        return output

    def encode_response(self, output_stream, context):
        self._note(f"encode_response {context}")
        return ([output or "" for output in outputs] for outputs in output_stream)

    def format_encoded_response(self, data):
        self._note(f"format_encoded_response {data}")
        return data


class PopulatingSpec(LitSpec):
    api_path = "/predict"
    stream = True

    def __init__(self):
        super().__init__()
        self.api_path = "/predict"

    def populate_context(self, context, request):
        if request == "unpopular":
            raise ValueError(request)
        Recording.record.append("populate_context")
        context["request"] = request


@pytest.mark.parametrize("spec", [None, PopulatingSpec], ids=["no spec", "spec"])
def test_hooks_and_callbacks_come_in_the_order_of_the_stock_loop(monkeypatch, spec):
    def recorded(loop):
        monkeypatch.setattr(Recording, "record", [])
        api = Recording(stream=True, max_batch_size=3, loop=loop, spec=spec and spec())
        api.pre_setup()
        served(api, "a b", "x y", "s t", callbacks=[Recorder(Recording.record)])
        return list(Recording.record)

    ours = recorded(BatchedStreamLoop())
    assert ours == recorded(BatchedStreamingLoop())
    events = [event.value for event in EventTypes][2:8]
    assert sorted(event for event in ours if event.startswith("on_")) == sorted(events)
    assert any("'words': 2" in what for what in ours)


def test_contexts_of_requests_that_cannot_be_decoded_leave_with_them(monkeypatch):
    monkeypatch.setattr(Recording, "record", [])
    _, bad, _ = served(ready(Recording), "a b", 7, "x y z")
    assert bad == [FAILED]
    assert "predict [{'words': 2}, {'words': 3}]" in Recording.record


def test_a_batch_of_which_nothing_can_be_decoded_ends_with_the_decoding():
    record = []
    assert served(ready(Words), 1, 2, callbacks=[Recorder(record)]) == [[FAILED], [FAILED]]
    assert record == ["on_before_decode_request", "on_after_decode_request"]


def test_a_request_whose_context_cannot_be_populated_fails_alone():
    api = Words(stream=True, loop=BatchedStreamLoop(), spec=PopulatingSpec())
    api.pre_setup()
    bad, good = served(api, "unpopular", "a")
    assert [status for status, _ in bad] == [LitAPIStatus.ERROR]
    assert good == [*ok("a"), FINISHED]


@pytest.mark.parametrize("hook", ["batch", "predict", "unbatch", "encode_response"])
@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ValueError("secret"), FAILED),
        (StopIteration("secret"), FAILED),
        (HTTPException(418, "short"), (LitAPIStatus.OK, Failure(418, "short", None))),
    ],
    ids=["ValueError", "StopIteration", "HTTPException"],
)
def test_a_hook_that_raises_fails_its_batch(hook, error, answer, caplog):
    def broken(*_):
        raise error

    api = ready(Words)
    setattr(api, hook, broken)
    assert served(api, "a", "b") == [[answer], [answer]]
    assert len(caplog.records) == (answer is FAILED)


# ---- closing


class Closing(Words):
    """Notes when each of its generators is closed, and keeps them from being collected."""

    closed: ClassVar = []
    kept: ClassVar = []

    def predict(self, inputs):
        self.kept.append(self.steps(inputs))
        return self.kept[-1]

    def steps(self, inputs):
        try:
            while True:
                yield [words.pop(0) if words else None for words in inputs]
        finally:
            type(self).closed.append("predict")

    def unbatch(self, output):
        self.kept.append(self.lists(output))
        return self.kept[-1]

    def lists(self, output):
        try:
            yield from map(list, output)
        finally:
            type(self).closed.append("unbatch")

    def encode_response(self, output_stream):
        try:
            for step in output_stream:
                if "broken" in step:
                    raise ValueError("broken")
                yield step
        finally:
            type(self).closed.append("encode_response")


@pytest.mark.rule(10)
@pytest.mark.parametrize("last", ["", " broken"], ids=["at the end", "at an error"])
def test_generators_are_closed_once_from_the_last_to_the_first(monkeypatch, last):
    monkeypatch.setattr(Closing, "closed", [])
    monkeypatch.setattr(Closing, "kept", [])
    served(ready(Closing), "a b" + last, "x")
    assert Closing.closed == ["encode_response", "unbatch", "predict"]


@pytest.mark.rule(10)
def test_what_was_begun_is_closed_when_a_later_hook_raises():
    closed = []

    class Begun:
        def __iter__(self):
            return self

        def __next__(self):
            raise AssertionError("no step is made")

        def close(self):
            closed.append(self)

    api = ready(Words)
    begun = Begun()
    api.predict = lambda inputs: begun
    api.unbatch = lambda output: output  # the same: closed once

    def encode_response(output_stream):
        raise ValueError("no")

    api.encode_response = encode_response
    assert served(api, "a") == [[FAILED]]
    assert closed == [begun]


def test_what_is_no_iterator_is_the_users_to_close():
    class Session(list):
        def close(self):
            raise AssertionError("not ours")

    api = ready(Words)
    api.predict = lambda inputs: Session([["a"], ["b"]])
    assert served(api, "?") == [[*ok("a", "b"), FINISHED]]


@pytest.mark.rule(13)
def test_hooks_that_listen_receive_the_live_slots():
    heard = []

    def encode_response(output_stream):
        live = None
        for step in output_stream:
            heard.append(live)
            live = yield step

    api = ready(Words)
    api.encode_response = encode_response
    served(api, "a b c", "x")
    assert heard == [None, (0, 1), (0,), (0,)]


# ---- errors


def test_one_error_of_many_requests_is_logged_once_with_its_traceback(caplog):
    api = ready(Words)
    api.encode_response = lambda steps: iter([["a", "x"], ["too narrow"]])
    assert served(api, "a", "x") == [[*ok("a"), FAILED], [*ok("x"), FAILED]]
    [record] = caplog.records
    assert isinstance(record.exc_info[1], StepError)
    assert "r0, r1" in record.getMessage()
    fields = record.kind, record.batcher, record.reason, record.requests, record.request_id
    assert fields == ("failed", "/predict", "StepError", 2, "r0")
    [note] = record.exc_info[1].__notes__
    assert "Where encode_response is written for a single request, pass eos_in='predict'" in note


def test_requests_may_be_named_as_the_openai_spec_names_them(caplog):
    api = ready(Words)
    api.encode_response = lambda steps: iter([[Fail(ValueError("a"))]])
    uid = uuid.uuid4()
    assert served(api, "a", uids=[uid]) == [[FAILED]]
    assert str(uid) in caplog.text


def test_errors_of_their_own_are_logged_each(caplog):
    api = ready(Words)
    api.encode_response = lambda steps: iter([[Fail(ValueError("a")), Fail(ValueError("b"))]])
    assert served(api, "a", "x") == [[FAILED], [FAILED]]
    assert [str(record.exc_info[1]) for record in caplog.records] == ["a", "b"]


def test_a_request_whose_output_the_transport_refuses_fails_alone():
    got = served(ready(Words), "a b c", "x y z", transport=Messages(refused=["b"]))
    assert got == [[*ok("a"), FAILED], [*ok("x", "y", "z"), FINISHED]]


def test_a_transport_that_cannot_send_an_end_stops_the_worker_as_it_does_in_the_stock_loop():
    with pytest.raises(OSError, match="refused"):
        served(ready(Words), "a", transport=Messages(refused=["", FAILED[1]]))


def test_nothing_follows_a_failure_that_came_between_the_outputs_of_a_step():
    api = ready(Words)
    api.encode_response = lambda steps: iter([[Many(["a", object(), "b"]), "x"]])
    assert served(api, "a", "x") == [[*ok("a"), FAILED], [*ok("x"), FINISHED]]


def test_a_last_output_that_cannot_be_sent_is_an_error_and_not_an_end():
    api = ready(Words)
    api.encode_response = lambda steps: iter([[Last(object()), "x"]])
    assert served(api, "a", "x") == [[FAILED], [*ok("x"), FINISHED]]


@pytest.mark.rule(14)
@pytest.mark.parametrize("stopping", [SystemExit, GeneratorExit])
def test_what_stops_the_worker_passes_after_its_requests_have_failed(stopping):
    api = ready(Words)

    def predict(inputs):
        yield ["a"]
        raise stopping

    api.predict = predict
    transport = Messages()
    waiting = queue.Queue()
    waiting.put((0, "r0", time.monotonic(), "a"))
    with pytest.raises(stopping):
        api.loop.run_batched_streaming_loop(api, waiting, transport, CallbackRunner())
    assert transport.sent["r0"] == [*ok("a"), FAILED]


@pytest.mark.rule(14)
@pytest.mark.parametrize("place", ["predict", "encode_response"])
def test_what_stops_the_worker_passes_though_closing_raises_too(place, unheard):
    class Steps:
        def __init__(self, inputs):
            self.steps = iter([["a"], ["stop"]])

        def __iter__(self):
            return self

        def __next__(self):
            step = next(self.steps)
            if place == "predict" and step == ["stop"]:
                raise SystemExit
            return step

        def close(self):
            raise ValueError("closing")

    api = ready(Words)
    api.loop = BatchedStreamLoop(eos_in="predict")
    api.predict, api.encode_response = Steps, raising(SystemExit, at="stop")
    transport = Messages()
    waiting = RequestQueue()
    waiting.put((0, "r0", time.monotonic(), "a"))
    waiting.put(_SENTINEL_VALUE)  # for a worker that goes on
    with pytest.raises(SystemExit):
        api.loop.run_batched_streaming_loop(api, waiting, transport, CallbackRunner())
    assert transport.sent["r0"] == [*ok("a"), FAILED]
    assert [str(error) for error in unheard] == ["closing"]


@pytest.mark.rule(14)
def test_ctrl_c_stops_the_loop_as_it_does_the_stock_one(monkeypatch):
    killed = []
    monkeypatch.setattr(LitLoop, "kill", lambda self: killed.append(self))  # noqa: PLW0108 - binds
    api = ready(Words)

    def predict(inputs):
        raise KeyboardInterrupt
        yield

    api.predict = predict
    waiting = queue.Queue()
    waiting.put((0, "r0", time.monotonic(), "a"))
    api.loop.run_batched_streaming_loop(api, waiting, Messages(), CallbackRunner())
    assert killed == [api.loop]


def test_a_request_that_has_waited_too_long_is_answered_with_504():
    late, other = served(ready(Words), "a", "b", waited=[0])
    assert late == [(LitAPIStatus.OK, Failure(504, "Request timed out", None))]
    assert other == [*ok("b"), FINISHED]


def test_a_spec_of_the_users_own_gets_litserves_error_messages():
    api = Words(stream=True, loop=BatchedStreamLoop(), spec=PopulatingSpec())
    api.pre_setup()
    api.loop.pre_setup(api)
    assert isinstance(api.spec, PopulatingSpec)
    answer = HTTPException(429, "too many")
    api.encode_response = lambda steps: iter([["a", Fail(answer), Fail(ValueError("secret"))]])
    done, http, other = served(api, "a", "b", "c")
    assert done == [*ok("a"), FINISHED]
    for [(status, error)], code, detail in [
        (http, 429, "too many"),
        (other, 500, "Internal server error"),
    ]:
        assert status == LitAPIStatus.ERROR
        assert isinstance(error, HTTPException)
        assert (error.status_code, error.detail) == (code, detail)


def test_without_what_it_rests_on_it_says_so_and_streams_go_on(monkeypatch):
    monkeypatch.setattr(setup, "NEEDED_OF_SERVER", ("response_buffer", "taken_away"))
    api = Words(stream=True, max_batch_size=2, loop=BatchedStreamLoop())
    with pytest.warns(RuntimeWarning, match="no LitServer.taken_away: streams go on"):
        server = ls.LitServer(api, accelerator="cpu")
    api.spec.setup(server)
    assert server.response_buffer == {}
    api.encode_response = lambda steps: iter([[Fail(HTTPException(429, "too many")), "x"]])
    [(status, error)], other = served(api, "a", "x")
    assert (status, error.status_code) == (LitAPIStatus.ERROR, 429)
    assert other == [*ok("x"), FINISHED]


# ---- collecting a batch


@pytest.mark.rule(29)
def test_the_wait_for_others_begins_with_the_first_request():
    api = ready(Words)
    api.max_batch_size, api.batch_timeout = 2, 30

    class Late(queue.Queue):
        """Says three times that it is empty."""

        times = 0

        def get(self, block=True, timeout=None):
            if self.times < 3:
                self.times += 1
                raise queue.Empty
            return super().get(block, timeout)

    waiting = Late()
    waiting.put((0, "r0", time.monotonic(), "a"))
    waiting.put((0, "r1", time.monotonic(), "b"))
    batch, timed_out = api.loop.get_batch_requests(api, waiting, Messages())
    assert [uid for _, uid, _ in batch] == ["r0", "r1"]
    assert timed_out == []
    assert waiting.times == 3


@pytest.mark.rule(29)
def test_an_idle_worker_with_no_batch_timeout_waits_in_the_queue():
    class Idle(queue.Queue):
        def get_nowait(self):
            raise AssertionError("polled")

        def get(self, block=True, timeout=None):
            assert timeout >= 1
            return _SENTINEL_VALUE

    api = ready(Words)
    with pytest.raises(_StopLoopError):
        api.loop.get_batch_requests(api, Idle(), Messages())


# ---- setting up


@pytest.mark.parametrize(
    ("options", "message"), [({"stream": False}, "stream=True"), ({"enable_async": True}, "async")]
)
def test_an_api_that_cannot_work_is_refused_at_the_start(options, message):
    class Async(Words):
        async def predict(self, inputs):
            yield inputs

        async def decode_request(self, request):
            return request

        async def encode_response(self, output_stream):
            yield output_stream

    cls = Async if "enable_async" in options else Words
    api = cls(**{"stream": True, "loop": BatchedStreamLoop(), **options})
    with pytest.raises(ValueError, match=message):
        ls.LitServer(api, accelerator="cpu")


def test_an_api_can_move_to_another_server_and_path():
    api = Words(stream=True, loop=BatchedStreamLoop())
    for path in ("/one", "/two"):
        api.api_path = path
        server = ls.LitServer(api, accelerator="cpu")
        paths = [route.path for route in server.app.routes]
        assert path in paths


def test_the_endpoint_asks_for_the_apis_own_authorization():
    class Guarded(Words):
        def authorize(self):
            raise HTTPException(401)

    api = Guarded(stream=True, loop=BatchedStreamLoop())
    server = ls.LitServer(api, accelerator="cpu")
    [route] = [route for route in server.app.routes if route.path == "/predict"]
    assert [depends.dependency for depends in route.dependencies] == [api.authorize]
