"""What a package index shows of the installed package."""

from __future__ import annotations

import re
from importlib.metadata import metadata

import batchstream

METADATA = metadata("batchstream")
DESCRIPTION = METADATA["Description"] or METADATA.get_payload()


def test_the_version_is_the_one_that_is_installed():
    assert batchstream.__version__ == METADATA["Version"]


def test_the_description_links_to_no_file_that_its_readers_do_not_have():
    assert DESCRIPTION.startswith("# batchstream\n")
    targets = re.findall(r"\]\(([^)]+)\)", DESCRIPTION)
    assert [each for each in targets if not each.startswith(("https://", "#"))] == []
    assert re.findall(r"(?:src|href)=", DESCRIPTION) == []


def test_no_address_is_made_up():
    assert METADATA.get_all("Project-URL") is None
    assert "Home-page" not in METADATA
