"""The texts and the tokenizer of the tests of corpora, and the recipe of those of training."""

from tests.corpus.conftest import bpe_folder, corpus_file
from tests.storage.bucket import store
from tests.training.conftest import toy_data, toy_recipe

__all__ = ["bpe_folder", "corpus_file", "store", "toy_data", "toy_recipe"]
