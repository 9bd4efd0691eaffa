"""Google's original BERT releases, checkpoints of TensorFlow 1 and 2, read without TensorFlow.

A release is a folder of `bert_config.json`, `vocab.txt`, `bert_model.ckpt.index` and
`bert_model.ckpt.data-00000-of-00001` (and `bert_model.ckpt.meta`, a graph, which is not looked at).
What the tensors are called there and in the Hugging Face layout is data, as in `hub/keys.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from pretune.checkpoints.tensorflow.tensor_bundle import TensorBundle
from pretune.checkpoints.weights import copy_checked
from pretune.errors import CheckpointError


class Layout(Enum):
    """How a tensor lies in TensorFlow, against the Hugging Face layout."""

    SAME = "as it is"
    FLAT = "a vector, perhaps cut into heads"
    FROM_FIRST = "[in, out...]: a matrix, its outputs perhaps cut into heads"
    TO_LAST = "[in..., out]: a matrix, its inputs perhaps cut into heads"


@dataclass(frozen=True)
class Row:
    """A tensor's name there and in the Hugging Face layout; `{i}` is a layer's number.

    `{j}` is where Keras counts a transformer layer: the embeddings and their LayerNorm are layers
    as well, four of them.
    """

    theirs: str
    ours: str
    layout: Layout = Layout.SAME


def _norm(theirs: str, ours: str) -> tuple[Row, ...]:
    return (Row(f"{theirs}/gamma", f"{ours}.weight"), Row(f"{theirs}/beta", f"{ours}.bias"))


def _dense(theirs: str, ours: str, kernel: Layout = Layout.FROM_FIRST) -> tuple[Row, ...]:
    return (
        Row(f"{theirs}/kernel", f"{ours}.weight", kernel),
        Row(f"{theirs}/bias", f"{ours}.bias", Layout.FLAT),
    )


def _head(theirs: str, ours: str) -> tuple[Row, ...]:
    # Outputs by inputs already: Google multiplies with the transpose there.
    return (
        Row(f"{theirs}/output_weights", ours + ".weight"),
        Row(f"{theirs}/output_bias", ours + ".bias"),
    )


_EMBEDDINGS = "bert.embeddings."
_LAYER = "bert.encoder.layer.{i}."
_TRANSFORM = "cls.predictions.transform."

#: Variables of google-research/bert: modeling.py, and the heads of its run_*.py.
TF1: tuple[Row, ...] = (
    *(
        Row(f"bert/embeddings/{name}", f"{_EMBEDDINGS}{name}.weight")
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
    Row("cls/predictions/output_bias", "cls.predictions.bias"),
    *_head("cls/seq_relationship", "cls.seq_relationship"),
    *_head("cls/squad", "qa_outputs"),
    Row("output_weights", "classifier.weight"),
    Row("output_bias", "classifier.bias"),
)


def _keras_layer(theirs: str) -> tuple[Row, ...]:
    """A TransformerEncoderBlock; older ones call the attention's last part another name."""
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
            for row in _dense(f"{theirs}/{name}", f"{_LAYER}attention.output.dense", Layout.TO_LAST)
        ),
        *_norm(f"{theirs}/_attention_layer_norm", f"{_LAYER}attention.output.LayerNorm"),
        *_dense(f"{theirs}/_intermediate_dense", f"{_LAYER}intermediate.dense"),
        *_dense(f"{theirs}/_output_dense", f"{_LAYER}output.dense"),
        *_norm(f"{theirs}/_output_layer_norm", f"{_LAYER}output.LayerNorm"),
    )


#: Attributes of objects in the TensorFlow Model Garden (official/nlp/modeling): BertEncoder, a
#: Keras model of numbered layers, or (later) one of named attributes; then what BertPretrainerV2
#: adds, which has the embedding table a second time, saved under the shorter name.
_ENCODER: tuple[Row, ...] = (
    Row("layer_with_weights-0/embeddings", f"{_EMBEDDINGS}word_embeddings.weight"),
    Row("layer_with_weights-1/embeddings", f"{_EMBEDDINGS}position_embeddings.weight"),
    Row("layer_with_weights-2/embeddings", f"{_EMBEDDINGS}token_type_embeddings.weight"),
    *_norm("layer_with_weights-3", f"{_EMBEDDINGS}LayerNorm"),
    *_keras_layer("layer_with_weights-{j}"),
    # After the last transformer layer, the one dense layer that is not part of another.
    *_dense("layer_with_weights-{j}", "bert.pooler.dense"),
    Row("_embedding_layer/embeddings", f"{_EMBEDDINGS}word_embeddings.weight"),
    Row("_position_embedding_layer/embeddings", f"{_EMBEDDINGS}position_embeddings.weight"),
    Row("_type_embedding_layer/embeddings", f"{_EMBEDDINGS}token_type_embeddings.weight"),
    *_norm("_embedding_norm_layer", f"{_EMBEDDINGS}LayerNorm"),
    *_keras_layer("_transformer_layers/{i}"),
    *_dense("_pooler_layer", "bert.pooler.dense"),
)
_MASKED_LM: tuple[Row, ...] = (
    Row("masked_lm/embedding_table", f"{_EMBEDDINGS}word_embeddings.weight"),
    *_dense("masked_lm/dense", f"{_TRANSFORM}dense"),
    *_norm("masked_lm/layer_norm", f"{_TRANSFORM}LayerNorm"),
    Row("masked_lm/output_bias.Sbias", "cls.predictions.bias"),
)
#: What the encoder is called in the object that was saved.
_ROOTS = ("model/", "encoder/", "")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"

TF2: tuple[Row, ...] = tuple(
    Row(f"{root}{row.theirs}{_VALUE}", row.ours, row.layout)
    for rows, roots in ((_ENCODER, _ROOTS), (_MASKED_LM, ("",)))
    for root in roots
    for row in rows
)

#: Parts of names of what only training needs.
IGNORED = frozenset(
    {
        *("adam_m", "adam_v", "Adam", "Adam_1", "lamb_m", "lamb_v", "beta1_power", "beta2_power"),
        *("global_step", "save_counter", "optimizer", ".OPTIMIZER_SLOT"),
        *("_CHECKPOINTABLE_OBJECT_GRAPH",),
    }
)

# TensorFlow's numbers of dtypes, core/framework/types.proto.
_FLOATS = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}
_OTHERS = {3: "int32", 4: "uint8", 6: "int8", 7: "strings", 9: "int64", 10: "bool"}
_LAYER_NUMBER = re.compile(r"layer(?:_|s/|_with_weights-)(\d{1,3})/")


def _row_of(names: set[str]) -> dict[str, Row]:
    """The rows of all layers that these names speak of, by their full names there."""
    numbers = (int(found) for name in names for found in _LAYER_NUMBER.findall(name))
    layers = max(numbers, default=0) + 1
    table = {}
    for row in TF1 + TF2:
        several = "{" in row.theirs
        for i in range(layers if several else 1):
            name = row.theirs.format(i=i, j=i + 4)
            table[name] = Row(name, row.ours.format(i=i), row.layout)
    return table


def _turned(shape: tuple[int, ...], layout: Layout) -> list[int]:
    """The shape in the Hugging Face layout."""
    if layout is Layout.FLAT:
        return [math.prod(shape)]
    if layout is Layout.FROM_FIRST:
        return [math.prod(shape[1:]), math.prod(shape[:1])]
    if layout is Layout.TO_LAST:
        return [math.prod(shape[-1:]), math.prod(shape[:-1])]
    return list(shape)


class TensorFlowCheckpoint:
    """A BERT of Google's, of TensorFlow 1 or 2, under Hugging Face names; see `WeightSource`.

    Names that are not known stay as they are, and so does the orientation of their tensors.

    Args:
        prefix: of its files, e.g. `folder/bert_model.ckpt`; see `find_tensorflow`.

    Attributes:
        converted: how many tensors were read into another type than they are stored in.
        ignored: how many entries are the optimizer's and the like, not the model's.

    Raises:
        CheckpointError: missing, damaged, or two tensors for one name; names the file.
    """

    def __init__(self, prefix: Path) -> None:
        self._bundle = TensorBundle(prefix)
        self.converted = 0
        entries = self._bundle.entries
        stored = {name for name in entries if IGNORED.isdisjoint(name.split("/"))}
        self.ignored = len(entries) - len(stored)
        known = _row_of(stored)
        self._rows: dict[str, Row] = {}
        for name in sorted(stored):
            row = known.get(name, Row(name, name))
            if row.ours in self._rows:
                raise CheckpointError(
                    f"{self._bundle.index}: '{name}' and '{self._rows[row.ours].theirs}' are both "
                    f"{row.ours}",
                    "Is it a BERT? Models with factorised embeddings, for one, cannot be read.",
                )
            self._check_size(name)
            self._rows[row.ours] = row

    @property
    def names(self) -> set[str]:
        """All names."""
        return set(self._rows)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, as `read` gives it."""
        row = self._rows[name]
        return _turned(self._bundle.entries[row.theirs].shape, row.layout)

    def dtype(self, name: str) -> torch.dtype | None:
        """What it is stored in."""
        entry = self._bundle.entries[self._rows[name].theirs]
        return None if entry.sliced else _FLOATS.get(entry.dtype)

    def stored(self, name: str) -> str:
        """What the file itself calls it."""
        return self._rows[name].theirs

    def file_of(self, name: str) -> Path:
        """Where it lies."""
        return self._bundle.file_of(self._rows[name].theirs)

    def rename(self, names: dict[str, str]) -> None:
        """Call tensors by other names from now on: old -> new."""
        for old, new in names.items():
            self._rows[new] = self._rows.pop(old)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors are alike."""
        alike = (self.dtype(one), self.shape(one)) == (self.dtype(other), self.shape(other))
        return alike and torch.equal(self.read(one), self.read(other))

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of its own memory."""
        out = torch.empty(self.shape(name), dtype=dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor) -> None:
        """Copy a tensor into another of its shape.

        Raises:
            CheckpointError: damaged, not floats, or not finite; names file and tensor.
        """
        row = self._rows[name]
        entry, path = self._bundle.entries[row.theirs], self.file_of(name)
        kind = self.dtype(name)
        if kind is None:
            other = _OTHERS.get(entry.dtype, f"TensorFlow's type {entry.dtype}")
            what = "is in several pieces" if entry.sliced else f"holds {other}, not floats"
            raise CheckpointError(
                f"{self._bundle.index if entry.sliced else path}: '{row.theirs}' {what}",
                "Get the checkpoint as it was published.",
            )
        tensor = torch.from_numpy(self._bundle.read(row.theirs)).view(kind)
        shape = self.shape(name)
        if row.layout in (Layout.FROM_FIRST, Layout.TO_LAST):
            tensor = tensor.reshape(shape[::-1]).t()
        else:
            tensor = tensor.reshape(shape)
        self.converted += out.dtype != kind
        copy_checked(tensor, out, path, row.theirs)

    def _check_size(self, name: str) -> None:
        """Whether a tensor has as many bytes as its shape says."""
        entry = self._bundle.entries[name]
        if entry.sliced or entry.dtype not in _FLOATS:
            return
        if entry.size != entry.count * _FLOATS[entry.dtype].itemsize:
            raise CheckpointError(
                f"{self._bundle.index}: damaged: '{name}' of shape {list(entry.shape)} has "
                f"{entry.size:,} bytes",
                "Copy it again.",
            )


def find_tensorflow(folder: Path) -> Path | None:
    """The prefix of the TensorFlow checkpoint in a folder, None if there is none.

    Raises:
        CheckpointError: there are several, none of them called `bert_model.ckpt`.
    """
    usual = folder / "bert_model.ckpt"
    found = sorted(folder.glob("*.index"))
    if not found or usual.with_name(usual.name + ".index").is_file():
        return usual if found else None
    if len(found) > 1:
        names = ", ".join(path.name.removesuffix(".index") for path in found)
        raise CheckpointError(
            f"{folder}: several TensorFlow checkpoints here: {names}",
            "Leave the one that is meant, with its .data files, in a folder of its own.",
        )
    return found[0].with_name(found[0].name.removesuffix(".index"))
