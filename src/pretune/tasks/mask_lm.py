"""Masked tokens: which words fit a gap, and how natural a text is to a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from pretune.data import Feature, Layout, PackedBatch, Records, Selection
from pretune.errors import CheckpointError, DataError
from pretune.models import Backbone, masked_lm
from pretune.tasks.base import Loss, Prediction, Task, TaskOptions
from pretune.tasks.losses import CrossEntropyOptions, cross_entropy
from pretune.text import Encoded, Tokenizer

#: What masked tokens are counted under in a batch: the token that was there, or -1 where none is.
TARGET = "masked"
#: At a gap whose token nobody knows.
UNKNOWN = -2


class MaskLmOptions(CrossEntropyOptions):
    """Options of `mask_lm`."""

    name: Literal["mask_lm"] = Field("mask_lm", description="Which tokens fit the gaps of a text.")
    top_k: int = Field(5, ge=1, le=1000, description="How many candidates to give for each gap.")


@dataclass(frozen=True)
class Candidate:
    """A token that fits a gap, with its probability."""

    token: str
    score: float


@dataclass(frozen=True)
class MaskPrediction(Prediction):
    """The candidates for each gap of a text, best first; gaps are filled independently."""

    gaps: tuple[tuple[Candidate, ...], ...]

    def ranked(self) -> list[tuple[str, float]]:
        """Every candidate; with its gap's number where there are several."""
        several = len(self.gaps) > 1
        return [
            (f"{number}: {candidate.token}" if several else candidate.token, candidate.score)
            for number, gap in enumerate(self.gaps, start=1)
            for candidate in gap
        ]


class MaskLm(Task[MaskLmOptions, MaskPrediction]):
    """Fills gaps; evaluated by pseudo-perplexity (Salazar et al. 2020, equation 3).

    There each token of a text is masked in turn, and the model asked for it.
    """

    name: ClassVar[str] = "mask_lm"
    options_type: ClassVar[type[TaskOptions]] = MaskLmOptions
    head: ClassVar[str] = "masked_lm"
    best_by: ClassVar[str] = "loss"

    def __init__(self, options: MaskLmOptions) -> None:
        super().__init__(options)
        self._tokenizer: Tokenizer | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """`text`."""
        return {"text": "the text, with [MASK] for each gap"}

    @property
    def targets(self) -> dict[str, str]:
        """None: the text is its own answer."""
        return {}

    def bind(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer, which has the words for the answers."""
        self._tokenizer = tokenizer

    def fit(self, records: Records) -> None:
        """Nothing has to be known beforehand."""

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """A text with its gaps; or, with targets, one copy of it for each token, masked there."""
        self.bind(tokenizer)
        mask = tokenizer.special_id("mask_token")
        if mask is None:
            raise CheckpointError(
                "the tokenizer has no mask token", "Masks can be filled by BERT and its kin only."
            )
        texts = [records.text(row, "text") for row in rows]
        encoded = tokenizer.encode(texts, max_length=self.options.max_length)
        for row, one in zip(rows, encoded, strict=True):
            if with_targets:
                yield from _each_token_masked(one, mask, row, tokenizer)
                continue
            gaps = [UNKNOWN if token == mask else -1 for token in one.ids]
            if UNKNOWN not in gaps:
                cut = f" in the first {self.options.max_length} tokens" if one.truncated else ""
                raise DataError(
                    f"{records.where(row, 'text')}: no [MASK]{cut}",
                    "Write [MASK] where a word is to be found.",
                )
            yield Feature(one.ids, one.segments, {TARGET: gaps}, row, one.truncated)

    def build(self, backbone: Backbone) -> nn.Module:
        """Dense, activation, LayerNorm, and the embeddings as the output layer."""
        return masked_lm(backbone)

    def forward(self, model: nn.Module, batch: PackedBatch) -> Tensor:
        """Logits `[masked tokens, vocab]`: nothing is computed for the others in the last layer."""
        masked = batch.targets[TARGET] != -1
        rows = masked.nonzero()[:, 0]
        parts = torch.split(masked.cpu(), list(batch.layout.lengths))
        layout = Layout.of([int(part.sum()) for part in parts], rows.device)
        logits: Tensor = model(batch, select=Selection(rows, layout))
        return logits

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in masked tokens."""
        labels = batch.targets[TARGET]
        labels = labels[labels != -1]
        options = self.options
        total, parts = cross_entropy(
            outputs, labels, options.label_smoothing, options.z_loss, ignore_index=UNKNOWN
        )
        return Loss(total, int((labels != UNKNOWN).sum()), parts)

    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[MaskPrediction]:
        """The best candidates for each gap."""
        assert self._tokenizer is not None  # noqa: S101 - whoever loads a model binds it
        scores, ids = outputs.float().softmax(-1).topk(min(self.options.top_k, outputs.shape[-1]))
        gaps = [
            tuple(
                Candidate(token, score)
                for token, score in zip(self._tokenizer.tokens(row), row_scores, strict=True)
            )
            for row, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
        masked = torch.split((batch.targets[TARGET] != -1).cpu(), list(batch.layout.lengths))
        answers, start = [], 0
        for count in (int(part.sum()) for part in masked):
            answers.append(MaskPrediction(tuple(gaps[start : start + count])))
            start += count
        return answers

    def metrics(self) -> MaskLmMetrics:
        """Pseudo-perplexity and accuracy."""
        return MaskLmMetrics()

    def config_entries(self) -> dict[str, Any]:
        """Nothing that transformers would read."""
        return {}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """There is no state."""
        return type(self)(self.options)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...ForMaskedLM` or `...ForPreTraining`."""
        architecture = str((config.get("architectures") or [""])[0])
        if not architecture.endswith(("ForMaskedLM", "ForPreTraining")):
            return None
        positions = config.get("max_position_embeddings", 512)
        length = min(512, positions) if isinstance(positions, int) and positions > 2 else 512
        return cls(MaskLmOptions(max_length=length))


def _each_token_masked(
    one: Encoded, mask: int, row: int, tokenizer: Tokenizer
) -> Iterable[Feature]:
    special = {tokenizer.special_id(name) for name in tokenizer.special}
    for place, token in enumerate(one.ids):
        if token in special:
            continue
        ids = [*one.ids[:place], mask, *one.ids[place + 1 :]]
        targets = [token if i == place else -1 for i in range(len(ids))]
        yield Feature(ids, one.segments, {TARGET: targets}, row, one.truncated)


class MaskLmMetrics:
    """Over all masked tokens whose truth is known."""

    def __init__(self) -> None:
        self._loss, self._right, self._count = 0.0, 0, 0

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Take in logits `[masked tokens, vocab]`."""
        labels = batch.targets[TARGET]
        labels = labels[labels != -1]
        self._loss += float(cross_entropy(outputs, labels, ignore_index=UNKNOWN)[0])
        self._right += int((outputs.argmax(-1) == labels).sum())
        self._count += int((labels != UNKNOWN).sum())

    def merge(self, other: Self) -> None:
        """Add another's sums."""
        self._loss += other._loss
        self._right += other._right
        self._count += other._count

    def result(self) -> dict[str, float]:
        """`pseudo_perplexity`: exp of the mean negative log-probability; and `accuracy`."""
        count = max(self._count, 1)
        return {
            "pseudo_perplexity": math.exp(min(self._loss / count, 700.0)),
            "accuracy": self._right / count,
        }

    def details(self) -> dict[str, Any]:
        """How many tokens were asked for."""
        return {"tokens": self._count}
