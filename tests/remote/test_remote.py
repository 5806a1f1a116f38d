"""Streams of a model that another thread serves over a socket, as another process would."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import math
import operator
import pickle
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from batchstream import (
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    End,
    Fail,
    FinishReason,
    Last,
    Many,
    OverloadedError,
    RequestError,
    SlowConsumerError,
    SourceError,
    batched,
)
from batchstream._remote import link
from batchstream._remote.payloads import read_submission
from batchstream._remote.protocol import (
    DEFAULT_MAX_FRAME,
    FROM_CLIENT,
    LEAST_IN_FRAME,
    Incoming,
    greeting,
    server_greeting,
)
from batchstream._remote.session import take
from batchstream.remote import ConnectionLostError, RemoteTraceback, connect, serving
from support import knobs
from support.engines import Model
from support.sources import TIMEOUT, Gate, in_forked_child, needs_fork
from support.waiting_engine import Waiting, taken, until

LONG = 3600.0
"""Seconds that never pass."""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.sock")


@contextmanager
def served(path, engine=Model, **options):
    """Serve an engine; give the batcher at the model, and that of another process."""
    options = {"max_batch_size": 8} | options
    remote = {name: options.pop(name) for name in ("window", "max_requests") if name in options}
    with (
        ContinuousBatcher(engine, **options) as batcher,
        serving(batcher, path),
        connect(path, **remote) as other,
    ):
        yield batcher, other


# ---- outputs and ends


def test_requests_share_the_batches_of_the_model(path):
    gate = Gate()
    model = Model()
    model._on_step = lambda number: gate.pass_through() if number == 0 else None
    with served(path, model) as (batcher, other):
        streams = [other.stream(request) for request in ("abc", "d", "", "ef")]
        assert gate.reached.wait(TIMEOUT)
        until(lambda: batcher.statistics().opened == len(streams))
        gate.opened.set()
        assert ["".join(stream) for stream in streams] == ["abc", "d", "", "ef"]
        assert batcher.statistics().steps <= 5
    assert model.faults == []


def test_a_warm_up_from_another_process_runs_at_the_model_among_other_requests(path):
    with served(path) as (batcher, other):
        other.warm_up(["ab", "c"])
        assert other.ready
        assert batcher.statistics().opened == 2, "the model counts them as requests"
        assert other.statistics().opened == 0


@pytest.mark.parametrize(
    "last",
    [
        [End("length", {"tokens": 5})],
        [Last("x", "eos", {"tokens": 5})],
        [Many(["x", "y", End("cancelled")])],
        [End("exhausted")],
        [Fail(ValueError("no"))],
    ],
)
def test_a_stream_ends_as_it_does_at_the_model(path, last):
    def read(stream):
        outputs = []
        try:
            outputs.extend(stream)
        except ValueError as error:
            outputs.append(str(error))
        end = stream.end
        return outputs, end.reason, end.outputs, end.info

    request = ["a", "b", *last]
    with served(path) as (batcher, other):
        assert read(other.stream(request)) == read(batcher.stream(request))


def test_every_kind_of_output_arrives(path):
    request = [None, 0, "", [], (1, 2), {"a": None}, b"x" * 100_000, math.inf, FinishReason.EOS]
    with served(path, eos=Model) as (_, other):
        assert list(other.stream([*request, Last(None)])) == [*request, None]


def test_the_end_says_how_many_outputs_the_model_has_given_though_a_decoder_makes_others(path):
    class InPairs:
        held = ""
        matched = None
        info: ClassVar = {}

        def feed(self, *outputs):
            self.held += "".join(outputs)
            text, self.held = (self.held, "") if len(self.held) > 1 else ("", self.held)
            return text

        def finish(self):
            return self.held

    with served(path, decode=lambda _: InPairs()) as (batcher, other):
        stream, own = other.stream("abcde"), batcher.stream("abcde")
        assert list(stream) == list(own)
        assert stream.end.outputs == own.end.outputs == 5
        assert other.statistics().outputs == 3


def test_streams_are_read_in_an_event_loop(path):
    async def read(other):
        streams = [other.astream(request) for request in ("abc", "d")]
        return [[output async for output in stream] for stream in streams]

    with served(path) as (_, other):
        assert asyncio.run(read(other)) == [["a", "b", "c"], ["d"]]


def test_a_model_with_one_result_for_each_request_is_called(path):
    @batched(max_batch_size=4, single=True)
    def double(numbers):
        return [2 * number if number < 100 else Fail(ValueError(number)) for number in numbers]

    async def acall(other):
        return await asyncio.gather(*map(other.acall, range(6)))

    with double, serving(double, path), connect(path) as other:
        assert other.call(21) == 42
        assert asyncio.run(acall(other)) == [0, 2, 4, 6, 8, 10]
        with pytest.raises(ValueError, match="100"):
            other.call(100)
        assert list(other.map(range(3))) == [[0], [2], [4]]


@pytest.mark.parametrize(("request_", "text"), [("abc", "more than one"), ("", "no output")])
def test_a_model_that_streams_is_not_called(path, request_, text):
    with served(path) as (_, other):
        with pytest.raises(TypeError, match=text):
            other.call(request_)
        with pytest.raises(TypeError, match=text):
            asyncio.run(other.acall(request_))


def test_an_asynchronous_function_is_served(path):
    model = Model(home=lambda: 0)
    with (
        serving(DynamicBatcher(model.agenerate, max_batch_size=4), path),
        connect(path) as other,
    ):
        assert ["".join(it) for it in map(other.stream, ("abc", "d"))] == ["abc", "d"]


def test_the_steps_of_one_connection_are_read_in_one_turn(path):
    """Each step of the model is at most one wake-up of the client."""
    engine = Waiting()
    with served(path, engine) as (_, other):
        streams = [other.stream(number) for number in range(4)]
        for _ in streams:
            taken(engine.added)
        for _ in range(50):
            engine.give(dict.fromkeys(range(4), "x"))
        engine.give(dict.fromkeys(range(4), Last("y")))
        assert ["".join(stream) for stream in streams] == ["x" * 50 + "y"] * 4
        assert other.statistics().steps <= 51 + len(streams)


# ---- errors


class Odd(Exception):
    """An error that can be pickled, and made anew by pickle alone."""

    def __init__(self, code, *, reason):
        super().__init__(code)
        self.code = code
        self.reason = reason

    def __reduce__(self):
        return _odd, (self.code, self.reason)


def _odd(code, reason):
    return Odd(code, reason=reason)


class Local(Exception):
    """An error that cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


def test_an_error_arrives_with_its_type_its_data_and_the_traceback_at_the_model(path):
    model = Model(raises={1: Odd(5, reason="it is late")})
    with served(path, model) as (_, other):
        first, second = other.stream("abc"), other.stream("abc")
        errors = []
        for stream in (first, second):
            with pytest.raises(Odd) as caught:
                list(stream)
            errors.append(caught.value)
    assert [(it.code, it.reason) for it in errors] == [(5, "it is late")] * 2
    assert errors[0] is not errors[1]
    shown = errors[0].__cause__.__cause__
    assert type(shown) is RemoteTraceback
    assert "in _end_step" in str(shown)


class Exits:
    """An object whose pickling raises what ends a thread."""

    def __reduce__(self):
        raise SystemExit("it exits")


class ExitsThere:
    """An object whose unpickling does."""

    def __reduce__(self):
        return _exit, ()


def _exit():
    raise SystemExit("it exits")


class Making(Model):
    """Makes what cannot be sent: a request is its name."""

    made: ClassVar = {
        "error": lambda: ["a", Fail(Local("as it was"))],
        "output": lambda: ["a", Unreadable(), "b"],
        "info with a lock": lambda: [End("eos", {"lock": threading.Lock()})],
        "info": lambda: [End("eos", {"it": Unreadable()})],
        "large output": lambda: ["a", b"x" * 6000],
        "large error": lambda: [Fail(ValueError("x" * 6000))],
        "exit": lambda: ["a", Exits()],
    }

    def add(self, slot, request):
        super().add(slot, self.made[request]() if str(request) in self.made else request)


def test_an_error_that_cannot_be_pickled_becomes_one_with_its_text(path):
    with served(path, Making) as (_, other):
        with pytest.raises(SourceError, match="Local: as it was"):
            list(other.stream("error"))
        assert list(other.stream("b")) == ["b"]


@pytest.mark.rule(14, 17)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("step", [0, 1])
def test_an_error_that_is_meant_for_a_thread_stops_no_server(path, error, step):
    with served(path, lambda: Model(raises={step: error("it stops")})) as (_, other):
        for _ in range(2):
            with pytest.raises(SourceError, match="it stops"):
                list(other.stream("abc"))


def test_an_output_that_cannot_be_pickled_fails_its_stream_alone(path):
    engine = Waiting()
    with served(path, engine) as (batcher, other):
        bad, good = other.stream(0), other.stream(1)
        assert {taken(engine.added), taken(engine.added)} == {0, 1}
        slots = {request: slot for slot, request in engine.requests.items()}
        engine.give({slots[0]: threading.Lock(), slots[1]: "a"})
        with pytest.raises(SourceError, match="output cannot be pickled"):
            next(bad)
        assert taken(engine.removed) == 0
        engine.give({slots[1]: Last("b")})
        assert list(good) == ["a", "b"]
        assert batcher.statistics().live == 0


class Unreadable:
    """An object whose pickle cannot be read."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ValueError("not here")


def test_an_output_that_cannot_be_unpickled_fails_its_stream_alone(path):
    with served(path, Making) as (batcher, other):
        bad, good = other.stream("output"), other.stream("ab")
        with pytest.raises(SourceError, match="output cannot be unpickled: ValueError: not here"):
            list(bad)
        assert list(good) == ["a", "b"]
        until(lambda: not batcher.statistics().live)


@pytest.mark.rule(13)
@pytest.mark.parametrize("others", [[], ["good"]])
def test_a_request_whose_output_cannot_be_unpickled_leaves_the_model(path, others):
    engine = Waiting()
    with served(path, engine) as (batcher, other):
        bad, *good = map(other.stream, ["bad", *others])
        assert {taken(engine.added) for _ in [bad, *good]} == {"bad", *others}
        slots = {request: slot for slot, request in engine.requests.items()}
        engine.give({slots["bad"]: Unreadable()})
        with pytest.raises(SourceError, match="output cannot be unpickled"):
            next(bad)
        assert taken(engine.removed) == "bad"
        for stream in good:
            engine.give({slots["good"]: Last("x")})
            assert list(stream) == ["x"]
        until(lambda: not batcher.statistics().live)
        assert set(batcher.statistics().finished) <= {"cancelled", "eos"}  # no step waited in vain


def test_info_that_cannot_be_pickled_or_unpickled_fails_its_stream_alone(path):
    with served(path, Making) as (_, other):
        with pytest.raises(SourceError, match="info of a stream's end cannot be pickled"):
            list(other.stream("info with a lock"))
        with pytest.raises(SourceError, match="end of a stream cannot be unpickled"):
            list(other.stream("info"))
        assert list(other.stream("b")) == ["b"]


def test_a_request_that_cannot_be_pickled_is_refused_as_it_is_submitted(path):
    with served(path) as (batcher, other):
        with pytest.raises(TypeError, match="has to be pickled, and lock cannot be"):
            other.stream(threading.Lock())
        assert list(other.stream("a")) == ["a"]
        assert batcher.statistics().opened == 1


def test_a_request_that_cannot_be_unpickled_fails_alone(path):
    with served(path) as (_, other):
        with pytest.raises(SourceError, match="request cannot be unpickled in the model's process"):
            list(other.stream(Unreadable()))
        assert list(other.stream("a")) == ["a"]


@pytest.mark.rule(9, 14)
@pytest.mark.parametrize("request_", ["exit", ExitsThere()])
def test_a_pickle_that_ends_a_thread_fails_its_request_alone(path, request_, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: reported.append(it.exc_value))
    with served(path, Making) as (batcher, other):
        with pytest.raises(SourceError, match="it exits"):
            list(other.stream(request_))
        assert list(other.stream("b")) == ["b"]
        until(lambda: not batcher.statistics().live)
    assert [type(it) for it in reported] == [SystemExit]


def test_what_is_larger_than_a_frame_fails_alone(path):
    with (
        ContinuousBatcher(Making, max_batch_size=4) as batcher,
        serving(batcher, path, max_frame=5000),
        connect(path, max_frame=5000) as other,
    ):
        with pytest.raises(RequestError, match=r"more than 5000 \(max_frame\)"):
            other.stream("x" * 6000)
        with pytest.raises(SourceError, match=r"more than 5000 \(max_frame\)"):
            list(other.stream("large output"))
        with pytest.raises(SourceError, match="x" * 100):
            list(other.stream("large error"))
        assert list(other.stream([bytes([n]) * 1000 for n in range(3)]))[2] == b"\2" * 1000


class ManyAtOnce(Model):
    """Gives what `large_outputs` makes of a request, in one step."""

    def add(self, slot, request):
        super().add(slot, [Many(large_outputs(request))])


def large_outputs(request):
    """Return an output for each letter: of 3000 bytes, but of 6000 for an x."""
    return [letter.encode() * (6000 if letter == "x" else 3000) for letter in request]


@pytest.mark.parametrize("request_", ["a", "ab", "abcdefghi"])
def test_outputs_that_are_too_large_together_are_sent_one_after_another(path, request_):
    with (
        ContinuousBatcher(ManyAtOnce, max_batch_size=4) as batcher,
        serving(batcher, path, max_frame=5000),
        connect(path, max_frame=5000) as other,
    ):
        assert list(other.stream(request_)) == large_outputs(request_)


def test_an_output_that_is_too_large_fails_its_stream_behind_those_before_it(path):
    read = []
    with (
        ContinuousBatcher(ManyAtOnce, max_batch_size=4) as batcher,
        serving(batcher, path, max_frame=5000),
        connect(path, max_frame=5000) as other,
    ):
        with pytest.raises(SourceError, match=r"more than 5000 \(max_frame\)"):
            read.extend(other.stream("abcxd"))
        assert read == large_outputs("abc")
        assert list(other.stream("ab")) == large_outputs("ab")


class ManyOfWhichOneIsBad(Model):
    """Gives four outputs in one step, of which one cannot be pickled."""

    def add(self, slot, _):
        super().add(slot, [Many([1, 2, threading.Lock(), 4])])


def test_an_output_that_cannot_be_pickled_fails_its_stream_behind_those_before_it(path):
    read = []
    with served(path, ManyOfWhichOneIsBad) as (_, other):
        stream = other.stream("a")
        with pytest.raises(SourceError, match="output cannot be pickled"):
            read.extend(stream)
    assert read == [1, 2]


@pytest.mark.parametrize(("taken_there", "taken_here"), [(5000, 10_000), (10_000, 5000)])
def test_of_two_ends_with_a_different_max_frame_the_smaller_counts(path, taken_there, taken_here):
    engine = Waiting()
    with (
        ContinuousBatcher(engine, max_batch_size=4) as batcher,
        serving(batcher, path, max_frame=taken_there),
        connect(path, max_frame=taken_here) as other,
    ):
        good = other.stream("good")
        taken(engine.added)
        with pytest.raises(RequestError, match=r"more than 5000 \(max_frame"):
            list(other.stream("x" * 6000))
        bad = other.stream("bad")
        taken(engine.added)
        slots = {request: slot for slot, request in engine.requests.items()}
        engine.give({slots["bad"]: b"x" * 6000, slots["good"]: "a"})
        with pytest.raises(SourceError, match=r"more than 5000 \(max_frame\)"):
            next(bad)
        assert taken(engine.removed) == "bad"
        engine.give({slots["good"]: Last("b")})
        assert list(good) == ["a", "b"]
        assert batcher.statistics().opened == 2


def test_a_request_that_is_too_large_for_the_model_is_refused_with_the_first_step(path):
    with (
        ContinuousBatcher(Model, max_batch_size=4) as batcher,
        serving(batcher, path, max_frame=5000),
        connect(path) as other,
    ):
        with pytest.raises(RequestError, match="max_frame of the model's process"):
            list(other.stream("x" * 6000))
        assert list(other.stream("ab")) == ["a", "b"]


def test_with_the_smallest_frame_that_there_is_requests_are_served(path):
    with (
        ContinuousBatcher(Model, max_batch_size=4) as batcher,
        serving(batcher, path, max_frame=LEAST_IN_FRAME),
        connect(path, max_frame=LEAST_IN_FRAME) as other,
    ):
        named = other.stream("ab", request_id="x" * 200)
        assert list(named) == ["a", "b"]
        assert list(other.stream("x" * 1000)) == ["x"] * 1000


@pytest.mark.parametrize("letter", ["x", "\N{SNOWMAN}", "\N{GRINNING FACE}"])
def test_the_text_of_an_error_is_cut_to_the_smallest_frame_that_there_is(path, letter):
    with (
        ContinuousBatcher(
            Model(raises={0: ValueError(letter * 2000)}), max_batch_size=4
        ) as batcher,
        serving(batcher, path),
        connect(path, max_frame=LEAST_IN_FRAME) as other,
    ):
        with pytest.raises(SourceError, match=f"^{letter * 50}"):
            list(other.stream("a"))
        assert list(other.stream("ab")) == ["a", "b"]


def test_a_request_id_travels(path, caplog):
    caplog.set_level("WARNING", "batchstream")
    with served(path, Model(raises={0: ValueError("no")}), name="model") as (_, other):
        stream = other.stream("a", request_id="its id")
        with pytest.raises(ValueError, match="no"):
            list(stream)
    found = {record.batcher for record in caplog.records if record.request_id == "its id"}
    assert "model" in found


# ---- overload, and deadlines


def test_a_request_is_refused_as_the_model_refuses_it(path):
    engine = Waiting()
    with served(path, engine, max_batch_size=1, max_pending=1) as (batcher, other):
        first = other.stream("a")
        taken(engine.added)
        second, third = other.stream("b"), other.stream("c")
        with pytest.raises(OverloadedError) as caught:
            next(third)
        assert (caught.value.max_pending, caught.value.pending) == (1, 1)
        assert type(caught.value.__cause__) is not RemoteTraceback
        assert batcher.statistics().refused == 1
        first.cancel()
        second.cancel()


class Told:
    """Metrics that note how requests were refused and have ended."""

    def __init__(self):
        self.events = []

    def refused(self, reason, *, tenant):
        self.events.append(("refused", reason, tenant))

    def finished(self, end, *, joined, refused=False, **_):
        self.events.append(("finished", str(end.reason), joined, refused))


def test_requests_that_the_model_refuses_count_as_refused_and_have_one_line(path, caplog):
    caplog.set_level("INFO", "batchstream")
    engine, told = Waiting(), Told()
    with (
        served(path, engine, max_batch_size=1, max_pending=1) as (_, _),
        connect(path, metrics=told, name="far") as other,
    ):
        first = other.stream("a")
        taken(engine.added)
        second = other.stream("b")
        for _ in range(5):
            with pytest.raises(OverloadedError):
                next(other.stream("c"))
        until(lambda: len(told.events) == 10)
        statistics = other.statistics()
        assert (statistics.refused, statistics.refusals) == (5, {"pending": 5})
        assert statistics.finished == {}
        assert statistics.opened == 2
        assert (
            told.events
            == [
                ("refused", "pending", None),
                ("finished", "error", True, True),
            ]
            * 5
        )
        first.cancel()
        engine.give({})
        taken(engine.added)
        engine.give({0: Last("x")})
        assert list(second) == ["x"]
    lines = [
        (it.kind, it.levelname) for it in caplog.records if getattr(it, "batcher", "") == "far"
    ]
    ends = ("refusals_ended", "INFO"), ("closed", "INFO")
    assert lines == [("refusals_started", "WARNING"), *ends]


def test_an_overload_that_the_model_itself_fails_a_request_with_is_no_refusal(path):
    error = OverloadedError("its own", pending=1, max_pending=1)
    with served(path) as (_, other):
        with pytest.raises(OverloadedError, match="its own"):
            list(other.stream(["a", Fail(error)]))
        until(lambda: not other.statistics().live)
        assert other.statistics().finished == {FinishReason.ERROR: 1}
        assert other.statistics().refused == 0


def test_a_request_for_which_this_process_has_no_room_says_by_which_option(path):
    engine = Waiting()
    with served(path, engine, max_requests=1) as (_, other):
        first = other.stream("a")
        taken(engine.added)
        second = other.stream("b")
        with pytest.raises(OverloadedError, match=r"no more than 1 may \(max_requests\)") as caught:
            other.stream("c")
        assert (caught.value.pending, caught.value.max_pending) == (1, 1)
        first.cancel()
        second.cancel()


def test_the_requests_of_a_map_wait_for_room_at_the_model(path):
    with served(path, max_batch_size=1, max_pending=1) as (batcher, other):
        requests = [str(number) for number in range(20)]
        assert list(other.map(requests)) == [list(request) for request in requests]
        assert batcher.statistics().opened == 20


def test_a_map_that_is_closed_leaves_no_request_that_waits_for_room(path):
    engine = Waiting()
    with served(path, engine, max_batch_size=1, max_pending=1) as (batcher, other):
        replies = other.map(["a", "b", "c", "d"])
        thread = threading.Thread(target=lambda: list(replies))
        thread.start()
        assert taken(engine.added) == "a"
        replies.close()
        thread.join(TIMEOUT)
        assert taken(engine.removed) == "a"
        until(lambda: not batcher.statistics().live)


def test_the_model_looks_after_the_time_that_a_request_waits(path):
    engine = Waiting()
    with served(path, engine, max_batch_size=1) as (batcher, other):
        first = other.stream("a")
        taken(engine.added)
        late = other.stream("b", wait_timeout=LONG)
        until(lambda: batcher.statistics().waiting)
        knobs.let_deadline_at_model_pass(batcher)
        with pytest.raises(DeadlineError, match="joined no batch") as caught:
            next(late)
        assert caught.value.timeout == LONG
        engine.give({0: Last("x")})
        assert list(first) == ["x"]


@pytest.mark.parametrize("deadline", ["timeout", "first_timeout"])
def test_a_deadline_frees_the_slot_at_the_model(path, deadline):
    engine = Waiting()
    with served(path, engine) as (_, other):
        stream = other.stream("a", **{deadline: LONG})
        assert taken(engine.added) == "a"
        knobs.let_deadline_pass(stream)
        with pytest.raises(DeadlineError, match=deadline):
            next(stream)
        assert taken(engine.removed) == "a"


def test_the_model_looks_after_gaps(path):
    engine = Waiting()
    with served(path, engine) as (batcher, other):
        stream = other.stream("a", gap_timeout=LONG)
        taken(engine.added)
        engine.give({0: "x"})
        assert next(stream) == "x"
        until(lambda: knobs.awaits_next_output(batcher))
        knobs.let_deadline_at_model_pass(batcher)
        with pytest.raises(DeadlineError, match="gap_timeout"):
            next(stream)


def test_a_model_that_waits_for_a_consumer_misses_no_deadline(path, monkeypatch):
    ahead = [0.0]
    monkeypatch.setattr(knobs.batching_clock, "monotonic", lambda: time.monotonic() + ahead[0])
    with served(path, max_buffered=1, on_overflow="wait", window=1) as (batcher, other):
        stream = other.stream("x" * 20, gap_timeout=100)
        assert next(stream) == "x"
        until(lambda: knobs.waits_for_room(batcher))
        ahead[0] = 1000.0
        assert "".join(stream) == "x" * 19


# ---- back-pressure


class AnotherComes:
    """An output that lets others come to its stream as it is sent."""

    let_come: ClassVar = None

    def __reduce__(self):
        self.let_come()
        return str, ("first",)


class Growing(deque):
    """What a stream holds, to which the pump adds another output whenever it is counted."""

    def __len__(self):
        count = super().__len__()
        self.append("z")
        return count


@pytest.mark.parametrize(
    ("held", "window", "count"), [("abc", 2, 2), ("abc", 3, 3), ("abc", 10, 3), ("", 5, 0)]
)
def test_what_comes_while_outputs_are_taken_is_not_taken_beyond_the_window(held, window, count):
    heard = []
    buffer = SimpleNamespace(outputs=Growing(held), on_room=heard.append)
    assert take(buffer, window) == list(held[:count])
    assert heard == ([buffer] if count else [])


def test_what_comes_while_others_are_sent_arrives(path, monkeypatch):
    engine = Waiting()
    with served(path, engine) as (batcher, other):
        stream = other.stream("a")
        taken(engine.added)

        def let_come(_):
            engine.give({0: "second"})
            engine.give({0: Last("third")})
            until(lambda: not batcher.statistics().running)

        monkeypatch.setattr(AnotherComes, "let_come", let_come)
        engine.give({0: AnotherComes()})
        assert list(stream) == ["first", "second", "third"]


@pytest.mark.parametrize("window", [1, 2, 5, 64])
def test_a_stream_that_is_not_read_lets_the_model_wait(path, window):
    with served(path, max_buffered=3, on_overflow="wait", window=window) as (batcher, other):
        slow = other.stream("x" * 500)
        until(lambda: knobs.waits_for_room(batcher))
        held = other.statistics().buffered
        assert held <= window
        assert batcher.statistics().outputs <= window + 3 + 2
        assert "".join(slow) == "x" * 500


def test_a_stream_that_is_not_read_is_ended_by_the_model_behind_what_it_holds(path):
    engine = Waiting()
    with served(path, engine, max_buffered=3, window=4) as (batcher, other):
        slow = other.stream("slow")
        taken(engine.added)
        quick = other.stream("quick")
        taken(engine.added)
        for _ in range(20):
            engine.give(dict.fromkeys(engine.requests, "x"))
            assert next(quick) == "x"
        assert taken(engine.removed) == "slow"
        engine.give(dict.fromkeys(engine.requests, Last("y")))
        assert list(quick) == ["y"]
        read = []
        with pytest.raises(SlowConsumerError, match=r"more than 3 \(max_buffered\)"):
            read.extend(slow)
        assert 4 <= len(read) <= 4 + 3 + 2
        assert batcher.statistics().live == 0


def test_a_stream_that_is_not_read_is_merged_by_the_model(path):
    with served(path, max_buffered=2, on_overflow="merge", merge=operator.add, window=2) as (
        _,
        other,
    ):
        slow, quick = other.stream("x" * 500), other.stream("y" * 500)
        assert "".join(quick) == "y" * 500
        outputs = list(slow)
        assert "".join(outputs) == "x" * 500
        assert len(outputs) < 100
        assert slow.end.outputs == 500


def test_the_requests_of_a_map_are_not_bound_by_the_window(path):
    with served(path, max_buffered=2, on_overflow="wait", window=2) as (_, other):
        assert list(other.map(["x" * 300, "y" * 200])) == [["x"] * 300, ["y"] * 200]


def test_a_consumer_that_reads_at_times_gets_all(path):
    with served(path, max_buffered=2, on_overflow="wait", window=6) as (_, other):
        streams = [other.stream(letter * 400) for letter in "abc"]
        texts = ["", "", ""]
        while any(len(text) < 400 for text in texts):
            for n, stream in enumerate(streams):
                if len(texts[n]) < 400:
                    texts[n] += next(stream) + "".join(stream.drain())
        assert texts == ["a" * 400, "b" * 400, "c" * 400]
        assert [list(stream) for stream in streams] == [[], [], []]


# ---- what leaves


@pytest.mark.rule(13)
def test_a_request_that_is_cancelled_leaves_the_model(path):
    engine = Waiting()
    with served(path, engine) as (_, other):
        first, second = other.stream("a"), other.stream("b")
        assert {taken(engine.added), taken(engine.added)} == {"a", "b"}
        first.cancel()
        assert taken(engine.removed) == "a"
        second.cancel()  # the last: no step of the client's follows
        assert taken(engine.removed) == "b"


def test_a_request_of_which_outputs_were_read_is_cancelled_without_a_trace(path):
    with served(path) as (batcher, other):
        for _ in range(20):
            stream = other.stream("x" * 10_000)
            next(stream)
            del stream
        assert "".join(other.stream("abc")) == "abc"
        until(lambda: not batcher.statistics().live)
        assert other.statistics().live == 0


def test_the_requests_of_a_client_that_is_closed_leave_the_model(path):
    engine = Waiting()
    with served(path, engine) as (_, other):
        stream = other.stream("a")
        taken(engine.added)
        other.close()
        assert taken(engine.removed) == "a"
        with pytest.raises(ClosedError, match="close"):
            next(stream)


class Output:
    """An output that is sent by its name."""

    def __reduce__(self):
        return Output, ()


def test_an_idle_client_keeps_no_output_alive(path):
    with served(path) as (_, other):
        stream = other.stream([Output(), "a"])
        gone = weakref.ref(next(stream))
        assert list(stream) == ["a"]
        knobs.wait_for_idle_workers(other)
        gc.collect()
        assert gone() is None
        assert knobs.engine_of(other)._touched == []


def test_the_last_cancellations_have_one_time_for_all_connections(monkeypatch):
    now, waited = 0.0, []

    class Poll:
        def register(self, *_):
            pass

        def poll(self, most):
            nonlocal now
            waited.append(most)
            now += most / 1000

    engine = link.Link(SimpleNamespace(window=4))
    full = SimpleNamespace(send=lambda: None, has_unsent=True, socket=None)
    engine._connections = [full, full]
    monkeypatch.setattr(link, "select", SimpleNamespace(poll=Poll, POLLOUT=4))
    monkeypatch.setattr(link, "monotonic", lambda: now)
    engine._send_the_rest()
    assert waited == [1000, 0]
    engine._connections = []
    engine.close()


# ---- the server goes, and comes back


def test_a_client_without_a_server_is_refused_at_once_and_asks_again_with_the_next_request(path):
    with connect(path) as other:
        for _ in range(2):
            with pytest.raises(
                ConnectionLostError,
                match=r"No such file or directory: no server listens there, so start the process "
                r"that calls serve with this path",
            ):
                list(other.stream("a"))
        with ContinuousBatcher(Model, max_batch_size=1) as batcher, serving(batcher, path):
            assert list(other.stream("a")) == ["a"]
        with pytest.raises(ConnectionLostError):
            list(other.stream("a"))
        with ContinuousBatcher(Model, max_batch_size=1) as batcher, serving(batcher, path):
            assert list(other.stream("a")) == ["a"]  # no request is lost on the connection that was


def test_a_socket_that_was_left_over_is_no_server(path):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    with (
        connect(path) as other,
        pytest.raises(ConnectionLostError, match=r"refused: no server listens there, so start"),
    ):
        list(other.stream("a"))


def test_a_server_that_was_replaced_in_a_pause_costs_no_request(path):
    with connect(path) as other:
        for _ in range(3):
            with ContinuousBatcher(Model, max_batch_size=1) as batcher, serving(batcher, path):
                assert list(other.stream("a")) == ["a"]


def test_streams_fail_with_the_server_that_ends_and_say_why(path):
    engine = Waiting()
    with ContinuousBatcher(engine, max_batch_size=2) as batcher, connect(path) as other:
        with serving(batcher, path):
            stream = other.stream("a")
            taken(engine.added)
            engine.give({0: "x"})
            assert next(stream) == "x"
        with pytest.raises(ClosedError, match=r"the server of the model .* ends"):
            next(stream)
        assert taken(engine.removed) == "a"


def test_a_server_that_drains_lets_requests_end_and_refuses_others(path):
    engine = Waiting()
    with ContinuousBatcher(engine, max_batch_size=1) as batcher, connect(path) as other:
        server = serving(batcher, path, drain=TIMEOUT)
        server.__enter__()
        stream = other.stream("a")
        taken(engine.added)
        thread = threading.Thread(target=server.__exit__, args=(None, None, None))
        thread.start()
        until(lambda: knobs.is_ending(server))
        with pytest.raises(ClosedError, match=r"the server of the model .* ends"):
            next(other.stream("b"))
        engine.give({0: Last("x")})
        assert list(stream) == ["x"]
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@contextmanager
def draining(batcher, path, other, engine, idle=None):
    """Let a server drain while it has a stream of a client; give the stream, of one output."""
    server = serving(batcher, path, drain=TIMEOUT)
    server.__enter__()
    if idle is not None:  # one that has a connection, and no stream
        before = idle.stream("before")
        assert taken(engine.added) == "before"
        engine.give({0: Last("x")})
        assert list(before) == ["x"]
    stream = other.stream("old")
    assert taken(engine.added) == "old"
    thread = threading.Thread(target=server.__exit__, args=(None, None, None))
    thread.start()
    until(lambda: knobs.is_ending(server))
    # The client's link reads the notice before it reads this output.
    engine.give({0: "x"})
    assert next(stream) == "x"
    try:
        yield stream
    finally:
        engine.give({0: Last("y")})
        thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_requests_go_to_the_next_server_while_the_one_before_drains(path, caplog):
    caplog.set_level("INFO", "batchstream")
    engine, successor = Waiting(), Waiting()
    with (
        ContinuousBatcher(engine, max_batch_size=2) as batcher,
        ContinuousBatcher(successor, max_batch_size=2) as another,
        connect(path, name="far") as other,
    ):
        with draining(batcher, path, other, engine) as old:
            for _ in range(2):
                with pytest.raises(ConnectionLostError, match=r"ends, .* no other is there yet"):
                    next(other.stream("a"))
            until(lambda: other.statistics().live == 1)
            assert other.statistics().refusals == {"draining": 2}
            with serving(another, path):
                new = other.stream("b")
                assert taken(successor.added) == "b"
                successor.give({0: "1"})
                assert next(new) == "1"
                engine.give({0: "x"})
                assert next(old) == "x"
                dropped = other.stream("c")
                assert taken(successor.added) == "c"
                dropped.cancel()
                assert taken(successor.removed) == "c"
                engine.give({0: Last("y")})
                assert list(old) == ["y"]
                successor.give({0: Last("2")})
                assert list(new) == ["2"]
                # A server that is killed says nothing: what fails by that was not refused.
                Path(path).unlink()
                knobs.engine_of(other)._connections[-1].socket.shutdown(socket.SHUT_RDWR)
                with pytest.raises(ConnectionLostError, match=r"process at .* No such file"):
                    next(other.stream("a"))
                until(lambda: not other.statistics().live)
                assert other.statistics().refusals == {"draining": 2}
        assert batcher.statistics().opened == 1
    lines = [it.kind for it in caplog.records if getattr(it, "batcher", "far") == "far"]
    assert lines.count("remote_leaves") == 1
    assert lines.count("cut_short") == 1
    assert not {"failed", "engine_discarded"} & set(lines)


def test_an_idle_client_goes_to_the_next_server_while_the_one_before_drains(path):
    engine = Waiting()
    with (
        ContinuousBatcher(engine, max_batch_size=2) as batcher,
        ContinuousBatcher(Model, max_batch_size=2) as another,
        connect(path) as other,
        connect(path) as idle,
    ):
        with draining(batcher, path, other, engine, idle), serving(another, path):
            for _ in range(2):
                assert list(idle.stream("ab")) == ["a", "b"]
        assert batcher.statistics().opened == 2


def test_a_connection_to_a_server_that_drains_ends_with_its_last_stream(path):
    engine = Waiting()
    with (
        ContinuousBatcher(engine, max_batch_size=2) as batcher,
        connect(path) as other,
        draining(batcher, path, other, engine) as old,
    ):
        link = knobs.engine_of(other)
        [connection] = link._connections
        engine.give({0: "x"})
        assert next(old) == "x"
        assert link._connections == [connection]
        old.cancel()
        assert taken(engine.removed) == "old"
        until(lambda: link._connections == [])


class Fails(logging.Handler):
    """A handler that fails with the notice of a server that goes away."""

    def emit(self, record):
        if record.kind == "remote_leaves":
            raise ValueError("no disk")


def test_a_handler_that_fails_fails_no_stream(path, caplog, monkeypatch):
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: raised.append(str(it.exc_value)))
    caplog.set_level("INFO", "batchstream")
    monkeypatch.setattr(logging.getLogger("batchstream"), "handlers", [Fails()])
    engine = Waiting()
    with (
        ContinuousBatcher(engine, max_batch_size=2) as batcher,
        connect(path) as other,
        draining(batcher, path, other, engine) as old,
    ):
        engine.give({0: Last("y")})
        assert list(old) == ["y"]
    assert "no disk" in raised


def test_a_stream_that_is_cut_as_a_server_ends_fails_alone(path):
    engine, successor = Waiting(), Waiting()
    with (
        ContinuousBatcher(engine, max_batch_size=2) as batcher,
        ContinuousBatcher(successor, max_batch_size=2) as another,
        connect(path) as other,
        draining(batcher, path, other, engine) as old,
        serving(another, path),
    ):
        new = other.stream("b")
        assert taken(successor.added) == "b"
        leaving, _ = knobs.engine_of(other)._connections
        leaving.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ConnectionLostError, match="was lost"):
            next(old)
        successor.give({0: Last("2")})
        assert list(new) == ["2"]


@contextmanager
def silent(path):
    """Let a server listen that answers nothing; give what accepts a connection."""

    def accept():
        connection, _ = listening.accept()
        connection.settimeout(TIMEOUT)
        return connection

    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(TIMEOUT)
        listening.bind(path)
        listening.listen()
        yield accept


def test_streams_go_on_while_the_next_server_does_not_answer(path):
    engine = Waiting()
    with (
        ContinuousBatcher(engine, max_batch_size=2) as batcher,
        connect(path, connect_timeout=LONG) as other,
        draining(batcher, path, other, engine) as old,
        silent(path) as accept,
    ):
        new = other.stream("b")
        with accept() as connection:
            for output in "xyz":
                engine.give({0: output})
                assert next(old) == output
            new.cancel()
            assert connection.recv(1000).startswith(b"batchstream-remote")
            assert connection.recv(1000) == b""


def test_a_request_that_leaves_before_the_server_answers_lets_the_next_connect_anew(path):
    with connect(path, connect_timeout=LONG) as other, silent(path) as accept:
        first = other.stream("a")
        with accept() as one:
            first.cancel()
            assert one.recv(1000).startswith(b"batchstream-remote")
            assert one.recv(1000) == b""
        second = other.stream("a")
        with accept() as another:
            another.sendall(greeting("refused: not today"))
            with pytest.raises(ConnectionLostError, match="refused: not today"):
                next(second)


def test_requests_that_come_before_the_server_answers_wait_for_it(path):
    with connect(path, connect_timeout=LONG) as other, silent(path) as accept:
        streams = [other.stream("a")]
        with accept() as connection:
            streams.append(other.stream("b"))
            line, submitted = b"", []
            while b"\n" not in line:
                line += connection.recv(1)
            connection.sendall(server_greeting(DEFAULT_MAX_FRAME))
            incoming = Incoming(FROM_CLIENT, DEFAULT_MAX_FRAME)
            while len(submitted) < 2:
                incoming.feed(connection.recv(1000))
                submitted += incoming.take_records()
            assert [read_submission(it.payload)[1] for it in submitted] == ["a", "b"]
        for stream in streams:
            with pytest.raises(ConnectionLostError, match="was lost"):
                next(stream)


def test_a_client_is_ready_while_a_server_listens(path):
    engine = Waiting()
    with ContinuousBatcher(engine, max_batch_size=1) as batcher, connect(path) as other:
        assert not other.ready
        with serving(batcher, path):
            assert other.ready
        assert not other.ready
        with draining(batcher, path, other, engine):
            assert not other.ready
            with (
                ContinuousBatcher(Model, max_batch_size=1) as another,
                serving(another, path),
            ):
                assert other.ready  # without a request
        assert not other.ready
        assert other.state == "accepting"
    with ContinuousBatcher(Model, max_batch_size=1) as batcher, serving(batcher, path):
        assert not other.ready  # it was closed


def test_a_client_is_not_ready_where_a_killed_server_has_left_its_socket(path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    with connect(path) as other:
        assert not other.ready


def test_a_client_does_not_wait_to_say_whether_it_is_ready(path):
    full = socket.socket(socket.AF_UNIX)
    full.bind(path)
    full.listen(0)
    with connect(path) as other, contextlib.ExitStack() as stack:
        while True:
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            if filler.connect_ex(path):
                break
        assert other.ready
    full.close()


def test_a_connection_that_is_lost_fails_all_streams_and_the_next_request_connects(path):
    engine = Waiting()
    with served(path, engine) as (_, other):
        streams = [other.stream("a"), other.stream("b")]
        assert {taken(engine.added), taken(engine.added)} == {"a", "b"}
        [connection] = knobs.engine_of(other)._connections
        connection.socket.shutdown(socket.SHUT_RDWR)
        for stream in streams:
            with pytest.raises(ConnectionLostError, match="was lost: it has ended"):
                next(stream)
        assert {taken(engine.removed), taken(engine.removed)} == {"a", "b"}
        stream = other.stream("c")
        assert taken(engine.added) == "c"
        engine.give({slot: Last("x") for slot in engine.requests})
        assert list(stream) == ["x"]


class FailsOnce:
    """A socket whose next call to send fails, though its connection lives."""

    def __init__(self, whole):
        self._whole = whole
        self._fails = True

    def send(self, data):
        if self._fails:
            self._fails = False
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return self._whole.send(data)

    def __getattr__(self, name):
        return getattr(self._whole, name)


def test_a_request_that_the_system_does_not_send_fails_and_the_next_one_connects(path):
    with served(path) as (_, other):
        assert list(other.stream("a")) == ["a"]
        [connection] = knobs.engine_of(other)._connections
        connection.socket = FailsOnce(connection.socket)
        with pytest.raises(ConnectionLostError, match="was lost: it has ended"):
            list(other.stream("b", timeout=TIMEOUT))
        assert list(other.stream("c")) == ["c"]


# ---- forks, threads, pickles


@needs_fork
def test_a_client_that_was_made_or_used_before_a_fork_connects_anew_in_the_child(path):
    with served(path) as (batcher, other):
        assert in_forked_child(lambda: list(other.stream("ab"))) == "['a', 'b']"
        assert list(other.stream("cd")) == ["c", "d"]
        knobs.wait_for_idle_workers(other)
        assert in_forked_child(lambda: list(other.stream("ef"))) == "['e', 'f']"
        assert list(other.stream("gh")) == ["g", "h"]
        assert batcher.statistics().opened == 4


WORKER = """
import os, sys
from batchstream.remote import connect

stream = connect(sys.argv[1]).stream("a")
next(stream)
if not os.fork():
    os.read(0, 1)  # until the test ends
    os._exit(0)
print("has forked", flush=True)
os.read(0, 1)
"""


@needs_fork
def test_the_requests_of_a_process_that_is_killed_leave_the_model_though_its_fork_lives(path):
    engine = Waiting()
    with served(path, engine) as (batcher, _):
        command = [sys.executable, "-W", "ignore", "-c", WORKER, path]
        with subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as worker:
            try:
                assert taken(engine.added) == "a"
                engine.give({0: "x"})
                assert worker.stdout.readline() == "has forked\n"
                worker.kill()
                assert taken(engine.removed) == "a"
                until(lambda: not batcher.statistics().live)
                # It has not failed, as it would when the engine has waited for long.
                assert batcher.statistics().finished == {FinishReason.CANCELLED: 1}
            finally:
                worker.kill()
                worker.stdin.close()


def test_many_threads_share_a_connection(path):
    def read(other, number, found):
        for turn in range(10):
            request = f"{number}:{turn}"
            found.append("".join(other.stream(request)) == request)

    with served(path, max_batch_size=4) as (batcher, other):
        found = []
        threads = [
            threading.Thread(target=read, args=(other, number, found)) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert found == [True] * 80
        assert batcher.statistics().live == other.statistics().live == 0


def test_several_clients_are_apart(path):
    with served(path) as (_, other), connect(path) as another:
        one, two = other.stream("abc"), another.stream("def")
        assert ("".join(one), "".join(two)) == ("abc", "def")


def test_a_remote_batcher_cannot_be_pickled_and_says_what_it_is(path):
    with connect(path, name="far") as other:
        with pytest.raises(TypeError, match="a RemoteBatcher 'far' cannot be pickled"):
            pickle.dumps(other)
        assert repr(other) == "<RemoteBatcher 'far', open, 0 requests waiting, 0 batches run>"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_requests": 0}, ValueError),
        ({"window": 0}, ValueError),
        ({"window": 1.5}, TypeError),
        ({"connect_timeout": -1}, ValueError),
        ({"connect_timeout": 0}, ValueError),
        ({"max_frame": 4095}, ValueError),
        ({"max_frame": 2**32}, ValueError),
        ({"trusted_users": "me"}, TypeError),
        ({"trusted_users": ["me"]}, TypeError),
    ],
)
def test_an_option_that_cannot_work_is_refused(path, options, error):
    with pytest.raises(error, match=next(iter(options))):
        connect(path, **options)
