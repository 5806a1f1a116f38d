"""In the worker: one batch, from decoding its requests to the last end."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from litserve.callbacks import EventTypes
from litserve.loops.base import _inject_context

from batchstream import BatchedStream
from batchstream._core.errors import INTERRUPTS
from batchstream._pumps.source import Source
from batchstream.integrations.litserve._worker.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batchstream import Delivery
    from batchstream.integrations.litserve._worker.context import Desk
    from batchstream.integrations.litserve._worker.request import Member


class Batch(Serving):
    """The requests that are served together, by LitServe's hooks.

    Args:
        desk: What the loop works with.
        members: The requests.
        splits_at_predict: Whether a step is what `predict` yields, and each request is encoded by
            itself; otherwise it is what `encode_response` makes of that.
    """

    def __init__(self, desk: Desk, members: Sequence[Member], *, splits_at_predict: bool) -> None:
        super().__init__(desk)
        self._waiting = list(members)
        self._splits_at_predict = splits_at_predict
        self._batch: BatchedStream[Any]
        self._deliveries: Iterator[Delivery[Any]]

    def serve(self) -> None:
        """Serve every request to its end.

        Raises:
            BaseException: What stops a program, from any hook; the requests have been told.
            Exception: What the transport raises where it cannot even send an end.
        """
        replies = [member.reply for member in self._waiting]
        try:
            self._decode()
            if self._waiting:
                with self._open() as batch:
                    self._deliveries = batch.steps()
                    self._run()
        except INTERRUPTS as error:
            with suppress(Exception):  # where a worker is being stopped, its transport may be gone
                self._break_off(replies, error)
                self._desk.outbox.flush(entirely=True)
            raise
        except BaseException as error:  # noqa: BLE001 - the users' hooks may raise anything
            self._break_off(replies, error)
        self._desk.outbox.flush(entirely=True)

    def _pull(self) -> Delivery[Any] | None:
        return next(self._deliveries, None)

    def _vacate(self, slot: int) -> None:
        self._batch.cancel(slot)

    def _decode(self) -> None:
        """Decode each request; those that cannot be decoded leave the batch."""
        desk = self._desk
        self._each(desk.populate)
        desk.trigger(EventTypes.BEFORE_DECODE_REQUEST)
        self._each(desk.decode)
        desk.trigger(EventTypes.AFTER_DECODE_REQUEST)

    def _each(self, action: Callable[[Member], None]) -> None:
        self._waiting = [member for member in self._waiting if self._desk.attempt(member, action)]

    def _open(self) -> BatchedStream[Any]:
        """Return the batch of all who have been decoded, in slots in their order.

        Raises:
            Exception: What a hook raises; what the others returned has been closed.
        """
        members = self._waiting
        steps = HookSteps()
        try:
            self._call_hooks(steps)
        except BaseException:
            steps.close()
            raise
        self._batch = BatchedStream(
            steps,
            size=len(members),
            max_outputs=[member.limit for member in members],
            **self._desk.options.ends,
        )
        for slot, member in enumerate(members):
            self._seat(slot, member)
            if member.reply.ended:  # its own encode_response has raised
                self._dismiss(member)
        return self._batch

    def _call_hooks(self, steps: HookSteps) -> None:
        """Call the hooks in LitServe's order; their generators begin with the first step."""
        desk, api, members = self._desk, self._desk.lit_api, self._waiting
        contexts: list[dict[Any, Any]] = [member.context for member in members]
        inputs = _inject_context(contexts, api.batch, [member.value for member in members])
        desk.trigger(EventTypes.BEFORE_PREDICT)
        outputs = steps.made_of(_inject_context(contexts, api.predict, inputs))
        desk.trigger(EventTypes.AFTER_PREDICT)
        # LitServe's own makes a list of each step, and would not pass on who is live.
        if not self._splits_at_predict or desk.overrides("unbatch"):
            outputs = steps.made_of(_inject_context(contexts, api.unbatch, outputs))
        desk.trigger(EventTypes.BEFORE_ENCODE_RESPONSE)
        if self._splits_at_predict:
            for member in members:
                desk.attempt(member, partial(desk.begin_encoding, look_ahead=self._look_ahead))
        else:
            encode = api.encode_response
            outputs = steps.made_of(_inject_context(contexts, encode, outputs))
        desk.trigger(EventTypes.AFTER_ENCODE_RESPONSE)
        steps.read(outputs)


class HookSteps:
    """The steps of one batch, which are closed together with what they are made of.

    Closing a generator does not close the one that it reads in a `for` loop: that would wait for
    the garbage collector, and hold the model's memory until then.
    """

    def __init__(self) -> None:
        self._source = Source(())
        self._parts: list[Any] = []
        self._closing = ExitStack()

    def made_of(self, part: Any) -> Any:
        """Return what a hook has returned; if it is an iterator, it is closed with the steps."""
        known = any(part is other for other in self._parts)  # a hook may pass on what it was given
        if not known and hasattr(part, "__next__") and hasattr(part, "close"):
            self._parts.append(part)
            self._closing.callback(part.close)
        return part

    def read(self, steps: Any) -> None:
        """Take the steps from here. If it listens, it is told who is live: `live = yield step`.

        Raises:
            TypeError: It is not iterable.
        """
        self._source = Source(steps)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._source.advance(())

    def send(self, live: tuple[int, ...]) -> Any:
        """Return the next step, after telling who is live."""
        return self._source.advance(live)

    def close(self) -> None:
        """Close all parts, the last one first, even if one of them raises."""
        self._closing.close()
