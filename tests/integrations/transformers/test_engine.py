"""Requests that join and leave a running batch get what `generate` gives each of them alone."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchstream import End, FinishReason, Last
from batchstream.integrations.transformers import Generation, Token, TransformersEngine
from support.driving import Visit, drive
from support.engine_models import JOINABLE, alone
from support.tiny_models import EOS, VOCABULARY, tiny

CHUNKS = (None, 1, 5)


def prompt(random_, longest=20):
    return tuple(random_.randrange(3, VOCABULARY) for _ in range(random_.randint(1, longest)))


def assert_as_alone(name, visit):
    """Check the tokens, their probabilities, and the end."""
    request = visit.request
    expected = alone(name, request.ids, request.max_new_tokens)
    ended = expected[-1][0] == EOS
    complete = expected[:-1] if ended else expected
    assert visit.error is None
    if visit.end == "left":
        complete = complete[: visit.leaves]
    elif ended:
        assert isinstance(visit.end, End)
        assert visit.end.reason is FinishReason.EOS
    else:
        assert isinstance(visit.end, Last)
        assert visit.end.reason is FinishReason.LENGTH
    if not request.logprobs:
        assert visit.outputs == [token for token, _ in complete]
        return
    assert all(type(output) is Token for output in visit.outputs)
    assert [output.id for output in visit.outputs] == [token for token, _ in complete]
    # A batch adds up in another order than a row alone. What is masked wrongly is off by far more.
    assert [output.logprob for output in visit.outputs] == pytest.approx(
        [logprob for _, logprob in complete], abs=1e-3
    )


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", JOINABLE)
def test_a_request_gets_the_same_whatever_joins_and_leaves_at_each_step(name, chunk):
    random_ = Random(3)  # noqa: S311 - prompts
    visits = [
        Visit(
            Generation(prompt(random_), random_.randint(1, 16), logprobs=True),
            comes=number,
            leaves=random_.choice((None, None, 1, 3)),
        )
        for number in range(16)
    ]
    for visit in drive(TransformersEngine(tiny(name), prefill_chunk=chunk), visits, slots=6):
        assert_as_alone(name, visit)


random = Random(7)  # noqa: S311 - prompts, too
POOL = [Generation(prompt(random), random.randint(1, 14), logprobs=True) for _ in range(12)]

visiting = st.builds(
    Visit,
    st.sampled_from(POOL),
    comes=st.integers(0, 12),
    leaves=st.none() | st.integers(1, 6),
    outputs=st.builds(list),
    end=st.none(),
    error=st.none(),
)

options = st.fixed_dictionaries(
    {
        "prefill_chunk": st.none() | st.integers(1, 8),
        "max_prefills": st.none() | st.integers(1, 3),
        "cache_tokens": st.none() | st.integers(40, 120),
    }
)


@settings(max_examples=settings.default.max_examples // 4)  # a forward takes a millisecond
@given(
    name=st.sampled_from(("Llama", "Mistral")),
    visits=st.lists(visiting, min_size=1, max_size=10),
    slots=st.integers(1, 4),
    options=options,
)
def test_no_order_of_joins_and_leaves_changes_an_output(name, visits, slots, options):
    for visit in drive(TransformersEngine(tiny(name), **options), visits, slots):
        assert_as_alone(name, visit)
