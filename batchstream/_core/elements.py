"""What a step may hold, as types: from them a checker infers the outputs of streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from typing_extensions import TypeVar

from batchstream._core.markers import End, Fail, Last, Many, Signal

T = TypeVar("T")

Element: TypeAlias = "T | Last[T] | Many[T] | End | Fail | Signal"
"""An output, or a marker."""

Step: TypeAlias = "Sequence[Element[T]] | Mapping[int, Element[T]]"
"""A step in which None is no end mark: with an `eos` of the program's own, None is an output."""

StepWithNone: TypeAlias = "Sequence[Element[T] | None] | Mapping[int, Element[T] | None]"
"""A step in which None is the end mark, and no output."""
