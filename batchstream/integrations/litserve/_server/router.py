"""Takes batches of messages apart, and passes each on to its request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litserve.utils import LitAPIStatus

from batchstream.integrations.litserve._server.response_queue import ResponseQueue

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from batchstream.integrations.litserve._link.messages import MessageBatch
    from batchstream.integrations.litserve._link.pipes import WorkerPipes


class MessageRouter:
    """An entry of LitServe's response buffer to which batches of messages are addressed.

    LitServe appends to the `response_queue` of an entry and sets its `event`: this object is both.

    Args:
        buffer: LitServe's response buffer.
        pipes: To the workers, for receipts.
    """

    worker_id = None
    response = None

    def __init__(self, buffer: MutableMapping[Any, Any], pipes: WorkerPipes | None = None) -> None:
        self._buffer = buffer
        self._pipes = pipes
        self.response_queue = self.event = self

    def __reduce__(self) -> tuple[type[MessageRouter], tuple[dict[Any, Any]]]:
        return MessageRouter, ({},)  # a worker of another API gets it too, and does not use it

    def append(self, response: tuple[MessageBatch, object]) -> None:
        """Pass the messages of a batch on."""
        worker, server, messages = response[0]
        if self._pipes is not None and worker is not None:
            self._pipes.send_receipt(worker, server)
        buffer = self._buffer
        # Before any is added: the messages of one batch count as one, however many they are.
        for uid in {uid for uid, _, status in messages if status == LitAPIStatus.OK}:
            queue = buffer.get(uid)
            if isinstance(queue, ResponseQueue):  # and not the entry of another endpoint
                queue.expect_output()
        for uid, data, status in messages:
            queue = buffer.get(uid)
            if isinstance(queue, ResponseQueue):
                queue.add(data, status)
            elif queue is not None:
                queue.response_queue.append((data, status))
                queue.event.set()

    def set(self) -> None:
        """Do nothing: no client waits for this entry."""
