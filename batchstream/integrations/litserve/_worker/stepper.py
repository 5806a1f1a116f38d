"""How a model makes a step, whether hooks or an engine drive it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

from batchstream._core.errors import INTERRUPTS, begin_in_source, forget_context

if TYPE_CHECKING:
    from batchstream import Delivery, Demultiplexer
    from batchstream._batching.engine import Engine
    from batchstream._pumps.source import Source


class Stepper(Protocol):
    """A model with requests in its slots."""

    def step(self) -> Delivery[Any] | None:
        """Make a step; None if no request is left to make one for."""

    def vacate(self, slot: int) -> None:
        """Take a request out of its slot, before the model's next step at the latest."""


def make_step(core: Demultiplexer[Any], model: Source | Engine) -> Delivery[Any]:
    """Let the model make a step, and return which slots get what of it, or how they end.

    Raises:
        BaseException: What is meant for the thread, from the model; or what an `is_eos` raises that
            is no `Exception`.
    """
    try:
        step = model.advance(core.live)
    except StopIteration:
        return core.finish()
    except INTERRUPTS:
        raise
    except BaseException as error:  # noqa: BLE001 - an end of the requests in the model
        failure = error
    else:
        return core.feed(step)
    # Here, outside of the handler, the exception being handled is the one of an `encode_response`
    # that looks ahead: other requests' logs must not show it.
    forget_context(failure, sys.exception())
    begin_in_source(failure)
    return core.fail(failure)
