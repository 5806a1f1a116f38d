"""A connection of a client to a server, and the requests that were sent over it."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from batchstream._remote.protocol import FROM_SERVER, Incoming, Outgoing

if TYPE_CHECKING:
    from batchstream._handoff.buffer import Buffer
    from batchstream._remote.protocol import Record
    from batchstream._remote.sockets import Opened

_RECEIVED_AT_ONCE: Final = 2**18


class SentOwner(Protocol):
    """What has sent a request: a link.

    Attributes:
        enough: How many outputs that were taken are acknowledged at once.
    """

    enough: int

    def note_room(self, sent: SentRequest) -> None:
        """Take note that there is enough to acknowledge; from any thread."""


class SentRequest:
    """A request that was sent.

    Args:
        link: The link.
        connection: The connection that carried it.
        number: Its number on that connection.
        slot: Its slot.
        buffer: What its stream holds.
        is_unbounded: Whether that may be any number of outputs: all count as taken at once.
    """

    __slots__ = (
        "_link",
        "acknowledged",
        "buffer",
        "connection",
        "is_unbounded",
        "number",
        "received",
        "slot",
    )

    def __init__(
        self,
        link: SentOwner,
        connection: Connection,
        number: int,
        slot: int,
        buffer: Buffer[Any],
        *,
        is_unbounded: bool,
    ) -> None:
        self._link = link
        self.connection = connection
        self.number = number
        self.slot = slot
        self.buffer = buffer
        self.is_unbounded = is_unbounded
        self.received = 0
        self.acknowledged = 0

    @property
    def taken(self) -> int:
        """How many outputs the consumer has taken that were not acknowledged."""
        unread = 0 if self.is_unbounded else len(self.buffer.outputs)
        return self.received - unread - self.acknowledged

    def made_room(self, _: object) -> None:
        """Wake the step if there is enough to acknowledge; from the consumer."""
        if self.taken >= self._link.enough:
            self.buffer.on_room = None
            self._link.note_room(self)


class Connection:
    """A connection to a server.

    Args:
        opened: The socket and the frame limit, after the greeting.
        max_frame: How many bytes a frame of the server may have.

    Attributes:
        socket: Its socket.
        max_frame: How many bytes a frame of this end may have.
        outgoing: What is to be sent.
        by_number: The requests that were sent over it, and have not ended.
        goaway_reason: Why the server accepts no other request; None if it does.
    """

    def __init__(self, opened: Opened, max_frame: int) -> None:
        self.socket = opened.socket
        self.max_frame = opened.max_frame
        self.outgoing = Outgoing(opened.max_frame)
        self.by_number: dict[int, SentRequest] = {}
        self.goaway_reason: str | None = None
        self._incoming = Incoming(FROM_SERVER, max_frame)
        self._unsent = memoryview(b"")

    @property
    def has_unsent(self) -> bool:
        """Whether the system has not taken all that is to be sent."""
        return bool(self._unsent)

    def send(self) -> None:
        """Send as much as the system takes."""
        while self._unsent or self.outgoing:
            if not self._unsent:
                self._unsent = memoryview(self.outgoing.take())
            try:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
            except BlockingIOError:
                return
            except OSError:
                # Some bytes are lost, so that the connection has to end, if it has not ended. The
                # end is read after the records that came before it; the last one may be the reason.
                self._unsent = memoryview(b"")
                with suppress(OSError):
                    self.socket.shutdown(socket.SHUT_RDWR)

    def receive(self) -> list[Record] | None:
        """Return the records that have come whole; None if nothing has come.

        Raises:
            OSError: The connection has ended.
            ProtocolError: What has come is no record.
        """
        try:
            data = self.socket.recv(_RECEIVED_AT_ONCE)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionError("it has ended")
        self._incoming.feed(data)
        return self._incoming.take_records()
