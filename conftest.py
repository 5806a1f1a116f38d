"""Runs the snippets of README.md, of the documentation's pages and of the package's docstrings.

A document is one program: its blocks run in their order, in one namespace. Blocks of `python` are
statements, blocks of `pycon` show an interpreter's prompt and what it answers.
"""

from collections.abc import Iterable

from sybil import Document, Region, Sybil
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


pages = Sybil(
    parsers=[PythonCodeBlockParser(), parse_pycon_blocks],
    filenames=["README.md"],
    pattern="docs/*.md",
)
docstrings = Sybil(parsers=[DocTestParser()], path="batchstream", pattern="*.py")
pytest_collect_file = (pages + docstrings).pytest()
