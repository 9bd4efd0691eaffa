"""Is an exported model the same as ours? Both read random texts of many lengths, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.batch import PackedBatch
from pretune.errors import NotFiniteError
from pretune.export.onnx_models import Exported, Pooling
from pretune.export.onnx_runtime import OnnxFile, OnnxModel, padded, run_passes, unpadded
from pretune.inference.embed import pool

#: Outputs may differ by this much, as a share of the largest output where that is above 1.
TOLERANCE = 1e-4
#: Tokens of the longest text that is compared: a longer one would take minutes.
LONGEST = 1024


@dataclass(frozen=True)
class OutputDifference:
    """How far the outputs of an export are from ours.

    Attributes:
        largest: the largest difference of two numbers, as a share of the largest number in an
            output where that is above 1.
        cosine: the smallest cosine of an output's rows: of logits, of hidden states, of vectors.
        texts: how many texts were compared.
    """

    largest: float
    cosine: float
    texts: int


def compare(
    exported: Exported,
    files: Mapping[str, OnnxFile],
    progress: Callable[[int, int], None] | None = None,
) -> OutputDifference:
    """Compare an export with the model on texts from one token to the longest, one and 32 at once.

    Args:
        exported: the model.
        files: what was written, opened; by name.
        progress: called with the number of batches done, and of all.
    """
    return compare_outputs(exported, partial(_outputs, exported, files), progress)


def compare_outputs(
    exported: Exported,
    outputs: Callable[[PackedBatch], Iterable[tuple[Tensor, Tensor]]],
    progress: Callable[[int, int], None] | None = None,
) -> OutputDifference:
    """Compare outputs of two forms of a model on random texts.

    Args:
        exported: the model, which says how long texts may be.
        outputs: runs both on a batch; gives pairs of what should be equal.
        progress: called with the number of batches done, and of all.

    Raises:
        NotFiniteError: the weights of the model are broken.
    """
    largest, cosine, texts = 0.0, 1.0, 0
    batches = list(random_batches(exported))
    for done, batch in enumerate(batches, 1):
        for ours, theirs in outputs(batch):
            if not bool(ours.isfinite().all()):
                raise NotFiniteError
            scale = max(1.0, float(ours.abs().max()))
            # NaN is no small difference.
            worst = float((ours - theirs).abs().max()) / scale
            largest = worst if np.isnan(worst) else max(largest, worst)
            near = F.cosine_similarity(ours, theirs.to(ours), dim=-1) if ours.ndim > 1 else None
            cosine = cosine if near is None else min(cosine, float(near.min()))
        texts += batch.num_sequences
        if progress is not None:
            progress(done, len(batches))
    return OutputDifference(largest, cosine, texts)


def random_batches(exported: Exported) -> Iterator[PackedBatch]:
    """Draw batches of one and of 32 texts, of one token to as many as the model reads."""
    config = exported.backbone.config
    longest = min(config.size("max_position_embeddings"), LONGEST)
    random = np.random.default_rng(0)

    def text(length: int, words: int) -> Any:
        return random.integers(0, words, length).tolist()

    words, few = config.size("vocab_size"), min(longest, 16)
    segments = getattr(config, "type_vocab_size", 1)
    for lengths in ([1], [longest], list(random.integers(1, few + 1, 32)), [min(longest, 2), few]):
        texts = [text(int(n), words) for n in lengths]
        if exported.backbone.reads_pairs:
            targets = [text(int(n), config.target_vocab_size) for n in reversed(lengths)]
            both = [one for pair in zip(texts, targets, strict=True) for one in pair]
            packed = PackedBatch.of(both)
            yield PackedBatch(
                packed.tokens, packed.layout, packed.positions, choices=(2,) * len(texts)
            )
        else:
            kinds = [text(len(ids), segments) for ids in texts] if exported.segments else None
            yield PackedBatch.of(texts, kinds)


@torch.inference_mode()
def _outputs(
    exported: Exported, files: Mapping[str, OnnxFile], batch: PackedBatch
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield our outputs, each with that of the export."""
    model: Any = exported.model
    if exported.writes:
        written = batch.pairs[1] if exported.backbone.reads_pairs else batch
        # In one pass, and with keys and values kept from token to token and over larger steps.
        ours = model(batch)
        for cuts in ((), (1, 2, 5)) if written.max_seqlen <= 64 else ((), (7,)):
            yield ours, run_passes(files, batch, cuts)
        return
    (file,) = files.values()
    if exported.head == "backbone":
        yield from _vectors(exported, file, batch)
    elif exported.head == "pretraining":
        both, outputs = model(batch, both=True), file.run(padded(batch))
        yield both.predictions, unpadded(outputs["prediction_logits"], batch)
        yield both.seq_relationship_logits, torch.from_numpy(outputs["seq_relationship_logits"])
    elif exported.head == "token_classification_crf":
        every = batch.where(torch.ones_like(batch.tokens, dtype=torch.bool))
        theirs = OnnxModel(file, exported)(batch, select=every)
        yield model(batch, select=every).logits, theirs.logits
    else:
        yield model(batch), OnnxModel(file, exported)(batch)


def _vectors(
    exported: Exported, file: OnnxFile, batch: PackedBatch
) -> Iterator[tuple[Tensor, Tensor]]:
    ours, theirs = exported.model(batch), file.run(padded(batch))
    yield ours.last_hidden_state, unpadded(theirs["last_hidden_state"], batch)
    if ours.pooler_output is not None:
        yield ours.pooler_output, torch.from_numpy(theirs["pooler_output"])
    if exported.pooling is not None:
        vector = _finished(pool(exported.backbone, batch, exported.pooling.kind), exported.pooling)
        yield vector, torch.from_numpy(theirs["sentence_embedding"])


def _finished(vector: Tensor, pooling: Pooling) -> Tensor:
    """Give a pooled vector its length and its size, as `Embedder` does."""
    vector = F.normalize(vector) if pooling.normalize else vector
    return vector[:, : pooling.size]
