"""A model in another process, as an engine whose steps are made there.

Theory of operation
-------------------

The client's end is an engine of a batcher. `add` and `remove` note what to send; `step` sends it,
waits until the server has sent something or the batcher has something to do, and returns what has
come. So all that a batcher does for requests it does for these: streams, bounds, deadlines,
metrics.

Each request has a window: as many outputs as its stream holds at most. Outputs are acknowledged as
its consumer takes them. A consumer that keeps up costs no call for that, as each step looks at what
its stream holds; for one that lags the stream is asked to call back, and the call wakes the step.

Requests go over one connection, which is opened for the first. Before a step sends requests it
reads what has come. If the connection has ended meanwhile, or the server has said that it goes
away, the requests go over a new one, to the server that listens by then. Streams end on the
connection on which they have begun. If there is no server, only the requests still to be sent fail.
While a server has not answered the greeting they wait, and the steps give what the streams of other
connections get: a server that hangs holds up its own requests alone.

A connection that ends fails the requests that were sent over it.
"""

from __future__ import annotations

import logging
import math
import select
import socket
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from batchstream._core.errors import (
    ClosedError,
    CostError,
    OverloadedError,
    SourceError,
)
from batchstream._core.markers import End, Fail, Many
from batchstream._log import write_line
from batchstream._pumps.process import forkable
from batchstream._remote.connection import Connection, SentRequest
from batchstream._remote.errors import ConnectionLostError, ProtocolError
from batchstream._remote.payloads import (
    Terms,
    read_end,
    read_error,
    read_outputs,
    submission,
    too_large,
)
from batchstream._remote.protocol import (
    ACKNOWLEDGE,
    CANCEL,
    END,
    GOAWAY,
    OUTPUTS,
    REFUSED,
    SUBMIT,
    counted,
    is_too_large,
)

if TYPE_CHECKING:
    from typing import TypeAlias

    from batchstream._remote.link_options import LinkOptions
    from batchstream._remote.protocol import Record
    from batchstream._remote.sockets import Handshake

    Elements: TypeAlias = dict[int, list[Any]]
    """What a step gives, by slot."""

_CALLS_AT_ONCE: Final = 2**18
_SECONDS_FOR_LAST_CANCELS: Final = 1.0
_LONGEST_WAIT: Final = 3600.0
"""Seconds, of which the system takes no more than so many."""


class Link:
    """The engine.

    Args:
        options: What it is made with.

    Attributes:
        enough: How many outputs that were taken are acknowledged at once.
    """

    def __init__(self, options: LinkOptions) -> None:
        self._options = options
        self.enough = max(options.window // 2, 1)
        self._numbers = 0
        self._joining: list[tuple[int, bytes]] = []
        self._by_slot: dict[int, SentRequest] = {}
        self._touched: list[SentRequest] = []  # which the last step has given outputs
        self._with_room: deque[SentRequest] = deque()  # appended to by any thread
        # New requests go over the last, if its server accepts any; the others end their streams.
        self._connections: list[Connection] = []
        self._last_goaway_reason: str | None = None  # until there is another server
        self._handshake: Handshake | None = None  # with the next server; there are requests for it
        self._poll = select.poll()
        self._bell, self._ringer = socket.socketpair()
        self._bell.settimeout(0)
        self._ringer.settimeout(0)
        self._poll.register(self._bell, select.POLLIN)
        forkable.add(self)

    # ---- the engine

    def add(self, slot: int, request: bytes) -> None:
        """Let a request be sent with the next step."""
        self._joining.append((slot, request))

    def remove(self, slot: int) -> None:
        """Let the server cancel a request, unless it has ended."""
        self._joining = [it for it in self._joining if it[0] != slot]
        if not self._joining:  # a later request begins its own, with the whole time for it
            self._drop_handshake()
        sent = self._by_slot.pop(slot, None)
        if sent is None:
            return
        sent.buffer.on_room = None
        if sent.connection.by_number.pop(sent.number, None) is not None:
            sent.connection.outgoing.add(CANCEL, sent.number)
        self._end_unused()
        if not self._by_slot:  # the next step may be long in coming
            self._touched.clear()
            self._with_room.clear()
            self._send_the_rest()

    def wake(self) -> None:
        """Let a step that waits return; from any thread."""
        with suppress(OSError):  # it is full of calls to wake, or closed
            self._ringer.send(b"!")

    def note_room(self, sent: SentRequest) -> None:
        """Take note that the consumer of a request has taken outputs; from any thread."""
        self._with_room.append(sent)
        self.wake()

    def step(self) -> dict[int, Any]:
        """Send what there is, wait, and return what has come."""
        step: Elements = {}
        if self._joining:
            for connection in list(self._connections):
                while self._read(connection, step):
                    pass
            self._submit(step)
        self._acknowledge()
        for connection in self._connections:
            connection.send()
        if not step:
            for connection in self._wait():
                self._read(connection, step)
        self._end_unused()
        return {
            slot: elements[0] if len(elements) == 1 else Many(elements)
            for slot, elements in step.items()
        }

    def close(self) -> None:
        """End the connections: the servers cancel what they have of them."""
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            handshake.socket.close()
        for connection in self._connections:
            connection.socket.close()
        self._bell.close()
        self._ringer.close()
        for sent in self._by_slot.values():
            sent.buffer.on_room = None

    def after_fork(self) -> None:
        """Close the copies that a forked child has: a connection ends with this process's own."""
        self.close()

    # ---- the connections

    def _current(self) -> Connection | None:
        """Return the connection for new requests; None while a server has not answered yet.

        Raises:
            ConnectionLostError: There is none.
            OSError: The system has no socket left.
        """
        if self._connections and self._connections[-1].goaway_reason is None:
            return self._connections[-1]
        try:
            if self._handshake is None:
                self._handshake = self._options.connect()
                self._poll.register(self._handshake.socket, select.POLLIN)
            opened = self._handshake.opened()
        except ConnectionLostError as error:
            self._drop_handshake()
            if self._last_goaway_reason is None:
                raise
            raise ConnectionLostError(
                f"{self._last_goaway_reason}, and no other is there yet: {error}"
            ) from error
        if opened is None:
            return None
        self._handshake = None
        connection = Connection(opened, self._options.max_frame)  # its socket is polled already
        self._connections.append(connection)
        self._last_goaway_reason = None
        return connection

    def _end_unused(self) -> None:
        """End connections to servers that go away, once they have no request."""
        for connection in list(self._connections):
            if connection.goaway_reason is not None and not connection.by_number:
                self._end_connection(connection)

    def _end_connection(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._poll.unregister(connection.socket)
        connection.socket.close()

    def _drop_handshake(self) -> None:
        if self._handshake is not None:
            self._poll.unregister(self._handshake.socket)
            self._handshake.socket.close()
            self._handshake = None

    # ---- to the server

    def _submit(self, step: Elements) -> None:
        """Send the requests that join, or fail them if there is no server.

        While a server has not answered yet they wait for a later step.

        One that is too large for the model fails, too: how large that is, this end may know only
        now, as it has connected with these requests.
        """
        buffers: list[Any] = self._options.fanout.buffers
        try:
            connection = self._current()
        except ConnectionLostError as error:
            for slot, _ in self._joining:
                if self._last_goaway_reason is not None:  # a server goes away, as it is meant to
                    buffers[slot].refused_with = error
                step.setdefault(slot, []).append(Fail(error))
            self._joining.clear()
            return
        except OSError as error:  # this process has no socket left, which no server is at fault for
            lost = ConnectionLostError(
                f"cannot connect to the model's process at {self._options.path!r}: "
                f"{error.strerror or error}"
            )
            lost.__cause__ = error
            for slot, _ in self._joining:
                step.setdefault(slot, []).append(Fail(lost))
            self._joining.clear()
            return
        if connection is None:
            return
        joining, self._joining = self._joining, []
        for slot, content in joining:
            request = buffers[slot]
            payload = submission(_terms_of(request), content)
            if is_too_large(payload, connection.max_frame):
                refusal = too_large(
                    content, f"{connection.max_frame} (max_frame of the model's process)"
                )
                step.setdefault(slot, []).append(Fail(refusal))
                continue
            self._numbers += 1
            sent = SentRequest(
                self,
                connection,
                self._numbers,
                slot,
                request,
                is_unbounded=request.on_end is not None,
            )
            self._by_slot[slot] = connection.by_number[sent.number] = sent
            connection.outgoing.add(SUBMIT, sent.number, payload)

    def _acknowledge(self) -> None:
        """Acknowledge what consumers have taken, where it is enough, and ask others to call."""
        touched, self._touched = self._touched, []
        while self._with_room:
            touched.append(self._with_room.popleft())
        for sent in touched:
            if sent.number not in sent.connection.by_number:
                continue
            if (taken := sent.taken) >= self.enough:
                sent.acknowledged += taken
                sent.connection.outgoing.add(ACKNOWLEDGE, sent.number, counted(taken))
            if sent.received - sent.acknowledged >= self.enough:
                sent.buffer.on_room = sent.made_room
                sent.made_room(None)  # once more: what was taken before has not called

    def _send_the_rest(self) -> None:
        """Send all, as far as the servers take it in a moment: no step may follow."""
        until = monotonic() + _SECONDS_FOR_LAST_CANCELS
        for connection in self._connections:
            connection.send()
            if connection.has_unsent:
                poll = select.poll()
                poll.register(connection.socket, select.POLLOUT)
                poll.poll(max(until - monotonic(), 0.0) * 1000)
                connection.send()

    # ---- from the server

    def _wait(self) -> list[Connection]:
        """Wait until something has come, or `wake` was called; send meanwhile what is left.

        The next server's answer, and the end of the time for it, are waited for, too.

        Returns:
            The connections to be read.
        """
        while True:
            for connection in self._connections:
                is_full = connection.has_unsent
                events = select.POLLIN | (select.POLLOUT if is_full else 0)
                self._poll.modify(connection.socket, events)
            handshake = self._handshake
            most = None
            if handshake is not None:
                most = math.ceil(min(handshake.seconds_left, _LONGEST_WAIT) * 1000)
            ready = dict(self._poll.poll(most))
            found = [
                it for it in self._connections if ready.get(it.socket.fileno(), 0) & ~select.POLLOUT
            ]
            if self._bell.fileno() in ready:
                with suppress(BlockingIOError):
                    self._bell.recv(_CALLS_AT_ONCE)
                return found
            # Nothing is ready where the time for the handshake is over.
            if found or (handshake and (not ready or handshake.socket.fileno() in ready)):
                return found
            for connection in self._connections:
                connection.send()

    def _read(self, connection: Connection, step: Elements) -> bool:
        """Add to a step what has come, and return whether anything has."""
        try:
            records = connection.receive()
        except (OSError, ProtocolError) as error:
            self._lose(connection, error, step)
            return False
        for record in records or ():
            self._read_record(connection, record, step)
        return records is not None

    def _lose(self, connection: Connection, error: Exception, step: Elements) -> None:
        """Fail the requests of a connection that has ended."""
        lost = ConnectionLostError(
            f"the connection to the model's process at {self._options.path!r} was lost: {error}"
        )
        lost.__cause__ = error
        for sent in connection.by_number.values():
            # A server that goes away refuses what it has not begun, and then ends: nothing came of
            # this request, so that it was refused, in all likelihood.
            if connection.goaway_reason is not None and not sent.received:
                request: Any = sent.buffer
                request.refused_with = lost
            step.setdefault(sent.slot, []).append(Fail(lost))
        connection.by_number.clear()
        self._end_connection(connection)

    def _read_record(self, connection: Connection, record: Record, step: Elements) -> None:
        if record.kind == GOAWAY:
            self._last_goaway_reason = connection.goaway_reason = record.payload.decode(
                errors="replace"
            )
            text = f"{self._last_goaway_reason}: requests go to the next that listens there"
            write_line(logging.INFO, "remote_leaves", "%s", text)
            return
        sent = connection.by_number.get(record.number)
        if sent is None:  # it has left
            return
        elements = step.setdefault(sent.slot, [])
        try:
            if record.kind == OUTPUTS:
                outputs = read_outputs(record.payload)
                sent.received += len(outputs)
                elements += outputs
                self._touched.append(sent)
                return
            if record.kind == END:
                elements.append(self._end(sent, record))
            else:
                elements.append(Fail(_error_of(sent, record)))
        except SourceError as error:
            if record.kind == OUTPUTS:
                connection.outgoing.add(CANCEL, sent.number)
            elements.append(Fail(error))
        del connection.by_number[sent.number]

    def _end(self, sent: SentRequest, record: Record) -> End:
        """Return an end, and let the stream's end say how many outputs the model has given."""
        end, given = read_end(record.payload)
        if given != sent.received:  # a decoder has made others of them
            self._options.fanout.core._go_on(sent.slot, given - sent.received)  # noqa: SLF001 - made for this
        return end


def _error_of(sent: SentRequest, record: Record) -> Exception:
    """Return the error that a request has ended with, or was refused with."""
    error = read_error(record.payload)
    if record.kind == REFUSED and isinstance(error, OverloadedError | ClosedError | CostError):
        request: Any = sent.buffer
        request.refused_with = error
    return error


def _terms_of(request: Any) -> Terms:
    """Return how a request was submitted, and let the model alone look after its gaps.

    Where a consumer lags, the model may wait for it: only there the gap is known to be no fault.
    """
    request_id = request.id if request.is_named else None
    is_patient = request.on_end is not None
    deadlines = request.deadlines
    if deadlines is None:
        return Terms(request_id=request_id, is_patient=is_patient)
    terms = Terms(
        deadlines.timeout,
        deadlines.wait_timeout,
        deadlines.first_timeout,
        deadlines.gap_timeout,
        request_id,
        is_patient,
    )
    deadlines.gap_timeout = None
    return terms
