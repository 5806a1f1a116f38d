"""Keys of the terminal, one by one and not line by line."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def single_keys() -> Iterator[bool]:
    """Let the terminal hand over each key at once and show none; say whether it does."""
    try:
        import termios  # noqa: PLC0415 - not everywhere
        import tty  # noqa: PLC0415
    except ImportError:  # a system without it: there Ctrl-C ends the view
        yield False
        return
    if not sys.stdin.isatty():
        yield False
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield True
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def wait_for_key(keys: str, seconds: float, *, has_keys: bool) -> bool:
    """Wait until one of some keys is pressed, or the time is over; return whether it was.

    Args:
        keys: The keys, one letter each.
        seconds: The time.
        has_keys: Whether the terminal hands over keys at all.
    """
    if not has_keys:
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    terminal = sys.stdin.fileno()
    while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        typed = os.read(terminal, 64).decode(errors="replace")
        if not typed or any(key in keys for key in typed):  # nothing: the terminal has gone
            return True
    return False
