"""BentoML: a method that returns a response, which BentoML sends as it is.

In the folder `examples/servers`:

    pip install -r bentoml_service/requirements.txt
    bentoml serve bentoml_service.server:Speller --host 127.0.0.1 --port 8000

    curl -N http://127.0.0.1:8000/spell -H "Content-Type: application/json" -d '{"word": "word"}'

A method that is a generator works too, if it reads its stream in an `async with` block; but BentoML
logs an error in mid-stream, and sends what came before it as if it were the whole.
"""

from collections.abc import AsyncGenerator

import bentoml
from model import batcher
from starlette.middleware.errors import ServerErrorMiddleware

from batchstream.integrations.starlette import TextResponse


async def letters(word: str) -> AsyncGenerator[str, None]:
    """Submit the request as the response begins, which answers if it is refused."""
    async for letter in batcher.astream(word).body():
        yield letter


@bentoml.service(workers=1)
class Speller:
    """Spells words."""

    @bentoml.api
    async def spell(self, word: str) -> str:
        """Return a response that streams the letters of a word."""
        return TextResponse(letters(word))

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Close the batcher, once the requests that ran have ended."""
        await batcher.aclose()


# Without it, BentoML answers an error before the first output only once its own `timeout` is over:
# its middleware for that waits for a response, and what answers errors is outside of it.
Speller.add_asgi_middleware(ServerErrorMiddleware)
