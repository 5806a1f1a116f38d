"""The clock of the pumps: how long one waits for room goes by it.

A function of the module, for tests to replace in one place. Callers read `clock.monotonic` at each
call. The batchers have their own, `_batching/clock.py`.
"""

from time import monotonic

__all__ = ["monotonic"]
