"""A server for a load test: continuous batching over an engine that computes nothing.

usage: load_server.py PORT
"""

import asyncio
import gc
import sys
import time
from dataclasses import asdict

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from batchstream import EOS, AsyncStream, ContinuousBatcher
from batchstream.integrations.starlette import TextResponse

MAX_BATCH_SIZE = 64
STEP = 0.001  # seconds that a model computes elsewhere


class Engine:
    """Each request gets outputs that say whose they are, and which."""

    def __init__(self):
        self.rows = {}

    def add(self, slot, request):
        assert slot not in self.rows, f"slot {slot} has {self.rows[slot]}, cannot have {request}"
        self.rows[slot] = (request, 0)

    def step(self):
        time.sleep(STEP)
        step = {}
        for slot, (request, number) in self.rows.items():
            name, length, padding = request
            step[slot] = f"{name}:{number}{padding}\n" if number < length else EOS
            self.rows[slot] = (request, number + 1)
        return step

    def remove(self, slot):
        del self.rows[slot]


engine = Engine()
batcher = ContinuousBatcher(engine, max_batch_size=MAX_BATCH_SIZE, max_buffered=256)


async def generate(request):
    query = request.query_params
    padding = "x" * int(query["padding"])
    return TextResponse(batcher.astream((query["name"], int(query["length"]), padding)))


async def statistics(request):
    gc.collect()
    return JSONResponse(
        asdict(batcher.statistics())
        | {
            "slots": len(engine.rows),
            "streams": sum(isinstance(thing, AsyncStream) for thing in gc.get_objects()),
            "tasks": len(asyncio.all_tasks()),
        }
    )


async def health(request):
    return PlainTextResponse("well")


app = Starlette(
    routes=[
        Route("/health", health),
        Route("/generate", generate),
        Route("/statistics", statistics),
    ]
)

if __name__ == "__main__":
    with batcher:
        uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
