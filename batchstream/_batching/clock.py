"""The clock of the batchers: their deadlines, waits and figures go by it.

Functions of the module, for tests to replace in one place; not an option of a batcher. Callers
read `clock.monotonic` at each call.
"""

from time import monotonic, strftime

__all__ = ["monotonic", "time_of_day"]


def time_of_day() -> str:
    """Return the time to the second, as logs show it."""
    return strftime("%H:%M:%S")
