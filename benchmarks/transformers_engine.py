"""A backlog of requests of unequal lengths, served by one model of transformers in several ways.

Needs torch and transformers. The models are made here, with random weights: a tiny one, whose time
is that of the ways themselves, and one whose time is that of its matrices. All ways have as many
slots, and give each request the tokens that it gets alone. A row-token is a token of one row,
padding included, that the model computes.

    python benchmarks/transformers_engine.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from harness import machine, ratios, spread, table, take_turns
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import batchstream
from batchstream.integrations.transformers import Generation, TransformersEngine

REQUESTS, QUICK_REQUESTS = 48, 16
SLOTS = 16
MEAN = 31  # tokens of an answer
PATIENCE = 60.0
SEED = 20
MODELS = {"tiny": (16, 2, 400), "16 million parameters": (384, 6, 4000)}
"""Hidden size, layers, and vocabulary."""

GENERATE, ENGINE, CHUNKED = "generate, batch by batch", "TransformersEngine", "the same, 8 a chunk"
MANAGER, ALONE = "transformers' manager", "generate, one by one"


@dataclass
class Run:
    """What a way has cost, and when its outputs came.

    Attributes:
        forwards: How often the model was called.
        row_tokens: How many tokens it has computed, padding included.
        first: When each request had its first output, in seconds since the beginning.
        end: When each had its last.
        cpu: Seconds of processor time, in all threads.
    """

    forwards: int = 0
    row_tokens: int = 0
    first: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    cpu: float = 0.0


Receive = Callable[[int, Sequence[int]], None]  # the request's number, and its next tokens
Way = Callable[[Any, Sequence[Generation], Receive], None]


def model_of(hidden: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    """Return a model with random weights."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 2),
        max_position_embeddings=1024,
        initializer_range=0.6 if hidden < 64 else 0.1,  # so that the tokens vary
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.pad_token_id = 0
    return model


def requests_of(count: int, vocabulary: int) -> list[Generation]:
    """Return prompts of up to 40 tokens, whose answers have geometric lengths."""
    random_ = random.Random(SEED)
    requests = []
    for _ in range(count):
        ids = [random_.randrange(3, vocabulary) for _ in range(random_.randint(4, 40))]
        length = 1
        while random_.random() > 1 / MEAN:
            length += 1
        requests.append(Generation(ids, length))
    return requests


def generated(model: Any, requests: Sequence[Generation]) -> list[list[int]]:
    """Return what one call of `generate` gives the requests."""
    width = max(len(request.ids) for request in requests)
    ids = torch.tensor([[0] * (width - len(each.ids)) + list(each.ids) for each in requests])
    mask = torch.tensor([[0] * (width - len(each.ids)) + [1] * len(each.ids) for each in requests])
    longest = max(request.max_new_tokens for request in requests)
    output = model.generate(ids, attention_mask=mask, max_new_tokens=longest, do_sample=False)
    return [
        row[: request.max_new_tokens]
        for row, request in zip(output[:, width:].tolist(), requests, strict=True)
    ]


def by_generate(
    model: Any, requests: Sequence[Generation], receive: Receive, size: int = SLOTS
) -> None:
    """Serve them as a dynamic batcher does: full batches, each as long as its longest."""
    for first in range(0, len(requests), size):
        for number, tokens in enumerate(generated(model, requests[first : first + size]), first):
            receive(number, tokens)


def one_by_one(model: Any, requests: Sequence[Generation], receive: Receive) -> None:
    """Serve each alone."""
    by_generate(model, requests, receive, 1)


def by_engine(model: Any, requests: Sequence[Generation], receive: Receive, **options: int) -> None:
    """Serve them by a `ContinuousBatcher`, to a task each."""

    async def read(number: int, stream: AsyncIterator[int]) -> None:
        async for token in stream:
            receive(number, (token,))

    async def serve() -> None:
        engine = TransformersEngine(model, **options)
        async with batchstream.ContinuousBatcher(engine, max_batch_size=SLOTS) as batcher:
            streams = [batcher.astream(request) for request in requests]
            await asyncio.gather(*(read(*each) for each in enumerate(streams)))

    asyncio.run(serve())


def chunked(model: Any, requests: Sequence[Generation], receive: Receive) -> None:
    """Do the same with prompts in chunks."""
    by_engine(model, requests, receive, prefill_chunk=8)


def by_manager(model: Any, requests: Sequence[Generation], receive: Receive) -> None:
    """Serve them by transformers' own continuous batching, which has a thread of its own."""
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=16, num_blocks=512, max_batch_tokens=256, max_requests_per_batch=SLOTS
        ),
    )
    manager.start()
    try:
        numbers: dict[str, int] = {}
        received = [0] * len(requests)
        for number, request in enumerate(requests):
            name = manager.add_request(
                list(request.ids), max_new_tokens=request.max_new_tokens, streaming=True
            )
            numbers[name] = number
        open_ = set(range(len(requests)))
        while open_:
            output = manager.get_result(timeout=PATIENCE)
            assert output is not None
            assert output.error is None, output.error
            number = numbers[output.request_id]
            tokens = output.generated_tokens[received[number] :]
            received[number] += len(tokens)
            receive(number, tokens)
            if received[number] == requests[number].max_new_tokens:
                open_.discard(number)
    finally:
        manager.stop(block=True)


WAYS: dict[str, Way] = {
    GENERATE: by_generate,
    ENGINE: by_engine,
    CHUNKED: chunked,
    MANAGER: by_manager,
    ALONE: one_by_one,
}


def measured(
    way: Way, model: Any, requests: Sequence[Generation], expected: Sequence[Sequence[int]]
) -> Run:
    """Serve the requests once."""
    run = Run(first=[0.0] * len(requests), end=[0.0] * len(requests))

    def note(_model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        run.forwards += 1
        run.row_tokens += ids.numel()

    def receive(number: int, tokens: Sequence[int]) -> None:
        now = time.perf_counter() - begin
        if not received[number]:
            run.first[number] = now
        run.end[number] = now
        received[number] += tokens

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    received: list[list[int]] = [[] for _ in requests]
    cpu, begin = time.process_time(), time.perf_counter()
    try:
        way(model, requests, receive)
        run.cpu = time.process_time() - cpu
    finally:
        hook.remove()
    assert received == list(expected)
    return run


def compare(name: str, count: int, rounds: int) -> None:
    """Print the table of a model."""
    model = model_of(*MODELS[name])
    requests = requests_of(count, model.config.vocab_size)
    expected = [generated(model, [request])[0] for request in requests]
    # The manager gives a model another attention, for all that use it.
    models = {way: copy.deepcopy(model) if way == MANAGER else model for way in WAYS}

    def contestant(way: str) -> Callable[[], Run]:
        return lambda: measured(WAYS[way], models[way], requests, expected)

    runs = take_turns({way: contestant(way) for way in WAYS}, rounds)
    base = runs[GENERATE]
    rows = []
    for way, of_way in runs.items():
        cpu = ratios([run.cpu for run in of_way], [run.cpu for run in base])
        waits = [
            ratios(
                [statistics.median(getattr(run, when)) for run in of_way],
                [statistics.median(getattr(run, when)) for run in base],
            )
            for when in ("first", "end")
        ]
        whole = ratios([max(run.end) for run in of_way], [max(run.end) for run in base])
        tokens = statistics.median(run.row_tokens for run in of_way)
        share = tokens / base[0].row_tokens
        counts = [f"{statistics.median(run.forwards for run in of_way):.0f}", f"{tokens:.0f}"]
        spreads = [spread(each, 1, 2) for each in (cpu, *waits, whole)]
        rows.append([way, *counts, f"{share:.2f}", *spreads])
    outputs = sum(request.max_new_tokens for request in requests)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{count} requests in {SLOTS} slots, {outputs} tokens, {parameters:,} parameters "
        f"(torch {torch.__version__}, transformers {transformers.__version__}, one thread; "
        f"{machine(rounds)}). Ratios are to generate, batch by batch, in the same round, where a "
        f"forward takes {min(run.cpu / run.forwards for run in base) * 1e3:.1f} ms:\n"
    )
    head = ["way", "forwards", "row-tokens", "ratio", "processor time"]
    print(table([*head, "first output, median", "end, median", "end of all"], rows))


def main(*, quick: bool = False) -> None:
    """Print a table for each model."""
    torch.set_num_threads(1)
    for number, name in enumerate(list(MODELS)[: 1 if quick else None]):
        if number:
            print()
        compare(name, QUICK_REQUESTS if quick else REQUESTS, 1 if quick else 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the tiny model, once")
    main(quick=parser.parse_args().quick)
