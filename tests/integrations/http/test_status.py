"""Which status an error has, for a framework that the package has no module for."""

import subprocess
import sys

import pytest

from batchstream import (
    ClosedError,
    DeadlineError,
    ForkedError,
    OverloadedError,
    RequestError,
)
from batchstream.integrations.http import HeaderError, Status, status_of, timeout_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ClosedError("a secret"), Status(503, "Service Unavailable", {"Retry-After": "1"})),
        (DeadlineError("a secret", timeout=1.0), Status(504, "Gateway Timeout", {})),
        (RequestError("too long"), Status(422, "too long", {})),
        (
            HeaderError("no number", header="X-Request-Timeout", value="soon"),
            Status(400, "no number", {}),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_a_status_that_tells_nothing_of_the_server(error, status):
    assert status_of(error) == status


@pytest.mark.parametrize("error", [ForkedError("in use"), ValueError("no number")])
def test_an_error_that_is_the_servers_fault_is_raised_for_the_server_to_log(error):
    with pytest.raises(type(error)) as raised:
        status_of(error)
    assert raised.value is error


@pytest.mark.parametrize(("seconds", "header"), [(None, "1"), (0.2, "1"), (2.1, "3")])
def test_an_overloaded_server_says_when_to_try_again_in_whole_seconds(seconds, header):
    error = OverloadedError("full", pending=1, max_pending=1, retry_after=seconds)
    assert status_of(error) == Status(503, "Service Unavailable", {"Retry-After": header})


def test_the_time_that_a_client_allows_is_read_without_a_framework():
    assert timeout_of({"X-Request-Timeout": "2.5"}, at_most=60) == 2.5
    with pytest.raises(HeaderError):
        timeout_of({"X-Request-Timeout": "soon"})


def test_the_module_imports_no_framework():
    code = (
        "import sys, batchstream.integrations.http\n"
        "print({'starlette', 'anyio', 'fastapi', 'sse_starlette'} & set(sys.modules))"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "set()\n"
