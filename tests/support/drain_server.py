"""A server that is told to stop while its model is in a step.

usage: drain_server.py SERVER PORT GATE JOB

SERVER is uvicorn, uvicorn-workers, hypercorn or granian; the model waits at a gate before each
step, and what comes of a job is written to the file JOB.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from batchstream import EOS, ClosedError, ContinuousBatcher
from batchstream.integrations.starlette import (
    EventsResponse,
    NDJSONResponse,
    exception_handlers,
    readiness,
)

SECONDS = 60  # which only a failure reaches


class Engine:
    """Gives each request its numbers, one in each step that the gate lets through."""

    def __init__(self):
        gate = socket.create_connection(("127.0.0.1", int(os.environ["GATE"])))
        self._lines = gate.makefile("rw")
        self._left = {}
        self._steps = 0

    def add(self, slot, request):
        self._left[slot] = iter(range(request))

    def step(self):
        self._lines.write(f"step {self._steps}\n")
        self._lines.flush()
        self._lines.readline()
        self._steps += 1
        return {slot: next(left, EOS) for slot, left in self._left.items()}

    def remove(self, slot):
        del self._left[slot]


batcher = ContinuousBatcher(Engine, max_batch_size=4, max_pending=8, drain=SECONDS)
tasks = set()


@contextlib.asynccontextmanager
async def lifespan(_):
    async with batcher:
        yield
    await asyncio.gather(*tasks)  # which still have to take what their requests were given


async def generate(request):
    return NDJSONResponse(batcher.astream(await request.json()))


async def events(request):
    return EventsResponse(batcher.astream(await request.json()))


async def chat(websocket):
    await websocket.accept()
    async for output in batcher.astream(await websocket.receive_json()):
        await websocket.send_json(output)
    await websocket.close()


def begin(coroutine):
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    return Response(status_code=202)


async def drain(_):
    return begin(batcher.aclose(drain=SECONDS))


async def job(request):
    """Begin what no connection waits for: replies to one request, again and again."""
    return begin(run_job(await request.json()))


async def run_job(content):
    replies, last_words = 0, ""
    try:
        async for reply in batcher.amap(itertools.repeat(content)):
            assert reply == list(range(content))
            replies += 1
    except ClosedError as error:
        last_words = str(error)
    write(f"{replies}\n{last_words}")


def write(text):
    Path(os.environ["JOB"]).write_text(text)


async def statistics(_):
    return JSONResponse({"live": asdict(batcher.statistics())["live"]})


app = Starlette(
    routes=[
        Route("/generate", generate, methods=["POST"]),
        Route("/events", events, methods=["POST"]),
        WebSocketRoute("/chat", chat),
        Route("/drain", drain, methods=["POST"]),
        Route("/job", job, methods=["POST"]),
        Route("/ready", readiness(batcher)),
        Route("/statistics", statistics),
    ],
    lifespan=lifespan,
    exception_handlers=exception_handlers,
)


def main(server, port, gate, job_file):
    os.environ.update(GATE=gate, JOB=job_file)
    if server == "uvicorn":
        import uvicorn  # noqa: PLC0415 - each server alone

        uvicorn.run(app, port=int(port))
    elif server == "uvicorn-workers":
        import uvicorn  # noqa: PLC0415

        uvicorn.run("drain_server:app", port=int(port), workers=2)
    elif server == "hypercorn":
        from hypercorn.config import Config  # noqa: PLC0415
        from hypercorn.run import run  # noqa: PLC0415

        config = Config()
        config.application_path = "drain_server:app"
        config.bind = [f"127.0.0.1:{port}"]
        config.graceful_timeout = SECONDS
        sys.exit(run(config))
    else:
        from granian import Granian  # noqa: PLC0415

        Granian("drain_server:app", port=int(port), interface="asgi").serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
