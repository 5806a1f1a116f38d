"""How a batcher is shown: rows of a label and of text, in lines or in colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

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


def rows(view: View) -> Iterator[Row]:
    """Yield the rows of a batcher."""
    yield "slots", list(_slots(view))
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
        reasons = [f"{reason} {count:.0f}" for reason, count in view.refused.items() if reason]
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


def picture(views: Iterable[View], title: str, notice: str = "") -> RenderableType:
    """Return what shows batchers on a terminal.

    Args:
        views: The batchers.
        title: What stands above them.
        notice: What is wrong, if something is.
    """
    from rich.console import Group  # noqa: PLC0415 - where there is a terminal
    from rich.panel import Panel  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    panels: list[RenderableType] = [
        Text.assemble((title, "bold"), ("   q ends it", "bright_black"))
    ]
    if notice:
        panels.append(Text(notice, "bold red"))
    for view in views:
        grid = Table.grid(padding=(0, 2))
        for label, parts in rows(view):
            painted = Text()
            for text, kind in parts:
                cell = _CELLS.get(kind)
                painted.append(text.replace(cell, _PAINTED[kind]) if cell else text, _STYLES[kind])
            grid.add_row(Text(label, "bold"), painted)
        panels.append(Panel(grid, title=Text(view.name), title_align="left"))
    return Group(*panels)
