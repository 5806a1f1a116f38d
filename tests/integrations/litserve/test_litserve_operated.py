"""End to end: what operators ask of a loop. Order, deadlines, request ids and metrics.

Two workers with a slot each, and two server processes, so that what holds here holds for the API.
"""

import json
import time
from collections import Counter
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchstream._cli.top.changes import History
from batchstream._cli.top.page import read_page
from batchstream._cli.top.view import views
from support.serving import SECONDS
from support.stepwise import MANY, numbers_of

PATHS = ["/operated", "/operated_single"]
paths = pytest.mark.parametrize("path", PATHS)


class Busy:
    """An API whose workers are each at a step of a request, and go on when the test lets them."""

    def __init__(self, guests, path):
        self.guests = guests
        self.path = path
        self.at = ["busy0", "busy1"]
        self.clients = {tag: guests.send(path, tag, 1) for tag in self.at}
        self.doors = guests.doors()
        for number, door in enumerate(self.doors):
            [self.at[number]] = self._tags_at_step(door)

    def _tags_at_step(self, door):
        door.make_steps_until(bool)
        return door.slots

    def queue(self, tag, outputs=1, **more):
        """Send a request that waits, behind the earlier ones."""
        waiting = self.guests.server.view()["waiting"][self.path]
        self.clients[tag] = self.guests.send(self.path, tag, outputs, **more)
        self.guests.server.wait_until_there_wait(waiting + 1, self.path)
        return self.clients[tag]

    def next_of(self, number):
        """Let a worker end its request, and return the tag of the one that it serves next."""
        self.doors[number].go()
        while True:
            line = self.doors[number].next_line()
            if not line:  # a model that takes one request at a time opens a door for each
                self.doors[number] = self.guests.street.door()
            elif line.startswith("step"):
                tag = line.split()[1].partition("@")[0]
                if tag != self.at[number]:
                    self.at[number] = tag
                    return tag
                self.doors[number].go()

    def let_all_go_on(self):
        for door in self.doors:
            door.close()


def of_tenant(name, **more):
    return {"headers": {"x-tenant": name, **more}}


# ---- order


@pytest.mark.rule(29)
@paths
def test_requests_go_by_priority_and_tenants_take_turns_whichever_worker_is_free(
    operated_guests, path
):
    busy = Busy(operated_guests, path)
    busy.queue("low", priority=5)
    for tag in ("noisy1", "noisy2", "noisy3"):
        busy.queue(tag, **of_tenant("noisy"))
    busy.queue("quiet", **of_tenant("quiet"))
    busy.queue("urgent", priority=-1)
    order = [busy.next_of(number) for number in (0, 1, 1, 0, 1, 0)]
    assert order == ["urgent", "noisy1", "quiet", "noisy2", "noisy3", "low"]
    busy.let_all_go_on()
    for tag, client in busy.clients.items():
        assert numbers_of(client.outputs(), tag) == [0]


@pytest.mark.rule(29)
@paths
def test_a_tenant_gets_as_much_as_its_share(operated_guests, path):
    busy = Busy(operated_guests, path)
    for number in range(4):
        busy.queue(f"one{number}", **of_tenant("one"))
    for number in range(4):
        busy.queue(f"three{number}", share=3, **of_tenant("three"))
    order = [busy.next_of(number % 2) for number in range(8)]
    assert Counter(tag[:-1] for tag in order[:4]) == {"three": 3, "one": 1}
    busy.let_all_go_on()


@pytest.mark.rule(19)
@paths
@pytest.mark.cell("LitServe, `BatchedStreamLoop`", "overload", "503, Retry-After")
def test_no_more_wait_than_may_of_a_tenant_and_of_all_and_one_that_leaves_makes_room(
    operated_guests, path
):
    busy = Busy(operated_guests, path)
    for number in range(8):
        busy.queue(f"noisy{number}", **of_tenant("noisy"))
    refused = operated_guests.send(path, "late", 1, **of_tenant("noisy"))
    assert refused.answer() == (503, {"detail": "Service Unavailable"})
    assert refused.response.headers["retry-after"] == "1"
    for number in range(4):
        busy.queue(f"other{number}", **of_tenant("other"))
    assert operated_guests.send(path, "late", 1).answer()[0] == 503
    busy.clients["noisy7"].leave()
    operated_guests.server.wait_until_there_wait(11, path)
    busy.queue("back", **of_tenant("noisy"))
    order = [busy.next_of(number % 2) for number in range(12)]
    assert "noisy7" not in order
    assert order[-1] == "back"
    busy.let_all_go_on()


@paths
def test_a_function_that_fails_fails_its_request_alone(operated_guests, path):
    client = operated_guests.send(path, "bad", 1, at_door=False, priority="high")
    assert client.answer() == (500, {"detail": "Internal server error"})
    headers = {"x-request-id": "mine"}
    client = operated_guests.send(path, "bad", 1, at_door=False, priority="header", headers=headers)
    status, body = client.answer()
    assert (status, client.response.headers["x-request-id"]) == (400, "mine")
    assert "grpc-timeout must be" in body["detail"]
    good = operated_guests.send(path, "good", 1, at_door=False)
    assert numbers_of(good.outputs(), "good") == [0]


# ---- request ids


@paths
def test_an_answer_and_the_log_of_the_worker_name_a_request_as_its_client_does(
    operated_guests, path
):
    name = f"from-client{path.replace('/', '-')}"
    headers = {"x-request-id": name}
    trouble = ["decode", 0, "plain"]
    client = operated_guests.send(path, "a", 1, at_door=False, trouble=trouble, headers=headers)
    assert client.answer()[0] == 500
    assert client.response.headers["x-request-id"] == name
    operated_guests.server.wait_until_it_has_logged(f"has failed these requests: {name}\n")


@pytest.mark.parametrize("given", [{}, {"x-request-id": "a b"}, {"x-request-id": "x" * 129}])
def test_a_request_without_an_id_that_can_be_logged_gets_one(operated_guests, given):
    clients = [
        operated_guests.send("/operated", "a", 1, at_door=False, headers=given) for _ in range(2)
    ]
    names = [client.response.headers["x-request-id"] for client in clients]
    assert all(name.count("-") == 5 for name in names)
    assert len(set(names)) == 2


# ---- deadlines


@pytest.mark.rule(29)
@paths
def test_a_client_whose_time_is_over_while_it_waits_gets_504_and_no_worker_gets_its_request(
    operated_guests, path
):
    busy = Busy(operated_guests, path)
    headers = {"x-request-timeout": "0.1"}
    late = operated_guests.send(path, "late", 1, headers=headers)
    detail = "the request has not ended within 0.1 seconds, as asked for"
    assert late.answer() == (504, {"detail": detail})
    operated_guests.server.wait_until_there_wait(0, path)
    busy.queue("next")
    assert busy.next_of(0) == "next"
    busy.let_all_go_on()


def test_a_timeout_that_cannot_be_read_is_the_clients_fault(operated_guests):
    headers = {"x-request-timeout": "soon", "x-request-id": "mine"}
    client = operated_guests.send("/operated", "a", 1, at_door=False, headers=headers)
    status, body = client.answer()
    assert (status, client.response.headers["x-request-id"]) == (400, "mine")
    assert "X-Request-Timeout must be a decimal number of seconds" in body["detail"]


# ---- metrics


class Reported:
    """What the processes of a server have reported of an API since the test began, or ever."""

    def __init__(self, server, path, *, ever=False):
        self._file = server.folder / "metrics"
        self._path = path
        self._begin = 0 if ever or not self._file.exists() else self._file.stat().st_size

    def events(self, name=None):
        text = self._file.read_bytes()[self._begin :].decode()
        events = [json.loads(line) for line in text.splitlines()]
        return [
            event
            for event in events
            if event["batcher"] == self._path and name in (None, event["event"])
        ]

    def wait_for(self, number, name):
        deadline = time.monotonic() + SECONDS
        while len(found := self.events(name)) < number:
            assert time.monotonic() < deadline, self.events()
            time.sleep(0.01)
        assert len(found) == number
        return found


@paths
def test_every_figure_of_a_run_is_reported_once(operated_guests, path):
    reported = Reported(operated_guests.server, path)
    busy = Busy(operated_guests, path)
    busy.queue("a", 2, **of_tenant("t"))
    leaves = busy.queue("leaves", **of_tenant("t"))
    leaves.leave()
    headers = {"x-tenant": "u", "x-request-timeout": "0.1"}
    assert operated_guests.send(path, "late", 1, headers=headers).answer()[0] == 504
    operated_guests.server.wait_until_there_wait(1, path)
    busy.queue("b", MANY, **of_tenant("v"))
    for number in range(8):
        busy.queue(f"fill{number}", **of_tenant("fill"))
    assert operated_guests.send(path, "refused", 1, **of_tenant("fill")).answer()[0] == 503
    for tag in [f"fill{number}" for number in range(8)]:
        busy.clients[tag].leave()
    operated_guests.server.wait_until_there_wait(2, path)
    assert busy.next_of(0) == "a"
    assert busy.next_of(1) == "b"
    busy.doors[1].go()
    assert busy.clients["b"].next_output()["output"] == 0
    busy.clients["b"].leave()
    busy.let_all_go_on()
    assert numbers_of(busy.clients["a"].outputs(), "a") == [0, 1]

    ended = reported.wait_for(14, "finished")
    submitted = Counter(event["tenant"] for event in reported.events("submitted"))
    assert submitted == {None: 2, "t": 2, "u": 1, "v": 1, "fill": 8}
    [refused] = reported.events("refused")
    assert (refused["reason"], refused["tenant"]) == ("tenant", "fill")
    joined = [tenant for event in reported.events("joined") for tenant in event["tenants"]]
    assert Counter(joined) == {None: 2, "t": 1, "v": 1}
    first = Counter(event["tenant"] for event in reported.events("first_output"))
    assert first == {None: 2, "t": 1, "v": 1}
    ends = Counter((event["tenant"], event["reason"], event["joined"]) for event in ended)
    assert ends == {
        (None, "eos" if path == "/operated" else "exhausted", True): 2,
        ("t", "eos" if path == "/operated" else "exhausted", True): 1,
        ("t", "cancelled", False): 1,
        ("u", "deadline", False): 1,
        ("v", "cancelled", True): 1,
        ("fill", "cancelled", False): 8,
    }
    [whole] = [event for event in ended if event["tenant"] == "t" and event["joined"]]
    assert whole["outputs"] == 2
    assert 0 < whole["in_slot"] < whole["lasted"]
    assert 0 < whole["first_output"] < whole["lasted"]
    workers = {event["pid"] for event in reported.events("stepped")}
    servers = {event["pid"] for event in reported.events("submitted")}
    assert len(workers) == 2
    assert workers.isdisjoint(servers)
    for event in reported.events("stepped"):
        assert (event["live"], event["capacity"]) == (1, 1)
    outputs = sum(event["outputs"] for event in reported.events("stepped"))
    assert outputs == sum(event["outputs"] for event in ended)


# ---- Prometheus


class Scraped:
    """The registry of all processes of a server, of one API."""

    def __init__(self, server, path):
        with urlopen(f"{server.url}/metrics", timeout=SECONDS) as response:  # noqa: S310
            self._page = response.read().decode()
        families = list(text_string_to_metric_families(self._page))
        self._samples = [
            sample
            for family in families
            for sample in family.samples
            if sample.labels.get("batcher") == path
        ]

    def of(self, name, *labels):
        """The samples of a name that are not 0, by the values of these labels."""
        found = Counter()
        for sample in self._samples:
            if sample.name == f"batchstream_{name}":
                found[tuple(sample.labels[label] for label in labels)] += sample.value
        return {key: value for key, value in found.items() if value}

    def top(self):
        """What the command `top` shows of the page."""
        history = History()
        history.add(read_page(self._page, 0.0, "the server's"))
        return views(history)


def counted(events, *keys):
    """How many events there are, by the values of these keys, as labels."""
    return dict(Counter(tuple(event[key] or "" for key in keys) for event in events))


def test_a_probe_gets_the_head_of_the_metrics_page(operated_guests):
    probe = Request(f"{operated_guests.server.url}/metrics", method="HEAD")  # noqa: S310
    with urlopen(probe, timeout=SECONDS) as response:  # noqa: S310
        assert (response.status, response.read()) == (200, b"")


@paths
def test_the_registry_is_one_sum_over_workers_and_server_processes(operated_guests, path):
    busy = Busy(operated_guests, path)
    busy.queue("a", 2, **of_tenant("t"))
    busy.queue("b", 2, **of_tenant("u"))
    assert Scraped(operated_guests.server, path).of("requests_waiting", "tenant") == {
        ("t",): 1,
        ("u",): 1,
    }
    assert busy.next_of(0) == "a"
    assert busy.next_of(1) == "b"
    assert Scraped(operated_guests.server, path).of("requests_running") == {(): 2}
    busy.let_all_go_on()
    for client in busy.clients.values():
        client.outputs()

    reported = Reported(operated_guests.server, path, ever=True)
    submitted = reported.events("submitted")
    ended = reported.wait_for(len(submitted), "finished")
    scraped = Scraped(operated_guests.server, path)
    assert scraped.of("requests_submitted_total", "tenant") == counted(submitted, "tenant")
    assert scraped.of("requests_refused_total", "tenant", "reason") == counted(
        reported.events("refused"), "tenant", "reason"
    )
    assert scraped.of("requests_finished_total", "tenant", "reason") == counted(
        ended, "tenant", "reason"
    )
    assert scraped.of("requests_waiting") == scraped.of("requests_running") == {}
    steps = reported.events("stepped")
    assert scraped.of("steps_total") == {(): len(steps)}
    assert scraped.of("outputs_total") == {(): sum(step["outputs"] for step in steps)}
    assert scraped.of("slots") == {(): 2}
    [shown] = [each for each in scraped.top() if each.name == path]
    assert (shown.slots, shown.running, shown.waiting) == (2, 0, 0)
    assert sum(shown.finished.values()) == len(ended)
    assert {tenant.name or None for tenant in shown.tenants} >= {
        event["tenant"] for event in submitted
    }
    joined = [wait for event in reported.events("joined") for wait in event["waited"]]
    assert scraped.of("wait_seconds_count") == {(): len(joined)}
    assert scraped.of("wait_seconds_sum")[()] == pytest.approx(sum(joined))
