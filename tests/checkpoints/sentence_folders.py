"""Folders in the layout of sentence-transformers, around a model that is there already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def sentence_folder(
    place: Path,  # a new folder
    model: Path,
    pooling: Mapping[str, Any] | None = None,  # `1_Pooling/config.json`; default: the mean
    *,
    inside: str = "",  # the folder of the model in it
    normalize: bool = False,
    transformer: Mapping[str, Any] | None = None,  # `sentence_bert_config.json`
    general: Mapping[str, Any] | None = None,  # `config_sentence_transformers.json`
    tokenizer: Mapping[str, Any] | None = None,  # changes of `tokenizer_config.json`
    modules: Sequence[str] = (),  # further modules, each without files
    prefix: str = OLD,  # of the modules' classes
) -> Path:
    inner = place / inside
    shutil.copytree(model, inner)
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else []), *modules]
    listed = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else inside,
            "type": name if "." in name else prefix + name,
        }
        for i, name in enumerate(names)
    ]
    write_json(place / "modules.json", listed)
    write_json(
        place / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, **(pooling or {"pooling_mode_mean_tokens": True})},
    )
    if normalize:
        (place / "2_Normalize").mkdir()
    if transformer is not None:
        write_json(inner / "sentence_bert_config.json", transformer)
    if general is not None:
        write_json(place / "config_sentence_transformers.json", general)
    if tokenizer is not None:
        path = inner / "tokenizer_config.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        write_json(path, {**before, **tokenizer})
    return place
