"""End to end: OpenAI's own client. `litserve_openai_api.py` says what requests can ask."""

import asyncio
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import serving
from support.openai_client import asking, outs, serving_openai, streamed
from support.serving import SECONDS

API = Path(serving.__file__).with_name("litserve_openai_api.py")

# The paths of our loops, and how many choices there may be: the batches of /v1 have to be full.
NUMBERS_OF_CHOICES = {
    "/v1": (3, 6),
    "/predict": (1, 2, 3, 4, 5),
    "/continuous": (1, 2, 3, 4, 5),
    "/subclass": (1, 2, 3),
}
ONE = "/subclass"  # whose batches are of one request

INVALID = "invalid_request_error"
UNKNOWN = {"message": "Internal server error", "type": "server_error", "param": None, "code": None}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving_openai(API, tmp_path_factory.mktemp("openai")) as service:
        yield service


@pytest.fixture
def pool():
    with ThreadPoolExecutor(max_workers=8) as pool:
        yield pool


def completed(completion):
    assert [choice.index for choice in completion.choices] == list(range(len(completion.choices)))
    return [(choice.message.content, choice.finish_reason) for choice in completion.choices]


def figures(usage):
    return None if usage is None else (usage.prompt_tokens, usage.completion_tokens)


def let_run_until(gate, *lines):
    """Let the model make its steps until it reports one of these; return how many that were."""
    deadline = time.monotonic() + SECONDS
    steps = 0
    while (line := gate.next_line()) not in lines:
        assert line, "the model has gone"
        assert time.monotonic() < deadline, f"{steps} steps, now {line}"
        if line.startswith("step"):
            open_gate(gate)
            steps += 1
    return steps


def open_gate(gate):
    gate._connection.sendall(b"go\n")


# ---- choices


@st.composite
def plans_of(draw, path):
    """Plans for as many choices as the path takes, with what each has to give."""
    lengths = draw(
        st.sampled_from(NUMBERS_OF_CHOICES[path]).flatmap(
            lambda number: st.lists(st.integers(0, 6), min_size=number, max_size=number)
        )
    )
    expected = [[f"{index}.{n} " for n in range(length)] for index, length in enumerate(lengths)]
    return [draw(st.sampled_from(WAYS_TO_END))(texts) for texts in expected], expected


WAYS_TO_END = [
    lambda texts: outs(*texts),
    lambda texts: [*outs(*texts), ["end", {}]],
    lambda texts: [*outs(*texts[:-1]), *(["last", text, {}] for text in texts[-1:])],
    lambda texts: [["many", *texts], ["skip"]],
]


@pytest.mark.rule(2)
@pytest.mark.parametrize("path", NUMBERS_OF_CHOICES)
def test_each_choice_is_complete_whatever_ends_first(service, path):
    @settings(max_examples=15)
    @given(plans_of(path), st.booleans())
    def check(made, stream):
        plans, expected = made
        if stream:
            chunks = service.chunks(path, *plans)
            assert streamed(chunks, len(plans)) == [(texts, "stop") for texts in expected]
        else:
            completion = service.create(path, *plans)
            assert completed(completion) == [("".join(texts), "stop") for texts in expected]

    check()


# With LitServe's own spec and loop the first end ends all. Here the choices that share a batch have
# the same length, which is all that its loop can do.
@pytest.mark.rule(2)
@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/predict",
        pytest.param("/stock", marks=pytest.mark.xfail(strict=True, raises=AssertionError)),
    ],
)
def test_a_choice_that_ends_first_does_not_end_the_others(service, path):
    plans = [outs("a", "b"), outs("c", "d"), outs("e", "f", "g", "h", "i")]
    texts = [texts for texts, _ in streamed(service.chunks(path, *plans), 3)]
    assert texts == [["a", "b"], ["c", "d"], ["e", "f", "g", "h", "i"]]


@pytest.mark.rule(7)
def test_choices_come_step_by_step_and_end_one_by_one(service, gate, pool):
    plans = [outs("a0"), [["out", "b0"], ["last", "b1", {}]], outs("c0", "c1", "c2")]
    asked = pool.submit(service.create, "/v1", *plans, gate=gate, stream=True)
    gate.let_through(0)
    with asked.result(SECONDS) as stream:
        assert come(stream, 3) == [(0, "a0", None), (1, "b0", None), (2, "c0", None)]
        gate.let_through(1)
        assert come(stream, 4) == [
            (0, None, "stop"),
            (1, "b1", None),
            (1, None, "stop"),
            (2, "c1", None),
        ]
        assert gate.next_line() == "live [2]"
        gate.let_through(2)
        assert come(stream, 1) == [(2, "c2", None)]
        gate.let_through(3)
        assert come(stream, 1) == [(2, None, "stop")]
        assert gate.next_line() == "closed"
        assert list(stream) == []


def come(stream, number):
    """Wait for so many chunks; chunks of different choices are in no order."""
    choices = [next(stream).choices[0] for _ in range(number)]
    news = [(choice.index, choice.delta.content, choice.finish_reason) for choice in choices]
    return sorted(news, key=lambda new: new[0])


@pytest.mark.rule(2)
def test_clients_at_the_same_time_get_their_own_choices(service):
    async def talk(client, number):
        texts = [[f"{number}.{choice}.{n}" for n in range(choice * 3)] for choice in range(3)]
        request = asking(*(outs(*some) for some in texts), stream=bool(number % 2))
        answer = await client.chat.completions.create(**request)
        if number % 2:
            chunks = [chunk async for chunk in answer]
            assert streamed(chunks, 3) == [(some, "stop") for some in texts]
        else:
            assert completed(answer) == [("".join(some), "stop") for some in texts]

    async def talk_together():
        url = f"{service.url}/continuous"
        async with openai.AsyncOpenAI(
            api_key="none", base_url=url, max_retries=0, timeout=SECONDS
        ) as client:
            await asyncio.gather(*(talk(client, number) for number in range(8)))

    asyncio.run(talk_together())


def test_text_of_any_kind_arrives_as_it_was(service):
    texts = ["", "\n\ndata: [DONE]\n\n", "é😀", "\u2028\x85\r\0", '"\\', "\ud800"]
    [(given, _)] = streamed(service.chunks(ONE, outs(*texts)), 1)
    assert given == [text for text in texts if text]
    assert completed(service.create(ONE, outs(*texts))) == [("".join(texts), "stop")]


def test_128_choices_are_as_many_as_openai_gives(service):
    completion = service.create("/continuous", *[outs("a")] * 128)
    assert completed(completion) == [("a", "stop")] * 128


# ---- what is sent


def test_a_stream_is_made_of_events_and_ends_with_done(service):
    request = asking(outs("a", "b", "c"), stream=True)
    response = service.http.post(f"{ONE}/chat/completions", json=request)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done, nothing = response.content.split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    for chunk in chunks:
        assert chunk.startswith(b"data: {")
        assert b"\n" not in chunk
    assert len(chunks) == 4


def test_all_chunks_of_a_stream_have_the_same_head(service):
    chunks = service.chunks("/v1", outs("a", "b"), outs("c"), outs("d"))
    heads = {(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}
    [(name, created, model, kind)] = heads
    assert name.startswith("chatcmpl-")
    assert abs(created - time.time()) < 3600
    assert (model, kind) == ("model", "chat.completion.chunk")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_names_the_request_as_its_client_does(service, stream):
    names = {"x-request-id": "mine", "x-request-timeout": "60"}
    for plans, status in [
        ([outs("a"), outs("b")], 200),
        ([[["undecodable", "http", "too many"]]], 429),
    ]:
        request = asking(*plans, stream=stream)
        response = service.http.post("/predict/chat/completions", json=request, headers=names)
        assert (response.status_code, response.headers["x-request-id"]) == (status, "mine")
    response = service.http.post(
        "/predict/chat/completions", json=request, headers={"x-request-timeout": "soon"}
    )
    assert response.status_code == 400
    assert "X-Request-Timeout" in response.json()["error"]["message"]


def test_two_responses_have_different_ids(service):
    names = {service.create(ONE, outs("a")).id for _ in range(2)}
    assert len(names) == 2


def test_a_response_that_is_no_stream_has_everything_at_once(service):
    plans = [
        outs("a", "b"),
        [["out", "c"], ["last", "d", {"reason": "length"}]],
        [["last", "e", {"info": {"prompt_tokens": 7, "completion_tokens": 1}}]],
    ]
    completion = service.create("/v1", *plans)
    assert completed(completion) == [("ab", "stop"), ("cd", "length"), ("e", "stop")]
    assert {choice.message.role for choice in completion.choices} == {"assistant"}
    assert figures(completion.usage) == (7, 1)
    assert (completion.object, completion.model) == ("chat.completion", "model")


def test_the_endpoint_answers_to_a_browser_that_asks_for_its_options(service):
    assert service.http.options("/v1/chat/completions").status_code == 200


# ---- why a choice has ended

CALL = {"index": 0, "id": "call-1", "function": {"name": "weather", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
FILTERED = {"info": {"finish_reason": "content_filter"}}
REASONS = {
    "none": (outs("a"), "stop"),
    "End": ([*outs("a"), ["end", {}]], "stop"),
    "Last": ([["last", "a", {}]], "stop"),
    "the model ends": ([*outs("a"), ["stop"]], "stop"),
    "Last for length": ([["last", "a", {"reason": "length"}]], "length"),
    "End for length": ([*outs("a"), ["end", {"reason": "length"}]], "length"),
    "Last with info": ([["last", "a", FILTERED]], "content_filter"),
    "End with info": ([*outs("a"), ["end", FILTERED]], "content_filter"),
    "info says more than length": (
        [["last", "a", FILTERED | {"reason": "length"}]],
        "content_filter",
    ),
    "info with an unknown reason": ([["last", "a", {"info": {"finish_reason": "tired"}}]], "stop"),
    "tool calls": ([*outs("a"), ["message", CALLING]], "tool_calls"),
    "tool calls, then text": ([["message", CALLING], *outs("a")], "tool_calls"),
    "length says more than tool calls": (
        [["message", CALLING], ["last", "a", {"reason": "length"}]],
        "length",
    ),
    "info says more than tool calls": (
        [["message", CALLING], ["last", "a", FILTERED]],
        "content_filter",
    ),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize(("plan", "reason"), REASONS.values(), ids=REASONS)
def test_a_choice_has_the_reason_of_its_end(service, plan, reason, stream):
    if stream:
        [(_, given)] = streamed(service.chunks(ONE, plan), 1)
    else:
        [(content, given)] = completed(service.create(ONE, plan))
        assert content == "a"
    assert given == reason


def test_every_choice_has_the_reason_of_its_own_end(service):
    plans = [
        outs("a", "a", "a"),
        [["last", "b", {"reason": "length"}]],
        [["last", "c", FILTERED]],
    ]
    expected = [(["a", "a", "a"], "stop"), (["b"], "length"), (["c"], "content_filter")]
    assert streamed(service.chunks("/v1", *plans), 3) == expected


@pytest.mark.parametrize("option", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("path", NUMBERS_OF_CHOICES)
def test_max_outputs_may_be_what_the_client_asks_for(service, path, option):
    plans = [outs("a"), outs("b", "b"), outs("c", "c", "c", "c")]
    expected = [(["a"], "stop"), (["b", "b"], "length"), (["c", "c"], "length")]
    assert streamed(service.chunks(path, *plans, **{option: 2}), 3) == expected


@pytest.mark.rule(7)
@pytest.mark.parametrize("path", ["/predict", "/continuous"])
def test_is_eos_may_be_what_each_client_asks_for(service, path):
    texts = {None: "abcd", "b": "a", ("c", "d"): "ab", "z": "abcd"}

    def ask(stop):
        asked = {} if stop is None else {"stop": list(stop) if type(stop) is tuple else stop}
        return streamed(service.chunks(path, outs("a", "b", "c", "d"), **asked), 1)

    with ThreadPoolExecutor() as clients:  # together, so that they share batches
        found = list(clients.map(ask, texts))
    assert found == [[(list(text), "stop")] for text in texts.values()]


def test_tool_calls_arrive_in_a_stream_as_the_model_gives_them(service):
    chunks = service.chunks(ONE, [["message", CALLING]])
    [call] = chunks[0].choices[0].delta.tool_calls
    assert (call.index, call.id, call.type) == (0, "call-1", "function")
    assert (call.function.name, call.function.arguments) == ("weather", "{}")


def test_tool_calls_arrive_without_a_stream(service):
    [choice] = service.create(ONE, [["message", CALLING]]).choices
    [call] = choice.message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("call-1", "weather", "{}")


# How a delta continues a tool call: as OpenAI has it, and as LitServe's own models do.
CONTINUATIONS = {
    "of OpenAI": {"function": {"arguments": ": 1}"}},
    "of LitServe": {"id": None, "type": "function", "function": {"name": "", "arguments": ": 1}"}},
}


@pytest.mark.parametrize("more", CONTINUATIONS.values(), ids=CONTINUATIONS)
def test_tool_calls_in_pieces_arrive_whole_without_a_stream(service, more):
    begun = {"id": "call-1", "function": {"name": "weather", "arguments": '{"town"'}}
    other = {"id": "call-2", "function": {"name": "time", "arguments": "{}"}}
    parts = [{"index": 0} | begun, {"index": 1} | other, {"index": 0} | more]
    plan = [["message", CALLING | {"tool_calls": [part]}] for part in parts]
    [choice] = service.create(ONE, plan).choices
    calls = [
        (c.id, c.type, c.function.name, c.function.arguments) for c in choice.message.tool_calls
    ]
    assert calls == [
        ("call-1", "function", "weather", '{"town": 1}'),
        ("call-2", "function", "time", "{}"),
    ]


@pytest.mark.parametrize("more", CONTINUATIONS.values(), ids=CONTINUATIONS)
def test_tool_calls_in_pieces_arrive_in_pieces_in_a_stream(service, more):
    first, second, _ = service.chunks(
        ONE, [["message", CALLING], ["message", CALLING | {"tool_calls": [{"index": 0} | more]}]]
    )
    [begun], [going_on] = (chunk.choices[0].delta.tool_calls for chunk in (first, second))
    assert (begun.id, begun.function.name, begun.function.arguments) == ("call-1", "weather", "{}")
    assert (going_on.index, going_on.id) == (0, None)
    assert going_on.function.arguments == ": 1}"


# ---- usage


def using(prompt, completion, **more):
    return {"prompt_tokens": prompt, "completion_tokens": completion} | more


def saying(text, prompt, completion):
    return ["message", {"role": "assistant", "content": text} | using(prompt, completion)]


# The usage of each of three choices, and of the response: the prompt is one.
WAYS_TO_TELL_USAGE = {
    "in messages": ([[saying("a", 5, 0), saying("b", 0, 2)]] * 3, (5, 6)),
    "in every message": ([[saying("a", 0, 1)] * 4] * 3, (0, 12)),
    "in messages of LitServe": (
        [[["with usage", {"role": "assistant", "content": "a"} | using(1, 2)]]] * 3,
        (1, 6),
    ),
    "in the info of Last": ([[["last", "a", {"info": using(5, 2)}]]] * 3, (5, 6)),
    "in the info of End": ([[*outs("a"), ["end", {"info": using(5, 2)}]]] * 3, (5, 6)),
    "in messages, and better in the info": (
        [[saying("a", 0, 1), saying("b", 1, 1), ["end", {"info": using(5, 2)}]]] * 3,
        (5, 6),
    ),
    "by one choice": ([[["last", "a", {"info": using(5, 2)}]], outs("b"), outs("c", "c")], (5, 2)),
}


@pytest.mark.parametrize(("plans", "used"), WAYS_TO_TELL_USAGE.values(), ids=WAYS_TO_TELL_USAGE)
def test_usage_is_a_chunk_of_its_own_if_asked_for(service, plans, used):
    *chunks, last = service.chunks("/v1", *plans, stream_options={"include_usage": True})
    assert last.choices == []
    assert figures(last.usage) == used
    assert last.usage.total_tokens == sum(used)
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert all(len(chunk.choices) == 1 for chunk in chunks)


def test_done_comes_after_usage(service):
    *_, usage, done = service.events(ONE, outs("a"), stream_options={"include_usage": True})
    assert b'"choices":[]' in usage
    assert done == b"data: [DONE]"


@pytest.mark.parametrize("asked_for", [None, {}, {"include_usage": False}], ids=repr)
def test_usage_is_in_no_chunk_otherwise(service, asked_for):
    *events, done = service.events(ONE, [saying("a", 5, 1)], stream_options=asked_for)
    assert done == b"data: [DONE]"
    assert len(events) == 2
    for event in events:
        assert "usage" not in json.loads(event.removeprefix(b"data: "))


@pytest.mark.parametrize(("plans", "used"), WAYS_TO_TELL_USAGE.values(), ids=WAYS_TO_TELL_USAGE)
def test_usage_is_there_without_a_stream(service, plans, used):
    usage = service.create("/v1", *plans).usage
    assert figures(usage) == used
    assert usage.total_tokens == sum(used)


def test_a_total_that_the_model_gives_is_not_replaced(service):
    plan = [["last", "a", {"info": using(5, 2, total_tokens=11)}]]
    assert service.create(ONE, plan).usage.total_tokens == 11


@pytest.mark.parametrize("path", ["/predict", "/continuous"])
def test_usage_passes_through_what_the_spec_encodes(service, path):
    plan = [saying("a", 5, 1), saying("b", 0, 1)]
    assert figures(service.create(path, plan).usage) == (5, 2)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize("figure", ["many", [1], 1.5], ids=repr)
def test_usage_that_is_no_number_is_an_error(service, figure, stream):
    with pytest.raises(openai.InternalServerError) as raised:
        service.create(ONE, [["end", {"info": using(figure, 1)}]], stream=stream)
    assert raised.value.body == UNKNOWN


def test_usage_that_is_no_number_is_an_error_in_mid_stream(service):
    with (
        service.create(ONE, [*outs("a"), saying("b", "many", 1)], stream=True) as stream,
        pytest.raises(openai.APIError, match="Internal server error"),
    ):
        list(stream)


# ---- errors


@pytest.mark.rule(15)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize("path", NUMBERS_OF_CHOICES)
def test_an_http_exception_before_the_first_output_has_its_own_status(service, path, stream):
    plans = [[["undecodable", "http", "too many"]], outs("b"), outs("c")]
    with pytest.raises(openai.RateLimitError) as raised:
        service.create(path, *plans, stream=stream)
    error = {"message": "too many", "type": INVALID, "param": None, "code": None}
    assert raised.value.body == error
    assert raised.value.response.json() == {"error": error}
    assert raised.value.response.headers["retry-after"] == "7"


@pytest.mark.rule(15)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize(
    "element",
    [["undecodable", "plain", "secret"], ["fail", "plain", "secret"], ["raise", "plain", "secret"]],
    ids=lambda element: element[0],
)
def test_any_other_error_before_the_first_output_is_a_500(service, element, stream):
    with pytest.raises(openai.InternalServerError) as raised:
        service.create("/v1", [element], outs("b", "b"), outs("c", "c"), stream=stream)
    assert raised.value.status_code == 500
    assert raised.value.body == UNKNOWN
    assert "secret" not in raised.value.response.text


@pytest.mark.parametrize("path", NUMBERS_OF_CHOICES)
def test_an_error_in_mid_stream_is_raised_after_the_outputs_before_it(service, path):
    plan = [*outs("a", "b"), ["fail", "http", "too many"]]
    seen = []
    with (
        service.create(path, *[plan] * 3, stream=True) as stream,
        pytest.raises(openai.APIError) as raised,
    ):
        seen.extend(stream)
    assert type(raised.value) is openai.APIError
    assert raised.value.message == "too many"
    assert raised.value.body["type"] == INVALID
    texts = [texts for texts, _ in streamed(seen, 3)]
    assert ["a", "b"] in texts
    assert all(some == ["a", "b"][: len(some)] for some in texts)


def test_an_error_in_the_step_of_an_output_is_raised_after_it(service):
    seen = []
    with (
        service.create(ONE, [["many and fail", "a", "http", "too many"]], stream=True) as stream,
        pytest.raises(openai.APIError, match="too many"),
    ):
        seen.extend(stream)
    assert streamed(seen, 1) == [(["a"], None)]


def test_an_error_in_mid_stream_is_the_last_event(service):
    plans = [[*outs("a"), ["fail", "plain", "secret"]], outs("b", "b"), outs("c", "c")]
    *events, last = service.events("/v1", *plans)
    assert json.loads(last.removeprefix(b"data: ")) == {"error": UNKNOWN}
    for event in events:
        assert "choices" in json.loads(event.removeprefix(b"data: "))


def test_an_error_of_the_batch_in_mid_stream_is_raised_too(service):
    plans = [[*outs("a"), ["raise", "plain", "bad luck"]], outs("b"), outs("c", "c")]
    with (
        service.create("/v1", *plans, stream=True) as stream,
        pytest.raises(openai.APIError, match="Internal server error"),
    ):
        list(stream)


@pytest.mark.rule(13)
def test_without_a_stream_the_other_choices_are_given_up_too(service, gate, pool):
    plans = [[["forever", "a"]], [["out", "b"], ["fail", "http", "too many"]], [["forever", "c"]]]
    asked = pool.submit(service.create, "/v1", *plans, gate=gate)
    gate.let_through(0)
    gate.let_through(1)
    with pytest.raises(openai.RateLimitError, match="too many"):
        asked.result(SECONDS)
    let_run_until(gate, "closed")


@pytest.mark.rule(13)
def test_with_one_choice_that_fails_the_others_are_given_up(service, gate, pool):
    plans = [[["forever", "a"]], [["out", "b"], ["fail", "http", "too many"]], [["forever", "c"]]]
    asked = pool.submit(service.create, "/v1", *plans, gate=gate, stream=True)
    gate.let_through(0)
    with asked.result(SECONDS) as stream:
        come(stream, 3)
        gate.let_through(1)
        with pytest.raises(openai.APIError, match="too many"):
            list(stream)
        let_run_until(gate, "closed")


@pytest.mark.parametrize("failing", range(3))
def test_without_a_stream_an_error_of_any_choice_is_the_answer(service, failing):
    plans = [outs("a", "a", "a"), outs("b"), outs("c", "c")]
    plans[failing] = [*outs("a"), ["fail", "http", "too many"]]
    with pytest.raises(openai.RateLimitError, match="too many"):
        service.create("/v1", *plans)


def test_without_a_stream_an_error_in_the_step_of_an_output_is_the_answer(service):
    with pytest.raises(openai.RateLimitError, match="too many"):
        service.create(ONE, [["many and fail", "a", "http", "too many"]])


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize("n", [-1, 0, 129])
def test_a_number_of_choices_that_cannot_be_is_a_bad_request(service, n, stream):
    with pytest.raises(openai.BadRequestError) as raised:
        service.create(ONE, n=n, stream=stream)
    side, bound = ("below minimum", ">= 1") if n < 1 else ("above maximum", "<= 128")
    error = raised.value.body
    assert error["message"] == (
        f"Invalid 'n': integer {side} value. Expected a value {bound}, but got {n} instead."
    )
    assert (error["type"], error["param"]) == (INVALID, "n")


def test_a_number_of_choices_that_is_null_is_one(service):
    assert completed(service.create(ONE, outs("a"), n=None)) == [("a", "stop")]


def test_requests_that_find_the_queue_full_are_sent_away(service, gate, pool):
    held = pool.submit(service.create, ONE, outs("a"), gate=gate)
    assert gate.next_line() == "step 0"
    calls = [pool.submit(service.create, ONE, outs("b")) for _ in range(5)]
    over = as_completed(calls, SECONDS)
    refused = [next(over).exception() for _ in range(2)]
    for error in refused:
        assert isinstance(error, openai.InternalServerError)
        assert error.status_code == 503
        assert error.body["type"] == "server_error"
        assert error.response.headers["retry-after"] == "1"
    open_gate(gate)
    let_run_until(gate, "closed")
    for call in (held, *over):
        [(_, reason)] = completed(call.result())
        assert reason == "stop"


@pytest.mark.parametrize("body", ["{nonsense", "[]", '{"model": "m"}', '{"messages": 1}'])
def test_a_body_that_is_no_request_is_refused(service, body):
    response = service.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["type"] == INVALID


NO_MESSAGES = {
    "text": "hello",
    "a number": "1",
    "null": "null",
    "a list": '[{"role": "assistant"}]',
    "a content that is no text": '{"role": "assistant", "content": 1}',
    "a role that does not exist": '{"role": "janitor", "content": "a"}',
    "tool calls that are none": '{"role": "assistant", "tool_calls": [1]}',
    "a tool call of no function": '{"tool_calls": [{"function": "f"}]}',
    "a tool call at no place": '{"tool_calls": [{"index": "a", "function": {"name": "f"}}]}',
    "arguments that are no text": '{"tool_calls": [{"function": {"name": "f", "arguments": 1}}]}',
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize("text", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_what_is_no_chat_message_is_an_error(service, text, stream):
    seen_before = len(service.log())
    with pytest.raises(openai.InternalServerError) as raised:
        service.create(ONE, [["text", text]], stream=stream)
    assert raised.value.body == UNKNOWN
    logged = f"encode_response gives OpenAISpec chat messages, got {text!r}"
    assert service.log()[seen_before:].count(logged) == 1


def test_what_is_no_chat_message_is_an_error_in_mid_stream(service):
    with (
        service.create(ONE, [*outs("a"), ["text", "hello"]], stream=True) as stream,
        pytest.raises(openai.APIError, match="Internal server error"),
    ):
        list(stream)


def test_what_comes_before_that_in_the_same_step_arrives(service):
    seen = []
    with (
        service.create(ONE, [["many and text", "a", "hello"]], stream=True) as stream,
        pytest.raises(openai.APIError, match="Internal server error"),
    ):
        seen.extend(stream)
    assert streamed(seen, 1) == [(["a"], None)]


@pytest.mark.parametrize("path", ["/predict", "/continuous"])
def test_what_the_spec_cannot_encode_is_an_error(service, path):
    with pytest.raises(openai.InternalServerError, match="Malformed output"):
        service.create(path, [["message", {"text": "hello"}]])


# ---- clients that leave


@pytest.mark.rule(13)
def test_a_client_that_closes_its_stream_frees_all_its_slots(service, gate, pool):
    asked = pool.submit(service.create, "/v1", *[[["forever", "a"]]] * 3, gate=gate, stream=True)
    gate.let_through(0)
    with asked.result(SECONDS) as stream:
        come(stream, 3)
    let_run_until(gate, "closed")


@pytest.mark.rule(13)
@pytest.mark.parametrize("path", ["/predict", "/continuous", "/subclass"])
def test_a_client_that_leaves_takes_along_the_choices_that_wait(service, gate, pool, path):
    asked = pool.submit(service.create, path, *[[["forever", "a"]]] * 3, gate=gate, stream=True)
    gate.let_through(0)
    with asked.result(SECONDS) as stream:
        next(stream)
    let_run_until(gate, "closed")
    # Requests that waited have never been there, or have gone as well.
    assert completed(service.create(path, outs("b"))) == [("b", "stop")]


@pytest.mark.rule(13)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
def test_a_client_may_leave_before_it_has_an_answer(service, gate, stream):
    async def leave():
        url = f"{service.url}/v1"
        async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:
            request = asking(*[[["skip"], ["forever", "a"]]] * 3, gate=gate, stream=stream)
            asked = asyncio.create_task(client.chat.completions.create(**request))
            await asyncio.to_thread(gate.let_through, 0)
            asked.cancel()
            await asyncio.wait([asked])
            assert asked.cancelled()

    asyncio.run(leave())
    let_run_until(gate, "closed")


@pytest.mark.rule(11)
@pytest.mark.parametrize("fails", [False, True], ids=["leaves", "fails"])
def test_the_rest_of_the_batch_goes_on_without_a_client(service, gate, pool, fails):
    first = [*outs("a"), ["fail", "http", "too many"]] if fails else [["forever", "a"]]
    plans = [first, [["forever", "b"]]]
    asked = pool.submit(service.create, "/v1", *plans, gate=gate, stream=True)
    others = pool.submit(service.create, "/v1", [["forever", "c"]], gate=gate, stream=True)
    gate.let_through(0)
    with asked.result(SECONDS) as stream:
        come(stream, 2)
        if fails:
            gate.let_through(1)
            with pytest.raises(openai.APIError, match="too many"):
                list(stream)
    with others.result(SECONDS) as stream:
        steps = let_run_until(gate, "live [0]", "live [2]")  # whichever came first
        assert come(stream, 1 + fails + steps) == [(0, "c", None)] * (1 + fails + steps)
    let_run_until(gate, "closed")


# ---- specs


def test_a_spec_of_the_users_own_is_asked(service):
    [(texts, reason)] = streamed(service.chunks(ONE, outs("a", "b"), user="on a free plan"), 1)
    assert (texts, reason) == (["a"], "length")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
def test_with_litserves_loop_our_spec_is_litserves(service, stream):
    def answer(path):
        plans = [[saying("a", 1, 1), saying("b", 0, 1)], [saying("c", 1, 1), saying("d", 0, 1)]]
        options = {"stream_options": {"include_usage": True}} if stream else {}
        request = asking(*plans, stream=stream, **options)
        response = service.http.post(f"{path}/chat/completions", json=request)
        text = re.sub(r'"id":"[^"]*"|"created":\d+', "", response.text)
        return response.status_code, response.headers["content-type"], text

    assert answer("/auto") == answer("/stock")
