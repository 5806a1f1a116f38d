"""Interceptors of servers, which end a call with the status that the error of a batcher has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from batchstream._core.errors import BatchStreamError
from batchstream.integrations.grpc._statuses import Status, status_of

Method: TypeAlias = Callable[[Any, Any], Any]
"""What serves a call, given its request, or an iterator of requests, and its context."""


class AsyncServerInterceptor(grpc.aio.ServerInterceptor):
    """Ends calls with the status that an error of a batcher has, see `status_of`, in `grpc.aio`.

    `grpc.aio.server(interceptors=[AsyncServerInterceptor()])`; of several interceptors let it be
    the last. It closes the generator of a method as soon as its call is cancelled, so that a stream
    read in it frees its slot at once, also while its client reads nothing. Methods of all four
    kinds are served; synchronous methods run in gRPC's threads.
    """

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Return the handler of a call, with its method wrapped: for gRPC to call."""
        return _with_statuses(await continuation(handler_call_details))


class ServerInterceptor(grpc.ServerInterceptor):
    """Ends calls with the status that an error of a batcher has, in a server of threads.

    `grpc.server(threads, interceptors=[ServerInterceptor()])`; of several interceptors let it be
    the last. A thread that waits for an output does not notice that its client has left: let the
    method say `context.add_callback(stream.cancel)`, and gRPC cancels the stream.
    """

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Return the handler of a call, with its method wrapped: for gRPC to call."""
        return _with_statuses(continuation(handler_call_details))


def _with_statuses(handler: Any) -> Any:
    if handler is None:  # there is no such method, which gRPC says
        return None
    requests = "stream" if handler.request_streaming else "unary"
    kind = f"{requests}_{'stream' if handler.response_streaming else 'unary'}"
    method = getattr(handler, kind)
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(
        _wrapper_of(method, streams=handler.response_streaming)(method),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _wrapper_of(method: Method, *, streams: bool) -> Callable[[Method], Method]:
    """Return what wraps a method, told apart as gRPC does."""
    if isasyncgenfunction(method):
        return _writing
    if iscoroutinefunction(method):
        return _awaiting
    return _iterating if streams else _calling


def _writing(method: Callable[[Any, Any], AsyncGenerator[Any, None]]) -> Method:
    # A coroutine that writes, rather than one more generator, which gRPC would leave suspended.
    async def serve(requests: Any, context: Any) -> None:
        try:
            async with aclosing(method(requests, context)) as outputs:
                async for output in outputs:
                    await context.write(output)
        except BatchStreamError as error:
            await context.abort(*_status_for(error, context))

    return serve


def _awaiting(method: Callable[[Any, Any], Awaitable[Any]]) -> Method:
    async def serve(requests: Any, context: Any) -> Any:
        try:
            return await method(requests, context)
        except BatchStreamError as error:
            await context.abort(*_status_for(error, context))

    return serve


def _iterating(method: Callable[[Any, Any], Iterator[Any]]) -> Method:
    def serve(requests: Any, context: Any) -> Iterator[Any]:
        try:
            yield from method(requests, context)
        except BatchStreamError as error:
            _abort_in_thread(error, context)

    return serve


def _calling(method: Method) -> Method:
    def serve(requests: Any, context: Any) -> Any:
        try:
            return method(requests, context)
        except BatchStreamError as error:
            _abort_in_thread(error, context)

    return serve


def _abort_in_thread(error: BatchStreamError, context: Any) -> NoReturn:
    code, details, metadata = _status_for(error, context)
    context.set_trailing_metadata(metadata)  # which `abort` of a server of threads does not take
    context.abort(code, details)
    raise AssertionError("abort raises")


def _status_for(error: BatchStreamError, context: Any) -> Status:
    """Return the status of an error, with the metadata that the method has set besides.

    Raises:
        BatchStreamError: The error itself, for gRPC to answer.
    """
    status = status_of(error)
    # A method in a thread of an asynchronous server cannot ask for them.
    set_before: tuple[Any, ...] = getattr(context, "trailing_metadata", tuple)() or ()
    return status._replace(trailing_metadata=(*set_before, *status.trailing_metadata))
