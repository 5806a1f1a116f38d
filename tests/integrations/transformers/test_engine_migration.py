"""The page's way from `model.generate_batch` to streams: both sides of the diff are run."""

import re
from functools import partial
from pathlib import Path

import pytest
import transformers

from batchstream import ContinuousBatcher
from batchstream.integrations.transformers import Generation, TransformersEngine
from support.engine_models import alone, new
from support.tiny_models import EOS

PAGE = Path(__file__).parents[3] / "docs" / "transformers.md"
[DIFF] = re.findall(
    r"```diff\n(-outputs = model\.generate_batch.*?)```", PAGE.read_text(), re.DOTALL
)
PROMPTS = [[5, 6], [7, 8, 9], [10]]


def side(mark):
    """Return the program on one side of the diff."""
    other = {"-": "+", "+": "-"}[mark]
    return "\n".join(line[1:] for line in DIFF.splitlines() if not line.startswith(other))


def answers(mark, model):
    names = {
        "model": model,
        "prompts": PROMPTS,
        "ContinuousBatcher": ContinuousBatcher,
        "Generation": Generation,
        "TransformersEngine": TransformersEngine,
    }
    exec(side(mark), names)  # noqa: S102 - what the page shows
    return names["answers"]


@pytest.mark.skipif(
    not hasattr(transformers, "ContinuousBatchingConfig"), reason="it needs a GPU there"
)
def test_the_answers_are_the_same():
    model = new()
    # Else it takes all the memory there is.
    model.generate_batch = partial(
        model.generate_batch,
        continuous_batching_config=transformers.ContinuousBatchingConfig(
            page_size=16, num_blocks=64, max_batch_tokens=256
        ),
    )
    before = [[token for token in answer if token != EOS] for answer in answers("-", model)]
    assert answers("+", new()) == before
    assert len(set(map(len, before))) > 1


def test_the_answers_are_the_same_as_from_generate():
    expected = [[token for token, _ in alone("Llama", tuple(ids), 20)] for ids in PROMPTS]
    assert answers("+", new()) == [[token for token in ids if token != EOS] for ids in expected]
