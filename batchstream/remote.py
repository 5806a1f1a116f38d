"""One model, many server processes: a batcher in one process, its streams in others."""

from batchstream._remote.batcher import RemoteBatcher, connect
from batchstream._remote.errors import ConnectionLostError, ProtocolError, RemoteTraceback
from batchstream._remote.server import aserve, serve, serving

__all__ = [
    "ConnectionLostError",
    "ProtocolError",
    "RemoteBatcher",
    "RemoteTraceback",
    "aserve",
    "connect",
    "serve",
    "serving",
]
