"""Writes the table of servers.md from servers.toml: `python docs/list_servers.py`.

Tests hold the page to the table, and the table to what servers do.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "servers.md"
TABLE = ROOT / "docs" / "servers.toml"
COLUMNS = ("ends", "disconnect", "back-pressure", "error", "overload", "bad request", "drain")
NOT_TRIED = "not tried"

BLOCK = re.compile(
    r"(?<=<!-- )(?P<name>what works|tests)(?P<rest>: made by list_servers\.py -->\n)"
    r".*?(?=<!-- end -->)",
    re.DOTALL,
)


def servers() -> list[dict[str, Any]]:
    """Return the rows, each as servers.toml has it."""
    rows: list[dict[str, Any]] = tomllib.loads(TABLE.read_text())["server"]
    return rows


def word(cell: str | dict[str, str]) -> str:
    """Return what a cell says."""
    return cell if isinstance(cell, str) else cell["is"]


def tests_of(row: dict[str, Any]) -> str:
    """Return the tests of a row, each with what it shows; nothing if its program is run."""
    if "recipe" in row:
        return ""
    cells = ((column, row["works"][column]) for column in COLUMNS)
    named = [f"  - {column}: `{cell['test']}`" for column, cell in cells if "test" in cell]
    return "\n".join([f"- {row['name']}:", *named])


def tests() -> str:
    """Return the list of tests of the rows without a program."""
    return "\n".join([*filter(None, map(tests_of, servers())), ""])


def table() -> str:
    """Return the table, with the notes of its rows below."""
    lines = [f"| server | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    notes = []
    for row in servers():
        words = [word(row["works"][column]) for column in COLUMNS]
        name = f"[{row['name']}]({row['page']})" if "page" in row else row["name"]
        lines.append(f"| {name} | {' | '.join(words)} |")
        if "note" in row:
            notes.append(f"- {row['name']}: {row['note']}")
    return "\n".join([*lines, "", *notes, ""] if notes else [*lines, ""])


def with_table(page: str) -> str:
    """Return the page with the table, and the list of tests, as servers.toml has them."""
    made = {"what works": table(), "tests": tests()}
    return BLOCK.sub(lambda it: f"{it['name']}{it['rest']}\n{made[it['name']]}\n", page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
    print(f"{PAGE.relative_to(ROOT)} is as servers.toml is")
