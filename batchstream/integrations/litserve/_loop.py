"""What the loops share that LitServe runs in each worker."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

from litserve.loops.base import LitLoop
from litserve.utils import LitAPIStatus

from batchstream.integrations.litserve._link.link import Link
from batchstream.integrations.litserve._openai.spec import OpenAISpec, is_stock
from batchstream.integrations.litserve._options import LoopOptions
from batchstream.integrations.litserve._server.cuts import keep_cuts_out_of_the_log
from batchstream.integrations.litserve._server.endpoint import StreamingEndpoint
from batchstream.integrations.litserve._server.readiness import watch_health
from batchstream.integrations.litserve._worker.context import WorkerContext
from batchstream.integrations.litserve._worker.interrupts import leave_interrupts_to_main_process

if TYPE_CHECKING:
    from queue import Queue

    from litserve import LitAPI
    from litserve.callbacks import CallbackRunner
    from litserve.specs.base import LitSpec
    from litserve.transport.base import MessageTransport
    from litserve.utils import LoopResponseType


class AnyLoop(LitLoop):
    """A LitServe loop that gives its API an endpoint, and serves it in each worker.

    Attributes:
        calls_predict: Whether the API has to have a `predict`; `OpenAISpec` asks.
    """

    calls_predict = True
    _worker_context: WorkerContext | None = None

    def __init__(self, options: LoopOptions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._options = options

    def pre_setup(
        self,
        lit_api: LitAPI = None,  # type: ignore[assignment] # where `self` is the API
        spec: LitSpec | None = None,
    ) -> None:
        """Prepare an API for this loop; LitServe calls it once, in the main process.

        Raises:
            TypeError: The API was given the class of the loop.
            ValueError: The API does not stream, or is asynchronous.
        """
        if not isinstance(self, AnyLoop):
            raise TypeError(
                "loop takes a loop, and was given its class: call it, loop=BatchedStreamLoop(...) "
                "for example"
            )
        super().pre_setup(lit_api, spec)
        name = type(self).__name__
        if not lit_api.stream:
            raise ValueError(f"{name} serves streams only: pass stream=True to the LitAPI")
        if lit_api.enable_async:
            raise ValueError(f"{name} runs synchronous hooks only: leave enable_async out")
        options = self._options
        make_link = partial(
            Link,
            options.max_pending,
            options.bound,
            grace_period=options.grace_period,
            first_timeout=options.first_timeout,
            gap_timeout=options.gap_timeout,
            metrics=options.metrics,
            traces=options.traces,
            name=options.name or lit_api.api_path,
            ordering=options.ordering,
            wait_timeout=options.wait_timeout,
        )
        spec = lit_api.spec
        if spec is None or isinstance(spec, StreamingEndpoint):
            lit_api.spec = None  # type: ignore[assignment]  # an earlier server's has its path
            lit_api.spec = StreamingEndpoint(lit_api, make_link())
            keep_cuts_out_of_the_log()
        elif is_stock(spec):
            lit_api.spec = OpenAISpec.instead_of(spec, lit_api)
        watch_health(lit_api)
        if isinstance(lit_api.spec, OpenAISpec):
            lit_api.spec.link = make_link(sends_ends=True, decodes=options.decode is not None)

    def __call__(  # noqa: PLR0917 - LitServe's signature
        self,
        lit_api: LitAPI,
        device: str,  # noqa: ARG002
        worker_id: int,
        request_queue: Queue[Any],
        transport: MessageTransport,
        workers_setup_status: dict[int, str],  # noqa: ARG002
        callback_runner: CallbackRunner,
    ) -> None:
        """Serve requests until the worker is stopped; LitServe calls it in each worker."""
        leave_interrupts_to_main_process()
        self._run(lit_api, request_queue, transport, callback_runner, worker_id)

    def _run(
        self,
        lit_api: LitAPI,
        request_queue: Queue[Any],
        transport: MessageTransport,
        callbacks: CallbackRunner,
        worker_id: int | None = None,
    ) -> None:
        context = WorkerContext(
            self, lit_api, self._options, transport=transport, callbacks=callbacks, worker=worker_id
        )
        self._worker_context = context
        try:
            self._serve(context, request_queue)
        except KeyboardInterrupt:
            self.kill()  # type: ignore[no-untyped-call]

    def put_response(  # noqa: PLR0917 - LitServe's signature
        self,
        transport: MessageTransport,
        response_queue_id: int,
        uid: str,
        response_data: Any,
        status: Any,
        response_type: LoopResponseType,
    ) -> None:
        """Send a message; LitServe calls it with START for each request that it takes."""
        if status == LitAPIStatus.START and self._worker_context is not None:
            self._worker_context.claim(response_queue_id, uid)
        super().put_response(
            transport, response_queue_id, uid, response_data, status, response_type
        )

    @abstractmethod
    def _serve(self, context: WorkerContext, request_queue: Queue[Any]) -> None:
        """Serve requests until the loop is stopped."""
