"""Scenes with collections and threads that come in between."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import zlib
from functools import partial

import numpy as np

from batchstream import (
    EOS,
    BatchedStream,
    Many,
    demux,
)
from support.scenes.stage import (
    SECONDS,
    kind,
    outcome,
    say,
    scene,
)


@contextlib.contextmanager
def collections_at_once(act):
    """Collect garbage as often as can be, and call this in each collection."""
    gc.enable()
    gc.set_threshold(1)
    gc.callbacks.append(act)
    try:
        yield
    finally:
        gc.callbacks.clear()
        gc.set_threshold(700)
        gc.disable()


@scene
def collections_that_use_the_batch():
    for seed in range(40):
        drawn = random.Random(seed)  # noqa: S311 - it is to be the same again
        play_with_collections(drawn)


def play_with_collections(drawn):
    """Read a batch while code runs in every collection, of which there are as many as can be."""
    size = 4
    options = drawn.choice([{}, {"is_eos": lambda output: False}, {"max_outputs": 25}])
    made = [
        drawn.choice([as_list, as_tuple, as_dict, as_array, as_marked])(size, n) for n in range(30)
    ]
    batch = BatchedStream(iter(made), size, **options)
    streams = list(batch)
    taken = [[] for _ in streams]
    running = []

    def act(phase, info):
        if phase == "stop" or running:
            return
        running.append(phase)
        with contextlib.suppress(RuntimeError, StopIteration):
            slot = drawn.randrange(size)
            action = drawn.random()
            if action < 0.4:
                taken[slot].append(next(streams[slot]))
            elif action < 0.8:
                taken[slot].extend(streams[slot].drain())
            elif action < 0.805:
                streams[slot].cancel()
        running.clear()

    with collections_at_once(act):
        for slot, stream in enumerate(streams):
            taken[slot].extend(stream)
    for slot, outputs in enumerate(taken):
        wanted = [f"{slot}.{n}" for n in range(len(outputs))]
        complete = streams[slot].finish_reason == "cancelled" or len(outputs) in {25, 30}
        say(sorted(outputs, key=lambda it: float(it.partition(".")[2])) == wanted, complete)


def as_list(size, n):
    return [f"{slot}.{n}" for slot in range(size)]


def as_tuple(size, n):
    return tuple(as_list(size, n))


def as_dict(size, n):
    return dict(enumerate(as_list(size, n)))


def as_array(size, n):
    return np.array(as_list(size, n), dtype=object)


def as_marked(size, n):
    return [Many([output]) for output in as_list(size, n)]


@scene
def steps_that_change_in_a_collection():
    for seed in range(60):
        drawn = random.Random(seed)  # noqa: S311 - it is to be the same again
        step = drawn.choice([list, lambda row: dict(enumerate(row))])(["a", "b", Many(["c"])])
        change = drawn.choice(
            [
                lambda step: step.clear(),
                lambda step: step.pop(1),
                lambda step: (
                    step.extend("xyz") if type(step) is list else step.update({9: 9, "k": 1})
                ),
            ]
        )
        at = drawn.randrange(1, 13)
        streams = demux(iter([["x", EOS, "y"], step, step, step]), 3)
        say(next(streams[0]))

        def act(phase, info, due=[at], then=(change, step)):  # noqa: B006 - one for each step
            change, step = then
            due[0] -= 1
            if not due[0]:
                with contextlib.suppress(LookupError):
                    change(step)

        with collections_at_once(act):
            found = [kind(next, streams[0]) for _ in range(3)]
        say(len(found))  # the reference may fail too, and differently


def busy(data=bytes(10_000)):
    """Let other threads run, as a source does that computes."""
    zlib.crc32(data)


def steps_that_take_long(size, count):
    for n in range(count):
        busy()
        yield as_list(size, n)


class Iterator:
    def __init__(self, steps):
        self._steps = steps

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._steps)


class Sender(Iterator):
    def send(self, live):
        return next(self)


def run_all(functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@scene
def threads_that_pull_one_batch():
    size, steps = 4, 400
    for form in (iter, Iterator, Sender):
        batch = BatchedStream(form(steps_that_take_long(size, steps)), size)
        given = [[] for _ in batch]

        def read(stream, outputs):
            for output in stream:
                outputs.append(output)
                if len(outputs) % 50 == 0:
                    outputs.extend(stream.drain())

        run_all([partial(read, *pair) for pair in zip(batch, given, strict=True)])
        wanted = [[f"{slot}.{n}" for n in range(steps)] for slot in range(size)]
        say(form.__name__, given == wanted, batch.statistics())


def disturb(streams, drawn):
    """Cancel some streams, and drop some."""
    for _ in range(20):
        busy()
        slot = drawn.randrange(1, 4)
        stream = streams[slot]
        if stream is not None and drawn.random() < 0.1:
            stream.cancel()
        del stream
        if drawn.random() < 0.05:
            streams[slot] = None


@scene
def threads_that_cancel_and_drop_what_others_read():
    for seed in range(10):
        streams = list(demux(steps_that_take_long(4, 300), 4))
        given = [[] for _ in streams]

        def read(slot, streams=streams, given=given):
            with contextlib.suppress(StopIteration):
                while (stream := streams[slot]) is not None:
                    given[slot].append(next(stream))
                    del stream

        drawn = random.Random(seed)  # noqa: S311 - it is to be the same again
        run_all([partial(disturb, streams, drawn), *(partial(read, slot) for slot in range(4))])
        wanted = [[f"{slot}.{n}" for n in range(len(given[slot]))] for slot in range(4)]
        say(len(given[0]), given == wanted)


@scene
def threads_that_read_one_stream():
    gate, begun = threading.Event(), threading.Event()

    def source():
        yield ["a", "b"]
        begun.set()
        gate.wait(SECONDS)
        yield ["c", "d"]

    first, second = demux(source(), 2)
    say(next(first))
    found = []
    thread = threading.Thread(target=lambda: found.append(outcome(next, first)))
    thread.start()
    begun.wait(SECONDS)
    say(outcome(next, first), outcome(first.drain), second.drain())
    gate.set()
    thread.join()
    say(found, outcome(next, first))
