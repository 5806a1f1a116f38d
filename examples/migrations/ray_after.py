"""The deployment of Ray Serve with another `batch`: `serve run ray_after:app`.

The method, its arguments and its end mark stay the same.
"""

from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

from batchstream.integrations.ray import batch

MOST = 20  # outputs


@serve.deployment(max_ongoing_requests=16)
class Speller:
    """Spells words."""

    @batch(max_batch_size=8, batch_wait_timeout_s=0.1)
    async def spell(self, words):
        """Spell the words of a batch."""
        for step in range(MOST + 1):
            yield [word[step : step + 1] or StopIteration for word in words]  # your model's forward

    async def __call__(self, request: Request):
        """Stream the letters of a word."""
        word = (await request.body()).decode()
        return StreamingResponse(self.spell(word), media_type="text/plain")


app = Speller.bind()
