"""What goes over a connection: a line of greeting from each end, and then frames of records.

Theory of operation
-------------------

Each end begins with one line of text: the name of the protocol, its version, the version of
batchstream and what else the end has to say. The client says its window, and the server whether
the client may go on; both say how large a frame they take, and neither sends a larger one. So two
versions that cannot talk with each other find that out, whatever a later version makes of the rest;
and so does a program that is no peer at all.

Behind its line an end sends frames. A frame is a length and as many bytes of records; a record has
a kind, the number of a request, and a payload. A step makes many records, and one frame, for all
requests of a connection.

| record | from | payload |
|---|---|---|
| `SUBMIT` | the client | the request and how it was submitted |
| `CANCEL` | the client | nothing |
| `ACKNOWLEDGE` | the client | how many outputs its consumer has taken since the last time |
| `OUTPUTS` | the server | outputs, in their order |
| `END` | the server | why the request has ended, and with what info |
| `ERROR` | the server | the error that it has ended with |
| `REFUSED` | the server | the error with which it was refused |
| `GOAWAY` | the server | why it accepts no request on this connection any more; of no request |

The client gives each request a number, and no number twice. Of each request the server sends at
most as many outputs without an acknowledgement as the client's window has.

This module does no I/O: bytes come in, as many at a time as there are, and records come out.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import Final, NamedTuple

import batchstream
from batchstream._remote.errors import ProtocolError

PROTOCOL: Final = 2
"""The version of what is described above. Ends with different ones refuse each other."""

MAX_LINE: Final = 512
"""How many bytes a greeting may have."""

DEFAULT_MAX_FRAME: Final = 64 * 2**20
"""How many bytes a frame may have, and so a request or an output that is pickled."""

LEAST_IN_FRAME: Final = 4096
"""How many bytes `max_frame` is at least: how a request was submitted alone may take over 1000."""

MOST_IN_FRAME: Final = 2**32 - 1

NAME: Final = "batchstream-remote"

SUBMIT, CANCEL, ACKNOWLEDGE = 1, 2, 3
OUTPUTS, END, ERROR, REFUSED, GOAWAY = 11, 12, 13, 14, 15
FROM_CLIENT: Final = frozenset({SUBMIT, CANCEL, ACKNOWLEDGE})
FROM_SERVER: Final = frozenset({OUTPUTS, END, ERROR, REFUSED, GOAWAY})

_LENGTH: Final = Struct("!I")
_RECORD: Final = Struct("!BQI")
_COUNT: Final = Struct("!I")
_GREETING: Final = re.compile(rf"{NAME} ([0-9]{{1,9}}) (\S{{1,100}}) (.*)")
_FROM_CLIENT: Final = re.compile(r"window=([1-9][0-9]{0,8}) max_frame=([1-9][0-9]{3,9})")
_FROM_SERVER: Final = re.compile(r"ok max_frame=([1-9][0-9]{3,9})")


class Record(NamedTuple):
    """One thing that an end says about a request.

    Attributes:
        kind: What.
        number: Of which request.
        payload: The rest.
    """

    kind: int
    number: int
    payload: bytes


# ---- the greeting


class Greeting(NamedTuple):
    """What the other end has said first.

    Attributes:
        protocol: Which version it speaks.
        version: Which batchstream it runs.
        rest: What else it says.
    """

    protocol: int
    version: str
    rest: str

    def difference(self, peer: str) -> str | None:
        """Return why the two ends cannot talk with each other; None if they can.

        Args:
            peer: What to call the other end.
        """
        own = PROTOCOL, batchstream.__version__
        if (self.protocol, self.version) == own:
            return None
        return (
            f"the versions differ: {peer} has batchstream {self.version} with protocol "
            f"{self.protocol}, and this process has batchstream {own[1]} with protocol {own[0]}: "
            f"install the same batchstream for both, and start both anew"
        )


def greeting(rest: str) -> bytes:
    """Return the line that an end begins with."""
    line = f"{NAME} {PROTOCOL} {batchstream.__version__} {' '.join(rest.split())}"
    return line.encode(errors="replace")[: MAX_LINE - 1] + b"\n"


def read_greeting(line: bytes) -> Greeting:
    """Return what a line says.

    Raises:
        ProtocolError: It is none of this protocol.
    """
    match = _GREETING.fullmatch(line.decode(errors="replace"))
    if match is None:
        raise ProtocolError(
            f"the other end is no batchstream.remote: it has sent {line[:80]!r}, expected "
            f"{NAME!r} and its version"
        )
    return Greeting(int(match[1]), match[2], match[3])


def client_greeting(window: int, max_frame: int) -> bytes:
    """Return the line of a client."""
    return greeting(f"window={window} max_frame={max_frame}")


def read_client_greeting(rest: str) -> tuple[int, int]:
    """Return the window that a client's greeting says, and how large a frame it takes.

    Raises:
        ProtocolError: It does not say them.
    """
    match = _FROM_CLIENT.fullmatch(rest)
    if match is None:
        raise ProtocolError(
            f"the greeting of a client says its window and max_frame, got {rest[:80]!r}"
        )
    return int(match[1]), int(match[2])


def server_greeting(max_frame: int) -> bytes:
    """Return the line of a server that lets the client go on."""
    return greeting(f"ok max_frame={max_frame}")


def read_server_greeting(rest: str) -> int:
    """Return how large a frame a server takes.

    Raises:
        ProtocolError: It refuses the client, and says why.
    """
    match = _FROM_SERVER.fullmatch(rest)
    if match is None:
        raise ProtocolError(rest)
    return int(match[1])


# ---- frames


def counted(count: int) -> bytes:
    """Return the payload of an acknowledgement."""
    return _COUNT.pack(count)


def count_in(record: Record) -> int:
    """Return how many outputs a record acknowledges.

    Raises:
        ProtocolError: It does not say that.
    """
    if len(record.payload) != _COUNT.size:
        raise ProtocolError(f"an acknowledgement has {len(record.payload)} bytes, expected 4")
    count: int = _COUNT.unpack(record.payload)[0]
    return count


class Outgoing:
    """Records on their way out.

    Args:
        max_frame: How many bytes a frame may have.
    """

    def __init__(self, max_frame: int) -> None:
        self._max_frame = max_frame
        self._frames: list[bytes] = []
        self._records: list[bytes] = []
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._records or self._frames)

    def add(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Add a record, whose payload is not too large; see `is_too_large`."""
        size = _RECORD.size + len(payload)
        if self._size + size > self._max_frame:
            self._end_frame()
        self._records += _RECORD.pack(kind, number, len(payload)), payload
        self._size += size

    def _end_frame(self) -> None:
        self._frames += _LENGTH.pack(self._size), *self._records
        self._records = []
        self._size = 0

    def take(self) -> bytes:
        """Return all that is to be sent, in frames."""
        if self._records:
            self._end_frame()
        frames, self._frames = self._frames, []
        return b"".join(frames)


def is_too_large(payload: bytes, max_frame: int) -> bool:
    """Whether a payload fits into no frame."""
    return _RECORD.size + len(payload) > max_frame


class Incoming:
    """What the other end has sent, in pieces of any size.

    Args:
        kinds: Which records it may send.
        max_frame: How many bytes a frame may have.
    """

    def __init__(self, kinds: frozenset[int], max_frame: int) -> None:
        self._kinds = kinds
        self._max_frame = max_frame
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what has come."""
        self._data += data

    def take_line(self) -> bytes | None:
        """Return the first line without its end, once it is there.

        Raises:
            ProtocolError: It is too long.
        """
        end = self._data.find(b"\n", 0, MAX_LINE)
        if end < 0:
            if len(self._data) >= MAX_LINE:
                read_greeting(bytes(self._data[:MAX_LINE]))
                raise ProtocolError(f"the greeting has no end within {MAX_LINE} bytes")
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line

    def take_records(self) -> list[Record]:
        """Return the records of all frames that have come whole.

        Raises:
            ProtocolError: A frame is not as it has to be.
        """
        data, records, at = self._data, list[Record](), 0
        while len(data) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(data, at)
            if size > self._max_frame:
                raise ProtocolError(
                    f"a frame has {size} bytes, more than {self._max_frame} (max_frame)"
                )
            begin, end = at + _LENGTH.size, at + _LENGTH.size + size
            if len(data) < end:
                break
            self._read_frame(bytes(data[begin:end]), records)
            at = end
        del data[:at]
        return records

    def _read_frame(self, frame: bytes, records: list[Record]) -> None:
        at, size = 0, len(frame)
        while at < size:
            if size - at < _RECORD.size:
                raise ProtocolError(f"a frame ends with {size - at} bytes that are no record")
            kind, number, length = _RECORD.unpack_from(frame, at)
            at += _RECORD.size
            if kind not in self._kinds:
                raise ProtocolError(f"a record is of the kind {kind}, which this end does not take")
            if length > size - at:
                raise ProtocolError(
                    f"a record of request {number} has {length} bytes, and its frame {size - at}"
                )
            records.append(Record(kind, number, frame[at : at + length]))
            at += length
