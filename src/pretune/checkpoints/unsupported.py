"""What pretune does not read, named as what it is: other families, other tools' files and folders.

A similar spelling says nothing about a model: no family is suggested for another one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pretune.checkpoints.manifest import MANIFEST, find_damage
from pretune.errors import CheckpointError, did_you_mean
from pretune.models.config import brief
from pretune.models.families import FAMILIES
from pretune.text.terminal import in_line

#: Families of the field that pretune does not read: the `model_type` of transformers 5.23.0, and
#: how people write it.
OTHER_FAMILIES = {
    "bart": "BART",
    "bert-generation": "BertGeneration",
    "big_bird": "BigBird",
    "bigbird_pegasus": "BigBird-Pegasus",
    "biogpt": "BioGPT",
    "blenderbot": "Blenderbot",
    "bloom": "BLOOM",
    "canine": "CANINE",
    "clip": "CLIP",
    "codegen": "CodeGen",
    "cohere": "Command R",
    "convbert": "ConvBERT",
    "ctrl": "CTRL",
    "data2vec-text": "data2vec",
    "deberta": "DeBERTa (the first version)",
    "deepseek_v2": "DeepSeek-V2",
    "deepseek_v3": "DeepSeek-V3",
    "dpr": "DPR",
    "encoder-decoder": "encoder-decoder",
    "esm": "ESM",
    "falcon": "Falcon",
    "flaubert": "FlauBERT",
    "fnet": "FNet",
    "fsmt": "FSMT",
    "funnel": "Funnel Transformer",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "glm": "GLM",
    "glm4": "GLM-4",
    "gpt_bigcode": "GPTBigCode",
    "gpt_neo": "GPT-Neo",
    "gpt_neox": "GPT-NeoX",
    "gpt_oss": "gpt-oss",
    "gptj": "GPT-J",
    "granite": "Granite",
    "ibert": "I-BERT",
    "layoutlm": "LayoutLM",
    "layoutlmv2": "LayoutLMv2",
    "layoutlmv3": "LayoutLMv3",
    "led": "LED",
    "llama4": "Llama 4",
    "longformer": "Longformer",
    "longt5": "LongT5",
    "luke": "LUKE",
    "m2m_100": "M2M100 or NLLB",
    "mamba": "Mamba",
    "mamba2": "Mamba 2",
    "mbart": "mBART",
    "megatron-bert": "Megatron-BERT",
    "minicpm3": "MiniCPM3",
    "mixtral": "Mixtral",
    "mobilebert": "MobileBERT",
    "modernbert-decoder": "ModernBERT decoder",
    "mpnet": "MPNet",
    "mpt": "MPT",
    "mvp": "MVP",
    "nanochat": "nanochat",
    "nomic_bert": "NomicBERT",
    "nystromformer": "Nyströmformer",
    "olmo": "OLMo",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "openai-gpt": "GPT (the first)",
    "opt": "OPT",
    "pegasus": "Pegasus",
    "phi": "Phi",
    "phi3": "Phi-3",
    "plbart": "PLBart",
    "prophetnet": "ProphetNet",
    "qwen2_moe": "Qwen2-MoE",
    "qwen3_moe": "Qwen3-MoE",
    "reformer": "Reformer",
    "rembert": "RemBERT",
    "roberta-prelayernorm": "RoBERTa-PreLayerNorm",
    "roc_bert": "RoCBert",
    "roformer": "RoFormer",
    "rwkv": "RWKV",
    "smollm3": "SmolLM3",
    "splinter": "Splinter",
    "squeezebert": "SqueezeBERT",
    "stablelm": "StableLM",
    "starcoder2": "StarCoder2",
    "switch_transformers": "Switch Transformers",
    "transfo-xl": "Transformer-XL",
    "umt5": "umT5",
    "vit": "ViT",
    "whisper": "Whisper",
    "xglm": "XGLM",
    "xlm": "XLM",
    "xlm-roberta-xl": "XLM-RoBERTa-XL",
    "xlnet": "XLNet",
    "xmod": "X-MOD",
    "yoso": "YOSO",
}

#: Of some of them: what does the same and is read.
_INSTEAD = {
    "deberta": "DeBERTa-v3 of the same size is read, and does better: microsoft/deberta-v3-base.",
    "bart": "T5 is read, which translates and summarizes too: google/flan-t5-base.",
    "mpnet": "Of its size BERT and RoBERTa are read, e.g. BAAI/bge-base-en-v1.5 for vectors.",
    "m2m_100": "OPUS-MT and mT5 are read: Helsinki-NLP/opus-mt-LANGUAGE-LANGUAGE.",
    **dict.fromkeys(("gemma", "gemma2"), "Gemma 3 is read: google/gemma-3-1b-it."),
    **dict.fromkeys(("phi", "phi3", "smollm3"), "Qwen3, Llama 3 and SmolLM2 are read."),
}

#: How a GGUF file begins, and the name of the link to one in a folder of ours.
GGUF_MAGIC = b"GGUF"
GGUF_FILE = "pretune.gguf"

#: What other engines run, what it is, and the way out. The first that a folder has counts.
_ENGINES = (
    *(
        (
            pattern,
            "only an ONNX model, which cannot be trained",
            "onnxruntime runs it; pretune export writes an example.py beside it. For pretune, get "
            "the model that it was exported from, with config.json and model.safetensors.",
        )
        for pattern in ("*.onnx", "onnx/*.onnx")
    ),
    (
        "model.bin",
        "only a model of CTranslate2",
        "CTranslate2 runs it; pretune export writes an example.py beside it. For pretune, get the "
        "model that it was made from, with config.json and model.safetensors.",
    ),
)
#: Weights that pretune reads, or knows how to refuse.
_WEIGHTS = (
    *("*.safetensors*", "pytorch_model*", GGUF_FILE),
    *("*.ckpt*", "tf_model.h5", "flax_model.msgpack"),
)

#: Files of other tools, what they are, and the way out. The first that a folder has counts.
_OTHER_FILES = (
    (
        "model_index.json",
        "a pipeline of diffusers, which makes pictures",
        "pretune reads language models.",
    ),
    (
        "tf_model.h5",
        "only the TensorFlow weights of transformers",
        "Write them anew with transformers 4, the last that reads them: "
        "AutoModel.from_pretrained(FOLDER, from_tf=True).save_pretrained(NEW), where AutoModel is "
        "the class that config.json names.",
    ),
    (
        "flax_model.msgpack",
        "only the Flax weights of transformers",
        "Write them anew with transformers 4, the last that reads them: "
        "AutoModel.from_pretrained(FOLDER, from_flax=True).save_pretrained(NEW), where AutoModel "
        "is the class that config.json names.",
    ),
    (
        "*.ckpt",
        "a training checkpoint of another tool (PyTorch Lightning, or the first TensorFlow)",
        "Save the model in it with that tool as config.json and model.safetensors: in "
        "transformers, model.save_pretrained(FOLDER).",
    ),
    (
        "*.safetensors",
        "weights under another name than model.safetensors",
        "If they are the whole model, rename the file to model.safetensors; config.json belongs "
        "beside it.",
    ),
    (
        "pytorch_model.bin",
        "only pytorch_model.bin, without the config.json that says what its tensors are",
        "Copy config.json and the tokenizer from where the weights came from.",
    ),
    (
        "*.p[tk]*",
        "a pickle of PyTorch or Python",
        "Save the model in it with the tool that wrote it as config.json and model.safetensors.",
    ),
)


def unknown_family(config: Mapping[str, Any], path: Path) -> CheckpointError:
    """The error for a `config.json` at `path` whose `model_type` is not one of `FAMILIES`."""
    kind = config.get("model_type")
    reads = f"It reads {', '.join(FAMILIES)}."
    # Without one, its classes may tell which it is; it is the owner who has to know.
    if kind is None or kind == "":
        named = _family_of_class(config)
        known = f' "model_type": "{named}", as its architectures say.' if named else f" {reads}"
        return CheckpointError(
            f"{path}: no model_type, which names the family of the model", f"Add it there:{known}"
        )
    text = brief(kind)
    if text in OTHER_FAMILIES:
        return CheckpointError(
            f"{path}: the model is of the family {OTHER_FAMILIES[text]} (model_type '{text}'), "
            "which pretune does not read yet",
            f"{_INSTEAD[text]} {reads}" if text in _INSTEAD else reads,
        )
    hint = did_you_mean(text, FAMILIES)
    if "auto_map" in config:
        hint = f"It needs code of its own (auto_map), which pretune never runs. {reads}"
    return CheckpointError(f"{path}: model_type '{text}' is not supported", hint)


def refuse_disguised(
    config: Mapping[str, Any],
    path: Path,
    tokenizer: Callable[[], tuple[Mapping[str, Any], int | None]],
) -> None:
    """Refuse a RoBERTa, or a family that is not read, whose `config.json` says BERT or ELECTRA.

    The tensors of a RoBERTa have the names of a BERT's, but its positions count from
    `pad_token_id` + 1. Read as a BERT, it answers without an error, and wrongly.

    Args:
        config: the contents of `config.json`.
        path: of that file, for the error.
        tokenizer: reads `tokenizer_config.json` and the id of the token `<pad>`, if there is one;
            called only where they can matter.

    Raises:
        CheckpointError: more than one sign says that it is another family; names them.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        return
    # The class of the model, where it is that of another family.
    own = {layout.architecture for layout in FAMILIES[kind].heads.values()}
    named = kind if own & {*(config.get("architectures") or ())} else _family_of_class(config)
    if named in OTHER_FAMILIES:
        raise CheckpointError(
            f"{path}: model_type is '{kind}', but architectures says that the model is of the "
            f"family {OTHER_FAMILIES[named]}, which pretune does not read yet",
            f"It reads {', '.join(FAMILIES)}. If it is a {kind}, correct architectures there.",
        )
    if named is not None and _counts_from_pad(named) and not _counts_from_pad(kind):
        raise CheckpointError(
            f"{path}: model_type is '{kind}', but architectures says that the model is a {named}, "
            f"whose positions count from pad_token_id + 1: read as a {kind}, it would answer "
            "wrongly",
            f'Write "model_type": "{named}" there. If it is a {kind}, correct architectures.',
        )
    # Only where there are segments are the tensors named as a RoBERTa's, which pads with token 1.
    sizes = {item.name for item in fields(FAMILIES[kind].backbone.config_class)}
    pad = config.get("pad_token_id")
    if "type_vocab_size" not in sizes or pad not in (1, None) or _counts_from_pad(kind):
        return
    signs = [] if pad is None else ["pad_token_id 1"]
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions > 2 and (positions - 2) & (positions - 3) == 0:
        signs.append(f"max_position_embeddings {positions} (2 more than {positions - 2})")
    if config.get("type_vocab_size") == 1:
        signs.append("type_vocab_size 1")
    settings, pad_id = tokenizer() if signs else ({}, None)
    classes = [str(place.get("tokenizer_class", "")) for place in (settings, config)]
    fitting = [name for name in classes if re.match(r"(XLM)?Rob|Camem|Longf|Barth|MPN", name)]
    if fitting:
        signs.append(f"tokenizer_class {brief(fitting[0])}")
    elif pad_id == 1:
        signs.append("a tokenizer with <pad> as token 1")
    # One sign may be chance. A class of BERT's was written by transformers, so that only all of
    # them together speak against it.
    if len(signs) < (2 if named is None else 4):
        return
    raise CheckpointError(
        f"{path}: model_type is '{kind}', but {' and '.join(signs)} are a RoBERTa's or XLM-R's, "
        f"whose positions count from 2: read as a {kind}, it would answer wrongly",
        'Write "model_type": "roberta" there, or "xlm-roberta" or "camembert". If it is a '
        f"{kind} all the same, whose positions count from 0, say so there with "
        '"pad_token_id": 0; nothing is padded here.',
    )


def _counts_from_pad(kind: str) -> bool:
    """Whether the positions of a family of ours count from its padding token, as a RoBERTa's."""
    return FAMILIES[kind].backbone.config_class.counts_from_pad


def _family_of_class(config: Mapping[str, Any]) -> str | None:
    """The family, ours or another, whose class `architectures` names; None if it is not known."""
    architecture = str((config.get("architectures") or [""])[0])
    match = re.match(r"(\w+?)(For[A-Z]|Model|LMHead|PreTrained|WithLM|MTModel)", architecture)
    plain = {re.sub(r"\W|_", "", name): name for name in [*OTHER_FAMILIES, *FAMILIES]}
    return plain.get(match[1].lower()) if match else None


def refuse_other_engines(folder: Path) -> None:
    """Refuse a model that only another engine runs, although it has a `config.json`.

    Raises:
        CheckpointError: the folder's weights are ONNX, GGUF or CTranslate2's; or it is such an
            export of pretune's, and a file in it is damaged.
    """
    if any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return
    if _engine_file(folder) is not None:
        raise no_model(folder)


def is_gguf(path: Path) -> bool:
    """Whether a file is meant as GGUF: by its name, or by how it begins."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


def only_gguf(folder: Path) -> Path | None:
    """Find the GGUF file of a folder that has no other weights; None if it has no such file.

    Raises:
        CheckpointError: there are several, which are mostly one model in several sizes.
    """
    files = sorted(folder.glob("*.gguf"))
    if not files or any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return None
    if len(files) > 1:
        names = ", ".join(in_line(file.name) for file in files[:3])
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        raise CheckpointError(
            f"{folder}: {len(files)} GGUF files ({names}{more}), and each may be a model",
            f"Name one of them: {files[0]}",
        )
    return files[0]


def _engine_file(folder: Path) -> tuple[Path, str, str] | None:
    """Find the weights of another engine: the file, what it is, and the way out."""
    for pattern, what, way_out in _ENGINES:
        path = next(iter(sorted(folder.glob(pattern))), None)
        # Other tools write a model.bin too, without the list of tokens that CTranslate2 needs.
        if path is not None and (path.name != "model.bin" or any(folder.glob("*vocabulary.*"))):
            return path, what, way_out
    return None


def _of_engine(folder: Path, path: Path, what: str, way_out: str) -> CheckpointError:
    """The error for a folder with the weights of another engine."""
    # An export of pretune's has a manifest, which tells of damage.
    damage = find_damage(folder) if (folder / MANIFEST).is_file() else None
    if damage is not None:
        return CheckpointError(damage, "Export the model again.")
    return CheckpointError(
        f"{folder}: no model here that pretune reads, but {what}: {path.relative_to(folder)}",
        way_out,
    )


def file_given(path: Path) -> CheckpointError:
    """The error for a file in the place of a model's folder: names what it is."""
    for pattern, what, way_out in _ENGINES:
        if path.match(pattern):
            return CheckpointError(f"{path}: no model that pretune reads, but {what}", way_out)
    return CheckpointError(
        f"{path}: is a file, not a folder: a model is config.json, its weights and its "
        "tokenizer together",
        f"Give the folder: {path.parent}."
        if os.path.isfile(path.parent / "config.json")
        else "Put all of them into one folder and give that.",
    )


def no_model(folder: Path) -> CheckpointError:
    """The error for a folder without a `config.json` or without weights: names what is there."""
    # An adapter alone: the model that it was trained on has to be put under it.
    if (folder / "adapter_config.json").is_file():
        whole = folder.parent if (folder.parent / "config.json").is_file() else None
        try:
            base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            named = f" ({brief(base['base_model_name_or_path'])})"
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            named = ""
        return CheckpointError(
            f"{folder}: only an adapter (LoRA, of peft), without the model that it adapts{named}",
            f"The whole model is in {whole}."
            if whole
            else f"Put it beside that model: pretune predict MODEL --adapter {folder} (in Python "
            "pretune.with_adapter).",
        )
    # A folder of models: a training of transformers, a cache of the Hub, sentence-transformers.
    if not (folder / "config.json").is_file():
        inner = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
        if inner:
            names = sorted(str(path.parent) for path in inner)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            return CheckpointError(
                f"{folder}: no model here itself (no config.json), but in folders in it",
                f"Name one of them: {', '.join(names[:3])}{more}.",
            )
    if (engine := _engine_file(folder)) is not None:
        return _of_engine(folder, *engine)
    for pattern, what, way_out in _OTHER_FILES:
        path = next(iter(sorted(folder.glob(pattern))), None)
        if path is not None:
            return CheckpointError(
                f"{folder}: no model here that pretune reads, but {what}: {path.name}", way_out
            )
    if (folder / "config.json").is_file():
        return CheckpointError(
            f"{folder}: no weights here",
            "Expected model.safetensors or model.safetensors.index.json. (From the Hub, "
            "pytorch_model.bin is fetched only where pickles are allowed: --allow-pickle.)",
        )
    return CheckpointError(
        f"{folder}: no model here (no config.json, and no run's best/ or last/ either)",
        "Point at a folder with config.json and model.safetensors, at a finished run, or at "
        "Google's release of a BERT (bert_config.json, vocab.txt, bert_model.ckpt.*).",
    )
