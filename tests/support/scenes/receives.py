"""Scenes with receives in event loops: awaited, thrown into, closed and dropped in each state."""

from __future__ import annotations

import asyncio
import gc
import weakref

from batchstream import (
    demux,
)
from support.scenes.loops import akind, aoutcome, in_asyncio, in_turns, rest, then_silent, turns
from support.scenes.stage import (
    kind,
    outcome,
    say,
    scene,
    used,
)


@in_asyncio
async def a_receive_that_is_awaited_again():
    (stream,) = demux(in_turns(["a"], ["b"], ["c"]), 1)
    receive = anext(stream)
    say(await receive, await akind(receive), await akind(receive))
    say(kind(receive.send, None), kind(receive.throw, ValueError("thrown")), kind(receive.close))
    say(await rest(stream), await akind(receive))


@in_asyncio
async def a_receive_that_two_tasks_await_at_once():
    (stream,) = demux(in_turns(["a"], ["b"], ["c"]), 1)
    receive = anext(stream)

    async def wait():
        return await receive

    say(await asyncio.gather(akind(wait()), akind(wait())), await rest(stream))


@in_asyncio
async def a_stream_that_two_tasks_await_at_once():
    (stream,) = demux(in_turns(["a"], ["b"], ["c"]), 1)
    say(await asyncio.gather(*(aoutcome(anext(stream)) for _ in range(3))), await rest(stream))


THROWN = [
    ValueError("thrown"),
    asyncio.CancelledError("thrown"),
    GeneratorExit("thrown"),
    KeyboardInterrupt("thrown"),
]


@in_asyncio
async def a_receive_that_is_thrown_into():
    for error in THROWN:
        (stream,) = demux(then_silent(["a"], ["b"]), 1)
        new = anext(stream)
        say("new", kind(new.throw, error), kind(new.send, None))
        say(await anext(stream), await anext(stream))
        waiting = anext(stream)
        waiting.send(None)
        say("waiting", kind(waiting.throw, error), kind(waiting.send, None))
        task = asyncio.ensure_future(anext(stream))
        await turns(3)
        say("in vain", task.done(), task.cancel(), await akind(task))


@in_asyncio
async def a_receive_that_is_thrown_into_by_class():
    (stream,) = demux(then_silent(["a"]), 1)
    await anext(stream)
    waiting = anext(stream)
    waiting.send(None)
    say(outcome(waiting.throw, ValueError))
    waiting = anext(stream)
    waiting.send(None)
    say(kind(waiting.throw, "no error"), kind(waiting.throw), kind(waiting.close))


@in_asyncio
async def a_stop_that_is_thrown_into_a_receive():
    (stream,) = demux(then_silent(["a"], ["b"]), 1)
    new = anext(stream)
    kind(new.throw, StopIteration("thrown"))  # versions of CPython differ in what comes of it
    say(await anext(stream), await anext(stream))
    waiting = anext(stream)
    waiting.send(None)
    kind(waiting.throw, StopIteration("thrown"))
    waiting.close()
    task = asyncio.ensure_future(anext(stream))
    await turns(3)
    say(task.done(), task.cancel(), await akind(task))


@in_asyncio
async def a_receive_that_is_closed_in_each_state():
    (stream,) = demux(then_silent(["a"], ["b"]), 1)
    new = anext(stream)
    say(new.close(), new.close(), kind(new.send, None))
    say(await anext(stream), await anext(stream))
    waiting = anext(stream)
    waiting.send(None)
    say(waiting.close(), waiting.close(), kind(waiting.send, None), stream.drain())
    again = anext(stream)
    again.send(None)
    say(await akind(anext(stream)))
    again.close()
    stream.cancel()
    say(await akind(anext(stream)))


@in_asyncio
async def a_receive_that_is_closed_as_it_waits_for_its_turn():
    (stream,) = demux(then_silent(*[[n] for n in range(100)]), 1)
    first = [await anext(stream) for _ in range(64)]
    await turns(100)
    received = len(first)
    found = []
    for end in ("close", "throw", "drop"):
        while True:  # up to the receive that gives the others their turn
            receive = anext(stream)
            try:
                receive.send(None)
            except StopIteration as stop:
                found.append(stop.value)
                received += 1
                continue
            break
        if end == "close":
            receive.close()
        elif end == "throw":
            say(kind(receive.throw, ValueError("thrown")))
        del receive
    found.extend(stream.drain())
    say(first + found == list(range(100)), len(first) + len(found))


@in_asyncio
async def a_receive_that_is_dropped_as_it_waits():
    (stream,) = demux(in_turns(["a"], ["b"], every=5), 1)
    waiting = anext(stream)
    waiting.send(None)
    del waiting
    say(await rest(stream))


@in_asyncio
async def a_stream_that_is_dropped_as_its_receive_waits():
    (stream,) = demux(in_turns(["a"], ["b"], every=5), 1)
    gone = weakref.ref(stream)
    task = asyncio.ensure_future(anext(stream))
    await turns(2)
    del stream
    say(await akind(task), gone() is None)
    del task
    (stream,) = demux(in_turns(["a"], ["b"], every=5), 1)
    gone = weakref.ref(stream)
    receive = anext(stream)
    receive.send(None)
    del stream
    receive.close()
    del receive
    say(gone() is None)


@in_asyncio
async def receives_with_a_default():
    (stream,) = demux(in_turns(["a"], ["b"], [None]), 1)
    say([await anext(stream, "default") for _ in range(4)])
    (stream,) = demux(in_turns([()], [(1, 2)], [StopIteration(5)], [None]), 1)
    say([await anext(stream, "default") for _ in range(2)])
    say(await anext(stream, "default"), await anext(stream, "default"))
    (stream,) = demux(then_silent(["a"]), 1)
    say(await anext(stream, "default"))
    waiting = anext(stream, "default").__await__()
    waiting.send(None)
    say(kind(waiting.throw, ValueError("thrown")))
    waiting = anext(stream, "default").__await__()
    waiting.send(None)
    say(kind(waiting.close))


@in_asyncio
async def receives_with_a_timeout():
    (stream,) = demux(then_silent(["a"], ["b"]), 1)
    say(await asyncio.wait_for(anext(stream), 30), await akind(asyncio.wait_for(anext(stream), 0)))
    say(stream.drain())
    for _ in range(3):
        say(await akind(asyncio.wait_for(anext(stream), 1e-9)))

        async def in_time():
            async with asyncio.timeout(0):
                return await anext(stream)

        say(await akind(in_time()))
    task = asyncio.ensure_future(asyncio.shield(anext(stream)))
    await turns(3)
    stream.cancel()
    say(await akind(task))


@in_asyncio
async def receives_as_tasks():
    streams = demux(in_turns(["a1", "b1"], ["a2", "b2"], [None, None]), 2)
    receive = anext(streams[0])
    say(asyncio.iscoroutine(receive), receive.close())
    say(await asyncio.gather(*map(anext, streams)))
    tasks = [asyncio.create_task(anext(stream)) for stream in streams]
    done, waiting = await asyncio.wait(tasks)
    say(sorted(task.result() for task in done), waiting)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(rest(stream)) for stream in streams]
    say([task.result() for task in tasks])


@in_asyncio
async def tasks_that_are_cancelled_in_every_turn_of_a_receive():
    for turn in range(8):
        (stream,) = demux(in_turns(["a"], ["b"], ["c"], every=2), 1)
        task = asyncio.ensure_future(anext(stream))
        await turns(turn)
        say(turn, task.cancel(), await akind(task), await rest(stream))


@scene
def an_event_loop_that_is_closed_around_a_receive():
    gc.disable()
    for _ in range(3):
        loop = asyncio.new_event_loop()
        held = loop.run_until_complete(leave_waiting())
        loop.close()
        held, gone = None, held[1]
        del held
        gc.collect()
        say("collected", gone() is None)


async def leave_waiting():
    (stream,) = demux(then_silent(["a"]), 1)
    await anext(stream)
    receive = anext(stream)
    receive.send(None)
    cycle = [stream, receive]
    cycle.append(cycle)
    return cycle, weakref.ref(stream)


@scene
def tasks_that_are_forgotten_as_they_wait():
    gc.disable()
    loop = asyncio.new_event_loop()

    async def main():
        (stream,) = demux(then_silent(["a"]), 1)
        say(await rest(stream))

    task = loop.create_task(main())
    task._log_destroy_pending = False
    for _ in range(20):
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
    gone = weakref.ref(task)
    del task, loop
    gc.collect()
    say("collected", gone() is None)


@scene
def a_receive_that_ends_itself_in_the_middle():
    for end in ("close", "throw", "send", "drop the stream"):
        found = []

        class Loop(asyncio.SelectorEventLoop):
            def call_soon(self, callback, *args, context=None, end=end, found=found):
                if used:
                    receive = used.pop()
                    if end == "close":
                        found.append(kind(receive.close))
                    elif end == "throw":
                        found.append(kind(receive.throw, ValueError("thrown")))
                    elif end == "send":
                        found.append(kind(receive.send, None))
                return super().call_soon(callback, *args, context=context)

        async def main(end=end):
            (stream,) = demux(then_silent(["a"]), 1)
            receive = anext(stream)
            used.append(receive)
            if end == "drop the stream":
                del stream
                used.clear()
            say(await akind(receive))

        loop = Loop()
        task = loop.create_task(main())
        for _ in range(20):
            loop.call_soon(loop.stop)
            loop.run_forever()
        say(end, found, task.done() or task.cancel())
        loop.run_until_complete(asyncio.wait([task]))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        del loop, task


@scene
def receives_in_trio():
    import trio  # noqa: PLC0415 - the others go without

    async def source(gate):
        yield ["a"]
        yield ["b"]
        await gate.wait()
        yield ["c"]

    async def main():
        gate = trio.Event()
        (stream,) = demux(source(gate), 1)
        say(await anext(stream), await anext(stream, "default"))
        for _ in range(3):
            with trio.move_on_after(0) as scope:
                await anext(stream)
            say(scope.cancelled_caught)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_rest, stream)
            await trio.testing.wait_all_tasks_blocked()
            say(await akind(anext(stream)))
            gate.set()

    async def say_rest(stream):
        say(await rest(stream))

    import trio.testing  # noqa: PLC0415 - the others go without

    trio.run(main)
