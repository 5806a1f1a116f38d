"""Lets the clients ask a server, each in a thread of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batchstream._cli.demo.servers import HOST

if TYPE_CHECKING:
    import queue
    from collections.abc import Callable, Sequence

    from batchstream._cli.demo.script import Client

WORD, END, LEFT, FAILED = "word", "end", "left", "failed"
"""What a client can say: it got a word; its response ended; it has hung up; something is wrong."""

_SECONDS_OF_SILENCE: Final = 120.0


@dataclass(frozen=True)
class Event:
    """What has happened to a client.

    Attributes:
        server: The name of the server that it asks.
        client: Its number.
        time: When, as `time.monotonic` counts for all processes of a machine.
        kind: What.
        error: What is wrong, if it failed.
    """

    server: str
    client: int
    time: float
    kind: str
    error: str = ""


def let_ask(
    server: str,
    port: int,
    script: Sequence[Client],
    *,
    start: float,
    between: float,
    events: queue.SimpleQueue[Event],
) -> None:
    """Start the clients of a server; a call returns at once.

    Args:
        server: The server's name.
        port: Its port.
        script: What the clients do.
        start: When the first comes, as `time.monotonic` counts.
        between: The seconds between two of them.
        events: Where they tell what happens.
    """

    def run(client: Client) -> None:
        def tell(kind: str, error: str = "") -> None:
            events.put(Event(server, client.number, time.monotonic(), kind, error))

        time.sleep(max(0.0, start + client.number * between - time.monotonic()))
        try:
            tell(_ask(client, port, tell))
        except Exception as error:  # noqa: BLE001 - shown by the main thread
            tell(FAILED, f"{type(error).__name__}: {error}")

    for client in script:
        threading.Thread(target=run, args=(client,), daemon=True).start()


def _ask(client: Client, port: int, tell: Callable[[str], None]) -> str:
    """Read a response, or as much of it as the client has patience for; return how it ended.

    Raises:
        ValueError: It is not the response that was asked for.
        OSError, http.client.HTTPException: It was cut, or did not come.
    """
    body = json.dumps({"client": client.number, "length": client.length})
    connection = http.client.HTTPConnection(HOST, port, timeout=_SECONDS_OF_SILENCE)
    with contextlib.closing(connection):
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            if response.status != http.client.OK:
                raise ValueError(f"status {response.status}")
            words = 0
            # Not line by line: that takes a connection that is cut for the end of the response.
            while words != client.leaves_after and (arrived := response.read1(65536)):
                for _ in range(arrived.count(b"\n")):
                    words += 1
                    tell(WORD)
                    if words == client.leaves_after:
                        break
    # Here the socket is closed.
    if words != client.takes:
        raise ValueError(f"{words} words, expected {client.takes}")
    return END if client.leaves_after is None else LEFT
