"""Two threads, and every place at which the first can be interrupted by the second.

The first thread is traced opcode by opcode. At the n-th opcode inside the package it stops, the
second thread runs to its end, and the first goes on: for n = 1, 2, 3, … until there is no n-th
opcode. That is every schedule with one switch, and each is the same at every run. Where the first
thread has the pump's role and the second would have to wait for it, the switch is put off.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

import batchstream
from batchstream import BatchedStream, BufferOverflowError, FinishReason, Last, Many
from support import knobs
from support.sources import TIMEOUT, ScriptedSource

PACKAGE = str(Path(batchstream.__file__).parent)


def enough(schedules):
    """Return how many schedules there are at least: fewer where much of the work is done in C."""
    return schedules // 4 if knobs.NATIVE else schedules


@contextmanager
def tracing(left, strike):
    """Call `strike` in this thread before the n-th opcode of the package and the next, until true.

    Most of the time goes into opcodes that are only counted: nothing else is done for them.
    """

    def enter_frame(frame, event, arg):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return at_event

    def at_event(frame, event, arg):
        nonlocal left
        if event == "opcode":
            left -= 1
            if left <= 0 and strike():
                sys.settrace(before)
        return at_event

    before = sys.gettrace()
    sys.settrace(enter_frame)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def monitoring_opcodes(left, strike):
    """Do the same from 3.12 on, where settrace begins late in code that was not traced before."""
    monitoring, tool = sys.monitoring, 4
    thread = threading.get_ident()

    def at_instruction(code, offset):
        nonlocal left
        if not code.co_filename.startswith(PACKAGE):
            return monitoring.DISABLE
        if threading.get_ident() == thread:
            left -= 1
            if left <= 0 and strike():
                monitoring.set_events(tool, 0)
        return None

    monitoring.use_tool_id(tool, "schedules")
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, at_instruction)
    monitoring.set_events(tool, monitoring.events.INSTRUCTION)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, None)
        monitoring.free_tool_id(tool)


from_opcode = tracing if sys.version_info < (3, 12) else monitoring_opcodes


class Switch:
    """Runs `first`, and `second` in another thread at the n-th opcode of the first."""

    def __init__(self, at, second, *, put_off):
        self.at = at
        self.second = second
        self.put_off = put_off
        self.done = False
        self.error = None

    def run(self, first):
        with from_opcode(self.at, self.strike):
            first()
        if self.error is not None:
            raise self.error

    def strike(self):
        """Run `second`, unless it is put off; return whether that was done."""
        if not self.done and not self.put_off():
            self.done = True
            thread = threading.Thread(target=self.run_second, daemon=True)
            thread.start()
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "the second thread hangs"
        return self.done

    def run_second(self):
        try:
            self.second()
        except BaseException as error:  # noqa: BLE001 - raised in the first thread
            self.error = error


def all_schedules(scenario, *, waits):
    """Run a scenario once for each place of the switch; return how many there were.

    Args:
        scenario: Returns `batch, first, second, check`: two functions to run, and one for after.
        waits: Whether the second thread may wait for the role, so that the switch is put off.
    """
    count = 0
    while True:
        count += 1
        batch, first, second, check = scenario()
        role = knobs.role_of(batch)
        switch = Switch(count, second, put_off=role.locked if waits else lambda: False)
        switch.run(first)
        if not switch.done:
            return count
        check()


STEPS = {
    "last and mark": [["a", "x"], ["b", Last("y")], [None, None]],
    "many": [[Many(["a", "b"]), "x"], ["c", Many(["y", "z"])], [None, Last("!")]],
    "end of source": [["a", "x"], ["b", "y"]],
}
EXPECTED = {
    "last and mark": (["a", "b"], ["x", "y"]),
    "many": (["a", "b", "c"], ["x", "y", "z", "!"]),
    "end of source": (["a", "b"], ["x", "y"]),
}


@pytest.mark.rule(2)
@pytest.mark.parametrize("steps", STEPS)
def test_two_consumers_lose_and_repeat_nothing_wherever_one_interrupts_the_other(steps):
    def scenario():
        source = ScriptedSource(STEPS[steps])
        batch = BatchedStream(source, 2)
        received = {}

        def read(slot):
            received[slot] = list(batch[slot])

        def check():
            assert (received[0], received[1]) == EXPECTED[steps]
            assert source.closed == 1
            assert len(source.sent) == 3

        return batch, lambda: read(0), lambda: read(1), check

    assert all_schedules(scenario, waits=True) > enough(500)


@pytest.mark.rule(2)
def test_a_drain_interrupted_by_a_pull_loses_and_repeats_nothing():
    def scenario():
        source = ScriptedSource(STEPS["many"])
        batch = BatchedStream(source, 2)
        received = []

        def drain_and_read():
            received.extend(batch[1].drain())
            received.extend(islice(batch[1], 1))
            received.extend(batch[1].drain())
            received.extend(batch[1])

        return (
            batch,
            drain_and_read,
            lambda: list(batch[0]),
            lambda: received == ["x", "y", "z", "!"] or pytest.fail(str(received)),
        )

    assert all_schedules(scenario, waits=True) > enough(500)


@pytest.mark.rule(2, 12)
def test_a_drain_that_is_interrupted_by_a_cancel_takes_all_or_nothing():
    def scenario():
        batch = BatchedStream(ScriptedSource([["a", "x"], ["b", "y"], ["c", "z"]]), 2)
        assert list(batch[0]) == ["a", "b", "c"]
        drained = []
        return (
            batch,
            lambda: drained.extend(batch[1].drain()),
            batch[1].cancel,
            lambda: drained in ([], ["x", "y", "z"]) or pytest.fail(str(drained)),
        )

    assert all_schedules(scenario, waits=False) > enough(10)


@pytest.mark.rule(1)
def test_one_step_serves_two_consumers_wherever_one_interrupts_the_other():
    def scenario():
        source = ScriptedSource([["a", "x"], ["b", "y"]])
        batch = BatchedStream(source, 2)
        received = []

        def check():
            assert sorted(received) == ["a", "x"]
            assert source.pulled == 1, "pulled for a stream that had been served"

        return (
            batch,
            lambda: received.append(next(batch[0])),
            lambda: received.append(next(batch[1])),
            check,
        )

    assert all_schedules(scenario, waits=True) > enough(100)


@pytest.mark.rule(12)
@pytest.mark.parametrize("buffered", [0, 3])
def test_a_receive_that_starts_after_a_cancel_sees_the_end_wherever_it_struck(buffered):
    def scenario():
        source = ScriptedSource([["a", "x"], ["b", "y"], ["c", "z"], [None, None]])
        batch = BatchedStream(source, 2)
        assert list(islice(batch[1], buffered)) == ["x", "y", "z"][:buffered]
        cancelled = threading.Event()
        late = []

        def read():
            while True:
                begun_after = cancelled.is_set()
                output = next(batch[0], None)
                if output is None:
                    return
                if begun_after:
                    late.append(output)

        def cancel():
            batch[0].cancel()
            cancelled.set()

        def check():
            assert late == []
            assert batch[0].finish_reason in {FinishReason.CANCELLED, FinishReason.EOS}
            assert next(batch[0], "end") == "end"
            assert list(batch[1]) == ["x", "y", "z"][buffered:]
            assert source.closed == 1

        return batch, read, cancel, check

    assert all_schedules(scenario, waits=False) > enough(100)


@pytest.mark.rule(11)
def test_a_cancel_interrupted_by_other_consumers_is_settled_all_the_same():
    def scenario():
        source = ScriptedSource([["a", "x", 1], ["b", "y", 2], [None, None, 3], [None, None, None]])
        batch = BatchedStream(source, 3)
        received = []

        def check():
            assert received == ["a", "b"]
            assert list(batch[1]) == []
            assert list(batch[2]) == [1, 2, 3]
            assert source.sent[-1] == (2,)
            assert source.closed == 1

        return batch, batch[1].cancel, lambda: received.extend(batch[0]), check

    assert all_schedules(scenario, waits=True) > enough(20)


@pytest.mark.rule(11)
def test_a_full_stream_that_was_cancelled_stops_no_receive_wherever_the_cancel_is():
    def scenario():
        source = ScriptedSource([["a", "x"], ["b", "y"], ["c", "z"]])
        batch = BatchedStream(source, 2, max_buffered=1)
        received = [next(batch[0])]

        def receive():
            ended = batch[1].finish_reason is not None
            try:
                received.append(next(batch[0]))
            except BufferOverflowError:
                assert not ended, "refused for a stream that has ended"

        def check():
            assert [*received, *batch[0]] == ["a", "b", "c"]
            assert list(batch[1]) == []

        return batch, batch[1].cancel, receive, check

    assert all_schedules(scenario, waits=True) > enough(50)


@pytest.mark.rule(10)
@pytest.mark.parametrize("deed", ["cancelling", "closing"])
def test_a_cancel_and_what_ends_the_other_stream_at_once_close_the_source_once(deed):
    def scenario():
        source = ScriptedSource([["a", "x"]] * 3)
        batch = BatchedStream(source, 2)
        next(batch[0])

        def check():
            assert source.closed == 1
            assert batch.live == ()
            assert not knobs.departures_of(batch)

        ends = batch[0].cancel if deed == "cancelling" else batch.close
        return batch, ends, batch[1].cancel, check

    assert all_schedules(scenario, waits=False) > enough(50)


@pytest.mark.rule(13)
def test_a_cancel_from_another_thread_during_a_step_is_sent_with_the_next():
    def scenario():
        source = ScriptedSource([["a", "x"], ["b", "y"], ["c", "z"], [None, None]])
        batch = BatchedStream(source, 2)
        steps_when_cancelled = []

        def cancel():
            batch[1].cancel()
            steps_when_cancelled.append(len(source.sent))

        def check():
            [count] = steps_when_cancelled
            assert all(live in {None, (0,)} for live in source.sent[count:][1:])
            assert source.closed == 1

        return batch, lambda: list(batch[0]), cancel, check

    assert all_schedules(scenario, waits=False) > enough(500)
