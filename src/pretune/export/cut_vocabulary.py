"""A tokenizer and a model without the tokens that some texts never use.

The tokenizer is cut so that it makes the same tokens of these texts, under other numbers:

- WordPiece takes the longest entry that fits. All entries that the texts use stay, so the longest
  one stays the longest. All single characters stay as well, so that a word that could be spelled
  still can be.
- BPE applies the merge of the lowest rank. For each token that stays, the merges that lead to it
  stay, with their tokens; so do all single characters (bytes, where it is one of bytes).
- Unigram takes the most probable way to cut a word. The one of each word of the texts stays, and
  all single characters.
- A list of words keeps those of the texts.

Special tokens, added tokens and what the configuration names stay in any case. The order stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer

from pretune.bundle.bundle import Bundle
from pretune.data.readers.files import read
from pretune.errors import CheckpointError, DataError
from pretune.inference.predict import read_inputs
from pretune.models.pruned import keep_tokens, token_entries
from pretune.tasks.base import UsesTokenizer
from pretune.tasks.features import record_features
from pretune.tasks.masked_lm.masked_sequences import MasksSequences
from pretune.tokenizers.tokenizer import Tokenizer

#: One text of so many is held back, to see how the cut tokenizer does on text that it never saw.
HELD_BACK = 10
#: Texts that are encoded at a time.
_CHUNK = 4096
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class HeldBackText:
    """How a tokenizer that was cut by the other texts reads those that were held back."""

    words: int
    changed: float  # share of the words that become other tokens than before
    unknown: float  # share of the words with an unknown token that had none before


@dataclass(frozen=True)
class UsedText:
    """What a model is to read."""

    texts: list[str]  # all texts of the data, whatever they are there for
    tokens: set[int]  # that the model's task makes of the data, also around and between texts


def used_text(
    bundle: Bundle,
    sources: Sequence[str],
    *,
    columns: dict[str, str] | None = None,
    encoding: str = "utf-8",
    quoting: str = "auto",
) -> UsedText:
    """Read everything that a model is to read.

    Args:
        bundle: the model with its tokenizer; a task reads the data as for `predict`.
        sources: files with or without labels, or Hub datasets.
        columns: the task's names of columns -> the data's; default: as in the training data.
        encoding: of text files.
        quoting: of CSV and TSV files.

    Raises:
        DataError: a file is missing or broken, or lacks what the task reads.
    """
    texts: list[str] = []
    tokens: set[int] = set()
    for source in sources:
        texts += texts_of(read(source, encoding=encoding, quoting=quoting).rows)
        # What a model for gaps is asked has gaps; what it was trained on has none.
        if bundle.task is not None and not isinstance(bundle.task, MasksSequences):
            records = read_inputs(
                bundle, Path(source), columns=columns, encoding=encoding, quoting=quoting
            )
            made = record_features(bundle.task, records, bundle.tokenizer, with_targets=False)
            tokens |= {*np.unique(made.tokens).tolist()}
    return UsedText(texts, tokens)


def cut_vocabulary(bundle: Bundle, used: UsedText) -> HeldBackText:
    """Remove the tokens that texts do not use, from a model and its tokenizer, in place.

    Args:
        bundle: a model with its tokenizer.
        used: everything that the model is to read.

    Returns:
        how well the vocabulary of most of the texts fits the rest.

    Raises:
        CheckpointError: the tokenizer is of a kind that cannot be cut.
        DataError: there is no text, or one cannot be encoded.
    """
    texts = [text for text in dict.fromkeys(used.texts) if text.strip()]
    if not texts:
        raise DataError("--vocab: no text in the data", "Name data with text.")
    tokenizer = bundle.tokenizer
    if tokenizer.target is not None:
        raise CheckpointError(
            "--vocab: this model has a second tokenizer for what it writes", "Leave out --vocab."
        )
    always = {*chain(*token_entries(bundle.backbone).values()), *_framing(bundle), *used.tokens}
    kept = kept_tokens(tokenizer, _used(tokenizer, texts) | always)
    smaller = cut_tokenizer(tokenizer, kept)
    _check_equal(tokenizer, smaller, kept, texts)
    held_back = _on_held_back(tokenizer, texts, always)
    keep_tokens(bundle.model, kept)
    bundle.tokenizer = smaller
    task = bundle.task
    if task is not None and isinstance(task, UsesTokenizer):
        task.bind(smaller)
    return held_back


def kept_tokens(tokenizer: Tokenizer, used: Collection[int]) -> list[int]:
    """The numbers of the tokens that stay, in their order.

    Args:
        tokenizer: to be cut.
        used: numbers of tokens that must stay.
    """
    parts = json.loads(tokenizer.engine.to_str())
    model, vocabulary = parts["model"], tokenizer.engine.get_vocab(with_added_tokens=True)
    names = {number: token for token, number in vocabulary.items()}
    kept = {number for number in used if number in names}
    kept |= {token["id"] for token in parts["added_tokens"]}
    named = [tokenizer.special.get(name) for name in tokenizer.special]
    kept |= {vocabulary[token] for token in named if token in vocabulary}
    unknown = model.get("unk_token")
    if unknown in vocabulary:
        kept.add(vocabulary[unknown])
    if model.get("unk_id") is not None:
        kept.add(model["unk_id"])
    # Whatever can be spelled by characters still can be.
    if model["type"] != "WordLevel":
        kept |= _characters(tokenizer.engine, model, vocabulary)
    if model["type"] == "BPE":
        kept |= _derived(model, {names[number] for number in kept}, vocabulary)
    return sorted(kept)


def _characters(
    engine: RustTokenizer, model: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> set[int]:
    """The numbers of the entries of one character or byte, as far as a text can lead to them."""
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    kept: set[int] = set()
    for token, number in vocabulary.items():
        inner = token.removesuffix(suffix) if suffix else token
        follows = bool(prefix) and inner.startswith(prefix) and len(inner) > len(prefix)
        inner = inner.removeprefix(prefix) if follows else inner
        alone = len(inner) == 1 and (not follows or _continues(engine, inner))
        if alone or _BYTE.fullmatch(token):
            kept.add(number)
    return kept


def _continues(engine: RustTokenizer, character: str) -> bool:
    """Whether a character can stand within a word: a Chinese BERT has each ideograph alone."""
    text = f"a{character}"
    if engine.normalizer is not None:
        text = engine.normalizer.normalize_str(text)
    words = engine.pre_tokenizer.pre_tokenize_str(text) if engine.pre_tokenizer else [(text, None)]
    return len(words) == 1 and words[0][0].endswith(character)


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The merges of a BPE: both sides, and what they make."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right, left + right.removeprefix(prefix)


def _derived(model: Mapping[str, Any], tokens: set[str], vocabulary: Mapping[str, int]) -> set[int]:
    """The numbers of all tokens from which merges make these."""
    made: dict[str, list[tuple[str, str]]] = {}
    for left, right, whole in _merges(model):
        made.setdefault(whole, []).append((left, right))
    waiting, reached = list(tokens), set(tokens)
    while waiting:
        for pair in made.get(waiting.pop(), ()):
            for part in set(pair) - reached:
                reached.add(part)
                waiting.append(part)
    return {vocabulary[token] for token in reached if token in vocabulary}


def cut_tokenizer(tokenizer: Tokenizer, kept: Sequence[int]) -> Tokenizer:
    """Copy a tokenizer with these tokens only, which are numbered anew in their order.

    Raises:
        CheckpointError: its kind is unknown.
    """
    parts = json.loads(tokenizer.engine.to_str())
    model, new = parts["model"], {old: number for number, old in enumerate(kept)}
    if model["type"] in ("WordPiece", "WordLevel", "BPE"):
        model["vocab"] = {t: new[i] for t, i in model["vocab"].items() if i in new}
    elif model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        raise CheckpointError(
            f"--vocab: a tokenizer of the kind {model['type']} cannot be cut", "Leave out --vocab."
        )
    if model["type"] == "BPE":
        whole = zip(model["merges"], _merges(model), strict=True)
        model["merges"] = [m for m, made in whole if all(t in model["vocab"] for t in made)]
    for token in parts["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber(parts.get("post_processor"), new)
    return replace(tokenizer, engine=RustTokenizer.from_str(json.dumps(parts)))


def _renumber(processor: Any, new: Mapping[int, int]) -> None:
    """Change the numbers of the tokens that a post-processor puts around texts."""
    if not isinstance(processor, dict):
        return
    for inner in processor.get("processors") or ():
        _renumber(inner, new)
    special = processor.get("special_tokens")
    if isinstance(special, dict):
        # It may know tokens that it never puts anywhere, and that are gone.
        processor["special_tokens"] = special = {
            name: entry for name, entry in special.items() if {*entry["ids"]} <= new.keys()
        }
        for entry in special.values():
            entry["ids"] = [new[number] for number in entry["ids"]]
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            token, number = processor[name]
            processor[name] = [token, new[number]]


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    for start in range(0, len(texts), _CHUNK):
        for encoding in tokenizer.encode_bare(texts[start : start + _CHUNK], offsets=False):
            yield encoding.ids


def _used(tokenizer: Tokenizer, texts: Sequence[str]) -> set[int]:
    return set[int]().union(*_encoded(tokenizer, texts))


def _framing(bundle: Bundle) -> set[int]:
    """The numbers of the tokens that are put around texts."""
    return {
        number
        for pair in (None, [""])
        for encoded in bundle.tokenizer.encode([""], pair)
        for number in encoded.ids
    }


def _check_equal(
    before: Tokenizer, after: Tokenizer, kept: Sequence[int], texts: Sequence[str]
) -> None:
    """Check that the texts have the same tokens as before."""
    pairs = zip(_encoded(before, texts), _encoded(after, texts), strict=True)
    if any(old != [kept[number] for number in new] for old, new in pairs):
        raise CheckpointError(
            "--vocab: the tokenizer would cut the data in another way without the other tokens",
            "Leave out --vocab.",
        )


def _on_held_back(
    tokenizer: Tokenizer, texts: Sequence[str], always: Collection[int]
) -> HeldBackText:
    """Cut the tokenizer by most of the texts, and count what becomes of the words of the rest."""
    others = [text for number, text in enumerate(texts) if (number + 1) % HELD_BACK]
    words = sorted({word for text in texts[HELD_BACK - 1 :: HELD_BACK] for word in text.split()})
    if not words or not others:
        return HeldBackText(0, 0.0, 0.0)
    kept = kept_tokens(tokenizer, _used(tokenizer, others) | {*always})
    smaller, unknown = cut_tokenizer(tokenizer, kept), tokenizer.special_id("unk_token")
    changed = lost = 0
    for old, new in zip(_encoded(tokenizer, words), _encoded(smaller, words), strict=True):
        same = [kept[number] for number in new]
        changed += same != old
        lost += unknown in same and unknown not in old
    return HeldBackText(len(words), changed / len(words), lost / len(words))


def texts_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All texts in the cells of records, also in lists and objects there."""
    texts: list[str] = []

    def take(value: Any) -> None:
        inner: Callable[[], Iterable[Any]] | None = getattr(value, "values", None)
        if isinstance(value, str):
            texts.append(value)
        elif inner is not None:
            for part in inner():
                take(part)
        elif isinstance(value, list | tuple):
            for part in value:
                take(part)

    for row in rows:
        take(row)
    return texts
