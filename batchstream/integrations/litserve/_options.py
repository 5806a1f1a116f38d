"""What a loop is made with: checked in the process that makes it, used in the workers."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from batchstream._core.arguments import check_count, check_limit, check_seconds
from batchstream._core.rules import EndRules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Hook: TypeAlias = Literal["encode_response", "predict"]
"""The hooks whose steps can hold the ends."""

Limit: TypeAlias = "int | Callable[[Mapping[str, Any]], int | None] | None"
"""How many outputs a request gets at most: a number, or a function of the request's context."""


@dataclass(frozen=True)
class LoopOptions:
    """The options of a loop. LitServe spawns its workers, so all of them have to pickle.

    Attributes:
        rules: How the ends of streams are recognised.
        max_outputs: The limit of each request.
        max_pending: How many requests may wait; None for any number.
        max_buffered: How many messages may wait for a client; None for any number.
        grace_period: How many seconds open responses may take when the server is told to end.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or would not reach a worker.
    """

    rules: EndRules[Any]
    max_outputs: Limit
    max_pending: int | None
    max_buffered: int | None
    grace_period: float

    def __post_init__(self) -> None:
        eos = self.rules.eos
        check_pickles("is_eos", self.rules.per_request or self.rules.is_eos)
        check_pickles("eos", eos)
        if pickle.loads(ForkingPickler.dumps(eos)) is not eos:  # noqa: S301 - just pickled
            raise ValueError(
                f"eos is compared by identity, which {eos!r} loses on its way into a worker "
                f"process: pass None, EOS, a class or a member of an enum"
            )
        if callable(self.max_outputs):
            check_pickles("max_outputs", self.max_outputs)
        else:
            check_limit(self.max_outputs)
        for name in ("max_pending", "max_buffered"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), at_least=1)
        check_seconds("grace_period", self.grace_period)

    def limit_of(self, context: Mapping[str, Any]) -> int | None:
        """Return how many outputs a request gets at most.

        Raises:
            TypeError, ValueError: The function returned something else.
            Exception: What the function raises.
        """
        limit = self.max_outputs
        return check_limit(limit(context) if callable(limit) else limit)


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
