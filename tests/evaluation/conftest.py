from tests.inference.conftest import bpe, wordpiece

__all__ = ["bpe", "wordpiece"]
