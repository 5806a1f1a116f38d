"""End to end: how servers end, and what they do without requests. As /proc of Linux shows it."""

import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from test_litserve_operated import Reported

from support.serving import SECONDS, free_port, without_monitor
from support.stepwise import API, MANY, SIZE, Server, Street, guests_of, numbers_of, serve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

BROKEN_OFF = (http.client.HTTPException, OSError)


# ---- what /proc says


def processes_of(session):
    """The command lines of a session's processes, by pid."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _parent, _group, of_session, *_ = stat.read_text().rpartition(")")[2].split()
            if int(of_session) == session and state != "Z":
                found[int(stat.parent.name)] = stat.with_name("cmdline").read_bytes()
    return found


def workers_of(session):
    spawned = b"multiprocessing.spawn"
    return {pid for pid, command in processes_of(session).items() if spawned in command}


def wait_until_gone(processes):
    """Wait until there are none; they end by themselves or not at all."""
    deadline = time.monotonic() + SECONDS
    while found := processes():
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def switches_of(pid):
    """How often the threads of a process have gone to sleep."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        [line] = [
            line for line in status.read_text().splitlines() if line.startswith("voluntary_ctxt")
        ]
        count += int(line.split()[1])
    return count


# ---- the end


class Streaming:
    """Clients in mid-stream at both kinds of loops, whose models wait in a step."""

    def __init__(self, guests):
        self.guests = guests
        self.clients = [
            (tag, client)
            for path in ["/predict", "/continuous"]
            for tag, client in guests.fill(path, MANY).items()
        ]
        self.doors = [guests.street.door() for _ in range(2)]
        for door in self.doors:
            door.make_steps_until(lambda tags: len(tags) == SIZE)
            door.go()
            door.make_steps_until(lambda tags: len(tags) == SIZE)
        for tag, client in self.clients:
            assert numbers_of([client.next_output()], tag) == [0]

    def let_models_go_on(self):
        for door in self.doors:
            door.close()


@contextlib.contextmanager
def streaming(folder, idle=(), **options):
    with (
        serve(folder, apis=["predict", "continuous", *idle], **options) as server,
        guests_of(server) as guests,
    ):
        yield server, Streaming(guests)


def assert_ended_quietly(server):
    assert server.process.wait(SECONDS) == 0
    wait_until_gone(lambda: processes_of(server.process.pid))
    assert "Traceback" not in without_monitor(server.log())


def assert_cut(client):
    with pytest.raises(BROKEN_OFF) as caught:
        client.response.read()
    assert not isinstance(caught.value, TimeoutError), "it hangs"


# By default LitServe's servers are processes; on Windows they are threads of the main process.
@pytest.fixture(params=["process", "thread"])
def servers_are(request):
    return request.param


SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
signals = pytest.mark.parametrize("number", SIGNALS.values(), ids=SIGNALS)


def pairs(*pairs):
    """Let a test have both signals and both kinds of servers, and not each with each."""
    return pytest.mark.parametrize(
        ("number", "servers_are"),
        [pytest.param(SIGNALS[name], kind, id=f"{kind}-{name}") for name, kind in pairs],
    )


def wait_until_it_drains(server):
    """Wait until the server has been told to end, and says so to what probes it."""
    deadline = time.monotonic() + SECONDS
    while (health := httpx.get(f"{server.url}/health", timeout=SECONDS)).status_code == 200:
        assert time.monotonic() < deadline
    assert (health.status_code, health.text) == (503, "not ready")


@pytest.mark.rule(28)
@signals
@pytest.mark.cell("LitServe, `BatchedStreamLoop`", "drain", "yes")
@pytest.mark.cell("LitServe, `ContinuousBatchLoop`", "drain", "yes")
def test_a_client_that_is_served_when_the_server_is_terminated_is_served_to_the_end(
    tmp_path, number, servers_are
):
    with streaming(tmp_path, servers_are=servers_are) as (server, running):
        server.process.send_signal(number)
        wait_until_it_drains(server)
        for path in ("/predict", "/continuous"):
            late = running.guests.send(path, "late", 1, at_door=False)
            assert late.answer() == (503, {"detail": "the server is shutting down"})
            assert late.response.headers["retry-after"] == "1"
            assert late.response.headers["connection"] == "close"
        running.let_models_go_on()
        for tag, client in running.clients:
            assert numbers_of(client.outputs(), tag) == list(range(1, MANY))
        assert_ended_quietly(server)


@pytest.mark.rule(28)
def test_ctrl_c_at_a_terminal_which_reaches_every_process_lets_the_server_drain(
    tmp_path, servers_are
):
    with streaming(tmp_path, servers_are=servers_are) as (server, running):
        os.killpg(server.process.pid, signal.SIGINT)
        wait_until_it_drains(server)
        late = running.guests.send("/continuous", "late", 1, at_door=False)
        assert late.answer() == (503, {"detail": "the server is shutting down"})
        running.let_models_go_on()
        for tag, client in running.clients:
            assert numbers_of(client.outputs(), tag) == list(range(1, MANY))
        assert_ended_quietly(server)


CLIENTS = 6
OUTPUTS = 20


class Load:
    """Clients that each send one request after another, until the server accepts none any more."""

    def __init__(self, url, paths):
        self._address = urlsplit(url).netloc
        self.complete = 0
        self.refused = 0
        self.wrong = []
        self._threads = [
            threading.Thread(target=self._run, args=(path, f"load{number}"))
            for path in paths
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, path, tag):
        body = json.dumps({"tag": tag, "outputs": OUTPUTS})
        goes_on = True
        while goes_on:
            with contextlib.closing(
                http.client.HTTPConnection(self._address, timeout=SECONDS)
            ) as at:
                goes_on = self._ask(at, path, body)

    def _ask(self, connection, path, body):
        """Send a request, and return whether the server still accepts any."""
        try:
            connection.request("POST", path, body, {"content-type": "application/json"})
            response = connection.getresponse()
        except TimeoutError as error:
            self.wrong.append(error)
            return False
        except BROKEN_OFF:  # before any answer: the server has ended
            return False
        try:
            with response:
                text = response.read()
        except BROKEN_OFF as error:
            self.wrong.append(error)
            return False
        numbers = [json.loads(line).get("output") for line in text.splitlines()]
        if response.status == 200 and numbers == list(range(OUTPUTS)):
            self.complete += 1
        elif response.status == 503:
            self.refused += 1
        else:
            self.wrong.append((response.status, text))
        return True

    def wait_until(self, holds):
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self):
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


@pytest.mark.rule(28)
def test_a_server_under_load_drains_without_a_stream_that_is_cut(tmp_path):
    """Two workers and two server processes, in the order of arrival and in one of the loop's."""
    paths = ["/continuous", "/operated"]
    options = {"apis": [path[1:] for path in paths], "workers": 2, "servers": 2}
    with serve(tmp_path, **options) as server, guests_of(server) as guests:
        held = {path: guests.send(path, "held", 3) for path in paths}
        doors = {path: guests.street.door() for path in paths}
        for door in doors.values():
            door.make_steps_until(bool)
        load = Load(server.url, paths)
        load.wait_until(lambda: load.complete >= CLIENTS)
        server.process.terminate()
        wait_until_it_drains(server)
        before = load.refused
        load.wait_until(lambda: load.refused >= before + 5 * CLIENTS)
        for door in doors.values():
            door.close()
        load.end()
        for client in held.values():
            assert numbers_of(client.outputs(), "held") == [0, 1, 2]
        assert load.wrong == []
        assert_ended_quietly(server)


@pytest.mark.rule(28)
@pairs(("SIGTERM", "process"), ("SIGINT", "thread"))
def test_a_client_that_is_not_served_in_time_is_cut_off_and_nothing_is_left(
    tmp_path, number, servers_are
):
    with streaming(tmp_path, grace=0.5, servers_are=servers_are) as (server, running):
        server.process.send_signal(number)
        for _, client in running.clients:
            assert_cut(client)
        assert_ended_quietly(server)
        assert "6 responses" not in server.log()
        assert server.log().count("3 responses are cut off") == 2


@pytest.mark.rule(28)
@pytest.mark.parametrize("path", ["/single", "/continuous"])
def test_a_client_without_an_output_is_told_that_the_server_ends(tmp_path, path):
    with (
        serve(tmp_path, apis=[path[1:]], grace=0) as server,
        guests_of(server) as guests,
    ):
        client = guests.send(path, "a", MANY)
        guests.street.door().make_steps_until(bool)
        server.process.terminate()
        assert client.answer() == (503, {"detail": "the server is shutting down"})
        assert client.response.headers["retry-after"] == "1"
        assert_ended_quietly(server)


@pytest.mark.rule(28)
@pytest.mark.parametrize("path", ["/operated", "/operated_single"])
def test_what_is_cut_is_reported_once_whether_it_ran_or_waited(tmp_path, path):
    with (
        serve(tmp_path, apis=["operated", "operated_single"], grace=0) as server,
        guests_of(server) as guests,
    ):
        clients = [guests.send(path, "runs", MANY)]
        guests.street.door().make_steps_until(bool)  # where the worker stays until it is ended
        clients += [guests.send(path, f"waits{number}", 1) for number in range(3)]
        server.wait_until_there_wait(3, path)
        server.process.terminate()
        for client in clients:
            assert client.answer() == (503, {"detail": "the server is shutting down"})
        assert_ended_quietly(server)
        reported = Reported(server, path, ever=True)
        assert len(reported.events("submitted")) == 4
        ends = Counter((end["reason"], end["joined"]) for end in reported.events("finished"))
        assert ends == {("error", True): 1, ("error", False): 3}


@pytest.mark.rule(28)
@pytest.mark.parametrize("how", ["the server ends", "the worker is killed"])
def test_a_request_whose_end_is_on_its_way_as_it_is_cut_is_reported_once(tmp_path, how):
    """The worker has reported the end of one request, and is held up before it sends it."""
    with (
        serve(tmp_path, apis=["tailed"], grace=0, restart=True) as server,
        guests_of(server) as guests,
    ):
        first = guests.send("/tailed", "a", MANY, headers={"x-tenant": "a"})
        door = guests.street.door()
        door.make_steps_until_it_serves("a")
        second = guests.send("/tailed", "b", MANY, headers={"x-tenant": "b"}, tail=True)
        door.go()
        door.make_steps_until_it_serves("a", "b")
        door.go()
        door.make_steps_until_it_serves("a", "b")  # now both have an output
        assert first.next_output()["tag"] == "a"
        assert second.next_output()["tag"] == "b"
        door.finish()
        assert door.next_line() == "tail b"
        reported = Reported(server, "/tailed", ever=True)
        reported.wait_for(1, "finished")
        if how == "the server ends":
            server.process.terminate()
        else:
            [worker] = {event["pid"] for event in reported.events("stepped")}
            os.kill(worker, signal.SIGKILL)
        for client in (first, second):
            assert_cut(client)
        if how == "the server ends":
            assert_ended_quietly(server)
        ends = {
            (end["tenant"], end["reason"], end["joined"])
            for end in reported.wait_for(2, "finished")
        }
        assert ends == {("a", "eos", True), ("b", "error", True)}


@pytest.mark.rule(28)
@pairs(("SIGINT", "process"), ("SIGTERM", "thread"))
def test_a_second_signal_ends_everything_at_once(tmp_path, number, servers_are):
    with streaming(tmp_path, servers_are=servers_are) as (server, running):
        server.process.send_signal(number)
        wait_until_it_drains(server)
        server.process.send_signal(number)
        assert server.process.wait(SECONDS) == 128 + number
        for _, client in running.clients:
            assert_cut(client)
        wait_until_gone(lambda: processes_of(server.process.pid))


ENDLESS = 10**9


def steps_until(door, line):
    """Let the model make steps until it reports that; a worker learns of an end at any time."""
    deadline = time.monotonic() + SECONDS
    while (said := door.next_line()) != line:
        assert said.startswith("step"), said
        assert time.monotonic() < deadline
        door.go()


@pytest.mark.rule(13)
@pytest.mark.parametrize(
    ("path", "dropped"),
    [("/single", "closed"), ("/single_encode", "closed"), ("/continuous", "remove a 0")],
)
def test_a_server_process_that_is_killed_leaves_no_slot_occupied(tmp_path, path, dropped):
    with serve(tmp_path, apis=[path[1:]]) as server, guests_of(server) as guests:
        guests.send(path, "a", ENDLESS)
        door = guests.street.door()
        door.make_steps_until(bool)
        os.kill(server.view()["pid"], signal.SIGKILL)
        door.go()
        steps_until(door, dropped)


@pytest.mark.rule(13)
def test_a_request_that_waited_when_its_server_process_was_killed_is_not_served(tmp_path):
    with serve(tmp_path, apis=["single"], servers=1) as server, guests_of(server) as guests:
        guests.send("/single", "a", ENDLESS)
        door = guests.street.door()
        door.make_steps_until(bool)
        guests.send("/single", "b", 1)
        server.wait_until_there_wait(1, "/single")
        os.kill(server.view()["pid"], signal.SIGKILL)
        door.go()
        steps_until(door, "closed")
        server.process.terminate()
        server.process.wait(SECONDS)
        assert not select.select([guests.street.listener], [], [], 0)[0], "b was served"


def wait_until_one_is_answered(guests, path):
    deadline = time.monotonic() + SECONDS
    while not guests.send(path, "probe", 1, at_door=False).has_answer(1):
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("outputs", "restart"),
    [(0, True), (1, False)],
    ids=["before the first output, restarted", "in mid-stream"],
)
@pytest.mark.parametrize("path", ["/single", "/predict", "/continuous"])
def test_the_clients_of_a_worker_that_is_killed_do_not_wait(tmp_path, path, outputs, restart):
    with (
        serve(tmp_path, apis=[path[1:]], restart=restart) as server,
        guests_of(server) as guests,
    ):
        tags = "abc" if path == "/predict" else "a"
        clients = [guests.send(path, tag, MANY) for tag in tags]
        door = guests.street.door()
        door.make_steps_until(lambda at_step: len(at_step) == len(tags))
        for _ in range(outputs):
            door.go()
            for client in clients:
                client.next_output()
        [worker] = workers_of(server.process.pid)
        os.kill(worker, signal.SIGKILL)
        for client in clients:
            if outputs:
                assert_cut(client)
            else:
                assert client.answer() == (500, {"detail": "Internal server error"})
        assert f"worker {worker} has ended, and" in server.log()
        if restart:
            if path == "/continuous":  # what waits for requests takes one more, and is dead
                wait_until_one_is_answered(guests, path)
            clients = [guests.send(path, tag, 1, at_door=False) for tag in tags]
            for tag, client in zip(tags, clients, strict=True):
                assert numbers_of(client.outputs(), tag) == [0]


@pytest.mark.rule(28)
def test_workers_that_ignore_ctrl_c_end_as_well_when_the_main_process_is_killed(tmp_path):
    with serve(tmp_path, apis=["single", "continuous"], ignores_sigint=True) as server:
        assert len(workers_of(server.process.pid)) == 2
        server.process.kill()
        wait_until_gone(lambda: workers_of(server.process.pid))


@contextlib.contextmanager
def loading(folder, **options):
    """A server whose workers wait in their setup; nothing can be asked of it yet."""
    with contextlib.ExitStack() as stack:
        street = Street(stack)
        options |= {"port": free_port(), "setup": street.port}
        log_path = folder / "log"
        log = stack.enter_context(log_path.open("ab"))
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(API), json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        stack.callback(process.wait)
        stack.callback(kill_session, process.pid)
        assert street.door().next_line() == "setup"
        yield Server(f"http://127.0.0.1:{options['port']}", log_path, workers=1, process=process)


def kill_session(session):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


@pytest.mark.rule(28)
def test_a_server_that_is_terminated_while_it_loads_its_model_leaves_nothing(tmp_path):
    with loading(tmp_path, apis=["predict"]) as server:
        server.process.terminate()
        server.process.wait(SECONDS)
        wait_until_gone(lambda: processes_of(server.process.pid))
        assert "Traceback" not in without_monitor(server.log())


@pytest.mark.rule(28)
def test_workers_end_busy_or_idle_when_the_main_process_is_killed(tmp_path):
    with streaming(tmp_path, idle=["encode", "narrow"]) as (server, running):
        assert len(workers_of(server.process.pid)) == 4
        server.process.kill()
        running.let_models_go_on()
        wait_until_gone(lambda: workers_of(server.process.pid))


@pytest.mark.rule(28)
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="all but the main process go on")
def test_no_worker_is_left_of_a_stock_server_that_was_terminated(tmp_path):
    with serve(tmp_path, apis=["stock"]) as server:
        server.process.terminate()
        server.process.wait(SECONDS)
        with contextlib.suppress(httpx.TransportError):
            assert httpx.get(f"{server.url}/health", timeout=SECONDS).status_code != 200
        wait_until_gone(lambda: workers_of(server.process.pid))


# ---- idleness


# With a batch_timeout of 0, which is LitServe's default, its own loop never sleeps.
@pytest.mark.rule(29)
@pytest.mark.parametrize(
    ("kind"),
    [
        "prompt",
        "continuous",
        pytest.param("stock_prompt", marks=pytest.mark.xfail(strict=True, raises=AssertionError)),
    ],
)
def test_an_idle_worker_sleeps(stepwise_servers, tmp_path, kind):
    with contextlib.ExitStack() as stack:
        if kind == "stock_prompt":  # no other request shall be in the batch
            server = stack.enter_context(serve(tmp_path, apis=[kind]))
        else:
            server = stepwise_servers("one worker")
        guests = stack.enter_context(guests_of(server))
        client = guests.send(f"/{kind}", "a", 1, at_door=False)
        [output] = client.outputs()
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=SECONDS))
        begin, before = time.monotonic(), switches_of(output["pid"])
        for _ in range(100):
            assert client.get("/health").status_code == 200
        switches, seconds = switches_of(output["pid"]) - before, time.monotonic() - begin
    # It looks up once a second, which takes a few; not to sleep takes some ten thousand a second.
    assert switches < 50 * (seconds + 1)
