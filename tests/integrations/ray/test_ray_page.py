"""The page on Ray Serve: its blocks are one program, and what it deploys does what it says."""

import asyncio
import time

import httpx
import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from support.pages import Page
from support.ray_cluster import ROOT
from support.ray_held import Gate, Held
from support.serving import SECONDS


@pytest.fixture(scope="module")
def apps(deploy, page):
    names = ("speller", "counter", "fast_counter", "tuned", "filled_counter")
    handles = deploy(**{name: getattr(page, name) for name in names})
    return dict(zip(names, handles, strict=True))


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


def test_what_is_not_read_to_its_end_is_cancelled(apps, page):
    assert asyncio.run(page.first_outputs(apps["counter"], 10**9)) == ["x", "x"]
    deadline = time.monotonic() + SECONDS
    while apps["counter"].record_autoscaling_stats.remote().result()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_outputs_of_a_fast_model_come_in_lists(apps):
    lists = list(apps["fast_counter"].options(stream=True).generate.remote(1000))
    assert sum(map(len, lists)) == 1000
    assert len(lists) < 1000


def test_a_user_config_is_taken(apps):
    assert list(apps["tuned"].options(stream=True).generate.remote("tuned")) == list("tuned")


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
