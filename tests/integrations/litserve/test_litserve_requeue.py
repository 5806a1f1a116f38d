"""Engines in LitServe's worker that give slots back: their requests wait there, and go on."""

import pytest
from litserve.loops.base import _SENTINEL_VALUE
from test_litserve_engines import Cache, served, texts, whole
from test_litserve_loop import FAILED, ok
from test_litserve_serving import PAUSE, InLine, Waiting, run

from batchstream import Many, Metrics, NotNow, Requeue
from batchstream.integrations.litserve import ContinuousBatchLoop
from batchstream.integrations.litserve._worker import context as worker_context
from batchstream.integrations.litserve._worker import continuous
from batchstream.integrations.litserve._worker.disconnects import Disconnects


@pytest.fixture(autouse=True)
def in_line(monkeypatch):
    monkeypatch.setattr(continuous, "RequestPrefetcher", InLine)


class Noted(Metrics):
    """Notes each event, as it was called."""

    made = None

    def __init__(self):
        type(self).made = self
        self.events = []

    def joined(self, waited, *, tenants):
        self.events.append(("joined", len(waited)))

    def requeued(self, *, tenant):
        self.events.append(("requeued",))

    def first_output(self, seconds, *, tenant):
        self.events.append(("first_output",))

    def stepped(self, *figures):
        live, capacity, outputs, gap, *others = figures
        self.events.append(("stepped", live, capacity, outputs, *others, gap is None))

    def finished(self, end, *, joined, lasted, in_slot, first_output, tenant):
        self.events.append(("finished", end.reason, end.outputs, joined))


class Preempting(Cache):
    """Gives a slot back: once at a letter in `api.behind`, each time at a letter in `api.never`."""

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
    loop = ContinuousBatchLoop(engine, metrics=Noted)
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


@pytest.mark.rule(30)
def test_none_is_taken_out_of_the_queue_while_one_waits_whose_slot_was_given_back():
    api = preempting("b")
    waiting = Waiting("abcdef", "uvw")
    for _ in range(2):  # the next comes in the second step
        waiting.put(PAUSE)
    waiting.add("r2", "z")
    waiting.put(_SENTINEL_VALUE)
    assert run(api, waiting) == {"r0": whole("abcdef"), "r1": whole("uvw"), "r2": whole("z")}
    assert set(InLine.made.recalled) == {3}  # a pause, the request and the sentinel
    assert api.engines[0].asked == ["abcdef", "uvw", "cdef", "z"]


@pytest.mark.rule(30)
def test_none_is_fetched_in_the_step_that_gives_a_slot_back():
    api = preempting("b")
    assert served(api, "abcdef", "u") == {"r0": whole("abcdef"), "r1": whole("u")}
    steps = [call for call in api.engines[0].calls if call[0] == "step"]
    assert steps[1] == ("step", "abcdef", "u")  # its first letter came in the step before
    assert len(InLine.made.told) == 1  # as "abcdef" ended


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
    assert [engine.asked for engine in api.engines] == [["abc", "uvwxyz"]]


@pytest.mark.rule(9, 15)
@pytest.mark.parametrize("returned", [NotNow, NotNow("full")])
def test_an_engine_raises_not_now_and_does_not_return_it(returned, caplog):
    sent = served(preempting(engine=Returning, returned=returned), "abc", "uv")
    assert sent == {"r0": whole("abc"), "r1": [FAILED]}
    assert "let it raise NotNow, and not return it, where" in caplog.text


@pytest.mark.rule(13, 30)
@pytest.mark.parametrize("when", ["as it is given back", "as it waits"])
def test_a_client_that_leaves_while_its_request_waits_to_go_on_frees_its_place(when, monkeypatch):
    api = preempting("b")
    disconnects = Disconnects()
    monkeypatch.setattr(worker_context, "Disconnects", lambda _: disconnects)
    leaves_at = {"as it is given back": 2, "as it waits": 3}[when]

    def in_step(_):
        [engine] = api.engines
        steps = [call for call in engine.calls if call[0] == "step"]
        if len(steps) == leaves_at:
            disconnects.add("r0")

    api.in_step = in_step
    sent = served(api, "abcdef", "uvwx", "yz")
    assert sent == {"r0": ok("a", "b"), "r1": whole("uvwx"), "r2": whole("yz")}
    [engine] = api.engines
    assert engine.asked == ["abcdef", "uvwx", "yz"]
    steps = [call[1:] for call in engine.calls if call[0] == "step"]
    assert steps[leaves_at:] == [("uvwx", "yz"), ("uvwx",), ("uvwx",)][leaves_at - 2 :]


@pytest.mark.rule(2, 30)
def test_a_request_whose_encoder_reads_ahead_goes_on_after_its_slot_was_given_back():
    def encode_response(outputs):
        for output in outputs:
            yield output + next(outputs, "!")

    api = preempting("ac", encode_response=encode_response)
    sent = served(api, "abcde", "uvw")
    assert sent == {"r0": whole(["ab", "cd", "e!"]), "r1": whole(["uv", "w!"])}
    [engine] = api.engines
    assert engine.asked == ["abcde", "uvw", "bcde", "de"]


@pytest.mark.rule(2, 30)
def test_a_request_whose_encoder_returns_as_its_slot_is_given_back_has_ended():
    def encode_response(outputs):
        for output in outputs:
            if output == "b":
                return
            yield output

    api = preempting("b", encode_response=encode_response)
    sent = served(api, "abcdef", "uvwx")
    assert sent == {"r0": whole("a"), "r1": whole("uvwx")}
    [engine] = api.engines
    assert engine.asked == ["abcdef", "uvwx"]


@pytest.mark.rule(2, 15, 30)
def test_a_step_that_cannot_be_read_fails_the_request_that_it_would_have_given_back():
    class Failing(Preempting):
        def step(self):
            step = super().step()
            return step | {9: "x"} if any(type(each) is Many for each in step.values()) else step

    api = preempting("b")
    api.loop._engine_factory = Failing
    sent = served(api, "abcdef", "uvwx", "yz")
    assert all(messages[-1] == FAILED for messages in sent.values())
    assert set(sent) == {"r0", "r1", "r2"}


@pytest.mark.rule(30)
def test_every_figure_of_a_run_with_a_slot_that_is_given_back_is_as_it_was():
    api = preempting("b")
    served(api, "abc", "uvwx", "yz")
    events = Noted.made.events
    steps = [event[1:] for event in events if event[0] == "stepped"]
    assert steps == [
        (3, 4, 3, 0, 0, 0, True),
        (3, 4, 3, 3, 0, 0, False),
        (2, 4, 1, 2, 0, 0, False),  # "abc" waits, and "yz" ends
        (2, 4, 2, 2, 0, 0, False),  # "c"
        (2, 4, 0, 2, 0, 0, False),
    ]
    assert [event for event in events if event[0] == "joined"] == [("joined", 3), ("joined", 1)]
    assert events.count(("requeued",)) == 1
    assert events.count(("first_output",)) == 3
    ends = sorted(event[2:] for event in events if event[0] == "finished")
    assert ends == [(2, True), (3, True), (4, True)]


@pytest.mark.rule(13)
def test_one_that_leaves_while_it_waits_again_is_no_running_one_at_its_end(monkeypatch):
    api = preempting("b")
    disconnects = Disconnects()
    monkeypatch.setattr(worker_context, "Disconnects", lambda _: disconnects)
    api.in_step = lambda calls: disconnects.add("r0") if calls == 6 else None
    served(api, "abc", "uvwx")
    ends = [event[1:] for event in Noted.made.events if event[0] == "finished"]
    assert ends == [("cancelled", 2, False), ("eos", 4, True)]
