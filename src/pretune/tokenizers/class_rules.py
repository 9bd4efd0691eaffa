"""What the tokenizer classes of transformers build of a vocabulary and of settings.

Each takes the vocabulary and the added tokens from a file, and the rest from the settings in
`tokenizer_config.json`, whatever else the file says. Source: `models/*/tokenization_*.py` of
transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from pretune.tokenizers.engines import (
    SPACE,
    bert_normalizer,
    byte_level_engine,
    ends_processor,
    frame_as_bert,
    precompiled_step,
    wordpiece_engine,
)

END_OF_TEXT = "<|endoftext|>"
#: Scores that a vocabulary gives to entries, by id.
Scores = list[tuple[str, float]]
Settings = Mapping[str, Any]
#: The control symbols and user-defined symbols of a SentencePiece file, as added tokens.
Symbols = list[Any]

_BERT_TOKENS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
}
_GPT2_TOKENS = {f"{name}_token": END_OF_TEXT for name in ("unk", "bos", "eos")}
_ROBERTA_TOKENS = {
    **dict.fromkeys(("bos_token", "cls_token"), "<s>"),
    **dict.fromkeys(("eos_token", "sep_token"), "</s>"),
    **{f"{name}_token": f"<{name}>" for name in ("unk", "pad", "mask")},
}
_ALBERT_TOKENS = {
    **dict.fromkeys(("bos_token", "cls_token"), "[CLS]"),
    **dict.fromkeys(("eos_token", "sep_token"), "[SEP]"),
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "[MASK]",
}
_DEBERTA_TOKENS = {**_ALBERT_TOKENS, "unk_token": "[UNK]", "pad_token": "[PAD]"}
_T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_GEMMA_TOKENS = {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")}
#: Qwen2's pattern of words.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: CamemBERT's first pieces, which its makers' tools put before those of SentencePiece.
_NOT_USED = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")
#: Lists of special tokens in settings, the newer name first.
EXTRA = ("extra_special_tokens", "additional_special_tokens")


class MissingTokenError(ValueError):
    """A token that has to stand around texts is not in the vocabulary; its argument names it."""


def _with_symbols(settings: Settings, symbols: Symbols | None) -> dict[str, Any]:
    """Settings with a list of special tokens, if they have none."""
    if symbols is None or any(name in settings for name in EXTRA):
        return dict(settings)
    return {**settings, EXTRA[0]: symbols}


@dataclass(frozen=True)
class ClassRules:
    """What a class builds."""

    model: type[models.Model]  # the kind of its model
    tokens: Mapping[str, str]  # its special tokens by name, where no file names them
    # Makes an engine with its rules, of settings and of the engine of a file; without the
    # vocabulary and without what stands around a text.
    rules: Callable[[Settings, RustTokenizer], RustTokenizer]
    # Makes what stands around a text, of settings, of the finished engine, and of what is in the
    # file.
    frame: Callable[[Settings, RustTokenizer, Any], Any]
    # Adds to settings the special tokens that the class takes for granted beyond `tokens`, and the
    # symbols of a SentencePiece file, if the vocabulary is from such a file.
    complete: Callable[[Settings, Symbols | None], dict[str, Any]] = _with_symbols
    pieces: str | None = None  # the name of its SentencePiece file
    # Makes the vocabulary of SentencePiece's and of settings; None: the same.
    vocabulary: Callable[[Scores, Settings], Scores] | None = None


def text_of(token: Any) -> str | None:
    """The text of a special token in the short or the long form; None where there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _named(settings: Settings, *names: str) -> list[str]:
    """The texts of special tokens; `None` as a text where there is none, as transformers does."""
    return [str(text_of(settings.get(f"{name}_token"))) for name in names]


def _ids(engine: RustTokenizer, names: Iterable[str]) -> list[tuple[str, int]]:
    """Tokens with their ids.

    Raises:
        MissingTokenError: the engine has not all of them.
    """
    ids = [(name, engine.token_to_id(name)) for name in names]
    for name, number in ids:
        if number is None:
            raise MissingTokenError(name)
    return [(name, number) for name, number in ids if number is not None]


def _true(settings: Settings, name: str, *, default: bool) -> bool:
    """Whether a setting is true, as Python sees it: null is not."""
    return bool(settings.get(name, default))


def _as_in_file(settings: Settings, engine: RustTokenizer, own: Any) -> Any:
    """What a file puts around a text, or else what the settings say."""
    return _ends(settings, engine) if own is None else own


def _ends(settings: Settings, engine: RustTokenizer) -> Any:
    """The tokens around a text that `add_bos_token` and `add_eos_token` ask for."""
    tokens = [
        text_of(settings.get(f"{name}_token")) if settings.get(f"add_{name}_token") else None
        for name in ("bos", "eos")
    ]
    _ids(engine, [token for token in tokens if token is not None])
    return ends_processor(engine, *tokens)


# WordPiece and byte-level BPE.


def _bert(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    unknown, begin, end = (text_of(settings.get(f"{name}_token")) for name in ("unk", "cls", "sep"))
    ids = {str(name): engine.token_to_id(str(name)) or 0 for name in (unknown, begin, end)}
    usual = wordpiece_engine(
        ids,
        bert_normalizer(
            settings.get("do_lower_case") is not False,
            chinese=settings.get("tokenize_chinese_chars") is not False,
            strip_accents=settings.get("strip_accents"),
        ),
        str(unknown),
    )
    frame_as_bert(usual, str(begin), str(end))
    return usual


def _uncased(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    return _bert({**settings, "do_lower_case": True}, engine)


def _bert_frame(settings: Settings, engine: RustTokenizer, own: Any) -> Any:
    return _bert(settings, engine).post_processor


def _gpt2(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    return byte_level_engine({}, [], prefix_space=settings.get("add_prefix_space") is True)


def _roberta_frame(settings: Settings, engine: RustTokenizer, own: Any) -> Any:
    sep, cls = _ids(engine, _named(settings, "sep", "cls"))
    return processors.RobertaProcessing(
        sep,
        cls,
        _true(settings, "trim_offsets", default=True),
        _true(settings, "add_prefix_space", default=False),
    )


def _gpt_neox(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    usual = _gpt2(settings, engine)
    usual.normalizer = normalizers.NFC()
    return usual


def _nothing_around(settings: Settings, engine: RustTokenizer, own: Any) -> Any:
    return ends_processor(engine, None, None)


def _qwen2(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    usual = _gpt2(settings, engine)
    usual.normalizer = normalizers.NFC()
    usual.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(
                add_prefix_space=settings.get("add_prefix_space") is True, use_regex=False
            ),
        ]
    )
    return usual


# BPE with bytes for what it cannot spell.


def _llama(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    usual = RustTokenizer(models.BPE(fuse_unk=True, byte_fallback=True))
    # Only here is null the default.
    spaced = settings.get("add_prefix_space") is None or bool(settings["add_prefix_space"])
    legacy = _true(settings, "legacy", default=False)
    scheme = ("always" if legacy else "first") if spaced else "never"
    usual.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    usual.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if spaced else [])])
    return usual


def _gemma(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    (unknown,) = _named(settings, "unk")
    usual = RustTokenizer(models.BPE(unk_token=unknown, fuse_unk=True, byte_fallback=True))
    usual.normalizer = normalizers.Replace(" ", SPACE)
    usual.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    usual.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return usual


# Unigram.


def _unigram(unknown: int, scheme: str, *, whole: bool = True) -> RustTokenizer:
    """An engine with an unknown token, whose words begin with a mark for their space.

    Args:
        unknown: id of the token.
        scheme: where a space is put before a text.
        whole: whether white space of all kinds divides words, and is dropped.
    """
    usual = RustTokenizer(models.Unigram([("", 0.0)] * unknown + [("<unk>", 0.0)], unk_id=unknown))
    words = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    usual.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), words] if whole else [words]
    )
    usual.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return usual


def _spaced(settings: Settings) -> str:
    return "always" if _true(settings, "add_prefix_space", default=True) else "never"


def _xlm_roberta(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    usual = _unigram(3, _spaced(settings))
    usual.normalizer = precompiled_step(engine)
    return usual


def _camembert(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    (unknown,) = _named(settings, "unk")
    usual = _unigram(engine.token_to_id(unknown) or 0, _spaced(settings))
    usual.normalizer = precompiled_step(engine)
    return usual


def _pair_of_ends(settings: Settings, engine: RustTokenizer, own: Any) -> Any:
    begin, end = _named(settings, "bos", "eos")
    return processors.TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", end, end, "$B", end],
        special_tokens=_ids(engine, (begin, end)),
    )


def _camembert_tokens(settings: Settings, symbols: Symbols | None) -> dict[str, Any]:
    completed = _with_symbols(settings, list(_NOT_USED) if symbols is None else symbols)
    mask = completed.get("mask_token", "<mask>")
    if isinstance(mask, str):
        completed["mask_token"] = {"content": mask, "lstrip": True}
    return completed


def _after(first: list[tuple[str, float]], skipped: int, scores: Scores, mask: str) -> Scores:
    """A vocabulary with other first entries, and the mask as its last."""
    return [*first, *scores[skipped:], (mask, 0.0)]


def _camembert_vocabulary(scores: Scores, settings: Settings) -> Scores:
    pad, unknown, mask = _named(settings, "pad", "unk", "mask")
    begin, end, other = _NOT_USED
    first = [(begin, 0.0), (pad, 0.0), (end, 0.0), (unknown, 0.0), (other, -100.0)]
    return _after(first, 1, scores, mask)


def _xlm_roberta_vocabulary(scores: Scores, settings: Settings) -> Scores:
    # Their makers' toolkit, fairseq, numbers these four in another order than SentencePiece.
    first = [(name, 0.0) for name in _named(settings, "bos", "pad", "eos", "unk")]
    return _after(first, 3, scores, *_named(settings, "mask"))


def _albert(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    usual = _unigram(1, _spaced(settings))
    steps: list[Any] = [normalizers.Replace(quotes, '"') for quotes in ("``", "''")]
    if not _true(settings, "keep_accents", default=False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if _true(settings, "do_lower_case", default=True):
        steps.append(normalizers.Lowercase())
    table = precompiled_step(engine)
    usual.normalizer = normalizers.Sequence([*steps, *([] if table is None else [table])])
    return usual


def _albert_frame(settings: Settings, engine: RustTokenizer, own: Any) -> Any:
    if own is not None:
        return own
    if "add_bos_token" in settings or "add_eos_token" in settings:
        return _ends(settings, engine)
    (_, begin), (_, end) = _ids(engine, _named(settings, "cls", "sep"))
    # The class writes these names, whatever the tokens are called.
    return processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", begin), ("[SEP]", end)],
    )


def _deberta_v2(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    (unknown,) = _named(settings, "unk")
    place = engine.token_to_id(unknown)
    scheme = "always" if _true(settings, "add_prefix_space", default=True) else "first"
    usual = _unigram(1 if place is None else place, scheme, whole=False)
    usual.normalizer = normalizers.Sequence(
        [
            *([normalizers.Lowercase()] if settings.get("do_lower_case") else []),
            normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "),
            normalizers.NFC(),
            normalizers.Strip(left=False, right=True),
        ]
    )
    words = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    marks = [pre_tokenizers.Punctuation("isolated")] if settings.get("split_by_punct") else []
    usual.pre_tokenizer = pre_tokenizers.Sequence([*marks, words])
    return usual


def _deberta_frame(settings: Settings, engine: RustTokenizer, own: Any) -> Any:
    begin, end = _named(settings, "cls", "sep")
    return processors.TemplateProcessing(
        single=f"{begin}:0 $A:0 {end}:0",
        pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=_ids(engine, (begin, end)),
    )


def _t5(settings: Settings, engine: RustTokenizer) -> RustTokenizer:
    usual = _unigram(2, "always")
    usual.normalizer = precompiled_step(engine)
    return usual


def _t5_frame(settings: Settings, engine: RustTokenizer, own: Any) -> Any:
    ((_, end),) = _ids(engine, _named(settings, "eos"))
    # The class writes this name, whatever the token is called.
    return processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", end)]
    )


def _sentinels(settings: Settings) -> list[str]:
    count = settings.get("extra_ids", 100)
    return [f"<extra_id_{i}>" for i in range(count if isinstance(count, int) else 100)]


def _t5_tokens(settings: Settings, symbols: Symbols | None) -> dict[str, Any]:
    return _with_symbols(settings, [*(symbols or ()), *_sentinels(settings)])


def _t5_vocabulary(scores: Scores, settings: Settings) -> Scores:
    return [*scores, *((name, 0.0) for name in reversed(_sentinels(settings)))]


#: Classes that are BERT's WordPiece. (`...Fast` are other names for the same.)
UNCASED = frozenset(("DPRContextEncoderTokenizer", "DPRQuestionEncoderTokenizer"))
WORDPIECE = UNCASED | frozenset(
    f"{name}Tokenizer"
    for name in (
        *("Bert", "DistilBert", "Electra"),
        *("LayoutLM", "Lxmert", "MobileBert", "SqueezeBert"),
    )
)
#: The class that is GPT-2's byte-level BPE.
GPT2 = "GPT2Tokenizer"
#: Classes that are RoBERTa's byte-level BPE.
ROBERTA = frozenset(f"{name}Tokenizer" for name in ("Bart", "LED", "Longformer", "Mvp", "Roberta"))
_SPIECE, _SPM_BPE = "spiece.model", "sentencepiece.bpe.model"

CLASS_RULES: Mapping[str | None, ClassRules] = {
    **dict.fromkeys(WORDPIECE, ClassRules(models.WordPiece, _BERT_TOKENS, _bert, _bert_frame)),
    **dict.fromkeys(UNCASED, ClassRules(models.WordPiece, _BERT_TOKENS, _uncased, _bert_frame)),
    GPT2: ClassRules(models.BPE, _GPT2_TOKENS, _gpt2, _as_in_file),
    **dict.fromkeys(ROBERTA, ClassRules(models.BPE, _ROBERTA_TOKENS, _gpt2, _roberta_frame)),
    "GPTNeoXTokenizer": ClassRules(
        models.BPE, {**_GPT2_TOKENS, "pad_token": "<|padding|>"}, _gpt_neox, _nothing_around
    ),
    "Qwen2Tokenizer": ClassRules(
        models.BPE,
        {f"{name}_token": END_OF_TEXT for name in ("unk", "eos", "pad")},
        _qwen2,
        _as_in_file,
    ),
    "LlamaTokenizer": ClassRules(
        models.BPE, _LLAMA_TOKENS, _llama, _as_in_file, pieces="tokenizer.model"
    ),
    "GemmaTokenizer": ClassRules(models.BPE, _GEMMA_TOKENS, _gemma, _as_in_file),
    "XLMRobertaTokenizer": ClassRules(
        models.Unigram,
        _ROBERTA_TOKENS,
        _xlm_roberta,
        _pair_of_ends,
        pieces=_SPM_BPE,
        vocabulary=_xlm_roberta_vocabulary,
    ),
    "CamembertTokenizer": ClassRules(
        models.Unigram,
        _ROBERTA_TOKENS,
        _camembert,
        _pair_of_ends,
        _camembert_tokens,
        _SPM_BPE,
        _camembert_vocabulary,
    ),
    "AlbertTokenizer": ClassRules(
        models.Unigram, _ALBERT_TOKENS, _albert, _albert_frame, pieces=_SPIECE
    ),
    "DebertaV2Tokenizer": ClassRules(
        models.Unigram, _DEBERTA_TOKENS, _deberta_v2, _deberta_frame, pieces="spm.model"
    ),
    "T5Tokenizer": ClassRules(
        models.Unigram, _T5_TOKENS, _t5, _t5_frame, _t5_tokens, _SPIECE, _t5_vocabulary
    ),
}
