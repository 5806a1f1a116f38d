"""The page on Ray Serve: its blocks are one program, and what it deploys does what it says."""

import asyncio
import time

import httpx
import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from batchstream import SKIP, RequestError
from support.pages import Page
from support.ray_cluster import ROOT
from support.ray_held import Gate, Held
from support.ray_scenarios import collected
from support.serving import SECONDS


class Pausing:
    """An engine: a request gets so many outputs, and then nothing until it is removed."""

    def __init__(self):
        self.left = {}

    def add(self, slot, request):
        self.left[slot] = request

    def step(self):
        time.sleep(0.01)  # no test waits for it
        step = {slot: "x" if count else SKIP for slot, count in self.left.items()}
        self.left = {slot: max(0, count - 1) for slot, count in self.left.items()}
        return step

    def remove(self, slot):
        del self.left[slot]


@pytest.fixture(scope="module")
def apps(deploy, page):
    names = ("speller", "letters", "counter", "fast_counter", "fast_speller", "served", "tuned")
    names += ("filled_counter",)
    apps = {name: getattr(page, name) for name in names}
    small = {"ray_actor_options": {"num_cpus": 0.1}}

    class Watched(page.Counter.func_or_class):
        async def ends(self):
            return [reason.value for reason in self.batcher.statistics().finished]

    apps["watched"] = serve.deployment(**small)(Watched).bind(Pausing)
    apps["paused_counter"] = page.Counter.options(**small).bind(Pausing, 1, 1)
    apps["paused_api"] = page.Api.options(**small).bind(Pausing, 1, 1)
    return dict(zip(apps, deploy(**apps), strict=True))


def test_the_diff_leads_to_the_deployment_of_the_page():
    page = Page(ROOT / "docs" / "ray.md")
    [diff] = [block.body for block in page.all if block.kind == "diff"]
    code = "\n".join(block.code for block in page.blocks)
    after = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    assert "\n".join(after) in code


def test_a_changed_import_is_all(apps, ray_cluster):
    replies = [
        httpx.get(f"{ray_cluster.http}/speller/", params={"word": word}, timeout=SECONDS).text
        for word in ("a", "changed", "import")
    ]
    assert replies == ["a", "changed", "import"]


def test_a_continuous_batcher_in_a_deployment_is_reached_by_handles_and_http(apps, ray_cluster):
    handle = apps["counter"].options(stream=True)
    assert list(handle.generate.remote(5)) == ["x"] * 5
    url = f"{ray_cluster.http}/counter/"
    assert httpx.get(url, params={"count": 5}, timeout=SECONDS).text == "xxxxx"


def test_a_handle_reads_all_outputs_of_a_request(apps, page):
    assert page.outputs_of(apps["counter"], 3) == ["x"] * 3


@pytest.mark.parametrize("count", [0, -1, "5"])
def test_a_count_that_never_ends_is_refused(apps, page, count):
    with pytest.raises(RequestError, match="whole number of at least 1") as caught:
        page.outputs_of(apps["counter"], count)
    assert type(caught.value.cause) is RequestError
    assert str(caught.value.cause) == f"count must be a whole number of at least 1, got {count!r}"


@pytest.mark.parametrize("name", ["counter", "fast_counter", "served"])
def test_over_http_it_is_answered_with_422(apps, ray_cluster, name):
    response = httpx.get(f"{ray_cluster.http}/{name}/", params={"count": 0}, timeout=SECONDS)
    assert response.status_code == 422
    assert "count must be a whole number" in response.json()["detail"]


def test_what_a_client_sees_of_an_error(apps, ray_cluster):
    url = f"{ray_cluster.http}/letters/"
    assert httpx.get(url, params={"word": "abc"}, timeout=SECONDS).text == "abc"
    refused = httpx.get(url, params={"word": "1bc"}, timeout=SECONDS)
    assert (refused.status_code, refused.json()) == (422, {"detail": "'1' is no letter"})
    with httpx.stream("GET", url, params={"word": "ab3"}, timeout=SECONDS) as response:
        if response.status_code != 500:  # the error comes right behind the outputs
            assert response.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()
    assert httpx.get(url, timeout=SECONDS).status_code == 500


def test_what_a_handle_sees_of_an_error(apps):
    outputs = apps["letters"].options(stream=True).generate.remote("a1")
    assert next(outputs) == "a"
    with pytest.raises(RequestError) as caught:
        next(outputs)
    assert str(caught.value.cause) == "'1' is no letter"
    outputs = apps["letters"].options(stream=True).generate.remote(None)
    with pytest.raises(TypeError):
        next(outputs)


def test_a_handle_cannot_call_a_decorated_generator_and_is_told_what_to_call(apps):
    outputs = apps["letters"].options(stream=True).spell.remote("abc")
    with pytest.raises(RuntimeError, match=r"let the handle call a method that yields from it"):
        next(outputs)


def test_a_request_whose_time_is_over_is_answered_with_504(apps, ray_cluster):
    url, headers = f"{ray_cluster.http}/served/", {"X-Request-Timeout": "0"}
    response = httpx.get(url, params={"count": 5}, headers=headers, timeout=SECONDS)
    assert response.status_code == 504
    assert httpx.get(url, params={"count": 5}, timeout=SECONDS).text == "xxxxx"


@pytest.mark.parametrize("name", ["paused_counter", "paused_api"])
def test_one_of_three_requests_is_refused_where_two_have_a_place(apps, ray_cluster, name):
    async def main():
        async with httpx.AsyncClient(timeout=SECONDS) as client:
            url = f"{ray_cluster.http}/{name}/"
            replies = [asyncio.create_task(client.get(url, params={"count": 0})) for _ in range(3)]
            [refused], others = await asyncio.wait(replies, return_when=asyncio.FIRST_COMPLETED)
            for other in others:
                other.cancel()
            await asyncio.wait(others)
            return refused.result()

    refused = asyncio.run(main())
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json() == {"detail": "Service Unavailable"}


def test_a_generator_yields_a_dict_for_the_slots_that_are_left(page):
    async def main():
        return await asyncio.gather(*(collected(page.repeat(word)) for word in ("a", "b")))

    assert asyncio.run(main()) == [["a"] * 3, ["b"] * 3]


def test_what_is_not_read_to_its_end_is_cancelled(apps, page):
    assert asyncio.run(page.first_outputs(apps["watched"], 3)) == ["x", "x"]
    deadline = time.monotonic() + SECONDS
    while not (ends := apps["watched"].ends.remote().result()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert ends == ["cancelled"]  # and no deadline


def test_outputs_of_a_fast_model_come_in_lists(apps):
    lists = list(apps["fast_counter"].options(stream=True).generate.remote(1000))
    assert sum(map(len, lists)) == 1000
    assert len(lists) < 1000


def test_outputs_of_a_fast_model_come_in_chunks_over_http(apps, ray_cluster):
    url = f"{ray_cluster.http}/fast_counter/"
    with httpx.stream("GET", url, params={"count": 1000}, timeout=SECONDS) as response:
        assert "".join(response.iter_text()) == "x" * 1000


def test_letters_of_a_fast_model_come_in_chunks_over_http(apps, ray_cluster):
    url = f"{ray_cluster.http}/fast_speller/"
    word = "abcdefghij" * 50
    assert httpx.get(url, params={"word": word}, timeout=SECONDS).text == word


def test_a_user_config_is_taken(apps):
    assert list(apps["tuned"].options(stream=True).generate.remote("tuned")) == list("tuned")


def test_a_reconfigure_that_raises_takes_the_deployment_down_and_the_status_says_why(deploy, page):
    bad = page.Tuned.options(user_config={"max_batch_size": 0}, ray_actor_options={"num_cpus": 0.1})
    with pytest.raises(RuntimeError):
        deploy(bad=bad.bind())
    [deployment] = serve.status().applications["bad"].deployments.values()
    assert serve.status().applications["bad"].status == "DEPLOY_FAILED"
    assert "max_batch_size must be an integer >= 1, got 0" in deployment.message


def test_a_replica_is_filled_before_the_next(deploy, page):
    gate = Gate.remote()
    filling = RequestRouterConfig(
        request_router_class=page.FillingRouter, request_router_kwargs={"slots": 4}
    )
    deploy(filled=Held.options(num_replicas=2, request_router_config=filling).bind(gate))
    handle = serve.get_app_handle("filled").options(stream=True)
    streams, replicas = [], []
    for _ in range(5):
        streams.append(handle.generate.remote(5))
        replicas.append(next(streams[-1]))
    assert len(set(replicas[:4])) == 1
    assert replicas[4] != replicas[0]
    ray.get(gate.open.remote())
    assert [len(list(stream)) for stream in streams] == [4] * 5
    ray.kill(gate)
