"""Writes SVG for pictures that stand in a page and follow its light or dark theme."""

from __future__ import annotations

from html import escape

# Furo's colours; the second of each pair is for a viewer that has no theme.
STYLE = """
.drawing text { fill: var(--color-foreground-primary, #222); font-family: sans-serif;
  font-size: 14px; }
.drawing .name { font-family: monospace; font-weight: bold; }
.drawing .code { font-family: monospace; }
.drawing .code, .drawing .small { fill: var(--color-foreground-secondary, #555); font-size: 12px; }
.drawing .middle { text-anchor: middle; }
.drawing rect { fill: var(--color-background-secondary, #f6f6f6);
  stroke: var(--color-foreground-border, #999); }
.drawing rect.last { stroke-width: 3; }
.drawing path { fill: none; stroke: var(--color-foreground-muted, #777); stroke-width: 1.5; }
.drawing .tip { fill: var(--color-foreground-muted, #777); stroke: none; }
"""


def element(name: str, content: str = "", **attributes: object) -> str:
    """Return an element; the name of an attribute has `_` for `-`, or at its end for nothing."""
    pairs = {
        key.rstrip("_").replace("_", "-"): f"{value:g}" if isinstance(value, float) else value
        for key, value in attributes.items()
    }
    inside = "".join(f' {key}="{escape(str(value))}"' for key, value in pairs.items())
    return f"<{name}{inside}>{content}</{name}>"


def text(words: str, x: float, y: float, kind: str) -> str:
    """Return words on one line."""
    return element("text", escape(words), x=x, y=y, class_=kind)


def arrow(path: str, tip: str) -> str:
    """Return an arrow along a path, in the picture of that tip."""
    return element("path", d=path, marker_end=f"url(#{tip})")


def picture(
    parts: list[str], width: float, extent: tuple[float, float], label: str, tip: str
) -> str:
    """Return the whole picture.

    Args:
        parts: What is drawn.
        width: In CSS pixels; the picture shrinks with the page.
        extent: The least and the greatest y.
        label: What it shows, for readers that cannot see it.
        tip: The id of the tip of its arrows. Each picture of a page needs its own.
    """
    head = element("path", d="M0,0 L8,4 L0,8 z", class_="tip")
    size = {"viewBox": "0 0 8 8", "refX": 8, "refY": 4, "markerWidth": 7, "markerHeight": 7}
    marker = element("marker", head, id=tip, orient="auto", **size)
    return element(
        "svg",
        "\n".join(["", element("style", STYLE), element("defs", marker), *parts, ""]),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 {extent[0]:g} {width:g} {extent[1] - extent[0]:g}",
        width=f"{width:g}",
        height=f"{extent[1] - extent[0]:g}",
        style="max-width: 100%; height: auto",
        class_="drawing",
        role="img",
        aria_label=label,
    )
