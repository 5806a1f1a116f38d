"""A line in the log `batchstream`: the only place that writes one, but for LitServe's processes."""

from __future__ import annotations

import logging
from threading import current_thread, main_thread
from typing import Final

from batchstream._core.errors import report_unraisable

logger: Final = logging.getLogger("batchstream")
logger.addHandler(logging.NullHandler())


def write_line(
    level: int,
    kind: str,
    message: str,
    *args: object,
    error: BaseException | None = None,
    **extra: object,
) -> None:
    """Write a line; what a handler or filter raises goes to `sys.unraisablehook`.

    They are the user's: no stream ends by their errors, and no lock is held as they are called.

    Args:
        level: How much an operator has to know of it.
        kind: What it says, in a word that never changes; an extra field of the line.
        message: The text, with `%` for the arguments.
        args: The arguments.
        error: An error whose traceback the line has.
        extra: More extra fields.

    Raises:
        KeyboardInterrupt: A handler is interrupted in the program's main thread.
    """
    if not logger.isEnabledFor(level):
        return
    try:
        logger.log(level, message, *args, exc_info=error, extra={"kind": kind, **extra})
    except BaseException as raised:
        # It is not the batch's, but an interrupt is meant for the caller.
        if isinstance(raised, KeyboardInterrupt) and current_thread() is main_thread():
            raise
        report_unraisable(raised)
