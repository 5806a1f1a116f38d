"""Races between threads: the pump's, the consumers', and the ones that cancel or close.

Each scenario is run under many interleavings, see `interleaving`; that needs Python 3.12. Event
loops cannot take part, so here a thread that drives coroutines stands in for one.
"""

from __future__ import annotations

import operator
import threading
from contextlib import suppress
from itertools import count
from queue import SimpleQueue

import pytest

from batchstream import (
    AsyncBatchedStream,
    BatchedStream,
    ClosedError,
    ConcurrentConsumerError,
    FinishReason,
    Last,
)
from batchstream._eventloops.base import LoopClosedError
from support import knobs
from support.interleaving import explore_threads, run_together
from support.racing import assert_whole_or_too_slow, by_slot, is_prefix, outputs_of
from support.reading import read_blocking
from support.sources import ScriptedSource

STEPS = [["a", "x"], ["b", Last("y")], ["c", None], [None, None]]
EXPECTED = [["a", "b", "c"], ["x", "y"]]
ENDLESS = [[f"a{n}", f"x{n}"] for n in range(20)]  # more than any consumer reads
NUMBERS = [["0"], ["1"], ["2"], ["3"]]

SCHEDULES = {"opcode": 40, "line": 150}
"""How many interleavings are tried: of opcodes, which is slow, and of whole lines."""


FEW_SCHEDULES = {"opcode": 10, "line": 40}
"""How many are tried of scenarios that differ from another one in a part alone."""

MANY_SCHEDULES = {"line": 600}
"""How many it takes to strike between two given lines, in a scenario of few."""


def explore(scenario, schedules=SCHEDULES, **options):
    for granularity, number in schedules.items():
        explore_threads(scenario, number, granularity=granularity, **options)


class BoundedSource(ScriptedSource):
    """A source that is asked for a step only while every live stream has room for its output."""

    batch = None

    def send(self, live):
        if self.batch is not None:
            held = [knobs.buffered(stream) for stream in self.batch if stream.end is None]
            assert max(held, default=0) == 0, "asked for a step without room"
        return super().send(live)


def background(steps, size=2, **options):
    """Return a batch with room for one output in each stream, and its source."""
    source = BoundedSource(steps)
    batch = BatchedStream(source, size, background=True, **{"max_buffered": 1, **options})
    if options.get("on_overflow", "wait") == "wait":
        source.batch = batch
    return batch, source


def end(batch, source):
    """Close the batch, and make sure that nothing is left behind."""
    source.batch = None  # a cycle
    batch.close()
    assert source.closed == 1
    assert batch.live == ()
    assert not knobs.is_waited_for(batch)
    figures = batch.statistics()
    assert figures.opened == sum(figures.finished.values())
    for stream in batch:
        outputs, error = read_blocking(stream)
        # One that was live when its batch was closed says so, behind what it held.
        assert error is ClosedError or (outputs, error) == ([], None), "an output after the end"
        assert list(stream) == [], "an output after the end"


class Reader:
    """Reads a stream to its end, and records what it gives and raises."""

    def __init__(self, stream, receive=next):
        self.outputs = []
        self.errors = []
        self._stream = stream
        self._receive = receive

    def read(self):
        while True:
            try:
                output = self._receive(self._stream)
            except StopIteration:
                return
            except TimeoutError:
                continue
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)
            else:
                assert not self.errors, "an output came after an error"
                self.outputs.append(output)


def readers_of(batch, **options):
    return [Reader(stream, **options) for stream in batch]


def receiving_with_timeouts(times):
    """Return a way to receive that has a timeout so many times, and then none."""
    timeouts = iter([1.0] * times)
    return lambda stream: stream.receive(next(timeouts, None))


def assert_prefixes_of_endless(readers, *errors):
    for slot, reader in enumerate(readers):
        found = [type(error) for error in reader.errors]
        # A reader that comes far ahead of all others has read to the source's own end.
        assert found == [*errors] or (not found and len(reader.outputs) == len(ENDLESS))
        assert is_prefix(reader.outputs, [step[slot] for step in ENDLESS])


# ---- consumers in threads


@pytest.mark.rule(2)
def test_a_pump_that_waits_for_room_and_its_consumers_lose_and_repeat_nothing():
    def scenario():
        batch, source = background(STEPS)
        first, second = readers = readers_of(batch)
        run_together(first.read, second.read)
        assert outputs_of(readers) == EXPECTED
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(19)
def test_a_pump_that_begins_to_wait_as_an_output_is_received_is_woken():
    def scenario():
        batch, source = background(NUMBERS, 1)
        [reader] = readers_of(batch)
        run_together(reader.read)
        assert outputs_of([reader]) == [["0", "1", "2", "3"]]
        end(batch, source)

    explore(scenario, MANY_SCHEDULES)


@pytest.mark.rule(4)
def test_receives_that_time_out_at_any_time_lose_and_repeat_nothing(monkeypatch):
    knobs.watch_no_stalls(monkeypatch)  # a wait that is over at any time would be for ever

    def scenario():
        batch, source = background(STEPS[1:])
        first, second = readers = readers_of(batch, receive=receiving_with_timeouts(3))
        run_together(first.read, second.read)
        assert outputs_of(readers) == [["b", "c"], ["y"]]
        end(batch, source)

    explore(scenario, early_timeouts=True)


@pytest.mark.rule(4)
def test_drains_between_receives_lose_and_repeat_nothing():
    def scenario():
        batch, source = background(STEPS)
        first, second = readers = readers_of(batch)

        def drain_and_read():
            while True:
                first.outputs += batch[0].drain()
                output = next(batch[0], None)
                if output is None:
                    return
                first.outputs.append(output)

        run_together(drain_and_read, second.read)
        assert outputs_of(readers) == EXPECTED
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(12)
def test_a_stream_that_a_third_thread_cancels_gives_a_prefix_and_the_other_goes_on():
    def scenario():
        batch, source = background(STEPS)
        first, second = readers = readers_of(batch)
        late = []

        def cancel():
            batch.cancel(1)
            late.extend(knobs.ends_of(batch[1]))

        run_together(first.read, second.read, cancel)
        [outputs, others] = outputs_of(readers)
        assert outputs == EXPECTED[0]
        assert is_prefix(others, EXPECTED[1])
        assert len(late) in {1, 2}
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(11)
def test_a_pump_that_waits_for_an_unread_stream_goes_on_when_it_is_cancelled():
    def scenario():
        batch, source = background(STEPS)
        reader = Reader(batch[0])
        run_together(reader.read, batch[1].cancel)
        assert outputs_of([reader]) == [EXPECTED[0]]
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(25)
def test_a_pump_that_waits_for_a_stream_goes_on_when_that_is_dropped():
    def scenario():
        source = ScriptedSource(STEPS)
        streams = list(BatchedStream(source, 2, background=True, max_buffered=1))
        reader = Reader(streams[0])

        def drop():
            del streams[1]

        run_together(reader.read, drop)
        assert outputs_of([reader]) == [EXPECTED[0]]
        knobs.wait_until_closed(reader._stream)
        assert source.closed == 1

    explore(scenario)


@pytest.mark.rule(10)
def test_two_closings_and_two_consumers_end_and_close_the_source_once():
    def scenario():
        batch, source = background(ENDLESS)
        first, second = readers = readers_of(batch)

        def close():
            batch.close()
            assert source.closed == 1, "close did not wait for the source"

        run_together(first.read, second.read, close, close)
        assert_prefixes_of_endless(readers, ClosedError)
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(10)
def test_the_last_streams_are_cancelled_at_once_and_the_source_is_closed_once():
    def scenario():
        batch, source = background(ENDLESS)
        next(batch[0])
        run_together(batch[0].cancel, batch[1].cancel)
        knobs.wait_until_closed(batch)
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(10)
def test_a_batch_that_is_cancelled_as_it_begins_closes_its_source_once():
    def scenario():
        batch, source = background(ENDLESS)
        first, second = readers = readers_of(batch)
        run_together(first.read, second.read, batch[0].cancel, batch[1].cancel)
        assert_prefixes_of_endless(readers)
        knobs.wait_until_closed(batch)
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(5)
def test_an_error_comes_once_after_all_outputs_and_a_cancelled_stream_has_one_end():
    def scenario():
        batch, source = background([["a", "x"], ["b", "y"], ValueError("broken")])
        first, second = readers_of(batch)
        run_together(first.read, second.read, batch[1].cancel)
        assert first.outputs == ["a", "b"]
        assert [type(error) for error in first.errors] == [ValueError]
        assert is_prefix(second.outputs, ["x", "y"])
        assert len(second.errors) <= (batch[1].finish_reason == FinishReason.ERROR)
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(19)
def test_a_slow_stream_gives_what_it_holds_before_its_error_and_the_others_do_not_wait():
    def scenario():
        batch, source = background(STEPS, on_overflow="cancel")
        readers = readers_of(batch)
        run_together(*[reader.read for reader in readers])
        assert_whole_or_too_slow(readers, batch, EXPECTED)
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(2, 3)
def test_an_output_that_is_merged_as_it_is_received_is_not_lost_and_not_repeated():
    def scenario():
        steps = [[letter] for letter in "abcdefgh"]
        batch, source = background(steps, 1, on_overflow="merge", merge=operator.add)
        [reader] = readers_of(batch)
        run_together(reader.read)
        assert "".join(reader.outputs) == "abcdefgh"
        assert reader.errors == []
        end(batch, source)

    explore(scenario, FEW_SCHEDULES)


@pytest.mark.rule(2, 3, 12)
def test_a_stream_that_is_merged_as_it_is_cancelled_or_drained_gives_a_prefix():
    def scenario():
        batch, source = background(ENDLESS[:6], on_overflow="merge", merge=operator.add)
        first, second = readers_of(batch)
        drained = []
        run_together(
            first.read,
            lambda: drained.extend(batch[1].drain()),
            lambda: drained.extend(batch[1].drain()),
            batch[0].cancel,
        )
        second.read()
        assert "".join(drained + second.outputs) == "".join(step[1] for step in ENDLESS[:6])
        assert "".join(step[0] for step in ENDLESS[:6]).startswith("".join(first.outputs))
        end(batch, source)

    explore(scenario, FEW_SCHEDULES)


@pytest.mark.rule(9, 19)
def test_a_pump_that_waits_for_room_in_bytes_and_its_consumers_lose_and_repeat_nothing():
    def scenario():
        batch, source = background(STEPS, max_buffered=9, max_buffered_bytes=1)
        readers = readers_of(batch)
        run_together(*[reader.read for reader in readers])
        assert [reader.outputs for reader in readers] == EXPECTED
        end(batch, source)

    explore(scenario, FEW_SCHEDULES)


@pytest.mark.rule(21)
def test_one_of_two_consumers_at_a_stream_is_refused_and_no_output_goes_astray():
    def scenario():
        batch, source = background(STEPS)
        received = []

        def read():
            try:
                received.extend(batch[0])
            except ConcurrentConsumerError:
                return

        reader = Reader(batch[1])
        run_together(read, read, reader.read)
        received.extend(batch[0])
        assert sorted(received) == EXPECTED[0]
        assert outputs_of([reader]) == [EXPECTED[1]]
        end(batch, source)

    explore(scenario)


@pytest.mark.rule(5)
def test_by_time_every_slot_has_one_end_after_its_outputs_though_one_is_cancelled():
    def scenario():
        batch, source = background(STEPS)
        source.batch = None  # the bound is on deliveries here
        deliveries = []
        run_together(lambda: deliveries.extend(batch.steps()), batch[1].cancel)
        outputs, ends = by_slot(deliveries)
        assert [len(each) for each in ends] == [1, 1]
        assert outputs[0] == EXPECTED[0]
        assert is_prefix(outputs[1], EXPECTED[1])
        batch.close()
        assert source.closed == 1

    explore(scenario)


# ---- a thread that stands in for an event loop


class FakeWaiter:
    def __await__(self):
        yield self


class BrokenOff(BaseException):
    """What a receive is cancelled with."""


class FakeLoop:
    """What a pump and its consumers need of an event loop, for one task, in a thread.

    As with a real one, a wake-up that comes while the task runs is still there when it waits.
    """

    def __init__(self):
        self.key = self
        self.closed = False
        self.calls = SimpleQueue()

    def new_waiter(self):
        return FakeWaiter()

    def resume(self, waiters):
        if self.closed:
            raise LoopClosedError
        self.calls.put(waiters)

    async def wait(self, waiter, seconds):
        await waiter  # for ever: no wake-up may be made up for by a timeout

    async def checkpoint(self):
        pass

    def run(self, coroutine, *, cancels=()):
        """Run a coroutine; cancel each of its waits whose number, from 0, is in `cancels`."""
        try:
            waiter = self.step(coroutine.send, None)
            for wait in count():
                if wait in cancels:
                    waiter = self.step(coroutine.throw, BrokenOff())
                else:
                    while waiter not in self.calls.get():
                        pass
                    waiter = self.step(coroutine.send, None)
        except StopIteration as stop:
            return stop.value
        finally:
            coroutine.close()

    def step(self, function, argument):
        """Let a coroutine run until it waits."""
        _running_loops[threading.get_ident()] = self
        try:
            return function(argument)
        finally:
            del _running_loops[threading.get_ident()]


_running_loops = {}


@pytest.fixture
def _fake_loops(monkeypatch):
    knobs.set_current_loop(monkeypatch, lambda: _running_loops[threading.get_ident()])


@pytest.fixture
def _lasting_pauses(monkeypatch):
    """Let a pump wait for room until it is woken: no later check makes up for a lost wake-up."""
    knobs.set_pause(monkeypatch, -1)


def asynchronous(steps, size=2, **options):
    """Return a batch with room for one output in each stream, and its source."""
    source = BoundedSource(steps)
    source.batch = AsyncBatchedStream(source, size, **{"max_buffered": 1, **options})
    return source.batch, source


async def end_async(batch, source):
    source.batch = None
    await batch.aclose()
    assert source.closed == 1
    knobs.pump_of(batch).join()
    assert not knobs.is_waited_for(batch)


async def read_async(stream, into):
    while True:
        try:
            into.append(await anext(stream))
        except StopAsyncIteration:
            return
        except BrokenOff:
            continue


def in_loop(coroutine, **options):
    """Run a coroutine in a loop of its own."""
    return FakeLoop().run(coroutine, **options)


@pytest.mark.rule(4)
@pytest.mark.usefixtures("_fake_loops", "_lasting_pauses")
@pytest.mark.parametrize("cancels", [(), (0,), (0, 1, 2)], ids=["none", "first", "many"])
def test_receives_in_loops_lose_nothing_wherever_the_pump_strikes(cancels):
    def scenario():
        batch, source = asynchronous(STEPS)
        received = [], []
        run_together(
            lambda: in_loop(read_async(batch[0], received[0]), cancels=cancels),
            lambda: in_loop(read_async(batch[1], received[1])),
        )
        assert [*received] == EXPECTED
        in_loop(end_async(batch, source))

    explore(scenario)


@pytest.mark.rule(19)
@pytest.mark.usefixtures("_fake_loops", "_lasting_pauses")
def test_a_pump_that_begins_to_wait_as_an_output_is_received_in_a_loop_is_woken():
    def scenario():
        batch, source = asynchronous(NUMBERS, 1)
        received = []
        run_together(lambda: in_loop(read_async(batch[0], received)))
        assert received == ["0", "1", "2", "3"]
        in_loop(end_async(batch, source))

    explore(scenario, MANY_SCHEDULES)


@pytest.mark.rule(3)
@pytest.mark.usefixtures("_fake_loops")
def test_an_output_that_comes_with_the_end_as_it_is_looked_for_in_a_loop_is_not_lost():
    def scenario():
        batch, source = asynchronous([[Last("a"), Last("x")]])
        received = [], []
        run_together(
            lambda: in_loop(read_async(batch[0], received[0])),
            lambda: in_loop(read_async(batch[1], received[1])),
        )
        assert [*received] == [["a"], ["x"]]
        in_loop(end_async(batch, source))

    explore(scenario, MANY_SCHEDULES)


@pytest.mark.rule(12)
@pytest.mark.usefixtures("_fake_loops", "_lasting_pauses")
def test_a_receive_in_a_loop_is_woken_by_a_cancel_from_another_thread():
    def scenario():
        batch, source = asynchronous(ENDLESS)
        received = [], []
        run_together(
            lambda: in_loop(read_async(batch[0], received[0])),
            lambda: in_loop(read_async(batch[1], received[1])),
            batch[0].cancel,
            batch[1].cancel,
        )
        for slot, outputs in enumerate(received):
            assert is_prefix(outputs, [step[slot] for step in ENDLESS])
        in_loop(end_async(batch, source))

    explore(scenario)


@pytest.mark.rule(10)
@pytest.mark.usefixtures("_fake_loops", "_lasting_pauses")
def test_two_closings_in_two_loops_wait_for_the_source_and_close_it_once():
    def scenario():
        batch, source = asynchronous(ENDLESS)
        received = []

        async def close():
            await batch.aclose()
            assert source.closed == 1, "aclose did not wait for the source"

        async def receive():
            with suppress(ClosedError):
                await read_async(batch[0], received)

        run_together(
            lambda: in_loop(receive()),
            lambda: in_loop(close()),
            lambda: in_loop(close()),
        )
        assert is_prefix(received, [first for first, _ in ENDLESS])
        in_loop(end_async(batch, source))

    explore(scenario)


@pytest.mark.rule(22)
@pytest.mark.usefixtures("_fake_loops")
def test_a_loop_that_is_closed_while_it_waits_takes_only_its_own_stream_with_it():
    def scenario():
        batch, source = asynchronous(STEPS)
        received, others, kept = [], [], []

        def wait_and_close():
            loop, coroutine = FakeLoop(), read_async(batch[1], others)
            try:
                loop.step(coroutine.send, None)
            except StopIteration:
                return
            loop.closed = True
            kept.append(coroutine)  # it will not be run any more

        run_together(lambda: in_loop(read_async(batch[0], received)), wait_and_close)
        assert received == EXPECTED[0]
        assert is_prefix(others, EXPECTED[1])
        assert batch[1].finish_reason in {FinishReason.CANCELLED, FinishReason.EOS}
        in_loop(end_async(batch, source))
        for coroutine in kept:
            coroutine.close()

    explore(scenario)
