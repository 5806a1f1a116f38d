"""Writes the differences into migrating.md: `python docs/show_migrations.py`.

Each section of the page that has a place for one shows what changes between the programs
`NAME_before.py` and `NAME_after.py` of `examples/migrations`. A test holds the page to them.
"""

from __future__ import annotations

import ast
import difflib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "migrating.md"
PROGRAMS = ROOT / "examples" / "migrations"

BLOCK = re.compile(
    r"(?<=<!-- )(?P<name>\w+)(?P<rest>: made by show_migrations\.py -->\n).*?(?=<!-- end -->)",
    re.DOTALL,
)


def difference(name: str) -> str:
    """Return what changes from one program to the other, below their docstrings."""
    before, after = (code_of(PROGRAMS / f"{name}_{when}.py") for when in ("before", "after"))
    lines = difflib.unified_diff(before, after, lineterm="", n=100)
    return "\n".join(list(lines)[3:])  # without the names, and the number of lines


def code_of(program: Path) -> list[str]:
    """Return the lines of a program below its docstring."""
    text = program.read_text()
    docstring = ast.parse(text).body[0]
    return "\n".join(text.splitlines()[docstring.end_lineno :]).strip().splitlines()


def with_differences(page: str) -> str:
    """Return the page with the differences as the programs have them."""
    return BLOCK.sub(
        lambda it: f"{it['name']}{it['rest']}\n```diff\n{difference(it['name'])}\n```\n\n", page
    )


if __name__ == "__main__":
    PAGE.write_text(with_differences(PAGE.read_text()))
    print(f"{PAGE.relative_to(ROOT)} is as the programs are")
