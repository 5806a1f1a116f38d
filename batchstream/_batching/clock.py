"""The clock of the batchers: their deadlines, waits and figures go by it.

A function of the module, for tests to replace in one place; not an option of a batcher. Callers
read `clock.monotonic` at each call.
"""

from time import monotonic

__all__ = ["monotonic"]
