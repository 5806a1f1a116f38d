"""What every form of batcher promises: outputs, batches, and requests that leave."""

from __future__ import annotations

import gc
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from batchstream import (
    EOS,
    SKIP,
    ConcurrentConsumerError,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    End,
    Fail,
    FinishReason,
    Last,
    Many,
    MissingEOSError,
    OverloadedError,
    RequestError,
    SlowConsumerError,
    token_ids,
)
from support import knobs
from support.engines import (
    Echo,
    batchers_in_loops,
    batchers_in_threads,
    continuous_batchers,
    dynamic_batchers,
    every_batcher,
)
from support.forms import OVER
from support.sources import TIMEOUT, Gate, OfUnhashableType, Untouchable
from support.strategies import same

LONG = 3600.0
"""A time that no test waits for, in seconds."""


# ---- outputs


@pytest.mark.rule(2, 3)
@every_batcher
async def test_each_request_gets_its_own_outputs_in_order_and_ends(form):
    batcher = form.batcher(max_batch_size=3)
    requests = ["abcde", "x", "", "pqr", "yz"]
    streams = [form.submit(batcher, request) for request in requests]
    assert [await form.rest(stream) for stream in streams] == [list(each) for each in requests]
    assert [stream.finish_reason for stream in streams] == [FinishReason.EOS] * 5
    assert [stream.end.outputs for stream in streams] == [5, 1, 0, 3, 2]


@pytest.mark.rule(2, 3)
@every_batcher
async def test_consumers_at_the_same_time_get_each_its_own_outputs(form):
    batcher = form.batcher(max_batch_size=3)
    requests = ["abcde", "x", "", "pqr", "yz", "aaaaaaaa", "mn"]

    async def ask(request):
        return await form.rest(form.submit(batcher, request))

    results = await form.concurrently(*(partial(ask, request) for request in requests))
    assert results == [list(request) for request in requests]


@pytest.mark.rule(2)
@every_batcher
async def test_a_request_need_not_be_read_to_be_worked_on(form):
    batcher = form.batcher(form.model(on_step=lambda _: done.set()))
    done = form.flag()
    stream = form.submit(batcher, "abc")
    await done.wait()
    assert await form.rest(stream) == ["a", "b", "c"]


@pytest.mark.rule(6)
@every_batcher
async def test_outputs_of_every_kind_pass_untouched(form):
    kinds = [Untouchable(), OfUnhashableType(), np.zeros(2), StopIteration, StopIteration(), 0, []]
    batcher = form.batcher()
    for stream in [form.submit(batcher, kinds), form.submit(batcher, kinds)]:
        assert same(await form.rest(stream), kinds)


@pytest.mark.rule(6)
@every_batcher
async def test_requests_of_every_kind_pass_untouched(form):
    class Request(Untouchable):
        __iter__ = None

    seen = []

    def fn(requests):
        seen.extend(requests)
        yield [Last("a")] * len(requests)

    class Engine:
        def add(self, slot, request):
            seen.append(request)
            self.slot = slot

        def step(self):
            return {self.slot: Last("a")}

        def remove(self, slot):
            pass

    async def afn(requests):
        for step in fn(requests):
            yield step

    request = Request()
    model = Engine() if form.continuous else afn if form.source_is_async else fn
    assert await form.rest(form.submit(form.batcher(model), request)) == ["a"]
    assert same(seen, [request])


@pytest.mark.rule(7)
@every_batcher
async def test_a_stream_ends_while_the_model_is_held_in_the_next_step(form):
    first, gate = form.gate(), form.gate()
    batcher = form.batcher(form.model(gates={0: first, 2: gate}))
    long, short = form.submit(batcher, "abcd"), form.submit(batcher, "x")
    first.open()
    assert await form.rest(short) == ["x"]
    await gate.reached.wait()
    assert short.finish_reason is FinishReason.EOS
    assert long.finish_reason is None
    gate.open()
    assert await form.rest(long) == list("abcd")


@pytest.mark.rule(5)
@every_batcher
async def test_a_finished_stream_stays_finished(form):
    stream = form.submit(form.batcher(), "a")
    assert await form.rest(stream) == ["a"]
    for _ in range(3):
        assert await form.receive(stream) is OVER
    assert stream.drain() == []


@every_batcher
async def test_every_marker_may_stand_in_a_step(form):
    requests = [
        [Many(["a", "b"]), SKIP, "c", Last("d", "length", {"n": 4}), "late"],
        ["x", End("length", {"n": 1}), "late"],
        [EOS, "late"],
        [Many(["p", EOS, "late"])],
    ]
    batcher = form.batcher()
    streams = [form.submit(batcher, request) for request in requests]
    assert [await form.rest(stream) for stream in streams] == [list("abcd"), ["x"], [], ["p"]]
    reasons = [FinishReason.LENGTH, FinishReason.LENGTH, FinishReason.EOS, FinishReason.EOS]
    assert [stream.finish_reason for stream in streams] == reasons
    assert [stream.end.info for stream in streams] == [{"n": 4}, {"n": 1}, None, None]


@pytest.mark.rule(6)
@every_batcher
@pytest.mark.parametrize(
    ("options", "given", "received"),
    [
        ({}, ["a", None, "late"], ["a"]),
        ({"eos": EOS}, [None, EOS, "late"], [None]),
        ({"is_eos": token_ids(2)}, [1, 2, 3], [1]),
        ({"is_eos": token_ids(2), "include_eos": True}, [1, 2, 3], [1, 2]),
        ({"is_eos": lambda output: output > 5}, [1, 7, 3], [1]),
    ],
)
async def test_every_style_of_end_mark(form, options, given, received):
    stream = form.submit(form.batcher(**options), given)
    assert await form.rest(stream) == received
    assert stream.finish_reason is FinishReason.EOS


@every_batcher
async def test_max_outputs_ends_each_stream_with_length(form):
    batcher = form.batcher(max_outputs=2)
    streams = [form.submit(batcher, request) for request in ("abc", "x", "pq")]
    assert [await form.rest(stream) for stream in streams] == [["a", "b"], ["x"], ["p", "q"]]
    reasons = [FinishReason.LENGTH, FinishReason.EOS, FinishReason.LENGTH]
    assert [stream.finish_reason for stream in streams] == reasons


@every_batcher
async def test_max_outputs_may_be_a_function_of_the_request(form):
    limits = {"abc": 1, "pqrst": None, "xyz": 2}
    batcher = form.batcher(max_outputs=limits.get, max_batch_size=2)
    streams = [form.submit(batcher, request) for request in limits]
    assert [await form.rest(stream) for stream in streams] == [["a"], list("pqrst"), ["x", "y"]]


@dynamic_batchers
@pytest.mark.parametrize("required", [False, True])
async def test_a_source_that_ends_exhausts_its_streams_or_fails_them(form, required):
    def fn(requests):
        yield ["a", None][: len(requests)]
        yield ["b", None][: len(requests)]

    async def afn(requests):
        for step in fn(requests):
            yield step

    batcher = form.batcher(afn if form.source_is_async else fn, require_eos=required)
    outputs, errors = await form.read(form.submit(batcher, "x"))
    assert outputs == ["a", "b"]
    assert [type(error) for error in errors] == [MissingEOSError] * required
    assert batcher.statistics().finished == {
        FinishReason.ERROR if required else FinishReason.EXHAUSTED: 1
    }


@pytest.mark.rule(30)
@every_batcher
async def test_a_slot_is_known_when_the_request_has_joined_a_batch(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    first, second = await form.submit_behind(batcher, gate, "a", "b")
    assert [first.slot, second.slot] == [0, -1]
    gate.open()
    assert await form.rest(second) == ["b"]
    assert second.slot == 0


# ---- the requests of a batch


@pytest.mark.rule(29)
@dynamic_batchers
async def test_under_backlog_a_batch_has_as_many_requests_as_wait_or_as_may(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=3)
    streams = await form.submit_behind(batcher, gate, "a", *"bcdefgh")
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [[each] for each in "abcdefgh"]
    assert model.called_with == [["a"], ["b", "c", "d"], ["e", "f", "g"], ["h"]]
    figures = batcher.statistics()
    assert (figures.batches, figures.batch_sizes) == (4, {1: 2, 3: 2})


@pytest.mark.rule(29)
@dynamic_batchers
@pytest.mark.parametrize("backlog", range(1, 6))
async def test_the_next_batch_has_the_smaller_of_backlog_and_max_batch_size(form, backlog):
    batcher, model, gate = form.held_batcher(0)
    streams = await form.submit_behind(batcher, gate, "a", *["b"] * backlog)
    gate.open()
    for stream in streams:
        await form.rest(stream)
    assert len(model.called_with[1]) == min(backlog, 4)


@pytest.mark.rule(29, 30)
@continuous_batchers
async def test_waiting_requests_join_before_the_next_step_as_slots_are_free(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=3)
    streams = await form.submit_behind(batcher, gate, "abc", "d", "efg", "h", "i")
    gate.open()
    outputs = [await form.rest(stream) for stream in streams]
    assert outputs == [list(each) for each in ("abc", "d", "efg", "h", "i")]
    assert model.worked_on == [
        ("abc",),
        ("abc", "d", "efg"),
        ("abc", "d", "efg"),  # in which d ends
        ("abc", "efg", "h"),  # in which abc ends
        ("efg", "h", "i"),
        ("i",),
    ]


@pytest.mark.rule(29)
@continuous_batchers
async def test_an_engine_is_called_in_one_order_remove_add_step(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=2)
    streams = await form.submit_behind(batcher, gate, "a", "bc", "d")
    gate.open()
    for stream in streams:
        await form.rest(stream)
    await form.close(batcher)
    assert model.calls == [
        ("add", 0),
        ("step",),
        ("add", 1),
        ("step",),  # in which a ends
        ("remove", 0),
        ("add", 0),
        ("step",),
        ("step",),  # in which bc ends, and d
        ("remove", 0),
        ("remove", 1),
    ]


@pytest.mark.rule(29)
@every_batcher
async def test_first_come_is_first_served(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=1)
    streams = await form.submit_behind(batcher, gate, "a", *"bcdef")
    gate.open()
    for stream in reversed(streams):
        await form.rest(stream)
    order = [requests for requests in model.worked_on if len(requests) == 1]
    assert list(dict.fromkeys(order)) == [(each,) for each in "abcdef"]


@pytest.mark.rule(29)
@dynamic_batchers
async def test_only_requests_with_equal_keys_share_a_batch(form):
    batcher, model, gate = form.held_batcher(0, key=lambda request: request[0])
    requests = ["b1", "a1", "b2", "c1", "a2", "a3", "b3", "b4", "b5"]
    streams = await form.submit_behind(batcher, gate, "x", *requests)
    gate.open()
    outputs = [await form.rest(stream) for stream in streams]
    assert outputs == [list(each) for each in ["x", *requests]]
    assert model.called_with == [
        ["x"],
        ["b1", "b2", "b3", "b4"],
        ["a1", "a2", "a3"],
        ["c1"],
        ["b5"],
    ]


@pytest.mark.rule(29)
@every_batcher
async def test_the_cost_of_a_batch_never_exceeds_its_limit_and_no_request_jumps_the_queue(form):
    batcher, model, gate = form.held_batcher(0, cost=len, max_batch_cost=5)
    streams = await form.submit_behind(batcher, gate, "abcd", "ef", "g", "hijkl", "m")
    gate.open()
    for stream in streams:
        await form.rest(stream)
    assert max(sum(map(len, requests)) for requests in model.worked_on) == 5
    joined = list(dict.fromkeys(request for step in model.worked_on for request in step))
    assert joined == ["abcd", "ef", "g", "hijkl", "m"]
    if not form.continuous:
        assert model.called_with == [["abcd"], ["ef", "g"], ["hijkl"], ["m"]]


@pytest.mark.rule(29)
@every_batcher
async def test_a_request_that_costs_more_than_a_batch_may_is_refused(form):
    batcher = form.batcher(cost=len, max_batch_cost=3)
    for kind in (RequestError, ValueError):  # the client's fault
        with pytest.raises(kind, match=r"costs 4.0, more than a batch may cost: 3 "):
            form.submit(batcher, "abcd")
    assert await form.rest(form.submit(batcher, "abc")) == ["a", "b", "c"]
    figures = batcher.statistics()
    assert (figures.opened, figures.refused) == (1, 0)


@pytest.mark.rule(29)
@every_batcher
@pytest.mark.parametrize("option", ["cost", "key", "max_outputs"])
async def test_an_error_in_cost_key_or_max_outputs_fails_only_that_request(form, option):
    if form.continuous and option == "key":
        pytest.skip("continuous batching has no key")

    def fail(request):
        if request == "bad":
            raise ArithmeticError("of this request")
        return 1

    options = {option: fail} | ({"max_batch_cost": 9} if option == "cost" else {})
    batcher, _, gate = form.held_batcher(0, **options)
    streams = await form.submit_behind(batcher, gate, "a", "b")
    for _ in range(3):
        with pytest.raises(ArithmeticError, match="of this request"):
            form.submit(batcher, "bad")
    streams.append(form.submit(batcher, "c"))
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [["a"], ["b"], ["c"]]
    assert batcher.statistics().opened == 3


@pytest.mark.rule(29)
@every_batcher
@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("cost", "much", TypeError),
        ("cost", None, TypeError),
        ("cost", float("nan"), ValueError),
        ("cost", -1, ValueError),
        ("max_outputs", 0, ValueError),
        ("max_outputs", "2", TypeError),
    ],
)
async def test_what_cost_and_max_outputs_return_has_to_be_a_number(form, option, value, error):
    values = iter([value, 1])
    options = {option: lambda _: next(values)}
    if option == "cost":
        options["max_batch_cost"] = 9
    batcher = form.batcher(**options)
    with pytest.raises(error, match=option):
        form.submit(batcher, "a")
    assert await form.rest(form.submit(batcher, "a")) == ["a"]


@pytest.mark.rule(29)
@dynamic_batchers
async def test_a_key_that_cannot_be_hashed_fails_only_that_request(form):
    batcher = form.batcher(key=lambda request: request)
    with pytest.raises(TypeError, match="unhashable"):
        form.submit(batcher, ["a"])
    assert await form.rest(form.submit(batcher, ("a",))) == ["a"]


@pytest.mark.rule(29)
@every_batcher
async def test_more_requests_than_may_wait_are_refused_at_once(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, max_pending=2)
    streams = await form.submit_behind(batcher, gate, "a", "b", "c")
    for _ in range(3):
        with pytest.raises(OverloadedError, match="2 requests are waiting") as raised:
            form.submit(batcher, "d")
        assert (raised.value.pending, raised.value.max_pending) == (2, 2)
    streams.pop(1).cancel()
    streams.append(form.submit(batcher, "d"))
    with pytest.raises(OverloadedError):
        form.submit(batcher, "e")
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [["a"], ["c"], ["d"]]
    figures = batcher.statistics()
    assert (figures.opened, figures.refused) == (4, 4)


def test_requests_for_which_there_is_room_do_not_count_as_waiting():
    engine = Echo()
    engine.gate = gate = Gate()
    batcher = ContinuousBatcher(engine, max_batch_size=8, max_pending=2)
    streams = [batcher.stream(0)]
    gate.reached.wait(TIMEOUT)
    streams += [batcher.stream(number) for number in range(1, 10)]
    with pytest.raises(OverloadedError):
        batcher.stream(10)
    for stream in streams:
        stream.cancel()
    gate.opened.set()
    batcher.close()


# ---- requests that leave


@pytest.mark.rule(29)
@every_batcher
async def test_a_request_cancelled_before_its_batch_is_not_sent_to_the_model(form):
    batcher, model, gate = form.held_batcher(0)
    streams = await form.submit_behind(batcher, gate, "a", "b", "c", "d")
    streams[2].cancel()
    assert streams[2].finish_reason is FinishReason.CANCELLED
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [["a"], ["b"], [], ["d"]]
    assert "c" not in {request for step in model.worked_on for request in step}


@pytest.mark.rule(29)
@every_batcher
async def test_a_batch_of_which_all_are_cancelled_is_not_sent_to_the_model(form):
    batcher, model, gate = form.held_batcher(0)
    first, *others = await form.submit_behind(batcher, gate, "a", "b", "c")
    for stream in others:
        stream.cancel()
    gate.open()
    assert await form.rest(first) == ["a"]
    await form.close(batcher)
    assert {request for step in model.worked_on for request in step} == {"a"}
    assert batcher.statistics().batch_sizes == {1: 1}


@pytest.mark.rule(12, 13)
@every_batcher
async def test_the_model_learns_of_a_cancel_with_its_next_step(form):
    start, gate = form.gate(), form.gate()
    model = form.model(gates={0: start, 2: gate})
    batcher = form.batcher(model)
    streams = [form.submit(batcher, request) for request in ("abcdef", "pqrst")]
    start.open()
    await gate.reached.wait()
    for _ in range(3):
        streams[0].cancel()
    assert streams[0].finish_reason is FinishReason.CANCELLED
    assert await form.receive(streams[0]) is OVER
    gate.open()
    assert await form.rest(streams[1]) == list("pqrst")
    assert ("abcdef", "pqrst") not in model.worked_on[3:]
    assert model.worked_on[-1] == ("pqrst",)


@pytest.mark.rule(10, 13)
@every_batcher
async def test_when_all_have_left_the_model_stops(form):
    batcher, model, gate = form.held_batcher(1)
    stream = form.submit(batcher, "abcdefgh")
    await gate.reached.wait()
    stream.cancel()
    gate.open()
    assert await form.rest(form.submit(batcher, "x")) == ["x"]
    assert model.worked_on[:4] == [("abcdefgh",), ("abcdefgh",), ("x",), ("x",)]


@pytest.mark.rule(25)
@every_batcher
async def test_dropping_a_stream_cancels_its_request(form):
    batcher, model, gate = form.held_batcher(1)
    stream = form.submit(batcher, "abcdefgh")
    await gate.reached.wait()
    waiting = form.submit(batcher, "pqr") if not form.continuous else None
    del stream, waiting
    gc.collect()
    figures = batcher.statistics()
    assert figures.live == 0
    assert set(figures.finished) == {FinishReason.CANCELLED}
    gate.open()
    assert await form.rest(form.submit(batcher, "x")) == ["x"]
    assert model.worked_on[:4] == [("abcdefgh",), ("abcdefgh",), ("x",), ("x",)]


@pytest.mark.rule(11)
@every_batcher
async def test_cancelling_one_stream_changes_nothing_in_another(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=3)
    streams = await form.submit_behind(batcher, gate, "abc", "def", "ghi")
    streams[0].cancel()
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [[], list("def"), list("ghi")]


@every_batcher
async def test_a_request_that_does_not_join_in_time_fails_and_is_not_sent(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=1)
    first, second = await form.submit_behind(batcher, gate, "a", "b", wait_timeout=LONG)
    knobs.expire_in(second, 0.01)
    outputs, [error] = await form.read(second)
    assert outputs == []
    assert type(error) is DeadlineError
    assert error.timeout == LONG
    assert f"joined no batch within {LONG} seconds (wait_timeout): submit it again" in str(error)
    assert str(error).endswith("when fewer requests wait, or with a longer wait_timeout")
    assert second.finish_reason is FinishReason.ERROR
    gate.open()
    assert await form.rest(first) == ["a"]
    assert ("b",) not in model.worked_on


@pytest.mark.rule(9)
@every_batcher
async def test_a_timeout_is_raised_while_the_model_is_in_a_step(form):
    batcher, _, gate = form.held_batcher(1)
    stream = form.submit(batcher, "abc", timeout=LONG)
    await gate.reached.wait()
    knobs.expire_in(stream, 0.01)
    outputs, [error] = await form.read(stream)
    assert type(error) is DeadlineError
    assert f"was not finished within {LONG} seconds (timeout): submit it again" in str(error)
    assert str(error).endswith("with a longer timeout, or ask for fewer outputs (max_outputs)")
    assert outputs == ["a"]
    gate.open()


@pytest.mark.rule(5)
@every_batcher
async def test_what_is_buffered_is_delivered_before_the_timeout_is_raised(form):
    batcher, model, gate = form.held_batcher(2)
    stream = form.submit(batcher, "abc", timeout=LONG)
    await gate.reached.wait()
    knobs.let_deadline_pass(stream)
    outputs, errors = await form.read(stream)
    assert outputs == ["a", "b"]
    assert [type(error) for error in errors] == [DeadlineError]
    gate.open()
    assert await form.rest(form.submit(batcher, "x")) == ["x"]
    assert model.worked_on[3:] == [("x",), ("x",)]


@pytest.mark.rule(9)
@batchers_in_threads
async def test_a_request_may_join_while_its_consumer_reads_how_long_it_may_wait(form, monkeypatch):
    gate, joined = form.gate(), threading.Event()

    def join_meanwhile(_request):
        if threading.current_thread() is consumer and not joined.is_set():
            gate.open()
            assert joined.wait(TIMEOUT)

    consumer = threading.current_thread()
    model = form.model(gates={0: gate}, on_step=lambda number: number == 2 and joined.set())
    batcher = form.batcher(model, max_batch_size=1)
    _first, second = await form.submit_behind(batcher, gate, "a", "b", wait_timeout=LONG)
    knobs.after_deadline(monkeypatch, join_meanwhile)
    assert await form.rest(second) == ["b"]


@every_batcher
async def test_a_request_that_ends_in_time_is_not_touched_by_its_timeouts(form):
    stream = form.submit(form.batcher(), "abc", timeout=LONG, wait_timeout=LONG)
    assert await form.rest(stream) == ["a", "b", "c"]
    assert stream.finish_reason is FinishReason.EOS


@every_batcher
@pytest.mark.parametrize("option", ["timeout", "wait_timeout"])
@pytest.mark.parametrize(
    ("value", "error"),
    [("1", TypeError), (True, TypeError), (-1, ValueError), (float("inf"), ValueError)],
)
async def test_a_timeout_that_cannot_be_is_refused(form, option, value, error):
    batcher = form.batcher()
    with pytest.raises(error, match=option):
        form.submit(batcher, "a", **{option: value})
    assert batcher.statistics().opened == 0


@pytest.mark.rule(19)
@every_batcher
async def test_a_slow_consumer_is_cut_off_and_the_others_do_not_wait_for_it(form):
    recorder, model = form.recorder(), form.model()
    batcher = form.batcher(model, max_buffered=3, metrics=recorder)
    slow = form.submit(batcher, "pqrstuvw")
    await recorder.finished_once.wait()
    assert slow.finish_reason is FinishReason.ERROR
    assert await form.rest(form.submit(batcher, "ab")) == ["a", "b"]
    outputs, [error] = await form.read(slow)
    assert outputs == ["p", "q", "r", "s"]  # with the one that showed it
    assert type(error) is SlowConsumerError
    assert error.max_buffered == 3
    assert "read the streams at the same time; or pass a larger max_buffered; or" in str(error)
    assert "take all outputs with map() or amap(); or pass on_overflow='wait'" in str(error)
    assert sum("pqrstuvw" in requests for requests in model.worked_on) == 4


@pytest.mark.rule(19)
@every_batcher
async def test_with_wait_the_model_waits_for_a_slow_consumer(form):
    held, going = [], form.flag()

    def look(number):
        held.append(knobs.buffered(slow))
        if number == 1:
            going.set()

    first = form.gate()
    batcher = form.batcher(
        form.model(gates={0: first}, on_step=look), max_buffered=2, on_overflow="wait"
    )
    slow = form.submit(batcher, "abcdefgh")
    first.open()
    await going.wait()
    assert await form.rest(slow) == list("abcdefgh")
    assert max(held) < 2


def test_a_long_timeout_does_not_hurt_the_others_in_a_pause():
    def fn(requests):
        for number in range(20):
            yield [number] * len(requests)

    options = {"max_buffered": 4, "on_overflow": "wait"}
    with DynamicBatcher(fn, max_batch_size=2, **options) as batcher:
        stream = batcher.stream("a", timeout=1e10)
        assert list(stream) == list(range(20))
        with pytest.raises(ValueError, match="timeout must be finite"):
            batcher.stream("a", timeout=10**400)


@pytest.mark.rule(13)
def test_an_engine_makes_no_step_with_a_request_that_was_too_slow():
    engine = Echo()
    permits = threading.Semaphore(0)
    engine.gate = SimpleNamespace(pass_through=lambda: permits.acquire(timeout=TIMEOUT))
    with ContinuousBatcher(engine, max_batch_size=2, max_buffered=5) as batcher:
        fast, slow = batcher.stream("fast"), batcher.stream("slow")
        for _ in range(12):
            permits.release()
            assert next(fast) == "fast"
        assert sum("slow" in step for step in engine.steps) == slow.end.outputs == 6
        assert slow.drain() == ["slow"] * 6
        with pytest.raises(SlowConsumerError):
            next(slow)
        fast.cancel()
        permits.release()
    assert batcher.statistics().dropped == 0


# ---- consumers


@pytest.mark.rule(4)
@batchers_in_loops
@pytest.mark.parametrize("joined", [False, True])
async def test_a_receive_broken_off_while_it_waits_takes_nothing(form, joined):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    first, second = await form.submit_behind(batcher, gate, "ab", "cd")
    stream = first if joined else second
    for _ in range(3):
        await form.broken_off(stream)
    gate.open()
    assert [await form.rest(each) for each in (first, second)] == [["a", "b"], ["c", "d"]]


@pytest.mark.rule(4)
@batchers_in_threads
@pytest.mark.parametrize("joined", [False, True])
async def test_a_receive_that_times_out_takes_nothing(form, joined):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    first, second = await form.submit_behind(batcher, gate, "ab", "cd")
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError):
            (first if joined else second).receive(timeout)
    gate.open()
    assert first.receive(TIMEOUT) == "a"
    assert [await form.rest(each) for each in (first, second)] == [["b"], ["c", "d"]]


@pytest.mark.rule(21)
@batchers_in_loops
async def test_a_second_consumer_at_the_same_time_is_refused(form):
    batcher, _, gate = form.held_batcher(0)
    stream = form.submit(batcher, "a")

    async def interfere():
        await gate.reached.wait()
        await form.all_wait()
        with pytest.raises(ConcurrentConsumerError, match="request 0 has one consumer"):
            await form.receive(stream)
        gate.open()

    assert await form.concurrently(partial(form.rest, stream), interfere) == [["a"], None]


@pytest.mark.rule(22)
@batchers_in_loops
async def test_a_receive_that_would_wait_in_another_loop_is_refused(form):
    batcher, _, gate = form.held_batcher(1)
    stream = form.submit(batcher, "ab")
    assert await form.receive(stream) == "a"
    await form.broken_off(stream)
    with pytest.raises(RuntimeError, match="request 0 belongs to the event loop"):
        await form.in_another_loop(partial(form.receive, stream))
    gate.open()
    assert await form.rest(stream) == ["b"]


@pytest.mark.rule(21, 22)
@batchers_in_loops
async def test_streams_of_one_batcher_may_live_in_different_loops(form):
    batcher = form.batcher(max_buffered=200)
    here, there = form.submit(batcher, "ab" * 50), form.submit(batcher, "xyz" * 30)

    async def elsewhere():
        return await form.in_another_loop(partial(form.rest, there))

    assert await form.concurrently(partial(form.rest, here), elsewhere) == [
        list("ab" * 50),
        list("xyz" * 30),
    ]


@pytest.mark.rule(21)
@batchers_in_loops
async def test_requests_may_be_submitted_in_other_loops_and_threads(form):
    batcher = form.batcher()
    assert await form.rest(form.submit(batcher, "a")) == ["a"]  # this loop is the home

    async def ask():
        return await form.rest(form.submit(batcher, "abc"))

    async def elsewhere():
        return await form.in_another_loop(ask)

    assert await form.concurrently(ask, elsewhere, elsewhere) == [["a", "b", "c"]] * 3


@pytest.mark.rule(22)
@batchers_in_loops
async def test_the_streams_of_a_closed_loop_are_cancelled_and_the_others_go_on(form, monkeypatch):
    knobs.set_pause(monkeypatch, 0.01)
    gate = form.gate()
    streams = await form.submit_together(
        {"max_buffered": 3, "on_overflow": "wait"}, {"gates": {2: gate}}, "abcdefgh", "pqrstuvw"
    )
    here, there = streams
    assert await form.receive(here) == "a"

    async def wait_in_vain():
        there.drain()
        await form.broken_off(there)

    await gate.reached.wait()
    await form.in_another_loop(wait_in_vain)
    gate.open()
    assert await form.rest(here) == list("bcdefgh")
    assert there.finish_reason is FinishReason.CANCELLED


# ---- Fail


@pytest.mark.rule(15, 16)
@every_batcher
async def test_fail_ends_its_own_request_only(form):
    error = ValueError("this one alone")
    batcher, _, gate = form.held_batcher(0)
    streams = await form.submit_behind(batcher, gate, "abc", ["x", Fail(error), "late"], "pq")
    gate.open()
    assert await form.rest(streams[0]) == ["a", "b", "c"]
    outputs, [raised] = await form.read(streams[1])
    assert outputs == ["x"]
    assert (type(raised), str(raised), raised.__cause__) == (ValueError, "this one alone", error)
    assert await form.rest(streams[2]) == ["p", "q"]
