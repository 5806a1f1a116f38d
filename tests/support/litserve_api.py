"""A LitServe server whose requests say what the model does: `python litserve_api.py OPTIONS`.

A request is `{"tag": ..., "plan": [element, ...]}`. At its n-th step the model gives each request
the n-th element of its plan, and None when it has no more; it steps for ever unless it is stopped.

Elements are lists, a word and its argument; see `encode`. "raise" and "stop" are the model's own,
and concern the batch.

If a request has a "gate", a port, the model waits there before each step; it also reports what it
does, and when it is closed.
"""

import contextlib
import json
import os
import socket
import sys
import uuid

import litserve as ls
from fastapi import HTTPException
from litserve.transport import zmq_queue
from starlette.middleware.base import BaseHTTPMiddleware

from batchstream import SKIP, End, Fail, Last, Many, RequestError
from batchstream.integrations.litserve import BatchedStreamLoop

# LitServe 0.2.19 begins with a message that its own consumer cannot read, and ends with. Mostly it
# comes too early to reach anybody. Here, because this is run in the workers too.
zmq_queue.Producer.wait_for_subscribers = lambda *_: True


class UnpicklableError(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.attribute = lambda: None


class UnrepeatableError(Exception):
    """Pickles, but raises where it is unpickled."""

    def __init__(self, text, more):
        super().__init__(text)


class UnshowableError(Exception):
    def __str__(self):
        raise RuntimeError("no str")

    __repr__ = __str__


def error(kind, text):
    return {
        "plain": lambda: ValueError(text),
        "http": lambda: HTTPException(429, text, {"retry-after": "7"}),
        "http with unpicklable detail": lambda: HTTPException(429, {"f": print}),
        "http with impossible status": lambda: HTTPException(7, text),
        "unpicklable": lambda: UnpicklableError(text),
        "unrepeatable": lambda: UnrepeatableError(text, 1),
        "unshowable": lambda: UnshowableError(text),
        "rejecting": lambda: RequestError(text),
        "stop iteration": lambda: StopIteration(text),
    }[kind]()


class Text(str):
    """Text whose class does not unpickle."""

    __slots__ = ()

    def __reduce__(self):
        return error, ("no such kind", "")


def encode(request, element):
    if element is None:
        return None
    word, *arguments = element

    def message(output):
        return {"tag": request["tag"], "output": output, "pid": os.getpid()}

    return {
        "out": message,
        "last": lambda output: Last(message(output)),
        "end": End,
        "skip": lambda: SKIP,
        "many": lambda *outputs: Many([message(output) for output in outputs]),
        "fail": lambda kind, text: Fail(error(kind, text)),
        "object": object,
        "surrogate": lambda: "\ud800",
        "text": Text,
        "bytes": lambda text: bytearray(text.encode()),
    }[word](*arguments)


class Door:
    """The model's side of a gate; open if there is none, or once the test has gone."""

    def __init__(self, requests):
        ports = [request["gate"] for request in requests if "gate" in request]
        self._socket = socket.create_connection(("127.0.0.1", ports[0])) if ports else None
        self._lines = self._socket.makefile() if ports else None

    def report(self, line):
        if self._socket:
            try:
                self._socket.sendall(f"{line}\n".encode())
            except OSError:
                self._socket = None

    def pass_through(self, step):
        self.report(f"step {step}")
        if self._socket:
            self._lines.readline()

    def close(self):
        self.report("closed")
        if self._lines:
            self._lines.close()


class PlannedAPI(ls.LitAPI):
    def decode_request(self, request: dict):
        if "undecodable" in request:
            raise error(*request["undecodable"])
        return request

    def predict(self, requests):
        door = Door(requests)
        try:
            step = 0
            while True:
                door.pass_through(step)
                elements = [
                    request["plan"][step] if step < len(request["plan"]) else None
                    for request in requests
                ]
                words = {element[0]: element for element in elements if element is not None}
                if "raise" in words:
                    raise error(*words["raise"][1:])
                if "stop" in words or not (words or self.endless):
                    return
                yield list(zip(requests, elements, strict=True))
                step += 1
        finally:
            door.close()

    def encode_response(self, output_stream):
        for pairs in output_stream:
            words = [element[0] for _, element in pairs if element is not None]
            if "narrow" in words:
                yield [{"tag": request["tag"], "output": "narrow"} for request, _ in pairs[1:]]
            else:
                yield [encode(request, element) for request, element in pairs]


class SinglePlannedAPI(PlannedAPI):
    """The same without batches: each hook has one request."""

    def predict(self, request):
        with contextlib.closing(super().predict([request])) as steps:
            for [pair] in steps:
                yield pair

    def encode_response(self, output_stream):
        for request, element in output_stream:
            yield encode(request, element)


class PassingMiddleware(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-passed"] = "yes"
        return response


def api(path, size, loop, *, endless):
    # Batches are of that size always: no request waits so long for the last to join.
    cls = PlannedAPI if size > 1 else SinglePlannedAPI
    made = cls(stream=True, max_batch_size=size, batch_timeout=20, api_path=path, loop=loop)
    made.endless = endless
    return made


def really_use_zmq(server):
    """Do what `fast_queue=True` fails to do in LitServe 0.2.19.

    It sets a field that is never read. If ZMQ is chosen nevertheless, its two addresses are passed
    on in the wrong order, so that the publishers connect to where subscribers belong. The sockets
    lie in the current folder, where they do not outlive the test.
    """
    zmq_queue.generate_random_zmq_address = lambda: f"ipc://{uuid.uuid4().hex}"
    server.transport_config.transport_type = "zmq"
    make_manager = server._init_manager

    def make_manager_and_transport(consumers):
        manager = make_manager(consumers)
        transport = server._transport
        addresses = transport.backend_address, transport.frontend_address
        transport.frontend_address, transport.backend_address = addresses
        return manager

    server._init_manager = make_manager_and_transport


def main(port, *, stock, zmq, middleware, http):
    apis = [
        api(path, size, "auto" if stock else BatchedStreamLoop(), endless=not stock)
        for path, size in [("/three", 3), ("/one", 1)]
    ]
    server = ls.LitServer(
        apis,
        accelerator="cpu",
        timeout=60,
        fast_queue=zmq,
        middlewares=[PassingMiddleware] * 2 if middleware else None,
    )
    if zmq:
        really_use_zmq(server)
    server.run(
        host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, http=http
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
