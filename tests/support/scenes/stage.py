"""What all scenes use: a scene says what it sees, and that is the same whichever core runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial

SECONDS = float(os.environ.get("NATIVE_SECONDS", "60"))
"""No scene takes so long, unless it hangs; under a tool that makes it slow it may."""

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
    except BaseException as error:  # noqa: BLE001 - it is the outcome
        return error.with_traceback(None)


def kind(function, *args):
    """Return what a call returns, or the type of what it raises, where the text is CPython's."""
    try:
        return function(*args)
    except BaseException as error:  # noqa: BLE001 - it is the outcome
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
    except BaseException as error:  # noqa: BLE001 - it is the outcome
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
"""What a source or a predicate may raise."""


used = []
"""The batch and the streams of a scene, for what uses them in the middle."""


def call(number, method):
    return getattr(used[number], method)()


def drop_second():
    used[0] = None
    used[2] = None


USES = {
    "receives from the stream that waits": partial(call, 1, "__next__"),
    "receives from another": partial(call, 2, "__next__"),
    "receives from a third": partial(call, 3, "__next__"),
    "drains the stream that waits": partial(call, 1, "drain"),
    "drains another": partial(call, 2, "drain"),
    "cancels the stream that waits": partial(call, 1, "cancel"),
    "cancels another": partial(call, 2, "cancel"),
    "cancels a third": partial(call, 3, "cancel"),
    "cancels all": lambda: [stream.cancel() for stream in used[1:] if stream],
    "drops another": drop_second,
    "closes the batch": lambda: used[0] and used[0].close(),
    "reads by time": lambda: used[0] and next(used[0].steps()),
    "asks which are live": lambda: used[0] and used[0].live,
}
"""What may be done with a batch in the middle of its own step."""
