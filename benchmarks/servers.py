"""What is compared in serving: batchers, and what each makes of the same model.

There are two jobs. A *stream* is a request that gets an output in every step, for as many steps as
it asks for. An *answer* is one output, from a model that is called once for a batch.

The model runs in a *thread*, in which it may compute as long as it likes, or *in the loop*, where
a step is awaited: so do batchers serve that call another process. Each batcher has the limits that
suit it best, which for most is not to wait for others.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import importlib.util
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from models import Engine, Request, steps_of

import batchstream
from batchstream import Last

CAPACITY = 32
PENDING = 10_000

Stream = Callable[[Request], AsyncIterator[str]]
Answer = Callable[[Request], Awaitable[str]]

DISTRIBUTIONS = ("batchstream", "ray", "batched", "async-batcher")
RAY, BATCHED, ASYNC_BATCHER = (
    importlib.util.find_spec(name) is not None for name in ("ray", "batched", "async_batcher")
)
if BATCHED:
    import batched
if ASYNC_BATCHER:
    from async_batcher.batcher import AsyncBatcher


def ray_serve() -> ModuleType:
    """Return what makes Ray Serve take part, which takes long to import."""
    return importlib.import_module("ray_serve")


def versions() -> tuple[list[str], list[str]]:
    """Return what is installed, with versions, and what is not."""
    found, missing = [], []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return found, missing


# ---- the model that answers


def answer_to(request: Request) -> str:
    """Return what has to arrive."""
    return f"{request.number}!"


def answers(batch: Sequence[Request], seconds: float) -> list[str]:
    """Answer a batch."""
    assert len(batch) <= CAPACITY
    if seconds:
        time.sleep(seconds)
    return [answer_to(request) for request in batch]


async def answers_in_loop(batch: Sequence[Request], seconds: float) -> list[str]:
    """Answer a batch."""
    assert len(batch) <= CAPACITY
    await asyncio.sleep(seconds)
    return [answer_to(request) for request in batch]


class AnsweringEngine(Engine):
    """Answers the request in each slot."""

    def add(self, slot: int, request: Request) -> None:
        """Take a request in."""
        self.outputs[slot] = iter((Last(answer_to(request)),))


# ---- the model that streams, in the loop


async def steps_in_loop(batch: Sequence[Request], seconds: float) -> AsyncIterator[list]:
    """Yield the steps of a batch that runs to its end."""
    for step in steps_of(batch):
        await asyncio.sleep(seconds)
        yield step


# ---- batchstream

continuous = partial(batchstream.ContinuousBatcher, max_batch_size=CAPACITY, max_pending=PENDING)
dynamic = partial(batchstream.DynamicBatcher, max_batch_size=CAPACITY, max_pending=PENDING)


@asynccontextmanager
async def continuous_streams(seconds: float) -> AsyncIterator[Stream]:
    """Refill slots."""
    async with continuous(Engine(seconds)) as batcher:
        yield batcher.astream


@asynccontextmanager
async def dynamic_streams(seconds: float) -> AsyncIterator[Stream]:
    """Run batches to their ends."""
    async with dynamic(lambda batch: steps_of(batch, seconds)) as batcher:
        yield batcher.astream


@asynccontextmanager
async def dynamic_streams_in_loop(seconds: float) -> AsyncIterator[Stream]:
    """Run batches to their ends."""

    async def steps(batch: list[Request]) -> AsyncIterator[list]:
        async for step in steps_in_loop(batch, seconds):
            yield step

    async with dynamic(steps) as batcher:
        yield batcher.astream


def first_of(batcher: batchstream.DynamicBatcher | batchstream.ContinuousBatcher) -> Answer:
    """Return what gets the one output of a request."""

    async def ask(request: Request) -> str:
        return await anext(batcher.astream(request))

    return ask


@asynccontextmanager
async def continuous_answers(seconds: float) -> AsyncIterator[Answer]:
    """Answer in one step of an engine."""
    async with continuous(AnsweringEngine(seconds)) as batcher:
        yield first_of(batcher)


@asynccontextmanager
async def dynamic_answers(seconds: float) -> AsyncIterator[Answer]:
    """Answer in a batch of one result for each request."""
    async with dynamic(lambda batch: answers(batch, seconds), single=True) as batcher:
        yield batcher.acall


@asynccontextmanager
async def dynamic_answers_in_loop(seconds: float) -> AsyncIterator[Answer]:
    """Answer in a batch of one result for each request."""

    async def results(batch: list[Request]) -> list[str]:
        return await answers_in_loop(batch, seconds)

    async with dynamic(results, single=True) as batcher:
        yield batcher.acall


# ---- Ray Serve


@asynccontextmanager
async def ray_streams(seconds: float, *, wait: float = 0.0) -> AsyncIterator[Stream]:
    """Let a thread make each step of a batch."""
    with ThreadPoolExecutor(1) as executor:
        run = asyncio.get_running_loop().run_in_executor

        async def steps(batch: list[Request]) -> AsyncIterator[list]:
            made = ray_serve().steps_of(batch, seconds)
            while (step := await run(executor, next, made, None)) is not None:
                yield step

        yield ray_serve().batch(steps, CAPACITY, wait)


@asynccontextmanager
async def ray_streams_in_loop(seconds: float, *, wait: float = 0.0) -> AsyncIterator[Stream]:
    """Await each step of a batch."""

    async def steps(batch: list[Request]) -> AsyncIterator[list]:
        for step in ray_serve().steps_of(batch, 0.0):
            await asyncio.sleep(seconds)
            yield step

    yield ray_serve().batch(steps, CAPACITY, wait)


@asynccontextmanager
async def ray_answers(seconds: float, *, wait: float = 0.0) -> AsyncIterator[Answer]:
    """Let a thread answer each batch."""
    with ThreadPoolExecutor(1) as executor:
        run = asyncio.get_running_loop().run_in_executor

        async def answer(batch: list[Request]) -> list[str]:
            return await run(executor, answers, batch, seconds)

        yield ray_serve().batch(answer, CAPACITY, wait)


@asynccontextmanager
async def ray_answers_in_loop(seconds: float, *, wait: float = 0.0) -> AsyncIterator[Answer]:
    """Await the answers to each batch."""

    async def answer(batch: list[Request]) -> list[str]:
        return await answers_in_loop(batch, seconds)

    yield ray_serve().batch(answer, CAPACITY, wait)


# ---- batched


@asynccontextmanager
async def batched_answers(seconds: float, *, timeout_ms: float = 5.0) -> AsyncIterator[Answer]:
    """Answer in the thread that looks after the queue. Five milliseconds are the default."""
    processor = batched.dynamically(
        lambda batch: answers(batch, seconds), batch_size=CAPACITY, timeout_ms=timeout_ms
    )
    try:
        yield processor.acall
    finally:
        await asyncio.to_thread(processor.shutdown)


@asynccontextmanager
async def batched_answers_spinning(seconds: float) -> AsyncIterator[Answer]:
    """The same with no pause between two looks into the queue: it keeps a core busy."""
    async with batched_answers(seconds, timeout_ms=0.0) as ask:
        yield ask


@asynccontextmanager
async def batched_aio_answers(seconds: float) -> AsyncIterator[Answer]:
    """Let a thread answer each batch."""
    yield batched.aio.dynamically(lambda batch: answers(batch, seconds), batch_size=CAPACITY)


# ---- async-batcher


@asynccontextmanager
async def async_batcher_answers(seconds: float) -> AsyncIterator[Answer]:
    """Let a thread answer each batch."""

    class Answering(AsyncBatcher):
        def process_batch(self, batch: list[Request]) -> list[str]:
            return answers(batch, seconds)

    with ThreadPoolExecutor(1) as executor:
        batcher = Answering(max_batch_size=CAPACITY, max_queue_time=0.0, executor=executor)
        yield batcher.process
        await batcher.stop(force=True)


@asynccontextmanager
async def async_batcher_answers_in_loop(seconds: float) -> AsyncIterator[Answer]:
    """Await the answers to each batch."""

    class Answering(AsyncBatcher):
        async def process_batch(self, batch: list[Request]) -> list[str]:
            return await answers_in_loop(batch, seconds)

    batcher = Answering(max_batch_size=CAPACITY, max_queue_time=0.0)
    yield batcher.process
    await batcher.stop(force=True)


@dataclass(frozen=True)
class Server:
    """How a batcher is set up for a step of so many seconds, and which of ours it is against."""

    serve: Callable[[float], AbstractAsyncContextManager[Stream | Answer]]
    against: str
    available: bool = True
    waits: bool = False  # whether it can be told for how long to collect a batch


DYNAMIC, DYNAMIC_IN_LOOP = "DynamicBatcher, thread", "DynamicBatcher, in the loop"
CONTINUOUS = "ContinuousBatcher, thread"
STREAMS = {
    CONTINUOUS: Server(continuous_streams, CONTINUOUS),
    DYNAMIC: Server(dynamic_streams, DYNAMIC),
    DYNAMIC_IN_LOOP: Server(dynamic_streams_in_loop, DYNAMIC_IN_LOOP),
    "Ray Serve, thread": Server(ray_streams, DYNAMIC, RAY, waits=True),
    "Ray Serve, in the loop": Server(ray_streams_in_loop, DYNAMIC_IN_LOOP, RAY, waits=True),
}
ANSWERS = {
    CONTINUOUS: Server(continuous_answers, CONTINUOUS),
    DYNAMIC: Server(dynamic_answers, DYNAMIC),
    DYNAMIC_IN_LOOP: Server(dynamic_answers_in_loop, DYNAMIC_IN_LOOP),
    "Ray Serve, thread": Server(ray_answers, DYNAMIC, RAY, waits=True),
    "Ray Serve, in the loop": Server(ray_answers_in_loop, DYNAMIC_IN_LOOP, RAY, waits=True),
    "batched, thread": Server(batched_answers, DYNAMIC, BATCHED),
    "batched, thread, spinning": Server(batched_answers_spinning, DYNAMIC, BATCHED),
    "batched.aio, thread": Server(batched_aio_answers, DYNAMIC, BATCHED),
    "async-batcher, thread": Server(async_batcher_answers, DYNAMIC, ASYNC_BATCHER),
    "async-batcher, in the loop": Server(
        async_batcher_answers_in_loop, DYNAMIC_IN_LOOP, ASYNC_BATCHER
    ),
}
