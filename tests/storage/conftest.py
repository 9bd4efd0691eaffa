"""The texts and the tokenizer of the tests of corpora."""

from tests.corpus.conftest import bpe_folder, corpus_file

__all__ = ["bpe_folder", "corpus_file"]
