"""`map` and `amap`: many requests through one batcher, and for each the list of its outputs."""

from __future__ import annotations

import copy
import itertools
import threading
from functools import partial

import pytest

from batchstream import (
    AsyncReplies,
    ClosedError,
    ConcurrentConsumerError,
    DeadlineError,
    DynamicBatcher,
    OverloadedError,
    Replies,
    SlowConsumerError,
    batched,
)
from support import knobs
from support.engines import (
    ManualClock,
    batchers_in_loops,
    batchers_in_threads,
    dynamic_batchers,
    every_batcher,
)
from support.forms import OVER, InLoop
from support.sources import TIMEOUT, Gate, in_forked_child, needs_fork

pytestmark = pytest.mark.rule(29)

WORDS = ["abcdef", "", "x", "abc", "uvwxyz", "a", "bc", "d", "efghijkl", "m", "no"] * 3


def replies_of(form, batcher, requests, **options):
    submit = batcher.amap if isinstance(form, InLoop) else batcher.map
    return submit(requests, **options)


async def asynchronously(requests):
    for request in requests:
        yield request


async def close(replies):
    if isinstance(replies, Replies):
        replies.close()
    else:
        await replies.aclose()


@every_batcher
async def test_the_replies_come_in_the_order_of_the_requests(form):
    batcher = form.batcher(max_batch_size=3)
    replies = await form.rest(replies_of(form, batcher, WORDS))
    assert replies == [list(word) for word in WORDS]


@every_batcher
async def test_a_bound_ends_no_reply_and_a_short_queue_refuses_no_request(form):
    recorder = form.recorder()
    batcher = form.batcher(max_batch_size=3, max_buffered=1, max_pending=1, metrics=recorder)
    replies = await form.rest(replies_of(form, batcher, WORDS))
    assert replies == [list(word) for word in WORDS]
    assert batcher.statistics().refused == 0
    assert recorder.named("refused") == []


@every_batcher
@pytest.mark.rule(19)
async def test_the_streams_that_share_a_batch_with_a_map_keep_their_bound(form):
    options = {"max_batch_size": 2, "max_buffered": 2}
    if not form.continuous:
        options["batch_timeout"] = 3600.0  # it never passes: the batch is full
    batcher = form.batcher(**options)
    stream = form.submit(batcher, "x" * 20)
    assert await form.rest(replies_of(form, batcher, ["y" * 20])) == [["y"] * 20]
    outputs, [error] = await form.read(stream)
    assert (outputs, type(error)) == (["x"] * 3, SlowConsumerError)


@every_batcher
@pytest.mark.rule(19)
async def test_a_batch_waits_for_a_stream_though_a_reply_is_longer_than_the_bound(form):
    options = {"max_batch_size": 2, "max_buffered": 2, "on_overflow": "wait"}
    if not form.continuous:
        options["batch_timeout"] = 3600.0  # it never passes: the batch is full
    batcher = form.batcher(**options)
    stream = form.submit(batcher, "x" * 90)
    replies = replies_of(form, batcher, ["y" * 90])
    most = 0

    async def read():
        nonlocal most
        while await form.receive(stream) is not OVER:
            await form.all_wait()
            most = max(most, len(knobs.request_of(stream).outputs))

    received, _ = await form.concurrently(partial(form.rest, replies), read)
    assert received == [["y"] * 90]
    assert most <= 2


@every_batcher
async def test_unordered_replies_come_with_the_number_of_their_request_as_they_finish(form):
    gate = form.gate()
    model = form.model(gates={2: gate})
    batcher = (
        form.batcher(model, max_batch_size=2, batch_timeout=3600.0)
        if not form.continuous
        else form.batcher(model, max_batch_size=2)
    )
    replies = replies_of(form, batcher, ["abcdef", "x"], ordered=False)
    assert await form.receive(replies) == (1, ["x"])
    gate.open()
    assert await form.rest(replies) == [(0, list("abcdef"))]
    unordered = await form.rest(replies_of(form, batcher, [*WORDS, "z"], ordered=False))
    assert sorted(unordered) == [(n, list(word)) for n, word in enumerate([*WORDS, "z"])]


@every_batcher
async def test_requests_are_taken_as_they_are_needed_and_no_more_are_in_flight_than_fit(form):
    taken = []
    endless = (taken.append(n) or "ab" for n in itertools.count())
    model = form.model()
    batcher = form.batcher(model, max_batch_size=2)
    replies = replies_of(form, batcher, endless)
    assert taken == []
    for count in range(1, 10):
        assert await form.receive(replies) == ["a", "b"]
        assert len(taken) <= count + 4 * 4
        assert batcher.statistics().live <= 4
    assert batcher.statistics().live > 0
    await close(replies)
    assert batcher.statistics().live == 0
    assert await form.receive(replies) is OVER
    assert "closed" in repr(replies)


@every_batcher
async def test_a_dropped_iterator_cancels_what_is_in_flight(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=2)
    stream = form.submit(batcher, "xyz")
    await gate.reached.wait()
    replies = replies_of(form, batcher, itertools.repeat("ab"))
    if isinstance(replies, Replies):
        replies._submit()
    else:
        await replies._submit()
    assert batcher.statistics().live == 5
    del replies
    assert batcher.statistics().live == 1
    gate.open()
    assert await form.rest(stream) == list("xyz")


@every_batcher
async def test_a_request_that_fails_raises_in_its_place_and_ends_the_others(form):
    def key(request):
        if request == "bad":
            raise KeyError(request)

    options = {} if form.continuous else {"key": key}
    if form.continuous:
        options = {"cost": lambda request: len(key(request) or ""), "max_batch_cost": 9}
    batcher = form.batcher(max_batch_size=2, **options)
    replies = replies_of(form, batcher, ["abc", "x", "bad", *WORDS])
    assert await form.receive(replies) == list("abc")
    assert await form.receive(replies) == ["x"]
    with pytest.raises(KeyError, match="bad"):
        await form.receive(replies)
    await form.all_wait()
    assert batcher.statistics().live == 0
    assert await form.receive(replies) is OVER


@every_batcher
async def test_an_error_of_the_model_is_raised_in_a_copy_of_its_own(form):
    original = OSError("no memory")
    model = form.model(raises={1: original})
    batcher = form.batcher(model, max_batch_size=2)
    with pytest.raises(OSError, match="no memory") as raised:
        await form.rest(replies_of(form, batcher, ["abc", "abc"]))
    assert raised.value.__cause__ is original


@every_batcher
async def test_what_the_iterable_raises_comes_behind_the_replies_to_what_it_gave(form):
    def requests():
        yield "abc"
        yield "x"
        raise LookupError("no more")

    batcher = form.batcher()
    replies = replies_of(form, batcher, requests())
    assert await form.receive(replies) == list("abc")
    assert await form.receive(replies) == ["x"]
    with pytest.raises(LookupError, match="no more"):
        await form.receive(replies)
    assert await form.receive(replies) is OVER


@every_batcher
async def test_timeouts_hold_for_each_request(form, monkeypatch):
    clock = ManualClock()
    knobs.set_clock(monkeypatch, clock)
    batcher, _, gate = form.held_batcher(1)
    replies = replies_of(form, batcher, ["abc"], timeout=3600.0)

    async def expire():
        await gate.reached.wait()
        clock.move(3601.0)
        gate.open()

    async def receive():
        with pytest.raises(DeadlineError, match=r"3600.0 seconds \(timeout\)"):
            await form.receive(replies)

    await form.concurrently(receive, expire)


@every_batcher
async def test_timeouts_are_checked_at_once(form):
    for bad in (-1.0, "soon"):
        with pytest.raises((ValueError, TypeError), match="wait_timeout"):
            replies_of(form, form.batcher(), [], wait_timeout=bad)


@every_batcher
async def test_a_batcher_that_is_closed_ends_a_map_with_an_error(form):
    batcher, _, gate = form.held_batcher(1)
    replies = replies_of(form, batcher, itertools.repeat("abc"))

    async def end():
        await gate.reached.wait()
        gate.open()
        await form.close(batcher)

    async def receive():
        with pytest.raises(ClosedError):
            await form.rest(replies)

    await form.concurrently(receive, end)


@every_batcher
async def test_where_others_fill_the_queue_a_request_is_held_back_and_not_refused(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, max_pending=1)
    running = form.submit(batcher, "abc")
    await gate.reached.wait()
    waiting = form.submit(batcher, "xyz")
    with pytest.raises(OverloadedError):
        form.submit(batcher, "refused")
    replies = replies_of(form, batcher, ["one", "two"])

    async def release():
        await form.all_wait()
        gate.open()
        return await form.rest(running), await form.rest(waiting)

    received, others = await form.concurrently(partial(form.rest, replies), release)
    assert received == [list("one"), list("two")]
    assert others == (list("abc"), list("xyz"))
    assert batcher.statistics().refused == 1


@every_batcher
async def test_a_held_back_request_learns_that_the_batcher_was_closed(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, max_pending=1)
    streams = [form.submit(batcher, "abc")]
    await gate.reached.wait()
    streams.append(form.submit(batcher, "xyz"))
    replies = replies_of(form, batcher, ["one"])

    async def end():
        await form.all_wait()
        await form.close(batcher)

    async def receive():
        with pytest.raises(ClosedError):
            await form.receive(replies)
        gate.open()

    await form.concurrently(receive, end)
    for stream in streams:
        assert [type(error) for error in (await form.read(stream))[1]] == [ClosedError]


@batchers_in_loops
async def test_requests_may_come_asynchronously(form):
    batcher = form.batcher(max_batch_size=3)
    replies = await form.rest(batcher.amap(asynchronously(WORDS)))
    assert replies == [list(word) for word in WORDS]


@batchers_in_loops
@pytest.mark.rule(4)
async def test_a_receive_that_is_cancelled_takes_no_reply(form):
    batcher, _, gate = form.held_batcher(1)
    replies = batcher.amap(["abc", "x"])
    await form.broken_off(replies)
    gate.open()
    assert await form.rest(replies) == [list("abc"), ["x"]]


@batchers_in_loops
async def test_aclose_cancels_what_is_in_flight(form):
    batcher = form.batcher(max_batch_size=2)
    replies = batcher.amap(itertools.repeat("abc"))
    assert await anext(replies) == list("abc")
    await replies.aclose()
    assert batcher.statistics().live == 0
    assert await form.receive(replies) is OVER


@batchers_in_loops
@pytest.mark.rule(21)
async def test_a_second_task_at_the_same_time_is_refused(form):
    batcher, _, gate = form.held_batcher(1)
    replies = batcher.amap(["abc"])

    async def second():
        await gate.reached.wait()
        with pytest.raises(ConcurrentConsumerError):
            await anext(replies)
        gate.open()

    received, _ = await form.concurrently(partial(form.rest, replies), second)
    assert received == [list("abc")]


@batchers_in_threads
@pytest.mark.rule(9)
async def test_a_map_that_is_closed_by_another_thread_is_over(form):
    batcher, _, gate = form.held_batcher(1)
    replies = batcher.map(["abc"])

    async def end():
        await gate.reached.wait()
        replies.close()

    received, _ = await form.concurrently(partial(form.rest, replies), end)
    assert received == []
    gate.open()


@dynamic_batchers
async def test_a_short_reply_behind_a_long_one_makes_room_for_another_request(form):
    taken = []
    requests = (taken.append(word) or word for word in ["a" * 60, *["b"] * 200])
    batcher = form.batcher(max_batch_size=1, workers=2)
    replies = replies_of(form, batcher, requests)
    assert await form.receive(replies) == ["a"] * 60
    assert len(taken) <= 1 + 4 * 3
    assert await form.rest(replies) == [["b"]] * 200


def test_a_function_that_is_batched_maps():
    @batched(max_batch_size=4)
    def spell(words):
        for position in range(max(map(len, words)) + 1):
            yield [word[position] if position < len(word) else None for word in words]

    with spell:
        assert ["".join(reply) for reply in spell.map(WORDS)] == WORDS


def test_leaving_the_loop_cancels_the_others():
    with DynamicBatcher(lambda words: ([word] for word in words), max_batch_size=1) as batcher:
        for reply in batcher.map(itertools.count()):
            assert reply == [0]
            break
        assert batcher.statistics().live == 0


@pytest.mark.rule(27)
def test_the_iterators_refuse_to_be_copied_and_say_what_they_are():
    with DynamicBatcher(lambda words: [words], max_batch_size=1) as batcher:
        for replies in (batcher.map([]), batcher.amap([])):
            assert isinstance(replies, Replies | AsyncReplies)
            name = type(replies).__name__
            assert repr(replies) == f"<{name}, 0 requests in flight, 0 of them live>"
            with pytest.raises(TypeError, match=f"{name} cannot be pickled or copied"):
                copy.copy(replies)


@pytest.mark.parametrize("name", ["map", "amap"])
@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ("so it ends", "got str 'so it ends': pass a list of requests, or submit a single one"),
        (b"so", "got bytes b'so': pass a list"),
        ({"prompt": "so it ends"}, "pass a list of requests, or submit a single one"),
        (3, "got int 3: pass a list of requests"),
        (lambda: ["so"], "call it, and pass what it returns"),
        (list, "call it, and pass what it returns"),
    ],
)
def test_what_holds_no_requests_is_refused_with_the_call_to_write(name, requests, says):
    with (
        DynamicBatcher(lambda words: [words], max_batch_size=1) as batcher,
        pytest.raises(TypeError, match=rf"^{name} takes an iterable of requests, .*{says}"),
    ):
        getattr(batcher, name)(requests)


def test_requests_may_come_from_what_is_indexed_alone():
    class Pages:
        def __getitem__(self, number):
            return ["so", "it"][number]

    with DynamicBatcher(lambda words: iter([words, [None]]), max_batch_size=1) as batcher:
        assert list(batcher.map(Pages())) == [["so"], ["it"]]


def test_a_model_that_maps_over_its_own_batcher_is_told():
    def model(words):
        yield [list(batcher.map(["again"])) for _ in words]

    own = "waits for a request to its own batcher"
    with DynamicBatcher(model, max_batch_size=1) as batcher, pytest.raises(RuntimeError, match=own):
        list(batcher.map(["once"]))


@pytest.mark.rule(27)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_map_that_another_thread_was_reading_is_refused_in_a_forked_child():
    gate = Gate()

    def model(requests):
        gate.pass_through()
        yield list(requests)
        yield [None] * len(requests)

    with DynamicBatcher(model, max_batch_size=1) as batcher:
        replies = batcher.map(["a"])
        reader = threading.Thread(target=lambda: received.extend(replies))
        received = []
        reader.start()
        assert gate.reached.wait(TIMEOUT)
        assert in_forked_child(lambda: next(replies)).startswith("ForkedError")
        gate.opened.set()
        reader.join(TIMEOUT)
    assert received == [["a"]]
