"""What a worker says of its requests to a server process that does not read for a while."""

import os
import threading
from multiprocessing import Pipe
from multiprocessing.connection import wait

import pytest

from batchstream.integrations.litserve._link.lines import LineWriter
from support.serving import SECONDS

LINES = [b"%d %s\n" % (number, b"-" * 100) for number in range(2000)]
"""More than a pipe has room for."""


@pytest.fixture
def pipe():
    reader, writer = Pipe(duplex=False)
    os.set_blocking(writer.fileno(), False)
    with reader, writer:
        yield reader, writer


def read(reader):
    """Read until the last line has come."""
    data = b""
    while not data.endswith(LINES[-1]):
        assert wait([reader], SECONDS), "the rest does not come"
        data += os.read(reader.fileno(), 65536)
    return data.splitlines(keepends=True)


def wait_for_thread():
    """Wait until no thread writes lines."""
    for thread in threading.enumerate():
        if thread.name == "batchstream lines":
            thread.join(SECONDS)
            assert not thread.is_alive()


def test_lines_that_a_full_pipe_has_no_room_for_follow_in_their_order(pipe):
    reader, writer = pipe
    lines = LineWriter(writer)
    for _ in range(2):  # the second time by another thread
        for line in LINES:
            lines.write(line)
        assert read(reader) == LINES
        wait_for_thread()


def test_a_line_that_finds_room_stays_behind_those_that_are_kept(pipe):
    reader, writer = pipe
    may_write = threading.Event()

    class Late(LineWriter):
        def _write_kept(self):
            assert may_write.wait(SECONDS)
            super()._write_kept()

    lines = Late(writer)
    for line in LINES[:-1]:
        lines.write(line)
    begin = os.read(reader.fileno(), 65536)
    lines.write(LINES[-1])
    may_write.set()
    assert begin + b"".join(read(reader)) == b"".join(LINES)
    wait_for_thread()


def test_lines_that_nothing_will_read_are_dropped(pipe):
    reader, writer = pipe
    lines = LineWriter(writer)
    for line in LINES:
        lines.write(line)
    reader.close()
    wait_for_thread()
    lines.write(b"another\n")
    wait_for_thread()
