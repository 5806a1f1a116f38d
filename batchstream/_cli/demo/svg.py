"""Draws a run of the demonstration as an animated picture: what happened, at its own pace.

Time runs to the right. All bars are there from the beginning, and a curtain before them is drawn
aside: a viewer that animates nothing, or is asked not to, shows all.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from batchstream._cli.demo import show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._cli.demo.board import Board, Seat

_WIDTH: Final = 820
_LEFT: Final = 16
_LANE: Final = 386  # from the left of one server to that of the next
_BARS: Final = 370  # the width of all the time that there is
_ROW: Final = 12  # from one client to the next
_TOP: Final = 104  # of the first client
_PAUSE: Final = 3.0  # seconds in which the whole is shown, before it begins again

# The first colours are for a light page, the colours in the middle for a dark one.
_STYLE: Final = """
text { font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
text { fill: #24292f }
.code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.name, .figure { font-weight: 600 }
.small { font-size: 12px; fill: #57606a }
.page { fill: #fff; stroke: #d0d7de }
.lane, .curtain { fill: #f3f5f8 }
.minus { fill: #b3261e } .plus { fill: #116329 }
.words { fill: #2f9e5b } .open { fill: #e8b54a } .late { fill: #d1453b }
.end { stroke: #116329; stroke-width: 2 }
.left { stroke: #57606a; stroke-width: 1.5; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9aa4af }
  .page { fill: #0d1117; stroke: #30363d } .lane, .curtain { fill: #161b22 }
  .minus { fill: #ff8f87 } .plus { fill: #6fdc8c }
  .words { fill: #3fb56b } .open { fill: #d9a53a } .late { fill: #e5534b }
  .end { stroke: #8ff0ab } .left { stroke: #9aa4af }
}
@media (prefers-reduced-motion: no-preference) {
  .curtain { animation: aside SECONDSs linear infinite }
}
@keyframes aside { 0% { transform: scaleX(1) } SHARE%, 100% { transform: scaleX(0) } }
"""


def draw(boards: Sequence[Board], difference: Sequence[str], start: float) -> str:
    """Return the picture.

    Args:
        boards: What is known of each server, after the run.
        difference: The lines that differ between the servers.
        start: When the first client came, as `time.monotonic` counts.
    """
    seconds = max(board.last_time() for board in boards) - start
    rows = len(boards[0].seats)
    bottom = _TOP + rows * _ROW
    height = bottom + 124
    share = 100 * seconds / (seconds + _PAUSE)
    style = _STYLE.replace("SECONDS", f"{seconds + _PAUSE:.1f}").replace("SHARE", f"{share:.1f}")
    label = f"{rows} clients of two LitServe servers that differ in one line"
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">',
        f"<style>{style}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
    ]
    for number, line in enumerate(difference):
        sign = "minus" if line.startswith("-") else "plus"
        parts.append(_text(line, _LEFT, 28 + 20 * number, f"code {sign}"))
    for number, board in enumerate(boards):
        parts += _lane(board, number, start, _BARS / seconds, bottom - _TOP)
    parts += _legend(bottom + 20)
    parts += _figures(boards, bottom + 52)
    return "\n".join([*parts, "</svg>", ""])


def _lane(board: Board, number: int, start: float, scale: float, height: float) -> list[str]:
    """Draw one server: its name, and a row for each client."""
    left = _LEFT + number * _LANE + 8 * number
    late = board.late_steps()
    bars = []
    for row, seat in enumerate(board.seats):
        bars += _client(seat, late[row], row * _ROW, lambda time: (time - start) * scale)
    size = f'y="-4" height="{height + 6}"'
    return [
        _text(board.name, left, _TOP - 14, "name"),
        f'<g transform="translate({left} {_TOP})">',
        f'<rect class="lane" {size} width="{_BARS}" rx="4"/>',
        *bars,
        # It ends at the right, where its transform has its origin.
        f'<g transform="translate({_BARS})">',
        f'<rect class="curtain" {size} x="{-_BARS}" width="{_BARS}" transform="scale(0 1)"/>',
        "</g></g>",
    ]


def _client(seat: Seat, late: Sequence[float], y: float, x: Callable[[float], float]) -> list[str]:
    """Draw what happened to one client."""
    if seat.first_word is None or seat.last_word is None or seat.over is None:
        return []

    def bar(kind: str, begin: float, end: float) -> str:
        return (
            f'<rect class="{kind}" x="{x(begin):.1f}" y="{y}" '
            f'width="{max(x(end) - x(begin), 1):.1f}" height="8"/>'
        )

    parts = [bar("words", seat.first_word, seat.last_word)]
    at = x(seat.over)
    if seat.has_left:
        if late:
            parts.append(bar("late", seat.over, late[-1]))
        parts.append(f'<path class="left" d="M{at - 3:.1f} {y + 1}l6 6m0 -6l-6 6"/>')
    else:
        parts.append(bar("open", seat.last_word, seat.over))
        parts.append(f'<path class="end" d="M{at:.1f} {y - 1}v10"/>')
    return parts


def _legend(y: float) -> list[str]:
    """Draw what the colours mean."""
    parts, x = [], float(_LEFT)
    for kind, words, width in (
        ("words", "words arrive", 104),
        ("open", "has all words, and waits for the end", 238),
        ("end", "ended", 66),
        ("left", "hung up", 78),
        ("late", "the model works on for it", 0),
    ):
        if kind == "end":
            parts.append(f'<path class="end" d="M{x + 6} {y - 10}v12"/>')
        elif kind == "left":
            parts.append(f'<path class="left" d="M{x + 3} {y - 8}l6 6m0 -6l-6 6"/>')
        else:
            parts.append(f'<rect class="{kind}" x="{x}" y="{y - 8}" width="12" height="8"/>')
        parts.append(_text(words, x + 18, y, "small"))
        x += width + 18
    return parts


def _figures(boards: Sequence[Board], y: float) -> list[str]:
    """Draw the counters."""
    columns = [_LEFT, _LEFT + 250, _LEFT + 480]
    parts = [_text(board.name, x, y, "name") for board, x in zip(boards, columns[1:], strict=True)]
    for number, (name, values) in enumerate(show.counters([each.totals(0) for each in boards]), 1):
        line = y + number * 19
        parts.append(_text(name, columns[0], line, ""))
        parts += [
            _text(value, x, line, "figure") for value, x in zip(values, columns[1:], strict=True)
        ]
    return parts


def _text(words: str, x: float, y: float, kind: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'
