"""FastAPI: a WebSocket that takes a word, and is closed with a code that says how its stream ended.

In the folder `examples/servers`:

    pip install -r fastapi_websocket/requirements.txt
    uvicorn fastapi_websocket.server:app --port 8000

    python -m websockets ws://127.0.0.1:8000/spell
"""

from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from model import batcher

from batchstream.integrations.starlette import exception_handlers, send_stream


@asynccontextmanager
async def lifespan(_):
    async with batcher:
        yield


app = FastAPI(lifespan=lifespan, exception_handlers=exception_handlers)


@app.websocket("/spell")
async def spell(socket: WebSocket):
    await socket.accept()
    with suppress(WebSocketDisconnect):  # before there was a word
        await send_stream(socket, batcher.astream(await socket.receive_text()))
