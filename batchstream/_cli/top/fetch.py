"""Fetches a metrics page over http or https."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from batchstream._cli.errors import CommandError

_SECONDS: Final = 5.0
_LARGEST: Final = 32 * 1024 * 1024  # bytes of a page: far more than a server of many batchers has
_SHOW: Final = (
    "let it serve one, as in app.mount('/metrics', prometheus_client.make_asgi_app()), "
    "or pass the address of its page"
)


def page_address(url: str) -> str:
    """Return the address of the page that a user means.

    A server without a path has its page at `/metrics`; without a scheme it is one of http.

    Raises:
        CommandError: It is no address of http or https.
    """
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError as error:
        raise CommandError(f"{url!r} is no address: {error}") from None
    if parts.scheme not in {"http", "https"}:
        raise CommandError(f"top reads pages of http and https, not of {parts.scheme}: {url!r}")
    if not parts.hostname:
        raise CommandError(f"{url!r} names no server: pass an address like 127.0.0.1:8000")
    return urlunsplit(
        parts._replace(path=(parts.path.rstrip("/") and parts.path) or "/metrics", fragment="")
    )


def fetch(address: str) -> str:
    """Return the text of a page.

    Raises:
        CommandError: There is none; the text says what to do.
    """
    # A page in the other format of Prometheus would do, too, but the plain one is what all have.
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        address, headers={"Accept": "text/plain; version=0.0.4; q=1, */*; q=0.1"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
            body: bytes = response.read(_LARGEST + 1)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.NOT_FOUND:
            raise CommandError(f"{address} is not there (404): {_SHOW}") from None
        raise CommandError(f"{address} answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise CommandError(
            f"no server answers at {address} ({reason}): start it, or pass its address"
        ) from None
    if len(body) > _LARGEST:
        raise CommandError(f"{address} is no metrics page: it has more than {_LARGEST} bytes")
    return body.decode(errors="replace")
