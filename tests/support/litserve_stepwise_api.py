"""A LitServe server whose models a test leads: `python litserve_stepwise_api.py OPTIONS`.

A request is `{"tag": ..., "outputs": how many}`. With a "port" the worker connects to the test
there, reports what it does in lines, and waits before each step until it reads `go`. If the
connection is lost, it goes on without.

`{"tail": true}` lets it wait once more when it has encoded all of it.
`{"trouble": [where, number, kind]}` lets a hook raise: "decode" and "add", or "encode" and "step"
at the output of that number. `{"limit": seconds}` is from then on the longest that requests may
wait, until this one leaves. `{"size": characters}` gives each output a text that long, its number
with spaces before it.
"""

import json
import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path

import litserve as ls
from fastapi import Response
from litserve.loops.base import _SENTINEL_VALUE
from litserve.loops.continuous_batching_loop import DefaultContinuousBatchingLoop
from litserve_api import PassingMiddleware, error, really_use_zmq
from pydantic import BaseModel, PrivateAttr

from batchstream import EOS, Metrics
from batchstream.integrations._timeouts import timeout_of
from batchstream.integrations.litserve import BatchedStreamLoop, ContinuousBatchLoop
from batchstream.integrations.litserve._link.messages import Envelope

SIZE = 3
TIMEOUT = 60


# ---- what a worker reports, and reads


class Ears:
    """The clients whose departure this worker knows of; none, in a loop of LitServe's own."""

    def __init__(self):
        self.heard = None
        self._news = threading.Condition()

    def listen_to(self, disconnects):
        self.heard = set()
        add = disconnects.add

        def add_and_notify(uid, *how):
            add(uid, *how)
            with self._news:
                self.heard.add(uid)
                self._news.notify_all()

        disconnects.add = add_and_notify

    def wait_for(self, uid):
        if self.heard is not None:
            with self._news:
                assert self._news.wait_for(lambda: uid in self.heard, TIMEOUT)


class Door:
    """The worker's end of the connection to the test; open if there is none, or once it is lost."""

    def __init__(self, port=None):
        self.port = port
        self._socket = self._lines = None
        if port is not None:
            try:
                self._socket = socket.create_connection(("127.0.0.1", port))
                self._lines = self._socket.makefile()
            except OSError:
                self._socket = None  # a request of a test that is over

    def report(self, *words):
        if self._socket:
            try:
                self._socket.sendall((" ".join(map(str, words)) + "\n").encode())
            except OSError:
                self.close()

    def hear(self):
        try:
            line = self._lines.readline() if self._socket else ""
        except OSError:
            line = ""
        if not line:
            self.close()
        return line.split() or ["go"]

    def close(self):
        if self._socket:
            self._lines.close()
            self._socket.close()
            self._socket = None


class StepwiseAPI(ls.LitAPI):
    """What the APIs share. Requests carry their `uid`, if the loop is ours."""

    def setup(self, device):
        self.ears = Ears()
        self.door = Door()
        self.uids = {}
        self.is_finishing = False
        if self.setup_port is not None:
            door = Door(self.setup_port)
            door.report("setup")
            door.hear()

    def decode_request(self, request: dict):
        port = request.get("port")
        if port != self.door.port:
            self.door.close()
            self.door = Door(port)
        self.is_finishing = False
        self.door.report("decode", request["tag"])
        self.uids[request.get("uid")] = request["tag"]
        raise_if(request, "decode")
        if "limit" in request:
            self.request_timeout = request["limit"]
        return request

    def has_output(self, request, number):
        return number < request["outputs"] and not self.is_finishing

    def wait_to_go(self, *words):
        self.door.report("step", *words)
        while True:
            command, *arguments = self.door.hear()
            if command == "go":
                return
            if command == "finish":  # instead of all outputs that are still to come
                self.is_finishing = True
                return
            if command == "departure":  # of a request by its tag, or by a uid that it had never
                [tag] = arguments
                named = {known: uid for uid, known in self.uids.items()}
                self.ears.wait_for(named.get(tag, tag))
                self.door.report("departure", tag)
            elif command == "departures":
                heard = self.ears.heard
                self.door.report(*sorted(tag for uid, tag in self.uids.items() if uid in heard))


def raise_if(request, where, number=0):
    wanted_where, wanted_number, kind = request.get("trouble", (None, 0, ""))
    if (where, number) == (wanted_where, wanted_number):
        raise error(kind, where)


def message(request, number):
    text = {"text": f"{number:>{request['size']}}"} if "size" in request else {}
    return {"tag": request["tag"], "output": number, "pid": os.getpid(), **text}


# ---- batches


class BatchAPI(StepwiseAPI):
    def predict(self, requests, context):
        self.live = range(len(requests))
        try:
            for number in count():
                if all(number >= request["outputs"] for request in requests):
                    return
                live = [requests[slot]["tag"] for slot in self.live]
                readable = [
                    request["tag"]
                    for request, own in zip(requests, context, strict=True)
                    if getattr(own, "live", True)
                ]
                self.wait_to_go(*live, "|", *readable)
                step = [
                    message(request, number) if self.has_output(request, number) else None
                    for request in requests
                ]
                live = yield step
                if live is not None:
                    self.live = live
        finally:
            self.uids.clear()
            self.door.report("closed")
            self.door.close()
            self.door = Door()


class EncodingAPI(BatchAPI):
    """Its ends are in what encode_response yields, and that receives the live slots."""

    def encode_response(self, steps):
        for step in steps:
            self.live = yield step
            if self.live is None:  # a loop of LitServe's own
                self.live = range(len(step))


# ---- one request at a time


class SingleAPI(StepwiseAPI):
    def predict(self, request):
        try:
            for number in range(request["outputs"]):
                self.wait_to_go(request["tag"])
                yield message(request, number)
        finally:
            self.uids.clear()
            self.door.report("closed")
            self.door.close()
            self.door = Door()


class SingleEncodingAPI(SingleAPI):
    def encode_response(self, outputs):
        yield from outputs


class RawAPI(SingleAPI):
    """Reads the body by itself, as LitServe's own endpoint does where there is no annotation."""

    def decode_request(self, request):
        return super().decode_request(request)


class Unpicklable(BaseModel):
    """A request that cannot be sent to a worker."""

    tag: str
    _lock: object = PrivateAttr(default_factory=threading.Lock)


class UnpicklableAPI(SingleAPI):
    def decode_request(self, request: Unpicklable):
        raise AssertionError("it cannot have come here")


# ---- continuous


class Engine:
    def __init__(self, api):
        self.api = api
        self.rows = {}
        api.door.report("engine")

    def add(self, slot, request):
        assert slot not in self.rows, f"slot {slot} has {self.rows[slot]}, cannot have {request}"
        raise_if(request, "add")
        self.rows[slot] = (request, count())
        self.api.door.report("add", request["tag"], slot)

    def step(self):
        self.api.wait_to_go(*(f"{row[0]['tag']}@{slot}" for slot, row in sorted(self.rows.items())))
        step = {}
        for slot, (request, numbers) in self.rows.items():
            number = next(numbers)
            raise_if(request, "step", number)
            step[slot] = (request, number) if self.api.has_output(request, number) else EOS
        return step

    def remove(self, slot):
        request, _ = self.rows.pop(slot)
        self.api.door.report("remove", request["tag"], slot)
        if "limit" in request:
            self.api.request_timeout = TIMEOUT
        self.api.uids.pop(request["uid"], None)


class ContinuousAPI(StepwiseAPI):
    def encode_response(self, outputs):
        request = {}
        for request, number in outputs:
            raise_if(request, "encode", number)
            yield message(request, number)
        if "tail" in request:  # behind its last output, and before any end of this step is sent
            self.door.report("tail", request["tag"])
            self.door.hear()


class StockContinuousAPI(StepwiseAPI):
    """What LitServe asks of an API for its continuous batching, in its error messages."""

    def has_active_requests(self):
        return bool(self.loop.active_sequences)

    def predict(self, requests, generated_sequence):
        return [
            json.dumps(message(request, len(generated)))
            for request, generated in zip(requests, generated_sequence, strict=True)
        ]

    def encode_response(self, output):
        return output

    def has_finished(self, uid, token, max_sequence_length):
        message = json.loads(token or "{}")
        return message.get("output") == 2


# ---- loops that let the model know what reaches the worker


class Naming:
    """The request queue, but requests say by which uid they are known.

    With bounds it is that of the loop, which can `wait` and `take`.
    """

    def __init__(self, request_queue):
        self._queue = request_queue

    def get(self, **how):
        return self._named(self._queue.get(**how))

    def get_nowait(self):
        return self._named(self._queue.get_nowait())

    def wait(self, timeout):
        return self._queue.wait(timeout)

    def take(self, **how):
        element, others_wait = self._queue.take(**how)
        return self._named(element), others_wait

    def _named(self, element):
        if element == _SENTINEL_VALUE:
            return element
        server, uid, submitted, request = element
        if isinstance(request, Envelope):
            return server, uid, submitted, replace(request, payload=request.payload | {"uid": uid})
        return server, uid, submitted, request | {"uid": uid}


class BatchLoop(BatchedStreamLoop):
    def _serve(self, context, request_queue):
        context.lit_api.ears.listen_to(context.disconnects)
        super()._serve(context, Naming(request_queue))


class ContinuousLoop(ContinuousBatchLoop):
    def _serve(self, context, request_queue):
        context.lit_api.ears.listen_to(context.disconnects)
        super()._serve(context, Naming(request_queue))


# ---- what operators ask of a loop


class FileMetrics(Metrics):
    """Writes each event in a line of a file in the working folder, which all processes share.

    Args:
        others: Metrics that hear of it before.
        batcher: The batcher's name.
    """

    def __init__(self, others, batcher=""):
        self._others = others
        self._batcher = batcher

    def for_batcher(self, name):
        return FileMetrics(self._others.for_batcher(name), name)

    def _write(self, event, **figures):
        line = {"pid": os.getpid(), "batcher": self._batcher, "event": event, **figures}
        with Path("metrics").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def submitted(self, *, tenant):
        self._others.submitted(tenant=tenant)
        self._write("submitted", tenant=tenant)

    def refused(self, reason, *, tenant):
        self._others.refused(reason, tenant=tenant)
        self._write("refused", reason=reason, tenant=tenant)

    def joined(self, waited, *, tenants):
        self._others.joined(waited, tenants=tenants)
        self._write("joined", waited=waited, tenants=tenants)

    def first_output(self, seconds, *, tenant):
        self._others.first_output(seconds, tenant=tenant)
        self._write("first_output", seconds=seconds, tenant=tenant)

    def stepped(self, live, capacity, outputs, *others):
        self._others.stepped(live, capacity, outputs, *others)
        self._write("stepped", live=live, capacity=capacity, outputs=outputs)

    def finished(self, end, **figures):
        # Not sooner: prometheus-client looks for the folder of its files where it is imported.
        from batchstream.integrations.prometheus._recorder import _reason_of  # noqa: PLC0415

        self._others.finished(end, **figures)
        self._write("finished", reason=_reason_of(end), outputs=end.outputs, **figures)


def operated_metrics():
    from batchstream.integrations.prometheus import PrometheusMetrics  # noqa: PLC0415 - as above

    return FileMetrics(PrometheusMetrics())


def priority_of(request):
    if request.payload.get("priority") == "header":
        timeout_of({"grpc-timeout": "soon"})
    return request.payload.get("priority", 0)


def tenant_of(request):
    return request.headers.get("x-tenant")


def share_of(request):
    return request.payload.get("share", 1)


OPERATED = {
    "priority": priority_of,
    "tenant": tenant_of,
    "share": share_of,
    "max_pending": 12,
    "max_pending_per_tenant": 8,
    "metrics": operated_metrics,
}


# ---- clients that read slowly


def joined(earlier, later):
    return later | {"text": earlier["text"] + later["text"]}


MERGING = {"max_buffered": 4, "on_overflow": "merge", "merge": joined}


# ---- the server


def api(kind, setup_port, grace):
    # Batches are full always, but where it says otherwise: no request waits so long for the last.
    batches = {"max_batch_size": SIZE, "batch_timeout": 20}
    make, options = {
        "predict": lambda: (BatchAPI, batches | {"loop": BatchLoop(eos_in="predict")}),
        "encode": lambda: (EncodingAPI, batches | {"loop": BatchLoop()}),
        # Without a size, and so without batches.
        "single": lambda: (SingleAPI, {"loop": BatchLoop()}),
        "raw": lambda: (RawAPI, {"loop": BatchLoop()}),
        "unpicklable": lambda: (UnpicklableAPI, {"loop": BatchLoop()}),
        "single_encode": lambda: (SingleEncodingAPI, {"loop": BatchLoop()}),
        "prompt": lambda: (BatchAPI, {"max_batch_size": SIZE, "loop": BatchLoop()}),
        "continuous": lambda: (
            ContinuousAPI,
            {"max_batch_size": SIZE, "loop": ContinuousLoop(Engine)},
        ),
        "narrow": lambda: (
            ContinuousAPI,
            {"max_batch_size": 1, "loop": ContinuousLoop(Engine, max_pending=2)},
        ),
        "operated": lambda: (
            ContinuousAPI,
            {"max_batch_size": 1, "loop": ContinuousLoop(Engine, **OPERATED)},
        ),
        "merging": lambda: (
            ContinuousAPI,
            {"max_batch_size": SIZE, "loop": ContinuousLoop(Engine, **MERGING)},
        ),
        "merging_encode": lambda: (EncodingAPI, batches | {"loop": BatchLoop(**MERGING)}),
        "bytes": lambda: (
            ContinuousAPI,
            {"max_batch_size": SIZE, "loop": ContinuousLoop(Engine, max_buffered_bytes=300_000)},
        ),
        "bytes_encode": lambda: (
            EncodingAPI,
            batches | {"loop": BatchLoop(max_buffered_bytes=300_000)},
        ),
        "tailed": lambda: (
            ContinuousAPI,
            {
                "max_batch_size": SIZE,
                "loop": ContinuousLoop(Engine, tenant=tenant_of, metrics=operated_metrics),
            },
        ),
        "operated_single": lambda: (SingleAPI, {"loop": BatchLoop(**OPERATED)}),
        "stock": lambda: (EncodingAPI, batches | {"loop": "auto"}),
        "stock_prompt": lambda: (EncodingAPI, {"max_batch_size": SIZE, "loop": "auto"}),
        "stock_continuous": lambda: (
            StockContinuousAPI,
            {"max_batch_size": SIZE, "loop": DefaultContinuousBatchingLoop()},
        ),
    }[kind]()
    made = make(stream=True, api_path=f"/{kind}", **options)
    if isinstance(made.loop, BatchedStreamLoop | ContinuousBatchLoop):
        made.loop._options = replace(made.loop._options, grace_period=grace)
    made.setup_port = setup_port
    return made


class OtherServer(ls.LitServer):
    """A LitServe of another version, that lacks an attribute for code of this package."""

    hidden = None

    def __getattribute__(self, name):
        if name == OtherServer.hidden:
            asking = sys._getframe(1).f_globals["__name__"]
            if asking.startswith("batchstream"):
                raise AttributeError(f"no attribute {name!r}")
        return super().__getattribute__(name)


def add_view(server):
    """Let tests see what waits, and which clients a server process answers."""

    @server.app.get("/view")
    def view():
        return {
            "waiting": {
                path: queue.qsize() for path, queue in server.litapi_request_queues.items()
            },
            "pid": os.getpid(),
            "active": server.active_requests,
            "answering": [
                uid for uid in server.response_buffer if not uid.startswith("batchstream")
            ],
            "unread": [
                len(entry.response_queue)
                for uid, entry in server.response_buffer.items()
                if not uid.startswith("batchstream")
            ],
        }


def add_metrics(server):
    """Let Prometheus read the figures of all processes."""
    folder = Path("prometheus").absolute()
    folder.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)

    @server.app.api_route("/metrics", methods=["GET", "HEAD"], include_in_schema=False)
    def metrics():
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return Response(generate_latest(registry), media_type="text/plain")


def main(
    port,
    *,
    apis,
    workers=1,
    servers=1,
    zmq=False,
    middleware=False,
    hidden=None,
    setup=None,
    grace=60,
    track=False,
    servers_are="process",
    restart=False,
    ignores_sigint=False,
):
    if ignores_sigint:  # as a shell starts its background jobs; workers inherit it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    OtherServer.hidden = hidden
    server = OtherServer(
        [api(kind, setup, grace) for kind in apis],
        accelerator="cpu",
        timeout=TIMEOUT,
        workers_per_device=workers,
        fast_queue=zmq,
        middlewares=[PassingMiddleware] if middleware else None,
        track_requests=track,
        restart_workers=restart,
    )
    add_view(server)
    if "operated" in apis:
        add_metrics(server)
    if zmq:
        really_use_zmq(server)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=servers,
        api_server_worker_type=servers_are,
        generate_client_file=False,
        http="h11" if middleware else "httptools",
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
