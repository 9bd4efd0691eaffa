"""Google's original BERT releases, checkpoints of TensorFlow 1 and 2, read without TensorFlow.

A release is a folder with `bert_config.json`, `vocab.txt`, `bert_model.ckpt.index` and
`bert_model.ckpt.data-00000-of-00001` (and `bert_model.ckpt.meta`, a graph, which is not read). The
tables below pair its tensor names with those of the Hugging Face layout.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from pretune.checkpoints.tensorflow.tensor_bundle import TensorBundle
from pretune.checkpoints.weights import StoredTensor, WeightSource, copy_checked
from pretune.errors import CheckpointError


class Orientation(Enum):
    """How a tensor is stored by TensorFlow, compared with the Hugging Face layout."""

    SAME = "no change"
    FLAT = "a vector, perhaps split into heads"
    FROM_FIRST = "[in, out...]: a matrix, its outputs perhaps split into heads"
    TO_LAST = "[in..., out]: a matrix, its inputs perhaps split into heads"


@dataclass(frozen=True)
class NameRow:
    """A tensor's name in TensorFlow and in the Hugging Face layout.

    `{i}` is the number of a layer. `{j}` is its number in Keras, where the embeddings and their
    LayerNorm are the first four layers.
    """

    theirs: str
    ours: str
    layout: Orientation = Orientation.SAME


def _norm(theirs: str, ours: str) -> tuple[NameRow, ...]:
    return (NameRow(f"{theirs}/gamma", f"{ours}.weight"), NameRow(f"{theirs}/beta", f"{ours}.bias"))


def _dense(
    theirs: str, ours: str, kernel: Orientation = Orientation.FROM_FIRST
) -> tuple[NameRow, ...]:
    return (
        NameRow(f"{theirs}/kernel", f"{ours}.weight", kernel),
        NameRow(f"{theirs}/bias", f"{ours}.bias", Orientation.FLAT),
    )


def _head(theirs: str, ours: str) -> tuple[NameRow, ...]:
    # [out, in] already: Google multiplies by the transpose here.
    return (
        NameRow(f"{theirs}/output_weights", ours + ".weight"),
        NameRow(f"{theirs}/output_bias", ours + ".bias"),
    )


_EMBEDDINGS = "bert.embeddings."
_LAYER = "bert.encoder.layer.{i}."
_TRANSFORM = "cls.predictions.transform."

#: Variables of google-research/bert: modeling.py, and the heads of its run_*.py.
TF1: tuple[NameRow, ...] = (
    *(
        NameRow(f"bert/embeddings/{name}", f"{_EMBEDDINGS}{name}.weight")
        for name in ("word_embeddings", "token_type_embeddings", "position_embeddings")
    ),
    *_norm("bert/embeddings/LayerNorm", f"{_EMBEDDINGS}LayerNorm"),
    *(
        row
        for name in ("self.query", "self.key", "self.value", "output.dense")
        for row in _dense(
            f"bert/encoder/layer_{{i}}/attention/{name.replace('.', '/')}",
            f"{_LAYER}attention.{name}",
        )
    ),
    *_norm(
        "bert/encoder/layer_{i}/attention/output/LayerNorm", f"{_LAYER}attention.output.LayerNorm"
    ),
    *_dense("bert/encoder/layer_{i}/intermediate/dense", f"{_LAYER}intermediate.dense"),
    *_dense("bert/encoder/layer_{i}/output/dense", f"{_LAYER}output.dense"),
    *_norm("bert/encoder/layer_{i}/output/LayerNorm", f"{_LAYER}output.LayerNorm"),
    *_dense("bert/pooler/dense", "bert.pooler.dense"),
    *_dense("cls/predictions/transform/dense", f"{_TRANSFORM}dense"),
    *_norm("cls/predictions/transform/LayerNorm", f"{_TRANSFORM}LayerNorm"),
    NameRow("cls/predictions/output_bias", "cls.predictions.bias"),
    *_head("cls/seq_relationship", "cls.seq_relationship"),
    *_head("cls/squad", "qa_outputs"),
    NameRow("output_weights", "classifier.weight"),
    NameRow("output_bias", "classifier.bias"),
)


def _keras_layer(theirs: str) -> tuple[NameRow, ...]:
    """A TransformerEncoderBlock; older versions have another name for the attention's output."""
    return (
        *(
            row
            for name in ("query", "key", "value")
            for row in _dense(
                f"{theirs}/_attention_layer/_{name}_dense", f"{_LAYER}attention.self.{name}"
            )
        ),
        *(
            row
            for name in ("_attention_layer/_output_dense", "_attention_output_dense")
            for row in _dense(
                f"{theirs}/{name}", f"{_LAYER}attention.output.dense", Orientation.TO_LAST
            )
        ),
        *_norm(f"{theirs}/_attention_layer_norm", f"{_LAYER}attention.output.LayerNorm"),
        *_dense(f"{theirs}/_intermediate_dense", f"{_LAYER}intermediate.dense"),
        *_dense(f"{theirs}/_output_dense", f"{_LAYER}output.dense"),
        *_norm(f"{theirs}/_output_layer_norm", f"{_LAYER}output.LayerNorm"),
    )


#: Attributes of objects in the TensorFlow Model Garden (official/nlp/modeling): BertEncoder as a
#: Keras model with numbered layers, or, in later versions, with named attributes.
_ENCODER: tuple[NameRow, ...] = (
    NameRow("layer_with_weights-0/embeddings", f"{_EMBEDDINGS}word_embeddings.weight"),
    NameRow("layer_with_weights-1/embeddings", f"{_EMBEDDINGS}position_embeddings.weight"),
    NameRow("layer_with_weights-2/embeddings", f"{_EMBEDDINGS}token_type_embeddings.weight"),
    *_norm("layer_with_weights-3", f"{_EMBEDDINGS}LayerNorm"),
    *_keras_layer("layer_with_weights-{j}"),
    # The dense layer after the last transformer layer.
    *_dense("layer_with_weights-{j}", "bert.pooler.dense"),
    NameRow("_embedding_layer/embeddings", f"{_EMBEDDINGS}word_embeddings.weight"),
    NameRow("_position_embedding_layer/embeddings", f"{_EMBEDDINGS}position_embeddings.weight"),
    NameRow("_type_embedding_layer/embeddings", f"{_EMBEDDINGS}token_type_embeddings.weight"),
    *_norm("_embedding_norm_layer", f"{_EMBEDDINGS}LayerNorm"),
    *_keras_layer("_transformer_layers/{i}"),
    *_dense("_pooler_layer", "bert.pooler.dense"),
)
#: What BertPretrainerV2 adds; it has the embedding table again, saved under the shorter name.
_MASKED_LM: tuple[NameRow, ...] = (
    NameRow("masked_lm/embedding_table", f"{_EMBEDDINGS}word_embeddings.weight"),
    *_dense("masked_lm/dense", f"{_TRANSFORM}dense"),
    *_norm("masked_lm/layer_norm", f"{_TRANSFORM}LayerNorm"),
    NameRow("masked_lm/output_bias.Sbias", "cls.predictions.bias"),
)
#: Names of the encoder in the saved object.
_ROOTS = ("model/", "encoder/", "")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"

TF2: tuple[NameRow, ...] = tuple(
    NameRow(f"{root}{row.theirs}{_VALUE}", row.ours, row.layout)
    for rows, roots in ((_ENCODER, _ROOTS), (_MASKED_LM, ("",)))
    for root in roots
    for row in rows
)

#: Parts of names that only training needs.
IGNORED = frozenset(
    {
        *("adam_m", "adam_v", "Adam", "Adam_1", "lamb_m", "lamb_v", "beta1_power", "beta2_power"),
        *("global_step", "save_counter", "optimizer", ".OPTIMIZER_SLOT"),
        *("_CHECKPOINTABLE_OBJECT_GRAPH",),
    }
)

# TensorFlow's numbers for dtypes, from core/framework/types.proto.
_FLOATS = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}
_OTHERS = {3: "int32", 4: "uint8", 6: "int8", 7: "strings", 9: "int64", 10: "bool"}
_LAYER_NUMBER = re.compile(r"layer(?:_|s/|_with_weights-)(\d{1,3})/")


def _row_of(names: set[str]) -> dict[str, NameRow]:
    """The rows of every layer that occurs in these names, by TensorFlow's full names."""
    numbers = (int(number) for name in names for number in _LAYER_NUMBER.findall(name))
    layers = max(numbers, default=0) + 1
    table = {}
    for row in TF1 + TF2:
        several = "{" in row.theirs
        for i in range(layers if several else 1):
            name = row.theirs.format(i=i, j=i + 4)
            table[name] = NameRow(name, row.ours.format(i=i), row.layout)
    return table


def _turned(shape: tuple[int, ...], layout: Orientation) -> list[int]:
    """The shape of a tensor in the Hugging Face layout."""
    if layout is Orientation.FLAT:
        return [math.prod(shape)]
    if layout is Orientation.FROM_FIRST:
        return [math.prod(shape[1:]), math.prod(shape[:1])]
    if layout is Orientation.TO_LAST:
        return [math.prod(shape[-1:]), math.prod(shape[:-1])]
    return list(shape)


@dataclass(frozen=True)
class _Entry(StoredTensor):
    layout: Orientation


class TensorFlowCheckpoint(WeightSource):
    """A BERT of Google's, from TensorFlow 1 or 2, under Hugging Face names.

    Tensors with unknown names keep their name and orientation.

    Args:
        prefix: the common start of its files, e.g. `folder/bert_model.ckpt`.

    Raises:
        CheckpointError: missing, damaged, or two tensors for one name; names the file.
    """

    def __init__(self, prefix: Path) -> None:
        super().__init__()
        self._bundle = TensorBundle(prefix)
        entries = self._bundle.entries
        stored = {name for name in entries if IGNORED.isdisjoint(name.split("/"))}
        self.ignored = len(entries) - len(stored)  # number of entries that only training needs
        known = _row_of(stored)
        for name in sorted(stored):
            row, entry = known.get(name, NameRow(name, name)), entries[name]
            if row.ours in self.entries:
                raise CheckpointError(
                    f"{self._bundle.index}: '{name}' and '{self.stored(row.ours)}' are both "
                    f"{row.ours}",
                    "Is it a BERT? Models with factorised embeddings, for example, cannot be read.",
                )
            # A tensor has the number of bytes that its shape needs.
            kind = None if entry.sliced else _FLOATS.get(entry.dtype)
            if kind is not None and entry.size != entry.count * kind.itemsize:
                raise CheckpointError(
                    f"{self._bundle.index}: damaged: '{name}' of shape {list(entry.shape)} has "
                    f"{entry.size:,} bytes",
                    "Copy it again.",
                )
            shape = _turned(entry.shape, row.layout)
            self.entries[row.ours] = _Entry(
                self._bundle.file_of(name), name, shape, kind, row.layout
            )

    @override
    def read_into(self, name: str, out: Tensor) -> None:
        entry: _Entry = self.entries[name]
        if entry.dtype is None:
            place = self._bundle.entries[entry.stored]
            other = _OTHERS.get(place.dtype, f"TensorFlow's type {place.dtype}")
            what = "is in several pieces" if place.sliced else f"holds {other}, not floats"
            raise CheckpointError(
                f"{self._bundle.index if place.sliced else entry.path}: '{entry.stored}' {what}",
                "Get the checkpoint as it was published.",
            )
        # Turn the tensor into the orientation of the Hugging Face layout.
        tensor = torch.from_numpy(self._bundle.read(entry.stored)).view(entry.dtype)
        if entry.layout in (Orientation.FROM_FIRST, Orientation.TO_LAST):
            tensor = tensor.reshape(entry.shape[::-1]).t()
        else:
            tensor = tensor.reshape(entry.shape)
        self.converted += out.dtype != entry.dtype
        copy_checked(tensor, out, entry.path, entry.stored)


def find_tensorflow(folder: Path) -> Path | None:
    """The prefix of the TensorFlow checkpoint in a folder; None if there is none.

    Raises:
        CheckpointError: there are several, none of them called `bert_model.ckpt`.
    """
    usual = folder / "bert_model.ckpt"
    indices = sorted(folder.glob("*.index"))
    if not indices or usual.with_name(usual.name + ".index").is_file():
        return usual if indices else None
    if len(indices) > 1:
        names = ", ".join(path.name.removesuffix(".index") for path in indices)
        raise CheckpointError(
            f"{folder}: several TensorFlow checkpoints here: {names}",
            "Put the one you want, with its .data files, into a folder of its own.",
        )
    return indices[0].with_name(indices[0].name.removesuffix(".index"))
