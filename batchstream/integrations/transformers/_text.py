"""`stream_text`: prompts in, a source of their replies as text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from batchstream import Fail, RequestError
from batchstream.integrations.transformers._generate import Steps, stream_generate
from batchstream.integrations.transformers._limits import checked_limits, limits_of
from batchstream.integrations.transformers._prompts import Room, check_prompts, encoded, padded
from batchstream.integrations.transformers._settings import Settings
from batchstream.text import DecodedSteps, StopStrings, TextDecoder, decode_steps

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

    A request that cannot work fails alone, in the first step: with a `RequestError` if its prompt
    has no tokens or ids that the model has not, if one of its own stop strings is empty, if its own
    limit is below 1, and if it needs more positions than the model has in a table; and with what
    the tokenizer raises of it, or a `TypeError`. If all fail the model does not run.

    Args:
        model: A model of transformers with `generate`.
        tokenizer: Its tokenizer.
        prompts: For each a text; a chat, which is a list of messages, for the tokenizer's template;
            or a list of token ids.
        max_new_tokens: How many tokens a reply may have at most: one number for all, or one for
            each slot.
        stop: Stop strings: a text or several for all slots, or a list with a list or None for each.
            Stop strings of the generation config hold besides, for all slots.
        include_stop: Whether the text includes the stop string that ends it.
        skip_special_tokens: Whether special tokens give no text.
        **generate_kwargs: What `stream_generate` takes besides.

    Returns:
        A source for `demux`, `BatchedStream`, or to return from the function of a batcher.

    Raises:
        TypeError, ValueError: An argument that is for all prompts is of the wrong kind, or cannot
            work; see `stream_generate`.

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
    _check_pair(model, tokenizer)
    check_prompts(prompts)
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
    size = len(prompts) * each
    stops = _stops(stop, settings.stop_strings, size)
    generate_kwargs["stop_strings"] = None  # here they are held back, and `stop` has them
    limits = _limits(max_new_tokens, size)
    room = Room(model)
    ids: list[Any] = []  # of each prompt
    decoders: list[Any] = []  # of each slot
    failed: dict[int, Fail] = {}
    for number, prompt in enumerate(prompts):
        slots = range(number * each, (number + 1) * each)
        try:
            own = encoded(tokenizer, prompt)
            for slot in slots:
                room.check(own, _limit(limits[slot]))
            made = [
                _decoder(
                    tokenizer,
                    stop=stops[slot],
                    include_stop=include_stop,
                    prompt_ids=own if is_decoder else (),
                    skip_special_tokens=skip_special_tokens,
                )
                for slot in slots
            ]
        except Exception as error:  # noqa: BLE001 - its streams raise it
            ids.append(None)
            decoders += [None] * each
            failed |= dict.fromkeys(slots, Fail(error))
        else:
            ids.append(own)
            for decoder in made:
                decoder.prompt_tokens = len(own)  # also where no text goes on from them
            decoders += made
    if len(failed) == size:
        return decode_steps([failed], decoders)
    # What counts rows, as a logits processor may, finds each request in its place: the row of one
    # that has failed holds the shortest prompt of the others, for a step at most.
    spare = min((own for own in ids if own is not None), key=len)
    steps = stream_generate(
        model,
        padded(
            [spare if own is None else own for own in ids],
            pad,
            "left" if is_decoder else "right",
            model.device,
        ),
        max_new_tokens=[1 if slot in failed else limits[slot] for slot in range(size)],
        **generate_kwargs,
    )
    return decode_steps(_after(failed, steps) if failed else steps, decoders)


def _check_pair(model: Any, tokenizer: Any) -> None:
    """Check that there are a model and a tokenizer.

    Raises:
        TypeError: One of them is something else.
    """
    if not callable(getattr(model, "generate", None)):
        raise TypeError(
            f"stream_text takes a model with a method generate, got {type(model).__name__}"
        )
    if not callable(tokenizer) or not hasattr(tokenizer, "pad_token_id"):
        raise TypeError(
            f"stream_text takes a tokenizer of transformers, got {type(tokenizer).__name__}: pass "
            "what AutoTokenizer.from_pretrained returns"
        )


def _after(failed: dict[int, Fail], steps: Steps) -> Steps:
    """Let some slots fail, and go on with the others."""
    yield failed
    yield from steps


def _limits(max_new_tokens: Any, size: int) -> Sequence[Any]:
    """Return the limit of each slot; limits that were given one by one are not checked.

    Raises:
        TypeError, ValueError: It is a limit for all, and cannot work; or there is not one for each.
    """
    if hasattr(type(max_new_tokens), "tolist"):
        max_new_tokens = max_new_tokens.tolist()
    if not isinstance(max_new_tokens, list | tuple) or not max_new_tokens:
        max_new_tokens = checked_limits(max_new_tokens)
    return limits_of(max_new_tokens, size)


def _limit(limit: Any) -> Any:
    """Return the limit of a slot.

    Raises:
        TypeError: It is no whole number.
        RequestError: It is below 1.
    """
    try:
        return checked_limits(limit)
    except ValueError as error:
        raise RequestError(str(error)) from error


def _decoder(tokenizer: Any, **options: Any) -> TextDecoder:
    """Return the decoder of a slot.

    Raises:
        TypeError: A stop string is no text.
        RequestError: One is empty.
    """
    try:
        return TextDecoder(tokenizer, **options)
    except ValueError as error:
        raise RequestError(str(error)) from error


def _stops(stop: Any, configured: Any, size: int) -> list[list[Any]]:
    """Return the stop strings of each slot: its own, and the config's.

    Raises:
        TypeError: Some are for all slots, and others for one.
        ValueError: There is not one element for each slot, or one for all is empty.
    """
    common = _listed(configured)
    given = _listed(stop)
    texts = [isinstance(each, str) for each in given]
    if all(texts):
        StopStrings(*given)  # refuses what is wrong for all
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
    if isinstance(stop, str):
        return [stop]
    if stop is not None and (isinstance(stop, bytes) or not isinstance(stop, Iterable)):
        raise TypeError(f"stop takes a text or several, got {stop!r}")
    return list(stop or ())
