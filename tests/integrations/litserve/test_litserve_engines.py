"""Engines in LitServe's worker: they are closed, say "not now", and reject requests."""

import litserve as ls
import pytest
from litserve.loops.base import _SENTINEL_VALUE
from litserve.utils import LitAPIStatus
from test_litserve_loop import FAILED, FINISHED, Messages, ok
from test_litserve_serving import PAUSE, InLine, Waiting, run

from batchstream import EOS, Many, NotNow, RequestError, Requeue
from batchstream.integrations.litserve import ContinuousBatchLoop
from batchstream.integrations.litserve._link.messages import Failure
from batchstream.integrations.litserve._worker import context as worker_context
from batchstream.integrations.litserve._worker import continuous
from batchstream.integrations.litserve._worker.disconnects import Disconnects


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
    sent = run(api, waiting, transport)
    assert InLine.made.slots == 4, "a slot was lost, or given twice"
    return sent


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


@pytest.mark.rule(15)
def test_a_request_that_add_rejects_is_answered_with_422(caplog):
    api = texts(room=9)
    sent = served(api, "ab", "bad", "cd")
    assert sent["r0"] == whole("ab")
    assert sent["r1"] == [(LitAPIStatus.OK, Failure(422, "no such text", None, rejects=True))]
    assert sent["r2"] == whole("cd")
    assert caplog.records == [], "it is no error of the server's"


# ---- giving slots back


class Preempting(Cache):
    """Gives the slots of the letters in `api.behind` back once, and of those in `api.never`."""

    def add(self, slot, request):
        super().add(slot, request)
        if request == "cdef":
            assert request not in self.api.decoded  # it was decoded as "abcdef", once

    def step(self):
        step = super().step()
        for slot, letter in step.items():
            _, letters = self.slots[slot]
            if letter in self.api.never:
                step[slot] = Requeue("".join([letter, *letters]))
            elif letter in self.api.behind:
                self.api.behind.remove(letter)
                step[slot] = Many([letter, Requeue("".join(letters))])
        return step


class Keeping(Preempting):
    """Knows itself where it stopped, and is to be given the same."""

    def step(self):
        step = super().step()
        for slot, element in step.items():
            if type(element) is Many:
                step[slot] = Many([element.outputs[0], Requeue()])
        return step


class Returning(Preempting):
    """Returns what it should raise."""

    def add(self, slot, request):
        return self.api.returned if self.slots else super().add(slot, request)


def preempting(behind="", never="", *, engine=Preempting, **hooks):
    api = texts(room=99, behind=list(behind), never=list(never), **hooks)
    loop = ContinuousBatchLoop(engine)
    api.loop = loop
    loop.pre_setup(api)
    return api


@pytest.mark.rule(2, 3, 30)
def test_a_request_whose_slot_is_given_back_goes_on_when_another_has_left():
    api = preempting("b")
    sent = served(api, "abcdef", "uvwx", "yz")
    assert sent == {"r0": whole("abcdef"), "r1": whole("uvwx"), "r2": whole("yz")}
    [engine] = api.engines
    assert engine.asked == ["abcdef", "uvwx", "yz", "cdef"]
    assert sorted(api.decoded) == ["abcdef", "uvwx", "yz"]
    steps = [call[1:] for call in engine.calls if call[0] == "step"]
    assert steps[2:4] == [("uvwx", "yz"), ("cdef", "uvwx")]  # as "yz" has left


@pytest.mark.rule(9, 15)
def test_one_that_is_given_back_again_and_again_although_it_is_alone_fails():
    api = preempting(never="b")
    sent = served(api, "abc", "xy")
    assert sent["r1"] == whole("xy")
    assert sent["r0"][:-1] == ok("a")
    assert "can never be served" in str(sent["r0"][-1])
    [engine] = api.engines
    assert engine.asked == ["abc", "xy", "bc", "bc"]


@pytest.mark.rule(15)
def test_an_engine_that_raises_fails_none_that_waits_to_go_on():
    def in_step(calls):
        if len(api.engines) == 1 and calls == 6:
            raise OSError("lost")

    api = preempting("b", in_step=in_step)
    sent = served(api, "abc", "uvwxyz")
    assert sent["r0"] == whole("abc")
    assert sent["r1"][-1] == FAILED
    assert [engine.asked for engine in api.engines] == [["abc", "uvwxyz"], ["c"]]


@pytest.mark.rule(2, 15)
def test_what_an_engine_alone_knew_of_a_request_is_lost_with_the_engine(caplog):
    """Another engine would begin anew, and the client be sent the same outputs twice."""

    def in_step(calls):
        if len(api.engines) == 1 and calls == 6:
            raise OSError("lost")

    api = preempting("b", engine=Keeping, in_step=in_step)
    sent = served(api, "abc", "uvwxyz")
    assert sent["r0"] == [*ok("a", "b"), FAILED]
    assert "it alone knew how to go on with this request" in caplog.text
    assert "abc" not in [request for engine in api.engines[1:] for request in engine.asked]


@pytest.mark.rule(9, 15)
@pytest.mark.parametrize("returned", [NotNow, NotNow("full")])
def test_an_engine_raises_not_now_and_does_not_return_it(returned, caplog):
    sent = served(preempting(engine=Returning, returned=returned), "abc", "uv")
    assert sent == {"r0": whole("abc"), "r1": [FAILED]}
    assert "let it raise NotNow, and not return it, where" in caplog.text
