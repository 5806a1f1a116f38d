"""What the sources for transformers cost, beside `generate` alone and its own streamers.

The models are Llamas with random weights, made here; no hub is asked. Contestants take turns.
Ratios are of the least processor time of all rounds, which other work on the machine disturbs
least, and of one round, with their spread; a second `generate` shows the noise. Batches of equal
length show what a step costs; requests of unequal length show what dropping rows saves.

    python benchmarks/transformers_sources.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from harness import machine, ratios, run, spread, table, take_turns
from models import ragged
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from batchstream import AsyncBatchedStream, BatchedStream
from batchstream.integrations.transformers import BatchStreamer, stream_generate, stream_text

ROWS, SLOTS = 8, 16
REQUESTS, MEAN = 48, 31
SIZES = {"tiny": (16, 2, 100), "middle": (512, 6, 24)}  # width, layers, tokens
QUICK_TOKENS = 20
BARE = "`generate`"
AGAIN = "the same again: the noise"
TEXT = "`stream_text`, a task each"
TODAY = "`TextIteratorStreamer`, a thread each"
PROMPT = "the quick brown fox"


@dataclass(frozen=True)
class Said:
    """What one run of a contestant took, in seconds."""

    processor: float
    first: float  # until the first output
    end: float


def model_of(width: int, layers: int) -> LlamaForCausalLM:
    """Return a Llama that never ends of itself, so that all make the same steps."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1_024,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2 if width < 64 else 8,
        max_position_embeddings=1_024,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.pad_token_id = 0
    return model


def tokenizer_of() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, and of made-up words for the rest of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", *alphabet, *(f"Ġword{number}" for number in range(1_023 - len(alphabet)))]
    bare = Tokenizer(tokenizer_models.BPE({name: at for at, name in enumerate(names)}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, model_input_names=inputs, pad_token=names[0]
    )


class Rows:
    """Counts the forwards of a model and the rows in them, within a block."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.counts: list[int] = []

    def __enter__(self) -> Self:
        self.hook = self.model.register_forward_hook(
            lambda _model, _args, output: self.counts.append(output.logits.shape[0])
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


class Ignored(BaseStreamer):
    """A streamer that reads each step, as each streamer has to, and drops it."""

    def put(self, value: torch.Tensor) -> None:
        """Read the step."""
        value.tolist()

    def end(self) -> None:
        """Do nothing."""


# ---- batches of equal length


class Equal:
    """A batch whose rows all go on to the limit, and how to read it."""

    def __init__(self, model: LlamaForCausalLM, tokens: int) -> None:
        self.model, self.tokens = model, tokens
        self.tokenizer = tokenizer_of()
        self.inputs = dict(self.tokenizer([PROMPT] * ROWS, return_tensors="pt"))
        self.one = dict(self.tokenizer([PROMPT], return_tensors="pt"))
        self.first = 0.0

    def contestants(self) -> dict[str, Callable[[], object]]:
        """Return what takes part."""
        return {
            BARE: self.bare,
            AGAIN: self.bare,
            "`generate` with a streamer that does nothing": partial(self.bare, Ignored()),
            "`stream_generate`, read by step": self.by_step,
            "`stream_generate`, a task each": self.by_task,
            TEXT: self.text_by_task,
            "`BatchStreamer` of ids, a task each": self.streamer_by_task,
            TODAY: self.today,
        }

    def said(self, contestant: Callable[[], object]) -> Said:
        """Run a contestant and return what it took."""
        begin, processor = time.perf_counter(), time.process_time()
        self.first = 0.0
        contestant()
        end = time.perf_counter()
        first = self.first or end  # bare `generate` gives all at its end
        return Said(time.process_time() - processor, first - begin, end - begin)

    def note_first(self) -> None:
        """Note when the first output came."""
        if not self.first:
            self.first = time.perf_counter()

    def bare(self, streamer: BaseStreamer | None = None) -> None:
        """Return all at the end."""
        self.model.generate(**self.inputs, max_new_tokens=self.tokens, streamer=streamer)

    def source(self) -> Iterator[object]:
        """Return the source of the batch."""
        return stream_generate(self.model, self.inputs, max_new_tokens=self.tokens)

    def by_step(self) -> None:
        """Read one delivery for each step, in one thread."""
        outputs = 0
        with BatchedStream(self.source(), ROWS) as batch:
            for delivery in batch.steps():
                self.note_first()
                outputs += len(delivery.values)
        assert outputs == ROWS * self.tokens

    def by_task(self) -> None:
        """Read each stream in a task."""
        run(self.read_source, self.source())

    def text_by_task(self) -> None:
        """Read each stream of text in a task."""
        prompts = [PROMPT] * ROWS
        source = stream_text(self.model, self.tokenizer, prompts, max_new_tokens=self.tokens)
        run(self.read_source, source)

    async def read_source(self, source: Iterator[object]) -> None:
        """Read the streams of a source."""
        async with AsyncBatchedStream(source, ROWS) as batch:
            await asyncio.gather(*map(self.read, batch))

    def streamer_by_task(self) -> None:
        """Let `generate` run in a thread of its own."""
        run(self.read_streamer)

    async def read_streamer(self) -> None:
        """Read the streams of a streamer."""
        streamer = BatchStreamer(size=ROWS, skip_prompt=True)
        call = dict(self.inputs, max_new_tokens=self.tokens)
        thread = threading.Thread(target=streamer.run, args=[self.model.generate], kwargs=call)
        thread.start()
        await asyncio.gather(*map(self.read, streamer.astreams()))
        thread.join()

    async def read(self, stream: AsyncIterator[object]) -> None:
        """Read a stream to its end."""
        async for _ in stream:
            self.note_first()

    def today(self) -> None:
        """Let each request have a `generate` and a thread, as the documentation shows."""

        def reply() -> None:
            streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True)
            call = dict(self.one, max_new_tokens=self.tokens, streamer=streamer)
            thread = threading.Thread(target=self.model.generate, kwargs=call)
            thread.start()
            for text in streamer:
                if text:
                    self.note_first()
            thread.join()

        replies = [threading.Thread(target=reply) for _ in range(ROWS)]
        for each in replies:
            each.start()
        for each in replies:
            each.join()


def compare_equal(name: str, model: LlamaForCausalLM, tokens: int, rounds: int) -> None:
    """Print what the ways cost for a batch of equal lengths."""
    batch = Equal(model, tokens)
    ways = batch.contestants()
    told = take_turns({way: partial(batch.said, ways[way]) for way in ways}, rounds)
    processor = {way: [said.processor for said in told[way]] for way in ways}
    end = {way: [said.end for said in told[way]] for way in ways}
    rows = [
        [
            way,
            f"{min(processor[way]) / min(processor[BARE]):.2f}",
            spread(ratios(processor[way], processor[BARE]), 1, 2),
            spread(ratios(end[way], end[BARE]), 1, 2),
            spread(processor[way], 1e3 / tokens, 2),
            spread([said.first for said in told[way]], 1e3, 0),
            spread(end[way], 1e3, 0),
        ]
        for way in ways
    ]
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{name} model, {size / 1e6:.2g} M parameters: {ROWS} rows, {tokens} tokens each\n")
    head = ["", f"least processor, of {BARE}'s", "in one round", "time", "processor, ms a step"]
    print(table([*head, "first output, ms", "end, ms"], rows))
    times = min(processor[TODAY]) / min(processor[TEXT])
    print(f"\n{TODAY}, takes {times:.1f} times the processor time of {TEXT}.")


# ---- requests of unequal length


def compare_unequal(name: str, model: LlamaForCausalLM, rounds: int) -> None:
    """Print what rows cost that have ended."""
    limits = [request.length for request in ragged(REQUESTS, MEAN)]
    inputs = dict(tokenizer_of()([PROMPT] * SLOTS, return_tensors="pt"))
    batches = [limits[at : at + SLOTS] for at in range(0, REQUESTS, SLOTS)]

    def bare() -> None:
        for batch in batches:
            model.generate(**inputs, max_new_tokens=max(batch))

    def streamed(*, drop_rows: bool) -> None:
        for batch in batches:
            source = stream_generate(model, inputs, max_new_tokens=batch, drop_rows=drop_rows)
            with BatchedStream(source, SLOTS) as streams:
                outputs = sum(len(delivery.values) for delivery in streams.steps())
            assert outputs == sum(batch)

    ways = {
        BARE: bare,
        "`stream_generate`, rows stay": partial(streamed, drop_rows=False),
        "`stream_generate`, rows leave": partial(streamed, drop_rows=True),
    }

    def said(way: Callable[[], None]) -> tuple[float, int, int]:
        begin = time.process_time()
        with Rows(model) as rows:
            way()
        return time.process_time() - begin, len(rows.counts), sum(rows.counts)

    told = take_turns({way: partial(said, ways[way]) for way in ways}, rounds)
    processor = {way: [seconds for seconds, _, _ in told[way]] for way in ways}
    rows = [
        [
            way,
            spread(ratios(processor[way], processor[BARE]), 1, 2),
            str(told[way][0][1]),
            str(told[way][0][2]),
            f"{told[way][0][2] / told[BARE][0][2]:.2f}",
        ]
        for way in ways
    ]
    print(f"{name} model: {REQUESTS} requests in batches of {SLOTS}, {sum(limits)} tokens\n")
    head = ["", f"processor, of {BARE}", "forwards", "row-tokens", f"of {BARE}"]
    print(table(head, rows))


def main(*, quick: bool = False) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    rounds = 1 if quick else 9
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{machine(rounds)}, {versions}, one thread of torch; median (min-max)")
    for name, (width, layers, tokens) in SIZES.items():
        model = model_of(width, layers)
        print()
        compare_equal(name, model, QUICK_TOKENS if quick else tokens, rounds)
        print()
        compare_unequal(name, model, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of each, and one round")
    main(quick=parser.parse_args().quick)
