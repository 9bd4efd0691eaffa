"""From raw text to tokenized shards on disk, and reading those by memory map."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # for type checkers the old names are gone
    from pretune.moved import old_names

    __getattr__ = old_names(__name__)
