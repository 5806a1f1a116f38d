"""Shows the programs of `examples/` on the built site, which has no other place for them.

In the repository the pages examples.md and servers.md link to the files. When the documentation is
built, each section of the first gets the text of its program, and so does each line of the second
that is a link to a program of `examples/servers`. A link from any page to a program leads to that.
"""

from __future__ import annotations

import re

HEADING = re.compile(r"^## (?P<name>[\w/]+\.py)$", re.MULTILINE)
LINK = re.compile(r"\]\(\.\./examples/(?P<name>[\w/]+\.py)\)")
OF_SERVERS = re.compile(
    r"^\[`(?P<path>examples/servers/[\w/]+\.py)`\]\(\.\./(?P=path)\)$", re.MULTILINE
)
TO_SERVERS = re.compile(r"\]\(\.\./examples/servers/[\w/]+\.\w+\)")


def with_servers(page: str) -> str:
    """Return the page of servers, with the text of each program in the place of its link."""
    return OF_SERVERS.sub(
        lambda link: (
            f"`{link['path']}`:\n\n```{{literalinclude}} ../{link['path']}\n:language: python\n```"
        ),
        page,
    )


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
    page = TO_SERVERS.sub("](servers.md)", page)
    return LINK.sub(lambda link: f"](examples.md#{re.sub('[./]', '', link['name'])})", page)
