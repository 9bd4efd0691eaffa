from tests.inference.conftest import bpe, llama, mistral, wordpiece

__all__ = ["bpe", "llama", "mistral", "wordpiece"]
