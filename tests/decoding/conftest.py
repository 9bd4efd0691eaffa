from tests.infer.conftest import bpe, wordpiece

__all__ = ["bpe", "wordpiece"]
