"""Text out of token ids, with and without stop strings, against what it stands on.

That is `DecodeStream` of `tokenizers`, in Rust, which knows no stop strings, no prompt and no end,
and which a byte that spoils a character silences for good. *Beside it*: the same ids through
`TextStreamer` of transformers, if that is installed, which is made to print a single sequence.

The last rows are the whole way in one thread: 64 streams of a `ContinuousBatcher`, with `decode`,
less the same batcher that passes token ids on.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import goals
from harness import CORES, ROUNDS, alternate, machine, ratios, spread, table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream

from batchstream.text import Detokenizer, TextDecoder

LINES = [
    "the quick brown fox jumps over the lazy dog. hello there",
    "It's done, isn't it? Na\u00efve \u65e5\u672c\u8a9e \U0001f44d",
]
TOKENS, QUICK_TOKENS = 4_000, 1_000
SLOTS = 64
ONE = ["\nUser:"]
FOUR = ["\nUser:", "###", "</answer>", "stop here"]
LONG = ["the quick brown fox jumps over the lazy cat. " * 5]
BASE = "DecodeStream"


def trained() -> Tokenizer:
    """Return a tokenizer of byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


TOKENIZER = trained()
IDS: list[int] = TOKENIZER.encode("\n".join(LINES) * 500).ids


class OnlyDecodes:
    """A tokenizer of which no more is known than that it decodes."""

    decode = staticmethod(TOKENIZER.decode)


def by_decode_stream(ids: list[int]) -> str:
    """Return the text as `DecodeStream` gives it."""
    stream = DecodeStream([], skip_special_tokens=True)
    return "".join(stream.step(TOKENIZER, token) or "" for token in ids)


def by_feeding(make: Callable[[], Any], ids: list[int]) -> str:
    """Return the text as one of ours gives it."""
    decoder = make()
    feed = decoder.feed
    return "".join([feed(token) for token in ids]) + decoder.finish()


def by_text_streamer(transformers: ModuleType, torch: ModuleType, ids: list[int]) -> str:
    """Return the text as transformers' streamer gives it, a token at a time."""
    parts: list[str] = []

    class Collects(transformers.TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002, ARG002
            parts.append(text)

    collects = Collects(transformers.PreTrainedTokenizerFast(tokenizer_object=TOKENIZER))
    for token in ids:
        collects.put(torch.tensor([token]))
    collects.end()
    return "".join(parts)


def decoders_alone(ids: list[int]) -> dict[str, Callable[[], str]]:
    """Return the contestants, by name."""
    makers: dict[str, Callable[[], Any]] = {
        "Detokenizer": partial(Detokenizer, TOKENIZER),
        "Detokenizer, with decode alone": partial(Detokenizer, OnlyDecodes()),
        "TextDecoder, no stop string": partial(TextDecoder, TOKENIZER),
        "TextDecoder, 1 stop string": partial(TextDecoder, TOKENIZER, stop=ONE),
        "TextDecoder, 4 stop strings": partial(TextDecoder, TOKENIZER, stop=FOUR),
        "TextDecoder, 1 of 225 characters": partial(TextDecoder, TOKENIZER, stop=LONG),
    }
    runs: dict[str, Callable[[], str]] = {BASE: partial(by_decode_stream, ids)}
    runs |= {name: partial(by_feeding, make, ids) for name, make in makers.items()}
    try:
        transformers = importlib.import_module("transformers")
        torch = importlib.import_module("torch")
    except ImportError:
        return runs
    runs["TextStreamer, transformers"] = partial(by_text_streamer, transformers, torch, ids)
    return runs


class Engine:
    """Gives each of its requests the same ids."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids
        self._requests: dict[int, Iterator[int]] = {}

    def add(self, slot: int, _: object) -> None:
        """Take a request in."""
        self._requests[slot] = iter(self._ids)

    def step(self) -> dict[int, int | None]:
        """Give each its next id."""
        return {slot: next(ids, None) for slot, ids in self._requests.items()}

    def remove(self, slot: int) -> None:
        """Forget a request."""
        del self._requests[slot]


def batched(package: ModuleType, ids: list[int], *, decoded: bool) -> None:
    """Read 64 streams of a batcher, which gives them ids or text."""
    text = importlib.import_module("batchstream.text")
    decode = (lambda _: text.TextDecoder(TOKENIZER, stop=ONE)) if decoded else None
    with package.ContinuousBatcher(
        Engine(ids), max_batch_size=SLOTS, max_buffered=len(ids) + 1, decode=decode
    ) as batcher:
        streams = [batcher.stream(number) for number in range(SLOTS)]
        for stream in streams:
            for _ in stream:
                pass


def main(*, quick: bool = False) -> None:
    """Print the tables."""
    rounds = 1 if quick else ROUNDS
    ids = IDS[: QUICK_TOKENS if quick else TOKENS]
    runs = decoders_alone(ids)
    assert {run() for run in runs.values()} == {TOKENIZER.decode(ids)}
    seconds = alternate(runs, rounds)
    rows = [
        [name, spread(took, 1e6 / len(ids), 2), spread(ratios(took, seconds[BASE]), 1, 2)]
        for name, took in seconds.items()
    ]
    print(f"Text of one token ({machine(rounds)}; processor time):\n")
    print(table(["decoder", "µs", f"time against {BASE}"], rows))
    one = seconds["TextDecoder, 1 stop string"]
    for core in CORES:
        goals.measured(goals.TEXT, core, ratios(one, seconds[BASE]))
        goals.measured(goals.TEXT_TIME, core, [took * 1e6 / len(ids) for took in one])

    ids = ids[: len(ids) // 10]
    ways = {
        (name, decoded): partial(core.run, batched, ids, decoded=decoded)
        for name, core in CORES.items()
        for decoded in (False, True)
    }
    per_token = 1e6 / len(ids) / SLOTS
    took_by = alternate(ways, rounds)
    rows = [
        [
            name,
            spread(took_by[name, False], per_token, 2),
            spread(took_by[name, True], per_token, 2),
        ]
        for name in CORES
    ]
    print(f"\n{SLOTS} streams of a ContinuousBatcher, one token, µs:\n")
    print(table(["core", "token ids", "decode=, 1 stop string"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    main(quick=parser.parse_args().quick)
    print()
    goals.main()
