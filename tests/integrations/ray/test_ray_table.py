"""What works on Ray Serve, for the table of servers: what its other tests do not show."""

import socket
import threading
import time

import httpx
import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

from ray import serve

from support.ray_gated import Batched, BatchedIngress, Ingress, Model
from support.serving import SECONDS

MANY = 1000
BIG = 1_000_000  # characters of an output
OUTPUTS = 60  # of these: what no system keeps for a client that reads nothing


@pytest.fixture(scope="module")
def handles(deploy):
    """Return by the application's name the handle of its deployment."""
    deploy(
        table=Ingress.bind(),
        batched_table=Batched.bind(2, 60),
        batched_ingress=BatchedIngress.bind(1),
        wide=Model.bind(4, 4, BIG, 8),
        batched_wide=Batched.bind(1, 0, BIG),
    )
    return {
        "table": serve.get_deployment_handle("Ingress", "table"),
        "batched_table": serve.get_deployment_handle("Batched", "batched_table"),
        "batched_ingress": serve.get_deployment_handle("BatchedIngress", "batched_ingress"),
        "wide": serve.get_deployment_handle("Model", "wide"),
        "batched_wide": serve.get_deployment_handle("Batched", "batched_wide"),
    }


class Client:
    """Reads a response in a thread of its own."""

    def __init__(self, cluster, name, count):
        self.text = ""
        self.end = None
        self._changed = threading.Condition()
        url = f"{cluster.http}/{name}/?count={count}"
        threading.Thread(target=self._read, args=[url], daemon=True).start()

    def _read(self, url):
        try:
            with httpx.stream("GET", url, timeout=SECONDS) as response:
                for text in response.iter_text():
                    self._has(text)
            end = "whole" if response.status_code == 200 else response.status_code
        except httpx.RemoteProtocolError:
            end = "cut"
        self._has("", end)

    def _has(self, text, end=None):
        with self._changed:
            self.text += text
            self.end = end
            self._changed.notify_all()

    def wait_for(self, outputs):
        with self._changed:
            found = self._changed.wait_for(lambda: self.text.count(" ") >= outputs, SECONDS)
        assert found, (self.text, self.end)

    def ended(self):
        with self._changed:
            assert self._changed.wait_for(lambda: self.end, SECONDS), self.text
        return self.end


def wait_until(handle, condition):
    deadline = time.monotonic() + SECONDS
    while not condition(seen := handle.seen.remote().result()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


@pytest.mark.rule(7)
@pytest.mark.cell("Ray Serve, `ContinuousBatcher`", "ends", "yes")
def test_a_response_of_a_continuous_batcher_ends_in_the_step_after_its_last_output(
    handles, ray_cluster
):
    model = handles["table"]
    long = Client(ray_cluster, "table", 3)
    wait_until(model, lambda seen: seen["slots"] == 1)  # its step waits for a permit
    short = Client(ray_cluster, "table", 1)
    wait_until(model, lambda seen: len(seen["ends"]) == 2)
    for _ in range(3):  # `short` joins behind the first, and ends in the third
        model.allow.remote(1).result()
    assert short.ended() == "whole"
    assert long.end is None
    model.allow.remote(1).result()
    assert long.ended() == "whole"
    assert (short.text, long.text) == ("1 ", "3 2 1 ")


@pytest.mark.rule(7)
@pytest.mark.cell("Ray Serve, `batch`", "ends", "yes")
def test_a_response_of_batch_ends_in_the_step_after_its_last_output(handles, ray_cluster):
    model = handles["batched_table"]
    short, long = (Client(ray_cluster, "batched_table", count) for count in (1, 3))
    model.allow.remote(2).result()
    assert short.ended() == "whole"
    assert long.end is None
    model.allow.remote(1).result()
    assert long.ended() == "whole"
    assert (short.text, long.text) == ("1 ", "3 2 1 ")


@pytest.mark.parametrize("name", ["table", "batched_ingress"])
@pytest.mark.cell("Ray Serve, `batch`", "early error", "500")
@pytest.mark.cell("Ray Serve, `ContinuousBatcher`", "early error", "500")
def test_an_error_before_the_first_output_is_answered_with_500(handles, ray_cluster, name):
    reader = Client(ray_cluster, name, MANY)
    handles[name].fail.remote().result()
    assert reader.ended() == 500


@pytest.mark.parametrize(("name", "clients"), [("table", 1), ("batched_table", 2)])
@pytest.mark.cell("Ray Serve, `batch`", "error", "cut")
@pytest.mark.cell("Ray Serve, `ContinuousBatcher`", "error", "cut")
def test_an_error_in_mid_stream_cuts_the_body(handles, ray_cluster, name, clients):
    model = handles[name]
    readers = [Client(ray_cluster, name, MANY) for _ in range(clients)]
    model.allow.remote(1).result()
    for reader in readers:
        reader.wait_for(1)
    model.fail.remote().result()
    assert [reader.ended() for reader in readers] == ["cut"] * clients


@pytest.mark.cell("Ray Serve, `ContinuousBatcher`", "bad request", "422")
def test_a_request_error_is_answered_with_422(handles, ray_cluster):
    response = httpx.get(f"{ray_cluster.http}/table/?count=-1", timeout=SECONDS)
    assert (response.status_code, response.json()) == (422, {"detail": "less than no output"})


@pytest.mark.cell("Ray Serve, `batch`", "bad request", "422")
def test_a_request_error_in_a_slot_of_batch_is_answered_with_422(handles, ray_cluster):
    handles["batched_ingress"].allow.remote(1).result()
    response = httpx.get(f"{ray_cluster.http}/batched_ingress/?count=-1", timeout=SECONDS)
    assert (response.status_code, response.json()) == (422, {"detail": "less than no output"})


@pytest.mark.cell("Ray Serve, `batch`", "overload", "503, Retry-After")
def test_a_request_for_which_batch_has_no_room_is_answered_with_503(handles, ray_cluster):
    model = handles["batched_ingress"]
    readers = [Client(ray_cluster, "batched_ingress", 1)]
    wait_until(model, lambda seen: seen["running"] == 1)
    readers += [Client(ray_cluster, "batched_ingress", 1) for _ in range(4)]  # as many may wait
    wait_until(model, lambda seen: seen["waiting"] == 4)
    response = httpx.get(f"{ray_cluster.http}/batched_ingress/?count=1", timeout=SECONDS)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    model.allow.remote(5).result()
    assert [reader.ended() for reader in readers] == ["whole"] * 5


@pytest.mark.parametrize(
    ("name", "is_in", "has_ended"),
    [
        ("wide", lambda seen: seen["slots"] == 1, lambda seen: seen["ends"] == ["eos"]),
        ("batched_wide", lambda seen: seen["running"] == 1, lambda seen: seen["closed"] == 1),
    ],
)
@pytest.mark.cell("Ray Serve, `batch`", "back-pressure", "not felt")
@pytest.mark.cell("Ray Serve, `ContinuousBatcher`", "back-pressure", "not felt")
def test_ray_takes_all_outputs_for_a_client_that_reads_nothing(
    handles, ray_cluster, name, is_in, has_ended
):
    model = handles[name]
    host, _, port = ray_cluster.http.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), SECONDS) as client:
        client.sendall(f"GET /{name}/?count={OUTPUTS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        wait_until(model, is_in)
        for made in range(1, OUTPUTS + 1):
            model.allow.remote(1).result()
            wait_until(model, lambda seen, made=made: seen["steps"] == made)
        model.allow.remote(1).result()
        wait_until(model, has_ended)
