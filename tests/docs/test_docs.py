"""The documentation against what it speaks of. The top-level conftest.py runs its snippets.

The design page and the guarantees have files of their own beside this one.
"""

from __future__ import annotations

import importlib
import operator
import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import list_metrics
import pytest
import show_migrations
from prometheus_client import CollectorRegistry

import batchstream
import batchstream.remote
import batchstream.text
from batchstream.integrations import (
    grpc,
    http,
    litserve,
    opentelemetry,
    prometheus,
    starlette,
    triton,
)
from support import knobs

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
EXECUTED = {"python", "pycon"}
SHOWN_ONLY = {"console", "diff", "json", "text", "yaml"}  # the diffs: tests/integrations
DIRECTIVES = {"{toctree}", "{eval-rst}", "{note}", "{warning}", "{layers}", "{life}"}

FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, kind=None):
    """Return the bodies of a page's fenced blocks, or the pairs of kind and body."""
    found = [(match["kind"], match["body"]) for match in FENCE.finditer(page.read_text())]
    return found if kind is None else [body for each, body in found if each == kind]


def prose(page):
    return FENCE.sub("", page.read_text())


def name_of(page):
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@every_page
def test_a_block_is_of_a_kind_that_is_run_or_of_one_that_cannot_be(page):
    for kind, body in blocks(page):
        assert kind.split()[:1] == [] or kind.split()[0] in EXECUTED | SHOWN_ONLY | DIRECTIVES
        if kind == "pycon":
            assert body.startswith(">>> "), "there is nothing to run in it"
        elif kind not in EXECUTED:
            assert ">>>" not in body
            code = body.replace('$ python -c "import ', "")  # test_blocks.py runs this
            made = kind == "diff" and page == show_migrations.PAGE  # of programs that are run
            assert made or "import " not in code, "this looks like code, but would not be run"
    assert page.read_text().count("```") == 2 * len(blocks(page)), "a fence that hides from us"
    assert "~~~" not in page.read_text()


@every_page
def test_the_targets_of_make_that_a_page_names_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = re.findall(r"`(make(?: [^`]*)?)`", prose(page))
    for shell in blocks(page, "console"):
        commands += re.findall(r"^\$ (make\b.*)$", shell, re.MULTILINE)
    for command in commands:
        named = {word for word in shlex.split(command)[1:] if "=" not in word}
        assert named <= targets, command
    if page == README:
        assert {"make demo", "make test"} <= set(commands)


@every_page
def test_what_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith(("https://", "#")):
            path = (page.parent / target.partition("#")[0]).resolve()
            assert path.is_file(), target
            assert path.is_relative_to(ROOT), target


@every_page
def test_the_extras_that_a_page_installs_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r'pip install "\.\[([a-z,-]+)\]"', page.read_text()):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


@every_page
def test_no_page_installs_from_an_index_what_is_not_published(page):
    assert re.findall(r"pip install[^\n]* [\"']?batchstream\b", page.read_text()) == []


@every_page
def test_the_version_of_python_that_a_page_asks_for_is_the_projects(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    for version in re.findall(r"Python (\d\.\d+) or newer", page.read_text()):
        assert version == oldest


def test_the_quick_start_is_quick():
    first = blocks(README, "python")[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 12


def test_the_figures_are_in_the_sdist():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    figures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text())
    assert len(figures) == 2
    assert {f"/{Path(figure).parts[0]}" for figure in figures} <= set(included)


# ---- every page: names of examples, and the theme

NAMES_OF_EXAMPLES = sorted(
    path.name for folder in ("", "engines") for path in (ROOT / "examples" / folder).glob("*.py")
)
EXAMPLES = "|".join(map(re.escape, NAMES_OF_EXAMPLES))


@every_page
def test_the_name_of_an_example_is_a_link_to_it(page):
    text = re.sub(r"\[[^\]]*\]\([^)\s]*\)", "", prose(page))
    if page.name == "serving.md":  # its readers type this file, whose name is an example's, too
        text = re.sub(r"(?<!/)custom_server\.py", "", text)
    if page.name == "examples.md":  # each has a section there, and the link in it
        text = re.sub(r"^## .+$", "", text, flags=re.MULTILINE)
    assert re.findall(rf"[\w/]*\b(?:{EXAMPLES})", text) == []


def test_a_window_of_1280_pixels_shows_what_is_on_the_page():
    css = (ROOT / "docs" / "_static" / "page.css").read_text()
    [(least, most)] = re.findall(r"\(min-width: (\d+)em\) and \(max-width: (\d+)em\)", css)
    assert int(least) * 16 <= 1280 <= int(most) * 16
    assert re.search(r"\.toc-drawer \{[^}]*position: static;", css)
    [furo] = find_spec("furo").submodule_search_locations
    theme = (Path(furo) / "theme/furo/static/styles/furo.css").read_text()
    assert re.search(rf"@media\(max-width:{most}em\){{[^@]*\.toc-drawer{{[^}}]*right:-", theme)
    assert '"page.css"' in (ROOT / "docs" / "conf.py").read_text()


# ---- serving.md


def test_the_server_on_the_page_is_the_one_that_is_tested():
    page = (ROOT / "docs" / "serving.md").read_text()
    [section] = re.findall(r"^## A server of your own\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    shown = [match["body"] for match in FENCE.finditer(section) if match["kind"] == "python"]
    example = (ROOT / "examples" / "custom_server.py").read_text()
    assert lines_of("\n".join(shown)) == lines_of(example)


def lines_of(code):
    return [line for line in code.splitlines() if line.strip()]


# ---- operating.md


def test_the_pod_on_the_page_gives_the_server_of_the_examples_the_time_to_drain():
    [pod] = blocks(ROOT / "docs" / "operating.md", "yaml")
    example = (ROOT / "examples" / "custom_server.py").read_text()
    [period] = re.findall(r"terminationGracePeriodSeconds: (\d+)", pod)
    [sleep] = re.findall(r"sleep (\d+)", pod)
    [grace] = re.findall(r"^GRACE = (\d+)", example, re.MULTILINE)
    assert int(period) > int(sleep) + int(grace)
    asked = re.findall(r"path: (/\w+)", pod) + re.findall(r"POST http://127.0.0.1:8000(/\w+)", pod)
    assert asked == ["/ready", "/health", "/drain"]
    for route in ('add_route("/ready"', 'get("/health")', 'post("/drain"'):
        assert f"app.{route}" in example


# ---- metrics.md


def test_the_tables_of_metrics_are_made_from_the_code():
    page = list_metrics.PAGE.read_text()
    assert {block["what"] for block in list_metrics.BLOCK.finditer(page)} == set(list_metrics.MADE)
    assert list_metrics.with_tables(page) == page, "run `python docs/list_metrics.py`"


@pytest.mark.parametrize("names", ["batchstream", "vllm"])
def test_every_metric_on_the_page_exists_and_no_other(names):
    registry = CollectorRegistry()
    prometheus.PrometheusMetrics(registry=registry, names=names)
    exist = {f.name + "_total" * (f.type == "counter") for f in registry.collect()}
    page = list_metrics.PAGE.read_text()
    assert set(re.findall(rf"^\| `({names}[_:]\w+)` \|", page, re.MULTILINE)) == exist
    named = set(re.findall(rf"\b({names}[_:]\w+?)(?:_bucket|_sum)?\b[`[]", page))
    assert named <= exist


def test_every_alert_is_on_the_page():
    names = re.findall(r"- alert: (\w+)", list_metrics.ALERTS.read_text())
    assert re.findall(r"^\| `([A-Z]\w+)` \|", list_metrics.alerts(), re.MULTILINE) == names


@every_page
def test_the_number_of_outputs_in_a_turn_is_as_the_page_says(page):
    for number in re.findall(
        r"(?:[Aa]fter|[Uu]p to|once in)\s(\d+)\soutputs(?:\sa|\sthat|\.)", page.read_text()
    ):
        assert int(number) == knobs.OUTPUTS_PER_TURN


# ---- reference.md


def test_the_reference_has_every_public_name_and_no_other():
    directive = re.compile(r"^\.\. (?:auto|py:)\w+:: ([\w.]+)", re.MULTILINE)
    named = directive.findall("".join(blocks(ROOT / "docs" / "reference.md", "{eval-rst}")))
    ours = [name for name in named if "." not in name]
    assert sorted(ours) == sorted(["__native__", "__version__", *batchstream.__all__])
    assert sorted(name for name in named if "." in name and can_be_imported(name)) == sorted(
        f"{module.__name__}.{name}"
        for module in documented_modules()
        for name in public_names(module)
    )


def documented_modules():
    """Return the modules besides the package itself whose names the reference has."""
    return [
        grpc,
        http,
        litserve,
        opentelemetry,
        prometheus,
        starlette,
        triton,
        batchstream.remote,
        batchstream.text,
        *installed(),
    ]


NEEDS = {
    "batchstream.integrations.ray": ("ray",),  # tests/integrations/ray has its names
    "batchstream.integrations.transformers": ("torch", "transformers"),
}
MISSING = tuple(name for name, needed in NEEDS.items() if not all(map(find_spec, needed)))


def installed():
    """Return the modules that need what is not everywhere, where it is."""
    return [importlib.import_module(name) for name in NEEDS if name not in MISSING]


def can_be_imported(name):
    return not name.startswith(MISSING)


def public_names(module):
    """Return the names that a module is for: the names it lists, or else the names it defines."""
    defined = [
        name
        for name, value in vars(module).items()
        if name[0] != "_" and getattr(value, "__module__", None) == module.__name__
    ]
    return getattr(module, "__all__", defined)


def test_the_reference_lists_all_that_a_class_offers():
    """`:members:` with names is for the order and for what is inherited, not for hiding."""
    text = (ROOT / "docs" / "reference.md").read_text()
    for name, members in re.findall(r"autoclass:: ([\w.]+).*\n   :members: (.+)", text):
        if not can_be_imported(name):
            continue
        installed()
        cls = operator.attrgetter(name.removeprefix("batchstream."))(batchstream)
        ours = [base for base in cls.__mro__ if base.__module__.startswith("batchstream.")]
        public = {member for base in ours for member in vars(base) if member[0] != "_"}
        fields = {*vars(cls).get("_fields", ()), *vars(cls).get("__slots__", ())}  # Attributes
        assert set(members.split(", ")) == public - fields - {"from_iterable"}, name
