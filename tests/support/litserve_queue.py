"""LitServe's request queue, as a loop by itself finds it in front of it."""

import queue

from litserve.loops.base import _SENTINEL_VALUE


class RequestQueue(queue.Queue):
    """The sentinel joins no batch: a loop that waits for a first request gets it, and no other."""

    def get(self, block=True, timeout=None):
        in_a_moment = not block or (timeout is not None and timeout < 0.01)
        with self.mutex:
            if in_a_moment and self.queue and self.queue[0] == _SENTINEL_VALUE:
                raise queue.Empty
        return super().get(block, timeout)
