"""Scenes with outputs and markers, and with the classes of streams."""

from __future__ import annotations

import asyncio
import collections.abc
import copy
import pickle
import weakref

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
from support.scenes.stage import (
    USES,
    Named,
    kind,
    outcome,
    read_all,
    reasons,
    say,
    scene,
    used,
)


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
    marks = {"none": {}, "ids": {"is_eos": token_ids(5)}, "eos": {"eos": SKIP.__class__.EOS}}
    for name, rules in marks.items():
        for step in (["a", output], (output, "b"), {0: output, 1: "b"}, [output, Last(output)]):
            streams = demux([["x", "y"], step, [output, output]], 2, **rules)
            say(name, [outcome(next, streams[0]) for _ in range(4)])
            read_all(streams)
    streams = demux([["x", EOS], ["y", output], {1: output}, {0: "z", 1: output}], 2)
    read_all(streams)


class Holding(list):
    """A step that holds something more."""


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
                    holder = Holding(["a2", "b2", "c2"])
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
        "Many of nothing": lambda: Many.__new__(Many),
        "Last of nothing": lambda: Last.__new__(Last),
        "End of nothing": lambda: End.__new__(End),
        "Fail of nothing": lambda: Fail.__new__(Fail),
        "a copy": lambda: copy.deepcopy(Many(["a", Last("A")])),
        "pickled": lambda: pickle.loads(pickle.dumps(Many(["a", Last("A")]))),  # noqa: S301 - our own
    }
    for name, make in markers.items():
        for before in ([], [["x", "y"], ["x", EOS]]):
            streams = demux([*before, [make(), "b"], ["c", make()]], 2)
            say(name, [kind(next, streams[0]) for _ in range(5)], reasons(streams))
    streams = demux([[forced(Many([1]), outputs=["a"]), "b"], ["c", "d"]], 2)
    say("Many of a list", {"TypeError", "a"}.issuperset([kind(next, streams[0])]))


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
        found = [kind(next, streams[1]) for _ in range(4)]
        say([each for each in found if each != "b"][:2], reasons(streams))


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
    say(
        sum(map(next, streams)), sum(map(next, streams)), next(streams[-1]), next(streams[0], "end")
    )


@scene
def classes_of_streams():
    for base in (Stream, AsyncStream):
        derived = kind(type, "Derived", (base,), {})
        say(base.__name__, kind(base), kind(base, 1, 2), kind(lambda base=base: base(buffer=1)))
        say(isinstance(derived, type) and [kind(derived), kind(derived, 1)])
        say(kind(type, "Both", (base, dict), {}), isinstance(base[int], object))
    (stream,) = demux([["a"]], 1)
    say(
        isinstance(stream, collections.abc.Iterator),
        isinstance(stream, Stream),
        iter(stream) is stream,
    )
    say(kind(setattr, stream, "name", 5), kind(setattr, stream, "__class__", AsyncStream))
    say(kind(setattr, stream, "_buffer", None) if batchstream.__native__ else "AttributeError")
    for use in (copy.copy, copy.deepcopy, pickle.dumps, hash, len, bool, lambda it: it == it):  # noqa: PLR0124 - as a user may
        say(kind(use, stream) if use is not hash else "a hash")
    say(weakref.ref(stream)() is stream, kind(stream.__reduce_ex__, 2))
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
