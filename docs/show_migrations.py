"""Writes the differences into migrating.md: `python docs/show_migrations.py`.

Each section of the page that has a place for one shows what changes between two programs of
`examples/migrations`, `NAME_before.py` and `NAME_after.py`. A test holds the page to the programs.
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
    """Return what changes from one program to the other, below their imports."""
    before, after = (code_of(f"{name}_{when}.py") for when in ("before", "after"))
    lines = difflib.unified_diff(before, after, lineterm="", n=100)
    return "\n".join(list(lines)[3:])  # without the names, and the number of lines


def code_of(name: str) -> list[str]:
    """Return the lines of a program behind its imports."""
    text = (PROGRAMS / name).read_text()
    imports = [it for it in ast.parse(text).body if isinstance(it, ast.Import | ast.ImportFrom)]
    return "\n".join(text.splitlines()[imports[-1].end_lineno :]).strip().splitlines()


def with_differences(page: str) -> str:
    """Return the page with the differences as the programs have them."""
    return BLOCK.sub(
        lambda it: f"{it['name']}{it['rest']}\n```diff\n{difference(it['name'])}\n```\n\n", page
    )


if __name__ == "__main__":
    PAGE.write_text(with_differences(PAGE.read_text()))
    print(f"{PAGE.relative_to(ROOT)} is as the programs are")
