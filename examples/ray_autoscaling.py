"""Replicas of Ray Serve that are added while requests wait, and removed while one could do.

    serve run examples.ray_autoscaling:app

Ray's own policy counts the requests that a replica has. This one knows that a replica has SLOTS
slots: it wants as many replicas as those that run and those that wait would fill.
"""

import math

from ray import serve

from batchstream import EOS, ContinuousBatcher
from batchstream.integrations.ray import autoscaling_stats

SLOTS = 8


class Countdown:
    """An engine: a request is a number, and gets so many outputs."""

    def __init__(self):
        self.left = {}

    def add(self, slot, request):
        self.left[slot] = request

    def step(self):
        step = {slot: count or EOS for slot, count in self.left.items()}
        self.left = {slot: count - 1 for slot, count in self.left.items()}
        return step

    def remove(self, slot):
        del self.left[slot]


class Counter:
    """A deployment that tells Ray how many of its requests wait, and how many run."""

    def __init__(self):
        self.batcher = ContinuousBatcher(Countdown, max_batch_size=SLOTS)

    async def generate(self, count):
        async for output in self.batcher.astream(count).body():
            yield output

    def record_autoscaling_stats(self):
        return autoscaling_stats(self.batcher)


def fill_slots(context):
    """Return how many replicas there should be, and nothing to remember."""
    figures = context.aggregated_metrics
    requests = sum(sum(figures.get(key, {}).values()) for key in ("running", "waiting"))
    return math.ceil(requests / SLOTS), {}


def application(slots=SLOTS, **options):
    scaled = {"min_replicas": 1, "max_replicas": 4, "policy": {"policy_function": fill_slots}}
    return serve.deployment(autoscaling_config=scaled, max_ongoing_requests=4 * SLOTS)(Counter)
