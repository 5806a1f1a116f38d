"""Sending to a client for as long as it is there, over HTTP or a WebSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio import create_task_group, get_cancelled_exc_class

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine


async def run_until(
    left: Callable[[], Awaitable[None]],
    send: Callable[[], Awaitable[Any]],
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Await what sends to a client, and cancel it when the client leaves.

    What runs beside it raises nothing, and is cancelled with it or after it.

    Args:
        left: Waits until the client leaves; it is cancelled when all is sent.
        send: Sends.
        beside: Runs meanwhile; None for nothing.

    Raises:
        BaseException: What `send` raised, as it is and not in an exception group.
    """
    error: BaseException | None = None

    async def run_to_the_end() -> None:
        nonlocal error
        try:
            await send()
        except (get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as raised:  # noqa: BLE001 - raised again outside the task group
            error = raised
        tasks.cancel_scope.cancel()

    # What sends has a task of its own, and the disconnect is awaited here, and not the other way
    # round: a task that is resumed goes through all coroutines that await each other in it. Here
    # these are the coroutines of the framework and of every middleware, at every output.
    async with create_task_group() as tasks:
        tasks.start_soon(run_to_the_end)
        if beside is not None:
            tasks.start_soon(beside)
        await left()
        tasks.cancel_scope.cancel()
    try:
        if error is not None:
            raise error
    finally:
        # The traceback holds this frame: the cycle would keep the response and its stream.
        del error
