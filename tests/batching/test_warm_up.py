"""Requests that warm a model up: before all others, alone in their batches, and in no figures."""

from __future__ import annotations

import itertools
import threading
from functools import partial

import pytest

from batchstream import ClosedError, ContinuousBatcher, DeadlineError, DynamicBatcher
from batchstream._batching.calls import warm_up as module
from batchstream._core.records import BatcherStatistics
from support.engines import Echo, InLoop, dynamic_batchers, every_batcher
from support.interrupts import at_line, needs_lines
from support.sources import in_forked_child, needs_fork


async def warm_up(form, batcher, requests, **options):
    if isinstance(form, InLoop):
        await batcher.awarm_up(requests, **options)
    else:
        batcher.warm_up(requests, **options)


def nothing_counted(batcher):
    figures = batcher.statistics()
    return figures == BatcherStatistics(
        **{name: type(getattr(figures, name))() for name in figures.__dataclass_fields__}
    )


@every_batcher
async def test_all_requests_go_through_the_model_in_batches_and_count_in_no_figures(form):
    recorder = form.recorder()
    model = form.model()
    batcher = form.batcher(model, max_batch_size=2, max_pending=1, metrics=recorder)
    assert batcher.ready
    await warm_up(form, batcher, ["ab", "c", "def"])
    assert batcher.ready
    assert model.worked_on == [("ab", "c"), ("ab", "c"), ("ab",)] + [("def",)] * 4
    assert nothing_counted(batcher)
    assert recorder.calls == []
    assert await form.rest(form.submit(batcher, "xy")) == ["x", "y"]
    assert batcher.statistics().opened == batcher.statistics().batches == 1
    await form.close(batcher)
    assert (batcher.statistics().steps, batcher.statistics().outputs) == (3, 2)


@every_batcher
async def test_requests_that_come_meanwhile_wait_behind_all_of_the_warm_up(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=2)
    streams = []

    async def submit():
        await gate.reached.wait()
        assert not batcher.ready
        assert batcher.state == "accepting"
        streams.extend(form.submit(batcher, request) for request in ("x", "y"))
        assert batcher.statistics().waiting == 2
        gate.open()

    await form.concurrently(partial(warm_up, form, batcher, ["a", "b", "c"]), submit)
    assert [await form.rest(stream) for stream in streams] == [["x"], ["y"]]
    kinds = ["".join(sorted(requests)) for requests in model.worked_on]
    assert kinds == ["ab", "ab", "c", "c", "xy", "xy"]


@every_batcher
async def test_a_batch_that_runs_ends_before_the_warm_up_and_takes_no_other_request(form):
    batcher, model, gate = form.held_batcher(0, max_batch_size=2)
    first, second = await form.submit_behind(batcher, gate, "ab", "y")

    async def release():
        while batcher.ready:
            await form.all_wait()
        gate.open()
        return await form.rest(first), await form.rest(second)

    _, outputs = await form.concurrently(partial(warm_up, form, batcher, ["w"]), release)
    assert outputs == (["a", "b"], ["y"])
    assert model.worked_on == [("ab",)] * 3 + [("w",)] * 2 + [("y",)] * 2


@every_batcher
async def test_a_warm_up_that_fails_raises_and_the_batcher_is_not_ready_until_one_succeeds(form):
    model = form.model(raises={1: OSError("no memory")})
    batcher = form.batcher(model, max_batch_size=2)
    with pytest.raises(OSError, match="no memory"):
        await warm_up(form, batcher, ["abc", "d", "e"])
    assert (batcher.ready, batcher.state) == (False, "accepting")
    assert await form.rest(form.submit(batcher, "x")) == ["x"]
    assert not batcher.ready
    await warm_up(form, batcher, ["a"])
    assert batcher.ready
    assert batcher.statistics().opened == 1


@dynamic_batchers
async def test_others_go_on_at_once_when_a_warm_up_is_broken_off(form):
    if not isinstance(form, InLoop):
        return  # a thread's wait is broken off by signals alone
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, workers=2)
    scope = form.scope()

    async def break_off():
        await gate.reached.wait()
        stream = form.submit(batcher, "x")
        scope.cancel()
        assert await form.rest(stream) == ["x"]  # while the model is in the step of the warm-up
        gate.open()

    warming = partial(scope.run, partial(batcher.awarm_up, ["a"]))
    await form.concurrently(warming, break_off)
    assert not batcher.ready


@every_batcher
async def test_a_warm_up_has_a_time_and_at_least_one_request(form):
    batcher, _, gate = form.held_batcher(0)

    async def release():
        await gate.reached.wait()
        await form.all_wait()

    with pytest.raises(ValueError, match="at least one request"):
        await warm_up(form, batcher, [])
    assert not batcher.ready
    with pytest.raises(TypeError, match="warm_up takes an iterable of requests, got str 'abc'"):
        await warm_up(form, batcher, "abc")
    with pytest.raises(DeadlineError, match=r"the warm-up was not finished within 0 seconds"):
        await warm_up(form, batcher, ["a"], timeout=0)
    gate.open()
    await warm_up(form, batcher, ["a"], timeout=3600)
    assert batcher.ready


@every_batcher
async def test_a_closed_batcher_is_not_warmed_up_and_closing_ends_a_warm_up(form):
    batcher, _, gate = form.held_batcher(0)

    async def end():
        await gate.reached.wait()

        async def release():
            await form.all_wait()
            gate.open()

        await form.concurrently(partial(form.close, batcher), release)

    async def warm():
        with pytest.raises(ClosedError):
            await warm_up(form, batcher, ["a", "b"])

    await form.concurrently(warm, end)
    with pytest.raises(ClosedError):
        await warm_up(form, batcher, ["a"])
    assert not batcher.ready


@every_batcher
async def test_what_cannot_be_submitted_reaches_the_model_with_none_of_the_others(form):
    model = form.model()
    batcher = form.batcher(model, cost=len, max_batch_cost=2)
    with pytest.raises(ValueError, match="costs 3"):
        await warm_up(form, batcher, ["a", "abc", "b"])
    assert model.steps == 0
    await warm_up(form, batcher, ["ab", "a", "b"])
    assert ("ab",) in model.worked_on


def test_the_engine_is_made_and_warmed_up_in_the_thread_that_serves():
    threads = []

    class Engine(Echo):
        def __init__(self):
            threads.append(threading.get_ident())
            super().__init__()

        def step(self):
            threads.append(threading.get_ident())
            return super().step()

    with ContinuousBatcher(Engine, max_batch_size=2, max_outputs=1) as batcher:
        batcher.warm_up(["a", "b", "c"])
        list(batcher.stream("d"))
    assert len(set(threads)) == 1


def test_the_model_cannot_warm_itself_up():
    def model(requests):
        batcher.warm_up(["b"])
        yield requests

    with DynamicBatcher(model, max_batch_size=1) as batcher:
        with pytest.raises(RuntimeError, match="waits for a request to its own batcher"):
            list(batcher.stream("a"))
        assert not batcher.ready


@needs_fork
def test_a_batcher_that_was_warmed_up_is_so_in_a_forked_child():
    with DynamicBatcher(lambda requests: iter([requests]), max_batch_size=1) as batcher:
        batcher.warm_up(["a"])
        said = in_forked_child(lambda: (batcher.ready, list(batcher.stream("b"))))
        assert said == "(True, ['b'])"


@needs_lines
@pytest.mark.rule(9)
def test_after_a_warm_up_that_is_broken_off_at_any_line_another_makes_the_batcher_ready():
    with DynamicBatcher(lambda requests: iter([requests]), max_batch_size=1) as batcher:
        for line in itertools.count(1):
            where = at_line(line, partial(batcher.warm_up, ["a"]), files={module.__file__})
            batcher.warm_up(["b"])
            assert batcher.ready, where
            if where is None:
                break
    assert line > 30
