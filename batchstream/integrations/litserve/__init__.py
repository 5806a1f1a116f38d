"""LitServe: loops whose batched streams end one by one, and fail one by one.

Theory of operation
-------------------

LitServe has one main process, server processes that it forks, and workers that it spawns. A
request goes from a server process to a worker through a queue that all workers share. Messages
come back through a transport, and each carries the uid of its request. This package has a folder
for each kind of process, and one for what crosses between them:

- `_link` is what crosses: the messages, and the pipes. The main process makes a `Link` before it
  starts any other process; server processes inherit it, workers get a copy.
- `_worker` runs in a worker.
- `_server` runs in a server process, and sets the link up in the main process (`setup.py`).

`_worker` and `_server` do not import each other. The public loops, `_batched_loop.py` and
`_continuous_loop.py`, share a base, `_loop.py`: LitServe asks them to prepare an API in the main
process, and runs them in each worker.

**In a worker** the two loops differ in how they make a step. `BatchedStreamLoop` calls the hooks of
LitServe's own batched streaming loop, in their order, and reads the iterators that they return
(`batch.py`); where LitServe has no batches, each hook takes one request, and each output is a step
of a batch of one (`hooks.py`). `ContinuousBatchLoop` drives an engine, and takes requests in
between two steps, one by one, as many as the engine takes (`continuous.py`); a thread fetches them
from the queue (`queue.py`). Either way
the core, a `Demultiplexer`, decides which slot gets what of a step, and a `Serving` hands that out
(`serving.py`):

1. It sends the messages of the step before, and drops the requests whose clients have left.
2. It lets the model make a step.
3. It formats each output and puts it into the outbox. Where `encode_response` is called for each
   request, an output goes to the request's encoder instead (`encoder.py`). An encoder that reads a
   second output before it has yielded an element makes `Serving` take the next step at once.
4. It puts the ends into the outbox.

The outbox joins the messages for one server process into one batch (`outbox.py`), because the
transport costs more than anything else. Where a server process lags, several steps go into one
batch.

**In a server process** LitServe's endpoint would not do. It sends status 200 before there is any
output. It ends the body as a complete one after an error, so that the client takes half a response
for a whole one. And no worker learns that a client has left. So the loops give their API an
endpoint of its own, by the means that LitServe has for it, a `LitSpec` (`endpoint.py`; for OpenAI's
interface the folder `_openai`). It holds the status back until there is an output to send, and cuts
the connection if an error comes later.

Of the server an endpoint uses what LitServe's own `OpenAISpec` uses: the request queue, and entries
in the response buffer. Each request has an entry, a `ResponseQueue` (`response_queue.py`). Where
its client has left as many messages unread as it may, what comes is merged with the last of them,
or the request fails (`unread.py`). It fails as well if it is late (`timers.py`). The user's `merge`
gets an output as `encode_response` has yielded it: for that the worker marks which text is JSON
(`outputs.py`). What a worker has to know besides the request, such as the client's name for it,
goes with it in an `Envelope`. Batches of messages are addressed to one more entry, which takes them
apart (`router.py`).

**Where a loop orders or bounds the requests that wait**, by priorities, tenants or `max_pending`,
the endpoint puts a queue of its own in the place of LitServe's: one for all server processes and
workers, in a process of its own (`request_queue.py`).

A failure travels in place of an output, as plain data (`messages.py`). A client gets nothing of a
user's objects through this endpoint but text and bytes: nothing that might not pickle or unpickle.

**Back to the workers** go two things through pipes (`pipes.py`). When a client leaves, every worker
gets the uid: a thread there sleeps on the pipe, and the loop drops the request before the model's
next step (`disconnects.py`). And for each batch of messages that a server process has taken, its
worker gets a receipt, so that it does not run ahead. The other way, a worker claims each request
that it takes out of the queue, also through a pipe, and says when it has reported its end. It keeps
what a full pipe has no room for (`lines.py`).

**Metrics and traces** are told of the end of a request once, by its worker: that knows the most of
it. The server process tells them of requests that no worker has claimed, and of those whose worker
has ended, or the server ends, before the worker has reported them (`reports.py`).

**A process that is killed** says nothing. A server process watches the workers that have claimed a
request of its clients, and fails these requests when the worker ends (`watch.py`). A worker watches
the server processes whose requests it has, which it knows by their uids, and drops them
(`disconnects.py`).

**At the end** SIGTERM and Ctrl-C reach the main process. It lets all servers end together, and does
not wait for ever (`_shutdown.py`); LitServe then ends the workers. Where Ctrl-C reaches a worker as
well, that leaves it to the main process (`interrupts.py`). A server process, or thread,
drains: uvicorn learns of the signal when the last response has ended, or when the grace period is
over and the rest has been cut (`watch.py`).

An API with a spec of its own keeps the endpoint of that spec. Its failures are LitServe's own error
messages, the spec decides what a client sees of them, and no worker learns which clients leave.
"""

from batchstream.integrations.litserve._batched_loop import BatchedStreamLoop as BatchedStreamLoop
from batchstream.integrations.litserve._continuous_loop import (
    ContinuousBatchLoop as ContinuousBatchLoop,
)
from batchstream.integrations.litserve._link.received import ReceivedRequest as ReceivedRequest
from batchstream.integrations.litserve._openai.request import (
    ChatCompletionRequest as ChatCompletionRequest,
)
from batchstream.integrations.litserve._openai.spec import OpenAISpec as OpenAISpec

__all__ = [
    "BatchedStreamLoop",
    "ChatCompletionRequest",
    "ContinuousBatchLoop",
    "OpenAISpec",
    "ReceivedRequest",
]
