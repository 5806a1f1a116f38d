"""A LitServe server whose spans go to the file `spans`: `python litserve_traced_api.py PORT`.

The server process and the worker write to it, each with a tracer provider of its own. The web
framework is instrumented, but for requests to `/plain`.
"""

import json
import os
import sys
from pathlib import Path

import litserve as ls
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.util.http import parse_excluded_urls

from batchstream import EOS
from batchstream.integrations.litserve import BatchedStreamLoop, ContinuousBatchLoop
from batchstream.integrations.opentelemetry import OpenTelemetryTraces


class FileExporter(SpanExporter):
    """Writes each span in a line of a file in the working folder, which all processes share."""

    def export(self, spans):
        with Path("spans").open("a") as file:
            for span in spans:
                line = {
                    "pid": os.getpid(),
                    "name": span.name,
                    "trace": f"{span.context.trace_id:032x}",
                    "id": f"{span.context.span_id:016x}",
                    "parent": span.parent and f"{span.parent.span_id:016x}",
                    "events": [event.name for event in span.events],
                    "links": [f"{link.context.span_id:016x}" for link in span.links],
                    "attributes": {
                        name: value for name, value in span.attributes.items() if "gen_ai" in name
                    },
                    "request": span.attributes.get("batchstream.request.id"),
                    "error": span.attributes.get("error.type"),
                    "seconds": (span.end_time - span.start_time) / 1e9,
                }
                file.write(json.dumps(line) + "\n")
        return SpanExportResult.SUCCESS


def trace_to_file():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
    trace.set_tracer_provider(provider)


class CountingAPI(ls.LitAPI):
    def setup(self, device):
        trace_to_file()

    def decode_request(self, request: dict):
        if request.get("bad"):
            raise ValueError("no such word")
        return request["count"]

    def predict(self, counts):
        for number in range(max(counts) + 1):
            yield [number if number < count else EOS for count in counts]

    def encode_response(self, steps):
        for step in steps:
            yield [output if output is EOS else str(output) for output in step]


class Engine:
    def __init__(self, api):
        self.left = {}

    def add(self, slot, request):
        self.left[slot] = request

    def step(self):
        step = {slot: str(left) if left else EOS for slot, left in self.left.items()}
        self.left = {slot: left - 1 for slot, left in self.left.items()}
        return step

    def remove(self, slot):
        del self.left[slot]


class ContinuousAPI(ls.LitAPI):
    def setup(self, device):
        trace_to_file()

    def decode_request(self, request: dict):
        return request["count"]


def cost_of(request):
    return request.payload.get("count", 1)


def main(port):
    trace_to_file()
    traces = OpenTelemetryTraces(model="tiny")
    excluded = parse_excluded_urls("plain,health")
    apis = [
        CountingAPI(
            stream=True,
            max_batch_size=2,
            api_path="/counted",
            loop=BatchedStreamLoop(traces=traces, cost=cost_of, max_pending_cost=9),
        ),
        ContinuousAPI(
            stream=True,
            max_batch_size=2,
            api_path="/plain",
            loop=ContinuousBatchLoop(Engine, traces=traces),
        ),
    ]
    server = ls.LitServer(
        apis,
        accelerator="cpu",
        middlewares=[(OpenTelemetryMiddleware, {"excluded_urls": excluded})],
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
