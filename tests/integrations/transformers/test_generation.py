"""What a request may ask, and how its tokens are drawn."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from batchstream import RequestError
from batchstream.integrations.transformers import Generation, GenerationError, TransformersEngine
from batchstream.integrations.transformers._sampling import Sampler, sample
from support.driving import Visit, drive
from support.engine_models import alone
from support.tiny_models import tiny


@pytest.mark.parametrize(
    "ids", [[3, 4], (3, 4), range(3, 5), np.array([3, 4]), torch.tensor([3, 4])], ids=type
)
def test_a_prompt_is_any_sequence_of_ids(ids):
    assert Generation(ids, 1) == Generation((3, 4), 1)


def test_stops_are_ids_for_the_engine_and_strings_for_the_text():
    request = Generation([3], 1, stop=["a", 7, "bc"])
    assert request.stop_ids == (7,)
    assert request.stop_strings == ("a", "bc")
    assert Generation([3], 1, stop="ab").stop_strings == ("ab",)
    assert Generation([3], 1, stop=7).stop_ids == (7,)
    assert Generation([3], 1, stop=None).stop == ()


def test_a_request_can_be_pickled_and_be_a_key():
    request = Generation([3, 4], 5, temperature=0.5, top_k=3, seed=1, stop=["a"])
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - its own
    assert {request: 1}[Generation((3, 4), 5, temperature=0.5, top_k=3, seed=1, stop=["a"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": []}, "ids must hold at least one token, got none"),
        ({"ids": [3, -1]}, "ids must be at least 0, got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1}, "temperature must be at least 0, got -1"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be finite, got inf"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": -0.5}, "top_p must be at least 0, got -0.5"),
        ({"top_p": 1.5}, "top_p must be at most 1, got 1.5"),
        ({"stop": ["a", ""]}, "stop must hold no empty string"),
        ({"stop": [-2]}, "stop must be at least 0, got -2"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_the_clients_fault(arguments, message):
    with pytest.raises(GenerationError, match=message) as caught:
        Generation(**{"ids": [3], "max_new_tokens": 1, **arguments})
    assert isinstance(caught.value, RequestError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": "Hello"}, r"got the text 'Hello': pass tokenizer\.encode"),
        ({"ids": b"ab"}, r"ids takes token ids, got the bytes b'ab': pass tokenizer\.encode"),
        ({"ids": [[1, 2]]}, r"one prompt, got the row \[1, 2\]: make a Generation of each row"),
        ({"ids": [np.array([1, 2])]}, r"one prompt, got the row array\(\[1, 2\]\): make a Gen"),
        ({"ids": {"input_ids": [3]}}, r"got a dict: pass its \['input_ids'\]"),
        ({"ids": torch.ones(1, 3, dtype=torch.long)}, r"got an array of shape \(1, 3\)"),
        ({"ids": [3.5]}, "ids takes a whole number, got 3.5"),
        ({"ids": 3}, "ids takes the token ids of one prompt, got 3"),
        ({"max_new_tokens": None}, "max_new_tokens takes a whole number, got None"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"top_k": 1.5}, "top_k takes a whole number, got 1.5"),
        ({"seed": "7"}, "seed takes a whole number, got '7'"),
        ({"stop": 1.5}, "stop takes token ids and strings, got 1.5"),
        ({"stop": b"ab"}, "stop takes token ids and strings, got b'ab'"),
        ({"stop": [b"ab"]}, "stop takes token ids and strings, got b'ab'"),
        ({"stop": [None]}, "stop takes a whole number, got None"),
        ({"logprobs": 5}, "logprobs must be True or False, got 5"),
    ],
    ids=str,
)
def test_what_is_of_the_wrong_kind_is_a_type_error(arguments, message):
    with pytest.raises(TypeError, match=message):
        Generation(**{"ids": [3], "max_new_tokens": 1, **arguments})


def samplers(count, **how):
    """Return samplers that differ in their random numbers alone."""
    return [Sampler(Generation([3], 1, seed=seed, **how)) for seed in range(count)]


HOW = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 4},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.8},
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(how):
    torch.manual_seed(4)
    logits = torch.randn(1, 12) * 2
    warped = TemperatureLogitsWarper(how["temperature"])(None, logits)
    if "top_k" in how:
        warped = TopKLogitsWarper(how["top_k"])(None, warped)
    if "top_p" in how:
        warped = TopPLogitsWarper(how["top_p"])(None, warped)
    expected = warped.softmax(-1)[0]
    count = 4_000
    drawn = Counter(sample(logits.expand(count, -1), samplers(count, **how)).tolist())
    assert set(drawn) <= set(expected.nonzero()[:, 0].tolist())
    for token, probability in enumerate(expected.tolist()):
        deviation = (count * probability * (1 - probability)) ** 0.5
        assert drawn[token] == pytest.approx(count * probability, abs=5 * deviation + 1)


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1e-46},
        {"temperature": 1e-39},
        {"temperature": 1e-38},
        {"temperature": 1e-37, "top_k": 3},
        {"temperature": 1.0, "top_p": 1e-46},
        {"temperature": 1.0, "top_p": 0},
        {"temperature": 1e-46, "top_p": 1e-46},
    ],
    ids=str,
)
def test_a_parameter_next_to_0_leaves_the_most_probable_token_alone(how):
    """As a float32 it is 0, or so small that a logit over it is infinite."""
    logits = torch.tensor([[3.0, 5.0, -float("inf"), 4.0]]).expand(20, -1)
    assert sample(logits, samplers(20, **how)).tolist() == [1] * 20


@pytest.mark.parametrize("temperature", [1e38, 1e300])
def test_at_any_high_temperature_a_token_without_a_probability_is_not_drawn(temperature):
    """As a float32 the higher one is infinite."""
    logits = torch.tensor([[3.0, 5.0, -float("inf")]]).expand(50, -1)
    assert set(sample(logits, samplers(50, temperature=temperature)).tolist()) == {0, 1}


def test_top_k_may_be_any_number():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)).expand(50, -1)
    largest = samplers(50, temperature=1.0, top_k=2**70)
    assert torch.equal(
        sample(logits, largest), sample(logits, samplers(50, temperature=1.0, top_k=12))
    )


@given(st.lists(st.sampled_from([{}, {"top_p": 0.5}, *HOW]), min_size=1, max_size=6))
def test_no_draw_depends_on_the_rows_beside_it(hows):
    logits = torch.randn(len(hows), 30, generator=torch.Generator().manual_seed(len(hows)))
    requests = [Generation([3], 1, seed=seed, **how) for seed, how in enumerate(hows)]
    together = sample(logits, [Sampler(request) for request in requests]).tolist()
    for row, request in enumerate(requests):
        assert sample(logits[row : row + 1], [Sampler(request)]).tolist() == [together[row]]
        if request.temperature == 0:
            assert together[row] == logits[row].argmax()


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize(("bits", "at"), [(0, 0), (2**24 - 1, -1)])
def test_the_outermost_draws_are_tokens_that_are_possible(how, bits, at):
    class Outermost:
        def getrandbits(self, _):
            return bits

    logits = torch.full((1, 50_000), -float("inf"))
    logits[0, [7, 11, 40_000]] = torch.tensor([0.0, 0.1, 0.2])
    [sampler] = samplers(1, **how)
    sampler._random = Outermost()
    possible = [40_000, 11, 7] if sampler.sorts else [7, 11, 40_000]
    possible = possible[:2] if how.get("top_p") == 0.5 else possible
    assert sample(logits, [sampler]).item() == possible[at]


def test_a_request_gets_its_own_tokens_whatever_runs_beside_it():
    requests = [
        Generation([5, 6, 7 + seed], 12, temperature=1.0, top_p=top_p, seed=seed)
        for seed in range(5)
        for top_p in (1.0, 0.9)
    ]
    engine = TransformersEngine(tiny(), eos_token_id=())

    def served(slots):
        return [visit.outputs for visit in drive(engine, list(map(Visit, requests)), slots)]

    one_by_one = served(1)
    assert served(4) == one_by_one
    assert len(set(map(tuple, one_by_one))) == len(requests)  # or they would not be drawn


def test_a_request_without_a_seed_draws_anew_each_time():
    engine = TransformersEngine(tiny(), eos_token_id=())
    visits = [Visit(Generation([5, 6, 7], 20, temperature=2.0)) for _ in range(3)]
    assert len({tuple(visit.outputs) for visit in drive(engine, visits)}) == 3


def test_a_negative_seed_is_a_seed_of_its_own():
    def draws(seed):
        sampler = Sampler(Generation([3], 1, seed=seed))
        return [sampler.draw() for _ in range(3)]

    assert draws(-5) == draws(-5)
    assert draws(-5) != draws(5)


def test_temperature_0_is_greedy_whatever_else_is_asked():
    request = Generation([5, 6, 7], 8, top_k=3, top_p=0.1, seed=1)
    [visit] = drive(TransformersEngine(tiny(), eos_token_id=()), [Visit(request)])
    assert visit.outputs == [token for token, _ in alone("Llama", (5, 6, 7), 8, eos=None)]
