"""How a request is submitted: from the caller's arguments to a request that waits, or is refused.

What the caller's functions return for a request is asked for before the lock is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._batching import clock
from batchstream._batching.dispatching.waking import wake_unstarted, wake_workers
from batchstream._batching.life import forked_error
from batchstream._batching.requests.request import Deadlines, Request, Submission, closed_error
from batchstream._batching.scheduling.decisions import NOTHING_REAPED
from batchstream._core.errors import ClosedError, CostError, OverloadedError, call_quietly
from batchstream._core.records import FinishReason, StreamEnd
from batchstream._handoff.buffer import Buffer
from batchstream._pumps.intake import sizes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream._batching.calls.upstream import RequestUpstream
    from batchstream._batching.dispatching.dispatcher import Dispatcher

T = TypeVar("T")
StreamT = TypeVar("StreamT")


def submit(
    upstream: RequestUpstream[T],
    content: Any,
    make_stream: Callable[[Request[T], Any], StreamT],
    *,
    timeout: float | None,
    wait_timeout: float | None,
    first_timeout: float | None = None,
    gap_timeout: float | None = None,
    on_end: Callable[[Request[T]], object] | None = None,
    is_warm_up: bool = False,
    request_id: str | None = None,
) -> StreamT:
    """Accept a request, and return its stream.

    Args:
        upstream: That of the batcher's streams.
        content: The request.
        make_stream: Makes a stream of the request's buffer and its upstream.
        timeout: For how long the request may last, in seconds.
        wait_timeout: For how long it may wait for a batch, in seconds.
        first_timeout: For how long it may be without its first output, in seconds.
        gap_timeout: For how long it may be without another, from the first on.
        on_end: See `Request`, for one that a `map` submits.
        is_warm_up: Whether it waits for a warm-up to begin, to be taken before all others.
        request_id: What errors and logs call it, if not by a number.

    Raises:
        OverloadedError: As many requests wait as may, or they cost as much.
        RequestError: The request costs more than a batch may. It is a `ValueError`, too.
        ClosedError: The batcher was closed, or is draining.
        ForkedError: The batcher had requests when this process was forked.
        RuntimeError: No worker could run it.
        TypeError, ValueError: A timeout, or a number that a function has returned for the
            request, is not one that it can be; or what `per_request` or `decode` returned is no
            predicate or no decoder.
        Exception: What `key`, `cost`, `batch_cost`, `step_cost`, `max_outputs`, `decode`,
            `priority`, `tenant`, `share`, the function of `per_request` or the factory of the
            metrics raise.
    """
    dispatcher = upstream.dispatcher
    if dispatcher.forked:
        raise forked_error()
    if dispatcher.lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - as Condition asks
        raise RuntimeError("a signal's handler has interrupted the batcher it submits to")
    options, scheduler = dispatcher.options, dispatcher.scheduler
    if options.metrics is not None and options.metrics.unmade:
        options.metrics.make(dispatcher.context.copy())
    deadlines = None
    has_one = timeout is not None or wait_timeout is not None
    if has_one or first_timeout is not None or gap_timeout is not None:
        deadlines = Deadlines.checked(timeout, wait_timeout, first_timeout, gap_timeout)
    bytes_are_bounded = options.bound.max_buffered_bytes is not None and on_end is None
    submission = Submission(
        content if options.prepare is None else options.prepare(content),
        options.cost_of(content) if options.has_cost else 1.0,
        None if options.max_outputs is None else options.limit_of(content),
        None if options.rules.per_request is None else options.rules.is_eos_of(content),
        None if options.decode is None else options.decoder_of(content),
        0.0 if options.step_cost is None else options.step_cost_of(content),
    )
    key = None if options.key is None else options.key(content)
    place = None if options.places is None else options.places.place_of(content)
    request: Request[T] = Request(
        next(dispatcher.numbers),
        submission,
        deadlines,
        scheduler.ended_requests,
        on_end,
        is_warm_up=is_warm_up,
        request_id=request_id,
        batcher=options.name,
    )
    request.place = place
    request.sizes = sizes_of(options.bound) if bytes_are_bounded else None
    if dispatcher.needs_loop:
        dispatcher.prepare()
    # Before the request waits: whatever breaks this off drops the stream, and so cancels it.
    stream = make_stream(request, upstream)
    try:
        refusal = _enqueue(dispatcher, request, key)
        if scheduler.workers.wakeups:
            wake_workers(dispatcher)
        if refusal is None and scheduler.state == "closed":  # meanwhile
            dispatcher.ends.fail(request, closed_error(scheduler.closing))
        if refusal is None:
            return stream
    except BaseException:  # KeyboardInterrupt too: nothing stays half done
        _take_back(upstream, request)
        raise
    # It was never counted: let it not be reaped, as its stream is dropped.
    Buffer.finish(request, StreamEnd(FinishReason.CANCELLED, 0))
    try:
        raise refusal
    finally:
        del refusal  # it holds this frame


def _take_back(upstream: RequestUpstream[T], request: Request[T]) -> None:
    """Cancel a request whose submission was broken off."""
    dispatcher = upstream.dispatcher
    upstream.cancel(request)
    if request.trace is not None and request not in dispatcher.scheduler.totals.open:
        request.trace.ended(request.ends[0])  # it is never counted
    wake_unstarted(dispatcher)


def _enqueue(  # noqa: C901 - one frame for each request
    dispatcher: Dispatcher[T], request: Request[T], key: Any
) -> Exception | None:
    """Let a request wait, or return why it is refused."""
    scheduler, metrics = dispatcher.scheduler, dispatcher.options.metrics
    if dispatcher.options.traces is not None and not request.is_warm_up:
        request.trace = dispatcher.reports.traced(request)
    # In a list, to be popped: an error holds the frame in which it was raised, and its locals.
    refusals: list[Exception] = []
    while True:
        generations = None
        if key is not None or request.place is not None:
            generations = dispatcher.keys.intern(request, key)
        with dispatcher.lock:
            if generations is not None and not dispatcher.keys.are_current(*generations):
                continue
            now = clock.monotonic()
            reaped = scheduler.reap(now)
            try:
                scheduler.submit(request, now)
            except (ClosedError, OverloadedError, CostError) as error:
                refusals.append(error)
        break
    # Behind the request: the step that this lets return is followed by a look at the queue.
    # Read once: the batch may end meanwhile.
    if (model := dispatcher.model) is not None and (wake := model.waker) is not None:
        call_quietly(wake, "wake() of the engine")
    if reaped is not NOTHING_REAPED:
        dispatcher.follow_up(reaped, now)
    if refusals:
        overloaded = dispatcher.options.overloaded
        if overloaded is not None and isinstance(refusals[0], OverloadedError):
            refusals[0] = overloaded(refusals[0])
        dispatcher.reports.refused(
            request,
            refusals[0],
            now,
            so_far=scheduler.totals.refused,
            state=scheduler.state,
        )
    elif metrics is not None and not request.is_warm_up:
        metrics("submitted", tenant=request.tenant)
    if dispatcher.log.is_refusing and not refusals:
        dispatcher.log.accepted(now, scheduler.totals.refused)
    return refusals.pop() if refusals else None
