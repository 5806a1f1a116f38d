"""What a loop is made with: checked in the process that makes it, used in the workers."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from batchstream._core.arguments import check_count, check_eos

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Hook: TypeAlias = Literal["encode_response", "predict"]
"""The hooks in whose steps a loop can look for the ends."""

Limit: TypeAlias = "int | Callable[[Mapping[str, Any]], int | None] | None"
"""How many outputs a request gets at most: a number, or a function of the request's context."""


class Options:
    """How the ends of streams are told. LitServe spawns its workers, so all of it has to pickle.

    Args:
        eos: The end mark.
        is_eos: A predicate on outputs.
        include_eos: Whether what it recognised is delivered.
        max_outputs: The limit.
        require_eos: Whether an end without a mark is an error.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or would not reach a worker.
    """

    def __init__(
        self,
        *,
        eos: object = None,
        is_eos: Callable[[Any], object] | None = None,
        include_eos: bool = False,
        max_outputs: Limit = None,
        require_eos: bool = False,
    ) -> None:
        check_eos(eos, is_eos)
        check_travels("is_eos", is_eos)
        check_travels("eos", eos)
        if pickle.loads(ForkingPickler.dumps(eos)) is not eos:  # noqa: S301 - just pickled
            raise ValueError(
                f"eos is compared by identity, which {eos!r} loses on its way into a worker "
                f"process: pass None, EOS, a class or a member of an enum"
            )
        if callable(max_outputs):
            check_travels("max_outputs", max_outputs)
        elif max_outputs is not None:
            max_outputs = check_count("max_outputs", max_outputs, at_least=1)
        self._max_outputs = max_outputs
        self.ends: dict[str, Any] = {
            "eos": eos,
            "is_eos": is_eos,
            "include_eos": include_eos,
            "require_eos": require_eos,
        }

    def limit_of(self, context: Mapping[str, Any]) -> int | None:
        """Return how many outputs a request gets at most.

        Raises:
            TypeError, ValueError: The function returned what is no such number.
            Exception: What the function raises.
        """
        limit = self._max_outputs
        if callable(limit):
            limit = limit(context)
        return None if limit is None else check_count("max_outputs", limit, at_least=1)


def check_travels(name: str, thing: object) -> None:
    """Refuse what cannot be sent to a spawned process.

    Raises:
        TypeError: It does not pickle.
    """
    try:
        ForkingPickler.dumps(thing)
    except Exception as error:
        raise TypeError(
            f"{name} has to be known by its name in LitServe's workers, which are spawned: pass a "
            f"function or class of a module, got {thing!r}"
        ) from error
