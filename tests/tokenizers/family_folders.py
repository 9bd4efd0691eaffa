"""Folders of tokenizers with the files and the layouts that families publish, but small."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as RustTokenizer

from pretune.tokenizers.train import train_tokenizer
from tests.tokenizers.pieces import lines, spm_bytes

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


@lru_cache
def byte_level(count: int = 400) -> dict[str, Any]:
    """The model of a byte-level BPE: its entries and merges."""
    model: dict[str, Any] = json.loads(train_tokenizer(lines(), "bpe", count).engine.to_str())
    return dict(model["model"])


def bytes_engine(*tokens: str, **options: Any) -> RustTokenizer:
    """A byte-level BPE with tokens of its own at the end."""
    model = byte_level()
    merges = [(left, right) for left, right in model["merges"]]
    vocabulary = dict(model["vocab"])
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    engine = RustTokenizer(models.BPE(vocabulary, merges, **options))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(list(tokens))
    return engine


def framed(engine: RustTokenizer, begin: str, end: str) -> RustTokenizer:
    engine.post_processor = processors.TemplateProcessing(
        single=f"{begin}:0 $A:0 {end}:0",
        pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(t, engine.token_to_id(t) or 0) for t in (begin, end)],
    )
    return engine


def llama3() -> RustTokenizer:
    engine = bytes_engine("<|begin_of_text|>", "<|eot_id|>", ignore_merges=True)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    begin = ("<|begin_of_text|>", engine.token_to_id("<|begin_of_text|>") or 0)
    engine.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|>:0 $A:0",
                pair="<|begin_of_text|>:0 $A:0 <|begin_of_text|>:1 $B:1",
                special_tokens=[begin],
            ),
        ]
    )
    return engine


def modernbert() -> RustTokenizer:
    engine = bytes_engine("[UNK]", "[CLS]", "[SEP]", "[PAD]")
    engine.normalizer = normalizers.NFC()
    engine.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
    return framed(engine, "[CLS]", "[SEP]")


def smollm2() -> RustTokenizer:
    engine = bytes_engine("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    return engine


@lru_cache
def bytes_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The entries and merges of a BPE with bytes for the rest, as Llama 2 has it."""
    import tempfile

    from pretune.tokenizers.sentencepiece import merges_of, read_sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.model")
        path.write_bytes(spm_bytes("llama"))
        file = read_sentencepiece(path)
    ids = {piece.text: i for i, piece in enumerate(file.pieces)}
    return ids, merges_of(ids, {text: -i for text, i in ids.items()})


def fallback(*, legacy: bool) -> RustTokenizer:
    """Llama 2's file, as its makers published it: a normalizer puts the first space."""
    ids, merges = bytes_vocabulary()
    engine = RustTokenizer(
        models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        engine.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    engine.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0",
        pair="<s>:0 $A:0 <s>:1 $B:1",
        special_tokens=[("<s>", engine.token_to_id("<s>") or 0)],
    )
    return engine


def gemma() -> RustTokenizer:
    ids, merges = bytes_vocabulary()
    named = {"<s>": "<bos>", "</s>": "<eos>"}
    ids = {named.get(text, text): i for text, i in ids.items()}
    ids["<pad>"] = len(ids)
    engine = RustTokenizer(
        models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    engine.normalizer = normalizers.Replace(" ", "▁")
    engine.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence(back)
    engine.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    engine.add_tokens([AddedToken("\n\n", normalized=False)])
    engine.post_processor = processors.TemplateProcessing(
        single="<bos>:0 $A:0",
        pair="<bos>:0 $A:0 <bos>:1 $B:1",
        special_tokens=[("<bos>", engine.token_to_id("<bos>") or 0)],
    )
    return engine


def roberta() -> RustTokenizer:
    engine = bytes_engine("<s>", "<pad>", "</s>", "<unk>")
    engine.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    ids = [(t, engine.token_to_id(t) or 0) for t in ("</s>", "<s>")]
    engine.post_processor = processors.RobertaProcessing(*ids)
    return engine


def qwen2() -> RustTokenizer:
    engine = bytes_engine("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    engine.normalizer = normalizers.NFC()
    return engine


Folder = tuple[dict[str, bytes], str | None, dict[str, Any]]


def _spm(name: str, layout: str, kind: str | None, **settings: Any) -> Folder:
    return {name: spm_bytes(layout)}, kind, settings


def _json(engine: RustTokenizer, kind: str | None, **settings: Any) -> Folder:
    return {"tokenizer.json": engine.to_str().encode()}, kind, settings


def _class(name: str) -> dict[str, str]:
    return {"tokenizer_class": f"{name}Tokenizer"}


# ruff: noqa: S106 - these tokens are no passwords
def folders() -> dict[str, Folder]:
    """For each case the files of a folder, the `model_type` of its model, and its settings."""
    bpe_model, spiece = "sentencepiece.bpe.model", "spiece.model"
    extra = [f"<extra_id_{i}>" for i in range(100)]
    smol = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    return {
        "xlm-roberta": _spm(bpe_model, "plain", "xlm-roberta"),
        "xlm-roberta, named": _spm(
            bpe_model,
            "plain",
            None,
            **_class("XLMRoberta"),
            mask_token="<m>",
            add_prefix_space=False,
        ),
        "camembert": _spm(bpe_model, "plain", "camembert"),
        "camembert, listed": _spm(
            bpe_model,
            "plain",
            "camembert",
            additional_special_tokens=["<s>NOTUSED", "</s>NOTUSED"],
            mask_token="<mask>",
        ),
        "t5": _spm(spiece, "t5", "t5", extra_ids=100, additional_special_tokens=extra),
        "t5, bare": _spm(spiece, "t5", "t5"),
        "mt5": _spm(spiece, "t5", "mt5", **_class("T5"), extra_ids=0),
        "albert": _spm(spiece, "albert", "albert"),
        "albert, cased": _spm(
            spiece,
            "albert",
            "albert",
            do_lower_case=False,
            keep_accents=True,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        ),
        "deberta": _spm("spm.model", "deberta", "deberta-v2", **_class("DebertaV2")),
        "deberta, words": _spm(
            "spm.model",
            "deberta",
            "deberta-v2",
            do_lower_case=True,
            split_by_punct=True,
            mask_token="[MASK]",
            add_prefix_space=False,
        ),
        "llama": _spm(
            "tokenizer.model", "llama", "llama", **_class("Llama"), add_bos_token=True, legacy=False
        ),
        "llama, legacy": _spm(
            "tokenizer.model",
            "llama",
            "llama",
            **_class("Llama"),
            legacy=True,
            add_bos_token=True,
            add_eos_token=True,
        ),
        "llama, no prefix": _spm(
            "tokenizer.model", "llama", "llama", **_class("Llama"), add_prefix_space=False
        ),
        "llama 2": _json(
            fallback(legacy=True), "llama", **_class("Llama"), legacy=False, **_CONTROL
        ),
        "llama 3": _json(
            llama3(),
            "llama",
            tokenizer_class="PreTrainedTokenizerFast",
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
        ),
        "llama 3, misnamed": _json(llama3(), "llama", **_class("Llama"), eos_token="<|eot_id|>"),
        "mistral": _json(fallback(legacy=True), "mistral", **_class("Llama"), **_CONTROL),
        "smollm2": _json(smollm2(), "llama", **_class("GPT2"), **smol),
        "qwen2": _json(qwen2(), "qwen2", **_class("Qwen2"), eos_token="<|im_end|>", **smol),
        "qwen3, misnamed": _json(qwen2(), "qwen3", tokenizer_class="PreTrainedTokenizerFast"),
        "qwen2, misnamed": _json(qwen2(), "qwen2", tokenizer_class="PreTrainedTokenizerFast"),
        "gemma": _json(gemma(), "gemma3_text", **_class("Gemma")),
        "roberta": _json(roberta(), "roberta"),
        "modernbert": _json(
            modernbert(),
            "modernbert",
            tokenizer_class="PreTrainedTokenizerFast",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
        ),
        "mmbert": _json(gemma(), "modernbert", **_class("Gemma"), bos_token="<bos>"),
        "eurobert": _json(
            llama3(), "eurobert", tokenizer_class="PreTrainedTokenizerFast", mask_token="<|eot_id|>"
        ),
    }


def write_folder(path: Path, folder: Folder) -> Path:
    files, kind, settings = folder
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    if settings:
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if kind is not None:
        (path / "config.json").write_text(json.dumps({"model_type": kind}))
    return path
