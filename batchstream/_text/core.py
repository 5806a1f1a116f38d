"""A core whose slots have decoders: steps of tokens go in, and text comes out.

It has the methods of a `Demultiplexer` and stands on one, which sees the tokens: what ends a slot,
and how many outputs it has had, is decided by them. A decoder that has found a stop string ends its
slot in the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from batchstream._core.errors import SourceError
from batchstream._core.markers import End, Fail, Last, Many
from batchstream._core.records import Delivery, FinishReason, StreamEnd

if TYPE_CHECKING:
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.markers import Requeue
    from batchstream._core.records import Statistics
    from batchstream._text.decoder import Decoder

_COMPLETE: Final = (FinishReason.EOS, FinishReason.LENGTH, FinishReason.EXHAUSTED)
"""The sequence is as the model meant it, or as far as it got: what is held back belongs to it."""


def decoding(
    core: Demultiplexer[Any], decoders: Sequence[Decoder[Any, Any] | None] = ()
) -> Demultiplexer[Any]:
    """Return a core that passes what another one gives each slot through the slot's decoder.

    Args:
        core: Reads the steps.
        decoders: One for each slot; None for a slot whose outputs stay as they are.
    """
    made: Any = DecodingCore(core, decoders)
    return made  # type: ignore[no-any-return] # it has the methods, and not the class


class DecodingCore:
    """Decides what each slot is given of a step, after its decoder.

    Args:
        core: Reads the steps.
        decoders: One for each slot; None for a slot whose outputs stay as they are.
    """

    def __init__(
        self, core: Demultiplexer[Any], decoders: Sequence[Decoder[Any, Any] | None] = ()
    ) -> None:
        self._core = core
        self._decoders = list(decoders) or [None] * core.size

    def __repr__(self) -> str:
        return f"<DecodingCore of {self._core!r}>"

    # ---- as the core below says

    @property
    def size(self) -> int:
        """How many slots the batch has."""
        return self._core.size

    @property
    def live(self) -> tuple[int, ...]:
        """The slots that have not finished."""
        return self._core.live

    @property
    def running(self) -> bool:
        """Whether the batch can be fed."""
        return self._core.running

    @property
    def failure(self) -> BaseException | None:
        """What the batch has failed with, if it has."""
        return self._core._error  # noqa: SLF001 - made for this

    @property
    def has_live(self) -> bool:
        """Whether any slot is live."""
        return self._core.has_live

    @property
    def outputs(self) -> int:
        """How many outputs the source has given all slots: tokens, too."""
        return self._core.outputs

    @property
    def _requeued(self) -> dict[int, Requeue] | None:
        return self._core._requeued  # noqa: SLF001 - made for this

    def _go_on(self, slot: int, given: int) -> None:
        self._core._go_on(slot, given)  # noqa: SLF001 - likewise

    def given(self, slot: int) -> int:
        """How many outputs the source has given the slot: tokens, and not pieces of text."""
        return self._core.given(slot)

    def statistics(self) -> Statistics:
        """Return the figures up to now, in tokens as well."""
        return self._core.statistics()

    def cancel(self, slot: int) -> Delivery[Any]:
        """Cancel a slot, and return its end. What its decoder holds back is dropped."""
        delivery = self._core.cancel(slot)
        self._decoders[slot] = None
        return delivery

    def fail(self, error: BaseException) -> Delivery[Any]:
        """Fail the batch, and return the ends of the slots still live."""
        return self._core.fail(error)

    # ---- with the decoders

    def open(
        self,
        slot: int,
        *,
        max_outputs: int | None = None,
        is_eos: Callable[[Any], object] | None = None,
        decoder: Decoder[Any, Any] | None = None,
    ) -> None:
        """Make a finished slot live again, for an occupant with this decoder."""
        self._core.open(slot, max_outputs=max_outputs, is_eos=is_eos)
        self._decoders[slot] = decoder

    def feed_plain(self, step: object) -> None:
        """Take nothing: no step is handed on as it is."""

    def feed_other(self, step: object) -> Delivery[Any]:
        """Take a step; see `feed`."""
        return self.feed(step)

    def feed(self, step: object) -> Delivery[Any]:
        """Take one step of the source, and return what the decoders make of it."""
        return self._decode(self._core.feed(step))

    def finish(self) -> Delivery[Any]:
        """End the batch as the source has ended, and return what was held back, and the ends."""
        return self._decode(self._core.finish())

    def _decode(self, delivery: Delivery[Any]) -> Delivery[Any]:
        draft = _Draft()
        slots, values, decoders = draft.slots, draft.values, self._decoders
        for slot, outputs in _by_slot(delivery):
            decoder = decoders[slot]
            if decoder is None:
                slots.extend([slot] * len(outputs))
                values.extend(outputs)
                continue
            try:
                piece = decoder.feed(*outputs)
                if decoder.matched is not None:
                    draft.ended[slot] = None
            except Exception as error:  # noqa: BLE001 - fails this slot alone
                draft.ended[slot] = _error_of(decoder, error)
                continue
            if type(piece) is str:  # most are
                if piece:
                    slots.append(slot)
                    values.append(piece)
            elif piece is not None:
                slots.append(slot)
                values.append(piece)
        if delivery.ends or draft.ended:
            self._end_slots(draft, dict(delivery.ends))
        return Delivery(slots, values, draft.ends)

    def _end_slots(self, draft: _Draft, ends: dict[int, StreamEnd]) -> None:
        """End the slots that the source has ended, and the slots that their decoders have."""
        for slot, end in ends.items():
            decoder = self._decoders[slot]
            if decoder is None or slot in draft.ended or end.reason not in _COMPLETE:
                continue
            try:
                draft.add(slot, decoder.finish())
                if decoder.matched is not None:
                    draft.ended[slot] = None
            except Exception as error:  # noqa: BLE001 - likewise
                draft.ended[slot] = _error_of(decoder, error)
        for slot, failure in draft.ended.items():
            if slot not in ends:  # it is live, or was given back
                reason = FinishReason.EOS if failure is None else FinishReason.ERROR
                ends[slot] = self._core._end_slot(slot, reason)  # noqa: SLF001 - made for this
        for slot, end in ends.items():
            draft.ends.append((slot, self._end_of(slot, end, draft.ended)))
            self._decoders[slot] = None

    def _end_of(self, slot: int, end: StreamEnd, ended: dict[int, Exception | None]) -> StreamEnd:
        """Return the end of a slot that has ended, with what its decoder says of it."""
        decoder = self._decoders[slot]
        if decoder is None:
            return end
        reason, error = end.reason, end.error
        if slot in ended:
            error = ended[slot]
            reason = FinishReason.EOS if error is None else FinishReason.ERROR
        if error is not None:
            return StreamEnd(reason, end.outputs, end.info, error)
        try:
            # What the source says comes last: it may know better.
            return StreamEnd(reason, end.outputs, {**decoder.info, **(end.info or {})})
        except Exception as raised:  # noqa: BLE001 - likewise
            error = _error_of(decoder, raised)
            return StreamEnd(FinishReason.ERROR, end.outputs, end.info, error)


class _Draft:
    """A delivery in the making.

    Attributes:
        slots: The slots of the values.
        values: What the decoders have returned.
        ends: The slots that finished.
        ended: The slots that their decoders end, with an error, or None for a stop string.
    """

    __slots__ = ("ended", "ends", "slots", "values")

    def __init__(self) -> None:
        self.slots: list[int] = []
        self.values: list[Any] = []
        self.ends: list[tuple[int, StreamEnd]] = []
        self.ended: dict[int, Exception | None] = {}

    def add(self, slot: int, piece: Any) -> None:
        """Add the last piece of a slot; to the text that it has in this step, if there is any."""
        if piece is None or (type(piece) is str and not piece):
            return
        if type(piece) is str and slot in self.slots:
            position = self.slots.index(slot)
            if type(self.values[position]) is str:
                self.values[position] += piece
                return
        self.slots.append(slot)
        self.values.append(piece)


def _by_slot(delivery: Delivery[Any]) -> Iterable[tuple[int, tuple[Any, ...]]]:
    """Return the outputs of each slot; most have one."""
    slots = delivery.slots
    if len(set(slots)) == len(slots):
        return zip(slots, zip(delivery.values, strict=True), strict=True)
    outputs: dict[int, tuple[Any, ...]] = {}
    for slot, output in zip(slots, delivery.values, strict=True):
        outputs[slot] = (*outputs.get(slot, ()), output)
    return outputs.items()


def _error_of(decoder: Decoder[Any, Any], raised: Exception) -> Exception:
    """Return the error of a stream whose decoder has raised."""
    if not isinstance(raised, StopIteration | StopAsyncIteration):
        return raised
    # A consumer would take it for the end, and what stands in for it speaks of the source.
    name = type(raised).__name__
    error = SourceError(f"the decoder {decoder!r} raised {name}: {raised}")
    error.__cause__ = raised
    return error


# ---- for what reads steps itself


def keep(core: DecodingCore, live: Iterable[int] | None) -> None:
    """Cancel the slots that are not live in the batch of text around; None if it does not say."""
    if live is not None and live is not core.live:
        for slot in set(core.live).difference(live):
            core.cancel(slot)


def fed(core: DecodingCore, step: object) -> Delivery[Any]:
    """Return what a core makes of a step.

    Raises:
        StepError: The step cannot be read, and the batch has failed with that.
    """
    delivery = core.feed(step)
    if core.failure is not None:
        raise core.failure
    return delivery


def marked(delivery: Delivery[Any]) -> dict[int, Any]:
    """Return what was delivered as the elements of a step, by slot."""
    slots, values, ends = delivery
    if not ends and len(set(slots)) == len(slots):
        return dict(zip(slots, values, strict=True))
    elements: dict[int, list[Any]] = {}
    for slot, value in zip(slots, values, strict=True):
        elements.setdefault(slot, []).append(value)
    for slot, end in ends:
        own = elements.setdefault(slot, [])
        if end.error is not None:
            own.append(Fail(end.error))
        elif own:
            own.append(Last(own.pop(), end.reason, end.info))
        else:
            own.append(End(end.reason, end.info))
    return {slot: own[0] if len(own) == 1 else Many(own) for slot, own in elements.items()}
