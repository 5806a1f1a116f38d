"""Text out of tokens: whole characters, and stop strings that end a stream in the same step."""

from batchstream._text.decoder import Decoder, TextDecoder
from batchstream._text.detokenizer import Detokenizer
from batchstream._text.engine import DecodingEngine
from batchstream._text.pieces import Piece, PieceDecoder
from batchstream._text.steps import AsyncDecodedSteps, DecodedSteps, decode_steps
from batchstream._text.stop_strings import StopStrings

__all__ = [
    "AsyncDecodedSteps",
    "DecodedSteps",
    "Decoder",
    "DecodingEngine",
    "Detokenizer",
    "Piece",
    "PieceDecoder",
    "StopStrings",
    "TextDecoder",
    "decode_steps",
]
