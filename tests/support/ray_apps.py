"""Deployments as a project has them, in a module that the replicas import."""

import asyncio
import os
import threading

from ray import serve

import batchstream
from batchstream.integrations.ray import batch

OPTIONS = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 100}


class Sizes(batchstream.Metrics):
    """Metrics that are made in the replica: how many requests joined a batch together."""

    seen = []

    def joined(self, waited, **_):
        self.seen.append(len(waited))


@batch(max_batch_size=4, metrics=Sizes)
async def shout(words):
    return [f"{word}!" for word in words]


@serve.deployment(**OPTIONS)
class Configured:
    """Batches that wait at a gate, and whose settings come from `user_config`."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.sizes = []

    def reconfigure(self, config):
        self.reply.set_max_batch_size(config["max_batch_size"])
        self.reply.set_batch_wait_timeout_s(config["batch_wait_timeout_s"])

    @batch(max_batch_size=10)
    async def reply(self, requests):
        self.sizes.append(len(requests))
        await self.gate.wait()
        return requests

    @batch(metrics=Sizes)
    async def spell(self, words):
        for position in range(max(map(len, words)) + 1):
            yield [word[position] if position < len(word) else StopIteration for word in words]

    async def spelled(self, word):
        return [letter async for letter in self.spell(word)]

    async def shout(self, word):
        return await shout(word)

    async def open(self):
        self.gate.set()

    async def state(self):
        return {
            "pid": os.getpid(),
            "sizes": self.sizes,
            "max_batch_size": self.reply._get_max_batch_size(),
            "live": self.reply.statistics().live,
            "joined": Sizes.seen,
        }


configured = Configured.bind()


class Engine:
    """Counts up to each request; a step waits until it is permitted."""

    def __init__(self):
        self.permits = threading.Semaphore(0)
        self.left = {}
        self.sizes = []

    def add(self, slot, request):
        self.left[slot] = request

    def remove(self, slot):
        del self.left[slot]

    def step(self):
        self.permits.acquire()
        self.sizes.append(len(self.left))
        outputs = {}
        for slot, left in self.left.items():
            self.left[slot] = left - 1
            outputs[slot] = left if left > 1 else batchstream.Last(left)
        return outputs


@serve.deployment(**OPTIONS)
class Continuous:
    """A `ContinuousBatcher` whose limits come from `user_config`."""

    def __init__(self):
        self.engine = Engine()
        self.batcher = batchstream.ContinuousBatcher(self.engine, max_batch_size=4)

    def reconfigure(self, config):
        self.batcher.reconfigure(**config)

    async def count(self, number):
        async for output in self.batcher.astream(number).body():
            yield output

    async def permit(self, steps):
        self.engine.permits.release(steps)

    async def state(self):
        statistics = self.batcher.statistics()
        return {
            "pid": os.getpid(),
            "sizes": self.engine.sizes,
            "max_batch_size": self.batcher.max_batch_size,
            "live": statistics.live,
            "running": statistics.running,
        }


continuous = Continuous.bind()
