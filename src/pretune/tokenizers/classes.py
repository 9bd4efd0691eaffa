"""The tokenizer classes of transformers: which one a folder is of, and what it makes of its files.

`PreTrainedTokenizerFast`, and any class that transformers does not know, reads `tokenizer.json` as
it is. The others take only the vocabulary and the added tokens from there, and build the rest from
the settings in `tokenizer_config.json`: see class_rules.py for those that are built here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from pretune.tokenizers.class_rules import CLASS_RULES, WORDPIECE, MissingTokenError, text_of
from pretune.tokenizers.engines import cuts_alike, frames_alike, spell_alike, with_spelling
from pretune.tokenizers.model_types import CLASS_OF_TYPE, MISNAMED, PLAIN

#: The classes of transformers 5 that build something which is not built here. (MarianTokenizer
#: reads no `tokenizer.json`; what other programs wrote for it is taken.)
_OTHERS = frozenset(
    f"{name}Tokenizer"
    for name in (
        *("Barthez", "Bartpho", "BertGeneration", "BertJapanese", "Bertweet", "BigBird"),
        *("BioGpt", "Blenderbot", "BlenderbotSmall", "ByT5", "CLIP", "CTRL", "Canine"),
        *("Clvp", "CodeGen", "CodeLlama", "Cohere", "ConvBert", "Cpm", "CpmAnt", "DPRReader"),
        *("Deberta", "Dia", "Esm", "Esmc", "FNet", "FSMT", "FastSpeech2Conformer", "Flaubert"),
        *("Funnel", "GPTNeoXJapanese", "GPTSw3", "Herbert", "Lasr", "LayoutLMv2"),
        *("LayoutLMv3", "LayoutXLM", "Luke", "M2M100", "MBart", "MBart50", "MLuke"),
        *("MPNet", "MarkupLM", "Mgpstr", "MyT5", "Nllb", "Nougat", "OpenAIGPT", "PLBart"),
        *("Pegasus", "Perceiver", "Phi3", "Phobert", "Pop2Piano", "ProphetNet", "Qwen3_5"),
        *("Rag", "Reformer", "RemBert", "RoCBert", "RoFormer", "SeamlessM4T", "Siglip"),
        *("Siglip2", "Speech2Text", "SpeechT5", "Splinter", "Tapas", "Tipsv2", "Udop"),
        *("VideoPrism", "Vits", "Wav2Vec2CTC", "Wav2Vec2PhonemeCTC", "Whisper", "XGLM", "XLM"),
        "XLNet",
    )
)
#: Classes that tell a model the segments of a pair, without a setting that says so.
_SEGMENTED = (WORDPIECE | {"DebertaV2Tokenizer"}) - {"DistilBertTokenizer"}

#: The entry with the inputs that a tokenizer makes for its model, and the one for segments.
INPUTS = "model_input_names"
SEGMENTS = "token_type_ids"
#: Settings for what stands around a text, which a `tokenizer.json` says itself.
ENDS = ("add_bos_token", "add_eos_token")


def base_name(name: object) -> str | None:
    """The name of a class without `Fast`; None for anything that is no name."""
    if not isinstance(name, str):
        return None
    return name if name == PLAIN else name.removesuffix("Fast")


def class_of(
    settings: Mapping[str, Any], config: Mapping[str, Any], *, byte_level: bool
) -> tuple[str | None, bool]:
    """The class of a folder's tokenizer, as transformers' `AutoTokenizer` chooses it.

    Args:
        settings: the content of `tokenizer_config.json`.
        config: the content of the model's `config.json`.
        byte_level: whether the folder's `tokenizer.json` is of bytes.

    Returns:
        the class, or None; and whether a file names it, not only the model's kind.
    """
    named = base_name(settings.get("tokenizer_class")) or base_name(config.get("tokenizer_class"))
    kind = config.get("model_type")
    usual = CLASS_OF_TYPE.get(kind) if isinstance(kind, str) else None
    if named is None:
        return usual, False
    # Llama 3 names Llama 2's class, which would not cut into bytes.
    if named == "LlamaTokenizer" and byte_level and kind not in MISNAMED:
        return PLAIN, True
    if usual is not None and usual != named and (usual == PLAIN or kind in MISNAMED):
        return usual, True
    return named, True


def suits(kind: str | None, model: models.Model) -> bool:
    """Whether a `tokenizer.json` with such a model can be of a class; an unknown one has any."""
    return isinstance(model, CLASS_RULES[kind].model if kind in CLASS_RULES else models.Model)


def usual_tokens(kind: str | None) -> Mapping[str, str]:
    """The special tokens of a class where no file names them, by their names."""
    return CLASS_RULES[kind].tokens if kind in CLASS_RULES else {}


def gives_segments(kind: str | None, inputs: object) -> bool:
    """Whether a tokenizer tells its model the segments of a pair.

    Args:
        kind: the tokenizer's class.
        inputs: the entry `INPUTS` of its settings, or None.
    """
    if isinstance(inputs, list):
        return SEGMENTS in inputs
    return kind in _SEGMENTED


def unreadable(kind: str | None) -> bool:
    """Whether a class builds something that is not built here."""
    return kind in _OTHERS


def class_engine(
    kind: str | None, settings: Mapping[str, Any], engine: RustTokenizer
) -> RustTokenizer:
    """Make the engine that a class builds of the vocabulary of another engine.

    Added tokens and what stands around a text are left to the caller.

    Args:
        kind: the class, one of `CLASS_RULES`.
        settings: with the special tokens of the class.
        engine: of a `tokenizer.json`, or with the vocabulary of other files.
    """
    usual = CLASS_RULES[kind].rules(settings, engine)
    made = RustTokenizer(with_spelling(engine, usual))
    made.normalizer, made.pre_tokenizer = usual.normalizer, usual.pre_tokenizer
    made.decoder = usual.decoder
    return made


def builds(kind: str | None, settings: Mapping[str, Any], engine: RustTokenizer) -> bool:
    """Whether a class makes just this engine of its vocabulary, its added tokens and settings."""
    if kind not in CLASS_RULES:
        return kind not in _OTHERS
    if not suits(kind, engine.model):
        return False
    # Without the names of its tokens a class takes the usual ones, and adds those that are missing.
    rules, named = CLASS_RULES[kind], {**usual_tokens(kind), **settings}
    if kind != "GPT2Tokenizer" and kind not in WORDPIECE:
        texts = [text_of(named[name]) for name in usual_tokens(kind)]
        if any(text and engine.token_to_id(text) is None for text in texts):
            return False
    usual = rules.rules(named, engine)
    if not spell_alike(engine, usual) or not cuts_alike(engine, usual):
        return False
    # These say something only where there is no `tokenizer.json`.
    named = {key: value for key, value in named.items() if key not in ENDS}
    try:
        usual.post_processor = rules.frame(named, engine, engine.post_processor)
    except MissingTokenError:
        return False
    return frames_alike(engine, usual, segments=gives_segments(kind, settings.get(INPUTS)))
