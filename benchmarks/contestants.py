"""What is compared in handing over: how streams are made, and what paces their source."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import mechanisms
from harness import CORES, Core
from mechanisms import Step, Streams, fed_by_task, fed_by_thread

# Ours, by core.
OURS = {core: f"batchstream, {core}" for core in CORES}
UNBOUND = {core: f"batchstream, bound never felt, {core}" for core in CORES}
OURS_ASYNC = {core: f"batchstream in one loop, {core}" for core in CORES}
TASK_QUEUES = "task, bounded queue each, in one loop"
PER_OUTPUT, QUEUE_EACH = "call per output, queue each", "call per step, queue each"
EVENT_EACH, CHAINED = "call per step, event each", "call per step, chained futures"
NO_BOUND = 1_000_000
PATIENCE = 60.0  # seconds until a run counts as hung

NewLoop = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class Contestant:
    """How streams are made from a source, where that source runs, and ours: on which core."""

    streams: Callable[..., AbstractAsyncContextManager[Streams]]
    in_loop: bool = False
    core: Core | None = None

    @property
    def pace(self) -> type[ThreadPace]:
        """Which pace its source keeps."""
        return LoopPace if self.in_loop else ThreadPace

    def run(
        self, main: Callable[..., Coroutine], *args: float, new_loop: NewLoop | None = None
    ) -> Any:
        """Run a coroutine function of a contestant, in an event loop of its own."""
        place = contextlib.nullcontext() if self.core is None else self.core.in_place()
        with place, asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(main(self, *args))


def ours(
    package: ModuleType, source: object, size: int, **options: int
) -> AbstractAsyncContextManager[Streams]:
    """Return the package's own streams."""
    return package.AsyncBatchedStream(source, size=size, **options)


THREAD_FED = {
    PER_OUTPUT: mechanisms.CallPerOutput,
    QUEUE_EACH: mechanisms.QueueEach,
    EVENT_EACH: mechanisms.EventEach,
    "call per step, future if waiting": mechanisms.FutureIfWaiting,
    CHAINED: mechanisms.ChainedFutures,
    "janus queue each": mechanisms.JanusEach,
    "culsans queue each": mechanisms.CulsansEach,
    "anyio memory stream each": mechanisms.AnyioEach,
}
CONTESTANTS = {name: Contestant(partial(fed_by_thread, made)) for name, made in THREAD_FED.items()}
CONTESTANTS[TASK_QUEUES] = Contestant(fed_by_task, in_loop=True)
for name, core in CORES.items():
    mine = partial(ours, core.package)
    CONTESTANTS[OURS[name]] = Contestant(mine, core=core)
    CONTESTANTS[UNBOUND[name]] = Contestant(partial(mine, max_buffered=NO_BOUND), core=core)
    CONTESTANTS[OURS_ASYNC[name]] = Contestant(mine, in_loop=True, core=core)


class ThreadPace:
    """Lets a source in a thread go on when each of `size` consumers has received.

    A consumer pops from `missing`, and calls `go_on` if that leaves nothing. A list counts down
    more cheaply than a call, of which a step would need as many as there are consumers.
    """

    def __init__(self, size: int) -> None:
        self.everyone = [None] * size
        self.missing = self.everyone.copy()
        self.lock = threading.Lock()
        self.lock.acquire()
        self.release = self.lock.release

    def go_on(self) -> None:
        """Let the source make the next step, of which everyone misses an output."""
        self.missing.extend(self.everyone)
        self.release()

    def source(self, steps: Iterable[Step], *, paced: bool) -> Iterator[Step]:
        """Yield the steps: the first on release, and if paced each."""
        for number, step in enumerate(steps):
            if paced or not number:
                assert self.lock.acquire(timeout=PATIENCE)
            yield step


class LoopPace(ThreadPace):
    """The same for a source in the consumers' loop."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.event = asyncio.Event()
        self.release = self.event.set

    async def source(self, steps: Iterable[Step], *, paced: bool) -> AsyncIterator[Step]:
        """Yield the steps: the first on release, and if paced each."""
        for number, step in enumerate(steps):
            if paced or not number:
                await self.event.wait()
                self.event.clear()
            yield step


def made(size: int, steps: int) -> Iterator[Step]:
    """Yield steps of fresh strings, no two alike, and a last one that ends all streams."""
    for first in range(0, size * steps, size):
        yield [f"{number}" for number in range(first, first + size)]
    yield [None] * size


async def until_all_wait() -> None:
    """Let every task that was just made run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)
