"""The segments that a tokenizer gives to the tokens of a text or a pair (BERT's token types)."""

from __future__ import annotations

from pretune.tokenizers.tokenizer import Tokenizer


def segments_of(tokenizer: Tokenizer, *, pair: bool) -> int:
    """How many segments a table must have for what the tokenizer makes of texts.

    Args:
        tokenizer: of the model.
        pair: whether two texts are read together, not only one at a time.
    """
    # A token of its own: there are vocabularies that have no letter of any other example.
    engine = tokenizer.engine
    known = (name for name in tokenizer.special.values() if engine.token_to_id(name) is not None)
    text = next(known, tokenizer.tokens([0])[0])
    examples = [engine.encode(text), *([engine.encode(text, text)] if pair else [])]
    return 1 + max((segment for one in examples for segment in one.type_ids), default=0)
