"""The time that a client allows for its request, as its headers say it."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.datastructures import Headers

from batchstream import DynamicBatcher
from batchstream.integrations.starlette import (
    HeaderError,
    TextResponse,
    exception_handlers,
    timeout_of,
)
from support.sources import TIMEOUT

SECONDS = "X-Request-Timeout"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("2.5", 2.5), ("60", 60.0), ("0", 0.0), (" 1.25\t", 1.25), ("0.001", 0.001)],
)
def test_a_decimal_number_of_seconds_is_read(value, seconds):
    assert timeout_of(Headers({SECONDS: value})) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2500m", 2.5),
        ("1H", 3600.0),
        ("2M", 120.0),
        ("3S", 3.0),
        ("500000u", 0.5),
        ("99999999n", 0.099999999),
        ("0S", 0.0),
    ],
)
def test_a_timeout_of_grpc_is_read(value, seconds):
    assert timeout_of(Headers({"grpc-timeout": value})) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    ["", "a", "-1", "+1", "1e3", "inf", "nan", "1_0", "1,5", "1.", ".5", "\u0661", "9" * 16, "1 s"],
)
def test_seconds_that_cannot_be_are_refused(value):
    with pytest.raises(HeaderError) as raised:
        timeout_of({SECONDS: value})
    error = raised.value
    assert (error.header, error.value) == (SECONDS, value)
    assert str(error) == (
        f"the header X-Request-Timeout must be a decimal number of seconds, such as 2.5, got "
        f"{value!r}"
    )


@pytest.mark.parametrize("value", ["", "1", "S", "1s", "123456789m", "-1S", "1.5S", "1 S", "1Sm"])
def test_a_timeout_of_grpc_that_cannot_be_is_refused(value):
    with pytest.raises(HeaderError, match="the header grpc-timeout must be up to 8 digits and a"):
        timeout_of({"grpc-timeout": value})


def test_a_value_that_is_long_is_not_shown_whole():
    with pytest.raises(HeaderError) as raised:
        timeout_of({SECONDS: "x" * 10_000})
    assert len(str(raised.value)) < 200


@pytest.mark.rule(18)
def test_the_error_of_a_header_is_pickled_with_its_data():
    error = HeaderError("text", header="name", value="x")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), again.header, again.value) == (
        HeaderError,
        "text",
        "name",
        "x",
    )


def test_the_shortest_of_all_times_counts():
    headers = {"x-request-timeout": "5", "GRPC-TIMEOUT": "3S"}
    assert timeout_of(headers) == 3.0
    assert timeout_of(headers, at_most=2) == 2.0
    assert timeout_of(headers, at_most=60) == 3.0
    assert timeout_of({}, at_most=60) == 60.0
    assert timeout_of({}) is None
    with pytest.raises(ValueError, match="at_most must be at least 0"):
        timeout_of(headers, at_most=-1)


def test_it_needs_no_web_framework():
    program = (
        "import sys, batchstream.integrations._timeouts as timeouts\n"
        "assert timeouts.timeout_of({'X-Request-Timeout': '1'}) == 1\n"
        "assert not {'starlette', 'anyio', 'litserve'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=TIMEOUT)  # noqa: S603


def test_one_line_of_an_endpoint_limits_a_request_and_answers_400_and_504():
    gate = threading.Event()

    def model(requests):
        if "slow" in requests:
            gate.wait(TIMEOUT)
        yield [request[0] for request in requests]
        yield [None for _ in requests]

    batcher = DynamicBatcher(model, max_batch_size=1)
    app = FastAPI(exception_handlers=exception_handlers)

    @app.get("/0")
    async def endpoint(request: Request):
        text = request.query_params["text"]
        return TextResponse(batcher.astream(text, timeout=timeout_of(request.headers, at_most=60)))

    async def ask_all():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [
                await client.get("/0", params={"text": text}, headers=headers)
                for text, headers in [
                    ("quick", {SECONDS: "30"}),
                    ("quick", {SECONDS: "soon"}),
                    ("slow", {SECONDS: "0.05"}),
                    ("slow", {"grpc-timeout": "50m"}),
                ]
            ]

    with batcher:
        in_time, malformed, late, late_too = asyncio.run(ask_all())
        gate.set()
    assert (in_time.status_code, in_time.text) == (200, "q")
    says = (
        "the header X-Request-Timeout must be a decimal number of seconds, such as 2.5, got 'soon'"
    )
    assert (malformed.status_code, malformed.json()) == (400, {"detail": says})
    assert [late.status_code, late_too.status_code] == [504, 504]
