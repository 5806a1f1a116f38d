"""What a batcher costs that has nothing to do: CPU time, and how often its process wakes up.

Each runs in a process of its own, serves some requests, and is then left alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from harness import table
from models import Engine, Request, steps_of
from servers import ANSWERS, CAPACITY, Server, answer_to

import batchstream

SECONDS, QUICK_SECONDS = 3.0, 1.0
REQUESTS = 64
PATIENCE = 60.0


def dynamic(timeout: float) -> batchstream.DynamicBatcher:
    """Return a batcher that waits so long for others."""
    return batchstream.DynamicBatcher(steps_of, max_batch_size=CAPACITY, batch_timeout=timeout)


def continuous() -> batchstream.ContinuousBatcher:
    """Return a batcher that refills its slots."""
    return batchstream.ContinuousBatcher(Engine(), max_batch_size=CAPACITY)


async def nothing(_: Request) -> None:
    """Serve without a batcher."""


@asynccontextmanager
async def no_batcher() -> AsyncIterator[Callable]:
    """Start nothing."""
    yield nothing


@asynccontextmanager
async def ours(make: Callable[[], object]) -> AsyncIterator[Callable]:
    """Read streams of ours."""
    async with make() as batcher:

        async def read(request: Request) -> None:
            request.check([output async for output in batcher.astream(request)])

        yield read


@asynccontextmanager
async def theirs(server: Server) -> AsyncIterator[Callable]:
    """Ask one of the others."""
    async with server.serve(0.0) as answer:

        async def ask(request: Request) -> None:
            assert await answer(request) == answer_to(request)

        yield ask


# One each: where the model would run makes no difference as long as it does not.
RIVALS = (
    "Ray Serve, in the loop",
    "batched, thread",
    "batched.aio, thread",
    "async-batcher, in the loop",
)
IDLERS: dict[str, Callable[[], AbstractAsyncContextManager[Callable]]] = {
    "(no batcher)": no_batcher,
    "DynamicBatcher, batch_timeout=0": partial(ours, partial(dynamic, 0.0)),
    "DynamicBatcher, batch_timeout=0.01": partial(ours, partial(dynamic, 0.01)),
    "ContinuousBatcher": partial(ours, continuous),
}
IDLERS |= {name: partial(theirs, ANSWERS[name]) for name in RIVALS if ANSWERS[name].available}


async def idle(name: str, seconds: float) -> dict[str, float]:
    """Return what the idle time took in this process."""
    async with asyncio.timeout(PATIENCE), IDLERS[name]() as serve:
        await asyncio.gather(*(serve(Request(number, 4)) for number in range(REQUESTS)))
        await asyncio.sleep(0.1)
        begin, cpu, waits = time.perf_counter(), time.process_time(), woken()
        await asyncio.sleep(seconds)
        lasted = time.perf_counter() - begin
        return {
            "cpu": (time.process_time() - cpu) / lasted,
            "wake-ups": (woken() - waits) / lasted,
        }


def woken() -> int:
    """Return how often threads of this process have waited for something."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def main(*, quick: bool = False) -> None:
    """Print the table. All processes idle at the same time."""
    seconds = QUICK_SECONDS if quick else SECONDS
    names = [name for name in IDLERS if not (quick and name in RIVALS)]
    children = {
        name: subprocess.Popen(  # noqa: S603 - this very script
            [sys.executable, __file__, "--child", name, str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    rows = []
    for name, child in children.items():
        out, _ = child.communicate(timeout=PATIENCE)
        assert not child.returncode, name
        told = json.loads(out.splitlines()[-1])
        rows.append([name, f"{told['cpu'] * 1e3:.2f}", f"{told['wake-ups']:.0f}"])
    print(f"Idle for {seconds:.0f} s after {REQUESTS} requests, in a process of its own:\n")
    print(table(["batcher", "CPU, ms per s", "wake-ups per s"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a shorter while")
    parser.add_argument("--child", nargs=2, metavar=("BATCHER", "SECONDS"), help="idle as this")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(asyncio.run(idle(options.child[0], float(options.child[1])))))
    else:
        main(quick=options.quick)
