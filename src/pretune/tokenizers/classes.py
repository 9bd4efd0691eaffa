"""The tokenizer classes of transformers: what they make of a folder's files.

Most read `tokenizer.json` as it is. Those of BERT and GPT-2 take only the vocabulary and the added
tokens from there, and build the rest from the settings in `tokenizer_config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from pretune.tokenizers.engines import (
    bert_normalizer,
    byte_level_engine,
    cuts_alike,
    drop_segments,
    frame_as_bert,
    frames_alike,
    wordpiece_engine,
)

#: Classes that are BERT's WordPiece. (`...Fast` are other names for the same.)
WORDPIECE = frozenset(
    f"{name}Tokenizer"
    for name in (
        *("Bert", "DistilBert", "DPRContextEncoder", "DPRQuestionEncoder", "Electra"),
        *("LayoutLM", "Lxmert", "MobileBert", "SqueezeBert"),
    )
)
#: The class that is GPT-2's byte-level BPE.
GPT2 = "GPT2Tokenizer"
END_OF_TEXT = "<|endoftext|>"
#: What is written where no class is known: `tokenizer.json` is everything.
PLAIN = "PreTrainedTokenizerFast"

#: The class of a model's tokenizer where no file names it, by the `model_type` in `config.json`.
_BY_MODEL = {
    **dict.fromkeys(("bert", "distilbert", "electra"), "BertTokenizer"),
    "gpt2": GPT2,
}
#: The kinds of models of classes: those that we build, and some whose file is read as it is.
_MODELS: dict[str, type] = {
    GPT2: models.BPE,
    **dict.fromkeys(WORDPIECE | {"FunnelTokenizer", "MPNetTokenizer"}, models.WordPiece),
    **{
        f"{name}Tokenizer": models.BPE
        for name in ("CLIP", "CodeGen", "Deberta", "Gemma", "GPTNeoX", "Llama", "Qwen2", "Roberta")
    },
    **{
        f"{name}Tokenizer": models.Unigram
        for name in ("Albert", "Camembert", "DebertaV2", "T5", "XLMRoberta", "XLNet")
    },
}
_BERT_TOKENS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
}
_GPT2_TOKENS = {f"{name}_token": END_OF_TEXT for name in ("unk", "bos", "eos")}

#: The entry with the inputs that a tokenizer makes for its model, and the one for segments.
INPUTS = "model_input_names"
SEGMENTS = "token_type_ids"


def base_name(name: object) -> str | None:
    """The name of a class without `Fast`; None for anything that is no name."""
    if not isinstance(name, str):
        return None
    return name if name == PLAIN else name.removesuffix("Fast")


def class_of_model(config: Mapping[str, Any]) -> str | None:
    """The class of a model's tokenizer by its `config.json`, or None."""
    named = base_name(config.get("tokenizer_class"))
    kind = config.get("model_type")
    return named or (_BY_MODEL.get(kind) if isinstance(kind, str) else None)


def suits(kind: str | None, model: models.Model) -> bool:
    """Whether a `tokenizer.json` with such a model can be of a class; an unknown one has any."""
    return isinstance(model, _MODELS.get(kind or "", type(model)))


def usual_tokens(kind: str | None) -> dict[str, str]:
    """The special tokens of a class where no file names them, by their names."""
    if kind in WORDPIECE:
        return _BERT_TOKENS
    return _GPT2_TOKENS if kind == GPT2 else {}


def gives_segments(kind: str | None, inputs: object) -> bool:
    """Whether a tokenizer tells its model the segments of a pair.

    Args:
        kind: the tokenizer's class.
        inputs: the entry `INPUTS` of its settings, or None.
    """
    if isinstance(inputs, list):
        return SEGMENTS in inputs
    return kind in WORDPIECE and kind != "DistilBertTokenizer"


def builds(kind: str | None, settings: Mapping[str, Any], engine: RustTokenizer) -> bool:
    """Whether a class makes just this engine of its vocabulary, its added tokens and settings."""
    model = engine.model
    if kind in WORDPIECE and isinstance(model, models.WordPiece):
        names = [str(settings.get(f"{name}_token")) for name in ("unk", "cls", "sep")]
        tokens = {name: engine.token_to_id(name) or 0 for name in names}
        if model.unk_token != names[0]:
            return False
        usual = wordpiece_engine(
            tokens,
            bert_normalizer(
                settings.get("do_lower_case") is not False,
                chinese=settings.get("tokenize_chinese_chars") is not False,
                strip_accents=settings.get("strip_accents"),
            ),
            names[0],
        )
        frame_as_bert(usual, names[1], names[2])
        if not gives_segments(kind, settings.get(INPUTS)):
            drop_segments(usual)
            engine = RustTokenizer.from_str(engine.to_str())
            drop_segments(engine)
        return cuts_alike(engine, usual) and frames_alike(engine, usual)
    if kind == GPT2 and isinstance(model, models.BPE):
        spaced = settings.get("add_prefix_space") is True
        return cuts_alike(engine, byte_level_engine({}, [], prefix_space=spaced))
    return kind not in WORDPIECE and kind != GPT2
