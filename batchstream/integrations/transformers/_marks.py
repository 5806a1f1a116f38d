"""What the ids that `generate` puts into a streamer mean for each slot, and which rows it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.stopping_criteria import (
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from batchstream import EOS, End, FinishReason, Last, Many
from batchstream.integrations.transformers._decoding import stopped_by
from batchstream.integrations.transformers._settings import Settings


class Left(BaseException):
    """Raised in `put` to leave `generate`, as no stream is live."""


class RowCriteria(StoppingCriteria):
    """The stopping criteria of a call, and the rows that the streams have ended.

    A row that `generate` stops by a criterion of its own shows in nothing but its padding. So it
    has no other than this one.

    `generate` may ask of ids that it has not put yet. Where these are drafts, other ids may follow
    instead: a verdict on them is answered, but stands only if what is put next are these ids.

    Args:
        criteria: The stopping criteria of the call.
        live: Returns the live slots; None if only `ended` says which rows have ended.
    """

    def __init__(
        self, criteria: Sequence[Any] = (), live: Callable[[], Collection[int]] | None = None
    ) -> None:
        self._criteria = criteria
        self._live = live
        self.stopped: dict[int, tuple[Any, int]] = {}  # by row: the criterion, and at which length
        self.ended: set[int] = set()
        self.known: set[int] = set()  # the rows of which generate knows that they have ended
        self.asked = False
        self._length = 0  # of what was put
        self._drafts: Any = None  # ids beyond that, of which generate has asked last
        self._of_drafts: dict[int, Any] = {}  # by row: the criterion that stops these

    def put(self, value: Any) -> None:
        """Note what `generate` puts: the prompts, or a step. In its thread, before it asks again.

        Args:
            value: A tensor of shape (rows,), or (rows, ids).
        """
        ids = value if value.dim() > 1 else value[:, None]
        before, self._length = self._length, self._length + ids.shape[1]
        found, self._of_drafts = self._of_drafts, {}
        drafts, self._drafts = self._drafts, None
        for row, criterion in found.items():
            if drafts[row, before:].tolist() == ids[row].tolist():
                self.stopped.setdefault(row, (criterion, self._length))
                self.known.add(row)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return which rows end, as a tensor of shape (rows,)."""
        self.asked = True
        rows, length = input_ids.shape
        found: dict[int, Any] = {}
        for criterion in self._criteria:
            mask = torch.as_tensor(criterion(input_ids, scores, **kwargs)).expand(rows).tolist()
            for row, ends in enumerate(mask):
                if ends:
                    found.setdefault(row, criterion)
        if self._live is not None:
            self.ended.update(set(range(rows)).difference(self._live()))
        if length > self._length:
            self._drafts, self._of_drafts = input_ids.clone(), found
        else:
            self.stopped = {row: (it, length) for row, it in found.items()} | self.stopped
        self.known = self.ended | self.stopped.keys()
        ends = self.known | found.keys()
        return torch.tensor([row in ends for row in range(rows)], device=input_ids.device)


def taken_criteria(settings: Settings) -> tuple[list[Any], dict[str, Any]]:
    """Return the stopping criteria of a call of `generate`, and its arguments without them.

    Raises:
        ValueError: There are stop strings, and no tokenizer.
    """
    call = settings.without("stopping_criteria", "max_time", "stop_strings")
    criteria = list(settings.stopping_criteria or ())
    given = set(map(type, criteria))  # which take the place of the criteria below, as in generate
    if (seconds := settings.max_time) is not None and MaxTimeCriteria not in given:
        criteria.append(MaxTimeCriteria(seconds))
    if (stops := settings.stop_strings) is not None and StopStringCriteria not in given:
        if (tokenizer := call.get("tokenizer")) is None:
            raise ValueError(
                f"generate has stop_strings={stops!r} and no tokenizer: pass tokenizer= to it too"
            )
        criteria.append(StopStringCriteria(tokenizer, stops))
    return criteria, call


def listed(criteria: RowCriteria) -> StoppingCriteriaList:
    """Return the criteria as an argument of `generate`."""
    return StoppingCriteriaList([criteria])


class Marks:
    """Turns steps of ids into steps with the ends of slots.

    Args:
        rows: The criteria that `generate` asks.
        prompt: The length of the prompts.
        limits: How many tokens each slot may have; None for no limit.
        ends: The ids that end a sequence.

    Attributes:
        live: The slots that go on.
        over: The slots that have ended at an id, as `generate` knows.
    """

    def __init__(
        self,
        rows: RowCriteria,
        prompt: int,
        limits: Sequence[int | None],
        ends: frozenset[int],
    ) -> None:
        self._rows = rows
        self._length = prompt
        self._limits = limits
        self._ends = ends
        self._given = [0] * len(limits)
        self.live = set(range(len(limits)))
        self.over: set[int] = set()

    def keep(self, live: Collection[int] | None) -> None:
        """Go on with these slots alone; None says nothing of them."""
        if live is not None:
            self._end(self.live.difference(live))

    def _end(self, slots: set[int]) -> None:
        self.live -= slots
        self._rows.ended |= slots

    def elements(self, step: Any) -> list[Any] | dict[int, Any]:
        """Return what a step gives each live slot: a list if that is each of all.

        So the first step says how many slots there are.

        Args:
            step: A tensor of shape (rows,), or (rows, ids).
        """
        tokens = step.tolist() if step.dim() > 1 else [[token] for token in step.tolist()]
        self._length += len(tokens[0])
        found: dict[int, Any] = {}
        ended: set[int] = set()
        for slot in sorted(self.live):
            found[slot], ends = self._element(slot, tokens[slot])
            if ends:
                ended.add(slot)
        self._end(ended)
        return list(found.values()) if len(found) == len(self._limits) else found

    def stopped(self) -> dict[int, Any]:
        """Return the ends of slots that a criterion has ended behind the last step."""
        stopped = self._rows.stopped
        return {slot: _end(stopped[slot][0]) for slot in self.live if slot in stopped}

    def _element(self, slot: int, tokens: list[int]) -> tuple[Any, bool]:
        criterion, length = self._rows.stopped.get(slot, (None, 0))
        if criterion is not None and length < self._length:
            # generate asked its criteria behind the last step: what it has now is padding.
            return _end(criterion), True
        given: list[Any] = []
        limit = self._limits[slot]
        for token in tokens:
            if token in self._ends:
                self.over.add(slot)
                return _one([*given, EOS]), True
            self._given[slot] += 1
            if self._given[slot] == limit:
                return _one([*given, Last(token, FinishReason.LENGTH)]), True
            given.append(token)
        if criterion is not None:
            if not given:  # a step may have no token
                return _end(criterion), True
            given[-1] = stopped_by(criterion, given[-1])
        return _one(given), criterion is not None


def _end(criterion: Any) -> End:
    last = stopped_by(criterion, None)
    return End(last.reason, last.info)


def _one(given: list[Any]) -> Any:
    return given[0] if len(given) == 1 else Many(given)
