"""Scenes with objects that a user may pass, and that do what no one expects of them.

Run as a program, it takes the names of scenes, plays them, and prints a headline for each and what
it saw. What is printed has to be the same whichever core runs.

    python tests/support/native_objects.py "steps that change while is_eos runs"
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import copy
import faulthandler
import gc
import pickle
import random
import sys
import threading
import weakref
import zlib

import numpy as np

import batchstream
from batchstream import (
    EOS,
    SKIP,
    AsyncStream,
    BatchedStream,
    End,
    Fail,
    Last,
    Many,
    Stream,
    demux,
    token_ids,
)

SECONDS = 60
"""No scene takes so long, unless it hangs."""

SCENES = {}


def scene(function):
    SCENES[function.__name__.replace("_", " ")] = function
    return function


def say(*things):
    print(*map(shown, things), flush=True)


def shown(thing):
    if isinstance(thing, BaseException):
        return f"{type(thing).__name__}: {thing}"
    if isinstance(thing, list | tuple):
        return f"[{', '.join(map(shown, thing))}]"
    return str(thing)


def outcome(function, *args):
    try:
        return function(*args)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome
        return error.with_traceback(None)


def kind(function, *args):
    """Return what a call returns, or the type of what it raises, where the text is CPython's."""
    try:
        return function(*args)
    except BaseException as error:  # noqa: BLE001
        return type(error).__name__


def reasons(streams):
    return [stream and (stream.finish_reason or "live") for stream in streams]


def read_all(streams):
    """Read streams to their ends, and say what they give."""
    for stream in filter(None, streams):
        given = []
        with contextlib.suppress(StopIteration):
            while not isinstance(given[-1:] and given[-1], BaseException):
                given.append(outcome_but_stop(stream))
        say("the rest", given, stream.finish_reason)


def outcome_but_stop(stream):
    try:
        return next(stream)
    except StopIteration:
        raise
    except BaseException as error:  # noqa: BLE001
        return error.with_traceback(None)


class Named:
    """An output, or part of one, that does something as it is freed."""

    def __init__(self, name, then=None):
        self.name = name
        self.then = then

    def __repr__(self):
        return self.name

    def __del__(self):
        if self.then is not None:
            self.then()


# ---- sources

ERRORS = [
    ValueError("of the source"),
    StopIteration("of the source"),
    StopAsyncIteration("of the source"),
    RuntimeError("of the source"),
    MemoryError("of the source"),
    RecursionError("of the source"),
    KeyboardInterrupt("of the source"),
    SystemExit("of the source"),
    GeneratorExit("of the source"),
    BaseException("of the source"),
    asyncio.CancelledError("of the source"),
]


class Raising:
    """An iterator that raises in a step; it may be sent things."""

    def __init__(self, at, error):
        self.count = 0
        self.at = at
        self.error = error

    def __iter__(self):
        return self

    def __next__(self):
        self.count += 1
        if self.count > self.at:
            raise self.error
        return [f"a{self.count}", f"b{self.count}"]


class RaisingSender(Raising):
    def send(self, live):
        return next(self)


def raising_generator(at, error):
    for count in range(1, at + 1):
        yield [f"a{count}", f"b{count}"]
    raise error


@scene
def sources_that_raise_anything_at_any_step():
    for kind_of_source in (Raising, RaisingSender, raising_generator):
        for error in ERRORS:
            for at in (0, 1, 3):
                streams = demux(kind_of_source(at, copy.copy(error)), 2)
                say(kind_of_source.__name__, type(error).__name__, at)
                say([outcome(next, streams[0]) for _ in range(at + 2)], reasons(streams))
                read_all(streams)


@scene
def a_source_whose_class_changes_as_it_runs():
    class Other:
        pass

    class Changing:
        count = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.count += 1
            if self.count == 2:
                self.__class__ = Other
            return [self.count]

    (stream,) = demux(Changing(), 1)
    say([kind(next, stream) for _ in range(4)], stream.finish_reason)


@scene
def a_source_whose_class_loses_its_method_as_it_runs():
    class Losing:
        count = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.count += 1
            if self.count == 3:
                del Losing.__next__
            return [self.count]

    (stream,) = demux(Losing(), 1)
    say([kind(next, stream) for _ in range(5)], stream.finish_reason)


@scene
def a_source_whose_method_is_replaced_as_it_runs():
    class Replacing:
        def __iter__(self):
            return self

        def __next__(self):
            Replacing.__next__ = lambda _: ["replaced"]
            return ["first"]

    (stream,) = demux(Replacing(), 1)
    say([outcome(next, stream) for _ in range(3)])


@scene
def a_source_that_is_sent_things_and_changes_how():
    class Changing(Raising):
        def __init__(self):
            super().__init__(9, None)
            self.send = self.first

        def first(self, live):
            self.send = self.second
            return ["first", live]

        def second(self, live):
            del self.send
            return ["second", live]

    streams = demux(Changing(), 2)
    say([outcome(next, streams[0]) for _ in range(4)])
    read_all(streams)


@scene
def a_source_with_a_send_that_is_no_function():
    class NoFunction(Raising):
        send = 5

    streams = demux(NoFunction(9, None), 2)
    say([kind(next, streams[0]) for _ in range(3)], reasons(streams))


@scene
def a_generator_that_delegates_to_anything():
    class Inner:
        def __init__(self):
            self.count = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.count += 1
            if self.count > 3:
                raise StopIteration("the result")
            return [self.count]

    class Listening(Inner):
        def send(self, live):
            say("sent", live)
            return next(self)

    class Refusing(Inner):
        def send(self, live):
            raise ValueError("not to be sent")

    def source():
        yield ["begin"]
        say((yield from Inner()))
        say((yield from Listening()))
        yield from [["list"], ["list"]]
        yield from Refusing()

    (stream,) = demux(source(), 1)
    read_all([stream])


@scene
def a_source_that_uses_its_own_batch():
    for name, use in USES.items():

        def source(use=use):
            yield ["a1", "b1", "c1"]
            say(outcome(use))
            yield ["a2", "b2", "c2"]
            yield ["a3", "b3", "c3"]

        used.clear()
        used.append(BatchedStream(source(), 3))
        used.extend(used[0])
        say(name, outcome(next, used[1]), outcome(next, used[1]))
        read_all(used[1:])
        used.clear()


used = []
"""The batch and the streams of a scene, for what uses them in the middle."""


def drop_second():
    used[0] = None
    used[2] = None


USES = {
    "receives from the stream that waits": lambda: next(used[1]),
    "receives from another": lambda: next(used[2]),
    "receives from a third": lambda: next(used[3]),
    "drains the stream that waits": lambda: used[1].drain(),
    "drains another": lambda: used[2].drain(),
    "cancels the stream that waits": lambda: used[1].cancel(),
    "cancels another": lambda: used[2].cancel(),
    "cancels a third": lambda: used[3].cancel(),
    "cancels all": lambda: [stream.cancel() for stream in used[1:] if stream],
    "drops another": drop_second,
    "closes the batch": lambda: used[0] and used[0].close(),
    "reads by time": lambda: used[0] and next(used[0].steps()),
    "counts": lambda: used[0] and used[0].statistics().outputs,
}


@scene
def an_iterator_that_uses_its_own_batch():
    class Source:
        count = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.count += 1
            if self.count == 3:
                say(outcome(USES[self.use]))
            if self.count == 5:
                raise StopIteration
            return [f"{name}{self.count}" for name in "abc"]

    for use in USES:
        source = Source()
        source.use = use
        used.clear()
        used.append(BatchedStream(source, 3))
        used.extend(used[0])
        say(use, [outcome(next, used[1]) for _ in range(3)])
        read_all(used[1:])
        used.clear()


# ---- steps


class Array:
    """What looks like an array. Each use of it takes the next of the given behaviours."""

    def __init__(self, dimensions, *lists):
        self._dimensions = dimensions
        self._lists = list(lists)

    @property
    def ndim(self):
        if isinstance(self._dimensions, BaseException):
            raise self._dimensions
        return self._dimensions

    def tolist(self):
        found = self._lists[0] if len(self._lists) == 1 else self._lists.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found


class Rows(Array):
    def __iter__(self):
        return iter(["row 0", "row 1"])


class Number(int):
    """A number of a class of its own, which claims to be equal to all."""

    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class List(list):
    pass


ARRAYS = {
    "plain": lambda: Array(1, ["a", "b"]),
    "a tuple": lambda: Array(1, ("a", "b")),
    "a list of a class of its own": lambda: Array(1, List(["a", "b"])),
    "a marker": lambda: Array(1, ["a", Last("b")]),
    "another width": lambda: Array(1, ["a"]),
    "a number": lambda: Array(1, 5),
    "a text": lambda: Array(1, "ab"),
    "a dict": lambda: Array(1, {0: "a", 1: "b"}),
    "a dict of another width": lambda: Array(1, {0: "a", 1: "b", 2: "c"}),
    "a set": lambda: Array(1, {7}),
    "nothing": lambda: Array(1, None),
    "an error": lambda: Array(1, ValueError("tolist")),
    "a stop": lambda: Array(1, StopIteration("tolist")),
    "an interrupt": lambda: Array(1, KeyboardInterrupt("tolist")),
    "another width, then right": lambda: Array(1, ["a"], ["a", "b"], ["a", "b"]),
    "no dimensions": lambda: Array(ValueError("ndim")),
    "a dimension that interrupts": lambda: Array(KeyboardInterrupt("ndim"), ["a", "b"]),
    "dimensions that are true": lambda: Array(True, ["a", "b"]),  # noqa: FBT003
    "no dimension": lambda: Array(0, ["a", "b"]),
    "too many dimensions": lambda: Array(2**70, ["a", "b"]),
    "a negative dimension": lambda: Array(-1, ["a", "b"]),
    "dimensions of a class of their own": lambda: Array(Number(1), ["a", "b"]),
    "a text as dimensions": lambda: Array("1", ["a", "b"]),
    "rows": lambda: Rows(2, ["a", "b"]),
    "a row": lambda: Rows(1, ["a", "b"]),
}


@scene
def arrays_that_are_none():
    for before in ("nothing", "plain"):
        for name, make in ARRAYS.items():
            known = [ARRAYS["plain"]()] * 2 if before == "plain" else []
            streams = demux([*known, make(), make(), make()], 2)
            say(before, name, [outcome(next, streams[0]) for _ in range(7)])
            read_all(streams)


class Lying(collections.abc.Sequence):
    """A sequence whose length is another at each look."""

    def __init__(self, *lengths):
        self.lengths = list(lengths)

    def __len__(self):
        length = self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]
        if isinstance(length, BaseException):
            raise length
        return length

    def __getitem__(self, index):
        if index >= 2:
            raise IndexError
        return f"element {index}"


class LyingList(list):
    def __len__(self):
        return 7

    def __iter__(self):
        return iter(["one", "two"])


class LyingDict(dict):
    def items(self):
        return [(0, "zero"), (1, "one")]


@scene
def sequences_that_lie():
    steps = {
        "longer": lambda: Lying(9),
        "shorter": lambda: Lying(0),
        "negative": lambda: Lying(-1),
        "huge": lambda: Lying(2**70),
        "an error": lambda: Lying(ValueError("length")),
        "longer, then right": lambda: Lying(9, 2),
        "a list": lambda: LyingList(["a", "b"]),
        "a dict": lambda: LyingDict({5: "five"}),
    }
    for name, make in steps.items():
        streams = demux([make(), make()], 2)
        say(name, [kind(next, streams[0]) for _ in range(3)])


class Key:
    """A key of a step that is a number, or refuses to be one."""

    def __init__(self, number, hashed=None):
        self.number = number
        self.hashed = number if hashed is None else hashed

    def __hash__(self):
        return self.hashed

    def __eq__(self, other):
        if isinstance(self.number, BaseException):
            raise self.number
        return self is other

    def __index__(self):
        if isinstance(self.number, BaseException):
            raise self.number
        return self.number

    def __repr__(self):
        return "a key"


class NumberKey(int):
    """A number of a class of its own, that is equal to none."""

    def __eq__(self, other):
        return False

    def __hash__(self):
        return 0


@scene
def keys_that_do_anything():
    steps = {
        "numbers by method": lambda: {Key(0): "a", Key(1): "b"},
        "one by method": lambda: {0: "a", Key(1): "b"},
        "the same slot twice": lambda: {0: "a", Key(0): "A", 1: "b"},
        "too large": lambda: {0: "a", Key(2**70): "b"},
        "negative": lambda: {0: "a", Key(-1): "b"},
        "an error": lambda: {0: "a", Key(ValueError("key"), 5): "b"},
        "all of one hash": lambda: {Key(0, 0): "a", Key(1, 0): "b", NumberKey(5): "c"},
        "a class of its own": lambda: {NumberKey(0): "a", NumberKey(1): "b"},
        "the same slot twice by class": lambda: {NumberKey(0): "a", 0: "b"},
        "true": lambda: {0: "a", True: "b"},
        "numpy": lambda: {np.int8(0): "a", np.uint64(1): "b"},
        "numpy and plain": lambda: {0: "a", np.int64(1): "b"},
        "floats": lambda: {0.0: "a", 1.0: "b"},
        "mixed": lambda: {0: "a", "1": "b"},
    }
    for name, make in steps.items():
        streams = demux([["x", "y"], make(), make()], 2)
        say(name, [outcome(next, streams[0]) for _ in range(4)])
        read_all(streams)


@scene
def steps_that_change_while_is_eos_runs():
    changes = {
        "cleared": lambda step: step.clear(),
        "with more": lambda step: step.extend("xyz") if type(step) is list else step.update({9: 9}),
        "with less": lambda step: step.pop(2),
        "with others": lambda step: [step.__setitem__(n, f"other {n}") for n in range(3)],
        "with a marker": lambda step: step.__setitem__(2, EOS),
    }
    elements = {
        "outputs": ["a", "b", "c"],
        "a marker": ["a", "b", Last("c")],
        "many": [Many(["a", "A"]), "b", "c"],
        "a late output": ["a", "b", "c"],
    }
    for what, row in elements.items():
        for name, change in changes.items():
            for make in (list, lambda row: dict(enumerate(row))):
                step = make(row)

                def is_eos(output, step=step, change=change):
                    if output in {"a", "b"} and len(step) == 3:
                        change(step)
                    return False

                first = [["x", "y", EOS]] if what == "a late output" else []
                batch = BatchedStream([*first, step], 3, is_eos=is_eos)
                say(what, type(step).__name__, name, [outcome(next, batch[0]) for _ in range(2)])
                read_all(batch)
                say(batch.statistics())


@scene
def a_predicate_that_uses_the_batch():
    for name, use in USES.items():
        uses = [use]

        def is_eos(output, uses=uses):
            if output == "b2" and uses:
                say(outcome(uses.pop()))
            return False

        steps = [[f"{name}{number}" for name in "abc"] for number in (1, 2, 3)]
        used.clear()
        used.append(BatchedStream(steps, 3, is_eos=is_eos))
        used.extend(used[0])
        say(name, [outcome(next, used[1]) for _ in range(3)])
        read_all(used[1:])
        used.clear()


@scene
def a_predicate_that_returns_or_raises_anything():
    class NoTruth:
        def __bool__(self):
            raise ValueError("no truth")

    class WrongTruth:
        def __bool__(self):
            return 5

    class Length:
        def __len__(self):
            return 1

    def raising(error):
        def is_eos(output):
            if output == "b2":
                raise error
            return False

        return is_eos

    def returning(answer):
        return lambda output: answer if output == "b2" else None

    for answer in (NoTruth(), WrongTruth(), Length(), np.zeros(2), np.ones(1), "", "no", 0.0):
        say(type(answer).__name__)
        streams = demux([["a1", "b1"], ["a2", "b2"], ["a3", "b3"]], is_eos=returning(answer))
        read_all(streams)
    for error in ERRORS:
        streams = demux([["a1", "b1"], ["a2", "b2"], ["a3", "b3"]], 2, is_eos=raising(error))
        say(type(error).__name__, [outcome(next, streams[0]) for _ in range(3)])
        read_all(streams)


# ---- outputs


class Grudging(type):
    """A class whose instances have a type that cannot be hashed or compared."""

    def __hash__(cls):
        raise ValueError("hashed")

    def __eq__(cls, other):
        raise ValueError("compared")


class OfGrudgingType(metaclass=Grudging):
    def __repr__(self):
        return "of a grudging type"


@scene
def outputs_whose_type_refuses_everything():
    output = OfGrudgingType()
    marks = {"none": {}, "ids": {"is_eos": token_ids(5)}, "eos": {"eos": OfGrudgingType()}}
    for name, rules in marks.items():
        for step in (["a", output], (output, "b"), {0: output, 1: "b"}, [output, Last(output)]):
            streams = demux([["x", "y"], step, [output, output]], 2, **rules)
            say(name, [outcome(next, streams[0]) for _ in range(4)])
            read_all(streams)
    streams = demux([["x", EOS], ["y", output], {1: output}, {0: "z", 1: output}], 2)
    read_all(streams)


@scene
def outputs_that_use_the_batch_as_they_are_freed():
    for name, use in USES.items():
        for place in ("received", "late", "discarded", "with the step"):

            def source(use=use, place=place):
                second = "b1"
                if place == "discarded":
                    second = Named("b1", lambda: say("freed", outcome(use)))
                yield ["a1", second, "c1"]
                del second
                output = Named("a2", lambda: say("freed", outcome(use)))
                if place == "received":
                    yield [output, "b2", "c2"]
                elif place == "with the step":
                    holder = List(["a2", "b2", "c2"])
                    holder.output = output
                    yield holder
                    del holder
                del output
                yield ["a3", "b3", "c3"]

            if place == "late":
                say("late")
                steps = late_steps(use)
            else:
                steps = source()
            used.clear()
            used.append(BatchedStream(steps, 3))
            used.extend(used[0])
            say(name, place, [str(outcome(next, used[1])) for _ in range(3)])
            if place == "discarded" and used[2]:
                used[2].cancel()
            read_all(used[1:])
            used.clear()


def late_steps(use):
    """Yield a step with an output for a slot that has finished, which is freed with the step."""
    yield ["a1", "b1", EOS]
    yield ["a2", "b2", Named("late", lambda: say("freed", outcome(use)))]
    yield ["a3", "b3", "c3"]


@scene
def markers_that_were_forced_into_another_form():
    def forced(marker, **fields):
        for name, field in fields.items():
            object.__setattr__(marker, name, field)
        return marker

    markers = {
        "Many of a list": lambda: forced(Many([1]), outputs=["a", "A"]),
        "Many of nothing": lambda: Many.__new__(Many),
        "Last of nothing": lambda: Last.__new__(Last),
        "End of nothing": lambda: End.__new__(End),
        "Fail of nothing": lambda: Fail.__new__(Fail),
        "a copy": lambda: copy.deepcopy(Many(["a", Last("A")])),
        "pickled": lambda: pickle.loads(pickle.dumps(Many(["a", Last("A")]))),  # noqa: S301
    }
    for name, make in markers.items():
        for before in ([], [["x", "y"], ["x", EOS]]):
            streams = demux([*before, [make(), "b"], ["c", make()]], 2)
            say(name, [kind(next, streams[0]) for _ in range(5)], reasons(streams))


def nested(depth):
    many = Many(["a"])
    for _ in range(depth):
        many = Many([many])
    return many


@scene
def many_within_many():
    streams = demux([["x", "y"], [nested(100), "b"], ["c", "d"]], 2)
    read_all(streams)


@scene
def more_many_within_many_than_python_can_follow():
    for before in (["x", "y"], [EOS, "y"]):
        streams = demux([before, [nested(100_000), "b"], ["c", "d"]], 2)
        say([kind(next, streams[1]) for _ in range(3)], reasons(streams))


@scene
def an_error_that_uses_the_batch_as_it_is_copied():
    class Using(Exception):
        def __new__(cls, *args):
            if len(used) > 1 and used[1].finish_reason == "error":
                say("copied", [outcome(drain) for drain in (used[1].drain, used[2].drain)])
                used[2].cancel()
            return super().__new__(cls, *args)

    used.clear()
    used.append(BatchedStream([["a", "b"], [Fail(Using("alone")), "c"]], 2))
    used.extend(used[0])
    say([outcome(next, used[1]) for _ in range(3)])
    read_all(used[1:])
    used.clear()


@scene
def no_slots_and_many_slots():
    say(list(demux([], 0)), list(demux([[], []])), list(demux(iter([[]]), 0)))
    streams = demux([list(range(3000))] * 2 + [[None] * 2999 + [5]], 3000)
    say(sum(map(next, streams)), sum(map(next, streams)), next(streams[-1]), next(streams[0], "end"))


# ---- classes


@scene
def classes_of_streams():
    for base in (Stream, AsyncStream):
        derived = kind(type, "Derived", (base,), {})
        say(base.__name__, kind(base), kind(base, 1, 2), kind(lambda base=base: base(buffer=1)))
        say(isinstance(derived, type) and [kind(derived), kind(derived, 1)])
        say(kind(type, "Both", (base, dict), {}), isinstance(base[int], object))
    (stream,) = demux([["a"]], 1)
    say(isinstance(stream, collections.abc.Iterator), isinstance(stream, Stream), iter(stream) is stream)
    say(kind(setattr, stream, "name", 5), kind(setattr, stream, "__class__", AsyncStream))
    say(kind(setattr, stream, "_buffer", None) if batchstream.__native__ else "AttributeError")
    for use in (copy.copy, copy.deepcopy, pickle.dumps, hash, len, bool, lambda it: it == it):  # noqa: PLR0124
        say(kind(use, stream) if use is not hash else "a hash")
    say(weakref.ref(stream)() is stream, kind(stream.__reduce__), kind(stream.__reduce_ex__, 2))
    astream = demux(forever(), 1)[0]
    say(isinstance(astream, collections.abc.AsyncIterator), aiter(astream) is astream)
    say(kind(iter, astream), kind(next, astream), kind(aiter, stream))


async def forever():
    while True:
        yield ["a"]


@scene
def readers_that_were_never_made():
    stream, astream = Stream.__new__(Stream), AsyncStream.__new__(AsyncStream)
    say(kind(next, stream), kind(stream.receive), kind(stream.receive, 5), kind(stream.drain))
    say(kind(list, stream), kind(next, stream, None), kind(stream._wait, None))
    for each in (stream, astream):
        say(kind(each.cancel), kind(repr, each), kind(lambda each=each: each.end))
        say(kind(lambda each=each: each.slot), kind(lambda each=each: each.finish_reason))
    say(kind(astream.drain))

    async def receive():
        return await anext(astream)

    say(kind(asyncio.run, receive()))


# ---- receives in event loops


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def in_turns(*steps, every=3):
    for step in steps:
        await turns(every)
        yield step


async def then_silent(*steps):
    for step in steps:
        yield step
    await asyncio.get_running_loop().create_future()


async def aoutcome(awaitable):
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001
        return error.with_traceback(None)


async def akind(awaitable):
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001
        return type(error).__name__


async def rest(stream):
    return [output async for output in stream]


def in_asyncio(function):
    """Make a scene of a coroutine function."""

    def play():
        asyncio.run(function())

    play.__name__ = function.__name__
    return scene(play)


@in_asyncio
async def a_receive_that_is_awaited_again():
    (stream,) = demux(in_turns(["a"], ["b"], ["c"]), 1)
    receive = anext(stream)
    say(await receive, await akind(receive), await akind(receive))
    say(kind(receive.send, None), kind(receive.throw, ValueError("thrown")), kind(receive.close))
    say(await rest(stream), await akind(receive))


@in_asyncio
async def a_receive_that_two_tasks_await_at_once():
    (stream,) = demux(in_turns(["a"], ["b"], ["c"]), 1)
    receive = anext(stream)

    async def wait():
        return await receive

    say(await asyncio.gather(akind(wait()), akind(wait())), await rest(stream))


@in_asyncio
async def a_stream_that_two_tasks_await_at_once():
    (stream,) = demux(in_turns(["a"], ["b"], ["c"]), 1)
    say(await asyncio.gather(*(aoutcome(anext(stream)) for _ in range(3))), await rest(stream))


THROWN = [
    ValueError("thrown"),
    asyncio.CancelledError("thrown"),
    GeneratorExit("thrown"),
    KeyboardInterrupt("thrown"),
]


@in_asyncio
async def a_receive_that_is_thrown_into():
    for error in THROWN:
        (stream,) = demux(then_silent(["a"], ["b"]), 1)
        new = anext(stream)
        say("new", kind(new.throw, error), kind(new.send, None))
        say(await anext(stream), await anext(stream))
        waiting = anext(stream)
        waiting.send(None)
        say("waiting", kind(waiting.throw, error), kind(waiting.send, None))
        task = asyncio.ensure_future(anext(stream))
        await turns(3)
        say("in vain", task.done(), task.cancel(), await akind(task))


@in_asyncio
async def a_receive_that_is_thrown_into_by_class():
    (stream,) = demux(then_silent(["a"]), 1)
    await anext(stream)
    waiting = anext(stream)
    waiting.send(None)
    say(outcome(waiting.throw, ValueError))
    waiting = anext(stream)
    waiting.send(None)
    say(kind(waiting.throw, "no error"), kind(waiting.throw), kind(waiting.close))


@in_asyncio
async def a_stop_that_is_thrown_into_a_receive():
    (stream,) = demux(then_silent(["a"], ["b"]), 1)
    new = anext(stream)
    say(kind(new.throw, StopIteration("thrown")))
    say(await anext(stream), await anext(stream))
    waiting = anext(stream)
    waiting.send(None)
    say(kind(waiting.throw, StopIteration("thrown")))
    waiting.close()
    task = asyncio.ensure_future(anext(stream))
    await turns(3)
    say(task.done(), task.cancel(), await akind(task))


@in_asyncio
async def a_receive_that_is_closed_in_each_state():
    (stream,) = demux(then_silent(["a"], ["b"]), 1)
    new = anext(stream)
    say(new.close(), new.close(), kind(new.send, None))
    say(await anext(stream), await anext(stream))
    waiting = anext(stream)
    waiting.send(None)
    say(waiting.close(), waiting.close(), kind(waiting.send, None), stream.drain())
    again = anext(stream)
    again.send(None)
    say(await akind(anext(stream)))
    again.close()
    stream.cancel()
    say(await akind(anext(stream)))


@in_asyncio
async def a_receive_that_is_closed_as_it_waits_for_its_turn():
    (stream,) = demux(then_silent(*[[n] for n in range(100)]), 1)
    first = [await anext(stream) for _ in range(64)]
    await turns(100)
    received = len(first)
    found = []
    for end in ("close", "throw", "drop"):
        while True:  # up to the receive that gives the others their turn
            receive = anext(stream)
            try:
                receive.send(None)
            except StopIteration as stop:
                found.append(stop.value)
                received += 1
                continue
            break
        if end == "close":
            receive.close()
        elif end == "throw":
            say(kind(receive.throw, ValueError("thrown")))
        del receive
    found.extend(stream.drain())
    say(first + found == list(range(100)), len(first) + len(found))


@in_asyncio
async def a_receive_that_is_dropped_as_it_waits():
    (stream,) = demux(in_turns(["a"], ["b"], every=5), 1)
    waiting = anext(stream)
    waiting.send(None)
    del waiting
    say(await rest(stream))


@in_asyncio
async def a_stream_that_is_dropped_as_its_receive_waits():
    (stream,) = demux(in_turns(["a"], ["b"], every=5), 1)
    gone = weakref.ref(stream)
    task = asyncio.ensure_future(anext(stream))
    await turns(2)
    del stream
    say(await akind(task), gone() is None)
    del task
    (stream,) = demux(in_turns(["a"], ["b"], every=5), 1)
    gone = weakref.ref(stream)
    receive = anext(stream)
    receive.send(None)
    del stream
    receive.close()
    del receive
    say(gone() is None)


@in_asyncio
async def receives_with_a_default():
    (stream,) = demux(in_turns(["a"], ["b"], [None]), 1)
    say([await anext(stream, "default") for _ in range(4)])
    (stream,) = demux(in_turns([()], [(1, 2)], [StopIteration(5)], [None]), 1)
    say([await anext(stream, "default") for _ in range(2)])
    say(await anext(stream, "default"), await anext(stream, "default"))
    (stream,) = demux(then_silent(["a"]), 1)
    say(await anext(stream, "default"))
    waiting = anext(stream, "default").__await__()
    waiting.send(None)
    say(kind(waiting.throw, ValueError("thrown")))
    waiting = anext(stream, "default").__await__()
    waiting.send(None)
    say(kind(waiting.close))


@in_asyncio
async def receives_with_a_timeout():
    (stream,) = demux(then_silent(["a"], ["b"]), 1)
    say(await asyncio.wait_for(anext(stream), 30), await akind(asyncio.wait_for(anext(stream), 0)))
    say(stream.drain())
    for _ in range(3):
        say(await akind(asyncio.wait_for(anext(stream), 1e-9)))

        async def in_time():
            async with asyncio.timeout(0):
                return await anext(stream)

        say(await akind(in_time()))
    task = asyncio.ensure_future(asyncio.shield(anext(stream)))
    await turns(3)
    stream.cancel()
    say(await akind(task))


@in_asyncio
async def receives_as_tasks():
    streams = demux(in_turns(["a1", "b1"], ["a2", "b2"], [None, None]), 2)
    say(asyncio.iscoroutine(anext(streams[0])))
    say(await asyncio.gather(*map(anext, streams)))
    tasks = [asyncio.create_task(anext(stream)) for stream in streams]
    done, waiting = await asyncio.wait(tasks)
    say(sorted(task.result() for task in done), waiting)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(rest(stream)) for stream in streams]
    say([task.result() for task in tasks])


@in_asyncio
async def tasks_that_are_cancelled_in_every_turn_of_a_receive():
    for turn in range(8):
        (stream,) = demux(in_turns(["a"], ["b"], ["c"], every=2), 1)
        task = asyncio.ensure_future(anext(stream))
        await turns(turn)
        say(turn, task.cancel(), await akind(task), await rest(stream))


@scene
def an_event_loop_that_is_closed_around_a_receive():
    gc.disable()
    for _ in range(3):
        loop = asyncio.new_event_loop()
        held = loop.run_until_complete(leave_waiting())
        loop.close()
        held, gone = None, held[1]
        del held
        gc.collect()
        say("collected", gone() is None)


async def leave_waiting():
    (stream,) = demux(then_silent(["a"]), 1)
    await anext(stream)
    receive = anext(stream)
    receive.send(None)
    cycle = [stream, receive]
    cycle.append(cycle)
    return cycle, weakref.ref(stream)


@scene
def tasks_that_are_forgotten_as_they_wait():
    gc.disable()
    loop = asyncio.new_event_loop()

    async def main():
        (stream,) = demux(then_silent(["a"]), 1)
        say(await rest(stream))

    task = loop.create_task(main())
    task._log_destroy_pending = False
    for _ in range(20):
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
    gone = weakref.ref(task)
    del task, loop
    gc.collect()
    say("collected", gone() is None)


@scene
def a_receive_that_ends_itself_in_the_middle():
    for end in ("close", "throw", "send", "drop the stream"):
        found = []

        class Loop(asyncio.SelectorEventLoop):
            def call_soon(self, callback, *args, context=None, end=end, found=found):
                if used:
                    receive = used.pop()
                    if end == "close":
                        found.append(kind(receive.close))
                    elif end == "throw":
                        found.append(kind(receive.throw, ValueError("thrown")))
                    elif end == "send":
                        found.append(kind(receive.send, None))
                return super().call_soon(callback, *args, context=context)

        async def main(end=end):
            (stream,) = demux(then_silent(["a"]), 1)
            receive = anext(stream)
            used.append(receive)
            if end == "drop the stream":
                del stream
                used.clear()
            say(await akind(receive))

        loop = Loop()
        task = loop.create_task(main())
        for _ in range(20):
            loop.call_soon(loop.stop)
            loop.run_forever()
        say(end, found, task.done() or task.cancel())
        loop.run_until_complete(asyncio.wait([task]))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        del loop, task


@scene
def receives_in_trio():
    import trio  # noqa: PLC0415 - it is not needed by the others

    async def source(gate):
        yield ["a"]
        yield ["b"]
        await gate.wait()
        yield ["c"]

    async def main():
        gate = trio.Event()
        (stream,) = demux(source(gate), 1)
        say(await anext(stream), await anext(stream, "default"))
        for _ in range(3):
            with trio.move_on_after(0) as scope:
                await anext(stream)
            say(scope.cancelled_caught)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_rest, stream)
            await trio.testing.wait_all_tasks_blocked()
            say(await akind(anext(stream)))
            gate.set()

    async def say_rest(stream):
        say(await rest(stream))

    import trio.testing  # noqa: PLC0415

    trio.run(main)


# ---- collections and threads that come in between


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

    gc.enable()
    gc.set_threshold(1)
    gc.callbacks.append(act)
    try:
        for slot, stream in enumerate(streams):
            # What a collection takes in the middle of a receive is older than what that returns.
            late = taken[slot]
            for output in stream:
                late.append(output)
    finally:
        gc.callbacks.clear()
        gc.set_threshold(700)
        gc.disable()
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
        drawn = random.Random(seed)  # noqa: S311
        step = drawn.choice([list, lambda row: dict(enumerate(row))])(["a", "b", Many(["c"])])
        change = drawn.choice([
            lambda step: step.clear(),
            lambda step: step.pop(1),
            lambda step: step.extend("xyz") if type(step) is list else step.update({9: 9, "k": 1}),
        ])
        at = drawn.randrange(12)
        streams = demux(iter([["x", EOS, "y"], step, step, step]), 3)
        say(next(streams[0]))
        count = [0]

        def act(phase, info, count=count, at=at, change=change, step=step):
            count[0] += 1
            if count[0] == at:
                with contextlib.suppress(LookupError):
                    change(step)

        gc.enable()
        gc.set_threshold(1)
        gc.callbacks.append(act)
        try:
            found = [kind(next, streams[0]) for _ in range(3)]
        finally:
            gc.callbacks.clear()
            gc.set_threshold(700)
            gc.disable()
        say(set(found) <= {"a", "StepError", "RuntimeError", "StopIteration"})


def busy(data=bytes(10_000)):
    """Let other threads run, as a source does that computes."""
    zlib.crc32(data)


@scene
def threads_that_pull_one_batch():
    for form in ("generator", "iterator", "sender"):
        size, steps = 4, 400

        def generator(size=size, steps=steps):
            for n in range(steps):
                busy()
                yield as_list(size, n)

        class Iterator:
            def __init__(self):
                self._steps = generator()

            def __iter__(self):
                return self

            def __next__(self):
                return next(self._steps)

        class Sender(Iterator):
            def send(self, live):
                return next(self)

        source = {"generator": generator, "iterator": Iterator, "sender": Sender}[form]()
        batch = BatchedStream(source, size)
        given = [[] for _ in batch]

        def read(stream, outputs):
            for output in stream:
                outputs.append(output)
                if len(outputs) % 50 == 0:
                    outputs.extend(stream.drain())

        threads = [
            threading.Thread(target=read, args=(batch[slot], given[slot])) for slot in range(size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        say(form, [given[slot] == [f"{slot}.{n}" for n in range(steps)] for slot in range(size)])
        say(batch.statistics())


@scene
def threads_that_cancel_and_drop_what_others_read():
    for seed in range(10):
        drawn = random.Random(seed)  # noqa: S311

        def source():
            for n in range(300):
                busy()
                yield as_list(4, n)

        streams = list(demux(source(), 4))
        given = [[] for _ in streams]

        def read(slot, streams=streams, given=given):
            with contextlib.suppress(StopIteration):
                while (stream := streams[slot]) is not None:
                    given[slot].append(next(stream))
                    del stream

        def disturb(streams=streams, drawn=drawn):
            for _ in range(20):
                busy()
                slot = drawn.randrange(1, 4)
                stream = streams[slot]
                if stream is not None and drawn.random() < 0.1:
                    stream.cancel()
                del stream
                if drawn.random() < 0.05:
                    streams[slot] = None

        threads = [threading.Thread(target=read, args=(slot,)) for slot in range(4)]
        threads.append(threading.Thread(target=disturb))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
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


# ---- a run


def main(names):
    gc.disable()
    sys.unraisablehook = lambda about: say("unraisable", about.exc_value)
    for name in names or SCENES:
        print("====", name, flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        play = SCENES[name]
        try:
            play()
        except BaseException as error:  # noqa: BLE001 - printed, and the other scenes go on
            import traceback  # noqa: PLC0415

            traceback.print_exc()
            say("the scene fails", error)
        gc.collect()
    faulthandler.cancel_dump_traceback_later()
    print("==== over", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
