"""Batchers that drain: what was accepted ends, what comes is refused, and each is answered once."""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
import threading
from functools import partial

import pytest

from batchstream import EOS, ClosedError, ContinuousBatcher, DeadlineError, DynamicBatcher
from batchstream._batching.calls import closing, upstream
from batchstream._batching.calls.replies import Flight
from batchstream._batching.dispatching import dispatcher, waking
from batchstream._batching.requests import ends
from batchstream._batching.scheduling import scheduler
from support.engines import (
    Echo,
    InLoop,
    batchers_with_threads,
    dynamic_batchers,
    every_batcher,
)
from support.interrupts import at_line, needs_lines
from support.sources import TIMEOUT, Gate, in_forked_child, needs_fork

CALL = r"a?close\(drain=60\) in thread '.*' at .*"


async def close(form, batcher, **options):
    if isinstance(form, InLoop):
        await batcher.aclose(**options)
    else:
        batcher.close(**options)


async def draining(form, batcher, then, drain=60):
    """Drain a batcher, and do something as soon as it does."""

    async def meanwhile():
        while batcher.state == "accepting":
            await form.all_wait()
        return await then()

    _, result = await form.concurrently(partial(close, form, batcher, drain=drain), meanwhile)
    return result


@every_batcher
@pytest.mark.rule(9)
async def test_requests_that_run_and_wait_end_and_others_are_refused(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    streams = await form.submit_behind(batcher, gate, "abc", "d", "ef")
    assert (batcher.state, batcher.ready) == ("accepting", True)

    async def then():
        assert (batcher.state, batcher.ready) == ("draining", False)
        assert "draining, 2 requests waiting" in repr(batcher)
        says = rf"the batcher is draining, as asked for by {CALL}: .* another server"
        with pytest.raises(ClosedError, match=says):
            form.submit(batcher, "late")
        assert batcher.statistics().refusals == {"draining": 1}
        with pytest.raises(ClosedError, match="before it was entered"):
            batcher.__enter__()
        gate.open()
        return [await form.rest(stream) for stream in streams]

    assert await draining(form, batcher, then) == [list("abc"), ["d"], list("ef")]
    assert (batcher.state, batcher.ready) == ("closed", False)
    with pytest.raises(ClosedError, match=rf"the batcher was closed by {CALL}: let its requests"):
        form.submit(batcher, "late")
    assert batcher.statistics().opened == 3


@every_batcher
async def test_a_drain_without_requests_is_over_at_once(form):
    batcher = form.batcher()
    await close(form, batcher, drain=math.inf)
    assert batcher.state == "closed"
    await close(form, batcher, drain=1)


@every_batcher
@pytest.mark.parametrize("drain", [-1, math.nan, "1", True])
async def test_a_drain_is_a_number_of_seconds(form, drain):
    with pytest.raises((TypeError, ValueError), match="drain must be"):
        await close(form, form.batcher(), drain=drain)
    with pytest.raises((TypeError, ValueError), match="drain must be"):
        form.batcher(drain=drain)


@every_batcher
async def test_what_has_not_ended_when_the_time_is_over_fails_and_says_so(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    streams = await form.submit_behind(batcher, gate, "abc", "d")

    async def end():
        errors = [error for stream in streams for error in (await form.read(stream))[1]]
        gate.open()
        return errors

    _, errors = await form.concurrently(partial(close, form, batcher, drain=0), end)
    assert [type(error) for error in errors] == [ClosedError] * 2
    for error in errors:
        assert "close(drain=0) in thread" in str(error)
        assert "whose time was over before all requests had ended" in str(error)


@every_batcher
async def test_a_close_in_a_drain_closes_at_once(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    streams = await form.submit_behind(batcher, gate, "abc", "d")

    async def then():
        async def end():
            errors = [error for stream in streams for error in (await form.read(stream))[1]]
            gate.open()
            return errors

        return (await form.concurrently(partial(close, form, batcher), end))[1]

    errors = await draining(form, batcher, then)
    assert [type(error) for error in errors] == [ClosedError] * 2
    assert all("close() in thread" in str(error) for error in errors)
    assert all("before its drain was over" in str(error) for error in errors)


@every_batcher
async def test_of_two_drains_the_one_that_is_over_first_counts(form):
    batcher, _, gate = form.held_batcher(0)
    (stream,) = await form.submit_behind(batcher, gate, "abc")

    async def then():
        async def end():
            errors = (await form.read(stream))[1]
            gate.open()
            return errors

        return (await form.concurrently(partial(close, form, batcher, drain=0), end))[1]

    assert [type(error) for error in await draining(form, batcher, then)] == [ClosedError]


@dynamic_batchers
@pytest.mark.parametrize("places", [{}, {"tenant": len, "priority": len}])
async def test_a_drain_waits_for_no_others_to_fill_a_batch(form, places):
    batcher = form.batcher(batch_timeout=3600.0, max_batch_size=4, **places)
    streams = [form.submit(batcher, request) for request in ("ab", "c")]
    await close(form, batcher, drain=math.inf)
    assert [await form.rest(stream) for stream in streams] == [["a", "b"], ["c"]]


@every_batcher
async def test_deadlines_go_on_in_a_drain(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    first, late = await form.submit_behind(batcher, gate, "abc", "d", wait_timeout=0)

    async def then():
        errors = (await form.read(late))[1]
        gate.open()
        return errors, await form.rest(first)

    errors, outputs = await draining(form, batcher, then)
    assert [type(error) for error in errors] == [DeadlineError]
    assert outputs == list("abc")


@every_batcher
async def test_a_drain_is_over_when_its_last_request_is_cancelled_as_it_waits(form):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    first, waiting = await form.submit_behind(batcher, gate, "", "d")

    async def then():
        first.cancel()
        waiting.cancel()  # the model is in a step, and no worker does anything for it
        while batcher.state != "closed":
            await form.all_wait()
        gate.open()

    await draining(form, batcher, then, drain=math.inf)


@every_batcher
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_map_gives_the_replies_to_what_was_submitted_and_then_the_error(form, ordered):
    batcher, _, gate = form.held_batcher(0, max_batch_size=1)
    method = batcher.amap if isinstance(form, InLoop) else batcher.map
    replies = method(itertools.repeat("ab"), ordered=ordered)

    async def receive():
        received = []
        try:
            while True:
                received.append(await form.receive(replies))
        except ClosedError as error:
            return received, str(error)

    async def drain():
        await gate.reached.wait()
        await form.all_wait()  # two requests are in flight, one of which waits

        async def then():
            gate.open()

        await draining(form, batcher, then)

    (received, says), _ = await form.concurrently(receive, drain)
    assert "drain=60" in says
    assert received == ([["a", "b"]] * 2 if ordered else [(0, ["a", "b"]), (1, ["a", "b"])])


@every_batcher
@pytest.mark.rule(9, 20)
async def test_a_map_that_holds_a_request_back_waits_in_a_drain_for_its_replies(form, monkeypatch):
    """Told that there is no room any more, it has nothing left to submit, and stands still."""
    gate, second = form.gate(), form.gate()
    model = form.model(gates={0: gate, 2: second})
    batcher = form.batcher(model, max_batch_size=1, max_pending=1)
    (stream,) = await form.submit_behind(batcher, gate, "a")
    waiters, looks, look = batcher._dispatcher.ends.room_waiters, itertools.count(), Flight.look

    def counted(flight):
        assert next(looks) < 20, "it looks again and again"
        return look(flight)

    monkeypatch.setattr(Flight, "look", counted)

    async def receive():
        method = batcher.amap if isinstance(form, InLoop) else batcher.map
        return await form.read(method(["m", "n"]))

    async def drain():
        while not waiters:
            await form.all_wait()

        async def then():
            gate.open()
            await second.reached.wait()
            for _ in range(3):
                await form.all_wait()
            second.open()

        await draining(form, batcher, then)

    (replies, [error]), _ = await form.concurrently(receive, drain)
    assert (replies, type(error)) == ([["m"]], ClosedError)
    assert await form.rest(stream) == ["a"]


@every_batcher
async def test_the_end_of_a_block_drains_if_the_batcher_was_made_so(form):
    batcher = form.batcher(drain=60.0)
    streams = []

    async def submit():
        streams.extend(form.submit(batcher, request) for request in ("abc", "d"))

    await form.in_block(batcher, submit)
    assert [await form.rest(stream) for stream in streams] == [list("abc"), ["d"]]
    with pytest.raises(ClosedError, match=r"the end of its (async )?with block \(drain=60\)"):
        form.submit(batcher, "late")


@every_batcher
async def test_a_block_that_an_error_leaves_drains_nothing(form):
    batcher, _, gate = form.held_batcher(0, drain=3600.0)
    (stream,) = await form.submit_behind(batcher, gate, "abc")

    async def fail():
        raise LookupError

    async def leave():
        with pytest.raises(LookupError):
            await form.in_block(batcher, fail)

    async def end():
        errors = (await form.read(stream))[1]
        gate.open()
        return errors

    _, errors = await form.concurrently(leave, end)
    assert [type(error) for error in errors] == [ClosedError]


# ---- callers that cannot wait


def test_a_model_that_drains_its_own_batcher_does_not_wait_for_itself():
    def model(requests):
        batcher.close(drain=math.inf)
        yield requests
        yield [EOS] * len(requests)

    batcher = DynamicBatcher(model, max_batch_size=1)
    streams = [batcher.stream("a"), batcher.stream("b")]
    assert list(streams[0]) == ["a"]
    batcher.close(drain=math.inf)
    assert batcher.state == "closed"


def test_closing_in_the_loop_of_an_asynchronous_function_drains_behind_the_caller():
    async def main():
        async def model(requests):
            yield requests
            yield [EOS] * len(requests)

        batcher = DynamicBatcher(model, max_batch_size=2)
        stream = batcher.astream("a")
        batcher.close(drain=math.inf)
        assert batcher.state == "draining"
        assert [output async for output in stream] == ["a"]
        await batcher.aclose(drain=math.inf)
        assert batcher.state == "closed"

    asyncio.run(main())


@batchers_with_threads
async def test_a_close_that_is_cancelled_in_a_drain_closes_at_once(form):
    if not isinstance(form, InLoop):
        pytest.skip("for event loops")
    batcher, _, gate = form.held_batcher(0)
    (stream,) = await form.submit_behind(batcher, gate, "abc")
    scope = form.scope()

    async def cancel():
        while batcher.state == "accepting":
            await form.checkpoint()
        scope.cancel()
        errors = (await form.read(stream))[1]
        gate.open()
        return errors

    _, errors = await form.concurrently(
        partial(scope.run, partial(batcher.aclose, drain=math.inf)), cancel
    )
    assert [type(error) for error in errors] == [ClosedError]
    assert batcher.state == "closed"


def held():
    """Return a batcher whose model is held in its first step, and the gate."""
    engine = Echo()
    engine.gate = Gate()
    return ContinuousBatcher(lambda: engine, max_batch_size=1, max_outputs=1), engine.gate


def test_a_signals_handler_may_drain_the_batcher_that_its_thread_reads():
    batcher, gate = held()
    stream = batcher.stream("a")
    assert gate.reached.wait(TIMEOUT)

    def drain(*_):
        gate.opened.set()
        batcher.close(drain=math.inf)

    previous = signal.signal(signal.SIGUSR1, drain)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert batcher.state == "closed"
    assert list(stream) == ["a"]


def test_a_handler_that_has_interrupted_the_holder_of_the_lock_drains_behind_it():
    batcher, gate = held()
    stream = batcher.stream("a")
    assert gate.reached.wait(TIMEOUT)
    with batcher._dispatcher.lock:
        batcher.close(drain=math.inf)
        assert batcher.state == "draining"
    gate.opened.set()
    assert list(stream) == ["a"]
    batcher.close(drain=math.inf)
    assert batcher.state == "closed"


def test_an_exception_of_a_signals_handler_ends_the_drain_that_it_strikes():
    batcher, gate = held()
    stream = batcher.stream("abc")
    assert gate.reached.wait(TIMEOUT)

    struck = threading.Event()

    def interrupt(*_):
        if not struck.is_set():
            struck.set()
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        main = threading.get_ident()

        def strike():
            while not batcher._dispatcher.ends.closers:  # the main thread waits, or is about to
                pass
            while not struck.is_set():  # one just before it waits would be seen only behind that
                signal.pthread_kill(main, signal.SIGUSR1)

        threading.Thread(target=strike).start()
        with pytest.raises(KeyboardInterrupt):
            batcher.close(drain=math.inf)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert batcher.state == "closed"
    with pytest.raises(ClosedError, match="broken off the wait for its drain"):
        list(stream)
    gate.opened.set()
    batcher.close()


@needs_fork
def test_a_batcher_that_drains_is_closed_in_a_forked_child():
    batcher, gate = held()
    stream = batcher.stream("abc")
    assert gate.reached.wait(TIMEOUT)
    drain = threading.Thread(target=partial(batcher.close, drain=math.inf))
    drain.start()
    while batcher.state == "accepting":
        pass
    assert "ForkedError" in in_forked_child(lambda: batcher.stream("c"))
    stream.cancel()
    said = in_forked_child(lambda: (batcher.state, batcher.stream("c")))
    assert "ClosedError: the batcher was closed" in said
    gate.opened.set()
    drain.join(TIMEOUT)


@needs_lines
@pytest.mark.rule(9)
@pytest.mark.parametrize("drain", [None, 3600.0])
def test_a_close_that_is_broken_off_at_any_line_leaves_no_request_without_an_end(drain):
    files = {module.__file__ for module in (dispatcher, closing, ends, scheduler, upstream, waking)}
    for line in itertools.count(1):
        batcher = DynamicBatcher(
            lambda requests: iter([requests]), max_batch_size=9, batch_timeout=3600.0
        )
        streams = [batcher.stream(request) for request in "abc"]
        where = at_line(line, partial(batcher.close, drain=drain), files=files)
        if batcher.state != "accepting":  # or else nothing was asked for yet
            assert batcher.state == "closed", where
            assert not batcher._dispatcher.ends.closers, where
            for stream in streams:
                try:
                    list(stream)
                except ClosedError:
                    assert drain is None or where is not None
        batcher.close()
        figures = batcher.statistics()
        assert (figures.live, sum(figures.finished.values())) == (0, 3), where
        if where is None:
            break
    assert line > 20
