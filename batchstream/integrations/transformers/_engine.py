"""Continuous batching of a transformers model: requests join and leave while it runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchstream import End, Fail, FinishReason, Last, NotNow, token_ids
from batchstream._core.arguments import check_count
from batchstream.integrations.transformers._generation import Generation, GenerationError, Token
from batchstream.integrations.transformers._joined import Prefill, Rows
from batchstream.integrations.transformers._model import (
    Forward,
    check_cache,
    check_model,
    end_ids_of,
    length_of,
    vocabulary_of,
)
from batchstream.integrations.transformers._sampling import Sampler, sample
from batchstream.integrations.transformers._surroundings import clear_error_frames

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersEngine:
    """A model of transformers as a `StepEngine`: `ContinuousBatcher` lets requests join and leave.

    Each request is a `Generation`, and gets the tokens that it would get alone. A step puts the
    last token of each running request through the model, in one call, and then the prompts that
    join, each in calls of its own; a prompt's last call gives the request's first token. The engine
    ends a stream itself: with `eos` at an end id, which is not delivered, and with `length`
    together with the last token of `max_new_tokens`. The end's `info` has `prompt_tokens`,
    `completion_tokens`, and `stop` if one of the request's own stop ids has ended it.

    The cache of all rows is one rectangle, as long as the longest of the running requests. Layers
    with an attention window keep whole rows, too.

    Args:
        model: A decoder with plain or windowed attention, in evaluation mode. Others are refused.
        eos_token_id: The token ids that end a text; None for the ids in the model's
            `generation_config`, `()` for none.
        prefill_chunk: How many tokens of a prompt a step computes: a long prompt then takes several
            steps, between which the running requests go on. None computes whole prompts.
        max_prefills: How many prompts a step computes, or chunks of them; None for all.
        cache_tokens: How many tokens the cache may hold: the number of requests, times the longest
            prompt and `max_new_tokens` among them. A request that does not fit waits until others
            have left. None for no limit.

    Raises:
        TypeError: `model` is no model of transformers that generates.
        ValueError: Its rows would be wrong once they join and leave: it has an encoder, a
            state-space or linear layer, or anything else that is not known to be right. Or another
            argument cannot work.

    Threads: one at a time, as `ContinuousBatcher` does. A model may serve several engines.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> import batchstream
        >>> from batchstream.integrations.transformers import Generation, TransformersEngine
        >>> _ = torch.manual_seed(0)
        >>> config = LlamaConfig(
        ...     vocab_size=64,
        ...     hidden_size=8,
        ...     intermediate_size=8,
        ...     num_hidden_layers=1,
        ...     num_attention_heads=1,
        ... )
        >>> engine = TransformersEngine(LlamaForCausalLM(config).eval(), eos_token_id=())
        >>> with batchstream.ContinuousBatcher(engine, max_batch_size=8) as batcher:
        ...     streams = [batcher.stream(Generation([1, 5, 9], n)) for n in (2, 4)]
        ...     [len(list(stream)) for stream in streams]
        [2, 4]
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_id: int | Sequence[int] | None = None,
        prefill_chunk: int | None = None,
        max_prefills: int | None = None,
        cache_tokens: int | None = None,
    ) -> None:
        self._model = check_model(model)
        if eos_token_id is None:
            self._end_ids = end_ids_of(model)
        else:
            self._end_ids = token_ids(None, eos_token_id).ids  # () is none, too
        self._chunk = _count("prefill_chunk", prefill_chunk)
        self._max_prefills = _count("max_prefills", max_prefills)
        self._cache_tokens = _count("cache_tokens", cache_tokens)
        self._vocabulary = vocabulary_of(model)
        self._max_length = length_of(model)
        self._forward = Forward(model)
        self._requests: dict[int, _Running] = {}  # by slot
        self._prefills: dict[int, Prefill] = {}  # of requests whose prompt is not through, by slot
        self._rows = Rows()

    def add(self, slot: int, request: Generation) -> None:
        """Let a request join with the next step.

        Raises:
            GenerationError: A token id is none of the model's, or the request is too long for the
                model or for `cache_tokens`.
            NotNow: It would fit into the cache if others had left.
            TypeError: The request is no `Generation`.
        """
        self._check(request)
        self._check_room(request)
        self._requests[slot] = _Running(request, self._end_ids)
        self._prefills[slot] = Prefill(request.ids, self._chunk)

    def step(self) -> dict[int, Any]:
        """Give each running request its next token, and the prompts that join their first ones.

        An error in a prompt's own call fails its request alone.
        """
        try:
            with self._forward.surroundings():
                return self._step()
        except BaseException as error:
            self.close()  # the rows are at odds with their cache
            clear_error_frames(error)
            raise

    def remove(self, slot: int) -> None:
        """Free what the request has in the cache; that of a running batch with the next step."""
        self._requests.pop(slot, None)
        if slot in self._prefills:
            self._prefills.pop(slot).drop()
        self._rows.leave(slot)

    def close(self) -> None:
        """Free the cache. Requests that are still in the engine are not computed any more."""
        self._rows.clear()
        while self._prefills:
            self._prefills.popitem()[1].drop()

    def _step(self) -> dict[int, Any]:
        step: dict[int, Any] = {}
        self._rows.compact()
        slots = self._rows.slots
        if slots:
            tokens = [self._requests[slot].token for slot in slots]
            self._emit(step, slots, self._rows.decode(self._forward, tokens))
        joining: dict[int, Prefill] = {}
        for slot in list(itertools.islice(self._prefills, self._max_prefills)):
            if self._prefill(step, slot):
                joining[slot] = self._prefills.pop(slot)
                if self._requests[slot].ended:  # with its first token
                    joining.pop(slot).drop()
        if joining:
            self._rows.join(joining)
        return step

    def _prefill(self, step: dict[int, Any], slot: int) -> bool:
        """Compute a prompt, or a chunk of it; return whether it is through."""
        prefill = self._prefills[slot]
        try:
            logits = prefill.advance(self._forward)
            if logits is None:
                return False
            check_cache(self._model, prefill.cache, prefill.length)
            self._emit(step, [slot], logits)
        except Exception as error:  # noqa: BLE001 - fails this request alone
            step[slot] = Fail(error)
            self._prefills.pop(slot).drop()
            clear_error_frames(error)
            return False
        return True

    def _emit(self, step: dict[int, Any], slots: Sequence[int], logits: Any) -> None:
        """Put the next token of each of these requests into the step."""
        running = [self._requests[slot] for slot in slots]
        tokens = sample(logits, [each.sampler for each in running])
        logprobs: Sequence[float] = ()
        if any(each.request.logprobs for each in running):
            logprobs = (
                logits.log_softmax(-1).gather(-1, tokens.clamp_min(0)[:, None])[:, 0].tolist()
            )
        for row, (slot, each, token) in enumerate(
            zip(slots, running, tokens.tolist(), strict=True)
        ):
            step[slot] = each.take(token, logprobs[row] if each.request.logprobs else None)

    def _check(self, request: Generation) -> None:
        if not isinstance(request, Generation):
            raise TypeError(
                f"a request to TransformersEngine must be a Generation, got {request!r}: "
                f"pass Generation(ids, max_new_tokens)"
            )
        largest = max(request.ids)
        if largest >= self._vocabulary:
            raise GenerationError(
                f"ids must be below {self._vocabulary}, the size of the model's vocabulary, "
                f"got {largest}"
            )
        if self._max_length is not None and _length(request) > self._max_length:
            raise GenerationError(
                f"the prompt and max_new_tokens must be at most {self._max_length} tokens "
                f"together, which is as far as the model counts positions, "
                f"got {len(request.ids)} and {request.max_new_tokens}"
            )

    def _check_room(self, request: Generation) -> None:
        room, length = self._cache_tokens, _length(request)
        if room is None:
            return
        if length > room:
            raise GenerationError(
                f"the prompt and max_new_tokens must be at most {room} tokens together, which is "
                f"what the cache has room for, got {len(request.ids)} and {request.max_new_tokens}"
            )
        lengths = [length, *(_length(each.request) for each in self._requests.values())]
        if max(lengths) * len(lengths) > room:
            raise NotNow


class _Running:
    """A request in the engine.

    Attributes:
        token: The last one that was emitted: the model's next input.
        ended: Whether the stream ends with it.
    """

    __slots__ = ("_end_ids", "_outputs", "ended", "request", "sampler", "token")

    def __init__(self, request: Generation, end_ids: frozenset[int]) -> None:
        self.request = request
        self.sampler = Sampler(request)
        self.token = -1
        self.ended = False
        self._end_ids = end_ids.union(request.stop_ids)
        self._outputs = 0

    def take(self, token: int, logprob: float | None) -> Any:
        """Return what stands in the step for the next token."""
        self.token = token
        if token < 0:
            self.ended = True
            return Fail(
                ArithmeticError(
                    f"the model gives no probabilities for token {self._outputs} of the request, "
                    f"but NaN or infinity: load it with another dtype, such as bfloat16"
                )
            )
        if token in self._end_ids:
            self.ended = True
            return End(FinishReason.EOS, self._info(token))
        self._outputs += 1
        output = token if logprob is None else Token(token, logprob)
        if self._outputs == self.request.max_new_tokens:
            self.ended = True
            return Last(output, FinishReason.LENGTH, self._info())
        return output

    def _info(self, token: int | None = None) -> dict[str, Any]:
        info: dict[str, Any] = {
            "prompt_tokens": len(self.request.ids),
            "completion_tokens": self._outputs,
        }
        return info | {"stop": token} if token in self.request.stop_ids else info


def _length(request: Generation) -> int:
    """Return how many tokens a request has in the end, at most."""
    return len(request.ids) + request.max_new_tokens


def _count(name: str, value: int | None) -> int | None:
    return None if value is None else check_count(name, value, at_least=1)
