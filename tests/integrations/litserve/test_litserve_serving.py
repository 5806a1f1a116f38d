"""What the loops do with requests of every kind, against a model too plain to be wrong."""

import contextlib
import logging
import pickle
import queue
import time
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any

import litserve as ls
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litserve.callbacks import CallbackRunner
from litserve.loops.base import _SENTINEL_VALUE, _StopLoopError
from litserve.transport.base import MessageTransport
from test_litserve_loop import FAILED, FINISHED, Messages, ok, raising

from batchstream import EOS, SKIP, End, Fail, Last, Many, Requeue
from batchstream.integrations.litserve import (
    BatchedStreamLoop,
    ContinuousBatchLoop,
)
from batchstream.integrations.litserve._server import setup
from batchstream.integrations.litserve._server.submit import submit
from batchstream.integrations.litserve._worker import context as worker_context
from batchstream.integrations.litserve._worker import continuous
from batchstream.integrations.litserve._worker.disconnects import Disconnects
from batchstream.integrations.litserve._worker.queue import RequestPrefetcher
from support.sources import TIMEOUT
from support.strategies import SHAPES, in_shape

PAUSE = "no more for now"
NEVER = 10**6


def is_full_stop(output):
    return output == "."


STYLES = {
    "None": ({}, None),
    "EOS": ({"eos": EOS}, EOS),
    "class": ({"eos": Disconnects}, Disconnects),
    "is_eos": ({"is_eos": is_full_stop}, "."),
    "is_eos, delivered": ({"is_eos": is_full_stop, "include_eos": True}, "."),
}


# ---- what is asked for, and what should come of it


@dataclass(eq=False)
class Request:
    """One request, and all that happens to it.

    Attributes:
        elements: What its slot gets, one in each step; then comes the mark.
        encoding: How its `encode_response` goes, where each request has its own.
        fails_at: The output at which that raises, or returns.
        fault: What goes wrong before its first step.
        back_at: In which of its steps the engine gives its slot back.
        back_after: Whether it does so behind what the request gets of that step, and not in place
            of it.
    """

    elements: list[Any]
    encoding: str
    fails_at: int
    fault: str | None
    back_at: int = NEVER
    back_after: bool = False
    entry: Any = None
    context: Any = None
    left_at: int = NEVER  # in which of its steps its client leaves; -1 before all
    broken_at: int = NEVER  # in which of its steps the engine raises
    steps: int = 0  # that an engine has made for it
    expected: list[Any] = field(default_factory=list)
    lasts_until: int = NEVER  # its last step


class Unsendable:
    """An output that cannot be sent."""

    def __add__(self, other):
        return self

    __radd__ = __add__


@dataclass
class Terms:
    """How ends are recognised, and how messages travel."""

    style: str
    limit: int | None
    collects: bool

    @property
    def options(self):
        return STYLES[self.style][0] | {"max_outputs": self.limit}

    @property
    def mark(self):
        return STYLES[self.style][1]


def read(part, terms):
    """Say which outputs a part of an element holds, and whether it is an end."""
    if part is SKIP:
        return [], None
    if isinstance(part, Fail):
        return [], FAILED
    if isinstance(part, Last):
        return [part.output], FINISHED
    if part == ".":
        return ["."] * terms.options.get("include_eos", False), FINISHED
    if part is EOS or part is terms.mark or isinstance(part, End):
        return [], FINISHED
    return [part], None


def parts_of(element):
    return element.outputs if type(element) is Many else [element]


def give(element, encoder, terms):
    """Give an encoder what an element holds, and say whether that is the end."""
    for part in parts_of(element):
        outputs, end = read(part, terms)
        for output in outputs:
            encoder.take(output)
        if end or encoder.taken == terms.limit:
            return end or FINISHED
    return None


def work_out(request, terms, *, encodes):
    """Say what a client gets, and after which of its steps its slot is free."""
    request.expected, request.lasts_until = [], -1
    if request.left_at < 0:
        return
    if request.fault in {"decode", "add"}:
        request.expected = [FAILED]
        return
    encoder = Encoder(request if encodes else None)
    for step, element in enumerate([*request.elements, terms.mark]):
        end = FAILED if step == request.broken_at else give(element, encoder, terms)
        if end is FINISHED:
            encoder.finish()
        if encoder.state:
            end = {"failed": FAILED, "returned": end or FINISHED}[encoder.state]
        if end or step == request.left_at:
            request.expected = [*ok(*encoder.sent), *([end] if end else [])]
            request.lasts_until = step
            return


class Encoder:
    """What an `encode_response` makes of the outputs that it has been given."""

    def __init__(self, request=None):
        self.how = request.encoding if request else "as they are"
        self.fails_at = request.fails_at if request else NEVER
        self.sent = []
        self.state = None
        self.taken = 0
        self._kept = None

    def take(self, output):
        self.taken += 1
        if self.state:
            return
        if self.how in {"raises", "returns"} and self.taken > self.fails_at:
            self.state = {"raises": "failed", "returns": "returned"}[self.how]
        elif self.how == "in pairs" and self._kept is None:
            self._kept = output
        else:
            self._send(output if self._kept is None else self._kept + output)
            self._kept = None

    def finish(self):
        if self.state:
            return
        if self._kept is not None:
            self._send(self._kept + "!")
        elif self.how == "one more":
            self._send("one more")

    def _send(self, element):
        if isinstance(element, Unsendable):
            self.state = "failed"
        else:
            self.sent.append(element)


def encode_response(outputs, context):
    """Do what the model above says, as a user would write it."""
    request = context["request"]
    for number, output in enumerate(outputs):
        if request.encoding == "raises" and number == request.fails_at:
            raise ValueError("encode_response")
        if request.encoding == "returns" and number == request.fails_at:
            return
        if request.encoding == "in pairs":
            yield output + next(outputs, "!")
        else:
            yield output
    if request.encoding == "one more":
        yield "one more"


OUTPUTS = st.sampled_from([*"abcdefgh", "", "ü"]) | st.builds(Unsendable)
ORDINARY = st.one_of(OUTPUTS, OUTPUTS, st.just(SKIP))
TERMINAL = st.one_of(
    st.just(EOS),
    st.builds(Last, OUTPUTS),
    st.builds(End),
    st.builds(lambda: Fail(ValueError("this request alone"))),
)
SEVERAL = st.builds(Many, st.lists(ORDINARY, max_size=3))
ENDING = st.builds(lambda *parts: Many(parts), ORDINARY, TERMINAL, ORDINARY)
ELEMENTS = st.builds(
    lambda first, last: first + last,
    st.lists(ORDINARY | SEVERAL, max_size=6),
    st.lists(TERMINAL | ENDING, max_size=1),
)
ALONE = ["as they are", "one more", "raises", "returns"]
LOOKING_AHEAD = ["as they are", "one more", "raises", "in pairs"]
TERMS = st.builds(
    Terms,
    style=st.sampled_from(list(STYLES)),
    limit=st.none() | st.integers(1, 5),
    collects=st.booleans(),
)


def requests(encodings, faults, **more):
    return st.builds(
        Request,
        elements=ELEMENTS,
        encoding=st.sampled_from(encodings),
        fails_at=st.integers(0, 4),
        fault=st.sampled_from([None] * 5 + list(faults)),
        **more,
    )


BACK = {"back_at": st.integers(0, 3) | st.just(NEVER), "back_after": st.booleans()}


def departures_of(wanted):
    """By number of step, over all that the model makes: whose clients leave in it."""
    return st.dictionaries(
        st.integers(0, 15), st.lists(st.sampled_from(wanted), max_size=2), max_size=4
    )


# ---- serving them


@pytest.fixture(autouse=True, scope="module")
def alone():
    """Leave signals alone, and the log: a traceback for each failure takes longer than the rest."""
    logger = logging.getLogger("batchstream.integrations.litserve")
    logger.disabled = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "install_signal_handlers", lambda *_: None)
        yield
    logger.disabled = False


class Server:
    """What an endpoint needs of a server: both ends of what goes to a worker, but no process."""

    active_requests = 0

    def __init__(self):
        self.response_buffer = {}
        self.requests = queue.Queue()
        self._callback_runner = CallbackRunner()

    def _get_request_queue(self, api_path):
        return self.requests

    def _inference_workers_config_for_api(self, api_path):
        return []


class Delivery(MessageTransport):
    """Puts each message where LitServe puts it."""

    def __init__(self, buffer):
        self._buffer = buffer

    def send(self, item, consumer_id):
        uid, (data, status, *_) = item
        entry = self._buffer[uid]
        entry.response_queue.append((data, status))
        entry.event.set()

    async def areceive(self, *_):
        raise NotImplementedError


class Plans(ls.LitAPI):
    """Serves `Request`s, and notes what is done to it."""

    request_timeout = 30

    def format_encoded_response(self, data):
        return data

    def decode_request(self, request, context):
        request.context = context
        context["request"] = request
        self.decoded.append(request)
        if request.fault == "leaves":
            self.let_leave(request, self.first_step_of_one_that_leaves_in_decode)
        if request.fault == "decode":
            raise ValueError("decode_request")
        return request

    def let_leave(self, request, step):
        """Let a client leave in a step of its own, or before its request is looked at."""
        if step is not None or request not in self.decoded:
            request.left_at = min(request.left_at, -1 if step is None else step)
            self.disconnects.add(request.entry.uid)


def ready(loop, size, wanted, *, encodes, collects):
    """An API as it is in a worker."""
    api = Plans(stream=True, max_batch_size=size, loop=loop)
    api.pre_setup()
    loop.pre_setup(api)
    api = pickle.loads(ForkingPickler.dumps(api))  # noqa: S301
    api.decoded = []
    api.disconnects = Disconnects()
    if encodes:
        api.encode_response = encode_response
    api.server = api.spec._server = Server()
    api.spec.response_queue_id = 0
    if collects:
        setup.connect(api.spec.link, api.server, api.api_path)
    for request in wanted:
        [request.entry] = submit(api.spec.link, api.spec, [request]).queues
    return api


def serve(api, waiting):
    """Let the loop serve what waits in the queue."""
    server, in_front = api.server, queue.Queue()
    for one in waiting:
        in_front.put(one if one is PAUSE else server.requests.get_nowait())
    in_front.put(_SENTINEL_VALUE)
    transport = Delivery(server.response_buffer)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_StopLoopError):
        patch.setattr(worker_context, "Disconnects", lambda _: api.disconnects)
        api.loop(api, "cpu", 0, in_front, transport, {}, CallbackRunner())
    assert in_front.empty()


def compare(api, wanted, terms, *, encodes, exactly):
    """Compare what was sent with what was to be.

    One that looks ahead lets the model go on before others' outputs have been encoded. So one that
    leaves then may miss outputs: that is not `exactly`.
    """
    for request in wanted:
        work_out(request, terms, encodes=encodes)
        got = [(status, data) for data, status in request.entry.response_queue]
        if exactly or request.left_at == NEVER:
            assert got == request.expected
        else:
            assert got == request.expected[: len(got)]
    assert not any(one.context.live for one in api.decoded if one.fault != "decode")


# ---- one batch after another


class Batches:
    """The hooks that make steps, and how they were treated."""

    def __init__(self, api, size, mark, leaving, shape):
        self._api = api
        self._size = size
        self._mark = mark
        self._leaving = leaving
        self._shape = shape
        self._steps = 0
        self.begun = []  # the members of each, and the live slots received at each step
        self.closed = []

    def rows(self, members):
        """Make the steps of one batch, whichever slots are live; where there are none, outputs."""
        if self._size == 1:
            members = [members]
        for step in range(20):
            row = []
            for request in members:
                scripted = [*request.elements, self._mark]
                after = [PAUSE, Last(PAUSE), SKIP, self._mark][step % 4]
                row.append(scripted[step] if step < len(scripted) else after)
            yield row if self._size > 1 else row[0]
        raise AssertionError("a batch was not ended")

    def listen(self, members, rows):
        """Pass the steps on, and keep the live slots that were received."""
        if self._size == 1:
            members = [members]
        heard = []
        self.begun.append((members, heard))
        live = None
        try:
            for step, row in enumerate(rows):
                heard.append(live)
                for request in self._leaving.get(self._steps, ()):
                    self._api.let_leave(request, step if request in members else None)
                self._steps += 1
                live = yield in_shape(self._shape(), row) if self._size > 1 else row
        finally:
            self.closed.append(members)

    def check(self, *, exactly):
        """Fail if they were treated badly, when all requests have been worked out."""
        assert [id(members) for members in self.closed] == [id(one) for one, _ in self.begun]
        for members, heard in self.begun:
            assert len(members) <= self._size
            if exactly:
                assert len(heard) == 1 + max(request.lasts_until for request in members)
                for step, live in enumerate(heard[1:], 1):
                    lasting = [n for n, one in enumerate(members) if one.lasts_until >= step]
                    assert live == (tuple(lasting) if self._size > 1 else None)


PLACES = ["encode_response", "predict", "predict, encoding each"]


@st.composite
def batch_plans(draw, encodings):
    size = draw(st.integers(1, 4))
    count = size * draw(st.integers(1, 3))  # the stock loop drops what it has at the sentinel
    one = requests(encodings, faults=["decode", "leaves"])
    wanted = draw(st.lists(one, min_size=count, max_size=count))
    return size, wanted, draw(departures_of(wanted))


def serve_batches(place, plan, terms, data, *, exactly):
    size, wanted, leaving = plan
    encodes = place == "predict, encoding each"
    loop = BatchedStreamLoop(eos_in=place.partition(",")[0], **terms.options)
    api = ready(loop, size, wanted, encodes=encodes, collects=terms.collects)
    api.first_step_of_one_that_leaves_in_decode = -1
    hooks = Batches(api, size, terms.mark, leaving, lambda: data.draw(SHAPES, label="shape"))
    if place == "encode_response":
        batch = []
        api.predict = lambda members: hooks.rows(batch.append(members) or members)
        api.encode_response = lambda steps: hooks.listen(batch[-1], steps)
    else:
        api.predict = lambda members: hooks.listen(members, hooks.rows(members))
    serve(api, wanted)
    compare(api, wanted, terms, encodes=encodes, exactly=exactly)
    hooks.check(exactly=exactly)


@pytest.mark.rule(2, 7)
@pytest.mark.parametrize("place", PLACES)
@given(plan=batch_plans(ALONE), terms=TERMS, data=st.data())
def test_each_request_of_a_batch_has_its_own_outputs_and_its_own_end(place, plan, terms, data):
    serve_batches(place, plan, terms, data, exactly=True)


@pytest.mark.rule(2, 7)
@given(plan=batch_plans(LOOKING_AHEAD), terms=TERMS, data=st.data())
def test_requests_of_a_batch_have_their_own_outputs_where_some_look_ahead(plan, terms, data):
    serve_batches(PLACES[-1], plan, terms, data, exactly=False)


# ---- an engine


class InLine:
    """Takes requests in the thread that asks, so that the test decides when each joins.

    At a pause there is nothing more, unless the loop waits, or asks again.
    """

    made: Any = None

    def __init__(self, request_queue, taken):
        self._queue = request_queue
        self._paused = False
        self._ended = False
        self.over = False
        self.told = []  # to fetch: how many waited each time
        self.recalled = []  # the same
        type(self).made = self

    def fetch(self):
        self.told.append(self._queue.qsize())

    def recall(self):
        self.recalled.append(self._queue.qsize())

    def take(self, *, block):
        while not self._ended:
            one = self._queue.queue[0]
            if one is PAUSE and not block and not self._paused:
                self._paused = True
                return None
            assert self._queue.get_nowait() is one
            if one is PAUSE:
                self._paused = False
            elif one == _SENTINEL_VALUE:
                self._ended = True
            else:
                return one
        self.over = True
        return None

    def close(self):
        return []


class Engines:
    """Makes engines, which note how they were treated.

    Args:
        terms: How ends are recognised.
        leaving: By number of step, over all engines: whose clients leave in it.
        raises: In which steps an engine raises.
        encodes: Whether there is an `encode_response`.
    """

    def __init__(self, api, terms, leaving, raises, *, encodes):
        self.api = api
        self.terms = terms
        self.encodes = encodes
        self.leaving = leaving
        self.raises = raises
        self.steps = 0
        self.made = []
        self.joined = []
        self.given_back = []  # and not added again

    def forget(self):
        """Break off the requests that were given back, and have had an output; an engine raises.

        It alone knew how to go on with them.
        """
        for request in self.given_back:
            work_out(request, self.terms, encodes=self.encodes)
            parts = [
                part for element in request.elements[: request.steps] for part in parts_of(element)
            ]
            has_output = any(read(part, self.terms)[0] for part in parts)
            if has_output and request.lasts_until >= request.steps:
                request.broken_at = request.steps
                request.steps += 1

    def make(self):
        assert all(engine.broken for engine in self.made), "there was one"
        self.made.append(Engine(self))
        return self.made[-1]


class Engine:
    def __init__(self, engines):
        self._all = engines
        self.slots = {}
        self.broken = False

    def add(self, slot, request):
        assert not self.broken
        assert slot in range(self._all.api.max_batch_size)
        assert slot not in self.slots, "a slot is used by two"
        if request in self._all.given_back:
            self._all.given_back.remove(request)
            self.slots[slot] = request
            return
        self._all.joined.append(request)
        if request.fault == "add":
            raise ValueError("add")
        self.slots[slot] = request

    def step(self):
        assert not self.broken
        assert self.slots, "a step without a request"
        number, self._all.steps = self._all.steps, self._all.steps + 1
        breaks = number in self._all.raises
        for request in self._all.leaving.get(number, ()):
            self._all.api.let_leave(request, self._last_step_of(request, breaks=breaks))
        step = {}
        for slot, request in self.slots.items():
            scripted = [*request.elements, self._all.terms.mark, *[PAUSE] * 100]
            element = scripted[request.steps]
            gives_back = request.back_at == request.steps and not breaks
            if gives_back:
                request.back_at = NEVER
                self._all.given_back.append(request)
                parts = element.outputs if type(element) is Many else [element]
                element = Many([*parts, Requeue()]) if request.back_after else Requeue()
            step[slot] = element
            if breaks:
                request.broken_at = request.steps
            if not gives_back or request.back_after:
                request.steps += 1
        if breaks:
            self._all.forget()
            self.broken = True
            raise OSError("the engine")
        return step

    def _last_step_of(self, request, *, breaks):
        """Which of its own steps is the last one of a request whose client leaves now, if any."""
        if request in self.slots.values():
            back = request.back_at == request.steps and not request.back_after and not breaks
            return request.steps - back
        return request.steps - 1 if request in self._all.given_back else None

    def remove(self, slot):
        assert not self.broken
        assert slot in self.slots, "removed, and not there"
        del self.slots[slot]


def make_engine(api):
    return api.engines.make()


@st.composite
def engine_plans(draw, encodings):
    one = requests(encodings, faults=["decode", "leaves", "add"], **BACK)
    wanted = draw(st.lists(one, min_size=1, max_size=8))
    for request in wanted:
        # One that leaves as it is decoded has its first step: see `serve_engines`.
        request.back_after |= request.fault == "leaves" and request.back_at == 0
    size = draw(st.integers(1, 4))
    raises = draw(st.sets(st.integers(0, 15), max_size=2))
    return size, wanted, draw(departures_of(wanted)), raises


def serve_engines(plan, terms, waiting, *, encodes, exactly):
    size, wanted, leaving, raises = plan
    loop = ContinuousBatchLoop(make_engine, max_pending=None, **terms.options)
    api = ready(loop, size, wanted, encodes=encodes, collects=terms.collects)
    api.first_step_of_one_that_leaves_in_decode = 0  # it is in the step that follows at once
    api.engines = engines = Engines(api, terms, leaving, raises, encodes=encodes)
    serve(api, waiting)
    compare(api, wanted, terms, encodes=encodes, exactly=exactly)
    assert not any(engine.slots for engine in engines.made if not engine.broken), "not removed"
    assert engines.joined == [one for one in wanted if one in engines.joined], "not in their order"
    assert len(set(engines.joined)) == len(engines.joined)
    if exactly:
        for request in wanted:
            assert request.steps == request.lasts_until + 1


@pytest.mark.rule(2, 7, 30)
@pytest.mark.parametrize("encodes", [False, True], ids=["no encode_response", "encode_response"])
@given(plan=engine_plans(ALONE), terms=TERMS, data=st.data())
def test_each_request_of_an_engine_has_its_own_outputs_and_its_own_end(encodes, plan, terms, data):
    check_in_line(plan, terms, data, encodes=encodes, exactly=True)


@pytest.mark.rule(2, 7, 30)
@given(plan=engine_plans(LOOKING_AHEAD), terms=TERMS, data=st.data())
def test_requests_of_an_engine_have_their_own_outputs_where_some_look_ahead(plan, terms, data):
    check_in_line(plan, terms, data, encodes=True, exactly=False)


def check_in_line(plan, terms, data, **how):
    _, wanted, *_ = plan
    waiting = []
    for request in wanted:
        waiting += [PAUSE] * data.draw(st.sampled_from([0, 0, 1, 4]), label="pauses") + [request]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuous, "RequestPrefetcher", InLine)
        serve_engines(plan, terms, waiting, **how)


@pytest.mark.rule(2, 7, 30)
@given(plan=engine_plans(ALONE), terms=TERMS)
def test_requests_have_their_own_outputs_when_a_thread_fetches_them_from_the_queue(plan, terms):
    _, wanted, *_ = plan
    serve_engines(plan, terms, wanted, encodes=True, exactly=True)


# ---- requests that are easily forgotten


class Letters(ls.LitAPI):
    """A request is the elements that its engine gives it, one in each step."""

    request_timeout = 30

    def decode_request(self, request):
        return request


class LetterEngine:
    def __init__(self, api):
        self.api = api
        self.slots = {}

    def add(self, slot, request):
        self.slots[slot] = iter(request)

    def step(self):
        self.api.in_step()
        return {slot: next(elements, EOS) for slot, elements in self.slots.items()}

    def remove(self, slot):
        del self.slots[slot]


class Waiting(queue.Queue):
    """A queue of requests."""

    def __init__(self, *requests):
        super().__init__()
        for number, request in enumerate(requests):
            self.add(f"r{number}", request)

    def add(self, uid, request):
        self.put((0, uid, time.monotonic(), request))


def letters(**hooks):
    loop = ContinuousBatchLoop(LetterEngine, max_pending=None)
    api = Letters(stream=True, max_batch_size=4, loop=loop)
    api.pre_setup()
    loop.pre_setup(api)
    api.in_step = lambda: None
    for name, hook in hooks.items():
        setattr(api, name, hook)
    return api


def run(api, waiting, transport=None):
    transport = transport or Messages()
    api.loop(api, "cpu", 0, waiting, transport, {}, CallbackRunner())
    return transport.sent


@pytest.mark.rule(9)
def test_the_sentinel_ends_the_loop_behind_all_that_came_before_it():
    waiting = Waiting("bad")

    def decode_request(request):
        if request == "bad":  # meanwhile come the others, and the end
            waiting.add("r1", "ab")
            waiting.put(_SENTINEL_VALUE)
            raise ValueError(request)
        return request

    sent = run(letters(decode_request=decode_request), waiting)
    assert sent == {"r0": [FAILED], "r1": [*ok("a", "b"), FINISHED]}


@pytest.mark.rule(9, 14)
@pytest.mark.parametrize("stopping", [SystemExit, GeneratorExit])
def test_requests_that_have_ended_get_an_end_when_another_stops_the_worker(stopping, monkeypatch):
    monkeypatch.setattr(continuous, "RequestPrefetcher", InLine)
    waiting = Waiting(["stop"], [Last("a")], ["x", "y"])
    waiting.put(_SENTINEL_VALUE)
    encode_response = raising(stopping, at="stop")
    api, transport = letters(encode_response=encode_response), Messages()
    with pytest.raises(stopping):
        run(api, waiting, transport)
    assert sorted(transport.sent) == ["r0", "r1", "r2"]
    assert {uid for uid, sent in transport.sent.items() if sent[-1] == FAILED} >= {"r0", "r2"}
    assert transport.sent["r1"][-1] in (FAILED, FINISHED)


class Seen(RequestPrefetcher):
    """One that the test can find, and ask whether it has fetched the next."""

    made: Any = None

    def __init__(self, *args):
        type(self).made = self
        super().__init__(*args)

    def wait_until_it_has_one(self):
        while not self._fetched:
            assert self._changed.wait(TIMEOUT)


@pytest.mark.rule(9, 14)
def test_a_request_that_is_to_join_fails_when_the_worker_is_stopped_and_none_in_the_queue(
    monkeypatch,
):
    monkeypatch.setattr(continuous, "RequestPrefetcher", Seen)
    waiting = Waiting("ab")

    def in_step():
        waiting.add("r1", "xy")
        waiting.add("r2", "st")
        Seen.made.wait_until_it_has_one()
        raise SystemExit

    api, transport = letters(in_step=in_step), Messages()
    with pytest.raises(SystemExit):
        run(api, waiting, transport)
    assert transport.sent == {"r0": [FAILED], "r1": [FAILED]}
    assert [uid for _, uid, *_ in waiting.queue] == ["r2"]


@pytest.mark.rule(2)
def test_a_transport_that_fails_while_an_encoder_looks_ahead_stops_the_worker():
    def encode_response(outputs):
        for output in outputs:
            yield output + (next(outputs) if output == "2" else "")

    api = letters(encode_response=encode_response)
    server = api.spec._server = Server()
    api.spec.response_queue_id = 0
    setup.connect(api.spec.link, server, api.api_path)
    queues = [submit(api.spec.link, api.spec, [one]).queues[0] for one in ("abcd", "1234")]

    class FailsOnce(Delivery):
        calls = 0

        def send(self, item, consumer_id):
            self.calls += 1
            if self.calls == 2:
                raise OSError("once")
            super().send(item, consumer_id)

    server.requests.put(_SENTINEL_VALUE)
    with pytest.raises(OSError, match="once"):
        api.loop(
            api, "cpu", 0, server.requests, FailsOnce(server.response_buffer), {}, CallbackRunner()
        )
    for entry in queues:
        assert FINISHED[0] not in [status for _, status in entry.response_queue]


@pytest.mark.rule(15)
@pytest.mark.parametrize("loop", [BatchedStreamLoop, ContinuousBatchLoop])
def test_an_encode_response_that_asks_while_it_is_called_fails_its_request_alone(loop):
    def encode_response(outputs, context):
        if context["early"]:
            return iter([next(outputs)])
        return (output for output in outputs)

    def decode_request(request, context):
        context["early"] = request == "early"
        return request

    def predict(inputs):
        yield from zip(*inputs, strict=False)  # as long as the shortest
        yield [EOS] * len(inputs)

    api = letters(encode_response=encode_response, decode_request=decode_request, predict=predict)
    waiting = Waiting("early", "ab")
    waiting.put(_SENTINEL_VALUE)
    if loop is BatchedStreamLoop:
        api.loop, api.max_batch_size = BatchedStreamLoop(eos_in="predict"), 2
    transport = Messages()
    with contextlib.suppress(_StopLoopError):
        run(api, waiting, transport)
    assert transport.sent == {"r0": [FAILED], "r1": [*ok("a", "b"), FINISHED]}
