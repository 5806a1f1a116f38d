"""The LitServe servers of examples/migrations: what clients get before and after."""

import json
from pathlib import Path

import httpx
import pytest

from support import litserve_migration
from support.serving import SECONDS, Call, free_port, running, wait_until_logged

RUNNER = Path(litserve_migration.__file__)
WORDS = {
    "short": ["Short", "and", "sweet."],
    "long": ["The", "long", "one", "goes", "on", "when", "others", "have", "finished."],
}
SHORT, LONG, UNKNOWN = "short", "long", "unheard-of"


@pytest.fixture
def client(request, tmp_path):
    """Return a client of the program that a test is for."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        running([str(RUNNER), request.param, str(port)], url, tmp_path / "log"),
        httpx.Client(base_url=url, timeout=SECONDS) as client,
    ):
        yield client


def program(*names):
    return pytest.mark.parametrize("client", names, indirect=True)


def ask(client, *prompts):
    """Send requests at the same time; return their calls when all are over."""
    calls = [Call(client, "/predict", {"prompt": prompt}) for prompt in prompts]
    return [call.wait() for call in calls]


def messages(call):
    """Return what the messages of a response say."""
    assert call.status == 200
    assert call.error is None
    return [json.loads(line)["content"] for line in call.body.splitlines()]


BATCH = [SHORT, LONG, SHORT, LONG]  # as many as a batch has


@program("litserve_before")
def test_litserve_before_each_response_has_as_many_messages_as_the_longest(client):
    short, long, *_ = map(messages, ask(client, *BATCH))
    assert long == WORDS[LONG]
    assert short == WORDS[SHORT] + [""] * 6
    calls = ask(client, UNKNOWN, *BATCH[1:])
    assert [(call.status, call.body) for call in calls] == [(200, b"")] * 4, "one fails them all"


@program("litserve_after")
@pytest.mark.rule(7, 15)
def test_litserve_after_each_response_has_its_own_messages(client):
    assert [messages(call) for call in ask(client, *BATCH)] == [WORDS[it] for it in BATCH]
    bad, *calls = ask(client, UNKNOWN, *BATCH[1:])
    assert bad.status == 500
    assert [messages(call) for call in calls] == [WORDS[it] for it in BATCH[1:]]


@program("litserve_before")
def test_litserve_before_an_error_in_mid_stream_looks_complete(client):
    for call in ask(client, "failing", *BATCH[1:]):
        assert (call.status, call.body.count(b"\n"), call.error) == (200, 1, None)


@program("litserve_after")
@pytest.mark.rule(15)
def test_litserve_after_an_error_in_mid_stream_cuts_the_connection(client):
    for call in ask(client, "failing", *BATCH[1:]):
        assert call.status == 200
        assert isinstance(call.error, httpx.RemoteProtocolError)


@program("litserve_after")
@pytest.mark.rule(15)
def test_litserve_after_the_status_is_the_one_that_decode_request_raises(client):
    calls = ask(client, "forbidden", "bad", UNKNOWN, SHORT)
    assert [call.status for call in calls] == [403, 422, 500, 200]


@program("litserve_continuous_before", "litserve_continuous_after")
def test_litserve_requests_that_join_a_batch_get_the_same_messages(client):
    prompts = [*BATCH, SHORT]  # one more than there are slots
    assert [messages(call) for call in ask(client, *prompts)] == [WORDS[it] for it in prompts]


@program("litserve_continuous_before")
def test_litserve_before_the_task_that_lets_requests_join_ends_with_one_that_cannot(
    client, tmp_path
):
    [bad] = ask(client, UNKNOWN)
    assert (bad.status, bad.body) == (200, b"")
    wait_until_logged(tmp_path / "log", "An error occurred in run_in_background")


@program("litserve_continuous_after")
@pytest.mark.rule(15)
def test_litserve_after_a_request_that_cannot_join_fails_alone(client):
    [bad] = ask(client, UNKNOWN)
    assert bad.status == 500
    [call] = ask(client, SHORT)
    assert messages(call) == WORDS[SHORT]
