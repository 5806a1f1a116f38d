"""Deployments whose model makes a step only when a test allows it, so that steps can be counted."""

import asyncio
import os
import threading

from fastapi import FastAPI
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

from batchstream import EOS, ContinuousBatcher, Fail, RequestError
from batchstream.integrations.ray import batch
from batchstream.integrations.starlette import TextResponse, exception_handlers

OPTIONS = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 32}


class Countdown:
    """An engine: a request is a number, and gets so many outputs. Each step needs a permit.

    Args:
        width: How many characters an output has, at least.
    """

    def __init__(self, width=1):
        self.width = width
        self.left = {}
        self.steps = 0
        self.fails = False
        self.permits = threading.Semaphore(0)

    def add(self, slot, request):
        if request < 0:
            raise RequestError("less than no output")
        self.left[slot] = request

    def step(self):
        self.permits.acquire()
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        self.steps += 1
        step = {
            slot: f"{count:<{self.width}} " if count else EOS for slot, count in self.left.items()
        }
        self.left = {slot: count - 1 for slot, count in self.left.items()}
        return step

    def remove(self, slot):
        del self.left[slot]


class Gated:
    """What the deployments have in common: a batcher, and what tests ask."""

    def __init__(self, slots=4, max_pending=1024, width=1, max_buffered=1024):
        self.engine = Countdown(width)
        self.batcher = ContinuousBatcher(
            self.engine, max_batch_size=slots, max_pending=max_pending, max_buffered=max_buffered
        )
        self.streams = []

    def open(self, count):
        stream = self.batcher.astream(count)
        self.streams.append(stream)
        return stream

    async def generate(self, count):
        async for output in self.open(count).body():
            yield output

    async def allow(self, steps):
        self.engine.permits.release(steps)

    async def fail(self):
        """Let the step fail that the model waits with."""
        self.engine.fails = True
        self.engine.permits.release()

    async def forbid(self):
        while self.engine.permits.acquire(blocking=False):
            pass

    async def seen(self):
        """Return the steps made, the slots in use, and how each stream has ended."""
        ends = [stream.finish_reason and stream.finish_reason.value for stream in self.streams]
        return {"steps": self.engine.steps, "slots": len(self.engine.left), "ends": ends}

    async def pid(self):
        return os.getpid()

    async def die(self):
        os._exit(1)


@serve.deployment(**OPTIONS)
class Model(Gated):
    """Streams to handles, and to HTTP without a framework."""

    async def __call__(self, request: Request):
        count = int(request.query_params["count"])
        if "late" in request.query_params:
            return StreamingResponse(self.generate(count), media_type="text/plain")
        return TextResponse(self.open(count))


class Noted(StreamingResponse):
    """A response that counts its ends."""

    ends = 0

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            Noted.ends += 1


@serve.deployment(**OPTIONS)
class Bare(Gated):
    """Streams to HTTP by Starlette's own response, of the stream itself or of its body."""

    async def __call__(self, request: Request):
        stream = self.batcher.astream(int(request.query_params["count"]))
        is_body = "body" in request.query_params
        return Noted(stream.body() if is_body else stream, media_type="text/plain")

    async def ends(self):
        return Noted.ends


class GatedBatch:
    """What the deployments of `batch` have in common. Each step of the model needs a permit.

    Args:
        size: How many requests a batch has.
        seconds: For how long it waits for as many.
        width: How many characters an output has, at least.
    """

    def __init__(self, size=4, seconds=0.01, width=1):
        self.reply.set_max_batch_size(size)
        self.reply.set_batch_wait_timeout_s(seconds)
        self.width = width
        self.permits = asyncio.Semaphore(0)
        self.steps = 0
        self.closed = 0
        self.fails = False

    @batch(max_batch_size=4, max_pending=4, max_buffered=8)
    async def reply(self, counts):
        try:
            for position in range(max(1, *counts)):
                await self.permits.acquire()
                if self.fails:
                    self.fails = False
                    raise RuntimeError("out of memory")
                self.steps += 1
                yield [self.output(count, position) for count in counts]
        finally:
            self.closed += 1

    def output(self, count, position):
        if count < 0:
            return Fail(RequestError("less than no output"))
        return f"{count - position:<{self.width}} " if position < count else StopIteration

    async def fail(self):
        """Let the step fail that the model waits with."""
        self.fails = True
        self.permits.release()

    async def allow(self, steps):
        for _ in range(steps):
            self.permits.release()

    async def seen(self):
        """Return the steps made, the batches that have ended, and where the requests are."""
        requests = self.reply.statistics()
        return {
            "steps": self.steps,
            "closed": self.closed,
            "running": requests.running,
            "waiting": requests.waiting,
        }


@serve.deployment(**OPTIONS)
class Batched(GatedBatch):
    """Streams what `batch` returned to HTTP without a framework."""

    async def __call__(self, request: Request):
        outputs = self.reply(int(request.query_params["count"]))
        return StreamingResponse(outputs, media_type="text/plain")


batched_app = FastAPI(exception_handlers=exception_handlers)


@serve.deployment(**OPTIONS)
@serve.ingress(batched_app)
class BatchedIngress(GatedBatch):
    """Streams what `batch` returned from a FastAPI application."""

    @batched_app.get("/")
    async def answer(self, count: int):
        return TextResponse(self.reply(count))


app = FastAPI(exception_handlers=exception_handlers)


@serve.deployment(**OPTIONS)
@serve.ingress(app)
class Ingress(Gated):
    """Streams from a FastAPI application."""

    @app.get("/")
    async def reply(self, count: int):
        return TextResponse(self.open(count))


@serve.deployment(**OPTIONS)
class Front:
    """Passes on what another deployment streams."""

    def __init__(self, model):
        self.model = model.options(stream=True)

    async def generate(self, count):
        async for output in self.model.generate.remote(count):
            yield output

    async def __call__(self, request: Request):
        count = int(request.query_params["count"])
        return StreamingResponse(self.generate(count), media_type="text/plain")
