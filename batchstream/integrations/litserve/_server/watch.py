"""What a server process watches for its open responses: its own end, and the ends of workers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from batchstream.integrations.litserve._link.messages import UNKNOWN, Failure
from batchstream.integrations.litserve._link.process_end import (
    SECONDS_BETWEEN_CHECKS,
    is_running,
    open_process,
)
from batchstream.integrations.litserve._log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream.integrations.litserve._link.link import Link

_RETRY_AFTER: Final = {"retry-after": "1"}
SHUTTING_DOWN: Final = Failure(503, "the server is shutting down", _RETRY_AFTER)
"""What clients get whose responses are still open when the grace period is over."""

_ALL_CLAIMS: Final = 65536


class OpenResponses(Protocol):
    """What comes back to one client, whose requests may be several."""

    def claim(self, uid: str, worker: int) -> None:
        """Note the process id of the worker that has taken a request, if it is one of these."""

    def fail(self, failure: Failure, *, worker: int | None = None) -> int:
        """Fail the requests that have not ended, or only those that a worker has taken."""


class ServerWatch:
    """The open responses of one endpoint in one event loop, and what cuts them off.

    Args:
        link: Of the endpoint.
        server: LitServe's number for the server process.

    Attributes:
        responses: Those that are open.
        is_ending: Whether the process is about to end.
    """

    def __init__(self, link: Link, server: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._grace_period = link.grace_period
        self._workers: set[int] = set()  # by process id
        self._unread_claim = b""
        self.responses: set[OpenResponses] = set()
        self.is_ending = False
        claims = None if link.pipes is None else link.pipes.claims_for(server)
        if claims is not None:
            self._watch_descriptor(claims, partial(self._read_claims, claims))

    # ---- the end of this process

    def end(self) -> None:
        """Cut off what is still open after the grace period.

        Threads: from any, and in a signal handler.
        """
        with suppress(RuntimeError):  # the loop is closed: this server has ended before
            self._loop.call_soon_threadsafe(self._begin_grace_period)

    def _begin_grace_period(self) -> None:
        if not self.is_ending:
            self.is_ending = True
            self._loop.call_later(self._grace_period, self._cut_off_all)

    def _cut_off_all(self) -> None:
        if self.responses:
            logger.warning(
                "%d responses are cut off: they are still open %s seconds after the server was "
                "told to end (grace_period)",
                len(self.responses),
                self._grace_period,
            )
        for responses in tuple(self.responses):
            responses.fail(SHUTTING_DOWN)

    # ---- the ends of workers

    def _read_claims(self, claims: int) -> None:
        try:
            data = self._unread_claim + os.read(claims, _ALL_CLAIMS)
        except OSError:
            return
        *lines, self._unread_claim = data.split(b"\n")
        for line in lines:
            pid, _, uid = line.decode().partition(" ")
            for responses in self.responses:
                responses.claim(uid, int(pid))
            self._watch_worker(int(pid))

    def _watch_worker(self, pid: int) -> None:
        if pid in self._workers:
            return
        self._workers.add(pid)
        try:
            descriptor = open_process(pid)
        except ProcessLookupError:
            self._loop.call_soon(self._end_of_worker, pid)
            return
        if descriptor is None or not self._watch_descriptor(
            descriptor, partial(self._end_of_worker, pid, descriptor)
        ):
            self._check_worker(pid)

    def _check_worker(self, pid: int) -> None:
        if is_running(pid):
            self._loop.call_later(SECONDS_BETWEEN_CHECKS, self._check_worker, pid)
        else:
            self._end_of_worker(pid)

    def _end_of_worker(self, pid: int, descriptor: int | None = None) -> None:
        if descriptor is not None:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._workers.discard(pid)
        failed = sum(responses.fail(UNKNOWN, worker=pid) for responses in tuple(self.responses))
        if failed:
            logger.error("worker %d has ended, and %d requests have failed with it", pid, failed)

    def _watch_descriptor(self, descriptor: int, callback: Callable[[], Any]) -> bool:
        try:
            self._loop.add_reader(descriptor, callback)
        except NotImplementedError:  # the event loop of Windows
            return False
        return True


# By process: a fork inherits those of the process before it.
_watches: dict[tuple[int, asyncio.AbstractEventLoop, Link], ServerWatch] = {}


def watch_of(link: Link, server: int) -> ServerWatch | None:
    """Return the watch of a link in the running event loop; None if none is running."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    key = os.getpid(), loop, link
    if key not in _watches:
        _watches[key] = ServerWatch(link, server)
        _end_at_sigterm()
    return _watches[key]


def end_all() -> None:
    """Let every endpoint of this process end within its grace period."""
    for (pid, *_), watch in tuple(_watches.items()):
        if pid == os.getpid():
            watch.end()


class _EndingHandler:
    """What a server process does at SIGTERM: what it did before, and the grace period begins."""

    def __init__(self, before: Callable[..., Any]) -> None:
        self._before = before

    def __call__(self, *arguments: Any) -> None:
        end_all()
        self._before(*arguments)


def _end_at_sigterm() -> None:
    # Where servers are threads, the main process has a handler for them.
    if threading.current_thread() is threading.main_thread():
        before = signal.getsignal(signal.SIGTERM)
        if callable(before) and not isinstance(before, _EndingHandler):
            signal.signal(signal.SIGTERM, _EndingHandler(before))
