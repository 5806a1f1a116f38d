"""The page "Comparison" against what the programs print that show its cells."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "examples" / "comparison"
PAGE = (ROOT / "docs" / "comparison.md").read_text()
SECONDS = 110.0
NOT_RUN = {"Ray Serve"}


def rows_of(heading):
    """Return the rows of the table whose heading begins so, without its first two lines."""
    table = re.search(rf"^{re.escape(heading)}.*?(?:\n\n|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line.strip("| ").split(" | ") for line in table[0].strip().splitlines()]
    return lines[0], lines[2:]


HEADINGS, ROWS = rows_of("| | rule |")
HEADINGS = HEADINGS[1:]  # without that of the rules
COLUMNS = {row[0]: row[1].strip("`") for row in rows_of("| column |")[1]}
CELLS = {
    COLUMNS[heading]: {row[1].strip("`"): row[at] for row in ROWS}
    for at, heading in enumerate(HEADINGS, start=2)
}


def printed_by(*args):
    """Return what a program prints, in a dict by rule."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, PROGRAMS, *args],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
        cwd=ROOT,
    )
    return {rule: answer for _, rule, answer in map(str.split, done.stdout.splitlines())}


def test_the_page_has_all_columns_and_says_of_each_what_was_run():
    assert set(HEADINGS) == set(COLUMNS)
    assert {heading for heading in HEADINGS if COLUMNS[heading] == "none"} == NOT_RUN
    for system in CELLS:
        assert (system == "none") or f"`{system}`" in PAGE


@pytest.mark.parametrize("system", [name for name in CELLS if name != "none"])
def test_each_cell_is_what_its_command_prints(system):
    if system == "transformers" and not (find_spec("torch") and find_spec("transformers")):
        pytest.skip("torch and transformers are not installed")
    stated = {rule: cell for rule, cell in CELLS[system].items() if cell != "–"}  # noqa: RUF001
    assert printed_by(system) == stated


def test_a_single_cell_can_be_printed_as_on_the_page():
    shown = re.search(r"^\$ python examples/comparison (.+)\n(.+)$", PAGE, re.MULTILINE)
    command, line = shown.groups()
    system, rule, answer = line.split()
    assert command.split() == [system, rule]
    assert printed_by(system, rule) == {rule: answer}


def test_the_rules_are_worded_as_in_the_program():
    text = (PROGRAMS / "__main__.py").read_text()
    for wording, rule, *_ in ROWS:
        assert f'"{rule.strip("`")}": "{wording}",' in text


def test_the_page_names_the_versions_that_are_run():
    assert f"| LitServe {version('litserve')}, its own loop" in PAGE
    if find_spec("torch") and find_spec("transformers"):
        torch = version("torch").partition("+")[0]
        assert f"| transformers {version('transformers')} with torch {torch}:" in PAGE


def test_help_prints_the_rules():
    done = subprocess.run(  # noqa: S603
        [sys.executable, PROGRAMS, "--help"], capture_output=True, text=True, check=True
    )
    for wording, *_ in ROWS:
        assert wording in done.stdout
