"""Engines that are closed, and engines that say "not now"."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial

import pytest

from batchstream import (
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    Last,
    NotNow,
    OverloadedError,
    RequestError,
    SourceError,
)
from support import knobs
from support.engines import InLoop, ManualClock, Model, continuous_batchers
from support.interrupts import at_line
from support.programs import run_program
from support.sources import TIMEOUT, Gate, in_forked_child, needs_fork, run_in_threads


class Engine(Model):
    """An engine that is closed; a closed one is not used any more.

    Args:
        on_close: Called as it is closed.
    """

    def __init__(self, *arguments, on_close=lambda: None, **options):
        super().__init__(*arguments, **options)
        self.closed = 0
        self._on_close = on_close

    def close(self):
        with self._call("close"):
            self.closed += 1
            self._on_close()

    def _call(self, *call):
        self._check(not self.closed, f"{call[0]} of an engine that is closed")
        return super()._call(*call)

    @property
    def worked(self):
        """What was called of it, but the steps."""
        return [call for call in self.calls if call[0] != "step"]


class Engines:
    """Makes engines, and remembers them.

    Args:
        options: By number of engine: how it is made.
    """

    def __init__(self, *options):
        self.made = []
        self._options = options

    def __call__(self):
        number = len(self.made)
        options = self._options[number] if number < len(self._options) else {}
        self.made.append(Engine(**options))
        return self.made[-1]

    @property
    def closed(self):
        """How often each was closed."""
        return [engine.closed for engine in self.made]

    def check(self):
        """Fail if one was treated badly, or is not closed once."""
        for engine in self.made:
            assert engine.faults == []
            assert len(engine._homes) == 1, "not all was called in one thread"
        assert self.closed == [1] * len(self.made)


# ---- closing


@pytest.mark.rule(10)
@continuous_batchers
async def test_an_engine_that_was_made_is_closed_with_its_batcher_in_the_worker(form):
    engines = Engines()
    batcher = form.batcher(engines)
    assert await form.rest(form.submit(batcher, "ab")) == ["a", "b"]
    assert await form.rest(form.submit(batcher, "c")) == ["c"]  # the worker was idle in between
    assert engines.closed == [0]
    await form.close(batcher)
    assert engines.made[0].worked == [("add", 0), ("remove", 0)] * 2 + [("close",)]
    await form.close(batcher)
    engines.check()
    assert threading.get_ident() not in engines.made[0]._homes


@pytest.mark.rule(10)
@continuous_batchers
async def test_close_fails_what_waits_and_closes_the_engine_behind_the_last_remove(form):
    gate = form.gate()
    engines = Engines({"gates": {1: gate}})
    batcher = form.batcher(engines, max_batch_size=1)
    live, waiting = form.submit(batcher, "abc"), form.submit(batcher, "d")
    await gate.reached.wait()
    knobs.dispatcher_of(batcher).request_close()
    assert engines.closed == [0]
    gate.open()
    await form.close(batcher)
    for stream in (live, waiting):
        _, [error] = await form.read(stream)
        assert type(error) is ClosedError
    assert engines.made[0].worked == [("add", 0), ("remove", 0), ("close",)]
    engines.check()


@pytest.mark.rule(10, 15)
@pytest.mark.parametrize("step", [ValueError("lost"), SystemExit("no"), KeyboardInterrupt("no")])
@continuous_batchers
async def test_an_engine_that_failed_in_a_step_is_closed_before_another_is_made(form, step):
    engines = Engines({"raises": {1: step}})
    batcher = form.batcher(engines)
    outputs, [error] = await form.read(form.submit(batcher, "abc"))
    assert outputs == ["a"]
    assert isinstance(error, ValueError | SourceError)
    assert await form.rest(form.submit(batcher, "de")) == ["d", "e"]
    assert engines.closed == [1, 0]
    assert engines.made[0].worked == [("add", 0), ("close",)], "a failed one removes nothing"
    await form.close(batcher)
    engines.check()


@pytest.mark.rule(8, 10)
@continuous_batchers
async def test_an_engine_whose_step_cannot_be_read_is_closed(form):
    engines = Engines()
    batcher = form.batcher(lambda: _with_step(engines(), "no step"))
    _, [error] = await form.read(form.submit(batcher, "abc"))
    assert isinstance(error, SourceError)
    await form.close(batcher)
    engines.check()


def _with_step(engine, step):
    engine.step = lambda: step
    return engine


@pytest.mark.rule(15)
@continuous_batchers
async def test_an_add_that_raises_closes_no_engine(form):
    engines = Engines()
    batcher = form.batcher(engines)
    _, [error] = await form.read(form.submit(batcher, ValueError("too long")))
    assert type(error) is ValueError
    assert await form.rest(form.submit(batcher, "ab")) == ["a", "b"]
    assert engines.closed == [0]
    await form.close(batcher)
    engines.check()


@continuous_batchers
async def test_an_engine_that_was_given_is_never_closed(form):
    engine = Engine(raises={1: ValueError("no")})
    batcher = form.batcher(engine)
    await form.read(form.submit(batcher, "abc"))
    assert await form.rest(form.submit(batcher, "de")) == ["d", "e"]
    await form.close(batcher)
    assert engine.closed == 0
    engine.check()


@continuous_batchers
async def test_a_batcher_that_was_never_used_makes_and_closes_no_engine(form):
    engines = Engines()
    await form.close(form.batcher(engines))
    assert engines.made == []


@pytest.mark.rule(10)
@continuous_batchers
async def test_what_close_of_an_engine_raises_is_unheard_and_loses_nothing(form, unheard):
    def fail():
        raise OSError("the device is gone")

    engines = Engines({"raises": {1: ValueError("lost")}, "on_close": fail}, {"on_close": fail})
    batcher = form.batcher(engines)
    outputs, [error] = await form.read(form.submit(batcher, "abc"))
    assert (outputs, type(error)) == (["a"], ValueError)
    assert await form.rest(form.submit(batcher, "de")) == ["d", "e"]
    await form.close(batcher)
    engines.check()
    assert [type(it) for it in unheard] == [OSError, OSError]


@pytest.mark.rule(9, 10)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration])
@continuous_batchers
async def test_an_interrupt_in_close_of_an_engine_does_not_end_the_worker(form, unheard, kind):
    def fail():
        raise kind

    engines = Engines({"raises": {1: ValueError("lost")}, "on_close": fail}, {"on_close": fail})
    batcher = form.batcher(engines)
    await form.read(form.submit(batcher, "abc"))
    assert await form.rest(form.submit(batcher, "de")) == ["d", "e"]
    await form.close(batcher)
    engines.check()
    assert [type(it) for it in unheard] == [kind, kind]


@pytest.mark.rule(20)
@continuous_batchers
async def test_an_event_loop_goes_on_while_an_engine_is_closed(form):
    if not isinstance(form, InLoop):
        pytest.skip("for event loops")
    gate = form.gate()
    engines = Engines({"on_close": gate.hold})
    batcher = form.batcher(engines)
    assert await form.rest(form.submit(batcher, "a")) == ["a"]

    async def open_it():
        await gate.reached.wait()
        gate.open()

    await form.concurrently(batcher.aclose, open_it)
    engines.check()


def test_several_that_close_at_the_same_time_close_the_engine_once():
    gate = Gate()
    engines = Engines({"on_close": gate.pass_through})
    batcher = ContinuousBatcher(engines, max_batch_size=2)
    assert list(batcher.stream("ab")) == ["a", "b"]
    closers = [threading.Thread(target=batcher.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    assert gate.reached.wait(TIMEOUT)
    assert any(closer.is_alive() for closer in closers), "one has not waited for the engine"
    gate.opened.set()
    for closer in closers:
        closer.join(TIMEOUT)
    engines.check()


def test_an_engine_may_close_its_batcher_as_it_is_closed():
    def close_batcher():
        batcher.close()

    engines = Engines({"on_close": close_batcher})
    batcher = ContinuousBatcher(engines, max_batch_size=2)
    assert list(batcher.stream("ab")) == ["a", "b"]
    batcher.close()
    engines.check()


@pytest.mark.rule(9)
def test_after_an_interrupt_anywhere_in_closing_the_engine_is_closed_once():
    line, where = 0, "somewhere"
    while where:
        line += 1
        engines = Engines()
        batcher = ContinuousBatcher(engines, max_batch_size=2)
        assert list(batcher.stream("ab")) == ["a", "b"]
        where = at_line(line, batcher.close, files=knobs.files_of_submission())
        batcher.close()
        engines.check()
        knobs.assert_nothing_is_left(batcher)
    assert line > 20


class Service:
    """Holds a batcher whose engines it makes: a cycle."""

    def __init__(self, engines):
        self._engines = engines
        self.batcher = ContinuousBatcher(self.make, max_batch_size=2)

    def make(self):
        return self._engines()


@pytest.mark.rule(25)
def test_dropping_an_idle_batcher_closes_its_engine_in_the_worker():
    engines = Engines()
    batcher = ContinuousBatcher(engines, max_batch_size=2)
    assert list(batcher.stream("ab")) == ["a", "b"]
    [thread] = knobs.worker_threads_of(batcher)
    gone = weakref.ref(knobs.dispatcher_of(batcher))
    del batcher
    thread.join(TIMEOUT)
    assert gone() is None
    engines.check()


@pytest.mark.rule(25)
def test_dropping_a_batcher_whose_engines_refer_to_it_closes_its_engine():
    engines = Engines()
    service = Service(engines)
    assert list(service.batcher.stream("ab")) == ["a", "b"]
    [thread] = knobs.worker_threads_of(service.batcher)
    engines.made[0].service = service
    gone = weakref.ref(service)
    engine = weakref.ref(engines.made.pop())
    closed = []
    engine()._on_close = lambda: closed.append(threading.current_thread())
    del service
    gc.collect()
    thread.join(TIMEOUT)
    gc.collect()
    assert closed == [thread]
    assert (gone(), engine()) == (None, None)


@pytest.mark.rule(25)
def test_a_batcher_that_was_dropped_while_it_works_closes_its_engine_behind_the_last_stream():
    gate = Gate()
    engines = Engines({"on_step": lambda number: number or gate.pass_through()})
    batcher = ContinuousBatcher(engines, max_batch_size=1)
    streams = [batcher.stream("ab"), batcher.stream("c")]
    [thread] = knobs.worker_threads_of(batcher)
    del batcher
    gc.collect()
    gate.opened.set()
    assert [list(stream) for stream in streams] == [["a", "b"], ["c"]]
    del streams
    gc.collect()
    thread.join(TIMEOUT)
    engines.check()


@pytest.mark.rule(27)
@needs_fork
def test_a_forked_child_closes_the_engines_that_it_has_made_and_not_its_parents():
    engines = Engines()
    batcher = ContinuousBatcher(engines, max_batch_size=2)
    assert list(batcher.stream("ab")) == ["a", "b"]

    def use():
        outputs = list(batcher.stream("cd"))
        batcher.close()
        return outputs, engines.closed, engines.made[0].worked

    expected = (["c", "d"], [0, 1], [("add", 0), ("remove", 0)])
    assert in_forked_child(use) == repr(expected)
    assert in_forked_child(batcher.close) == "None"
    assert in_forked_child(lambda: engines.closed) == "[0]"
    assert list(batcher.stream("e")) == ["e"]
    batcher.close()
    engines.check()
    assert len(engines.made) == 1


@pytest.mark.rule(27)
@needs_fork
def test_a_child_that_was_forked_while_an_engine_was_closed_makes_its_own():
    gate = Gate()
    engines = Engines({"raises": {0: ValueError("lost")}, "on_close": gate.pass_through})
    batcher = ContinuousBatcher(engines, max_batch_size=2)
    with pytest.raises(ValueError, match="lost"):
        list(batcher.stream("ab"))
    assert gate.reached.wait(TIMEOUT)

    def use():
        outputs = list(batcher.stream("cd"))
        batcher.close()
        return outputs, engines.closed

    assert in_forked_child(use) == repr((["c", "d"], [1, 1]))
    gate.opened.set()
    batcher.close()
    engines.check()


PROGRAM = """
    import threading
    from batchstream import ContinuousBatcher

    class Engine:
        def __init__(self):
            self.slots = {{}}
            self.stopping = threading.Event()
            self.thread = threading.Thread(target=self.stopping.wait, daemon=True)
            self.thread.start()
        def add(self, slot, request):
            self.slots[slot] = request
        def step(self):
            return {{slot: {output} for slot in self.slots}}
        def remove(self, slot):
            del self.slots[slot]
        def close(self):
            self.stopping.set()
            self.thread.join()
            print("closed", sorted(self.slots), flush=True)

    batcher = ContinuousBatcher(Engine, max_batch_size=2)
    {use}
"""


@pytest.mark.rule(28)
@pytest.mark.parametrize(
    ("output", "use", "printed"),
    [
        ("None", "assert list(batcher.stream(1)) == []", "closed []\n"),
        ("None", "assert list(batcher.stream(1)) == []; del batcher", "closed []\n"),
        ("None", "assert list(batcher.stream(1)) == []; batcher.close()", "closed []\n"),
        ("'x'", "stream = batcher.stream(1); next(stream)", "closed []\n"),
        ("'x'", "stream = batcher.stream(1); next(stream); del batcher, stream", "closed []\n"),
        ("None", "pass", ""),
    ],
    ids=["idle", "dropped", "closed", "busy", "dropped with its stream", "never used"],
)
def test_the_end_of_a_program_closes_the_engine_of_a_batcher_that_is(output, use, printed):
    assert run_program(PROGRAM.format(output=output, use=use)) == (0, printed, "")


class Shared(Engine):
    """Made once, and given to two batchers by a function."""


def test_a_batcher_that_may_not_drive_an_engine_does_not_close_it():
    gate = Gate()
    engine = Shared(on_step=lambda number: number or gate.pass_through())
    first, second = (ContinuousBatcher(lambda: engine, max_batch_size=2) for _ in range(2))
    stream = first.stream("ab")
    assert gate.reached.wait(TIMEOUT)
    with pytest.raises(RuntimeError, match="driven by another ContinuousBatcher"):
        list(second.stream("c"))
    second.close()
    assert engine.closed == 0
    gate.opened.set()
    assert list(stream) == ["a", "b"]
    first.close()
    assert engine.closed == 1
    engine.check()


class CoroutineClose(Engine):
    async def close(self):
        """Not to be awaited in a thread."""


class CloseWithArgument(Engine):
    def close(self, timeout):
        """Of another protocol."""


class PriceOfClose(Engine):
    close = 12.5


@pytest.mark.parametrize(
    ("engine", "says"),
    [(CoroutineClose, "is a coroutine function"), (CloseWithArgument, r"is close\(timeout\)")],
)
def test_a_close_that_cannot_be_called_is_refused_where_the_engine_is_made(engine, says):
    batcher = ContinuousBatcher(engine, max_batch_size=2)
    with batcher, pytest.raises(TypeError, match=says):
        list(batcher.stream("ab"))


def test_a_close_that_is_no_function_is_none():
    with ContinuousBatcher(PriceOfClose, max_batch_size=2) as batcher:
        assert list(batcher.stream("ab")) == ["a", "b"]


# ---- not now


class Cache(Model):
    """An engine with room for so much; a request is a text, and takes as much as it is long.

    Attributes:
        asked: The requests that it was asked to add, in order.
    """

    def __init__(self, *arguments, room, on_refusal=lambda _: None, **options):
        super().__init__(*arguments, **options)
        self.room = room
        self.asked = []
        self._on_refusal = on_refusal

    def add(self, slot, request):
        self.asked.append(request)
        if len(request) > self.room:
            self._on_refusal(request)
            raise NotNow(f"{request} needs more than {self.room}")
        super().add(slot, request)
        self.room -= len(request)

    def remove(self, slot):
        self.room += len(self.seats[slot][0])
        super().remove(slot)


def held_cache(form, room, **options):
    """Return a batcher, its engine with so much room, and a gate that holds its first step."""
    gate = form.gate()
    cache = Cache(form.home, room=room, gates={0: gate}, **options.pop("of_cache", {}))
    form._models.append(cache)
    return form.batcher(cache, **options), cache, gate


@pytest.mark.rule(29)
@continuous_batchers
async def test_a_request_that_does_not_fit_waits_until_another_has_left(form):
    batcher, cache, gate = held_cache(form, 10)
    streams = await form.submit_behind(batcher, gate, "abcdef", "ghijkl", "mnopqr")
    gate.open()
    outputs = [await form.rest(stream) for stream in streams]
    assert outputs == [list("abcdef"), list("ghijkl"), list("mnopqr")]
    # Not at each step: when it came, and when the one before it had left.
    assert cache.asked == ["abcdef", "ghijkl", "ghijkl", "mnopqr", "mnopqr"]
    await form.close(batcher)
    figures = batcher.statistics()
    assert (figures.batches, figures.batch_sizes, figures.opened) == (3, {1: 3}, 3)


@pytest.mark.rule(29)
@continuous_batchers
async def test_no_request_overtakes_one_that_waits_for_room(form):
    batcher, cache, gate = held_cache(form, 5)
    streams = await form.submit_behind(batcher, gate, "abc", "defgh", "i", "j")
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [
        list("abc"),
        list("defgh"),
        ["i"],
        ["j"],
    ]
    assert cache.asked == ["abc", "defgh", "defgh", "i", "i", "j"]
    assert ("defgh", "i") not in cache.worked_on


@pytest.mark.rule(29)
@continuous_batchers
async def test_a_request_that_can_never_fit_fails_and_the_others_go_on(form):
    batcher, cache, gate = held_cache(form, 3)
    streams = await form.submit_behind(batcher, gate, "abc", "defgh", "ij")
    gate.open()
    assert await form.rest(streams[0]) == ["a", "b", "c"]
    outputs, [error] = await form.read(streams[1])
    assert outputs == []
    assert type(error) is RequestError
    assert "can never be served" in str(error)
    assert type(error.__cause__) is NotNow
    assert await form.rest(streams[2]) == ["i", "j"]
    assert cache.asked == ["abc", "defgh", "defgh", "ij"]


@pytest.mark.rule(12)
@continuous_batchers
async def test_a_request_that_waits_for_room_can_be_cancelled_and_lets_the_next_be_asked(form):
    refused = form.flag()
    options = {"on_refusal": lambda _: refused.set()}
    batcher, cache, gate = held_cache(form, 5, of_cache=options)
    hold = form.gate()
    cache._gates[2] = hold
    streams = await form.submit_behind(batcher, gate, "abcd", "efg", "h")
    gate.open()
    await refused.wait()
    await hold.reached.wait()
    assert batcher.statistics().waiting == 2
    streams[1].cancel()
    assert batcher.statistics().waiting == 1
    hold.open()
    assert await form.rest(streams[2]) == ["h"]
    assert await form.rest(streams[0]) == list("abcd")
    assert ("abcd", "h") in cache.worked_on, "it was asked though none had left"
    assert cache.asked == ["abcd", "efg", "h"]


@pytest.mark.rule(13)
@continuous_batchers
async def test_a_request_that_was_cancelled_makes_room_for_one_that_waits(form):
    batcher, cache, gate = held_cache(form, 5)
    hold = form.gate()
    cache._gates[1] = hold
    streams = await form.submit_behind(batcher, gate, "abcde", "fg")
    gate.open()
    await hold.reached.wait()
    streams[0].cancel()
    hold.open()
    assert await form.rest(streams[1]) == ["f", "g"]
    assert cache.asked == ["abcde", "fg", "fg"]


@pytest.mark.rule(29)
@continuous_batchers
async def test_what_waits_for_room_counts_as_waiting_and_free_slots_do_not(form):
    recorder = form.recorder()
    batcher, cache, gate = held_cache(form, 3, max_pending=2, metrics=recorder)
    hold = form.gate()
    cache._gates[1] = hold
    streams = await form.submit_behind(batcher, gate, "abc", "d", "e")
    gate.open()
    await hold.reached.wait()  # "d" was told to wait
    assert cache.asked == ["abc", "d"]
    assert batcher.statistics().waiting == 2
    with pytest.raises(OverloadedError):
        form.submit(batcher, "f")
    assert len(recorder.named("joined")) == 1
    hold.open()
    assert [await form.rest(stream) for stream in streams] == [["a", "b", "c"], ["d"], ["e"]]
    await form.close(batcher)
    assert [len(waited) for (waited,) in recorder.named("joined")] == [1, 2]
    assert [joined for _, joined, _ in recorder.named("finished")] == [True] * 3
    figures = batcher.statistics()
    assert (figures.batch_sizes, figures.opened, figures.refused) == ({1: 1, 2: 1}, 3, 1)


@pytest.mark.rule(29)
@continuous_batchers
async def test_the_time_to_wait_goes_on_for_a_request_that_waits_for_room(form, monkeypatch):
    clock = ManualClock.install(monkeypatch)
    recorder = form.recorder()
    batcher, cache, gate = held_cache(form, 3, metrics=recorder)
    hold = form.gate()
    cache._gates[1] = hold
    streams = await form.submit_behind(batcher, gate, "abc", "d", wait_timeout=0.05)
    clock.move(0.03)
    gate.open()
    await hold.reached.wait()
    assert cache.asked == ["abc", "d"]
    clock.move(0.03)
    _, [error] = await form.read(streams[1])
    assert type(error) is DeadlineError
    assert "joined no batch" in str(error)
    hold.open()
    assert await form.rest(streams[0]) == ["a", "b", "c"]
    await form.close(batcher)
    assert cache.asked == ["abc", "d"]
    assert sorted(joined for _, joined, _ in recorder.named("finished")) == [False, True]


@pytest.mark.rule(29)
@continuous_batchers
async def test_close_fails_a_request_that_waits_for_room(form):
    batcher, cache, gate = held_cache(form, 3)
    hold = form.gate()
    cache._gates[1] = hold
    streams = await form.submit_behind(batcher, gate, "abc", "d")
    gate.open()
    await hold.reached.wait()
    knobs.dispatcher_of(batcher).request_close()
    hold.open()
    await form.close(batcher)
    for stream in streams:
        _, [error] = await form.read(stream)
        assert type(error) is ClosedError


@pytest.mark.rule(9, 29)
@pytest.mark.parametrize("deed", ["close", "cancel"])
def test_a_request_that_is_ended_while_it_is_told_not_now_does_not_wait(deed):
    refused = threading.Event()

    def end(request):
        if request == "d":
            batcher.close() if deed == "close" else streams[1].cancel()
            refused.set()

    gate = Gate()
    first = {"on_step": lambda number: number or gate.pass_through()}
    cache = Cache(room=3, on_refusal=end, **first)
    batcher = ContinuousBatcher(cache, max_batch_size=3)
    streams = [batcher.stream("abc")]
    assert gate.reached.wait(TIMEOUT)
    streams += [batcher.stream("d"), batcher.stream("e")]
    gate.opened.set()
    assert refused.wait(TIMEOUT)
    if deed == "close":
        for stream in streams:
            with pytest.raises(ClosedError):
                list(stream)
    else:
        assert [list(stream) for stream in streams] == [["a", "b", "c"], [], ["e"]]
    batcher.close()
    knobs.assert_nothing_is_left(batcher)
    assert batcher.statistics().waiting == 0
    cache.check()


@pytest.mark.rule(15, 29)
@continuous_batchers
async def test_after_a_failed_step_the_next_engine_is_asked_for_what_waits(form):
    caches = [
        Cache(form.home, room=3, gates={0: form.gate()}, raises={1: ValueError("lost")}),
        Cache(form.home, room=3),
    ]
    gate, made = caches[0]._gates[0], iter(caches)
    batcher = form.batcher(lambda: next(made))
    streams = await form.submit_behind(batcher, gate, "abc", "de")
    gate.open()
    _, [error] = await form.read(streams[0])
    assert type(error) is ValueError
    assert await form.rest(streams[1]) == ["d", "e"]
    assert [cache.asked for cache in caches] == [["abc", "de"], ["de"]]


def test_replies_of_a_map_come_in_order_where_only_one_request_fits():
    requests = ["ab", "cde", "f", "ghi", "j"] * 3
    cache = Cache(room=3)
    with ContinuousBatcher(cache, max_batch_size=4, max_pending=2) as batcher:
        assert list(batcher.map(requests)) == [list(request) for request in requests]
    knobs.assert_nothing_is_left(batcher)
    cache.check()


def test_clients_that_come_and_go_all_get_their_outputs_though_little_fits():
    cache = Cache(room=4)
    with ContinuousBatcher(cache, max_batch_size=4) as batcher:

        def client(number):
            for length in range(1, 5):
                stream = batcher.stream("abcd"[:length])
                if (number + length) % 4:
                    assert list(stream) == list("abcd"[:length])
                else:
                    stream.cancel()

        run_in_threads(*[partial(client, number) for number in range(6)])
    knobs.assert_nothing_is_left(batcher)
    cache.check()
    figures = batcher.statistics()
    assert figures.opened == 24


@continuous_batchers
async def test_not_now_of_a_step_is_an_error_like_any_other(form):
    batcher = form.batcher(form.model(raises={0: NotNow("in a step")}))
    _, [error] = await form.read(form.submit(batcher, "ab"))
    assert type(error) is NotNow


# ---- the fault of a client


def test_a_request_error_of_add_reaches_its_own_client():
    class TooLongError(RequestError):
        """A user's own."""

    class Strict:
        def add(self, slot, request):
            if len(request) > 3:
                raise TooLongError("no more than 3 letters")
            self.request = request

        def step(self):
            return {0: Last(self.request)}

        def remove(self, slot):
            assert slot == 0

    with ContinuousBatcher(Strict, max_batch_size=1) as batcher:
        assert list(batcher.stream("abc")) == ["abc"]
        with pytest.raises(TooLongError, match="no more than 3 letters"):
            list(batcher.stream("abcd"))
        assert list(batcher.stream("ab")) == ["ab"]
