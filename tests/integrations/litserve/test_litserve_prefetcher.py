"""The thread that fetches requests from LitServe's queue one by one, as its worker adds them."""

import queue
import threading

import pytest
from litserve.loops.base import _SENTINEL_VALUE

from batchstream.integrations.litserve._link.ordering import Standing
from batchstream.integrations.litserve._link.request_queue import OrderedRequests
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

    def wait(self, timeout):
        self.asked.append("wait")
        if self.empty():
            self.waited_for.set()
        with self.not_empty:
            return bool(self.queue or self.not_empty.wait(timeout))

    def take(self, *, block):
        element = self.get(block)
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
    assert waiting.asked == ["wait", "look", "look", "wait"]
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


class Held:
    """A queue whose answers come when the test lets them.

    Args:
        queue: A `Queue` or an `OrderedRequests`, with what is in it.
    """

    def __init__(self, queue):
        self._queue = queue
        self.asked, self.answers = threading.Event(), threading.Event()
        if hasattr(queue, "take"):
            self.take = lambda block: queue.take()
            self.wait = self._held(queue.wait)
        else:
            self.get = self._held(queue.get)
            self.put = queue.put

    def _held(self, method):
        def ask(*timeout, **how):
            self.asked.set()
            assert self.answers.wait(TIMEOUT)
            return method(*timeout, **how)

        return ask


def in_litserves_queue():
    waiting = queue.Queue()
    waiting.put(ELEMENT)
    return waiting


def in_order():
    waiting = OrderedRequests(1, None)
    assert waiting.put_all([ELEMENT], Standing(priority=-1)) is None
    return waiting


ELEMENT = (0, "late", 0.0, "payload")


@pytest.mark.rule(2)
@pytest.mark.parametrize("made", [in_litserves_queue, in_order])
def test_a_request_that_would_come_after_closing_is_in_the_queue_and_claimed_by_none(made):
    before, waiting, claimed = set(threading.enumerate()), made(), []
    held = Held(waiting)
    prefetcher = RequestPrefetcher(held, lambda *of: claimed.append(of))
    prefetcher.fetch()
    assert held.asked.wait(TIMEOUT)
    assert prefetcher.close() == []
    held.answers.set()
    assert ended(prefetcher, before)
    assert (waiting.qsize(), claimed) == (1, [])


@pytest.mark.rule(19)
def test_what_would_come_after_closing_keeps_its_place_and_counts_and_can_be_taken_back():
    before, waiting = set(threading.enumerate()), in_order()
    held = Held(waiting)
    prefetcher = RequestPrefetcher(held)
    prefetcher.fetch()
    assert held.asked.wait(TIMEOUT)
    waiting.put(_SENTINEL_VALUE)
    prefetcher.close()
    held.answers.set()
    assert ended(prefetcher, before)
    refusal = waiting.put_all([(0, "other", 0.0, "payload")], Standing())
    assert (refusal.reason, refusal.pending) == ("pending", 1)
    assert waiting.discard("late")
    assert waiting.take() == (_SENTINEL_VALUE, False)


@pytest.mark.rule(30)
@pytest.mark.parametrize("made", [in_litserves_queue, in_order])
def test_what_is_recalled_stays_in_the_queue_for_other_workers_until_it_is_told_anew(made):
    waiting, claimed = made(), []
    held = Held(waiting)
    prefetcher = RequestPrefetcher(held, lambda *of: claimed.append(of))
    assert prefetcher.take(block=False) is None
    assert held.asked.wait(TIMEOUT)
    prefetcher.recall()
    idle, wait = threading.Event(), prefetcher._told.wait
    prefetcher._told.wait = lambda: (idle.set(), wait())
    held.answers.set()
    assert idle.wait(TIMEOUT)
    assert (waiting.qsize(), claimed, list(prefetcher._fetched)) == (1, [], [])
    assert prefetcher.take(block=True) == ELEMENT
    assert (waiting.qsize(), claimed) == (0, [(0, "late")])
    prefetcher.close()


@pytest.mark.rule(2)
def test_what_was_fetched_before_a_recall_is_there_to_take():
    taken = threading.Event()
    prefetcher = RequestPrefetcher(in_litserves_queue(), lambda *_: taken.set())
    prefetcher.fetch()
    assert taken.wait(TIMEOUT)
    prefetcher.recall()
    prefetcher.fetch()
    assert not prefetcher._told.is_set()  # to fetch another
    assert prefetcher.take(block=False) == ELEMENT
    prefetcher.close()
