"""What the loops take, what of it they refuse, and an `encode_response` for each request."""

import enum
import itertools
import operator
import pickle
import threading
import time
from contextvars import ContextVar
from multiprocessing.reduction import ForkingPickler

import litserve as ls
import numpy as np
import pytest
from litserve.callbacks import CallbackRunner
from litserve.loops.base import _SENTINEL_VALUE, _StopLoopError
from test_litserve_loop import FAILED, FINISHED, Messages, ok, raising

from batchstream import EOS, SKIP, End, Fail, Last, Many, Metrics, per_request, token_ids
from batchstream._core.arguments import Bound
from batchstream._core.rules import EndRules
from batchstream.integrations.litserve import BatchedStreamLoop, ContinuousBatchLoop
from support.litserve_queue import RequestQueue
from support.sources import TIMEOUT

PAD = "<pad>"


class Mark(enum.Enum):
    END = 1


class Stop:
    """Itself the mark: a class is found again by its name."""


def is_full_stop(output):
    return output == "."


def two_arguments(_request, _headers):
    raise AssertionError


def stop_in_context(context):
    stop = context["stop"]
    if isinstance(stop, Exception):
        raise stop
    return stop


def limit_in_context(context):
    limit = context["limit"]
    if isinstance(limit, Exception):
        raise limit
    return limit


class Letters(ls.LitAPI):
    """A request is the elements that its slot gets, one in each step; then come pads for ever."""

    request_timeout = 30

    def decode_request(self, request):
        return list(request)

    def predict(self, inputs):
        for position in range(20):
            yield [letters[position] if position < len(letters) else PAD for letters in inputs]
        raise AssertionError("a batch was not ended")

    def format_encoded_response(self, data):
        return data if isinstance(data, bytes | list) else str(data)


class Stepwise(Letters):
    def encode_response(self, steps):
        yield from steps


class OneByOne(Letters):
    def encode_response(self, outputs):
        yield from outputs


class Engine:
    """The same as `predict`, for a loop that refills slots."""

    def __init__(self, lit_api):
        lit_api.engine = self
        self.calls = []
        self.slots = {}

    def add(self, slot, request):
        self.calls.append(("add", slot))
        self.slots[slot] = itertools.chain(request, [PAD] * 20, [Fail(AssertionError("not ended"))])

    def step(self):
        self.calls.append(("step", *self.slots))
        return {slot: next(elements) for slot, elements in self.slots.items()}

    def remove(self, slot):
        self.calls.append(("remove", slot))
        del self.slots[slot]


def steps_of_encode_response(**options):
    return Stepwise, BatchedStreamLoop(**options)


def steps_of_predict(**options):
    return OneByOne, BatchedStreamLoop(eos_in="predict", **options)


def no_encode_response(**options):
    return Letters, BatchedStreamLoop(**options)


def engine(**options):
    return OneByOne, ContinuousBatchLoop(Engine, **options)


def engine_without_encode_response(**options):
    return Letters, ContinuousBatchLoop(Engine, **options)


EVERYWHERE = [
    steps_of_encode_response,
    steps_of_predict,
    no_encode_response,
    engine,
    engine_without_encode_response,
]
everywhere = pytest.mark.parametrize("where", EVERYWHERE, ids=lambda where: where.__name__)
for_each_request = pytest.mark.parametrize(
    "where", [steps_of_predict, engine], ids=lambda where: where.__name__
)


def ready(where, **options):
    """An API as it is in a worker: LitServe has set it up, and it has been spawned there."""
    cls, loop = where(**options)
    api = cls(stream=True, max_batch_size=3, loop=loop)
    api.pre_setup()
    loop.pre_setup(api)
    return pickle.loads(ForkingPickler.dumps(api))  # noqa: S301


def served(api, *requests, waiting=None, transport=None):
    """Let the loop serve these requests, and return the messages to each."""
    transport = transport or Messages()
    waiting = waiting or RequestQueue()
    if isinstance(api.loop, BatchedStreamLoop):
        api.max_batch_size = max(2, len(requests))
    for number, request in enumerate(requests):
        waiting.put((0, f"r{number}", time.monotonic(), request))
    waiting.put(_SENTINEL_VALUE)
    try:
        api.loop(api, "cpu", 0, waiting, transport, {}, CallbackRunner())
    except _StopLoopError:
        assert isinstance(api.loop, BatchedStreamLoop)
    return [transport.sent.get(f"r{number}", []) for number in range(len(requests))]


# ---- how an end is recognised

MARKS = {
    "None": ({}, ["a", "b", None], "ab"),
    "EOS": ({}, ["a", "b", EOS], "ab"),
    "None is data": ({"eos": EOS}, ["a", None, EOS], ["a", "None"]),
    "EOS beside another mark": ({"eos": Mark.END}, ["a", EOS], "a"),
    "enum member": ({"eos": Mark.END}, ["a", None, Mark.END], ["a", "None"]),
    "class": ({"eos": Stop}, ["a", Stop], "a"),
    "False": ({"eos": False}, ["a", 0, False], ["a", "0"]),
    "is_eos": ({"is_eos": is_full_stop}, "ab.", "ab"),
    "is_eos, delivered": ({"is_eos": is_full_stop, "include_eos": True}, "ab.", "ab."),
    "token_ids": ({"is_eos": token_ids(2, 7)}, [5, 1, 7], "51"),
    "token_ids, delivered": ({"is_eos": token_ids(2), "include_eos": True}, [5, 2], "52"),
    "Last": ({}, ["a", Last("b")], "ab"),
    "Last of what is_eos would know": ({"is_eos": is_full_stop}, ["a", Last(".")], "a."),
    "End": ({}, ["a", "b", End("length", {"tokens": 2})], "ab"),
    "End at once": ({}, [End()], ""),
    "SKIP": ({}, [SKIP, "a", SKIP, "b", None], "ab"),
    "Many": ({}, [Many(["a", "b"]), Many([]), Many(["c", EOS, "d"])], "abc"),
    "Many with Last": ({}, [Many(["a", Last("b"), "c"])], "ab"),
    "max_outputs": ({"max_outputs": 2}, "abcd", "ab"),
    "max_outputs within Many": ({"max_outputs": 2}, [Many(["a", "b", "c"])], "ab"),
    "max_outputs, but an end before": ({"max_outputs": 3}, ["a", None], "a"),
}


@pytest.mark.rule(7)
@everywhere
@pytest.mark.parametrize(("options", "elements", "outputs"), MARKS.values(), ids=MARKS)
def test_a_request_ends_at_its_mark_whatever_the_mark_is(where, options, elements, outputs):
    other = ["u", *elements]  # ends a step later
    limited = "max_outputs" in options and outputs == "ab"
    expected = ["u", *outputs][: 2 if limited else None]
    assert served(ready(where, **options), elements, other) == [
        [*ok(*outputs), FINISHED],
        [*ok(*expected), FINISHED],
    ]


@pytest.mark.rule(15)
@everywhere
def test_a_fail_ends_its_own_request(where):
    got = served(ready(where), ["a", Fail(ValueError("secret")), "b"], ["x", "y", "z", None])
    assert got == [[*ok("a"), FAILED], [*ok("x", "y", "z"), FINISHED]]


@pytest.mark.rule(15)
@everywhere
def test_a_predicate_that_raises_fails_the_request_that_it_was_asked_about(where):
    api = ready(where, is_eos=token_ids(1))
    raises = EndRules(is_eos=lambda output: {"a": False, "y": True}[output])
    object.__setattr__(api.loop._options, "rules", raises)  # as it does not pickle
    assert served(api, "ab", "ay") == [[*ok("a"), FAILED], [*ok("a"), FINISHED]]


class Ending(Letters):
    """Its model stops with the longest request."""

    def predict(self, inputs):
        for position in range(max(map(len, inputs))):
            yield [letters[position] if position < len(letters) else SKIP for letters in inputs]


class EndingStepwise(Ending):
    encode_response = Stepwise.encode_response


class EndingOneByOne(Ending):
    encode_response = OneByOne.encode_response


@pytest.mark.parametrize(
    ("cls", "eos_in"),
    [
        (EndingStepwise, "encode_response"),
        (EndingOneByOne, "predict"),
        (Ending, "predict"),
        (Ending, "encode_response"),
    ],
)
@pytest.mark.parametrize("required", [False, True], ids=["exhausted", "require_eos"])
def test_requests_that_are_left_when_the_model_stops_end_or_fail_as_was_asked(
    cls, eos_in, required
):
    def where(**options):
        return cls, BatchedStreamLoop(eos_in=eos_in, **options)

    end = FAILED if required else FINISHED
    got = served(ready(where, require_eos=required), ["a", None], "xyz")
    assert got == [[*ok("a"), FINISHED], [*ok("x", "y", "z"), end]]


@pytest.mark.rule(27)
@everywhere
def test_a_mark_is_the_same_object_in_the_worker(where):
    loop = ready(where, eos=Mark.END).loop
    assert loop._options.rules.eos is Mark.END


# ---- a limit of one's own


class Limited(Letters):
    def decode_request(self, request, context):
        context["limit"], letters = request
        return list(letters)


class LimitedStepwise(Limited):
    encode_response = Stepwise.encode_response


class LimitedOneByOne(Limited):
    encode_response = OneByOne.encode_response


def limited(where):
    def limited_where(**options):
        cls, loop = where(**options)
        mine = {Letters: Limited, Stepwise: LimitedStepwise, OneByOne: LimitedOneByOne}
        return mine[cls], loop

    return ready(limited_where, max_outputs=limit_in_context)


@everywhere
def test_each_request_may_have_a_limit_of_its_own(where):
    got = served(limited(where), (1, "abc"), (3, "xyzt"), (None, ["u", None]))
    assert got == [
        [*ok("a"), FINISHED],
        [*ok("x", "y", "z"), FINISHED],
        [*ok("u"), FINISHED],
    ]


@pytest.mark.rule(15)
@everywhere
@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (0, "max_outputs must be at least 1, got 0"),
        (-1, "max_outputs must be at least 1, got -1"),
        ("3", "max_outputs takes a whole number, got '3'"),
        (True, "max_outputs takes a whole number, got True"),
        (2.5, "max_outputs takes a whole number, got 2.5"),
        (KeyError("tokens"), "tokens"),
    ],
    ids=repr,
)
def test_a_limit_that_is_none_fails_its_request_alone(where, limit, said, caplog):
    bad, good = served(limited(where), (limit, "abc"), (2, "xyz"))
    assert bad == [FAILED]
    assert good == [*ok("x", "y"), FINISHED]
    [record] = caplog.records
    assert said in str(record.exc_info[1])


# ---- a predicate of one's own


class Stopping(Letters):
    def decode_request(self, request, context):
        context["stop"], context["limit"], letters = request
        return list(letters)


class StoppingStepwise(Stopping):
    encode_response = Stepwise.encode_response


class StoppingOneByOne(Stopping):
    encode_response = OneByOne.encode_response


def stopping(where, **options):
    def stopping_where(**options):
        cls, loop = where(**options)
        mine = {Letters: Stopping, Stepwise: StoppingStepwise, OneByOne: StoppingOneByOne}
        return mine[cls], loop

    return ready(stopping_where, is_eos=per_request(stop_in_context), **options)


@pytest.mark.rule(7)
@everywhere
@pytest.mark.parametrize("include_eos", [False, True])
def test_each_request_may_have_a_predicate_of_its_own(where, include_eos):
    api = stopping(where, include_eos=include_eos, max_outputs=limit_in_context)
    got = served(
        api,
        (token_ids(2), None, [1, 2, 3]),
        (token_ids(3, 4), 9, [1, 2, 3]),
        (None, 2, [1, 2, 3]),
    )
    stops = [("2",), ("3",), ()] if include_eos else [()] * 3
    assert got == [
        [*ok("1", *stops[0]), FINISHED],
        [*ok("1", "2", *stops[1]), FINISHED],
        [*ok("1", "2"), FINISHED],
    ]


@pytest.mark.rule(30)
def test_in_a_slot_that_is_used_again_each_request_has_its_own_predicate():
    stops = [token_ids(1), token_ids(3), None, token_ids(2)] * 2
    got = served(stopping(engine), *((stop, None, [1, 2, 3, EOS]) for stop in stops))
    given = [(), ("1", "2"), ("1", "2", "3"), ("1",)] * 2
    assert got == [[*ok(*outputs), FINISHED] for outputs in given]


@pytest.mark.rule(15)
@everywhere
@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (2, "what per_request(stop_in_context) returns must be a function of one output, got 2"),
        ([2, 3], "return token_ids(2, 3)"),
        ("</s>", "return lambda output: output == '</s>'"),
        (KeyError("stop_ids"), "stop_ids"),
    ],
    ids=repr,
)
def test_a_predicate_that_is_none_fails_its_request_alone(where, stop, said, caplog):
    bad, good = served(stopping(where), (stop, None, "abc"), (is_full_stop, None, "xy."))
    assert bad == [FAILED]
    assert good == [*ok("x", "y"), FINISHED]
    [record] = caplog.records
    assert said in str(record.exc_info[1])


# ---- what is refused

MERGE = {"on_overflow": "merge", "merge": operator.add}
BYTES = {"max_buffered_bytes": 9}

IN_BOTH = [
    ({"eos": object()}, ValueError, "eos is compared by identity, which <object .* loses"),
    ({"eos": 2}, ValueError, r"pass is_eos=token_ids\(2\)"),
    ({"eos": "</s>"}, ValueError, "pass is_eos="),
    ({"eos": SKIP}, ValueError, "eos must not be a marker that means something else"),
    ({"eos": threading.Lock()}, TypeError, "eos has to be known by its name in LitServe's workers"),
    ({"is_eos": lambda _: True}, TypeError, "is_eos has to be known by its name"),
    ({"is_eos": 2}, TypeError, "is_eos takes a function of one output, got 2"),
    (
        {"is_eos": per_request(lambda _: None)},
        TypeError,
        r"is_eos has to be known by its name .* got per_request\(.*lambda",
    ),
    ({"max_outputs": lambda _: 1}, TypeError, "max_outputs has to be known by its name"),
    ({"max_outputs": 0}, ValueError, "max_outputs must be at least 1, got 0"),
    ({"max_outputs": True}, TypeError, "max_outputs takes a whole number, got True"),
    ({"max_outputs": "3"}, TypeError, "max_outputs takes a whole number, got '3'"),
    ({"max_pending": 0}, ValueError, "max_pending must be at least 1, got 0"),
    ({"max_pending": True}, TypeError, "max_pending takes a whole number, got True"),
    ({"max_pending": "3"}, TypeError, "max_pending takes a whole number, got '3'"),
    ({"max_buffered": 0}, ValueError, "max_buffered must be at least 1, got 0"),
    ({"max_buffered": True}, TypeError, "max_buffered takes a whole number, got True"),
    ({"on_overflow": "wait"}, ValueError, "'wait' is not for these loops: one client would hold"),
    ({"on_overflow": "drop"}, ValueError, "must be 'wait', 'cancel' or 'merge', got 'drop'"),
    ({"on_overflow": "merge"}, TypeError, "on_overflow='merge' needs merge"),
    ({"merge": operator.add}, TypeError, "merge goes with on_overflow='merge', got"),
    ({**MERGE, "merge": 1}, TypeError, "merge takes a function of two outputs, got 1"),
    ({**MERGE, "merge": is_full_stop}, TypeError, "merge is called with two outputs, which"),
    ({**MERGE, "merge": lambda a, b: a + b}, TypeError, "merge has to be known by its name"),
    ({**MERGE, "max_buffered": None}, ValueError, "max_buffered=None is any number"),
    ({"max_buffered_bytes": 0}, ValueError, "max_buffered_bytes must be at least 1, got 0"),
    ({"max_buffered_bytes": "1"}, TypeError, "max_buffered_bytes takes a whole number, got '1'"),
    ({"size_of": len}, TypeError, "size_of says what an output takes of max_buffered_bytes"),
    ({**BYTES, "size_of": 1}, TypeError, "size_of takes a function of one output, got 1"),
    ({**BYTES, "size_of": lambda _: 1}, TypeError, "size_of has to be known by its name"),
    ({"grace_period": None}, TypeError, "grace_period must be a number, got None"),
    ({"grace_period": -1}, ValueError, "grace_period must be at least 0, got -1"),
    ({"grace_period": float("inf")}, ValueError, "grace_period must be finite, got inf"),
    ({"first_timeout": -1}, ValueError, "first_timeout must be at least 0, got -1"),
    ({"gap_timeout": "2"}, TypeError, "gap_timeout must be a number, got '2'"),
    ({"metrics": Metrics()}, TypeError, "metrics takes a function without arguments that makes"),
    ({"metrics": is_full_stop}, TypeError, "without arguments, which is_full_stop.output. does"),
    ({"metrics": lambda: None}, TypeError, "metrics has to be known by its name"),
    ({"priority": 1}, TypeError, "priority takes a function of one request, got 1"),
    ({"priority": lambda _: 1}, TypeError, "priority has to be known by its name"),
    ({"tenant": two_arguments}, TypeError, "tenant is called with a ReceivedRequest, which"),
    ({"share": is_full_stop}, TypeError, "share is about tenants, and there is no tenant"),
    ({"cost": is_full_stop}, TypeError, "cost is what a request takes of its tenant's share"),
    ({"max_pending_cost": 3}, TypeError, "max_pending_cost needs cost"),
    ({"max_pending_cost": 0, "cost": is_full_stop}, ValueError, "max_pending_cost must be more"),
    ({"max_pending_cost": "3", "cost": is_full_stop}, TypeError, "max_pending_cost must be a num"),
    ({"max_pending_cost": 3, "cost": lambda _: 1}, TypeError, "cost has to be known by its name"),
    ({"wait_timeout": -1}, ValueError, "wait_timeout must be at least 0, got -1"),
    ({"wait_timeout": "2"}, TypeError, "wait_timeout must be a number, got '2'"),
    ({"cost": 2, "tenant": is_full_stop}, TypeError, "cost takes a function of one request"),
    ({"max_pending_per_tenant": 3}, TypeError, "max_pending_per_tenant is about tenants"),
    (
        {"max_pending_per_tenant": 0, "tenant": is_full_stop},
        ValueError,
        "max_pending_per_tenant must be at least 1, got 0",
    ),
]


@pytest.mark.parametrize(
    "make", [BatchedStreamLoop, lambda **options: ContinuousBatchLoop(Engine, **options)]
)
@pytest.mark.parametrize(("options", "error", "said"), IN_BOTH, ids=[said for *_, said in IN_BOTH])
def test_what_cannot_work_is_refused_where_it_is_written(make, options, error, said):
    with pytest.raises(error, match=said):
        make(**options)


class Half:
    def __init__(self, api):
        pass

    def add(self, slot, request):
        pass

    def step(self):
        return {}


class Aloof(Half):
    def __init__(self):
        pass

    def remove(self, slot):
        pass


@pytest.mark.parametrize("loop", [BatchedStreamLoop, ContinuousBatchLoop])
def test_the_class_of_a_loop_is_no_loop(loop):
    api = ls.test_examples.SimpleLitAPI(loop=loop)
    with pytest.raises(TypeError, match=r"was given its class: call it, loop=BatchedStreamLoop"):
        ls.LitServer(api, accelerator="cpu")


@pytest.mark.parametrize("eos_in", ["decode_request", "unbatch", None, True])
def test_ends_are_in_one_of_two_places(eos_in):
    with pytest.raises(ValueError, match="eos_in must be 'encode_response' or 'predict', got"):
        BatchedStreamLoop(eos_in=eos_in)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (lambda _: Engine, "engine_factory has to be known by its name in LitServe's workers"),
        (None, "engine_factory takes a function of the API"),
        ("Engine", "engine_factory takes a function of the API"),
        (Aloof, r"called with the API, which the class Aloof\(\) does not take: let it take that"),
        (Half, "the class engine_factory must have the methods add, step and remove, got .*remove"),
    ],
    ids=["lambda", "None", "text", "takes no API", "no engine"],
)
def test_an_engine_is_made_by_what_the_workers_can_call(factory, said):
    with pytest.raises(TypeError, match=said):
        ContinuousBatchLoop(factory)


def test_the_loops_differ_in_how_many_may_wait_by_default():
    apis = [ready(where) for where in EVERYWHERE]
    waiting = {type(api.loop): api.spec.link.max_pending for api in apis}
    assert waiting == {BatchedStreamLoop: None, ContinuousBatchLoop: 1024}


@everywhere
def test_how_much_may_wait_is_known_to_the_endpoint(where):
    link = ready(where, max_pending=7, max_buffered=9).spec.link
    assert (link.max_pending, link.bound) == (7, Bound(9, "cancel"))
    link = ready(where, **MERGE, max_buffered_bytes=9, size_of=len).spec.link
    assert link.bound == Bound(1024, "merge", operator.add, 9, len)


# ---- an encode_response for each request


@for_each_request
def test_encode_response_is_called_once_per_request_with_its_own_context(where):
    calls = []

    def decode_request(request, context):
        context["name"], elements = request
        return [*elements, EOS]

    def encode_response(outputs, context):
        calls.append((context["name"], *outputs))
        yield from ()

    api = ready(where)
    api.decode_request, api.encode_response = decode_request, encode_response
    served(api, ("A", "ab"), ("B", ""), ("C", ["x", SKIP, Many(["y", "z"]), Last("t")]))
    assert sorted(calls) == [("A", "a", "b"), ("B",), ("C", "x", "y", "z", "t")]


@for_each_request
def test_it_may_yield_before_its_loop_and_after_it(where):
    def encode_response(outputs):
        yield "["
        yield from outputs
        yield "]"

    api = ready(where)
    api.encode_response = encode_response
    assert served(api, ["a", None], ["x", Last("y")], [End()]) == [
        [*ok("[", "a", "]"), FINISHED],
        [*ok("[", "x", "y", "]"), FINISHED],
        [*ok("[", "]"), FINISHED],
    ]


@for_each_request
def test_what_it_would_yield_after_its_loop_is_not_sent_after_an_error(where):
    def encode_response(outputs):
        yield from outputs
        yield "]"

    api = ready(where)
    api.encode_response = encode_response
    assert served(api, ["a", Fail(ValueError("no"))]) == [[*ok("a"), FAILED]]


def returns_after_two(outputs):
    for count, output in enumerate(outputs):
        yield output
        if output.islower() and count == 1:
            return


@for_each_request
def test_an_encode_response_that_returns_ends_its_request(where):
    api = ready(where)
    api.encode_response = returns_after_two
    assert served(api, "abcd", ["X", "Y", "Z", None]) == [
        [*ok("a", "b"), FINISHED],
        [*ok("X", "Y", "Z"), FINISHED],
    ]


@pytest.mark.rule(13)
def test_predict_receives_no_slot_whose_encode_response_has_returned():
    api, heard = ready(steps_of_predict), []

    def predict(inputs):
        live = (0, 1)
        for step in Letters.predict(api, inputs):
            heard.append(live)
            live = yield step

    api.predict, api.encode_response = predict, returns_after_two
    served(api, "abcd", ["X", "Y", "Z", None])
    assert heard == [(0, 1), (0, 1), (0, 1), (1,)]  # with the third it is asked, and returns


@pytest.mark.rule(13)
def test_an_engine_makes_no_further_step_for_a_request_whose_encode_response_has_returned():
    api = ready(engine)
    api.encode_response = returns_after_two
    served(api, "abcd")
    assert api.engine.calls == [("add", 0), *[("step", 0)] * 3, ("remove", 0)]


@pytest.mark.rule(15)
@for_each_request
@pytest.mark.parametrize("error", [ValueError("secret"), StopIteration("secret")], ids=repr)
def test_an_encode_response_that_raises_fails_its_request_alone(where, error, caplog):
    api = ready(where)
    api.encode_response = raising(error, at="b")
    assert served(api, "abcd", ["x", "y", "z", None]) == [
        [*ok("a"), FAILED],
        [*ok("x", "y", "z"), FINISHED],
    ]
    assert [record.getMessage()[-2:] for record in caplog.records] == ["r0"]


@pytest.mark.rule(15)
@for_each_request
def test_an_encode_response_that_raises_when_called_fails_its_request_alone(where):
    def encode_response(outputs, context):
        if context["request"] == "bad":
            raise ValueError
        return (output for output in outputs)

    def decode_request(request, context):
        context["request"] = request
        return [*request, EOS]

    api = ready(where)
    api.encode_response, api.decode_request = encode_response, decode_request
    assert served(api, "bad", "xy") == [[FAILED], [*ok("x", "y"), FINISHED]]


def in_pairs(outputs):
    """Ask for two outputs before there is one element."""
    for output in outputs:
        yield output + next(outputs, "!")


@for_each_request
def test_an_encode_response_may_look_ahead_and_the_others_miss_nothing(where):
    def encode_response(outputs, context):
        return in_pairs(outputs) if context["pairs"] else (output for output in outputs)

    def decode_request(request, context):
        context["pairs"] = request[0].isupper()
        return [*request, EOS]

    api = ready(where)
    api.encode_response, api.decode_request = encode_response, decode_request
    assert served(api, "ABCDE", "abcdefg", "UVWXYZ") == [
        [*ok("AB", "CD", "E!"), FINISHED],
        [*ok(*"abcdefg"), FINISHED],
        [*ok("UV", "WX", "YZ"), FINISHED],
    ]


class InOrder(Messages):
    """Notes all messages in their order."""

    def __init__(self):
        super().__init__()
        self.order = []

    def send(self, item, consumer_id):
        super().send(item, consumer_id)
        uid, (data, *_) = item
        self.order.append((uid, data))


@pytest.mark.rule(7)
def test_a_request_that_looks_ahead_ends_at_its_own_end():
    api, transport = ready(steps_of_predict), InOrder()

    def encode_response(outputs):
        yield "".join(outputs)

    api.encode_response = encode_response
    served(api, ["a", "b", None], [*"vwxyz", None], transport=transport)
    assert transport.order == [("r0", "ab"), ("r0", ""), ("r1", "vwxyz"), ("r1", "")]


@pytest.mark.rule(9)
def test_a_request_that_looks_ahead_ends_although_no_output_follows():
    class Finished(Messages):
        def __init__(self):
            super().__init__()
            self.finished = threading.Event()

        def send(self, item, consumer_id):
            super().send(item, consumer_id)
            if FINISHED in self.sent["r0"]:
                self.finished.set()

    class NothingFollows(RequestQueue):
        def get(self, block=True, timeout=None):
            element = super().get(block, timeout)
            if element == _SENTINEL_VALUE:
                assert transport.finished.wait(TIMEOUT / 6), "it has not ended"
            return element

    api, transport = ready(engine), Finished()
    api.encode_response = in_pairs
    got = served(api, ["a", "b", "c", EOS], waiting=NothingFollows(), transport=transport)
    assert got == [[*ok("ab", "c!"), FINISHED]]


@pytest.mark.rule(15)
@for_each_request
def test_an_encode_response_that_looks_ahead_sees_no_end_when_its_request_fails(where):
    seen = []

    def encode_response(outputs):
        try:
            yield from in_pairs(outputs)
        except ValueError as error:
            seen.append(error)

    api = ready(where)
    api.encode_response = encode_response
    got = served(api, ["a", "b", "c", Fail(ValueError("no"))], [*"wxyz", None])
    assert got == [[*ok("ab"), FAILED], [*ok("wx", "yz"), FINISHED]]
    assert seen == []


@for_each_request
def test_one_may_yield_nothing(where):
    def encode_response(outputs):
        for output in outputs:
            if output.islower():
                yield output

    api = ready(where)
    api.encode_response = encode_response
    assert served(api, ["A", "B", None], [*"xYz", None]) == [
        [FINISHED],
        [*ok("x", "z"), FINISHED],
    ]


@for_each_request
def test_one_may_yield_several_for_an_output(where):
    def encode_response(outputs):
        for output in outputs:
            yield from (output, output.upper())

    api = ready(where)
    api.encode_response = encode_response
    assert served(api, ["a", None], ["x", Last("y")]) == [
        [*ok("a", "A"), FINISHED],
        [*ok("x", "X", "y", "Y"), FINISHED],
    ]


@for_each_request
@pytest.mark.parametrize("element", [["a"], ("a",)], ids=["list", "tuple"])
def test_a_list_as_an_element_is_an_error_that_says_so(where, element, caplog):
    def encode_response(outputs):
        for output in outputs:
            yield element if output == "b" else output

    api = ready(where)
    api.encode_response, api.format_encoded_response = encode_response, lambda data: data
    assert served(api, "abc", ["x", "y", None]) == [
        [*ok("a"), FAILED],
        [*ok("x", "y"), FINISHED],
    ]
    [record] = caplog.records
    assert f"got {type(element).__name__} " in str(record.exc_info[1])
    assert "at a time)" in str(record.exc_info[1])


def a_list(outputs):
    return ["a", "b"]


def nothing(outputs):
    return None


async def awaited(outputs):
    yield "a"


@for_each_request
@pytest.mark.parametrize(
    ("encode_response", "kind"),
    [(a_list, "list"), (nothing, "NoneType"), (awaited, "async_generator")],
    ids=["list", "None", "async"],
)
def test_what_is_no_generator_is_an_error_that_says_so(where, encode_response, kind, caplog):
    api = ready(where)
    api.encode_response = encode_response
    assert served(api, "abc") == [[FAILED]]
    [record] = caplog.records
    assert isinstance(record.exc_info[1], TypeError)
    assert f"has to yield, got {kind}" in str(record.exc_info[1])


@for_each_request
@pytest.mark.parametrize(
    "encode_response",
    [lambda outputs: outputs, lambda outputs: map(str.upper, outputs)],
    ids=["the same", "map"],
)
def test_it_may_return_any_iterator(where, encode_response):
    api = ready(where)
    api.encode_response = encode_response
    [got] = served(api, ["A", "B", None])
    assert got == [*ok("A", "B"), FINISHED]


@pytest.mark.parametrize("where", [no_encode_response, engine_without_encode_response])
def test_without_encode_response_outputs_are_formatted_and_sent(where):
    api = ready(where)
    api.format_encoded_response = str.upper
    assert served(api, ["a", Last("b")]) == [[*ok("A", "B"), FINISHED]]


@pytest.mark.rule(15)
@pytest.mark.parametrize("where", [no_encode_response, engine_without_encode_response])
def test_an_output_that_no_hook_has_encoded_fails_its_request_alone(where):
    api = ready(where)
    api.format_encoded_response = lambda data: data
    assert served(api, ["a", 1, "b"], ["x", "y", "z", None]) == [
        [*ok("a"), FAILED],
        [*ok("x", "y", "z"), FINISHED],
    ]


# ---- unbatch, and which requests are live


def listening(heard, steps):
    live = None
    for step in steps:
        heard.append(live)
        live = yield step


ENDS = ["a", None], ["x", "y", "z", None]
TOLD = [None, (0, 1), (1,), (1,)]


@pytest.mark.rule(13)
@pytest.mark.parametrize("where", [steps_of_predict, no_encode_response])
def test_predict_receives_the_live_slots(where):
    api, heard = ready(where), []
    api.predict = lambda inputs: listening(heard, Letters.predict(api, inputs))
    served(api, *ENDS)
    assert heard == TOLD


@pytest.mark.rule(13)
@pytest.mark.parametrize("where", [steps_of_predict, no_encode_response])
def test_an_unbatch_of_the_api_receives_the_live_slots_in_place_of_predict(where):
    api, heard = ready(where), []

    def unbatch(output):
        return listening(heard, output)

    api.unbatch = unbatch
    served(api, *ENDS)
    assert heard == TOLD


@pytest.mark.parametrize("where", [steps_of_predict, no_encode_response])
def test_ends_are_found_in_what_an_unbatch_of_the_api_yields(where):
    def unbatch(output):
        for step in output:
            yield [None if letter == "." else letter for letter in step]

    api = ready(where)
    api.unbatch = unbatch
    assert served(api, "a.", "xy.") == [
        [*ok("a"), FINISHED],
        [*ok("x", "y"), FINISHED],
    ]


@pytest.mark.rule(13)
@pytest.mark.parametrize("where", [steps_of_encode_response, steps_of_predict, no_encode_response])
def test_predict_reads_from_its_context_which_requests_are_live(where):
    api, seen = ready(where), []

    def predict(inputs, context):
        for step in Letters.predict(api, inputs):
            seen.append([one.live for one in context])
            yield step
        raise AssertionError("not closed")

    api.predict = predict
    served(api, ["a", None], [*"xyz", None], ["s", Fail(ValueError("no"))])
    assert seen == [[True] * 3, [True] * 3, [False, True, False], [False, True, False]]


@pytest.mark.rule(8)
@pytest.mark.parametrize(
    ("hook", "where"),
    [
        ("predict", no_encode_response),
        ("predict", steps_of_predict),
        ("encode_response", steps_of_encode_response),
    ],
)
def test_results_that_are_no_steps_fail_the_batch_and_are_never_transposed(hook, where, caplog):
    api = ready(where)
    setattr(api, hook, lambda _: [["a0", "a1"], ["b0", "b1"]])
    assert served(api, "a.", "b.") == [[FAILED], [FAILED]]
    assert "not a source of steps" in caplog.text


tenant = ContextVar("tenant", default="the worker's")


@pytest.mark.rule(26)
@pytest.mark.parametrize("where", [steps_of_encode_response, steps_of_predict, engine])
def test_what_a_request_sets_while_it_is_decoded_is_seen_by_no_batch(where):
    api, seen = ready(where), []
    decode_request = api.decode_request

    def decode(request):
        seen.append(tenant.get())
        tenant.set("a request's")
        return decode_request(request)

    def look(method):
        def looking(*args):
            seen.append(tenant.get())
            return method(*args)

        return looking

    api.decode_request = decode
    if isinstance(api.loop, ContinuousBatchLoop):
        engine = Engine(api)
        engine.add, engine.step = look(engine.add), look(engine.step)
        api.loop._engine_factory = lambda _: engine
    else:
        api.predict = look(api.predict)
    served(api, "a.", "xy.")
    assert len(seen) > 2
    assert set(seen) == {"the worker's"}


@pytest.mark.rule(13)
@for_each_request
def test_a_context_says_that_its_request_is_over_when_all_is_done(where):
    contexts = []

    def decode_request(request, context):
        contexts.append((context, context.live))
        return list(request)

    api = ready(where)
    api.decode_request = decode_request
    served(api, ["a", None], ["x", Fail(ValueError("no"))], [object()])
    assert [live for _, live in contexts] == [True] * 3
    assert [context.live for context, _ in contexts] == [False] * 3


@pytest.mark.rule(13)
@everywhere
def test_a_context_says_that_its_request_could_not_be_decoded(where):
    contexts = []

    def decode_request(request, context):
        contexts.append(context)
        raise ValueError

    api = ready(where)
    api.decode_request = decode_request
    served(api, "a")
    assert [context.live for context in contexts] == [False]


@pytest.mark.parametrize("where", EVERYWHERE[:3], ids=lambda where: where.__name__)
def test_a_step_may_be_an_array_of_token_ids(where):
    api = ready(where, is_eos=token_ids(0))

    def predict(inputs):
        return iter(np.array([[1, 5], [2, 6], [0, 7], [9, 0]]))

    api.predict = predict
    assert served(api, "a", "b") == [
        [*ok("1", "2"), FINISHED],
        [*ok("5", "6", "7"), FINISHED],
    ]


@pytest.mark.parametrize("where", EVERYWHERE[1:3], ids=lambda where: where.__name__)
def test_a_step_may_be_an_array_with_a_row_for_each_request(where):
    api = ready(where, max_outputs=2)

    def predict(inputs):
        return iter(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))

    api.predict, api.format_encoded_response = predict, np.ndarray.tobytes
    assert served(api, "a", "b") == [
        [*ok(bytes([0, 1]), bytes([4, 5])), FINISHED],
        [*ok(bytes([2, 3]), bytes([6, 7])), FINISHED],
    ]


@pytest.mark.parametrize(
    ("where", "hook"),
    [
        (no_encode_response, "predict"),
        (no_encode_response, "unbatch"),
        (steps_of_encode_response, "encode_response"),
    ],
)
def test_a_hook_may_hand_over_to_an_iterator_that_does_not_listen(where, hook):
    api = ready(where)

    def handing_over(_):
        yield from iter([["a", "x"], ["b", None], [None, None]])

    setattr(api, hook, handing_over)
    assert served(api, "", "") == [[*ok("a", "b"), FINISHED], [*ok("x"), FINISHED]]


# ---- closing


class Closings:
    """Notes which generators were closed or have returned, and keeps them all."""

    def __init__(self):
        self.names = []
        self.kept = []

    def of(self, name, steps):
        def generator():
            try:
                yield from steps
            finally:
                self.names.append(name)

        self.kept.append(generator())
        return self.kept[-1]


@pytest.mark.rule(10)
def test_every_generator_is_closed_once_and_unbatch_before_predict():
    api, closed = ready(steps_of_predict), Closings()
    predict, unbatch = api.predict, lambda output: map(list, output)
    api.predict = lambda inputs: closed.of("predict", predict(inputs))
    api.unbatch = lambda output: closed.of("unbatch", unbatch(output))
    api.encode_response = lambda outputs, context: closed.of("encode_response", outputs)
    served(api, ["a", None], ["x", "y", None])
    assert sorted(closed.names) == ["encode_response", "encode_response", "predict", "unbatch"]
    assert closed.names.index("unbatch") < closed.names.index("predict")


@pytest.mark.rule(10)
@for_each_request
@pytest.mark.parametrize(
    "last", [None, Last("z"), Fail(ValueError("no")), object], ids=["eos", "Last", "Fail", "bad"]
)
def test_an_encode_response_is_closed_with_its_request(where, last):
    api, closed, others = ready(where), Closings(), []
    api.format_encoded_response = lambda data: data

    def encode_response(outputs):
        if not closed.kept:
            return closed.of("r0", outputs)
        return (others.append(list(closed.names)) or output for output in outputs)

    api.encode_response = encode_response
    served(api, ["a", last], ["u", "v", "w", None])
    assert closed.names == ["r0"]
    assert others[-1] == ["r0"]
