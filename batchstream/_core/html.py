"""How an object looks in a notebook: a table, the bars of a time line, short texts.

It is made of plain values, and imported where a notebook asks for it. No script, no colour but that
of the text, no style sheet: it looks the same in light and in dark, and where styles are stripped
the columns still say all that the bars do. What a user's object says of itself is shortened first,
and escaped where it enters a cell.
"""

from __future__ import annotations

import builtins
from html import escape
from itertools import islice
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from batchstream._core.errors import error_text, type_name

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ROWS: Final = 32
"""How many rows a table has, before a line says how many more there are."""

MAX_VALUES: Final = 4
"""How many outputs of a stream are shown."""

_MAX_TEXT: Final = 80


class Bar(NamedTuple):
    """A cell with one bar of a time line. It repeats what the columns beside it say in numbers.

    Attributes:
        filled: How many outputs its filled part stands for.
        outlined: How many its outlined part stands for.
        longest: For how many the longest bar of this time line stands.
        is_open: Whether it goes on, as its stream is live.
    """

    filled: int
    outlined: int
    longest: int
    is_open: bool


Cell: TypeAlias = str | int | Bar


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], notes: Sequence[str]
) -> str:
    """Return a table.

    Args:
        caption: What it shows.
        head: The names of its columns.
        rows: Its rows; the first cell of each is its name.
        notes: Lines below it.
    """
    parts = [
        '<table style="border-collapse: collapse">',
        f'<caption style="{_LEFT}; color: inherit">{_text(caption)}</caption>',
    ]
    if rows:
        names = "".join(f'<th scope="col" style="{_LEFT}">{_text(name)}</th>' for name in head)
        parts.append(f"<thead><tr>{names}</tr></thead>")
    parts.append("<tbody>")
    for name, *cells in rows:
        row = (
            f'<th scope="row" style="{_LEFT}; white-space: nowrap">{_content(name)}</th>'
            + "".join(
                f'<td style="{_RIGHT if isinstance(cell, int) else _LEFT}">{_content(cell)}</td>'
                for cell in cells
            )
        )
        parts.append(f"<tr>{row}</tr>")
    parts.append("</tbody>")
    if notes:
        lines = "<br>".join(map(_text, notes))
        parts.append(
            f'<tfoot><tr><td colspan="{len(head)}" style="{_LEFT}">{lines}</td></tr></tfoot>'
        )
    parts.append("</table>")
    return "\n".join(parts)


def delivery_table(
    slots: Sequence[int],
    values: Sequence[object],
    ends: Sequence[tuple[int, str, BaseException | None]],
) -> str:
    """Return a row for each slot of a delivery.

    Args:
        slots: The slot of each output.
        values: The outputs.
        ends: Slots that ended, each with the reason and the error, if there is one.
    """
    by_slot: dict[int, list[object]] = {slot: [] for slot, _, _ in ends}
    for slot, value in zip(slots, values, strict=False):
        by_slot.setdefault(slot, []).append(value)
    states = {slot: end_text(reason, error) for slot, reason, error in ends}
    rows: list[Sequence[Cell]] = [
        (f"slot {slot}", shortened(by_slot[slot], len(by_slot[slot])), states.get(slot, ""))
        for slot in sorted(by_slot)[:MAX_ROWS]
    ]
    more = len(by_slot) - len(rows)
    notes = [f"and {counted(more, 'more slot')}"] if more else []
    notes.append(f"{counted(len(values), 'output')}, {counted(len(ends), 'end')}")
    return table("Delivery: what one step gave", ("slot", "outputs", "end"), rows, notes)


def notice(text: str) -> str:
    """Return a line of text, for an object that has nothing else to show yet."""
    return f"<div>{_text(text)}</div>"


def short(value: object) -> str:
    """Return a short text of a user's object, even if its `__repr__` is long or raises."""
    return _cut(_SHORT.repr(value))


def shortened(values: Sequence[object], total: int) -> str:
    """Return short texts of the first few outputs, and how many more there are of a total."""
    shown = [short(value) for value in values[:MAX_VALUES]]
    return ", ".join(shown) + and_more(total - len(shown))


def end_text(reason: str, error: BaseException | None) -> str:
    """Return how a stream ended: the reason, and the type and text of the error if there is one."""
    if error is None:
        return str(reason)
    text = _cut(str.__str__(error_text(error)))
    return f"{reason}: {_cut(type_name(error))}" + (f": {text}" if text else "")


def and_more(more: int) -> str:
    """Return what follows the first few of a list."""
    return f" and {more:,} more" if more > 0 else ""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number of things, in words."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


_LEFT: Final = "text-align: left; padding: 0.1em 0.5em"
_RIGHT: Final = "text-align: right; padding: 0.1em 0.5em"


def _content(cell: Cell) -> str:
    if isinstance(cell, Bar):
        return _bar(cell)
    return _text(f"{cell:,}" if isinstance(cell, int) else cell)


def _text(text: str) -> str:
    # Without what a page cannot hold, or what would not be seen: control characters, surrogates.
    return escape("".join(c if c.isprintable() else " " for c in text))


def _bar(bar: Bar) -> str:
    parts = []
    if bar.filled > 0:
        style = f"width: {_percent(bar.filled, bar)}; background: currentColor; opacity: 0.6"
        parts.append(f'<div style="{style}"></div>')
    if bar.outlined > 0:
        style = f"width: {_percent(bar.outlined, bar)}; border: 1px solid currentColor"
        parts.append(f'<div style="{style}; box-sizing: border-box"></div>')
    if bar.is_open:
        parts.append('<div style="padding-left: 0.2em; line-height: 0.8em">→</div>')
    style = "display: flex; width: 16em; height: 0.8em"
    return f'<div aria-hidden="true" style="{style}">{"".join(parts)}</div>'


def _percent(outputs: int, bar: Bar) -> str:
    return f"{95 * outputs / bar.longest:.2f}%"  # which leaves room for the mark of an open one


class _Short(Repr):
    """Shortens what is plain data, by its exact type; asks anything else for its `repr` alone.

    The library's own goes by the name of a type, and counts and iterates over an array of the name
    `array`, which may compute it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxtuple = self.maxdict = MAX_VALUES
        self.maxstring = self.maxother = _MAX_TEXT

    def repr1(self, x: Any, level: int) -> str:
        kind = type(x)
        # By identity, as a metaclass may refuse to be hashed or compared.
        is_plain = any(kind is plain for plain in (str, bytes, int, list, tuple, dict))
        try:
            return super().repr1(x, level) if is_plain else self.repr_instance(x, level)
        except Exception:  # noqa: BLE001 - of the user's `__repr__`; or another thread writes in it
            return f"<{_cut(type_name(x))}, whose repr raises>"

    def repr_instance(self, x: Any, level: int) -> str:  # noqa: ARG002 - as the library's
        return _cut(str.__str__(builtins.repr(x)))

    def repr_bytes(self, x: Any, level: int) -> str:
        return self.repr_str(x, level)  # which slices it as well

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        # In its own order: the library's sorts the keys, which compares them.
        if level <= 0:
            return f"{{{self.fillvalue}}}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(x.items(), self.maxdict)
        ]
        return f"{{{', '.join([*pairs, self.fillvalue] if len(x) > self.maxdict else pairs)}}}"


_SHORT: Final = _Short()


def _cut(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    half = (_MAX_TEXT - len(_SHORT.fillvalue)) // 2
    return text[:half] + _SHORT.fillvalue + text[-half:]
