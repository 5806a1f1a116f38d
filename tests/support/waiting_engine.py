"""An engine whose step waits for what a test gives it, and that can be woken."""

from __future__ import annotations

import queue
import threading
import time

from support.sources import TIMEOUT


def taken(events):
    """Wait for an event, and return it."""
    return events.get(timeout=TIMEOUT)


def until(condition):
    """Poll until something that other threads bring about is so."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


class Waiting:
    """An engine whose outputs come from elsewhere: its step waits for them, or to be woken.

    Attributes:
        requests: The requests in it, by slot.
        wakes: How often it was woken.
        closed: Set when it is closed.
        inside: Set while a step waits.
        added: The requests that were added, to be taken.
        removed: The requests that were removed, to be taken.
        entered: One thing for each step that has begun, to be taken.
    """

    def __init__(self):
        self.requests = {}
        self.wakes = 0
        self.closed = threading.Event()
        self.inside = threading.Event()
        self.added = queue.SimpleQueue()
        self.removed = queue.SimpleQueue()
        self.entered = queue.SimpleQueue()
        self._events = queue.SimpleQueue()

    def add(self, slot, request):
        if isinstance(request, Exception):
            raise request
        self.requests[slot] = request
        self.added.put(request)

    def remove(self, slot):
        self.removed.put(self.requests.pop(slot))

    def step(self):
        self.entered.put(None)
        self.inside.set()
        event = self._events.get(timeout=TIMEOUT)
        self.inside.clear()
        if isinstance(event, Exception):
            raise event
        return event

    def wake(self):
        self.wakes += 1
        self._events.put({})

    def give(self, step):
        """Let the step that waits, or the next, return this."""
        self._events.put(step)

    def close(self):
        self.closed.set()
