"""The LitServe server with another loop: `python litserve_after.py`.

None says that a request has finished, and its response is complete. `encode_response` is called for
each request.
"""

import litserve as ls

from batchstream.integrations.litserve import BatchedStreamLoop

REPLIES = {
    "short": "Short and sweet.",
    "long": "The long one goes on when others have finished.",
}


class Chat(ls.LitAPI):
    """Says the words of a reply."""

    def setup(self, device):
        """Load the model: a table of replies stands in for it."""
        self.model = REPLIES

    def decode_request(self, request):
        """Look the prompt up."""
        return self.model[request["prompt"]].split()

    def predict(self, replies):
        """Yield one word for each request of the batch at each step."""
        for step in range(max(map(len, replies))):
            yield [words[step] if step < len(words) else None for words in replies]

    def encode_response(self, words):
        """Make a message of each word of a request."""
        for word in words:
            yield {"content": word}


loop = BatchedStreamLoop(eos_in="predict")
api = Chat(stream=True, max_batch_size=4, batch_timeout=0.1, loop=loop)
server = ls.LitServer(api, accelerator="cpu")

if __name__ == "__main__":
    server.run(host="127.0.0.1", port=8000)
