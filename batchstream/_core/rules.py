"""The rules by which slots end: the same arguments for every form of batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic

from typing_extensions import TypeVar

from batchstream._core.arguments import check_eos, check_is_eos
from batchstream._core.errors import type_name, warn_user
from batchstream._core.per_request import per_request
from batchstream._core.records import FinishReason, Statistics
from batchstream._core.steps import Marks
from batchstream._core.token_ids import TokenIds

T = TypeVar("T", default=Any)


class EndRules(Generic[T]):
    """The rules by which slots end, checked once for all batches that follow them.

    Args:
        eos: The end mark, compared by identity.
        is_eos: A predicate on outputs that is true of the one that ends its sequence; or where
            there are requests, `per_request(...)`.
        include_eos: Whether the output that `is_eos` recognised is delivered.
        require_eos: Whether a slot that is live when the source ends fails.
        has_requests: Whether there are requests, for which `per_request` can be asked.
        opens_slots: Whether a slot may be opened with a predicate of its own.

    Attributes:
        is_eos: The predicate for all slots; None if there is none, or each request has its own.
        per_request: What gives each request its own.
        ids: The token ids to look for, where that is all that `is_eos` does.
        marks: What is no output in a step.
        matched: Not empty once `is_eos` was true of an output, or the warning was given that it
            never is.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or could never recognise an end.
    """

    __slots__ = (
        "eos",
        "ids",
        "include_eos",
        "is_eos",
        "marks",
        "matched",
        "per_request",
        "require_eos",
    )

    def __init__(
        self,
        *,
        eos: object = None,
        is_eos: Callable[[T], object] | per_request[Any, T] | None = None,
        include_eos: bool = False,
        require_eos: bool = False,
        has_requests: bool = False,
        opens_slots: bool = False,
    ) -> None:
        if isinstance(eos, per_request):
            raise TypeError(
                f"eos takes the object that marks an end, got {eos!r}: pass it as is_eos"
            )
        self.per_request: per_request[Any, T] | None = None
        if isinstance(is_eos, per_request):
            if not has_requests:
                raise TypeError(
                    f"is_eos={is_eos!r} is for batchers and loops, and here are no requests: pass "
                    f"one predicate for all slots; or let the source mark each end itself, with "
                    f"Last(output) or EOS; or drive a Demultiplexer, and open each slot with its "
                    f"own: open(slot, is_eos=...)"
                )
            self.per_request = is_eos
            is_eos = None
        elif include_eos and is_eos is None and not opens_slots:
            raise ValueError(
                "include_eos delivers the output that is_eos recognised, and there is no is_eos: "
                "pass is_eos, or leave include_eos out"
            )
        check_eos(eos, is_eos)
        self.eos = eos
        self.is_eos = is_eos
        self.include_eos = include_eos
        self.require_eos = require_eos
        # With a key the ids are not the outputs: then it is a function like others.
        self.ids = is_eos.ids if type(is_eos) is TokenIds and is_eos.key is None else None
        self.marks = Marks(eos)
        self.matched: set[None] = set()  # a set, because adding is atomic, and can be repeated

    def is_eos_of(self, request: Any) -> Callable[[T], object] | None:
        """Return a request's own predicate, None if it has none.

        Raises:
            TypeError: The function of `per_request` returned something else.
            Exception: What that function raises.
        """
        if self.per_request is None:
            return None
        is_eos = self.per_request.function(request)
        check_is_eos(is_eos, returned_by=self.per_request)
        return is_eos

    def warn_if_unmatched(
        self, statistics: Statistics, asked: Iterable[Callable[[T], object] | None]
    ) -> None:
        """Warn once if the source of a batch ends, and `is_eos` has done nothing for it.

        Args:
            statistics: The statistics of the batch, before its live streams end as `exhausted`.
            asked: The predicates of its live slots.
        """
        if self.matched or self.require_eos or not statistics.outputs:
            return
        looking = [each for each in asked if each is not None and not _finds_nothing(each)]
        if not looking:
            return
        is_eos = self.per_request or looking[0]
        if statistics.finished.keys() - {FinishReason.CANCELLED, FinishReason.EXHAUSTED}:
            return
        self.matched.add(None)
        warn_user(
            f"is_eos was true of none of the {statistics.outputs} outputs of a batch, and its "
            f"{statistics.live} live streams ended as 'exhausted' with the source, got "
            f"is_eos={is_eos!r}: let it look for what the steps hold, such as token_ids(2, key=0) "
            f"for pairs (token, logprob); if the streams end by a limit, pass max_outputs; if the "
            f"source knows their ends, let it yield EOS, or End('exhausted'), and leave out is_eos"
        )


def _finds_nothing(is_eos: object) -> bool:
    return type(is_eos) is TokenIds and not is_eos.ids  # the model has none


def is_true(answer: object) -> bool:
    """Return whether what `is_eos` has returned is true.

    Raises:
        TypeError: It is neither true nor false; or it is true of every output, being a function, a
            coroutine, a generator or a future.
    """
    if answer is True or answer is None:
        return answer is True
    try:
        true = bool(answer)
    except Exception as error:
        got = f"an object of type {type_name(answer)}, which is neither true nor false"
        raise _wrong_answer(got) from error
    if true and (callable(answer) or any(hasattr(answer, name) for name in _OF_WHAT_IS_TO_BE_RUN)):
        if inspect.iscoroutine(answer):
            answer.close()  # else Python warns that it was never awaited
        raise _wrong_answer(f"an object of type {type_name(answer)}, which is true of every output")
    return true


_OF_WHAT_IS_TO_BE_RUN: Final = ("__await__", "__next__", "__anext__", "add_done_callback")
"""Attributes of coroutines, generators and futures, which hold an answer at most later."""


def _wrong_answer(got: str) -> TypeError:
    return TypeError(
        f"is_eos returned {got}: let it return True or False, or an End, and for an array one "
        f"bool, such as (output == 2).all()"
    )
