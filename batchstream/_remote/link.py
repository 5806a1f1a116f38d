"""A connection to a model in another process, as an engine whose steps are made there.

Theory of operation
-------------------

The client's end is an engine of a batcher. `add` and `remove` note what to send; `step` sends it,
waits until the server has sent something or the batcher has something to do, and returns what has
come. So all that a batcher does for requests it does for these: streams, bounds, deadlines,
metrics.

Each request has a window: as many outputs as its stream holds at most. Outputs are acknowledged as
its consumer takes them. A consumer that keeps up costs no call for that, as each step looks at what
its stream holds; for one that lags the stream is asked to call back, and the call wakes the step.

A connection that has ended is noticed with the next step. If that step was to send the first
requests after a pause, the link connects anew, and no request has been lost; or else the step
raises, and all requests fail.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from batchstream._core.errors import RequestError, SourceError
from batchstream._core.markers import End, Fail, Many
from batchstream._pumps.process import forkable
from batchstream._remote.errors import ConnectionLostError, ProtocolError
from batchstream._remote.payloads import (
    Terms,
    read_end,
    read_error,
    read_outputs,
    submission,
)
from batchstream._remote.protocol import (
    ACKNOWLEDGE,
    CANCEL,
    END,
    FROM_SERVER,
    OUTPUTS,
    SUBMIT,
    Incoming,
    Outgoing,
    counted,
    is_too_large,
)

if TYPE_CHECKING:
    from batchstream._handoff.buffer import Buffer
    from batchstream._remote.link_options import LinkOptions
    from batchstream._remote.protocol import Record
    from batchstream._remote.sockets import Connection

_RECEIVED_AT_ONCE: Final = 2**18
_SECONDS_FOR_LAST_RECORDS: Final = 1.0


class _Sent:
    """A request that was sent.

    Args:
        link: The link.
        number: Its number on the connection.
        slot: Its slot.
        buffer: What its stream holds.
        is_unbounded: Whether that may be any number of outputs: all count as taken at once.
    """

    __slots__ = ("_link", "acknowledged", "buffer", "is_unbounded", "number", "received", "slot")

    def __init__(
        self, link: Link, number: int, slot: int, buffer: Buffer[Any], *, is_unbounded: bool
    ) -> None:
        self._link = link
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


class Link:
    """The engine.

    Args:
        options: What it is made with.

    Raises:
        ConnectionLostError: The server cannot be reached.

    Attributes:
        enough: How many outputs that were taken are acknowledged at once.
    """

    def __init__(self, options: LinkOptions) -> None:
        self._options = options
        self.enough = max(options.window // 2, 1)
        self._numbers = 0
        self._joining: list[tuple[int, bytes]] = []
        self._by_slot: dict[int, _Sent] = {}
        self._by_number: dict[int, _Sent] = {}
        self._touched: list[_Sent] = []  # which the last step has given outputs
        self._with_room: deque[_Sent] = deque()  # appended to by any thread
        self._bell, self._ringer = socket.socketpair()
        self._bell.settimeout(0)
        self._ringer.settimeout(0)
        try:
            self._open(options.connect())
        except BaseException:
            self._close_bell()
            raise
        forkable.add(self)

    def _open(self, opened: Connection) -> None:
        self._connection = connection = opened.socket
        self._max_frame = opened.max_frame
        self._incoming = Incoming(FROM_SERVER, self._options.max_frame)
        self._outgoing = Outgoing(self._max_frame)
        self._unsent = memoryview(b"")
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._poll.register(connection, select.POLLIN)

    # ---- the engine

    def add(self, slot: int, request: bytes) -> None:
        """Let a request be sent with the next step."""
        self._joining.append((slot, request))

    def remove(self, slot: int) -> None:
        """Let the server cancel a request, unless it has ended."""
        self._joining = [it for it in self._joining if it[0] != slot]
        sent = self._by_slot.pop(slot, None)
        if sent is None:
            return
        sent.buffer.on_room = None
        if self._by_number.pop(sent.number, None) is not None:
            self._outgoing.add(CANCEL, sent.number)
        if not self._by_slot:  # the next step may be long in coming
            self._touched.clear()
            self._with_room.clear()
            self._send_the_rest()

    def wake(self) -> None:
        """Let a step that waits return; from any thread."""
        with suppress(OSError):  # it is full of calls to wake, or closed
            self._ringer.send(b"!")

    def note_room(self, sent: _Sent) -> None:
        """Take note that the consumer of a request has taken outputs; from any thread."""
        self._with_room.append(sent)
        self.wake()

    def step(self) -> dict[int, Any]:
        """Send what there is, wait, and return what has come.

        Raises:
            ConnectionLostError: The connection has ended.
        """
        if self._joining and not self._by_slot:
            self._revive()
        refused = self._submit()
        self._acknowledge()
        try:
            self._send()
            if not refused:
                self._wait()
            return self._read(self._receive()) | refused
        except (OSError, ProtocolError) as error:
            raise ConnectionLostError(
                f"the connection to the model's process at {self._options.path!r} was lost: {error}"
            ) from error

    def close(self) -> None:
        """End the connection: the server cancels what it has of it."""
        self._connection.close()
        self._close_bell()
        for sent in self._by_slot.values():
            sent.buffer.on_room = None

    def after_fork(self) -> None:
        """Close the copies that a forked child has: the connection ends with this process's own."""
        self.close()

    def _close_bell(self) -> None:
        self._bell.close()
        self._ringer.close()

    # ---- to the server

    def _submit(self) -> dict[int, Any]:
        """Let requests be sent, and return what becomes of those that are too large for the model.

        How large that is, this end may know only now: it has connected with these requests.
        """
        buffers: list[Any] = self._options.fanout.buffers
        refused: dict[int, Any] = {}
        for slot, content in self._joining:
            request = buffers[slot]
            payload = submission(_terms_of(request), content)
            if is_too_large(payload, self._max_frame):
                refused[slot] = Fail(_too_large(content, self._max_frame))
                continue
            self._numbers += 1
            sent = _Sent(
                self, self._numbers, slot, request, is_unbounded=request.on_end is not None
            )
            self._by_slot[slot] = self._by_number[sent.number] = sent
            self._outgoing.add(SUBMIT, sent.number, payload)
        self._joining.clear()
        return refused

    def _acknowledge(self) -> None:
        """Acknowledge what consumers have taken, where it is enough, and ask others to call."""
        touched, self._touched = self._touched, []
        while self._with_room:
            touched.append(self._with_room.popleft())
        for sent in touched:
            if sent.number not in self._by_number:
                continue
            if (taken := sent.taken) >= self.enough:
                sent.acknowledged += taken
                self._outgoing.add(ACKNOWLEDGE, sent.number, counted(taken))
            if sent.received - sent.acknowledged >= self.enough:
                sent.buffer.on_room = sent.made_room
                sent.made_room(None)  # once more: what was taken before has not called

    def _send(self) -> None:
        """Send as much as the system takes."""
        while self._unsent or self._outgoing:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.take())
            try:
                self._unsent = self._unsent[self._connection.send(self._unsent) :]
            except BlockingIOError:
                return

    def _send_the_rest(self) -> None:
        """Send all, as far as the server takes it in a moment: no step may follow."""
        with suppress(OSError):  # a lost connection is noticed with the next request
            self._send()
            if self._unsent:
                self._poll.modify(self._connection, select.POLLOUT)
                self._poll.poll(_SECONDS_FOR_LAST_RECORDS * 1000)
                self._send()
                self._poll.modify(self._connection, select.POLLIN)

    def _revive(self) -> None:
        """Connect anew if the connection has ended while no request was under way."""
        try:
            while data := self._connection.recv(_RECEIVED_AT_ONCE):
                self._incoming.feed(data)
                self._incoming.take_records()  # of requests that have left
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            pass
        opened = self._options.connect()
        self._connection.close()
        self._open(opened)

    # ---- from the server

    def _wait(self) -> None:
        """Wait until something has come, or `wake` was called; send meanwhile what is left."""
        while True:
            self._poll.modify(
                self._connection, select.POLLIN | (select.POLLOUT if self._unsent else 0)
            )
            ready = dict(self._poll.poll())
            if self._bell.fileno() in ready:
                with suppress(BlockingIOError):
                    self._bell.recv(_RECEIVED_AT_ONCE)
                return
            if ready.get(self._connection.fileno(), 0) & ~select.POLLOUT:
                return
            self._send()

    def _receive(self) -> list[Record]:
        try:
            data = self._connection.recv(_RECEIVED_AT_ONCE)
        except BlockingIOError:
            data = None
        if data == b"":
            raise ConnectionError("it has ended")
        if data:
            self._incoming.feed(data)
        return self._incoming.take_records()

    def _read(self, records: list[Record]) -> dict[int, Any]:
        """Return the step that records make."""
        step: dict[int, list[Any]] = {}
        for record in records:
            sent = self._by_number.get(record.number)
            if sent is None:  # it has left
                continue
            elements = step.setdefault(sent.slot, [])
            try:
                if record.kind == OUTPUTS:
                    outputs = read_outputs(record.payload)
                    sent.received += len(outputs)
                    elements += outputs
                    self._touched.append(sent)
                    continue
                if record.kind == END:
                    elements.append(self._end(sent, record))
                else:
                    elements.append(Fail(read_error(record.payload)))
            except SourceError as error:
                if record.kind == OUTPUTS:
                    self._outgoing.add(CANCEL, sent.number)
                elements.append(Fail(error))
            del self._by_number[sent.number]
        return {
            slot: elements[0] if len(elements) == 1 else Many(elements)
            for slot, elements in step.items()
        }

    def _end(self, sent: _Sent, record: Record) -> End:
        """Return an end, and let the stream's end say how many outputs the model has given."""
        end, given = read_end(record.payload)
        if given != sent.received:  # a decoder has made others of them
            self._options.fanout.core._go_on(sent.slot, given - sent.received)  # noqa: SLF001 - made for this
        return end


def _too_large(content: bytes, max_frame: int) -> RequestError:
    return RequestError(
        f"the request has {len(content)} bytes as it is pickled, and with how it is submitted more "
        f"than {max_frame} (max_frame of the model's process)"
    )


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
