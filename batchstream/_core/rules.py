"""How a batch's slots end: the arguments that every form of batch takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from typing_extensions import TypeVar

from batchstream._core.arguments import check_eos
from batchstream._core.demultiplexer import Demultiplexer

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRules(Generic[T]):
    """The rules by which slots end; `core` makes the core of a batch that follows them.

    Args:
        eos: The end mark, compared by identity.
        is_eos: A predicate on outputs, true of the output that ends its sequence.
        include_eos: Whether the output that `is_eos` recognised is delivered.
        require_eos: Whether a slot that is live when the source ends fails.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or could never recognise an end.
    """

    eos: object = None
    is_eos: Callable[[T], object] | None = None
    include_eos: bool = False
    require_eos: bool = False

    def __post_init__(self) -> None:
        check_eos(self.eos, self.is_eos)

    def core(
        self,
        size: int,
        max_outputs: int | Sequence[int | None] | None = None,
        *,
        vacant: bool = False,
    ) -> Demultiplexer[T]:
        """Make a core of `size` slots, with a limit on the outputs of each.

        Raises:
            TypeError, ValueError: `max_outputs` is no limit, or not one for each slot.
        """
        return Demultiplexer(
            size,
            eos=self.eos,
            is_eos=self.is_eos,
            include_eos=self.include_eos,
            max_outputs=max_outputs,
            require_eos=self.require_eos,
            vacant=vacant,
        )
