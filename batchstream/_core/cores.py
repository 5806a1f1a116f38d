"""Which core a batch gets: the native one where that was built, and else `Demultiplexer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._core.arguments import UNLIMITED, check_max_outputs
from batchstream._core.demultiplexer import Demultiplexer
from batchstream._core.errors import (
    StepError,
    begin_in_source,
    concurrent_error,
    consumer_error,
    requeue_error,
    uncalled_marker_error,
)
from batchstream._core.markers import EOS, SKIP, End, Fail, Last, Many, Requeue, Signal
from batchstream._core.records import Delivery, FinishReason, StreamEnd
from batchstream._core.rules import is_true
from batchstream._core.steps import read_step
from batchstream._native.selection import native

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batchstream._core.rules import EndRules

T = TypeVar("T")


def core_of(
    rules: EndRules[T],
    size: int,
    max_outputs: int | Sequence[int | None] | None = None,
    *,
    predicates: Sequence[Callable[[T], object] | None] | None = None,
    vacant: bool = False,
    requeues: bool = False,
) -> Demultiplexer[T]:
    """Make a core that follows rules which were checked before.

    Args:
        rules: The rules.
        size: How many slots the batch has.
        max_outputs: The limit of all slots, or of each.
        predicates: The `is_eos` of each slot, checked before, in place of the one for all.
        vacant: Whether no slot is live at first.
        requeues: Whether a step may give a slot back with `Requeue`.

    Raises:
        TypeError, ValueError: `max_outputs` is no limit, or has another size.
    """
    core: Demultiplexer[T] = Core.__new__(Core)
    start = core._start  # noqa: SLF001 - without __init__'s checks
    start(rules, size, max_outputs, predicates, vacant=vacant)
    if requeues:
        core._requeued = {}  # noqa: SLF001 - likewise
    return core


def requeued_in(core: Demultiplexer[Any]) -> dict[int, Requeue]:
    """Return what the last step of a core with `requeues` has given back; the caller clears it."""
    requeued = core._requeued  # noqa: SLF001 - likewise
    assert requeued is not None  # noqa: S101 - for the type checker
    return requeued


Core: Any = Demultiplexer

if native is not None and not TYPE_CHECKING:
    native.bind(
        FinishReason.EOS,
        FinishReason.LENGTH,
        FinishReason.ERROR,
        StreamEnd,
        Delivery,
        EOS,
        SKIP,
        Signal,
        Last,
        End,
        Fail,
        Many,
        Requeue,
        consumer_error,
        concurrent_error,
        read_step,
        is_true,
        uncalled_marker_error,
        requeue_error,
    )

    class NativeCore(native.Core):
        """A core that takes steps natively; the rest is that of `Demultiplexer`."""

        __slots__ = ("_error", "_initial_limits", "_rules")

        # On `_live_slots`, `given`, `_reopen` and `_finish`, as in the reference.
        __repr__ = Demultiplexer.__repr__
        _advance = Demultiplexer._advance  # noqa: SLF001 - this is its twin
        _end_slot = Demultiplexer._end_slot  # noqa: SLF001 - likewise
        cancel = Demultiplexer.cancel
        fail = Demultiplexer.fail
        finish = Demultiplexer.finish
        open = Demultiplexer.open
        running = Demultiplexer.running
        size = Demultiplexer.size
        statistics = Demultiplexer.statistics

        def _start(
            self,
            rules: EndRules[Any],
            size: int,
            max_outputs: int | Sequence[int | None] | None,
            predicates: Sequence[Callable[[Any], object] | None] | None = None,
            *,
            vacant: bool,
        ) -> None:
            limits = [UNLIMITED] * size
            if max_outputs is not None:
                limits = check_max_outputs(max_outputs, size)
            self._rules = rules
            self._initial_limits = limits
            self._error: BaseException | None = None
            super().__init__(
                limits,
                rules.eos,
                rules.is_eos,
                rules.ids,
                rules.matched,
                rules.include_eos,
                vacant,
            )
            if predicates is not None:
                self._predicates = list(predicates)

        def feed(self, step: object) -> Delivery[Any]:
            try:
                return self._feed(step)
            except StepError as error:
                begin_in_source(error)
                return self.fail(error)

        def _keep(self, slot: int) -> None:
            """Do nothing: `_end` takes a slot that was given back as it is."""

        def _finish(
            self,
            draft: Any,
            slot: int,
            reason: FinishReason,
            *,
            info: Mapping[str, Any] | None = None,
            error: BaseException | None = None,
        ) -> None:
            draft.ends.append((slot, self._end(slot, reason, info, error)))

    Core = NativeCore
