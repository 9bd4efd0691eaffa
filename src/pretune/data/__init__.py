"""Records from files, packed batches, and their order in training."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # for type checkers the old names are gone
    from pretune.moved import old_names

    __getattr__ = old_names(__name__)
