"""Requests on their way to the workers."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import HTTPException
from litserve.callbacks import EventTypes
from starlette import exceptions as starlette

from batchstream import ClosedError, OverloadedError, RequestError
from batchstream._core.errors import CostError, type_name
from batchstream.integrations._headers import REQUEST_ID, retry_after
from batchstream.integrations.litserve._link.messages import UNKNOWN, Envelope, Failure, new_uid
from batchstream.integrations.litserve._link.received import ReceivedRequest
from batchstream.integrations.litserve._log import fields, logger
from batchstream.integrations.litserve._server.asked import NOTHING, Asked
from batchstream.integrations.litserve._server.reports import Reports
from batchstream.integrations.litserve._server.response_queue import FailedError
from batchstream.integrations.litserve._server.responses import Responses
from batchstream.integrations.litserve._server.watch import SHUTTING_DOWN, watch_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from litserve.specs.base import LitSpec

    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._link.ordering import Ordering, Standing
    from batchstream.integrations.litserve._link.request_queue import Refusal


@contextmanager
def errors_as_answers(link: Link, name: str | None) -> Iterator[None]:
    """Answer an error of the block with 500, as LitServe's endpoint does, and log it.

    LitServe's `track_requests` never counts a request down whose endpoint raises anything else.

    Args:
        link: Of the endpoint.
        name: The client's name for its request, if it has one by now.

    Raises:
        HTTPException: Any error of the block.
    """
    try:
        yield
    except starlette.HTTPException as error:  # FastAPI's is one
        if name is not None:
            error.headers = {**(error.headers or {}), REQUEST_ID: name}
        raise
    except RequestError as error:
        raise FailedError(Failure.of(error), name) from error
    except Exception as error:
        names = [] if name is None else [name]
        logger.exception(
            "a request has failed before it has reached a worker",
            extra=fields("failed", link.name or "", names, reason=type_name(error)),
        )
        raise FailedError(UNKNOWN, name) from error


def submit(link: Link, spec: LitSpec, payloads: Sequence[Any], asked: Asked = NOTHING) -> Responses:
    """Send requests to the workers, all of one client.

    Raises:
        HTTPException: 503, as many requests wait as may, or cost as much, or the server is about to
            end; 400, these alone are more; 422, they cost more; 500, one does not pickle, or the
            queue is gone, or a function of the loop's has raised. None is served.
    """
    uids = [new_uid() for _ in payloads]
    with errors_as_answers(link, asked.request_id or uids[0]):
        return _submit(link, spec, payloads, asked, uids)


def _submit(
    link: Link, spec: LitSpec, payloads: Sequence[Any], asked: Asked, uids: Sequence[str]
) -> Responses:
    """Do that, but for the answers to errors."""
    server: Any = spec._server  # noqa: SLF001 - LitServe gives it to specs
    requests = server._get_request_queue(spec.api_path)  # noqa: SLF001 - as does its own spec
    watch = watch_of(link, spec.response_queue_id)  # type: ignore[arg-type]  # set by then
    name = asked.request_id or uids[0]
    ordering, standing = link.ordering, None
    if ordering is not None:
        received = ReceivedRequest(payloads[0], asked.headers, name)
        standing = ordering.standing_of(received)
    tenant = None if standing is None else standing.tenant
    reports = Reports(link, name, tenant, asked.headers)
    if watch is not None and watch.is_ending:
        reports.refused("draining", ClosedError(str(SHUTTING_DOWN.detail)), payloads)
        raise FailedError(SHUTTING_DOWN)
    _check_ever_room(link, payloads, standing, reports)
    by_uid = dict(zip(uids, payloads, strict=True))
    responses = Responses(server, link, by_uid, asked, watch=watch, reports=reports)
    elements = [
        (
            spec.response_queue_id,
            uid,
            time.monotonic(),
            _enclosed(payload, uid, Envelope(payload, name, tenant, reports.carrier)),
        )
        for uid, payload in by_uid.items()
    ]
    try:
        if ordering is not None and standing is not None:
            refusal = requests.put_all(elements, standing)
            if refusal is not None:
                responses.forget()
                _refuse(link, ordering, refusal, reports, payloads)
            responses.discard = requests.discard
            for uid in uids:
                responses.submitted(uid)
        trigger = server._callback_runner.trigger_event  # noqa: SLF001
        trigger(
            EventTypes.ON_REQUEST.value, active_requests=server.active_requests, litserver=server
        )
        if standing is None:
            for element, uid in zip(elements, uids, strict=True):
                requests.put(element)
                responses.submitted(uid)
    except BaseException:
        responses.close()  # does nothing if they were refused
        raise
    return responses


def _check_ever_room(
    link: Link, payloads: Sequence[Any], standing: Standing | None, reports: Reports
) -> None:
    """Check whether so many requests could wait if no other did.

    Raises:
        HTTPException: 400, they are more than may wait, of all or of one tenant.
        CostError: They cost more.
    """
    count = len(payloads)
    if link.max_pending is not None and count > link.max_pending:
        error = HTTPException(400, f"no more than {link.max_pending} requests may wait")
        reports.refused("pending", error, payloads)
        raise error
    if link.ordering is None or standing is None:
        return
    most_of_tenant, most = link.ordering.max_pending_per_tenant, link.ordering.max_pending_cost
    if most_of_tenant is not None and count > most_of_tenant:
        error = HTTPException(400, f"no more than {most_of_tenant} requests of one tenant may wait")
        reports.refused("tenant", error, payloads)
        raise error
    if most is not None and count * standing.cost > most:
        too_much = CostError(
            f"the request costs {count * standing.cost!r}, more than all that wait may cost "
            f"together: {most!r} (max_pending_cost)"
        )
        reports.refused("cost", too_much, payloads)
        raise too_much


def _refuse(
    link: Link, ordering: Ordering, refusal: Refusal, reports: Reports, payloads: Sequence[Any]
) -> NoReturn:
    """Refuse the requests of a client.

    Raises:
        HTTPException: 503, there is no room for them.
    """
    most, most_cost = link.max_pending, None
    text = f"{refusal.pending} requests wait already (max_pending={most})"
    if refusal.reason == "tenant":
        most = ordering.max_pending_per_tenant
        text = (
            f"{refusal.pending} requests of its tenant wait already (max_pending_per_tenant={most})"
        )
    elif refusal.reason == "pending_cost":
        most_cost = ordering.max_pending_cost
        text = (
            f"requests that cost {refusal.pending_cost!r} wait already "
            f"(max_pending_cost={most_cost!r})"
        )
    error = OverloadedError(
        text,
        pending=refusal.pending,
        max_pending=sys.maxsize if most is None else most,
        reason=refusal.reason,
        pending_cost=refusal.pending_cost,
        max_pending_cost=most_cost,
        retry_after=refusal.retry_after,
    )
    reports.refused(error.reason, error, payloads)
    headers = {"retry-after": retry_after(refusal.retry_after)}
    raise FailedError(Failure(503, "Service Unavailable", headers)) from error


def _enclosed(payload: Any, uid: str, envelope: Envelope) -> Any:
    """Return what the worker gets, in an envelope only if there is something besides."""
    if (envelope.request_id, envelope.tenant, envelope.carrier) == (uid, None, None):
        return payload
    return envelope
