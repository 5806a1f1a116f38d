"""The rules, tried on transformers' TextIteratorStreamer, with a tiny model of random weights."""

from __future__ import annotations

import threading
from queue import Empty
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TextIteratorStreamer

TOKENS = 200
AT_LONGEST = 10.0  # seconds, until what does not come counts as hanging

config = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)
model = LlamaForCausalLM(config).eval()


class Tokenizer:
    """Stands for a tokenizer: the streamer needs nothing but this."""

    def decode(self, ids: Any, **_: Any) -> str:
        """Return a word for each token."""
        return "".join(f"{int(token)} " for token in ids)


def generate(size: int, fails_at: int | None = None) -> tuple[TextIteratorStreamer, Any]:
    """Generate in a thread; give the streamer, and a list with a number for each step."""
    streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True, timeout=AT_LONGEST)
    steps: list[int] = []

    def count(ids: Any, scores: Any) -> Any:  # noqa: ARG001 - the signature of a processor
        if len(steps) == fails_at:
            raise OSError("device lost")
        steps.append(len(steps))
        return scores

    def run() -> None:
        try:
            ids = torch.ones((size, 3), dtype=torch.long)
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                do_sample=False,
                streamer=streamer,
                logits_processor=[count],
            )
        except (OSError, ValueError):
            pass  # no client notices: that is what is shown

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return streamer, (thread, steps)


def several() -> bool:
    """A batch of more than one request is streamed."""
    _, (thread, steps) = generate(2)
    thread.join()
    return len(steps) == TOKENS


def error() -> bool:
    """An error of the model reaches each client; one that must give up waiting was not reached."""
    streamer, _ = generate(1, fails_at=3)
    try:
        for _ in streamer:
            pass
    except Empty:
        return False
    except OSError:
        return True
    return False


def leave() -> bool:
    """The model stops when its client is gone."""
    streamer, (thread, steps) = generate(1)
    next(streamer)
    del streamer
    thread.join()
    return len(steps) < TOKENS


def slow() -> bool:
    """What is held for a client that does not read has a bound."""
    streamer, (thread, _) = generate(1)
    thread.join()  # the client has read nothing
    return streamer.text_queue.qsize() < TOKENS // 2


RULES = {"several": several, "error": error, "leave": leave, "slow": slow}
