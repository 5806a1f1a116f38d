"""Sources that record what is done to them, and outputs that refuse whatever is done to them."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

TIMEOUT = 30.0
"""How long a test waits for another thread before it fails, in seconds."""


def pairs(count):
    """Return steps of distinct outputs for two slots that do not end."""
    return [[("a", number), ("b", number)] for number in range(count)]


class ScriptedSource:
    """An iterator over given steps, with `send` and `close` like a generator's.

    An exception instance in place of a step is raised.

    Args:
        steps: What it yields, or raises.
        gates: By number of step: the gate to pass in it.
        on_step: Called when it is asked for a step.
        raise_at_close: What `close` raises.
    """

    def __init__(self, steps, *, gates=None, on_step=None, raise_at_close=None):
        self.steps = list(steps)
        self.pulled = 0
        self.sent: list[Any] = []
        self.closed = 0
        self.close_error = raise_at_close
        self.running = False
        self.on_step = on_step or (lambda: None)
        self._gates = gates or {}

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, live):
        assert not self.running, "the source was entered twice"
        assert not self.closed, "the source was advanced after it was closed"
        self.running = True
        try:
            self.sent.append(live)
            self.on_step()
            if self.pulled in self._gates:
                self._gates[self.pulled].pass_through()
            if self.pulled == len(self.steps):
                raise StopIteration
            step = self.steps[self.pulled]
            self.pulled += 1
            if isinstance(step, BaseException):
                raise step
            return step
        finally:
            self.running = False

    def close(self):
        assert not self.running, "the source was closed while it ran"
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error


class Gate:
    """A source's step that a test holds back: the source waits in it until it is opened."""

    def __init__(self):
        self.reached = threading.Event()
        self.opened = threading.Event()

    def pass_through(self):
        self.reached.set()
        assert self.opened.wait(TIMEOUT), "the gate was never opened"


class Untouchable:
    """An output that must not be compared, hashed, measured or tested."""

    def _refuse(self, *_):
        raise AssertionError("an output was touched")

    __eq__ = __ne__ = __lt__ = __bool__ = __hash__ = __len__ = __iter__ = __contains__ = _refuse
    __getitem__ = __call__ = __index__ = __int__ = _refuse

    def __repr__(self):
        return f"<Untouchable {id(self):#x}>"


class UnhashableType(type):
    """A class whose instances have a type that cannot be hashed or compared."""

    def __hash__(cls):
        raise AssertionError("an output's type was hashed carelessly")

    def __eq__(cls, other):
        raise AssertionError("an output's type was compared")


class OfUnhashableType(metaclass=UnhashableType):
    """An output of such a type."""


def run_in_threads(*functions):
    """Run the functions at the same time, and raise what any of them raised."""
    errors: list[BaseException] = []

    def run(function):
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def in_forked_child(function):
    """Run the function in a forked child, and return what it returns or raises, as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(TIMEOUT))  # ends a child that hangs
        try:
            try:
                result = str(function())
            except BaseException as error:  # noqa: BLE001 - the answer
                result = f"{type(error).__name__}: {error}"
            os.write(writer, result.encode())
            status = 0
        finally:
            os._exit(status)  # whatever happens: else the child would run tests, too
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return result
