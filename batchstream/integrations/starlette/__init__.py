"""Starlette and FastAPI: responses that send one stream, and end when it does or its client leaves.

Theory of operation
-------------------

`Chunks` (`_chunks.py`) drains a stream: each chunk is all that was buffered, encoded and joined,
whatever frames it. The responses (`_responses.py`) send chunks, each in its own format; server-sent
events go through sse-starlette, which adds its pings.

Three things are the same for all of them, and for the responses of other integrations
(`../_response.py`).

A response begins when there is something to send. Until then an error has a status of its own
(`_answers.py`): too late is 504, closed is 503, and the rest is raised, for the application's own
handlers or Starlette's 500.

From then on all that can tell of an error is a body that visibly lacks its end. It is not enough to
raise (`../_connection.py`), because a middleware may end the body in the proper way all the same.

While a response runs, from the wait for its first output to its last byte, one task listens for the
client's disconnect, which breaks the response off wherever it is. Whatever ends it, the stream is
cancelled behind it: servers only cancel the task, and Starlette tells an iterator nothing.
"""

from batchstream.integrations.starlette._answers import exception_handlers as exception_handlers
from batchstream.integrations.starlette._responses import EventsResponse as EventsResponse
from batchstream.integrations.starlette._responses import NDJSONResponse as NDJSONResponse
from batchstream.integrations.starlette._responses import TextResponse as TextResponse

__all__ = ["EventsResponse", "NDJSONResponse", "TextResponse", "exception_handlers"]
