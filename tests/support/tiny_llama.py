"""The model of examples/engines in NumPy, without a cache: what every engine has to say."""

from __future__ import annotations

from functools import cache

import numpy as np
import tiny_models as tiny


@cache
def reply(ids, max_new_tokens):
    """Return the tokens that greedy decoding gives to a tuple of ids, and the reason of its end."""
    tokens = list(ids)
    for _ in range(max_new_tokens):
        token = int(logits(tokens).argmax())
        if token == tiny.EOS:
            return tokens[len(ids) :], "eos"
        tokens.append(token)
    return tokens[len(ids) :], "length"


def logits(tokens):
    """Return the scores of the next token."""
    of = _weights()
    x = of["embedding"][tokens]
    mask = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    for layer in range(tiny.LAYERS):
        normed = _normed(x)
        q, k, v = (_heads(normed @ of[f"{layer}.{part}"].T) for part in "qkv")
        scores = _rotated(q) @ _rotated(k).swapaxes(1, 2) / np.sqrt(q.shape[-1]) + mask
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        attended = (weights @ v).swapaxes(0, 1).reshape(len(tokens), -1)
        x = x + attended @ of[f"{layer}.o"].T
        normed = _normed(x)
        gate = normed @ of[f"{layer}.gate"].T
        hidden = gate / (1 + np.exp(-gate)) * (normed @ of[f"{layer}.up"].T)
        x = x + hidden @ of[f"{layer}.down"].T
    return _normed(x[-1]) @ of["head"].T


@cache
def _weights():
    return {name: array.astype(np.float64) for name, array in tiny.weights().items()}


def _normed(x):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + tiny.EPSILON)


def _heads(x):
    return x.reshape(len(x), tiny.HEADS, -1).swapaxes(0, 1)


def _rotated(x):
    """Turn each half of a head's numbers against the other, by an angle for each position."""
    size = x.shape[-1] // 2
    angles = np.outer(np.arange(x.shape[1]), 10_000.0 ** -(np.arange(size) / size))
    first, second = x[..., :size], x[..., size:]
    turned = first * np.cos(angles) - second * np.sin(angles)
    return np.concatenate([turned, second * np.cos(angles) + first * np.sin(angles)], axis=-1)
