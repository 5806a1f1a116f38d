"""Metrics and traces hear of a request in the order in which things happen to it, each once.

Another thread may count a request as ended at any moment: the one that submits the next request.
Here that is done by the worker itself, at the moment in question.
"""

import threading

import pytest

from batchstream import ContinuousBatcher, DynamicBatcher, Last, Metrics, RequestTrace, Traces
from support import knobs
from support.sources import TIMEOUT


class Heard(Metrics, Traces):
    """Metrics and traces that write down what they hear of requests, together.

    Attributes:
        events: What they heard of the first request, each as its method and what it is a method of.
        firsts: How long the first output had taken, as `finished` was told.
    """

    def __init__(self):
        self.events = []
        self.firsts = []
        self.during = {}

    def for_batcher(self, name):
        return self

    def _hear(self, *event):
        self.events.append(event)
        self.during.pop(event, lambda: None)()

    def submitted(self, *requests, request_id="0", **_):
        return Trace(self._hear) if requests and request_id == "0" else None

    def joined(self, *args, tenants=(), **_):
        if tenants == ["first"]:
            self._hear("joined", "metrics")

    def first_output(self, seconds, *, tenant, **_):
        if tenant == "first":
            self._hear("first_output", "metrics")

    def finished(self, end, *, first_output, tenant, **_):
        if tenant == "first":
            self._hear("finished", "metrics")
            self.firsts.append(first_output)


class Trace(RequestTrace):
    def __init__(self, hear):
        self._hear = hear

    def joined(self, batch):
        self._hear("joined", "trace")

    def first_output(self):
        self._hear("first_output", "trace")

    def ended(self, end):
        self._hear("ended", "trace")


IN_ORDER = [
    *(("joined", "metrics"), ("joined", "trace")),
    *(("first_output", "metrics"), ("first_output", "trace")),
    *(("finished", "metrics"), ("ended", "trace")),
]


def echo_once(requests):
    yield [Last(request) for request in requests]


class OneOutputEach:
    def __init__(self):
        self._requests = {}

    def add(self, slot, request):
        self._requests[slot] = request

    def step(self):
        return {slot: Last(request) for slot, request in self._requests.items()}

    def remove(self, slot):
        del self._requests[slot]


def batcher_of(kind, heard):
    options = {"max_batch_size": 2, "tenant": {"a": "first"}.get, "metrics": heard, "traces": heard}
    if kind == "dynamic":
        return DynamicBatcher(echo_once, **options)
    return ContinuousBatcher(OneOutputEach, **options)


KINDS = pytest.mark.parametrize("kind", ["dynamic", "continuous"])


@KINDS
@pytest.mark.rule(9, 30)
def test_a_request_that_is_reaped_before_its_step_is_noted_had_its_first_output(monkeypatch, kind):
    heard = Heard()
    found = []

    def reap():
        if not found:
            others.append(batcher.stream("b"))
            found.append(batcher.statistics())
            reaped.set()

    others, reaped = [], threading.Event()
    knobs.before_steps_are_noted(monkeypatch, reap)
    with batcher_of(kind, heard) as batcher:
        assert batcher.stream("a").receive(timeout=TIMEOUT) == "a"
        assert reaped.wait(TIMEOUT)  # the output is there before its step is noted
        assert list(others[0]) == ["b"]
    assert heard.events == IN_ORDER
    assert (found[0].first_outputs, found[0].finished) == (1, {"eos": 1})
    assert heard.firsts == [found[0].first_output_time]
    assert batcher.statistics().first_outputs == 2


@pytest.mark.parametrize("event", IN_ORDER[:4], ids=" of ".join)
@KINDS
@pytest.mark.rule(9, 30)
def test_a_request_that_ends_while_something_is_told_of_it_is_reaped_behind_that(kind, event):
    """The end is set at this moment; another thread reaps all that can be reaped."""
    heard = Heard()
    streams, submitted = [], threading.Event()

    def end_and_reap():
        if event[0] == "joined":
            assert submitted.wait(TIMEOUT)
            streams[0].cancel()
        streams.append(batcher.stream("b"))
        assert heard.events[-1] == event
        assert heard.events == IN_ORDER[: IN_ORDER.index(event) + 1]

    heard.during[event] = end_and_reap
    with batcher_of(kind, heard) as batcher:
        streams.append(batcher.stream("a"))
        submitted.set()
        list(streams[0])
        assert list(streams[1]) == ["b"]
    joined = event[0] == "joined"
    assert heard.events == (IN_ORDER[:2] + IN_ORDER[4:] if joined else IN_ORDER)
    figures = batcher.statistics()
    assert (figures.live, figures.first_outputs) == (0, 1 if joined else 2)
    knobs.assert_nothing_is_left(batcher)


def test_what_a_step_gives_to_a_request_that_has_left_is_no_first_output():
    """It is cancelled in the step, and reaped only behind it."""
    heard, streams, submitted = Heard(), [], threading.Event()

    class Cancelling(OneOutputEach):
        def step(self):
            assert submitted.wait(TIMEOUT)
            streams[0].cancel()
            return super().step()

    with ContinuousBatcher(
        Cancelling, max_batch_size=1, tenant={"a": "first"}.get, metrics=heard, traces=heard
    ) as batcher:
        streams.append(batcher.stream("a"))
        submitted.set()
        assert list(streams[0]) == []
    assert heard.events == IN_ORDER[:2] + IN_ORDER[4:]
    assert heard.firsts == [None]
    assert batcher.statistics().first_outputs == 0
