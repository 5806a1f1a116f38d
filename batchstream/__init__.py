"""One stream per request from a batched generator, each ending exactly at its own end."""

from batchstream._batching.calls.replies import AsyncReplies as AsyncReplies
from batchstream._batching.calls.replies import Replies as Replies
from batchstream._batching.continuous import ContinuousBatcher as ContinuousBatcher
from batchstream._batching.continuous import StepEngine as StepEngine
from batchstream._batching.decorator import batched as batched
from batchstream._batching.dynamic import DynamicBatcher as DynamicBatcher
from batchstream._batching.engine import NotNow as NotNow
from batchstream._batching.telemetry.metrics import Metrics as Metrics
from batchstream._batching.telemetry.traces import BatchTrace as BatchTrace
from batchstream._batching.telemetry.traces import RequestTrace as RequestTrace
from batchstream._batching.telemetry.traces import Traces as Traces
from batchstream._core.demultiplexer import Demultiplexer as Demultiplexer
from batchstream._core.errors import BatchStreamError as BatchStreamError
from batchstream._core.errors import BufferOverflowError as BufferOverflowError
from batchstream._core.errors import ClosedError as ClosedError
from batchstream._core.errors import ConcurrentConsumerError as ConcurrentConsumerError
from batchstream._core.errors import DeadlineError as DeadlineError
from batchstream._core.errors import ForkedError as ForkedError
from batchstream._core.errors import MissingEOSError as MissingEOSError
from batchstream._core.errors import OverloadedError as OverloadedError
from batchstream._core.errors import RequestError as RequestError
from batchstream._core.errors import SlowConsumerError as SlowConsumerError
from batchstream._core.errors import SourceError as SourceError
from batchstream._core.errors import StepError as StepError
from batchstream._core.markers import EOS as EOS
from batchstream._core.markers import SKIP as SKIP
from batchstream._core.markers import End as End
from batchstream._core.markers import Fail as Fail
from batchstream._core.markers import Last as Last
from batchstream._core.markers import Many as Many
from batchstream._core.markers import Requeue as Requeue
from batchstream._core.per_request import per_request as per_request
from batchstream._core.records import BatcherStatistics as BatcherStatistics
from batchstream._core.records import Delivery as Delivery
from batchstream._core.records import FinishReason as FinishReason
from batchstream._core.records import Statistics as Statistics
from batchstream._core.records import StreamEnd as StreamEnd
from batchstream._core.token_ids import token_ids as token_ids
from batchstream._native.selection import is_native as __native__  # noqa: F401 - no public name, and found
from batchstream._streams.async_batch import AsyncBatchedStream as AsyncBatchedStream
from batchstream._streams.async_stream import AsyncStream as AsyncStream
from batchstream._streams.batch import BatchedStream as BatchedStream
from batchstream._streams.channel import Channel as Channel
from batchstream._streams.demux import demux as demux
from batchstream._streams.paced import paced as paced
from batchstream._streams.stream import Stream as Stream

__version__ = "0.1.0"  # the one place: the build reads it here

__all__ = [
    "EOS",
    "SKIP",
    "AsyncBatchedStream",
    "AsyncReplies",
    "AsyncStream",
    "BatchStreamError",
    "BatchTrace",
    "BatchedStream",
    "BatcherStatistics",
    "BufferOverflowError",
    "Channel",
    "ClosedError",
    "ConcurrentConsumerError",
    "ContinuousBatcher",
    "DeadlineError",
    "Delivery",
    "Demultiplexer",
    "DynamicBatcher",
    "End",
    "Fail",
    "FinishReason",
    "ForkedError",
    "Last",
    "Many",
    "Metrics",
    "MissingEOSError",
    "NotNow",
    "OverloadedError",
    "Replies",
    "RequestError",
    "RequestTrace",
    "Requeue",
    "SlowConsumerError",
    "SourceError",
    "Statistics",
    "StepEngine",
    "StepError",
    "Stream",
    "StreamEnd",
    "Traces",
    "batched",
    "demux",
    "paced",
    "per_request",
    "token_ids",
]
