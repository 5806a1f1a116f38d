"""`top`: fetches a page again and again, and shows what it says."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from batchstream._cli.errors import CommandError, check_installed
from batchstream._cli.top.fetch import fetch, page_address

if TYPE_CHECKING:
    from batchstream._cli.top.page import Reading


def top(url: str, *, interval: float, once: bool) -> int:
    """Show what a server does until the user has seen enough; return the exit status.

    Args:
        url: Of the server, or of its metrics page.
        interval: The seconds between two looks at the page.
        once: Whether to print plain lines, after two looks, and to end.

    Raises:
        CommandError: The page cannot be had. Later it is only said above the last figures.
    """
    check_installed("prometheus_client", "top needs prometheus-client", "cli")
    address = page_address(url)
    if once or not sys.stdout.isatty():
        _print_once(address, interval)
    else:
        check_installed("rich", "top needs rich on a terminal (without it, pass --once)", "cli")
        _show(address, interval)
    return 0


def _read(address: str) -> Reading:
    from batchstream._cli.top.page import read_page  # noqa: PLC0415 - needs the extra

    text = fetch(address)
    return read_page(text, time.monotonic(), address)


def _print_once(address: str, interval: float) -> None:
    from batchstream._cli.top.changes import History  # noqa: PLC0415 - after the check above
    from batchstream._cli.top.show import lines  # noqa: PLC0415
    from batchstream._cli.top.view import views  # noqa: PLC0415

    history = History()
    history.add(_read(address))
    time.sleep(interval)
    history.add(_read(address))
    print(*lines(views(history)), sep="\n", flush=True)  # noqa: T201 - a command


def _show(address: str, interval: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - after the check above

    from batchstream._cli.top.changes import History  # noqa: PLC0415
    from batchstream._cli.top.keys import single_keys, wait_for_key  # noqa: PLC0415
    from batchstream._cli.top.show import Picture  # noqa: PLC0415
    from batchstream._cli.top.view import views  # noqa: PLC0415

    history, notice = History(), ""
    history.add(_read(address))  # before the screen is taken: what is wrong is printed
    with single_keys() as has_keys, Live(screen=True, auto_refresh=False) as live:
        while True:
            shown = Picture(views(history), address, notice, live.console.height)
            live.update(shown, refresh=True)
            if wait_for_key("qQ", interval, has_keys=has_keys):
                return
            try:
                history.add(_read(address))
                notice = ""
            except CommandError as error:
                age = time.monotonic() - history.last().time
                notice = f"{error}; what is below is {age:.0f} s old"
