"""One batch that LitServe's hooks serve, from decoding its requests to the last end."""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from litserve.callbacks import EventTypes

from batchstream._core.cores import core_of
from batchstream._core.errors import INTERRUPTS, StepError, call_quietly
from batchstream._pumps.source import Source
from batchstream._text.core import decoding
from batchstream.integrations.litserve._worker.hooks import hooks_for
from batchstream.integrations.litserve._worker.request import ServedRequest, report_joined
from batchstream.integrations.litserve._worker.serving import Serving, make_step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream import Delivery, Demultiplexer
    from batchstream.integrations.litserve._worker.context import WorkerContext


_NOTES: Final[dict[str, str]] = {
    "predict": "A step is what predict yields: one element for each request of the batch.",
    "encode_response": "A step is what encode_response yields: one element for each request of the "
    "batch. Where encode_response is written for a single request, pass eos_in='predict' to the "
    "loop.",
}
"""What a step is that could not be read, by the hook that has made it."""


class Batch:
    """The requests that are served together.

    Args:
        context: What the loop works with.
        requests: The requests.
        splits_at_predict: Whether a step is what `predict` yields, and each request is encoded by
            itself; otherwise a step is what `encode_response` yields.
    """

    def __init__(
        self, context: WorkerContext, requests: Sequence[ServedRequest], *, splits_at_predict: bool
    ) -> None:
        self._context = context
        self._requests = list(requests)
        self._splits_at_predict = splits_at_predict
        self._stepper = HookStepper()
        self._serving = Serving(context, self._stepper)

    def serve(self) -> None:
        """Serve every request to its end.

        Raises:
            BaseException: What is meant for the thread, from any hook; the requests have failed.
            Exception: What the transport raises when it cannot even send an end.
        """
        requests = self._requests
        try:
            self._decode()
            if self._requests:
                with closing(self._stepper):
                    self._begin()
                    self._serving.run()
        except INTERRUPTS as error:
            with suppress(Exception):  # the transport may be gone if the worker is being stopped
                self._serving.fail(requests, error)
                self._context.outbox.flush(everything=True)
            raise
        except BaseException as error:  # noqa: BLE001 - the users' hooks may raise anything
            self._serving.fail(requests, error)
        self._context.outbox.flush(everything=True)

    def _decode(self) -> None:
        """Decode each request; a request that cannot be decoded leaves the batch."""
        context = self._context
        self._attempt_each(ServedRequest.populate)
        context.trigger(EventTypes.BEFORE_DECODE_REQUEST.value)
        self._attempt_each(ServedRequest.decode)
        context.trigger(EventTypes.AFTER_DECODE_REQUEST.value)

    def _attempt_each(self, action: Callable[[ServedRequest], None]) -> None:
        self._requests = [request for request in self._requests if request.attempt(action)]

    def _begin(self) -> None:
        """Call the hooks, and give the requests slots in their order.

        Raises:
            Exception: What a hook raises.
        """
        requests, serving, rules = self._requests, self._serving, self._context.options.rules
        steps = self._call_hooks()
        limits = [request.limit for request in requests]
        own = None if rules.per_request is None else [request.is_eos for request in requests]
        reads = "predict" if self._splits_at_predict else "encode_response"
        core = core_of(rules, len(requests), limits, predicates=own)
        if self._context.options.decode is not None:
            core = decoding(core, [request.decoder for request in requests])
        joined = [request for request in requests if not request.ended]
        report_joined(joined, self._context)
        self._stepper.begin(steps, core, note=_NOTES[reads])
        for slot, request in enumerate(requests):
            serving.seat(slot, request)
            if request.ended:  # its own encode_response has raised
                serving.dismiss(request)

    def _call_hooks(self) -> Any:
        """Call the hooks in LitServe's order; their generators begin with the first step."""
        context, api, requests = self._context, self._context.lit_api, self._requests
        owned, hooks = self._stepper.owned, hooks_for(context, requests)
        inputs = hooks.batch([request.content for request in requests])
        context.trigger(EventTypes.BEFORE_PREDICT.value)
        outputs = owned(hooks.call(api.predict, inputs))
        # LitServe's own unbatch makes a list of each step, and would not pass on which slots are
        # live.
        reads_predict = self._splits_at_predict and not hooks.own_unbatch
        if reads_predict:
            hooks.check(api.predict, outputs)
        context.trigger(EventTypes.AFTER_PREDICT.value)
        if not reads_predict:
            outputs = owned(hooks.unbatch(outputs))
        context.trigger(EventTypes.BEFORE_ENCODE_RESPONSE.value)
        if self._splits_at_predict:
            begin = partial(ServedRequest.begin_encoding, look_ahead=self._serving.look_ahead)
            for request in requests:
                request.attempt(begin)
        else:
            outputs = owned(hooks.call(api.encode_response, outputs))
            hooks.check(api.encode_response, outputs)
        context.trigger(EventTypes.AFTER_ENCODE_RESPONSE.value)
        return hooks.steps(outputs)


class HookStepper:
    """The steps that the hooks' iterators make, and the iterators themselves.

    Closing a generator does not close the one that it reads in a `for` loop: that would wait for
    the garbage collector, and hold the model's memory until then.

    Attributes:
        live: How many slots the last step was made for.
    """

    live = 0

    def __init__(self) -> None:
        self._iterators: list[Any] = []
        self._closing = ExitStack()
        # What an iterator sets while it is closed does not reach the next batch.
        self._context = copy_context()
        self._source: Source
        self._core: Demultiplexer[Any]
        self._note: str

    def owned(self, result: Any) -> Any:
        """Return what a hook has returned; if it is an iterator, it is closed with the others."""
        # A hook may return what it was given: that is closed once.
        known = any(result is other for other in self._iterators)
        if not known and hasattr(result, "__next__") and hasattr(result, "close"):
            self._iterators.append(result)
            self._closing.callback(result.close)
        return result

    def begin(self, steps: Any, core: Demultiplexer[Any], *, note: str) -> None:
        """Read these steps from now on; a generator receives the live slots: `live = yield step`.

        Args:
            steps: The steps.
            core: What reads them.
            note: Added to the error of a step that cannot be read.

        Raises:
            TypeError: They are not iterable.
        """
        self._source = Source(steps)
        self._core = core
        self._note = note

    def step(self) -> Delivery[Any] | None:
        """Make a step; None if no slot is live."""
        if not self._core.has_live:
            return None
        self.live = len(self._core.live)
        delivery = make_step(self._core, self._source)
        for _, end in delivery.ends:
            if isinstance(end.error, StepError) and not hasattr(end.error, "__notes__"):
                end.error.add_note(self._note)
        # Before the delivery is handed out: the model's memory is free while clients are served.
        if delivery.ends and not self._core.has_live:
            self.close()
        return delivery

    def vacate(self, slot: int) -> None:
        """Cancel the slot."""
        self._core.cancel(slot)
        if not self._core.has_live:
            self.close()

    def close(self) -> None:
        """Close all iterators, the last one first. Repeated calls do nothing.

        An error goes to `sys.unraisablehook`: it must not take the place of another one, with which
        the batch ends.
        """
        call_quietly(partial(self._context.run, self._closing.close))
