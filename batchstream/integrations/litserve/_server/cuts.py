"""Responses that are cut if they fail, without an error that LitServe's middleware would see."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from batchstream.integrations._http import CutError, StreamResponse
from batchstream.integrations._http import keep_cuts_out_of_the_log as keep_out_of_the_log
from batchstream.integrations.litserve._link.messages import UNKNOWN
from batchstream.integrations.litserve._log import logger

if TYPE_CHECKING:
    from litserve import LitServer
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from batchstream.integrations._http import Handler


class CountedResponse(StreamResponse):
    """A response that ends without raising an error, whatever happens to it.

    LitServe's `track_requests` never counts a request down whose endpoint raises. A connection that
    has been cut is closed also where the endpoint returns.
    """

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:  # noqa: ARG002
        return None if isinstance(error, HTTPException) else _answer_unexpected

    def _has_cut(self, error: Exception) -> bool:
        if not isinstance(error, CutError):
            logger.error("a response is cut off by an error", exc_info=error)
        _is_cut.set(True)
        return True


async def _answer_unexpected(_: Request, error: Exception) -> Response:
    logger.error("a response has failed before its first output", exc_info=error)
    return JSONResponse({"detail": UNKNOWN.detail}, UNKNOWN.status_code)


class CutGuard:
    """A middleware between all others and LitServe's count of requests: cuts end here.

    To cut a connection makes the server raise. Behind a `BaseHTTPMiddleware` of the program it
    raises in that middleware, outside of the response.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and keep a cut from the count."""
        try:
            await self._app(scope, receive, send)
        except CutError:
            _is_cut.set(True)  # a middleware may have run the response in another context


def guard_count(server: LitServer | None) -> None:
    """Let requests be counted down whose connections are cut, if a server counts them."""
    if server is None or not getattr(server, "track_requests", False):
        return
    if CutGuard not in server.middlewares:
        server.middlewares = [*server.middlewares, CutGuard]


_is_cut: ContextVar[bool] = ContextVar("_is_cut", default=False)
"""Whether the connection of this request was cut; uvicorn logs in the same task."""


def keep_cuts_out_of_the_log() -> None:
    """Keep uvicorn from logging a cut: the worker has logged the reason, with its traceback."""
    keep_out_of_the_log()
    logging.getLogger("uvicorn.error").addFilter(_is_of_no_cut)


def _is_of_no_cut(_: logging.LogRecord) -> bool:
    return not _is_cut.get()  # uvicorn says that a response was not completed
