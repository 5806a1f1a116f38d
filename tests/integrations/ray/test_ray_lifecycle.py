"""What becomes of open streams when replicas of Ray Serve are replaced, removed or killed."""

import contextlib
import threading
import time

import httpx
import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

import ray
from ray import serve
from ray.exceptions import RayError

from batchstream import DeadlineError
from support.ray_held import FREE_STEPS, Gate, Held, HeldBatch
from support.serving import SECONDS

COUNT = 9


@pytest.fixture
def gate(ray_cluster):
    gate = Gate.remote()
    yield gate
    ray.kill(gate)


class Client:
    """Reads a stream of a handle, or of HTTP, in a thread of its own."""

    def __init__(self, outputs):
        self.outputs = []
        self.error = None
        self.begun = threading.Event()
        self._source = outputs
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        try:
            for output in self._source:
                self.outputs += output.split()
                if len(self.outputs) >= FREE_STEPS:
                    self.begun.set()
        except Exception as error:  # noqa: BLE001 - kept for the test
            self.error = error
        self.begun.set()

    def wait(self):
        assert self.begun.wait(SECONDS)
        assert self.error is None
        return self

    def ended(self):
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return len(self.outputs), type(self.error)

    @property
    def replica(self):
        return self.outputs[0]


def over_http(cluster, name):
    url = f"{cluster.http}/{name}/"
    with httpx.stream("GET", url, params={"count": COUNT}, timeout=SECONDS) as response:
        response.raise_for_status()
        yield from response.iter_text()


def over_handle(name, **options):
    handle = serve.get_app_handle(name).options(stream=True)
    return handle.generate.remote(COUNT, **options)


def states(name):
    [deployment] = serve.status().applications[name].deployments.values()
    return deployment.replica_states


def wait_for_states(name, condition):
    deadline = time.monotonic() + SECONDS
    while not condition(found := states(name)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def in_thread(function, *args, **options):
    thread = threading.Thread(target=function, args=args, kwargs=options)
    thread.start()
    return thread


WHOLE = (COUNT, type(None))


@pytest.mark.parametrize("kind", [Held, HeldBatch], ids=["batcher", "batch"])
@pytest.mark.cell("Ray Serve, `batch`", "drain", "yes")
@pytest.mark.cell("Ray Serve, `ContinuousBatcher`", "drain", "yes")
def test_a_replica_that_is_replaced_lets_its_streams_end_and_is_closed_behind_them(
    deploy, ray_cluster, gate, kind
):
    deploy(replaced=kind.bind(gate))
    clients = [
        Client(over_handle("replaced")).wait(),
        Client(over_http(ray_cluster, "replaced")).wait(),
    ]
    redeploy = in_thread(deploy, replaced=kind.bind(gate))
    wait_for_states("replaced", lambda found: found.get("STOPPING") == 1)
    assert ray.get(gate.noted.remote()) == []
    ray.get(gate.open.remote())
    assert [client.ended() for client in clients] == [WHOLE, WHOLE]
    redeploy.join()
    assert Client(over_handle("replaced")).wait().ended() == WHOLE
    deadline = time.monotonic() + SECONDS
    while ray.get(gate.noted.remote()) != ["closed with 0 open"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_streams_that_outlast_the_grace_fail_and_a_deadline_below_it_says_why(
    deploy, ray_cluster, gate
):
    deploy(removed=Held.options(graceful_shutdown_timeout_s=5).bind(gate))
    clients = [
        Client(over_handle("removed")).wait(),
        Client(over_http(ray_cluster, "removed")).wait(),
        Client(over_handle("removed", seconds=3)).wait(),
    ]
    removal = in_thread(serve.delete, "removed")
    handled, served, limited = [client.ended() for client in clients]
    removal.join()
    assert handled[0] == served[0] == limited[0] == FREE_STEPS
    assert issubclass(handled[1], RayError)
    assert issubclass(served[1], httpx.RemoteProtocolError)
    assert issubclass(limited[1], DeadlineError)


def test_streams_of_a_killed_replica_fail_but_streams_of_the_other_go_on_and_new_ones_work(
    deploy, ray_cluster, gate
):
    deploy(killed=Held.options(num_replicas=2).bind(gate))
    clients = []
    while len({client.replica for client in clients}) < 2 or len(clients) < 4:
        clients.append(Client(over_handle("killed")).wait())
        clients.append(Client(over_http(ray_cluster, "killed")).wait())
    killed = clients[0].replica
    while not any(client.error for client in clients):  # the call may have come to the other one
        with contextlib.suppress(RayError):
            serve.get_app_handle("killed").die.remote(killed).result()
    ray.get(gate.open.remote())
    for client in clients:
        count, error = client.ended()
        if client.replica == killed:
            assert count == FREE_STEPS
            assert issubclass(error, (RayError, httpx.RemoteProtocolError))
        else:
            assert (count, error) == WHOLE
    assert Client(over_handle("killed")).wait().ended() == WHOLE


def test_replicas_are_added_while_requests_wait_and_removed_without_cutting_a_stream(
    deploy, page, gate
):
    scaled = Held.options(
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 2,
            "upscale_delay_s": 0,
            "downscale_delay_s": 0,
            "metrics_interval_s": 0.1,
            "look_back_period_s": 0.5,
            "policy": {"policy_function": page.fill_slots},
        }
    )
    deploy(scaled=scaled.bind(gate))
    first = Client(over_handle("scaled")).wait()
    others = [over_handle("scaled") for _ in range(5)]  # of which two wait for a slot
    wait_for_states("scaled", lambda found: found.get("RUNNING") == 2)
    second = Client(over_handle("scaled")).wait()
    assert first.replica != second.replica
    for outputs in others:
        outputs.cancel()
    wait_for_states("scaled", lambda found: found.get("STOPPING") == 1)
    ray.get(gate.open.remote())
    assert [first.ended(), second.ended()] == [WHOLE, WHOLE]
    wait_for_states("scaled", lambda found: found == {"RUNNING": 1})
