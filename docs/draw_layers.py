"""Draws the layers of the package from its import statements: the picture that opens design.md.

`python docs/draw_layers.py` prints the folders floor by floor, the highest first. Below are the
functions that conf.py and the tests call.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "batchstream"

WIDTH = 720  # of the picture; its units are CSS pixels
PAD = 14
LINE = 18
GAP = 30  # between two floors: the arrows stand there
LETTER = 7.3  # how wide a letter of a module's name is

STYLE = """
.layers text { fill: var(--color-foreground-primary, #222); font: 14px sans-serif; }
.layers .folder { font: bold 14px monospace; }
.layers .module { font: 12px monospace; fill: var(--color-foreground-secondary, #555); }
.layers rect { fill: var(--color-background-secondary, #f6f6f6);
  stroke: var(--color-foreground-border, #999); }
.layers path { fill: none; stroke: var(--color-foreground-muted, #777); stroke-width: 1.5; }
.layers marker path { fill: var(--color-foreground-muted, #777); stroke: none; }
"""


def modules(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return what each module of the package imports of it, by path: `_core/errors`.

    A folder's `__init__` has the folder's path; the package's own is `__init__`.
    """
    paths = {_path(file, package): file for file in package.rglob("*.py")}
    return {path: _imports(file, set(paths)) - {path} for path, file in sorted(paths.items())}


def _path(file: Path, package: Path) -> str:
    parts = file.relative_to(package).with_suffix("").parts
    return "/".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)


def _imports(file: Path, known: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            # `from folder import module` and `from module import name` are told apart by the files.
            for alias in node.names:
                found.add(_nearest(f"{node.module}.{alias.name}", known))
        elif isinstance(node, ast.Import):
            found.update(_nearest(a.name, known) for a in node.names if _is_ours(a.name))
    return found


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == PACKAGE.name


def _nearest(name: str, known: set[str]) -> str:
    """Return the path of the module that a dotted name is, or is a part of."""
    parts = name.split(".")[1:]
    while parts:
        if (path := "/".join(parts)) in known:
            return path
        parts.pop()
    return "__init__"


def folder_of(module: str) -> str:
    """Return the folder that a module lies in: its layer."""
    return module.partition("/")[0]


def folders(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the folders that each folder imports from."""
    found: dict[str, set[str]] = {folder_of(module): set() for module in imports}
    for module, needed in imports.items():
        found[folder_of(module)] |= set(map(folder_of, needed)) - {folder_of(module)}
    return found


def floors(needs: dict[str, set[str]]) -> list[list[str]]:
    """Return the floors from the highest: each imports from those below it only.

    Raises:
        ValueError: Some import one another in a circle.
    """
    left, found = dict(needs), []
    while left:
        floor = [name for name, needed in left.items() if not needed & set(left)]
        if not floor:
            raise ValueError(f"a circle of imports among {', '.join(sorted(left))}")
        found.append(sorted(floor))
        for name in floor:
            del left[name]
    return found[::-1]


def arrows(needs: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports between folders that no way through other folders stands for."""

    def reachable(name: str) -> set[str]:
        return needs[name].union(*map(reachable, needs[name]))

    return sorted(
        (upper, lower)
        for upper, lowers in needs.items()
        for lower in lowers
        if not any(lower in reachable(other) for other in lowers - {lower})
    )


def text(imports: dict[str, set[str]]) -> str:
    """Return the folders floor by floor, the highest first."""
    return "\n".join("  ".join(floor) for floor in floors(folders(imports)))


@dataclass
class Box:
    """A folder in the picture: its name with what it is for, and the lines below."""

    x: float
    y: float
    width: float
    role: str
    lines: list[tuple[str, str]]  # the class of a line, and the line

    @property
    def height(self) -> float:
        return PAD * 2 + LINE * len(self.lines) + 14


def svg(imports: dict[str, set[str]], roles: dict[str, str]) -> str:
    """Return the picture: a box for each folder, with what it is for and the modules in it."""
    needs = folders(imports)
    boxes: dict[str, Box] = {}
    y = 1.0
    for floor in floors(needs):
        width = (WIDTH - 2 - GAP * (len(floor) - 1)) / len(floor)
        for n, folder in enumerate(floor):
            boxes[folder] = _box(folder, imports, roles[folder], (1 + n * (width + GAP), y), width)
        highest = max(len(boxes[folder].lines) for folder in floor)
        for folder in floor:  # as high as their neighbours
            boxes[folder].lines += [("", "")] * (highest - len(boxes[folder].lines))
            below = y + boxes[folder].height + GAP
        y = below
    return "\n".join(_draw(boxes, arrows(needs), y - GAP + 1))


def _box(
    folder: str, imports: dict[str, set[str]], role: str, at: tuple[float, float], width: float
) -> Box:
    room = width - 2 * PAD
    inside = [("module", line) for line in _wrap(_inside(folder, imports), room / LETTER, "  ")]
    if len(folder) * 8.5 + 14 + len(role) * 6.6 > room:
        lines = [("role", line) for line in _wrap(role.split(), room / 6.6, " ")]
        return Box(*at, width, "", lines + inside)
    return Box(*at, width, role, inside)


def _inside(folder: str, imports: dict[str, set[str]]) -> list[str]:
    """Return the names of the modules and folders in a folder, the one that imports most first."""
    members: dict[str, set[str]] = {}
    for module, needed in imports.items():
        if module.startswith(folder + "/"):
            member = "/".join(module.split("/")[:2])
            members.setdefault(member, set()).update("/".join(n.split("/")[:2]) for n in needed)
    within = {member: needed & set(members) - {member} for member, needed in members.items()}
    return [member.partition("/")[2] for floor in floors(within) for member in floor]


def _wrap(words: list[str], length: float, between: str) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1] + between + word) <= length:
            lines[-1] += between + word
        else:
            lines.append(word)
    return lines


def _draw(boxes: dict[str, Box], between: list[tuple[str, str]], height: float) -> list[str]:
    drawn = [
        f'<svg class="layers" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'role="img" aria-label="The folders of the package, each above what it imports">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="layers-tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z"/></marker></defs>',
    ]
    for folder, box in boxes.items():
        x, y = box.x + PAD, box.y + PAD + 11
        drawn += [
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" '
            f'rx="6"/>',
            f'<text x="{x:g}" y="{y:g}" class="folder">{escape(folder)}</text>',
            f'<text x="{x + len(folder) * 8.5 + 14:g}" y="{y:g}">{escape(box.role)}</text>',
        ]
        drawn += [
            f'<text x="{x:g}" y="{y + n * LINE:g}" class="{kind}" xml:space="preserve">'
            f"{escape(line)}</text>"
            for n, (kind, line) in enumerate(box.lines, 1)
            if line
        ]
    for upper, lower in between:
        start, end = boxes[upper], boxes[lower]
        narrow = min(start, end, key=lambda box: box.width)
        drawn.append(
            f'<path d="M{narrow.x + narrow.width / 2:g},{start.y + start.height:g} V{end.y:g}" '
            f'marker-end="url(#layers-tip)"/>'
        )
    return [*drawn, "</svg>"]


if __name__ == "__main__":
    print(text(modules()))
