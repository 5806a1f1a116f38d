"""The thread that fetches requests from LitServe's queue for the slots that are free."""

import queue
import threading

import pytest
from litserve.loops.base import _SENTINEL_VALUE

from batchstream.integrations.litserve._worker.queue import RequestPrefetcher
from support.sources import TIMEOUT


class Watched(queue.Queue):
    """A queue that fails if more requests are taken than there are slots."""

    def __init__(self, *elements, slots=1000, error=None):
        super().__init__()
        for element in elements:
            self.put(element)
        self.slots = slots
        self._error = error
        self._asking = threading.Condition()

    def get(self, block=True, timeout=None):
        assert self.slots > 0, "it takes more than there are slots"
        if self._error is not None and self.empty():
            raise self._error
        element = super().get(block, timeout)
        self.slots -= 1
        return element


def take_until(prefetcher, count):
    taken = []
    while len(taken) < count:
        taken += prefetcher.take(block=True)
    return taken


def ended(prefetcher, before):
    """Whether the threads that were started since have ended."""
    for thread in set(threading.enumerate()) - before:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    return True


@pytest.mark.rule(30)
def test_it_fetches_no_more_than_there_are_slots_and_leaves_the_rest_to_other_workers():
    waiting = Watched(*"abcdef", slots=2)
    prefetcher = RequestPrefetcher(waiting, 2)
    assert take_until(prefetcher, 2) == ["a", "b"]
    assert waiting.qsize() == 4
    waiting.slots = 1
    prefetcher.release_slot()
    assert take_until(prefetcher, 1) == ["c"]
    assert prefetcher.take(block=False) == []
    assert waiting.qsize() == 3
    assert not prefetcher.over
    prefetcher.close()


def test_the_sentinel_ends_it_behind_what_came_before():
    before = set(threading.enumerate())
    prefetcher = RequestPrefetcher(Watched("a", "b", _SENTINEL_VALUE, "c"), 9)
    assert ended(prefetcher, before)
    assert not prefetcher.over
    assert prefetcher.take(block=True) == ["a", "b"]
    for _ in range(2):
        assert prefetcher.take(block=True) == []
        assert prefetcher.over


@pytest.mark.rule(9)
def test_an_error_of_the_queue_is_raised_behind_what_came_before():
    before = set(threading.enumerate())
    prefetcher = RequestPrefetcher(Watched("a", error=EOFError("gone")), 9)
    assert ended(prefetcher, before)
    assert prefetcher.take(block=False) == ["a"]
    for block in (True, False):
        with pytest.raises(EOFError, match="gone"):
            prefetcher.take(block=block)


def test_it_looks_for_news_without_waiting():
    prefetcher = RequestPrefetcher(Watched(), 0)
    assert prefetcher.take(block=False) == []
    prefetcher.close()


@pytest.mark.rule(28)
def test_closing_ends_its_thread_that_waits_for_a_slot():
    before = set(threading.enumerate())
    prefetcher = RequestPrefetcher(Watched("a", "b"), 1)
    assert take_until(prefetcher, 1) == ["a"]
    assert list(prefetcher.close()) == []
    assert ended(prefetcher, before)


@pytest.mark.rule(28)
def test_closing_ends_its_thread_that_waits_in_the_queue():
    class Idle(queue.Queue):
        asked, closed = threading.Event(), threading.Event()

        def get(self, block=True, timeout=None):
            assert not self.given_up, "it asks on"
            self.given_up = self.closed.is_set()
            self.asked.set()
            assert self.closed.wait(TIMEOUT)
            raise queue.Empty

        given_up = False

    before, idle = set(threading.enumerate()), Idle()
    prefetcher = RequestPrefetcher(idle, 1)
    assert idle.asked.wait(TIMEOUT)
    prefetcher.close()
    idle.closed.set()
    assert ended(prefetcher, before)
    assert prefetcher._error is None


@pytest.mark.rule(9)
def test_closing_returns_the_requests_that_have_been_fetched():
    class Asked(Watched):
        third = threading.Event()

        def get(self, block=True, timeout=None):
            if self.empty():
                self.third.set()  # both have been handed over by now
            return super().get(block, timeout)

    waiting = Asked("a", "b")
    prefetcher = RequestPrefetcher(waiting, 3)
    assert waiting.third.wait(TIMEOUT)
    assert list(prefetcher.close()) == ["a", "b"]
    waiting.put("late")


@pytest.mark.rule(2)
def test_a_request_that_is_fetched_after_closing_goes_back_into_the_queue():
    class Late(queue.Queue):
        asked, closed = threading.Event(), threading.Event()

        def get(self, block=True, timeout=None):
            self.asked.set()
            assert self.closed.wait(TIMEOUT)
            return super().get(block, timeout)

    before, waiting = set(threading.enumerate()), Late()
    waiting.put("late")
    prefetcher = RequestPrefetcher(waiting, 1)
    assert waiting.asked.wait(TIMEOUT)
    assert list(prefetcher.close()) == []
    waiting.closed.set()
    assert ended(prefetcher, before)
    assert waiting.queue == type(waiting.queue)(["late"])
