"""Sphinx configuration: `make docs` builds with every warning an error, and without a network."""

import re
import sys
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar, get_args, get_origin

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import batchstream

sys.path.insert(0, str(Path(__file__).parent))  # the scripts beside this file

import draw_layers
import draw_lives
import list_rules
import show_examples

project = "batchstream"
author = "The batchstream authors"
copyright = author  # noqa: A001 - Sphinx's name
version = release = batchstream.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "code"  # `name` in a docstring looks as it does in Markdown
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_theme = "furo"
html_title = f"batchstream {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["ray"]  # it has an environment of its own
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute is listed once, where autodoc finds it
napoleon_custom_sections = [("Raises on iteration", "params_style")]

copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor output

# Other projects' inventories would have to be fetched, so references to them stay plain text.
nitpick_ignore_regex = [
    (r"py:.*", r"(asyncio|collections\.abc|contextlib|os|prometheus_client|typing_extensions)\..*"),
    (
        r"py:class",
        r"BackgroundTask|HTTPConnection|ServerSentEvent",
    ),  # of Starlette and sse-starlette
    (r"py:class", r"_?Steps?(WithNone)?|Results"),  # what a function gives, in overloads
    (r"py:class", r"MetricsOrFactory"),  # the docstring of `metrics=` says what may be given
    (r"py:class", r"TracebackType"),  # of a block that is left
    (r"py:class", r"Skip"),  # the marker that encoders of responses may return
]

RAISES_LATER = re.compile(r"(?<=Raises) \((on iteration)\)(?=:$)")
WAITING_RULE = re.compile(r"(Blocking|Cancellation|Threads): ")


def prepare_for_napoleon(
    _app: Sphinx, what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Keep napoleon from misreading what it has no notion of."""
    if what in {"attribute", "data", "property"}:
        # It takes a first line with a colon for `type: description`; this is an empty comment.
        lines[:0] = ["..", ""]
    lines[:] = [RAISES_LATER.sub(r" \1", line) for line in lines]  # it knows words only


def list_waiting_rules(
    _app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Make a field list of the lines that say how a method waits, which close its docstring."""
    rules = [n for n, line in enumerate(lines) if WAITING_RULE.match(line)]
    for n in rules:
        lines[n] = f":{lines[n]}"
    if rules:
        lines.insert(rules[0], "")


def resolve_annotation(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Resolve what annotations hold besides public names: private paths to them, type variables.

    A private name for a choice of values is shown as these values, and a private class as its name.
    """
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    ours = [module for path, module in sys.modules.items() if path.startswith("batchstream")]
    meanings = [getattr(module, name, None) for module in ours]
    if any(isinstance(meaning, TypeVar | ParamSpec) for meaning in meanings):
        return content
    for meaning in meanings:
        if get_origin(meaning) is Literal:
            return nodes.inline("", " | ".join(map(repr, get_args(meaning))))
    if name not in batchstream.__all__ and any(isinstance(meaning, type) for meaning in meanings):
        return content
    public = re.sub(r"^batchstream\._\w+\.", "batchstream.", node["reftarget"])
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], public, node, content
    )


def complete_pages(_app: Sphinx, page: str, source: list[str]) -> None:
    """Add what the repository has in other files: the tests of each rule, and the examples."""
    if page == "guarantees-tests":
        source[0] = list_rules.with_tests(source[0])
    elif page == "examples":
        source[0] = show_examples.with_programs(source[0])
    elif page == "servers":
        source[0] = show_examples.with_servers(source[0])
    source[0] = show_examples.with_links(source[0])


class Drawing(SphinxDirective):
    """A picture drawn from the code, in place of the text that the page has for it.

    The text is what readers of the page's source see. It has to say the same.
    """

    has_content = True

    def picture(self, svg: str, expected: str, text: str) -> list[nodes.Node]:
        """Return the picture, unless the page says something else."""
        if text != expected:
            raise self.error(f"{self.name}: the page does not say what the code does:\n{expected}")
        return [nodes.raw("", f"<p>{svg}</p>", format="html")]


class Layers(Drawing):
    """The folders of the package, floor by floor; each line of the text says what one is for."""

    def run(self) -> list[nodes.Node]:
        """Return the picture."""
        imports = draw_layers.modules()
        roles = draw_layers.roles("\n".join(self.content))
        return self.picture(
            draw_layers.draw(imports, roles),
            draw_layers.names(imports),
            "\n".join(roles),
        )


class Life(Drawing):
    """The life cycle that a table in the code holds; the argument is the table's dotted name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the picture."""
        [name] = self.arguments
        life = draw_lives.table(name)
        picture = draw_lives.draw(life, nodes.make_id(name))
        return self.picture(picture, draw_lives.lines(life), "\n".join(self.content))


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.add_directive("layers", Layers)
    app.add_directive("life", Life)
    app.connect("source-read", complete_pages)
    app.connect("autodoc-process-docstring", prepare_for_napoleon, priority=400)
    app.connect("autodoc-process-docstring", list_waiting_rules)
    app.connect("missing-reference", resolve_annotation)
