"""Ways to hand the outputs of one source to a consumer each, written out to be measured.

The first five are what servers do, reduced to the hand-off: no timeouts, no detokenizing, no
metrics. Three more are packages. Consumers see the same in all of them, `async for output in
stream`. The streams written here are generators, which measured no slower than classes with
`__anext__`. None in a step ends a stream.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio
import culsans
import janus

Step = list[str | None]
Streams = Sequence[AsyncIterator[str]]


async def until_the_mark(get: Callable[[], Awaitable[str | None]]) -> AsyncIterator[str]:
    """Yield what `get` gives, up to None."""
    while (output := await get()) is not None:
        yield output


class Feed:
    """Streams of the running loop, and `give` for the thread that has the steps."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.streams: Streams = ()

    def give(self, step: Step) -> None:
        """Hand over a step. Called in the source's thread."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Free what the garbage collector would not."""


class CallPerOutput(Feed):
    """A queue each, and a call of the loop for each output: the streamers of transformers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.queues: list[asyncio.Queue[str | None]] = [asyncio.Queue() for _ in range(size)]
        self.streams = [until_the_mark(queue.get) for queue in self.queues]

    def give(self, step: Step) -> None:
        """Call the loop as often as there are outputs."""
        call = self.loop.call_soon_threadsafe
        for queue, output in zip(self.queues, step, strict=True):
            call(queue.put_nowait, output)


class QueueEach(CallPerOutput):
    """A queue each, and a call for each step: continuous batching of transformers."""

    def give(self, step: Step) -> None:
        """Call the loop once."""
        self.loop.call_soon_threadsafe(self.put, step)

    def put(self, step: Step) -> None:
        """Fill the queues, in the loop."""
        for queue, output in zip(self.queues, step, strict=True):
            queue.put_nowait(output)


class EventEach(Feed):
    """A deque and an event each, and a call for each step: SGLang, TensorRT-LLM."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.buffers: list[deque[str | None]] = [deque() for _ in range(size)]
        self.events = [asyncio.Event() for _ in range(size)]
        self.streams = [self.stream(*both) for both in zip(self.buffers, self.events, strict=True)]

    def give(self, step: Step) -> None:
        """Fill the deques here, and let the loop set the events."""
        for buffer, output in zip(self.buffers, step, strict=True):
            buffer.append(output)
        self.loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Set all events, in the loop."""
        for event in self.events:
            event.set()

    @staticmethod
    async def stream(buffer: deque[str | None], event: asyncio.Event) -> AsyncIterator[str]:
        """Yield all there is at each wake-up."""
        while True:
            await event.wait()
            event.clear()  # before the deque is read: what comes later sets it again
            while buffer:
                output = buffer.popleft()
                if output is None:
                    return
                yield output


class Waiting:
    """What a stream holds that makes a future when it has to wait, and only then."""

    __slots__ = ("buffer", "waiter")

    def __init__(self) -> None:
        self.buffer: deque[str | None] = deque()
        self.waiter: asyncio.Future[None] | None = None

    async def stream(self, loop: asyncio.AbstractEventLoop) -> AsyncIterator[str]:
        """Yield what is there, and wait where nothing is."""
        buffer = self.buffer
        while True:
            while buffer:
                output = buffer.popleft()
                if output is None:
                    return
                yield output
            self.waiter = loop.create_future()
            await self.waiter


class FutureIfWaiting(Feed):
    """A deque each, a future for a task that waits, and a call for each step."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mine = [Waiting() for _ in range(size)]
        self.streams = [mine.stream(self.loop) for mine in self.mine]
        self.buffers = [mine.buffer for mine in self.mine]

    def give(self, step: Step) -> None:
        """Fill the deques here, and let the loop wake the waiters."""
        for buffer, output in zip(self.buffers, step, strict=True):
            buffer.append(output)
        self.loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Resolve the futures, in the loop."""
        for mine in self.mine:
            waiter = mine.waiter
            if waiter is not None:
                mine.waiter = None
                if not waiter.done():
                    waiter.set_result(None)


class ChainedFutures(Feed):
    """Each future holds an output and the next future; a call for each step: Ray Serve."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.ends = [self.loop.create_future() for _ in range(size)]
        self.streams = [self.stream(first) for first in self.ends]

    def give(self, step: Step) -> None:
        """Call the loop once."""
        self.loop.call_soon_threadsafe(self.chain, step)

    def chain(self, step: Step) -> None:
        """Resolve the last future of each chain, in the loop."""
        create = self.loop.create_future
        ends = [create() for _ in step]
        for last, output, end in zip(self.ends, step, ends, strict=True):
            if not last.done():
                last.set_result((output, end))
        self.ends = ends

    @staticmethod
    async def stream(link: asyncio.Future) -> AsyncIterator[str]:
        """Walk along the chain."""
        while True:
            output, link = await link
            if output is None:
                return
            yield output


class JanusEach(Feed):
    """A janus queue each; the thread puts into the sync side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.queues: list[janus.Queue[str | None]] = [janus.Queue() for _ in range(size)]
        self.streams = [until_the_mark(queue.async_q.get) for queue in self.queues]

    def give(self, step: Step) -> None:
        """Put, queue by queue."""
        for queue, output in zip(self.queues, step, strict=True):
            queue.sync_q.put(output)

    async def aclose(self) -> None:
        """Close the queues, as janus asks for."""
        for queue in self.queues:
            await queue.aclose()


class CulsansEach(Feed):
    """A culsans queue each; the thread puts into the sync side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.queues: list[culsans.Queue[str | None]] = [culsans.Queue() for _ in range(size)]
        self.streams = [until_the_mark(queue.async_q.get) for queue in self.queues]

    def give(self, step: Step) -> None:
        """Put, queue by queue."""
        for queue, output in zip(self.queues, step, strict=True):
            queue.sync_q.put(output)


class AnyioEach(Feed):
    """An anyio memory object stream each, and a call for each step."""

    def __init__(self, size: int) -> None:
        super().__init__()
        pairs = [anyio.create_memory_object_stream[str](math.inf) for _ in range(size)]
        self.senders = [sender for sender, _ in pairs]
        self.receivers = [receiver for _, receiver in pairs]
        self.streams = self.receivers

    def give(self, step: Step) -> None:
        """Call the loop once."""
        self.loop.call_soon_threadsafe(self.send, step)

    def send(self, step: Step) -> None:
        """Fill the memory streams, in the loop."""
        for sender, output in zip(self.senders, step, strict=True):
            if output is None:
                sender.close()
            else:
                sender.send_nowait(output)

    async def aclose(self) -> None:
        """Close the receiving ends, which else warn."""
        for receiver in self.receivers:
            receiver.close()


def pump(source: Iterator[Step], give: Callable[[Step], None]) -> None:
    """Hand over every step of the source."""
    for step in source:
        give(step)


@asynccontextmanager
async def fed_by_thread(
    mechanism: Callable[[int], Feed], source: Iterator[Step], size: int
) -> AsyncIterator[Streams]:
    """Give the streams of a mechanism that a thread of its own feeds from the source."""
    feed = mechanism(size)
    thread = threading.Thread(target=pump, args=(source, feed.give), daemon=True)
    thread.start()
    try:
        yield feed.streams
    finally:
        thread.join(10)
        await feed.aclose()


@asynccontextmanager
async def fed_by_task(source: AsyncIterator[Step], size: int) -> AsyncIterator[Streams]:
    """Give what one writes by hand for an async source: a task, and a bounded queue each.

    The bound is that of batchstream. Without one, a source that is always ready never lets the
    consumers run.
    """
    queues: list[asyncio.Queue[str | None]] = [asyncio.Queue(1024) for _ in range(size)]

    async def put() -> None:
        async for step in source:
            for queue, output in zip(queues, step, strict=True):
                await queue.put(output)

    task = asyncio.create_task(put())
    try:
        yield [until_the_mark(queue.get) for queue in queues]
    finally:
        task.cancel()
        await asyncio.wait([task])
