"""Measures how the package is built: `python tests/support/structure.py`.

It prints

- the floors of the package: the longest chain of imports between rooms, where a room is a module or
  a folder at the top of the package, and each room stands one floor above the highest room that it
  imports, imports for type checkers included;
- the inheritance of the classes: how many classes of the package the longest chains have;
- the largest live objects: how many instance attributes are set, at the moments of the scenarios in
  `frames` when a batch is running;
- the lines of code, without blank lines, docstrings and comments, and how many lines by folder have
  nothing but a comment.
"""

from __future__ import annotations

import ast
import gc
import graphlib
import importlib
import io
import pkgutil
import sys
import tokenize
from collections import Counter
from types import MemberDescriptorType
from typing import NamedTuple

import frames

import batchstream

PACKAGE = frames.PACKAGE
NAME = batchstream.__name__
SHOWN = 5


# ---- floors


def rooms_below():
    """Return, for each room of the package, the rooms that it imports."""
    below = {_room_of_path(path): set() for path in _files()}
    for path in _files():
        room = _room_of_path(path)
        below[room].update(_room_of_name(name, below) for name in _imports(path))
        below[room].discard(room)
    return below


def floors(below):
    """Return, for each room, the chain of rooms that it stands on, the lowest first.

    Raises:
        graphlib.CycleError: Rooms import each other.
    """
    chains = {}
    for room in graphlib.TopologicalSorter(below).static_order():
        highest = max((chains[other] for other in sorted(below[room])), key=len, default=[])
        chains[room] = [*highest, room]
    return chains


def _files():
    return sorted(PACKAGE.rglob("*.py"))


def _room_of_path(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _room_of_name(name, rooms):
    """Return the room of an imported module, or of what is imported from the package itself."""
    first = name.removeprefix(NAME).removeprefix(".").partition(".")[0]
    return first if first in rooms else "__init__"


def _imports(path):
    """Yield what a file imports of the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == NAME)


# ---- classes


def longest_inheritances():
    """Return the longest chains of classes of the package, the lowest class of each first.

    Exceptions are left out: their tree is public.
    """
    chains = {
        cls: _chain_of(cls)
        for module in _modules()
        for cls in vars(module).values()
        if isinstance(cls, type) and _is_ours(cls) and not issubclass(cls, BaseException)
    }
    longest = max(map(len, chains.values()))
    return [chain for chain in chains.values() if len(chain) == longest]


def _chain_of(cls):
    above = [_chain_of(base) for base in cls.__bases__ if _is_ours(base)]
    return [cls, *max(above, key=len, default=[])]


def _is_ours(cls):
    return str(cls.__module__).partition(".")[0] == NAME  # some builtins have no text there


def _modules():
    """Import every module of the package for which its framework is installed."""
    yield batchstream
    for found in pkgutil.walk_packages(batchstream.__path__, f"{NAME}.", onerror=lambda _: None):
        try:
            yield importlib.import_module(found.name)
        except ImportError as error:
            print(f"without {found.name}: {error}", file=sys.stderr)


# ---- objects


def largest_objects():
    """Return the number of attributes and the names of them, for the largest object of a class."""
    found = {}

    def count():
        for each in gc.get_objects():
            if _is_ours(type(each)):
                names = _attributes(each)
                if len(names) > len(found.get(type(each), ())):
                    found[type(each)] = names

    frames.Recorder.observers.append(count)
    try:
        for measure in _scenarios().values():
            measure()
    finally:
        frames.Recorder.observers.remove(count)
    return sorted(found.items(), key=lambda item: (-len(item[1]), item[0].__name__))


def _attributes(each):
    """Return the names of the instance attributes that are set, and run no code of the class."""
    try:
        names = set(object.__getattribute__(each, "__dict__"))
    except AttributeError:
        names = set()
    for cls in type(each).__mro__:
        for name, slot in vars(cls).items():
            if isinstance(slot, MemberDescriptorType) and _is_ours(cls):
                try:
                    slot.__get__(each)
                except AttributeError:
                    continue
                names.add(name)
    return sorted(names)


def _scenarios():
    try:
        importlib.import_module("litserve")
    except ImportError:
        return frames.SCENARIOS
    return frames.SCENARIOS | frames.LITSERVE_SCENARIOS


# ---- lines


class Lines(NamedTuple):
    """How many lines have code, and how many nothing but a comment."""

    code: int
    comments: int


def lines_of(source):
    """Count lines of a module; blank lines and docstrings count as nothing."""
    code, comments = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.update(lines)
        elif token.string.strip():  # neither an end of line nor an indentation
            code.update(lines)
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                code.difference_update(range(node.lineno, node.end_lineno + 1))
    return Lines(len(code), len(comments - code))


def lines_by_folder():
    """Return the lines of each folder of the package."""
    code, comments = Counter(), Counter()
    for path in _files():
        folder = str(path.parent.relative_to(PACKAGE))
        lines = lines_of(path.read_text())
        code[folder] += lines.code
        comments[folder] += lines.comments
    return {folder: Lines(code[folder], comments[folder]) for folder in sorted(code)}


# ---- output


def main():
    chains = floors(rooms_below())
    longest = max(chains.values(), key=len)
    print(f"{len(longest)} floors, one more with what uses the package: {' < '.join(longest)}")
    for floor in range(len(longest), 0, -1):
        rooms = sorted(room for room, chain in chains.items() if len(chain) == floor)
        print(f"{floor:5}  {', '.join(rooms)}")

    chains_of_classes = longest_inheritances()
    print(f"\ninheritance of {len(chains_of_classes[0])} classes:")
    for chain in chains_of_classes:
        print(f"       {' < '.join(cls.__name__ for cls in chain)}")

    print("\nattributes of the largest objects:")
    for cls, attributes in largest_objects()[:SHOWN]:
        print(f"{len(attributes):5}  {cls.__name__}: {', '.join(attributes)}")

    folders = lines_by_folder()
    print(f"\n{sum(lines.code for lines in folders.values())} lines of code")
    print("lines, comment lines per 100 of them:")
    for folder, lines in folders.items():
        print(f"{lines.code:5} {100 * lines.comments / max(lines.code, 1):5.1f}  {folder}")


if __name__ == "__main__":
    main()
