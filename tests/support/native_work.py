"""Pieces of work that pass through every file of the native core, with outcomes that are known.

Tests let allocations fail in the midst of them, and count what they leave behind. So a piece of
work is prepared first; as it acts it allocates nothing of its own: it puts what it receives into
places that are there.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar

import numpy as np

from batchstream import (
    EOS,
    SKIP,
    AsyncBatchedStream,
    BatchedStream,
    End,
    Fail,
    Last,
    Many,
    MissingEOSError,
    StepError,
    demux,
    token_ids,
)
from batchstream._core.cores import core_of
from batchstream._core.rules import EndRules

NOTHING = object()
"""What is in a place where nothing was put."""


class Output:
    """An output that can be referred to weakly."""

    __slots__ = ("__weakref__", "name")

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name


class Work:
    """A batch that is pulled: every stream is read to its end.

    Attributes:
        size: How many slots the batch has.
        options: The options of the batch.
        errors: The kinds of error that streams end with, if all goes well.
        streams: What is read.
        places: For each stream, the places for its outputs.
        ends: For each stream, the place for the error that it ends with.
    """

    size = 3
    options: ClassVar = {}
    errors = ()

    def __init__(self):
        self.streams = list(self.open())
        self.places = [[NOTHING] * 40 for _ in self.streams]
        self.ends = [None] * len(self.streams)

    def open(self):
        return demux(self.source(), self.size, **self.options)

    def source(self):
        return give(list(self.steps()))

    def steps(self):
        for number in range(6):
            yield [Output(f"{slot}.{number}") for slot in range(self.size)]
        yield [EOS] * self.size

    def act(self):
        for number in range(len(self.streams)):
            try:
                self.read(self.streams[number], self.places[number])
            except self.errors as error:
                self.ends[number] = error.with_traceback(None)  # which refers to this work

    @staticmethod
    def read(stream, places):
        place = places.index(NOTHING)
        for output in stream:
            places[place] = output
            place += 1

    def finish(self):
        """Read what is left, after the first act was broken off."""
        for number, stream in enumerate(self.streams):
            try:
                self.read(stream, self.places[number])
            except Exception as error:  # noqa: BLE001 - part of the outcome
                self.ends[number] = error.with_traceback(None)

    def outputs(self):
        """Return the names of what each stream has given, one by one or in lists."""
        return [list(map(repr, flat(places))) for places in self.places]

    def reasons(self):
        return [stream.finish_reason for stream in self.all()]

    def told(self):
        """Return all errors that the streams have, and have raised."""
        return [*self.ends, *(stream.end and stream.end.error for stream in self.all())]

    def all(self):
        """Return the streams of the batch."""
        return self.streams

    def close(self):
        """Leave nothing behind."""


def give(steps):
    """Yield steps that are there, as making them may need memory."""
    yield from steps


def flat(places):
    for output in places:
        if isinstance(output, list | tuple):
            yield from output
        elif output is not NOTHING:
            yield output


class Tuples(Work):
    def steps(self):
        yield from map(tuple, super().steps())


class Iterators(Work):
    def source(self):
        return iter(list(self.steps()))


class Senders(Work):
    class Source:
        def __init__(self, steps):
            self.steps = steps

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.steps)

        def send(self, live):
            return next(self.steps)

    def source(self):
        return self.Source(iter(list(self.steps())))


class Marked(Work):
    size = 4
    errors = (ValueError,)

    def steps(self):
        make = (Output(f"output {number}") for number in range(100)).__next__
        yield [make(), make(), Many([make(), make()]), SKIP]
        yield [Last(make(), "length", {"tokens": 2}), make(), Many([]), make()]
        yield [make(), SKIP, Many([make(), Last(make()), make()]), make()]
        yield [EOS, End("cancelled"), make(), make()]
        yield [make(), make(), make(), Fail(ValueError("alone"))]


class Mappings(Work):
    def steps(self):
        make = (Output(f"output {number}") for number in range(100)).__next__
        yield {0: make(), 1: make(), 2: make()}
        yield {2: make(), 0: make()}
        yield {0: EOS, 1: make()}
        yield {1: make(), 2: make(), 0: make()}
        yield {np.int64(1): make(), np.int64(2): make()}
        yield {1: make(), 2: make()}
        yield {1: Last(make()), 2: EOS}


class Arrays(Work):
    def steps(self):
        for number in range(4):
            yield np.arange(3) + 300 * number
        yield np.arange(6).reshape(3, 2)
        yield np.array([EOS, 1000, 2000], dtype=object)
        yield np.arange(3) + 5000


class Limited(Work):
    options: ClassVar = {"max_outputs": [2, None, 4]}

    def steps(self):
        yield from list(super().steps())[:-1]


class Asked(Work):
    options: ClassVar = {"is_eos": lambda output: output.name == "1.3", "include_eos": True}


class AskedForIds(Work):
    options: ClassVar = {"is_eos": token_ids(1003, 2004), "require_eos": True}
    errors = (MissingEOSError,)

    def steps(self):
        for number in range(6):
            yield [1000 * slot + number for slot in range(self.size)]


class Refused(Work):
    """A step that cannot be read fails the batch."""

    errors = (StepError,)

    def steps(self):
        yield from list(super().steps())[:3]
        yield [1]


class Raising(Work):
    errors = (ValueError,)

    def source(self):
        return and_raise(list(self.steps())[:3])


def and_raise(steps):
    """Yield steps, then raise; the error's traceback refers to nothing else."""
    yield from steps
    raise ValueError("of the source")


class Buffered(Work):
    """Streams whose buffers grow, and are taken from one by one and all at once."""

    size = 2

    def steps(self):
        for number in range(20):
            yield [Output(f"{slot}.{number}") for slot in range(self.size)]

    def act(self):
        first, second = self.streams
        self.places[0][0] = next(first)
        self.read(first, self.places[0])
        self.places[1][0] = next(second)
        self.places[1][1] = second.drain()


class Cancelled(Work):
    """Streams that are cancelled as they hold outputs."""

    def act(self):
        self.places[0][0] = next(self.streams[0])
        self.streams[1].cancel()
        self.places[0][1] = next(self.streams[0])
        self.places[2][0] = next(self.streams[2])
        self.streams[0].cancel()
        self.read(self.streams[2], self.places[2])

    def finish(self):
        self.streams[0].cancel()
        self.streams[1].cancel()
        super().finish()


class ByTime(Work):
    """A batch that is read step by step."""

    def open(self):
        self.batch = BatchedStream(self.source(), self.size)
        return [self.batch.steps()]

    @staticmethod
    def read(stream, places):
        place = places.index(NOTHING)
        for delivery in stream:
            if delivery.values:
                places[place] = delivery.values
                place += 1

    def all(self):
        return self.batch


class CoreAlone(Work):
    """A core that is fed, without streams."""

    def open(self):
        self.core = core_of(EndRules(**self.options, opens_slots=True), self.size, None)
        return [None]

    def __init__(self):
        super().__init__()
        self.left = [
            ["a", "b", "c"],
            {0: "d", 1: Last("e"), 2: Many(["f", "g"])},
            ("h", "late", "i"),
            np.array(["j", "k", "l"], dtype=object),
        ]

    def act(self):
        while self.left and self.core.running:
            self.take(self.core.feed(self.left[0]))
            del self.left[0]
        if self.core.running:
            self.core.open(1, max_outputs=3)
            self.core.statistics()
            self.core.cancel(1)
            self.core.finish()

    def take(self, delivery):
        if delivery.values:
            places = self.places[0]
            places[places.index(NOTHING)] = delivery.values
        for _, end in delivery.ends:
            self.ends[0] = self.ends[0] or end.error

    def finish(self):
        """Fail the core, as a pump does."""
        if self.core.running:
            self.take(self.core.fail(MemoryError()))

    def reasons(self):
        return [str(self.core.live)]

    def told(self):
        return self.ends


class InLoop(Work):
    """A batch that a task of asyncio moves; each stream has a task of its own."""

    def open(self):
        self.loop = asyncio.new_event_loop()
        self.loop_error = None
        self.loop.set_exception_handler(self.tell)
        self.tasks = []
        return demux(self.source(), self.size, **self.options)

    def __init__(self):
        super().__init__()
        for stream, places in zip(self.streams, self.places, strict=True):
            self.tasks.append(self.loop.create_task(self.aread(stream, places)))

    def tell(self, _, about):
        self.loop_error = about.get("exception")

    def source(self):
        return self.asource(list(self.steps()))

    async def asource(self, steps):
        for step in steps:
            await asyncio.sleep(0)
            yield step

    @staticmethod
    async def aread(stream, places):
        place = 0
        async for output in stream:
            places[place] = output
            place += 1

    def act(self):
        self.turn(60)

    def turn(self, count):
        """Run the loop for so many turns, without what else the loop does as it begins and ends."""
        asyncio._set_running_loop(self.loop)
        try:
            for _ in range(count):
                self.loop._stopping = True  # so that it waits for nothing
                self.loop._run_once()
        finally:
            asyncio._set_running_loop(None)

    def finish(self):
        self.turn(200)
        for task in self.tasks:
            task.cancel()  # one that has got no wake-up
        self.turn(20)
        for number, task in enumerate(self.tasks):
            self.ends[number] = outcome_of(task)

    def told(self):
        return [self.loop_error, *super().told()]

    def close(self):
        self.turn(20)
        self.loop.close()
        self.tasks = []


def outcome_of(task):
    """Return what a task raised. Some never end: asyncio was out of memory as it resumed them."""
    if not task.done():
        task._log_destroy_pending = False
        return TimeoutError()
    return asyncio.CancelledError() if task.cancelled() else task.exception()


class InLoopBuffered(InLoop):
    """Streams that have to give the others their turn."""

    size = 2

    def steps(self):
        for number in range(70):
            yield [number, number + 1000]

    async def asource(self, steps):
        for step in steps:
            yield step

    def __init__(self):
        super().__init__()
        for places in self.places:
            places.extend([NOTHING] * 100)


class InLoopBrokenOff(InLoop):
    """Receives that are broken off in every way."""

    async def aread(self, stream, places):
        waiting = anext(stream)
        waiting.send(None)
        waiting.close()
        waiting = anext(stream)
        waiting.send(None)
        with contextlib.suppress(KeyError):
            waiting.throw(KeyError)
        waiting = anext(stream)
        waiting.send(None)
        del waiting
        places[0] = await anext(stream)
        places[1] = stream.drain() or await anext(stream)
        if places is self.places[0]:
            stream.cancel()
        place = 2
        async for output in stream:
            places[place] = output
            place += 1


class InLoopByTime(InLoop):
    def open(self):
        super().open()
        self.batch = AsyncBatchedStream(self.source(), self.size)
        return [self.batch.steps()]

    @staticmethod
    async def aread(stream, places):
        place = 0
        async for delivery in stream:
            if delivery.values:
                places[place] = delivery.values
                place += 1

    def all(self):
        return self.batch


def works(base=Work):
    """Return all kinds of work."""
    return {each.__name__: each for each in walk(base)}


def walk(base):
    yield base
    for each in base.__subclasses__():
        yield from walk(each)


WORKS = works()
