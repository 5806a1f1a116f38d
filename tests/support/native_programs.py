"""Random programs that use batches in all forms that need no second thread, and log what they see.

Run as a program, it takes a seed and a number of actions, and prints a line for each observation.
Two cores that do the same print the same. Everything that is drawn comes from the seed; outputs,
errors and streams are named, never shown by their address.

    python tests/support/native_programs.py 7 20000
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import weakref
from functools import partial

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
    demux,
    token_ids,
)

OVER = "over"


class Sentinel:
    """An end mark that is always shown the same."""

    def __repr__(self):
        return "the end mark"


SENTINEL = Sentinel()


class Token:
    """An output, known by its name; anything but looking at its name is refused."""

    def __init__(self, name):
        self.name = name

    def _refuse(self, *_):
        raise AssertionError("an output was touched")

    __eq__ = __bool__ = __hash__ = __len__ = __index__ = _refuse

    def __repr__(self):
        return self.name


class Merged(list):
    """Outputs that were merged."""


def merged(earlier, later):
    return Merged([*(earlier if type(earlier) is Merged else [earlier]), later])


def bytes_of(output):
    return len(output) if type(output) is Merged else 1


def shown(value):
    """Name anything that a program sees."""
    if isinstance(value, Token):
        return value.name
    if isinstance(value, BaseException):
        return shown_error(value)
    if isinstance(value, np.ndarray):
        return f"array{value.tolist()}"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(shown, value))}]"
    if hasattr(value, "reason"):
        return f"{value.reason}/{value.outputs}/{value.info}/{shown(value.error)}"
    return f"{type(value).__name__}:{value!r}"


def shown_error(error):
    """Name an error with its causes, and the attributes that its class gives it."""
    own = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    cause = "" if error.__cause__ is None else f" from {shown_error(error.__cause__)}"
    return f"{type(error).__name__}({error}){own or ''}{cause}"


# ---- sources


class Script:
    """The steps of one batch, drawn one by one, and what happens to the source.

    Args:
        drawn: Where everything is drawn from.
        size: How many slots the batch has.
        eos: The end mark in use.
        log: Takes lines.
    """

    def __init__(self, drawn, size, eos, log):
        self.drawn = drawn
        self.size = size
        self.eos = eos
        self.log = log
        self.left = drawn.choice([0, 1, 2, 5, 10, 30, 100])
        self.plain = drawn.choice([0.5, 0.8, 0.9, 0.97, 1.0])  # how much of it is outputs alone
        self.kinds = drawn.choice(["tokens", "numbers", "both", "both"])
        self.shapes = drawn.choice(
            [["list"], ["list", "tuple"], ["dict"], ["array"], ["rows"], SHAPES, SHAPES]
        )
        self.fails = drawn.choice(
            [None, None, None, ValueError, KeyError, StopIteration, Interrupt]
        )
        self.count = 0

    def output(self):
        self.count += 1
        if self.kinds == "numbers" or (self.kinds == "both" and self.drawn.random() < 0.5):
            return self.drawn.randrange(9)
        return Token(f"o{self.count}")

    def marker(self, *, nested=False):
        drawn = self.drawn
        info = drawn.choice([None, {"tokens": self.count}])
        reason = drawn.choice(["eos", "length", "cancelled"])
        error = drawn.choice([ValueError("alone"), StopIteration(3), Interrupt("alone")])
        kinds = [
            lambda: SKIP,
            lambda: SKIP,
            lambda: EOS,
            lambda: self.eos,
            lambda: Last(self.output(), reason, info),
            lambda: End(reason, info),
            lambda: Fail(error),
            self.output,
        ]
        if not nested:
            kinds += [self.many] * 3
        return drawn.choice(kinds)()

    def many(self):
        return Many([self.element(nested=True) for _ in range(self.drawn.randrange(4))])

    def element(self, *, nested=False):
        return self.output() if self.drawn.random() < self.plain else self.marker(nested=nested)

    def next(self, live):
        """Return the next step, or raise; `live` is what the source was sent, if anything."""
        drawn = self.drawn
        if live is not None:
            self.log("sent", live)
        if not self.left:
            if self.fails is None:
                return OVER
            raise self.fails("of the source")
        self.left -= 1
        row = [self.element() for _ in range(self.size)]
        if drawn.random() < 0.01:
            return drawn.choice(
                [row[1:], [*row, 1], 5, "text", {self.size: 1}, {"a": 2}, {True: 1}]
            )
        return getattr(self, f"as_{drawn.choice(self.shapes)}")(row, live)

    def as_list(self, row, live):
        return row

    def as_tuple(self, row, live):
        return tuple(row)

    def as_dict(self, row, live):
        slots = live if live and self.drawn.random() < 0.8 else range(self.size)
        return {slot: row[slot] for slot in slots if self.drawn.random() < 0.95}

    def as_dict_by_numpy(self, row, live):
        return {np.int64(slot): element for slot, element in enumerate(row)}

    def as_array(self, row, live):
        return np.array([self.drawn.randrange(9) for _ in row], dtype=np.int64)

    def as_objects(self, row, live):
        array = np.empty(self.size, dtype=object)
        for slot, element in enumerate(row):
            array[slot] = element
        return array

    def as_rows(self, row, live):
        return np.arange(self.size * 2).reshape(self.size, 2)

    def close(self):
        self.log("the source is closed")
        if self.drawn.random() < 0.1:
            raise ValueError("at close")


class Interrupt(BaseException):
    """What stops a program, and is no KeyboardInterrupt."""


SHAPES = ["list", "list", "tuple", "dict", "dict_by_numpy", "array", "objects", "rows"]


def generator(script):
    try:
        live = None
        while True:
            step = script.next(live)
            if step is OVER:
                return
            live = yield step
    finally:
        script.close()


def delegating(script):
    """Yield some steps from a list, which cannot be sent anything, and some from a generator."""
    steps = []
    with contextlib.suppress(Exception):
        while len(steps) < 3 and (step := script.next(None)) is not OVER:
            steps.append(step)
    yield from steps
    yield from generator(script)


class Iterator:
    """A source that is sent nothing."""

    def __init__(self, script):
        self._script = script

    def __iter__(self):
        return self

    def __next__(self):
        step = self._script.next(None)
        if step is OVER:
            raise StopIteration
        return step


class Sender(Iterator):
    """A source that is sent the live slots, and is no generator."""

    def send(self, live):
        step = self._script.next(live)
        if step is OVER:
            raise StopIteration
        return step

    def close(self):
        self._script.close()


SOURCES = [generator, generator, delegating, Iterator, Sender]


async def async_generator(script):
    try:
        live = None
        while True:
            for _ in range(script.drawn.choice([0, 0, 0, 1, 2])):
                await asyncio.sleep(0)
            step = script.next(live)
            if step is OVER:
                return
            live = yield step
    finally:
        script.close()


class AsyncIterator:
    """An asynchronous source that is sent nothing."""

    def __init__(self, script):
        self._script = script

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        step = self._script.next(None)
        if step is OVER:
            raise StopAsyncIteration
        return step


ASYNC_SOURCES = [async_generator, async_generator, AsyncIterator]

# ---- options


def is_two(output):
    return type(output) is int and output == 2


def is_two_or_fails(output):
    if type(output) is int and output == 5:
        raise ValueError("is_eos")
    return is_two(output)


def options(drawn, size):
    """Draw the options of a batch; most have few."""
    found = {"eos": drawn.choice([None, None, None, EOS, SENTINEL])}
    if drawn.random() < 0.4:
        found["is_eos"] = drawn.choice([token_ids(2, 7), token_ids(1), is_two, is_two_or_fails])
    if drawn.random() < 0.3:
        found["include_eos"] = True
    if drawn.random() < 0.3:
        limits = [drawn.choice([None, 1, 2, 5, 20]) for _ in range(size)]
        found["max_outputs"] = drawn.choice([limits, 1, 3, 10])
    if drawn.random() < 0.2:
        found["require_eos"] = True
    if drawn.random() < 0.25:
        found["max_buffered"] = drawn.choice([1, 2, 5])
    return found


# ---- programs


class Program:
    """One batch, and random actions upon it.

    Args:
        drawn: Where everything is drawn from.
        log: Takes lines.
    """

    def __init__(self, drawn, log):
        self.drawn = drawn
        self.log = log
        self.size = drawn.choice([0, 1, 1, 2, 2, 3, 3, 4, 8])
        self.options = options(drawn, self.size)
        self.script = Script(drawn, self.size, self.options["eos"], log)
        self.streams = []
        self.batch = None
        self.taken = 0

    def attempt(self, name, action, *args):
        """Do something, and log how it comes out."""
        self.taken += 1
        try:
            result = action(*args)
        except BaseException as error:  # noqa: BLE001 - interrupts too
            self.log(name, error)
        else:
            self.log(name, result)

    def take_state(self):
        """Log all that can be seen without an action."""
        for stream in self.streams:
            if stream is not None:
                self.log(f"{stream!r}", stream.slot, stream.end)
        if self.batch is not None:
            self.log(f"{self.batch!r}", self.batch.live, self.batch.statistics())

    def drop(self, slot):
        """Drop a stream, and say whether that was the last reference to it."""
        gone = weakref.ref(self.streams[slot])
        self.streams[slot] = None
        return gone() is None

    def pick(self):
        """Draw the slot of a stream that is there, or None."""
        there = [slot for slot, stream in enumerate(self.streams) if stream is not None]
        live = [slot for slot in there if self.streams[slot].end is None]
        if live and self.drawn.random() < 0.8:
            there = live
        return self.drawn.choice(there) if there else None

    def rounds(self):
        """Draw how many actions to take, and end soon when there is nothing more to see."""
        over = 0
        for _ in range(self.drawn.choice([5, 20, 60])):
            over += all(stream is None or stream.end is not None for stream in self.streams)
            if over > 4:
                return
            yield


class Pulled(Program):
    """A batch whose consumers pull."""

    def run(self):
        drawn = self.drawn
        source = drawn.choice(SOURCES)(self.script)
        size = self.size if drawn.random() < 0.8 else None
        self.attempt("open", self.open, source, size)
        del source
        for _ in self.rounds():
            self.act()
            if drawn.random() < 0.2:
                self.take_state()
        if drawn.random() < 0.5:
            for stream in filter(None, self.streams):
                self.attempt("all", list, stream)
        self.take_state()
        if self.batch is not None and drawn.random() < 0.5:
            self.attempt("close", self.batch.close)
            self.take_state()
        self.streams = []
        self.batch = None

    def open(self, source, size):
        if self.drawn.random() < 0.3:
            self.streams = list(demux(source, size, **self.options))
        else:
            self.batch = BatchedStream(source, size, **self.options)
            if self.drawn.random() < 0.25:
                self.read_by_time()
            else:
                self.streams = list(self.batch)

    def read_by_time(self):
        steps = self.batch.steps()
        for _ in range(self.drawn.choice([1, 5, 40])):
            self.attempt("delivery", self.delivery, steps)
            if self.size and self.drawn.random() < 0.1:
                self.attempt("cancel", self.batch.cancel, self.drawn.randrange(self.size))
        self.streams = list(self.batch)[: self.drawn.randrange(2)]

    @staticmethod
    def delivery(steps):
        found = next(steps)
        return in_slots(found)

    def act(self):
        slot = self.pick()
        if slot is None:
            return
        stream = self.streams[slot]
        actions = {
            "next": (60, next, stream),
            "receive": (5, stream.receive),
            "next or default": (15, next, stream, OVER),
            "drain": (10, stream.drain),
            "some": (5, self.some, stream),
            "cancel": (3, stream.cancel),
        }
        if self.batch is None:  # which would hold its streams
            actions["drop"] = (2, self.drop, slot)
        name = self.drawn.choices(list(actions), [weight for weight, *_ in actions.values()])[0]
        _, action, *args = actions[name]
        del stream, actions
        self.attempt(name, action, *args)

    def some(self, stream):
        return [output for output, _ in zip(stream, range(5), strict=False)]


def in_slots(delivery):
    """Return what a delivery gives to each slot; which slot comes first is open."""
    given = {}
    for slot, output in delivery.outputs:
        given.setdefault(slot, []).append(output)
    return sorted(given.items()), sorted(delivery.ends, key=lambda end: end[0])


class InLoop(Program):
    """A batch that a task of asyncio moves."""

    async def run(self):
        drawn = self.drawn
        source = drawn.choice(ASYNC_SOURCES)(self.script)
        self.attempt("open", self.open, source)
        del source
        if self.batch is not None and drawn.random() < 0.25:
            await self.read_by_time()
        for _ in self.rounds():
            await self.act()
            if drawn.random() < 0.2:
                self.take_state()
        if drawn.random() < 0.5:
            await asyncio.gather(*(self.aattempt("all", self.all(s)) for s in self.streams if s))
        self.take_state()
        if self.batch is not None and drawn.random() < 0.7:
            await self.aattempt("aclose", self.batch.aclose())
            self.take_state()
        self.streams = []
        self.batch = None

    def open(self, source):
        if self.drawn.random() < 0.3:
            if self.drawn.random() < 0.2:
                self.options["on_overflow"] = "cancel"
            self.bound()
            self.streams = list(demux(source, self.size, **self.options))
        else:
            self.bound()
            self.batch = AsyncBatchedStream(source, self.size, **self.options)
            self.streams = list(self.batch)

    def bound(self):
        """Let some streams merge what comes, or have a bound in bytes."""
        if self.drawn.random() < 0.2 and "on_overflow" not in self.options:
            self.options |= {"on_overflow": "merge", "merge": merged}
        if self.drawn.random() < 0.2:
            self.options["max_buffered_bytes"] = self.drawn.choice([1, 3, 8])
            self.options["size_of"] = bytes_of

    async def aattempt(self, name, awaitable):
        """Do something that waits, for as long as it can be that it ends, and log its outcome."""
        self.taken += 1
        task = asyncio.ensure_future(awaitable)
        del awaitable
        # A receive waits for ever while another stream has no room; else it ends in a few turns.
        for _ in range(200):
            if task.done():
                break
            await asyncio.sleep(0)
        else:
            name += " (broken off)"
            task.cancel()
        try:
            result = await task
        except BaseException as error:  # noqa: BLE001 - interrupts too
            self.log(name, error)
        else:
            self.log(name, result)
        finally:
            del task  # whose error has this frame in its traceback

    async def read_by_time(self):
        steps = self.batch.steps()
        for _ in range(self.drawn.choice([1, 5, 40])):
            await self.aattempt("delivery", self.delivery(steps))
            if self.size and self.drawn.random() < 0.1:
                self.attempt("cancel", self.batch.cancel, self.drawn.randrange(self.size))
        self.streams = self.streams[: self.drawn.randrange(2)]

    @staticmethod
    async def delivery(steps):
        return in_slots(await anext(steps))

    @staticmethod
    async def all(stream):
        return [output async for output in stream]

    async def some(self, stream):
        found = []
        async for output in stream:
            found.append(output)
            if len(found) == 5:
                break
        return found

    async def act(self):
        slot = self.pick()
        if slot is None:
            await asyncio.sleep(0)
            return
        stream = self.streams[slot]
        actions = {
            "anext": (40, anext, stream),
            "anext or default": (10, anext, stream, OVER),
            "some": (10, self.some, stream),
            "in no time": (8, self.in_no_time, stream),
            "aclose": (1, stream.aclose),
            "break off": (8, self.break_off, stream),
            "all at once": (6, self.all_at_once),
            "two at once": (2, self.two_at_once, stream),
            "drain": (10, stream.drain),
            "cancel": (3, stream.cancel),
        }
        if self.batch is None:  # which would hold its streams
            actions["drop"] = (2, self.drop, slot)
        name = self.drawn.choices(list(actions), [weight for weight, *_ in actions.values()])[0]
        _, action, *args = actions[name]
        del stream, actions
        if name in {"drain", "cancel", "drop"}:
            self.attempt(name, action, *args)
        elif name in {"break off", "all at once", "two at once"}:
            await action(*args)
        else:
            await self.aattempt(name, action(*args))

    async def all_at_once(self):
        streams = [each for each in self.streams if each is not None]
        await asyncio.gather(*(self.aattempt("at once", anext(each)) for each in streams))

    async def two_at_once(self, stream):
        await asyncio.gather(*(self.aattempt("two", anext(stream)) for _ in range(2)))

    async def break_off(self, stream):
        self.taken += 1
        task = asyncio.ensure_future(anext(stream))
        for _ in range(self.drawn.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
        try:
            self.log("broken off", await task)
        except BaseException as error:  # noqa: BLE001 - interrupts too
            self.log("broken off", error)
        finally:
            del task

    async def in_no_time(self, stream):
        try:
            async with asyncio.timeout(0):
                return await anext(stream)
        except TimeoutError:
            return "timeout"


# ---- a run


def run(seed, actions, write):
    """Run programs until so many actions were taken; `write` takes lines."""
    drawn = random.Random(seed)  # noqa: S311 - it is to be the same again

    def log(name, *things):
        write(f"{name}: {' '.join(map(shown, things))}\n")

    sys.unraisablehook = lambda about: log("unraisable", about.exc_value)
    gc.disable()
    taken, programs = 0, 0
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(
        lambda _, about: log("the loop is told", about["message"], about.get("exception"))
    )
    while taken < actions:
        programs += 1
        write(f"---- program {programs}\n")
        if drawn.random() < 0.6:
            program = Pulled(random.Random(drawn.random()), log)  # noqa: S311
            program.run()
        else:
            program = InLoop(random.Random(drawn.random()), log)  # noqa: S311
            task = loop.create_task(program.run())
            while not task.done():
                with contextlib.suppress(Interrupt):  # a pump's task passes it on
                    loop.run_until_complete(asyncio.wait([task]))
            task.result()
        taken += program.taken
        if programs % 50 == 0:
            gc.collect()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    write(f"{taken} actions in {programs} programs\n")


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), partial(sys.stdout.write))
