"""Continuous batching: a slot whose request has finished is refilled before the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import TypeVar

from batchstream._batching.batcher import AnyBatcher
from batchstream._batching.engine import Engine
from batchstream._batching.options import Terms
from batchstream._batching.runs import closed_error
from batchstream._batching.thread_dispatcher import AnyThreadRun, ThreadDispatcher
from batchstream._core.arguments import DEFAULT_MAX_BUFFERED, DEFAULT_MAX_PENDING
from batchstream._core.errors import SourceError
from batchstream._core.records import FinishReason, StreamEnd
from batchstream._handoff.buffer import Buffer

if TYPE_CHECKING:
    from batchstream._batching.metrics import Metrics
    from batchstream._batching.request import Request
    from batchstream._core.arguments import OnOverflow
    from batchstream._core.markers import End, Fail, Last, Many, Signal
    from batchstream._pumps.worker_thread import WorkerThread

T = TypeVar("T", default=Any)
RequestT = TypeVar("RequestT", default=Any)
_RequestT_contra = TypeVar("_RequestT_contra", contravariant=True)
_T_co = TypeVar("_T_co", covariant=True)


class StepEngine(Protocol[_RequestT_contra, _T_co]):
    """A model that `ContinuousBatcher` drives: requests join it and leave it between two steps.

    All methods are called in one thread at a time, in this order: `remove` for those that have
    left, `add` for those that join, and then `step`, as long as there is anybody.
    """

    def add(self, slot: int, request: _RequestT_contra) -> None:
        """Let a request join, in a slot that is free.

        One that raises has added nothing, and fails this request alone.
        """

    def step(self) -> Mapping[int, _T_co | Last[_T_co] | Many[_T_co] | End | Fail | Signal | None]:
        """Make one step, and return an output for each slot in use.

        Or a marker, as in the steps of a source: `Last`, `EOS` and so on; None where that is the
        end mark; and nothing (or `SKIP`) for a slot that goes on without an output. What it raises
        fails all requests in the engine.
        """

    def remove(self, slot: int) -> None:
        """Free what the slot's request needed: it has finished, was cancelled, or has failed.

        Called exactly once for each `add`; after a `step` that raised as well, unless there is a
        factory to make another engine. What it raises goes to `sys.unraisablehook`.
        """


class ContinuousBatcher(AnyBatcher[RequestT, T]):
    """Drives a model step by step, and returns a stream for each request that joins it.

    Before each step those who have finished or left are removed from the engine, and those who
    wait, first come first served, are added to the slots that are free. A worker's thread does
    that, and nothing at all while there is no request.

    Args:
        engine: The model; or a function without arguments that makes one, such as its class. It is
            called in the worker's thread when the first request joins, and again for the next
            request after an engine has raised in a step.
        max_batch_size: How many slots the engine has.
        max_pending: How many requests may wait while none is free; others are refused with
            `OverloadedError`.
        cost: A function of a request that says what it takes of `max_batch_cost`, its part of a
            cache for example.
        max_batch_cost: What the requests in the engine may cost together.
        eos: See `BatchedStream`, as for the other options not explained here.
        is_eos: It runs in the worker's thread.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: Finish a stream with `length` once it has been given so many outputs; a
            number, or a function of a request that returns one or None.
        max_buffered: How many outputs a live stream may hold unread.
        on_overflow: `"cancel"` ends a stream that holds more, with `SlowConsumerError` after what
            it holds: those who share a batch are strangers. `"wait"` lets all wait for it.
        metrics: Is told what happens; see `Metrics`.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.

    Blocking: never.
    Threads: any. A thread of its own begins with the first request; an idle one takes no time.

    Example:
        >>> import batchstream
        >>> class Countdown:
        ...     def __init__(self):
        ...         self.counts = {}
        ...
        ...     def add(self, slot, request):
        ...         self.counts[slot] = request
        ...
        ...     def step(self):
        ...         step = {slot: count or batchstream.EOS for slot, count in self.counts.items()}
        ...         self.counts = {slot: count - 1 for slot, count in self.counts.items()}
        ...         return step
        ...
        ...     def remove(self, slot):
        ...         del self.counts[slot]
        >>> with batchstream.ContinuousBatcher(Countdown, max_batch_size=2) as batcher:
        ...     streams = [batcher.stream(start) for start in (3, 1, 2)]
        ...     print([list(stream) for stream in streams])
        [[3, 2, 1], [1], [2, 1]]
    """

    __slots__ = ("__weakref__",)

    def __init__(
        self,
        engine: StepEngine[RequestT, T] | Callable[[], StepEngine[RequestT, T]],
        *,
        max_batch_size: int,
        max_pending: int = DEFAULT_MAX_PENDING,
        cost: Callable[[RequestT], float] | None = None,
        max_batch_cost: float | None = None,
        eos: object = None,
        is_eos: Callable[[T], object] | None = None,
        include_eos: bool = False,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        max_buffered: int = DEFAULT_MAX_BUFFERED,
        on_overflow: OnOverflow = "cancel",
        metrics: Metrics | None = None,
    ) -> None:
        terms: Terms[RequestT, T] = Terms(
            max_batch_size=max_batch_size,
            batch_timeout=0.0,
            max_pending=max_pending,
            workers=1,
            key=None,
            cost=cost,
            max_batch_cost=max_batch_cost,
            eos=eos,
            is_eos=is_eos,
            include_eos=include_eos,
            max_outputs=max_outputs,
            require_eos=False,
            max_buffered=max_buffered,
            on_overflow=on_overflow,
            metrics=metrics,
        )
        seats = Engine(engine)

        def run_in_thread(
            dispatcher: ThreadDispatcher[T], requests: list[Request[T]], thread: WorkerThread
        ) -> _EngineRun[T]:
            return _EngineRun(dispatcher, seats.use(dispatcher.context), requests, thread)

        self._dispatcher = ThreadDispatcher(terms, run_in_thread)


class _EngineRun(AnyThreadRun[T]):
    """A batch that requests join and leave while it runs, until nobody is left or waits."""

    def __init__(
        self,
        dispatcher: ThreadDispatcher[T],
        engine: Engine,
        requests: list[Request[T]],
        thread: WorkerThread,
    ) -> None:
        terms = dispatcher.terms
        super().__init__(
            engine,
            terms.vacant_core(),
            max_buffered=terms.max_buffered,
            on_overflow=terms.on_overflow,
            worker=thread,
            places=dispatcher.places,
            buffers=[_vacancy()] * terms.max_batch_size,
        )
        self._dispatcher = dispatcher
        self._engine = engine
        # The lowest comes last, and is taken first.
        self._free = list(reversed(range(terms.max_batch_size)))
        self._costs: dict[int, float] = {}  # of those in the engine, by slot
        self._joining = deque(requests)
        self._serve(dispatcher, [])

    @property
    def free_slots(self) -> int:
        """How many requests may join it before the next step."""
        return len(self._free)

    def _goes_on(self) -> bool:
        super()._goes_on()
        if not self._core.running:  # it was fed what is no step
            self._engine.discard()
            return False
        live = self._core.live
        if len(live) < len(self._costs):  # somebody has left
            for slot in self._engine.keep(live):
                self._free.append(slot)
                del self._costs[slot]
        if not self._joining and self._free and self._dispatcher.has_waiting:
            spent = sum(self._costs.values())
            self._joining.extend(self._dispatcher.take_joining(len(self._free), spent))
        while self._joining:
            self._let_join(self._joining.popleft())
        return self._core.has_live

    def _let_join(self, request: Request[T]) -> None:
        if request.ends or self._dispatcher.closed:  # it need not be sent
            self._dispatcher.fail_all([request], closed_error())
            return
        slot = self._free.pop()
        try:
            self._engine.add(slot, request.content)
        except BaseException as error:  # noqa: BLE001 - told to whom it concerns
            self._free.append(slot)
            self._dispatcher.fail_all([request], error)
            return
        self._costs[slot] = request.cost
        self._occupy(slot, request, request.max_outputs)
        self._seat(slot, request)

    def _end(self) -> None:
        # Nobody, unless the run itself has failed.
        self._dispatcher.fail_all(self._joining, SourceError("the batch has ended unexpectedly"))
        super()._end()

    def _break_off(self, error: BaseException) -> None:
        super()._break_off(error)
        self._engine.discard()


def _vacancy() -> Buffer[Any]:
    """Return what stands for an occupant where there is none yet."""
    buffer: Buffer[Any] = Buffer(0)  # it may stand in all slots at once
    buffer.finish(StreamEnd(FinishReason.EXHAUSTED, 0))
    return buffer
