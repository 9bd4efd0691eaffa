"""An exported model run by onnxruntime: as a model of ours, on the same packed batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from pretune.bundle.bundle import Bundle
from pretune.data.batch import PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.export.onnx_models import DECODER, ENCODER, LANGUAGE_MODELS, MODEL, Exported
from pretune.export.packages import needed
from pretune.inference.embed import Embedder
from pretune.models.heads.token import TagScores
from pretune.models.heads.vocabulary import score_logits
from pretune.models.layers import ModelOutput
from pretune.text.terminal import in_line

Arrays = dict[str, NDArray[Any]]


class OnnxFile:
    """An ONNX file, opened by onnxruntime.

    Raises:
        CheckpointError: there is none, or it is damaged.
        RunError: onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ort = needed("onnxruntime")
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file", "Export the model again.")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class of errors for each of its codes
            reason = in_line(str(error).split("\n")[0])[:200]
            raise CheckpointError(
                f"{path}: damaged, or no ONNX model ({reason})", "Export the model again."
            ) from None
        self.inputs = {item.name: item for item in self._session.get_inputs()}
        self.outputs = [item.name for item in self._session.get_outputs()]
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(self, inputs: Mapping[str, NDArray[Any]], *names: str) -> Arrays:
        """Give the outputs with these names; none: all."""
        wanted = list(names) or self.outputs
        known = {name: array for name, array in inputs.items() if name in self.inputs}
        return dict(zip(wanted, self._session.run(wanted, known), strict=True))

    def no_past(self, texts: int) -> Arrays:
        """Keys and values of no tokens, for the first pass of a model that writes."""
        past = {}
        for name, item in self.inputs.items():
            if name.startswith("past_key_values."):
                _, heads, _, size = item.shape
                past[name] = np.zeros((texts, heads, 0, size), np.float32)
        return past


def padded(batch: PackedBatch) -> Arrays:
    """Lay the sequences of a batch side by side, with zeros and a mask behind shorter ones."""
    lengths, longest = batch.layout.lengths, batch.max_seqlen
    real = np.arange(longest) < np.asarray(lengths)[:, None]
    arrays = {"attention_mask": real.astype(np.int64)}
    values = {"input_ids": batch.tokens, "token_type_ids": batch.segments}
    for name, packed in values.items():
        arrays[name] = np.zeros(real.shape, np.int64)
        if packed is not None:
            arrays[name][real] = packed.cpu().numpy()
    arrays["position_ids"] = np.where(real, np.arange(longest), 0)
    return arrays


def unpadded(values: NDArray[Any], batch: PackedBatch) -> Tensor:
    """Lay padded rows `[B, S, ...]` end to end again, `[T, ...]`."""
    real = np.arange(values.shape[1]) < np.asarray(batch.layout.lengths)[:, None]
    return torch.from_numpy(values[real])


class OnnxModel(nn.Module):
    """A model of ours that an ONNX file computes, apart from what follows its logits.

    It answers on packed batches as the model that was exported does, so that tasks can use it.
    """

    def __init__(self, file: OnnxFile, exported: Exported) -> None:
        super().__init__()
        self.file = file
        self.head = exported.head
        self.crf = getattr(exported.model, "crf", None)

    @override
    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        labels: Tensor | None = None,
        **scoring: Any,
    ) -> Any:
        """Give what the model's own head gives.

        Logits are `[B, labels]`, `[T, labels]`, or `[R, labels]` for the selected tokens; of a
        language model with `labels` the scores, of a bare model the hidden states.
        """
        if self.head in LANGUAGE_MODELS:
            rows = run_passes({MODEL: self.file}, batch)
            return rows_scored(rows, select, labels, **scoring)
        arrays = padded(batch)
        if self.head == "multiple_choice":  # here each choice is a text with one choice
            logits = self.file.run({name: a[:, None] for name, a in arrays.items()})["logits"]
            return torch.from_numpy(logits)
        outputs = self.file.run(arrays)
        if self.head == "question_answering":
            both = [unpadded(outputs[name], batch) for name in ("start_logits", "end_logits")]
            rows = torch.stack(both, -1)
        elif self.head == "backbone":
            rows = unpadded(outputs["last_hidden_state"], batch)
            return ModelOutput(rows if select is None else rows[select.rows])
        elif outputs["logits"].ndim == 2:
            return torch.from_numpy(outputs["logits"])
        else:
            rows = unpadded(outputs["logits"], batch)
        if self.crf is None:
            return rows_scored(rows, select, labels, **scoring)
        rows = rows if select is None else rows[select.rows]
        return TagScores(rows, None, self.crf.weights.detached())


def rows_scored(
    rows: Tensor,
    select: Selection | None = None,
    labels: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    each: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Make of logits `[T, vocab]` what `LanguageModelHead.forward` gives with these options."""
    rows = rows if select is None else rows[select.rows]
    if labels is None:
        return rows
    if each:
        return (rows / temperature).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    return score_logits(rows, labels, smoothing=smoothing, z_loss=z_loss)


class OnnxEmbedder(Embedder):
    """Gives the vectors of texts by an exported bare model; the options are those of `Embedder`."""

    def __init__(self, bundle: Bundle, model: OnnxModel, **options: Any) -> None:
        super().__init__(bundle, device="cpu", **options)
        self._model: Any = model


def run_passes(
    files: Mapping[str, OnnxFile], batch: PackedBatch, cuts: Sequence[int] = ()
) -> Tensor:
    """Let a model that writes read a batch in several passes, each with the past of the others.

    Args:
        files: by `MODEL`, or by `ENCODER` and `DECODER`.
        batch: texts, or pairs of texts.
        cuts: the tokens at which a next pass begins.

    Returns:
        logits `[T, vocab]` of the texts, or of the targets.
    """
    translates = ENCODER in files
    file = files[DECODER if translates else MODEL]
    written, fixed = batch, {}
    if translates:
        source, written = batch.pairs
        arrays = padded(source)
        fixed = {
            "encoder_attention_mask": arrays["attention_mask"],
            "encoder_hidden_states": files[ENCODER].run(arrays)["last_hidden_state"],
        }
    arrays, logits = padded(written), []
    past = file.no_past(written.num_sequences)
    ends = [*(cut for cut in cuts if cut < written.max_seqlen), written.max_seqlen]
    for start, end in zip([0, *ends], ends, strict=False):
        outputs = file.run(
            {
                **{name: arrays[name][:, start:end] for name in ("input_ids", "position_ids")},
                "attention_mask": arrays["attention_mask"][:, :end],
                "use_cache_branch": np.array([start > 0]),
                **fixed,
                **past,
            }
        )
        logits.append(outputs.pop("logits"))
        past = {name.replace("present.", "past_key_values."): a for name, a in outputs.items()}
    return unpadded(np.concatenate(logits, 1), written)
