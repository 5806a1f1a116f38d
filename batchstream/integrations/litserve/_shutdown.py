"""In the main process: when it is told to end, its children end with it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def end_together() -> None:
    """Make SIGTERM end LitServe as Ctrl-C does, unless somebody has decided what it does.

    On its own it ends the main process alone, and leaves the others behind. The same is to be said
    of an error while the server starts: the interpreter would wait for children that never end.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only that one may decide
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt_of(os.getpid()))
        atexit.register(_terminate_children)


class _interrupt_of:  # noqa: N801 - a function with a value
    def __init__(self, process: int) -> None:
        self._process = process

    def __call__(self, number: int, _: FrameType | None) -> None:
        if os.getpid() == self._process:
            signal.signal(number, signal.SIG_IGN)  # being told twice would break off the clean end
            raise KeyboardInterrupt
        # A process that was forked since then has inherited this, and not what it is for.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _terminate_children() -> None:
    # Before multiprocessing's own function at exit, which waits for them; there are none after
    # LitServe's shutdown.
    for child in multiprocessing.active_children():
        child.terminate()
