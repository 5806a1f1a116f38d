"""In the main process: when it is told to end, its children end with it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from types import FrameType

_WORKER: Final = "inference-worker"
_BY_SIGNAL: Final = 128


def end_together() -> None:
    """Make SIGTERM end LitServe as Ctrl-C does, unless somebody has decided what it does.

    On its own it ends the main process alone, and leaves the others behind. The same is to be said
    of an error while the server starts: the interpreter would wait for children that never end.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only that one may decide
    handler = signal.getsignal(signal.SIGTERM)
    if handler is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, Interrupt(os.getpid()))
        atexit.register(_terminate_litserve, os.getpid())
    elif isinstance(handler, Interrupt):
        handler.told = False


class Interrupt:
    """What the main process does at SIGTERM.

    Args:
        process: The main process; one that it has forked inherits this, and not what it is for.

    Attributes:
        told: Whether it has been told: a second time would break off the shutdown.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self.told = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        """End LitServe if it runs, and otherwise the process, as is the default."""
        names = {child.name for child in _litserves_children()}
        if os.getpid() != self._process or not names:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.told:
            self.told = True
            if names == {_WORKER}:  # it still starts, and would not know what to do
                sys.exit(_BY_SIGNAL + number)
            raise KeyboardInterrupt


def _terminate_litserve(process: int) -> None:
    # Before multiprocessing's own function at exit, which waits for them; there are none after
    # LitServe's shutdown. A forked process has inherited this as well.
    if os.getpid() == process:
        for child in _litserves_children():
            child.terminate()


def _litserves_children() -> list[BaseProcess]:
    return [
        child
        for child in multiprocessing.active_children()
        if child.name == _WORKER or child.name.startswith("LitServer-")
    ]
