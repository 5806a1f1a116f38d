"""What `TransformersEngine` needs of a model, checked before the model runs.

A model that keeps anything but the keys and values of past tokens gives wrong outputs, and no
error, once rows join and leave. So what is not known to be right is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Final

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from batchstream.integrations.transformers._ids import ids_of
from batchstream.integrations.transformers._rope import is_longrope, scalings
from batchstream.integrations.transformers._surroundings import Surroundings

_LAYERS: Final = frozenset({DynamicLayer, DynamicSlidingWindowLayer})
_LAYER_TYPES: Final = frozenset({"full_attention", "sliding_attention"})
_INPUTS: Final = ("input_ids", "attention_mask", "position_ids", "use_cache")
_CACHES: Final = ("cache", "past_key_values")  # since transformers 5.24, and before

_INSTEAD: Final = "use stream_generate, whose requests begin together"


def check_model(model: Any) -> PreTrainedModel:
    """Return the model if its rows can join and leave a running batch.

    Raises:
        TypeError: It is no model of transformers that generates.
        ValueError: Its rows cannot join and leave, or it is being trained.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be a model of transformers, got a {type(model).__name__}: "
            f"pass what AutoModelForCausalLM.from_pretrained returns"
        )
    name = type(model).__name__
    if not model.can_generate():
        raise TypeError(
            f"model must have a head that gives the next token, which {name} has not: "
            f"load it with AutoModelForCausalLM"
        )
    if model.training:
        raise ValueError(f"{name} is in training mode, with dropout: call model.eval() before")
    for why in _obstacles(model):
        raise ValueError(f"requests cannot join and leave a batch of {name}, {why}: {_INSTEAD}")
    return model


def _obstacles(model: PreTrainedModel) -> Iterator[str]:
    config = model.config
    if config.is_encoder_decoder:
        yield "which has an encoder"
    if getattr(model, "_is_stateful", False):
        yield "which keeps a state besides keys and values"
    config = config.get_text_config(decoder=True)
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in _LAYER_TYPES:
            yield f"which has layers of the type {kind!r}"
    for layer in DynamicCache(config=config).layers:
        if type(layer) not in _LAYERS:
            yield f"which keeps a {type(layer).__name__}"
    inputs = inspect.signature(model.forward).parameters
    for each in _INPUTS:
        if each not in inputs:
            yield f"whose forward takes no {each}"
    if not any(each in inputs for each in _CACHES):
        yield "whose forward takes no cache"


def check_cache(model: PreTrainedModel, cache: Any, length: int) -> None:
    """Check that a cache holds a prompt, all of it and nothing else.

    Raises:
        RuntimeError: The model keeps what it knows of the prompt in another place.
    """
    layers = [layer for layer in cache.layers if layer.is_initialized]
    if not layers or any(
        type(layer) is not DynamicLayer or layer.get_seq_length() != length for layer in layers
    ):
        raise RuntimeError(
            f"requests cannot join and leave a batch of {type(model).__name__}, which does not "
            f"keep the keys and values of a prompt in the DynamicCache that it is given: {_INSTEAD}"
        )


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return how many token ids the model knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def length_of(model: PreTrainedModel) -> int | None:
    """Return how many tokens a row may have, prompt included; None if that has no limit.

    With `longrope` a row beyond the original length would turn the positions of all rows that run
    beside it.
    """
    config = model.config.get_text_config(decoder=True)
    limits = [getattr(config, "max_position_embeddings", None)]
    kinds = scalings(config)
    if any(map(is_longrope, kinds)):
        limits += [each.get("original_max_position_embeddings") for each in (*kinds, vars(config))]
    return min((limit for limit in limits if limit), default=None)


def end_ids_of(model: PreTrainedModel) -> frozenset[int]:
    """Return the token ids that end a text, as the model's generation config has them."""
    return ids_of(getattr(getattr(model, "generation_config", None), "eos_token_id", None))


class Forward:
    """The call of a model that puts tokens into a cache and says what may come next.

    Args:
        model: One that `check_model` has passed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._surroundings = Surroundings(model.device)
        inputs = inspect.signature(model.forward).parameters
        self._cache = next(each for each in _CACHES if each in inputs)
        # Spares the model the logits of all tokens but the last.
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in inputs else {}

    @property
    def device(self) -> Any:
        """Where the model takes its inputs."""
        return self._model.device

    def surroundings(self) -> AbstractContextManager[None]:
        """Set what torch keeps for each thread by itself, for the length of a block."""
        return self._surroundings()

    def __call__(self, ids: Any, mask: Any, positions: Any, cache: Any) -> Any:
        """Return the logits of each row's next token, float32 of shape (rows, vocabulary).

        Args:
            ids: What goes into the cache, of shape (rows, tokens).
            mask: 1 for the columns that a row has, of shape (rows, columns), new ones included.
            positions: The positions of `ids` in their rows, of the same shape.
            cache: A `DynamicCache`.
        """
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache: cache},
            **self._options,
        )
        return output.logits[:, -1].float()
