"""The description of the package, as the build makes it of README.md."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOOK = runpy.run_path(str(ROOT / "packaging_hooks" / "readme.py"))
description = HOOK["description"]

PROSE = {
    "[Design](docs/design.md) says why": "Design (`docs/design.md`) says why",
    "[see](docs/design.md#layers)": "see (`docs/design.md`)",
    "[LICENSE](LICENSE)": "`LICENSE`",
    "[`Channel`](docs/recipes.md#a)": "`Channel` (`docs/recipes.md`)",
    "![Four streams](docs/a.svg)": "*Four streams.*",
    "[site](https://example.org/a)": "[site](https://example.org/a)",
    "[below](#installation)": "[below](#installation)",
    "[two\nlines](docs/a.md)": "two\nlines (`docs/a.md`)",
}


@pytest.mark.parametrize(("prose", "instead"), PROSE.items())
def test_a_link_into_the_checkout_becomes_the_name_of_the_file(prose, instead):
    assert description(prose) == f"{instead}\n\n{HOOK['WHERE']}"


def test_code_stays_as_it_is():
    block = "```python\nx = handlers[key](path)\n```"
    assert description(f"{block}\n\n[a](b.md)") == f"{block}\n\na (`b.md`)\n\n{HOOK['WHERE']}"


def test_the_readme_has_no_link_in_it_that_its_readers_cannot_follow():
    text = description((ROOT / "README.md").read_text(encoding="utf-8"))
    assert text.startswith("# batchstream\n")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert [each for each in targets if not each.startswith(("https://", "#"))] == []
