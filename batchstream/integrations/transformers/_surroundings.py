"""What torch knows of the thread that runs a model, and what an error keeps of its tensors."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch


class Surroundings:
    """Torch's state of the thread in which a source was made, for the threads that move it.

    Autocast, inference mode and the current CUDA device belong to a thread, and a source may be
    moved by another one at each step. They are set for a step and given back behind it.

    Args:
        device: The device of the model; None if it does not say.
    """

    def __init__(self, device: Any) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None
        kind = "cpu" if device is None else device.type
        self._autocast: dict[str, Any] | None = None
        if kind != "meta" and torch.is_autocast_enabled(kind):
            self._autocast = {
                "device_type": kind,
                "dtype": torch.get_autocast_dtype(kind),
                "cache_enabled": torch.is_autocast_cache_enabled(),
            }

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Set the state for the length of a block."""
        with ExitStack() as stack:
            for each in self._contexts():
                stack.enter_context(each)
            yield

    def _contexts(self) -> Iterator[AbstractContextManager[Any]]:
        # A tensor that was made in inference mode cannot be changed by a thread that is not in it.
        yield torch.inference_mode(mode=False)
        yield torch.no_grad()
        if self._cuda is not None:
            yield torch.cuda.device(self._cuda)
        if self._autocast is not None:
            yield torch.autocast(**self._autocast)


def clear_error_frames(error: BaseException) -> None:
    """Clear the frames that an error has left, so that it does not keep what they held.

    A stream keeps its error for as long as it is referenced, an error its traceback, the traceback
    its frames, and these the cache of the whole batch: the memory whose lack may be the error.

    An exception that led to this one is followed only if it was caught in one of these frames.
    What the caller was handling meanwhile is the caller's, and so are its frames.
    """
    frames: set[FrameType] = set()
    seen: set[int] = set()
    found = [error]
    while found:
        each = found.pop()
        left = [frame for frame, _ in traceback.walk_tb(each.__traceback__)]
        if id(each) in seen or (each is not error and not (left and left[0] in frames)):
            continue
        seen.add(id(each))
        frames.update(left)
        traceback.clear_frames(each.__traceback__)
        found += [it for it in (each.__cause__, each.__context__) if it is not None]
