"""The part of mlx-lm's `BatchGenerator` that the example uses, over the model in NumPy.

As there, a prompt takes at least two calls of `next`: one computes it, up to `prefill_step_size`
tokens a call, one gives its first token. A row is gone with its last token, and a number that is
not there may be removed.
"""

from __future__ import annotations

from types import SimpleNamespace

from support import tiny_llama


class BatchGenerator:
    def __init__(self, model, *, stop_tokens, prefill_step_size=2048):
        self.stops = {token for [token] in stop_tokens}
        self.prefill_step_size = prefill_step_size
        self.next_number = 0
        self.prompts = {}  # number: tokens, how many are to be computed, limit
        self.rows = {}  # number: tokens, how many may come
        self.closed = False

    def insert(self, prompts, max_tokens):
        numbers = []
        for prompt, limit in zip(prompts, max_tokens, strict=True):
            if not prompt:
                raise ValueError("empty prompt")
            if limit <= 0:
                raise ValueError("max_tokens must be > 0")
            self.prompts[self.next_number] = [list(prompt), len(prompt) - 1, limit]
            numbers.append(self.next_number)
            self.next_number += 1
        return numbers

    def next(self):
        responses, progress = [], []
        for number, row in list(self.rows.items()):
            token = int(tiny_llama.logits(row[0]).argmax())
            row[0].append(token)
            row[1] -= 1
            reason = "stop" if token in self.stops else None if row[1] else "length"
            if reason:
                del self.rows[number]
            responses.append(SimpleNamespace(uid=number, token=token, finish_reason=reason))
        for number, prompt in list(self.prompts.items()):
            progress.append(SimpleNamespace(uid=number))
            if prompt[1]:
                prompt[1] -= min(prompt[1], self.prefill_step_size)
            else:
                self.rows[number] = [prompt[0], prompt[2]]
                del self.prompts[number]
        return progress, responses

    def remove(self, numbers):
        for number in numbers:
            self.prompts.pop(number, None)
            self.rows.pop(number, None)

    def close(self):
        self.closed = True
