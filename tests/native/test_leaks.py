"""What the native core leaves behind: nothing, whatever was done, and however it came out."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
import weakref
from contextlib import suppress

import pytest

from batchstream import EOS, Fail, Many, demux
from support import knobs
from support.native_work import WORKS, InLoop, Output, Work
from support.natively import needs_native

pytestmark = needs_native

ROUNDS = 100
"""How often something is done between two looks."""

LOOKS = 5
"""How many looks it takes at most until nothing more is left behind: caches fill up."""

JITTER = ROUNDS // 4


@pytest.fixture
def no_collection():
    """Let nothing be collected but where the test says so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def look():
    """Count the blocks and the objects that there are, behind a collection, and its garbage.

    A collection also frees what CPython keeps for later, in lists of up to thousands.
    """
    garbage = gc.collect()
    return sys.getallocatedblocks(), len(gc.get_objects()), garbage


def assert_level(function, *, garbage=False):
    """Do something often, and look how many blocks and objects that leaves behind."""
    left = []
    before = look()
    while len(left) < LOOKS:
        for _ in range(ROUNDS):
            function()
        after = look()
        assert garbage or after[2] == 0, f"{after[2]} objects are left to the collector"
        left.append(max(after[0] - before[0], after[1] - before[1]))
        if left[-1] < JITTER:
            return
        before = after
    raise AssertionError(f"in every {ROUNDS} rounds so many blocks are left behind: {left}")


def do(kind):
    work = kind()
    work.act()
    work.finish()
    work.close()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("work", [name for name in WORKS if not issubclass(WORKS[name], InLoop)])
def test_work_in_a_thread_leaves_nothing_behind_even_for_the_collector(work):
    # An error of the source keeps the source's frame, and on some versions of CPython its callers'.
    assert_level(lambda: do(WORKS[work]), garbage=work == "Raising")


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("work", [name for name in WORKS if issubclass(WORKS[name], InLoop)])
def test_work_in_an_event_loop_leaves_nothing_behind(work):
    assert_level(lambda: do(WORKS[work]), garbage=True)


@pytest.mark.usefixtures("no_collection")
def test_work_that_is_dropped_in_the_middle_leaves_nothing_behind():
    def drop(kind):
        work = kind()
        for stream, places in zip(work.streams, work.places, strict=True):
            places[0] = next(stream)

    kinds = [
        kind
        for kind in WORKS.values()
        if not issubclass(kind, InLoop) and kind.__name__ != "CoreAlone"
    ]
    assert_level(lambda: list(map(drop, kinds)), garbage=True)  # a source refers to its work


@pytest.mark.usefixtures("no_collection")
def test_streams_that_are_dropped_one_by_one_leave_nothing_behind():
    def drop():
        streams = Work().streams
        while streams:
            next(streams[-1])
            streams.pop()

    assert_level(drop)


@pytest.mark.usefixtures("no_collection")
def test_errors_leave_nothing_behind():
    class Unreadable:
        ndim = 1

        def tolist(self):
            raise ValueError("tolist")

    def no(output):
        raise ValueError("is_eos")

    def read(*steps, **options):
        for stream in demux(list(steps), 2, **options):
            with suppress(Exception):
                list(stream)

    def fail():
        read(["a", "b"], [Fail(ValueError("alone")), Many(["c"])], ["d", EOS])
        read(["a", "b"], {0: "c", 5: "d"})
        read(["a", "b"], 5)
        read(["a", "b"], require_eos=True)
        (stream,) = demux([["a"], ["b"]], 1)
        with suppress(ValueError):
            stream.receive(5)

    def fail_in_code_of_the_user():  # whose frame the error keeps, and all below it
        read(["a", "b"], Unreadable())
        read(["a", "b"], is_eos=no)

    assert_level(fail)
    assert_level(fail_in_code_of_the_user, garbage=True)


@pytest.mark.usefixtures("no_collection")
def test_misuse_of_the_native_types_leaves_nothing_behind():
    native = knobs.native

    def misuse():
        buffer = native.Buffer(0)
        core = native.Core.__new__(native.Core)
        for function, *args in [
            (core.take, [], [buffer], set()),
            (core.given, "text"),
            (native.Core, [1, "text"], None, None, None, False, False),
            (native.Role, core, [], set(), 5),
            (native.Buffer, "text"),
            (native.StreamReader, None, None),
            (buffer.is_full, "text"),
            (buffer.popleft,),
            (native.AsyncioWaiter,),
            (native.AsyncioWaiter.resume_all, 5, 5),
        ]:
            with suppress(Exception):
                function(*args)

    assert_level(misuse)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("how", ["one by one", "all at once", "cancelled"])
def test_a_buffer_that_has_grown_gives_its_memory_back(how):
    first, second = demux(([0, 0] for _ in range(20_000)), 2)
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(2):
            for _ in range(5_000):
                next(first)
            sizes.append(tracemalloc.get_traced_memory()[0])
            if how == "one by one":
                for _ in range(5_000):
                    next(second)
            else:
                second.cancel() if how == "cancelled" else second.drain()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[0] - sizes[1] > 40_000  # a reference for each output
    assert abs(sizes[3] - sizes[1]) < 4_000


async def closed(receive):
    receive.send(None)
    receive.close()


async def thrown_into(receive):
    receive.send(None)
    with suppress(ValueError):
        receive.throw(ValueError("thrown"))


async def dropped(receive):
    receive.send(None)


async def cancelled(receive):
    task = asyncio.ensure_future(receive)
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def timed_out(receive):
    with suppress(TimeoutError):
        await asyncio.wait_for(receive, 0)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("end", [closed, thrown_into, dropped, cancelled, timed_out])
def test_a_receive_that_is_broken_off_leaves_nothing_behind(end):
    async def main():
        async def source():
            yield ["a"]
            await asyncio.get_running_loop().create_future()

        (stream,) = demux(source(), 1)
        await anext(stream)
        left = [ROUNDS]
        while len(left) <= LOOKS and left[-1] >= JITTER:
            before = look()
            for _ in range(ROUNDS):
                await end(anext(stream))
            after = look()
            left.append(max(after[0] - before[0], after[1] - before[1]))
        stream.cancel()
        return left

    assert asyncio.run(main())[-1] < JITTER


@pytest.mark.usefixtures("no_collection")
def test_a_batch_is_freed_as_a_whole_at_once():
    steps = [[Output("a"), Output("b")], [Output("c"), Output("d")]]
    outputs = [weakref.ref(output) for step in steps for output in step]

    def source(steps):
        while steps:
            yield steps.pop(0)

    generator = source(steps)
    first, second = demux(generator, 2)
    seen = [weakref.ref(thing) for thing in (generator, first, second, knobs.pump_of(first))]
    del generator
    next(first)
    next(first)  # dropped here, as the output before
    assert [output() is None for output in outputs] == [True, False, True, False]
    del first
    assert not any(output() is None for output in outputs[1::2])
    del second
    assert all(thing() is None for thing in seen + outputs)


@pytest.mark.usefixtures("no_collection")
def test_a_batch_that_refers_to_itself_is_collected():
    class Holder:
        pass

    def begin():
        holder = Holder()

        def source():
            yield [holder]
            yield [holder.stream]

        def is_eos(output):
            return holder is None

        (holder.stream,) = demux(source(), 1, is_eos=is_eos)
        next(holder.stream)
        return weakref.ref(holder)

    gone = begin()
    assert gone() is not None
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("no_collection")
def test_a_buffer_that_holds_its_own_stream_is_collected():
    def begin():
        (stream,) = demux([["a"], ["b"]], 1)
        next(stream)
        stream._buffer.outputs.append(stream)
        stream._buffer.on_room = [stream].append
        return weakref.ref(stream)

    gone = begin()
    assert gone() is not None
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("no_collection")
def test_an_event_loop_that_is_closed_around_its_receives_is_collected():
    def begin():
        work = InLoop()
        work.turn(6)
        for task in work.tasks:
            task._log_destroy_pending = False
        work.loop.close()
        return [weakref.ref(thing) for thing in (work, *work.streams)]

    gone = begin()
    knobs.tasks_kept_alive().clear()
    gc.collect()
    assert [thing() for thing in gone] == [None] * len(gone)
