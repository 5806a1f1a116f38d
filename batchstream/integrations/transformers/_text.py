"""`stream_text`: prompts in, a source of their replies as text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from batchstream.integrations.transformers._generate import stream_generate
from batchstream.integrations.transformers._prompts import encoded, padded
from batchstream.integrations.transformers._settings import Settings
from batchstream.text import DecodedSteps, TextDecoder, decode_steps

Prompt: TypeAlias = "str | Sequence[Mapping[str, Any]] | Sequence[int]"
Stop: TypeAlias = "str | Sequence[str] | None"


def stream_text(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int | Sequence[int],
    stop: Stop | Sequence[Sequence[str] | None] = (),
    include_stop: bool = False,
    skip_special_tokens: bool = True,
    **generate_kwargs: Any,
) -> DecodedSteps:
    r"""Return a source of the text that `model.generate` would give each prompt.

    It is `stream_generate` with a `TextDecoder` for each slot: whole characters, and stop strings
    that end their slot in the step that completes them. A slot has no output in a step that
    completes no text. `StreamEnd.info` has `"stop"`, `"completion_tokens"` and `"prompt_tokens"`.

    Prompts are padded as the model needs it, and the tokenizer stays as it is. Where neither the
    call nor the model says which id ends a sequence, it is the tokenizer's.

    Args:
        model: A model of transformers with `generate`.
        tokenizer: Its tokenizer.
        prompts: For each a text; a chat, which is a list of messages, for the tokenizer's template;
            or a list of token ids.
        max_new_tokens: How many tokens a reply may have at most: one number for all, or one for
            each slot.
        stop: Stop strings: a text or several for all slots, or a list with a list or None for each.
            Those of the generation config hold besides, for all slots.
        include_stop: Whether the text includes the stop string that ends it.
        skip_special_tokens: Whether special tokens give no text.
        **generate_kwargs: What `stream_generate` takes besides.

    Returns:
        A source for `demux`, `BatchedStream`, or to return from the function of a batcher.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work; see
            `stream_generate`.
        Exception: What the tokenizer raises.

    Blocking: the call tokenizes; a step takes as long as the model does.
    Cancellation: closing the source ends the model's work, at the latest behind its step.
    Threads: any thread may move the source, one at a time.

    Example:
        >>> from batchstream import batched
        >>> from batchstream.integrations.transformers import stream_text
        >>> @batched(max_batch_size=8)
        ... def replies(prompts):
        ...     return stream_text(model, tokenizer, prompts, max_new_tokens=100, stop=["\n\n"])
    """
    if generate_kwargs.get("stop_strings") is not None:
        raise ValueError(
            "stream_text takes no stop_strings: pass stop, which holds back what may become a stop "
            "string"
        )
    ids = encoded(tokenizer, prompts)
    settings = Settings(model, generate_kwargs)
    is_decoder = not model.config.is_encoder_decoder
    if (
        not settings.eos
        and "eos_token_id" not in generate_kwargs
        and tokenizer.eos_token_id is not None
    ):
        generate_kwargs["eos_token_id"] = tokenizer.eos_token_id
    pads = (settings.pad, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(it for it in pads if it is not None)
    if settings.pad is None:
        generate_kwargs["pad_token_id"] = pad
    each = settings.sequences
    stops = _stops(stop, settings.stop_strings, len(ids) * each)
    generate_kwargs["stop_strings"] = None  # here they are held back, and `stop` has them
    decoders = [
        TextDecoder(
            tokenizer,
            stop=stops[slot],
            include_stop=include_stop,
            prompt_ids=ids[slot // each] if is_decoder else (),
            skip_special_tokens=skip_special_tokens,
        )
        for slot in range(len(ids) * each)
    ]
    for slot, decoder in enumerate(decoders):
        decoder.prompt_tokens = len(ids[slot // each])  # also where no text goes on from them
    steps = stream_generate(
        model,
        padded(ids, pad, "left" if is_decoder else "right", model.device),
        max_new_tokens=max_new_tokens,
        **generate_kwargs,
    )
    return decode_steps(steps, decoders)


def _stops(stop: Any, configured: Any, size: int) -> list[list[Any]]:
    """Return the stop strings of each slot: its own, and those of the config.

    Raises:
        TypeError: Some are for all slots, and others for one.
        ValueError: There is not one element for each slot.
    """
    common = _listed(configured)
    given = _listed(stop)
    texts = [isinstance(each, str) for each in given]
    if all(texts):
        return [given + common] * size
    if any(texts):
        at = texts.index(True)
        raise TypeError(
            f"stop takes texts for all slots, or a list or None for each, got both: {given[at]!r} "
            f"is a text, write [{given[at]!r}]"
        )
    if len(given) != size:
        raise ValueError(
            f"stop has {len(given)} lists of stop strings, expected {size}, one per slot"
        )
    return [_listed(each) + common for each in given] if common else given


def _listed(stop: Any) -> list[Any]:
    return [stop] if isinstance(stop, str) else list(stop or ())
