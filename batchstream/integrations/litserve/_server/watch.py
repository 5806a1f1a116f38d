"""What a server process watches for its open responses: its own end, and the ends of workers.

At SIGTERM, or Ctrl-C, a server process *drains*. It goes on accepting connections, and answers each
new request with 503, so that a load balancer sends it elsewhere. The requests that it has go on,
also if they wait for a worker, until all have ended or the grace period is over; then the rest is
cut. Only then does uvicorn learn of the signal: it closes its listening socket as the first
thing, and clients that connect would be refused without an answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from batchstream.integrations.litserve._link.messages import UNKNOWN, Departure, Failure
from batchstream.integrations.litserve._link.process_end import (
    SECONDS_BETWEEN_CHECKS,
    is_running,
    open_process,
)
from batchstream.integrations.litserve._log import fields, logger
from batchstream.integrations.litserve._server.reports import Refusals

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._server.reports import RequestReport

SHUTTING_DOWN: Final = Failure(
    503, "the server is shutting down", {"retry-after": "1", "connection": "close"}
)
"""What clients get that ask while the server drains, or have no output when the grace period is
over. A client, or a proxy, that keeps the connection would ask the same server again."""

_ALL_CLAIMS: Final = 65536

SECONDS_TO_REPORT: Final = 1.0
"""How long workers may take to report the ends of requests, once the last response is closed. One
that is in a longer step may be ended in it, so the server process reports the rest by itself."""


class OpenResponses(Protocol):
    """What comes back to one client, whose requests may be several."""

    def fail(self, failure: Failure, *, worker: int | None = None) -> int:
        """Fail the requests that have not ended; if a worker is given, only its requests."""

    def cut(self, failure: Failure) -> None:
        """Fail the requests that have not ended, as the server ends."""


class ServerWatch:
    """The open responses of one endpoint in one event loop, and what cuts them off.

    Args:
        link: Of the endpoint.
        server: LitServe's number for the server process.

    Attributes:
        is_ending: Whether the process is about to end: it takes no new request.
    """

    def __init__(self, link: Link, server: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._grace_period = link.grace_period
        self._name = link.name or ""
        self._workers: set[int] = set()  # by process id
        self._unread_claim = b""
        self._responses: set[OpenResponses] = set()
        self._due: dict[str, RequestReport] = {}  # by uid
        self._is_waiting_for_reports = False
        self._when_drained: Callable[[], object] | None = None
        self.is_ending = is_ending()
        self._claims = None if link.pipes is None else link.pipes.claims_for(server)
        if self._claims is not None and not self._watch_descriptor(self._claims, self._hear):
            self._claims = None

    def due_reports(self) -> dict[str, RequestReport]:
        """Return the reports of requests whose ends have not been reported, by uid.

        Where no worker says what it takes, and what it has reported, it is a new one each time.
        """
        return {} if self._claims is None else self._due

    def add(self, responses: OpenResponses) -> None:
        """Watch a response from now on."""
        self._responses.add(responses)

    def discard(self, responses: OpenResponses) -> None:
        """Watch a response no more: it is complete, or its client has left."""
        self._responses.discard(responses)
        self._check_drained()

    # ---- the end of this process

    def drain(self, when_drained: Callable[[], object]) -> None:
        """Take no new request, and cut off what is still open after the grace period.

        Args:
            when_drained: Called once, in the event loop, when nothing is open any more, or has been
                cut off.

        Threads: from any, and in a signal handler.
        """
        try:
            self._loop.call_soon_threadsafe(self._begin_to_drain, when_drained)
        except RuntimeError:  # the loop is closed: this server has ended before
            when_drained()

    def _begin_to_drain(self, when_drained: Callable[[], object]) -> None:
        self.is_ending = True
        self._when_drained = when_drained
        Refusals.of(self._link).end()
        if self._responses:
            logger.info(
                "draining: new requests are refused, and %d responses may go on for %s seconds "
                "(grace_period)",
                len(self._responses),
                self._grace_period,
                extra=fields("draining", self._name, requests=len(self._responses)),
            )
            self._loop.call_later(self._grace_period, self._cut_off_all)
        self._check_drained()

    def _check_drained(self) -> None:
        if self._when_drained is None or self._responses:
            return
        self._read_claims()
        if not self._due:
            self._has_drained()
        elif not self._is_waiting_for_reports:
            self._is_waiting_for_reports = True
            self._loop.call_later(SECONDS_TO_REPORT, self._report_rest)

    def _report_rest(self) -> None:
        """Report the ends of requests that no worker has reported; none shall any more."""
        self._read_claims()
        for uid, report in tuple(self._due.items()):
            if self._link.pipes is not None:
                self._link.pipes.send_departure(Departure(uid, report.error, is_reported=True))
            report.ended()
        self._has_drained()

    def _has_drained(self) -> None:
        when_drained, self._when_drained = self._when_drained, None
        if when_drained is not None:
            when_drained()

    def _cut_off_all(self) -> None:
        if self._responses:
            logger.warning(
                "%d responses are cut off: they are still open %s seconds after the server was "
                "told to end (grace_period)",
                len(self._responses),
                self._grace_period,
                extra=fields("cut_short", self._name, requests=len(self._responses)),
            )
        self._read_claims()  # of a request that has one, the worker reports the end
        for responses in tuple(self._responses):
            responses.cut(SHUTTING_DOWN)
            self._responses.discard(responses)
        self._check_drained()

    # ---- what workers say of requests, and the ends of workers

    def _hear(self) -> None:
        self._read_claims()
        self._check_drained()

    def _read_claims(self) -> None:
        if self._claims is None:
            return
        try:
            data = self._unread_claim + os.read(self._claims, _ALL_CLAIMS)
        except OSError:
            return
        *lines, self._unread_claim = data.split(b"\n")
        for line in lines:
            pid, uid, *is_reported = line.decode().split(" ")
            if is_reported:
                self._due.pop(uid, None)
                continue
            if uid in self._due:
                self._due[uid].worker = int(pid)
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
        self._read_claims()  # what it has still said
        self._workers.discard(pid)
        failed = sum(responses.fail(UNKNOWN, worker=pid) for responses in tuple(self._responses))
        if failed:
            logger.error(
                "worker %d has ended, and %d requests have failed with it",
                pid,
                failed,
                extra=fields("worker_ended", self._name, requests=failed),
            )
        for report in tuple(self._due.values()):
            if report.worker == pid:
                report.ended()
        self._check_drained()

    def _watch_descriptor(self, descriptor: int, callback: Callable[[], Any]) -> bool:
        try:
            self._loop.add_reader(descriptor, callback)
        except NotImplementedError:  # the event loop of Windows
            return False
        return True


# By process: a fork inherits the watches of its parent.
_watches: dict[tuple[int, asyncio.AbstractEventLoop, Link], ServerWatch] = {}
_ending: set[int] = set()
"""This process's id, from when it begins to drain."""


def watch_of(link: Link, server: int) -> ServerWatch | None:
    """Return the watch of a link in the running event loop; None if none is running."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    key = os.getpid(), loop, link
    if key not in _watches:
        _watches[key] = ServerWatch(link, server)
        _drain_at_signals()
    return _watches[key]


def is_ending() -> bool:
    """Return whether this process drains, or has drained."""
    return os.getpid() in _ending


def drain_all(when_drained: Callable[[], object]) -> None:
    """Let every endpoint of this process drain.

    Args:
        when_drained: Called when all have drained; where they are in several threads, perhaps more
            than once.
    """
    _ending.add(os.getpid())
    watches = [watch for (pid, *_), watch in tuple(_watches.items()) if pid == os.getpid()]
    draining = list(watches)

    def has_drained() -> None:
        draining.pop()
        if not draining:
            when_drained()

    for watch in watches:
        watch.drain(has_drained)
    if not watches:
        when_drained()


def begin_anew() -> None:
    """Forget that servers of this process have ended, which were its threads: others begin."""
    _ending.discard(os.getpid())


class _DrainingHandler:
    """What a server process does at SIGTERM or Ctrl-C: it drains, and then what SIGTERM did before.

    At a terminal Ctrl-C reaches this process as well as the main process, which sends SIGTERM.
    """

    def __init__(self, before: Callable[..., Any]) -> None:
        self._before = before
        self._has_begun = False

    def __call__(self, *_: Any) -> None:
        if self._has_begun:  # LitServe sends a second one when it sees the end of the main process
            return
        self._has_begun = True
        drain_all(partial(self._before, signal.SIGTERM, None))


def _drain_at_signals() -> None:
    # Where servers are threads, the main process has a handler for them.
    if threading.current_thread() is threading.main_thread():
        before = signal.getsignal(signal.SIGTERM)
        if callable(before) and not isinstance(before, _DrainingHandler):
            handler = _DrainingHandler(before)
            signal.signal(signal.SIGTERM, handler)
            if signal.getsignal(signal.SIGINT) == before:  # uvicorn's for both
                signal.signal(signal.SIGINT, handler)
