"""Makes the description of a package of README.md, for readers who have no checkout beside it.

A package index shows the description alone, and there is no address to link to. So a link into the
checkout becomes the name of the file, and a picture its text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

WHERE = "The files that this page names are in the source distribution.\n"

FENCED = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<path>(?![a-z]+:|#)[^)#\s]+)[^)\s]*\)")


def description(readme: str) -> str:
    """Return the page without links to files that lie beside it; code stays as it is."""
    parts = FENCED.split(readme)
    parts[::2] = [LINK.sub(name_instead, prose) for prose in parts[::2]]
    return f"{''.join(parts).rstrip()}\n\n{WHERE}"


def name_instead(link: re.Match[str]) -> str:
    """Return what stands in place of a link."""
    text, path = link["text"], link["path"]
    if link["picture"]:
        return f"*{text}.*"
    return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"


def get_metadata_hook() -> type:
    """Return the class by which hatchling gives the package its description."""
    from hatchling.metadata.plugin.interface import (  # noqa: PLC0415 - only a build has it
        MetadataHookInterface,
    )

    class Readme(MetadataHookInterface):
        """Adds the description to what the wheel says of itself."""

        def update(self, metadata: dict[str, Any]) -> None:
            """Add the description."""
            text = Path(self.root, "README.md").read_text(encoding="utf-8")
            metadata["readme"] = {"content-type": "text/markdown", "text": description(text)}

    return Readme
