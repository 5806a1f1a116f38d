"""The two servers with a Llama, each run as a process, and clients that talk to it."""

import ast
import importlib.util
import runpy
import socket
import sys
import time
from functools import cache
from pathlib import Path

import httpx
import openai
import pytest

from support.openai_client import check_schema
from support.serving import SECONDS, free_port, running, without_monitor

pytest.importorskip("torch")
pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parents[3] / "examples"
ASKED = [{"role": "user", "content": "The miller"}]
FOREVER = 90_000  # tokens: a minute and more, which no client here waits for

pytestmark = pytest.mark.timeout(120)


@cache
def model_and_tokenizer():
    spec = importlib.util.spec_from_file_location("llama_model", EXAMPLES / "llama_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


@cache
def expected(count, prompt=None):
    """Return what transformers itself says: text, and how many tokens the prompt has."""
    model, tokenizer = model_and_tokenizer()
    if prompt is None:
        prompt = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=count, do_sample=False)[0]
    size = ids["input_ids"].shape[1]
    return tokenizer.decode(made[size:], skip_special_tokens=True), size


class Server:
    """A running example, with one slot, and OpenAI's client of it."""

    def __init__(self, name, url, client):
        self.name = name
        self.url = url
        self.client = client

    def create(self, **options):
        asked = {"model": "llama", "messages": ASKED, "max_tokens": 30, "temperature": 0}
        options = asked | options
        return self.client.chat.completions.create(**options)

    def complete(self, **options):
        answer = self.create(**options)
        check_schema(answer)
        [choice] = answer.choices
        return choice.message.content, choice.finish_reason, answer.usage

    def stream(self, **options):
        """Return the pieces of a text, and the reason of its end."""
        pieces, reasons = [], []
        with self.create(stream=True, **options) as chunks:
            for chunk in chunks:
                check_schema(chunk)
                [choice] = chunk.choices
                if choice.finish_reason is None:
                    pieces.append(choice.delta.content or "")
                else:
                    reasons.append(choice.finish_reason)
        [reason] = reasons
        return pieces, reason


@pytest.fixture(scope="module", params=["llama_fastapi.py", "llama_litserve.py"])
def server(request, tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("llama"), free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(EXAMPLES / request.param), "--port", str(port), "--slots", "1"]
    with (
        pytest.MonkeyPatch.context() as patch,
        openai.OpenAI(
            api_key="none", base_url=f"{url}/v1", max_retries=0, timeout=SECONDS
        ) as client,
    ):
        patch.setenv("HF_HUB_OFFLINE", "1")
        with running(command, url, folder / "log"):
            yield Server(request.param, url, client)
    log = (folder / "log").read_text()
    assert log.startswith(f"starting a server at {url}/v1/chat/completions\n")
    assert "Traceback" not in without_monitor(log)


def test_a_text_is_what_transformers_says(server):
    text, prompt = expected(30)
    found, reason, usage = server.complete()
    assert (found, reason) == (text, "length")
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
        prompt,
        30,
        prompt + 30,
    )


def test_a_streamed_text_comes_in_pieces(server):
    pieces, reason = server.stream()
    assert ("".join(pieces), reason) == (expected(30)[0], "length")
    assert len([piece for piece in pieces if piece]) > 5


@pytest.mark.parametrize("cut", [4, 9, 20])
def test_a_stop_string_ends_the_text_wherever_its_tokens_are_cut(server, cut):
    text, _ = expected(30)
    stop = text[cut : cut + 3]
    before = text[: text.index(stop)]
    assert server.complete(stop=[stop])[:2] == (before, "stop")
    pieces, reason = server.stream(stop=["not in it", stop])
    assert ("".join(pieces), reason) == (before, "stop")


def test_a_seed_fixes_what_is_drawn(server):
    first = server.complete(temperature=1, seed=3)
    assert server.complete(temperature=1, seed=3) == first
    assert server.complete(temperature=1, seed=4) != first


def test_a_seed_may_be_negative(server):
    first = server.complete(temperature=1, seed=-3)
    assert server.complete(temperature=1, seed=-3) == first
    assert server.complete(temperature=1, seed=3) != first


def test_choices_of_one_seed_differ_and_are_the_same_each_time(server):
    asked = {"n": 3, "temperature": 1, "seed": 3}
    if server.name == "llama_fastapi.py":  # an answer has one choice, and says so
        with pytest.raises(openai.APIStatusError) as caught:
            server.create(**asked)
        assert caught.value.status_code == 400
        assert "n: Input should be 1" in str(caught.value)
        return
    first, again = (
        [choice.message.content for choice in server.create(**asked).choices] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1e-46},
        {"temperature": None},
        {"temperature": 2, "top_p": 1e-46},
        {"temperature": 2, "top_p": 0},
    ],
)
def test_a_temperature_or_top_p_next_to_0_takes_the_most_probable_token(server, how):
    """One that is left out is 0 here."""
    assert server.complete(**how)[0] == expected(30)[0]


@pytest.mark.parametrize(
    "limits", [{"max_tokens": None, "max_completion_tokens": 7}, {"max_completion_tokens": 7}]
)
def test_the_limit_has_its_present_name_too(server, limits):
    limits = {"max_tokens": openai.omit} | limits
    assert server.complete(**limits)[:2] == (expected(7)[0], "length")


def test_fields_may_be_null_and_a_message_come_in_parts(server):
    parts = [{"type": "text", "text": "The "}, {"type": "text", "text": "miller"}]
    nothing = dict.fromkeys(("max_completion_tokens", "top_p", "seed", "stop", "n", "stream"))
    text, reason, _ = server.complete(messages=[{"role": "user", "content": parts}], **nothing)
    assert (text, reason) == (expected(30)[0], "length")


def test_a_part_that_is_no_text_is_the_clients_fault(server):
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(openai.APIStatusError) as caught:
        server.create(messages=[{"role": "user", "content": [part]}])
    assert caught.value.status_code == 400
    assert "a part of type 'image_url'" in str(caught.value)


def test_a_part_without_its_text_is_the_clients_fault(server):
    with pytest.raises(openai.BadRequestError, match="text"):
        server.create(messages=[{"role": "user", "content": [{"type": "text"}]}])


def test_a_client_shows_why_its_request_is_refused(server):
    with pytest.raises(openai.BadRequestError, match="stop"):
        server.create(stop=[""])
    with pytest.raises(openai.BadRequestError, match="temperature"):
        server.create(temperature=3)


def test_a_stream_has_its_usage_where_the_client_asks(server):
    with server.create(stream=True, stream_options={"include_usage": True}) as chunks:
        *before, last = list(chunks)
    assert all(chunk.usage is None for chunk in before)
    assert (last.choices, last.usage.completion_tokens) == ([], 30)


def test_the_model_is_listed(server):
    assert [model.id for model in server.client.models.list()] == ["llama"]


def test_a_client_that_leaves_frees_its_slot(server):
    """There is one slot, and nothing else could have been answered in time."""
    with server.create(stream=True, max_tokens=FOREVER) as chunks:
        next(iter(chunks))
    assert server.complete()[0] == expected(30)[0]


def test_a_client_that_leaves_frees_its_slot_also_if_nothing_is_streamed(server):
    if server.name != "llama_fastapi.py":
        pytest.skip("LitServe's does not say which requests are running")
    body = {"messages": ASKED, "max_tokens": FOREVER}
    request = httpx.Request("POST", f"{server.url}/v1/chat/completions", json=body)
    lines = [f"{name}: {value}".encode() for name, value in request.headers.items()]
    head = b"\r\n".join([b"POST /v1/chat/completions HTTP/1.1", *lines, b"", b""])
    with (
        httpx.Client(base_url=server.url, timeout=SECONDS) as client,
        socket.create_connection(("127.0.0.1", request.url.port)) as connection,
    ):
        connection.sendall(head + request.content)
        wait_for_live(client, 1)
        connection.close()
        wait_for_live(client, 0)


def wait_for_live(client, requests):
    """Wait until so many requests are running."""
    deadline = time.monotonic() + SECONDS
    while client.get("/health").json()["live"] != requests:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_request_that_the_model_cannot_serve_is_the_clients_fault(server):
    with pytest.raises(openai.APIStatusError) as caught:
        server.create(max_tokens=1_000_000)
    assert caught.value.status_code == 400
    assert "100000" in str(caught.value)
    assert server.complete()[0] == expected(30)[0]


def test_plain_text_is_streamed_too(server):
    if server.name != "llama_fastapi.py":
        pytest.skip("FastAPI's alone has it")
    with httpx.Client(base_url=server.url, timeout=SECONDS) as client:
        body = {"prompt": "The miller", "max_tokens": 20}
        assert client.post("/complete", json=body).text == expected(20, "The miller")[0]
        with client.stream("POST", "/complete", json=body | {"max_tokens": FOREVER}) as response:
            chunks = response.iter_raw()  # which closes the connection when it is collected
            next(chunks)
            assert client.get("/health").json() == {"live": 1, "waiting": 0}
        wait_for_live(client, 0)


@pytest.mark.parametrize("name", ["llama_fastapi.py", "llama_litserve.py", "llama_model.py"])
def test_a_program_that_is_asked_for_help_prints_what_it_shows(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.syspath_prepend(EXAMPLES)
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert ast.get_docstring(ast.parse((EXAMPLES / name).read_text())) in capsys.readouterr().out


def test_the_program_of_the_model_says_how_large_it_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["llama_model.py"])
    runpy.run_path(str(EXAMPLES / "llama_model.py"), run_name="__main__")
    assert capsys.readouterr().out == "53408 random weights, 512 tokens\n"
