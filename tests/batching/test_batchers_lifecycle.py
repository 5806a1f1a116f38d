"""Figures and metrics of batchers; and batchers in forks, at a program's end and as garbage."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import sys
import threading
import weakref

import pytest

from batchstream import (
    ClosedError,
    ContinuousBatcher,
    DynamicBatcher,
    Fail,
    FinishReason,
    ForkedError,
    Metrics,
    OverloadedError,
    StreamEnd,
    batched,
)
from batchstream._batching import clock
from support import knobs
from support.engines import (
    Echo,
    InLoop,
    ManualClock,
    Model,
    continuous_batchers,
    dynamic_batchers,
    every_batcher,
)
from support.programs import run_program
from support.reading import waiting_for
from support.sources import TIMEOUT, Gate, in_forked_child, needs_fork

KINDS = pytest.mark.parametrize("kind", ["dynamic", "continuous"])


def make(kind, model=None, **options):
    """Return a batcher whose consumers are threads, and its model."""
    model = model or Model()
    options = {"max_batch_size": 2} | options
    if kind == "continuous":
        return ContinuousBatcher(model, **options), model
    return DynamicBatcher(model.generate, **options), model


# ---- statistics


@continuous_batchers
async def test_the_figures_of_a_scripted_case_are_exact(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=2)
    streams = await form.submit_behind(batcher, gate, "abc", "d", "ef")
    figures = batcher.statistics()
    assert (figures.opened, figures.live, figures.waiting) == (3, 3, 2)
    assert (figures.steps, figures.occupancy) == (0, 0.0)
    gate.open()
    for stream in streams:
        await form.rest(stream)
    await form.close(batcher)
    figures = batcher.statistics()
    # abc | abc d | abc d (end) | abc (end), ef | ef | ef (end)
    assert figures.steps == 6
    assert figures.occupancy == pytest.approx((1 + 2 + 2 + 2 + 1 + 1) / 12)
    assert (figures.batches, figures.batch_sizes) == (3, {1: 3})
    assert (figures.outputs, figures.dropped) == (6, 0)
    assert (figures.opened, figures.refused, figures.finished) == (3, 0, {FinishReason.EOS: 3})
    assert (figures.live, figures.waiting, figures.buffered) == (0, 0, 0)


@dynamic_batchers
async def test_the_occupancy_of_a_scripted_case_is_exact(form):
    batcher, _, gate = form.held_batcher(0)
    streams = await form.submit_behind(batcher, gate, "a", "bcd", "e")
    gate.open()
    for stream in streams:
        await form.rest(stream)
    await form.close(batcher)
    figures = batcher.statistics()
    # a | a (end) || bcd e | bcd e (end) | bcd | bcd (end)
    assert figures.steps == 6
    assert figures.occupancy == pytest.approx((1 + 1 + 2 + 2 + 1 + 1) / 24)
    assert figures.outputs == 5


@dynamic_batchers
async def test_where_cost_alone_limits_a_batch_its_slots_are_its_requests(form):
    class Steps(Metrics):
        def __init__(self):
            self.seen = []

        def stepped(self, live, capacity, *_, **__):
            self.seen.append((live, capacity))

    metrics = Steps()
    batcher, _, gate = form.held_batcher(
        0, max_batch_size=sys.maxsize, batch_cost=len, max_batch_cost=9, metrics=metrics
    )
    streams = await form.submit_behind(batcher, gate, "a", "bcd", "e")
    assert "1 of 1 slot live in 1 batch" in batcher._repr_html_()
    gate.open()
    for stream in streams:
        await form.rest(stream)
    await form.close(batcher)
    # a | a (end) || bcd e | bcd e (end) | bcd | bcd (end)
    assert metrics.seen == [(1, 1), (1, 1), (2, 2), (2, 2), (1, 2), (1, 2)]
    assert batcher.statistics().occupancy == pytest.approx(8 / 10)


@pytest.mark.rule(30)
@every_batcher
async def test_at_every_moment_opened_is_live_and_finished(form):
    seen = []

    def look(_):
        figures = batcher.statistics()
        seen.append(figures.opened == figures.live + sum(figures.finished.values()))
        seen.append(0 <= figures.waiting <= figures.live)
        seen.append(figures.buffered >= 0)

    batcher = form.batcher(form.model(on_step=look), max_batch_size=2)
    streams = [form.submit(batcher, request) for request in ("abc", "d", "efgh", "", "ij")]
    streams[2].cancel()
    look(None)
    for stream in streams:
        await form.rest(stream)
        look(None)
    await form.close(batcher)
    look(None)
    assert len(seen) > 10
    assert all(seen)


@every_batcher
async def test_statistics_count_every_way_to_finish(form):
    batcher = form.batcher(max_outputs=3)
    batcher, _, gate = form.held_batcher(0, max_outputs=3, max_pending=9)
    requests = ["a", "bcdefgh", "i", [Fail(ValueError())], "jk"]
    streams = await form.submit_behind(batcher, gate, *requests)
    streams[2].cancel()
    gate.open()
    for stream in streams:
        await form.read(stream)
    assert batcher.statistics().finished == {
        FinishReason.EOS: 2,
        FinishReason.LENGTH: 1,
        FinishReason.CANCELLED: 1,
        FinishReason.ERROR: 1,
    }


@every_batcher
async def test_what_live_streams_hold_is_counted_as_buffered(form):
    batcher, _, gate = form.held_batcher(3)
    stream = form.submit(batcher, "abcde")
    await gate.reached.wait()
    assert batcher.statistics().buffered == 3
    assert await form.receive(stream) == "a"
    assert batcher.statistics().buffered == 2
    assert stream.drain() == ["b", "c"]
    assert batcher.statistics().buffered == 0
    gate.open()
    assert await form.rest(stream) == ["d", "e"]


@every_batcher
async def test_a_batcher_that_was_closed_cannot_be_entered(form):
    batcher = form.batcher()
    assert await form.rest(form.submit(batcher, "a")) == ["a"]
    await form.close(batcher)
    refused = pytest.raises(
        ClosedError, match=r"was closed by a?close\(\) in .*, before it was ent.*make another"
    )
    with refused, batcher:
        pytest.fail("a closed batcher was entered")
    with refused:
        await batcher.__aenter__()


@every_batcher
async def test_the_error_of_a_batcher_that_was_closed_says_by_what_and_when(form, monkeypatch):
    monkeypatch.setattr(clock, "time_of_day", lambda: "12:34:56")
    batcher = form.batcher()
    thread = threading.current_thread().name
    if in_loop := isinstance(form, InLoop):
        async with batcher:
            pass
    else:
        with batcher:
            pass
    monkeypatch.setattr(clock, "time_of_day", lambda: "23:59:59")
    await form.close(batcher)  # which changes nothing
    with pytest.raises(ClosedError) as refused:
        form.submit(batcher, "b")
    by = f"the end of its {'async with' if in_loop else 'with'} block in thread {thread!r}"
    instead = "let its requests end before, or make another batcher"
    assert str(refused.value) == f"the batcher was closed by {by} at 12:34:56: {instead}"


def test_texts_name_a_batched_function_as_its_program_does():
    @batched
    def reply(prompts):
        yield prompts

    name = r"batched test_texts_name_a_batched_function_as_its_program_does.<locals>.reply"
    assert repr(reply) == f"<{name}, open, 0 requests waiting, 0 batches run>"
    with pytest.raises(TypeError, match=rf"^{name} is not called: submit a request with .stream"):
        reply(["a"])
    with pytest.raises(TypeError, match=r"^Batcher.stream\(\) missing"):
        reply.stream()

    class Model:
        @batched
        def reply(self, prompts):
            yield prompts

    model, name = Model(), name.replace("<locals>.reply", "<locals>.Model.reply")
    assert repr(model.reply) == f"<{name}, open, 0 requests waiting, 0 batches run>"
    with pytest.raises(TypeError, match=rf"^{name} is not called: submit a request with .stream"):
        model.reply(["a"])


def test_a_batcher_shows_how_it_is():
    gate = Gate()
    model = Model(on_step=lambda _: gate.pass_through())
    batcher, _ = make("dynamic", model, max_batch_size=1)
    streams = [batcher.stream(request) for request in "ab"]
    assert gate.reached.wait(TIMEOUT)
    assert repr(batcher) == "<DynamicBatcher, open, 1 request waiting, 1 batch runs>"
    gate.opened.set()
    assert [list(stream) for stream in streams] == [["a"], ["b"]]
    batcher.close()
    assert "closed" in repr(batcher)


def test_a_request_that_has_been_ended_twice_is_counted_once():
    gate = Gate()

    def fn(requests):
        gate.pass_through()
        yield list(requests)

    with DynamicBatcher(fn, max_batch_size=1) as batcher:
        running, waiting = batcher.stream("a"), batcher.stream("b")
        gate.reached.wait(TIMEOUT)
        for _ in range(2):  # its consumer, say, and its deadline
            knobs.request_of(waiting).finish(StreamEnd(FinishReason.CANCELLED, 0))
        figures = batcher.statistics()
        assert (figures.opened, figures.live, figures.waiting) == (2, 1, 0)
        assert figures.finished == {FinishReason.CANCELLED: 1}
        gate.opened.set()
        assert list(running) == ["a"]
    assert batcher.statistics().finished == {FinishReason.CANCELLED: 1, FinishReason.EXHAUSTED: 1}


def test_a_stream_that_waits_is_named_by_its_request():
    gate = Gate()

    def fn(requests):
        gate.pass_through()
        yield list(requests)

    with DynamicBatcher(fn, max_batch_size=1) as batcher:
        batcher.stream("a").cancel()
        running, waiting = batcher.stream("b"), batcher.stream("c")
        assert repr(waiting) == "<Stream request 2, live, 0 buffered>"
        with pytest.raises(TypeError, match="request 2 cannot be pickled"):
            pickle.dumps(waiting)
        gate.opened.set()
        assert [*running, *waiting] == ["b", "c"]


# ---- metrics


@every_batcher
async def test_metrics_are_called_once_for_each_event(form):
    recorder = form.recorder()
    # In continuous batching a slot is free: a request that finds room does not count as waiting.
    options = {"max_batch_size": 2, "max_pending": 2 if form.continuous else 3}
    batcher, model, gate = form.held_batcher(0, metrics=recorder, **options)
    streams = await form.submit_behind(batcher, gate, "ab", "c", "de", "f")
    with pytest.raises(OverloadedError):
        form.submit(batcher, "g")
    streams[2].cancel()
    gate.open()
    for stream in streams:
        await form.rest(stream)
    await form.close(batcher)
    figures = batcher.statistics()
    assert len(recorder.named("submitted")) == 4 == figures.opened
    assert len(recorder.named("refused")) == 1 == figures.refused
    joined = [waited for (waited,) in recorder.named("joined")]
    assert sum(map(len, joined)) == 3
    assert len(joined) == figures.batches
    assert sum(map(sum, joined)) == pytest.approx(figures.waited)
    assert max(map(max, joined)) == figures.longest_wait
    assert recorder.named("stepped") == [(len(step), 2) for step in model.worked_on]
    finished = recorder.named("finished")
    assert len(finished) == 4
    assert {id(end) for end, _, _ in finished} == {id(stream.end) for stream in streams}
    assert sorted(joined for _, joined, _ in finished) == [False, True, True, True]
    assert all(lasted >= 0 for _, _, lasted in finished)


@every_batcher
async def test_metrics_are_called_for_an_error_though_nothing_happens_after_it(form):
    recorder = form.recorder()
    batcher = form.batcher(form.model(raises={1: ValueError("no")}), metrics=recorder)
    outputs, _ = await form.read(form.submit(batcher, "abc"))
    assert outputs == ["a"]
    await recorder.finished_once.wait()


@pytest.mark.rule(24)
@every_batcher
@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit])
async def test_metrics_that_raise_fail_no_request(form, unheard, kind):
    class Raising:
        calls = 0

        def __getattr__(self, name):
            def method(*_, **__):
                self.calls += 1
                raise kind(name)

            return method

    recorder = Raising()
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, metrics=recorder, max_pending=2)
    streams = await form.submit_behind(batcher, gate, "abc", "d", "e")
    with pytest.raises(OverloadedError):
        form.submit(batcher, "f")
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [list("abc"), ["d"], ["e"]]
    await form.close(batcher)
    assert len(unheard) == recorder.calls
    assert {str(error) for error in unheard} == {
        "submitted",
        "refused",
        "joined",
        "first_output",
        "stepped",
        "finished",
    }
    assert {type(error) for error in unheard} == {kind}


@pytest.mark.rule(14)
@KINDS
def test_an_interrupt_in_metrics_is_raised_in_the_main_thread_and_the_next_is_served(kind):
    """It comes from a signal, wherever the main thread happens to be."""

    class Interrupted:
        left = 1

        def submitted(self, **_):
            if self.left:
                self.left -= 1
                raise KeyboardInterrupt

        def __getattr__(self, name):
            return lambda *_, **__: None

    batcher, _ = make(kind, metrics=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        batcher.stream("abc")
    assert list(batcher.stream("de")) == ["d", "e"]
    batcher.close()
    figures = batcher.statistics()
    assert (figures.opened, figures.live) == (2, 0)


@pytest.mark.rule(24)
@every_batcher
async def test_metrics_may_ask_for_figures_and_submit_requests(form):
    """Which would wait for ever if they were called under a lock."""
    seen, others = [], []

    class Asking:
        def __getattr__(self, name):
            def method(*_, **__):
                seen.append(batcher.statistics().opened)
                if name == "joined" and not others:
                    others.append(form.submit(batcher, "xy"))

            return method

    batcher = form.batcher(metrics=Asking())
    assert await form.rest(form.submit(batcher, "abc")) == ["a", "b", "c"]
    assert await form.rest(others[0]) == ["x", "y"]
    assert len(seen) >= 5


# ---- processes


@pytest.mark.rule(27)
@KINDS
def test_batchers_refuse_to_be_pickled_or_copied(kind):
    batcher, _ = make(kind)
    name = type(batcher).__name__
    for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(
            TypeError, match=f"a {name} cannot be pickled.*in the process that uses"
        ):
            refuse(batcher)
    stream = batcher.stream("a")
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        pickle.dumps(stream)
    assert list(stream) == ["a"]
    batcher.close()


@pytest.mark.rule(27)
@needs_fork
@KINDS
def test_a_batcher_that_was_not_used_works_in_a_forked_child_and_in_its_parent(kind):
    batcher, _ = make(kind)

    def use():
        outputs = list(batcher.stream("abc"))
        batcher.close()
        return outputs

    assert in_forked_child(use) == "['a', 'b', 'c']"
    assert use() == ["a", "b", "c"]


@pytest.mark.rule(27)
@needs_fork
@KINDS
def test_a_batcher_that_was_used_refuses_its_work_in_a_forked_child(kind):
    gate = Gate()
    model = Model(on_step=lambda number: gate.pass_through() if number == 1 else None)
    batcher, _ = make(kind, model, max_batch_size=1)
    running, waiting = batcher.stream("abc"), batcher.stream("d")
    assert gate.reached.wait(TIMEOUT)

    def try_everything():
        answers = []
        for attempt in (
            lambda: batcher.stream("e"),
            lambda: list(running),
            lambda: waiting.receive(TIMEOUT),
            lambda: batcher.astream("e"),
        ):
            try:
                answers.append(attempt())
            except ForkedError as error:
                answers.append("fork" in str(error))
        running.cancel()
        waiting.cancel()
        batcher.close()
        batcher.close()
        return [*answers, batcher.statistics().opened]

    assert in_forked_child(try_everything) == "[True, True, True, True, 2]"
    gate.opened.set()
    assert [list(running), list(waiting)] == [["a", "b", "c"], ["d"]]
    batcher.close()


@pytest.mark.rule(27)
@needs_fork
@KINDS
def test_a_batcher_whose_only_request_runs_refuses_in_a_forked_child(kind):
    gate = Gate()
    model = Model(on_step=lambda number: gate.pass_through() if number == 1 else None)
    batcher, _ = make(kind, model)
    stream = batcher.stream("abc")
    assert gate.reached.wait(TIMEOUT)
    assert in_forked_child(lambda: batcher.stream("d")).startswith("ForkedError: this batcher had")
    gate.opened.set()
    assert list(stream) == ["a", "b", "c"]
    batcher.close()


@pytest.mark.rule(27)
@needs_fork
@KINDS
def test_a_batcher_that_was_used_and_is_idle_begins_anew_in_a_forked_child(kind):
    batcher, _ = make(kind)
    assert list(batcher.stream("a")) == ["a"]

    def use():
        outputs = list(batcher.stream("bc"))
        batcher.close()
        return [outputs, batcher.statistics().opened, batcher.statistics().live]

    assert in_forked_child(use) == "[['b', 'c'], 2, 0]"
    assert in_forked_child(use) == "[['b', 'c'], 2, 0]"
    assert list(batcher.stream("b")) == ["b"]
    batcher.close()
    assert "ClosedError: the batcher was closed" in in_forked_child(lambda: batcher.stream("c"))


@pytest.mark.rule(27)
@needs_fork
def test_an_asynchronous_batcher_that_is_idle_begins_anew_in_a_forked_child():
    batcher = DynamicBatcher(Model().agenerate, max_batch_size=2)

    async def use(request):
        return [output async for output in batcher.astream(request)]

    assert asyncio.run(use("ab")) == ["a", "b"]
    assert in_forked_child(lambda: asyncio.run(use("cd"))) == "['c', 'd']"
    asyncio.run(batcher.aclose())


@pytest.mark.rule(27)
@needs_fork
@KINDS
def test_a_batcher_whose_only_request_was_cancelled_in_a_step_begins_anew_or_refuses(kind):
    gate = Gate()
    held = [True]
    model = Model(on_step=lambda _: gate.pass_through() if held[0] else None)
    batcher, _ = make(kind, model, max_batch_size=1)
    stream = batcher.stream("abc")
    assert gate.reached.wait(TIMEOUT)
    stream.cancel()

    def use():
        held[0] = False
        return list(batcher.stream("d"))

    answer = in_forked_child(use)
    if kind == "continuous":  # the engine is this very object, in the midst of a step for ever
        assert answer.startswith("ForkedError")
    else:
        assert answer == "['d']"
    gate.opened.set()
    batcher.close()


@pytest.mark.rule(27)
@needs_fork
def test_an_engine_in_the_midst_of_a_step_is_made_anew_in_a_forked_child():
    gate = Gate()
    models = [Model(on_step=lambda _: gate.pass_through()), Model()]
    batcher = ContinuousBatcher(lambda: models.pop(0), max_batch_size=1)
    stream = batcher.stream("abc")
    assert gate.reached.wait(TIMEOUT)
    stream.cancel()
    assert in_forked_child(lambda: list(batcher.stream("de"))) == "['d', 'e']"
    gate.opened.set()
    batcher.close()


@pytest.mark.rule(27)
@needs_fork
def test_what_an_engine_has_still_to_remove_at_a_fork_is_removed_in_the_child():
    model, answers, answered = Model(home=os.getpid), [], threading.Event()

    class Forking:
        def __getattr__(self, name):
            return getattr(self, "fork" if name == "finished" else "do_nothing")

        def do_nothing(self, *_, **__):
            """Of no interest."""

        def fork(self, *_, **__):
            if not answers:  # between the end of the request and its `remove`
                answers.append("a child")
                answers[:] = [in_forked_child(lambda: [*batcher.stream("de"), *model.faults])]
                answered.set()

    batcher = ContinuousBatcher(model, max_batch_size=1, metrics=Forking())
    assert list(batcher.stream("a")) == ["a"]
    assert answered.wait(TIMEOUT)
    batcher.close()
    assert answers == ["['d', 'e']"]


@pytest.mark.rule(27)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_stream_is_refused_in_a_child_that_was_forked_while_its_batch_was_made():
    gate = Gate()

    def fn(requests):
        gate.pass_through()
        return iter([requests])

    async def main():
        with DynamicBatcher(fn, max_batch_size=1) as batcher:
            stream = batcher.astream("a")
            receiving = await waiting_for(anext(stream))
            assert gate.reached.wait(TIMEOUT)
            # Up to its first wait, as no event loop of a parent runs in a child.
            answer = in_forked_child(lambda: anext(stream).send(None))
            assert answer.startswith("ForkedError: this batcher had requests"), answer
            gate.opened.set()
            assert await receiving == "a"

    asyncio.run(main())


@pytest.mark.rule(27)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_was_forked_while_a_batcher_of_a_method_was_made_makes_its_own():
    reached, opened = threading.Event(), threading.Event()

    class Function:
        """Binds slowly in the thread that is held."""

        __name__ = "spell"

        def __get__(self, instance, owner):
            if threading.current_thread() is maker:
                reached.set()
                assert opened.wait(TIMEOUT)
            return lambda words: iter([words, [None] * len(words)])

        def __call__(self, *_):
            raise AssertionError

    class Speller:
        spell = batched(Function())

    speller = Speller()
    maker = threading.Thread(target=lambda: speller.spell, daemon=True)
    maker.start()
    assert reached.wait(TIMEOUT)

    assert in_forked_child(lambda: list(speller.spell.stream("word"))) == "['word']"
    opened.set()
    maker.join(TIMEOUT)
    speller.spell.close()


PROGRAM = """
    import sys, threading, time
    from batchstream import ContinuousBatcher, DynamicBatcher, EOS

    began = threading.Event()

    class Engine:
        def __init__(self):
            self.slots = set()
        def add(self, slot, request):
            self.slots.add(slot)
        def step(self):
            began.set()
            {work}
            return dict.fromkeys(self.slots, {output})
        def remove(self, slot):
            self.slots.discard(slot)

    def fn(requests):
        engine = Engine()
        for slot, request in enumerate(requests):
            engine.add(slot, request)
        while True:
            yield engine.step()

    batchers = [
        ContinuousBatcher(Engine, max_batch_size=2),
        DynamicBatcher(fn, max_batch_size=2, batch_timeout={batch_timeout}),
    ]
    {use}
"""

PROGRAMS = {
    "idle": {
        "output": "EOS",
        "use": "assert [list(batcher.stream(1)) for batcher in batchers] == [[], []]",
    },
    "busy": {
        "output": "'x'",
        "use": "streams = [b.stream(1) for b in batchers]; [next(s) for s in streams]",
    },
    "stuck in a step": {
        "work": "threading.Event().wait()",
        "output": "'x'",
        "use": "streams = [b.stream(1) for b in batchers]; began.wait(10)",
    },
    "full of dropped streams": {
        "output": "'x'",
        "use": "[b.stream(1) for b in batchers for _ in range(9)]",
    },
    "gathering a batch": {
        "output": "'x'",
        "batch_timeout": "3600.0",
        "use": "streams = [b.stream(1) for b in batchers]",
    },
    "never used": {"output": "'x'", "use": "pass"},
}


@pytest.mark.rule(28)
@pytest.mark.parametrize("state", PROGRAMS)
def test_a_program_ends_with_a_batcher_that_is(state):
    parts = {"work": "pass", "batch_timeout": "0.0"} | PROGRAMS[state]
    assert run_program(PROGRAM.format(**parts)) == (0, "", "")


CUT_SHORT = """
import atexit
import threading

held, over, done = threading.Event(), threading.Event(), threading.Event()
atexit.register(done.wait, 10)  # before the library's own, and so called behind it
atexit.register(over.set)

from batchstream import BatchedStream, ClosedError, DynamicBatcher


def model(requests):
    yield list(requests)
    held.set()
    over.wait()  # the program ends meanwhile
    yield list(requests)


def read():
    try:
        print({reading})
    except ClosedError:
        print("cut short")
    done.set()


{opening}
threading.Thread(target=read, daemon=True).start()
held.wait(10)
"""


@pytest.mark.rule(28, 29)
@pytest.mark.parametrize(
    ("opening", "reading"),
    [
        ("batcher = DynamicBatcher(model, max_batch_size=3)", "list(batcher.map([1, 2, 3]))"),
        ("batch = BatchedStream(model([1, 2]), 2, background=True)", "batch.collect()"),
    ],
    ids=["map", "collect"],
)
def test_what_the_end_of_a_program_cuts_short_is_no_whole_reply(opening, reading):
    program = CUT_SHORT.format(opening=opening, reading=reading)
    code, shown, _ = run_program(program)
    assert (code, shown) == (0, "cut short\n")


@pytest.mark.rule(28)
def test_a_program_whose_daemon_threads_read_streams_ends_silently():
    program = """
import threading
import batchstream
def model(requests):
    while True:
        yield ["x"] * len(requests)
batcher = batchstream.DynamicBatcher(model, max_batch_size=2, on_overflow="wait")
streams = [batcher.stream(number) for number in range(3)]  # the last waits for a worker
received = threading.Semaphore(0)
def read(stream):
    for _ in stream:
        received.release()
for stream in streams:
    threading.Thread(target=read, args=[stream], daemon=True).start()
received.acquire()
"""
    assert run_program(program) == (0, "", "")


@pytest.mark.rule(28)
def test_a_program_with_several_stuck_workers_is_not_held_up_for_each():
    program = """
import threading
import batchstream
reached = threading.Barrier(5)
def stuck(requests):
    reached.wait(20)
    threading.Event().wait()
    yield
batcher = batchstream.DynamicBatcher(stuck, max_batch_size=1, workers=4)
streams = [batcher.stream(number) for number in range(4)]
reached.wait(20)
from support import knobs
joined = []
class Clock:  # the patience of all together is that of one
    time = 0.0
    @classmethod
    def monotonic(cls):
        return cls.time
def join(self, timeout=None):
    joined.append(timeout)
    Clock.time += timeout
knobs.exit_with(Clock, join)
assert joined[0] > 0 and sum(joined) <= knobs.EXIT_SECONDS, joined
print("bounded", flush=True)
import os
os._exit(0)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert run_program(program, environment=environment) == (0, "bounded\n", "")


# ---- garbage


@pytest.mark.rule(25, 28)
@KINDS
def test_dropping_an_idle_batcher_ends_its_threads(kind):
    batcher, _ = make(kind)
    assert list(batcher.stream("ab")) == ["a", "b"]
    threads = knobs.worker_threads_of(batcher)
    assert threads
    gone = weakref.ref(knobs.dispatcher_of(batcher))
    del batcher
    gc.collect()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert gone() is None


@pytest.mark.rule(25)
@KINDS
def test_a_batcher_that_was_dropped_while_it_works_still_serves_its_streams(kind):
    gate = Gate()
    model = Model(on_step=lambda number: gate.pass_through() if number == 0 else None)
    batcher, _ = make(kind, model, max_batch_size=1)
    streams = [batcher.stream(request) for request in ("ab", "c")]
    threads = knobs.worker_threads_of(batcher)
    del batcher
    gc.collect()
    gate.opened.set()
    assert [list(stream) for stream in streams] == [["a", "b"], ["c"]]
    del streams
    gc.collect()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@pytest.mark.rule(25)
@KINDS
def test_no_cycle_keeps_a_dropped_stream_alive(kind):
    """Its last reference is dropped, and it is gone without a collection."""
    batcher, _ = make(kind)
    gc.collect()
    gc.disable()
    try:
        for read in (list, next):
            stream = batcher.stream("abc")
            read(stream)
            gone = weakref.ref(stream)
            del stream
            assert gone() is None
    finally:
        gc.enable()
    batcher.close()
    assert batcher.statistics().finished[FinishReason.EOS] >= 1


@pytest.mark.rule(25)
@KINDS
def test_an_idle_batcher_keeps_no_request_alive(kind):
    class Request(list):
        pass

    batcher, model = make(kind)
    request = Request("abc")
    gone = weakref.ref(request)
    assert list(batcher.stream(request)) == ["a", "b", "c"]
    done = threading.Event()
    weakref.finalize(request, done.set)
    model.worked_on.clear()
    model.called_with.clear()
    del request
    assert list(batcher.stream("x")) == ["x"]  # and the worker has left what was before
    model.worked_on.clear()
    gc.collect()
    assert done.wait(TIMEOUT)
    assert gone() is None
    batcher.close()


@pytest.mark.rule(25, 28)
@KINDS
def test_a_batcher_that_is_idle_and_dropped_is_freed_without_the_cycle_collector(kind):
    gc.collect()
    gc.disable()
    try:
        batcher, _ = make(kind)
        assert list(batcher.stream("ab")) == ["a", "b"]
        threads = knobs.worker_threads_of(batcher)
        assert threads
        freed = threading.Event()
        weakref.finalize(knobs.dispatcher_of(batcher), freed.set)
        del batcher
        assert freed.wait(TIMEOUT)  # its thread is on the way to be idle, perhaps
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
    finally:
        gc.enable()


@pytest.mark.rule(25)
@dynamic_batchers
async def test_a_batcher_in_a_loop_that_is_idle_is_freed_without_the_cycle_collector(form):
    if not form.source_is_async:
        pytest.skip("for asynchronous functions")
    gc.collect()
    gc.disable()
    try:
        batcher = DynamicBatcher(Model(form.home).agenerate, max_batch_size=2)
        assert await form.rest(form.submit(batcher, "ab")) == ["a", "b"]
        await form.all_wait()
        gone = weakref.ref(knobs.dispatcher_of(batcher))
        del batcher
        assert gone() is None
    finally:
        gc.enable()


class Content(str):
    """A request that can be referred to weakly."""

    __slots__ = ("__weakref__",)


@pytest.mark.rule(25)
@pytest.mark.parametrize("end", ["refused", "overdue", "cancelled", "closed"])
def test_what_was_submitted_of_a_request_that_joins_no_batch_is_freed_at_once(end, monkeypatch):
    """Without the cycle collector, though its stream is kept."""
    clock = ManualClock.install(monkeypatch)
    gate = Gate()
    model = Model(on_step=lambda number: number or gate.pass_through())
    batcher, _ = make("dynamic", model, max_batch_size=1, max_pending=1)
    running = batcher.stream("ab")
    assert gate.reached.wait(TIMEOUT)
    gc.collect()
    gc.disable()
    try:
        content = Content("cd")
        gone = weakref.ref(content)
        if end == "refused":
            others = [batcher.stream("ef")]
            with pytest.raises(OverloadedError):
                batcher.stream(content)
        else:
            waiting = batcher.stream(content, wait_timeout=1.0)
        del content
        if end == "overdue":
            clock.move(2.0)
            others = [batcher.stream("ef")]
            assert waiting.finish_reason is FinishReason.ERROR
        elif end == "cancelled":
            waiting.cancel()
            others = [batcher.stream("ef")]
        elif end == "closed":
            knobs.dispatcher_of(batcher).request_close()
            others = []
        assert gone() is None
        gate.opened.set()
        if others:
            assert [list(stream) for stream in [running, *others]] == [["a", "b"], ["e", "f"]]
    finally:
        gc.enable()
        gate.opened.set()
        batcher.close()


class Watched:
    """An object of a user's, whose finalizer is the user's code."""

    def __init__(self, name, record):
        self.name = name
        self.record = record

    def __del__(self):
        self.record(type(self).__name__)


class Input(Watched):
    pass


class Key(Watched):
    def __hash__(self):
        return hash(self.name)

    def __eq__(self, other):
        return self.name == other.name


class Output(Watched):
    pass


class Failure(Watched, Exception):
    pass


DEEDS = {
    "finish": lambda *_: None,
    "cancel": lambda _, streams, __: [stream.cancel() for stream in streams],
    "expire": lambda _, __, clock: clock.move(61.0),
    "close": lambda batcher, *_: knobs.dispatcher_of(batcher).request_close(),
}


@pytest.mark.rule(24)
@pytest.mark.parametrize("deed", [*DEEDS, "refuse"])
def test_no_object_of_the_user_is_freed_under_the_lock(deed, monkeypatch):
    clock = ManualClock.install(monkeypatch)
    knobs.set_many_keys(monkeypatch, 4)
    gate, dropped = Gate(), threading.Semaphore(0)

    def fn(requests):
        name = requests[0].name
        requests.clear()
        if name == "held":
            gate.pass_through()
        try:
            yield [Output(name, record)]
            yield [Fail(Failure(name, record))]
        finally:  # so that what is freed last is freed by the worker
            assert dropped.acquire(timeout=TIMEOUT)

    batcher = DynamicBatcher(
        fn, max_batch_size=1, max_pending=3, key=lambda content: Key(content.name, record)
    )
    owns_lock, freed = knobs.lock_of(batcher)._is_owned, []

    def record(kind):
        freed.append((kind, owns_lock()))

    streams = [batcher.stream(Input("held", record), timeout=3600.0)]
    assert gate.reached.wait(TIMEOUT)
    streams += [batcher.stream(Input(number, record), wait_timeout=60.0) for number in range(3)]
    if deed == "refuse":
        with pytest.raises(OverloadedError):
            batcher.stream(Input("refused", record))
    else:
        DEEDS[deed](batcher, streams, clock)
    streams.clear()
    idle = threading.Event()
    stop_watching = knobs.watch_decisions(batcher, lambda found: found is None and idle.set())
    gate.opened.set()
    dropped.release()
    for number in range(30 if deed != "close" else 0):  # each frees what earlier requests left
        assert idle.wait(TIMEOUT)
        idle.clear()
        stream = batcher.stream(Input(number, record), timeout=60.0, wait_timeout=30.0)
        assert stream.receive(timeout=TIMEOUT).name == number
        with pytest.raises(Failure):
            stream.receive(timeout=TIMEOUT)
        del stream
        dropped.release()
    stop_watching()
    batcher.close()
    kinds = {"Input"} if deed == "close" else {"Input", "Key", "Output", "Failure"}
    assert {kind for kind, _ in freed} >= kinds
    assert [kind for kind, under_lock in freed if under_lock] == []


@pytest.mark.rule(25)
def test_keys_that_are_out_of_use_are_forgotten():
    class Key:
        pass

    alive = weakref.WeakSet()

    def key(request):
        made = Key()
        alive.add(made)
        return made

    batcher, _ = make("dynamic", key=key)
    idle = threading.Event()
    stop_watching = knobs.watch_decisions(batcher, lambda found: found is None and idle.set())
    for number in range(300):
        assert list(batcher.stream(str(number))) == list(str(number))
    idle.clear()
    assert list(batcher.stream("the last")) == list("the last")
    assert idle.wait(TIMEOUT)
    stop_watching()
    assert len(alive) < 200
    batcher.close()


@pytest.mark.rule(25)
def test_a_batch_that_never_ends_keeps_nothing_of_ended_requests():
    engine = Echo()
    with ContinuousBatcher(engine, max_batch_size=2, max_buffered=10**6) as batcher:
        stays = batcher.stream("stays")
        for number in range(50):
            leaves = batcher.stream(number)
            next(leaves)
            leaves.cancel()
            stays.drain()
        (run,) = knobs.runs_of(batcher)
        assert not knobs.unreported(run)


@pytest.mark.rule(25)
def test_a_request_that_was_cancelled_while_it_waited_frees_what_was_submitted():
    gate = Gate()

    def fn(requests):
        gate.pass_through()
        yield list(requests)

    with DynamicBatcher(fn, max_batch_size=1) as batcher:
        running = batcher.stream("a")
        gate.reached.wait(TIMEOUT)
        waiting = batcher.stream("b")
        waiting.cancel()
        batcher.stream("c").cancel()  # removes ended requests
        assert knobs.request_of(waiting).submission.content is None
        gate.opened.set()
        assert list(running) == ["a"]


# ---- a request that is cancelled as it joins


@pytest.mark.rule(12, 13)
def test_a_cancel_that_comes_as_its_request_joins_a_batch_reaches_the_model(monkeypatch):
    gate, closed = Gate(), threading.Event()

    def model(requests):
        if requests == ["first"]:
            gate.pass_through()
            return
        try:
            while True:
                yield ["output"]
        finally:
            closed.set()

    batcher = DynamicBatcher(model, max_batch_size=1, max_buffered=4, on_overflow="wait")
    first, second = batcher.stream("first"), batcher.stream("second")
    assert gate.reached.wait(TIMEOUT)
    knobs.as_it_is_cancelled(monkeypatch, second, gate.opened.set)
    second.cancel()
    assert closed.wait(TIMEOUT)
    assert list(first) == []
    batcher.close()  # not in a `with` block: if the model is not told, that would wait for ever
