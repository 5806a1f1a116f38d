"""One connection at the model's end: a client's requests, and what becomes of them.

Theory of operation
-------------------

A request has a stream of the batcher, and a task that copies it: it takes what there is, up to what
the client's window leaves, and queues a record. A step of the model wakes the tasks of all requests
of a connection in one turn of the event loop, and what they queue is written behind that turn, with
one call. Where the window leaves nothing the task does not read, and the batcher's `on_overflow`
decides what becomes of the stream.

A connection that ends cancels its requests, and so does a client that breaks the protocol.

A forked child drops its copies of the connections, so that they end with this process's own. One
that the event loop has just accepted, and that has no session yet, is a copy that stays.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from batchstream._core.errors import (
    ClosedError,
    OverloadedError,
    SourceError,
    error_text,
    report_unraisable,
)
from batchstream._log import write_line
from batchstream._pumps.process import forkable
from batchstream._remote.errors import ConnectionLostError, ProtocolError
from batchstream._remote.payloads import (
    pickled_end,
    pickled_error,
    pickled_outputs,
    read_submission,
)
from batchstream._remote.protocol import (
    CANCEL,
    END,
    ERROR,
    FROM_CLIENT,
    GOAWAY,
    OUTPUTS,
    REFUSED,
    SUBMIT,
    Incoming,
    Outgoing,
    count_in,
    greeting,
    is_too_large,
    read_client_greeting,
    read_greeting,
    server_greeting,
)
from batchstream._remote.sockets import drop_copy, peer_of, refusal_of

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Collection

    from batchstream._batching.batcher import Batcher
    from batchstream._handoff.buffer import Buffer
    from batchstream._remote.payloads import Terms
    from batchstream._remote.protocol import Record
    from batchstream._streams.async_stream import AsyncStream

GREETING_SECONDS: Final = 10.0
"""For how long a client may take to say what it is."""

_MOST_REMEMBERED: Final = 1000
"""How many lines of the log about processes that were refused are remembered."""


class _Served:
    """A request of the client.

    Attributes:
        window: How many outputs may be sent before the client has acknowledged others.
        room: Set when that is not 0, or the request has left.
        stream: Its stream, once it was accepted.
        task: Copies it; kept here, as the event loop does not.
        left: Whether the client does not want it any more.
    """

    __slots__ = ("left", "room", "stream", "task", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.room = asyncio.Event()
        self.room.set()
        self.stream: AsyncStream[Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self.left = False

    def leave(self) -> None:
        """Cancel it."""
        self.left = True
        if self.stream is not None:
            self.stream.cancel()
        elif self.task is not None:  # it waits for room
            self.task.cancel()
        self.room.set()


def take(buffer: Buffer[Any], most: int) -> list[Any]:
    """Take so many outputs at most of what a stream holds.

    The pump may add others meanwhile. With more than its window the client would end the stream, as
    one that is not read.
    """
    outputs: deque[Any] = buffer.outputs
    taken: list[Any] = []
    with suppress(IndexError):  # another thread has just cancelled the stream
        taken.extend(outputs.popleft() for _ in range(min(len(outputs), most)))
    if taken and (on_room := buffer.on_room) is not None:
        on_room(buffer)
    return taken


class Session(asyncio.Protocol):
    """A connection.

    Args:
        batcher: What serves the requests.
        sessions: All connections of the server.
        changed: Set when this one has no request any more, or has ended.
        max_frame: How many bytes a frame may have; what is sent has no more than the client takes.
        trusted_users: Users that the client may run as, besides this process's own and root.
        refused: Why processes were refused, as the log has it; added to.

    Attributes:
        refusal: Why no request is accepted any more, of a server that ends.
    """

    def __init__(
        self,
        batcher: Batcher[Any, Any],
        sessions: set[Session],
        changed: asyncio.Event,
        *,
        max_frame: int,
        trusted_users: Collection[int],
        refused: set[str],
    ) -> None:
        self._batcher = batcher
        self._sessions = sessions
        self._changed = changed
        self._max_frame = max_frame
        self._trusted_users = trusted_users
        self._refused = refused
        self._incoming = Incoming(FROM_CLIENT, max_frame)
        self._outgoing = Outgoing(max_frame)
        self._flushes = False  # whether what is queued will be written in a moment
        self._window: int | None = None  # of the client, once it has greeted
        self._served: dict[int, _Served] = {}
        self._newest = 0  # the highest number of a request
        self._name = "a client"
        self.refusal: str | None = None

    # ---- from the event loop

    def connection_made(self, transport: Any) -> None:
        """See which process connects, and wait for the greeting."""
        self._loop = asyncio.get_running_loop()
        self._transport: Any = transport
        self._timer = self._loop.call_later(GREETING_SECONDS, self._has_not_greeted)
        peer = peer_of(transport.get_extra_info("socket"))
        if peer is not None:
            self._name = f"process {peer[0]}"
        self._sessions.add(self)
        forkable.add(self)
        if (refusal := refusal_of(peer, self._trusted_users)) is not None:
            self._refuse(refusal)

    def data_received(self, data: bytes) -> None:
        """Read what the client has sent; a mistake of its own ends this connection alone."""
        if self._transport.is_closing():
            return
        self._incoming.feed(data)
        try:
            if self._window is None:
                line = self._incoming.take_line()
                if line is None:
                    return
                self._greet(line)
            if self._window is not None:
                for record in self._incoming.take_records():
                    self._follow(record)
        except ProtocolError as error:
            self._refuse(error_text(error))

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel all requests: the client has gone."""
        del error
        forkable.discard(self)
        self._timer.cancel()
        self._sessions.discard(self)
        self._leave_all()
        self._changed.set()

    def _leave_all(self) -> None:
        for served in list(self._served.values()):
            served.leave()
        self._served.clear()

    def after_fork(self) -> None:
        """Drop the copy that a forked child has: the connection ends with this process's own."""
        drop_copy(self._transport.get_extra_info("socket").fileno())

    # ---- from the server

    @property
    def live(self) -> int:
        """How many requests have not ended."""
        return len(self._served)

    def go_away(self, reason: str) -> None:
        """Refuse requests from now on, and let the client submit them to the next server."""
        self.refusal = reason
        if self._window is not None:
            self._put(GOAWAY, 0, reason.encode())

    def fail_all(self, reason: str) -> None:
        """Fail all requests."""
        for number, served in list(self._served.items()):
            self._put_error(number, ClosedError(reason))
            del self._served[number]
            served.leave()

    def close(self) -> None:
        """End the connection behind what is queued."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """End the connection, whatever is queued."""
        self._transport.abort()

    # ---- the greeting

    def _greet(self, line: bytes) -> None:
        """Answer the client's greeting.

        Raises:
            ProtocolError: It is no client, or of another version.
        """
        said = read_greeting(line)
        if (difference := said.difference(self._name)) is not None:
            raise ProtocolError(difference)
        if self.refusal is not None:
            raise ProtocolError(self.refusal)
        self._window, taken = read_client_greeting(said.rest)
        self._timer.cancel()
        self._transport.write(server_greeting(self._max_frame))
        self._max_frame = min(self._max_frame, taken)
        self._outgoing = Outgoing(self._max_frame)
        write_line(logging.INFO, "remote_connected", "%s has connected", self._name)

    def _has_not_greeted(self) -> None:
        self._refuse(f"the client has sent no greeting within {GREETING_SECONDS:g} seconds")

    def _refuse(self, reason: str) -> None:
        """End the connection, and say why at both ends.

        Each text is logged once, because clients retry. A connection that has greeted ends at once,
        with its requests: its client may read nothing any more.
        """
        text = f"the connection of {self._name} was ended: {reason}"
        if text not in self._refused:
            if len(self._refused) == _MOST_REMEMBERED:
                self._refused.clear()
            self._refused.add(text)
            write_line(logging.WARNING, "remote_refused", "%s", text)
        if self._window is None:  # it waits for an answer
            self._transport.write(greeting(f"refused: {reason}"))
            self._transport.close()
        else:
            self._leave_all()
            self._transport.abort()

    # ---- what the client asks for

    def _follow(self, record: Record) -> None:
        served = self._served.get(record.number)
        if record.kind == SUBMIT:
            if record.number <= self._newest:
                raise ProtocolError(f"request {record.number} was submitted twice")
            self._newest = record.number
            self._submit(record)
        elif record.number > self._newest:
            raise ProtocolError(f"request {record.number} was never submitted")
        elif record.kind == CANCEL:
            if served is not None:
                del self._served[record.number]
                served.leave()
        elif (count := count_in(record)) and served is not None:
            served.window += count
            served.room.set()

    def _submit(self, record: Record) -> None:
        number = record.number
        assert self._window is not None  # noqa: S101 - for the type checker
        served = _Served(self._window)
        try:
            if self.refusal is not None:
                raise ConnectionLostError(self.refusal)  # noqa: TRY301 - it ends as the others
            terms, content = read_submission(record.payload)
            if not terms.is_patient:
                served.stream = self._astream(terms, content)
        except BaseException as error:  # noqa: BLE001 - goes to the client
            self._put_raised(REFUSED, number, error)
            return
        self._served[number] = served
        served.task = self._loop.create_task(self._serve(number, served, terms, content))

    def _astream(self, terms: Terms, content: Any) -> AsyncStream[Any]:
        return self._batcher.astream(
            content,
            timeout=terms.timeout,
            wait_timeout=terms.wait_timeout,
            first_timeout=terms.first_timeout,
            gap_timeout=terms.gap_timeout,
            request_id=terms.request_id,
        )

    async def _serve(self, number: int, served: _Served, terms: Terms, content: Any) -> None:
        """Copy the stream of a request to the client, and its end."""
        try:
            while served.stream is None:
                try:
                    served.stream = self._astream(terms, content)
                except OverloadedError:
                    await self._batcher.await_for_room()
            del content
            await self._copy(number, served, served.stream)
        except asyncio.CancelledError:
            served.leave()
            raise
        except BaseException as error:  # noqa: BLE001 - goes to the client; the task has no caller
            if served.stream is not None:
                served.stream.cancel()
            if not served.left:
                self._put_raised(REFUSED if served.stream is None else ERROR, number, error)
        finally:
            self._served.pop(number, None)
            if not self._served:
                self._changed.set()

    async def _copy(self, number: int, served: _Served, stream: AsyncStream[Any]) -> None:
        """Send what a stream gives, as far as the window lets it, and its end.

        Raises:
            Exception: What it ends with; or an output cannot be sent.
        """
        buffer = stream._buffer  # noqa: SLF001 - to take no more than may be sent
        while stream.end is None or buffer.outputs:
            while not (served.window or served.left):
                served.room.clear()
                await served.room.wait()
            try:
                outputs = [await anext(stream)]
            except StopAsyncIteration:
                break
            outputs += take(buffer, served.window - 1)
            served.window -= len(outputs)
            if not served.left:
                self._put_outputs(number, outputs)
        end = stream.end
        if end is None or served.left:
            return
        if end.error is not None:
            self._put_error(number, end.error)
        else:
            self._put(END, number, pickled_end(end))

    # ---- to the client

    def _put_outputs(self, number: int, outputs: list[Any]) -> None:
        """Queue outputs, in as many records as it takes for each to fit into a frame.

        The outputs before one that cannot be sent are sent.

        Raises:
            SourceError: One cannot be pickled, or is too large by itself.
        """
        try:
            payload = pickled_outputs(outputs)
        except SourceError:
            if len(outputs) == 1:
                raise
        else:
            if len(outputs) == 1 or not is_too_large(payload, self._max_frame):
                self._put(OUTPUTS, number, payload)
                return
            del payload  # it may be many times as large as a frame
        half = len(outputs) // 2
        self._put_outputs(number, outputs[:half])
        self._put_outputs(number, outputs[half:])

    def _put_raised(self, kind: int, number: int, error: BaseException) -> None:
        """Let a request end with what was raised for it, including SystemExit of a pickle."""
        if not isinstance(error, Exception):
            report_unraisable(error)
        self._put_error(number, error, kind)

    def _put_error(self, number: int, error: BaseException, kind: int = ERROR) -> None:
        payload, length = pickled_error(error), 1000
        while is_too_large(payload, self._max_frame):
            payload = pickled_error(SourceError(error_text(error)[:length]))
            length //= 2
        self._put(kind, number, payload)

    def _put(self, kind: int, number: int, payload: bytes) -> None:
        """Queue a record, to be written with the others of this turn of the event loop.

        Raises:
            SourceError: It fits into no frame.
        """
        if is_too_large(payload, self._max_frame):
            raise SourceError(
                f"what the model gives has {len(payload)} bytes as it is pickled, more than "
                f"{self._max_frame} (max_frame): pass a larger max_frame to serve and to connect"
            )
        self._outgoing.add(kind, number, payload)
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        if self._outgoing and not self._transport.is_closing():
            self._transport.write(self._outgoing.take())
