"""Handing out what the model's steps give to the requests in its slots."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from batchstream import FinishReason, StreamEnd
from batchstream._core.errors import INTERRUPTS, begin_in_source, forget_context
from batchstream.integrations.litserve._worker.request import fail_all
from batchstream.integrations.litserve._worker.step_reports import StepReports

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchstream import Delivery, Demultiplexer
    from batchstream._batching.engine import Engine
    from batchstream._pumps.source import Source
    from batchstream.integrations.litserve._worker.context import WorkerContext
    from batchstream.integrations.litserve._worker.request import ServedRequest

_RETURNED: Final = StreamEnd(FinishReason.EOS, 0)
"""How a request ends whose own `encode_response` has returned."""

_MAX_LOOK_AHEADS: Final = 8
"""How many encoders may look ahead, each within another; each takes some of Python's stack."""


class Stepper(Protocol):
    """A model with requests in its slots.

    Attributes:
        live: How many slots the last step was made for; 0 if it was none, but a failure before it.
    """

    live: int

    def step(self) -> Delivery[Any] | None:
        """Make a step; None if no request is left to make one for."""

    def vacate(self, slot: int) -> None:
        """Take a request out of its slot, before the model's next step at the latest."""


def make_step(core: Demultiplexer[Any], model: Source | Engine) -> Delivery[Any]:
    """Let the model make a step, and return which slots get what of it, or how they end.

    Raises:
        BaseException: What is meant for the thread, from the model; or what an `is_eos` raises that
            is no `Exception`.
    """
    try:
        try:
            step = model.advance(core.live)
        except StopIteration:
            return core.finish()
    except INTERRUPTS:
        raise
    except BaseException as error:  # noqa: BLE001 - an end of the requests in the model
        failure = error
    else:
        return core.feed(step)
    return fail_step(core, failure)


def fail_step(core: Demultiplexer[Any], failure: BaseException) -> Delivery[Any]:
    """Return how all slots end whose model has failed; call it outside of the handler.

    Args:
        core: Of the slots.
        failure: What the model has raised.
    """
    # Outside of the handler, the exception being handled is that of an `encode_response` which
    # looks ahead. The failure of other requests must not show it.
    forget_context(failure, sys.exception())
    begin_in_source(failure)
    return core.fail(failure)


class Serving:
    """Requests in the slots of a model, from its first step for them to their ends.

    A request leaves its slot when the step is made that has its end. The end is sent later, once
    all of the request's outputs have been encoded.

    Args:
        context: What the loop works with.
        stepper: The model.

    Attributes:
        steps: Reports them; None without metrics.
    """

    def __init__(self, context: WorkerContext, stepper: Stepper) -> None:
        self._outbox = context.outbox
        self._disconnects = context.disconnects
        self._stepper = stepper
        self._requests: dict[int, ServedRequest] = {}  # by slot
        self._slots: dict[str, int] = {}  # by uid
        self._unseated: dict[str, ServedRequest] = {}  # by uid: requests that wait for a slot again
        # Requests with outputs to encode, in the order in which they got the first of them.
        self._to_encode: dict[ServedRequest, None] = {}
        # Requests that have left their slots, and how they end.
        self._ends: list[tuple[ServedRequest, StreamEnd]] = []
        self._look_aheads = 0  # that are under way
        self.steps: StepReports | None = None
        if context.metrics is not None:
            self.steps = StepReports(context.metrics, context.lit_api.max_batch_size)

    def seat(self, slot: int, request: ServedRequest) -> None:
        """Put a request into a slot."""
        self._requests[slot] = request
        self._slots[str(request.uid)] = slot
        self._unseated.pop(str(request.uid), None)

    def request_in(self, slot: int) -> ServedRequest:
        """Return the request in a slot."""
        return self._requests[slot]

    def unseat(self, slot: int) -> ServedRequest:
        """Take a request out of its slot that will be put into another."""
        request = self._requests[slot]
        self._unseated[str(request.uid)] = request  # first: what interrupts this finds it
        del self._requests[slot], self._slots[str(request.uid)]
        return request

    def run(self) -> None:
        """Serve all requests to their ends.

        Raises:
            BaseException: What the stepper raises, what is meant for the thread, and what the
                transport raises.
        """
        while self._advance():
            while self._to_encode or self._ends:
                self._encode_all()

    def look_ahead(self, request: ServedRequest) -> bool:
        """Get a request the output that its encoder waits for.

        Before that all others are encoded that can do without looking ahead: they do not have to
        wait for the step.

        Returns:
            Whether there may be one; otherwise there will be none.
        """
        if self._look_aheads < _MAX_LOOK_AHEADS:
            self._look_aheads += 1
            try:
                self._encode_all(only_streaming=True)
            finally:
                self._look_aheads -= 1
        self._outbox.flush()
        self._drop_disconnected()
        encoder = request.encoder
        if encoder is None or not encoder.is_starved:
            return True  # its client has disconnected, or another encoder has looked ahead
        return self._advance()

    def dismiss(self, request: ServedRequest) -> None:
        """Serve a request no more whose end has been sent, or cannot be."""
        request.release()  # before the slot: its encoder is closed before what the encoder reads
        self._unseated.pop(str(request.uid), None)
        slot = self._slots.pop(str(request.uid), None)
        if slot is not None:
            self._requests.pop(slot, None)
            self._stepper.vacate(slot)
        self._to_encode.pop(request, None)

    def fail(self, others: Iterable[ServedRequest], error: BaseException) -> None:
        """Fail all requests whose end has not been sent, and others that have not been seated."""
        seated = dict.fromkeys([*self._requests.values(), *self._unseated.values()])
        seated |= dict.fromkeys(request for request, _ in self._ends)
        fail_all(seated | dict.fromkeys(others), error)
        for request in seated:
            request.release()

    def _advance(self) -> bool:
        """Let the model make a step, and give its outputs to their requests.

        Everything that was put into the outbox is sent first: no client waits for the next step.

        Returns:
            Whether there was a step.
        """
        self._outbox.flush()
        if self._disconnects.unread:
            self._drop_disconnected()
        delivery = self._stepper.step()
        if delivery is None:
            return False
        slots, outputs, ends = delivery
        requests = self._requests
        if self.steps is not None and self._stepper.live:
            left = tuple(self._disconnects.unread)
            self.steps.note(self._stepper.live, delivery, requests, left)
        for slot, output in zip(slots, outputs, strict=True):
            request = requests.get(slot)
            if request is None:
                continue  # an earlier output of this step has failed it
            if request.encoder is None:
                self._send(request, (output,))
            else:
                request.encoder.outputs.append(output)
                self._to_encode[request] = None
        for slot, end in ends:
            request = requests.get(slot)
            if request is not None:
                # Added before it is removed: what interrupts this finds the request, to fail it.
                self._ends.append((request, end))
                del requests[slot]
                self._slots.pop(str(request.uid), None)
                request.context.live = False
                if request.encoder is not None:
                    request.encoder.end(failed=end.error is not None)
        return True

    def _drop_disconnected(self) -> None:
        if not self._disconnects.take():
            return
        for uid in [uid for uid in self._slots if uid in self._disconnects]:
            request = self._requests[self._slots[uid]]
            request.abandon()
            self.dismiss(request)
        for uid in [uid for uid in self._unseated if uid in self._disconnects]:
            request = self._unseated[uid]
            request.abandon()
            self.dismiss(request)

    def _encode_all(self, *, only_streaming: bool = False) -> None:
        """Encode and send the outputs that wait for it, then the ends of requests that have all.

        Args:
            only_streaming: Whether to leave out requests whose encoder may look ahead. Where
                another one looks ahead already, they would hold up all that wait for it.
        """
        for request in tuple(self._to_encode):
            encoder = request.encoder
            if request not in self._to_encode or encoder is None:
                continue  # another encoder has looked ahead, and this one had its turn then
            if encoder.running or (only_streaming and not encoder.is_streaming):
                continue
            del self._to_encode[request]
            self._send(request, encoder.elements())
            uid = str(request.uid)
            if encoder.over and (uid in self._slots or uid in self._unseated):
                request.finish(_RETURNED)
                self.dismiss(request)
        if self._ends:
            self._send_ends()

    def _send(self, request: ServedRequest, elements: Iterable[Any]) -> None:
        """Send a request's client what its encoder yields; an error fails this request alone."""
        try:
            for element in elements:
                request.put(element)
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - the other requests go on
            fail_all([request], error)
            self.dismiss(request)

    def _send_ends(self) -> None:
        """Send the ends of requests whose outputs have all been encoded.

        An error that fails several requests is logged once.
        """
        ready = []
        errors: dict[int, tuple[BaseException, list[ServedRequest]]] = {}
        for request, end in self._ends:
            encoder = request.encoder
            if encoder is not None and (encoder.running or request in self._to_encode):
                continue
            ready.append((request, end))
            if end.error is not None:
                errors.setdefault(id(end.error), (end.error, []))[1].append(request)
        for error, requests in errors.values():
            fail_all(requests, error)
        for request, end in ready:
            if request.encoder is not None and not request.ended:
                # What its `encode_response` yields after the last output.
                self._send(request, request.encoder.elements())
            request.finish(end)
            self._ends.remove((request, end))
            request.release()
