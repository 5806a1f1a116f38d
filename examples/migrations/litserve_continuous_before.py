"""A LitServe server in which requests join a running batch: `python litserve_continuous_before.py`.

LitServe's loop asks the API for all that it needs: which requests run, and whether there is room.
"""

import litserve as ls
from litserve.loops import ContinuousBatchingLoop, Output
from litserve.utils import LitAPIStatus

REPLIES = {
    "short": "Short and sweet.",
    "long": "The long one goes on when others have finished.",
}


class Chat(ls.LitAPI):
    """Says the words of a reply."""

    def setup(self, device):
        """Load the model: a table of replies stands in for it."""
        self.model = REPLIES
        self.words = {}  # what is left to say

    def add_request(self, uid, request):
        """Let a request join."""
        self.words[uid] = self.model[request["prompt"]].split()

    def has_capacity(self):
        """Return whether another request may join."""
        return len(self.words) < self.max_batch_size

    def has_active_requests(self):
        """Return whether there is something to do."""
        return bool(self.words)

    def step(self, previous):
        """Return the next word of each request, and which requests have finished."""
        outputs = []
        for uid, words in list(self.words.items()):
            outputs.append(Output(uid, words.pop(0), LitAPIStatus.OK))
            if not words:
                outputs.append(Output(uid, "", LitAPIStatus.FINISH_STREAMING))
                del self.words[uid]
        return outputs

    def encode_response(self, word):
        """Make a message of a word."""
        return {"content": word}


api = Chat(stream=True, max_batch_size=4, loop=ContinuousBatchingLoop())
server = ls.LitServer(api, accelerator="cpu")

if __name__ == "__main__":
    server.run(host="127.0.0.1", port=8000)
