"""The loop that LitServe runs in each worker."""

from __future__ import annotations

from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from litserve.loops.base import LitLoop

from batchstream.integrations.litserve._batch import Batch, Member
from batchstream.integrations.litserve._endpoint import StreamingEndpoint, install_endpoint
from batchstream.integrations.litserve._reply import Reply

if TYPE_CHECKING:
    from queue import Queue

    from litserve import LitAPI
    from litserve.callbacks import CallbackRunner
    from litserve.specs.base import LitSpec
    from litserve.transport.base import MessageTransport

# A worker that dies while it waits leaves its wait behind in the queue's process, where it takes a
# request that nobody will serve. So a wait is short, but no shorter than idleness asks for.
_SECONDS_OF_WAITING: Final = 1.0


class BatchedStreamLoop(LitLoop):
    """A LitServe loop in which each request of a batch ends, or fails, on its own.

    Pass it to the API, `LitAPI(stream=True, max_batch_size=4, loop=BatchedStreamLoop())`; nothing
    else changes. The hooks and callbacks are those of LitServe's batched streaming loop, in the
    same order. What `encode_response` yields is a step of a batch: one element for each request,
    in the order of the requests, where None or any other marker ends a request there and then.
    The generators of `encode_response`, `unbatch` and `predict` are closed, in this order, as soon
    as no request of the batch is left.

    An error fails as few requests as it can. One in `decode_request`, a `Fail`, and an output that
    cannot be sent fail the request they belong to; every other fails all that are left in the
    batch. A client whose response has not begun gets the status of an `HTTPException`, otherwise
    500; later it sees its connection cut. The worker lives, and has logged the error once.

    The status and headers of a response are sent together with its first output, not before.

    Example:
        >>> import litserve
        >>> from batchstream.integrations.litserve import BatchedStreamLoop
        >>> class Countdown(litserve.LitAPI):
        ...     def decode_request(self, request):
        ...         return request["start"]
        ...
        ...     def predict(self, starts):
        ...         for passed in range(max(starts) + 1):
        ...             yield [start - passed for start in starts]
        ...
        ...     def encode_response(self, steps):
        ...         for step in steps:
        ...             yield [{"left": count} if count > 0 else None for count in step]
        >>> api = Countdown(stream=True, max_batch_size=4, loop=BatchedStreamLoop())
        >>> server = litserve.LitServer(api, accelerator="cpu")  # server.run(host="127.0.0.1")
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def pre_setup(self, lit_api: LitAPI, spec: LitSpec | None = None) -> None:
        """Prepare an API for this loop; LitServe calls it once, in the process that starts all.

        Raises:
            ValueError: The API does not stream, or is asynchronous.
        """
        super().pre_setup(lit_api, spec)
        name = type(self).__name__
        if not lit_api.stream:
            raise ValueError(f"{name} serves streams only: pass stream=True to the LitAPI")
        if lit_api.enable_async:
            raise ValueError(f"{name} runs synchronous hooks only: leave enable_async out")
        if lit_api.spec is None or isinstance(lit_api.spec, StreamingEndpoint):
            install_endpoint(lit_api)

    def __call__(  # noqa: PLR0917 - LitServe's signature
        self,
        lit_api: LitAPI,
        device: str,  # noqa: ARG002
        worker_id: int,  # noqa: ARG002
        request_queue: Queue[Any],
        transport: MessageTransport,
        workers_setup_status: dict[int, str],  # noqa: ARG002
        callback_runner: CallbackRunner,
    ) -> None:
        """Serve batches until the worker is stopped; LitServe calls it in each worker."""
        self.run_batched_streaming_loop(lit_api, request_queue, transport, callback_runner)

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: Queue[Any], transport: MessageTransport
    ) -> tuple[list[Any], list[Any]]:
        """Wait for a request, and then up to `batch_timeout` seconds for others to join it.

        In a loop of LitServe's own the waiting starts before there is any request. One that comes
        when it is nearly over goes alone, and a `batch_timeout` of 0 keeps an idle worker busy.

        Returns:
            The requests to be served, as `(response_queue_id, uid, request)`, and those that have
            waited for longer than the server's `timeout`, as `(response_queue_id, uid)`.

        Raises:
            Exception: LitServe's own, at the sentinel.

        Blocking: until there is a request.
        """
        joined = _Rejoined(_wait(request_queue), request_queue)
        while True:
            # LitServe looks at the clock before it looks into the queue. If the time was up before
            # its first look, it has nothing, and the request is still in front.
            found = super().get_batch_requests(lit_api, joined, transport)  # type: ignore[arg-type]
            if any(found):
                return found

    def run_batched_streaming_loop(
        self,
        lit_api: LitAPI,
        request_queue: Queue[Any],
        transport: MessageTransport,
        callback_runner: CallbackRunner,
        lit_spec: LitSpec | None = None,  # noqa: ARG002 - LitServe's own loop has it as well
    ) -> None:
        """Take batches from the queue and serve them, one after another.

        Raises:
            Exception: LitServe's own, with which its loops stop at the sentinel in their queue.

        Blocking: until the loop is stopped.
        """

        def reply_to(response_queue_id: int, uid: str) -> Reply:
            put = partial(self.put_response, transport, response_queue_id, uid)
            return Reply(put, uid, lit_api.spec)

        while True:
            requests, timed_out = self.get_batch_requests(lit_api, request_queue, transport)
            for queue_id, uid in timed_out:
                reply_to(queue_id, uid).time_out(lit_api.request_timeout)
            members = [Member(reply_to(queue_id, uid), x) for queue_id, uid, x in requests]
            try:
                if members:
                    Batch(lit_api, callback_runner, members).serve()
            except KeyboardInterrupt:
                self.kill()  # type: ignore[no-untyped-call]
                return


def _wait(request_queue: Queue[Any]) -> object:
    while True:
        try:
            return request_queue.get(timeout=_SECONDS_OF_WAITING)
        except Empty:
            pass


class _Rejoined:
    """A queue with the element back in front that was taken from it."""

    def __init__(self, first: object, rest: Queue[Any]) -> None:
        self._first = [first]
        self._rest = rest

    def get(self, *, timeout: float) -> Any:
        return self._first.pop() if self._first else self._rest.get(timeout=timeout)

    def get_nowait(self) -> Any:
        return self._first.pop() if self._first else self._rest.get_nowait()
