"""In the worker: one batch, from decoding its requests to the last end."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from litserve.callbacks import EventTypes
from litserve.loops.base import _inject_context

from batchstream import BatchedStream
from batchstream._errors import PASSING
from batchstream.integrations.litserve._reply import Reply, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from litserve import LitAPI
    from litserve.callbacks import CallbackRunner

    from batchstream import Delivery, StreamEnd


class Member:
    """One request of a batch, on its way from what was received to what `predict` is given."""

    __slots__ = ("context", "reply", "value")

    def __init__(self, reply: Reply, request: object) -> None:
        self.reply = reply
        self.value = request
        self.context: dict[str, Any] = {}


class Batch:
    """The requests that are served together."""

    def __init__(
        self, lit_api: LitAPI, callbacks: CallbackRunner, members: Sequence[Member]
    ) -> None:
        self._lit_api = lit_api
        self._callbacks = callbacks
        self._members = members

    def serve(self) -> None:
        """Serve every request to its end.

        Raises:
            BaseException: What stops a program, from any hook; the requests have been told.
            Exception: What the transport raises where it cannot even send an end.
        """
        try:
            self._decode()
            if self._members:
                with BatchedStream[Any](self._steps(), size=len(self._members)) as batch:
                    for delivery in batch.steps():
                        self._hand_out(delivery, batch)
        except PASSING as error:
            with suppress(Exception):  # where a worker is being stopped, its transport may be gone
                fail(self._replies(), error)
            raise
        except BaseException as error:  # noqa: BLE001 - the users' hooks may raise anything
            fail(self._replies(), error)

    def _replies(self) -> list[Reply]:
        return [member.reply for member in self._members]

    def _trigger(self, event: EventTypes) -> None:
        self._callbacks.trigger_event(  # type: ignore[no-untyped-call]
            event.value, lit_api=self._lit_api
        )

    def _decode(self) -> None:
        """Decode each request; those that cannot be decoded leave the batch."""
        populate = getattr(self._lit_api.spec, "populate_context", None)
        if populate is not None:
            self._each(lambda member: populate(member.context, member.value))
        self._trigger(EventTypes.BEFORE_DECODE_REQUEST)
        self._each(self._decode_one)
        self._trigger(EventTypes.AFTER_DECODE_REQUEST)

    def _decode_one(self, member: Member) -> None:
        decode = self._lit_api.decode_request
        member.value = _inject_context(member.context, decode, member.value)

    def _each(self, action: Callable[[Member], None]) -> None:
        good = []
        for member in self._members:
            try:
                action(member)
                good.append(member)
            except PASSING:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, the others go on
                fail([member.reply], error)
        self._members = good

    def _steps(self) -> EncodedSteps:
        """Call the hooks in LitServe's order. Their generators do not begin before the first step.

        Raises:
            Exception: What a hook raises; what the others returned has been closed.
        """
        api = self._lit_api
        contexts = [member.context for member in self._members]
        values = [member.value for member in self._members]
        steps = EncodedSteps()
        try:
            inputs = _inject_context(contexts, api.batch, values)
            self._trigger(EventTypes.BEFORE_PREDICT)
            outputs = steps.made_of(_inject_context(contexts, api.predict, inputs))
            self._trigger(EventTypes.AFTER_PREDICT)
            unbatched = steps.made_of(_inject_context(contexts, api.unbatch, outputs))
            self._trigger(EventTypes.BEFORE_ENCODE_RESPONSE)
            steps.read(steps.made_of(_inject_context(contexts, api.encode_response, unbatched)))
            self._trigger(EventTypes.AFTER_ENCODE_RESPONSE)
        except BaseException:
            steps.close()
            raise
        return steps

    def _hand_out(self, delivery: Delivery[Any], batch: BatchedStream[Any]) -> None:
        """Send what a step gives to whom. What cannot be sent fails its own request alone."""
        replies = self._replies()
        for slot, output in zip(delivery.slots, delivery.values, strict=True):
            try:
                replies[slot].put(output, self._lit_api.format_encoded_response)
            except Exception as error:  # noqa: BLE001 - the users' formatter, and any transport
                fail([replies[slot]], error)
                batch.cancel(slot)
        for reason, slots in _errors(delivery.ends):
            fail([replies[slot] for slot in slots], reason)
        for slot, _ in delivery.ends:
            replies[slot].finish()


class EncodedSteps:
    """The encoded steps of one batch, which are closed together with what they are made of.

    Closing a generator does not close the one that it reads in a `for` loop: that would wait for
    the garbage collector, and hold the model's memory until then.
    """

    def __init__(self) -> None:
        self._iterator: Iterator[Any] = iter(())
        self._parts: list[Any] = []
        self._closing = ExitStack()

    def made_of(self, part: Any) -> Any:
        """Return what a hook has returned; if it is an iterator, it is closed with the steps."""
        known = any(part is other for other in self._parts)  # a hook may pass on what it was given
        if not known and hasattr(part, "__next__") and hasattr(part, "close"):
            self._parts.append(part)
            self._closing.callback(part.close)
        return part

    def read(self, encoded: Iterable[Any]) -> None:
        """Take the steps from here. If it listens, it is told who is live: `live = yield step`."""
        self._iterator = iter(encoded)
        if hasattr(self._iterator, "send"):
            self.send = self._iterator.send

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def close(self) -> None:
        """Close all parts, the last one first, even if one of them raises."""
        self._closing.close()


def _errors(ends: Iterable[tuple[int, StreamEnd]]) -> list[tuple[BaseException, list[int]]]:
    """Return each error among the ends once, with the slots that it has ended."""
    by_identity: dict[int, tuple[BaseException, list[int]]] = {}
    for slot, end in ends:
        if end.error is not None:
            _, slots = by_identity.setdefault(id(end.error), (end.error, []))
            slots.append(slot)
    return list(by_identity.values())
