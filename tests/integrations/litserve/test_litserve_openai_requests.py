"""What OpenAI's own client may ask, and what it shows; see `litserve_openai_echo.py`."""

import datetime as dt
import json
from pathlib import Path

import openai
import pydantic
import pytest
from pydantic import Field
from pydantic_core import PydanticCustomError

from batchstream import RequestError
from batchstream.integrations._timeouts import HeaderError
from batchstream.integrations.litserve import ChatCompletionRequest, OpenAISpec
from batchstream.integrations.litserve._link.messages import Failure
from batchstream.integrations.litserve._openai.errors import error_response
from batchstream.integrations.litserve._openai.faults import fault_of
from batchstream.integrations.litserve._server.response_queue import FailedError
from support import serving
from support.openai_client import asking, outs, serving_openai

API = Path(serving.__file__).with_name("litserve_openai_echo.py")
HELLO = [{"role": "user", "content": "hello"}]
INVALID = "invalid_request_error"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving_openai(API, tmp_path_factory.mktemp("openai")) as service:
        yield service


def echoed(service, path="/echo", **options):
    """Return what an API got of a request."""
    request = {"model": "m", "messages": HELLO} | options
    answer = service.client(path).chat.completions.create(**request)
    return json.loads(answer.choices[0].message.content)


# ---- what is taken

LOOK = {"type": "function", "function": {"name": "look"}}
CUSTOM = {"type": "custom", "custom": {"name": "run", "format": {"type": "text"}}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [LOOK]}}
ACCEPTED = {
    **{f"tool_choice {it}": {"tool_choice": it} for it in ("none", "auto", "any", "required")},
    "a named function": {"tool_choice": LOOK},
    "a named custom tool": {"tool_choice": {"type": "custom", "custom": {"name": "run"}}},
    "allowed tools": {"tool_choice": ALLOWED},
    **{
        f"effort {effort}": {"reasoning_effort": effort}
        for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max", None)
    },
    "logprobs": {"logprobs": True, "top_logprobs": 20},
    "stop of null": {"stop": None},
    "stop of none": {"stop": []},
}


@pytest.mark.parametrize("asked", ACCEPTED.values(), ids=ACCEPTED)
def test_what_openai_takes_is_taken_and_reaches_the_context(service, asked):
    context = echoed(service, tools=[LOOK, CUSTOM], **asked)["context"]
    assert {key: context[key] for key in asked} == asked


def test_options_of_a_stream_are_taken_and_reach_the_context(service):
    options = {"include_usage": True, "include_obfuscation": False}
    chunks = service.client("/echo").chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options=options
    )
    content = "".join(it.choices[0].delta.content or "" for it in chunks if it.choices)
    assert json.loads(content)["context"]["stream_options"] == options


def test_tools_that_are_bare_have_an_empty_description_and_no_parameters(service):
    strict = {
        "type": "function",
        "function": {"name": "see", "strict": True, "parameters": {"a": 1}},
    }
    found = echoed(service, tools=[LOOK, strict, CUSTOM])["context"]["tools"]
    look = {"name": "look", "description": "", "parameters": {}}
    assert found[0] == LOOK | {"function": look}
    assert found[1] == strict | {"function": {"description": ""} | strict["function"]}
    assert found[2] == CUSTOM


CONVERSATION = [
    {"role": "developer", "content": "be brief", "name": "boss"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "file", "file": {}}]},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
    {
        "role": "assistant",
        "content": None,
        "refusal": "no",
        "reasoning_content": "so",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            {"id": "d", "type": "custom", "custom": {"name": "run", "input": "ls"}},
        ],
    },
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    {"role": "tool", "tool_call_id": "c", "content": "seen"},
]


def test_messages_of_every_kind_reach_the_api_whole(service):
    assert echoed(service, messages=CONVERSATION)["messages"] == CONVERSATION


def test_each_choice_knows_its_index_and_a_client_cannot_set_it(service):
    options = {"n": 3, "extra_body": {"choice_index": 7, "_choice_index": 7}}
    request = {"model": "m", "messages": HELLO} | options
    answer = service.client("/echo").chat.completions.create(**request)
    contexts = [json.loads(choice.message.content)["context"] for choice in answer.choices]
    assert [(each["choice_index"], each["n"]) for each in contexts] == [(0, 1), (1, 1), (2, 1)]


def test_fields_that_no_class_declares_reach_the_context(service):
    context = echoed(service, seed=7, extra_body={"guided": {"regex": "a+"}})["context"]
    assert (context["seed"], context["guided"]) == (7, {"regex": "a+"})


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_has_both_names_whichever_is_sent(service, name):
    context = echoed(service, **{name: 7})["context"]
    assert (context["max_tokens"], context["max_completion_tokens"]) == (7, 7)


def test_a_request_class_of_the_users_own_is_asked(service):
    assert echoed(service)["context"]["top_k"] == 50
    assert echoed(service, extra_body={"top_k": 3})["context"]["top_k"] == 3


def test_the_documentation_shows_the_request_class(service):
    paths = service.http.get("/openapi.json").json()
    schema = paths["paths"]["/echo/chat/completions"]["post"]["requestBody"]
    [reference] = schema["content"]["application/json"]["schema"].values()
    assert reference.endswith("/EchoRequest")
    assert "top_k" in paths["components"]["schemas"]["EchoRequest"]["properties"]


# ---- what is refused

NO_NUMBERS = {
    "n": ["1", True, 1.0],
    "max_tokens": ["7", True, 7.5],
    "max_completion_tokens": ["7", True],
    "temperature": ["1", True],
    "top_p": ["1", True],
    "presence_penalty": ["1", True],
    "frequency_penalty": ["1", True],
}
REFUSED = {
    "max_tokens of 0": ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    "max_tokens of -1": ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    "max_completion_tokens": (
        {"max_completion_tokens": 0},
        "max_completion_tokens",
        "integer_below_min_value",
    ),
    **{
        f"two limits, {new}": (
            {"max_tokens": 1, "max_completion_tokens": new},
            "max_tokens",
            "invalid_parameter_combination",
        )
        for new in (1, 2)
    },
    "top_logprobs without logprobs": ({"top_logprobs": 0}, "top_logprobs", None),
    "a choice without tools": ({"tool_choice": "auto"}, "tool_choice", None),
    **{
        f"{name} of {wrong!r}": ({name: wrong}, name, "invalid_type")
        for name, wrongs in NO_NUMBERS.items()
        for wrong in wrongs
    },
    "a schema that is a little strict": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": "no"}}},
        "response_format.json_schema.strict",
        "invalid_type",
    ),
    "a format": ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    "a format without a type": (
        {"response_format": {}},
        "response_format.type",
        "missing_required_parameter",
    ),
    "a role": (
        {"messages": [{"role": "narrator", "content": "a"}]},
        "messages[0].role",
        "invalid_value",
    ),
    "the number of a tool call": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"index": "0", "function": {"name": "a", "arguments": "{}"}}],
                }
            ]
        },
        "messages[0].tool_calls[0].index",
        "invalid_type",
    ),
    "a limit that is no number": ({"max_tokens": "many"}, "max_tokens", "invalid_type"),
    "n": ({"n": 129}, "n", "integer_above_max_value"),
    "temperature": ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
    "a whole number": ({"temperature": 3}, "temperature", "decimal_above_max_value"),
    "top_p": ({"top_p": -0.5}, "top_p", "decimal_below_min_value"),
    "presence_penalty": ({"presence_penalty": 2.5}, "presence_penalty", "decimal_above_max_value"),
    "frequency_penalty": (
        {"frequency_penalty": -2.5},
        "frequency_penalty",
        "decimal_below_min_value",
    ),
    "no messages": ({"messages": []}, "messages", "empty_array"),
    "a message without a role": (
        {"messages": [*HELLO, {"content": "a"}]},
        "messages[1].role",
        "missing_required_parameter",
    ),
    "a part without a text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    "a content that is a number": (
        {"messages": [{"role": "user", "content": 5}]},
        "messages[0].content",
        "invalid_type",
    ),
    "an effort": ({"reasoning_effort": "hard"}, "reasoning_effort", "invalid_value"),
    "a choice": ({"tool_choice": "perhaps"}, "tool_choice", "invalid_value"),
    "a kind of tools": ({"tools": [{"type": "shell"}]}, "tools[0].type", "invalid_value"),
    "a tool without a name": (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    "a choice without a function": (
        {"tool_choice": {"type": "function"}, "tools": [LOOK]},
        "tool_choice.function",
        "missing_required_parameter",
    ),
    "a choice without a name": (
        {"tool_choice": {"type": "function", "function": {}}, "tools": [LOOK]},
        "tool_choice.function.name",
        "missing_required_parameter",
    ),
    "stop": ({"stop": ["a"]}, "stop", "unsupported_parameter"),
    "a field of the user's class": (
        {"extra_body": {"top_k": 0}},
        "top_k",
        "integer_below_min_value",
    ),
    "a decimal field of the user's class": (
        {"extra_body": {"repetition_penalty": 0}},
        "repetition_penalty",
        "decimal_below_min_value",
    ),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize(("asked", "param", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_a_bad_request_whose_error_the_client_shows(
    service, asked, param, code, stream
):
    with pytest.raises(openai.BadRequestError) as raised:
        echoed(service, stream=stream, **asked)
    assert set(raised.value.response.json()) == {"error"}
    body = raised.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert (body["type"], body["param"], body["code"]) == (INVALID, param, code)
    assert body["message"] in str(raised.value)


def complaint(service, **asked):
    """Return the error that refuses a request, without its type."""
    with pytest.raises(openai.BadRequestError) as raised:
        echoed(service, **asked)
    error = dict(raised.value.body)
    assert error.pop("type") == INVALID
    return error


NEEDS = {
    "stream": ("stream_options", {"include_usage": True}),
    "logprobs": ("top_logprobs", 2),
}


@pytest.mark.parametrize("needed", NEEDS)
def test_what_makes_sense_with_another_parameter_alone_is_refused_without(service, needed):
    name, value = NEEDS[needed]
    message = f"The '{name}' parameter is only allowed when '{needed}' is enabled."
    refused = {"message": message, "param": name, "code": None}
    assert complaint(service, **{name: value}) == refused
    if needed != "stream":  # which a client sends along with the options
        assert complaint(service, **{name: value, needed: False}) == refused


def test_what_is_true_or_false_is_no_text_and_no_number(service):
    message = "Invalid type for '{}': expected a boolean, but got {} instead."
    for name in ("logprobs", "stream"):
        for wrong, word in (("true", "a string"), (1, "an integer")):
            sent = {"model": "m", "messages": HELLO, name: wrong}
            error = service.http.post("/echo/chat/completions", json=sent).json()["error"]
            assert error["message"] == message.format(name, word)
    usage = {"include_usage": "yes"}
    with pytest.raises(openai.BadRequestError) as raised:
        echoed(service, stream=True, stream_options=usage)
    wanted = message.format("stream_options.include_usage", "a string")
    assert raised.value.body["message"] == wanted


USER = {"role": "user"}
WORDED = {
    "an integer": (
        {"max_tokens": "many"},
        "Invalid type for 'max_tokens': expected an integer, but got a string instead.",
    ),
    "no decimal": (
        {"max_tokens": 7.0},
        "Invalid type for 'max_tokens': expected an integer, but got a decimal number instead.",
    ),
    "below": (
        {"max_tokens": 0},
        (
            "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 "
            "instead."
        ),
    ),
    "above": (
        {"n": 130},
        "Invalid 'n': integer above maximum value. Expected a value <= 128, but got 130 instead.",
    ),
    "a decimal above": (
        {"temperature": 2.5},
        (
            "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got "
            "2.5 instead."
        ),
    ),
    "an empty array": (
        {"messages": []},
        (
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an "
            "empty array instead."
        ),
    ),
    "null": (
        {"messages": None},
        "Invalid type for 'messages': expected an array, but got null instead.",
    ),
    "one of two types": (
        {"messages": [USER | {"content": {}}]},
        (
            "Invalid type for 'messages[0].content': expected one of a string or an array, but "
            "got an object instead."
        ),
    ),
    "a value": (
        {"messages": [{"role": "narrator"}]},
        (
            "Invalid value: 'narrator'. Supported values are: 'developer', 'system', 'user', "
            "'assistant', 'tool' and 'function'."
        ),
    ),
    "a value of another type": (
        {"tool_choice": 5, "tools": [LOOK]},
        (
            "Invalid type for 'tool_choice': expected one of a string or an object, but got an "
            "integer instead."
        ),
    ),
    "missing": (
        {"messages": [USER | {"content": [{"type": "text"}]}]},
        "Missing required parameter: 'messages[0].content[0].text'.",
    ),
    "a rule of the user's": (
        {"extra_body": {"mood": "rude"}},
        "Invalid 'mood': be polite, got 'rude'",
    ),
    "a text of the user's class that is too long": (
        {"extra_body": {"mood": "melancholy"}},
        (
            "Invalid 'mood': string too long. Expected a string with maximum length 8, but got a "
            "string with length 10 instead."
        ),
    ),
    "two limits": (
        {"max_tokens": 7, "max_completion_tokens": 7},
        "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
    ),
}


@pytest.mark.parametrize(("asked", "message"), WORDED.values(), ids=WORDED)
def test_an_error_has_openais_words(service, asked, message):
    assert complaint(service, **asked)["message"] == message


class Odd(ChatCompletionRequest):
    day: dt.date = Field(dt.date(2000, 1, 1), ge=dt.date(2000, 1, 1))
    size: int | str = 1
    share: float = Field(1, gt=0)
    names: tuple[str, ...] = ()
    parts: list[str] = Field([], max_length=1)

    @pydantic.model_validator(mode="after")
    def _agree(self):
        if self.size == "none":
            raise PydanticCustomError("odd", "say what size", {"param": "size"})
        return self


ODD = {
    "a date": (
        {"day": "1999-01-01"},
        ("Invalid 'day': Input should be greater than or equal to 2000-01-01, got '1999-01-01'"),
        "invalid_value",
    ),
    "a union": (
        {"size": None},
        "Invalid type for 'size': expected one of an integer or a string, but got null instead.",
        "invalid_type",
    ),
    "an open bound": (
        {"share": 0},
        "Invalid 'share': decimal below minimum value. Expected a value > 0, but got 0 instead.",
        "decimal_below_min_value",
    ),
    "a tuple": (
        {"names": 1},
        "Invalid 'names': Input should be a valid tuple, got 1",
        "invalid_type",
    ),
    "too many": (
        {"parts": ["a", "b"]},
        (
            "Invalid 'parts': array too long. Expected an array with maximum length 1, but got an "
            "array with length 2 instead."
        ),
        "array_above_max_length",
    ),
    "an error of the user's own": ({"size": "none"}, "say what size", "invalid_value"),
}


@pytest.mark.parametrize(("fields", "message", "code"), ODD.values(), ids=ODD)
def test_whatever_a_users_class_refuses_has_a_wording(fields, message, code):
    body = {"messages": HELLO} | fields
    with pytest.raises(pydantic.ValidationError) as raised:
        Odd.model_validate(body)
    errors = [error | {"loc": ("body", *error["loc"])} for error in raised.value.errors()]
    fault = fault_of(errors, body)
    assert (fault.message, fault.code) == (message, code)


BODIES = {
    "{nonsense": "the body of the request is not JSON: Expecting property name enclosed in double "
    "quotes",
    "": "the request has no body: send a JSON object",
    "[]": "Invalid type for the body: expected an object, but got an array instead.",
    "1": "Invalid type for the body: expected an object, but got an integer instead.",
    '{"messages": 1}': "Invalid type for 'messages': expected an array, but got an integer "
    "instead.",
    "{}": "Missing required parameter: 'messages'.",
}


@pytest.mark.parametrize(("body", "message"), BODIES.items())
def test_a_body_that_is_no_request_is_an_error_of_the_same_form(service, body, message):
    headers = {"content-type": "application/json"}
    response = service.http.post("/echo/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["message"] == message


def test_a_client_that_may_not_ask_is_told_so(service):
    client = service.client("/echo").with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError) as raised:
        client.models.list()
    assert raised.value.body["message"] == "Incorrect API key provided."


def test_other_errors_of_the_server_have_the_form_that_they_had(service):
    assert service.http.get("/nowhere").json() == {"detail": "Not Found"}


def test_a_detail_of_the_users_own_may_be_a_whole_error(service):
    with pytest.raises(openai.BadRequestError) as raised:
        echoed(service, extra_body={"too_long": True})
    assert raised.value.body == {
        "message": "too long",
        "type": INVALID,
        "param": "messages",
        "code": "context_length_exceeded",
    }


def test_a_request_that_the_model_rejects_is_invalid_as_any_other(service):
    with pytest.raises(openai.BadRequestError) as raised:
        echoed(service, extra_body={"rejected": True})
    expected = {"message": "no poems", "type": INVALID, "param": None, "code": None}
    assert raised.value.body == expected


def test_stop_reaches_an_api_that_handles_it(service):
    assert echoed(service, "/stops", stop=["a", "b"])["context"]["stop"] == ["a", "b"]


# ---- models


def test_the_models_of_a_spec_are_listed(service):
    models = service.client("/echo").models.list().data
    assert [model.id for model in models] == ["small", "org/large"]
    for model in models:
        type(model).model_validate(model.to_dict(), strict=True)


def test_without_models_the_api_is_one(service):
    assert [model.id for model in service.client("/planned").models.list()] == ["EncodedBySpec"]


def test_a_model_is_found_by_its_name(service):
    models = service.client("/echo").models
    assert models.retrieve("org/large").id == "org/large"
    with pytest.raises(openai.NotFoundError) as raised:
        models.retrieve("none")
    assert raised.value.body["code"] == "model_not_found"


# ---- the helpers of OpenAI's client


class Weather(pydantic.BaseModel):
    town: str
    degrees: int


WEATHER = ['{"town": ', '"Oslo", "deg', 'rees": 3}']


@pytest.mark.parametrize("n", [1, 3])
def test_the_client_parses_a_reply(service, n):
    request = asking(*[outs(*WEATHER)] * n)
    answer = service.client("/planned").chat.completions.parse(**request, response_format=Weather)
    replies = [choice.message.parsed for choice in answer.choices]
    assert replies == [Weather(town="Oslo", degrees=3)] * n


@pytest.mark.parametrize("n", [1, 3])
def test_the_clients_stream_parses_a_reply(service, n):
    request = asking(*[outs(*WEATHER)] * n)
    completions = service.client("/planned").chat.completions
    with completions.stream(**request, response_format=Weather) as stream:
        answer = stream.until_done().get_final_completion()
    replies = [choice.message.parsed for choice in answer.choices]
    assert replies == [Weather(town="Oslo", degrees=3)] * n
    assert [choice.message.role for choice in answer.choices] == ["assistant"] * n


CALL = [
    {"index": 0, "id": "call-1", "function": {"name": "Weather", "arguments": WEATHER[0]}},
    *(
        {"index": 0, "id": "call-1", "function": {"name": "Weather", "arguments": text}}
        for text in WEATHER[1:]
    ),
]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("streams", [True, False], ids=["stream", "parse"])
def test_the_client_parses_the_arguments_of_a_tool_call(service, n, streams):
    plan = [["message", {"tool_calls": [piece]}] for piece in CALL]
    request = asking(*[plan] * n, tools=[openai.pydantic_function_tool(Weather)])
    completions = service.client("/planned").chat.completions
    if streams:
        with completions.stream(**request) as stream:
            answer = stream.until_done().get_final_completion()
    else:
        answer = completions.parse(**request)
    for choice in answer.choices:
        [call] = choice.message.tool_calls
        assert (call.id, call.function.name) == ("call-1", "Weather")
        assert call.function.parsed_arguments == Weather(town="Oslo", degrees=3)
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None


@pytest.mark.parametrize("plan", [outs("a", "b"), []], ids=["text", "no text"])
def test_the_clients_stream_has_the_role_of_a_message_without_one(service, plan):
    with service.client("/planned").chat.completions.stream(**asking(plan)) as stream:
        message = stream.until_done().get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", "ab" if plan else "")


# ---- pings


def test_pings_come_before_the_first_event_and_its_error_is_an_event(service, gate):
    request = asking([["fail", "http", "too many"]], gate=gate, stream=True)
    with service.http.stream("POST", "/pinged/chat/completions", json=request) as response:
        lines = response.iter_lines()
        assert response.status_code == 200
        assert next(lines) == ": ping"
        gate.let_through(0)
        [event] = [line for line in lines if line.startswith("data:")]
    assert json.loads(event.removeprefix("data: "))["error"]["message"] == "too many"


def test_the_client_does_not_see_pings(service, gate):
    request = asking(outs("a"), gate=gate, stream=True)
    with service.client("/pinged").chat.completions.create(**request) as stream:
        gate.let_through(0)
        gate.let_through(1)
        assert [chunk.choices[0].delta.content for chunk in stream] == ["a", None]


def test_what_is_refused_has_its_status_in_spite_of_pings(service):
    with pytest.raises(openai.BadRequestError):
        service.client("/pinged").chat.completions.create(**asking([], stream=True, stop="a"))


# ---- arguments of a spec


class Local(pydantic.BaseModel):
    pass


@pytest.mark.parametrize("wrong", [Local, "Request", None])
def test_a_request_type_is_a_class_of_requests(wrong):
    with pytest.raises(TypeError, match="request_type takes a class derived from"):
        OpenAISpec(request_type=wrong)


def test_a_request_type_has_to_be_found_in_workers():
    class Hidden(ChatCompletionRequest):
        pass

    with pytest.raises(TypeError, match="request_type has to be known by its name"):
        OpenAISpec(request_type=Hidden)


def test_models_are_a_list():
    with pytest.raises(TypeError, match=r"got 'small': pass \['small'\]"):
        OpenAISpec(models="small")


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_a_ping_is_more_than_0_seconds(wrong):
    with pytest.raises(ValueError, match="ping must be None or more than 0 seconds"):
        OpenAISpec(ping=wrong)


@pytest.mark.parametrize(
    "error", [RequestError("no such thing"), HeaderError("no such thing", header="a", value="b")]
)
def test_a_request_that_is_rejected_before_it_reaches_a_worker_gets_400_as_well(error):
    response = error_response(FailedError(Failure.of(error), "mine"))
    assert response.status_code == 400
    assert response.headers["x-request-id"] == "mine"
    fields = {"message": "no such thing", "type": INVALID, "param": None, "code": None}
    assert json.loads(response.body) == {"error": fields}
