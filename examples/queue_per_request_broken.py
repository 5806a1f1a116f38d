"""What goes wrong with a queue per request, written by hand. Do not copy this.

    python examples/queue_per_request_broken.py

A model runs in a thread, and puts what it yields into one queue per request; None is the end.
Clients in asyncio take it out again. As long as all goes well, it works. Below are four cases in
which it does not:

- a client gives up waiting for the moment, and loses the next output;
- all clients go away, and the model works on for none;
- a client does not read, and its queue grows without a bound;
- the model raises, and its clients wait for ever.

`queue_per_request_fixed.py` runs the same cases with batchstream.
"""

import argparse
import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor


class QueueStream:
    """The client's side of a queue."""

    def __init__(self) -> None:
        self.queue: queue.Queue[str | None] = queue.Queue()
        self.thread = ThreadPoolExecutor(1)  # where `get` may block

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        loop = asyncio.get_running_loop()
        # Cancelling this cancels the waiting for `get`, and not `get`, which takes an output yet.
        output = await loop.run_in_executor(self.thread, self.queue.get)
        if output is None:
            raise StopAsyncIteration
        return output


@contextlib.asynccontextmanager
async def open_queues(source: Iterator[list[str | None]], size: int) -> AsyncIterator:
    """Run the source in a thread, and give its streams."""
    streams = [QueueStream() for _ in range(size)]

    def run() -> None:
        for step in source:  # an exception ends this thread, and no other notices
            for stream, output in zip(streams, step, strict=True):
                stream.queue.put(output)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield streams
    finally:
        for stream in streams:
            stream.queue.put(None)  # for a `get` that waits still: Python would not exit
            stream.thread.shutdown(wait=False)


# ---- the four cases, which know nothing of queues

PATIENCE = 0.05  # seconds
AT_LONGEST = 1.0
MANY = 2_000


class Model:
    """Yields the number of the step to every slot, up to a length for each."""

    def __init__(self, *lengths: int, fails_after: int | None = None) -> None:
        self.lengths = lengths
        self.fails_after = fails_after
        self.steps = 0
        self.ready = threading.Event()
        self.closed = threading.Event()

    def generate(self) -> Iterator[list[str | None]]:
        """Yield the steps, when it is ready."""
        try:
            self.ready.wait()
            for n in range(max(self.lengths) + 1):
                if n == self.fails_after:
                    raise OSError("device lost")
                self.steps += 1
                yield [str(n) if n < length else None for length in self.lengths]
        finally:
            self.closed.set()

    async def wait_until_closed(self) -> bool:
        """Wait, but not for ever, and tell whether it is closed."""
        return await asyncio.to_thread(self.closed.wait, 10 * AT_LONGEST)


Streams = contextlib.AbstractAsyncContextManager[Sequence[AsyncIterator[str]]]
Open = Callable[[Iterator[list[str | None]], int], Streams]


async def give_up_and_come_back(open_streams: Open) -> str:
    """Ask with a timeout, and go on after it."""
    model = Model(4)
    async with open_streams(model.generate(), 1) as [stream]:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(anext(stream), PATIENCE)
        model.ready.set()
        received = [output async for output in stream]
    return f"a client that timed out once received {' '.join(received)} of 0 1 2 3"


async def leave(open_streams: Open) -> str:
    """Receive one output each, and go."""
    model = Model(MANY, MANY)
    model.ready.set()
    async with open_streams(model.generate(), 2) as streams:
        for stream in streams:
            await anext(stream)
    await model.wait_until_closed()
    return f"all went away after one output, and the model made {model.steps} steps"


async def do_not_read(open_streams: Open) -> str:
    """Read one stream to its end, and the other when the model is through."""
    model = Model(3, MANY)
    model.ready.set()
    async with open_streams(model.generate(), 2) as [read, unread]:
        received = [output async for output in read]
        await model.wait_until_closed()
        held, end = await read_on(unread)
    return f"one read its {len(received)} outputs at once, the other held {held}, {end}"


async def fail(open_streams: Open) -> str:
    """Read from a model that raises."""
    model = Model(MANY, fails_after=2)
    model.ready.set()
    async with open_streams(model.generate(), 1) as [stream]:
        received, end = await read_on(stream)
    return f"the model raised after {received} outputs, {end}"


async def read_on(stream: AsyncIterator[str]) -> tuple[int, str]:
    """Read what there is, and tell how many outputs there were and what came then."""
    received = 0
    try:
        while True:
            await asyncio.wait_for(anext(stream), AT_LONGEST)
            received += 1
    except StopAsyncIteration:
        return received, "and then the end"
    except TimeoutError:
        return received, "and the client is still waiting"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return received, f"and then {type(error).__name__}: {error}"


async def main(open_streams: Open = open_queues) -> None:
    """Run the four cases."""
    for case in (give_up_and_come_back, leave, do_not_read, fail):
        print(await case(open_streams), flush=True)  # as it comes, into a pipe too


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    asyncio.run(main())
