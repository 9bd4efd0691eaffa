"""New tokens for a tokenizer that exists."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken

from pretune.errors import DataError
from pretune.tokenizers.tokenizer import Tokenizer


def _has_ideograph(token: str) -> bool:
    """BERT's normalizer sets these apart with spaces, so such a token must be found before it."""
    return any("\u3400" <= character <= "\u9fff" for character in token)


def extend(tokenizer: Tokenizer, tokens: Sequence[str]) -> int:
    """Add whole tokens that are never split, in place; those already known are passed over.

    Args:
        tokenizer: to change.
        tokens: as they occur in text. Matched after normalisation, so that an uncased tokenizer
            finds them in any case.

    Returns:
        how many were new.

    Raises:
        DataError: one is empty or only white space.
    """
    for token in tokens:
        if not token.strip():
            raise DataError(f"new token {token!r}: is empty", "Give every new token some letters.")
    known = tokenizer.engine.get_vocab(with_added_tokens=True)
    fresh = [token for token in dict.fromkeys(tokens) if token not in known]
    added: int = tokenizer.engine.add_tokens(
        [
            AddedToken(token, single_word=False, normalized=not _has_ideograph(token))
            for token in fresh
        ]
    )
    return added
