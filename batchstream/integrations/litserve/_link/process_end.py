"""The ends of other processes, which are not children of this one."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import wait
from typing import Final

SECONDS_BETWEEN_CHECKS: Final = 0.5
"""How often to ask for a process where the system has no descriptors of processes."""


def open_process(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process ends; the caller closes it.

    Returns:
        None if the system has no such descriptors, which are Linux's.

    Raises:
        ProcessLookupError: The process has ended.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        return None


def is_running(pid: int) -> bool:
    """Return whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended.

    Blocking: that long.
    """
    try:
        descriptor = open_process(pid)
    except ProcessLookupError:
        return
    if descriptor is None:
        while is_running(pid):
            time.sleep(SECONDS_BETWEEN_CHECKS)
        return
    try:
        wait([descriptor])
    finally:
        os.close(descriptor)
