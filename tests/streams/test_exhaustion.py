"""Receives that run out of stack or of memory in the midst of a step."""

from __future__ import annotations

import itertools
import sys

import pytest

from batchstream import BatchedStream, Last, SourceError
from support.sources import in_forked_child, needs_fork

try:
    import _testcapi as memory
except ImportError:
    memory = None

pytestmark = pytest.mark.rule(2, 9)

STEPS = 6


def generator():
    return ([n, n] for n in range(STEPS))


def with_a_step_that_is_not_plain():
    for n in range(STEPS):
        yield [n, n] if n < STEPS - 1 else [Last(n), Last(n)]


SOURCES = [generator, with_a_step_that_is_not_plain]


def rest_of(stream):
    return list(stream)


def rest_of_deliveries(received, deliveries):
    """Return the second slot's outputs, and raise its error, of which a delivery tells."""
    outputs = []
    for delivery in itertools.chain(received, deliveries):
        outputs += [output for slot, output in delivery.outputs if slot == 1]
        for _, end in delivery.ends:
            if end.error is not None:
                raise end.error
    return outputs


def assert_nothing_is_lost_in_silence(batch, receive, where, *, by_time):
    """Break a receive off; the other stream, or the deliveries, are whole or end in an error."""
    reader = batch.steps() if by_time else batch[0]
    received = []
    try:
        received.append(receive(reader))
    except (RecursionError, MemoryError, SourceError):
        pass
    try:
        got = rest_of_deliveries(received, reader) if by_time else rest_of(batch[1])
    except (RecursionError, MemoryError, SourceError):
        return
    assert got == list(range(STEPS)), where


def lowest_limit():
    """The lowest recursion limit that can be set at this depth."""
    limit = 10
    while True:
        try:
            sys.setrecursionlimit(limit)
        except RecursionError:
            limit += 1
        else:
            return limit


def receives_near_the_recursion_limit(source, *, by_time):
    normal = sys.getrecursionlimit()

    def receive(reader):
        try:
            sys.setrecursionlimit(lowest_limit() + room)
            return next(reader)
        finally:
            sys.setrecursionlimit(normal)

    for room in range(40):
        batch = BatchedStream(source(), size=2)
        assert_nothing_is_lost_in_silence(batch, receive, room, by_time=by_time)


def receives_without_memory(source, *, by_time):
    def receive(reader):
        try:
            memory.set_nomemory(first, first + length)
            return next(reader)
        finally:
            memory.remove_mem_hooks()

    for length in (1, 5, 10, 30):
        for first in range(1, 60):
            batch = BatchedStream(source(), size=2)
            where = (first, length)
            assert_nothing_is_lost_in_silence(batch, receive, where, by_time=by_time)


@needs_fork
@pytest.mark.parametrize("by_time", [False, True])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "receives",
    [
        receives_near_the_recursion_limit,
        pytest.param(
            receives_without_memory,
            marks=pytest.mark.skipif(memory is None, reason="this Python has no _testcapi"),
        ),
    ],
)
def test_a_receive_that_runs_out_loses_no_step_in_silence(receives, source, by_time, monkeypatch):
    # Finalizers have no stack or memory either, of what the collector happens to find there.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    # In a process without other threads, as the threads of the test runner would run out as well.
    assert in_forked_child(lambda: receives(source, by_time=by_time)) == "None"
