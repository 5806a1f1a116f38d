"""Writes the tables of metrics.md from the code: `python docs/list_metrics.py`.

Between two marks in the page stands what is made of the tables in `_figures.py` of the integration
and of the rules in `dashboards/alerts.yml`. A test holds the page to it.
"""

from __future__ import annotations

import re
from pathlib import Path

from batchstream.integrations.prometheus._figures import TABLES, Figure, Names, exposed

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "metrics.md"
ALERTS = ROOT / "dashboards" / "alerts.yml"

BLOCK = re.compile(
    r"(?P<begin><!-- (?P<what>[\w ]+): made by list_metrics\.py -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)
ALERT = re.compile(
    r"- alert: (?P<name>\w+)\n.*?for: (?P<wait>\w+)\n.*?severity: (?P<severity>\w+).*?"
    r'summary: "(?P<summary>.*?)"\n',
    re.DOTALL,
)


def table(names: Names) -> str:
    """Return the figures by these names, each with what it says."""
    lines = ["| name | type | unit | labels | meaning |", "|---|---|---|---|---|"]
    lines += [line_of(figure, names) for figure in TABLES[names]]
    return "\n".join(lines)


def line_of(figure: Figure, names: Names) -> str:
    """Return the line of one figure."""
    labels = ", ".join(f"`{label}`" for label in figure.labels)
    name = exposed(figure, names, names)
    return f"| `{name}` | {figure.kind} | {figure.unit} | {labels} | {figure.meaning} |"


def buckets() -> str:
    """Return the upper bounds of the buckets, each set once, with the figures that have it."""
    figures: dict[tuple[float, ...], list[str]] = {}
    for figure in TABLES["batchstream"]:
        if figure.kind == "histogram":
            figures.setdefault(figure.buckets, []).append(f"`{exposed(figure, 'batchstream')}`")
    lines = ["| histograms | upper bounds of the buckets |", "|---|---|"]
    for bounds, names in figures.items():
        lines.append(f"| {', '.join(names)} | {', '.join(f'{bound:g}' for bound in bounds)} |")
    return "\n".join(lines)


def alerts() -> str:
    """Return the alerts, each with what it means."""
    lines = ["| alert | severity | for | what it says of a batcher |", "|---|---|---|---|"]
    for found in ALERT.finditer(ALERTS.read_text()):
        summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", found["summary"])
        lines.append(f"| `{found['name']}` | {found['severity']} | {found['wait']} | {summary} |")
    return "\n".join(lines)


MADE = {
    "own names": lambda: table("batchstream"),
    "names of vLLM": lambda: table("vllm"),
    "buckets": buckets,
    "alerts": alerts,
}


def with_tables(page: str) -> str:
    """Return the page with its tables as the code has them."""
    return BLOCK.sub(
        lambda block: f"{block['begin']}\n{MADE[block['what']]()}\n\n{block['end']}", page
    )


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
    print(f"{PAGE.relative_to(ROOT)} is as the code is")
