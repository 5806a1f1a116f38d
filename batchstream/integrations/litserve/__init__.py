"""LitServe: a loop whose batched streams end one by one, and fail one by one.

Theory of operation
-------------------

LitServe runs a loop in each of its worker processes. Messages from there reach the server process
through queues, and each says to which request it belongs. `BatchedStreamLoop` (`_loop.py`) runs
the hooks of LitServe's own batched streaming loop, in their order, and reads what
`encode_response` yields with `BatchedStream.steps` (`_batch.py`): a request's messages end when
its slot does (`_reply.py`).

What is left is telling a client of an error. LitServe's endpoint has sent status 200 before it
knows of any output, and it ends the body in the proper way after an error, so that its client takes
half an answer for a whole one. The loop therefore gives its API an endpoint of its own, by the
means that LitServe has for it, a `LitSpec` (`_endpoint.py`). That endpoint lets LitServe do all the
work, but holds the status back until there is an output to send, and cuts the connection if an
error comes later. A failure travels as an output does, in place of it: as a `Failure`, which is
plain data (`_failure.py`). Nothing that a user made but text and bytes, and so nothing that cannot
be pickled or unpickled, ever crosses.

An API with a spec of its own, such as OpenAI's, keeps the endpoint of that spec. Its failures are
LitServe's own error messages, and what the client sees of them is what the spec shows.
"""

from batchstream.integrations.litserve._loop import BatchedStreamLoop as BatchedStreamLoop

__all__ = ["BatchedStreamLoop"]
