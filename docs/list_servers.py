"""Writes the table of servers.md from servers.toml: `python docs/list_servers.py`.

Tests hold the page to the table, and the table to what servers do. A server without a program in
examples/servers has tests of its own. A test has a mark for the cell that it shows, with its word:
`@pytest.mark.cell("Triton, Python backend", "ends", "yes")`. The marks are read from the sources,
as not every environment has what these tests need.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "servers.md"
TABLE = ROOT / "docs" / "servers.toml"
COLUMNS = (
    "ends",
    "disconnect",
    "back-pressure",
    "early error",
    "error",
    "overload",
    "bad request",
    "drain",
)
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


class Shown(NamedTuple):
    """A cell, as the mark of a test has it.

    Attributes:
        server: The name of the row.
        column: The column.
        word: What the test shows that the cell has to say.
        test: The test, as pytest names it.
    """

    server: str
    column: str
    word: str
    test: str


def shown(root: Path = ROOT) -> list[Shown]:
    """Return the cells that tests show, by file."""
    found = []
    for file in sorted((root / "tests").rglob("*.py")):
        path = file.relative_to(root).as_posix()
        code = file.read_text()
        for node in ast.parse(code).body if "pytest.mark.cell" in code else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [
                    Shown(*map(ast.literal_eval, mark.args), f"{path}::{node.name}")
                    for mark in node.decorator_list
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.cell"
                ]
    return found


def tests_of(row: dict[str, Any], cells: list[Shown]) -> str:
    """Return the tests of a row, each with what it shows; nothing if its program is run."""
    if "recipe" in row:
        return ""
    named = [
        f"  - {column}: `{cell.test}`"
        for column in COLUMNS
        for cell in cells
        if (cell.server, cell.column) == (row["name"], column)
    ]
    return "\n".join([f"- {row['name']}:", *named])


def tests() -> str:
    """Return the list of tests of the rows without a program."""
    cells = shown()
    return "\n".join([*filter(None, (tests_of(row, cells) for row in servers())), ""])


def table() -> str:
    """Return the table, with the notes of its rows below."""
    lines = [f"| server | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    notes = []
    for row in servers():
        words = [row["works"][column] for column in COLUMNS]
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
