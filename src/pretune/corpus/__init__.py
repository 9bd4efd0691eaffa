"""From raw text to tokenized shards on disk, and reading those by memory map."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretune.corpus.clean import Cleaning
    from pretune.corpus.documents import Reading
    from pretune.corpus.pipeline import Prepared, Settings, prepare
    from pretune.corpus.store import Corpus
    from pretune.corpus.stored import StoredDocuments, is_corpus

__all__ = [
    "Cleaning",
    "Corpus",
    "Prepared",
    "Reading",
    "Settings",
    "StoredDocuments",
    "is_corpus",
    "prepare",
]

_HOMES = {
    "Cleaning": "clean",
    "Corpus": "store",
    "Prepared": "pipeline",
    "Reading": "documents",
    "Settings": "pipeline",
    "StoredDocuments": "stored",
    "is_corpus": "stored",
    "prepare": "pipeline",
}


def __getattr__(name: str) -> Any:
    # On first use: processes that tokenize import this package too and must not wait for torch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"pretune.corpus.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pretune.corpus' has no attribute '{name}'")
