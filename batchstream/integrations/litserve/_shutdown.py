"""SIGTERM ends LitServe's main process together with its children."""

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


def install_sigterm_handler() -> None:
    """Make SIGTERM end LitServe as Ctrl-C does, unless the program has a handler for it.

    By default it ends the main process alone, and leaves the other processes behind. At exit the
    children are terminated as well: after an error while the server starts, the interpreter would
    wait for children that never end.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python lets no other thread set handlers
    handler = signal.getsignal(signal.SIGTERM)
    if handler is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, SigtermHandler(os.getpid()))
        atexit.register(_terminate_litserve, os.getpid())
    elif isinstance(handler, SigtermHandler):
        handler.handled = False


class SigtermHandler:
    """What the main process does at SIGTERM.

    Args:
        process: The main process. A process that it forks inherits the handler, but not its task.

    Attributes:
        handled: Whether a signal has been handled: another one would break off the shutdown.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self.handled = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        """End LitServe if it runs, and otherwise the process, as is the default."""
        names = {child.name for child in _litserve_children()}
        if os.getpid() != self._process or not names:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.handled:
            self.handled = True
            if names == {_WORKER}:  # it is still starting, and would not handle Ctrl-C
                sys.exit(_BY_SIGNAL + number)
            raise KeyboardInterrupt


def _terminate_litserve(process: int) -> None:
    # This runs before multiprocessing's own function at exit, which waits for the children. After
    # LitServe's shutdown there are none. A forked process has inherited this function as well.
    if os.getpid() == process:
        for child in _litserve_children():
            child.terminate()


def _litserve_children() -> list[BaseProcess]:
    return [
        child
        for child in multiprocessing.active_children()
        if child.name == _WORKER or child.name.startswith("LitServer-")
    ]
