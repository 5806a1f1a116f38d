"""End to end: the trace context on its way from the HTTP header to the worker process."""

import json
from pathlib import Path

import httpx
import pytest

from support import serving
from support.serving import free_port, running

API = Path(serving.__file__).with_name("litserve_traced_api.py")
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Server:
    def __init__(self, client, spans):
        self._client = client
        self._spans = spans

    def spans_of(self, path, request, name, *, wanted):
        """Send a request with a trace context, and return its spans, of which there are so many."""
        headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "x-request-id": name}
        self._client.post(path, json=request, headers=headers)
        found = []
        while len(found) < wanted:  # a span is written behind the response
            lines = self._spans.read_text().splitlines() if self._spans.exists() else []
            found = [json.loads(line) for line in lines]
            ours = [span for span in found if span["request"] == name]
            linked = [span for span in found if {it["id"] for it in ours} & set(span["links"])]
            parents = [span for span in found if span["id"] in {it["parent"] for it in ours}]
            found = [*ours, *linked, *parents]
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        running([str(API), str(port)], url, folder / "log"),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield Server(client, folder / "spans")


def test_a_workers_span_is_the_child_of_that_of_the_http_request(server):
    request, batch, parent = server.spans_of("/counted", {"count": 3}, "r-1", wanted=3)
    assert (request["trace"], parent["trace"]) == (TRACE_ID, TRACE_ID)
    assert (request["parent"], parent["parent"]) == (parent["id"], SPAN_ID)
    assert request["pid"] == batch["pid"] != parent["pid"]
    assert (batch["parent"], request["links"]) == (None, [batch["id"]])
    assert request["name"] == "text_completion tiny"
    assert request["events"] == ["batchstream.joined", "batchstream.first_output"]
    attributes = request["attributes"]
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert 0 < attributes["gen_ai.response.time_to_first_chunk"] <= request["seconds"]


def test_without_instrumentation_it_is_the_child_of_the_clients(server):
    request, batch = server.spans_of("/plain", {"count": 2}, "plain", wanted=2)
    assert (request["trace"], request["parent"]) == (TRACE_ID, SPAN_ID)
    assert request["links"] == [batch["id"]]
    assert request["events"] == ["batchstream.joined", "batchstream.first_output"]
    assert request["attributes"]["gen_ai.usage.output_tokens"] == 2


def test_a_request_that_is_refused_has_a_span_of_the_server_process(server):
    request, parent = server.spans_of("/counted", {"count": 10}, "dear", wanted=2)
    assert (request["trace"], parent["trace"]) == (TRACE_ID, TRACE_ID)
    assert (request["parent"], parent["parent"]) == (parent["id"], SPAN_ID)
    assert request["pid"] == parent["pid"]
    assert (request["name"], request["error"]) == ("text_completion tiny", "CostError")
    assert (request["events"], request["links"]) == ([], [])


def test_a_request_that_fails_in_the_worker_has_the_status_of_its_error(server):
    spans = server.spans_of("/counted", {"bad": True}, "bad", wanted=2)
    request = spans[0]
    assert (request["error"], request["events"]) == ("ValueError", [])
    assert request["attributes"]["gen_ai.response.finish_reasons"] == ["error"]
