"""Using a trained model."""

from pretune.infer.generate import Generation, Piece, TextGenerator
from pretune.infer.predict import Predictor, read_inputs, stream_lines
from pretune.infer.sampling import Decoding

__all__ = [
    "Decoding",
    "Generation",
    "Piece",
    "Predictor",
    "TextGenerator",
    "read_inputs",
    "stream_lines",
]
