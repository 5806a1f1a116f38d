"""The LitServe server with another loop: `python litserve_continuous_after.py`.

What runs the model is an engine. The loop knows which requests run, and whether there is room.
"""

import litserve as ls

from batchstream import Last
from batchstream.integrations.litserve import ContinuousBatchLoop

REPLIES = {
    "short": "Short and sweet.",
    "long": "The long one goes on when others have finished.",
}


class Engine:
    """Says the words of replies."""

    def __init__(self, api):
        """Take the model from the API, whose `setup` has run."""
        self.model = api.model
        self.words = {}  # what is left to say

    def add(self, slot, prompt):
        """Let a request join."""
        self.words[slot] = self.model[prompt].split()

    def step(self):
        """Return the next word of each request; the last is marked."""
        return {
            slot: words.pop(0) if len(words) > 1 else Last(words[0])
            for slot, words in self.words.items()
        }

    def remove(self, slot):
        """Free the slot of a request that has ended, or whose client has left."""
        del self.words[slot]


class Chat(ls.LitAPI):
    """Says the words of a reply."""

    def setup(self, device):
        """Load the model: a table of replies stands in for it."""
        self.model = REPLIES

    def decode_request(self, request):
        """Take the prompt out of the request, for `add`."""
        return request["prompt"]

    def encode_response(self, words):
        """Make a message of each word of a request."""
        for word in words:
            yield {"content": word}


api = Chat(stream=True, max_batch_size=4, loop=ContinuousBatchLoop(Engine))
server = ls.LitServer(api, accelerator="cpu")

if __name__ == "__main__":
    server.run(host="127.0.0.1", port=8000)
