"""The decoding loop for greedy search and sampling, a step at a time.

Theory of operation
-------------------

`model.generate(custom_generate=start)` prepares everything that it prepares for its own loop:
inputs, masks, cache, processors, criteria. It then calls `start` in place of that loop, and returns
what it returns: a `Decoding`, which makes the same steps as `GenerationMixin._sample`, each when it
is asked to. So nothing runs ahead of the streams, and no thread is needed.

A row is a sequence in the model's batch, a slot its place in the source's steps. A row that has
ended is dropped from the batch where the model's state can be cut; `_rows` says where. Otherwise it
stays until the last one ends, and yields padding, as in `generate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any, Final, Literal

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
)

from batchstream import EOS, FinishReason, Last
from batchstream.integrations.transformers import _rows
from batchstream.integrations.transformers._limits import limits_of

# Not documented, but there in the releases that were tried. Without them generate runs in a thread.
_NEEDED: Final = ("_prefill", "_update_model_kwargs_for_generation", "_sample")
_PREPARED: Final = ("_eos_token_tensor", "_pad_token_tensor")
# The criteria that generate makes of its settings, and that are asked here by slot.
_BY_SLOT: Final = frozenset({EosTokenCriteria, MaxLengthCriteria})
_OF_LENGTH: Final = frozenset({MaxLengthCriteria, MaxTimeCriteria})
# Of a model's inputs, the loop says how many are new where prepare_inputs_for_generation asks.
_SAYS_LENGTH: Final = (
    "next_sequence_length"
    in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)


class ForeignLoop(Exception):  # noqa: N818 - it is no error, and never leaves the package
    """The model's batch needs a loop that is not ours: that of its own `generate`."""


def has_own_loop(model: Any) -> bool:
    """Whether a model decodes in the way that this module does.

    A model with a loop or a `generate` of its own does not, nor do the names that this module uses
    beside the documented ones need to exist: they are of one release of transformers.
    """
    # A wrapper, such as a compiled model, has the generate of the model inside.
    generate: Any = getattr(model, "generate", None)
    if getattr(generate, "__func__", None) is not GenerationMixin.generate:
        return False
    owner = type(generate.__self__)
    return (
        all(hasattr(owner, name) for name in _NEEDED)
        and owner._sample is GenerationMixin._sample  # noqa: SLF001 - the loop in whose place ours runs
        and len(inspect.signature(owner._prefill).parameters) >= 4  # noqa: PLR2004, SLF001
    )


class Decoding:
    """A batch that `generate` has prepared.

    Args:
        model: The model.
        input_ids: Of shape (rows, length).
        processors: The logits processors.
        criteria: The stopping criteria.
        config: The configuration of this call.
        kept: What the model wants besides its ids, from step to step.
        max_new_tokens: A limit for all slots, or one for each.
        callers_criteria: The criteria in `criteria` that the caller has passed.
        has_own_cache: Whether the cache is the caller's.
        drop_rows: Whether rows that have ended are dropped; "auto" where that is known to be right.

    Raises:
        ForeignLoop: This release of transformers has prepared something else.
        ValueError: There are not as many limits as rows, or it is not greedy search or sampling.
    """

    def __init__(  # noqa: PLR0917 - in generate's order
        self,
        model: Any,
        input_ids: Any,
        processors: Any,
        criteria: Any,
        config: GenerationConfig,
        kept: dict[str, Any],
        *,
        max_new_tokens: int | Sequence[int],
        callers_criteria: Collection[Any],
        has_own_cache: bool,
        drop_rows: bool | Literal["auto"],
    ) -> None:
        if not all(hasattr(config, name) for name in _PREPARED):
            raise ForeignLoop
        mode = config.get_generation_mode()
        if mode not in {GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE}:
            raise ValueError(
                f"stream_generate decodes by greedy search or sampling, got {mode.value!r}: such "
                "tokens are not final when they are made; change the generation config"
            )
        self._model = model
        self._ids = input_ids
        self._processors = processors
        callers = set(map(id, callers_criteria))
        self._criteria = [
            each for each in criteria if type(each) not in _BY_SLOT or id(each) in callers
        ]
        self._config = config
        self._kept = kept
        self._has_own_cache = has_own_cache
        self._drop_rows = drop_rows
        self._can_drop: bool | None = None  # not known before the cache is there

        eos = frozenset(_listed(config._eos_token_tensor))  # noqa: SLF001
        # generate lets a criterion of the caller's take the place of its own of the same type.
        replaced = any(type(each) is EosTokenCriteria for each in self._criteria)
        self._eos = frozenset() if replaced else eos
        self._pad = config._pad_token_tensor if eos or replaced else None  # noqa: SLF001
        size = input_ids.shape[0]
        self._limits = limits_of(max_new_tokens, size)
        self._lowest = min(self._limits)
        self._size = size
        self._made = 0
        self._slots = list(range(size))  # the slot of each row
        self._ended = [False] * size  # by row
        self._arranged = 0  # how many of these are dropped or padded
        self._unfinished: Any = None  # the same for the device; None while no row has ended
        self._live: object = None  # the live slots that were last heard of

    @property
    def ended(self) -> bool:
        """Whether all rows have ended."""
        return all(self._ended)

    # ---- a step

    def step(self) -> list[Any] | dict[int, Any]:
        """Let the model make a step; return what it gives each slot whose row goes on."""
        model = self._model
        outputs = self._forward()
        self._kept = model._update_model_kwargs_for_generation(  # noqa: SLF001
            outputs, self._kept, is_encoder_decoder=model.config.is_encoder_decoder
        )
        # A copy, as the logits of a prompt may be large, and a view would keep them.
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=self._ids.device)
        del outputs
        scores = self._processors(self._ids, logits)
        if self._config.do_sample:
            chosen = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1).squeeze(1)
        else:
            chosen = torch.argmax(scores, dim=-1)
        if self._unfinished is not None and self._pad is not None:
            chosen = chosen * self._unfinished + self._pad * (1 - self._unfinished)
        self._ids = torch.cat([self._ids, chosen[:, None]], dim=-1)
        self._made += 1
        return self._elements(chosen.tolist())

    def _forward(self) -> Any:
        model, kept = self._model, self._kept
        if not self._made:
            outputs = model._prefill(self._ids, self._config, kept)  # noqa: SLF001
            self._check_drop_rows(kept)
            return outputs
        more = (
            {"next_sequence_length": 1 if kept.get("use_cache") else None} if _SAYS_LENGTH else {}
        )
        inputs = model.prepare_inputs_for_generation(self._ids, **more, **kept)
        # Around each step for itself: it may turn the whole model, which others use in between.
        with getattr(model, "_optimize_model_for_decode", nullcontext)():
            return self._compiled()(**inputs, return_dict=True)

    def _compiled(self) -> Any:
        model = self._model
        criteria = getattr(model, "_valid_auto_compile_criteria", None)
        if criteria is not None and criteria(self._kept, self._config):
            return model.get_compiled_call(self._config.compile_config)
        return model

    def _elements(self, ids: list[int]) -> list[Any] | dict[int, Any]:
        """Return what a step gives each slot, and note the rows that end with it."""
        stopped = self._stopped() if self._criteria else {}
        slots, ended = self._slots, self._ended
        if len(slots) == self._size and not any(ended):
            ends = stopped or self._made >= self._lowest or not self._eos.isdisjoint(ids)
            if not ends:
                return ids
        step: dict[int, Any] = {}
        for row, slot in enumerate(slots):
            if ended[row]:
                continue
            token = ids[row]
            step[slot] = element = self._element(slot, token, stopped.get(row))
            ended[row] = element is not token
        # As the first step is: it says how many slots there are.
        return list(step.values()) if len(step) == self._size else step

    def _element(self, slot: int, token: int, criterion: Any) -> Any:
        if token in self._eos:
            return EOS
        if self._made >= self._limits[slot]:
            return Last(token, FinishReason.LENGTH)
        return token if criterion is None else stopped_by(criterion, token)

    def _stopped(self) -> dict[int, Any]:
        """Return the rows that a criterion ends, each with the first such criterion."""
        rows = len(self._slots)
        found: dict[int, Any] = {}
        for criterion in self._criteria:
            mask = torch.as_tensor(criterion(self._ids, None)).expand(rows).tolist()
            for row, ends in enumerate(mask):
                if ends:
                    found.setdefault(row, criterion)
        return found

    # ---- between steps

    def keep(self, live: Collection[int] | None) -> bool:
        """Go on with the rows of these slots alone; None says nothing of them.

        Returns:
            Whether `arrange` has to be called before the next step.
        """
        if live is not None and not (live is self._live and isinstance(live, tuple)):
            self._live = live
            for row, slot in enumerate(self._slots):
                self._ended[row] |= slot not in live
        return sum(self._ended) != self._arranged and not self.ended

    def arrange(self) -> None:
        """Drop the rows that have ended since the last time, or let them be padded."""
        if self._may_drop():
            self._drop()
        else:
            rows = [int(not ended) for ended in self._ended]
            self._unfinished = torch.tensor(rows, device=self._ids.device)
        self._arranged = sum(self._ended)

    def _may_drop(self) -> bool:
        if self._can_drop is None:
            self._can_drop = self._drop_rows is not False and not (
                _rows.obstacle(self._model, self._kept, self._processors)
                or (
                    self._drop_rows == "auto"
                    and (
                        self._has_own_cache
                        or _rows.doubt(self._model, self._processors, self._criteria)
                    )
                )
            )
        return self._can_drop

    def _check_drop_rows(self, kept: dict[str, Any]) -> None:
        """Refuse to go on if the caller wants what the model's state does not allow."""
        if self._drop_rows is True:
            why = _rows.obstacle(self._model, kept, self._processors)
            if why is not None:
                raise ValueError(f"drop_rows=True is not possible, as {why}: pass 'auto' or False")

    def _drop(self) -> None:
        rows = [row for row, ended in enumerate(self._ended) if not ended]
        self._ids = self._ids[rows]
        _rows.select(self._kept, self._processors, rows)
        self._slots = [self._slots[row] for row in rows]
        self._ended = [False] * len(rows)

    def free(self) -> None:
        """Free the cache, unless it is the caller's: an error may keep what refers to it."""
        if not self._has_own_cache:
            _rows.empty_caches(self._kept)


def stopped_by(criterion: Any, token: int | None) -> Last[int | None]:
    """Return the last output of a slot that a stopping criterion ends, with its name."""
    reason = FinishReason.LENGTH if type(criterion) in _OF_LENGTH else FinishReason.EOS
    return Last(token, reason, {"stopping_criterion": type(criterion).__name__})


def _listed(tensor: Any) -> list[int]:
    return [] if tensor is None else tensor.reshape(-1).tolist()
