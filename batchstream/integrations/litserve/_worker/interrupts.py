"""Ctrl-C in a worker: at a terminal it reaches every process of a program."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def leave_interrupts_to_main_process() -> None:
    """Let SIGINT end this worker only if LitServe's main process has ended.

    That one gets the signal as well. It lets the servers drain, for which workers have to go on,
    and ends them afterwards. Nothing changes where this process is no worker, where the program has
    a handler of its own, and on Windows.
    """
    parent = multiprocessing.parent_process()
    if (
        parent is None
        or os.name != "posix"
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        return
    main_process = parent.pid

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getppid() != main_process:
            signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, handle)
