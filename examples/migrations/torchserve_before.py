"""A handler of TorchServe that streams, as TorchServe's documentation has it.

TorchServe makes a batch of requests and calls `handle` with all of them. Each intermediate response
is one piece for every request of the batch, and all requests end when `handle` returns.
"""

from ts.handler_utils.utils import send_intermediate_predict_response

MOST = 20  # outputs


class Handler:
    """Spells words."""

    def initialize(self, context):
        """Load the model: nothing to do for this one."""
        self.context = context

    def handle(self, data, context):
        """Spell the words of a batch."""
        words = [row["body"].decode() for row in data]
        for step in range(MOST):
            pieces = [word[step : step + 1] for word in words]  # your model's forward
            if not any(pieces):
                break
            send_intermediate_predict_response(pieces, context.request_ids, "spelled", 200, context)
        return [""] * len(words)
