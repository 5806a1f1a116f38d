"""Clients of the server recipes that are no plain GET: of gRPC, and of servers that take JSON."""

import json

import grpc

from support.server_clients import HttpReply, Reply, connected
from support.serving import SECONDS


class GrpcReply(Reply):
    """A call of gRPC, which ends with a status."""

    def _begin(self):
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options)
        spell = self._channel.unary_stream("/Speller/Spell")
        self._call = spell(self.request.encode(), timeout=SECONDS)

    def _read(self):
        try:
            for output in self._call:
                self._has(output)
        except grpc.RpcError as error:
            metadata = dict(error.trailing_metadata() or ())
            retry = ", retry-after" if "retry-after" in metadata else ""
            return f"{error.code().name}{retry}"
        return "whole"

    def _leave(self):
        self._channel.close()

    def _close(self):
        self._channel.close()


class PostReply(HttpReply):
    """A POST of JSON: `{"word": ...}`."""

    path = "/spell"

    def _begin(self):
        self._socket = connected(self.port)
        body = json.dumps({"word": self.request})
        headers = (
            f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        self._socket.sendall(f"POST {self.path} HTTP/1.1\r\n{headers}\r\n\r\n{body}".encode())


class KServeReply(PostReply):
    """A prediction of KServe's V1 protocol."""

    path = "/v1/models/speller:predict"
