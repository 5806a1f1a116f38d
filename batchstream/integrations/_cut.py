"""Cutting a response short, so that its client sees that the body lacks its end."""

from __future__ import annotations

from typing import Self


class Tripwire(bytes):
    """A piece of body that raises an error where it is about to be written.

    To raise the error is not enough. Starlette's `BaseHTTPMiddleware` first ends the body of a
    response in the proper way, and then raises what the application raised. So the error is sent as
    well: it passes through any number of those, which only ask whether there is something to send,
    and goes off where a server asks how much.

    Attributes:
        error: What it raises.
    """

    error: Exception

    def __new__(cls, error: Exception) -> Self:
        tripwire = super().__new__(cls)
        tripwire.error = error
        return tripwire

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        raise self.error
