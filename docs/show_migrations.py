"""Writes the differences into migrating.md: `python docs/show_migrations.py`.

Each section of the page that has a place for one shows what changes between two programs, which are
`NAME_before.py` and `NAME_after.py` of `examples/migrations` unless `ELSEWHERE` has others. A test
holds the page to the programs.
"""

from __future__ import annotations

import ast
import difflib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "migrating.md"
EXAMPLES = ROOT / "examples"
PROGRAMS = EXAMPLES / "migrations"

ELSEWHERE = {
    "queue": (
        EXAMPLES / "queue_per_request_broken.py",
        EXAMPLES / "queue_per_request_fixed.py",
    ),
}

BLOCK = re.compile(
    r"(?<=<!-- )(?P<name>\w+)(?P<rest>: made by show_migrations\.py -->\n).*?(?=<!-- end -->)",
    re.DOTALL,
)
FRAME = re.compile(r"^(# ---- |if __name__ ==).*", re.DOTALL | re.MULTILINE)
"""What both programs have below the lines that a user changes: the cases, and the start."""


def programs_of(name: str) -> tuple[Path, Path]:
    """Return the two programs that a section of the page compares."""
    in_folder = (PROGRAMS / f"{name}_before.py", PROGRAMS / f"{name}_after.py")
    return ELSEWHERE.get(name, in_folder)


def difference(name: str) -> str:
    """Return what changes from one program to the other, below their docstrings."""
    before, after = map(code_of, programs_of(name))
    lines = difflib.unified_diff(before, after, lineterm="", n=100)
    return "\n".join(list(lines)[3:])  # without the names, and the number of lines


def code_of(program: Path) -> list[str]:
    """Return the lines of a program between its docstring and what starts it."""
    text = program.read_text()
    docstring = ast.parse(text).body[0]
    code = "\n".join(text.splitlines()[docstring.end_lineno :])
    return FRAME.sub("", code).strip().splitlines()


def with_differences(page: str) -> str:
    """Return the page with the differences as the programs have them."""
    return BLOCK.sub(
        lambda it: f"{it['name']}{it['rest']}\n```diff\n{difference(it['name'])}\n```\n\n", page
    )


if __name__ == "__main__":
    PAGE.write_text(with_differences(PAGE.read_text()))
    print(f"{PAGE.relative_to(ROOT)} is as the programs are")
