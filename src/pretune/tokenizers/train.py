"""Training tokenizers: WordPiece, GPT-2's byte-level BPE, Unigram, characters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import DataError, did_you_mean
from pretune.tokenizers.class_rules import END_OF_TEXT
from pretune.tokenizers.engines import (
    LONGEST_WORD,
    bert_normalizer,
    byte_level_engine,
    character_engine,
    frame_as_bert,
    wordpiece_engine,
)
from pretune.tokenizers.folder_files import special_tokens
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train_unigram import (
    SPACE,
    learn_pieces,
    unigram_engine,
    unigram_normalizer,
)

Kind = Literal["wordpiece", "bpe", "unigram", "char"]
TOKENIZER_KINDS: tuple[str, ...] = get_args(Kind)

#: As in BERT's, GPT-2's and T5's published vocabularies; `char` takes all characters there are.
DEFAULT_SIZES = {"wordpiece": 30_522, "bpe": 50_257, "unigram": 32_000}

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

#: A run without a space (a base64 block) is counted as several words of this many bytes: the time
#: of a merge grows with the square of a word's length.
_LONGEST_RUN = 256

#: The most text to train on, in bytes: the trainer counts in 32 bits, and does not notice an
#: overflow.
MOST_BYTES = 2**31 - 1

#: More characters than Unicode has.
_ALL = 1 << 21

#: Called with the stage ("characters", "words", "merges") and the number of texts done in it.
OnStage = Callable[[str, int], None]


def train_tokenizer(
    texts: Iterable[str],
    kind: Kind,
    vocab_size: int | None = None,
    *,
    lowercase: bool | None = None,
    special: Sequence[str] = (),
    min_frequency: int = 2,
    alphabet_size: int | None = None,
    unknown: bool = True,
    characters_of: Iterable[str] = (),
    progress: OnStage | None = None,
) -> Tokenizer:
    """Train a tokenizer.

    The result depends on the texts alone: not on their order, nor on the number of threads.

    Args:
        texts: to learn from, at most `MOST_BYTES` (see `take_sample`). They are read more than
            once, for which the texts of an iterator are held in memory.
        kind: `wordpiece` (BERT's), `bpe` (GPT-2's, on bytes), `unigram` (SentencePiece's) or
            `char`.
        vocab_size: the most entries, with special tokens. There are fewer where the text has no
            more pairs to merge. Default: `DEFAULT_SIZES`; for `char` all characters.
        lowercase: whether texts are lowercased (an uncased model), for `wordpiece`, which strips
            accents too, and `unigram`. Default: yes for `wordpiece`, no for `unigram`.
        special: special tokens in addition to the usual ones of the kind.
        min_frequency: a pair that occurs less often is not merged; `unigram` merges none.
        alphabet_size: number of characters to keep, the most frequent ones; others become [UNK].
            Default: all. Not for `bpe`, which has all 256 bytes.
        unknown: whether there is an [UNK], for `char` only. Without it, encoding a text with other
            characters raises `DataError`.
        characters_of: texts whose characters enter the vocabulary too, without any merges.
        progress: called after each text.

    Raises:
        DataError: no text, an impossible `vocab_size` (the message names the smallest), or options
            that exclude each other.
    """
    check_options(
        kind, lowercase=lowercase, special=special, alphabet_size=alphabet_size, unknown=unknown
    )
    texts = list(texts) if iter(texts) is texts else texts
    every = [texts, list(characters_of)]
    # Characters: count them, nothing is merged.
    if kind == "char":
        counts = _count(_watched(progress, "characters", every))
        own = ("[UNK]",) if unknown else ()
        return _characters(counts, vocab_size, _distinct(*own, *special), alphabet_size)
    size = DEFAULT_SIZES[kind] if vocab_size is None else vocab_size
    # Byte-level BPE: the alphabet is known.
    if kind == "bpe":
        words = _watched(progress, "words", [texts])
        return _byte_level(words, size, _distinct(END_OF_TEXT, *special), min_frequency)
    # Unigram: the characters to keep, then pieces of them.
    if kind == "unigram":
        return _unigram(
            *(texts, every, size, _distinct(*BERT_TOKENS, *special), alphabet_size, progress),
            lowercase=lowercase is True,
        )
    # WordPiece: the characters to keep, then the alphabet that words are spelled with.
    normalizer = bert_normalizer(lowercase is not False)
    kept = None
    if alphabet_size is not None:
        normal = map(normalizer.normalize_str, _watched(progress, "characters", every))
        kept = _frequent(_count(normal), alphabet_size)
    tokens = _distinct(*BERT_TOKENS, *special)
    alphabet = _alphabet(_watched(progress, "characters", every), normalizer, kept)
    _check_size(size, len(set(tokens) | set(alphabet)), len(alphabet), "wordpiece")
    words = _watched(progress, "words", [texts])
    # The alphabet is passed as special tokens, whose ids we choose. The trainer would number the
    # ##-forms in the order of a hash map, and it breaks ties between pairs by their ids.
    vocabulary = _learn_words(words, normalizer, kept, size, [*tokens, *alphabet], min_frequency)
    engine = wordpiece_engine(vocabulary, normalizer)
    frame_as_bert(engine)
    engine.add_special_tokens(tokens)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase is not False,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
    }
    return Tokenizer(engine, special_tokens(engine, {}), settings)


def save_trained(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and the vocabulary, as in published models.

    The vocabulary is `vocab.txt` for WordPiece, `vocab.json` and `merges.txt` for byte-level BPE.
    """
    tokenizer.save(folder)
    if tokenizer.settings["tokenizer_class"] in ("BertTokenizer", "GPT2Tokenizer"):
        tokenizer.engine.model.save(str(folder))


def check_options(
    kind: str,
    *,
    lowercase: bool | None = None,
    special: Sequence[str] = (),
    alphabet_size: int | None = None,
    unknown: bool = True,
) -> None:
    """Raise a DataError if options of `train_tokenizer` exclude each other."""
    if kind not in TOKENIZER_KINDS:
        raise DataError(
            f"no kind of tokenizer is called '{kind}'", did_you_mean(kind, TOKENIZER_KINDS)
        )
    if lowercase is not None and kind not in ("wordpiece", "unigram"):
        raise DataError(
            f"lowercase is for wordpiece and unigram; {kind} keeps texts as they are",
            "Leave it out.",
        )
    if alphabet_size is not None and (kind == "bpe" or not unknown):
        why = "its alphabet is the 256 bytes" if kind == "bpe" else "there is no [UNK] for the rest"
        raise DataError(f"alphabet_size cannot be set: {why}", "Leave it out.")
    if not unknown and kind != "char":
        raise DataError(f"only char can do without [UNK], not {kind}", "Leave that option out.")
    for token in special:
        if not token.strip():
            raise DataError(f"special token {token!r}: is empty", "Give it some letters.")
        if "\n" in token or "\r" in token:  # vocab.txt has one token a line
            raise DataError(f"special token {token!r}: has a line break", "Leave that out.")


def _check_size(size: int, smallest: int, alphabet: int, kind: str) -> None:
    if size >= smallest:
        return
    where = ", alone and inside words" if kind == "wordpiece" else ""
    what = "bytes" if kind == "bpe" else f"characters{where}"
    way = "" if kind == "bpe" else " Or leave rare characters to [UNK]: --alphabet-size N."
    raise DataError(
        f"a vocabulary of {size:,} is too small: {alphabet:,} entries are for {what}, "
        f"{smallest - alphabet:,} for special tokens",
        f"The smallest possible is --vocab-size {smallest}.{way}",
    )


def _distinct(*tokens: str) -> list[str]:
    return list(dict.fromkeys(tokens))


def _watched(
    progress: OnStage | None, stage: str, sources: Iterable[Iterable[str]]
) -> Iterator[str]:
    """The texts of all sources, with a report after each; merging follows the last word."""
    for done, text in enumerate(chain.from_iterable(sources), start=1):
        yield text
        if progress is not None:
            progress(stage, done)
    if progress is not None and stage == "words":
        progress("merges", 0)


def _count(texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def _frequent(counts: Counter[str], size: int) -> list[str]:
    """The most frequent characters except the space; ties go to the lower code point."""
    return sorted((c for c in counts if c != " "), key=lambda c: (-counts[c], c))[:size]


def _alphabet(
    texts: Iterable[str], normalizer: normalizers.BertNormalizer, kept: list[str] | None
) -> list[str]:
    """The entries that spell any word: characters, then ##-forms, each by code point."""
    alphabet = _learn_words(texts, normalizer, kept, size=0, first=[], min_frequency=0)
    if not alphabet:
        raise DataError("no words in the text: nothing to train on", "Give it a file with text.")
    return sorted(alphabet, key=lambda token: (len(token), token))


def _learn_words(
    texts: Iterable[str],
    normalizer: normalizers.BertNormalizer,
    kept: list[str] | None,
    size: int,
    first: list[str],
    min_frequency: int,
) -> dict[str, int]:
    """Train a WordPiece vocabulary, token -> id, with the characters `kept` (None: all).

    The entries `first` have the first ids. A `size` of 0 learns the alphabet alone.
    """
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=first,
        show_progress=False,
        initial_alphabet=kept or [],
        limit_alphabet=_ALL if kept is None else len(kept),
    )
    # The same normalizer and words as the finished tokenizer, except that long words are split.
    engine = RustTokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    engine.normalizer = normalizer
    engine.pre_tokenizer = _cut_after(pre_tokenizers.BertPreTokenizer(), LONGEST_WORD)
    engine.train_from_iterator(texts, trainer)
    return engine.get_vocab()


def _cut_after(pre_tokenizer: Any, length: int) -> pre_tokenizers.Sequence:
    runs = pre_tokenizers.Split(Regex(f".{{{length}}}"), "isolated")
    return pre_tokenizers.Sequence([pre_tokenizer, runs])


def _byte_level(
    texts: Iterator[str], size: int, special: list[str], min_frequency: int
) -> Tokenizer:
    # The 256 bytes come first, then merges up to the size, then the special tokens.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_size(size, len(alphabet) + len(special), len(alphabet), "bpe")
    engine = RustTokenizer(models.BPE())
    engine.pre_tokenizer = _cut_after(
        pre_tokenizers.ByteLevel(add_prefix_space=False), _LONGEST_RUN
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(special),
        min_frequency=min_frequency,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    # The trainer would make a vocabulary of bytes from no text at all.
    first = next(filter(None, texts), None)
    if first is None:
        raise DataError("the text is empty: nothing to train on", "Give it a file with text.")
    engine.train_from_iterator(chain([first], texts), trainer)
    model = json.loads(engine.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for token in special:  # they have the last ids, as in GPT-2
        vocabulary.setdefault(token, len(vocabulary))
    engine = byte_level_engine(vocabulary, [(left, right) for left, right in model["merges"]])
    engine.add_special_tokens(special)
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(engine, special_tokens(engine, {}), settings)


def _unigram(
    texts: Iterable[str],
    every: Sequence[Iterable[str]],
    size: int,
    tokens: list[str],
    alphabet_size: int | None,
    progress: OnStage | None,
    *,
    lowercase: bool,
) -> Tokenizer:
    normalizer = unigram_normalizer(lowercase=lowercase)
    # The characters, of which each is a piece of its own, with the one that stands for a space.
    counts = _count(map(normalizer.normalize_str, _watched(progress, "characters", every)))
    alphabet = {SPACE, *_frequent(counts, _ALL if alphabet_size is None else alphabet_size)}
    if not counts:
        raise DataError("the text is empty: nothing to train on", "Give it a file with text.")
    _check_size(size, len(tokens) + len(alphabet), len(alphabet), "unigram")
    # The pieces, behind the special tokens.
    words = _watched(progress, "words", [texts])
    learned = learn_pieces(words, normalizer, size - len(tokens), alphabet)
    pieces = [(token, 0.0) for token in tokens]
    pieces += [entry for entry in learned if entry[0] not in tokens]
    engine = unigram_engine(pieces, tokens.index("[UNK]"), normalizer)
    frame_as_bert(engine)
    engine.add_special_tokens(tokens)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return Tokenizer(engine, special_tokens(engine, {}), settings)


def _characters(
    counts: Counter[str], size: int | None, special: list[str], alphabet_size: int | None
) -> Tokenizer:
    if not counts:
        raise DataError("the text is empty: nothing to train on", "Give it a file with text.")
    # The most frequent characters are kept; their ids follow their code points.
    chosen = sorted(counts, key=lambda c: (-counts[c], c))[:alphabet_size]
    tokens = _distinct(*sorted(chosen), *special)
    if size is not None:
        _check_size(size, len(tokens), len(chosen), "char")
    unknown = "[UNK]" if "[UNK]" in special else None
    engine = character_engine({token: i for i, token in enumerate(tokens)}, unknown)
    engine.add_special_tokens(special)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return Tokenizer(engine, special_tokens(engine, {}), settings)
