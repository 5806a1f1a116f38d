"""Shows the programs of `examples/` on the built site, which has no other place for them.

In the repository the page examples.md links to the files. When the documentation is built, each of
its sections gets the text of its program, and a link from any page to a program leads to that.
"""

from __future__ import annotations

import re

HEADING = re.compile(r"^## (?P<name>[\w/]+\.py)$", re.MULTILINE)
LINK = re.compile(r"\]\(\.\./examples/(?P<name>[\w/]+\.py)\)")


def with_programs(page: str) -> str:
    """Return the page of examples, with the text of a program at the end of each section."""
    opening, *rest = HEADING.split(page)
    parts = [opening]
    for name, section in zip(rest[::2], rest[1::2], strict=True):
        program = f"```{{literalinclude}} ../examples/{name}\n:language: python\n```"
        parts.append(f"## {name}\n\n{section.strip()}\n\n{program}\n\n")
    return "".join(parts)


def with_links(page: str) -> str:
    """Return a page whose links to programs lead to the page of examples."""
    return LINK.sub(lambda link: f"](examples.md#{re.sub('[./]', '', link['name'])})", page)
