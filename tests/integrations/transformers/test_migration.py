"""The diffs of the page on transformers, run before and after."""

import re
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest
from transformers import TextIteratorStreamer, TextStreamer

from batchstream import demux
from batchstream.integrations.transformers import BatchStreamer, stream_text
from support.tiny_models import tiny_text

PAGE = Path(__file__).parents[3] / "docs" / "transformers.md"
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
PROMPTS = ["so it is", "no"]
SECONDS = 40


class QueuesStreamer:
    """What programs write for batches: a queue for each row, and None at the end of the batch."""

    def __init__(self, tokenizer, size):
        self.queues = [Queue() for _ in range(size)]
        self._texts = [Texts(queue, tokenizer) for queue in self.queues]
        self._has_prompt = False

    def put(self, value):
        if not self._has_prompt:
            self._has_prompt = True
            return
        for text, token in zip(self._texts, value, strict=True):
            text.put(token.reshape(1))

    def end(self):
        for text in self._texts:
            text.end()


class Texts(TextStreamer):
    def __init__(self, queue, tokenizer):
        super().__init__(tokenizer, skip_special_tokens=True)
        self._queue = queue

    def on_finalized_text(self, text, stream_end=False):
        if text:
            self._queue.put(text)
        if stream_end:
            self._queue.put(None)


STARTED = []


class Seen(Thread):
    """A thread that the test can wait for."""

    def start(self):
        STARTED.append(self)
        super().start()


def made(diff, sign):
    """Return the function of one side of a diff."""
    lines = [line[1:] for line in diff.splitlines() if line[0] in (" ", sign)]
    model, tokenizer = tiny_text(3)
    names = {
        "BatchStreamer": BatchStreamer,
        "QueuesStreamer": QueuesStreamer,
        "TextIteratorStreamer": TextIteratorStreamer,
        "Thread": Seen,
        "demux": demux,
        "model": model,
        "stream_text": stream_text,
        "tokenizer": tokenizer,
    }
    exec("\n".join(lines), names)  # noqa: S102 - what the page shows
    return names.get("reply") or names["replies"]


def said(diff, sign):
    """Return what one side of a diff says."""
    function = made(diff, sign)
    if function.__name__ == "reply":
        got = ["".join(function(prompt)) for prompt in PROMPTS]
    else:
        got = ["".join(stream) for stream in function(PROMPTS)]
    for thread in STARTED:
        thread.join(SECONDS)
    STARTED.clear()
    return got


@pytest.mark.parametrize("number", range(3))
def test_a_migration_changes_three_lines_and_not_what_is_said(number):
    diff = DIFFS[number]
    before, after = said(diff, "-"), said(diff, "+")
    assert after == before
    assert all(before)
    assert len(re.findall(r"^\+", diff, re.MULTILINE)) <= 3
