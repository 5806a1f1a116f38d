"""gRPC: the errors of batchers as statuses, and the deadline of a call.

Theory of operation
-------------------

A server is given an interceptor (`_interceptors.py`): `AsyncServerInterceptor` for `grpc.aio`,
`ServerInterceptor` for a server of threads. It wraps each method that is called, and knows nothing
of streams: a method reads its own in an `async with` or a `with` block.

*Errors.* An error of a batcher that leaves a method becomes the status that `_statuses.py` has for
it, with the server's wish for the next try in the trailing metadata. gRPC would send `UNKNOWN` with
the text of the error for it, which no client retries. All other errors stay gRPC's.

*A client that leaves.* gRPC cancels the task of its call, and drops the method's generator. While
the call is stuck in a write, as its client reads nothing, the generator is suspended, and would
learn of it from Python's finalizers. So the interceptor writes the outputs itself, and closes the
generator in the frame through which the cancellation passes.

*Deadlines.* gRPC cancels a call whose deadline has passed, but only the batcher can leave a request
out that waits and is too late already. `timeout_of` (`_deadlines.py`) tells it.
"""

from batchstream.integrations.grpc._deadlines import timeout_of as timeout_of
from batchstream.integrations.grpc._interceptors import (
    AsyncServerInterceptor as AsyncServerInterceptor,
)
from batchstream.integrations.grpc._interceptors import ServerInterceptor as ServerInterceptor
from batchstream.integrations.grpc._statuses import Status as Status
from batchstream.integrations.grpc._statuses import status_of as status_of

__all__ = [
    "AsyncServerInterceptor",
    "ServerInterceptor",
    "Status",
    "status_of",
    "timeout_of",
]
