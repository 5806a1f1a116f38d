"""`batch`, and `ContinuousBatcher`, in the replicas of a real Ray."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

import ray
from ray import serve
from ray.serve import context
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

import batchstream
from batchstream.integrations.ray import batch, warn_if_never_full
from support import ray_apps
from support.ray_apps import OPTIONS

SECONDS = 200  # for what should happen at once, in processes that may have to start first
PROGRAM = Path(ray_apps.__file__).with_name("ray_program.py")


def model_of(batch):  # noqa: C901 - it has many methods
    """Make the deployment that both decorators have."""

    class Model:
        @batch(max_batch_size=8)
        async def square(self, xs):
            return [x * x for x in xs]

        @batch(max_batch_size=8)
        async def add(self, xs, ys):
            return [x + y for x, y in zip(xs, ys, strict=True)]

        @batch(max_batch_size=8)
        async def none(self, xs):
            return [None for _ in xs]

        @batch(max_batch_size=8)
        async def short_answer(self, xs):
            return [0] * (len(xs) + 1)

        @batch(max_batch_size=8)
        async def broken(self, xs):
            raise KeyError(xs[0])

        @batch(max_batch_size=8, batch_wait_timeout_s=0.2)
        async def which_model(self, xs):
            return [[serve.get_multiplexed_model_id()] for _ in xs]

        @batch(max_batch_size=8, batch_wait_timeout_s=0.2)
        async def which_requests(self, xs):
            batch = [each.request_id for each in context._get_serve_batch_request_context()]
            own = context._get_serve_request_context().request_id
            return [(batch, own) for _ in xs]

        @batch(max_batch_size=8)
        async def count(self, lengths):
            for position in range(max(lengths) + 1):
                yield [position if position < length else StopIteration for length in lengths]

        @batch(max_batch_size=8)
        async def spell_of_the_model(self, xs):
            for letter in range(2):
                yield [serve.get_multiplexed_model_id()[letter] for _ in xs]

        async def call(self, method, *args):
            return await getattr(self, method)(*args)

        async def identified(self):
            own = context._get_serve_request_context().request_id
            return own, *await self.which_requests(0)

        async def stream(self, method, *args):
            async for output in getattr(self, method)(*args):
                yield output

    return serve.deployment(**OPTIONS)(Model).bind()


@pytest.fixture(scope="module")
def both(deploy):
    return deploy(serve=model_of(serve.batch), ours=model_of(batch))


@pytest.fixture(params=["serve", "ours"])
def handle(request, both):
    return both[request.param == "ours"]


def results(replies):
    """Wait for replies to requests, which are all under way before."""
    return [reply.result(timeout_s=SECONDS) for reply in list(replies)]


# ---- with one changed import, what is right already stays as it is


@pytest.mark.parametrize(
    ("method", "calls", "expected"),
    [
        ("square", [(1,), (2,), (3,)], [1, 4, 9]),
        ("add", [(1, 10), (2, 20)], [11, 22]),
        ("none", [(1,)], [None]),
    ],
)
def test_results_are_the_same_as_with_serve_batch(handle, method, calls, expected):
    assert results(handle.call.remote(method, *call) for call in calls) == expected


def test_streams_are_the_same_as_with_serve_batch(handle):
    streaming = handle.options(stream=True)
    streams = [streaming.stream.remote("count", length) for length in (3, 0, 5)]
    assert [list(stream) for stream in streams] == [[0, 1, 2], [], [0, 1, 2, 3, 4]]


def test_a_batched_method_may_be_the_endpoint_itself(handle):
    assert handle.square.remote(7).result(timeout_s=SECONDS) == 49


@pytest.mark.parametrize(
    ("method", "kind"), [("short_answer", RayServeException), ("broken", KeyError)]
)
def test_errors_have_the_same_types_as_with_serve_batch(handle, method, kind):
    with pytest.raises(kind):
        handle.call.remote(method, 1).result(timeout_s=SECONDS)


def test_the_model_runs_for_the_multiplexed_model_of_each_request(handle):
    models = ["ab", "cd", "ab", "cd", "", "ab"]
    of = [handle.options(multiplexed_model_id=model) for model in models]
    assert results(each.call.remote("which_model", 0) for each in of) == [[m] for m in models]
    streams = [
        each.options(stream=True).stream.remote("spell_of_the_model", 0)
        for each, model in zip(of, models, strict=True)
        if model
    ]
    assert [list(stream) for stream in streams] == [list(model) for model in models if model]


def test_the_model_sees_the_contexts_of_all_requests_of_its_batch(handle):
    found = results(handle.identified.remote() for _ in range(4))
    for own, of_batch, inside in found:
        assert own
        assert own in of_batch
        assert inside == ""
    assert max(len(of_batch) for _, of_batch, _ in found) > 1


# ---- and in threads, which `serve.batch` has not


@serve.deployment(**OPTIONS)
class InThreads:
    @batch(max_batch_size=4, batch_wait_timeout_s=0.2)
    def which_model(self, xs):
        contexts = context._get_serve_batch_request_context()
        return [(serve.get_multiplexed_model_id(), len(contexts) == len(xs)) for _ in xs]

    @batch(max_batch_size=4, batch_wait_timeout_s=0.2)
    def spell_of_the_model(self, xs):
        for letter in range(2):
            yield [serve.get_multiplexed_model_id()[letter] for _ in xs]

    async def stream(self):
        async for output in self.spell_of_the_model(0):
            yield output


def test_a_synchronous_model_runs_for_the_multiplexed_model_of_each_request(deploy):
    handle = deploy(InThreads.bind())
    models = ["ab", "cd", "ab"]
    of = [handle.options(multiplexed_model_id=model) for model in models]
    assert results(each.which_model.remote(0) for each in of) == [(m, True) for m in models]
    streams = [each.options(stream=True).stream.remote() for each in of]
    assert [list(stream) for stream in streams] == [list(model) for model in models]


# ---- settings


def applied(**applications):
    """Deploy applications by a configuration file's text, as `serve deploy` does."""
    schema = ServeDeploySchema(
        applications=[
            {
                "name": name,
                "route_prefix": f"/{name}",
                "import_path": f"support.ray_apps:{name}",
                "deployments": [{"name": name.title(), "user_config": user_config}],
            }
            for name, user_config in applications.items()
        ]
    )
    serve.context._get_global_client().deploy_apps(schema, _blocking=True)


def state_that(handle, is_so):
    """Poll the replica until its state is as expected."""
    deadline = time.monotonic() + SECONDS
    while not is_so(state := handle.state.remote().result(timeout_s=SECONDS)):
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


@pytest.fixture(scope="module")
def apps(ray_cluster):
    """Two applications that are deployed by a configuration."""
    applied(
        configured={"max_batch_size": 2, "batch_wait_timeout_s": 0},
        continuous={"max_batch_size": 2},
    )
    yield {name: serve.get_app_handle(name) for name in ("configured", "continuous")}
    for name in ("configured", "continuous"):
        serve.delete(name, _blocking=False)


@pytest.mark.rule(29)
def test_a_new_user_config_changes_the_batches_and_loses_no_request(apps):
    handle = apps["configured"]
    replies = [handle.reply.remote(number) for number in range(12)]
    before = state_that(handle, lambda state: state["live"] == 12)
    applied(
        configured={"max_batch_size": 5, "batch_wait_timeout_s": 0},
        continuous={"max_batch_size": 2},
    )
    after = state_that(handle, lambda state: state["max_batch_size"] == 5)
    assert after["pid"] == before["pid"]
    handle.open.remote().result(timeout_s=SECONDS)
    assert results(replies) == list(range(12))
    first, *others = state_that(handle, lambda state: state["live"] == 0)["sizes"]
    assert first <= 2
    assert others[:2] == [5, 5]


@pytest.mark.rule(29)
def test_a_new_user_config_changes_a_continuous_batcher_and_loses_no_request(apps):
    handle = apps["continuous"]
    streams = [handle.options(stream=True).count.remote(3) for _ in range(8)]
    state_that(handle, lambda state: state["live"] == 8)
    handle.permit.remote(1).result(timeout_s=SECONDS)  # the first has joined alone
    before = state_that(handle, lambda state: state["running"] == 2)
    applied(
        configured={"max_batch_size": 5, "batch_wait_timeout_s": 0},
        continuous={"max_batch_size": 4},
    )
    after = state_that(handle, lambda state: state["max_batch_size"] == 4)
    assert after["pid"] == before["pid"]
    handle.permit.remote(100).result(timeout_s=SECONDS)
    assert [list(stream) for stream in streams] == [[3, 2, 1]] * 8
    assert max(state_that(handle, lambda state: state["live"] == 0)["sizes"]) == 4


def test_an_importable_module_has_decorated_methods_functions_and_metrics(apps):
    handle = apps["configured"]
    spelled = results(handle.spelled.remote(word) for word in ("ray", "serve"))
    assert spelled == [list("ray"), list("serve")]
    assert results(handle.shout.remote(word) for word in ("a", "b")) == ["a!", "b!"]
    assert sum(handle.state.remote().result(timeout_s=SECONDS)["joined"]) == 4


@pytest.mark.rule(27)
def test_what_stands_in_main_works_in_two_replicas(ray_cluster):
    address = ray.get_runtime_context().gcs_address
    ended = subprocess.run(  # noqa: S603
        [sys.executable, str(PROGRAM), address],
        capture_output=True,
        check=False,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [[["a", "b"], "ab!", True]] * 2


# ---- clients that leave


@serve.deployment(**OPTIONS)
class Endless:
    """A model that goes on until it is closed."""

    def __init__(self):
        self.steps = 0
        self.closed = 0

    @batch(max_batch_size=4, batch_wait_timeout_s=0)
    async def outputs(self, requests):
        try:
            while True:
                self.steps += 1
                yield requests
        finally:
            self.closed += 1

    async def stream(self):
        async for output in self.outputs("output"):
            yield output

    async def state(self):
        live = self.outputs.statistics().live
        return {"steps": self.steps, "closed": self.closed, "live": live}


@pytest.mark.rule(10, 13)
def test_the_model_stops_for_a_handle_that_is_cancelled(deploy):
    handle = deploy(Endless.bind())
    stream = handle.options(stream=True).stream.remote()
    assert [next(iter(stream)) for _ in range(3)] == ["output"] * 3
    stream.cancel()
    state = state_that(handle, lambda state: state["closed"] == 1)
    assert state["live"] == 0
    assert state_that(handle, lambda _: True)["steps"] == state["steps"]


# ---- the warning


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=5)
class Narrow:
    """Fewer requests at once than a batch has; it says what was logged."""

    def __init__(self):
        self.logged = []
        handler = logging.Handler()
        handler.emit = lambda record: self.logged.append(record.getMessage())
        logging.getLogger("ray.serve").addHandler(handler)
        batcher = batchstream.ContinuousBatcher(ray_apps.Engine(), max_batch_size=6)
        pair = batchstream.DynamicBatcher(list, max_batch_size=3, workers=2, single=True)
        batchers = (batcher, 5, pair)
        self.warned = [warn_if_never_full(each) for each in batchers]

    @batch(max_batch_size=4, max_concurrent_batches=2)
    async def reply(self, requests):
        return requests

    @batch(max_batch_size=5)
    async def fits(self, requests):
        return requests

    async def warnings(self):
        for _ in range(3):
            await self.reply(1)
            await self.fits(1)
        self.reply.set_max_batch_size(2)
        await self.reply(1)
        self.reply.set_max_batch_size(3)
        await self.reply(1)
        return self.warned, [text for text in self.logged if "max_ongoing_requests" in text]


def test_a_replica_whose_batches_are_never_full_says_so_once(deploy):
    handle = deploy(Narrow.bind())
    warned, texts = handle.warnings.remote().result(timeout_s=SECONDS)
    assert warned == [True, False, True]
    says = "max_ongoing_requests=5 of this deployment is less than max_batch_size="
    assert [text.partition(",")[0] for text in texts] == [
        f"ContinuousBatcher 'Engine': {says}6",
        f"DynamicBatcher 'list': {says}3 times workers=2",
        f"Narrow.reply: {says}4 times max_concurrent_batches=2",
        f"Narrow.reply: {says}3 times max_concurrent_batches=2",
    ]
    assert "8 fills them: set @serve.deployment(max_ongoing_requests=8)" in texts[2]
    assert "add max_pending for requests that wait in the replica" in texts[2]
