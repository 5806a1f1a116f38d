"""A server in which one decorator makes a batch of the requests that come at the same time.

    python examples/batched_function.py

    curl -N http://127.0.0.1:8000/22/7?decimals=400

The model does long division, one decimal in each step for all fractions of the batch. A fraction
that comes out even ends there, and another goes on as long as it may, or until its client
disconnects.
"""

import argparse
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, NamedTuple

import numpy as np
import uvicorn
from fastapi import FastAPI, Query, Response
from fastapi import Path as InPath

from batchstream import Last, batched
from batchstream.integrations.starlette import TextResponse, exception_handlers

PACE = float(os.environ.get("PACE", "0.02"))  # seconds for a step, so that one can watch
LARGEST = 10**9


class Fraction(NamedTuple):
    """What a client asks for."""

    numerator: int
    denominator: int
    decimals: int


@batched(
    max_batch_size=64,
    batch_timeout=0.005,
    max_pending=256,
    max_outputs=lambda fraction: 1 + fraction.decimals,
)
def divide(fractions: list[Fraction]) -> Iterator[dict[int, object]]:
    """Yield the whole part and the point, then decimals; it runs in a thread of the batcher."""
    denominators = np.array([fraction.denominator for fraction in fractions])
    whole, rest = np.divmod([fraction.numerator for fraction in fractions], denominators)
    live = yield {
        slot: f"{whole[slot]}." if rest[slot] else Last(str(whole[slot]))
        for slot in range(len(fractions))
    }
    while True:  # closed when no request is live
        time.sleep(PACE)
        decimals, rest = np.divmod(10 * rest, denominators)
        live = yield {
            slot: str(decimals[slot]) if rest[slot] else Last(str(decimals[slot])) for slot in live
        }


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the batcher with the server."""
    async with divide:
        yield


app = FastAPI(lifespan=lifespan, exception_handlers=exception_handlers)


@app.get("/health")
async def health() -> dict[str, int]:
    """Tell that the server is there, and how busy it is."""
    figures = divide.statistics()
    return {"live": figures.live, "waiting": figures.waiting, "steps": figures.steps}


@app.get("/{numerator}/{denominator}")
async def decimals(
    numerator: Annotated[int, InPath(ge=0, le=LARGEST)],
    denominator: Annotated[int, InPath(ge=1, le=LARGEST)],
    decimals: Annotated[int, Query(ge=1, le=1_000)] = 50,
) -> Response:
    """Stream a quotient as text."""
    return TextResponse(divide.astream(Fraction(numerator, denominator, decimals)))


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    print(f"starting a server at http://127.0.0.1:{args.port}/22/7", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=args.port, timeout_graceful_shutdown=5)
