"""A LitServe server that streams batches: `python litserve_before.py`.

LitServe ends all responses of a batch together. An empty word is for a request that has finished.
"""

import litserve as ls

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
            yield [words[step] if step < len(words) else "" for words in replies]

    def encode_response(self, steps):
        """Make a message of each word of a step."""
        for words in steps:
            yield [{"content": word} for word in words]


api = Chat(stream=True, max_batch_size=4, batch_timeout=0.1)
server = ls.LitServer(api, accelerator="cpu")

if __name__ == "__main__":
    server.run(host="127.0.0.1", port=8000)
