"""Runs the snippets of README.md, of the documentation's pages and of the package's docstrings.

A document is one program: its blocks run in their order, in one namespace. Blocks of `python` are
statements, blocks of `pycon` show an interpreter's prompt and what it answers.

It also says which tests `make test` may run at the same time, see `pytest_xdist_make_scheduler`.
"""

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.document import PythonDocStringDocument
from sybil.evaluators.doctest import DocTestEvaluator
from sybil.parsers.abstract import DocTestStringParser
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

parse_prompts = DocTestStringParser()


def parse_pycon_blocks(document: Document) -> Iterable[Region]:
    """Yield what stands at the prompts of a page, each with the answer to expect."""
    for block in CodeBlockParser("pycon", evaluator=DocTestEvaluator())(document):
        for prompt in parse_prompts(block.parsed, document.path):
            prompt.adjust(block, block.parsed)
            yield prompt


class Program:
    """A document as a module, so that what it defines can be found by name, as pickle does."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.__dict__ = namespace
        self.__name__ = "snippets"
        sys.modules["snippets"] = self  # type: ignore[assignment]  # anything may stand there


class Docstrings(PythonDocStringDocument):
    """The docstrings of a module, which see all that the module has, as a program of their own."""

    def import_document(self, example: Example) -> None:
        """Do what is done before the first example."""
        try:
            super().import_document(example)
        finally:
            Program(self.namespace)


NEED_MODELS = ["docs/transformers.md", "integrations/transformers/*.py"]
"""What needs torch and transformers, which the group `models` installs."""

NEED_RAY = ["integrations/ray/*.py"]
"""What needs Ray: `make ray-test` runs it, in an environment of its own."""

IN_RAY = ["docs/ray.md"]
"""What runs in a Ray: tests/integrations/ray/test_ray_page.py runs it."""

without_models = [] if find_spec("torch") and find_spec("transformers") else NEED_MODELS
without = without_models + ([] if find_spec("ray") else NEED_RAY)
pages = Sybil(
    parsers=[PythonCodeBlockParser(), parse_pycon_blocks],
    filenames=["README.md"],
    pattern="docs/*.md",
    excludes=without_models + IN_RAY,
    setup=Program,
)
docstrings = Sybil(
    parsers=[DocTestParser()],
    path="batchstream",
    pattern="*.py",
    excludes=without,
    document_types={".py": Docstrings},
)
pytest_collect_file = (pages + docstrings).pytest()


LASTING = {
    "test_batchers_mixtures",
    "test_contract",
    "test_demux_stateful",
    "test_mixtures",
    "test_properties",
    "test_schedules",
}
"""Files whose tests take long each and share nothing, besides the files of races."""

SHARING = {"test_litserve_continuous": "stepwise", "test_litserve_departures": "stepwise"}
"""Files whose tests share servers, which take long to start."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, keep the tests of a file together, but for the files above."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 - only where it is installed

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            name = PurePosixPath(path).stem
            if name in LASTING or name.startswith("test_races_"):
                return nodeid
            return SHARING.get(name, path)

    return Scheduling(config, log)
