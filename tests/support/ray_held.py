"""Deployments whose model waits at a gate that outlives replicas: an actor of Ray's."""

import asyncio
import contextlib
import os

import ray
from ray import serve
from ray.exceptions import RayError
from starlette.requests import Request

from batchstream import EOS, ContinuousBatcher
from batchstream.integrations.ray import autoscaling_stats, batch
from batchstream.integrations.starlette import TextResponse

OPTIONS = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 32}
FREE_STEPS = 3


@ray.remote(num_cpus=0)
class Gate:
    """What all replicas of a test wait for, and where they leave notes."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.notes = []

    async def open(self):
        self.opened.set()

    async def opens_within(self, seconds):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.opened.wait(), seconds)
        return self.opened.is_set()

    async def note(self, what):
        self.notes.append(what)

    async def noted(self):
        return self.notes


class HeldCountdown:
    """An engine whose slots get three outputs each, and the others once the gate is open.

    An output is the process that made it.
    """

    def __init__(self, gate):
        self.gate = gate
        self.is_open = False
        self.made = {}
        self.wanted = {}

    def add(self, slot, request):
        self.wanted[slot] = request
        self.made[slot] = 0

    def step(self):
        if not self.is_open and min(self.made.values()) >= FREE_STEPS:
            # Not for long: a request may come for which the next step is free.
            self.is_open = ray.get(self.gate.opens_within.remote(0.05))
        step = {}
        for slot, count in self.made.items():
            if self.is_open or count < FREE_STEPS:
                self.made[slot] += 1
                step[slot] = f"{os.getpid()} " if count < self.wanted[slot] else EOS
        return step

    def remove(self, slot):
        del self.made[slot], self.wanted[slot]


@serve.deployment(**OPTIONS)
class Held:
    def __init__(self, gate):
        self.gate = gate
        self.batcher = ContinuousBatcher(HeldCountdown(gate), max_batch_size=4)

    async def generate(self, count, seconds=None):
        async for output in self.batcher.astream(count, timeout=seconds).body():
            yield output

    async def __call__(self, request: Request):
        return TextResponse(self.batcher.astream(int(request.query_params["count"])))

    async def die(self, process):
        """End this replica if it runs in this process: Ray asks another where one has died."""
        if process == str(os.getpid()):
            os._exit(1)

    def record_autoscaling_stats(self):
        return autoscaling_stats(self.batcher)

    async def __del__(self):
        open_requests = self.batcher.statistics().live
        await self.batcher.aclose()
        with contextlib.suppress(RayError):
            await self.gate.note.remote(f"closed with {open_requests} open")


@serve.deployment(**OPTIONS)
class HeldBatch:
    """The same behind `batch`, with a batch for each request."""

    def __init__(self, gate):
        self.gate = gate

    @batch(max_batch_size=1, max_concurrent_batches=4)
    async def reply(self, counts):
        for made in range(*counts):
            while made == FREE_STEPS and not await self.gate.opens_within.remote(60):
                pass
            yield [f"{os.getpid()} "]

    async def generate(self, count):
        async for output in self.reply(count):
            yield output

    async def __call__(self, request: Request):
        return TextResponse(self.reply(int(request.query_params["count"])))

    async def __del__(self):
        open_requests = self.reply.statistics().live
        await self.reply.aclose()
        with contextlib.suppress(RayError):
            await self.gate.note.remote(f"closed with {open_requests} open")
