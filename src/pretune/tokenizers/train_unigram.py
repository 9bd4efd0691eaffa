"""Training a Unigram vocabulary as SentencePiece does (Kudo 2018, arXiv:1804.10959)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import DataError

#: What stands for a space, in the vocabulary and before each text.
SPACE = "\u2581"
#: A run without a space is trained on in parts of this many characters.
_LONGEST_RUN = 512
#: Digits of a logarithm that are kept: in sums over many texts, the last ones depend on the order
#: in which threads add them.
_DIGITS = 6


def unigram_normalizer(*, lowercase: bool) -> normalizers.Normalizer:
    """The rules of SentencePiece's `nmt_nfkc`, or `nmt_nfkc_cf` for lower case.

    Control characters go, other kinds of white space become spaces, what Unicode calls compatible
    becomes one (NFKC), and several spaces one; none is left at the ends.
    """
    steps: list[Any] = [normalizers.Nmt(), normalizers.NFKC()]
    steps += [normalizers.Lowercase()] if lowercase else []
    steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)


def unigram_engine(
    pieces: Iterable[tuple[str, float]], unknown: int, normalizer: normalizers.Normalizer
) -> RustTokenizer:
    """Make an engine of pieces with the logarithms of their probabilities.

    Args:
        pieces: in the order of their ids.
        unknown: the id of the token for what no piece spells.
        normalizer: from `unigram_normalizer`.
    """
    engine = RustTokenizer(models.Unigram(list(pieces), unknown, False))
    engine.normalizer = normalizer
    engine.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always")
    engine.decoder = decoders.Metaspace(SPACE, "always")
    return engine


def learn_pieces(
    texts: Iterable[str], normalizer: normalizers.Normalizer, size: int, alphabet: Collection[str]
) -> list[tuple[str, float]]:
    """Train the pieces: at most `size` of them, the most probable first.

    Beginning with all frequent parts of words, the pieces that the likelihood of the texts needs
    least are dropped until `size` are left; each character of the alphabet stays (section 3.2).

    Args:
        texts: to learn from.
        normalizer: from `unigram_normalizer`.
        size: the most pieces; more than the alphabet has.
        alphabet: the characters that are kept; others are learned from as if a word ended there.

    Raises:
        DataError: there are no words in the texts.
    """
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=[], initial_alphabet=sorted(alphabet), show_progress=False
    )
    engine = RustTokenizer(models.Unigram())
    # The same words as the finished tokenizer, except that long ones are cut.
    runs = pre_tokenizers.Split(Regex(f".{{{_LONGEST_RUN}}}"), "isolated")
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(SPACE, "always"), runs]
    )
    first = next(words := _known(texts, normalizer, alphabet), None)
    if first is None:
        raise DataError("no words in the text: nothing to train on", "Give it a file with text.")

    def every() -> Iterator[str]:
        yield first
        yield from words

    engine.train_from_iterator(every(), trainer)
    learned = _pieces(engine)
    # Equal logarithms are equally good: those pieces go by their characters.
    rounded = [(piece, round(score, _DIGITS)) for piece, score in learned]
    return sorted(rounded, key=lambda entry: (-entry[1], entry[0]))


def _pieces(engine: RustTokenizer) -> list[tuple[str, float]]:
    """Read the pieces of an engine with their scores."""
    vocabulary: list[tuple[str, float]] = json.loads(engine.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in vocabulary]


def _known(
    texts: Iterable[str], normalizer: normalizers.Normalizer, alphabet: Collection[str]
) -> Iterator[str]:
    """Yield normalised texts, with a space for each character that is not kept."""
    kept = {*alphabet, " "}
    seen: dict[int, str] = {}
    for text in texts:
        normal = normalizer.normalize_str(text)
        if not normal:
            continue
        for character in set(normal) - kept:
            seen[ord(character)] = " "
        yield normal.translate(seen) if seen else normal
