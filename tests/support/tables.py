"""Reads what a notebook is shown: well-formed, of few elements, nothing that is loaded or run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

ALLOWED = {"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "div", "br"}


class Table(HTMLParser):
    """What is in a table.

    Attributes:
        caption: Its caption.
        head: The names of its columns.
        rows: The texts of each row; that of a bar is its end mark.
        notes: The lines below.
        bars: The parts of each bar in percent: how much is filled, and how much outlined.
    """

    def __init__(self, html):
        super().__init__()
        self.caption, self.notes, self.head, self.rows, self.bars = "", [""], [], [], []
        self._open = []
        self.feed(html)
        self.close()
        assert self._open == [], "elements are not closed"

    @classmethod
    def of(cls, shown):
        return cls(shown._repr_html_())

    def column(self, name):
        return [row[self.head.index(name)] for row in self.rows]

    def numbers(self, name):
        return [int(text.replace(",", "")) for text in self.column(name)]

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert tag in ALLOWED, f"a {tag} element"
        assert set(attributes) <= {"style", "scope", "colspan", "aria-hidden"}, attributes
        style = attributes.get("style", "")
        assert "url" not in style
        assert "#" not in style, "a colour of its own"
        if tag == "br":
            self.notes.append("")
            return
        self._open.append(tag)
        if "thead" in self._open and tag == "th":
            assert attributes["scope"] == "col"
            self.head.append("")
        elif tag == "tr" and "tbody" in self._open:
            self.rows.append([])
        elif tag in {"td", "th"} and "tbody" in self._open:
            self.rows[-1].append("")
        elif tag == "div" and attributes.get("aria-hidden"):
            self.bars.append([0.0, 0.0])
        elif tag == "div" and (width := re.match(r"width: ([\d.]+)%", style)):
            self.bars[-1]["border" in style] = float(width[1])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, "elements are not nested"

    def handle_data(self, data):
        if "caption" in self._open:
            self.caption += data
        elif "thead" in self._open:
            if data.strip():
                self.head[-1] += data
        elif "tbody" in self._open:
            if data.strip():
                self.rows[-1][-1] += data
        elif "tfoot" in self._open:
            self.notes[-1] += data
