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
from batchstream._batching.notice import Notice
from batchstream._eventloops.current import current_loop
from batchstream._pumps.worker_thread import WorkerThread

if TYPE_CHECKING:
    from batchstream._batching.dispatcher import Dispatcher

BROKEN_OFF: Final = "what has broken off the wait for its drain"
"""What closes a batcher whose drain is not waited for any more, for the text of errors."""


def close(dispatcher: Dispatcher[Any], by: str, drain: float | None) -> None:
    """Close a batcher, and wait in a thread until its workers have ended.

    Args:
        dispatcher: The batcher's requests.
        by: What closes it, for the text of errors.
        drain: For how many seconds to let requests end before; None closes at once. Where the
            calling thread cannot wait for that, another does, and this returns at once.
    """
    try:
        if drain is not None:
            dispatcher.poll()
            if dispatcher.request_drain(by, drain):
                if not dispatcher.may_block():
                    _drain_in_background(dispatcher)
                    return
                _drain_in_thread(dispatcher)
        dispatcher.close(by)
    except BaseException:  # a signal's, perhaps: no request is left behind by what it broke off
        dispatcher.request_close(by if drain is None else BROKEN_OFF)
        raise


async def aclose(dispatcher: Dispatcher[Any], by: str, drain: float | None) -> None:
    """Do the same in an event loop."""
    try:
        if drain is not None:
            dispatcher.poll()
            if dispatcher.request_drain(by, drain):
                if dispatcher.runs_here():
                    _drain_in_background(dispatcher)
                    return
                await _drain_in_loop(dispatcher)
        await dispatcher.aclose(by)
    except BaseException:
        dispatcher.request_close(by if drain is None else BROKEN_OFF)
        raise


def said_with(drain: float | None) -> str:
    """Return the arguments of a call that closes a batcher, for a text."""
    return "" if drain is None else f"drain={drain:g}"


def block_end(kind: str, drain: float | None) -> str:
    """Return what a text calls the end of a `with` or `async with` block."""
    return f"the end of its {kind} block" + ("" if drain is None else f" ({said_with(drain)})")


def _drain_in_thread(dispatcher: Dispatcher[Any]) -> None:
    """Wait in a thread until a drain that was begun is over, and close the batcher then."""
    closer = _Closer(dispatcher)
    closers, notice = dispatcher.closers, closer.notice
    closers[notice] = None  # not in a `with`, as in `room.py`
    try:
        while (until := closer.look()) is not None:
            dispatcher.wait_for_any(notice, None if until == math.inf else until)
    except BaseException:
        dispatcher.request_close(BROKEN_OFF)
        raise
    finally:
        del closers[notice]


async def _drain_in_loop(dispatcher: Dispatcher[Any]) -> None:
    """Do the same in an event loop."""
    loop = current_loop()
    closer = _Closer(dispatcher)
    closers, notice = dispatcher.closers, closer.notice
    closers[notice] = None
    try:
        while (until := closer.look()) is not None:
            await dispatcher.wait_for_any_in_loop(
                notice, loop, None if until == math.inf else until
            )
    finally:
        del closers[notice]


def _drain_in_background(dispatcher: Dispatcher[Any]) -> None:
    """Let a thread of its own do the same, for a caller that cannot wait.

    Raises:
        RuntimeError: There can be no thread; the batcher is closed.
    """
    try:
        WorkerThread().end_after(partial(_drain_in_thread, dispatcher))
    except BaseException:
        dispatcher.request_close("an error, as the thread of its drain could not be started")
        raise


class _Closer:
    """A caller that waits for the end of a drain, and closes the batcher behind it."""

    def __init__(self, dispatcher: Dispatcher[Any]) -> None:
        self._dispatcher = dispatcher
        self.notice = Notice(dispatcher.parking)

    def look(self) -> float | None:
        """Return until when to wait; None once the batcher is closed, which this may do."""
        self.notice.ready = False
        dispatcher = self._dispatcher
        state, until, is_empty = dispatcher.drain_state()
        if state == "closed" or dispatcher.forked:
            return None
        if not is_empty and until > clock.monotonic():
            return until
        dispatcher.end_drain(is_over_time=not is_empty)
        return None
