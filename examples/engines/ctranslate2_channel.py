"""CTranslate2, which calls you with each token: its callback puts them into a `Channel`.

    python examples/engines/ctranslate2_channel.py

It needs `pip install ctranslate2`. The callback comes out of a thread of CTranslate2. What it
returns says whether its row stops, and the channel knows: a row stops where its stream has reached
its end or its limit, or was left.
"""

import argparse
import contextlib
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import tiny_models

from batchstream import Channel, token_ids


def open_channel(
    generator: ctranslate2.Generator,
    prompts: Sequence[Sequence[str]],
    *,
    eos: int,
    max_new_tokens: Sequence[int],
) -> Channel[int]:
    """Generate a batch in a thread, and return the channel of its token ids.

    Args:
        generator: The model.
        prompts: The tokens of each prompt, as text. It takes a token that it does not know for
            the unknown one.
        eos: The id of the token that ends a reply.
        max_new_tokens: How long each reply may be.
    """
    if not all(prompts):
        raise ValueError("each prompt needs a token, such as <s>, for the model to begin with")
    # The prompts are read together up to the length of the shortest. What the others have beyond it
    # is forced in the following steps, and comes as if it had been generated.
    shortest = min(map(len, prompts))
    forced = [len(prompt) - shortest for prompt in prompts]
    channel: Channel[int] = Channel(len(prompts), is_eos=token_ids(eos), max_outputs=max_new_tokens)

    def on_token(result: Any) -> bool:
        row = result.batch_id
        live = channel.live if result.step < forced[row] else channel.put({row: result.token_id})
        return row not in live

    def run() -> None:
        with contextlib.suppress(Exception), channel:  # the streams raise it
            generator.generate_batch(
                prompts,
                max_length=max(limit + n for limit, n in zip(max_new_tokens, forced, strict=True)),
                include_prompt_in_result=False,
                callback=on_token,
            )

    threading.Thread(target=run, name="ctranslate2").start()
    return channel


def main() -> None:
    """Generate a batch of four prompts; one of its streams is left."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_models.for_ctranslate2(Path(folder))
        generator = ctranslate2.Generator(str(path), intra_threads=1)
    prompts = [[tiny_models.TOKENS[4 + n]] * (1 + n) for n in range(4)]
    limits = [100_000, 7, 10, 13]
    channel = open_channel(generator, prompts, eos=tiny_models.EOS, max_new_tokens=limits)
    streams = channel.streams()
    next(streams[0])
    streams[0].cancel()  # its client has left
    for prompt, stream in zip(prompts, streams, strict=True):
        print(f"{' '.join(prompt)}: {list(stream)} ({stream.finish_reason})")


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    main()
