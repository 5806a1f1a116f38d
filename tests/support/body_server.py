"""Servers that send one stream each, in every form and framework: `body_server.py FRAMEWORK PORT`.

Without the garbage collector, so that what only the collector would free stays. The model goes as
far as the test lets it: at each step it asks a `serving.Gate`, whose port is in the request, and
gives so many lines as the request says.
"""

import gc
import socket
import sys
from urllib.parse import parse_qsl

import uvicorn

from batchstream import DynamicBatcher
from batchstream.integrations.starlette import NDJSONResponse, TextResponse

STEPS = 100


def model(requests):
    [(port, size)] = requests
    with socket.create_connection(("127.0.0.1", port)) as gate, gate.makefile() as lines:
        try:
            for number in range(1, STEPS + 1):
                gate.sendall(f"step {number}\n".encode())
                if not lines.readline():
                    return
                yield ["output\n" * size]
        finally:
            gate.sendall(b"closed\n")


batcher = DynamicBatcher(model, max_batch_size=1)


def astream(query):
    """Return the stream of a request, given what its URL says."""
    return batcher.astream((int(query["gate"]), int(query["size"])))


async def generator(query):
    async for output in astream(query):
        yield output


async def block(query):
    async with astream(query) as stream:
        async for output in stream:
            yield output


def live():
    """Return how many requests are still live, as the text of a response."""
    return str(batcher.statistics().live)


FORMS = {
    "body": lambda query: astream(query).body(),
    "bare": astream,
    "generator": generator,
    "block": block,
}


def in_starlette():
    from sse_starlette import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    async def get(request):
        path, query = request.url.path[1:], request.query_params
        if path in {"health", "live"}:
            return PlainTextResponse(live())
        if path == "events":
            return EventSourceResponse(astream(query).body(encode=lambda text: {"data": text}))
        if path == "response":
            return TextResponse(astream(query))
        return StreamingResponse(FORMS[path](query))

    return Starlette(routes=[Route("/{path}", get)])


def in_django():
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    async def get(request, form):
        if form in {"health", "live"}:
            return HttpResponse(live())
        return StreamingHttpResponse(FORMS[form](request.GET))

    key = "of no use here"
    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=(path("<form>", get),), SECRET_KEY=key)
    django.setup()
    return get_asgi_application()


def in_litestar():
    from litestar import Litestar, Request, asgi, get
    from litestar.response import Stream

    @get(["/health", "/live"], sync_to_thread=False)
    def health() -> str:
        return live()

    @get("/{form:str}")
    async def send(form: str, request: Request) -> Stream:
        return Stream(FORMS[form](request.query_params))

    @asgi("/response")
    async def respond(scope: dict, receive: object, send: object) -> None:
        response = NDJSONResponse(astream(Request(scope).query_params))
        await response(scope, receive, send)

    return Litestar([health, send, respond])


def in_quart():
    from quart import Quart, Response, request

    app = Quart("quart")

    @app.get("/<form>")
    async def send(form):
        if form in {"health", "live"}:
            return live()
        return Response(FORMS[form](request.args))

    return app


def in_blacksheep():
    from blacksheep import Application, get

    app = Application()
    app.mount("/mounted", respond)

    @get("/health")
    def health() -> str:
        return live()

    @get("/live")
    def live_now() -> str:
        return live()

    return app


async def respond(scope, receive, send):
    """Answer without any framework: a response is an ASGI application."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    query = scope["query_string"].decode()
    if not query:
        body = live().encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        return await send({"type": "http.response.body", "body": body})
    response = TextResponse(astream(dict(parse_qsl(query))))
    return await response(scope, receive, send)


def run_aiohttp(port):
    from aiohttp import web

    async def get(request):
        form = request.match_info["form"]
        if form in {"health", "live"}:
            return web.Response(text=live())
        stream = astream(request.query)
        if form == "body":
            return web.Response(body=stream.body(encode=str.encode))
        response = web.StreamResponse()
        await response.prepare(request)
        async with stream:
            async for output in stream:
                await response.write(output.encode())
        return response

    app = web.Application()
    app.add_routes([web.get("/{form}", get)])
    web.run_app(app, host="127.0.0.1", port=port, print=None, handler_cancellation=True)


APPS = {
    "starlette": in_starlette,
    "django": in_django,
    "litestar": in_litestar,
    "quart": in_quart,
    "blacksheep": in_blacksheep,
    "asgi": lambda: respond,
}

if __name__ == "__main__":
    framework, port = sys.argv[1], int(sys.argv[2])
    if framework == "aiohttp":
        gc.disable()
        run_aiohttp(port)
    else:
        app = APPS[framework]()
        gc.disable()
        uvicorn.run(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=1)
