"""A call of `generate` in a thread, which makes a step when the source is asked for one.

For decoding that has no loop of ours: assisted decoding, prompt lookup, a model with a `generate`
or a loop of its own. `generate` calls a streamer with each step; the streamer hands it to the
source and waits until that is asked for the next one. So the thread never runs ahead.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Collection, Generator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

from transformers.generation.streamers import BaseStreamer

from batchstream.integrations.transformers._limits import highest, limits_of
from batchstream.integrations.transformers._marks import (
    Left,
    Marks,
    RowCriteria,
    listed,
    taken_criteria,
)
from batchstream.integrations.transformers._settings import Settings
from batchstream.integrations.transformers._surroundings import Surroundings, clear_error_frames


class _Handoff(BaseStreamer):
    """What `generate` calls with each step, and the source asks for one."""

    def __init__(self, rows: RowCriteria) -> None:
        self._rows = rows
        self._steps: SimpleQueue[Any] = SimpleQueue()
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._has_prompt = False

    # ---- in the thread of generate

    def put(self, value: Any) -> None:
        """Hand a step over, and wait until the next one is wanted; the prompt waits for nothing."""
        self._rows.put(value)
        self._steps.put(value)
        if not self._has_prompt:
            self._has_prompt = True
        elif not self._asked.get():
            raise Left

    def end(self) -> None:
        """Do nothing: the thread says how it ended."""

    def over(self, error: BaseException | None) -> None:
        """Say that no step follows, and why."""
        self._steps.put(error)

    # ---- in the source

    def next(self) -> Any:
        """Return the next step, None behind the last one.

        Raises:
            BaseException: What `generate` raised.
        """
        step = self._steps.get()
        if isinstance(step, BaseException):
            raise step
        return step

    def ask(self, *, go_on: bool) -> None:
        """Let `generate` go on, or leave it."""
        self._asked.put(go_on)


def in_lockstep(
    generate: Callable[..., Any],
    arguments: dict[str, Any],
    *,
    max_new_tokens: int | Sequence[int],
    eos: frozenset[int],
    surroundings: Surroundings,
) -> Generator[list[Any] | dict[int, Any], Collection[int] | None, None]:
    """Return the steps of a call of `generate`, which runs in a thread of its own.

    Args:
        generate: The method of the model.
        arguments: The arguments of the call, but for the streamer and the limit.
        max_new_tokens: A limit for all slots, or one for each.
        eos: The token ids that end a sequence.
        surroundings: Torch's state for the thread.
    """
    settings = Settings(getattr(generate, "__self__", None), arguments)
    criteria, call = taken_criteria(settings)
    rows = RowCriteria(criteria)
    handoff = _Handoff(rows)
    call |= {
        "max_new_tokens": highest(max_new_tokens),
        "stopping_criteria": listed(rows),
        "streamer": handoff,
    }

    def run() -> None:
        nonlocal call
        given, call = call, {}
        try:
            with surroundings():
                generate(**given)
        except Left:
            handoff.over(None)
        except BaseException as error:  # noqa: BLE001 - it goes to the streams
            del given
            clear_error_frames(error)
            handoff.over(error)
        else:
            handoff.over(None)

    thread = Thread(
        target=contextvars.copy_context().run, args=[run], name="stream_generate", daemon=True
    )
    thread.start()
    try:
        prompt = handoff.next()
        if prompt is None:
            return
        marks = Marks(rows, prompt.shape[-1], limits_of(max_new_tokens, prompt.shape[0]), eos)
        while (step := handoff.next()) is not None:
            marks.keep((yield marks.elements(step)))
            if not marks.live:
                return
            handoff.ask(go_on=True)
        if last := marks.stopped():
            yield last
    finally:
        handoff.ask(go_on=False)  # which it reads once it has a step
        thread.join()
