"""A model that runs ahead in the background, and clients in threads, one of which is too slow.

    python examples/threads.py

With `background=True` the model has a thread of its own, and the clients wait in theirs. One of
them gives up waiting now and then, to say so; nothing is lost by it. Another does not read what it
gets. It may hold so many outputs and no more: then it is ended, and no other has waited for it.
"""

import argparse
import threading
from collections.abc import Iterator

from batchstream import BatchedStream, SlowConsumerError, Stream

MAX_BUFFERED = 8
LENGTHS = {"short": 3, "long": MAX_BUFFERED, "slow": 10_000}  # outputs for each request
PATIENCE = 0.05  # seconds
STUCK = 10.0


class Model:
    """Counts, once it has been warmed up."""

    def __init__(self) -> None:
        self.warm = threading.Event()
        self.closed = threading.Event()
        self.steps = 0

    def generate(self, lengths: list[int]) -> Iterator[dict[int, int | None]]:
        """Yield the number of the step to each live slot, and None after its last."""
        try:
            self.warm.wait()
            live: tuple[int, ...] = tuple(range(len(lengths)))
            while True:
                step = {s: self.steps if self.steps < lengths[s] else None for s in live}
                self.steps += 1
                live = yield step
        finally:
            self.closed.set()


def impatient(stream: Stream[int], model: Model) -> str:
    """Receive everything, and note how often nothing came in time."""
    outputs, timeouts = [], 0
    while True:
        try:
            outputs.append(stream.receive(timeout=PATIENCE))
        except TimeoutError:
            timeouts += 1
            model.warm.set()  # for the sake of the example: it was cold, so nothing could come
        except StopIteration:
            return f"received {outputs}, waited in vain: {'yes' if timeouts else 'no'}"


def patient(stream: Stream[int], _: Model) -> str:
    """Receive everything, however long it takes."""
    return f"received {list(stream)}"


def stuck(stream: Stream[int], model: Model) -> str:
    """Read nothing until the model is through, and then what there is."""
    if not model.closed.wait(STUCK):
        return "the model still works for a client that does not read"
    outputs = []
    try:
        for output in stream:
            outputs.append(output)  # noqa: PERF402 - what list(stream) had would be lost
    except SlowConsumerError as error:
        return f"received {len(outputs)} outputs, then: {error}"
    return f"received all of its {len(outputs)} outputs"


def main() -> None:
    """Serve three clients, and print what each says."""
    model = Model()
    clients = {"short": impatient, "long": patient, "slow": stuck}
    answers = {}

    def serve(name: str, stream: Stream[int]) -> None:
        answers[name] = clients[name](stream, model)

    with BatchedStream[int](
        model.generate(list(LENGTHS.values())),
        size=len(LENGTHS),
        background=True,
        max_buffered=MAX_BUFFERED,
        on_overflow="cancel",
    ) as batch:
        threads = [
            threading.Thread(target=serve, args=(name, stream))
            for name, stream in zip(LENGTHS, batch, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, stream in zip(LENGTHS, batch, strict=True):
            print(f"{name}: {answers[name]} ({stream.finish_reason})")
    print(f"model: {model.steps} steps, closed: {'yes' if model.closed.is_set() else 'no'}")


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    main()
