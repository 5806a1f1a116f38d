"""The id of a request, from its header or made."""

import pytest
from starlette.requests import Request

from batchstream.integrations.starlette import request_id


def asked(header=None):
    headers = [] if header is None else [(b"x-request-id", header.encode("latin-1"))]
    return Request({"type": "http", "headers": headers})


def test_the_id_is_that_of_the_header():
    assert request_id(asked("req-4f/2=x")) == "req-4f/2=x"


@pytest.mark.parametrize(
    "header", [None, "", "two words", "line\nbreak", "\x1b[31mred", "é", "x" * 129]
)
def test_without_a_fit_one_it_is_made_and_stays_the_same(header):
    request = asked(header)
    made = request_id(request)
    assert len(made) == 32
    assert request_id(request) == made
    assert request_id(asked(header)) != made


def test_an_id_may_be_as_long_as_the_bound():
    assert request_id(asked("x" * 128)) == "x" * 128
