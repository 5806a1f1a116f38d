"""Keeps count of what the clients of one server see, and of what its worker has noted down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchstream._cli.demo.clients import END, FAILED, LEFT, WORD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchstream._cli.demo.clients import Event
    from batchstream._cli.demo.script import Client


@dataclass
class Seat:
    """What is known of one client.

    Attributes:
        client: What it does.
        words: How many it has got.
        first_word: When it got the first of these; None before.
        last_word: When it got the last of these; None before the first.
        over: When its response ended, or when it hung up; None before.
    """

    client: Client
    words: int = 0
    first_word: float | None = None
    last_word: float | None = None
    over: float | None = None

    @property
    def has_left(self) -> bool:
        """Whether it has hung up."""
        return self.over is not None and self.client.leaves_after is not None

    @property
    def has_ended(self) -> bool:
        """Whether its response has ended, in the proper way."""
        return self.over is not None and self.client.leaves_after is None

    def open_for(self, now: float) -> float:
        """Return for how many seconds its response was open after its last word, up to now."""
        if self.client.leaves_after is not None or self.words < self.client.length:
            return 0.0
        return (now if self.over is None else self.over) - (self.last_word or now)


@dataclass(frozen=True)
class Totals:
    """The three counters.

    Attributes:
        steps: How many steps the model has made.
        open_mean: The mean time from a client's last word to the end of its response, in seconds;
            of the clients that stay and have all their words.
        open_longest: The longest of these times.
        wasted: How many steps the model has begun for a client that had hung up; a step that is
            for two such clients counts twice.
    """

    steps: int
    open_mean: float
    open_longest: float
    wasted: int


class Board:
    """All that has happened at one server.

    Args:
        name: The server's.
        script: What its clients do.
    """

    def __init__(self, name: str, script: Sequence[Client]) -> None:
        self.name = name
        self.seats = [Seat(client) for client in script]
        self.failure = ""
        self._steps: list[tuple[float, list[int]]] = []
        self._unread = ""

    def see(self, event: Event) -> None:
        """Take note of what has happened to a client."""
        seat = self.seats[event.client]
        if event.kind == WORD:
            seat.words += 1
            seat.last_word = event.time
            if seat.first_word is None:
                seat.first_word = event.time
        elif event.kind in {END, LEFT}:
            seat.over = event.time
        elif event.kind == FAILED:
            self.failure = f"{self.name}: client {event.client} failed: {event.error}"

    def read(self, text: str) -> None:
        """Take note of more of the worker's diary.

        Args:
            text: What has been added to it: lines, the last of which may be cut off.
        """
        *lines, self._unread = (self._unread + text).split("\n")
        for line in lines:
            time, *clients = line.split()
            self._steps.append((float(time), [int(client) for client in clients]))

    def is_over(self) -> bool:
        """Return whether all clients have ended or left, and the model works for none."""
        if any(seat.over is None for seat in self.seats) or not self._steps:
            return False
        return not self._steps[-1][1]  # a line without clients: the batch is over

    def last_time(self) -> float:
        """Return when the last thing happened of which there is a note."""
        times = [seat.over for seat in self.seats if seat.over is not None]
        return max([*times, self._steps[-1][0]])

    def late_steps(self) -> dict[int, list[float]]:
        """Return when the model began a step for a client that had hung up, by the client."""
        late: dict[int, list[float]] = {seat.client.number: [] for seat in self.seats}
        for time, clients in self._steps:
            for client in clients:
                seat = self.seats[client]
                if seat.has_left and time > (seat.over or 0):
                    late[client].append(time)
        return late

    def totals(self, now: float) -> Totals:
        """Return the counters."""
        complete = [
            seat.open_for(now)
            for seat in self.seats
            if seat.client.leaves_after is None and seat.words == seat.client.length
        ]
        return Totals(
            steps=sum(bool(clients) for _, clients in self._steps),
            open_mean=sum(complete) / len(complete) if complete else 0.0,
            open_longest=max(complete, default=0.0),
            wasted=sum(map(len, self.late_steps().values())),
        )
