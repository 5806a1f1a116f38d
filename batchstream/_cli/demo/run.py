"""`demo`: runs the servers and the clients, and shows what happens."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchstream._cli.demo import servers, show
from batchstream._cli.demo.board import Board
from batchstream._cli.demo.clients import Event, let_ask
from batchstream._cli.demo.script import BETWEEN, script
from batchstream._cli.demo.svg import draw
from batchstream._cli.errors import CommandError, check_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_FRAME: Final = 0.1  # seconds between two pictures
_SECONDS_AT_MOST: Final = 300.0


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        clients: How many clients each server has.
        slots: How many requests a batch has at most.
        seconds: How long a step of the model takes.
        seed: For the lengths, and for which clients hang up.
    """

    clients: int
    slots: int
    seconds: float
    seed: int


def demo(settings: Settings, *, plain: bool, svg: str | None) -> int:
    """Run the demonstration, and return its exit status.

    Args:
        settings: What is run.
        plain: Whether to print lines where bars could be drawn.
        svg: The file for the last picture, or None.

    Raises:
        CommandError: Something is missing, or a server or a client fails.
    """
    check_installed("litserve", "the demonstration needs LitServe", "cli", "litserve")
    if os.name != "posix":
        raise CommandError("the demonstration ends its servers by sessions, which are of Unix")
    plain = plain or not sys.stdout.isatty()
    if not plain:
        check_installed("rich", "bars need rich (without it, pass --plain)", "cli", "litserve")
    if svg is not None and not Path(svg).absolute().parent.is_dir():
        raise CommandError(f"there is no folder for the file {svg!r} of --svg: make it first")
    clients = script(settings.clients, settings.seed)
    _say(
        f"The same {settings.clients} clients, {settings.clients // 4} of which hang up, ask two "
        f"LitServe servers that differ in one line:",
        *servers.difference(),
        "",
    )
    boards = [Board(name, clients) for name in servers.programs()]
    with _signals_as_exits():
        _say("starting the two servers")
        with servers.running(settings.slots, settings.seconds) as running:
            start = time.monotonic() + _FRAME
            with _printed(boards, start) if plain else _drawn(boards, settings.seconds) as show_:
                _run(boards, running, start, show_)
    if plain:
        _say("", *show.summary(boards, time.monotonic()))
    if svg is not None:
        Path(svg).write_text(draw(boards, servers.difference(), start))
    return 0


def _run(
    boards: Sequence[Board],
    running: Sequence[servers.Server],
    start: float,
    show_: Callable[[Sequence[Event]], None],
) -> None:
    """Let the clients ask, and show what happens until nothing happens any more."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    by_name = {board.name: board for board in boards}
    with contextlib.ExitStack() as stack:
        diaries = [stack.enter_context(server.diary.open()) for server in running]
        for board, server in zip(boards, running, strict=True):
            clients = [seat.client for seat in board.seats]
            let_ask(board.name, server.port, clients, start=start, between=BETWEEN, events=events)
        while not all(board.is_over() for board in boards):
            if time.monotonic() > start + _SECONDS_AT_MOST:
                raise CommandError(f"the clients were not served within {_SECONDS_AT_MOST:.0f} s")
            seen = _next_events(events)
            for board, diary in zip(boards, diaries, strict=True):
                board.read(diary.read())
            for event in seen:
                by_name[event.server].see(event)
            show_(seen)
            for board in boards:
                if board.failure:
                    raise CommandError(board.failure)


def _next_events(events: queue.SimpleQueue[Event]) -> list[Event]:
    """Return what has happened within the time of a picture."""
    seen = []
    end = time.monotonic() + _FRAME
    with contextlib.suppress(queue.Empty):
        while (left := end - time.monotonic()) > 0:
            seen.append(events.get(timeout=left))
    return seen


@contextlib.contextmanager
def _printed(boards: Sequence[Board], start: float) -> Iterator[Callable[[Sequence[Event]], None]]:
    """Print a line for each client that ends or leaves."""
    by_name = {board.name: board for board in boards}

    def show_(seen: Sequence[Event]) -> None:
        for event in seen:
            line = show.line(event, start, by_name[event.server].seats[event.client])
            if line is not None:
                _say(line)

    yield show_


@contextlib.contextmanager
def _drawn(boards: Sequence[Board], seconds: float) -> Iterator[Callable[[Sequence[Event]], None]]:
    """Draw the bars of all clients on the terminal; the last picture stays there."""
    from rich.live import Live  # noqa: PLC0415 - where there is a terminal

    with Live(auto_refresh=False) as live:

        def show_(_seen: Sequence[Event]) -> None:
            size = live.console.size
            drawn = show.picture(boards, time.monotonic(), seconds, size.width, size.height)
            live.update(drawn, refresh=True)

        yield show_


@contextlib.contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Let the signals that end a program end this one by an exception, so that it cleans up."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)  # noqa: T201 - a command
