"""A deployment of Ray Serve that streams batches: `serve run ray_before:app`.

`serve.batch` makes one batch of the requests that come together. `StopIteration` in the place of an
output says that this request has finished.
"""

from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

MOST = 20  # outputs


@serve.deployment(max_ongoing_requests=16)
class Speller:
    """Spells words."""

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.1)
    async def spell(self, words):
        """Spell the words of a batch."""
        for step in range(MOST + 1):
            yield [word[step : step + 1] or StopIteration for word in words]  # your model's forward

    async def __call__(self, request: Request):
        """Stream the letters of a word."""
        word = (await request.body()).decode()
        return StreamingResponse(self.spell(word), media_type="text/plain")


app = Speller.bind()
