"""How an API's hooks are called: for a batch, or for one request where there are no batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from litserve.loops.base import _inject_context

from batchstream import StepError
from batchstream._batching.single import check_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batchstream.integrations.litserve._worker.context import WorkerContext
    from batchstream.integrations.litserve._worker.request import ServedRequest

_FOR_RESULTS: Final = "yield [Last(result) for result in results]"


class Hooks(Protocol):
    """What hooks are given, and which steps they make.

    Attributes:
        own_unbatch: Whether an `unbatch` of the API's own makes the steps of what `predict` yields.
    """

    own_unbatch: bool

    def call(self, hook: Callable[..., Any], argument: Any) -> Any:
        """Call a hook, with the context if it has one."""

    def batch(self, contents: list[Any]) -> Any:
        """Return what `predict` is given for the decoded requests."""

    def unbatch(self, outputs: Any) -> Any:
        """Return what `encode_response` is given for what `predict` returned."""

    def check(self, hook: Callable[..., Any], outputs: Any) -> None:
        """Refuse what a hook returned, if reading it as outputs would go wrong in silence.

        Raises:
            StepError: It has a length, and is no iterator.
        """

    def steps(self, outputs: Any) -> Any:
        """Return the steps in what the last hook returned."""


def hooks_for(context: WorkerContext, requests: Sequence[ServedRequest]) -> Hooks:
    """Return the hooks for requests that are served together, by LitServe's rule of when."""
    if context.lit_api.max_batch_size > 1:
        return BatchHooks(context, requests)
    [request] = requests
    return SingleHooks(request)


class BatchHooks:
    """Hooks that take a batch: lists of requests and contexts, and steps of outputs.

    Args:
        context: What the loop works with.
        requests: The requests of the batch.
    """

    def __init__(self, context: WorkerContext, requests: Sequence[ServedRequest]) -> None:
        self._api = context.lit_api
        self._contexts: list[dict[Any, Any]] = [request.context for request in requests]
        self.own_unbatch = context.overrides("unbatch")

    def call(self, hook: Callable[..., Any], argument: Any) -> Any:
        return _inject_context(self._contexts, hook, argument)

    def batch(self, contents: list[Any]) -> Any:
        return self.call(self._api.batch, contents)

    def unbatch(self, outputs: Any) -> Any:
        return self.call(self._api.unbatch, outputs)

    def check(self, hook: Callable[..., Any], outputs: Any) -> None:
        check_steps(hook, outputs, for_results=_FOR_RESULTS)

    def steps(self, outputs: Any) -> Any:
        return outputs


class SingleHooks:
    """Hooks that take one request, as LitServe calls them at a `max_batch_size` of 1.

    `batch` and `unbatch` are not called. Each output is a step of a batch of one.

    Args:
        request: The request.
    """

    own_unbatch = False

    def __init__(self, request: ServedRequest) -> None:
        self._context: dict[Any, Any] = request.context

    def call(self, hook: Callable[..., Any], argument: Any) -> Any:
        return _inject_context(self._context, hook, argument)

    def batch(self, contents: list[Any]) -> Any:
        [content] = contents
        return content

    def unbatch(self, outputs: Any) -> Any:
        return outputs

    def check(self, hook: Callable[..., Any], outputs: Any) -> None:
        # Text, for instance, would be sent letter by letter.
        if hasattr(outputs, "__len__") and not hasattr(outputs, "__next__"):
            raise StepError(
                f"{hook!r} returned a {type(outputs).__name__}, and not an iterator of outputs: "
                f"yield the outputs, or return iter(outputs)",
                step=0,
            )

    def steps(self, outputs: Iterable[Any]) -> Any:
        return map(_step_of_one, outputs)


def _step_of_one(output: Any) -> list[Any]:
    return [output]
