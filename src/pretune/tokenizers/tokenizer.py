"""`Tokenizer`: the Rust `tokenizers` engine with the few things a model needs to know about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, overload

from tokenizers import Encoding, normalizers
from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError, DataError, describe_value
from pretune.text.terminal import in_line
from pretune.tokenizers.classes import (
    INPUTS,
    SEGMENTS,
    base_name,
    builds,
    gives_segments,
    usual_tokens,
)
from pretune.tokenizers.engines import literal_engine
from pretune.tokenizers.model_types import PLAIN

SPECIAL_NAMES = (
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "bos_token",
    "eos_token",
)

#: File of a translator's second tokenizer, for the texts that it writes.
TARGET_FILE = "target_tokenizer.json"
#: Key in `tokenizer_config.json` that names this file.
TARGET_KEY = "target_tokenizer_file"
#: Key in `tokenizer_config.json` for added tokens: id -> token and how it is matched in a text.
DECODER = "added_tokens_decoder"

#: Characters of a word that is shown.
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded text or pair."""

    ids: list[int]  # token ids, with special tokens
    # For each token, 0 for the first text and its special tokens, 1 for the second (BERT's
    # `token_type_ids`).
    segments: list[int]
    # The (start, end) characters of each token in its text; (0, 0) for special tokens.
    offsets: list[tuple[int, int]]
    truncated: bool  # whether tokens were cut to fit the maximum length


@dataclass(frozen=True, slots=True)
class CutText:
    """A text in pieces, and the (start, end) characters of each."""

    pieces: list[str]
    places: list[tuple[int, int]]


class Cutter(Protocol):
    """Cuts texts into pieces that an engine only looks up: those of OPUS-MT, see `marian.py`."""

    @property
    def rules(self) -> str:
        """What the pieces depend on, for comparisons."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """The published files, which are saved as they were."""

    def cut(self, texts: Sequence[str], whole: Sequence[str]) -> list[CutText]:
        """Cut texts; `whole` are tokens that stay as they are wherever they stand."""


@dataclass(slots=True, repr=False)
class Tokenizer:
    """A tokenizer with its special tokens and the settings it was published with."""

    engine: RustTokenizer  # the Rust tokenizer; never pads or truncates by itself
    # The special tokens by their Hugging Face names, e.g. `{"cls_token": "[CLS]"}`.
    special: dict[str, str]
    # The content of `tokenizer_config.json`; written back by `save`.
    settings: dict[str, Any] = field(default_factory=dict)
    # The tokenizer for the texts that a translator writes, saved as `TARGET_FILE`; None where they
    # have the same vocabulary as the texts it reads.
    target: Tokenizer | None = None
    origin: Path | None = None  # the file that it was read from, for errors
    # Cuts texts before the engine numbers the pieces; None: the engine does both.
    cutter: Cutter | None = None
    # The engine for literal reading with the size of the vocabulary that it is for; None: not yet.
    _literal: tuple[int, RustTokenizer] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        # A published tokenizer.json often carries the padding and truncation of its demo
        # (MiniLM's pads everything to 128). A task decides about those, not a vocabulary.
        self.engine.no_padding()
        self.engine.no_truncation()

    def __repr__(self) -> str:
        place = "" if self.origin is None else f" of {in_line(self.origin)}"
        return f"<Tokenizer{place}: {self.vocab_size:,} tokens>"

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self, texts: str, pairs: str | None = None, *, max_length: int | None = None
    ) -> Encoded: ...
    @overload
    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
    ) -> list[Encoded]: ...
    def __call__(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
    ) -> Encoded | list[Encoded]:
        """Encode a text, or several: `tokenizer("a text").ids`.

        Args:
            texts: one text, or a list of them.
            pairs: the second text of the pair, or a list of these.
            max_length: the most tokens of a result; see `encode`.

        Returns:
            one `Encoded` for a text, a list of them for a list.
        """
        if isinstance(texts, str):
            second = [pairs] if isinstance(pairs, str) else pairs
            return self.encode([texts], second, max_length=max_length)[0]
        texts = _all_texts(texts)
        if isinstance(pairs, str):
            raise DataError("a list of texts, and one text as their pairs", "Give a list of pairs.")
        return self.encode(texts, pairs, max_length=max_length)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id: the number of embedding rows this tokenizer needs."""
        return max(self.engine.get_vocab(with_added_tokens=True).values()) + 1

    def special_id(self, name: str) -> int | None:
        """The id of a special token by its Hugging Face name (`cls_token`), if it has one."""
        token = self.special.get(name)
        return None if token is None else self.engine.token_to_id(token)

    @property
    def end_id(self) -> int | None:
        """The id of the token that ends a text: the end of text, or BERT's `[SEP]`; or None."""
        end = self.special_id("eos_token")
        return self.special_id("sep_token") if end is None else end

    @property
    def two_vocabularies(self) -> bool:
        """Whether the texts that a translator writes have a vocabulary of their own."""
        return self.target is not None and self.target.engine is not self.engine

    @property
    def rules(self) -> tuple[str, ...]:
        """What tokens depend on: these texts are equal where all texts become the same tokens."""
        cutting = () if self.cutter is None else (self.cutter.rules,)
        return (self.engine.to_str(), *cutting)

    @property
    def written(self) -> Tokenizer:
        """The tokenizer for the texts that a model writes: `target`, or this one."""
        return self if self.target is None else self.target

    def encode(
        self,
        first: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        head: float = 1.0,
        literal: bool = False,
    ) -> list[Encoded]:
        """Encode texts, or pairs of texts, in parallel.

        BERT layout: `[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]` with segments 0 and 1.

        Args:
            first: the texts.
            second: the second text of each pair, if any; as many as `first`.
            max_length: the most tokens of a result, with special tokens. Tokens over it are cut one
                by one from the longer of the two texts ("longest first").
            head: the share of a cut text that is from its beginning; the rest is from its end.
            literal: see `encode_bare`.

        Raises:
            DataError: a text has characters outside of the vocabulary, and there is no [UNK].
            ValueError: `second` is not as long as `first`, or `max_length` has no room for the
                special tokens.
        """
        texts = list(first) if second is None else list(zip(first, second, strict=True))
        if self.cutter is not None:
            return self._encode_cut(self.cutter, first, second, max_length, head, literal)
        with self._reading(texts, literal) as engine:
            encodings = engine.encode_batch(texts)
        return [_encoded(encoding, max_length, head) for encoding in encodings]

    def _encode_cut(
        self,
        cutter: Cutter,
        first: Sequence[str],
        second: Sequence[str] | None,
        max_length: int | None,
        head: float,
        literal: bool,
    ) -> list[Encoded]:
        """Encode texts that a cutter cuts first; see `encode`."""
        whole = self._whole(literal)
        sides = [cutter.cut(side, whole) for side in (first, second) if side is not None]
        cut = list(zip(*sides, strict=True))
        pieces = [[own.pieces for own in texts] for texts in cut]
        given = [own[0] if len(own) == 1 else tuple(own) for own in pieces]
        with self._reading(given, literal):
            encodings = self.engine.encode_batch(given, is_pretokenized=True)
        encoded = []
        for texts, encoding in zip(cut, encodings, strict=True):
            # The engine knows places within a piece; the cutter those within the text.
            owners = zip(encoding.sequence_ids, encoding.word_ids, strict=True)
            places = [
                (0, 0) if side is None or word is None else texts[side].places[word]
                for side, word in owners
            ]
            encoded.append(_encoded(encoding, max_length, head, places))
        return encoded

    def _whole(self, literal: bool) -> list[str]:
        """The added tokens that a text is divided at before it is cut."""
        added = self.engine.get_added_tokens_decoder().values()
        literal = literal or self.engine.encode_special_tokens
        return [token.content for token in added if not (literal and token.special)]

    def encode_bare(
        self, texts: Sequence[str], *, offsets: bool = True, literal: bool = False
    ) -> list[Encoding]:
        """Encode texts in parallel, without special tokens and without a limit; see `encode`.

        Without `offsets` it is faster; where there is a `cutter`, they are those within a piece.
        `literal` reads the name of a special token in a text, such as `[SEP]`, as text: else a
        stranger's text could end its turn and begin another speaker's.
        """
        cutter, given = self.cutter, list[Any](texts)
        if cutter is not None:
            given = [own.pieces for own in cutter.cut(texts, self._whole(literal))]
        with self._reading(given, literal) as engine:
            encode = engine.encode_batch if offsets else engine.encode_batch_fast
            return encode(given, is_pretokenized=cutter is not None, add_special_tokens=False)

    @contextmanager
    def _reading(self, texts: Sequence[object], literal: bool) -> Iterator[RustTokenizer]:
        """Lend the engine to encode texts with."""
        engine = self._literal_engine() if literal else self.engine
        # Changed only where that is needed: another thread may be reading with this engine.
        changed = literal and engine is self.engine and not engine.encode_special_tokens
        if changed:
            engine.encode_special_tokens = True
        try:
            with explained(engine, texts, self.origin):
                yield engine
        finally:
            if changed:
                engine.encode_special_tokens = False

    def _literal_engine(self) -> RustTokenizer:
        """The engine, or a copy where its model itself would make special tokens of their names."""
        size = self.engine.get_vocab_size()
        if self._literal is None or self._literal[0] != size:
            self._literal = size, literal_engine(self.engine)
        return self._literal[1]

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[Encoding]:
        """Encode sentences that are split into words, in parallel, without special tokens.

        `word_ids` of a result give the word of each token; a word may have no token.
        """
        words = [list(sentence) for sentence in sentences]
        with explained(self.engine, words, self.origin):
            return self.engine.encode_batch(words, is_pretokenized=True, add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids, as the tokenizer's decoder joins them."""
        text: str = self.engine.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def text_of(self, index: int) -> str:
        """The text that a token stands for by itself; as a fill-mask pipeline shows it.

        Of a byte-level vocabulary it is ` word` where the entry is `Ġword`; `##able` stays as it
        is, which tells it from the word.
        """
        return self.decode([index], skip_special=False)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary entries of token ids, e.g. `["[CLS]", "un", "##affable", "[SEP]"]`."""
        return [self.engine.id_to_token(index) or f"<{index}>" for index in ids]

    def cuts_as(self, other: Tokenizer) -> bool:
        """Whether both make the same tokens from any text, apart from special tokens around it."""
        cutters = [None if own.cutter is None else own.cutter.rules for own in (self, other)]
        return cutters[0] == cutters[1] and _cutting(self.engine) == _cutting(other.engine)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` in the Hugging Face layout.

        Where a `cutter` has published files, those are written instead of `tokenizer.json`.
        """
        if self.cutter is not None:
            for name, content in self.cutter.files.items():
                (folder / name).write_bytes(content)
            self._save_settings(folder)
            return
        # The engine's own `save` raises a bare Exception where the disk is full.
        (folder / "tokenizer.json").write_text(self.engine.to_str(pretty=True), encoding="utf-8")
        if self.target is not None:
            text = self.target.engine.to_str(pretty=True)
            (folder / TARGET_FILE).write_text(text, encoding="utf-8")
        self._save_settings(folder)

    def _save_settings(self, folder: Path) -> None:
        text = json.dumps(self._saved(), ensure_ascii=False, indent=2, sort_keys=True)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    def _saved(self) -> dict[str, Any]:
        """The settings as they are written: they say no more and no less than `tokenizer.json`."""
        # transformers reads special tokens and its class from the settings.
        settings = {**self.settings, **self.special}
        settings.pop(TARGET_KEY, None)
        if self.target is not None and self.cutter is None:
            settings[TARGET_KEY] = TARGET_FILE
        # Some classes build the engine anew: not this one, if a task has changed it.
        if not builds(
            base_name(settings.setdefault("tokenizer_class", PLAIN)), settings, self.engine
        ):
            settings["tokenizer_class"] = PLAIN
        kind = base_name(settings["tokenizer_class"])
        # A list of added tokens goes before the one in `tokenizer.json`, which may have more.
        if DECODER in settings or self.cutter is not None:
            added = self.engine.get_added_tokens_decoder()
            settings[DECODER] = {str(i): token.__getstate__() for i, token in added.items()}
        # The class would add its usual tokens to a vocabulary that lacks them.
        for name, token in usual_tokens(kind).items():
            if self.engine.token_to_id(token) is None:
                settings.setdefault(name, None)
        # By themselves most classes tell a model nothing about segments.
        if INPUTS not in settings and not gives_segments(kind, None) and self.tells_segments:
            settings[INPUTS] = ["input_ids", SEGMENTS, "attention_mask"]
        return settings

    @property
    def tells_segments(self) -> bool:
        """Whether what is put around a text, or a pair, makes segments other than 0."""
        framed = {pair: self.engine.num_special_tokens_to_add(pair) for pair in (False, True)}
        return any(segments_of(self, pair=pair) > 1 for pair in framed if framed[pair])


def _cutting(engine: RustTokenizer) -> dict[str, Any]:
    parts = json.loads(engine.to_str())
    return {name: parts[name] for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")}


def _all_texts(texts: object) -> list[str]:
    """The texts that somebody gives to a tokenizer."""
    items: list[Any] = list(texts) if isinstance(texts, Iterable) else [texts]
    for item in items:
        if not isinstance(item, str):
            raise DataError(
                f"tokenizer: expected a text, found {describe_value(item)}",
                "Give a text, or a list of texts.",
            )
    return items


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


def _encoded(
    encoding: Encoding,
    max_length: int | None,
    head: float,
    places: list[tuple[int, int]] | None = None,
) -> Encoded:
    ids, segments = encoding.ids, encoding.type_ids
    offsets = encoding.offsets if places is None else places
    if max_length is None or len(ids) <= max_length:
        return Encoded(ids, segments, offsets, truncated=False)
    # The cut is done here, as the engine also builds encodings of everything it cuts off, and for a
    # pair all combinations of the two texts' parts: two long texts would take gigabytes.
    kept = _kept(encoding.sequence_ids, max_length, head)
    return Encoded(
        ids=[ids[i] for i in kept],
        segments=[segments[i] for i in kept],
        offsets=[offsets[i] for i in kept],
        truncated=True,
    )


def _kept(sources: list[int | None], max_length: int, head: float) -> list[int]:
    """The tokens that stay: all special tokens, and the first and the last tokens of both texts.

    Args:
        sources: for each token the text it is from, 0 or 1, or None for a special token.
        max_length: how many stay.
        head: the share of the tokens of a text that are its first ones; the rest are its last.
    """
    special = sources.count(None)
    room = max_length - special
    if room < 0:
        raise ValueError(f"max_length={max_length} has no room for {special} special tokens")
    # "Longest first": the shorter text keeps up to half of the room, the longer one the rest.
    counts = first, second = sources.count(0), sources.count(1)
    if first <= second:
        first = min(first, room // 2)
        second = min(second, room - first)
    else:
        second = min(second, room // 2)
        first = min(first, room - second)
    # Which tokens of each text are left out: those after its first ones, up to its last ones.
    gaps = []
    for count, room in zip(counts, (first, second), strict=True):
        begin = room if room == count else round(room * head)
        gaps.append(range(begin, begin + count - room))
    seen, kept = [0, 0], []
    for i, source in enumerate(sources):
        if source is not None:
            seen[source] += 1
            if seen[source] - 1 in gaps[source]:
                continue
        kept.append(i)
    return kept


def lowercasing(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer; the copy lower-cases texts before anything else."""
    engine = RustTokenizer.from_str(tokenizer.engine.to_str())
    steps = [normalizers.Lowercase(), *([engine.normalizer] if engine.normalizer else [])]
    engine.normalizer = normalizers.Sequence(steps)
    return replace(tokenizer, engine=engine)


def segments_of(tokenizer: Tokenizer, *, pair: bool) -> int:
    """The number of segments (BERT's token types) that texts get, or pairs of texts."""
    engine, text = tokenizer.engine, _known_text(tokenizer)
    examples = [engine.encode(text), *([engine.encode(text, text)] if pair else [])]
    return 1 + max((segment for example in examples for segment in example.type_ids), default=0)


def tokens_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that are put before each text and after it, such as `[CLS]` and `[SEP]`."""
    example = tokenizer.engine.encode(_known_text(tokenizer))
    own = [place for place, source in enumerate(example.sequence_ids) if source == 0]
    if not own:
        return example.ids, []
    return example.ids[: own[0]], example.ids[own[-1] + 1 :]


def _known_text(tokenizer: Tokenizer) -> str:
    """A token of the vocabulary: some vocabularies have no letter of any fixed example."""
    engine = tokenizer.engine
    known = (name for name in tokenizer.special.values() if engine.token_to_id(name) is not None)
    return next(known, tokenizer.tokens([0])[0])
