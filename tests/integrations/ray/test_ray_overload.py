"""What the callers of a replica get whose batcher has no room for a request."""

import time

import httpx
import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

from ray import serve

from batchstream import OverloadedError
from support.ray_gated import Ingress, Model
from support.serving import SECONDS


@pytest.fixture(scope="module", autouse=True)
def _full(deploy):
    """Deploy two models with one slot and one place to wait, and take both of each."""
    deploy(full=Model.bind(1, 1), full_ingress=Ingress.bind(1, 1))
    opened = []
    for name in ("full", "full_ingress"):
        handle = serve.get_app_handle(name)
        for count in (1, 2):
            opened.append(handle.options(stream=True).generate.remote(9))
            deadline = time.monotonic() + SECONDS
            while len(handle.seen.remote().result()["ends"]) < count:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    yield
    for outputs in opened:
        outputs.cancel()


def test_a_handle_raises_the_error_by_its_own_type():
    outputs = serve.get_app_handle("full").options(stream=True).generate.remote(9)
    with pytest.raises(OverloadedError, match="max_pending"):
        next(outputs)


@pytest.mark.cell("Ray Serve, `ContinuousBatcher`", "overload", "503, Retry-After")
def test_fastapi_with_the_handlers_answers_503_with_retry_after(ray_cluster):
    response = httpx.get(f"{ray_cluster.http}/full_ingress/?count=9", timeout=SECONDS)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1


def test_a_call_without_a_framework_fails_before_there_is_a_status(ray_cluster):
    assert httpx.get(f"{ray_cluster.http}/full/?count=9", timeout=SECONDS).status_code == 500


def test_a_request_that_is_submitted_behind_the_status_is_cut(ray_cluster):
    url = f"{ray_cluster.http}/full/?count=9&late=1"
    with httpx.stream("GET", url, timeout=SECONDS) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()
