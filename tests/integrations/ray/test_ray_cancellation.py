"""Which ways to leave free the slot of a request in Ray Serve, counted in steps of the model.

The model makes a step only when a test allows it. One step is under way when a client leaves: it is
made for the client all the same, and then the slot is free, so the model makes no other.
"""

import gc
import time

import httpx
import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

from ray import serve

from support.ray_gated import Bare, Batched, Front, Ingress, Model
from support.serving import SECONDS

MANY = 1000
FEW = 20


@pytest.fixture(scope="module")
def models(deploy):
    """Return by the application's name the handle of the deployment that has the slots."""
    deploy(
        model=Model.bind(),
        ingress=Ingress.bind(),
        front=Front.bind(Model.bind()),
        batched=Batched.bind(),
        bare=Bare.bind(),
    )
    return {
        "model": serve.get_deployment_handle("Model", "model"),
        "ingress": serve.get_deployment_handle("Ingress", "ingress"),
        "front": serve.get_deployment_handle("Model", "front"),
        "batched": serve.get_deployment_handle("Batched", "batched"),
        "bare": serve.get_deployment_handle("Bare", "bare"),
    }


def seen_by(model):
    return model.seen.remote().result()


def until(model, condition):
    """Return what the model has seen, once that is so."""
    deadline = time.monotonic() + SECONDS
    while not condition(seen := seen_by(model)):
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)
    return seen


def steps_for_what_has_left(model, steps):
    """Return how many steps the model makes after the first `steps`; it may make ten."""
    until(model, lambda seen: seen["ends"][-1] == "cancelled")
    model.allow.remote(10).result()
    used = until(model, lambda seen: not seen["slots"])["steps"] - steps
    model.forbid.remote().result()
    return used


def allow_three(model):
    """Let the model make three steps; return how many it has made then."""
    steps = seen_by(model)["steps"]
    model.allow.remote(3).result()
    return steps + 3


def first_three(url, **params):
    """Return the first three outputs, and leave."""
    got = ""
    params = {"count": MANY} | params
    with httpx.stream("GET", url, params=params, timeout=SECONDS) as response:
        for text in response.iter_text():
            got += text
            if got.count(" ") == 3:
                return got.split()
    raise AssertionError(got)


@pytest.mark.rule(13)
@pytest.mark.parametrize("name", ["model", "ingress", "front"])
@pytest.mark.cell("Ray Serve, `ContinuousBatcher`", "disconnect", "at once")
def test_an_http_client_that_leaves_costs_the_step_under_way(models, ray_cluster, name):
    model = models[name]
    steps = allow_three(model)
    assert first_three(f"{ray_cluster.http}/{name}/") == ["1000", "999", "998"]
    assert steps_for_what_has_left(model, steps) == 1


@pytest.mark.rule(13)
@pytest.mark.parametrize("name", ["model", "front"])
def test_a_generator_of_a_handle_that_is_cancelled_costs_the_step_under_way(models, name):
    model = models[name]
    steps = allow_three(model)
    handle = serve.get_app_handle(name).options(stream=True)
    outputs = handle.generate.remote(MANY)
    assert [next(outputs) for _ in range(3)] == ["1000 ", "999 ", "998 "]
    outputs.cancel()
    assert steps_for_what_has_left(model, steps) == 1


@pytest.mark.rule(13)
@pytest.mark.cell("Ray Serve, `batch`", "disconnect", "at once")
def test_an_http_client_that_leaves_what_batch_returned_ends_the_model(models, ray_cluster):
    model = models["batched"]
    model.allow.remote(3).result()
    assert first_three(f"{ray_cluster.http}/batched/") == ["1000", "999", "998"]
    until(model, lambda seen: seen["closed"])
    model.allow.remote(10).result()
    seen = seen_by(model)
    assert (seen["steps"], seen["closed"]) == (3, 1)


@pytest.mark.parametrize("what", ["body", "stream"])
def test_starlette_s_own_response_cancels_a_body_and_no_stream(models, ray_cluster, what):
    model = models["bare"]
    steps, ends = allow_three(model), model.ends.remote().result()
    first_three(f"{ray_cluster.http}/bare/", count=FEW, **{what: 1})
    deadline = time.monotonic() + SECONDS
    while model.ends.remote().result() == ends:
        assert time.monotonic() < deadline
    model.allow.remote(10).result()
    if what == "body":
        until(model, lambda seen: not seen["slots"])
        assert seen_by(model)["steps"] == steps + 1
    else:
        seen = until(model, lambda seen: seen["steps"] == steps + 10)
        assert seen["slots"] == 1
        model.allow.remote(FEW).result()
        until(model, lambda seen: not seen["slots"])
    model.forbid.remote().result()


@pytest.mark.parametrize("how", ["break", "drop"])
def test_ray_cancels_nothing_that_is_merely_not_read(models, how):
    model = models["model"]
    steps = allow_three(model)
    outputs = model.options(stream=True).generate.remote(FEW)
    for position, _ in enumerate(outputs):
        if position == 2:
            break
    if how == "drop":
        del outputs
        gc.collect()
    model.allow.remote(5).result()
    seen = until(model, lambda seen: seen["steps"] == steps + 5)
    assert (seen["slots"], seen["ends"][-1]) == (1, None)
    model.allow.remote(FEW).result()  # to its end, which comes of itself
    assert until(model, lambda seen: not seen["slots"])["ends"][-1] == "eos"
    model.forbid.remote().result()
