"""transformers: batches of its models as one stream per request."""

from batchstream.integrations.transformers._engine import TransformersEngine
from batchstream.integrations.transformers._generation import Generation, Token

__all__ = ["Generation", "Token", "TransformersEngine"]
