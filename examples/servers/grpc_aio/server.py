"""grpc.aio: a call whose responses are the stream, and which ends with a status for each error.

In the folder `examples/servers`:

    pip install -r grpc_aio/requirements.txt
    python -m grpc_aio.server --port 8000

Its one method, `/Speller/Spell`, takes a word and streams its letters, all of them as bytes. A
client in Python, without a `.proto` file:

    >>> channel = grpc.insecure_channel("127.0.0.1:8000")
    >>> list(channel.unary_stream("/Speller/Spell")(b"word"))
    [b'w', b'o', b'r', b'd']

A method of a servicer that protoc has made is the same, and yields messages.
"""

import argparse
import asyncio
import logging
import signal
from collections.abc import AsyncIterator

import grpc
from model import batcher

from batchstream.integrations.grpc import AsyncServerInterceptor, timeout_of

GRACE = 30  # seconds for calls that run when the server is told to stop


async def spell(word: str, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """Stream the letters of a word, for as long as the client's deadline allows."""
    async with batcher.astream(word, timeout=timeout_of(context, at_most=60)) as stream:
        async for letter in stream:
            yield letter.encode()


METHODS = {"Spell": grpc.unary_stream_rpc_method_handler(spell, request_deserializer=bytes.decode)}


async def serve(port: int) -> None:
    """Serve until a signal comes, and let the calls that run end."""
    server = grpc.aio.server(interceptors=[AsyncServerInterceptor()])
    server.add_registered_method_handlers("Speller", METHODS)
    server.add_insecure_port(f"127.0.0.1:{port}")
    told_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    async with batcher:
        await server.start()
        await told_to_stop.wait()
        await server.stop(GRACE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="stream the letters of words over gRPC")
    parser.add_argument("--port", type=int, default=50051)
    logging.basicConfig()  # without it, an error of the model shows nowhere
    asyncio.run(serve(parser.parse_args().port))
