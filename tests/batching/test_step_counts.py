"""What metrics read of the steps that batches add up: while they run, and when they are over."""

from __future__ import annotations

import dis
import itertools
import sys
from collections import deque
from types import SimpleNamespace

from batchstream._batching.reporting.step_counts import StepCounts
from batchstream._batching.reporting.step_log import StepLog
from batchstream._batching.telemetry import step_sums
from batchstream._batching.telemetry.step_sums import CountsReader


def test_each_step_and_output_is_read_once_while_a_batch_goes_on_and_ends():
    core = SimpleNamespace(outputs=3)
    reader, counts = CountsReader(int), StepCounts(core)
    reader.add(counts)
    counts.steps, counts.live, counts.slot_steps, counts.capacity = 1.0, 2, 4, 4
    counts.gaps[1], counts.seconds = 2.0, 0.004
    sums = reader.take()
    assert (sums.steps, sums.live, sums.slot_steps, sums.outputs, sums.capacity) == (1, 2, 4, 3, 4)
    assert (sums.gaps[:3], sums.seconds) == ([0, 2, 0], 0.004)
    sums = reader.take()
    assert not any((sums.steps, sums.live, sums.outputs, *sums.gaps, sums.seconds))
    core.outputs, counts.steps = 5, 2.0
    counts.end()
    core.outputs = 9  # nothing is read of it any more
    assert (reader.take().outputs, reader.take().outputs) == (2, 0)
    assert not reader._batches


def test_each_reader_reads_all():
    core = SimpleNamespace(outputs=3)
    counts, readers = StepCounts(core), [CountsReader(int), CountsReader(int)]
    for reader in readers:
        reader.add(counts)
    assert readers[0].take().outputs == 3
    core.outputs = 5
    counts.end()
    assert [reader.take().outputs for reader in readers] == [2, 5]


def test_counts_that_another_thread_is_reading_are_left_to_that_one():
    core = SimpleNamespace(outputs=3)
    reader, counts = CountsReader(int), StepCounts(core)
    reader.add(counts)
    free, _ = reader._batches[counts]
    token = free.pop()  # as the other thread does
    counts.end()
    assert reader.take().outputs == 0
    free.append(token)
    assert reader.take().outputs == 3


def interrupt_behind_call(number, function):
    """Call a function, and raise behind the so-manyth call in this module of the package.

    A signal's exception strikes there, and not between other instructions.

    Returns:
        Whether there are so many calls.
    """
    left, before = number, {}

    def trace(frame, event, _):
        nonlocal left
        code = frame.f_code
        if code.co_filename != step_sums.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            last = before.get(frame)
            before[frame] = frame.f_lasti
            left -= last is not None and dis.opname[code.co_code[last]].startswith("CALL")
            if not left:
                sys.settrace(tracer)
                raise KeyboardInterrupt
        return trace

    tracer = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # before: Python 3.12 looks for it as tracing begins
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracer)
    return not left


def test_a_batch_is_read_on_though_an_interrupt_has_broken_a_read_off():
    for number in itertools.count(1):
        reader, counts = CountsReader(int), StepCounts(SimpleNamespace(outputs=1))
        reader.add(counts)
        counts.steps = 1.0
        was_interrupted = interrupt_behind_call(number, reader.take)
        if not was_interrupted:
            break
        counts.steps = 2.0
        assert reader.take().steps in {1, 2}, number  # what was read is lost, perhaps
    assert number > 5


def test_before_the_first_step_of_a_batch_is_no_gap_though_its_requests_had_outputs_before(
    monkeypatch,
):
    """As of requests that had given their slots back."""
    times = iter([10.0, 10.25])
    monkeypatch.setattr(
        "batchstream._batching.reporting.step_log.clock.monotonic", lambda: next(times)
    )
    reader, slots = CountsReader(int), (0, 1)
    metrics = SimpleNamespace(stepped=None, counts_readers=[reader])
    log = StepLog(SimpleNamespace(metrics=metrics), lambda *_: None)
    log.follow(SimpleNamespace(core=SimpleNamespace(outputs=0), departures=deque()))
    log.note(slots, 4)
    sums = reader.take()
    assert (sums.steps, sum(sums.gaps), sums.seconds) == (1, 0, 0)
    log.note(slots, 4)
    sums = reader.take()
    assert (sums.steps, sum(sums.gaps), sums.seconds) == (1, 2, 0.5)
