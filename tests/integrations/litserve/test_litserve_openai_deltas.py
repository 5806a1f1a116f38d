"""The deltas of a stream, and the whole message: made of the same outputs, without a server."""

import asyncio
import json

import pytest
from anyio import sleep_forever
from hypothesis import given, settings
from hypothesis import strategies as st
from litserve.utils import LitAPIStatus
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from batchstream.integrations.litserve._link.link import UNBOUNDED
from batchstream.integrations.litserve._link.messages import EndMessage
from batchstream.integrations.litserve._openai.answers import (
    CompletionResponse,
    EventsBody,
    MessageBody,
)
from batchstream.integrations.litserve._server.response_queue import ResponseQueue
from support.openai_client import check_schema

UNPUBLISHED = ("reasoning_content", "tags", "cost", "usual")  # fields that OpenAI does not have


class Arriving:
    """Responses whose messages come one by one: the next when all before it have been taken.

    A message is the number of a choice, and a dict or an end.
    """

    name = "the client's own"

    def __init__(self, number, messages):
        self.queues = [
            ResponseQueue(str(n), asyncio.Event(), UNBOUNDED, print) for n in range(number)
        ]
        self._messages = iter(messages)

    async def wait(self):
        number, message = next(self._messages)
        if isinstance(message, EndMessage):
            item = (message, LitAPIStatus.FINISH_STREAMING)
        else:
            item = (json.dumps(message), LitAPIStatus.OK)
        self.queues[number].response_queue.append(item)

    def close(self):
        pass


def sent(body):
    """Return the status of a response, and its body."""

    async def respond():
        async def send(message):
            messages.append(message)

        scope = {"type": "http", "method": "POST", "headers": []}
        await CompletionResponse(body)(scope, sleep_forever, send)

    messages = []
    asyncio.run(respond())
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages)


def chunks_of(number, messages, *, include_usage=False):
    body = EventsBody(Arriving(number, messages), "m", include_usage=include_usage, ping=None)
    _, text = sent(body)
    *events, done, nothing = text.decode().split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def whole_of(number, messages):
    _, text = sent(MessageBody(Arriving(number, messages), "m"))
    return json.loads(text)


def deltas_of(messages):
    """Return the deltas of a single choice, without that of the end."""
    return [chunk["choices"][0]["delta"] for chunk in chunks_of(1, messages)][:-1]


def message_of(messages):
    return whole_of(1, messages)["choices"][0]["message"]


def saying(*messages, **info):
    """What one choice gets."""
    return [*((0, message) for message in messages), (0, EndMessage("eos", info))]


def added_up(chunks):
    """Return what OpenAI's client makes of chunks."""
    state = ChatCompletionStreamState()
    for chunk in chunks:
        list(state.handle_chunk(ChatCompletionChunk.model_validate(chunk)))
    return state.current_completion_snapshot.to_dict()


def comparable(choice):
    """Return a choice without what a client adds, and without fields that are null."""
    message = {key: value for key, value in choice["message"].items() if value is not None}
    message.pop("parsed", None)
    for call in message.get("tool_calls", ()):
        call.pop("index", None)
        call["id"] = call["id"][: len("call_")]  # the rest of an id that the model lacked is chance
        call["function"].pop("parsed_arguments", None)
    return message, choice["finish_reason"], choice["logprobs"]


def without_unpublished(data):
    if isinstance(data, list):
        return [without_unpublished(part) for part in data]
    if isinstance(data, dict):
        return {k: without_unpublished(part) for k, part in data.items() if k not in UNPUBLISHED}
    return data


def logprobs(text):
    return {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}


# ---- any messages

texts = st.text(max_size=3)
pieces_of_calls = st.fixed_dictionaries(
    {},
    optional={
        "index": st.sampled_from([0, 1, 7, None]),
        "id": st.sampled_from(["a", "b", "", None]),
        "type": st.sampled_from(["function", None]),
        "function": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["f", "g", "", None]),
                "arguments": st.one_of(texts, st.none()),
            },
        ),
    },
)
pieces = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["assistant", "user", None]),
        "content": st.one_of(texts, st.none()),
        "refusal": st.one_of(texts, st.none()),
        "reasoning_content": texts,
        "tool_calls": st.lists(pieces_of_calls, max_size=2),
        "logprobs": texts.map(logprobs),
        "tags": st.lists(texts, max_size=2),
        "cost": st.integers(0, 9),
        "usual": st.dictionaries(st.sampled_from("xy"), texts),
        "prompt_tokens": st.integers(0, 9),
        "completion_tokens": st.integers(0, 9),
    },
)


@st.composite
def conversations(draw):
    """Messages for several choices in any order, and an end for each."""
    number = draw(st.integers(1, 3))
    waiting = {
        n: [*draw(st.lists(pieces, max_size=4)), EndMessage("eos", {})] for n in range(number)
    }
    messages = []
    while waiting:
        n = draw(st.sampled_from(sorted(waiting)))
        messages.append((n, waiting[n].pop(0)))
        if not waiting[n]:
            del waiting[n]
    return number, messages


@pytest.mark.rule(2)
@settings(max_examples=100)
@given(conversations())
def test_the_whole_message_is_the_sum_of_the_deltas_as_openai_adds_them_up(conversation):
    number, messages = conversation
    chunks = chunks_of(number, messages)
    streamed = added_up(chunks)["choices"]
    whole = whole_of(number, messages)["choices"]
    assert [comparable(choice) for choice in streamed] == [comparable(choice) for choice in whole]


@settings(max_examples=100)
@given(conversations())
def test_the_role_comes_once_for_each_choice_with_its_first_delta(conversation):
    number, messages = conversation
    choices = [choice for chunk in chunks_of(number, messages) for choice in chunk["choices"]]
    for index in range(number):
        deltas = [choice["delta"] for choice in choices if choice["index"] == index]
        assert [delta.get("role") for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]


@settings(max_examples=100)
@given(conversations())
def test_choices_begin_in_their_order_as_openais_client_wants_it(conversation):
    number, messages = conversation
    indices = [chunk["choices"][0]["index"] for chunk in chunks_of(number, messages)]
    assert list(dict.fromkeys(indices)) == list(range(number))


@settings(max_examples=100)
@given(conversations(), st.booleans())
def test_every_answer_fits_the_schema_that_openai_publishes(conversation, include_usage):
    number, messages = conversation
    for chunk in chunks_of(number, messages, include_usage=include_usage):
        check_schema(ChatCompletionChunk.construct(**without_unpublished(chunk)))
    check_schema(ChatCompletion.construct(**without_unpublished(whole_of(number, messages))))


# ---- what becomes of what


def test_an_empty_reply_is_a_role_and_no_text():
    assert deltas_of(saying()) == [{"role": "assistant", "content": ""}]
    assert message_of(saying()) == {"role": "assistant", "content": "", "refusal": None}


def test_a_first_delta_gets_the_role_and_no_later_one():
    assert deltas_of(saying({"content": "a"}, {"role": "assistant", "content": "b"})) == [
        {"role": "assistant", "content": "a"},
        {"content": "b"},
    ]


def test_a_message_that_says_nothing_makes_no_event():
    nothing = {"role": "assistant", "content": None, "name": None, "tool_calls": None}
    assert deltas_of(saying({"content": "a"}, nothing, {"prompt_tokens": 3})) == [
        {"role": "assistant", "content": "a"}
    ]


def test_the_first_piece_of_a_call_has_all_that_clients_need():
    [delta] = deltas_of(saying({"tool_calls": [{"function": {"name": "f"}}]}))
    [call] = delta["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"index": 0, "type": "function", "function": {"name": "f", "arguments": ""}}


def test_what_a_later_piece_of_a_call_repeats_is_not_sent_again():
    def piece(arguments):
        return {
            "index": 0,
            "id": "call-1",
            "type": "function",
            "function": {"name": "f", "arguments": arguments},
        }

    messages = saying({"tool_calls": [piece("{")]}, {"tool_calls": [piece("}")]})
    _, later = deltas_of(messages)
    assert later == {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}
    whole = piece("{}")
    del whole["index"]
    assert message_of(messages)["tool_calls"] == [whole]


def test_a_piece_with_the_id_of_an_earlier_call_belongs_to_that_call():
    def piece(name, arguments):
        return {"tool_calls": [{"id": name, "function": {"arguments": arguments}}]}

    calls = message_of(saying(piece("a", "1"), piece("b", "2"), piece("a", "3")))["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [
        ("a", "13"),
        ("b", "2"),
    ]


def test_calls_of_custom_tools_pass_through():
    def piece(text):
        return {"id": "a", "type": "custom", "custom": {"input": text}}

    messages = saying({"tool_calls": [piece("l")]}, {"tool_calls": [piece("s")]})
    assert deltas_of(messages)[1] == {"tool_calls": [{"index": 0, "custom": {"input": "s"}}]}
    assert message_of(messages)["tool_calls"] == [piece("ls")]


def test_a_message_of_calls_alone_has_no_content():
    message = message_of(saying({"content": None, "tool_calls": [{"function": {"name": "f"}}]}))
    assert message["content"] is None


def test_logprobs_lie_beside_the_delta_and_beside_the_whole_message():
    messages = saying(
        {"content": "a", "logprobs": logprobs("a")},
        {"content": "b"},
        {"content": "c", "logprobs": logprobs("c")},
    )
    given = [chunk["choices"][0] for chunk in chunks_of(1, messages)]
    assert all("logprobs" not in choice["delta"] for choice in given)
    assert [choice["logprobs"] for choice in given] == [
        None,  # the role comes before them, as with OpenAI
        logprobs("a") | {"refusal": None},
        None,
        logprobs("c") | {"refusal": None},
        None,
    ]
    [choice] = whole_of(1, messages)["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a", "c"]
    assert "logprobs" not in choice["message"]


def test_a_logprob_of_minus_infinity_is_openais_number_for_it():
    entry = logprobs("a")["content"][0] | {"logprob": float("-inf")}
    [choice] = whole_of(1, saying({"content": "a", "logprobs": {"content": [entry]}}))["choices"]
    assert choice["logprobs"]["content"][0]["logprob"] == -9999.0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_is_an_error(number):
    status, text = sent(MessageBody(Arriving(1, saying({"cost": number})), "m"))
    assert status == 500
    assert json.loads(text)["error"]["type"] == "server_error"


@pytest.mark.parametrize("wrong", ["a", {"content": "a"}, [1]], ids=repr)
def test_logprobs_that_are_none_are_an_error(wrong):
    status, _ = sent(MessageBody(Arriving(1, saying({"logprobs": wrong})), "m"))
    assert status == 500


def test_the_prompt_counts_once_for_all_choices():
    used = EndMessage("eos", {"prompt_tokens": 10, "completion_tokens": 1})
    messages = [(n, used) for n in range(3)]
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    assert whole_of(3, messages)["usage"] == usage
    *chunks, last = chunks_of(3, messages, include_usage=True)
    assert (last["choices"], last["usage"]) == ([], usage)
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)


def test_totals_that_the_model_gives_share_the_prompt():
    used = EndMessage("eos", {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 15})
    assert whole_of(2, [(n, used) for n in range(2)])["usage"]["total_tokens"] == 20


def test_good_deltas_arrive_before_an_end_that_is_none():
    messages = Arriving(1, saying({"content": "a"}, prompt_tokens="many"))
    status, text = sent(EventsBody(messages, "m", include_usage=False, ping=None))
    first, last, _ = text.decode().split("\n\n")
    assert status == 200
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"] == "a"
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
