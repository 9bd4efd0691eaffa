"""The JSON files of a checkpoint, and the family they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from pretune.errors import CheckpointError, did_you_mean
from pretune.models.config import brief
from pretune.models.families import FAMILIES
from pretune.models.family import Family

#: Entry of a `config.json` whose family a package brings: the name of the package.
PACKAGE = "pretune_package"

#: Entry that transformers does not know: the odds from which a question has no answer.
THRESHOLD = "no_answer_threshold"
#: Entry that transformers does not know: whether a tagger's weights include a CRF.
CRF = "crf"

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


def read_config(
    folder: Path, tensors: Callable[[], AbstractSet[str]] | None = None
) -> dict[str, Any]:
    """Read `config.json`, or translate Google's `bert_config.json`.

    Args:
        folder: of the checkpoint.
        tensors: returns the names of its tensors, as Google's file does not name the head.

    Raises:
        CheckpointError: missing, not a JSON object, or an entry about labels makes no sense.
    """
    path = folder / "config.json"
    if path.is_file():
        return _plausible(read_object(path), path)
    if not (folder / "bert_config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json here", "Is it a model folder?")
    config = _plausible(read_bert_config(folder), folder / "bert_config.json")
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
        CheckpointError: it is unknown; names the package that brings it, or the nearest name.
    """
    kind = brief(config.get("model_type", ""))
    if kind not in FAMILIES:
        package = config.get(PACKAGE)
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type '{kind}' is not supported",
            f"Install the package that brings it: pip install {brief(package)}"
            if isinstance(package, str)
            else did_you_mean(kind, list(FAMILIES)),
        )
    family = FAMILIES[kind]
    return family if family.variant is None else family.variant(config)
