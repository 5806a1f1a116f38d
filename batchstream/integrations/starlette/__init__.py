"""Starlette and FastAPI: responses that send one stream and end with it, or with their client.

Theory of operation
-------------------

A `StreamBody` (`_body.py`) drains a stream: each chunk is all that was buffered, encoded and
joined. An `IteratorBody` takes the outputs of any other asynchronous iterator, one by one. The
responses (`_responses.py`) send such a body, each in its own format, and say what a ping is there;
what an output becomes in JSON is said in `_json.py`.

When a response begins, how it pings and fails, and how it notices that its client has left is the
same for all integrations that serve HTTP: see `../_http.py`. Errors before the status get one of
their own (`_handlers.py`): 504 for a missed deadline, 503 for a closed batcher. All others are
raised, for the handlers of the application or Starlette's 500. Readiness probes are answered by
`_probes.py`.
"""

from batchstream.integrations._timeouts import HeaderError as HeaderError
from batchstream.integrations._timeouts import timeout_of as timeout_of
from batchstream.integrations.starlette._handlers import exception_handlers as exception_handlers
from batchstream.integrations.starlette._probes import readiness as readiness
from batchstream.integrations.starlette._request_id import request_id as request_id
from batchstream.integrations.starlette._responses import EventsResponse as EventsResponse
from batchstream.integrations.starlette._responses import NDJSONResponse as NDJSONResponse
from batchstream.integrations.starlette._responses import TextResponse as TextResponse
from batchstream.integrations.starlette._websockets import send_stream as send_stream

__all__ = [
    "EventsResponse",
    "HeaderError",
    "NDJSONResponse",
    "TextResponse",
    "exception_handlers",
    "readiness",
    "request_id",
    "send_stream",
    "timeout_of",
]
