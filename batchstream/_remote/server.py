"""The model's end: a socket that listens, and the connections of other processes."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from batchstream._batching.batcher import Batcher
from batchstream._batching.life import check_drain
from batchstream._core.arguments import check_count
from batchstream._core.errors import type_name
from batchstream._log import write_line
from batchstream._pumps.process import forkable
from batchstream._pumps.worker_thread import WorkerThread
from batchstream._remote.protocol import DEFAULT_MAX_FRAME, LEAST_IN_FRAME, MOST_IN_FRAME
from batchstream._remote.session import Session
from batchstream._remote.sockets import (
    BACKLOG,
    check_address,
    drop_copy,
    identity_of,
    listen,
    remove,
)

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Callable, Collection
    from types import TracebackType

_ALL_PERMISSIONS: Final = 0o777

_SECONDS_FOR_LAST_OUTPUTS: Final = 5.0
"""For what has ended at the model, and what clients have still to take of it, if the drain leaves
less; see docs/remote.md."""

_SECONDS_FOR_LAST_RECORDS: Final = 1.0
"""For what is on its way to clients, if the drain leaves less."""


def check_users(users: Collection[int]) -> frozenset[int]:
    """Return the numbers of users.

    Raises:
        TypeError: They are none.
    """
    if isinstance(users, str | bytes) or not all(type(user) is int for user in users):
        raise TypeError(f"trusted_users takes numbers of users, such as [1001], got {users!r}")
    return frozenset(users)


def check_max_frame(max_frame: object) -> int:
    """Return how many bytes a frame may have.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is too small or too large.
    """
    count = check_count("max_frame", max_frame, at_least=LEAST_IN_FRAME)
    if count > MOST_IN_FRAME:
        raise ValueError(f"max_frame must be at most {MOST_IN_FRAME} bytes, got {max_frame!r}")
    return count


class _Listener:
    """What listens and has the connections; used in one event loop.

    Args:
        batcher: What serves the requests.
        address: The path of the socket.
        mode: The permissions of its file.
        max_frame: How many bytes a frame may have.
        trusted_users: Users that clients may run as, besides this process's own and root.

    Raises:
        TypeError, ValueError, RuntimeError: An argument is of the wrong kind, or cannot work.
    """

    def __init__(
        self,
        batcher: Batcher[Any, Any],
        address: str | os.PathLike[str],
        *,
        mode: int,
        max_frame: int,
        trusted_users: Collection[int],
    ) -> None:
        if not isinstance(batcher, Batcher):
            raise TypeError(
                f"a batcher is served, such as a ContinuousBatcher or a function that is batched, "
                f"got {type_name(batcher)}"
            )
        if type(mode) is not int or not 0 <= mode <= _ALL_PERMISSIONS:
            raise ValueError(f"mode takes the permissions of a file, such as 0o600, got {mode!r}")
        self._batcher = batcher
        self._path = check_address(address)
        self._mode = mode
        self._max_frame = check_max_frame(max_frame)
        self._trusted_users = check_users(trusted_users)
        self._sessions: set[Session] = set()
        self._changed = asyncio.Event()  # a session has no request any more, or has ended
        self._refused: set[str] = set()
        self._listening: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._identity = (0, 0)
        self._refusal: str | None = None  # once it does not listen any more

    async def begin(self) -> None:
        """Listen.

        Raises:
            OSError: See `listen`.
        """
        self._listening = listening = listen(self._path, self._mode)
        self._refusal = None  # of a time before
        forkable.add(self)
        try:
            self._identity = identity_of(self._path)
            # In two calls, as a cancellation may end the second: the server has to be known then.
            self._server = await asyncio.get_running_loop().create_unix_server(
                self._session, sock=listening, backlog=BACKLOG, start_serving=False
            )
            await self._server.start_serving()
        except BaseException:
            if self._server is not None:
                self._server.close()  # first, so that the event loop forgets the socket's number
            listening.close()
            remove(self._path, self._identity)
            self._server = self._listening = None
            self._refusal = self._reason("an error")  # for a client that was accepted meanwhile
            raise
        batcher, path = self._batcher, self._path
        write_line(logging.INFO, "remote_serves", "%r is served at %s", batcher, path)

    def _session(self) -> Session:
        session = Session(
            self._batcher,
            self._sessions,
            self._changed,
            max_frame=self._max_frame,
            trusted_users=self._trusted_users,
            refused=self._refused,
        )
        session.refusal = self._refusal
        return session

    def after_fork(self) -> None:
        """Drop the copy that a forked child has: the path is free when this process has ended."""
        if self._listening is not None:
            drop_copy(self._listening.fileno())
        self._server = None  # the file is the parent's

    def stop_listening(self, by: str) -> None:
        """Let no other process connect, and no process submit a request."""
        if self._server is not None:
            remove(self._path, self._identity)
            self._server.close()
            self._server = self._listening = None
            self._refusal = self._reason(by)
            for session in self._sessions:
                session.go_away(self._refusal)

    def _reason(self, by: str) -> str:
        return f"the server of the model at {self._path!r} ends, as asked for by {by}"

    async def end(self, drain: float | None, by: str) -> None:
        """Accept no request, let open requests end for so many seconds, and disconnect."""
        self.stop_listening(by)
        reason = self._reason(by)
        time, left = asyncio.get_running_loop().time, _SECONDS_FOR_LAST_RECORDS
        try:
            until = time() + (drain or 0.0)
            # Two turns of the event loop read what was sent before: it gets its refusal.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await self._wait_until(lambda: not any(it.live for it in self._sessions), drain or 0.0)
            left = max(left, until - time())
        finally:
            for session in list(self._sessions):
                session.fail_all(reason)
                session.close()
            try:
                await self._wait_until(lambda: not self._sessions, left)
            finally:
                for session in list(self._sessions):
                    session.abort()

    async def _wait_until(self, is_over: Callable[[], bool], seconds: float) -> None:
        """Wait for what sessions do, for so many seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                while not is_over():
                    self._changed.clear()
                    await self._changed.wait()


async def aserve(
    batcher: Batcher[Any, Any],
    address: str | os.PathLike[str],
    *,
    mode: int = 0o600,
    max_frame: int = DEFAULT_MAX_FRAME,
    trusted_users: Collection[int] = (),
    drain: float | None = None,
) -> None:
    """Serve a batcher to other processes, in an event loop of asyncio, until this is cancelled.

    Then it lets no other process connect, lets requests end if there is a drain, and ends the
    connections. The batcher stays open: it is the caller's.

    Args:
        batcher: What serves the requests.
        address: The path of the socket; see `serve`, as for the other arguments.
        mode: The permissions of the socket's file.
        max_frame: How many bytes a request or an output may have as it is pickled; where the client
            says another number, the smaller one counts.
        trusted_users: Numbers of users that clients may run as, besides this process's own.
        drain: For how many seconds to let requests end, and clients take their outputs, once this
            is cancelled; no other request is accepted meanwhile. None ends them at once.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.
        FileExistsError: What is at the path is no socket.
        OSError: Another server listens at the path, or the system refuses the socket.

    Blocking: never; it waits until it is cancelled, and until the drain is over.
    Cancellation: requests of other processes that the drain does not let end fail with
        `ClosedError`. A second one breaks off the drain.
    Threads: one event loop of asyncio.
    """
    seconds = check_drain(drain)
    listener = _Listener(
        batcher, address, mode=mode, max_frame=max_frame, trusted_users=trusted_users
    )
    await listener.begin()
    try:
        await asyncio.Event().wait()
    finally:
        await listener.end(seconds, "the end of aserve")


def serve(
    batcher: Batcher[Any, Any],
    address: str | os.PathLike[str],
    *,
    mode: int = 0o600,
    max_frame: int = DEFAULT_MAX_FRAME,
    trusted_users: Collection[int] = (),
    drain: float | None = None,
) -> None:
    """Serve a batcher to other processes, which `connect` to it, until a signal ends it.

    The program of a model's process. SIGTERM and SIGINT end it: it lets no other process connect,
    closes the batcher with its drain, and returns; a second signal breaks off the drain.

    A process that can open the socket can run code in this one, as requests are pickled. So the
    file is this user's own, and the system is asked which user is at the other end.

    Args:
        batcher: What serves the requests: a batcher, or a function that is `batched`.
        address: The path of the socket, in a folder that this user alone can write to. A socket
            that a killed server has left over is replaced.
        mode: The permissions of the socket's file. 0o660 lets processes of the file's group open
            it; name their users in `trusted_users`, too.
        max_frame: How many bytes a request or an output may have as it is pickled, at least 4096;
            where the client says another number, the smaller one counts.
        trusted_users: Numbers of users that clients may run as, besides this process's own and
            root, on a system that says which user that is.
        drain: For how many seconds to let requests end, and clients take their outputs; None for
            the `drain` of the batcher. Clients have at least 5 seconds for outputs of requests that
            have ended at the model, and a second signal ends these, too.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.
        FileExistsError: What is at the path is no socket.
        OSError: Another server listens at the path, or the system refuses the socket.
        RuntimeError: It is called in another thread than the main one, which gets no signals: use
            `serving` there.
        ClosedError: The batcher was closed.

    Blocking: until a signal has come, and the batcher is closed.
    Cancellation: an exception from a signal closes the batcher at once.
    Threads: the main thread.
    """
    seconds = check_drain(drain)
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "serve waits for a signal, and signals come to the main thread: call it there, or use "
            "`with serving(...)`"
        )
    listener = _Listener(
        batcher, address, mode=mode, max_frame=max_frame, trusted_users=trusted_users
    )
    asyncio.run(_serve_until_signal(batcher, listener, seconds))


async def _serve_until_signal(
    batcher: Batcher[Any, Any], listener: _Listener, drain: float | None
) -> None:
    loop = asyncio.get_running_loop()
    come: list[str] = []
    first = asyncio.Event()
    closing: list[asyncio.Task[None]] = []

    def note(name: str) -> None:
        come.append(name)
        first.set()
        if len(come) > 1:
            for task in closing:
                task.cancel()

    signals = signal.SIGTERM, signal.SIGINT
    async with batcher:
        try:
            for each in signals:
                loop.add_signal_handler(each, note, each.name)
            await listener.begin()
            await first.wait()
            listener.stop_listening(come[0])
            closing.append(loop.create_task(_drain(batcher, listener, drain, come[0])))
            with suppress(asyncio.CancelledError):
                await closing[0]
        finally:
            for each in signals:
                loop.remove_signal_handler(each)
            await listener.end(None, come[0] if come else "an error")


async def _drain(
    batcher: Batcher[Any, Any], listener: _Listener, drain: float | None, by: str
) -> None:
    """Let requests end, let clients take their outputs for the rest of the time, and disconnect."""
    seconds = batcher._dispatcher.options.drain if drain is None else drain  # noqa: SLF001 - its own
    time = asyncio.get_running_loop().time
    until = time() + (seconds or 0.0)
    await batcher.aclose(drain=seconds)
    await listener.end(max(until - time(), _SECONDS_FOR_LAST_OUTPUTS), by)


class serving:  # noqa: N801 - it is used as a function is, in a `with` statement
    """Serve a batcher to other processes while a `with` block runs, in a thread of its own.

    For a program that does something else as well. The end of the block lets no other process
    connect, and ends the connections; the batcher stays open.

    Args:
        batcher: What serves the requests.
        address: The path of the socket; see `serve`, as for the other arguments.
        mode: The permissions of the socket's file.
        max_frame: How many bytes a request or an output may have as it is pickled; where the client
            says another number, the smaller one counts.
        trusted_users: Numbers of users that clients may run as, besides this process's own.
        drain: For how many seconds the end of the block lets requests end, which accepts no other
            meanwhile; None ends them at once, with `ClosedError`.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.

    Example:
        >>> import batchstream, tempfile
        >>> from batchstream.remote import connect, serving
        >>> @batchstream.batched(max_batch_size=4, single=True)
        ... def double(numbers):
        ...     return [2 * number for number in numbers]
        >>> folder = tempfile.TemporaryDirectory()
        >>> with double, serving(double, f"{folder.name}/model.sock"):
        ...     with connect(f"{folder.name}/model.sock") as remote:  # in another process, mostly
        ...         print(remote.call(21))
        42
        >>> folder.cleanup()
    """

    def __init__(
        self,
        batcher: Batcher[Any, Any],
        address: str | os.PathLike[str],
        *,
        mode: int = 0o600,
        max_frame: int = DEFAULT_MAX_FRAME,
        trusted_users: Collection[int] = (),
        drain: float | None = None,
    ) -> None:
        self._listener = _Listener(
            batcher, address, mode=mode, max_frame=max_frame, trusted_users=trusted_users
        )
        self._drain = check_drain(drain)
        self._thread: WorkerThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            FileExistsError: What is at the path is no socket.
            OSError: Another server listens at the path, or the system refuses the socket.
            RuntimeError: It serves already.
        """
        if self._thread is not None:
            raise RuntimeError("this server serves already: make another for another block")
        loop = asyncio.new_event_loop()
        thread = WorkerThread()
        try:
            thread.call(lambda: loop.run_until_complete(self._listener.begin())).result()
        except BaseException:
            thread.end_after(loop.close)
            raise
        self._loop, self._thread = loop, thread
        thread.do(loop.run_forever)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let no other process connect, let requests end, and end the connections.

        Blocking: until the drain is over.
        """
        loop, thread = self._loop, self._thread
        assert loop is not None  # noqa: S101 - it was entered
        assert thread is not None  # noqa: S101
        drain = self._drain if exc_type is None else None
        self._loop = self._thread = None
        loop.call_soon_threadsafe(loop.stop)
        thread.end_after(lambda: _end_loop(loop, self._listener, drain))
        thread.join()


def _end_loop(loop: asyncio.AbstractEventLoop, listener: _Listener, drain: float | None) -> None:
    try:
        loop.run_until_complete(listener.end(drain, "the end of its block"))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
