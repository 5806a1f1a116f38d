"""How a batcher is shown: rows of a label and of text, in lines or in colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType

    from batchstream._cli.top.view import View

Part: TypeAlias = "tuple[str, str]"
"""A piece of text, and what it is: a key of `_STYLES`, or empty."""

Row: TypeAlias = "tuple[str, Sequence[Part]]"
"""A label, and what stands behind it."""

_WIDEST: Final = 64  # cells of the picture of the slots
_LABEL: Final = 14  # letters
_STYLES: Final = {
    "": "",
    "running": "green",
    "prefilling": "yellow",
    "free": "bright_black",
    "waiting": "cyan",
    "bad": "red",
    "aside": "bright_black",
}
_CELLS: Final = {"running": "#", "prefilling": "+", "free": "."}
_PAINTED: Final = {"running": "■", "prefilling": "▣", "free": "□"}
_BOUNDS: Final = {
    "pending": "max_pending",
    "pending_cost": "max_pending_cost",
    "tenant": "max_pending_per_tenant",
    "cost": "max_batch_cost",
}
"""Which option a reason of refusals stands for: `tenant 8` would read as a tenant."""


def rows(view: View) -> Iterator[Row]:
    """Yield the rows of a batcher."""
    yield "slots", list(_slots(view))
    if view.state:
        yield "state", [(f"{view.state}: new requests are refused", "bad")]
    waiting = _count(view.waiting)
    yield "waiting", [(waiting, "waiting" if view.waiting else "")]
    rates = {"requests": view.requests, "outputs": view.outputs, "steps": view.steps}
    yield "per second", [(_joined(f"{_rate(rate)} {what}" for what, rate in rates.items()), "")]
    if view.occupancy is not None:
        text = f"{view.occupancy:.0%} of the slots in each step"
        wasted = f", {view.wasted:.1%} of it for requests that had left" if view.wasted else ""
        yield "occupancy", [(text, ""), (wasted, "bad")]
    if view.cache is not None:
        yield "cache", [(f"{view.cache:.0%} in use", "")]
    for times in view.times:
        since = "" if times.recent else "  since the start"
        text = f"p50 {_seconds(times.half)}  p95 {_seconds(times.most)}"
        yield times.what, [(text, ""), (since, "aside")]
    if view.refused_rate is not None or view.refused:
        total = sum(view.refused.values())
        reasons = [
            f"{_BOUNDS.get(reason, reason)} {count:.0f}"
            for reason, count in view.refused.items()
            if reason
        ]
        text = f"{total:.0f}" + "".join(f"  {reason}" for reason in reasons)
        yield "refused", [(text, "bad" if view.refused_rate else ""), *_now(view.refused_rate)]
    if view.finished:
        ended = (f"{reason} {count:.0f}" for reason, count in view.finished.items())
        yield "ended", [(_joined(ended), "")]
    if view.requeued:
        yield "given back", [(f"{view.requeued:.0f}, by requests that wait again", "")]
    for tenant in view.tenants:
        figures = {
            "running": _count(tenant.running),
            "waiting": _count(tenant.waiting),
            "requests/s": _rate(tenant.per_second),
            "outputs/s": _rate(tenant.outputs),
            "refused": _count(tenant.refused),
        }
        text = _joined(f"{value} {what}" for what, value in figures.items() if value != _UNKNOWN)
        yield f"tenant {tenant.name}" if tenant.name else "no tenant", [(text, "")]


def _slots(view: View) -> Iterator[Part]:
    running, prefilling = view.running or 0, view.prefilling
    slots = max(view.slots or 0, running)
    size = max(1, -(-slots // _WIDEST))  # of a cell, in slots
    # Of each kind the cells that it fills; the free ones get what is left.
    filled = {"running": _cells(running - prefilling, size), "prefilling": _cells(prefilling, size)}
    filled["free"] = max(-(-slots // size) - sum(filled.values()), 0)
    for kind, cells in filled.items():
        if cells:
            yield _CELLS[kind] * cells, kind
    text = (
        f"  {_count(view.running)} of {view.slots} running"
        if view.slots
        else (f"  {_count(view.running)} running")
    )
    if prefilling:
        text += f", about {prefilling} of them prefilling"
    if size > 1:
        text += f"; a cell is {size} slots"
    yield text if any(filled.values()) else text.strip(), ""


def _cells(slots: int, size: int) -> int:
    return -(-max(slots, 0) // size)


def _now(rate: float | None) -> list[Part]:
    return [(f"  {_rate(rate)} per second", "bad")] if rate else []


_UNKNOWN: Final = "-"


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0f}"


def _rate(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004 - three digits


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s"


def _joined(parts: Iterable[str]) -> str:
    return "  ".join(parts)


def lines(views: Iterable[View]) -> Iterator[str]:
    """Yield the lines that show batchers where there are no colours."""
    for view in views:
        yield view.name
        for label, parts in rows(view):
            yield f"  {label:<{_LABEL}}{''.join(text for text, _ in parts)}".rstrip()


@dataclass
class Picture:
    """What shows batchers on a terminal: as many rows as it has room for.

    Attributes:
        views: The batchers.
        title: What stands above them.
        notice: What is wrong, if something is.
        height: How many lines the terminal has; None for any number.
    """

    views: Sequence[View]
    title: str
    notice: str = ""
    height: int | None = None

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield the parts, for rich."""
        from rich.text import Text  # noqa: PLC0415 - where there is a terminal

        head = [Text.assemble((self.title, "bold"), ("   q ends it", "bright_black"))]
        if self.notice:
            head.append(Text(self.notice, "bold red"))
        yield from head
        free = options.reset_height()

        def lines_of(part: RenderableType) -> int:
            return len(console.render_lines(part, free))

        room = math.inf if self.height is None else self.height - sum(map(lines_of, head))
        yield from _fitting(self.views, room, lines_of)


def _fitting(
    views: Sequence[View], room: float, lines_of: Callable[[RenderableType], int]
) -> list[RenderableType]:
    """Return the batchers with as many rows of each as there is room for.

    Rows are left out from the end, where the rows of tenants are, first of the batcher with the
    most rows; a line in each says how many. What has no room with one row is left out.

    Args:
        views: The batchers.
        room: How many lines there are.
        lines_of: Returns how many lines something takes.
    """
    from rich.text import Text  # noqa: PLC0415 - where there is a terminal

    all_rows = [list(rows(view)) for view in views]
    shown = [len(each) for each in all_rows]
    panels = [_panel(view, each) for view, each in zip(views, all_rows, strict=True)]
    heights = [lines_of(panel) for panel in panels]
    while (excess := sum(heights) - room) > 0 and max(shown, default=0) > 1:
        cut = set()
        for _ in range(max(int(excess) // 2, 1)):  # a row may take two lines
            longest = shown.index(max(shown))
            shown[longest] = max(shown[longest] - 1, 1)
            cut.add(longest)
        for number in cut:
            panels[number] = _panel(views[number], all_rows[number], shown[number])
            heights[number] = lines_of(panels[number])
    left_out = 0
    while sum(heights) + bool(left_out) > room and len(panels) > 1:
        del panels[-1], heights[-1]
        left_out += 1
    if left_out:
        panels.append(Text(_left_out(left_out, "batcher"), _STYLES["aside"]))
    return panels


def _panel(view: View, all_rows: Sequence[Row], shown: int | None = None) -> RenderableType:
    """Return the frame of a batcher, with so many of its rows."""
    from rich.panel import Panel  # noqa: PLC0415 - where there is a terminal
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table.grid(padding=(0, 2))
    for label, parts in all_rows[:shown]:
        painted = Text()
        for text, kind in parts:
            cell = _CELLS.get(kind)
            painted.append(text.replace(cell, _PAINTED[kind]) if cell else text, _STYLES[kind])
        grid.add_row(Text(label, "bold"), painted)
    left_out = 0 if shown is None else len(all_rows) - shown
    if left_out:
        what = "tenant" if left_out <= len(view.tenants) else "row"
        grid.add_row("", Text(_left_out(left_out, what), _STYLES["aside"]))
    return Panel(grid, title=Text(view.name), title_align="left")


def _left_out(count: int, what: str) -> str:
    return f"and {count} more {what}{'s' * (count > 1)}, for which this terminal is too low"
