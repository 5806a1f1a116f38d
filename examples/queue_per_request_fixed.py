"""The four cases of `queue_per_request_broken.py`, with batchstream in place of the queues.

    python examples/queue_per_request_fixed.py

The model and the cases are imported from there, and are the same.

- a client that gives up waiting for the moment receives the output when it comes back;
- when all clients have gone away, the model is closed;
- a client that does not read holds 8 outputs and the outputs of one step, then learns why it ended;
- when the model raises, its clients are raised the same.
"""

import argparse
import asyncio
from collections.abc import Iterator

from queue_per_request_broken import main

from batchstream import AsyncBatchedStream


def open_batch(source: Iterator[list[str | None]], size: int) -> AsyncBatchedStream[str]:
    """Run the source in a thread, and give its streams."""
    return AsyncBatchedStream(source, size, max_buffered=8, on_overflow="cancel")


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    asyncio.run(main(open_batch))
