"""Engines in LitServe's worker: they are closed, say "not now", and reject requests."""

import time

import litserve as ls
import pytest
from litserve.loops.base import _SENTINEL_VALUE
from litserve.utils import LitAPIStatus
from test_litserve_loop import FAILED, FINISHED, Messages, ok
from test_litserve_serving import PAUSE, InLine, Waiting, run

from batchstream import EOS, Metrics, NotNow, RequestError, Requeue
from batchstream.integrations._timeouts import timeout_of
from batchstream.integrations.litserve import ContinuousBatchLoop
from batchstream.integrations.litserve._link.messages import Failure
from batchstream.integrations.litserve._link.ordering import Standing
from batchstream.integrations.litserve._link.request_queue import start_queue
from batchstream.integrations.litserve._worker import context as worker_context
from batchstream.integrations.litserve._worker import continuous
from batchstream.integrations.litserve._worker.disconnects import Disconnects
from batchstream.integrations.litserve._worker.queue import RequestPrefetcher


class Cache:
    """Gives a text letter by letter, in a cache with room for so many letters."""

    def __init__(self, api):
        self.api = api
        self.room = api.room
        self.slots = {}
        api.engines.append(self)
        self.calls = []

    def add(self, slot, request):
        self.calls.append(("add", request))
        if request == "bad":
            raise TooLongError("no such text")
        if len(request) > self.room:
            self.api.on_refusal(request)
            raise NotNow
        self.room -= len(request)
        self.slots[slot] = (request, iter(request))

    def step(self):
        self.calls.append(("step", *sorted(request for request, _ in self.slots.values())))
        self.api.in_step(len(self.calls))
        return {slot: next(letters, EOS) for slot, (_, letters) in self.slots.items()}

    def remove(self, slot):
        request, _ = self.slots.pop(slot)
        self.calls.append(("remove", request))
        self.room += len(request)

    def close(self):
        self.calls.append(("close",))
        self.api.on_close()

    @property
    def asked(self):
        """The requests that it was asked to add, in order."""
        return [call[1] for call in self.calls if call[0] == "add"]


class TooLongError(RequestError):
    """A user's own."""


class Texts(ls.LitAPI):
    request_timeout = 30

    def decode_request(self, request):
        self.decoded.append(request)
        return request


def texts(room, **hooks):
    loop = ContinuousBatchLoop(Cache)
    api = Texts(stream=True, max_batch_size=4, loop=loop)
    api.pre_setup()
    loop.pre_setup(api)
    api.room, api.engines, api.decoded = room, [], []
    api.in_step = api.on_refusal = lambda _: None
    api.on_close = lambda: None
    for name, hook in hooks.items():
        setattr(api, name, hook)
    return api


@pytest.fixture(autouse=True)
def in_line(monkeypatch):
    monkeypatch.setattr(continuous, "RequestPrefetcher", InLine)


def served(api, *requests, transport=None):
    waiting = Waiting(*requests)
    waiting.put(_SENTINEL_VALUE)
    return run(api, waiting, transport)


def whole(text):
    return [*ok(*text), FINISHED]


# ---- closing


@pytest.mark.rule(10)
def test_an_engine_is_closed_as_its_worker_ends():
    api = texts(room=9)
    assert served(api, "ab", "c") == {"r0": whole("ab"), "r1": whole("c")}
    [engine] = api.engines
    assert engine.calls.count(("close",)) == 1
    assert engine.calls[-3:] == [("step", "ab"), ("remove", "ab"), ("close",)]


@pytest.mark.rule(10, 15)
def test_an_engine_that_failed_in_a_step_is_closed_before_another_is_made():
    def in_step(_):
        if len(api.engines) == 1:
            raise OSError("lost")

    api = texts(room=9, in_step=in_step)
    waiting = Waiting("ab")
    waiting.put(PAUSE)
    waiting.add("r1", "cd")
    waiting.put(_SENTINEL_VALUE)
    assert run(api, waiting) == {"r0": [FAILED], "r1": whole("cd")}
    first, second = api.engines
    assert first.calls == [("add", "ab"), ("step", "ab"), ("close",)]
    assert second.calls.count(("close",)) == 1
    assert second.calls[-1] == ("close",)


@pytest.mark.rule(10)
def test_an_error_of_close_is_unheard(unheard):
    def on_close():
        raise OSError("the device is gone")

    api = texts(room=9, on_close=on_close)
    assert served(api, "ab") == {"r0": whole("ab")}
    assert [type(error) for error in unheard] == [OSError]


@pytest.mark.rule(9, 10, 14)
def test_an_engine_is_closed_when_a_hook_stops_the_worker():
    def in_step(_):
        raise SystemExit

    api, transport = texts(room=9, in_step=in_step), Messages()
    with pytest.raises(SystemExit):
        served(api, "ab", transport=transport)
    assert transport.sent == {"r0": [FAILED]}
    [engine] = api.engines
    assert engine.calls == [("add", "ab"), ("step", "ab"), ("remove", "ab"), ("close",)]


# ---- not now


@pytest.mark.rule(29)
def test_a_request_that_does_not_fit_waits_and_none_overtakes_it():
    api = texts(room=5)
    sent = served(api, "abc", "defg", "h")
    assert sent == {"r0": whole("abc"), "r1": whole("defg"), "r2": whole("h")}
    [engine] = api.engines
    assert engine.asked == ["abc", "defg", "defg", "h"]
    assert api.decoded == ["abc", "defg", "h"], "a request is decoded once"


def left_in_queue(api, waiting):
    """Let the loop serve all; return how many waited still at each step, and at each refusal."""
    left = []
    api.in_step = api.on_refusal = lambda _: left.append(waiting.qsize() - 1)  # the sentinel
    waiting.put(_SENTINEL_VALUE)
    run(api, waiting)
    return left


@pytest.mark.rule(29, 30)
@pytest.mark.parametrize("thread", [False, True], ids=["in line", "in a thread"])
def test_what_an_engine_has_no_room_for_waits_in_the_queue_but_for_one_request(thread, monkeypatch):
    if thread:
        monkeypatch.setattr(continuous, "RequestPrefetcher", RequestPrefetcher)
    waiting = Waiting("ab", "cdef", "g", "h", "i")
    left = left_in_queue(texts(room=4), waiting)
    # As "cdef" is refused, and at each of the three steps of "ab" while it waits in the worker.
    assert left[:4] == [3] * 4


@pytest.mark.rule(29, 30)
def test_one_that_ends_and_makes_too_little_room_lets_none_be_fetched():
    waiting = Waiting("abc", "d", "efghi", "j", "k")
    left = left_in_queue(texts(room=6), waiting)
    assert left[:4] == [2] * 4  # "d" has ended by then
    assert 3 not in InLine.made.told  # with the sentinel


@pytest.mark.rule(29, 30)
def test_what_a_step_has_no_room_for_waits_in_the_queue_but_for_one_request():
    waiting = Waiting("abcd", "efghi", "j", "k")
    left = left_in_queue(budgeted(Untold, 5), waiting)
    assert left[:6] == [2] * 5 + [1]  # once "efghi" is in, "j" waits in the worker


class Giving(Cache):
    """Gives the slot of "ab" back at its first letter."""

    def step(self):
        step = super().step()
        for slot, (text, letters) in self.slots.items():
            if text == "ab":
                step[slot] = Requeue("".join([step[slot], *letters, "!"]))
        return step


@pytest.mark.rule(29, 30)
def test_none_is_taken_while_one_waits_whose_slot_was_given_back():
    api = texts(room=99)
    api.loop = ContinuousBatchLoop(Giving)
    api.loop.pre_setup(api)
    waiting = Waiting("ab", "wxyz")
    waiting.put(PAUSE)
    waiting.add("r2", "c")
    waiting.add("r3", "d")
    left = left_in_queue(api, waiting)
    assert left[:5] == [3] * 5  # with the pause
    assert api.engines[0].asked == ["ab", "wxyz", "ab!", "c", "d"]


@pytest.mark.rule(29)
def test_an_urgent_request_overtakes_all_that_an_engine_has_no_room_for_but_one(monkeypatch):
    monkeypatch.setattr(continuous, "RequestPrefetcher", RequestPrefetcher)
    waiting = start_queue(None, None)

    def put(name, priority):
        waiting.put_all([(0, name, time.monotonic(), name)], Standing(priority))

    def in_step(calls):
        if not was_put:
            was_put.append(put("u", -1))

    was_put = []
    for name in ["long", "b", "c", "d", "e"]:
        put(name, 0)
    waiting.put(_SENTINEL_VALUE)
    api = texts(room=5, in_step=in_step)
    api.max_batch_size = 8
    run(api, waiting)
    joined = list(dict.fromkeys(api.engines[0].asked))
    assert joined == ["long", "b", "c", "u", "d", "e"]  # "c" waited in the worker


@pytest.mark.rule(29)
def test_a_request_that_can_never_fit_is_answered_with_422():
    api = texts(room=3)
    sent = served(api, "abcde", "fg")
    assert sent["r1"] == whole("fg")
    [(status, failure)] = sent["r0"]
    assert (status, failure.status_code) == (LitAPIStatus.OK, 422)
    assert "can never be served" in failure.detail


def disconnected_at(api, monkeypatch, uid, where):
    """Let a client leave in a hook."""
    disconnects = Disconnects()
    monkeypatch.setattr(worker_context, "Disconnects", lambda _: disconnects)
    setattr(api, where, lambda _: disconnects.add(uid))


@pytest.mark.rule(13, 29)
def test_a_client_that_leaves_while_its_request_waits_lets_the_next_be_asked(monkeypatch):
    api = texts(room=5)
    disconnected_at(api, monkeypatch, "r1", "on_refusal")
    sent = served(api, "abcd", "efg", "h")
    assert sent == {"r0": whole("abcd"), "r2": whole("h")}
    [engine] = api.engines
    assert engine.asked == ["abcd", "efg", "h"]
    assert ("step", "abcd", "h") in engine.calls


@pytest.mark.rule(29)
def test_a_request_that_waits_for_too_long_is_answered_with_504():
    def make_late(_):
        api.request_timeout = -0.5  # over for any request, whenever it came

    api = texts(room=5, on_refusal=make_late)
    sent = served(api, "abcd", "efg")
    assert sent["r0"] == whole("abcd")
    [(_, failure)] = sent["r1"]
    assert failure.status_code == 504


@pytest.mark.rule(15, 29)
def test_after_a_failed_step_the_next_engine_is_asked_for_what_waits():
    def in_step(number):
        if len(api.engines) == 1 and number > 2:
            raise OSError("lost")

    api = texts(room=3, in_step=in_step)
    assert served(api, "abc", "de") == {"r0": [FAILED], "r1": whole("de")}
    assert [engine.asked for engine in api.engines] == [["abc", "de"], ["de"]]


@pytest.mark.rule(9, 14)
@pytest.mark.parametrize("when", ["as it waits", "as it is asked again"])
def test_a_request_that_waits_for_room_fails_when_the_worker_is_stopped(when):
    refusals = []

    def on_refusal(request):
        refusals.append(request)
        if when == "as it is asked again" and len(refusals) == 2:
            raise SystemExit

    def in_step(number):
        if when == "as it waits" and number > 3:
            raise SystemExit

    api, transport = texts(room=4, in_step=in_step, on_refusal=on_refusal), Messages()
    with pytest.raises(SystemExit):
        served(api, "abc", "d", "efg", transport=transport)
    assert transport.sent["r2"] == [FAILED]
    assert all(sent[-1] in (FAILED, FINISHED) for sent in transport.sent.values())
    assert api.engines[0].calls[-1] == ("close",)


# ---- the fault of a client


@pytest.mark.rule(12, 15)
def test_many_requests_that_fail_as_they_join_do_not_hold_up_the_next_step():
    api = texts(room=9)
    served(api, "abcdef", *["bad"] * 9)
    [engine] = api.engines
    assert [call[0] for call in engine.calls[:10]] == [
        *["add"] * 4,
        "step",
        *["add"] * 3,
        "step",
        "add",
    ]


@pytest.mark.rule(15)
def test_a_request_that_add_rejects_is_answered_with_422(caplog):
    api = texts(room=9)
    sent = served(api, "ab", "bad", "cd")
    assert sent["r0"] == whole("ab")
    assert sent["r1"] == [(LitAPIStatus.OK, Failure(422, "no such text", None, rejects=True))]
    assert sent["r2"] == whole("cd")
    assert caplog.records == [], "it is no error of the server's"


@pytest.mark.rule(15)
def test_a_header_that_a_hook_cannot_read_is_answered_with_400():
    def decode_request(request):
        return request if request == "ab" else timeout_of({"x-request-timeout": request})

    sent = served(texts(room=9, decode_request=decode_request), "ab", "soon")
    assert sent["r0"] == whole("ab")
    [(_, failure)] = sent["r1"]
    assert (failure.status_code, failure.rejects) == (400, True)
    assert "X-Request-Timeout must be a decimal number of seconds" in failure.detail


# ---- what a step may cost


class Untold(Cache):
    """Does not say what its steps cost: the loop counts."""

    close = None


class Telling(Cache):
    """Says what its next step costs: twice what is left."""

    close = None

    def step_cost(self, slot):
        _, letters = self.slots[slot]
        return 2 * letters.__length_hint__()


def budgeted(engine, most, **hooks):
    api = texts(room=99, **hooks)
    api.loop = ContinuousBatchLoop(engine, step_cost=len, max_step_cost=most)
    api.loop.pre_setup(api)
    return api


@pytest.mark.rule(29)
def test_a_request_waits_for_a_step_with_room_for_its_first_and_none_overtakes_it():
    api = budgeted(Untold, 5)
    sent = served(api, "abcd", "efghi", "j")
    assert sent == {"r0": whole("abcd"), "r1": whole("efghi"), "r2": whole("j")}
    [engine] = api.engines
    assert engine.asked == ["abcd", "efghi", "j"]
    steps = [call[1:] for call in engine.calls if call[0] == "step"]
    # "efghi" costs 5 by itself, so it begins alone; "j" joins once that has begun.
    assert steps[:7] == [("abcd",)] * 5 + [("efghi",), ("efghi", "j")]


@pytest.mark.rule(29)
def test_an_engine_may_say_what_its_next_step_costs():
    api = budgeted(Telling, 6)
    served(api, "abcd", "ef", "gh")
    [engine] = api.engines
    assert engine.asked == ["abcd", "ef", "gh"]
    steps = [call[1:] for call in engine.calls if call[0] == "step"]
    # 8 are to come of "abcd", then 6, and 4: "ef" joins with its 2, and "gh" when "ef" has 2 left.
    assert steps[:5] == [("abcd",)] * 2 + [("abcd", "ef")] + [("abcd", "ef", "gh")] * 2


class Unsure(Untold):
    """The first of its kind cannot say what its next step costs."""

    def step_cost(self, slot):
        self.calls.append(("step_cost", self.slots[slot][0]))
        if len(self.api.engines) == 1:
            raise self.api.raises
        return 1


class Steps(Metrics):
    """Keeps for how many slots each step was made."""

    made = None

    def __init__(self):
        type(self).made = self
        self.live = []

    def stepped(self, live, *_):
        self.live.append(live)


def unsure(raises, **hooks):
    api = budgeted(Unsure, 5, **hooks)
    api.raises = raises
    return api


@pytest.mark.rule(9, 15, 29)
@pytest.mark.parametrize("raises", [KeyError("slot"), StopIteration()], ids=repr)
def test_an_engine_that_cannot_say_what_its_next_step_costs_fails_as_in_a_step(raises, caplog):
    api = unsure(raises)
    sent = served(api, "abc", "de", "f")
    assert sent == {"r0": [FAILED], "r1": whole("de"), "r2": whole("f")}
    broken, other = api.engines
    assert broken.calls == [("add", "abc"), ("step_cost", "abc")]
    assert other.asked == ["de", "f"]
    [record] = caplog.records
    assert raises in (record.exc_info[1], record.exc_info[1].__cause__)
    assert record.getMessage().endswith(": r0")


@pytest.mark.rule(29)
def test_an_engine_that_fails_before_its_step_has_made_none():
    api = unsure(KeyError("slot"))
    api.loop = ContinuousBatchLoop(Unsure, step_cost=len, max_step_cost=5, metrics=Steps)
    api.loop.pre_setup(api)
    served(api, "abc", "de", "f")
    _, other = api.engines
    steps = [len(call[1:]) for call in other.calls if call[0] == "step"]
    assert Steps.made.live == steps


@pytest.mark.rule(9, 14)
def test_a_worker_that_is_stopped_as_it_asks_for_a_cost_fails_its_requests():
    api, transport = unsure(SystemExit()), Messages()
    with pytest.raises(SystemExit):
        served(api, "abc", "de", transport=transport)
    assert transport.sent == {"r0": [FAILED], "r1": [FAILED]}


@pytest.mark.rule(15, 29)
def test_one_whose_first_step_costs_more_than_any_may_is_answered_with_422():
    api = budgeted(Untold, 5)
    sent = served(api, "abcdef", "gh")
    assert sent["r1"] == whole("gh")
    [(_, failure)] = sent["r0"]
    assert failure.status_code == 422
    assert "costs 6.0, more than a step may cost: 5 (max_step_cost)" in failure.detail
    assert [engine.asked for engine in api.engines] == [["gh"]]


@pytest.mark.rule(13, 29)
def test_a_client_that_leaves_while_its_request_waits_for_a_step_lets_the_next_join(monkeypatch):
    api = budgeted(Untold, 4)
    disconnected_at(api, monkeypatch, "r1", "in_step")
    sent = served(api, "abc", "efgh", "j")
    assert sent == {"r0": whole("abc"), "r2": whole("j")}
    [engine] = api.engines
    assert engine.asked == ["abc", "j"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"step_cost": len}, "step_cost and max_step_cost go together"),
        ({"step_cost": lambda it: 1, "max_step_cost": 3}, "step_cost has to be known by its name"),
        ({"step_cost": Texts, "max_step_cost": "3"}, "max_step_cost must be a number, got '3'"),
        ({"step_cost": dict.fromkeys, "max_step_cost": None}, "go together"),
    ],
)
def test_a_bound_of_steps_that_cannot_be_is_refused(options, text):
    with pytest.raises(TypeError, match=text):
        ContinuousBatchLoop(Cache, **options)
