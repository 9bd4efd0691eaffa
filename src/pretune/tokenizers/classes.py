"""The tokenizer classes of transformers: what they make of a folder's files.

`PreTrainedTokenizerFast`, and any class that transformers does not know, reads `tokenizer.json` as
it is. The others take only the vocabulary and the added tokens from there, and build the rest from
the settings in `tokenizer_config.json`. Those of BERT and GPT-2 are built here too; of some others
it is known what they build, and a file that agrees with it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from pretune.tokenizers.engines import (
    bert_normalizer,
    byte_level_engine,
    cuts_alike,
    frame_as_bert,
    frame_with_ends,
    frames_alike,
    spell_alike,
    wordpiece_engine,
)

#: Classes that take no notice of `do_lower_case`: they are always uncased.
UNCASED = frozenset(("DPRContextEncoderTokenizer", "DPRQuestionEncoderTokenizer"))
#: Classes that are BERT's WordPiece. (`...Fast` are other names for the same.)
WORDPIECE = UNCASED | frozenset(
    f"{name}Tokenizer"
    for name in (
        *("Bert", "DistilBert", "Electra"),
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
#: Classes that are RoBERTa's byte-level BPE.
_ROBERTA = frozenset(f"{name}Tokenizer" for name in ("Bart", "LED", "Longformer", "Mvp", "Roberta"))
#: The other classes of transformers 5 that do not read `tokenizer.json` as it is. (MarianTokenizer
#: reads none; what other programs wrote for it is taken.)
_OTHERS = frozenset(
    f"{name}Tokenizer"
    for name in (
        *("Albert", "Barthez", "Bartpho", "BertGeneration", "BertJapanese", "Bertweet", "BigBird"),
        *("BioGpt", "Blenderbot", "BlenderbotSmall", "ByT5", "CLIP", "CTRL", "Camembert", "Canine"),
        *("Clvp", "CodeGen", "CodeLlama", "Cohere", "ConvBert", "Cpm", "CpmAnt", "DPRReader"),
        *(
            "Deberta",
            "DebertaV2",
            "Dia",
            "Esm",
            "Esmc",
            "FNet",
            "FSMT",
            "FastSpeech2Conformer",
            "Flaubert",
        ),
        *("Funnel", "GPTNeoXJapanese", "GPTSw3", "Gemma", "Herbert", "Lasr", "LayoutLMv2"),
        *("LayoutLMv3", "LayoutXLM", "Llama", "Luke", "M2M100", "MBart", "MBart50", "MLuke"),
        *("MPNet", "MarkupLM", "Mgpstr", "MyT5", "Nllb", "Nougat", "OpenAIGPT", "PLBart"),
        *("Pegasus", "Perceiver", "Phi3", "Phobert", "Pop2Piano", "ProphetNet", "Qwen3_5"),
        *(
            "Rag",
            "Reformer",
            "RemBert",
            "RoCBert",
            "RoFormer",
            "SeamlessM4T",
            "Siglip",
            "Siglip2",
            "Speech2Text",
        ),
        *("SpeechT5", "Splinter", "T5", "Tapas", "Tipsv2", "Udop", "VideoPrism", "Vits"),
        *("Wav2Vec2CTC", "Wav2Vec2PhonemeCTC", "Whisper", "XGLM", "XLM", "XLNet"),
    )
)
_BERT_TOKENS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
}
_GPT2_TOKENS = {f"{name}_token": END_OF_TEXT for name in ("unk", "bos", "eos")}
_ROBERTA_TOKENS = {
    **dict.fromkeys(("bos_token", "cls_token"), "<s>"),
    **dict.fromkeys(("eos_token", "sep_token"), "</s>"),
    **{f"{name}_token": f"<{name}>" for name in ("unk", "pad", "mask")},
}
#: Qwen2's pattern of words.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

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
    return isinstance(model, _KINDS[kind][0] if kind in _KINDS else models.Model)


def usual_tokens(kind: str | None) -> dict[str, str]:
    """The special tokens of a class where no file names them, by their names."""
    return _KINDS[kind][1] if kind in _KINDS else {}


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
    if kind not in _KINDS:
        return kind not in _OTHERS
    if not suits(kind, engine.model):
        return False
    # Without the names of its tokens a class takes the usual ones, and adds those that are missing.
    named = {**usual_tokens(kind), **settings}
    if kind != GPT2 and kind not in WORDPIECE:
        texts = [text_of(named[name]) for name in usual_tokens(kind)]
        if any(text and engine.token_to_id(text) is None for text in texts):
            return False
    usual = _KINDS[kind][2](named, engine)
    segments = gives_segments(kind, settings.get(INPUTS))
    return (
        spell_alike(engine, usual)
        and cuts_alike(engine, usual)
        and (usual.post_processor is None or frames_alike(engine, usual, segments=segments))
    )


def text_of(token: Any) -> str | None:
    """The text of a special token in the short or the long form; None where there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _ids(engine: RustTokenizer, *names: str | None) -> list[tuple[str, int]]:
    """Tokens with their ids; 0 for those that the engine has not."""
    return [(str(name), engine.token_to_id(str(name)) or 0) for name in names]


def _bert(settings: Mapping[str, Any], engine: RustTokenizer) -> RustTokenizer:
    unknown, begin, end = (text_of(settings.get(f"{name}_token")) for name in ("unk", "cls", "sep"))
    usual = wordpiece_engine(
        dict(_ids(engine, unknown, begin, end)),
        bert_normalizer(
            settings.get("do_lower_case") is not False,
            chinese=settings.get("tokenize_chinese_chars") is not False,
            strip_accents=settings.get("strip_accents"),
        ),
        str(unknown),
    )
    frame_as_bert(usual, str(begin), str(end))
    return usual


def _uncased(settings: Mapping[str, Any], engine: RustTokenizer) -> RustTokenizer:
    return _bert({**settings, "do_lower_case": True}, engine)


def _gpt2(settings: Mapping[str, Any], engine: RustTokenizer) -> RustTokenizer:
    usual = byte_level_engine({}, [], prefix_space=settings.get("add_prefix_space") is True)
    usual.post_processor = None  # that of the file
    return usual


def _roberta(settings: Mapping[str, Any], engine: RustTokenizer) -> RustTokenizer:
    usual = _gpt2(settings, engine)
    sep, cls = (text_of(settings.get(f"{name}_token")) for name in ("sep", "cls"))
    begin, end = _ids(engine, cls, sep)
    usual.post_processor = processors.RobertaProcessing(end, begin)
    return usual


def _gpt_neox(settings: Mapping[str, Any], engine: RustTokenizer) -> RustTokenizer:
    usual = _gpt2(settings, engine)
    usual.normalizer = normalizers.NFC()
    # Nothing stands around a text, unless the settings say so.
    ends = [settings.get(f"add_{name}_token") is True for name in ("bos", "eos")]
    usual.post_processor = processors.ByteLevel()
    if any(ends):
        tokens = [text_of(settings.get(f"{name}_token")) for name in ("bos", "eos")]
        usual.add_special_tokens(sorted({str(token) for token in tokens}))
        frame_with_ends(usual, *(t if end else None for t, end in zip(tokens, ends, strict=True)))
    return usual


def _qwen2(settings: Mapping[str, Any], engine: RustTokenizer) -> RustTokenizer:
    usual = _gpt2(settings, engine)
    usual.normalizer = normalizers.NFC()
    spaced = settings.get("add_prefix_space") is True
    usual.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False),
        ]
    )
    return usual


def _xlm_roberta(settings: Mapping[str, Any], engine: RustTokenizer) -> RustTokenizer:
    # The unknown token is the fourth, whatever the file says.
    usual = RustTokenizer(models.Unigram([("", 0.0)] * 3 + [("<unk>", 0.0)], unk_id=3))
    # The table of replacements is taken from the file.
    if isinstance(engine.normalizer, normalizers.Precompiled):
        usual.normalizer = engine.normalizer
    scheme = "never" if settings.get("add_prefix_space") is False else "always"
    usual.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    usual.decoder = decoders.Metaspace(prepend_scheme=scheme)
    bos, eos = (text_of(settings.get(f"{name}_token")) for name in ("bos", "eos"))
    begin, end = _ids(engine, bos, eos)
    usual.post_processor = processors.RobertaProcessing(end, begin)
    return usual


_Builder = Callable[[Mapping[str, Any], RustTokenizer], RustTokenizer]
#: What a class builds: the kind of its model, its special tokens where no file names them, and a
#: function that makes its engine of settings and the engine of a file; without the vocabulary, and
#: without `post_processor` where it is taken from the file.
_KINDS: Mapping[str | None, tuple[type[models.Model], dict[str, str], _Builder]] = {
    **dict.fromkeys(WORDPIECE, (models.WordPiece, _BERT_TOKENS, _bert)),
    **dict.fromkeys(UNCASED, (models.WordPiece, _BERT_TOKENS, _uncased)),
    GPT2: (models.BPE, _GPT2_TOKENS, _gpt2),
    **dict.fromkeys(_ROBERTA, (models.BPE, _ROBERTA_TOKENS, _roberta)),
    "GPTNeoXTokenizer": (models.BPE, {**_GPT2_TOKENS, "pad_token": "<|padding|>"}, _gpt_neox),
    "Qwen2Tokenizer": (
        models.BPE,
        {f"{name}_token": END_OF_TEXT for name in ("unk", "eos", "pad")},
        _qwen2,
    ),
    "XLMRobertaTokenizer": (models.Unigram, _ROBERTA_TOKENS, _xlm_roberta),
}
