"""What a vocabulary does not know: characters that are dropped, texts that cannot be encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers

from pretune.errors import CheckpointError, DataError

#: Characters of a word that is shown.
_SHOWN = 40


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of the Rust side, which is not even an `Exception`."""
    return type(error).__name__ == "PanicException"


@contextmanager
def explained(
    engine: RustTokenizer, texts: Iterable[object], origin: Path | None = None
) -> Iterator[None]:
    """Turn the engine's errors about texts that it cannot encode into ours.

    Args:
        engine: encodes in the body of the `with` statement.
        texts: that it encodes, or pairs or lists of them.
        origin: the file that the engine is from, if known.

    Raises:
        DataError: a text has characters outside of the vocabulary, and there is no [UNK].
        CheckpointError: a pattern of the tokenizer fails on a text.
    """
    try:
        yield
    except BaseException as error:
        if is_panic(error):
            raise CheckpointError(
                f"{origin or 'tokenizer.json'}: the tokenizer fails on a text ({error})",
                "A pattern in its normalizer or pre_tokenizer takes too many steps: take another "
                "tokenizer.",
            ) from None
        if type(error) is not Exception:  # the Rust side raises a bare Exception
            raise
        unknown = _first_unknown(engine, texts)
        example = "" if unknown is None else f", such as {unknown[:_SHOWN]!r}"
        raise DataError(
            f"a text cannot be encoded: it has characters outside of the vocabulary{example} "
            f"({error})",
            "Take a tokenizer that has an [UNK] token, or train it on this text too.",
        ) from None


def _first_unknown(engine: RustTokenizer, texts: Iterable[object]) -> str | None:
    """The first character that an engine cannot encode, or else the first word."""
    for text in texts:
        if not isinstance(text, str):
            inner = _first_unknown(engine, text) if isinstance(text, Iterable) else None
            if inner is not None:
                return inner
        elif not _encodes(engine, text):
            word = next((word for word in text.split() if not _encodes(engine, word)), text)
            bad = [character for character in word if not _encodes(engine, character)]
            # Where no character is an entry by itself, the vocabulary is one of words.
            return bad[0] if 0 < len(bad) < len(word) or len(word) == 1 else word
    return None


def _encodes(engine: RustTokenizer, text: str) -> bool:
    try:
        engine.encode(text, add_special_tokens=False)
    except Exception:  # as above
        return False
    return True


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
