"""With which code a WebSocket is closed for an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.websockets import WebSocketState

from batchstream.integrations.http import known_status

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.websockets import WebSocket

_CODES: Final = {503: 1013, 400: 1008, 422: 1008}
"""Try again later, and a message that the server does not take; see RFC 6455, 7.4, and IANA."""

_FAILED: Final = 1011
_LONGEST_REASON: Final = 123  # bytes, of a close frame


async def close_for(websocket: WebSocket, error: Exception) -> None:
    """Close a socket that is open with the code that an error has."""
    if websocket.application_state is WebSocketState.CONNECTED:
        status = known_status(error)
        if status is None:
            await websocket.close(_FAILED, "Internal Server Error")
        else:
            await websocket.close(_CODES.get(status.code, _FAILED), _fitting(status.detail))


async def refuse(websocket: WebSocket, response: Response) -> None:
    """Answer a request for a socket that was not accepted yet."""
    if websocket.application_state is WebSocketState.CONNECTING:
        if "websocket.http.response" in websocket.scope.get("extensions", {}):
            await websocket.send_denial_response(response)
        else:
            await websocket.close()  # which is status 403


def _fitting(reason: str) -> str:
    return reason.encode()[:_LONGEST_REASON].decode(errors="ignore")
