"""Scenes with sources that fail, change as they run, or use their own batch."""

from __future__ import annotations

import copy
import weakref
from itertools import chain

from batchstream import BatchedStream, ContinuousBatcher, demux
from support.scenes.stage import (
    ERRORS,
    USES,
    kind,
    outcome,
    read_all,
    reasons,
    say,
    scene,
    used,
)


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
            self.count += 1
            if self.count == 6:
                raise StopIteration
            return ["first", live]

        def second(self, live):
            del self.send
            return ["second", live]

    streams = demux(Changing(), 2)
    say([outcome(next, streams[0]) for _ in range(3)])
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


@scene
def a_stream_that_its_iterator_drops_as_it_waits():
    held = []

    def source():
        yield ["a1", "b1"]
        yield ["a2", "b2"]
        gone().cancel()
        say("inside", next(held[0], "over"))
        yield ["a3", "b3"]
        yield ["a4", "b4"]

    first, second = demux(source(), 2)
    gone = weakref.ref(first)
    held.append(chain(first))
    del first
    say([next(held[0], "over") for _ in range(4)], gone() is None)
    read_all([second])


@scene
def an_engine_whose_step_cannot_be_read():
    class Engine:
        steps = 0

        def add(self, slot, request):
            pass

        def remove(self, slot):
            say("removed")

        def step(self):
            self.steps += 1
            return {5: "no such slot"} if self.steps == 3 else {0: "a"}

    counted = []

    class Counts:
        def __getattr__(self, name):
            return lambda *args, **words: counted.append(name)

    with ContinuousBatcher(Engine, max_batch_size=1, metrics=Counts()) as batcher:
        for _ in range(2):
            read_all([batcher.stream("request")])
        figures = batcher.statistics()
    say(figures.steps, figures.occupancy, figures.outputs, figures.finished)
    say(sorted(counted))
