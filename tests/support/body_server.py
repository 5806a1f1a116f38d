"""Servers that send streams, in every form and framework: `body_server.py FRAMEWORK SERVER PORT`.

Without the garbage collector, so that what only the collector would free stays. The model goes as
far as the test lets it: at each step it asks a `serving.Gate`, whose port is in the request, and
gives so many lines as the request says. If the gate is gone the model fails. The engine has four
slots, and makes one step for each request that asks how many of them are in use.
"""

import asyncio
import gc
import socket
import sys
import threading
from functools import partial
from urllib.parse import parse_qsl

from batchstream import ContinuousBatcher, DynamicBatcher
from batchstream.integrations.starlette import EventsResponse, NDJSONResponse, TextResponse

STEPS = 100


def model(requests):
    [(port, size)] = requests
    with socket.create_connection(("127.0.0.1", port)) as gate, gate.makefile() as lines:
        try:
            for number in range(1, STEPS + 1):
                gate.sendall(f"step {number}\n".encode())
                if not lines.readline():
                    raise ConnectionError("the gate is gone")
                yield ["output\n" * size]
        finally:
            gate.sendall(b"closed\n")


batcher = DynamicBatcher(model, max_batch_size=1)


class Engine:
    """Gives each of its slots one line in a step, and never ends a request by itself."""

    def __init__(self):
        self.slots = set()
        self.asked = threading.Semaphore(0)

    def add(self, slot, request):
        self.slots.add(slot)

    def step(self):
        self.asked.acquire()
        return dict.fromkeys(self.slots, "output\n")

    def remove(self, slot):
        self.slots.remove(slot)


engine = Engine()
# A stream that is not read is never ended for it: it keeps its slot.
slots = ContinuousBatcher(engine, max_batch_size=4, on_overflow="wait")


def astream(query):
    """Return the stream of a request, given what its URL says."""
    if not query:
        return slots.astream(None)
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


def in_use():
    """Let the engine make a step, and return how many slots it had, as the text of a response."""
    count = len(engine.slots)
    engine.asked.release()
    return str(count)


FIGURES = {"health": live, "live": live, "slots": in_use}
"""What a server says of itself, by path."""

FORMS = {
    "body": lambda query: astream(query).body(),
    "bare": astream,
    "generator": generator,
    "block": block,
}

RESPONSES = {"response": TextResponse, "lines": NDJSONResponse, "json-events": EventsResponse}
# As a server behind a proxy has them: with pings, and with a word for an error.
RESPONSES |= {
    f"pinged-{form}": partial(RESPONSES[form], ping=0.25, encode_error=lambda _: "failed")
    for form in ("lines", "json-events")
}


def in_starlette():
    from sse_starlette import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Mount, Route

    async def get(request):
        form, query = request.path_params["form"], request.query_params
        if form in FIGURES:
            return PlainTextResponse(FIGURES[form]())
        if form == "events":
            return EventSourceResponse(astream(query).body(encode=lambda text: {"data": text}))
        if form in RESPONSES:
            return RESPONSES[form](astream(query))
        return StreamingResponse(FORMS[form](query))

    async def pass_on(request, call_next):
        return await call_next(request)

    passing, compressing = (
        Middleware(BaseHTTPMiddleware, dispatch=pass_on),
        Middleware(GZipMiddleware),
    )
    behind = {
        "passing": [passing],
        "compressing": [compressing],
        "passing-compressing": [passing, compressing],
        "compressing-passing": [compressing, passing],
    }
    routes = [Route("/{form}", get)]
    apps = [Mount(f"/{it}", Starlette(routes=routes, middleware=behind[it])) for it in behind]
    return Starlette(routes=[*routes, *apps])


def in_django():
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    async def get(request, form):
        if form in FIGURES:
            return HttpResponse(FIGURES[form]())
        return StreamingHttpResponse(FORMS[form](request.GET))

    key = "of no use here"
    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=(path("<form>", get),), SECRET_KEY=key)
    django.setup()
    return get_asgi_application()


def in_litestar():
    from litestar import Litestar, Request, asgi, get
    from litestar.response import Stream

    @get("/{form:str}")
    async def send(form: str, request: Request) -> Stream:
        if form in FIGURES:
            return Stream(iter([FIGURES[form]()]))
        return Stream(FORMS[form](request.query_params))

    @asgi("/response")
    async def respond(scope: dict, receive: object, send: object) -> None:
        response = NDJSONResponse(astream(Request(scope).query_params))
        await response(scope, receive, send)

    return Litestar([send, respond])


def in_quart():
    from quart import Quart, Response, request

    app = Quart("quart")

    @app.get("/<form>")
    async def send(form):
        if form in FIGURES:
            return FIGURES[form]()
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

    @get("/slots")
    def slots_now() -> str:
        return in_use()

    return app


async def respond(scope, receive, send):
    """Answer without any framework: a response is an ASGI application."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    query, form = scope["query_string"].decode(), scope["path"][1:]
    if form in FIGURES:
        body = FIGURES[form]().encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        return await send({"type": "http.response.body", "body": body})
    response = TextResponse(astream(dict(parse_qsl(query))))
    return await response(scope, receive, send)


def run_aiohttp(port):
    from aiohttp import web

    async def get(request):
        form = request.match_info["form"]
        if form in FIGURES:
            return web.Response(text=FIGURES[form]())
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


def load(framework):
    """Make an application, in the process that serves it."""
    app = APPS[framework]()
    gc.disable()
    return app


def on_uvicorn(framework, port, http="auto"):
    import uvicorn

    app = load(framework)
    uvicorn.run(app, host="127.0.0.1", port=port, http=http, timeout_graceful_shutdown=1)


def on_hypercorn(framework, port):
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.graceful_timeout = 1.0
    asyncio.run(serve(load(framework), config))


def on_granian(framework, port):
    from granian import Granian

    # Its worker is a process of its own, in which the application is made.
    granian = Granian(framework, address="127.0.0.1", port=port, interface="asgi")
    granian.serve(target_loader=load)


SERVERS = {
    "uvicorn": on_uvicorn,
    "uvicorn-h11": partial(on_uvicorn, http="h11"),
    "hypercorn": on_hypercorn,
    "granian": on_granian,
}

if __name__ == "__main__":
    framework, server, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if framework == "aiohttp":
        gc.disable()
        run_aiohttp(port)
    else:
        SERVERS[server](framework, port)
