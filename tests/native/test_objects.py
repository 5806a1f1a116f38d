"""Whatever objects a user passes: the native core does what the reference does, and never crashes.

The scenes are played in processes of their own, so that a crash in one is the failure of one test.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import support.scenes.__main__  # noqa: F401 - it enters all scenes into the list
from support import knobs
from support.natively import needs_native
from support.scenes.stage import SCENES

pytestmark = [needs_native, pytest.mark.timeout(300)]

TESTS = Path(__file__).parents[1]
PLAYER = [sys.executable, "-X", "dev", "-m", "support.scenes"]


@functools.cache
def played(pure):
    """Play all scenes with one of the cores, and return for each what it has printed."""
    found = {}
    while len(found) < len(SCENES):
        found |= play([name for name in SCENES if name not in found], pure)
    return found


def play(names, pure):
    """Play scenes up to the first that ends the process; what ended it is part of that scene."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(  # noqa: S603 - our own program
        [*PLAYER, *names],
        env={**os.environ, "PYTHONPATH": path, "BATCHSTREAM_PURE": pure},
        capture_output=True,
        text=True,
        check=False,
    )
    scenes = dict(part.partition("\n")[::2] for part in ended.stdout.split("==== ")[1:])
    if ended.returncode:
        assert scenes, ended.stderr
        scenes[list(scenes)[-1]] += f"(ended with {ended.returncode})\n{ended.stderr}"
    scenes.pop("over", None)
    return scenes


@pytest.mark.parametrize("scene", SCENES)
def test_both_cores_do_the_same_with(scene):
    expected = played("1")[scene]
    assert "the scene fails" not in expected
    assert played("")[scene].splitlines() == expected.splitlines()


# ---- the native types themselves, which no user is given

MISUSE = """
    import asyncio, collections, faulthandler, gc, sys
    faulthandler.dump_traceback_later(60, exit=True)
    from batchstream import *
    from batchstream._native.selection import native

    kind = getattr(native, {name!r})
    (stream,) = demux([["a"]] * 3, 1)

    class Evil:
        def __getattr__(self, name):
            raise ValueError(name)
        def __index__(self):
            raise ValueError("index")
        __bool__ = __iter__ = __call__ = __len__ = __index__

    pool = [
        None, 0, -1, 2**70, 1.5, "text", b"bytes", (), [], {{}}, set(), object(), Evil(), True, int,
        stream, stream._buffer, stream._upstream, native.Buffer(0), ValueError("an error"),
        iter([]), iter([1]), collections.deque(), native.Core, print,
    ]

    def attempt(function, *args, **words):
        try:
            return function(*args, **words)
        except BaseException as error:
            return error

    def objects():
        try:
            yield kind.__new__(kind)
        except TypeError:  # it is made by its module alone
            async def source():
                yield ["a"]
            (astream,) = demux(source(), 1)
            yield anext(astream)
            return
        for first in pool:
            for rest in [(), (None,), ([], set()), ([], set(), [])]:
                it = kind.__new__(kind)
                attempt(it.__init__, first, *rest)
                yield it

    def use(it):
        for name in dir(it):
            method = attempt(getattr, it, name)
            if name in {{"__class__", "__init_subclass__", "__subclasshook__"}}:
                continue
            if name in {{"acquire", "__enter__"}} and it.locked():
                continue  # it waits
            if not callable(method) or name == "__doc__":
                for value in pool:
                    attempt(setattr, it, name, value)
                attempt(delattr, it, name)
                continue
            attempt(method)
            for value in pool:
                if name in {{"acquire"}} and it.locked():
                    continue
                attempt(method, value)
                attempt(method, value, None)
                attempt(method, None, value, value)
                attempt(method, [], value, set())
                attempt(method, value, msg=value)
            attempt(repr, it), attempt(len, it), attempt(list, it), attempt(hash, it)
        for value in pool:
            attempt(it.__init__, value, value)

    for it in objects():
        use(it)
        del it
    gc.collect()
    print("alive")
"""


@pytest.mark.parametrize(
    "name",
    ["AsyncStreamReader", "AsyncioWaiter", "Buffer", "Core", "Receive", "Role", "StreamReader"],
)
def test_a_native_type_that_is_misused_raises_and_never_crashes(name):
    ended = run_natively(MISUSE.format(name=name))
    assert ended.stdout.endswith("alive\n"), ended.stderr
    assert ended.returncode == 0


def test_every_native_type_is_misused():
    types = [each for each in vars(knobs.native).values() if isinstance(each, type)]
    misused = {"AsyncStreamReader", "AsyncioWaiter", "Buffer", "Core", "Receive", "Role"}
    assert {each.__name__ for each in types} == misused | {"StreamReader"}


def run_natively(program):
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(program)],
        env={**os.environ, "BATCHSTREAM_PURE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
