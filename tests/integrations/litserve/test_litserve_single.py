"""`max_batch_size=1`, LitServe's default: hooks take one request, as LitServe calls them then."""

import pickle
import queue
import time
from multiprocessing.reduction import ForkingPickler

import litserve as ls
import numpy as np
import pytest
from fastapi import HTTPException
from litserve.callbacks import CallbackRunner
from litserve.loops import StreamingLoop
from litserve.loops.base import _SENTINEL_VALUE, _StopLoopError
from test_litserve_loop import FAILED, FINISHED, Messages, ok

from batchstream import SKIP, End, Fail, Last, Many
from batchstream.integrations.litserve import BatchedStreamLoop, ContinuousBatchLoop
from batchstream.integrations.litserve._link.messages import Failure
from support.stepwise import MANY, numbers_of

PLACES = ["encode_response", "predict"]
everywhere = pytest.mark.parametrize("eos_in", PLACES)


class Letters(ls.LitAPI):
    """A request is the outputs that it gets."""

    request_timeout = 30

    def decode_request(self, request):
        return list(request)

    def predict(self, letters):
        yield from letters

    def encode_response(self, outputs):
        yield from outputs


def ready(cls=Letters, **options):
    """An API as it is in a worker, of LitServe's default size."""
    api = cls(stream=True, loop=BatchedStreamLoop(**options))
    api.pre_setup()
    api.loop.pre_setup(api)
    return pickle.loads(ForkingPickler.dumps(api))  # noqa: S301


def served(api, *requests):
    """Let the loop serve these requests, and return the messages to each."""
    transport, waiting = Messages(), queue.Queue()
    for number, request in enumerate(requests):
        waiting.put((0, f"r{number}", time.monotonic(), request))
    waiting.put(_SENTINEL_VALUE)
    try:
        api.loop(api, "cpu", 0, waiting, transport, {}, CallbackRunner())
    except _StopLoopError:
        assert isinstance(api.loop, BatchedStreamLoop)
    return [transport.sent.get(f"r{number}", []) for number in range(len(requests))]


# ---- the hooks


class Recording(Letters):
    def predict(self, letters, context):
        self.record.append(("predict", letters, dict(context)))
        yield from letters

    def decode_request(self, request, context):
        self.record.append(("decode_request", request, dict(context)))
        context["letters"] = len(request)
        return list(request)

    def encode_response(self, outputs, context):
        self.record.append(("encode_response", iter(outputs) is outputs, dict(context)))
        for output in outputs:
            yield output.upper()

    def batch(self, inputs):
        raise AssertionError("there are no batches")

    unbatch = batch


@pytest.mark.filterwarnings("ignore:The LitServer has both batch and unbatch")
@pytest.mark.parametrize("loop", [StreamingLoop, BatchedStreamLoop])
def test_hooks_are_called_with_single_values_as_in_the_stock_loop(loop):
    api = ready(Recording)
    api.loop, api.record = loop(), []
    got = served(api, "ab", "c")
    assert got == [[*ok("A", "B"), FINISHED], [*ok("C"), FINISHED]]
    by_name = {}
    for name, argument, context in api.record:
        by_name.setdefault(name, []).append((argument, context))
    assert by_name == {
        "decode_request": [("ab", {}), ("c", {})],
        "predict": [(["a", "b"], {"letters": 2}), (["c"], {"letters": 1})],
        "encode_response": [(True, {"letters": 2}), (True, {"letters": 1})],
    }


# What a batch has and this has not: lists of one, which the same API would take for its outputs.
@everywhere
def test_an_output_may_be_a_list_or_an_array(eos_in):
    api = ready(eos_in=eos_in)
    api.format_encoded_response = lambda output: str(np.asarray(output).tolist())
    assert served(api, [[1, 2], np.array([3, 4]), []]) == [
        [*ok("[1, 2]", "[3, 4]", "[]"), FINISHED]
    ]


# ---- ends

WAYS_TO_END = {
    "the last yield": ({}, ["a", "b"]),
    "None": ({}, ["a", "b", None, "c"]),
    "Last": ({}, ["a", Last("b"), "c"]),
    "End": ({}, ["a", "b", End("length"), "c"]),
    "Many and SKIP": ({}, [SKIP, Many(["a", Last("b")]), "c"]),
    "eos": ({"eos": False}, ["a", "b", False, "c"]),
    "is_eos": ({"is_eos": str.isspace}, ["a", "b", " ", "c"]),
    "max_outputs": ({"max_outputs": 2}, ["a", "b", "c"]),
}


@pytest.mark.rule(2, 7)
@everywhere
@pytest.mark.parametrize(("options", "outputs"), WAYS_TO_END.values(), ids=WAYS_TO_END)
def test_a_request_ends_in_every_way_and_the_next_is_served(eos_in, options, outputs):
    end = [*ok("a", "b"), FINISHED]
    assert served(ready(eos_in=eos_in, **options), outputs, outputs) == [end, end]


class Closing(Letters):
    closed = 0

    def predict(self, letters):
        try:
            yield from letters
            raise AssertionError("it was asked for more")
        finally:
            self.closed += 1


@pytest.mark.rule(10)
@everywhere
def test_the_model_is_closed_at_the_end_and_goes_no_further(eos_in):
    api = ready(Closing, eos_in=eos_in)
    assert served(api, ["a", Last("b")]) == [[*ok("a", "b"), FINISHED]]
    assert api.closed == 1


@everywhere
def test_a_model_that_stops_without_an_end_fails_its_request_if_that_was_asked(eos_in):
    assert served(ready(eos_in=eos_in, require_eos=True), "ab", ["c", None]) == [
        [*ok("a", "b"), FAILED],
        [*ok("c"), FINISHED],
    ]


class LettersEngine:
    def __init__(self, api):
        self.letters = {}

    def add(self, slot, letters):
        self.letters[slot] = iter(letters)

    def step(self):
        return {slot: next(letters, None) for slot, letters in self.letters.items()}

    def remove(self, slot):
        del self.letters[slot]


def test_an_engine_with_one_slot_takes_the_same_hooks():
    api = Letters(stream=True, loop=ContinuousBatchLoop(LettersEngine))
    api.pre_setup()
    api.loop.pre_setup(api)
    assert served(api, "ab", "c") == [[*ok("a", "b"), FINISHED], [*ok("c"), FINISHED]]


# ---- errors


@everywhere
@pytest.mark.parametrize("where", ["decode_request", "predict", "encode_response"])
@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ValueError("secret"), FAILED),
        (StopIteration("secret"), FAILED),
        (HTTPException(418, "short"), (FAILED[0], Failure(418, "short", None))),
    ],
    ids=["ValueError", "StopIteration", "HTTPException"],
)
def test_a_hook_that_raises_fails_its_request_and_the_next_is_served(eos_in, where, error, answer):
    api = ready(eos_in=eos_in)
    stock = getattr(api, where)

    def broken(request):
        setattr(api, where, stock)
        raise error

    setattr(api, where, broken)
    assert served(api, "a", "b") == [[answer], [*ok("b"), FINISHED]]


@everywhere
def test_a_fail_and_an_output_that_cannot_be_sent_fail_their_request(eos_in):
    failing = ["a", Fail(ValueError("secret"))], ["a", object()], "b"
    assert served(ready(eos_in=eos_in), *failing) == [
        [*ok("a"), FAILED],
        [*ok("a"), FAILED],
        [*ok("b"), FINISHED],
    ]


class Plain(ls.LitAPI):
    request_timeout = 30


@pytest.mark.parametrize(("cls", "hook"), [(Plain, "predict"), (Letters, "encode_response")])
@pytest.mark.parametrize("returned", ["text", ["a"], {"a": 1}], ids=["str", "list", "dict"])
def test_what_is_no_iterator_fails_the_request_and_is_never_taken_apart(
    cls, hook, returned, caplog
):
    api = ready(cls)
    setattr(api, hook, lambda _: returned)
    assert served(api, "a") == [[FAILED]]
    [record] = caplog.records
    assert "yield the outputs, or return iter(outputs)" in str(record.exc_info[1])


# ---- end to end


def test_a_stock_api_gives_the_same_with_the_loop_added(server, stock_server):
    plan = {"tag": "a", "plan": [["out", 0], ["out", "dé"], ["out", 1], ["stop"]]}
    stock, ours = (one.call(plan, path="/one")[0].wait() for one in (stock_server, server))
    assert _without_pid(ours) == _without_pid(stock)


def _without_pid(call):
    assert call.status == 200
    return [line.partition(', "pid"')[0] for line in call.body.decode().splitlines()]


SINGLE = ["/single", "/single_encode"]


@pytest.mark.rule(10, 13)
@pytest.mark.parametrize("path", SINGLE)
def test_a_client_that_leaves_ends_the_model_before_its_next_step(guests_of_one_worker, path):
    guests = guests_of_one_worker
    leaver = guests.send(path, "a", MANY)
    door = guests.street.door()
    assert door.next_line() == "decode a"
    for _ in range(2):
        assert door.next_line() == "step a"
        door.go()
    assert numbers_of([leaver.next_output()], "a") == [0]
    assert door.next_line() == "step a"
    next_one = guests.send(path, "b", 2)
    guests.server.wait_until_there_wait(1, path)
    leaver.leave()
    door.wait_for_departure_of("a")
    door.go()
    assert door.next_line() == "closed"

    door = guests.street.door()
    assert door.next_line() == "decode b"
    for _ in range(2):
        assert door.next_line() == "step b"
        door.go()
    assert door.next_line() == "closed"
    assert numbers_of(next_one.outputs(), "b") == [0, 1]
