"""Which processes may connect, and which file a server may replace; peers that are none."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import struct
import threading
from pathlib import Path

import pytest

import batchstream
from batchstream import ContinuousBatcher, FinishReason, StreamEnd
from batchstream._remote import session, sockets
from batchstream._remote.payloads import Terms, pickled, pickled_end, pickled_outputs, submission
from batchstream._remote.protocol import (
    DEFAULT_MAX_FRAME,
    PROTOCOL,
    client_greeting,
    greeting,
    server_greeting,
)
from batchstream.remote import ConnectionLostError, ProtocolError, connect, serve, serving
from support import knobs
from support.engines import Model
from support.sources import TIMEOUT, needs_fork
from support.waiting_engine import Waiting, taken, until

HELLO = client_greeting(4, DEFAULT_MAX_FRAME)
OK = server_greeting(DEFAULT_MAX_FRAME)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.sock")


@pytest.fixture
def batcher():
    with ContinuousBatcher(Model, max_batch_size=4) as batcher:
        yield batcher


def permissions(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


# ---- the file


@pytest.mark.parametrize(("options", "mode"), [({}, 0o600), ({"mode": 0o660}, 0o660)])
def test_the_file_has_its_permissions_and_is_removed_at_the_end(path, batcher, options, mode):
    with serving(batcher, path, **options):
        assert permissions(path) == mode
        assert os.listdir(Path(path).parent) == ["model.sock"]  # noqa: PTH208 - the names
    assert not Path(path).exists()


def test_no_process_connects_before_the_file_has_its_permissions(path, batcher, monkeypatch):
    listened = []

    class Socket(socket.socket):
        def listen(self, *arguments):
            if not Path(path).exists():  # asyncio calls it once more
                listened.append(permissions(self.getsockname()))
            super().listen(*arguments)

    monkeypatch.setattr(sockets.socket, "socket", Socket)
    with serving(batcher, path):
        assert listened == [0o600]


def test_as_many_connections_may_wait_as_the_system_lets(path, batcher, monkeypatch):
    backlogs = []

    class Socket(socket.socket):
        def listen(self, *arguments):
            backlogs.append(arguments)
            super().listen(*arguments)

    monkeypatch.setattr(sockets.socket, "socket", Socket)
    with serving(batcher, path):
        assert set(backlogs) == {(sockets.BACKLOG,)}  # asyncio calls it once more


def test_a_client_says_that_too_many_connections_wait(path):
    with socket.socket(socket.AF_UNIX) as full, contextlib.ExitStack() as stack:
        full.bind(path)
        full.listen(0)
        while True:
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            if filler.connect_ex(path):
                break
        with (
            connect(path) as other,
            pytest.raises(ConnectionLostError, match="too many connections wait there"),
        ):
            list(other.stream("a"))


def test_a_socket_that_is_left_over_is_replaced(path, batcher):
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.listen()
    left.close()
    assert Path(path).exists()
    with serving(batcher, path), connect(path) as other:
        assert list(other.stream("ab")) == ["a", "b"]


def test_a_server_that_lives_is_not_displaced(path, batcher):
    with serving(batcher, path), connect(path) as other:
        with pytest.raises(OSError, match="another server listens"), serving(batcher, path):
            pass
        assert list(other.stream("ab")) == ["a", "b"]
        assert os.listdir(Path(path).parent) == ["model.sock"]  # noqa: PTH208


def test_a_path_may_be_as_long_as_it_is_said_to_be(tmp_path, batcher):
    name = "x" * (sockets._LONGEST_PATH - len(os.fsencode(tmp_path / "")) - 1)
    path = str(tmp_path / name)
    assert len(path) == sockets._LONGEST_PATH
    with serving(batcher, path), connect(path) as other:
        assert list(other.stream("ab")) == ["a", "b"]
    for end in (connect, lambda address: serving(batcher, address)):
        with pytest.raises(ValueError, match=f"at most {sockets._LONGEST_PATH} bytes"):
            end(path + "x")


def test_a_server_that_starts_takes_the_place_of_no_other_at_the_name_that_it_has_first(
    path, batcher
):
    at_first = Path(f"{path}~")
    with serving(batcher, at_first), connect(at_first) as other:
        with pytest.raises(OSError, match=r"another server listens.*~"), serving(batcher, path):
            pass
        assert list(other.stream("ab")) == ["a", "b"]
    at_first.touch()
    with pytest.raises(FileExistsError, match=r"no socket.*~"), serving(batcher, path):
        pass
    at_first.unlink()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(at_first))
    with serving(batcher, path):
        assert not at_first.exists()


def test_of_two_servers_that_start_at_once_one_listens(path, batcher):
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    refused = []
    barrier = threading.Barrier(4)
    done = threading.Barrier(4)

    def begin():
        barrier.wait(TIMEOUT)
        try:
            with serving(batcher, path):
                done.wait(TIMEOUT)
        except FileExistsError:
            raise
        except OSError as error:
            refused.append(error)
            done.wait(TIMEOUT)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(refused) == 3


@needs_fork
def test_a_child_that_is_forked_as_a_server_starts_does_not_keep_the_folder_locked(path):
    import fcntl  # noqa: PLC0415 - there is none on systems without Unix sockets

    reading, writing = os.pipe()
    with sockets._folder_locked(path):
        child = os.fork()
        if child == 0:  # it lives until the pipe ends
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(folder)
        os.close(reading)
        os.close(writing)
        os.waitpid(child, 0)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_stays(path, batcher, kind):
    {
        "file": Path(path).touch,
        "folder": Path(path).mkdir,
        "link": lambda: Path(path).symlink_to("elsewhere"),
    }[kind]()
    with pytest.raises(FileExistsError, match="no socket"), serving(batcher, path):
        pass
    assert os.path.lexists(path)


def test_a_server_leaves_the_file_of_another_alone(path, batcher):
    with serving(batcher, path):
        Path(path).unlink()
        Path(path).touch()
    assert Path(path).is_file()


def test_a_server_can_be_entered_once(path, batcher):
    server = serving(batcher, path)
    with server, pytest.raises(RuntimeError, match="serves already"), server:
        pass


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        (5, TypeError, "path of a socket"),
        (("127.0.0.1", 80), TypeError, "path of a socket"),
        (b"model.sock", TypeError, "path of a socket"),
        ("", ValueError, "path of a socket"),
        ("\0abstract", ValueError, "whose file has permissions"),
        ("/tmp/" + "x" * 100, ValueError, "at most 102 bytes"),  # noqa: S108
        ("tcp://127.0.0.1:80", ValueError, "no URL, .*: there is no form for TCP"),
        (Path("tcp://127.0.0.1:80"), ValueError, "no URL"),
        ("unix:///run/app/model.sock", ValueError, "a socket alone, such as '/run/app/model.sock'"),
    ],
)
def test_an_address_that_cannot_be_is_refused(batcher, address, error, text):
    with pytest.raises(error, match=text):
        connect(address)
    with pytest.raises(error, match=text):
        serving(batcher, address)


def test_an_address_is_a_path_of_any_kind_and_stays_where_it_is(tmp_path, batcher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = connect("model.sock")
    server = serving(batcher, Path("model.sock"))
    monkeypatch.chdir("/")
    with server, other:
        assert list(other.stream("a")) == ["a"]
    assert not (tmp_path / "model.sock").exists()


@pytest.mark.parametrize("mode", ["600", -1, 0o1600, 1.5, None])
def test_permissions_that_are_none_are_refused(path, batcher, mode):
    with pytest.raises(ValueError, match="mode takes the permissions"):
        serving(batcher, path, mode=mode)


def test_what_is_no_batcher_is_not_served(path):
    with pytest.raises(TypeError, match="a batcher is served"):
        serving(Model, path)


def test_serve_is_for_the_main_thread(path, batcher):
    found = []

    def run():
        try:
            serve(batcher, path)
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(TIMEOUT)
    assert "call it there, or use `with serving(...)`" in found[0]


# ---- users


@pytest.fixture
def peer_users(monkeypatch):
    """Let the other end of each connection run as a user."""
    users = {"server": os.geteuid(), "client": os.geteuid()}
    monkeypatch.setattr(sockets, "peer_of", lambda _: (77, users["server"]))
    monkeypatch.setattr(session, "peer_of", lambda _: (88, users["client"]))
    return users


def test_a_client_of_another_user_is_refused_at_both_ends(path, batcher, peer_users, caplog):
    peer_users["client"] = 4711
    with (
        serving(batcher, path),
        connect(path) as other,
        pytest.raises(ConnectionLostError, match=r"process 88 runs as user 4711"),
    ):
        list(other.stream("a"))
    assert "process 88 was ended: process 88 runs as user 4711" in caplog.text
    assert batcher.statistics().opened == 0


def test_a_client_does_not_talk_to_a_server_of_another_user(path, batcher, peer_users):
    peer_users["server"] = 4711
    with (
        serving(batcher, path),
        connect(path) as other,
        pytest.raises(ConnectionLostError, match=r"process 77 runs as user 4711"),
    ):
        list(other.stream("a"))


def test_users_that_are_trusted_are_served_and_so_is_root(path, batcher, peer_users):
    peer_users["client"], peer_users["server"] = 4711, 4712
    with serving(batcher, path, trusted_users=[4711]), connect(path, trusted_users=[4712]) as other:
        assert list(other.stream("a")) == ["a"]
    peer_users["client"] = peer_users["server"] = 0
    with serving(batcher, path), connect(path) as other:
        assert list(other.stream("a")) == ["a"]


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system does not say it")
def test_the_system_says_which_process_is_at_the_other_end():
    one, other = socket.socketpair()
    with one, other:
        assert sockets.peer_of(one) == (os.getpid(), os.geteuid())


def test_where_the_system_does_not_say_it_the_permissions_count_alone(path, batcher, monkeypatch):
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    with serving(batcher, path), connect(path) as other:
        assert list(other.stream("a")) == ["a"]


# ---- peers that are none, and of other versions


def talk(path, *pieces):
    """Send pieces to a server, and return all that it answers until it ends the connection."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(path)
        for piece in pieces:
            client.sendall(piece)
        answer = b""
        while data := client.recv(4096):
            answer += data
    return answer.decode()


def frame(*records):
    body = b"".join(struct.pack("!BQI", *head, len(rest)) + rest for *head, rest in records)
    return struct.pack("!I", len(body)) + body


WRONG = {
    "no greeting": ([b"GET / HTTP/1.1\r\n\r\n"], "is no batchstream.remote"),
    "no end": ([b"x" * 2000], "is no batchstream.remote"),
    "another protocol": ([b"batchstream-remote 99 0.1 window=4\n"], "the versions differ"),
    "version 1": (
        [f"batchstream-remote 1 {batchstream.__version__} window=4 max_frame=4096\n".encode()],
        "with protocol 1,",
    ),
    "no window": ([HELLO.replace(b"window=4", b"window=none")], "says its window"),
    "too large": ([HELLO, b"\xff\xff\xff\xff"], "more than 67108864 (max_frame)"),
    "no record": ([HELLO, struct.pack("!I", 3) + b"abc"], "that are no record"),
    "another kind": ([HELLO, frame((11, 1, b""))], "of the kind 11"),
    "twice": ([HELLO, frame((1, 1, b""), (1, 1, b""))], "submitted twice"),
    "never": ([HELLO, frame((2, 5, b""))], "never submitted"),
    "no count": ([HELLO, frame((1, 1, b""), (3, 1, b"x"))], "has 1 bytes, expected 4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_peer_that_breaks_the_protocol_is_cut_off_and_the_server_goes_on(
    path, batcher, caplog, name
):
    pieces, text = WRONG[name]
    with serving(batcher, path), connect(path) as other:
        stream = other.stream("abc")
        assert next(stream) == "a"
        answer = talk(path, *pieces)
        assert re.search(
            r"the connection of process \d+ was ended: .*" + re.escape(text), caplog.text
        )
        assert text in answer or pieces[0].startswith(HELLO)
        assert list(stream) == ["b", "c"]
        assert list(other.stream("d")) == ["d"]


def refusals(caplog):
    """Return what the log says about connections that were ended."""
    kinds = [(record.kind, record.getMessage()) for record in caplog.records]
    return [text for kind, text in kinds if kind == "remote_refused"]


def test_the_log_has_a_line_for_a_client_that_is_refused_with_each_request(path, batcher, caplog):
    with serving(batcher, path):
        for _ in range(3):
            assert "the versions differ" in talk(path, b"batchstream-remote 99 0.1 x\n")
        assert "is no batchstream.remote" in talk(path, b"GET / HTTP/1.1\r\n\r\n")
    different, none = refusals(caplog)
    assert "the versions differ" in different
    assert "is no batchstream.remote" in none


def test_a_server_remembers_so_many_lines_about_clients_and_no_more(
    path, batcher, caplog, monkeypatch
):
    monkeypatch.setattr(session, "_MOST_REMEMBERED", 2)
    with serving(batcher, path) as server:
        for number in (91, 92, 91, 93, 91):
            talk(path, f"batchstream-remote {number} 0.1 x\n".encode())
            assert len(server._listener._refused) <= 2
    assert re.findall(r"0\.1 with protocol (\d+)", " ".join(refusals(caplog))) == [
        *("91", "92", "93", "91"),
    ]


def test_a_submission_that_cannot_be_read_fails_alone(path, batcher):
    with serving(batcher, path), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(path)
        client.sendall(HELLO + frame((1, 1, b"no pickle"), (1, 2, b"")))
        data = b""
        while data.count(b"cannot be unpickled") < 2:
            data += client.recv(4096)


def test_a_client_that_says_nothing_is_cut_off(path, batcher, monkeypatch, caplog):
    monkeypatch.setattr(session, "GREETING_SECONDS", 0.0)
    with serving(batcher, path):
        assert "has sent no greeting within 0 seconds" in talk(path)
    assert "has sent no greeting" in caplog.text


@pytest.fixture
def fake_server(path):
    """Let a server answer the first connection: what is sent is answered with one piece each."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    threads = []

    def answer(*data):
        def run():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(ConnectionError):
                for piece in data:
                    connection.recv(4096)
                    connection.sendall(piece)
                if data != (b"",):
                    while connection.recv(4096):  # until the client has gone
                        pass

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield answer
    for thread in threads:
        thread.join(TIMEOUT)
    listening.close()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", r"is no batchstream\.remote"),
        (b"batchstream-remote 99 7.5 ok\n", r"has batchstream 7\.5 with protocol 99"),
        (
            f"batchstream-remote {PROTOCOL} 0.0.1 ok\n".encode(),
            rf"has batchstream 0\.0\.1 with protocol {PROTOCOL}",
        ),
        (greeting("refused: not today"), "refused: not today"),
        (OK + b"more", "more than its greeting"),
        (b"", "closed the connection without an answer"),
        (b"x" * 600, r"is no batchstream\.remote"),
    ],
)
def test_a_server_that_is_none_is_an_error_and_not_a_wait(path, fake_server, data, text):
    fake_server(data)
    with connect(path) as other, pytest.raises(ConnectionLostError, match=text):
        list(other.stream("a"))


def test_a_server_that_does_not_answer_is_an_error_after_a_time(path, fake_server):
    fake_server()
    with (
        connect(path, connect_timeout=0.05) as other,
        pytest.raises(ConnectionLostError, match=r"did not answer within 0\.05 seconds"),
    ):
        list(other.stream("a"))


def test_a_server_has_one_time_for_its_whole_answer(path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(sockets, "monotonic", lambda: now)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        handshake = sockets.Handshake(path, 4, DEFAULT_MAX_FRAME, 5.0, ())
        server, _ = listening.accept()
        with server, handshake.socket:
            for now in range(5):
                server.sendall(OK[now : now + 1])
                assert handshake.opened() is None
                assert handshake.seconds_left == 5 - now
            now = 5
            server.sendall(OK[5:6])
            with pytest.raises(ConnectionLostError, match="did not answer within 5 seconds"):
                handshake.opened()


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", frame((1, 1, b""))])
def test_a_server_that_breaks_the_protocol_fails_the_requests(path, fake_server, data):
    fake_server(OK, data)
    with connect(path) as other, pytest.raises(ConnectionLostError, match="was lost: a ") as caught:
        list(other.stream("a"))
    assert type(caught.value.__cause__) is ProtocolError


GATES = []


def held():
    """Unpickle an output only when the server has gone."""
    reached, gone = GATES.pop()
    reached.set()
    assert gone.wait(TIMEOUT)
    return "first"


class Held:
    """An output that holds up the process in which it is unpickled."""

    def __reduce__(self):
        return held, ()


def test_what_a_server_has_sent_before_it_went_arrives_though_nothing_can_be_sent_to_it(path):
    reached, gone = threading.Event(), threading.Event()
    GATES.append((reached, gone))

    def serve_one(listening):
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(OK)
            connection.recv(4096)  # a request of a map, whose outputs are acknowledged at once
            connection.sendall(frame((11, 1, pickled_outputs([Held(), "second"]))))
            assert reached.wait(TIMEOUT)
            connection.sendall(frame((11, 1, pickled_outputs(["third"]))))
            connection.sendall(frame((12, 1, pickled_end(StreamEnd(FinishReason.EOS, 3)))))
        gone.set()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        server = threading.Thread(target=serve_one, args=(listening,))
        server.start()
        with connect(path, window=2) as other:
            assert list(other.map(["a"])) == [["first", "second", "third"]]
        server.join(TIMEOUT)


@pytest.mark.parametrize("outputs", [[], ["x"]])
def test_a_request_without_outputs_that_a_server_loses_as_it_goes_away_was_refused(path, outputs):
    def serve_one(listening):
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(OK)
            connection.recv(4096)
            if outputs:
                connection.sendall(frame((11, 1, pickled_outputs(outputs))))
            connection.sendall(frame((15, 0, b"the server ends")))

    with socket.socket(socket.AF_UNIX) as listening, connect(path) as other:
        listening.bind(path)
        listening.listen()
        server = threading.Thread(target=serve_one, args=(listening,))
        server.start()
        read = []
        stream = other.stream("a")
        with pytest.raises(ConnectionLostError, match="was lost"):
            read.extend(stream)
        assert read == outputs
        server.join(TIMEOUT)
        until(lambda: not other.statistics().live)
        assert other.statistics().refusals == ({} if outputs else {"draining": 1})


def test_a_peer_that_breaks_the_protocol_and_reads_nothing_is_cut_off(path):
    engine = Waiting()
    with (
        ContinuousBatcher(engine, max_batch_size=4) as batcher,
        serving(batcher, path) as server,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(path)
        client.sendall(HELLO + frame((1, 1, submission(Terms(), pickled("a")))))
        assert taken(engine.added) == "a"
        [session] = server._listener._sessions
        engine.give({0: b"x" * 10_000_000})
        until(session._transport.get_write_buffer_size)
        client.sendall(b"\xff" * 4)
        assert taken(engine.removed) == "a"
        until(lambda: not server._listener._sessions)


def test_a_process_that_has_no_socket_left_refuses_no_request(path, batcher, monkeypatch):
    def fails(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with connect(path) as other:
        first = other.stream("a")
        with pytest.raises(ConnectionLostError):
            next(first)
        knobs.engine_of(other)._last_goaway_reason = "the server of the model ends"
        monkeypatch.setattr(sockets.socket, "socket", fails)
        with pytest.raises(ConnectionLostError, match="Too many open files"):
            next(other.stream("a"))
        monkeypatch.undo()
        assert other.statistics().refusals == {}


def test_a_client_that_connects_to_a_server_that_ends_is_told_so(path, batcher):
    server = serving(batcher, path, drain=TIMEOUT)
    with connect(path) as other:
        server.__enter__()
        slow = other.stream("x" * 10**6)
        next(slow)
        with socket.socket(socket.AF_UNIX) as late:
            late.settimeout(TIMEOUT)
            late.connect(path)
            until(lambda: len(server._listener._sessions) == 2)
            thread = threading.Thread(target=server.__exit__, args=(None, None, None))
            thread.start()
            until(lambda: knobs.is_ending(server))
            late.sendall(HELLO)
            assert b"refused: the server of the model" in late.recv(4096)
            # So is one that the system has accepted, and that has no session yet.
            assert "ends, as asked for" in server._listener._session().refusal
        slow.cancel()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_a_client_that_vanishes_leaves_the_model(path, batcher):
    with serving(batcher, path):
        other = connect(path)
        stream = other.stream("x" * 10**6)
        next(stream)
        del stream
        other.close()
        until(lambda: not batcher.statistics().live)
