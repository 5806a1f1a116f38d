"""SIGTERM and Ctrl-C end LitServe's main process together with all that it has started."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from batchstream.integrations.litserve._link.request_queue import QUEUE_PROCESS

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from types import FrameType

_WORKER: Final = "inference-worker"
_SERVER: Final = "LitServer-"
_MANAGERS: Final = ("SyncManager-", QUEUE_PROCESS)
_BY_SIGNAL: Final = 128

_SECONDS_FOR_THE_REST: Final = 10.0
"""How long workers and LitServe's queue may take to end, once the servers have ended."""


def install_signal_handlers(
    has_started: Callable[[], bool], drain: Callable[[Callable[[], object]], None], patience: float
) -> None:
    """Make SIGTERM end LitServe, and Ctrl-C as well, unless the program has a handler for it.

    By default SIGTERM ends the main process alone, and leaves the other processes behind. Where
    the servers are threads, LitServe ends none of them, and the main process waits for them for
    ever. At exit the children are terminated as well: after an error while the server starts, the
    interpreter would wait for children that never end.

    Args:
        has_started: Says whether LitServe handles a KeyboardInterrupt already.
        drain: Lets the endpoints in this process drain, and calls what it is given afterwards.
        patience: How many seconds servers may take to end.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python lets no other thread set handlers
    shutdown = Shutdown(has_started, drain, patience)
    for number, default in (
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        handler = signal.getsignal(number)
        if handler is default or isinstance(handler, ShutdownHandler):
            signal.signal(number, ShutdownHandler(shutdown, default))
    atexit.unregister(_terminate_litserve)
    atexit.register(_terminate_litserve, os.getpid())


class Shutdown:
    """The end of LitServe: the first signal begins it, a second one does not wait for it.

    Args:
        has_started: Says whether LitServe handles a KeyboardInterrupt already.
        drain: Lets the endpoints in this process drain, and calls what it is given afterwards.
        patience: How many seconds servers may take to end.
    """

    def __init__(
        self,
        has_started: Callable[[], bool],
        drain: Callable[[Callable[[], object]], None],
        patience: float,
    ) -> None:
        self._process = os.getpid()
        self._has_started = has_started
        self._drain = drain
        self._patience = patience
        self._has_begun = False

    @property
    def concerns(self) -> bool:
        """Whether this is the main process, and LitServe runs in it."""
        return os.getpid() == self._process and bool(_litserve_children() or _server_threads())

    def begin(self, number: int) -> None:
        """End what a signal can end here; LitServe ends the rest at a KeyboardInterrupt.

        Raises:
            SystemExit: It is still starting, and would not handle a KeyboardInterrupt.
        """
        if self._has_begun:
            _end_at_once(number)
        self._has_begun = True
        # Whatever is in the way of the end: it comes.
        rest = threading.Timer(self._patience + _SECONDS_FOR_THE_REST, self._end_rest, [number])
        rest.daemon = True
        rest.start()
        if not self._has_started():
            sys.exit(_BY_SIGNAL + number)
        self._end_servers(_server_threads())

    def _end_servers(self, threads: list[threading.Thread]) -> None:
        # All together: LitServe ends one process after another, and threads not at all.
        for child in _litserve_children():
            if child.name.startswith(_SERVER):
                child.terminate()
        deadline = time.monotonic() + self._patience
        if threads:
            drained = threading.Event()
            self._drain(drained.set)
            drained.wait(self._patience)
        for thread in threads:
            server = _uvicorn_server_of(thread)
            if server is not None:
                server.should_exit = True
        # Workers have to go on until the servers are done, and LitServe would not wait for these.
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _end_rest(self, number: int) -> None:
        if self.concerns:
            _end_at_once(number)


class ShutdownHandler:
    """What the main process does at a signal.

    Args:
        shutdown: What it begins. A process that is forked inherits the handler, but not its task.
        default: What the handler was before.
    """

    def __init__(self, shutdown: Shutdown, default: Any) -> None:
        self._shutdown = shutdown
        self._default = default

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """End LitServe if it runs; otherwise do what is the default."""
        if self._shutdown.concerns:
            self._shutdown.begin(number)
            raise KeyboardInterrupt
        if callable(self._default):
            self._default(number, frame)
        else:
            signal.signal(number, self._default)
            os.kill(os.getpid(), number)


def _terminate_litserve(process: int) -> None:
    # This runs before multiprocessing's own function at exit, which waits for the children. After
    # LitServe's shutdown there are none. A forked process has inherited this function as well.
    if os.getpid() == process:
        for child in _litserve_children():
            child.terminate()


def _end_at_once(number: int) -> None:
    for child in multiprocessing.active_children():
        # The others would be ended at exit: the processes of queues, and daemons.
        if _is_litserves(child) or child.daemon or child.name.startswith(_MANAGERS):
            child.kill()
    os._exit(_BY_SIGNAL + number)


def _litserve_children() -> list[BaseProcess]:
    return [child for child in multiprocessing.active_children() if _is_litserves(child)]


def _is_litserves(child: BaseProcess) -> bool:
    return child.name == _WORKER or child.name.startswith(_SERVER)


def _server_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(_SERVER)]


def _uvicorn_server_of(thread: threading.Thread) -> Any:
    # LitServe keeps the server nowhere else than in the method that its thread runs.
    return getattr(getattr(thread, "_target", None), "__self__", None)
