"""Text to token ids and back: training and loading tokenizers, encoding single texts and pairs."""

from pretune.text.extend import extend
from pretune.text.load import load_tokenizer
from pretune.text.measure import Measured, measure
from pretune.text.pieces import pieces
from pretune.text.read import find_files, iter_texts
from pretune.text.sample import Sample, take_sample
from pretune.text.tokenizer import Encoded, Tokenizer
from pretune.text.train import save_trained, train_tokenizer

__all__ = [
    "Encoded",
    "Measured",
    "Sample",
    "Tokenizer",
    "extend",
    "find_files",
    "iter_texts",
    "load_tokenizer",
    "measure",
    "pieces",
    "save_trained",
    "take_sample",
    "train_tokenizer",
]
