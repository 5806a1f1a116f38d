r"""A server of one's own: a small text model, continuous batching, and responses that stream.

    python examples/custom_server.py

    curl -N http://127.0.0.1:8000/generate \
         -H "Content-Type: application/json" -d '{"prompt": "The miller", "seed": 4}'

Ask from several terminals: the requests share a batch, join it and leave it when they like, and
each gets what it would have got alone. With `-H "Accept: text/event-stream"` the response comes as
server-sent events. `-H "X-Tenant: gold"` says whose a request is, `-H "X-Priority: 0"` that it is
urgent, and `-H "X-Request-Timeout: 2.5"` how many seconds its client waits.

`/metrics` is for Prometheus and for `python -m batchstream top`, `/ready` for a load balancer,
`/health` for a monitor, and POST to `/drain` for what is about to stop the server.
"""

import argparse
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import FastAPI, Header, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask

from batchstream import EOS, ContinuousBatcher, StreamEnd
from batchstream.integrations.prometheus import PrometheusMetrics
from batchstream.integrations.starlette import (
    EventsResponse,
    NDJSONResponse,
    exception_handlers,
    readiness,
    request_id,
    timeout_of,
)

SLOTS = 8
LONGEST = 1_000  # outputs; a stream may hold 1024 unread, so no client is too slow
PACE = float(os.environ.get("PACE", "0.02"))  # seconds for a step, so that one can watch
SHARES = {"gold": 3.0}  # of tenants; all others have 1
GRACE = 30  # seconds for what runs when the server is told to stop


class Generation(BaseModel):
    """What a client asks for."""

    prompt: str = Field(min_length=1, max_length=10_000)
    max_outputs: int = Field(200, ge=1, le=LONGEST)
    temperature: float = Field(1.0, ge=0.1, le=10)
    seed: int = Field(0, ge=0, lt=2**32)


@dataclass
class Job:
    """A request as the batcher gets it: what is asked for, whose it is, and how urgent."""

    generation: Generation
    tenant: str = ""
    priority: int = 1


class Bigrams:
    """A model that draws the next character by how often it follows the last one in a text."""

    def __init__(self, text: str) -> None:
        characters = sorted(set(text))
        self.codes = {character: code for code, character in enumerate(characters)}
        self.outputs = [EOS if character == "\n" else character for character in characters]
        codes = [self.codes[character] for character in text]
        self.counts = np.zeros((len(characters), len(characters)))
        np.add.at(self.counts, (codes[:-1], codes[1:]), 1)

        self.slots: list[int] = []  # the slots in use; each has its row in the arrays below
        self.last = np.zeros(SLOTS, dtype=int)
        self.sharpness = np.zeros(SLOTS)
        self.draws = np.zeros((SLOTS, LONGEST))
        self.drawn = np.zeros(SLOTS, dtype=int)

    def add(self, slot: int, job: Job) -> None:
        """Let a request join, with a sequence of random numbers of its own."""
        generation = job.generation
        self.last[slot] = self.codes.get(generation.prompt[-1], self.codes["\n"])
        self.sharpness[slot] = 1 / generation.temperature
        self.draws[slot] = np.random.default_rng(generation.seed).random(LONGEST)
        self.drawn[slot] = 0
        self.slots.append(slot)

    def step(self) -> dict[int, object]:
        """Draw one character for every slot in use, in one go."""
        time.sleep(PACE)
        slots = self.slots
        weights = self.counts[self.last[slots]] ** self.sharpness[slots, None]
        sums = weights.cumsum(axis=1)
        draws = self.draws[slots, self.drawn[slots]] * sums[:, -1]
        self.last[slots] = codes = (sums > draws[:, None]).argmax(axis=1)
        self.drawn[slots] += 1
        return {slot: self.outputs[code] for slot, code in zip(slots, codes, strict=True)}

    def remove(self, slot: int) -> None:
        """Free the slot of a request that has ended, or whose client has disconnected."""
        self.slots.remove(slot)


registry = CollectorRegistry()
batcher = ContinuousBatcher[Job, str](
    lambda: Bigrams(Path(__file__).with_suffix(".txt").read_text()),
    max_batch_size=SLOTS,
    max_outputs=lambda job: job.generation.max_outputs,
    max_pending=4 * SLOTS,
    max_pending_per_tenant=SLOTS,
    priority=lambda job: job.priority,
    tenant=lambda job: job.tenant,
    share=lambda job: SHARES.get(job.tenant, 1.0),
    cost=lambda job: job.generation.max_outputs,  # what tenants share
    max_batch_cost=SLOTS * LONGEST,  # as much as any full batch
    drain=GRACE,
    name="bigrams",
    metrics=PrometheusMetrics(registry=registry),
)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Warm the model up before the server takes connections, and drain at the end."""
    async with batcher:
        await batcher.awarm_up([Job(Generation(prompt="The miller", max_outputs=5))] * SLOTS)
        yield


app = FastAPI(lifespan=lifespan, exception_handlers=exception_handlers)


def as_line(character: str) -> dict[str, str]:
    """Return what is sent for an output."""
    return {"text": character}


def as_last_line(end: StreamEnd) -> dict[str, object]:
    """Return what is sent for the end."""
    return {"finish_reason": end.reason, "outputs": end.outputs}


@app.post("/generate")
async def generate(
    generation: Generation,
    request: Request,
    x_tenant: Annotated[str, Header(max_length=64)] = "",
    x_priority: Annotated[int, Header(ge=0, le=2)] = 1,
) -> Response:
    """Stream a reply as lines of JSON, or as server-sent events."""
    stream = batcher.astream(
        Job(generation, x_tenant, x_priority),
        timeout=timeout_of(request.headers, at_most=60),
        wait_timeout=10,
        request_id=request_id(request),
    )
    wants_events = "text/event-stream" in request.headers.get("accept", "")
    response = EventsResponse if wants_events else NDJSONResponse
    return response(stream, encode=as_line, encode_end=as_last_line)


@app.api_route("/metrics", methods=["GET", "HEAD"], include_in_schema=False)
async def metrics() -> Response:
    """Return the figures that Prometheus reads."""
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


app.add_route("/ready", readiness(batcher))  # for GET and HEAD


@app.post("/drain", status_code=202)
async def drain() -> Response:
    """Begin to drain, while the server goes on listening: new requests get 503 from now on."""
    return Response(status_code=202, background=BackgroundTask(batcher.aclose, drain=GRACE))


@app.get("/health")
async def health() -> dict[str, int]:
    """Return how busy the server is; any response says that it runs."""
    figures = batcher.statistics()
    return {"live": figures.live, "waiting": figures.waiting}


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    logging.basicConfig(format="%(levelname)s:     %(message)s")
    logging.getLogger("batchstream").setLevel(logging.INFO)
    print(f"starting a server at http://127.0.0.1:{args.port}/generate", flush=True)
    uvicorn.run(  # without a line for each request, in which the lines of the batcher would be lost
        app,
        host="127.0.0.1",
        port=args.port,
        access_log=False,
        timeout_graceful_shutdown=GRACE,
    )
