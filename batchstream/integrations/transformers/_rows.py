"""Which rows a batch can do without: whether the model's state can be cut, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Final

import torch
from transformers import cache_utils
from transformers.generation import logits_process, stopping_criteria

from batchstream.integrations.transformers._rope import depends_on_length

_LAYERS: Final = frozenset(
    getattr(cache_utils, name)
    for name in ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
    if hasattr(cache_utils, name)
)
"""Layers that select rows of all that they hold. A subclass may hold more, and not select it."""

_BY_ROW: Final = frozenset(
    {
        "attention_mask",
        "decoder_attention_mask",
        "decoder_position_ids",
        "inputs_embeds",
        "position_ids",
        "token_type_ids",
    }
)
"""What `generate` keeps between steps with a row for each sequence."""

_DIMENSIONS: Final = {"position_ids": 2}

_FOR_ALL: Final = frozenset({"cache_position"})
"""What it keeps with nothing that belongs to a row."""

_PROCESSORS: Final = frozenset(
    getattr(logits_process, name)
    for name in (
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "ExponentialDecayLengthPenalty",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "MinPLogitsWarper",
        "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "SequenceBiasLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
        "SuppressTokensLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopHLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TypicalLogitsWarper",
    )
    if hasattr(logits_process, name)
)
"""Processors that look at each row for itself. Others may count rows, or keep something by row."""

_CRITERIA: Final = frozenset(
    {
        stopping_criteria.EosTokenCriteria,
        stopping_criteria.MaxLengthCriteria,
        stopping_criteria.MaxTimeCriteria,
        stopping_criteria.StopStringCriteria,
    }
)

_NEVER: Final = frozenset(
    getattr(logits_process, name)
    for name in (
        "EncoderNoRepeatNGramLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor",
        "PrefixConstrainedLogitsProcessor",
        "SynthIDTextWatermarkLogitsProcessor",
        "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    )
    if hasattr(logits_process, name)
)
"""Processors that are known to keep something by row."""


def obstacle(model: Any, kept: Mapping[str, Any], processors: Iterable[Any]) -> str | None:
    """Return what keeps rows from being dropped, None if nothing does.

    Args:
        model: The model.
        kept: What `generate` keeps between the steps, after the first of them.
        processors: The logits processors.
    """
    for processor in processors:
        if type(processor) in _NEVER:
            return f"{type(processor).__name__} keeps something for each row"
    if getattr(model, "_is_stateful", False):
        return f"{type(model).__name__} keeps a state that cannot select rows"
    if getattr(model.config, "sub_configs", None):
        return (
            f"{type(model).__name__} is composed of models, which may keep something for each row"
        )
    for name, value in kept.items():
        if (reason := _not_selectable(name, value)) is not None:
            return reason
    return None


def doubt(model: Any, processors: Iterable[Any], criteria: Iterable[Any]) -> str | None:
    """Return what may need all rows, None if nothing does; the caller may know better."""
    if depends_on_length(model.config.get_text_config(decoder=True)):
        return f"the angles of {type(model).__name__} depend on the longest row"
    for each in processors:
        if type(each) not in _PROCESSORS:
            return f"{type(each).__name__} may count rows"
    for each in criteria:
        if type(each) not in _CRITERIA:
            return f"{type(each).__name__} may count rows"
    return None


def _not_selectable(name: str, value: Any) -> str | None:
    if isinstance(value, cache_utils.EncoderDecoderCache):
        parts = (value.self_attention_cache, value.cross_attention_cache)
        return next((why for part in parts if (why := _not_selectable(name, part))), None)
    if isinstance(value, cache_utils.Cache):
        if type(value) is not cache_utils.DynamicCache:
            return f"a {type(value).__name__} cannot select rows"
        unknown = {type(layer).__name__ for layer in value.layers if type(layer) not in _LAYERS}
        return f"a {unknown.pop()} of its cache cannot select rows" if unknown else None
    if name == "encoder_outputs":
        known = all(isinstance(part, torch.Tensor) for part in value.values())
    elif isinstance(value, torch.Tensor):
        # Positions of three dimensions are for pictures, and the model keeps them besides.
        known = name in _FOR_ALL or (name in _BY_ROW and value.dim() <= _DIMENSIONS.get(name, 3))
    else:
        known = value is None or isinstance(value, bool | int | float | str)
    return None if known else f"it is not known which part of {name!r} belongs to which row"


def select(kept: dict[str, Any], processors: list[Any], rows: list[int]) -> None:
    """Keep these rows of what `generate` keeps and of what its processors do, in place."""
    # On the CPU: the layers of a cache may lie on several devices, and all accept such an index.
    index = torch.tensor(rows)
    for name, value in kept.items():
        if isinstance(value, cache_utils.Cache):
            value.batch_select_indices(index)
        elif name == "encoder_outputs":
            kept[name] = type(value)(**{key: part[index] for key, part in value.items()})
        elif name in _BY_ROW and isinstance(value, torch.Tensor):
            kept[name] = value[index]
    for place, processor in enumerate(processors):
        # In later releases that of a repetition penalty has a length for each row.
        lengths = getattr(processor, "prompt_ignore_length", None)
        if isinstance(lengths, torch.Tensor):
            processors[place] = changed = copy(processor)  # it may be the caller's
            changed.prompt_ignore_length = lengths[index]


def empty_caches(kept: dict[str, Any]) -> None:
    """Empty the caches that `generate` has made, whatever still refers to them."""
    for value in kept.values():
        if isinstance(value, cache_utils.EncoderDecoderCache):
            empty_caches({"self": value.self_attention_cache, "cross": value.cross_attention_cache})
        elif isinstance(value, cache_utils.Cache):
            value.layers.clear()
