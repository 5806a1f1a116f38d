"""A function that returns one result for each request, as a source of one step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, NoReturn

from batchstream._core.arguments import call_text, takes
from batchstream._core.errors import StepError
from batchstream._core.markers import Fail, Last

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def steps_of_results(fn: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Iterator[list[Any]]]:
    """Make a function of steps from a function of results."""

    def one_step(contents: list[Any]) -> Iterator[list[Any]]:
        yield _step_of(fn, fn(contents), len(contents))

    return one_step


def async_steps_of_results(
    fn: Callable[[list[Any]], Any],
) -> Callable[[list[Any]], AsyncIterator[list[Any]]]:
    """Do the same with a coroutine function."""

    async def one_step(contents: list[Any]) -> AsyncIterator[list[Any]]:
        yield _step_of(fn, await fn(contents), len(contents))

    return one_step


def check_parameters(fn: Callable[..., Any], *, may_be_method: bool = False) -> None:
    """Refuse a function that cannot be called with a list of requests alone.

    Args:
        fn: The function; one whose parameters Python does not know is accepted.
        may_be_method: Whether it may take the instance before the list.

    Raises:
        TypeError: It takes no argument, or needs more.
    """
    if takes(fn, 1) or (may_be_method and takes(fn, 2)):
        return
    if isinstance(fn, type):
        instead = "decorate its method, or pass an instance that can be called"
    else:
        instead = "put what else it needs into the requests, or give it a default"
    raise TypeError(
        f"fn is called with one argument, the list of requests, which {call_text(fn)} does not "
        f"take: {instead}"
    ) from None  # it says more than what Python has raised


def check_steps(fn: object, source: object, *, for_results: str) -> None:
    """Refuse what is no source of steps but, most likely, one result for each request.

    Read as steps, results of the length of the batch would be transposed: every request would get
    a part of every result, and no error would tell.

    Args:
        fn: What has returned the source.
        source: What it has returned.
        for_results: What to do if these are results.

    Raises:
        StepError: The source has a length, and is no iterator; or is None.
    """
    if source is None:
        raise StepError(f"{fn!r} returned None, and not a source of steps: yield the steps", step=0)
    if hasattr(source, "__len__") and not hasattr(source, "__next__"):
        raise StepError(
            f"{fn!r} returned a {type(source).__name__}, and not a source of steps: yield the "
            f"steps, or return iter(steps); if it returns one result for each request, "
            f"{for_results}",
            step=0,
        )


def _step_of(fn: object, results: Any, size: int) -> list[Any]:
    """Return the step that gives each request its result, whatever that is, and ends it.

    Raises:
        StepError: It is not one result for each request.
    """
    unordered = isinstance(results, Mapping | AbstractSet | str | bytes | bytearray)
    if unordered or inspect.isawaitable(results) or not hasattr(results, "__len__"):
        if inspect.iscoroutine(results):
            results.close()
        _refuse(fn, f"a {type(results).__name__}", size)
    if len(results) != size:
        _refuse(fn, f"{len(results)} results", size)
    return [result if type(result) is Fail else Last(result) for result in results]


def _refuse(fn: object, returned: str, size: int) -> NoReturn:
    raise StepError(
        f"{fn!r} returned {returned} for {size} requests, expected a list, tuple or array with one "
        f"result for each",
        step=0,
    )
