"""Opening the weights of a folder, whatever their format."""

from __future__ import annotations

import os
from pathlib import Path

from pretune.checkpoints.config import read_object
from pretune.checkpoints.int8_weights import INT8_FILE, Int8Safetensors
from pretune.checkpoints.unsupported import GGUF_FILE, no_model
from pretune.checkpoints.weights import Safetensors, WeightSource
from pretune.errors import CheckpointError
from pretune.models.config import brief


def open_weights(folder: Path, *, allow_pickle: bool = False, mapped: bool = False) -> WeightSource:
    """Open the weights of a folder. The code for other formats is imported only when needed.

    Args:
        folder: with `model.safetensors` or an index of its shards; `model.int8.safetensors`;
            `pretune.gguf`, a link of ours; Google's `bert_model.ckpt.*`; or `pytorch_model.bin`.
        allow_pickle: also read `pytorch_model.bin`, by torch's restricted unpickler.
        mapped: as for `Safetensors`.

    Raises:
        CheckpointError: there are none, they are damaged, or they are a pickle that is not allowed.
    """
    # safetensors first: the safest and the quickest to open.
    if (folder / INT8_FILE).is_file():
        if (folder / "model.safetensors").is_file():
            raise CheckpointError(
                f"{folder}: has model.safetensors and {INT8_FILE}, which are two models",
                "Remove one of them.",
            )
        return Int8Safetensors(folder / INT8_FILE)
    if (folder / "model.safetensors").is_file():
        return Safetensors([folder / "model.safetensors"], mapped=mapped)
    if (folder / "model.safetensors.index.json").is_file():
        return Safetensors(_shards(folder / "model.safetensors.index.json"), mapped=mapped)
    if (folder / GGUF_FILE).is_file():
        from pretune.checkpoints.gguf_models import GgufWeights

        return GgufWeights((folder / GGUF_FILE).resolve())
    # Then TensorFlow's files, which are data as well.
    single, index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if not single.is_file() and not index.is_file():
        from pretune.checkpoints.tensorflow.google_bert import TensorFlowCheckpoint, find_tensorflow

        prefix = find_tensorflow(folder)
        if prefix is not None:
            return TensorFlowCheckpoint(prefix)
        raise no_model(folder)
    # A pickle comes last, and only if the user trusts it.
    if not allow_pickle:
        raise CheckpointError(
            f"{folder}: only pytorch_model.bin here, a pickle, which can run code when opened",
            "Get the model as model.safetensors (most Hub repositories have it), or, if you trust "
            "where it came from, convert it: pretune convert SOURCE FOLDER --allow-pickle "
            "(to use it as it is: --allow-pickle, or model.allow_pickle=true in a recipe)",
        )
    from pretune.checkpoints.pickle import Pickled

    return Pickled(_shards(index) if index.is_file() else [single])


def has_readable_names(folder: Path) -> bool:
    """Whether a folder has weights whose names can be read without trusting anybody."""
    names = ("model.safetensors", "model.safetensors.index.json", INT8_FILE, GGUF_FILE)
    return any((folder / name).is_file() for name in names)


def tensorflow_names(folder: Path) -> set[str]:
    """The names of the tensors in Google's checkpoint; none if there is no such checkpoint."""
    from pretune.checkpoints.tensorflow.google_bert import TensorFlowCheckpoint, find_tensorflow

    prefix = find_tensorflow(folder)
    return set() if prefix is None else TensorFlowCheckpoint(prefix).names


def _shards(index: Path) -> list[Path]:
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{index}: not a weight index", "Copy the file again.")
    files = []
    for name in sorted(set(names.values())):
        path = index.parent / name
        # os.path, as the methods of Path raise an error if a name is too long.
        if os.path.basename(name) != name or not os.path.isfile(path):
            raise CheckpointError(
                f"{index}: names the shard '{brief(name)}', which is missing", "Copy all shards."
            )
        files.append(path)
    return files
