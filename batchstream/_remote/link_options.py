"""What the connections of a client's batcher are made with, and how they find its streams."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from batchstream._remote.sockets import Handshake

if TYPE_CHECKING:
    from collections.abc import Collection

    from batchstream._pumps.fanout import Fanout


class LinkOptions:
    """What a link is made with.

    Args:
        path: Where the server listens.
        window: How many outputs of a request the server may send without an acknowledgement.
        max_frame: How many bytes a frame may have.
        connect_timeout: For how many seconds to wait for the server's whole greeting.
        trusted_users: Users that the server may run as.

    """

    def __init__(
        self,
        path: str,
        *,
        window: int,
        max_frame: int,
        connect_timeout: float,
        trusted_users: Collection[int],
    ) -> None:
        self.path = path
        self.window = window
        self.max_frame = max_frame
        self.connect_timeout = connect_timeout
        self.trusted_users = trusted_users
        self._fanout: weakref.ref[Fanout[Any]] | None = None

    def show(self, fanout: Fanout[Any]) -> None:
        """Take note of the streams of a batch that begins."""
        self._fanout = weakref.ref(fanout)

    @property
    def fanout(self) -> Fanout[Any]:
        """The streams of the batch that is driven."""
        fanout = None if self._fanout is None else self._fanout()
        assert fanout is not None  # noqa: S101 - a step has streams
        return fanout

    def connect(self) -> Handshake:
        """Begin to connect.

        Raises:
            ConnectionLostError: No connection could be made.
            OSError: The system has no socket left.
        """
        return Handshake(
            self.path, self.window, self.max_frame, self.connect_timeout, self.trusted_users
        )
