"""Lines in the log: what a user's handler raises is no error of what writes a line."""

import logging
import sys

import pytest

from batchstream._log import write_line


class Broken(logging.Handler):
    """Raises at each line."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.lines = []

    def handle(self, record):
        self.lines.append((record.kind, record.getMessage(), record.reason))
        raise self.error


@pytest.fixture
def broken(request):
    handler, logger = Broken(request.param), logging.getLogger("batchstream")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def write():
    write_line(logging.WARNING, "slow", "%s is slow", "chat", reason="late")


@pytest.mark.parametrize("broken", [OSError("disk full"), SystemExit(1)], indirect=True)
def test_what_a_handler_raises_goes_to_the_hook(monkeypatch, broken):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: reported.append(event.exc_value))
    write()
    assert broken.lines == [("slow", "chat is slow", "late")]
    assert reported == [broken.error]


@pytest.mark.parametrize("broken", [KeyboardInterrupt()], indirect=True)
def test_an_interrupt_of_the_main_thread_is_raised(broken):
    with pytest.raises(KeyboardInterrupt):
        write()
    assert broken.lines


def test_the_place_of_a_line_is_what_has_written_it(caplog):
    write()
    [line] = caplog.records
    assert (line.module, line.funcName) == ("test_log_lines", "write")
