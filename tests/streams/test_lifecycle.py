"""Markers and streams between processes, at a program's end, and in the collector's hands."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import subprocess
import sys
import threading

import pytest

import batchstream
from batchstream import (
    EOS,
    SKIP,
    AsyncBatchedStream,
    BatchedStream,
    ClosedError,
    End,
    Fail,
    FinishReason,
    Last,
    Many,
    demux,
    token_ids,
)
from support import knobs
from support.programs import run_program
from support.reading import waiting_for
from support.sources import TIMEOUT, Gate, ScriptedSource, in_forked_child, needs_fork

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.rule(27)
@pytest.mark.parametrize("marker", [EOS, SKIP, FinishReason.LENGTH])
def test_marks_are_the_same_object_after_copy_and_every_pickle_protocol(marker):
    assert copy.copy(marker) is marker
    assert copy.deepcopy([marker])[0] is marker
    for protocol in PROTOCOLS:
        assert pickle.loads(pickle.dumps(marker, protocol)) is marker  # noqa: S301 - our own bytes


def send_back(connection):
    """Run in a spawned process: answer with what came, and whether it is still the mark."""
    received = connection.recv()
    connection.send((received, received is EOS))


@pytest.mark.rule(27)
def test_marks_are_the_same_object_in_a_spawned_process():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=send_back, args=(theirs,))
    child.start()
    ours.send(EOS)
    assert ours.poll(TIMEOUT)
    returned, was_the_mark = ours.recv()
    child.join(TIMEOUT)
    assert returned is EOS
    assert was_the_mark


@pytest.mark.rule(27)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_other_markers_survive_pickling(protocol):
    def there_and_back(value):
        return pickle.loads(pickle.dumps(value, protocol))  # noqa: S301 - our own bytes

    last = there_and_back(Last("x", "length", {"n": 1}))
    assert (last.output, last.reason, last.info) == ("x", FinishReason.LENGTH, {"n": 1})
    end = there_and_back(End(info={"n": 1}))
    assert (end.reason, end.info) == (FinishReason.EOS, {"n": 1})
    assert str(there_and_back(Fail(ValueError("no"))).error) == "no"
    assert there_and_back(Many([1, EOS])).outputs == (1, EOS)
    assert there_and_back(token_ids(2, 5))(5)
    assert there_and_back(token_ids(2, key=0))((2, -0.5))


@pytest.mark.rule(27)
def test_streams_and_batches_refuse_to_be_pickled_or_copied():
    batch = BatchedStream([["a"]], 1)
    for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="stream 0 cannot be pickled or copied"):
            refuse(batch[0])
        with pytest.raises(TypeError, match="a BatchedStream cannot be pickled or copied"):
            refuse(batch)


def test_markers_are_frozen_and_show_what_they_hold():
    last = Last("x", info={"n": 1})
    with pytest.raises(AttributeError, match=r"cannot (assign to|delete) field"):
        last.output = "y"
    with pytest.raises(AttributeError, match=r"cannot (assign to|delete) field"):
        del last.output
    assert repr(last) == "Last(output='x', reason=<FinishReason.EOS: 'eos'>, info={'n': 1})"
    assert [repr(EOS), repr(SKIP)] == ["EOS", "SKIP"]


@pytest.mark.parametrize("reason", ["stop", FinishReason.ERROR, None, 3])
def test_a_source_can_only_give_reasons_that_are_its_own(reason):
    for marker in (lambda: Last("x", reason), lambda: End(reason)):
        with pytest.raises(ValueError, match="one of 'eos', 'length', 'exhausted', 'cancelled'"):
            marker()


@pytest.mark.parametrize("error", ["text", ValueError, None])
def test_fail_takes_an_exception_instance(error):
    with pytest.raises(TypeError, match="Fail takes an exception instance"):
        Fail(error)


@pytest.mark.parametrize("outputs", ["text", b"bytes", 5])
def test_many_takes_an_iterable_that_is_no_text(outputs):
    with pytest.raises(TypeError):
        Many(outputs)


def test_many_reads_an_array_as_plain_numbers():
    numpy = pytest.importorskip("numpy")
    assert [type(n) for n in Many(numpy.array([1, 2])).outputs] == [int, int]


@pytest.mark.rule(27)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_use_in_a_forked_child_raises_and_the_parent_goes_on():
    source = ScriptedSource([[n, -n] for n in range(5)])
    batch = BatchedStream(source, 2)
    first, second = batch
    next(first)
    next(first)
    for use in (lambda: next(first), lambda: next(second), lambda: list(second)):
        assert in_forked_child(use).startswith("ForkedError: this batch was opened in another")
    by_time = BatchedStream(ScriptedSource([["a"]] * 3), 1)
    steps = by_time.steps()
    next(steps)
    assert in_forked_child(lambda: next(steps)).startswith("ForkedError")

    def leave():
        first.cancel()
        batch.close()
        return source.closed

    assert in_forked_child(leave) == "0"

    def read_behind_a_close():
        batch.close()
        return next(second)

    assert in_forked_child(read_behind_a_close).startswith("ForkedError")
    assert list(first) == [2, 3, 4]
    assert list(second) == [0, -1, -2, -3, -4]


@pytest.mark.rule(27)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_is_in_the_source_does_not_hang_the_child():
    gate = Gate()
    first, second = demux(ScriptedSource([["a", "x"]], gates={0: gate}), 2)
    reader = threading.Thread(target=lambda: next(first), daemon=True)
    reader.start()
    assert gate.reached.wait(TIMEOUT)
    assert in_forked_child(lambda: next(first)).startswith("ForkedError")
    assert in_forked_child(lambda: next(second)).startswith("ForkedError")
    gate.opened.set()
    reader.join(TIMEOUT)


@pytest.mark.rule(27)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_stream_that_another_thread_waits_for_at_a_fork_is_refused_as_forked():
    gate = Gate()
    batch = BatchedStream(ScriptedSource([["a"]], gates={0: gate}), 1, background=True)
    reader = threading.Thread(target=lambda: next(batch[0]), daemon=True)
    reader.start()
    assert gate.reached.wait(TIMEOUT)
    while not knobs.is_waited_for_in_threads(batch, 0):
        pass
    assert in_forked_child(lambda: next(batch[0])).startswith("ForkedError")
    assert in_forked_child(batch[0].drain) == "[]"
    gate.opened.set()
    reader.join(TIMEOUT)


@pytest.mark.rule(27)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_stream_that_a_task_waits_for_at_a_fork_is_refused_as_forked():
    async def main():
        going_on = asyncio.Event()

        async def source():
            await going_on.wait()
            yield ["a"]

        async with AsyncBatchedStream(source(), 1) as batch:
            receiving = await waiting_for(anext(batch[0]))
            answer = in_forked_child(lambda: _first_error_of(anext(batch[0])))
            assert answer.startswith("ForkedError"), answer
            going_on.set()
            assert await receiving == "a"

    asyncio.run(main())


def _first_error_of(receiving):
    """Run a receive up to its first wait, as no event loop of a parent runs in a child."""
    receiving.send(None)


PROGRAMS = {
    "abandoned in globals": """
        streams = batchstream.demux(source(), 2)
        next(streams[0])
    """,
    "abandoned in a cycle": """
        streams = list(batchstream.demux(source(), 2))
        next(streams[0])
        streams.append(streams)
        del streams
    """,
    "a batch never closed": """
        batch = batchstream.BatchedStream(source(), 2)
        next(batch[1])
    """,
    "read by time and left": """
        batch = batchstream.BatchedStream(source(), 2)
        steps = batch.steps()
        next(steps)
    """,
    "held by a module": """
        import math
        math.streams = batchstream.demux(source(), 2)
        next(math.streams[0])
    """,
}


@pytest.mark.rule(28)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_abandons_streams_exits_silently(name):
    program = """
        import batchstream
        def source():
            while True:
                yield ["a", "x"]
    """
    assert run_program(program, PROGRAMS[name]) == (0, "", "")


def test_the_traceback_of_the_cause_begins_in_the_source():
    def source():
        yield ["a"]
        raise ValueError("gone")

    [stream] = demux(source(), 1)
    next(stream)
    with pytest.raises(ValueError, match="gone") as caught:
        next(stream)
    first = caught.value.__cause__.__traceback__
    assert first.tb_frame.f_code.co_name == "source"
    assert first.tb_next is None


def test_importing_the_package_imports_no_framework():
    program = "import sys, batchstream; print(*sorted(sys.modules))"
    loaded = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    foreign = {"numpy", "torch", "litserve", "starlette", "fastapi", "ray", "asyncio", "trio"}
    assert not foreign & set(loaded)


def test_closed_error_is_the_librarys():
    assert issubclass(ClosedError, batchstream.BatchStreamError)
