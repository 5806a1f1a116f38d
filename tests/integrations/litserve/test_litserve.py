"""End to end: real LitServe servers, real clients. `litserve_api.py` says what requests can ask."""

import json
import time
import uuid

import httpx
import pytest

from support.serving import SECONDS

WAYS_TO_END = {
    "none": [["out", 0], ["out", 1], None],
    "End": [["out", 0], ["out", 1], ["end"]],
    "Last": [["out", 0], ["last", 1]],
    "Many with an end": [["many", 0, 1], None],
    "SKIP in between": [["out", 0], ["skip"], ["skip"], ["last", 1]],
}
KINDS_OF_500 = [
    "plain",
    "unpicklable",
    "unrepeatable",
    "unshowable",
    "stop iteration",
    "http with impossible status",
]


def counting(tag, outputs, **more):
    """A request for so many outputs, which ends with a None."""
    return {"tag": tag, "plan": [["out", n] for n in range(outputs)], **more}


def outputs_of(call):
    return [json.loads(line) for line in call.body.decode().splitlines()]


def assert_complete(call, tag, outputs):
    call.wait()
    assert call.error is None
    assert call.status == 200
    seen = [(message["tag"], message["output"]) for message in outputs_of(call)]
    assert seen == [(tag, n) for n in range(outputs)]


def assert_cut(call, tag, outputs):
    """The response has begun, but no client could take it for complete."""
    call.wait()
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert call.status == 200
    seen = [(message["tag"], message["output"]) for message in outputs_of(call)]
    assert seen == [(tag, n) for n in range(outputs)]


def assert_answer(call, status, detail):
    call.wait()
    assert call.error is None
    assert (call.status, json.loads(call.body)) == (status, {"detail": detail})


# ---- ends


@pytest.mark.rule(7)
@pytest.mark.cell("LitServe, `BatchedStreamLoop`", "ends", "yes")
def test_a_response_is_complete_while_the_rest_of_its_batch_goes_on(any_server, gate):
    short, long, _ = any_server.call(counting("short", 3), counting("long", 9, gate=gate.port))
    for step in range(4):  # the fourth says that short has ended
        gate.let_through(step)
    assert gate.next_line() == "step 4"
    assert_complete(short, "short", 3)
    assert not long.over


@pytest.mark.rule(7)
def test_an_end_that_comes_with_the_last_output_does_not_wait_for_a_step(server, gate):
    short = {"tag": "short", "plan": [["out", 0], ["out", 1], ["last", 2]]}
    short, long, _ = server.call(short, counting("long", 9, gate=gate.port))
    for step in range(3):
        gate.let_through(step)
    assert_complete(short, "short", 3)
    assert gate.next_line() == "step 3"
    long.wait_for_lines(3)
    assert not long.over


def test_concurrent_requests_get_1_3_and_9_outputs(server):
    calls = server.call(counting("a", 1), counting("b", 3), counting("c", 9))
    for call, tag, outputs in zip(calls, "abc", (1, 3, 9), strict=True):
        assert_complete(call, tag, outputs)


def test_all_requests_may_end_in_the_same_step(server):
    calls = server.call(counting("a", 4), counting("b", 4), counting("c", 4))
    for call, tag in zip(calls, "abc", strict=True):
        assert_complete(call, tag, 4)


def test_there_may_be_no_batches(server):
    [call] = server.call(counting("alone", 3), path="/one")
    assert_complete(call, "alone", 3)


@pytest.mark.parametrize("plan", WAYS_TO_END.values(), ids=WAYS_TO_END)
def test_a_stream_without_a_batch_ends_at_any_mark(server, plan):
    [call] = server.call({"tag": "marked", "plan": plan}, path="/one")
    assert_complete(call, "marked", 2)


def test_a_response_may_have_no_output(server):
    for call in server.call():
        assert_complete(call, "idle", 0)


@pytest.mark.parametrize("plan", WAYS_TO_END.values(), ids=WAYS_TO_END)
def test_a_stream_ends_at_any_mark(server, plan):
    marked, other, _ = server.call({"tag": "marked", "plan": plan}, counting("other", 6))
    assert_complete(marked, "marked", 2)
    assert_complete(other, "other", 6)


def test_text_and_bytes_are_sent_as_they_are(server):
    plan = [["text", "dé"], ["bytes", "jà"], ["text", "!"]]
    call, *_ = server.call({"tag": "a", "plan": plan})
    assert call.wait().body.decode() == "déjà!"


def test_a_source_that_ends_ends_the_streams_that_are_left(server):
    a, b, _ = server.call(counting("a", 9), {"tag": "b", "plan": [["out", 0], ["stop"]]})
    assert_complete(a, "a", 1)
    assert_complete(b, "b", 1)


@pytest.mark.rule(10)
def test_the_source_is_closed_when_no_request_is_left_and_goes_no_further(server, gate):
    calls = server.call(counting("a", 2, gate=gate.port), counting("b", 1))
    for step in range(3):
        gate.let_through(step)
    assert gate.next_line() == "closed"
    assert_complete(calls[0], "a", 2)
    assert gate.next_line() == ""  # nothing after it


@pytest.mark.rule(10)
def test_the_source_is_closed_when_all_have_failed(server, gate):
    failing = {"tag": "a", "plan": [["object"]], "gate": gate.port}
    calls = server.call(failing, failing | {"gate": gate.port}, failing)
    gate.let_through(0)
    assert gate.next_line() == "closed"
    for call in calls:
        assert_answer(call, 500, "Internal server error")


# ---- errors of one request


@pytest.mark.rule(15)
@pytest.mark.parametrize("victim", range(3))
def test_a_request_that_cannot_be_decoded_fails_alone(any_server, victim):
    requests = [counting(tag, 3) for tag in "abc"]
    requests[victim]["undecodable"] = ["http", "no such prompt"]
    calls = any_server.call(*requests)
    for number, tag in enumerate("abc"):
        if number != victim:
            assert_complete(calls[number], tag, 3)
    assert_answer(calls[victim], 429, "no such prompt")


@pytest.mark.rule(15)
def test_requests_that_cannot_be_decoded_leave_the_worker_to_the_next(server):
    bad = counting("bad", 1, undecodable=["http", "none of them"])
    for call in server.call(bad, bad, bad):
        assert_answer(call, 429, "none of them")
    test_concurrent_requests_get_1_3_and_9_outputs(server)


@pytest.mark.rule(15)
def test_fail_before_the_first_output_gives_its_own_answer_to_one_client(server):
    failing = {"tag": "failing", "plan": [["fail", "http", "too many"]]}
    failing, other, _ = server.call(failing, counting("other", 3))
    assert_answer(failing, 429, "too many")
    assert failing.headers["retry-after"] == "7"
    assert_complete(other, "other", 3)


@pytest.mark.rule(15)
def test_fail_in_mid_stream_cuts_off_one_client(server):
    failing = {"tag": "failing", "plan": [["out", 0], ["out", 1], ["fail", "http", "too many"]]}
    failing, other, _ = server.call(failing, counting("other", 5))
    assert_cut(failing, "failing", 2)
    assert_complete(other, "other", 5)


def test_a_failure_reaches_its_client_while_the_others_go_on(server, gate):
    failing = {"tag": "failing", "plan": [["out", 0], ["fail", "plain", "bad luck"]]}
    failing, other, _ = server.call(failing, counting("other", 5, gate=gate.port))
    gate.let_through(0)
    gate.let_through(1)
    assert gate.next_line() == "step 2"
    assert_cut(failing, "failing", 1)
    assert not other.over


@pytest.mark.rule(15)
@pytest.mark.parametrize("element", [["object"], ["surrogate"]], ids=lambda element: element[0])
def test_an_output_that_cannot_be_sent_fails_its_own_request(server, element):
    early = {"tag": "early", "plan": [element, ["out", 1]]}
    late = {"tag": "late", "plan": [["out", 0], element, ["out", 2]]}
    early, late, other = server.call(early, late, counting("other", 4))
    assert_answer(early, 500, "Internal server error")
    assert_cut(late, "late", 1)
    assert_complete(other, "other", 4)


# ---- errors of the batch


@pytest.mark.rule(8)
def test_a_step_of_the_wrong_width_is_an_error_and_no_other_clients_output(any_server):
    narrow = {"tag": "a", "plan": [["out", 0], ["narrow"], ["out", 2]]}
    calls = any_server.call(narrow, counting("b", 3), counting("c", 3))
    for call, tag in zip(calls, "abc", strict=True):
        assert {message["tag"] for message in outputs_of(call.wait())} == {tag}
    for call, tag in zip(calls, "abc", strict=True):
        assert_cut(call, tag, 1)


@pytest.mark.rule(8)
def test_a_first_step_of_the_wrong_width_is_answered_with_500(server):
    for call in server.call({"tag": "a", "plan": [["narrow"]]}, counting("b", 3)):
        assert_answer(call, 500, "Internal server error")


@pytest.mark.cell("LitServe, `BatchedStreamLoop`", "error", "cut")
def test_an_error_in_mid_stream_is_visible_to_every_client_it_concerns(any_server):
    failing = {"tag": "a", "plan": [["out", 0], ["out", 1], ["raise", "plain", "bad luck"]]}
    a, b, c = any_server.call(failing, counting("b", 5), counting("c", 1))
    assert_cut(a, "a", 2)
    assert_cut(b, "b", 2)
    assert_complete(c, "c", 1)  # it had ended before
    test_concurrent_requests_get_1_3_and_9_outputs(any_server)


@pytest.mark.cell("LitServe, `BatchedStreamLoop`", "early error", "500")
def test_an_error_before_the_first_output_is_answered_with_500(server):
    for call in server.call({"tag": "a", "plan": [["raise", "plain", "bad luck"]]}):
        assert_answer(call, 500, "Internal server error")
    test_concurrent_requests_get_1_3_and_9_outputs(server)


def test_an_http_exception_of_the_batch_answers_all_its_requests(server):
    for call in server.call({"tag": "a", "plan": [["raise", "http", "out of memory"]]}):
        assert_answer(call, 429, "out of memory")
        assert call.headers["retry-after"] == "7"


@pytest.mark.cell("LitServe, `BatchedStreamLoop`", "bad request", "422")
def test_a_request_error_of_the_batch_answers_all_its_requests_with_422(server):
    for call in server.call({"tag": "a", "plan": [["raise", "rejecting", "too long"]]}):
        assert_answer(call, 422, "too long")


@pytest.mark.rule(18)
@pytest.mark.parametrize("kind", KINDS_OF_500)
def test_whatever_is_raised_the_client_gets_a_500_and_the_worker_lives(server, kind):
    [before] = server.call(counting("before", 1), path="/one")
    [call] = server.call({"tag": "a", "plan": [["raise", kind, "no luck"]]}, path="/one")
    assert_answer(call, 500, "Internal server error")
    [after] = server.call(counting("after", 1), path="/one")
    assert_complete(after, "after", 1)
    assert outputs_of(before.wait())[0]["pid"] == outputs_of(after)[0]["pid"]


@pytest.mark.rule(18)
def test_a_detail_that_is_no_json_is_sent_as_text(server):
    [call] = server.call(
        {"tag": "a", "plan": [["raise", "http with unpicklable detail", ""]]}, path="/one"
    )
    assert_answer(call, 429, "{'f': <built-in function print>}")


@pytest.mark.rule(18)
@pytest.mark.xfail(strict=True, reason="the worker dies, and LitServe shuts the server down")
def test_an_unpicklable_exception_on_the_stock_loop(doomed_stock_server):
    calls = doomed_stock_server.call({"tag": "a", "plan": [["raise", "unpicklable", "no luck"]]})
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and not all(call.over for call in calls):
        assert "died; shutting down" not in doomed_stock_server.log()


# ---- the log


@pytest.mark.parametrize("outputs", [0, 2], ids=["before the first output", "in mid-stream"])
def test_an_error_is_logged_once_for_all_the_requests_it_fails(server, outputs):
    text = uuid.uuid4().hex
    plan = [*[["out", n] for n in range(outputs)], ["raise", "plain", text]]
    seen_before = len(server.log())
    for call in server.call({"tag": "a", "plan": plan}, counting("b", 5), counting("c", 5)):
        call.wait()
    log = server.log()[seen_before:]
    assert log.count(text) == 1
    assert log.count("Traceback (most recent call last)") == 1


def test_an_http_exception_before_the_first_output_is_not_logged_as_an_error(server):
    text = uuid.uuid4().hex
    seen_before = len(server.log())
    for call in server.call({"tag": "a", "plan": [["raise", "http", text]]}):
        call.wait()
    log = server.log()[seen_before:]
    assert text not in log
    assert "Traceback" not in log


def test_an_http_exception_in_mid_stream_is_logged_in_a_line(server):
    text = uuid.uuid4().hex
    seen_before = len(server.log())
    for call in server.call({"tag": "a", "plan": [["out", 0], ["fail", "http", text]]}):
        call.wait()
    log = server.log()[seen_before:]
    assert log.count(text) == 1
    assert "Traceback" not in log


def test_the_endpoint_is_documented_as_litserve_documents_its_own(server, stock_server):
    ours = server.client.get("/openapi.json").json()["paths"]["/three"]["post"]
    stock = stock_server.client.get("/openapi.json").json()["paths"]["/three"]["post"]
    assert ours["requestBody"] == stock["requestBody"]
    assert ours["responses"] == stock["responses"]
