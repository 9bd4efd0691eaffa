"""Characters that a vocabulary does not know and leaves out."""

from __future__ import annotations

from collections import Counter

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers


class DroppedCharacters:
    """Finds characters that a tokenizer leaves out: a BPE without [UNK] drops what it lacks."""

    def __init__(self, engine: RustTokenizer) -> None:
        self._engine, self._known = engine, dict[str, bool]()
        model = engine.model
        self._possible = (
            isinstance(model, models.BPE)
            and (model.unk_token is None or engine.token_to_id(model.unk_token) is None)
            and not model.byte_fallback
            # All bytes are there, of which any character can be spelled.
            and any(engine.token_to_id(b) is None for b in pre_tokenizers.ByteLevel.alphabet())
        )

    def __call__(self, text: str) -> Counter[str]:
        """Count the characters of a text that are dropped."""
        dropped = Counter[str]()
        for character in set(text) if self._possible else ():
            if character not in self._known:
                self._known[character] = self._is_known(character)
            if not self._known[character]:
                dropped[character] = text.count(character)
        return dropped

    def _is_known(self, character: str) -> bool:
        if self._engine.encode(character, add_special_tokens=False).ids:
            return True
        # What the normalizer removes, or what only divides words, is not missed.
        normalizer, splitter = self._engine.normalizer, self._engine.pre_tokenizer
        left = character if normalizer is None else normalizer.normalize_str(character)
        return not left.strip() or (splitter is not None and not splitter.pre_tokenize_str(left))
