"""From a model to text, token by token: drawing, searching, and what has been written so far."""

from pretune.decoding.sampling import Decoding
from pretune.decoding.writer import Generation, Piece, Writer

__all__ = ["Decoding", "Generation", "Piece", "Writer"]
