"""LitServe: loops whose batched streams end one by one, and fail one by one.

Theory of operation
-------------------

LitServe has one main process, server processes that it forks, and workers that it spawns. A
request goes from a server process to a worker through a queue that all workers share; messages
come back through a transport, and each says to which request it belongs.

**In a worker** LitServe runs a loop (`_loop.py`). Both loops work at a `Desk` (`_desk.py`), have
requests as `Member`s (`_member.py`) and hand out what a step gives to whom in the same way
(`_serving.py`). `BatchedStreamLoop` runs the hooks of LitServe's own batched streaming loop, in
their order, and reads their steps with `BatchedStream.steps` (`_batch.py`). `ContinuousBatchLoop`
drives an engine itself, with the core, and takes requests in between two steps (`_continuous.py`,
`_arrivals.py`). What is said to clients (`_reply.py`) is collected during a step, and sent in one
message for each server process (`_outbox.py`): the transport costs more than anything else. Where a
server process is behind, more than one step is (`_flow.py`).

**In a server process** LitServe's endpoint would not do. It has sent status 200 before it knows of
any output; it ends the body in the proper way after an error, so that its client takes half an
answer for a whole one; and it tells nobody when a client leaves. The loops give their API an
endpoint of its own, by the means that LitServe has for it, a `LitSpec` (`_endpoint.py`, or
`_openai.py`). It holds the status back until there is an output to send, and cuts the connection if
an error comes later. Requests and messages go through an `Exchange` (`_exchange.py`), which has the
same of the server as LitServe's own `OpenAISpec`: the request queue, and entries in the response
buffer. One entry of its own sorts the messages that were sent together, and sees to it that no
client who does not read has more than `max_buffered` of them waiting.

A failure travels as an output does, in place of it: as plain data (`_messages.py`). Nothing that a
user made but text and bytes, and so nothing that cannot be pickled or unpickled, goes back to a
client through this endpoint.

When a client leaves, the exchange tells the workers, each through a pipe (`_departures.py`). A
thread there sleeps on the pipe; the loop hears of it before the model's next step.

**In the main process** SIGTERM is made to end all of them (`_shutdown.py`).

An API with a spec of its own keeps the endpoint of that spec. Its failures are LitServe's own error
messages, what the client sees of them is what the spec shows, and nobody notices who leaves.
"""

from batchstream.integrations.litserve._loops import BatchedStreamLoop as BatchedStreamLoop
from batchstream.integrations.litserve._loops import ContinuousBatchLoop as ContinuousBatchLoop
from batchstream.integrations.litserve._openai import OpenAISpec as OpenAISpec

__all__ = ["BatchedStreamLoop", "ContinuousBatchLoop", "OpenAISpec"]
