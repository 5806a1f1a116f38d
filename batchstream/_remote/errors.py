"""Errors of what lies between two processes: there is no server, or a peer breaks the protocol."""

from __future__ import annotations

from batchstream._core.errors import BatchStreamError, ClosedError


class ConnectionLostError(ClosedError):
    """The model's process cannot be reached, or has gone while it served the request.

    A `ClosedError`, which the web integrations answer with 503: the next request connects again.
    """


class ProtocolError(BatchStreamError):
    """A peer has sent what the protocol does not allow: this connection ends, others go on."""


class RemoteTraceback(Exception):  # noqa: N818 - it is shown as the cause of an error
    """The traceback of an error in the model's process, as text: the `__cause__` of the error."""

    def __str__(self) -> str:
        return f"in the model's process:\n\n{self.args[0]}"
