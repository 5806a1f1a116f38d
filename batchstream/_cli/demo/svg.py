"""Saves the picture of the two servers in a file."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from batchstream._cli.demo import show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batchstream._cli.demo.board import Board

_WIDTH: Final = 104  # columns
# That of rich without the frame of a window, and without a font to be fetched from elsewhere. The
# background is its own, so that it can be read in a light page and in a dark one.
_FORMAT: Final = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" \
role="img">
<title>TITLE</title>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
  font-variant-east-asian: full-width;
}}
{styles}
</style>
<defs>
{lines}
</defs>
<rect width="{width}" height="{height}" rx="8" fill="#191919"/>
<g transform="translate({terminal_x}, 12)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def save(file: Path, boards: Sequence[Board], difference: Sequence[str], seconds: float) -> None:
    """Save the picture.

    Args:
        file: Where.
        boards: What is known, of each server.
        difference: The lines that differ between the servers.
        seconds: How long a step takes.
    """
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    for line in difference:
        console.print(Text(line, "red" if line.startswith("-") else "green"))
    console.print()
    height = sum(len(board.seats) for board in boards)  # room for all clients
    console.print(show.picture(boards, time.monotonic(), seconds, _WIDTH, height))
    clients = len(boards[0].seats)
    title = f"{clients} clients of two LitServe servers that differ in one line"
    drawn = console.export_svg(
        title="", theme=MONOKAI, code_format=_FORMAT.replace("TITLE", title), unique_id="demo"
    )
    file.write_text(drawn)
