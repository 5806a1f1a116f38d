"""What every form of batch is opened with: the arguments, checked, and the core that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Generic

from typing_extensions import TypeVar

from batchstream._core.demultiplexer import Demultiplexer
from batchstream._core.steps import step_width

if TYPE_CHECKING:
    from batchstream._pumps.source import Source

T = TypeVar("T")


class Opening(Generic[T]):
    """Arguments that were found right before the source was touched.

    Args:
        size: How many slots the batch has, or None to `learn` it.
        eos: For these, see `Demultiplexer`.
        is_eos: A predicate on outputs.
        include_eos: Whether what it recognised is delivered.
        max_outputs: The limit, or the limits.
        require_eos: Whether an end without a mark is an error.

    Attributes:
        core: The core, where the size is given.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.
    """

    def __init__(
        self,
        size: int | None,
        *,
        eos: object,
        is_eos: Callable[[T], object] | None,
        include_eos: bool,
        max_outputs: int | Sequence[int | None] | None,
        require_eos: bool,
    ) -> None:
        self._core_of: Callable[..., Demultiplexer[T]] = partial(
            Demultiplexer,
            eos=eos,
            is_eos=is_eos,
            include_eos=include_eos,
            require_eos=require_eos,
        )
        self._max_outputs = max_outputs
        least_size = len(max_outputs) if isinstance(max_outputs, Sequence) else 0
        self.core = self._core_of(least_size if size is None else size, max_outputs=max_outputs)

    def learn(self, source: Source) -> Demultiplexer[T]:
        """Pull the first step, which the source will give again, and return a core for its width.

        Raises:
            BaseException: What the source raises, or what is wrong with the step; the source is
                closed.
        """
        try:
            size = _width_of_first_step(source)
            return self._core_of(size, max_outputs=self._max_outputs if size else None)
        except BaseException:
            source.close_quietly()
            raise


def _width_of_first_step(source: Source) -> int:
    try:
        return step_width(source.peek())
    except StopIteration:
        return 0
