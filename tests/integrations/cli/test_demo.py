"""The demonstration: what it counts, and a small run with real servers."""

import difflib
import os
import queue
import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from batchstream._cli import errors
from batchstream._cli.commands import main
from batchstream._cli.demo import keeper, servers, show
from batchstream._cli.demo.board import Board
from batchstream._cli.demo.clients import END, FAILED, LEFT, WORD, Event, let_ask
from batchstream._cli.demo.script import Client, script
from batchstream._cli.demo.svg import draw
from batchstream._cli.errors import CommandError
from support.serving import SECONDS, marked

# ---- what the clients do


def test_the_clients_of_a_seed_are_always_the_same():
    assert script(24, seed=1) == script(24, seed=1)
    assert script(24, seed=1) != script(24, seed=2)


@pytest.mark.parametrize("count", [4, 8, 24, 99])
def test_a_quarter_of_the_clients_hang_up_in_the_first_half_of_their_replies(count):
    clients = script(count, seed=3)
    leaving = [client for client in clients if client.leaves_after is not None]
    assert len(leaving) == count // 4
    for client in leaving:
        assert 1 <= client.takes <= client.length / 2


def test_few_clients_have_no_quarter():
    with pytest.raises(CommandError, match="pass --clients 4 or more"):
        script(3, seed=1)


# ---- the two programs


def test_the_programs_differ_in_one_line():
    theirs, ours = servers.programs().values()
    assert compile(theirs, "theirs", "exec")
    assert compile(ours, "ours", "exec")
    changed = [
        line for line in difflib.ndiff(theirs.splitlines(), ours.splitlines()) if line[0] in "+-"
    ]
    assert [line[0] for line in changed] == ["-", "+"]
    assert [line.replace("- ", "-").replace("+ ", "+") for line in changed] == servers.difference()
    assert servers.difference() == [
        '-LOOP = "auto"  # LitServe\'s own',
        '+LOOP = BatchedStreamLoop(eos_in="predict", is_eos=is_padding)',
    ]


def test_the_documentation_shows_the_line_that_differs():
    page = (Path(__file__).parents[3] / "docs" / "commands.md").read_text()
    assert re.findall(r"```diff\n(.*?)\n```", page, re.DOTALL) == ["\n".join(servers.difference())]


# ---- what is counted

SHORT, LONG, LEAVING = Client(0, 2), Client(1, 4), Client(2, 3, leaves_after=1)


def board_of(*events, diary=""):
    board = Board("a loop", [SHORT, LONG, LEAVING])
    board.read(diary)
    for client, time_, kind in events:
        board.see(Event("a loop", client, time_, kind))
    return board


EVENTS = [
    *[(client, 11.0, WORD) for client in range(3)],
    (2, 11.5, LEFT),
    *[(client, 12.0, WORD) for client in range(2)],
    (1, 13.0, WORD),
    (1, 14.0, WORD),
    (0, 14.5, END),
    (1, 14.5, END),
]
# The model works for the client that has left in two steps that begin after that.
DIARY = "10.0 0 1 2\n11.0 0 1 2\n12.0 1 2\n13.0 1 2\n14.0\n"


def test_the_counters_count_what_the_diary_and_the_clients_say():
    totals = board_of(*EVENTS, diary=DIARY).totals(now=99.0)
    assert totals.steps == 4
    assert (totals.open_mean, totals.open_longest) == (1.5, 2.5)  # of 2.5 and 0.5
    assert totals.wasted == 2


def test_a_response_that_is_open_counts_up_to_now():
    totals = board_of(*EVENTS[:6], diary=DIARY).totals(now=13.0)
    assert (totals.open_mean, totals.open_longest) == (1.0, 1.0)  # of the short one alone


def test_the_diary_may_come_in_any_pieces():
    board = Board("a loop", [SHORT, LONG, LEAVING])
    for letter in DIARY:
        board.read(letter)
    for client, time_, kind in EVENTS:
        board.see(Event("a loop", client, time_, kind))
    assert board.totals(0) == board_of(*EVENTS, diary=DIARY).totals(0)


def test_a_run_is_over_when_no_client_is_there_and_the_model_works_for_none():
    assert board_of(*EVENTS, diary=DIARY).is_over()
    assert not board_of(*EVENTS, diary=DIARY.removesuffix("14.0\n")).is_over()
    assert not board_of(*EVENTS[:-1], diary=DIARY).is_over()
    assert not board_of(*EVENTS).is_over()


# ---- how it is shown


def test_a_line_says_how_a_client_ended_or_left():
    board = board_of(*EVENTS, diary=DIARY)
    events = [Event("a loop", *event) for event in EVENTS]
    found = [show.line(event, 10.0, board.seats[event.client]) for event in events]
    assert [line for line in found if line] == [
        "  1.50 s  a loop              client  2  hung up after 1 of its 3 words",
        "  4.50 s  a loop              client  0  ended 2.50 s after the last of its 2 words",
        "  4.50 s  a loop              client  1  ended 0.50 s after the last of its 4 words",
    ]


def drawn(board, height=40):
    console = Console(width=80, height=height, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(show.picture([board, board], 14.0, 1.0, 80, height))
        return console.export_text()


def test_each_client_has_a_bar_that_ends_or_goes_on():
    text = drawn(board_of(*EVENTS[:-2], diary=DIARY))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert rows["0"] == ["━━░░"] * 2  # two words, and open for two steps
    assert rows["1"] == ["━━━━"] * 2
    assert rows["2"] == ["━✗▒▒"] * 2  # two steps for a client that has gone
    rows = drawn(board_of(*EVENTS, diary=DIARY)).splitlines()
    assert any(re.search(r"0 +━━░░✓", row) for row in rows)
    assert any(row.split() == ["model", "steps", "made", "4", "4"] for row in rows)


def test_a_low_terminal_leaves_clients_out_and_says_so():
    text = drawn(board_of(*EVENTS, diary=DIARY), height=12)
    assert "and 1 more, for which this terminal is too low" in text


def test_the_picture_for_a_page_is_whole_and_fetches_nothing():
    board = board_of(*EVENTS, diary=DIARY)
    picture = draw([board, board], servers.difference(), 10.0)
    words = ["".join(element.itertext()) for element in ET.fromstring(picture).iter()]  # noqa: S314
    assert "model steps made" in words
    assert "1.50 s, at most 2.50 s" in words
    assert servers.difference()[1] in words
    assert re.findall(r"(?:https?:)?//[^\"]*", picture) == ["http://www.w3.org/2000/svg"]
    assert "url(" not in picture.replace("url(#", "")


def test_the_picture_in_the_documentation_is_one_of_these():
    folder = Path(__file__).parents[3] / "docs" / "_static"
    picture = (folder / "demo.svg").read_text()
    board = board_of(*EVENTS, diary=DIARY)
    [style] = re.findall(r"<style>(.*?)animation", picture, re.DOTALL)
    assert style in draw([board, board], servers.difference(), 10.0)
    words = ["".join(element.itertext()) for element in ET.fromstring(picture).iter()]  # noqa: S314
    assert set(servers.difference()) <= set(words)


# ---- clients


class Peer:
    """A server for one connection that answers with these bytes."""

    def __init__(self, answer):
        self.listener = servers.socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(SECONDS)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run, args=(answer,))
        self.thread.start()

    def run(self, answer):
        connection, _ = self.listener.accept()
        with self.listener, connection:
            connection.settimeout(SECONDS)
            connection.recv(65536)
            connection.sendall(answer)
            connection.shutdown(servers.socket.SHUT_WR)
            while connection.recv(65536):
                pass


def chunked(*words):
    return b"".join(b"%x\r\n%s\r\n" % (len(word), word) for word in words)


BEGIN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "all words": (BEGIN + chunked(b"a\n", b"b\n", b""), None, [WORD, WORD, END]),
    "two words in a chunk": (BEGIN + chunked(b"a\nb\n", b""), None, [WORD, WORD, END]),
    "a client that leaves": (BEGIN + chunked(b"a\n", b"b\n", b""), 1, [WORD, LEFT]),
    "one that leaves within a chunk": (BEGIN + chunked(b"a\nb\n", b""), 1, [WORD, LEFT]),
    "a word too few": (BEGIN + chunked(b"a\n", b""), None, [WORD, FAILED]),
    "cut": (BEGIN + chunked(b"a\n", b"b\n"), None, [WORD, WORD, FAILED]),
    "another status": (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", None, [FAILED]),
    "no answer": (b"", None, [FAILED]),
}


@pytest.mark.parametrize(("answer", "leaves", "kinds"), ANSWERS.values(), ids=ANSWERS)
def test_a_client_tells_what_it_sees(answer, leaves, kinds):
    peer = Peer(answer)
    events = queue.SimpleQueue()
    let_ask("a", peer.port, [Client(0, 2, leaves)], start=0.0, between=0.0, events=events)
    assert [events.get(timeout=SECONDS).kind for _ in kinds] == kinds
    peer.thread.join(SECONDS)
    assert not peer.thread.is_alive()


# ---- servers


def test_a_server_that_does_not_start_is_shown_with_what_it_printed(monkeypatch):
    broken = {servers.THEIRS: "raise SystemExit('no model today')", servers.OURS: "import time"}
    monkeypatch.setattr(servers, "programs", lambda: broken)
    with pytest.raises(CommandError, match=r"exit status is 1\. It printed:\nno model today"):  # noqa: SIM117
        with servers.running(4, 0.1):
            pass


WAITS = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.mark.parametrize("done", [False, True])
def test_the_keeper_ends_what_is_left_when_the_demonstration_was_killed(done):
    with subprocess.Popen([sys.executable, "-c", WAITS], start_new_session=True) as server:  # noqa: S603
        try:
            lines = f"{server.pid}\n" + "done\n" * done
            subprocess.run(  # noqa: S603
                [sys.executable, keeper.__file__],
                input=lines,
                text=True,
                timeout=SECONDS,
                check=True,
            )
            if done:
                assert server.poll() is None
            else:
                assert server.wait(SECONDS) == -9
        finally:
            server.kill()


def test_without_litserve_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(errors, "find_spec", lambda _: None)
    assert main(["demo"]) == 1
    error = capsys.readouterr().err
    assert "the demonstration needs LitServe, which is not installed" in error
    assert 'pip install ".[cli,litserve]"' in error


def test_a_run_ends_every_client_makes_fewer_steps_and_leaves_nothing_running(tmp_path):
    mark = uuid.uuid4().hex
    done = subprocess.run(  # noqa: S603
        [
            *(sys.executable, "-m", "batchstream", "demo", "--plain"),
            *(
                "--clients",
                "8",
                "--slots",
                "8",
                "--step",
                "0.02",
                "--seed",
                "3",
                "--svg",
                "demo.svg",
            ),
        ],
        env=os.environ | {"MARK": mark},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in servers.difference():
        assert line in done.stdout.splitlines()
    clients = script(8, seed=3)
    for name in servers.programs():
        lines = [line for line in done.stdout.splitlines() if f" s  {name}" in line]
        ended = {int(re.search(r"client +(\d+)", line)[1]): line for line in lines}
        assert sorted(ended) == list(range(8))  # no client is left open
        for client in clients:
            kind = "hung up" if client.leaves_after else "ended"
            assert f"  {kind} " in ended[client.number]
    figures = dict(
        re.findall(r"^(\w[\w ]+?)  +(.*)$", done.stdout.partition("\n\n")[2], re.MULTILINE)
    )
    theirs, ours = map(int, figures["model steps made"].split())
    assert theirs >= max(client.length for client in clients)
    assert ours < theirs
    theirs, ours = map(int, figures["steps for clients that have gone"].split())
    assert ours < theirs
    assert ET.parse(tmp_path / "demo.svg")  # noqa: S314
    deadline = time.monotonic() + SECONDS
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel is clearing them away
    assert left == []
