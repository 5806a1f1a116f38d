"""How the two servers are shown: in lines, or as bars side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batchstream._cli.demo.clients import END, FAILED, LEFT, WORD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType
    from rich.text import Text

    from batchstream._cli.demo.board import Board, Seat, Totals
    from batchstream._cli.demo.clients import Event

_WORD, _OPEN, _GONE = "━", "░", "▒"
_LEGEND: Final = (
    ("━━ words", "green"),
    ("   ░░ has all words, and waits for the end", "yellow"),
    ("   ✓ ended", "green"),
    ("   ✗ hung up", "bright_black"),
    ("   ▒▒ the model works on", "red"),
)
_NUMBER: Final = 8  # columns for the number of a client, and the space between two bars
_ROWS_BESIDE: Final = 10  # of the legend, the names, and the counters


def line(event: Event, start: float, seat: Seat) -> str | None:
    """Return the line for what has happened to a client; None if it is not worth one."""
    client = seat.client
    what = {
        WORD: None,
        END: f"ended {seat.open_for(event.time):.2f} s after the last of its {client.length} words",
        LEFT: f"hung up after {client.takes} of its {client.length} words",
        FAILED: f"failed: {event.error}",
    }[event.kind]
    if what is None:
        return None
    return f"{event.time - start:6.2f} s  {event.server:<18}  client {event.client:>2}  {what}"


def counters(totals: Sequence[Totals]) -> list[tuple[str, list[str]]]:
    """Return the counters: of each its name, and what it is for each server."""
    return [
        ("model steps made", [f"{each.steps}" for each in totals]),
        (
            "from last word to end",
            [f"{each.open_mean:.2f} s, at most {each.open_longest:.2f} s" for each in totals],
        ),
        ("steps for clients that have gone", [f"{each.wasted}" for each in totals]),
    ]


def summary(boards: Sequence[Board], now: float) -> Iterator[str]:
    """Yield the lines of the counters."""
    yield f"{'':<34}" + "".join(f"{board.name:<26}" for board in boards).rstrip()
    for name, values in counters([board.totals(now) for board in boards]):
        yield f"{name:<34}" + "".join(f"{value:<26}" for value in values).rstrip()


def picture(
    boards: Sequence[Board], now: float, seconds: float, width: int, height: int
) -> RenderableType:
    """Return the bars of all clients, and the counters below them.

    Args:
        boards: What is known, of each server.
        now: The time.
        seconds: How long a step takes.
        width: The columns of the terminal.
        height: Its lines; clients for which there is no room are left out.
    """
    from rich.console import Group  # noqa: PLC0415 - where it is drawn
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    room = (width - _NUMBER) // len(boards) - 2
    late = [board.late_steps() for board in boards]
    longest = max(
        max(seat.client.length, seat.words + max(seat.open_for(now) / seconds, len(steps[number])))
        for board, steps in zip(boards, late, strict=True)
        for number, seat in enumerate(board.seats)
    )
    scale = min(1.0, (room - 3) / longest)
    shown = max(height - _ROWS_BESIDE, 1)

    bars = Table.grid(padding=(0, 1))
    bars.add_column(width=_NUMBER - 2, justify="right", style="bright_black")
    for _ in boards:
        bars.add_column(width=room, no_wrap=True)
    bars.add_row("client", *(Text(board.name, "bold") for board in boards))
    for number in range(min(len(boards[0].seats), shown)):
        row = (
            _bar(
                board.seats[number],
                len(steps[number]),
                board.seats[number].open_for(now) / seconds,
                scale,
                room,
            )
            for board, steps in zip(boards, late, strict=True)
        )
        bars.add_row(str(number), *row)
    left_out = len(boards[0].seats) - shown
    below = f"and {left_out} more, for which this terminal is too low" if left_out > 0 else ""

    figures = Table.grid(padding=(0, 3))
    figures.add_row("", *(Text(board.name, "bold") for board in boards))
    for name, values in counters([board.totals(now) for board in boards]):
        figures.add_row(name, *(Text(value, "bold") for value in values))
    return Group(Text.assemble(*_LEGEND), "", bars, below, figures)


def _bar(seat: Seat, late: int, opened: float, scale: float, room: int) -> Text:
    """Return the bar of a client, which is as long as the steps that it took.

    Args:
        seat: What is known of it.
        late: The steps after it hung up.
        opened: The steps in which its response was open, and had nothing to tell.
        scale: The cells of a step.
        room: The cells that there are.
    """
    from rich.text import Text  # noqa: PLC0415 - where it is drawn

    def cells(steps: int) -> int:
        return max(1, round(steps * scale)) if steps else 0

    bar = Text(_WORD * cells(seat.words), "green")
    if seat.has_left:
        bar.append("✗", "bright_black")
        bar.append(_GONE * cells(late), "red")
    else:
        bar.append(_OPEN * round(opened * scale), "yellow")
        if seat.has_ended:
            bar.append("✓", "bold green")
    bar.truncate(room)
    return bar
