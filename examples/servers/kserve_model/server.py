"""KServe: a model whose prediction, by the V1 protocol, is the body of a stream.

In the folder `examples/servers`:

    pip install -r kserve_model/requirements.txt
    python -m kserve_model.server --http_port 8000

    curl -N http://127.0.0.1:8000/v1/models/speller:predict -d '{"word": "word"}'

KServe sends the status when `predict` returns, so that waits for the first output. KServe listens
on all addresses of the machine.
"""

from collections.abc import AsyncGenerator

from kserve import Model, ModelServer, model_server
from model import batcher

from batchstream import RequestError
from batchstream.integrations.starlette import exception_handlers, timeout_of


class Speller(Model):
    """Spells words."""

    def load(self) -> bool:
        """Say that the model is ready: the batcher makes it by itself."""
        self.ready = True
        return self.ready

    async def predict(
        self, payload: dict, headers: dict | None = None, response_headers: dict | None = None
    ) -> AsyncGenerator[str, None]:
        """Wait for the first letter of a word, and return what streams all."""
        del response_headers
        match payload:
            case {"word": str(word)}:
                timeout = timeout_of(headers or {}, at_most=60)
                return await batcher.astream(word, timeout=timeout).begin()
        raise RequestError('expected {"word": "..."}')


if __name__ == "__main__":
    for error, handler in exception_handlers.items():
        model_server.app.add_exception_handler(error, handler)
    speller = Speller("speller")
    speller.load()
    with batcher:
        ModelServer(enable_grpc=False).start([speller])
