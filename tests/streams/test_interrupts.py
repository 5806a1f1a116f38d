"""Signals and interrupts in the midst of a receive."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
from contextlib import suppress
from functools import partial

import pytest
import trio

from batchstream import (
    AsyncBatchedStream,
    BatchedStream,
    Channel,
    ClosedError,
    FinishReason,
    Last,
    SourceError,
    demux,
)
from support import knobs
from support.forms import pump_threads
from support.interrupts import at_line, needs_lines
from support.reading import read_blocking
from support.sources import TIMEOUT, Gate, ScriptedSource

# ---- where consumers pull


needs_signals = pytest.mark.skipif(
    not hasattr(signal, "pthread_kill"), reason="a signal cannot be sent to a thread here"
)


@pytest.fixture
def on_signal():
    """Set what happens at a signal, given the interrupted frame; return what sends it."""
    numbers = (signal.SIGUSR1, signal.SIGVTALRM)
    before = [signal.getsignal(number) for number in numbers]

    def handle(action, number=signal.SIGUSR1):
        signal.signal(number, lambda _, frame: action(frame))
        return lambda: signal.pthread_kill(threading.main_thread().ident, number)

    yield handle
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.rule(4)
@needs_signals
def test_a_receive_broken_off_while_another_thread_pulls_loses_nothing(on_signal):
    class BrokenOffError(Exception):
        pass

    gate = Gate()
    waiting = threading.Event()

    def break_off(frame):
        if waiting.is_set() and frame.f_code is knobs.CODE_OF_PULL:
            waiting.clear()
            raise BrokenOffError

    source = ScriptedSource([["a", "x"], ["b", "y"], [None, None]], gates={1: gate})
    send = on_signal(break_off)
    first, second = demux(source, 2)
    assert [next(first), next(second)] == ["a", "x"]
    received = []
    reader = threading.Thread(target=lambda: received.extend(first), daemon=True)
    reader.start()
    assert gate.reached.wait(TIMEOUT)

    def send_until_it_strikes():
        while waiting.is_set():
            send()

    for _ in range(3):
        waiting.set()
        sender = threading.Thread(target=send_until_it_strikes, daemon=True)
        sender.start()
        with pytest.raises(BrokenOffError):
            next(second)
        sender.join(TIMEOUT)
    gate.opened.set()
    assert list(second) == ["y"]
    reader.join(TIMEOUT)
    assert received == ["b"]


@needs_lines
@pytest.mark.rule(4)
@needs_signals
def test_a_receive_broken_off_anywhere_in_the_package_loses_at_most_its_own_output(on_signal):
    class BrokenOffError(Exception):
        pass

    places = ("__next__", "_wait")

    def break_off(frame):
        if frame.f_code.co_name in places and "batchstream" in frame.f_code.co_filename:
            raise BrokenOffError

    count = 100_000
    numbers = itertools.count()
    [stream] = demux(([next(numbers)] for _ in range(count)), 1)
    received, broken_off = [], 0
    on_signal(break_off, signal.SIGVTALRM)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0001, 0.0001)
    try:
        while stream.finish_reason is None:
            try:
                received.extend(itertools.islice(stream, 1))
            except BrokenOffError:
                broken_off += 1
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    assert received == sorted(set(received))  # in order, and none twice
    assert count - len(received) <= broken_off
    assert broken_off > 0


@pytest.mark.rule(12)
@needs_signals
def test_a_stream_may_be_cancelled_from_a_signal_handler_that_interrupts_the_pump(on_signal):
    streams = []
    send = on_signal(lambda _: streams[1].cancel())

    def source():
        yield ["a", "x"]
        send()
        live = yield ["b", "y"]
        assert live == (0,)
        yield [None, None]

    streams += demux(source(), 2)
    assert next(streams[1]) == "x"
    assert list(streams[0]) == ["a", "b"]
    assert list(streams[1]) == []
    assert streams[1].finish_reason is FinishReason.CANCELLED


@pytest.mark.rule(9, 10)
@pytest.mark.parametrize("error", [None, OSError("cannot free")])
def test_after_an_interrupt_anywhere_in_closing_the_batch_can_be_closed_and_used(error, unheard):
    def close(batch):
        with suppress(OSError):
            batch.close()

    for line in itertools.count(1):
        source = ScriptedSource([["a"]] * 2, raise_at_close=error)
        batch = BatchedStream(source, 1)
        steps = batch.steps()
        next(steps)
        where = at_line(line, partial(close, batch), within=knobs.CODE_OF_CLOSE)
        close(batch)
        assert read_blocking(steps)[1] is ClosedError, where
        assert (source.closed, batch.live) == (1, ()), where
        if where is None:
            break
    assert line > 10
    assert set(unheard) <= {error}


@needs_lines
@pytest.mark.rule(4)
def test_an_interrupt_anywhere_in_a_receive_in_trio_loses_at_most_its_own_output():
    async def source():
        for number in range(4):
            yield [number]

    async def read_on(received):
        async with AsyncBatchedStream(source(), 1, max_buffered=1) as batch:
            while True:
                try:
                    received.append(await anext(batch[0]))
                except StopAsyncIteration:
                    return
                except KeyboardInterrupt:  # trio raises it in the task that runs
                    pass

    for line in itertools.count(1):
        received = []
        where = at_line(
            line, partial(trio.run, read_on, received), within=knobs.CODE_OF_ASYNC_RECEIVE
        )
        assert received == sorted(set(received)), where
        assert len(received) >= 3, where
        if where is None:
            break
    assert line > 10


@pytest.mark.rule(12, 13)
@pytest.mark.parametrize("form", knobs.CODES_OF_CANCEL)
@pytest.mark.parametrize("again", ["cancel", "close"])
def test_a_cancel_that_is_interrupted_anywhere_can_be_made_again(form, again):
    for line in itertools.count(1):
        source = ScriptedSource([["a", "x"]] * 3)
        batch = BatchedStream(source, 2, background=form == "background", max_buffered=2)
        assert next(batch[0]) == "a"
        batch[0].cancel()
        where = at_line(
            line,
            batch[1].cancel,
            files=knobs.files_of_pumps(),
            within=knobs.CODES_OF_CANCEL[form],
        )
        getattr(batch[1], again)()
        assert list(batch[1]) == [], where
        assert batch.live == (), where
        if form == "background":
            knobs.wait_until_closed(batch)
        assert source.closed == 1, where
        if where is None:
            break
    assert line > 10


@pytest.mark.rule(12, 14)
@pytest.mark.parametrize("cancel", ["cancel", "close"])
def test_an_interrupt_as_a_source_that_never_began_is_closed_reaches_the_caller(unheard, cancel):
    for line in itertools.count(1):
        source = ScriptedSource([["a"]])
        batch = BatchedStream(source, 1, background=True)
        interrupted = []

        def call(batch=batch, interrupted=interrupted):
            try:
                getattr(batch if cancel == "close" else batch[0], cancel)()
            except KeyboardInterrupt:
                interrupted.append(True)

        where = at_line(line, call, files=knobs.files_of_pumps(), within=knobs.CODE_OF_DRAINING)
        assert interrupted == ([] if where is None else [True]), where
        closed = cancel == "close" and batch[0].finish_reason is FinishReason.ERROR
        assert read_blocking(batch[0]) == ([], ClosedError if closed else None), where
        batch.close()
        assert batch.live == (), where
        if where is None:
            break
    assert line > 10
    assert unheard == []


NEVER_READ = {
    "cancel": lambda batch: batch[0].cancel(),
    "close": lambda batch: batch.close(),
    "drop": lambda _: None,
}
"""How a batch is ended after the call that was broken off."""


@pytest.mark.rule(10, 12)
@pytest.mark.parametrize("again", NEVER_READ)
@pytest.mark.parametrize("first", ["cancel", "close"])
@pytest.mark.parametrize("size", [1, None], ids=["in the caller", "in its thread"])
def test_a_batch_that_was_never_read_is_closed_whatever_line_its_end_is_broken_off_at(
    size, first, again, unheard
):
    for line in itertools.count(1):
        source = ScriptedSource([["a"]])
        batch = BatchedStream(source, size, background=True)
        where = at_line(line, partial(NEVER_READ[first], batch), files=knobs.files_of_pumps())
        NEVER_READ[again](batch)
        closed = knobs.closed_of(batch)
        del batch
        for thread in pump_threads():
            thread.join(TIMEOUT)
            assert not thread.is_alive(), where
        assert (closed.is_set, source.closed) == (True, 1), where
        if where is None:
            break
    assert line > 10
    assert unheard == []


@pytest.mark.rule(10, 12)
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("again", ["cancel", "close", "drop"])
def test_in_a_loop_such_a_batch_is_closed_as_well(loop, again, unheard):
    class Source:
        closed = 0

        def __aiter__(self):
            return self

        async def aclose(self):
            self.closed += 1

        async def __anext__(self):
            raise AssertionError("the source was asked for a step")

    async def break_off(source, line):
        batch = AsyncBatchedStream(source, 1)
        where = at_line(line, batch[0].cancel, files=knobs.files_of_pumps())
        closed = knobs.closed_of(batch)
        if again == "close":
            await batch.aclose()
        elif again == "cancel":
            batch[0].cancel()
        del batch
        await knobs.wait_in_loop(closed)
        return where

    for line in itertools.count(1):
        source = Source()
        if loop == "trio":
            where = trio.run(break_off, source, line)
        else:
            where = asyncio.run(break_off(source, line))
        assert source.closed == 1, where
        if where is None:
            break
    assert line > 10
    assert unheard == []


@pytest.mark.rule(9, 12)
@pytest.mark.parametrize("times", [1, 2])
def test_a_drop_that_is_broken_off_is_made_once_more_and_then_left_to_the_next_call(times):
    """Once more at once, as a thread that has found the pump about to be dropped waits for it."""
    source = ScriptedSource([["a"]])
    batch = BatchedStream(source, 1, background=True)
    knobs.break_off_drops(batch, times, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        batch[0].cancel()
    assert source.closed == (times == 1)
    batch[0].cancel()
    assert source.closed == 1


@pytest.mark.rule(4, 9)
@pytest.mark.parametrize("size", [1, None], ids=["without a thread", "with its thread"])
def test_a_receive_that_is_broken_off_as_it_starts_the_source_can_be_made_again(size):
    for line in itertools.count(1):
        source = ScriptedSource([["a"], ["b"]])
        batch = BatchedStream(source, size, background=True)
        where = at_line(line, partial(knobs.start, batch), files=knobs.files_of_pumps())
        outputs, error = read_blocking(batch[0])
        assert (outputs, error) in ((["a", "b"], None), ([], SourceError)), where
        batch.close()
        assert source.closed == 1, where
        if where is None:
            break
    assert line > 5


@pytest.mark.rule(12, 14)
def test_an_interrupt_out_of_the_clean_up_of_a_source_that_never_began_reaches_the_caller(unheard):
    source = ScriptedSource([["a"]], raise_at_close=KeyboardInterrupt())
    batch = BatchedStream(source, 1, background=True)
    with pytest.raises(KeyboardInterrupt):
        batch[0].cancel()
    assert list(batch[0]) == []
    batch.close()
    assert (source.closed, unheard) == (1, [])


@pytest.mark.rule(13, 15)
def test_a_failing_that_is_interrupted_anywhere_can_be_made_again():
    error = ValueError("too late")
    for line in itertools.count(1):
        source = ScriptedSource([["a", "x"]] * 3)
        batch = BatchedStream(source, 2, background=True, max_buffered=2)
        assert next(batch[0]) == "a"
        batch[0].cancel()
        fail = partial(knobs.fail_from_outside, batch[1], error)
        where = at_line(line, fail, files=knobs.files_of_pumps(), within=knobs.CODE_OF_FAILING)
        fail()
        assert batch.live == (), where
        knobs.wait_until_closed(batch)
        assert batch[1].end.error is error, where
        assert source.closed == 1, where
        if where is None:
            break
    assert line > 10


@needs_lines
@pytest.mark.rule(4)
def test_an_interrupt_anywhere_in_a_drain_keeps_what_was_buffered():
    for line in itertools.count(1):
        first, second = demux([["a", "x"], ["b", "y"], ["c", "z"]], 2)
        assert list(first) == ["a", "b", "c"]
        where = at_line(line, second.drain, within=knobs.CODE_OF_DRAIN)
        if where is None:
            break
        assert list(second) == ["x", "y", "z"], where
    assert line > 5


@pytest.mark.rule(2)
@pytest.mark.parametrize("first", ["by time", "by slot"])
def test_an_interrupt_as_the_view_is_decided_lets_no_receive_by_the_other_view_pass(first):
    for line in itertools.count(1):
        batch = BatchedStream([["a", "x"], ["b", "y"]], 2)
        by_time, by_slot = batch.steps(), batch[1]
        mine, other = (by_time, by_slot) if first == "by time" else (by_slot, by_time)
        where = at_line(line, partial(next, mine), within=knobs.CODE_OF_VIEW)
        if where is None:
            break
        results = [read_blocking(other), read_blocking(mine)]
        assert results.count(([], RuntimeError)) == 1, where
        assert any(outputs and error is None for outputs, error in results), where
    assert line > 3


@needs_lines
@pytest.mark.rule(10, 14)
@pytest.mark.parametrize("place", knobs.CODES_OF_ENDS)
def test_an_interrupt_as_streams_end_ends_the_others_and_closes_the_source(place):
    steps = {
        "the source has ended": [["a", "x", 0]],
        "a step has an end mark": [["a", "x", 0], [Last("b"), Last("y"), 1]],
        "a step is none": [["a", "x", 0], ["b"]],
    }
    for line in itertools.count(1):
        source = ScriptedSource(steps[place])
        batch = BatchedStream(source, 3)
        assert [next(stream) for stream in batch] == ["a", "x", 0]
        where = at_line(line, partial(read_blocking, batch[2]), within=knobs.CODES_OF_ENDS[place])
        if where is None:
            break
        assert (source.closed, batch.live) == (1, ()), where
        for stream in batch:
            assert read_blocking(stream) == ([], SourceError), where
    assert line > 10


# ---- where a thread runs the source


@pytest.mark.rule(10)
@pytest.mark.parametrize("form", [BatchedStream, AsyncBatchedStream])
def test_an_interrupt_as_the_first_step_is_asked_for_ends_the_thread_and_closes_the_source(form):
    async def enter(source):
        async with AsyncBatchedStream(source):
            pass

    def open_and_close(source):
        if form is AsyncBatchedStream:
            asyncio.run(enter(source))
        else:
            BatchedStream(source, background=True).close()

    for line in itertools.count(1):
        source = ScriptedSource([["a"]])
        where = at_line(line, partial(open_and_close, source), within=knobs.CODE_OF_FIRST_STEP)
        for thread in pump_threads():
            thread.join(TIMEOUT)
            assert not thread.is_alive(), where
        assert source.closed == 1, where
        if where is None:
            break
    assert line > 4


@pytest.mark.rule(4)
def test_a_pull_interrupted_at_any_line_leaves_the_next_receive_alone():
    gate = Gate()
    before = sys.gettrace()

    def receive_interrupted_at(line):
        def interrupt(frame, event, _):
            if event == "line" and frame.f_lineno == line:
                sys.settrace(before)
                raise KeyboardInterrupt
            return interrupt

        sys.settrace(lambda frame, *_: interrupt if frame.f_code is knobs.CODE_OF_WAIT else None)
        try:
            stream.receive(0)
        finally:
            sys.settrace(before)

    source = ScriptedSource([["a"], ["b"]], gates={1: gate})
    with BatchedStream(source, 1, background=True) as batch:
        (stream,) = batch
        assert next(stream) == "a"
        try:
            for line in sorted({line for _, _, line in knobs.CODE_OF_WAIT.co_lines() if line}):
                with pytest.raises((KeyboardInterrupt, TimeoutError)):
                    receive_interrupted_at(line)
                with pytest.raises(TimeoutError):
                    stream.receive(0)
        finally:
            gate.opened.set()
        assert list(stream) == ["b"]


@pytest.mark.rule(14)
@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal to itself")
def test_an_interrupt_of_a_waiting_consumer_loses_no_output():
    gate = Gate()

    def interrupt():
        assert gate.reached.wait(TIMEOUT)
        while not knobs.waiters_in_threads(batch):
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGINT)

    source = ScriptedSource([["a"], ["b"]], gates={1: gate})
    with BatchedStream(source, 1, background=True) as batch:
        (stream,) = batch
        assert next(stream) == "a"
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        interrupter.join(TIMEOUT)
        gate.opened.set()
        assert list(stream) == ["b"]


# ---- where a producer pushes


PUSHED = {
    "put": lambda channel: channel.put([2, 2]),
    "put that ends": lambda channel: channel.put([None, None]),
    "end": lambda channel: channel.end(0),
    "fail": lambda channel: channel.fail(ValueError("of the producer")),
    "close": lambda channel: channel.close(),
}
"""What a producer does that may be broken off."""


@pytest.mark.rule(9)
@pytest.mark.parametrize("name", PUSHED)
@pytest.mark.parametrize("again", ["the same", "close", "drop"])
def test_a_channel_ends_whatever_line_a_call_of_its_producer_is_broken_off_at(name, again, unheard):
    """And each stream gets a prefix of what was put."""
    for line in itertools.count(1):
        channel = Channel(2)
        streams = channel.streams()
        closed = knobs.closed_of(channel)
        channel.put([1, 1])
        where = at_line(line, partial(PUSHED[name], channel), files=knobs.files_of_pushes())
        if again == "the same":
            with suppress(ClosedError):
                PUSHED[name](channel)
        if again == "close" or name in {"put", "end"}:
            channel.close()
        del channel
        assert closed.is_set, where
        for stream in streams:
            outputs, _ = read_blocking(stream)
            assert outputs in ([1], [1, 2], [1, 2, 2]), where
        if where is None:
            break
    assert line > 10
    assert {type(error) for error in unheard} <= {KeyboardInterrupt}


@pytest.mark.rule(9)
@pytest.mark.parametrize("name", ["put", "end"])
def test_what_another_thread_orders_meanwhile_is_done_whatever_line_a_call_is_broken_off_at(
    name, unheard
):
    """It finds the turn taken, does not wait, and makes no other call."""
    for line in itertools.count(1):
        channel = Channel(2)
        streams = channel.streams()

        def close_and_interrupt(channel=channel):
            other = threading.Thread(target=channel.close, daemon=True)
            other.start()
            other.join(TIMEOUT)
            assert not other.is_alive()
            raise KeyboardInterrupt

        call = partial(PUSHED[name], channel)
        where = at_line(line, call, close_and_interrupt, files=knobs.files_of_pushes())
        if where is None:
            break
        assert knobs.closed_of(channel).is_set, where
        assert [stream.end is None for stream in streams] == [False, False], where
    assert line > 10
    assert {type(error) for error in unheard} <= {KeyboardInterrupt}


@pytest.mark.rule(9)
@needs_signals
def test_a_put_that_is_broken_off_as_it_waits_for_room_leaves_its_step_out(on_signal):
    class BrokenOffError(Exception):
        pass

    def break_off(_):
        if knobs.is_paused(channel) and not broken_off:
            broken_off.append(True)
            raise BrokenOffError

    def send_until_it_strikes():
        while not broken_off:
            send()

    broken_off = []
    channel = Channel(1, max_buffered=1)
    [stream] = channel.streams()
    channel.put([1])
    send = on_signal(break_off)
    sender = threading.Thread(target=send_until_it_strikes, daemon=True)
    sender.start()
    with pytest.raises(BrokenOffError):
        channel.put([2])
    sender.join(TIMEOUT)
    assert next(stream) == 1
    assert channel.put([3]) == (0,)
    channel.close()
    assert list(stream) == [3]
