"""Lists the tests that hold each rule of guarantees.md: the built page guarantees-tests has it.

A test carries its rules as a mark, `@pytest.mark.rule(2, 3)`, on itself, on its class or as its
module's `pytestmark`. `python docs/list_rules.py 4` prints the tests of R4 as
pytest takes them:

    pytest $(python docs/list_rules.py 4)
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
GUARANTEES = ROOT / "docs" / "guarantees.md"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def titles(page: Path = GUARANTEES) -> dict[int, str]:
    """Return the rules that the page promises: their numbers and titles."""
    found = re.findall(r"^### R(\d+): (.*)$", page.read_text(), re.MULTILINE)
    return {int(number): title for number, title in found}


def carriers(root: Path = ROOT) -> dict[int, list[str]]:
    """Return the tests of each rule, as pytest names them: `tests/core/test_demux.py::test_x`."""
    found: dict[int, list[str]] = {}
    for file in sorted((root / "tests").rglob("*.py")):
        path = file.relative_to(root).as_posix()
        for name, rules in rules_in(file.read_text()):
            for number in sorted(rules):
                found.setdefault(number, []).append(f"{path}::{name}")
    return found


def rules_in(code: str) -> Iterator[tuple[str, set[int]]]:
    """Yield the tests of a module, each with the rules that it carries."""
    module = ast.parse(code)
    of_all = _of_pytestmark(module.body)
    # A state machine of Hypothesis is run under another name: `TestX = X.TestCase`.
    names = {
        node.value.value.id: node.targets[0].id
        for node in module.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Attribute)
        and isinstance(node.value.value, ast.Name)
        and node.value.attr == "TestCase"
    }
    for node in module.body:
        if isinstance(node, Function) and node.name.startswith("test_"):
            yield node.name, of_all | _carried_by(node)
        elif isinstance(node, ast.ClassDef):
            of_class = of_all | _carried_by(node) | _of_pytestmark(node.body)
            if node.name in names:
                yield names[node.name], of_class
            elif node.name.startswith("Test"):
                for each in node.body:
                    if isinstance(each, Function) and each.name.startswith("test_"):
                        yield f"{node.name}::{each.name}", of_class | _carried_by(each)


def _carried_by(node: Function | ast.ClassDef) -> set[int]:
    return set().union(*map(_of_mark, node.decorator_list))


def _of_pytestmark(body: list[ast.stmt]) -> set[int]:
    found: set[int] = set()
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            marks = (
                node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
            )
            found = found.union(*map(_of_mark, marks))
    return found


def _of_mark(mark: ast.expr) -> set[int]:
    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.rule":
        return set(map(ast.literal_eval, mark.args))
    return set()


def heading(number: int, title: str) -> str:
    """Return the head of a rule's section on the page of the tests."""
    slug = re.sub(r"[^\w -]", "", f"R{number}: {title}".lower()).replace(" ", "-")
    return f"## R{number}\n\n[{title[0].upper()}{title[1:]}](guarantees.md#{slug})\n"


def with_tests(page: str) -> str:
    """Return the page of the tests, with each rule's tests, by file, at the end of its section."""
    tests = carriers()
    parts = re.split(r"^(?=## R\d+$)", page, flags=re.MULTILINE)
    for n, part in enumerate(parts[1:], 1):
        number = int(part.split()[1].removeprefix("R"))
        by_file: dict[str, list[str]] = {}
        for test in tests.get(number, []):
            path, _, name = test.partition("::")
            by_file.setdefault(path, []).append(name)
        lines = [part.strip(), ""]
        for path, names in by_file.items():
            lines += [f"`{path}`", "", *(f"- `{name}`" for name in names), ""]
        parts[n] = "\n".join([*lines, ""])
    return "".join(parts)


if __name__ == "__main__":
    found = carriers()
    print("\n".join(dict.fromkeys(test for n in sys.argv[1:] for test in found.get(int(n), ()))))
