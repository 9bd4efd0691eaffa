"""Text to token ids and back: loading tokenizers and encoding single texts and pairs."""

from pretune.text.extend import extend
from pretune.text.load import load_tokenizer
from pretune.text.tokenizer import Encoded, Tokenizer

__all__ = ["Encoded", "Tokenizer", "extend", "load_tokenizer"]
