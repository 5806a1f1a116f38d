"""Counts the frames of the package on the way of one output: `python tests/support/frames.py`.

`--trace SCENARIO` prints every frame of a scenario in order, indented by depth, with the stay that
it begins, and how many frames and stays each module has. `--check` prints that of each scenario
that exceeds its budget; LitServe's are not looked at.

A *frame* is one call of a Python function of the package, as `sys.setprofile` reports it. Resuming
a generator or a coroutine counts again. Code of the user and of other packages does not count. A
*stay* is a run of frames in one module without a frame of another module of the package between
them. Frames are counted in one thread, which the scenario names: the consumer's or the worker's.

Scenarios use public names alone, so that one script measures every layout of the package. Batches
are measured in their steady state, after some steps; a batcher with its first request, which
includes the start of its worker.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import queue
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import batchstream
from batchstream import (
    EOS,
    AsyncBatchedStream,
    ClosedError,
    ContinuousBatcher,
    DynamicBatcher,
    demux,
)

# frames, modules, stays
BUDGET_AND_GOAL = {
    # One frame per receive, and one each to wait and to hand out: what C iterators and copied lines
    # saved here made the readers hard to follow.
    "sync pull": ((8, 5, 6), (7, 4, 5)),
    "sync buffered": ((1, 1, 1), (0, 0, 0)),
    "async step": ((18, 6, 11), (18, 6, 11)),
    # Submitting and waking stand in modules of their own, apart from the dispatcher.
    "batcher submit": ((22, 12, 17), (20, 7, 11)),
    # A batcher that begins anew after a fork, the watch for stalls, warm-ups, what is noted of
    # steps and what they add up to, slots that are given back and what is reported have a frame or
    # two each.
    "continuous start": ((56, 25, 40), (45, 9, 25)),
    "litserve step": ((18, 6, 14), (25, 8, 15)),
    "litserve end": ((74, 13, 52), (131, 19, 145)),
}
BUDGET = {name: budget for name, (budget, _) in BUDGET_AND_GOAL.items()}
GOAL = {name: goal for name, (_, goal) in BUDGET_AND_GOAL.items()}

PACKAGE = Path(batchstream.__file__).parent
WARM_UP = 5  # steps before the one that is measured
QUIET = 10  # turns of an event loop, after which nothing is left to do in it
TIMEOUT = 30.0


class Frame(NamedTuple):
    """One call of a function of the package; the depth counts the package's own callers."""

    module: str
    function: str
    depth: int

    def __str__(self):
        return f"{self.module}:{self.function}"


class Cost(NamedTuple):
    """What the frames between two moments add up to."""

    frames: int
    modules: int
    stays: int

    @classmethod
    def of(cls, frames):
        modules = [frame.module for frame in frames]
        return cls(len(modules), len(set(modules)), len(list(groupby(modules))))

    def exceeds(self, budget):
        return any(own > allowed for own, allowed in zip(self, budget, strict=True))


class Recorder:
    """Records the frames of the package in the calling thread and in threads started meanwhile.

    Attributes:
        observers: Functions called at every moment: `structure` looks at the live objects there.
    """

    observers: ClassVar = []

    def __init__(self):
        self._frames = {}
        self._modules = {}

    @contextmanager
    def recording(self):
        here, elsewhere = sys.getprofile(), threading.getprofile()
        collects, interval = gc.isenabled(), sys.getswitchinterval()
        gc.collect()  # what others have left would be finalised in between, and counted
        gc.disable()
        # A thread runs until it waits: a worker that a caller starts does not overtake the caller,
        # and does not repeat the wake-up that the caller has not crossed off yet.
        sys.setswitchinterval(TIMEOUT)
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(here)
            threading.setprofile(elsewhere)
            sys.setswitchinterval(interval)
            if collects:
                gc.enable()

    @property
    def frames(self):
        """The frames of the calling thread; the list grows while the thread runs."""
        return self._frames.setdefault(threading.get_ident(), [])

    def moment(self):
        """How many frames the calling thread has had up to now."""
        for observe in self.observers:
            observe()
        return len(self.frames)

    def _on_event(self, frame, event, _):
        if event == "call" and (module := self._module_of(frame)):
            depth = 0
            caller = frame
            while (caller := caller.f_back) is not None:
                depth += self._module_of(caller) is not None
            self.frames.append(Frame(module, frame.f_code.co_qualname, depth))

    def _module_of(self, frame):
        path = frame.f_code.co_filename
        if path not in self._modules:
            self._modules[path] = _module_at(path)
        return self._modules[path]


def _module_at(path):
    """Name the module of the package in this file; None if the file is elsewhere."""
    try:
        return ".".join(Path(path).relative_to(PACKAGE).with_suffix("").parts)
    except ValueError:
        return None


# ---- scenarios: each returns the frames between two moments


def sync_pull():
    """A receive that pulls a step, of a batch with two streams."""
    first, _ = _streams_at_work()
    recorder = Recorder()
    with recorder.recording():
        next(first)
        recorder.moment()
    return recorder.frames


def sync_buffered():
    """A receive that finds its output buffered."""
    first, second = _streams_at_work()
    next(first)
    recorder = Recorder()
    with recorder.recording():
        next(second)
        recorder.moment()
    return recorder.frames


def _streams_at_work():
    """Return the two streams of a batch, which have been read for a while."""
    first, second = demux(_endless(), size=2)
    for _ in range(WARM_UP):
        next(first)
        next(second)
    return first, second


def _endless():
    while True:
        yield ["output", "output"]


def async_step():
    """A step for two consumers that wait.

    It lasts from the source's yield until the source waits in its next step and both consumers
    have received the output and wait again.
    """
    recorder = Recorder()

    async def main():
        may_yield = asyncio.Event()
        begins = None

        async def source():
            nonlocal begins
            while True:
                await may_yield.wait()
                may_yield.clear()
                begins = recorder.moment()
                yield ["output", "output"]

        async def consume(stream):
            with suppress(ClosedError):  # from the end of the block on
                async for _ in stream:
                    pass

        async with AsyncBatchedStream(source(), size=2) as batch:
            consumers = [asyncio.create_task(consume(stream)) for stream in batch]
            for _ in range(WARM_UP):
                await _be_quiet()
                may_yield.set()
            await _be_quiet()
            ends = recorder.moment()
        await asyncio.gather(*consumers, return_exceptions=True)  # the batch was closed
        return recorder.frames[begins:ends]

    with recorder.recording():
        return asyncio.run(main())


async def _be_quiet():
    for _ in range(QUIET):
        await asyncio.sleep(0)


def batcher_submit():
    """The first `astream` of a `DynamicBatcher`, until it returns; in the caller's thread."""
    recorder = Recorder()

    def countdown(requests):
        recorder.moment()
        yield [EOS for _ in requests]

    async def main():
        with DynamicBatcher(countdown, max_batch_size=2) as batcher:
            begins = recorder.moment()
            stream = batcher.astream("request")
            ends = recorder.moment()
            async for _ in stream:
                pass
        return recorder.frames[begins:ends]

    with recorder.recording():
        return asyncio.run(main())


def continuous_start():
    """From a worker's wake-up for the first request to the engine's first step; in its thread."""
    recorder = Recorder()
    steps = []

    class Engine:
        def add(self, slot, request):
            self.slot = slot

        def step(self):
            steps.append(recorder.frames[: recorder.moment()])
            return {self.slot: "output" if len(steps) == 1 else EOS}

        def remove(self, slot):
            pass

    # An engine that is there: one that is made in the worker is checked, once in its life.
    with recorder.recording(), ContinuousBatcher(Engine(), max_batch_size=2) as batcher:
        list(batcher.stream("request"))
    return steps[0]


def litserve_step():
    """A worker's step for two requests, from the source's yield until the source goes on."""
    frames, steps = _litserve_batch()
    return frames[steps[WARM_UP] : steps[WARM_UP + 1]]


def litserve_end():
    """From a worker's last step but one, until the loop takes the next request.

    Both requests get two more outputs, and end with the third step.
    """
    frames, steps = _litserve_batch()
    return frames[steps[-3] :]


def _litserve_batch():
    """Let a worker's loop serve a batch of two.

    Returns:
        The frames, and how many there were at each step.
    """
    import litserve  # noqa: PLC0415 - the other scenarios do without
    from litserve.callbacks import CallbackRunner  # noqa: PLC0415
    from litserve.loops.base import _SENTINEL_VALUE, _StopLoopError  # noqa: PLC0415

    from batchstream.integrations.litserve import BatchedStreamLoop  # noqa: PLC0415

    recorder = Recorder()
    steps = []

    class API(litserve.LitAPI):
        request_timeout = TIMEOUT

        def decode_request(self, request):
            return request

        def predict(self, inputs):
            for _ in range(2 * WARM_UP):
                steps.append(recorder.moment())
                yield ["output" for _ in inputs]
            steps.append(recorder.moment())
            yield [None for _ in inputs]

    loop = BatchedStreamLoop()
    # No batch waits for its time to be over: the count depends on no clock.
    api = API(stream=True, max_batch_size=2, batch_timeout=TIMEOUT, loop=loop)
    api.pre_setup()
    loop.pre_setup(api)
    _connect(api)
    requests = queue.Queue()
    for uid in ("first", "second"):
        requests.put((0, uid, time.monotonic(), "request"))
    requests.put(_SENTINEL_VALUE)
    transport = SimpleNamespace(send=lambda *_, **__: None)
    with recorder.recording(), suppress(_StopLoopError):
        loop(api, "cpu", 0, requests, transport, {}, CallbackRunner([]))
    return recorder.frames, steps


def _connect(api):
    """Set the endpoint up for one worker, as a server does before it starts the worker."""
    server = SimpleNamespace(
        response_buffer={}, _inference_workers_config_for_api=lambda _: ["worker"]
    )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        api.spec.setup(server)
    finally:
        signal.signal(signal.SIGTERM, handler)  # this process is no server


SCENARIOS = {
    "sync pull": sync_pull,
    "sync buffered": sync_buffered,
    "async step": async_step,
    "batcher submit": batcher_submit,
    "continuous start": continuous_start,
}
LITSERVE_SCENARIOS = {
    "litserve step": litserve_step,
    "litserve end": litserve_end,
}


# ---- output


def trace(frames):
    """Describe frames line by line: the number of the frame, that of the stay, and the call."""
    lines = []
    shallowest = min((frame.depth for frame in frames), default=0)
    number = 0
    stays = [list(stay) for _, stay in groupby(frames, key=lambda frame: frame.module)]
    for stay_number, stay in enumerate(stays, start=1):
        for position, frame in enumerate(stay):
            number += 1
            begins = stay_number if position == 0 else ""
            lines.append(f"{number:5} {begins:5}  {'  ' * (frame.depth - shallowest)}{frame}")
    return lines


def modules(frames):
    """Describe modules line by line, the one with the most frames first: frames and stays."""
    stays = [module for module, _ in groupby(frame.module for frame in frames)]
    counts = {
        module: (sum(frame.module == module for frame in frames), stays.count(module))
        for module in stays
    }
    ordered = sorted(counts.items(), key=lambda item: item[1], reverse=True)
    return [f"{count:5} {stay:5}  {module}" for module, (count, stay) in ordered]


def table(costs):
    """Describe the costs of scenarios line by line, beside their budgets and goals."""

    def line(name, *figures):
        return f"{name:18}" + "".join(f"{figure:>15}" for figure in figures)

    def text(figures):
        return " / ".join(map(str, figures))

    return [
        line("", "now", "budget", "goal") + "   (frames / modules / stays)",
        *[
            line(name, text(cost), text(BUDGET[name]), text(GOAL[name]))
            for name, cost in costs.items()
        ],
    ]


def exceeded():
    """Describe the scenarios that exceed their budgets; None if there is none."""
    lines = []
    for name, measure in SCENARIOS.items():
        frames = measure()
        cost = Cost.of(frames)
        if cost.exceeds(BUDGET[name]):
            lines += [f"{name}: {cost} exceeds {BUDGET[name]}", *trace(frames)]
    return "\n".join(lines) or None


def main():
    known = SCENARIOS | LITSERVE_SCENARIOS
    parser = argparse.ArgumentParser(description="Count frames, modules and stays.")
    parser.add_argument("--trace", metavar="SCENARIO", choices=known, help=", ".join(known))
    parser.add_argument("--check", action="store_true", help="exit with 1 if a budget is exceeded")
    arguments = parser.parse_args()
    wanted = arguments.trace
    if arguments.check:
        sys.exit(exceeded())
    if wanted:
        frames = known[wanted]()
        print(f"{wanted}: {inspect.getdoc(known[wanted])}\n")
        print("frame  stay", *trace(frames), "", "frames stays", *modules(frames), "", sep="\n")
        print("{} frames, {} modules, {} stays".format(*Cost.of(frames)))
        return
    costs = {name: Cost.of(measure()) for name, measure in SCENARIOS.items()}
    try:
        costs |= {name: Cost.of(measure()) for name, measure in LITSERVE_SCENARIOS.items()}
    except ImportError as error:
        print(f"without LitServe: {error}")
    print(*table(costs), sep="\n")


if __name__ == "__main__":
    main()
