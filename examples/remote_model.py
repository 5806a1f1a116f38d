"""The model of a server with many processes: it has this one, and they stream from it.

    python examples/remote_model.py model.sock
    python examples/remote_app.py model.sock --workers 4 --port 8000

Requests of all processes share the batches of one model. It makes up texts of so many words as it
is asked for, a word in each step. SIGTERM or Ctrl-C ends it: it takes no request any more, and lets
the requests that it has end.
"""

import argparse
import time

from batchstream import ContinuousBatcher, Last
from batchstream.remote import serve

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


class Engine:
    """Stand for yours: a step takes its time, however many requests are in it.

    Args:
        seconds: How long that is.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.texts: dict[int, tuple[int, int]] = {}  # how many words are made, and asked for

    def add(self, slot: int, words: int) -> None:
        """Let a request join."""
        self.texts[slot] = 0, words

    def step(self) -> dict[int, str | Last[str]]:
        """Make a word for each request."""
        time.sleep(self.seconds)
        step: dict[int, str | Last[str]] = {}
        for slot, (made, words) in self.texts.items():
            word = WORDS[made % len(WORDS)] + " "
            step[slot] = Last(word, info={"words": words}) if made + 1 == words else word
            self.texts[slot] = made + 1, words
        return step

    def remove(self, slot: int) -> None:
        """Forget a request that has ended."""
        del self.texts[slot]


def main() -> None:
    """Serve the model until a signal comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("socket", help="where to listen: the path of a socket")
    parser.add_argument("--slots", type=int, default=8, help="requests in a step at most")
    parser.add_argument("--pending", type=int, default=64, help="requests that may wait")
    parser.add_argument("--seconds", type=float, default=0.02, help="how long a step takes")
    parser.add_argument("--drain", type=float, default=20.0, help="seconds for requests to end in")
    args = parser.parse_args()
    batcher = ContinuousBatcher(
        lambda: Engine(args.seconds),
        max_batch_size=args.slots,
        max_pending=args.pending,
        drain=args.drain,
        name="model",
    )
    print(f"starting a model at {args.socket}; Ctrl-C ends it", flush=True)
    serve(batcher, args.socket)
    figures = batcher.statistics()
    print(f"{figures.outputs} words in {figures.steps} steps for {figures.opened} requests")


if __name__ == "__main__":
    main()
