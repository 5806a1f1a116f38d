"""Clients of the server recipes: one request each, of which a thread reads the outputs.

Every kind of client says in the same words what it has seen, so that the same checks hold for
servers of every protocol. A `Reply` of another protocol needs the methods that raise
`NotImplementedError`.
"""

import contextlib
import http.client
import socket
import threading

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from support.serving import SECONDS


class Reply:
    """What one client sees of its request.

    Args:
        port: The server's.
        request: A text.
        reads: Whether it reads its outputs; one that does not reads nothing at all.

    Attributes:
        received: All that has come, as bytes. Every output of the stand-in ends a line.
        end: How it ended, as the client sees it: `whole`, or what tells that it is not whole;
            None as long as it goes on. A status is the number, with `, Retry-After` if there is.
    """

    def __init__(self, port, request, *, reads=True):
        self.port, self.request = port, request
        self.received = b""
        self.end = None
        self._changed = threading.Condition()
        self._left = False
        self._thread = None
        if reads:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._begin()

    def _run(self):
        try:
            self._begin()
            end = self._read()
        except Exception as error:  # noqa: BLE001 - the check shows it
            end = repr(error)
        self._close()
        with self._changed:
            self.end = "left" if self._left else end
            self._changed.notify_all()

    @property
    def outputs(self):
        """How many have come."""
        return self.received.count(b"\n")

    def _has(self, chunk):
        """Take what has come; to be called by `_read`."""
        with self._changed:
            self.received += chunk
            self._changed.notify_all()

    def wait_for(self, outputs):
        """Wait until so many have come."""
        self._wait(lambda: self.outputs >= outputs or self.end)
        assert self.outputs >= outputs, f"expected {outputs} outputs, ended: {self.end}"

    def wait(self):
        """Wait for the end, and return it."""
        self._wait(lambda: self.end)
        return self.end

    def _wait(self, condition):
        with self._changed:
            assert self._changed.wait_for(condition, SECONDS), f"has {self.outputs} outputs"

    def leave(self):
        """Close the connection, as a client does that is killed."""
        self._left = True
        self._leave()
        if self._thread is None:
            self._close()
        else:
            self._thread.join(SECONDS)

    def _begin(self):
        """Send the request; waits for nothing that the model does."""
        raise NotImplementedError

    def _read(self):
        """Read to the end, and return how it ended."""
        raise NotImplementedError

    def _leave(self):
        """Close the connection, so that what reads it is woken."""
        raise NotImplementedError

    def _close(self):
        """Free what the client has, once nothing reads it."""
        raise NotImplementedError


def connected(port):
    """Return a connection that takes little that is not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(SECONDS)
    connection.connect(("127.0.0.1", port))
    return connection


class HttpReply(Reply):
    """A request as curl sends it. A body is whole if it ends with its last chunk."""

    method = "GET"

    def _begin(self):
        self._socket = connected(self.port)
        line = f"{self.method} /spell/{self.request} HTTP/1.1"
        self._socket.sendall(f"{line}\r\nHost: localhost\r\n\r\n".encode())

    def _read(self):
        with http.client.HTTPResponse(self._socket, method=self.method) as response:
            return self._read_response(response)

    def _read_response(self, response):
        response.begin()
        if response.status != 200:
            retry = ", Retry-After" if "retry-after" in response.headers else ""
            return f"{response.status}{retry}"
        try:
            while chunk := response.read1(65536):
                self._has(chunk)
        except (http.client.IncompleteRead, ConnectionError):
            return "cut"
        return "whole" if response.chunked else "cannot be told"

    def _leave(self):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _close(self):
        self._socket.close()


class HeadReply(HttpReply):
    """A request for the status and the headers alone: it has received the status as a line.

    It ends as the client leaves, or the server closes the connection.
    """

    method = "HEAD"

    def _read_response(self, response):
        response.begin()
        self._has(f"{response.status}\n".encode())
        self._socket.recv(1)
        return "closed"


class WebSocketReply(Reply):
    """A socket to which the request is sent; its close code says how it ended."""

    def _begin(self):
        url = f"ws://127.0.0.1:{self.port}/spell"
        quiet = {"compression": None, "max_queue": 1, "ping_interval": None, "max_size": None}
        self._connection = connect(url, sock=connected(self.port), **quiet)
        self._socket = self._connection.__enter__()
        self._socket.send(self.request)

    def _read(self):
        try:
            while True:
                self._has(self._socket.recv().encode())
        except ConnectionClosed:
            code = self._socket.close_code
        return "whole" if code == 1000 else f"close code {code}"

    def _leave(self):
        with contextlib.suppress(OSError):
            self._socket.socket.shutdown(socket.SHUT_RDWR)

    def _close(self):
        self._connection.__exit__(None, None, None)
