"""The dispatcher whose one worker drives an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._batching.batches.engine_batch import VACANCY, EngineBatch
from batchstream._batching.dispatching.thread_dispatcher import ThreadDispatcher
from batchstream._core.cores import core_of
from batchstream._pumps.thread import ThreadPump
from batchstream._text.core import decoding

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream._batching.engine import Engine
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.requests.request import Request
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._pumps.fanout import Fanout
    from batchstream._pumps.worker_thread import WorkerThread

T = TypeVar("T")


def engine_dispatcher(
    options: BatcherOptions[Any, T],
    engine: Engine,
    show: Callable[[Fanout[T]], object] | None = None,
) -> ThreadDispatcher[T]:
    """Return a dispatcher for an engine.

    Args:
        options: What the batcher was made with; its `max_batch_size` is the number of slots.
        engine: The engine.
        show: Called with the fan-out of each batch before its first step, in the worker's thread,
            for an engine that has to know the requests in its slots.
    """
    options.slots = slots = options.max_batch_size  # the engine's own; fewer may be used later

    def open_in_thread(
        dispatcher: ThreadDispatcher[T], requests: list[Request[T]], thread: WorkerThread
    ) -> tuple[ThreadPump[T], EngineBatch[T]]:
        made_before = engine.made
        engine.drive(dispatcher.context)
        if engine.made > made_before > 0:
            dispatcher.log.engine_made()
        try:
            batch: EngineBatch[T] = EngineBatch(dispatcher, engine, requests)
            core: Demultiplexer[T] = core_of(options.rules, slots, vacant=True, requeues=True)
            if options.decode is not None:
                core = decoding(core)
            pump: ThreadPump[T] = ThreadPump(
                engine,
                core,
                options.bound,
                thread=thread,
                hooks=batch,
                parking=dispatcher.parking,
                buffers=[VACANCY] * slots,
            )
            pump.wake_source = engine.waker
            if show is not None:
                show(pump.fanout)
            batch.serve(pump, [])
        except BaseException:  # no pump closes it
            engine.stop_driving()
            raise
        return pump, batch

    return ThreadDispatcher(options, open_in_thread, engine)
