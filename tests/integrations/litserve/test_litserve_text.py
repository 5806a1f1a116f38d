"""LitServe with models of tokens: `decode` in both loops, and `stop` by OpenAI's own client."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from batchstream.integrations.litserve import BatchedStreamLoop, ContinuousBatchLoop
from batchstream.integrations.litserve._link.link import UNBOUNDED, Link
from batchstream.integrations.litserve._worker.request import ServedRequest
from batchstream.text import TextDecoder
from support import serving
from support.openai_client import check_schema, serving_openai
from support.texts import BYTES

API = Path(serving.__file__).with_name("litserve_text_api.py")
LOOPS = ["/batched", "/continuous", "/one"]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving_openai(API, tmp_path_factory.mktemp("text")) as service:
        yield service


def ask(service, path, text, **options):
    messages = [{"role": "user", "content": text}]
    completions = service.client(path).chat.completions
    return completions.create(model="echo", messages=messages, **options)


@pytest.mark.parametrize("path", LOOPS)
@pytest.mark.parametrize("stop", ["STOP", ["\n\n", "STOP"]])
def test_an_answer_ends_at_a_stop_string_of_its_client(service, path, stop):
    answer = ask(service, path, "so be it. STOP and on", stop=stop)
    check_schema(answer)
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("so be it. ", "stop")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (21, 14)


@pytest.mark.parametrize("path", LOOPS)
def test_a_stream_has_whole_characters_and_no_part_of_a_stop_string(service, path):
    options = {"stop": ["STOP"], "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(service, path, "日 S👍STOP!", **options))
    for chunk in chunks:
        check_schema(chunk)
    *pieces, last, usage = chunks
    texts = [piece.choices[0].delta.content for piece in pieces]
    assert [text for text in texts if text] == ["日", " ", "S👍"]
    assert last.choices[0].finish_reason == "stop"
    assert usage.usage.completion_tokens == 13


@pytest.mark.parametrize("path", LOOPS)
def test_limits_count_tokens_and_no_stop_string_is_needed(service, path):
    answer = ask(service, path, "日本", max_tokens=4)
    assert answer.choices[0].message.content == "日\ufffd"
    assert answer.choices[0].finish_reason == "length"
    answer = ask(service, path, "日本")
    assert answer.choices[0].message.content == "日本"
    assert answer.choices[0].finish_reason == "stop"


def test_choices_of_one_request_stop_each_on_its_own(service):
    answer = ask(service, "/continuous", "a\nb", stop="\n", n=3)
    assert [choice.message.content for choice in answer.choices] == ["a"] * 3
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize("stop", ["", ["STOP", ""]])
def test_a_stop_string_that_is_empty_is_the_clients_mistake(service, stop):
    with pytest.raises(openai.BadRequestError, match="a stop sequence must not be empty"):
        ask(service, "/batched", "abc", stop=stop)


def test_a_decoder_that_would_pass_over_the_clients_stop_fails_and_says_so(service):
    with pytest.raises(openai.InternalServerError):
        ask(service, "/one", "a STOP b", stop="STOP", user="forgotten")
    assert "let it return TextDecoder(..., stop=context['stop'])" in service.log()
    answer = ask(service, "/one", "ab", user="forgotten")
    assert answer.choices[0].message.content == "ab"


class Asked:
    """A request with `stop`, in a worker whose `decode` returns this decoder for it."""

    def __init__(self, decoder, *, handles_stop):
        spec = SimpleNamespace(handles_stop=handles_stop)
        options = SimpleNamespace(
            rules=SimpleNamespace(is_eos_of=lambda context: None),
            limit_of=lambda context: None,
            decoder_of=lambda api, context: decoder,
        )
        worker = SimpleNamespace(
            lit_api=SimpleNamespace(spec=spec, decode_request=lambda request: request),
            options=options,
            traces=None,
            link=Link(None, UNBOUNDED, decodes=True),
        )
        self.request = ServedRequest(worker, 0, "uid", "content")
        self.request.context["stop"] = ["STOP"]


@pytest.mark.parametrize(
    ("decoder", "returned"),
    [(None, "None"), (TextDecoder(BYTES), "a decoder without stop strings")],
)
def test_a_stop_that_nothing_looks_for_is_refused_unless_the_api_does(decoder, returned):
    says = rf"a client asks for stop=\['STOP'\], and decode returns {returned}: let it return"
    with pytest.raises(TypeError, match=says):
        Asked(decoder, handles_stop=False).request.decode()
    Asked(decoder, handles_stop=True).request.decode()
    Asked(TextDecoder(BYTES, stop="STOP"), handles_stop=False).request.decode()


def test_without_a_spec_a_response_is_the_text(service):
    response = service.http.post("/plain", json={"text": "日 STOP b", "stop": "STOP"})
    assert (response.status_code, response.text) == (200, "日 ")


# ---- arguments


def engine(api):
    raise NotImplementedError


def decoder(api, context):
    raise NotImplementedError


def test_a_loop_that_reads_encoded_steps_has_no_tokens_to_decode():
    with pytest.raises(ValueError, match="pass eos_in='predict'"):
        BatchedStreamLoop(decode=decoder)


def for_the_context(context):
    return TextDecoder(BYTES)


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        (TextDecoder(BYTES), "decode takes a function of the API and of the context of a request"),
        (
            for_the_context,
            r"for_the_context\(context\) does not take: let it take both",
        ),
        (lambda api, context: TextDecoder(BYTES), "decode has to be known by its name in LitServe"),
    ],
)
def test_what_makes_no_decoders_in_a_worker_is_refused(decode, says):
    for make in (
        lambda: BatchedStreamLoop(eos_in="predict", decode=decode),
        lambda: ContinuousBatchLoop(engine, decode=decode),
    ):
        with pytest.raises(TypeError, match=says):
            make()
