"""The examples that are servers, each run as a process, and clients that talk to it."""

import asyncio
import contextlib
import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

from support.serving import SECONDS, free_port, running

EXAMPLES = Path(__file__).parents[3] / "examples"
PACE = "0.005"

pytestmark = pytest.mark.timeout(60)


class Server:
    """A running example."""

    def __init__(self, url, log_path, process):
        self.url = url
        self.process = process
        self._log_path = log_path

    def log(self):
        return self._log_path.read_text(errors="replace")

    def get(self, path):
        return httpx.get(self.url + path, timeout=SECONDS)

    def client(self):
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=SECONDS, limits=limits)

    def health(self):
        return self.get("/health").json()

    def metric(self, name, **labels):
        """Return the sum of what Prometheus would read by a name, with these labels."""
        samples = [
            sample
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            if sample.name == name
        ]
        assert samples, f"there is no {name}"
        return sum(it.value for it in samples if labels.items() <= it.labels.items())

    def wait_until(self, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"still {self.health()}"
            time.sleep(0.01)

    async def wait_until_health_is(self, **expected):
        def is_expected():
            health = self.health()
            return expected == {name: health[name] for name in expected}

        await asyncio.to_thread(self.wait_until, is_expected)


@contextlib.contextmanager
def serve(name, folder):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-W", "error", str(EXAMPLES / name), "--port", str(port)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACE", PACE)
        with running(command, url, folder / "log") as process:
            yield Server(url, folder / "log", process)


@contextlib.asynccontextmanager
async def all_open(requests):
    """Send requests that all stay open until the block is left."""
    async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as responses:
        tasks = [group.create_task(responses.enter_async_context(each)) for each in requests]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


# ---- custom_server.py


@pytest.fixture(scope="module")
def custom(tmp_path_factory):
    with serve("custom_server.py", tmp_path_factory.mktemp("custom")) as server:
        yield server


@pytest.fixture(scope="module")
def model():
    return load_model()


def load_model():
    """Import the example, without its server and without its pace."""
    spec = importlib.util.spec_from_file_location("custom_server", EXAMPLES / "custom_server.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACE", "0")
        spec.loader.exec_module(module)
    return module


def alone(module, request):
    """Let the model work for one request only, and return what it says."""
    generation = module.Generation(**request)
    engine = module.Bigrams((EXAMPLES / "custom_server.txt").read_text())
    engine.add(3, module.Job(generation))
    text = ""
    for _ in range(generation.max_outputs):
        [output] = engine.step().values()
        if output is module.EOS:
            break
        text += output
    return text


PROMPTS = [
    {"prompt": prompt, "seed": seed, "temperature": temperature, "max_outputs": most}
    for seed, (prompt, temperature, most) in enumerate(
        [("The mill", 1.0, 100), ("h", 0.5, 30), ("Φ", 2.0, 60), ("A\n", 0.9, 1)] * 5
    )
]
# So sure of every character that it goes round in a circle.
LONG = {"prompt": "The mill", "temperature": 0.1, "max_outputs": 1000}


def lines(response):
    assert response.status_code == 200
    return [json.loads(line) for line in response.text.splitlines()]


def events(response):
    assert response.status_code == 200
    return [json.loads(data) for data in re.findall(r"^data: (.*)\r$", response.text, re.MULTILINE)]


async def ask_all(server, requests, headers=None):
    """Ask as clients of four tenants, none of which may have all of them waiting."""
    async with server.client() as client:
        return await asyncio.gather(
            *(
                client.post(
                    "/generate",
                    json=request,
                    headers={"x-tenant": f"tenant {number % 4}", **(headers or {})},
                )
                for number, request in enumerate(requests)
            )
        )


def test_requests_at_the_same_time_get_what_each_would_have_got_alone(custom, model):
    expected = [alone(model, request) for request in PROMPTS]
    steps = custom.metric("batchstream_steps_total")
    replies = [lines(response) for response in asyncio.run(ask_all(custom, PROMPTS))]
    steps = custom.metric("batchstream_steps_total") - steps
    assert ["".join(line["text"] for line in reply[:-1]) for reply in replies] == expected
    for request, text, reply in zip(PROMPTS, expected, replies, strict=True):
        reason = "length" if len(text) == request["max_outputs"] else "eos"
        assert reply[-1] == {"finish_reason": reason, "outputs": len(text)}
    assert {reply[-1]["finish_reason"] for reply in replies} == {"length", "eos"}
    assert steps < sum(map(len, expected)), "no two requests shared a step"
    assert len(set(expected)) > len(PROMPTS) / 2, "the seeds change nothing"


def test_a_request_alone_gets_the_same_again(custom, model):
    for request in PROMPTS[:2]:
        for _ in range(2):
            [response] = asyncio.run(ask_all(custom, [request]))
            assert "".join(line["text"] for line in lines(response)[:-1]) == alone(model, request)


def test_events_say_what_lines_say(custom):
    [in_lines] = asyncio.run(ask_all(custom, PROMPTS[:1]))
    [in_events] = asyncio.run(ask_all(custom, PROMPTS[:1], {"accept": "text/event-stream"}))
    assert in_lines.headers["content-type"] == "application/x-ndjson"
    assert in_events.headers["content-type"].startswith("text/event-stream")
    assert events(in_events) == lines(in_lines)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"prompt": ""},
        {"prompt": "a", "max_outputs": 0},
        {"prompt": "a", "max_outputs": 1001},
        {"prompt": "a", "temperature": 0},
        {"prompt": "a", "seed": -1},
    ],
    ids=str,
)
def test_the_response_to_a_bad_request_says_what_is_wrong(custom, request_):
    response = httpx.post(f"{custom.url}/generate", json=request_, timeout=SECONDS)
    assert response.status_code == 422
    assert response.json()["detail"]


def test_a_client_that_leaves_frees_its_slot(custom):
    finished, running_ = "batchstream_requests_finished_total", "batchstream_requests_running"
    before = custom.metric(finished, reason="cancelled")
    with httpx.stream("POST", f"{custom.url}/generate", json=LONG, timeout=SECONDS) as response:
        body = response.iter_lines()  # which would close the response if it were dropped
        assert next(body)
        assert custom.metric(running_) == 1
    custom.wait_until(lambda: custom.metric(running_) == 0)
    assert custom.metric(finished, reason="cancelled") == before + 1


def test_a_full_server_says_so_and_is_not_full_for_ever(custom, model):
    refused = "batchstream_requests_refused_total"
    before = [custom.metric(refused, reason=reason) for reason in ("tenant", "pending")]
    slots, others = model.SLOTS, 4 * model.SLOTS

    def ask(client, count, tenant):
        headers = {"x-tenant": tenant}
        return all_open(
            client.stream("POST", "/generate", json=LONG, headers=headers) for _ in range(count)
        )

    async def fill():
        async with custom.client() as client, contextlib.AsyncExitStack() as floods:
            for number in range(5):
                await floods.enter_async_context(ask(client, slots, f"flood {number}"))
                await custom.wait_until_health_is(live=slots * (number + 1), waiting=slots * number)
                if number == 1:
                    one_more = {"x-tenant": "flood 1"}
                    yield await client.post("/generate", json=PROMPTS[0], headers=one_more)
            await custom.wait_until_health_is(live=slots + others, waiting=others)
            yield await client.post("/generate", json=PROMPTS[0])

    async def refusals():
        return [response async for response in fill()]

    for response in asyncio.run(refusals()):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
    after = [custom.metric(refused, reason=reason) for reason in ("tenant", "pending")]
    assert after == [count + 1 for count in before]
    asyncio.run(custom.wait_until_health_is(live=0, waiting=0))
    assert custom.metric("batchstream_requests_waiting") == 0
    [response] = asyncio.run(ask_all(custom, PROMPTS[:1]))
    assert response.status_code == 200


def test_a_header_says_what_is_urgent(monkeypatch):
    module, is_open, joined = load_model(), threading.Event(), []

    class Gated(module.Bigrams):
        def add(self, slot, job):
            joined.append(job.priority)
            super().add(slot, job)

        def step(self):
            assert is_open.wait(SECONDS)
            return super().step()

    monkeypatch.setattr(module, "Bigrams", Gated)
    request = {"prompt": "The mill", "max_outputs": 1}

    def wait_until_live(live):
        deadline = time.monotonic() + SECONDS
        while module.batcher.statistics().live < live or not joined:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    async def ask():
        transport = httpx.ASGITransport(module.app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://it") as client,
            module.batcher,
            asyncio.TaskGroup() as group,
        ):
            for live, headers in enumerate([{}, *({"x-priority": it} for it in "210")], 1):
                group.create_task(client.post("/generate", json=request, headers=headers))
                await asyncio.to_thread(wait_until_live, live)
            is_open.set()

    asyncio.run(ask())
    assert joined == [1, 0, 1, 2]  # the first one was alone


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-request-timeout": "soon"}, 400),
        ({"x-priority": "3"}, 422),
        ({"x-tenant": "x" * 65}, 422),
    ],
)
def test_the_response_to_a_bad_header_names_it(custom, headers, status):
    response = httpx.post(f"{custom.url}/generate", json=PROMPTS[0], headers=headers)
    assert response.status_code == status
    assert next(iter(headers)) in response.text.lower()


def test_a_client_says_how_long_it_waits(custom):
    headers = {"x-request-timeout": "0.001"}  # shorter than a step
    response = httpx.post(f"{custom.url}/generate", json=PROMPTS[0], headers=headers)
    assert response.status_code == 504


def test_a_flood_is_shared_and_a_drain_cuts_no_reply(tmp_path):
    """What the page Operating does with the server: flood it, read its figures, and stop it."""
    with serve("custom_server.py", tmp_path) as server:
        assert server.get("/ready").json()["batchers"][0]["name"] == "bigrams"
        assert httpx.head(f"{server.url}/ready").status_code == 200
        assert server.metric("batchstream_state", state="accepting") == 1
        head = httpx.head(f"{server.url}/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == CONTENT_TYPE_LATEST
        assert int(head.headers["content-length"]) > 0
        flood = [str(EXAMPLES / "flood.py"), "--port", server.url.rpartition(":")[2], "--clients"]
        done = ask_flood([*flood, "12", "--outputs", "2000"])
        outputs = {tenant: int(row["outputs"]) for tenant, row in done.items()}
        assert outputs["gold"] > 2 * max(outputs["silver"], outputs["bronze"])
        assert min(outputs["silver"], outputs["bronze"]) > 200
        refused = "batchstream_requests_refused_total"
        assert server.metric(refused, reason="tenant", tenant="silver") > 0

        with flooding([*flood, "12", "--outputs", "1000000"]) as second:
            asyncio.run(server.wait_until_health_is(waiting=3 * 8))
            assert httpx.post(f"{server.url}/drain").status_code == 202
            server.wait_until(lambda: server.get("/ready").status_code == 503)
            response = httpx.post(f"{server.url}/generate", json=PROMPTS[0])
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            server.process.send_signal(signal.SIGTERM)
            done = rows_of(second.communicate(timeout=SECONDS)[0])
    for row in done.values():
        assert (row["late"], row["cut"]) == ("0", "0")
        assert int(row["outputs"]) == 50 * int(row["replies"]) > 0, "a reply was not whole"
    assert "bigrams: draining, as asked for by aclose(drain=30)" in server.log()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_alone_in_a_flood_cuts_no_reply_and_refuses_connections(tmp_path, sent):
    """What the page Operating says of a signal without `/drain` before it."""
    with serve("custom_server.py", tmp_path) as server:
        port = int(server.url.rpartition(":")[2])
        flood = [str(EXAMPLES / "flood.py"), "--port", str(port), "--outputs", "1000000"]
        with flooding([*flood, "--clients", "12"]) as clients:
            asyncio.run(server.wait_until_health_is(waiting=3 * 8))
            server.wait_until(lambda: "bigrams: requests are refused" in server.log())
            server.process.send_signal(sent)
            done = rows_of(clients.communicate(timeout=SECONDS)[0])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), SECONDS)
        status = -signal.SIGTERM if sent == signal.SIGTERM else 0
        assert server.process.wait(SECONDS) == status
    for row in done.values():
        assert (row["late"], row["cut"]) == ("0", "0")
        assert int(row["outputs"]) == 50 * int(row["replies"]) > 0, "a reply was not whole"
    asked = r"bigrams: draining, as asked for by the end of its async with block \(drain=30\)"
    assert re.search(rf"{asked} .*: all requests have ended$", server.log(), re.MULTILINE)
    assert re.search(r"bigrams: closed after \d+\.\d s of draining", server.log())
    assert "POST /generate" not in server.log(), "the server logs each request"


def flooding(command):
    command = [sys.executable, *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603


def ask_flood(command):
    with flooding(command) as process:
        return rows_of(process.communicate(timeout=SECONDS)[0])


def rows_of(text):
    _, heads, *rows, waits = text.splitlines()
    assert re.fullmatch(r"Retry-After was [1-9]\d* s in the median, and \d+ s at most", waits)
    found = [dict(zip(heads.split(), row.split(), strict=True)) for row in rows]
    return {row["tenant"]: row for row in found}


# ---- batched_function.py


@pytest.fixture(scope="module")
def batched(tmp_path_factory):
    with serve("batched_function.py", tmp_path_factory.mktemp("batched")) as server:
        yield server


def quotient(numerator, denominator, decimals):
    """Divide exactly; what comes out even ends there."""
    whole, rest = divmod(numerator, denominator)
    digits = f"{rest * 10**decimals // denominator:0{decimals}}"
    even = (rest * 10**decimals) % denominator == 0
    return f"{whole}.{digits.rstrip('0') if even else digits}".rstrip(".")


def test_each_fraction_ends_where_it_comes_out_even(batched):
    fractions = [(22, 7), (1, 8), (8, 4), (0, 3), (1, 10**9), (355, 113), (3, 2), (10**9, 3)] * 3

    async def ask():
        async with batched.client() as client:
            return await asyncio.gather(
                *(client.get(f"/{above}/{below}?decimals=40") for above, below in fractions)
            )

    replies = asyncio.run(ask())
    assert {reply.headers["content-type"] for reply in replies} == {"text/plain; charset=utf-8"}
    assert [reply.text for reply in replies] == [quotient(*each, 40) for each in fractions]
    assert quotient(1, 8, 40) == "0.125"


def test_a_batch_that_its_only_client_has_left_is_not_run_to_its_end(batched):
    before = batched.health()["steps"]
    with httpx.stream("GET", f"{batched.url}/1/7?decimals=1000", timeout=SECONDS) as response:
        body = response.iter_text()
        assert next(body).startswith("0.")
        assert batched.health()["live"] == 1
    batched.wait_until(lambda: batched.health()["live"] == 0)
    assert batched.health()["steps"] - before < 1000


@pytest.mark.parametrize("path", ["/1/0", "/-1/3", "/1/x", "/1/3?decimals=0", "/1/3?decimals=9999"])
def test_what_is_no_fraction_is_refused(batched, path):
    assert batched.get(path).status_code == 422


# ---- threaded_server.py


@pytest.fixture(scope="module")
def threaded(tmp_path_factory):
    with serve("threaded_server.py", tmp_path_factory.mktemp("threaded")) as server:
        yield server


LONG_WAY = 10**399 + 1


def way(number):
    """Return all numbers down to 1."""
    numbers = [number]
    while numbers[-1] != 1:
        number = numbers[-1]
        numbers.append(3 * number + 1 if number % 2 else number // 2)
    return numbers


def test_each_number_is_followed_to_its_end(threaded):
    starts = [27, 1, 2, 7, 97, 1, 6, 10**9] * 4

    async def ask():
        async with threaded.client() as client:
            return await asyncio.gather(*(client.get(f"/{start}") for start in starts))

    replies = asyncio.run(ask())
    assert [[int(line) for line in reply.text.split()] for reply in replies] == [
        way(start) for start in starts
    ]
    assert {reply.headers["transfer-encoding"] for reply in replies} == {"chunked"}


def test_a_client_of_a_thread_that_leaves_frees_its_slot(threaded):
    assert len(way(LONG_WAY)) * float(PACE) > 10, "it might end by itself"
    with httpx.stream("GET", f"{threaded.url}/{LONG_WAY}", timeout=SECONDS) as response:
        body = response.iter_lines()
        assert next(body) == str(LONG_WAY)
        assert threaded.health()["live"] == 1
    threaded.wait_until(lambda: threaded.health()["live"] == 0)
    assert re.search(r"broken off: (BrokenPipe|ConnectionReset)Error", threaded.log())


def test_threads_say_that_there_is_no_room(threaded):
    def ask(client, count):
        return all_open(client.stream("GET", f"/{LONG_WAY}") for _ in range(count))

    async def fill():
        async with threaded.client() as client, ask(client, 1):
            await threaded.wait_until_health_is(live=1, waiting=0)
            async with ask(client, 1):
                await threaded.wait_until_health_is(live=2, waiting=0)  # by the other worker
                async with ask(client, 32):
                    await threaded.wait_until_health_is(live=34, waiting=32)
                    return await client.get("/27")

    response = asyncio.run(fill())
    assert response.status_code == 503
    assert "max_pending" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/", "/x", "/0", "/-1", "/1.5", f"/{10**400}"])
def test_what_is_no_number_is_refused(threaded, path):
    response = threaded.get(path)
    assert response.status_code == 422
    assert response.json()["detail"]
