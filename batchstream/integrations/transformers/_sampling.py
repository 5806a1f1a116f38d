"""The next token of each row, drawn with that row's own parameters and random numbers.

A row gets what it would get alone. So no row's way may depend on another's parameters: the order in
which the tokens stand on the line from which one is drawn is that of their probability if the row
itself has `top_k` or `top_p`, else that of their ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from batchstream.integrations.transformers._generation import Generation

_BITS = 24  # as a float32 has: a draw times a sum of probabilities then stays below the sum
_COLDEST = torch.finfo(torch.float32).tiny  # a float32 below it has no precision, or is 0
_HOTTEST = torch.finfo(torch.float32).max


class Sampler:
    """Draws the tokens of one request, one after another.

    Args:
        request: Its `temperature`, `top_k`, `top_p` and `seed` count.

    Attributes:
        greedy: Whether each token is the most probable one: the temperature is 0, or so little
            above it that no other token could be drawn.
        sorts: Whether the tokens are sorted by their probability before one is drawn.
    """

    __slots__ = ("_random", "greedy", "request", "sorts")

    def __init__(self, request: Generation) -> None:
        self.request = request
        self.greedy = request.temperature < _COLDEST
        self.sorts = request.top_k is not None or request.top_p < 1
        seed = request.seed
        if seed is not None and seed < 0:  # of which Python takes the absolute value
            seed %= 1 << 64
        # Python's: the same on each device, and a draw is one number, not one for each token.
        self._random = random.Random(seed)  # noqa: S311 - tokens are no secrets

    def draw(self) -> float:
        """Return the next random number, at least 0 and below 1."""
        return self._random.getrandbits(_BITS) / (1 << _BITS)


def sample(logits: Any, samplers: Sequence[Sampler]) -> Any:
    """Return the next token of each row.

    Args:
        logits: A float32 tensor of shape (rows, vocabulary).
        samplers: That of each row.

    Returns:
        A tensor of ids, of shape (rows,); -1 where the logits are NaN or infinite.
    """
    tokens = logits.argmax(-1)
    for sorts, draw in ((False, _draw), (True, _draw_sorted)):
        rows = [
            row
            for row, sampler in enumerate(samplers)
            if not sampler.greedy and sampler.sorts is sorts
        ]
        if rows:
            index = torch.tensor(rows, device=logits.device)
            tokens[index] = draw(logits[index], [samplers[row] for row in rows])
    return tokens.where(logits.amax(-1).isfinite(), -1)


def _draw(logits: Any, samplers: Sequence[Sampler]) -> Any:
    return _place(_probabilities(logits, samplers), samplers)


def _draw_sorted(logits: Any, samplers: Sequence[Sampler]) -> Any:
    """Draw among the most probable tokens: first `top_k`, then `top_p` of what is left."""
    vocabulary = logits.shape[-1]
    probabilities, order = _probabilities(logits, samplers).sort(
        dim=-1, descending=True, stable=True
    )
    places = torch.arange(vocabulary, device=logits.device)
    # Capped before the tensor is made, which takes no number above 64 bits.
    top_k = _column(logits, samplers, lambda request: min(request.top_k or vocabulary, vocabulary))
    probabilities = probabilities.where(places < top_k, 0)
    sums = probabilities.cumsum(-1)
    top_p = _column(logits, samplers, lambda request: request.top_p)
    # A token stays if the tokens before it fall short; the first also if top_p is rounded to 0.
    short = sums - probabilities < top_p * sums[:, -1:]
    probabilities = probabilities.where(short | (places == 0), 0)
    return order.gather(-1, _place(probabilities, samplers)[:, None])[:, 0]


def _probabilities(logits: Any, samplers: Sequence[Sampler]) -> Any:
    # As a float32 a higher temperature is infinite, and an impossible token's logit over it is NaN.
    temperature = _column(logits, samplers, lambda request: min(request.temperature, _HOTTEST))
    # Below the largest logit, so that the quotient of the most probable token is 0, not infinite.
    return ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)


def _place(probabilities: Any, samplers: Sequence[Sampler]) -> Any:
    """Return for each row the place at which its draw falls, on a line made of probabilities."""
    sums = probabilities.cumsum(-1)
    draws = torch.tensor([[sampler.draw()] for sampler in samplers], device=sums.device)
    places = torch.searchsorted(sums, draws * sums[:, -1:], right=True)[:, 0]
    return places.clamp_max(sums.shape[-1] - 1)  # past the end if the sum is NaN


def _column(logits: Any, samplers: Sequence[Sampler], value: Callable[[Generation], float]) -> Any:
    """Return one value of each request, for arithmetic with a row for each."""
    return torch.tensor([[value(sampler.request)] for sampler in samplers], device=logits.device)
