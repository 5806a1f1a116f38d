"""The log `batchstream`: the only place that writes a line, but for LitServe's processes."""

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
    fields = {"kind": kind, **extra}
    try:  # the line's place is the caller's
        logger.log(level, message, *args, exc_info=error, extra=fields, stacklevel=2)
    except BaseException as raised:  # noqa: BLE001 - see `report_of_user`
        report_of_user(raised)


def report_of_user(error: BaseException) -> None:
    """Report what an object has raised that a user has passed to hear of things.

    Raises:
        KeyboardInterrupt: It is one, in the program's main thread.
    """
    # Whatever it is, it is not the batch's; but an interrupt is meant for the caller.
    if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
        raise error
    report_unraisable(error)
