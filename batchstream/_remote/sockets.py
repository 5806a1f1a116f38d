"""The Unix socket: which processes may connect, and how it takes the place of one left over.

Theory of operation
-------------------

Both ends unpickle what the other sends, so each can run code in the other. Two things keep others
away: the permissions of the socket's file, which only its owner may open unless `mode` says
otherwise; and the user that the system names for the other end, where it does, which has to be this
process's own, root or a trusted one. The second also keeps a client from a server that another user
has put at the path.

A server listens under a name of its own first, gives the file its permissions, and only then
renames it: so no process connects before, and there is no moment without a file where one is left
over. A lock on the folder keeps two servers that start at once from replacing each other.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batchstream._remote.errors import ConnectionLostError, ProtocolError
from batchstream._remote.protocol import (
    MAX_LINE,
    client_greeting,
    read_greeting,
    read_server_greeting,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_AT_FIRST: Final = "~"
"""What the name of a socket's file ends with before its server is ready."""

_LONGEST_PATH: Final = 103 - len(_AT_FIRST)
"""How many bytes the path of a socket may have on every system, as its name at first has more."""

BACKLOG: Final = 1024
"""How many connections may wait for the server to accept them."""

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
"""How a URL begins, also one that a `Path` was made of, which has a single slash."""

_CREDENTIALS: Final = struct.Struct("3i")

ROOT: Final = 0


def check_address(address: object) -> str:
    """Return the path of a socket.

    Raises:
        TypeError: It is no path.
        ValueError: It cannot be the path of a socket.
        RuntimeError: The system has no Unix sockets.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise RuntimeError("batchstream.remote needs Unix sockets, which this system does not have")
    if not isinstance(address, str | os.PathLike):
        raise TypeError(
            f"address takes the path of a socket, such as '/run/app/model.sock', got {address!r}"
        )
    path: Any = os.fspath(address)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(
            f"address takes the path of a socket, whose file has permissions, got {address!r}"
        )
    if _URL.match(path):
        raise ValueError(
            f"address takes the path of a socket alone, such as '/run/app/model.sock', and no URL, "
            f"got {address!r}: there is no form for TCP"
        )
    # Absolute: the process may change its folder before it connects.
    absolute = str(Path(path).absolute())
    if len(os.fsencode(absolute)) > _LONGEST_PATH:
        raise ValueError(
            f"the path of a socket has at most {_LONGEST_PATH} bytes, got {absolute!r}: put it "
            f"into a folder with a shorter name"
        )
    return absolute


def listen(path: str, mode: int) -> socket.socket:
    """Return a socket that listens at a path, with these permissions.

    Raises:
        FileExistsError: What is there is no socket.
        OSError: Another server listens there, or the folder cannot be written to.
    """
    with _folder_locked(path):
        own = f"{path}{_AT_FIRST}"
        _check_free(path)
        _check_free(own)
        listening = socket.socket(socket.AF_UNIX)
        try:
            with suppress(FileNotFoundError):
                Path(own).unlink()
            listening.bind(own)
            Path(own).chmod(mode)
            listening.listen(BACKLOG)
            Path(own).rename(path)
        except BaseException:
            listening.close()
            with suppress(OSError):
                Path(own).unlink()
            raise
    return listening


@contextmanager
def _folder_locked(path: str) -> Iterator[None]:
    import fcntl  # noqa: PLC0415 - there is none on systems without Unix sockets

    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        # Not by the close alone: a child that was forked meanwhile has a copy that keeps the lock.
        fcntl.flock(folder, fcntl.LOCK_UN)
        os.close(folder)


def _check_free(path: str) -> None:
    """Raise if the path is not free for a server; a socket that is left over may be replaced."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(
            errno.EEXIST, "there is a file that is no socket: remove it, or take another path", path
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # left over by a server that was killed
        except BlockingIOError:
            pass  # it listens, and has much to do
    raise OSError(
        errno.EADDRINUSE, "another server listens at this path: end it, or take another path", path
    )


def remove(path: str, identity: tuple[int, int]) -> None:
    """Remove the file of a socket, if no other has taken its place."""
    with suppress(OSError), _folder_locked(path):
        if identity_of(path) == identity:
            Path(path).unlink()


def identity_of(path: str) -> tuple[int, int]:
    """Return what tells a file from another that takes its place."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def drop_copy(descriptor: int) -> None:
    """Let this process, a forked child, have no copy of a socket of its parent.

    The number stays taken: objects that still have it may close it later.
    """
    if descriptor < 0:  # it was closed before
        return
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)


def peer_of(connection: socket.socket) -> tuple[int, int] | None:
    """Return the process and the user at the other end; None where the system does not say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    data = connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(data)
    return pid, user


def refusal_of(peer: tuple[int, int] | None, trusted: Collection[int]) -> str | None:
    """Return why the other end is not trusted; None if it is, or the system does not say."""
    if peer is None or peer[1] in {os.geteuid(), ROOT, *trusted}:
        return None
    return (
        f"process {peer[0]} runs as user {peer[1]}, and this one as {os.geteuid()}: run both as "
        f"one user, or name the other in trusted_users"
    )


class Opened(NamedTuple):
    """A connection to a server, once both ends have greeted.

    Attributes:
        socket: Its socket.
        max_frame: How many bytes a frame of the client may have, as both ends say.
    """

    socket: socket.socket
    max_frame: int


def is_served(path: str, trusted: Collection[int]) -> bool:
    """Whether a server that is trusted listens at a path. Never blocks."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # it listens, and has much to do
        return refusal_of(peer_of(probe), trusted) is None
    return False


class Handshake:
    """A connection to a server that has not answered yet. No call blocks.

    Args:
        path: Where the server listens.
        window: How many outputs of a request it may send without an acknowledgement.
        max_frame: How many bytes a frame may have.
        seconds: For how long to wait for its whole greeting.
        trusted: Users that it may run as, besides this process's own and root.

    Attributes:
        socket: Its socket, which is readable when more of the answer has come.

    Raises:
        ConnectionLostError: There is no server, or it is not trusted.
        OSError: The system has no socket left.
    """

    def __init__(
        self, path: str, window: int, max_frame: int, seconds: float, trusted: Collection[int]
    ) -> None:
        self._path = path
        self._max_frame = max_frame
        self._seconds = seconds
        self._until = monotonic() + seconds
        self._answer = b""
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.settimeout(0)
            with self._explained():
                self.socket.connect(path)
                if (refusal := refusal_of(peer_of(self.socket), trusted)) is not None:
                    raise ProtocolError(refusal)  # noqa: TRY301 - it ends as the others
                with suppress(ConnectionError):  # it may have said why it refuses, and gone
                    self.socket.sendall(client_greeting(window, max_frame))
        except BaseException:
            self.socket.close()
            raise

    @property
    def seconds_left(self) -> float:
        """For how many seconds the server may still take; none are left when it is too late."""
        return max(self._until - monotonic(), 0.0)

    def opened(self) -> Opened | None:
        """Return the connection; None if the server has not answered yet.

        Raises:
            ConnectionLostError: The server does not answer in time, or refuses.
        """
        with self._explained():
            if not self._read():
                return None
            line, _, rest = self._answer.partition(b"\n")
            answer = read_greeting(line)
            if rest:
                raise ProtocolError(
                    "it has sent more than its greeting, though it was asked for nothing"
                )
            if (difference := answer.difference("the model's process")) is not None:
                raise ProtocolError(difference)
            taken = read_server_greeting(answer.rest)
        return Opened(self.socket, min(self._max_frame, taken))

    def _read(self) -> bool:
        """Read what has come, and return whether that is a whole line."""
        while b"\n" not in self._answer:
            piece = b""
            if len(self._answer) < MAX_LINE:
                try:
                    piece = self.socket.recv(MAX_LINE)
                except BlockingIOError:
                    if not self.seconds_left:
                        raise TimeoutError from None
                    return False
            if not piece:
                if self._answer:
                    read_greeting(self._answer[:MAX_LINE])
                raise ProtocolError("it has closed the connection without an answer")
            self._answer += piece
        return True

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise what goes wrong as a `ConnectionLostError` that says why."""
        try:
            yield
        except (OSError, ProtocolError) as error:
            if isinstance(error, TimeoutError):
                said = f"it did not answer within {self._seconds:g} seconds"
            elif isinstance(error, BlockingIOError):
                said = "too many connections wait there for the server to accept them"
            elif isinstance(error, OSError):
                said = error.strerror or str(error)
            else:
                said = str(error)
            if isinstance(error, FileNotFoundError | ConnectionRefusedError):
                said += (
                    ": no server listens there, so start the process that calls serve with this "
                    "path"
                )
            raise ConnectionLostError(
                f"cannot connect to the model's process at {self._path!r}: {said}"
            ) from error
