"""Systems that run in this process: each makes streams, plain iterators, from a source of steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from itertools import takewhile, tee
from operator import itemgetter
from typing import Any

from batchstream import BatchedStream

Source = Iterator[Sequence[Any]]


def batchstream(source: Source, size: int) -> list[Iterator[Any]]:
    """Give the streams of this library, of a source with a thread of its own."""
    bounds = {"max_buffered": 8, "on_overflow": "cancel"}
    return list(BatchedStream(source, size=size, background=True, **bounds))


def queues(source: Source, size: int) -> list[Iterator[Any]]:
    """Give a queue for each request, as written by hand; None is the end."""
    mine = [queue.Queue() for _ in range(size)]

    def run() -> None:
        for step in source:
            for each, output in zip(mine, step, strict=True):
                each.put(output)

    threading.Thread(target=quietly(run), daemon=True).start()
    return [iter(each.get, None) for each in mine]


def tees(source: Source, size: int) -> list[Iterator[Any]]:
    """Give a copy of the source for each request, in which only its slot is read."""
    return [
        takewhile(lambda output: output is not None, map(itemgetter(slot), copy))
        for slot, copy in enumerate(tee(source, size))
    ]


def quietly(run: Any) -> Any:
    """Let an exception end the thread without the traceback, which is of no interest here."""

    def run_quietly() -> None:
        try:
            run()
        except Exception:  # noqa: BLE001, S110 - no client notices: that is what is shown
            pass

    return run_quietly
