"""The clock of all batchers: deadlines, waits and figures go by it.

Callers look `monotonic` up in this module at each call, so that tests replace it in one place.
"""

from time import monotonic

__all__ = ["monotonic"]
