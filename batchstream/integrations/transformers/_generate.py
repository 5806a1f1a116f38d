"""`stream_generate`: a call of `model.generate` as a source of token ids."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from transformers import Cache, StoppingCriteriaList
from transformers.generation.stopping_criteria import StopStringCriteria

from batchstream.integrations.transformers._decoding import Decoding, ForeignLoop, has_own_loop
from batchstream.integrations.transformers._limits import checked_limits, highest, limits_of
from batchstream.integrations.transformers._lockstep import in_lockstep
from batchstream.integrations.transformers._settings import Settings, as_arguments
from batchstream.integrations.transformers._surroundings import Surroundings, clear_error_frames

Steps: TypeAlias = Generator[list[Any] | dict[int, Any], Collection[int] | None, None]


def stream_generate(
    model: Any,
    inputs: Any,
    *,
    max_new_tokens: int | Sequence[int],
    drop_rows: bool | Literal["auto"] = "auto",
    **generate_kwargs: Any,
) -> Steps:
    """Return a source of the token ids that `model.generate` would return, step by step.

    Pass it to `BatchedStream`, `demux` or their asynchronous twins, or return it from the function
    of a batcher. Each slot ends in the step in which its sequence does: with `eos` at an
    end-of-sequence id, which is not delivered; with `length` at its limit; and at a stopping
    criterion with the criterion's name in `StreamEnd.info`. Stop strings, which need `tokenizer=`,
    are such a criterion. An `EosTokenCriteria` of your own takes the place of the config's end ids,
    as in `generate`. When every stream has ended or was cancelled, the model makes no further step.

    Rows that have ended are dropped from the model's batch, so that they cost no more, where that
    is known to be right: all layers of the cache can select rows, the model is of text alone, its
    rotary positions do not depend on the longest row, and nothing counts rows. The model may then
    sample other tokens for the other rows than it would have for the whole batch; greedy search
    stays as it is.

    The model runs in the thread that moves the source, with greedy search and sampling. Assisted
    decoding and prompt lookup, and models with a loop of their own, run in a thread of the
    source's, in step with it. Beams and contrastive search are refused.

    Args:
        model: A model of transformers with `generate`.
        inputs: What the tokenizer returned, a mapping with tensors; or the ids alone, a tensor of
            shape `(prompts, length)`. Prompts of several lengths are padded on the left.
        max_new_tokens: How many tokens a sequence may have at most: one number for all, or one for
            each slot. A `MaxLengthCriteria` of your own may end them before.
        drop_rows: True drops rows that have ended also beside logits processors, stopping criteria
            and a cache of your own: you know that they do not count rows. And where rotary
            positions are `dynamic` or `longrope`, which may change what the others get. False never
            drops one.
        **generate_kwargs: Anything else that `model.generate` takes: `do_sample`, `temperature`,
            `generation_config`, `logits_processor`, `stopping_criteria`, `num_return_sequences`,
            which gives each prompt as many slots, and so on.

    Returns:
        A generator of steps. It reads the prompts with the first of them, and nothing before.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work. From the first step
            also what `generate` raises of its arguments; and with `drop_rows=True` that rows cannot
            be dropped.

    Blocking: a step takes as long as the model does.
    Cancellation: closing the source ends the model's work, at the latest behind its step.
    Threads: any thread may move it, one at a time. Grad mode, autocast and the CUDA device are set
        for each step and given back: autocast is that of the call.

    Example:
        >>> import batchstream
        >>> from batchstream.integrations.transformers import stream_generate
        >>> @batchstream.batched(max_batch_size=8)
        ... def replies(prompts):
        ...     inputs = tokenizer(
        ...         prompts, return_tensors="pt", padding=True, padding_side="left"
        ...     ).to(model.device)
        ...     return stream_generate(model, inputs, max_new_tokens=100)
    """
    if not callable(getattr(model, "generate", None)):
        raise TypeError(
            f"stream_generate takes a model with a method generate, got {type(model).__name__}"
        )
    if type(drop_rows) is not bool and drop_rows != "auto":
        raise ValueError(f"drop_rows must be 'auto', True or False, got {drop_rows!r}")
    call = _Call(
        model=model,
        arguments=as_arguments(inputs) | generate_kwargs,
        max_new_tokens=checked_limits(max_new_tokens),
        drop_rows=drop_rows,
    )
    settings = Settings(model, call.arguments)
    settings.check()
    if (prompts := settings.prompts) is not None:
        limits_of(call.max_new_tokens, prompts * settings.sequences)
    own_loop = has_own_loop(model) and not settings.assisted
    surroundings = Surroundings(getattr(model, "device", None))
    steps = (_in_own_loop if own_loop else _in_lockstep)(call, settings, surroundings)
    return _clearing_error_frames(steps)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of `generate`: the model, what it is given, and what its rows may do."""

    model: Any
    arguments: dict[str, Any]
    max_new_tokens: int | tuple[int, ...]
    drop_rows: bool | Literal["auto"]


def _clearing_error_frames(steps: Steps) -> Steps:
    try:
        yield from steps
    except BaseException as error:
        del steps
        clear_error_frames(error)
        raise


def _in_own_loop(call: _Call, settings: Settings, surroundings: Surroundings) -> Steps:
    criteria = _criteria(call.arguments, settings.stop_strings)

    def start(  # noqa: PLR0917 - generate gives these by position
        model: Any,
        input_ids: Any,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        tokenizer: Any = None,  # noqa: ARG001 - or generate would take it for the model's
        **kept: Any,
    ) -> Decoding:
        return Decoding(
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            kept,
            max_new_tokens=call.max_new_tokens,
            callers_criteria=criteria,
            has_own_cache=any(isinstance(value, Cache) for value in call.arguments.values()),
            drop_rows=call.drop_rows,
        )

    try:
        with surroundings():
            decoding = call.model.generate(
                **call.arguments | {"stopping_criteria": criteria, "stop_strings": None},
                max_new_tokens=highest(call.max_new_tokens),
                custom_generate=start,
            )
    except ForeignLoop:
        yield from _in_lockstep(call, settings, surroundings)
        return
    try:
        while not decoding.ended:
            with surroundings():
                step = decoding.step()
            live = yield step
            if decoding.keep(live):
                with surroundings():
                    decoding.arrange()
    except BaseException:
        decoding.free()
        raise


def _criteria(arguments: Mapping[str, Any], stop_strings: Any) -> StoppingCriteriaList:
    """Return the stopping criteria of a call, and that of its stop strings.

    generate would make the latter itself, but has no tokenizer where the loop is another one. As
    there, one of the caller's takes its place.
    """
    criteria = StoppingCriteriaList(arguments.get("stopping_criteria") or ())
    if stop_strings is not None and StopStringCriteria not in map(type, criteria):
        criteria.append(StopStringCriteria(arguments["tokenizer"], stop_strings))
    return criteria


def _in_lockstep(call: _Call, settings: Settings, surroundings: Surroundings) -> Steps:
    return in_lockstep(
        call.model.generate,
        call.arguments,
        max_new_tokens=call.max_new_tokens,
        eos=settings.eos,
        surroundings=surroundings,
    )
