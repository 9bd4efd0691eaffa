"""Raw text: decoding, reading streams, sampling, sentence ends, chunks of long texts."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # for type checkers the old names are gone
    from pretune.moved import old_names

    __getattr__ = old_names(__name__)
