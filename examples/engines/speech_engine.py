"""A model whose outputs are no text: speech, in chunks of 20 milliseconds, under a batcher.

    python examples/engines/speech_engine.py

It needs NumPy. The model is a small recurrent network with random weights, so it speaks as a
robot does; what is real is how chunks go: each request gets arrays of samples as they are made, and
its stream ends with its text. For a server, `as_pcm` makes bytes of a chunk.
"""

import argparse
from typing import NamedTuple

import numpy as np

from batchstream import ContinuousBatcher, Last, NotNow, RequestError

RATE = 16_000  # samples a second
CHUNK = 320  # samples
CHUNKS_A_LETTER = 4
LETTERS = "abcdefghijklmnopqrstuvwxyz "
UNITS = 24

Chunk = np.ndarray  # (320,) of float32, between -1 and 1


class Speech(NamedTuple):
    """What a client asks for."""

    text: str
    pitch: float = 120.0  # Hz


class SpeechEngine:
    """A `StepEngine` of chunks: all requests are rows of the same arrays.

    Args:
        slots: How many requests may be in it: the batcher's `max_batch_size`.
        most_letters: What the requests in it may have to say together; more have to wait.
    """

    def __init__(self, slots: int, *, most_letters: int = 10_000, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.letters = random.normal(0, 1, (len(LETTERS), UNITS)).astype(np.float32)
        self.recurrent = random.normal(0, 0.3, (UNITS, UNITS)).astype(np.float32)
        self.loudness = random.normal(0, 0.5, (UNITS, 8)).astype(np.float32)  # of each overtone
        self.state = np.zeros((slots, UNITS), np.float32)
        self.phase = np.zeros(slots)
        self.most_letters = most_letters
        self.requests: dict[int, Speech] = {}
        self.made: dict[int, int] = {}  # chunks of each

    def add(self, slot: int, speech: Speech) -> None:
        """Let a request join, in a row of its own."""
        unknown = set(speech.text) - set(LETTERS)
        if unknown or not 0 < len(speech.text) <= self.most_letters:
            raise RequestError(f"a text has up to {self.most_letters} letters of {LETTERS!r}")
        spoken = sum(len(other.text) for other in self.requests.values())
        if spoken + len(speech.text) > self.most_letters:
            raise NotNow
        self.requests[slot], self.made[slot] = speech, 0
        self.state[slot], self.phase[slot] = 0, 0

    def step(self) -> dict[int, Chunk | Last[Chunk]]:
        """Make a chunk for every request, in one go."""
        slots = list(self.requests)
        said = [
            LETTERS.index(self.requests[n].text[self.made[n] // CHUNKS_A_LETTER]) for n in slots
        ]
        state = np.tanh(self.state[slots] @ self.recurrent + self.letters[said])
        self.state[slots] = state
        pitches = np.array([self.requests[slot].pitch for slot in slots])
        turns = self.phase[slots, None] + pitches[:, None] * np.arange(1, CHUNK + 1) / RATE
        self.phase[slots] = turns[:, -1] % 1
        overtones = np.sin(2 * np.pi * turns[:, None, :] * np.arange(1, 9)[:, None])
        chunks = np.einsum("so,sot->st", np.tanh(state @ self.loudness) / 8, overtones)
        # A row of its own for each: a view would keep the chunks of all others in memory.
        return {
            slot: self.marked(slot, np.array(chunk, np.float32))
            for slot, chunk in zip(slots, chunks, strict=True)
        }

    def marked(self, slot: int, chunk: Chunk) -> Chunk | Last[Chunk]:
        """Say with the last chunk that it is the last: no value of an array is an end mark."""
        self.made[slot] += 1
        is_last = self.made[slot] == CHUNKS_A_LETTER * len(self.requests[slot].text)
        return Last(chunk) if is_last else chunk

    def remove(self, slot: int) -> None:
        """Free the row."""
        del self.requests[slot], self.made[slot]


def as_pcm(chunk: Chunk) -> bytes:
    """Return the samples as 16-bit PCM: pass it as `encode` to `stream.body`."""
    return (chunk * 32_767).astype("<i2").tobytes()


def main() -> None:
    """Speak four texts in two slots; one of the listeners leaves."""
    speeches = [Speech("hello"), Speech("good morning", pitch=180), Speech("bye", pitch=90)]
    with ContinuousBatcher[Speech, Chunk](lambda: SpeechEngine(2), max_batch_size=2) as batcher:
        leaving = batcher.stream(Speech("and on " * 99))
        streams = [batcher.stream(speech) for speech in speeches]
        next(leaving)
        leaving.cancel()  # its listener has left
        for speech, stream in zip(speeches, streams, strict=True):
            chunks = list(stream)
            seconds = sum(map(len, chunks)) / RATE
            print(
                f"{speech.text!r}: {len(chunks)} chunks, {seconds:.2f} s ({stream.finish_reason})"
            )


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    main()
