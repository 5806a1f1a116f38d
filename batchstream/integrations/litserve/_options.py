"""What a loop is made with: checked in the process that makes it, used in the workers."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from batchstream._core.arguments import check_count, limit_of
from batchstream._core.rules import EndRules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Hook: TypeAlias = Literal["encode_response", "predict"]
"""The hooks in whose steps a loop can look for the ends."""

Limit: TypeAlias = "int | Callable[[Mapping[str, Any]], int | None] | None"
"""How many outputs a request gets at most: a number, or a function of the request's context."""


class LoopOptions:
    """The options of a loop. LitServe spawns its workers, so all of them have to pickle.

    Args:
        rules: How the ends of streams are recognised.
        max_outputs: The limit of each request.
        max_pending: How many requests may wait; None for any number.
        max_buffered: How many messages may wait for a client; None for any number.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or would not reach a worker.
    """

    def __init__(
        self,
        rules: EndRules[Any],
        max_outputs: Limit,
        max_pending: int | None,
        max_buffered: int | None,
    ) -> None:
        check_pickles("is_eos", rules.is_eos)
        check_pickles("eos", rules.eos)
        eos = rules.eos
        if pickle.loads(ForkingPickler.dumps(eos)) is not eos:  # noqa: S301 - just pickled
            raise ValueError(
                f"eos is compared by identity, which {eos!r} loses on its way into a worker "
                f"process: pass None, EOS, a class or a member of an enum"
            )
        self.rules = rules
        if callable(max_outputs):
            check_pickles("max_outputs", max_outputs)
        else:
            max_outputs = limit_of(max_outputs, None)
        self._max_outputs = max_outputs
        self.max_pending = _count_or_none("max_pending", max_pending)
        self.max_buffered = _count_or_none("max_buffered", max_buffered)

    def limit_of(self, context: Mapping[str, Any]) -> int | None:
        """Return how many outputs a request gets at most.

        Raises:
            TypeError, ValueError: The function returned something else.
            Exception: What the function raises.
        """
        return limit_of(self._max_outputs, context)


def _count_or_none(name: str, value: object) -> int | None:
    return None if value is None else check_count(name, value, at_least=1)


def check_pickles(name: str, value: object) -> None:
    """Refuse what cannot be sent to a spawned process.

    Raises:
        TypeError: It does not pickle.
    """
    try:
        ForkingPickler.dumps(value)
    except Exception as error:
        raise TypeError(
            f"{name} has to be known by its name in LitServe's workers, which are spawned: pass a "
            f"function or class of a module, got {value!r}"
        ) from error
