"""One request, from what the worker received to the end of its reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchstream.integrations.litserve._worker.encoder import RequestEncoder
    from batchstream.integrations.litserve._worker.reply import Reply


class Context(dict[str, Any]):
    """What LitServe hands to the hooks as a request's `context`: a dict.

    Attributes:
        live: Whether the request can still use outputs: it has neither finished nor failed, and its
            client has not disconnected.
    """

    live = True


class ServedRequest:
    """One of the requests that a worker serves together.

    Args:
        reply: The way back.
        content: What was received.

    Attributes:
        content: The request, and what it becomes on its way to the model.
        context: Its context for the hooks.
        limit: How many outputs it gets at most.
        encoder: Its own `encode_response`, if it has one.
    """

    __slots__ = ("content", "context", "encoder", "limit", "reply")

    def __init__(self, reply: Reply, content: object) -> None:
        self.reply = reply
        self.content = content
        self.context = Context()
        self.limit: int | None = None
        self.encoder: RequestEncoder | None = None

    def release(self) -> None:
        """Drop what the request needed: it gets no more outputs."""
        self.context.live = False
        self.content = None
        if self.encoder is not None:
            self.encoder.close()
            self.encoder = None
