"""The core: a step goes in; out come the outputs of each slot and the slots that have finished.

It does no I/O, reads no clock, takes no lock and starts no thread.

Theory of operation
-------------------

A batch has `size` slots. A slot is *live* or *finished*; a finished slot may be opened again for
another occupant. A batch is *running*, has *ended* (the source has no more steps) or has *failed*
(the source raised, or yielded what is no step). The table below says which events are legal in
which state and where they lead; everything else raises.

A pump calls `feed` with each step, and hands out what the returned `Delivery` holds. When `live` is
empty it closes the source. An error of the source is not an error of the call: it ends each live
slot, and these ends stand in the delivery. Failing latches: a failed batch refuses every step and
every occupant.

Most steps are *plain*: one output for each live slot, and no marker among them. C code checks that
for a whole step at once, by the types of its elements; only a function as `is_eos` is asked about
each. Nor are outputs counted one by one: `_plain_steps` counts for all live slots, and
`_extra[slot]` is the difference between that and the slot's own count (once the slot has finished,
its whole count). Of every other step, the loop in `_feed_each` takes what is not plain.

A slot that a step gives back with `Requeue` is neither live nor finished: it waits in `_requeued`
for what drives the engine, which lets its occupant go on later, by `open` and `_go_on`.

Not safe for threads: a pump makes one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal

from typing_extensions import TypeVar

from batchstream._core.arguments import (
    UNLIMITED,
    check_count,
    check_is_eos,
    check_limit,
    check_max_outputs,
)
from batchstream._core.errors import (
    StepError,
    batch_over_error,
    begin_in_source,
    missing_eos_error,
    no_slot_error,
    requeue_error,
    uncalled_marker_error,
)
from batchstream._core.markers import (
    EOS,
    MARKER_TYPES,
    SKIP,
    End,
    Fail,
    Last,
    Many,
    Requeue,
    has_none,
)
from batchstream._core.per_request import per_request
from batchstream._core.records import Delivery, FinishReason, Statistics, StreamEnd
from batchstream._core.rules import EndRules, is_true
from batchstream._core.steps import Elements, are_numbers, picker, read_step

T = TypeVar("T")

_INTEGERS: Final = {int}

BatchState = Literal["running", "ended", "failed"]

BATCH_TRANSITIONS: Final[dict[tuple[BatchState, str], BatchState]] = {
    ("running", "open"): "running",
    ("running", "feed"): "running",
    ("running", "finish"): "ended",
    ("running", "fail"): "failed",
}


class Demultiplexer(Generic[T]):
    """Decides, step by step, which output goes to which slot and which slots have finished.

    Every stream of this library stands on this core. It is public for programs that drive their
    model themselves: it waits for nothing, and the only function that it calls is `is_eos`.

    Args:
        size: How many slots the batch has.
        eos: The end mark, compared by identity. Where None is an ordinary output pass `EOS`.
        is_eos: A predicate on outputs, true of the output that ends its sequence. It may return
            an `End`, with a reason and an info. If it raises, that slot alone fails.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: Finish a slot with `length` once it has been given so many outputs: one
            number for all slots, or a number or None for each. If the same output is also an eos,
            the reason is `eos`.
        require_eos: A source that ends while slots are live fails them with `MissingEOSError`
            instead of finishing them as `exhausted`.
        vacant: No slot is live at first; `open` gives each its occupant, as after an end.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or an `eos` that could never be
            recognised by identity, such as a number.

    Threads: any thread, one call at a time.

    Example:
        >>> from batchstream import Demultiplexer, Last
        >>> core = Demultiplexer(2)
        >>> core.feed(["a", "x"]).outputs
        [(0, 'a'), (1, 'x')]
        >>> delivery = core.feed([None, "y"])
        >>> delivery.outputs, [(slot, str(end.reason)) for slot, end in delivery.ends]
        ([(1, 'y')], [(0, 'eos')])
        >>> core.live
        (1,)
        >>> core.feed({1: Last("z")}).outputs, core.live
        ([(1, 'z')], ())
    """

    def __init__(
        self,
        size: int,
        *,
        eos: object = None,
        is_eos: Callable[[T], object] | None = None,
        include_eos: bool = False,
        max_outputs: int | Sequence[int | None] | None = None,
        require_eos: bool = False,
        vacant: bool = False,
    ) -> None:
        self._start(
            EndRules(
                eos=eos,
                is_eos=is_eos,
                include_eos=include_eos,
                require_eos=require_eos,
                opens_slots=True,
            ),
            check_count("size", size, at_least=0),
            max_outputs,
            vacant=vacant,
        )

    def _start(
        self,
        rules: EndRules[T],
        size: int,
        max_outputs: int | Sequence[int | None] | None,
        predicates: Sequence[Callable[[T], object] | None] | None = None,
        *,
        vacant: bool,
    ) -> None:
        self._rules = rules
        self._size = size
        self._initial_limits = [UNLIMITED] * size
        if max_outputs is not None:
            self._initial_limits = check_max_outputs(max_outputs, size)
        self._limits = self._initial_limits.copy()
        # The `is_eos` of each slot; None as long as all have that of the rules.
        self._predicates = None if predicates is None else list(predicates)

        self._state: BatchState = "running"
        self._error: BaseException | None = None
        self._live_slots = set(() if vacant else range(size))
        # By slot, what the last step has given back; None where it may give nothing back.
        self._requeued: dict[int, Requeue] | None = None

        self._steps = 0
        self._plain_steps = 0
        self._extra = [0] * size
        self._outputs = 0
        self._dropped = 0
        self._finished = dict.fromkeys(FinishReason, 0)

        # What plain steps rest on, until a slot opens or finishes; `_refresh` works it out anew.
        self._live: tuple[int, ...] | None = None
        self._live_by_slot: Callable[[Any], tuple[T, ...]]
        self._live_in_order: Callable[[Any], tuple[T, ...]]
        self._finished_in_order: Callable[[Any], tuple[object, ...]] | None
        # How many plain steps there can be before a slot reaches its limit; `_refresh` works it
        # out, unless no slot has a limit. None at all where slots have predicates of their own.
        self._plain_limit = UNLIMITED if max_outputs is None and predicates is None else 0
        self._asked: _Asked[T] | None = None  # between `feed_plain` and `feed_other`
        self._array_type: type | None = None  # that of the last step which was an array

    def __repr__(self) -> str:
        live = f"{len(self._live_slots)} of {self._size} slots live"
        return f"<Demultiplexer {self._state}, {live}, {self._steps} steps>"

    @property
    def size(self) -> int:
        """How many slots the batch has."""
        return self._size

    @property
    def live(self) -> tuple[int, ...]:
        """The slots that have not finished; the same object for as long as nothing changes."""
        return self._refresh() if self._live is None else self._live

    @property
    def running(self) -> bool:
        """Whether the batch can be fed: it has neither ended nor failed."""
        return self._state == "running"

    @property
    def has_live(self) -> bool:
        """Whether any slot is live; quicker than `live` after a change."""
        return bool(self._live_slots)

    @property
    def outputs(self) -> int:
        """How many outputs all slots together have been given; never less than before."""
        return self._outputs  # one number: other threads read it amid a step, for metrics

    def given(self, slot: int) -> int:
        """How many outputs the slot's present or last occupant has been given."""
        counted = self._plain_steps if slot in self._live_slots else 0
        return counted + self._extra[slot]

    def feed(self, step: object) -> Delivery[T]:
        """Take one step of the source, and return its outputs and ends by slot.

        A step that cannot be read, of the wrong width for example, fails the batch and each live
        slot with a `StepError`: none of its outputs is delivered.

        Args:
            step: A sequence of `size` elements; a mapping from slot to element (a slot that is
                absent gets nothing); a 1-D array or tensor; an array of more dimensions, one
                sub-array for each slot. Outputs for a finished slot are dropped and counted.

        Raises:
            ClosedError: The batch has ended or failed.
        """
        values = self.feed_plain(step)
        return self.feed_other(step) if values is None else Delivery(self.live, values)

    def feed_other(self, step: object) -> Delivery[T]:
        """Take a step that `feed_plain` has just refused; see `feed`."""
        asked, self._asked = self._asked, None
        self._advance("feed")
        try:
            elements = read_step(step, self._size, self._steps)
        except StepError as error:
            self._steps += 1
            begin_in_source(error)
            return self.fail(error)
        if asked is None and elements is not step:  # an array, say, which has become a list
            if (values := self.feed_plain(elements)) is not None:
                if hasattr(step, "tolist"):
                    self._array_type = type(step)
                return Delivery(self.live, values)
            asked, self._asked = self._asked, None
        self._steps += 1
        if asked is not None:
            return self._feed_asked(elements, asked)
        return self._feed_each(elements, self.live)

    def feed_plain(  # noqa: C901, PLR0911, PLR0912 - one frame per step, for its speed
        self, step: object
    ) -> tuple[T, ...] | None:
        """Take a step quickly if it has one output for each live slot, and no more.

        A list, tuple or dict, or an array of the type that a step before had.

        Returns:
            The outputs in the order of `live`, which has not changed; or None, with nothing taken,
            where the step is anything else: then `feed_other` takes it.
        """
        self._asked = None  # the rest of a step that was broken off
        if self._live is None:
            self._refresh()
        if self._state != "running" or self._plain_steps >= self._plain_limit:
            return None
        elements: Any = step
        kind = type(step)
        try:
            if kind is self._array_type:
                elements = elements.tolist() if elements.ndim == 1 else None
                kind = type(elements)
                if kind is list and has_none(elements):  # perhaps a missing value
                    return None
        except Exception:  # noqa: BLE001 - `feed_other` will say what is wrong with it
            return None
        by_slot = kind is dict
        try:
            if by_slot:
                # With as many slots as are live, and all that are live among them, it is plain.
                if len(elements) != len(self._live_slots) or not are_numbers(elements):
                    return None
                values = self._live_by_slot(elements)
            elif (kind is list or kind is tuple) and len(elements) == self._size:
                values = self._live_in_order(elements)
            else:
                return None
        except KeyError:  # a live slot is absent
            return None
        rules = self._rules
        try:
            if rules.ids is None:
                plain = rules.marks.types.isdisjoint(map(type, values))
            else:  # built-in integers are no markers, and to compare them runs no code of theirs
                plain = set(map(type, values)) == _INTEGERS and rules.ids.isdisjoint(values)
        except Exception:  # noqa: BLE001 - a type refuses to be hashed
            return None
        if not plain:
            return None
        if rules.is_eos is not None and rules.ids is None:
            asked = self._ask(rules.is_eos, values)
            if asked is not None:
                self._asked = asked
                return None
        if self._finished_in_order is not None and not by_slot:
            self._drop(self._finished_in_order(elements))
        self._steps += 1
        self._plain_steps += 1
        self._outputs += len(values)
        return values

    def finish(self) -> Delivery[T]:
        """End the batch as the source has ended, and return the ends of the slots still live.

        Warns:
            RuntimeWarning: `is_eos` was true of no output, and no stream has ended otherwise.

        Raises:
            ClosedError: The batch has ended or failed before.
        """
        own, common = self._predicates, self._rules.is_eos
        if (own is not None or common is not None) and self.running and self.has_live:
            asked = [common] if own is None else [own[slot] for slot in self.live]
            # First: a filter that makes an error of the warning finds the batch unchanged.
            self._rules.warn_if_unmatched(self.statistics(), asked)
        self._advance("finish")
        draft: _Draft[T] = _Draft()
        for slot in self.live:
            if self._rules.require_eos:
                given = self.given(slot)
                error = missing_eos_error(slot, given)
                self._finish(draft, slot, FinishReason.ERROR, error=error)
            else:
                self._finish(draft, slot, FinishReason.EXHAUSTED)
        return draft.delivery()

    def fail(self, error: BaseException) -> Delivery[T]:
        """Fail the batch as the source has failed, and return the ends of the slots still live.

        Raises:
            ClosedError: The batch has ended or failed before.
        """
        self._advance("fail")
        self._error = error
        draft: _Draft[T] = _Draft()
        for slot in self.live:
            self._finish(draft, slot, FinishReason.ERROR, error=error)
        return draft.delivery()

    def cancel(self, slot: int) -> Delivery[T]:
        """Cancel a slot and return its end, or an empty delivery if it had finished already.

        Raises:
            IndexError: There is no such slot.
        """
        if not 0 <= slot < self._size:
            raise no_slot_error(slot, self._size)
        draft: _Draft[T] = _Draft()
        if slot in self._live_slots:
            self._finish(draft, slot, FinishReason.CANCELLED)
        return draft.delivery()

    def _end_slot(
        self,
        slot: int,
        reason: FinishReason,
        *,
        info: Mapping[str, Any] | None = None,
        error: BaseException | None = None,
    ) -> StreamEnd:
        """End a slot by what was made of its outputs, a stop string for example.

        It is live, or the step with these outputs has given it back.
        """
        if self._requeued and self._requeued.pop(slot, None) is not None:
            self._keep(slot)
        draft: _Draft[T] = _Draft()
        self._finish(draft, slot, reason, info=info, error=error)
        return draft.ends[0][1]

    def _keep(self, slot: int) -> None:
        """Make a slot live again that the last step has given back."""
        self._live_slots.add(slot)
        self._extra[slot] -= self._plain_steps

    def open(
        self,
        slot: int,
        *,
        max_outputs: int | None = None,
        is_eos: Callable[[T], object] | None = None,
    ) -> None:
        """Make a finished slot live again, for an occupant whose outputs count from zero.

        Args:
            slot: Which one.
            max_outputs: The limit of this occupant; without it, the one the batch was made with.
            is_eos: The predicate on the outputs of this occupant; without it, the one the batch was
                made with.

        Raises:
            TypeError, ValueError: The limit is none, or the predicate is no function.
            IndexError: There is no such slot.
            ValueError: The slot is live.
            ClosedError: The batch has ended or failed.
        """
        if not 0 <= slot < self._size:
            raise no_slot_error(slot, self._size)
        limit = self._initial_limits[slot]
        if max_outputs is not None:
            limit = check_limit(max_outputs) or limit
        if isinstance(is_eos, per_request):
            raise TypeError(
                f"open takes the is_eos of one occupant, got {is_eos!r}: pass what its function "
                f"returns for this one"
            )
        if is_eos is not None:
            check_is_eos(is_eos)
        if (self._state, "open") not in BATCH_TRANSITIONS:
            self._advance("open")  # raises
        if slot in self._live_slots:
            raise ValueError(f"slot {slot} is live, only a finished slot can be opened")
        if is_eos is not None or self._predicates is not None:
            if self._predicates is None:
                self._predicates = [self._rules.is_eos] * self.size
            self._predicates[slot] = self._rules.is_eos if is_eos is None else is_eos
        self._reopen(slot, limit)

    def _reopen(self, slot: int, limit: int) -> None:
        if self._limits[slot] != limit or self._predicates is not None:
            self._limits[slot] = limit
            self._plain_limit = 0  # until `_refresh`, which comes before the next step
        self._extra[slot] = -self._plain_steps
        self._live_slots.add(slot)
        self._live = None

    def _go_on(self, slot: int, given: int) -> None:
        """Let the outputs of a slot that was just opened count from what it was given before."""
        self._extra[slot] += given

    def statistics(self) -> Statistics:
        """Return the figures up to now; `buffered` is 0, as the core keeps no output."""
        return Statistics(
            steps=self._steps,
            outputs=self.outputs,
            dropped=self._dropped,
            opened=len(self._live_slots) + sum(self._finished.values()),
            live=len(self._live_slots),
            finished={reason: count for reason, count in self._finished.items() if count},
        )

    # ---- states

    def _advance(self, event: str) -> None:
        try:
            self._state = BATCH_TRANSITIONS[self._state, event]
        except KeyError:
            raise batch_over_error(event, self._state, self._error) from self._error

    def _refresh(self) -> tuple[int, ...]:
        """Work out, after a change of the live slots, what the plain steps to come rest on."""
        live = tuple(sorted(self._live_slots))
        finished = tuple(set(range(self._size)).difference(live))
        self._live_by_slot = picker(live)
        self._live_in_order = self._live_by_slot if finished else tuple
        self._finished_in_order = picker(finished) if finished else None
        if self._plain_limit != UNLIMITED:
            self._set_plain_limit(live)
        self._live = live
        return live

    def _set_plain_limit(self, live: Sequence[int]) -> None:
        if self._predicates is not None:
            return  # it stays 0: every output is taken by itself
        # A slot reaches its limit in the step that ends it, and that step is not plain.
        room = (self._limits[slot] - self._extra[slot] for slot in live)
        self._plain_limit = min(room, default=UNLIMITED) - 1

    # ---- steps that are not plain

    @staticmethod
    def _ask(is_eos: Callable[[T], object], outputs: tuple[T, ...]) -> _Asked[T] | None:
        """Ask `is_eos` of each output, up to the first that it recognises or raises of."""
        position = 0
        try:
            for position, output in enumerate(outputs):
                answer = is_eos(output)
                if answer is not False and is_true(answer):
                    end = answer if type(answer) is End else None
                    return _Asked(outputs, position, end=end)
        except Exception as error:  # noqa: BLE001 - the predicate is the caller's
            return _Asked(outputs, position, error=error)
        return None

    def _feed_asked(self, elements: Elements, asked: _Asked[T]) -> Delivery[T]:
        """Take a step that has an output for each live slot; `is_eos` was asked of the first."""
        draft: _Draft[T] = _Draft()
        if self._finished_in_order is not None and type(elements) is not dict:
            self._drop(self._finished_in_order(elements))
        live, outputs, ending = self.live, asked.outputs, asked.ending
        draft.slots.extend(live[:ending])
        draft.values.extend(outputs[:ending])
        self._plain_steps += 1  # an output for each live slot but the slots taken one by one
        for slot in live[ending:]:
            self._extra[slot] -= 1
        self._outputs += ending
        self._end_by_output(draft, live[ending], outputs[ending], asked)
        for slot, output in zip(live[ending + 1 :], outputs[ending + 1 :], strict=True):
            self._take_output(draft, slot, output)
        return draft.delivery()

    def _drop(self, elements: tuple[object, ...]) -> None:
        """Count the outputs among elements for finished slots."""
        self._dropped += self._rules.marks.outputs_in(elements)

    def _feed_each(self, elements: Elements, live: tuple[int, ...]) -> Delivery[T]:
        """Take a step that is not plain, element by element."""
        draft: _Draft[T] = _Draft()
        slots, values = draft.slots, draft.values
        if type(elements) is dict:
            pairs = self._only_live(elements)
            slots.extend(slot for slot in live if slot in pairs)  # in order, as in a sequence
            values.extend(map(pairs.__getitem__, slots))
        else:
            slots.extend(live)
            values.extend(self._live_in_order(elements))
            if self._finished_in_order is not None:
                self._drop(self._finished_in_order(elements))
        if self._rules.is_eos is None and self._plain_steps < self._plain_limit:
            special = self._rules.marks.suspects_in(values)
        else:
            special = list(range(len(values)))
        taken = [(slots[n], values[n]) for n in special]
        for n in reversed(special):
            del slots[n], values[n]
        if len(slots) + len(taken) == len(live):
            self._plain_steps += 1  # likewise
            for slot, _ in taken:
                self._extra[slot] -= 1
        else:  # a mapping that leaves slots out
            for slot in slots:
                self._extra[slot] += 1
        self._outputs += len(slots)
        for slot, element in taken:
            self._take(draft, slot, element)
        if self._plain_limit != UNLIMITED:
            self._set_plain_limit(self.live)
        return draft.delivery()

    def _only_live(self, elements: dict[int, T]) -> dict[int, T]:
        late = elements.keys() - self._live_slots
        if not late:
            return elements
        self._drop(tuple([elements[slot] for slot in late]))
        return {slot: element for slot, element in elements.items() if slot not in late}

    def _take(self, draft: _Draft[T], slot: int, element: Any) -> None:  # noqa: C901 - a branch each
        kind = type(element)
        if slot not in self._live_slots:  # it finished within this `Many`
            self._drop((element,))
        elif element is self._rules.eos or element is EOS:
            self._finish(draft, slot, FinishReason.EOS)
        elif element is SKIP:
            pass
        elif kind is Last:
            self._give(draft, slot, element.output)
            self._finish(draft, slot, element.reason, info=element.info)
        elif kind is End:
            self._finish(draft, slot, element.reason, info=element.info)
        elif kind is Fail:
            self._finish(draft, slot, FinishReason.ERROR, error=element.error)
        elif kind is Many:
            for each in element.outputs:
                self._take(draft, slot, each)
        elif kind is Requeue:
            self._give_back(draft, slot, element)
        elif kind is type and element in MARKER_TYPES:
            error = uncalled_marker_error(element, slot, self._steps - 1)
            self._finish(draft, slot, FinishReason.ERROR, error=error)
        else:
            self._take_output(draft, slot, element)

    def _give_back(self, draft: _Draft[T], slot: int, marker: Requeue) -> None:
        if self._requeued is None:
            error = requeue_error(slot, self._steps - 1)
            self._finish(draft, slot, FinishReason.ERROR, error=error)
            return
        self._extra[slot] = self.given(slot)
        self._requeued[slot] = marker
        self._live = None  # in this order, as in `_finish`
        self._live_slots.remove(slot)

    def _take_output(self, draft: _Draft[T], slot: int, output: T) -> None:
        is_eos = self._rules.is_eos if self._predicates is None else self._predicates[slot]
        if is_eos is not None:
            asked = self._ask(is_eos, (output,))
            if asked is not None:
                self._end_by_output(draft, slot, output, asked)
                return
        self._give(draft, slot, output)
        if self._limits[slot] != UNLIMITED and self.given(slot) >= self._limits[slot]:
            self._finish(draft, slot, FinishReason.LENGTH)

    def _end_by_output(self, draft: _Draft[T], slot: int, output: T, asked: _Asked[T]) -> None:
        """End a slot by an output that `is_eos` has recognised, or has raised an error of."""
        if asked.error is not None:
            self._finish(draft, slot, FinishReason.ERROR, error=asked.error)
            return
        self._rules.matched.add(None)
        if self._rules.include_eos:
            self._give(draft, slot, output)
        if asked.end is None:
            self._finish(draft, slot, FinishReason.EOS)
        else:
            self._finish(draft, slot, FinishReason(asked.end.reason), info=asked.end.info)

    def _give(self, draft: _Draft[T], slot: int, output: T) -> None:
        draft.slots.append(slot)
        draft.values.append(output)
        self._extra[slot] += 1
        self._outputs += 1

    def _finish(
        self,
        draft: _Draft[T],
        slot: int,
        reason: FinishReason,
        *,
        info: Mapping[str, Any] | None = None,
        error: BaseException | None = None,
    ) -> None:
        given = self._extra[slot] = self.given(slot)
        # In this order: an interrupt may strike behind `remove`, and `fail` then reads `live`.
        self._live = None
        self._live_slots.remove(slot)
        self._finished[reason] += 1
        draft.ends.append((slot, StreamEnd(reason, given, info, error)))


@dataclass(frozen=True, slots=True)
class _Asked(Generic[T]):
    """What `is_eos` said of a step's outputs: of which it is true, or raised, first.

    Attributes:
        outputs: The outputs of the live slots, in order.
        ending: The position of that output. `is_eos` was not asked about the outputs behind it.
        end: What it returned, if that says how the slot ends.
        error: What it raised.
    """

    outputs: tuple[T, ...]
    ending: int
    end: End | None = None
    error: Exception | None = None


class _Draft(Generic[T]):
    """A delivery in the making."""

    __slots__ = ("ends", "slots", "values")

    def __init__(self) -> None:
        self.slots: list[int] = []
        self.values: list[T] = []
        self.ends: list[tuple[int, StreamEnd]] = []

    def delivery(self) -> Delivery[T]:
        return Delivery(self.slots, self.values, self.ends)
