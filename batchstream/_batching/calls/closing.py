"""The end of a batcher: at once, or after a drain in which its requests may end.

Theory of operation
-------------------

A drain is a state of the scheduler and a time. The callers of `close(drain=…)` wait for its end.
Each looks, with the lock, whether all requests have ended or the time is over, and then closes the
batcher; so does each caller that is broken off in its wait. Each is woken by every end of a
request that might be the last. So no thread is needed for a drain, unless its caller cannot wait:
because it is the model itself, blocks the event loop that has to go on, or is a signal's handler
that has interrupted the holder of the lock. Then a thread of the drain's own waits instead.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from batchstream._batching import clock
from batchstream._batching.dispatching.waking import wake_workers
from batchstream._batching.life import said_of
from batchstream._batching.requests.notice import Notice
from batchstream._eventloops.current import current_loop
from batchstream._pumps.worker_thread import WorkerThread

if TYPE_CHECKING:
    from batchstream._batching.calls.upstream import RequestUpstream
    from batchstream._batching.dispatching.dispatcher import Dispatcher
    from batchstream._batching.life import BatcherState


BROKEN_OFF: Final = "what has broken off the wait for its drain"
"""What closes a batcher whose drain is not waited for any more, for the text of errors."""


def close(upstream: RequestUpstream[Any], by: str, drain: float | None) -> None:
    """Close a batcher, and wait in a thread until its workers have ended.

    Args:
        upstream: That of the batcher's streams.
        by: What closes it, for the text of errors.
        drain: For how many seconds to let requests end before; None closes at once. Where the
            calling thread cannot wait for that, another does, and this returns at once.
    """
    dispatcher = upstream.dispatcher
    try:
        if drain is not None:
            upstream.poll()
            if request_drain(dispatcher, by, drain):
                if not dispatcher.may_block():
                    _drain_in_background(upstream)
                    return
                _drain_in_thread(upstream)
        _close(upstream, by)
    except BaseException:  # a signal's, perhaps: no request is left behind by what it broke off
        dispatcher.request_close(by if drain is None else BROKEN_OFF)
        raise


async def aclose(upstream: RequestUpstream[Any], by: str, drain: float | None) -> None:
    """Do the same in an event loop."""
    dispatcher = upstream.dispatcher
    try:
        if drain is not None:
            upstream.poll()
            if request_drain(dispatcher, by, drain):
                if dispatcher.runs_here():
                    _drain_in_background(upstream)
                    return
                await _drain_in_loop(upstream)
        await _aclose(upstream, by)
    except BaseException:
        dispatcher.request_close(by if drain is None else BROKEN_OFF)
        raise


def _close(upstream: RequestUpstream[Any], by: str) -> None:
    """Fail every request that has not ended, and wait until no worker is at work.

    Args:
        upstream: That of the batcher's streams.
        by: What has closed it, for the text of the error.
    """
    dispatcher = upstream.dispatcher
    upstream.poll()
    dispatcher.request_close(by)
    if not dispatcher.forked:
        while dispatcher.may_block() and not dispatcher.all_ended.wait(
            upstream.poll_after(None, None)
        ):
            upstream.poll()
        if dispatcher.ended and dispatcher.may_block():
            dispatcher.join()


async def _aclose(upstream: RequestUpstream[Any], by: str) -> None:
    """Do the same in an event loop."""
    dispatcher = upstream.dispatcher
    upstream.poll()
    dispatcher.request_close(by)
    if not (dispatcher.forked or dispatcher.runs_here()):
        loop = current_loop()
        await dispatcher.all_ended.wait_in_loop(
            loop, lambda: upstream.poll_after(None, loop), upstream.poll
        )
        dispatcher.join()


def said_with(drain: float | None) -> str:
    """Return the arguments of a call that closes a batcher, for a text."""
    return "" if drain is None else f"drain={drain:g}"


def block_end(kind: str, drain: float | None) -> str:
    """Return what a text calls the end of a `with` or `async with` block."""
    return f"the end of its {kind} block" + ("" if drain is None else f" ({said_with(drain)})")


def request_drain(dispatcher: Dispatcher[Any], by: str, seconds: float) -> bool:
    """Accept no request any more; return whether the requests that there are may end.

    Args:
        dispatcher: The batcher's requests.
        by: What asks for it, for the text of errors.
        seconds: For how long, from now on.
    """
    if dispatcher.forked or dispatcher.scheduler.state == "closed":
        return False
    closing = said_of(by)
    with dispatcher.lock:
        now = clock.monotonic()
        reaped = dispatcher.scheduler.reap(now)
        is_first = dispatcher.scheduler.state == "accepting"
        dispatcher.scheduler.drain(now + seconds, closing)
        unfinished = len(dispatcher.scheduler.totals.open)
        refused = dispatcher.scheduler.totals.refused
    dispatcher.follow_up(reaped, now)
    wake_workers(dispatcher)
    dispatcher.ends.tell_of_room()  # there is none, as it finds
    dispatcher.ends.tell_closers()  # of a drain before this one, which may be over earlier now
    if is_first:
        dispatcher.reports.state_changed()
        dispatcher.log.drains(closing, seconds, unfinished, now, refused)
    return True


def _drain_in_thread(upstream: RequestUpstream[Any]) -> None:
    """Wait in a thread until a drain that was begun is over, and close the batcher then."""
    dispatcher = upstream.dispatcher
    closer = _Closer(dispatcher)
    closers, notice = dispatcher.ends.closers, closer.notice
    closers[notice] = None  # not in a `with`, as in `room.py`
    try:
        while (until := closer.look()) is not None:
            upstream.wait_for_any(notice, None if until == math.inf else until)
    except BaseException:
        dispatcher.request_close(BROKEN_OFF)
        raise
    finally:
        del closers[notice]


async def _drain_in_loop(upstream: RequestUpstream[Any]) -> None:
    """Do the same in an event loop."""
    loop = current_loop()
    closer = _Closer(upstream.dispatcher)
    closers, notice = upstream.dispatcher.ends.closers, closer.notice
    closers[notice] = None
    try:
        while (until := closer.look()) is not None:
            await upstream.wait_for_any_in_loop(notice, loop, None if until == math.inf else until)
    finally:
        del closers[notice]


def _drain_in_background(upstream: RequestUpstream[Any]) -> None:
    """Let a thread of its own do the same, for a caller that cannot wait.

    Raises:
        RuntimeError: There can be no thread; the batcher is closed.
    """
    try:
        WorkerThread().end_after(partial(_drain_in_thread, upstream))
    except BaseException:
        upstream.dispatcher.request_close(
            "an error, as the thread of its drain could not be started"
        )
        raise


def _drain_state(dispatcher: Dispatcher[Any]) -> tuple[BatcherState, float, bool]:
    """Return the state, until when a drain goes on, and whether no request is open."""
    with dispatcher.lock:
        now = clock.monotonic()
        reaped = dispatcher.scheduler.reap(now)
        state = (
            dispatcher.scheduler.state,
            dispatcher.scheduler.drains_until,
            dispatcher.scheduler.is_empty,
        )
    dispatcher.follow_up(reaped, now)
    return state


def _end_drain(dispatcher: Dispatcher[Any], *, is_over_time: bool) -> None:
    """Close a batcher behind its drain, because all requests have ended or the time is over."""
    closing = dispatcher.scheduler.closing
    if is_over_time:
        closing += ", whose time was over before all requests had ended"
    dispatcher.request_close(closing=closing)


class _Closer:
    """A caller that waits for the end of a drain, and closes the batcher behind it."""

    def __init__(self, dispatcher: Dispatcher[Any]) -> None:
        self._dispatcher = dispatcher
        self.notice = Notice(dispatcher.parking)

    def look(self) -> float | None:
        """Return until when to wait; None once the batcher is closed, which this may do."""
        self.notice.ready = False
        dispatcher = self._dispatcher
        state, until, is_empty = _drain_state(dispatcher)
        if state == "closed" or dispatcher.forked:
            return None
        if not is_empty and until > clock.monotonic():
            return until
        _end_drain(dispatcher, is_over_time=not is_empty)
        return None
