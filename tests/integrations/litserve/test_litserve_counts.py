"""End to end: `track_requests`. Every way out of an endpoint counts its request down."""

import socket
from urllib.parse import urlsplit

import httpx
import pytest

from support import stepwise
from support.serving import SECONDS
from support.stepwise import MANY, guests_of, numbers_of

APIS = ["single", "single_encode", "continuous", "narrow", "raw", "unpicklable"]
STREAMS = ["/single", "/single_encode", "/continuous"]
streams = pytest.mark.parametrize("path", STREAMS)

ITSELF = 1  # the request by which the test asks


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "middleware"])
def server(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("counts")
    options = {"apis": APIS, "track": True, "middleware": request.param}
    with stepwise.serve(folder, **options) as server:
        yield server


@pytest.fixture
def guests(server):
    with guests_of(server) as guests:
        yield guests
    wait_for_count(server, 0)  # of every test


def wait_for_count(server, number):
    server.wait_until(lambda view: view["active"] == number + ITSELF)


def door_at_first_step(guests):
    door = guests.street.door()
    door.make_steps_until(bool)
    return door


@streams
def test_a_complete_response_counts_down(guests, path):
    client = guests.send(path, "a", 2)
    door = door_at_first_step(guests)
    wait_for_count(guests.server, 1)
    door.close()
    assert numbers_of(client.outputs(), "a") == [0, 1]


@streams
@pytest.mark.parametrize("outputs", [0, 1], ids=["before the first output", "in mid-stream"])
def test_a_client_that_leaves_counts_down(guests, path, outputs):
    client = guests.send(path, "a", MANY)
    door = door_at_first_step(guests)
    for _ in range(outputs):
        door.go()
        client.next_output()
        door.make_steps_until(bool)
    wait_for_count(guests.server, 1)
    client.leave()
    wait_for_count(guests.server, 0)


TROUBLE = {
    "/continuous": [("decode", 0, 500), ("add", 0, 500), ("encode", 0, 500), ("step", 0, 500)],
    "/single": [("decode", 0, 500)],
}


@pytest.mark.parametrize(
    ("path", "trouble"), [(path, trouble) for path, all_of in TROUBLE.items() for trouble in all_of]
)
def test_an_error_before_the_first_output_counts_down(guests, path, trouble):
    where, number, status = trouble
    client = guests.send(path, "a", 2, at_door=False, trouble=[where, number, "plain"])
    assert client.response.status == status


@pytest.mark.parametrize("where", ["encode", "step"])
def test_a_connection_that_is_cut_counts_down(guests, where):
    client = guests.send("/continuous", "a", 3, trouble=[where, 1, "plain"])
    door = door_at_first_step(guests)
    door.go()
    client.next_output()
    door.close()
    with pytest.raises((stepwise.http.client.HTTPException, OSError)):
        client.response.read()
    wait_for_count(guests.server, 0)
    assert "without completing response" not in guests.server.log()


def test_a_request_that_is_refused_counts_down(guests):
    full = [guests.send("/narrow", "a", MANY)]
    door_at_first_step(guests)
    full += [guests.send("/narrow", tag, 1) for tag in "bc"]
    guests.server.wait_until_there_wait(2, "/narrow")
    refused = guests.send("/narrow", "d", 1)
    assert refused.response.status == 503
    wait_for_count(guests.server, 3)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/raw", "no JSON", 400), ("/single", "no JSON", 422), ("/unpicklable", '{"tag": "a"}', 500)],
)
def test_a_request_that_cannot_be_read_or_sent_counts_down(guests, path, body, status):
    headers = {"content-type": "application/json"}
    url = guests.server.url + path
    assert httpx.post(url, content=body, headers=headers, timeout=SECONDS).status_code == status


BODIES = {
    "application/json": '{"tag": ',
    "application/x-www-form-urlencoded": "words=a",
    "multipart/form-data; boundary=x": (
        '--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nab'
    ),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("path", ["/raw", "/single"])
def test_a_client_that_leaves_before_it_has_sent_its_request_counts_down(guests, path, kind):
    address = urlsplit(guests.server.url)
    with socket.create_connection((address.hostname, address.port), SECONDS) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: 999\r\n"
            f"expect: 100-continue\r\n\r\n".encode()
        )
        # It asks when it reads the body; a form of an environment without python-multipart is
        # answered instead.
        client.recv(1)
        client.sendall(BODIES[kind].encode())


@pytest.mark.parametrize("path", STREAMS)
def test_proxies_are_asked_not_to_keep_anything_back(guests, path):
    client = guests.send(path, "a", 1, at_door=False)
    headers = client.response.headers
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-store"
    client.outputs()
