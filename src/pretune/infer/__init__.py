"""Using a trained model."""

from pretune.decoding import Decoding, Generation, Piece
from pretune.infer.generate import TextGenerator
from pretune.infer.predict import Predictor, read_inputs, stream_lines

__all__ = [
    "Decoding",
    "Generation",
    "Piece",
    "Predictor",
    "TextGenerator",
    "read_inputs",
    "stream_lines",
]
