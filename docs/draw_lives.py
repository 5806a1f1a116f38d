"""Draws life cycles from the tables in the code: which event leads from which state to which.

A table is a dictionary from (state, event) to the state after it. `python docs/draw_lives.py
batchstream._core.demultiplexer.BATCH_TRANSITIONS` prints one as the design page holds it. Below are
the functions that conf.py and the tests call.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from svg import arrow, element, picture, text

Table = Mapping[tuple[str, str], str]

HEIGHT = 38  # of a state
ROW = 86  # from one state to the one below it
LETTER = 8  # how wide a letter of a state is
SMALL = 6.4  # and of an event
LINE = 15
LANE = 30  # from one arrow over other states to the next


def table(name: str) -> dict[tuple[str, str], str]:
    """Return a table of the code by its dotted name, with the states and events as text."""
    module, _, attribute = name.rpartition(".")
    found: Table = getattr(import_module(module), attribute)
    return {(str(state), str(event)): str(after) for (state, event), after in found.items()}


def lines(life: Table) -> str:
    """Return a table as lines: state, event, and the state after it."""
    rows = [(state, event, "->", after) for (state, event), after in life.items()]
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )


def columns(life: Table) -> list[list[str]]:
    """Return the states from left to right: as far from the first as the longest way there.

    What leads back to a state that comes earlier in the table does not count.
    """
    states = list(dict.fromkeys([*(state for state, _ in life), *life.values()]))
    place = dict.fromkeys(states, 0)
    for state in states:  # in the order of the table, which is the order of a life
        for (before, _), after in life.items():
            if before == state and states.index(after) > states.index(state):
                place[after] = max(place[after], place[state] + 1)
    return [[s for s in states if place[s] == n] for n in range(max(place.values()) + 1)]


class Picture:
    """The states of a table as boxes, the events as arrows between them."""

    def __init__(self, life: Table) -> None:
        self._ended = set(life.values()) - {state for state, _ in life}
        self._events: dict[tuple[str, str], list[str]] = {}
        for (state, event), after in life.items():
            self._events.setdefault((state, after), []).append(event)
        self._columns = columns(life)
        self._rank = {s: n for n, column in enumerate(self._columns) for s in column}
        self._width = max(len(state) for state in self._rank) * LETTER + 26
        steps = {pair: self._rank[pair[1]] - self._rank[pair[0]] for pair in self._events}
        nested = sorted(self._events, key=lambda pair: abs(steps[pair]))  # the shortest inside
        over = [pair for pair in nested if steps[pair] > 1]
        back = [pair for pair in nested if steps[pair] < 0]
        direct = [len(events) for pair, events in self._events.items() if steps[pair] == 1]
        self._first_lane = 24 + LINE * ((max(direct, default=1) - 1) // 2)
        self._lanes = {pair: n for pairs in (over, back) for n, pair in enumerate(pairs)}
        self._at = self._places()
        self.width = max(x for x, _ in self._at.values()) + self._width + 4
        self.top, self.bottom = self._extent(max(direct, default=1))

    def _places(self) -> dict[str, tuple[float, float]]:
        at, x = {}, 26.0
        for n, column in enumerate(self._columns):
            top = -(len(column) - 1) * ROW / 2  # the middle of each column is on one line
            at.update({state: (x, top + row * ROW) for row, state in enumerate(column)})
            names = [
                event
                for (state, after), events in self._events.items()
                if self._rank[state] == n and self._rank[after] == n + 1
                for event in events
            ]
            x += self._width + max(map(len, names), default=0) * SMALL + 44
        return at

    def _extent(self, most: int) -> tuple[float, float]:
        """Return where the picture begins and ends; at most so many events are at one arrow."""
        ys = [y for _, y in self._at.values()]
        top, bottom = min(ys) - 6, max(ys) + HEIGHT + 6
        bottom = max(bottom, HEIGHT / 2 + LINE * (most // 2) + 12)
        for (state, after), events in self._events.items():
            if state == after:
                _, y = self._at[state]
                top = min(top, y - LINE * len(events) - 28)
            elif (state, after) in self._lanes:
                turn = self._turn(state, after)
                top, bottom = min(top, turn - 18), max(bottom, turn + 6)
        return top, bottom

    def _turn(self, state: str, after: str) -> float:
        """Return at which height an arrow goes that has a lane: beyond all states on its way."""
        far = self._first_lane + LANE * self._lanes[state, after]
        first, last = sorted((self._rank[state], self._rank[after]))
        ys = [y for other, (_, y) in self._at.items() if first <= self._rank[other] <= last]
        return min(ys) - far if self._rank[after] > self._rank[state] else max(ys) + HEIGHT + far

    def draw(self, name: str) -> str:
        """Return the picture, called by a name that no other on its page has."""
        tip = f"{name}-tip"
        parts: list[str] = []
        for state, (x, y) in self._at.items():
            kind = "last" if state in self._ended else "state"
            box = {"x": x, "y": y, "width": self._width, "height": HEIGHT, "rx": HEIGHT / 2}
            parts += [
                element("rect", class_=kind, **box),
                text(state, x + self._width / 2, y + 24, "middle"),
            ]
        x, y = self._at[self._columns[0][0]]
        parts += [
            element("circle", cx=6, cy=y + HEIGHT / 2, r=5, class_="tip"),
            arrow(f"M10,{y + HEIGHT / 2:g} H{x:g}", tip),
        ]
        for (state, after), events in self._events.items():
            parts += self._arrow(state, after, events, tip)
        return picture(parts, self.width, (self.top, self.bottom), self._label(), tip)

    def _label(self) -> str:
        return "; ".join(
            f"{state} to {after} by {', '.join(events)}"
            for (state, after), events in self._events.items()
        )

    def _arrow(self, state: str, after: str, events: list[str], tip: str) -> list[str]:
        (x, y), (to_x, to_y) = self._at[state], self._at[after]
        right, half = x + self._width, HEIGHT / 2
        step = self._rank[after] - self._rank[state]
        if state == after:
            middle = x + self._width / 2
            path = f"M{middle - 14:g},{y:g} c-6,-26 34,-26 28,0"
            return [
                arrow(path, tip),
                self._words(middle, y - 26 - LINE * (len(events) - 1), events),
            ]
        if step == 1:
            along = (right + to_x) / 2
            path = (
                f"M{right:g},{y + half:g} C{along:g},{y + half:g} {along:g},{to_y + half:g} "
                f"{to_x:g},{to_y + half:g}"
            )
            if y == to_y:  # one half above the arrow, the other below
                above = (len(events) + 1) // 2
                return [
                    arrow(path, tip),
                    self._words(along, y + half - 6 - LINE * (above - 1), events[:above]),
                    self._words(along, y + half + LINE, events[above:]),
                ]
            up = to_y < y
            beside = along - 4 - max(map(len, events)) * SMALL / 2
            top = y + half + (to_y - y) * 0.7 - (LINE * (len(events) - 1) - 4 if up else -6)
            return [arrow(path, tip), self._words(beside, top, events)]
        # Over others, or back: along a lane of its own above or below all of them.
        lane = self._lanes[state, after]
        if step > 1:
            edge = (y, to_y)
        elif step < 0:
            edge = (y + HEIGHT, to_y + HEIGHT)
        else:  # one above the other
            down = to_y > y
            start, end = (y + HEIGHT, to_y) if down else (y, to_y + HEIGHT)
            middle = x + self._width / 2 + (12 if down else -12)
            side = 8 + max(map(len, events)) * SMALL / 2
            return [
                arrow(f"M{middle:g},{start:g} V{end:g}", tip),
                self._words(
                    middle + (side if down else -side), (start + end) / 2 + 4, events, "event"
                ),
            ]
        outside = self._width * (0.3 + 0.12 * lane)  # wide ways end outside of short ones
        inside = self._width - outside
        start, end = (x + inside, to_x + outside) if step > 0 else (x + outside, to_x + inside)
        turn = self._turn(state, after)
        path = (
            f"M{start:g},{edge[0]:g} C{start:g},{turn:g} {start:g},{turn:g} "
            f"{(start + end) / 2:g},{turn:g} S{end:g},{turn:g} {end:g},{edge[1]:g}"
        )
        return [
            arrow(path, tip),
            self._words((start + end) / 2, turn - 5, [", ".join(events)]),
        ]

    def _words(self, x: float, y: float, events: list[str]) -> str:
        return "\n".join(
            text(event, x, y + n * LINE, "small middle") for n, event in enumerate(events)
        )


def draw(life: Table, name: str) -> str:
    """Return the picture of a table, called by a name that no other on its page has."""
    return Picture(life).draw(name)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    print("\n\n".join(lines(table(name)) for name in sys.argv[1:]))
