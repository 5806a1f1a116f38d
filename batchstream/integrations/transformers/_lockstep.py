"""A call of `generate` in a thread, which makes a step when the source is asked for one.

For decoding that has no loop of ours: assisted decoding, prompt lookup, a model with a `generate`
or a loop of its own. `generate` calls a streamer with each step; the streamer hands it to the
source and waits until that is asked for the next one. So the thread never runs ahead.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Collection, Generator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import MaxTimeCriteria, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from batchstream import EOS, End, FinishReason, Last, Many
from batchstream.integrations.transformers._decoding import stopped_by
from batchstream.integrations.transformers._limits import highest, limits_of
from batchstream.integrations.transformers._surroundings import Surroundings, let_go


class _Left(BaseException):
    """Raised in `put` to leave `generate`, as every stream has ended."""


class _Handoff(BaseStreamer):
    """What `generate` calls with each step, and the source asks for one."""

    def __init__(self) -> None:
        self._steps: SimpleQueue[Any] = SimpleQueue()
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._has_prompt = False

    # ---- in the thread of generate

    def put(self, value: Any) -> None:
        """Hand a step over, and wait until the next one is wanted; the prompt waits for nothing."""
        self._steps.put(value)
        if not self._has_prompt:
            self._has_prompt = True
        elif not self._asked.get():
            raise _Left

    def end(self) -> None:
        """Do nothing: the thread says how it ended."""

    def over(self, error: BaseException | None) -> None:
        """Say that no step follows, and why."""
        self._steps.put(error)

    # ---- in the source

    def next(self) -> Any:
        """Return the next step, None behind the last one.

        Raises:
            BaseException: What `generate` raised.
        """
        step = self._steps.get()
        if isinstance(step, BaseException):
            raise step
        return step

    def ask(self, *, go_on: bool) -> None:
        """Let `generate` go on, or leave it."""
        self._asked.put(go_on)


class _Rows(StoppingCriteria):
    """The criteria of the caller, and which rows they or the source have ended."""

    def __init__(self, criteria: Sequence[Any]) -> None:
        self._criteria = criteria
        self.stopped: dict[int, tuple[Any, int]] = {}  # the criterion, and at which length
        self.ended: set[int] = set()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return which rows end, as a tensor of shape (rows,)."""
        rows, length = input_ids.shape
        for criterion in self._criteria:
            mask = torch.as_tensor(criterion(input_ids, scores, **kwargs)).expand(rows).tolist()
            for row, ends in enumerate(mask):
                if ends:
                    self.stopped.setdefault(row, (criterion, length))
        over = self.ended | self.stopped.keys()
        return torch.tensor([row in over for row in range(rows)], device=input_ids.device)


def in_lockstep(
    generate: Callable[..., Any],
    arguments: dict[str, Any],
    *,
    max_new_tokens: int | Sequence[int],
    eos: frozenset[int],
    surroundings: Surroundings,
) -> Generator[list[int] | dict[int, Any], Collection[int] | None, None]:
    """Return the steps of a call of `generate`, which runs in a thread of its own.

    Args:
        generate: The model's.
        arguments: Those of the call, but for the streamer and the limit.
        max_new_tokens: A limit for all slots, or one for each.
        eos: The token ids that end a sequence.
        surroundings: Torch's state for the thread.
    """
    handoff = _Handoff()
    call = dict(arguments)
    rows = _Rows(_criteria(call))
    call |= {
        "max_new_tokens": highest(max_new_tokens),
        "stopping_criteria": StoppingCriteriaList([rows]),
        "streamer": handoff,
    }

    def run() -> None:
        nonlocal call
        given, call = call, {}
        try:
            with surroundings():
                generate(**given)
        except _Left:
            handoff.over(None)
        except BaseException as error:  # noqa: BLE001 - it goes to the streams
            del given
            let_go(error)
            handoff.over(error)
        else:
            handoff.over(None)

    thread = Thread(
        target=contextvars.copy_context().run, args=[run], name="stream_generate", daemon=True
    )
    thread.start()
    try:
        prompt = handoff.next()
        if prompt is None:
            return
        marks = _Marks(rows, prompt.shape[-1], limits_of(max_new_tokens, prompt.shape[0]), eos)
        while (step := handoff.next()) is not None:
            marks.keep((yield marks.elements(step)))
            if not marks.live:
                return
            handoff.ask(go_on=True)
        if last := marks.stopped():
            yield last
    finally:
        handoff.ask(go_on=False)  # which it reads once it has a step
        thread.join()


class _Marks:
    """What the tokens of a step mean for each slot."""

    def __init__(self, rows: _Rows, prompt: int, limits: list[int], eos: frozenset[int]) -> None:
        self._rows = rows
        self._length = prompt
        self._limits = limits
        self._eos = eos
        self._given = [0] * len(limits)
        self.live = set(range(len(limits)))

    def keep(self, live: Collection[int] | None) -> None:
        """Go on with these slots alone; None says nothing of them."""
        if live is not None:
            self._end(self.live.difference(live))

    def _end(self, slots: set[int]) -> None:
        self.live -= slots
        self._rows.ended |= slots

    def elements(self, step: Any) -> dict[int, Any]:
        """Return what a step gives each slot that goes on."""
        tokens = step.tolist() if step.dim() > 1 else [[token] for token in step.tolist()]
        self._length += len(tokens[0])
        found: dict[int, Any] = {}
        ended: set[int] = set()
        for slot in sorted(self.live):
            found[slot], ends = self._element(slot, tokens[slot])
            if ends:
                ended.add(slot)
        self._end(ended)
        return found

    def stopped(self) -> dict[int, Any]:
        """Return the ends of slots that a criterion has ended behind the last step."""
        stopped = self._rows.stopped
        return {slot: _end(stopped[slot][0]) for slot in self.live if slot in stopped}

    def _element(self, slot: int, tokens: list[int]) -> tuple[Any, bool]:
        criterion, length = self._rows.stopped.get(slot, (None, 0))
        given: list[Any] = []
        if criterion is not None and length < self._length:
            # generate looked at its criteria behind the last step: what it has now is padding.
            return _end(criterion), True
        for token in tokens:
            if token in self._eos:
                given.append(EOS)
                return _one(given), True
            self._given[slot] += 1
            if self._given[slot] >= self._limits[slot]:
                given.append(Last(token, FinishReason.LENGTH))
                return _one(given), True
            given.append(token)
        if criterion is not None:
            given[-1] = stopped_by(criterion, given[-1])
            return _one(given), True
        return _one(given), False


def _criteria(call: dict[str, Any]) -> list[Any]:
    """Take the stopping criteria out of the arguments of a call.

    A row that `generate` stops by criteria of its own shows in nothing but its padding.
    """
    criteria = list(call.pop("stopping_criteria", None) or ())
    if (seconds := call.pop("max_time", None)) is not None:
        criteria.append(MaxTimeCriteria(seconds))
    if (stops := call.pop("stop_strings", None)) is not None:
        criteria.append(StopStringCriteria(call.get("tokenizer"), stops))
    return criteria


def _end(criterion: Any) -> End:
    last = stopped_by(criterion, None)
    return End(last.reason, last.info)


def _one(given: list[Any]) -> Any:
    return given[0] if len(given) == 1 else Many(given)
