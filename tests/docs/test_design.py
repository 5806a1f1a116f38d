"""The design page, and the scripts that draw its pictures, against the code."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import draw_layers
import draw_lives
import pytest

from test_layering import BELOW

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "design.md").read_text()
LIVES = re.findall(r"^```\{life\} (\S+)\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)


def words_in(picture):
    return {"".join(element.itertext()) for element in ET.fromstring(picture).iter()}  # noqa: S314


# ---- the layers


def package_of(folder, files):
    for path, code in files.items():
        file = folder / "batchstream" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    return folder / "batchstream"


THREE_FLOORS = {
    "__init__.py": "from batchstream._upper.a import name",
    "_upper/__init__.py": "",
    "_upper/a.py": "from batchstream._lower import b\nfrom batchstream._lower.c import name",
    "_lower/__init__.py": "",
    "_lower/b.py": "import batchstream._lower.c\nimport sys",
    "_lower/c.py": "",
}


def test_what_a_module_imports_is_read_from_its_statements(tmp_path):
    assert draw_layers.modules(package_of(tmp_path, THREE_FLOORS)) == {
        "__init__": {"_upper/a"},
        "_upper": set(),
        "_upper/a": {"_lower/b", "_lower/c"},
        "_lower": set(),
        "_lower/b": {"_lower/c"},
        "_lower/c": set(),
    }


def test_a_folder_stands_above_all_that_it_imports(tmp_path):
    imports = draw_layers.modules(package_of(tmp_path, THREE_FLOORS))
    assert draw_layers.names(imports).splitlines() == ["__init__", "_upper", "_lower"]


def test_a_circle_of_imports_is_not_drawn():
    with pytest.raises(ValueError, match=r"circle of imports among a, b$"):
        draw_layers.floors({"a": {"b"}, "b": {"a"}, "c": set()})


def test_an_arrow_that_others_stand_for_is_left_out():
    needs = {"top": {"middle", "bottom"}, "middle": {"bottom"}, "bottom": set(), "other": set()}
    assert draw_layers.arrows(needs) == [("middle", "bottom"), ("top", "middle")]


def test_the_picture_of_the_layers_is_the_one_that_imports_are_held_against():
    needs = draw_layers.folders(draw_layers.modules())
    parts = needs.pop("integrations")
    assert set(needs) == set(BELOW)
    for folder, needed in needs.items():
        assert needed <= BELOW[folder]
    assert parts <= set(BELOW)


def test_the_page_lists_the_folders_in_the_order_of_the_picture():
    [block] = re.findall(r"^```\{layers\}\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert PAGE.index("```{layers}") < PAGE.index("\n## "), "the page opens with the picture"
    roles = draw_layers.roles(block)
    assert "\n".join(roles) == draw_layers.names(draw_layers.modules())
    assert all(roles.values())


def test_every_folder_and_module_is_in_the_picture():
    imports = draw_layers.modules()
    folders = draw_layers.folders(imports)
    shown = words_in(draw_layers.draw(imports, dict.fromkeys(folders, "its role")))
    lines = set(" ".join(shown).replace("\N{NO-BREAK SPACE}", " ").split())
    assert set(folders) <= shown
    assert {"/".join(module.split("/")[1:2]) for module in imports} - {""} <= lines


# ---- life cycles


def test_the_page_shows_every_life_cycle_that_the_code_has_as_a_table():
    tables = {
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{name}"
        for path in (ROOT / "batchstream").rglob("*.py")
        for name in re.findall(
            r"^(\w+(?:_LIFE|_TRANSITIONS)): Final\[dict\[tuple", path.read_text(), re.MULTILINE
        )
    }
    assert "batchstream._core.demultiplexer.BATCH_TRANSITIONS" in tables
    assert set(dict(LIVES)) == tables


@pytest.mark.parametrize(("name", "lines"), LIVES, ids=[name for name, _ in LIVES])
def test_a_life_cycle_on_the_page_is_the_one_in_the_code(name, lines):
    assert lines == draw_lives.lines(draw_lives.table(name))


@pytest.mark.parametrize("name", dict(LIVES))
def test_every_state_and_event_is_in_the_picture(name):
    life = draw_lives.table(name)
    lines = {word for words in words_in(draw_lives.draw(life, "x")) for word in words.split(", ")}
    assert {word for pair in life for word in pair} | set(life.values()) <= lines


FORK_AND_BACK = {
    ("new", "start"): "running",
    ("new", "drop"): "over",
    ("running", "go on"): "running",
    ("running", "end"): "over",
    ("running", "fail"): "failed",
    ("over", "open"): "running",
}


def test_the_states_stand_in_the_order_of_a_life():
    assert draw_lives.columns(FORK_AND_BACK) == [["new"], ["running"], ["over", "failed"]]


def test_a_state_that_nothing_leads_out_of_is_marked_as_the_last():
    picture = ET.fromstring(draw_lives.draw(FORK_AND_BACK, "x"))  # noqa: S314
    boxes = [element for element in picture.iter() if element.tag.endswith("rect")]
    assert [box.get("class") for box in boxes] == ["state", "state", "state", "last"]


def test_the_picture_says_what_it_shows_to_readers_that_cannot_see_it():
    picture = ET.fromstring(draw_lives.draw(FORK_AND_BACK, "x"))  # noqa: S314
    assert picture.get("aria-label").startswith("new to running by start; new to over by drop; ")


# ---- to change X, start in Y


def starting_points():
    [table] = re.findall(r"^\| to change .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def test_a_dozen_changes_and_more_have_a_place_to_start():
    assert len(starting_points()) >= 12


@pytest.mark.parametrize("row", starting_points(), ids=lambda row: row[0])
def test_the_files_to_start_in_exist(row):
    _, *cells = row
    assert len(cells) == 2
    for cell in cells:
        paths = re.findall(r"`([\w/.]+)`", cell)
        assert paths
        assert all((ROOT / "batchstream" / path).exists() for path in paths), cell


# ---- paths and lines that pages show

PAGES_FOR_CHANGES = [ROOT / "docs" / "design.md", ROOT / "docs" / "orders.md"]


@pytest.mark.parametrize("page", PAGES_FOR_CHANGES, ids=lambda page: page.name)
def test_every_path_in_the_package_that_a_page_names_exists(page):
    paths = re.findall(r"`((?:_[a-z]+|integrations)/[\w/]*(?:\.py)?)`", page.read_text())
    assert paths
    for path in paths:
        assert (ROOT / "batchstream" / path).exists(), path


def test_every_path_that_the_page_for_contributors_names_exists():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:tests|docs|batchstream)/[\w/.]+)`", page)
    assert len(paths) > 10
    for path in set(paths) - {"docs/_build/html", "batchstream/_eventloops/NAME.py"}:
        assert (ROOT / path).exists(), path


def lines_of(code):
    """Return the lines, without their comments that stand alone, nor what they are indented by."""
    lines = [line.strip() for line in code.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def shown_lines():
    page = (ROOT / "docs" / "orders.md").read_text()
    return re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("shown", shown_lines(), ids=lambda shown: shown.splitlines()[0])
def test_the_lines_that_are_one_call_are_in_the_package_as_the_page_shows_them(shown):
    wanted = "\n".join(lines_of(shown))
    modules = (ROOT / "batchstream").rglob("*.py")
    assert any(f"\n{wanted}\n" in "\n".join(lines_of(path.read_text())) for path in modules)
