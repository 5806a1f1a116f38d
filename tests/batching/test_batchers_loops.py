"""The event loops in which asynchronous functions work, one after another."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
import trio

from batchstream import ClosedError, DynamicBatcher, FinishReason
from support import knobs
from support.engines import Model, echo, for_ever
from support.sources import TIMEOUT, Gate, run_in_threads

# ---- loops that end


@pytest.mark.rule(9)
def test_closing_does_not_wait_for_a_loop_that_was_stopped():
    batcher = DynamicBatcher(for_ever, max_batch_size=4)
    loop = asyncio.new_event_loop()

    async def main():
        stream = batcher.astream("a")
        await anext(stream)
        return stream

    stream = loop.run_until_complete(main())
    batcher.close()
    assert isinstance(stream.end.error, ClosedError)
    loop.close()


@pytest.mark.rule(25)
def test_a_loop_that_is_closed_around_its_workers_keeps_none_of_their_tasks():
    before = len(knobs.tasks_kept_alive())
    batcher = DynamicBatcher(for_ever, max_batch_size=4, batch_timeout=30)
    for _ in range(3):
        loop = asyncio.new_event_loop()

        async def main():
            stream = batcher.astream("a")
            await asyncio.sleep(0)
            return stream

        stream = loop.run_until_complete(main())
        loop.close()
        del stream
    batcher.close()
    assert len(knobs.tasks_kept_alive()) == before


@pytest.mark.rule(11)
def test_a_task_of_a_closed_loop_fails_no_request_in_the_next_one():
    async def fn(requests):
        if "old" in requests:
            await asyncio.sleep(3600)
        yield list(requests)

    batcher = DynamicBatcher(fn, max_batch_size=2, batch_timeout=30)
    loop = asyncio.new_event_loop()

    async def old():
        streams = [batcher.astream("old"), batcher.astream("old")]
        for _ in range(5):
            await asyncio.sleep(0)
        return streams

    async def new():
        waiting = batcher.astream("first")
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()  # the task of the loop that is gone
        streams = [waiting, batcher.astream("second")]
        return [[output async for output in stream] for stream in streams]

    gc.disable()
    try:
        loop.run_until_complete(old())
        loop.close()
        assert asyncio.run(new()) == [["first"], ["second"]]
    finally:
        gc.enable()
    batcher.close()


@pytest.mark.rule(9)
def test_a_loop_that_cancels_its_tasks_gets_no_other_batch():
    called_with = []

    async def fn(requests):
        called_with.append(requests)
        yield list(requests)
        await asyncio.sleep(3600)

    batcher = DynamicBatcher(fn, max_batch_size=4)
    outcomes = []

    async def clean_up_slowly():
        try:
            await asyncio.sleep(3600)
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            try:
                batcher.astream("late")
            except ClosedError as error:
                outcomes.append(error)

    async def main():
        task = asyncio.create_task(clean_up_slowly())
        await anext(batcher.astream("a"))
        return task

    asyncio.run(main())
    assert len(outcomes) == 1
    assert called_with == [["a"]]
    batcher.close()


@pytest.mark.rule(9)
def test_when_the_loop_of_the_workers_ends_requests_of_other_threads_fail():
    begun, submitted = threading.Event(), threading.Event()

    async def fn(requests):
        yield ["a"]
        begun.set()
        await asyncio.Event().wait()

    batcher = DynamicBatcher(fn, max_batch_size=1)
    results = []

    async def home():
        stream = batcher.astream("x")
        assert await anext(stream) == "a"
        await asyncio.to_thread(submitted.wait, TIMEOUT)

    def elsewhere():
        assert begun.wait(TIMEOUT)
        running, waiting = batcher.stream("y"), batcher.stream("z")
        submitted.set()
        for stream in (running, waiting):
            with pytest.raises(ClosedError, match="let its requests end before"):
                stream.receive(TIMEOUT)
            results.append(stream.finish_reason)

    run_in_threads(lambda: asyncio.run(home()), elsewhere)
    assert results == [FinishReason.ERROR] * 2
    assert batcher.statistics().live == 0
    batcher.close()


@pytest.mark.rule(22)
def test_a_loop_that_was_closed_without_a_cancel_is_left_behind():
    """No `asyncio.run` that cancels tasks: the loop is stopped and closed around them."""
    gate = Gate()

    async def fn(requests):
        yield ["a"]
        gate.reached.set()
        await asyncio.Event().wait()

    batcher = DynamicBatcher(fn, max_batch_size=1)
    loop = asyncio.new_event_loop()

    async def begin():
        stream = batcher.astream("x")
        assert await anext(stream) == "a"
        return stream, batcher.astream("y")

    streams = loop.run_until_complete(begin())
    loop.close()

    async def again():
        return await anext(batcher.astream("z"))

    assert asyncio.run(again()) == "a"
    assert [stream.finish_reason is not None for stream in streams] == [True, True]
    batcher.close()
    figures = batcher.statistics()
    assert (figures.live, figures.waiting) == (0, 0)


# ---- one loop after another


def make_batcher(**options):
    model = Model(lambda: None)
    return model, DynamicBatcher(model.agenerate, max_batch_size=2, **options)


@pytest.mark.rule(22)
def test_an_asynchronous_function_works_in_one_loop_after_another():
    model, batcher = make_batcher()

    async def main(request):
        return [output async for output in batcher.astream(request)]

    for request in ("ab", "cde", "f"):
        assert asyncio.run(main(request)) == list(request)
    assert model.called_with == [["ab"], ["cde"], ["f"]]
    asyncio.run(batcher.aclose())
    model.check()


@pytest.mark.rule(22)
def test_after_asyncio_a_batcher_may_work_in_trio():
    trio = pytest.importorskip("trio")
    _, batcher = make_batcher()

    async def main(request):
        return [output async for output in batcher.astream(request)]

    assert asyncio.run(main("ab")) == ["a", "b"]
    assert trio.run(main, "cd") == ["c", "d"]
    assert asyncio.run(main("ef")) == ["e", "f"]
    asyncio.run(batcher.aclose())


@pytest.mark.rule(22)
def test_an_asynchronous_function_needs_an_event_loop():
    _, batcher = make_batcher()
    for submit in (batcher.stream, batcher.astream):
        with pytest.raises(RuntimeError, match="an asynchronous function runs in the event loop"):
            submit("a")
    assert batcher.statistics().opened == 0
    batcher.close()


# ---- a synchronous wait in a thread whose event loop runs


@pytest.fixture
def echoing(monkeypatch):
    """A batcher that answers when its consumer has begun to wait, and not before."""
    waits = threading.Event()

    def echo_behind_the_wait(requests):
        assert waits.wait(TIMEOUT)
        yield from echo(requests)

    with DynamicBatcher(echo_behind_the_wait, max_batch_size=1) as batcher:
        parking = batcher._dispatcher.parking
        wait_in_thread = parking.wait_in_thread

        def begin_to_wait(key, until):
            waits.set()
            return wait_in_thread(key, until)

        monkeypatch.setattr(parking, "wait_in_thread", begin_to_wait)
        yield batcher


@pytest.mark.parametrize("run", [lambda fn: asyncio.run(fn()), trio.run])
def test_a_wait_that_stops_an_event_loop_is_warned_of_once(echoing, run):
    async def endpoint():
        return list(echoing.stream("a"))

    with pytest.warns(RuntimeWarning, match="use astream, acall or amap there") as warned:
        assert [run(endpoint) for _ in range(2)] == [["a"], ["a"]]
    assert [Path(warning.filename).name for warning in warned] == ["test_batchers_loops.py"]


def test_a_map_that_stops_an_event_loop_is_warned_of(echoing):
    async def endpoint():
        return list(echoing.map(["a"]))

    with pytest.warns(RuntimeWarning, match="use astream, acall or amap there"):
        assert asyncio.run(endpoint()) == [["a"]]


def test_a_wait_in_another_thread_and_one_in_a_notebook_are_not_warned_of(echoing, monkeypatch):
    async def endpoint():
        return await asyncio.to_thread(list, echoing.stream("a"))

    async def cell():
        return list(echoing.stream("a"))

    assert asyncio.run(endpoint()) == ["a"]
    name = "ipykernel.kernelapp"  # the module of a notebook's kernel
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert asyncio.run(cell()) == ["a"]
