"""Draws the layers of the package from its import statements: the picture that opens design.md.

`python docs/draw_layers.py` prints the folders, the highest first. Below are the functions that
conf.py and the tests call.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from svg import arrow, element, picture, text

PACKAGE = Path(__file__).parent.parent / "batchstream"

WIDTH = 720  # of the picture; its units are CSS pixels
PAD = 14
LINE = 18
GAP = 30  # between two floors: the arrows stand there
LETTER = 7.3  # how wide a letter of a module's name is
BETWEEN = "\N{NO-BREAK SPACE}" * 2  # two names; SVG makes one space of two plain ones
TIP = "layers-tip"


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
    return name.partition(".")[0] == PACKAGE.name


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
    """Return the floors, the highest first: each imports only from the floors below it.

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


def names(imports: dict[str, set[str]]) -> str:
    """Return the folders line by line, the highest first."""
    return "\n".join(folder for floor in floors(folders(imports)) for folder in floor)


def roles(text: str) -> dict[str, str]:
    """Return what each folder is for, from lines such as `_core: what a step means`."""
    pairs = [line.partition(":") for line in text.splitlines()]
    return {folder: role.strip() for folder, _, role in pairs}


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
        """With room for the name and all lines."""
        return PAD * 2 + LINE * len(self.lines) + 14


def draw(imports: dict[str, set[str]], roles: dict[str, str]) -> str:
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
    parts = [part for folder, box in boxes.items() for part in _drawn(folder, box)]
    parts += [_drawn_arrow(boxes[upper], boxes[lower]) for upper, lower in arrows(needs)]
    label = "The folders of the package, each above what it imports"
    return picture(parts, WIDTH, (0, y - GAP + 1), label, TIP)


def _box(
    folder: str, imports: dict[str, set[str]], role: str, at: tuple[float, float], width: float
) -> Box:
    room = width - 2 * PAD
    inside = [("code", line) for line in _wrap(_inside(folder, imports), room / LETTER, BETWEEN)]
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


def _drawn(folder: str, box: Box) -> list[str]:
    x, y = box.x + PAD, box.y + PAD + 11
    return [
        element("rect", x=box.x, y=box.y, width=box.width, height=box.height, rx=6),
        text(folder, x, y, "name"),
        text(box.role, x + len(folder) * 8.5 + 14, y, "role"),
        *(text(line, x, y + n * LINE, kind) for n, (kind, line) in enumerate(box.lines, 1)),
    ]


def _drawn_arrow(upper: Box, lower: Box) -> str:
    narrow = min(upper, lower, key=lambda box: box.width)
    x = narrow.x + narrow.width / 2
    return arrow(f"M{x:g},{upper.y + upper.height:g} V{lower.y:g}", TIP)


if __name__ == "__main__":
    print(names(modules()))
