"""One stream per request from a batched generator, each ending exactly at its own end."""

from batchstream._async import AsyncBatchedStream as AsyncBatchedStream
from batchstream._async import AsyncStream as AsyncStream
from batchstream._continuous import ContinuousBatcher as ContinuousBatcher
from batchstream._continuous import StepEngine as StepEngine
from batchstream._demux import Demultiplexer as Demultiplexer
from batchstream._dynamic import DynamicBatcher as DynamicBatcher
from batchstream._dynamic import batched as batched
from batchstream._eos import token_ids as token_ids
from batchstream._errors import BatchStreamError as BatchStreamError
from batchstream._errors import BufferOverflowError as BufferOverflowError
from batchstream._errors import ClosedError as ClosedError
from batchstream._errors import ConcurrentConsumerError as ConcurrentConsumerError
from batchstream._errors import DeadlineError as DeadlineError
from batchstream._errors import MissingEOSError as MissingEOSError
from batchstream._errors import OverloadedError as OverloadedError
from batchstream._errors import SlowConsumerError as SlowConsumerError
from batchstream._errors import SourceError as SourceError
from batchstream._errors import StepError as StepError
from batchstream._events import BatcherStatistics as BatcherStatistics
from batchstream._events import Delivery as Delivery
from batchstream._events import FinishReason as FinishReason
from batchstream._events import Statistics as Statistics
from batchstream._events import StreamEnd as StreamEnd
from batchstream._markers import EOS as EOS
from batchstream._markers import SKIP as SKIP
from batchstream._markers import End as End
from batchstream._markers import Fail as Fail
from batchstream._markers import Last as Last
from batchstream._markers import Many as Many
from batchstream._metrics import Metrics as Metrics
from batchstream._open import demux as demux
from batchstream._sync import BatchedStream as BatchedStream
from batchstream._sync import Stream as Stream

__all__ = [
    "EOS",
    "SKIP",
    "AsyncBatchedStream",
    "AsyncStream",
    "BatchStreamError",
    "BatchedStream",
    "BatcherStatistics",
    "BufferOverflowError",
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
    "Last",
    "Many",
    "Metrics",
    "MissingEOSError",
    "OverloadedError",
    "SlowConsumerError",
    "SourceError",
    "Statistics",
    "StepEngine",
    "StepError",
    "Stream",
    "StreamEnd",
    "batched",
    "demux",
    "token_ids",
]
