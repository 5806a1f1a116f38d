"""The thread that fetches requests from LitServe's queue one by one, as its worker adds them."""

import queue
import threading

import pytest
from litserve.loops.base import _SENTINEL_VALUE

from batchstream.integrations.litserve._worker.queue import RequestPrefetcher
from support.sources import TIMEOUT


class Watched(queue.Queue):
    """A queue that notes how it is asked, and says when it is waited for.

    Args:
        elements: What is in it.
        error: What it raises when it is empty, if anything.
    """

    def __init__(self, *elements, error=None):
        super().__init__()
        for element in elements:
            self.put(element)
        self._error = error
        self.asked = []
        self.waited_for = threading.Event()

    def get(self, block=True, timeout=None):
        self.asked.append("wait" if block else "look")
        if self._error is not None and self.empty():
            raise self._error
        if block and self.empty():
            self.waited_for.set()
        return super().get(block, timeout)


class Telling(Watched):
    """A queue that tells whether others wait, as that of a loop that orders its requests does."""

    def take(self, *, block=True, timeout=None):
        element = self.get(block, timeout)
        return element, not self.empty()


def ended(prefetcher, before):
    """Whether the threads that were started since have ended."""
    for thread in set(threading.enumerate()) - before:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    return True


def take_all_that_wait(prefetcher):
    taken = []
    while (one := prefetcher.take(block=not taken)) is not None:
        taken.append(one)
    return taken


@pytest.mark.rule(30)
@pytest.mark.parametrize("kind", [Watched, Telling])
def test_it_fetches_none_before_it_is_told_to_and_leaves_the_rest_to_other_workers(kind):
    waiting = kind(*"abc")
    prefetcher = RequestPrefetcher(waiting)
    assert waiting.asked == []
    assert prefetcher.take(block=True) == "a"
    assert waiting.qsize() == 2
    prefetcher.fetch()
    prefetcher.fetch()  # it fetches already
    assert prefetcher.take(block=True) == "b"
    assert waiting.qsize() == 1
    assert not prefetcher.over
    prefetcher.close()


@pytest.mark.rule(30)
@pytest.mark.parametrize("kind", [Watched, Telling])
def test_all_that_wait_are_found_without_waiting_for_more(kind):
    waiting = kind(*"abcdef")
    prefetcher = RequestPrefetcher(waiting)
    assert take_all_that_wait(prefetcher) == list("abcdef")
    assert waiting.waited_for.wait(TIMEOUT)
    waiting.put("g")
    assert prefetcher.take(block=True) == "g"
    prefetcher.close()


def test_a_queue_that_tells_that_it_is_empty_is_not_asked_in_vain():
    waiting = Telling(*"ab")
    prefetcher = RequestPrefetcher(waiting)
    assert take_all_that_wait(prefetcher) == list("ab")
    assert waiting.waited_for.wait(TIMEOUT)
    assert waiting.asked == ["wait", "look", "wait"]
    prefetcher.close()


def test_the_sentinel_ends_it_behind_what_came_before():
    before = set(threading.enumerate())
    prefetcher = RequestPrefetcher(Watched("a", "b", _SENTINEL_VALUE, "c"))
    assert prefetcher.take(block=True) == "a"
    assert prefetcher.take(block=True) == "b"
    assert not prefetcher.over
    for block in (True, False):
        assert prefetcher.take(block=block) is None
        assert prefetcher.over
    assert ended(prefetcher, before)


@pytest.mark.rule(9)
def test_an_error_of_the_queue_is_raised_behind_what_came_before():
    before = set(threading.enumerate())
    prefetcher = RequestPrefetcher(Watched("a", error=EOFError("gone")))
    assert prefetcher.take(block=True) == "a"
    for block in (True, False):
        with pytest.raises(EOFError, match="gone"):
            prefetcher.take(block=block)
    assert ended(prefetcher, before)


def test_it_looks_for_news_without_waiting():
    prefetcher = RequestPrefetcher(Watched())
    assert prefetcher.take(block=False) is None
    assert prefetcher.take(block=False) is None
    prefetcher.close()


@pytest.mark.rule(28)
def test_closing_ends_its_thread_that_has_not_been_told_to_fetch():
    before = set(threading.enumerate())
    prefetcher = RequestPrefetcher(Watched("a", "b"))
    assert prefetcher.take(block=True) == "a"
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
    prefetcher = RequestPrefetcher(idle)
    prefetcher.fetch()
    assert idle.asked.wait(TIMEOUT)
    prefetcher.close()
    idle.closed.set()
    assert ended(prefetcher, before)
    assert prefetcher._error is None


@pytest.mark.rule(9)
def test_closing_returns_the_request_that_has_been_fetched():
    taken = threading.Event()
    prefetcher = RequestPrefetcher(Watched((0, "a"), (0, "b")), lambda *_: taken.set())
    prefetcher.fetch()
    assert taken.wait(TIMEOUT)
    while not prefetcher._fetched:
        prefetcher._changed.wait(TIMEOUT)
    assert list(prefetcher.close()) == [(0, "a")]


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
    prefetcher = RequestPrefetcher(waiting)
    prefetcher.fetch()
    assert waiting.asked.wait(TIMEOUT)
    assert list(prefetcher.close()) == []
    waiting.closed.set()
    assert ended(prefetcher, before)
    assert waiting.queue == type(waiting.queue)(["late"])
