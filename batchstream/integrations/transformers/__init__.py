"""Hugging Face transformers: a call of `generate` as streams, one for each sequence.

Theory of operation
-------------------

`stream_generate` (`_generate.py`) makes a call of `model.generate` a source, which batches and
batchers take. `generate` prepares the batch; the steps are made by a loop of ours (`_decoding.py`),
one whenever the source is moved, and rows that have ended are dropped (`_rows.py`). Where only
`generate` itself can decode, it runs in a thread in step with the source (`_lockstep.py`).

`stream_text` (`_text.py`) pads prompts (`_prompts.py`) and decodes the ids. `BatchStreamer`
(`_streamer.py`) is for a call of `generate` that is not ours, with a tokenizer
(`_tokenizers.py`) or none.

`_settings.py` knows what a call asks for, `_surroundings.py` what torch knows of a thread.

`TransformersEngine` (`_engine.py`) needs no `generate`: each request (`_generation.py`) joins the
running batch when it comes, and leaves it when it ends (`_joined.py`). The next tokens are drawn
with the parameters of each (`_sampling.py`). `_model.py` knows which models can do that.
"""

from batchstream.integrations.transformers._engine import TransformersEngine as TransformersEngine
from batchstream.integrations.transformers._generate import stream_generate as stream_generate
from batchstream.integrations.transformers._generation import Generation as Generation
from batchstream.integrations.transformers._generation import GenerationError as GenerationError
from batchstream.integrations.transformers._generation import Token as Token
from batchstream.integrations.transformers._streamer import BatchStreamer as BatchStreamer
from batchstream.integrations.transformers._text import stream_text as stream_text

__all__ = [
    "BatchStreamer",
    "Generation",
    "GenerationError",
    "Token",
    "TransformersEngine",
    "stream_generate",
    "stream_text",
]
