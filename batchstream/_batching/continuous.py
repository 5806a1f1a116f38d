"""Continuous batching: a slot whose request has finished is refilled before the next step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, overload

from typing_extensions import TypeVar

from batchstream._batching.batcher import Batcher
from batchstream._batching.calls.reconfiguration import reconfigure
from batchstream._batching.calls.upstream import RequestUpstream
from batchstream._batching.dispatching.engine_dispatcher import engine_dispatcher
from batchstream._batching.engine import Engine
from batchstream._batching.options import BatcherOptions
from batchstream._core.arguments import DEFAULT_MAX_BUFFERED, DEFAULT_MAX_PENDING
from batchstream._core.rules import EndRules

if TYPE_CHECKING:
    from collections.abc import Hashable

    from batchstream._batching.telemetry.metrics import MetricsOrFactory
    from batchstream._batching.telemetry.traces import Traces
    from batchstream._core.arguments import OnOverflow
    from batchstream._core.markers import End, Fail, Last, Many, Requeue, Signal
    from batchstream._core.per_request import per_request
    from batchstream._text.decoder import Decoder

T = TypeVar("T", default=Any)
RequestT = TypeVar("RequestT", default=Any)
_RequestT_contra = TypeVar("_RequestT_contra", contravariant=True)
_T_co = TypeVar("_T_co", covariant=True)


class StepEngine(Protocol[_RequestT_contra, _T_co]):
    """A model that `ContinuousBatcher` drives: requests join it and leave it between two steps.

    All methods are called in one thread at a time, in this order: `remove` for requests that have
    ended, `add` for requests that join, and then `step`, as long as there is a request.

    An engine may have a method `step_cost(slot)`, which returns what the next step costs for a
    slot, as a number; it is asked where the batcher has a `max_step_cost`, before requests join.

    An engine that holds threads or memory of its own may have a method `close()`, a plain
    function. An engine that the batcher has made, with a class or function, is closed once, in the
    same thread: after it has raised in a step, or when the batcher is closed or dropped, or the
    program exits. One that fails is closed without a `remove` before. An idle batcher keeps its
    engine. What `close` raises goes to `sys.unraisablehook`. An engine that you pass as an object
    is yours to close. In a forked child the engine of the parent is not closed: an idle batcher
    makes another there.

    An engine whose `step` waits for something, such as a frame of another process, may have a
    method `wake()`, a plain function: it makes the step return, with `{}` if there is nothing, so
    that requests can join and leave. It is called when a request was submitted, when one has ended
    otherwise than by a step, wherever it was, when limits were changed and when the batcher is
    closed, behind the change that it tells of. It is called in any thread, in a signal's handler or
    a finalizer too: so it waits for nothing, and takes no lock that other code holds. It may come
    before the step begins that has to return: a `step` that waits forgets a `wake` as it returns,
    never as it begins. It may come for no reason, and once more for an engine that was just closed.
    What it raises goes to `sys.unraisablehook`. The `put` of a `queue.SimpleQueue` from which
    `step` takes what it waits for does all of that.
    """

    def add(self, slot: int, request: _RequestT_contra) -> None:
        """Let a request join, in a slot that is free.

        One that raises has added nothing, and fails this request alone.

        Raises:
            NotNow: There is no room at the moment: the request waits on, in front of all others.
                It is added again before the first step after another has left the engine. If
                there is no other in it, the request fails with `RequestError`.
            RequestError: The client is at fault, and its server answers with 422.
            Exception: Any other error is one of the server's.
        """

    def step(
        self,
    ) -> Mapping[int, _T_co | Last[_T_co] | Many[_T_co] | End | Fail | Requeue | Signal | None]:
        """Make one step, and return an output for each slot in use.

        Or a marker, as in the steps of a source: `Last`, `EOS` and so on; None where that is the
        end mark; and nothing (or `SKIP`) for a slot that goes on without an output. `Requeue`, also
        behind the outputs of a `Many`, gives the slot back: its request is removed, and added again
        later. What it raises fails all requests in the engine.
        """

    def remove(self, slot: int) -> None:
        """Free what the slot's request needed: it has ended, or its slot was given back.

        Called exactly once for each `add`; after a `step` that raised as well, unless there is a
        factory to make another engine. What it raises goes to `sys.unraisablehook`.
        """


class ContinuousBatcher(Batcher[RequestT, T]):
    """Drives a model step by step, and returns a stream for each request that joins it.

    Before each step the requests that have ended are removed from the engine, and the
    waiting ones, first come first served, are added to the slots that are free. A worker's thread
    does that, and nothing at all while there is no request.

    Args:
        engine: The model; or a function without arguments that makes one, such as its class. It is
            called in the worker's thread when the first request joins, and again for the next
            request after an engine has raised in a step. What it makes is closed, if it has a
            `close`, so let it make a new one each time. An engine serves one batcher at a time.
        max_batch_size: How many slots the engine has.
        max_pending: How many requests may wait while none is free; others are refused with
            `OverloadedError`.
        cost: A function of a request that says what it takes of `max_batch_cost`, its part of a
            cache for example.
        max_batch_cost: What the requests in the engine may cost together.
        eos: See `BatchedStream`, as for the other options not explained here.
        is_eos: A predicate on outputs, or `per_request` of a function that returns a request's own.
            It runs in the worker's thread.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: Finish a stream with `length` once it has been given so many outputs; a
            number, or a function of a request that returns one or None.
        decode: A function of a request that returns its decoder, such as a `TextDecoder` of
            `batchstream.text`, or None for a request whose outputs stay as they are; it is called
            when the request is submitted. `eos`, `is_eos` and `max_outputs` are about the outputs
            of the model, such as token ids, and so are the counts in statistics and ends; the
            stream has what the decoder makes of them. A stop string ends the stream in the step
            that completes it.
        max_buffered: How many outputs a live stream may hold unread.
        on_overflow: `"cancel"` ends a stream that holds more, with `SlowConsumerError` after what
            it holds: requests that share a batch have nothing to do with each other. `"wait"` lets
            the batch wait for it. `"merge"` does neither and loses nothing: what comes is merged
            with the last output that the stream holds.
        merge: With `"merge"`: a function of two neighbouring outputs, the earlier one first, that
            returns one and changes neither, such as `operator.add` for text and lists; see
            `AsyncBatchedStream`.
        max_buffered_bytes: How many bytes a live stream may hold unread; see `AsyncBatchedStream`.
        size_of: A function of an output that returns its bytes; for text and bytes none is needed.
        step_cost: A function of a request that says what its first step takes of `max_step_cost`,
            the length of its prompt for example. From its first output on a request takes 1; unless
            the engine has a method `step_cost(slot)`, which says what it takes in the next step.
        max_step_cost: What the next step may cost at most when a request joins. The first that does
            not fit waits, and none overtakes it; one whose first step costs more by itself is
            refused.
        metrics: Its methods are called as things happen; see `Metrics`. Or a function without
            arguments that returns such an object, such as its class: it is called once, in the
            process and by the call that submits the first request. Or several, in a list.
        traces: Its methods are called for each single request, to trace it; see `Traces`.
        name: What metrics, logs and errors call the batcher; without it metrics and logs call it
            by the name of what it runs.
        max_pending_cost: What the requests that wait may cost together; one that would be too much
            is refused as well.
        priority: A function of a request that returns a whole number, its band. While a request of
            a lower number waits, none of a higher one joins a batch. 0 for all if it is None.
        tenant: A function of a request that returns whose it is, such as an account, hashable. The
            tenants of a band share the batches by what their requests cost, or by their number
            if there is no `cost`. Within a band, a tenant's requests are served in the order of
            arrival.
        share: A function of a request that returns the weight of its tenant; 1 if it is None.
        max_pending_per_tenant: How many requests of one tenant may wait.
        drain: For how many seconds the end of a `with` or `async with` block lets requests end
            before it closes the batcher, as `close(drain=...)` does. None closes it at once, and so
            does an error that leaves the block. For a server whose lifespan is such a block.

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

    @overload
    def __init__(
        self,
        engine: StepEngine[RequestT, T] | Callable[[], StepEngine[RequestT, T]],
        *,
        max_batch_size: int,
        max_pending: int = DEFAULT_MAX_PENDING,
        cost: Callable[[RequestT], float] | None = None,
        max_batch_cost: float | None = None,
        eos: object = None,
        is_eos: Callable[[T], object] | per_request[RequestT, T] | None = None,
        include_eos: bool = False,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        decode: None = None,
        max_buffered: int = DEFAULT_MAX_BUFFERED,
        on_overflow: OnOverflow = "cancel",
        merge: Callable[[T, T], T] | None = None,
        max_buffered_bytes: int | None = None,
        size_of: Callable[[T], int] | None = None,
        metrics: MetricsOrFactory | None = None,
        traces: Traces | None = None,
        step_cost: Callable[[RequestT], float] | None = None,
        max_step_cost: float | None = None,
        name: str | None = None,
        max_pending_cost: float | None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        max_pending_per_tenant: int | None = None,
        drain: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        engine: StepEngine[RequestT, Any] | Callable[[], StepEngine[RequestT, Any]],
        *,
        max_batch_size: int,
        max_pending: int = DEFAULT_MAX_PENDING,
        cost: Callable[[RequestT], float] | None = None,
        max_batch_cost: float | None = None,
        eos: object = None,
        is_eos: Callable[[Any], object] | per_request[RequestT, Any] | None = None,
        include_eos: bool = False,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        decode: Callable[[RequestT], Decoder[Any, T] | None],
        max_buffered: int = DEFAULT_MAX_BUFFERED,
        on_overflow: OnOverflow = "cancel",
        merge: Callable[[T, T], T] | None = None,
        max_buffered_bytes: int | None = None,
        size_of: Callable[[T], int] | None = None,
        metrics: MetricsOrFactory | None = None,
        traces: Traces | None = None,
        step_cost: Callable[[RequestT], float] | None = None,
        max_step_cost: float | None = None,
        name: str | None = None,
        max_pending_cost: float | None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        max_pending_per_tenant: int | None = None,
        drain: float | None = None,
    ) -> None: ...
    def __init__(
        self,
        engine: StepEngine[RequestT, Any] | Callable[[], StepEngine[RequestT, Any]],
        *,
        max_batch_size: int,
        max_pending: int = DEFAULT_MAX_PENDING,
        cost: Callable[[RequestT], float] | None = None,
        max_batch_cost: float | None = None,
        eos: object = None,
        is_eos: Callable[[Any], object] | per_request[RequestT, Any] | None = None,
        include_eos: bool = False,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        decode: Callable[[RequestT], Decoder[Any, T] | None] | None = None,
        max_buffered: int = DEFAULT_MAX_BUFFERED,
        on_overflow: OnOverflow = "cancel",
        merge: Callable[[T, T], T] | None = None,
        max_buffered_bytes: int | None = None,
        size_of: Callable[[T], int] | None = None,
        metrics: MetricsOrFactory | None = None,
        traces: Traces | None = None,
        step_cost: Callable[[RequestT], float] | None = None,
        max_step_cost: float | None = None,
        name: str | None = None,
        max_pending_cost: float | None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        max_pending_per_tenant: int | None = None,
        drain: float | None = None,
    ) -> None:
        options: BatcherOptions[RequestT, T] = BatcherOptions(
            EndRules(eos=eos, is_eos=is_eos, include_eos=include_eos, has_requests=True),
            max_batch_size=max_batch_size,
            max_pending=max_pending,
            cost=cost,
            max_batch_cost=max_batch_cost,
            max_outputs=max_outputs,
            decode=decode,
            max_buffered=max_buffered,
            on_overflow=on_overflow,
            merge=merge,
            max_buffered_bytes=max_buffered_bytes,
            size_of=size_of,
            metrics=metrics,
            traces=traces,
            step_cost=step_cost,
            max_step_cost=max_step_cost,
            name=name,
            runs=engine,
            max_pending_cost=max_pending_cost,
            priority=priority,
            tenant=tenant,
            share=share,
            max_pending_per_tenant=max_pending_per_tenant,
            drain=drain,
        )
        self._dispatcher = engine_dispatcher(options, Engine(engine))
        self._upstream = RequestUpstream(self._dispatcher)

    def reconfigure(
        self,
        *,
        max_batch_size: int | None = None,
        max_pending: int | None = None,
        max_batch_cost: float | None = None,
        max_pending_cost: float | None = None,
        max_pending_per_tenant: int | None = None,
        max_step_cost: float | None = None,
    ) -> None:
        """Change limits while requests are served: all given limits at once, or none.

        Requests that join from now on go by them; requests in the engine go on to their ends, also
        above a lowered limit. A request that costs more than a lowered `max_batch_cost`, or whose
        first step costs more than a lowered `max_step_cost`, joins when no other is in the engine.
        More requests may wait than a lowered `max_pending`, `max_pending_cost` or
        `max_pending_per_tenant` allows, until they have joined. A batcher that is draining takes
        them too.

        The limits hold for this batcher in this process: a child that is forked later begins with
        them.

        Args:
            max_batch_size: How many slots are used, at most as many as the batcher was made with,
                as the engine has no more; None leaves it as it is.
            max_pending: How many requests may wait; None leaves it.
            max_batch_cost: What the requests in the engine may cost together, where the batcher
                was made with a `cost`; None leaves it.
            max_pending_cost: What the requests that wait may cost together, where the batcher was
                made with a `cost`; None leaves it, and `math.inf` takes the bound away.
            max_pending_per_tenant: How many requests of one tenant may wait, where the batcher was
                made with a `tenant`; None leaves it, and `sys.maxsize` takes the bound away.
            max_step_cost: What the next step may cost when a request joins, where the batcher was
                made with a `step_cost`; None leaves it.

        Raises:
            TypeError, ValueError: An argument is of the wrong kind, or cannot work: nothing is
                changed.
            ClosedError: The batcher was closed.
            ForkedError: The batcher had requests when this process was forked.
            RuntimeError: A signal's handler has interrupted the batcher.

        Blocking: never.
        Cancellation: a signal's exception leaves all limits as they were, or changes all.
        Threads: any, also the engine's own.
        """
        reconfigure(
            self._dispatcher,
            max_batch_size=max_batch_size,
            max_pending=max_pending,
            max_batch_cost=max_batch_cost,
            max_pending_cost=max_pending_cost,
            max_pending_per_tenant=max_pending_per_tenant,
            max_step_cost=max_step_cost,
        )

    @property
    def max_step_cost(self) -> float | None:
        """What the next step may cost when a request joins; None for any cost; see `reconfigure`.

        Threads: any.
        """
        return self._dispatcher.options.max_step_cost
