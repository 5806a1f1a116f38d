"""Notices a stall: a pump waits for streams that are not read, while others are waited for.

Theory of operation
-------------------

A pump that waits for room also looks around when its wait has lasted `STALL_SECONDS`, and from then
on as often, until it has warned. A stream that was read meanwhile has room, and no longer
counts. Without a stream that is waited for there is no stall: the consumers may all be at work on
what they have. A pump that waits for its source never comes here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from batchstream._log import write_line
from batchstream._pumps import clock
from batchstream._pumps.room import ways_out

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from batchstream._handoff.buffer import Buffer

STALL_SECONDS: Final = 5.0
"""How long a pump waits for streams that are not read before it warns."""

_NAMED: Final = 3
"""How many streams a warning names."""


class StallWatch:
    """How long a pump has waited for which streams, and whether it has warned.

    Args:
        unbounded: What reads all streams without a bound, in words; None if nothing does.
    """

    __slots__ = ("_since", "_unbounded", "_warned")

    def __init__(self, unbounded: str | None) -> None:
        self._unbounded = unbounded
        self._since: dict[Buffer[Any], float] = {}
        self._warned = False

    def begin(self, full: Sequence[Buffer[Any]]) -> None:
        """Begin to wait for these streams, or go on."""
        if not self._warned:
            now = clock.monotonic()
            self._since = {buffer: self._since.get(buffer, now) for buffer in full}

    def over(self) -> None:
        """Forget all waits: every stream has room."""
        self._since = {}

    def time_left(self) -> float | None:
        """Return for how many seconds to wait before the next look, if not for ever."""
        if self._warned or not self._since:
            return None
        waited = clock.monotonic() - min(self._since.values())
        return STALL_SECONDS - waited if waited < STALL_SECONDS else STALL_SECONDS

    def look(
        self, full: Collection[Buffer[Any]], waited_for: Callable[[], list[Buffer[Any]]]
    ) -> None:
        """Warn, once, if this is a stall.

        Args:
            full: The streams that the pump waits for, and that still have no room.
            waited_for: Returns the streams that consumers wait for.
        """
        since = self._since = {it: at for it, at in self._since.items() if it in full}
        if not since:
            return
        longest = clock.monotonic() - min(since.values())
        if longest < STALL_SECONDS:
            return
        waiting = waited_for()
        for buffer in waiting:
            since.pop(buffer, None)  # it was read a moment ago, and is empty
        if not (waiting and since):
            return
        self._warned, self._since = True, {}
        one = len(since) == 1
        write_line(
            logging.WARNING,
            "stalled",
            "%s: no consumer reads %s, so that the source has waited for room for %.0f seconds, "
            "while a consumer waits for %s: %s",
            _holdings(list(since)),
            "it" if one else "them",
            longest,
            _names(waiting),
            ways_out(self._unbounded, "'cancel' to end a stream that is not read"),
        )


def _holdings(buffers: list[Buffer[Any]]) -> str:
    return _listed(
        [
            f"{it.name} holds {len(it.outputs)} unread outputs"
            for it in sorted(buffers, key=lambda it: it.slot)
        ]
    )


def _names(buffers: list[Buffer[Any]]) -> str:
    return _listed([it.name for it in sorted(buffers, key=lambda it: it.slot)])


def _listed(items: list[str]) -> str:
    more = len(items) - _NAMED
    return ", ".join(items[:_NAMED]) + (f" and {more} more" if more > 0 else "")
