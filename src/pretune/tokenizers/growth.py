"""How much longer than a text its tokens can be: a small file may ask for gigabytes, or hours."""

from __future__ import annotations

import base64
import binascii
import json
import re._parser  # type: ignore[import-not-found]
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from pretune.errors import CheckpointError

#: The most bytes that the rules of a tokenizer may make of one byte of text, and the most tokens
#: that it may put in the place of one. Published tokenizers stay under 50.
MOST_GROWTH = 100
#: The longest word that a WordPiece may be asked to spell: the time grows with its cube. Google's
#: tokenizer has 200, and transformers 100.
LONGEST_SPELLED = 1000

#: The steps from a text to its tokens and back, and what each makes more of.
_STEPS = {
    **dict.fromkeys(("normalizer", "pre_tokenizer", "decoder"), ("rules", "bytes", "byte of text")),
    "post_processor": ("templates", "tokens", "token"),
}
#: What a rule without figures of its own makes of one byte, or of one token, at most.
_USUAL_GROWTH = {
    "ByteLevel": {"normalizer": 2.0, "pre_tokenizer": 4.0},  # a character a byte, after a space
    "Metaspace": {"pre_tokenizer": 4.0},  # three bytes before a word
    "WordPiece": {"decoder": 2.0},  # a space before a word
    "BPEDecoder": {"decoder": 2.0},  # a space between characters, where the suffix is empty
    "CTC": {"decoder": 2.0},
    "BertProcessing": {"post_processor": 4.0},
    "RobertaProcessing": {"post_processor": 5.0},
}


def refuse_growth(path: Path, engine: RustTokenizer) -> None:
    """Refuse a tokenizer whose rules, one after the other, can blow a text up.

    Args:
        path: of its file, for errors.
        engine: the tokenizer.

    Raises:
        CheckpointError: a step makes over `MOST_GROWTH` bytes of one, or tokens of one token; or
            the model spells words of over `LONGEST_SPELLED` characters, or marks parts of words
            with long texts.
    """
    for step, (rules, made, of) in _STEPS.items():
        growth, part = 1.0, getattr(engine, step)
        for rule in _rules({} if part is None else json.loads(part.__getstate__())):
            growth *= _growth(rule, step)
            if growth > MOST_GROWTH:
                raise CheckpointError(
                    f"{path}: {step}: its {rules} can make over {MOST_GROWTH} {made} of one {of}, "
                    "which would fill the memory",
                    f"Take another tokenizer, or shorten the {rules} of {step}.",
                )
    model = engine.model
    longest = model.max_input_chars_per_word if isinstance(model, models.WordPiece) else 0
    if longest > LONGEST_SPELLED:
        raise CheckpointError(
            f"{path}: model: max_input_chars_per_word is {longest:,}: words of over "
            f"{LONGEST_SPELLED:,} characters would take hours to spell",
            "Write 100 there, as transformers has it, if you know of no other number.",
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(getattr(model, name, None) or "") > MOST_GROWTH:
            raise CheckpointError(
                f"{path}: model: {name} has over {MOST_GROWTH} characters",
                "Take another tokenizer: this one is damaged.",
            )


def _rules(part: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rules of a step, in their order; sequences may be nested."""
    if part.get("type") != "Sequence":
        yield part
        return
    for name in ("normalizers", "pretokenizers", "decoders", "processors"):
        for inner in part.get(name) or ():
            yield from _rules(inner)


def _growth(rule: Mapping[str, Any], step: str) -> float:
    """The most bytes that a rule makes of one byte, or tokens of one token; at least 1."""
    kind = rule.get("type")
    if kind == "Replace":
        made = len(str(rule["content"]).encode())
        least = _shortest(rule["pattern"])
        # A pattern that matches between two characters adds to them.
        return max(1.0, made / least if least else 1.0 + made)
    if kind == "Precompiled":
        return _longest_entry(str(rule["precompiled_charsmap"]))
    if kind == "Prepend":
        return 1.0 + len(str(rule["prepend"]).encode())
    if kind == "TemplateProcessing":
        return max(_framed(rule[name], rule["special_tokens"]) for name in ("single", "pair"))
    return _USUAL_GROWTH.get(str(kind), {}).get(step, 1.0)


def _framed(pieces: list[Mapping[str, Any]], special: Mapping[str, Any]) -> float:
    """The most tokens that a template makes of a text of one token."""
    repeated = Counter(piece["Sequence"]["id"] for piece in pieces if "Sequence" in piece)
    names = (piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece)
    return max(repeated.values(), default=1) + sum(len(special[name]["ids"]) for name in names)


#: An escape: a class of characters by its Unicode property, or another.
_ESCAPE = re.compile(r"\\([pP]\{\^?\w+\}|.)", re.DOTALL)
#: What Oniguruma, in whose language the patterns are, may read in another way than Python: groups
#: with options or names, repetitions that a question mark makes optional, and nested sets.
_OF_ITS_OWN = re.compile(r"\(\?(?!:|=|!|<=|<!)|\}\?|\[[^\]]*\[")


def _shortest(pattern: Mapping[str, str]) -> int:
    """The fewest bytes that a pattern is sure to match; 0 where that is not known."""
    if "String" in pattern:
        return len(pattern["String"].encode())
    # Of a property, any character will do.
    regex = _ESCAPE.sub(lambda m: "a" if len(m[1]) > 1 else m[0], pattern["Regex"])
    if _OF_ITS_OWN.search(regex):
        return 0
    try:
        least: int = re._parser.parse(regex).getwidth()[0]
    except (re.error, OverflowError, RecursionError):
        return 0
    return least


#: Bytes of the longest key of a table that is looked for; longer ones count as one byte more.
_LONGEST_KEY = 16


def _longest_entry(charsmap: str) -> float:
    """The most bytes that SentencePiece's table of replacements makes of one byte.

    The table is the size of a trie, the trie, and texts that end with NUL. The trie is a double
    array of 32-bit units (Darts-clone): the unit of a child lies at its parent's base XOR a byte,
    which is also its label, and a unit with a leaf has the position of a text at its own base.
    """
    import numpy as np  # few tokenizers have such a table

    try:
        table = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return 1.0
    start = 4 + int.from_bytes(table[:4], "little")
    units = np.frombuffer(table[4 : start - start % 4], "<u4").astype(np.int64)
    texts = np.frombuffer(table[start:] + b"\0", np.uint8)
    ends = np.flatnonzero(texts == 0)
    longest = int(np.diff(ends, prepend=-1).max()) - 1
    if not len(units):
        return 1.0
    # What each unit says: its label, the base of its children, and whether a key ends there.
    labels, leaves = units & 0x800000FF, units >> 8 & 1
    bases = np.arange(len(units)) ^ (units >> 10) << ((units >> 9 & 1) * 8)
    parents = np.arange(len(units)) ^ labels
    parents[(labels == 0) | (labels > 255)] = -1
    growth, reached = 1.0, bases[:1]
    # The units that are reached by one byte, by two, and so on.
    for size in range(1, _LONGEST_KEY + 1):
        children = np.flatnonzero(np.isin(parents, reached))
        ended = bases[children[leaves[children] == 1]]
        places = units[ended[ended < len(units)]] & 0x7FFFFFFF
        places = places[places < len(texts)]
        if len(places):
            lengths = ends[np.searchsorted(ends, places)] - places
            growth = max(growth, float(lengths.max()) / size)
        reached = np.unique(bases[children])
    return max(growth, longest / (_LONGEST_KEY + 1)) if len(reached) else growth
