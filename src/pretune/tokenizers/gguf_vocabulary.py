"""Tokenizers that GGUF files hold as entries (`tokenizer.ggml...`).

A file has the vocabulary, its merges or scores, and the name by which llama.cpp knows how text is
cut into words before that (`tokenizer.ggml.pre`). The rules themselves are not in the file: a name
that is not known here is refused, as other rules would give other tokens without an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError
from pretune.tokenizers.engines import ends_processor
from pretune.tokenizers.model_types import PLAIN
from pretune.tokenizers.sentencepiece import LONGEST_MERGED
from pretune.tokenizers.tokenizer import Tokenizer

_PREFIX = "tokenizer.ggml."
#: What a token is (`llama_token_type`): text of a special meaning, text that is never split, a row
#: of the table without a token, a byte.
_CONTROL, _WHOLE, _UNUSED = 3, 4, 5

#: The words of Llama 3 and of Qwen2; the others are cut by GPT-2's, with or without single digits.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
#: The rules by llama.cpp's names of them.
_WORDS = {
    **dict.fromkeys(("gpt-2", "gpt2"), "gpt2"),
    **dict.fromkeys(("smollm", "starcoder"), "digits"),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), "llama3"),
    **dict.fromkeys(("qwen2",), "qwen2"),
}
#: The entries that name a token of a use of its own: ours, and llama.cpp's.
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_TEMPLATE = "tokenizer.chat_template"
_OTHER_SOURCE = "Get the model with tokenizer.json, config.json and model.safetensors."


def gguf_tokenizer(entries: Mapping[str, Any], path: Path) -> Tokenizer:
    """Make a tokenizer of the entries of a GGUF file.

    Args:
        entries: of the file.
        path: of the file, for errors.

    Raises:
        CheckpointError: there is none, of a kind that is not read, or it contradicts itself.
    """
    tokens = _list(entries, "tokens", str, path)
    types = _list(entries, "token_type", int, path, default=[1] * len(tokens))
    if not tokens or len(types) != len(tokens):
        raise _damaged(path, f"{len(tokens):,} tokens, and the types of {len(types):,}")
    # Rows of the table without a token have none here either.
    vocabulary = {t: i for i, (t, k) in enumerate(zip(tokens, types, strict=True)) if k != _UNUSED}
    if len(vocabulary) != sum(kind != _UNUSED for kind in types):
        raise _damaged(path, "a token is there twice")
    special = _special_tokens(entries, tokens, path)
    kind = entries.get(f"{_PREFIX}model")
    if kind == "gpt2":
        engine = _byte_level(entries, vocabulary, path)
    elif kind == "llama":
        scores = _list(entries, "scores", float, path)
        made = (t for t, k in zip(tokens, types, strict=True) if k not in (_CONTROL, _WHOLE))
        if (longest := max(map(len, made), default=0)) > LONGEST_MERGED:
            raise _damaged(path, f"a token of {longest:,} characters")
        engine = _sentencepiece(entries, vocabulary, scores, special.get("unk_token"), path)
    else:
        raise _unread(path, "model", kind, ("gpt2", "llama"))
    _add_whole(engine, tokens, types, special)
    _frame(engine, entries, special, path)
    settings: dict[str, Any] = {"tokenizer_class": PLAIN, "clean_up_tokenization_spaces": False}
    if templates := _templates(entries, path):
        settings["chat_template"] = templates
    return Tokenizer(engine, special, settings, origin=path)


def _byte_level(
    entries: Mapping[str, Any], vocabulary: Mapping[str, int], path: Path
) -> RustTokenizer:
    """Byte-level BPE, with the rules for words that the file names."""
    # Files of GPT-2 itself are older than the entry.
    gpt2 = entries.get("general.architecture") == "gpt2"
    name = entries.get(f"{_PREFIX}pre", "gpt-2" if gpt2 else None)
    words = _WORDS.get(name) if isinstance(name, str) else None
    if words is None:
        raise _unread(path, "pre", name, tuple(_WORDS))
    merges = [tuple(m.split(" ")) for m in _list(entries, "merges", str, path)]
    wrong = next((i for i, merge in enumerate(merges, start=1) if len(merge) != 2), None)
    if wrong is not None:
        raise _damaged(path, f"merge {wrong:,} is not two tokens with a space between")
    # Llama 3 takes a word that is a token by itself without merging.
    engine = _bpe(path, dict(vocabulary), merges, ignore_merges=words == "llama3")
    spaced = entries.get(f"{_PREFIX}add_space_prefix") is True
    level = pre_tokenizers.ByteLevel(
        add_prefix_space=spaced, use_regex=words in ("gpt2", "digits"), trim_offsets=False
    )
    cuts = {
        "digits": pre_tokenizers.Digits(individual_digits=True),
        "llama3": pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"),
        "qwen2": pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"),
    }
    first = cuts.get(words)
    engine.pre_tokenizer = level if first is None else pre_tokenizers.Sequence([first, level])
    if words == "qwen2":
        engine.normalizer = normalizers.NFC()
    engine.decoder = decoders.ByteLevel()
    return engine


def _sentencepiece(
    entries: Mapping[str, Any],
    vocabulary: Mapping[str, int],
    scores: Sequence[float],
    unknown: str | None,
    path: Path,
) -> RustTokenizer:
    """SentencePiece's BPE, as Llama has it: spaces are U+2581, unknown characters are bytes."""
    if len(scores) <= max(vocabulary.values()):
        raise _damaged(path, f"{len(vocabulary):,} tokens, and {len(scores):,} scores")
    if not all(map(math.isfinite, scores)):
        raise _damaged(path, f"{_PREFIX}scores has one that is no number")
    merges = merges_of_scores(vocabulary, scores)
    engine = _bpe(
        path, dict(vocabulary), merges, fuse_unk=True, byte_fallback=True, unk_token=unknown
    )
    spaced = entries.get(f"{_PREFIX}add_space_prefix") is not False
    engine.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first" if spaced else "never", split=False
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if spaced else [])])
    return engine


def merges_of_scores(
    vocabulary: Mapping[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE, which stores a score for each token instead.

    Two neighbours are joined if together they are a token; of all, those whose token has the
    highest score come first (sentencepiece's bpe_model.cc).

    Args:
        vocabulary: the tokens with their ids.
        scores: by id.

    Returns:
        all pairs of tokens that make a token, the best first.
    """
    pairs = []
    for token, number in vocabulary.items():
        for i in range(1, len(token) if len(token) <= LONGEST_MERGED else 0):
            left, right = vocabulary.get(token[:i]), vocabulary.get(token[i:])
            if left is not None and right is not None:
                pairs.append((-scores[number], number, left, right, token[:i], token[i:]))
    return [(left, right) for *_, left, right in sorted(pairs)]


def _bpe(
    path: Path, vocabulary: dict[str, int], merges: Sequence[Any], **options: Any
) -> RustTokenizer:
    try:
        return RustTokenizer(models.BPE(vocabulary, list(merges), **options))
    except Exception as error:  # the Rust side raises a bare Exception
        raise _damaged(path, f"its merges do not fit its tokens: {error}") from None


def _add_whole(
    engine: RustTokenizer, tokens: Sequence[str], types: Sequence[int], special: Mapping[str, str]
) -> None:
    """Add the tokens that are never split, and mark those that stand for no text."""
    named = {*special.values()}
    engine.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind != _WHOLE)
            for token, kind in zip(tokens, types, strict=True)
            if token and (kind in (_CONTROL, _WHOLE) or (token in named and kind != _UNUSED))
        ]
    )


def _special_tokens(
    entries: Mapping[str, Any], tokens: Sequence[str], path: Path
) -> dict[str, str]:
    special = {}
    for ours, theirs in _SPECIAL.items():
        number = entries.get(_PREFIX + theirs)
        if number is None:
            continue
        if type(number) is not int or not 0 <= number < len(tokens):
            shown = repr(number)[:100]
            raise _damaged(path, f"{_PREFIX}{theirs} is {shown}, of {len(tokens):,} tokens")
        special[ours] = tokens[number]
    return special


def _frame(
    engine: RustTokenizer, entries: Mapping[str, Any], special: Mapping[str, str], path: Path
) -> None:
    """Put tokens around a text where the file says so, or llama.cpp where it says nothing."""
    by_itself = entries.get(f"{_PREFIX}model") == "llama"
    by_itself = by_itself or _WORDS.get(str(entries.get(f"{_PREFIX}pre"))) == "llama3"
    ends = []
    for name, usual in (("bos", by_itself and "bos_token" in special), ("eos", False)):
        wanted = entries.get(f"{_PREFIX}add_{name}_token", usual)
        if wanted and f"{name}_token" not in special:
            raise _damaged(path, f"{_PREFIX}add_{name}_token, but no {_PREFIX}{name}_token_id")
        ends.append(special[f"{name}_token"] if wanted else None)
    if any(ends):
        engine.post_processor = ends_processor(engine, *ends)


def _templates(entries: Mapping[str, Any], path: Path) -> str | list[dict[str, str]] | None:
    """The chat template, or all of them by name as `tokenizer_config.json` lists them."""
    named = {
        key[len(_TEMPLATE) + 1 :]: value
        for key, value in entries.items()
        if key.startswith(f"{_TEMPLATE}.")
    }
    default = entries.get(_TEMPLATE)
    if not all(isinstance(text, str) for text in (default or "", *named.values())):
        raise _damaged(path, f"{_TEMPLATE} is not a text")
    if not named:
        return default
    return [
        {"name": name, "template": text}
        for name, text in {**({"default": default} if default else {}), **named}.items()
    ]


def _list(
    entries: Mapping[str, Any], name: str, kind: type, path: Path, default: list[Any] | None = None
) -> list[Any]:
    """A list of an entry, all of one type."""
    value = entries.get(_PREFIX + name, default)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        what = "is missing" if value is None else "is no list of the right type"
        raise _damaged(path, f"{_PREFIX}{name} {what}")
    return value


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: its tokenizer cannot be read ({what})", "Copy the file again.")


def _unread(path: Path, name: str, value: object, known: Sequence[str]) -> CheckpointError:
    """The error for a kind of tokenizer that is not known."""
    shown = "missing" if value is None else repr(value)[:100]
    return CheckpointError(
        f"{path}: {_PREFIX}{name} is {shown}: pretune does not know how such a tokenizer cuts text",
        f"It knows {', '.join(known)}. {_OTHER_SOURCE}",
    )
