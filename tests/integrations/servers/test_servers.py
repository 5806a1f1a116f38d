"""The programs of examples/servers, run as their texts say, and the table of what works.

Each cell of the table on the page of servers is one test here: what a check returns is what the
cell says, `no` as well as `yes`. The model waits for the test at each step.
"""

import contextlib
import importlib.util
import re
import time

import httpx
import list_servers
import pytest

from support.server_clients import HeadReply
from support.server_recipes import CHECKS, CLIENTS, EXAMPLES, MODEL, STAND_IN, serving
from support.serving import SECONDS, Gate

ROWS = {row["name"]: row for row in list_servers.servers()}
RUN = {name: row for name, row in ROWS.items() if "recipe" in row}
RECIPES = {row["recipe"]: name for name, row in RUN.items()}
CELLS = [(name, column) for name in RUN for column in list_servers.COLUMNS]


def skip_unless_installed(row):
    needs = [row["program"], *row.get("needs", [])]
    missing = [it for it in needs if it != "python" and importlib.util.find_spec(it) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")


@contextlib.contextmanager
def started(name, folder, model=STAND_IN, **changes):
    row = RUN[name] | changes
    skip_unless_installed(row)
    client = CLIENTS[row["client"]]
    how = {name: row.get(name, False) for name in ("apart", "remote")}
    with serving(row["recipe"], row["program"], client, folder, model, **how) as server:
        yield server


class Servers:
    """Servers of the table that run, each from its first check to its last, `drain`."""

    def __init__(self, make_folder):
        self._make_folder = make_folder
        self._running = {}

    @contextlib.contextmanager
    def lent(self, name, *, last):
        """Give a server of the table; behind the last check it is ended."""
        if name not in self._running:
            block = started(name, self._make_folder("server"))
            self._running[name] = (block, block.__enter__())
        try:
            yield self._running[name][1]
        finally:
            if last:
                self._end(name)

    def _end(self, name):
        block, _ = self._running.pop(name)
        block.__exit__(None, None, None)

    def end_all(self):
        """End each server that still runs, even if another one cannot be ended."""
        with contextlib.ExitStack() as stack:
            for name in self._running:
                stack.push(self._running[name][0])


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    running = Servers(tmp_path_factory.mktemp)
    yield running
    running.end_all()


@pytest.mark.rule(7, 9, 13)
@pytest.mark.parametrize(("name", "column"), CELLS)
def test_a_cell_of_the_table_says_what_the_server_does(servers, name, column):
    expected = RUN[name]["works"][column]
    with servers.lent(name, last=column == "drain") as server:
        assert CHECKS[column](server, expected) == expected


@pytest.mark.rule(7, 9, 13)
@pytest.mark.parametrize("recipe", ["flask_threads", "grpc_aio", "fastapi_websocket"])
def test_all_that_a_server_does_stays_where_the_model_moves_to_a_process_of_its_own(
    tmp_path, recipe
):
    name = next(name for name, row in RUN.items() if row["recipe"] == recipe)
    works = RUN[name]["works"]
    with started(name, tmp_path, remote=True) as server:
        found = {column: CHECKS[column](server, works[column]) for column in CHECKS}
    assert found == works


@pytest.mark.rule(13)
@pytest.mark.parametrize(
    "recipe", [recipe for recipe, name in RECIPES.items() if RUN[name]["client"] == "http"]
)
def test_a_request_for_the_head_alone_leaves_no_stream_behind(tmp_path, recipe):
    """A framework that takes HEAD where GET is allowed sends no body: the stream has to end."""
    with started(RECIPES[recipe], tmp_path) as server, Gate() as gate:
        assert server.ask_for("no.word").wait() == "422"  # behind which there are figures
        reply = HeadReply(server.port, f"{gate.port}.100.10")
        while not reply.received and not server.figures()["live"]:
            time.sleep(0.01)
        if server.figures()["live"]:  # it waits for the first output
            gate.let_through(1)
        reply.wait_for(1)
        assert server.wait_until(live=0)
        reply.leave()


OURS = [
    name
    for name, row in RUN.items()
    if re.search("TextResponse|send_stream", (EXAMPLES / row["recipe"] / "server.py").read_text())
]


@pytest.mark.rule(5)
@pytest.mark.parametrize("name", OURS)
def test_a_cut_that_the_server_cannot_help_leaves_no_traceback_in_its_log(tmp_path, name):
    with started(name, tmp_path) as server:
        with Gate() as gate:
            [reply] = server.asked(gate, -1)
            gate.go_on()
            reply.wait_for(1)
            gate.let_through(2)
            assert reply.wait() in {"cut", "close code 1008"}
            assert gate.next_line() == "closed"
        server.tell_to_stop()
        server.wait_for_its_end()
        assert "Traceback" not in server.log()


PAYLOADS = [b"", b"{", b"null", b"[]", b'"word"', b"{}", b'{"word": 5}', b'{"word": null}']


@pytest.mark.parametrize(
    "name", [name for name, row in RUN.items() if row["client"] in {"post", "kserve"}]
)
def test_a_payload_without_a_word_is_the_fault_of_the_client(tmp_path, name):
    with started(name, tmp_path) as server:
        url = f"http://127.0.0.1:{server.port}{CLIENTS[RUN[name]['client']].path}"
        headers = {"content-type": "application/json"}
        statuses = [
            httpx.post(url, content=payload, headers=headers, timeout=SECONDS).status_code
            for payload in PAYLOADS
        ]
    assert set(statuses) <= {400, 422}, statuses


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_serves_the_model_of_the_examples(tmp_path, recipe):
    with started(RECIPES[recipe], tmp_path, MODEL) as server:
        short, long = server.ask_for("it"), server.ask_for("goes")
        assert (short.wait(), long.wait()) == ("whole", "whole")
        assert (short.received, long.received) == (b"it", b"goes")


def test_each_recipe_has_a_row_and_a_list_of_what_it_needs():
    recipes = {path.parent.name for path in EXAMPLES.glob("*/server.py")}
    assert recipes == {row["recipe"] for row in RUN.values()}
    for recipe in recipes:
        assert (EXAMPLES / recipe / "requirements.txt").read_text().startswith("batchstream")
        assert importlib.util.find_spec(recipe) is None, "it would be imported in its place"


def test_the_page_has_the_table():
    page = list_servers.PAGE.read_text()
    assert [it["name"] for it in list_servers.BLOCK.finditer(page)] == ["what works", "tests"]
    assert list_servers.with_table(page) == page


@pytest.mark.parametrize("name", [name for name in ROWS if name not in RUN])
def test_a_cell_of_a_server_without_a_recipe_says_what_the_mark_of_its_test_says(name):
    words = {column: [] for column in list_servers.COLUMNS}
    for cell in list_servers.shown():
        if cell.server == name:
            words[cell.column].append(cell.word)
    found = {column: " or ".join(sorted({*of})) for column, of in words.items()}
    works = ROWS[name]["works"]
    tried = {
        column: "" if word == list_servers.NOT_TRIED else word for column, word in works.items()
    }
    assert found == tried


def test_each_mark_names_a_server_without_a_recipe():
    """The checks show the cells of all others."""
    assert {cell.server for cell in list_servers.shown()} == ROWS.keys() - RUN.keys()


def test_a_mark_is_read_from_the_source(tmp_path):
    (tmp_path / "tests").mkdir()
    code = """
@pytest.mark.rule(1)
@pytest.mark.cell("one", "ends", "yes")
@pytest.mark.cell("two", "error", "cut")
def test_it(): ...


@pytest.mark.cell("two", "drain", "no")
async def test_drain(): ...
"""
    (tmp_path / "tests" / "test_one.py").write_text(code)
    assert list_servers.shown(tmp_path) == [
        ("one", "ends", "yes", "tests/test_one.py::test_it"),
        ("two", "error", "cut", "tests/test_one.py::test_it"),
        ("two", "drain", "no", "tests/test_one.py::test_drain"),
    ]
