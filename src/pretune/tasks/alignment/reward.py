"""`reward`: a score for a reply, learned from pairs of which one is better (Ouyang et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch, Skipped
from pretune.data.readers.conversations import COMPLETION, MESSAGES, messages_of
from pretune.data.readers.preferences import (
    CHOSEN,
    REJECTED,
    with_preferences,
)
from pretune.data.records import Records, is_missing
from pretune.errors import DataError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.alignment.pairs import reply_tokens, useless_pair
from pretune.tasks.base import (
    AdaptsRecords,
    Calibrated,
    Loss,
    Metrics,
    Prediction,
    Task,
    TaskOptions,
    UsesTokenizer,
    no_text,
)
from pretune.tasks.dialogue.dialogue import Instruct
from pretune.tasks.dialogue.layouts import TemplateLayout, give_template
from pretune.tasks.grading import Decision, EachLoss, Grade
from pretune.tasks.labels import label_entries
from pretune.tokenizers.chat_template import ChatTemplate
from pretune.tokenizers.tokenizer import Tokenizer

#: The optional column, and the target, of by how much the chosen reply is better.
MARGIN = "margin"
#: Target of a pair: tokens of the chosen and of the rejected reply.
REPLY_TOKENS = "reply_tokens"
#: A larger margin is out of reach for the difference of two scores.
MAX_MARGIN = 1000.0
#: Bins of the calibration error.
BINS = 10
#: Up to which difference in length (the longer reply over the shorter one) pairs are told apart.
LENGTH_RATIOS = (1.1, 1.5, 2.0, math.inf)


class RewardOptions(TaskOptions):
    """Options of `reward`."""

    name: Literal["reward"] = Field(
        "reward", description="A score for a reply, learned from which of two replies is better."
    )
    max_length: int = Field(
        512,
        ge=8,
        description="The most tokens of a prompt with a reply; of a longer prompt the beginning is "
        "cut, of a longer reply the end.",
    )
    template: Literal["auto", "alpaca", "chatml", "plain"] = Field(
        "auto", description="How a decoder reads messages, as for instruct."
    )
    system: str | None = Field(
        None, min_length=1, description="The system message of conversations that have none."
    )
    center: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Add this times the square of the sum of both scores, which keeps them around "
        "0 (Eisenstein et al. 2023; usual: 0.01).",
    )
    normalize: bool = Field(
        False,
        description="Shift and scale the scores that predict gives so that the replies of the "
        "validation data have mean 0 and deviation 1.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout before the last layer. Default: the model's own."
    )


@dataclass(frozen=True)
class RewardPrediction(Prediction):
    """The score of a reply; only differences between replies to the same prompt mean something.

    Attributes:
        score: higher is better; None where there was nothing to score.
    """

    score: float | None


class Reward(Task[RewardOptions, RewardPrediction], UsesTokenizer, AdaptsRecords, Calibrated):
    """One number for a prompt with a reply, read at the last token (decoders) or at `[CLS]`.

    The loss of a pair is -log sigmoid(r_chosen - r_rejected - margin) (Ouyang et al. 2022,
    equation 1; the margin: Touvron et al. 2023, "Llama 2", equation 2). Both sequences of a pair
    are one feature. There is no padding, so the last token of a sequence is the reply's own.
    """

    name: ClassVar[str] = "reward"
    options_type: ClassVar[type[TaskOptions]] = RewardOptions
    head: ClassVar[str] = "sequence_classification"
    best_by: ClassVar[str] = "accuracy"
    inputs: ClassVar[dict[str, str]] = {
        MESSAGES: "the prompt: a text, or messages",
        COMPLETION: "the reply to score",
    }
    sources: ClassVar[tuple[str, ...]] = Instruct.sources
    optional: ClassVar[dict[str, str]] = {
        "id": "what messages call the record",
        MARGIN: "by how much the better reply is better",
    }
    targets: ClassVar[dict[str, str]] = {
        CHOSEN: "the better reply",
        REJECTED: "the worse reply",
    }

    def __init__(self, options: RewardOptions) -> None:
        super().__init__(options)
        self._causal = False
        self._tokenizer: Tokenizer | None = None
        # The mean and the deviation of the scores, if `normalize` asks for them.
        self.scale = (0.0, 1.0)

    # Preprocessor

    @override
    def without_text(self, row: Mapping[str, Any], *, with_targets: bool) -> bool:
        """Whether there is no prompt; an empty reply to one is a reply."""
        return no_text(row.get(MESSAGES))

    @override
    def adapted(self, records: Records, columns: Mapping[str, str], with_targets: bool) -> Records:
        """Bring any form of preferences to one."""
        records = records.mapped(columns, ())
        if not with_targets:
            return with_preferences(records, [COMPLETION], keep_empty=True)
        adapted = with_preferences(records, [CHOSEN, REJECTED])
        if COMPLETION in adapted.columns:
            return adapted
        # The reply that a prediction needs stands for the two that are learned.
        rows = [{**row, COMPLETION: row[CHOSEN]} for row in adapted.rows]
        return replace(adapted, rows=rows, columns=(*adapted.columns, COMPLETION))

    @override
    def texts(self, records: Records) -> Iterable[str]:
        for row, record in enumerate(records.rows):
            yield from (message["content"] for message in messages_of(records, row))
            yield from (record[column] for column in self.targets)

    @override
    def bind(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer; a decoder's gets a template, which is saved with it."""
        self._tokenizer = tokenizer
        if self._causal:
            give_template(tokenizer, self.options.template)

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        """Lay out both replies of a pair, or without targets the one that is to be scored."""
        margins = MARGIN in records.columns
        for row in rows:
            record = records.rows[row]
            if with_targets:
                replies = [record[CHOSEN], record[REJECTED]]
            else:
                replies = [records.text(row, COMPLETION)]
            if with_targets and (why := useless_pair(replies)) is not None:
                yield Skipped(row, why)
                continue
            sequences, segments, lengths, cut = self._sequences(records, row, replies, tokenizer)
            if with_targets and sequences[0] == sequences[1]:
                yield Skipped(row, "the replies differ only where they were cut")
                continue
            targets: dict[str, Any] = {}
            if with_targets:
                targets[REPLY_TOKENS] = np.array([lengths])
                if margins:
                    targets[MARGIN] = np.float32(_margin(records, row))
            yield Feature(
                [token for sequence in sequences for token in sequence],
                [segment for own in segments for segment in own],
                targets,
                row,
                cut,
                [len(sequence) for sequence in sequences],
            )

    def _sequences(
        self, records: Records, row: int, replies: Sequence[str], tokenizer: Tokenizer
    ) -> tuple[list[list[int]], list[list[int]], list[int], bool]:
        """Tokenize a prompt with each reply: tokens, segments, tokens of replies, and if cut."""
        messages, size = messages_of(records, row), self.options.max_length
        if self._causal:
            try:
                read = reply_tokens(self._layout(tokenizer), messages, replies, size)
            except DataError as error:
                raise DataError(f"{records.where(row, MESSAGES)}: {error}") from None
            whole = [[*read.prompt, *reply] for reply in read.replies]
            return whole, [[0] * len(own) for own in whole], read.lengths, read.truncated
        # An encoder: [CLS] prompt [SEP] reply [SEP], of a long prompt the end.
        prompt = "\n".join(message["content"] for message in messages)
        own, *bare = tokenizer.encode_bare([prompt, *replies])
        lengths = [len(encoding.ids) for encoding in bare]
        room = size - tokenizer.engine.num_special_tokens_to_add(True)
        kept = room - min(max(lengths), room - room // 2)
        cut = len(own.ids) > kept
        if cut:
            prompt = prompt[own.offsets[-kept][0] :] if kept else ""
        pairs = tokenizer.encode([prompt] * len(replies), replies, max_length=size)
        return (
            [list(pair.ids) for pair in pairs],
            [list(pair.segments) for pair in pairs],
            lengths,
            cut or any(pair.truncated for pair in pairs),
        )

    def _layout(self, tokenizer: Tokenizer) -> TemplateLayout:
        layout = TemplateLayout.of(tokenizer, self.options.system)
        assert layout is not None  # noqa: S101 - bind gave the tokenizer a template
        return layout

    @override
    def feature_key(self) -> Any:
        template = None
        if self._causal and self._tokenizer is not None:
            template = ChatTemplate.of(self._tokenizer)
        return [*super().feature_key(), None if template is None else template.text]

    # Head

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        self._causal = backbone.causal
        return build_head(backbone, self.head, 1, dropout=self.options.dropout)

    @override
    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Compute the loss, counted in pairs."""
        each = self._losses(outputs, batch)
        return Loss(each.sum(), len(each))

    def _losses(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        chosen, rejected = _by_pair(outputs)
        margin = batch.targets.get(MARGIN, torch.zeros_like(chosen))
        each = -F.logsigmoid(chosen - rejected - margin)
        if self.options.center:
            each = each + self.options.center * (chosen + rejected).square()
        return each

    # Answers

    @override
    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[Any]:
        if REPLY_TOKENS in batch.targets:
            pairs = outputs[:, 0].double().view(-1, 2).tolist()
            lengths = batch.targets[REPLY_TOKENS].tolist()
            return [(*scores, *own) for scores, own in zip(pairs, lengths, strict=True)]
        mean, deviation = self.scale
        scores = (outputs[:, 0].double() - mean) / deviation
        return [RewardPrediction(score) for score in scores.tolist()]

    @override
    def combine(self, parts: Sequence[Any], record: Mapping[str, Any]) -> RewardPrediction:
        if parts and isinstance(parts[0], RewardPrediction):
            return super().combine(parts, record)
        chosen, rejected, *lengths = parts[0] if parts else (0.0, 0.0, 1, 1)
        return _PairPrediction(chosen, chosen, rejected, lengths)

    @override
    def empty_answer(self) -> RewardPrediction:
        return RewardPrediction(None)

    @override
    def usage(self, run: str) -> str:
        return f"pretune predict {run} PROMPT REPLY"

    # Scorer

    @override
    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        each = self._losses(outputs.detach(), batch)
        return EachLoss(each, torch.ones_like(each, dtype=torch.int64))

    @override
    def grader(self, records: Records) -> Callable[[RewardPrediction, int], Grade]:
        def grade(answer: RewardPrediction, row: int) -> Grade:
            record = records.rows[row]
            assert isinstance(answer, _PairPrediction)  # noqa: S101 - of an evaluation
            lengths, difference = answer.lengths, answer.chosen - answer.rejected
            right = difference > 0
            chance = 1 / (1 + math.exp(-min(abs(difference), 700)))
            return Grade(
                truth=record[CHOSEN],
                answer=record[CHOSEN if right else REJECTED],
                right=right,
                decisions=(Decision(chance, right),),
                counts=(_right(difference), 1.0, difference, _right(lengths[0] - lengths[1])),
            )

        return grade

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        right, count, difference, longer = np.moveaxis(sums[..., 2:], -1, 0)
        count = np.maximum(count, 1)
        rates = {"accuracy": right, "margin": difference, "longer_accuracy": longer}
        return {**super().figures(sums), **{name: sum_ / count for name, sum_ in rates.items()}}

    @override
    def metrics(self, features: Features | None = None) -> RewardMetrics:
        return RewardMetrics()

    # Calibrated

    @override
    def calibrate(self, metrics: Any) -> None:
        """Take the mean and the deviation of the scores of all replies, if the options say so."""
        if self.options.normalize:
            scores = metrics.scores()
            self.scale = float(scores.mean()), max(float(scores.std()), 1e-6)

    @override
    def restore_calibration(self, state: Mapping[str, Any]) -> None:
        self.scale = _scale(state)

    # Described

    @override
    def config_entries(self) -> dict[str, Any]:
        return label_entries(["LABEL_0"])

    @override
    def last_tokens(self) -> frozenset[int]:
        """Tokens that end replies: padding with one of them would hide the end of a reply."""
        if not self._causal or self._tokenizer is None:
            return frozenset()
        ends, own = self._layout(self._tokenizer).ends().tokens, self._tokenizer.end_id
        return ends if own is None else ends | {own}

    @override
    def state(self) -> dict[str, Any]:
        return {"scale": list(self.scale)}

    @override
    def with_state(self, state: Mapping[str, Any]) -> Self:
        task = super().with_state(state)
        task.scale = _scale(state)
        return task


@dataclass(frozen=True)
class _PairPrediction(RewardPrediction):
    """The scores of both replies of a pair; `score` is that of the chosen one."""

    chosen: float
    rejected: float
    lengths: list[int]  # tokens of both replies


def _scale(state: Mapping[str, Any]) -> tuple[float, float]:
    mean, deviation = (float(value) for value in state.get("scale", (0.0, 1.0)))
    if not (math.isfinite(mean) and math.isfinite(deviation) and deviation > 0):
        raise ValueError("scale: a mean and a deviation above 0")
    return mean, deviation


def _by_pair(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The scores `[B]` of the chosen and of the rejected replies, in float32."""
    chosen, rejected = outputs[:, 0].float().view(-1, 2).unbind(1)
    return chosen, rejected


def _margin(records: Records, row: int) -> float:
    """By how much the chosen reply of a record is better; 0 where nothing is said."""
    value: Any = records.rows[row].get(MARGIN)
    infinite = isinstance(value, float) and math.isinf(value)
    if is_missing(value) and not infinite:  # NaN is how pandas writes nothing
        return 0.0
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_MARGIN:
        raise DataError(
            f"{records.where(row, MARGIN)}: expected a number from -{MAX_MARGIN:g} to "
            f"{MAX_MARGIN:g}, found {value!r}",
            "Give one there, or nothing. Scores differ by a few units.",
        )
    return number


class RewardMetrics(Metrics):
    """How well scores tell which of two replies is better.

    `accuracy` (ties count half), `margin` (the mean difference), `calibration_error` (the expected
    calibration error of P(chosen) = sigmoid(difference), 10 bins of equal width; Guo et al. 2017,
    equation 3, on the more probable side), and `longer_accuracy`: that of the rule "the longer
    reply is better", which a model should beat (Singhal et al. 2023, "A long way to go").
    """

    def __init__(self) -> None:
        self._pairs: list[Array] = []

    @override
    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        scores = outputs[:, 0].detach().cpu().double().view(-1, 2).numpy()
        lengths = batch.targets[REPLY_TOKENS].cpu().double().numpy()
        self._pairs.append(np.concatenate([scores, lengths], axis=1))

    @override
    def merge(self, other: Self) -> None:
        self._pairs += other._pairs

    def _all(self) -> Array:
        # In one order, so that sums do not depend on how batches were made.
        pairs = np.concatenate([np.empty((0, 4)), *self._pairs])
        return pairs[np.lexsort(pairs.T)]

    def scores(self) -> Array:
        """`[2N]` the scores of all replies."""
        return self._all()[:, :2].ravel()

    @override
    def result(self) -> dict[str, float]:
        pairs = self._all()
        if not len(pairs):
            names = ("accuracy", "margin", "calibration_error", "longer_accuracy")
            return dict.fromkeys(names, 0.0)
        difference, longer = pairs[:, 0] - pairs[:, 1], pairs[:, 2] - pairs[:, 3]
        return {
            "accuracy": _accuracy(difference),
            "margin": float(difference.mean()),
            "calibration_error": _calibration_error(difference),
            "longer_accuracy": _accuracy(longer),
        }

    @override
    def details(self) -> dict[str, Any]:
        """Accuracy by how different the lengths are, beside the rule's."""
        pairs = self._all()
        lengths = np.maximum(pairs[:, 2:], 1)
        ratio = lengths.max(1, initial=1) / lengths.min(1, initial=math.inf)
        table, low = [], 1.0
        for high in LENGTH_RATIOS:
            inside = (ratio >= low) & (ratio < high)
            own = pairs[inside]
            if len(own):
                table.append(
                    {
                        "length_ratio": [low, None if math.isinf(high) else high],
                        "pairs": len(own),
                        "accuracy": _accuracy(own[:, 0] - own[:, 1]),
                        "longer_accuracy": _accuracy(own[:, 2] - own[:, 3]),
                    }
                )
            low = high
        return {"by_length": table}


def _right(difference: float) -> float:
    """1 where the first is larger, 0.5 where both are equal."""
    return float(difference > 0) + 0.5 * (difference == 0)


def _accuracy(difference: Array) -> float:
    """The share of differences above 0; those of exactly 0 count half."""
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _calibration_error(difference: Array) -> float:
    """Expected calibration error of the more probable side."""
    confidence = 1 / (1 + np.exp(-np.minimum(np.abs(difference), 700)))
    right = (difference > 0) + 0.5 * (difference == 0)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float((confidence[bins == b] - right[bins == b]).sum())) for b in np.unique(bins)]
    return sum(gaps) / len(difference)
