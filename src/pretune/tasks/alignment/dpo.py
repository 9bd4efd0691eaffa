"""`dpo`: a model that replies learns which of two replies is better, without a reward model.

Direct preference optimization (Rafailov et al. 2023) and what came after it: one task, whose
option `loss` names the formula (`preference_losses.py`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, ValidationInfo, model_validator
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch, Skipped
from pretune.data.readers.conversations import COMPLETION
from pretune.data.readers.preferences import (
    CHOSEN,
    LABEL,
    REJECTED,
    is_wanted,
    label_of,
    with_preferences,
)
from pretune.data.records import Records
from pretune.decoding.continuations import Prompt
from pretune.decoding.decoding import Decoding
from pretune.errors import DataError, WrongValueError
from pretune.tasks.alignment.aligned import (
    JUDGED,
    Aligned,
    AlignedOptions,
    JudgedReply,
    WrittenReplies,
    sums_of_replies,
)
from pretune.tasks.alignment.pairs import ReplyTokens, reply_tokens, useless_pair
from pretune.tasks.alignment.preference_losses import (
    PAIR_LOSSES,
    READ_BY,
    WITHOUT_REFERENCE,
    LossSettings,
    PairScores,
    kto,
)
from pretune.tasks.base import (
    REFERENCE,
    ComparesWithReference,
    Loss,
    Metrics,
    is_from_checkpoint,
)
from pretune.tasks.dialogue.dialogue import InstructOptions
from pretune.tasks.dialogue.layouts import TemplateLayout
from pretune.tasks.dialogue.replies import ReplyOutputs, ReplyPrediction
from pretune.tasks.grading import Decision, EachLoss, Grade
from pretune.tasks.losses import IGNORED, NEXT
from pretune.tokenizers.tokenizer import Tokenizer

#: Target of a feature of `kto`: whether its reply is wanted.
WANTED = "wanted"
#: Target by token: the tokens that an evaluation replies to, from the feature's first place on, and
#: then `IGNORED`. They may be others than those before the given replies, which get other room.
HISTORY = "history"

LossName = Literal[
    "sigmoid",
    "sigmoid_norm",
    "ipo",
    "ipo_sum",
    "hinge",
    "robust",
    "apo_zero",
    "sft",
    "orpo",
    "simpo",
    "cpo",
    "kto",
]


class DpoOptions(AlignedOptions):
    """Options of `dpo`."""

    name: Literal["dpo"] = Field(  # type: ignore[assignment]
        "dpo", description="Replies, learned from which of two is better."
    )
    loss: LossName = Field(
        "sigmoid",
        description="sigmoid (DPO; with label_smoothing cDPO), sigmoid_norm (DPO a token), ipo (a "
        "token; ipo_sum: whole replies), hinge (SLiC), robust, apo_zero, sft, orpo, simpo, cpo, or "
        "kto (replies that are wanted or not, without pairs).",
    )
    beta: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="How strongly the model is tied to the reference (for orpo: the weight of the "
        "odds; for simpo: the scale of the margin, usually 2).",
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Add this times the cross-entropy of the chosen (kto: a wanted) reply, a "
        "token, which keeps it likely.",
    )
    samples: int = Field(
        100,
        ge=0,
        description="How many prompts, spread over the data, an evaluation replies to; 0: none, "
        "and training has no reference beside the model in memory.",
    )
    gamma: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="simpo: the margin that is aimed at."
    )
    desirable_weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="kto: the weight of wanted replies."
    )
    undesirable_weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="kto: the weight of unwanted replies."
    )

    @model_validator(mode="after")
    def _is_read(self, info: ValidationInfo) -> Self:
        """Refuse options that would do nothing; checkpoints that have some still open."""
        if is_from_checkpoint(info):
            return self
        if self.z_loss:
            raise WrongValueError(
                "z_loss belongs to the cross-entropy, and no loss of dpo reads it"
            )
        for name, losses in READ_BY.items():
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and self.loss not in losses:
                raise WrongValueError(
                    f"the loss {self.loss} does not read {name}, only {', '.join(losses)}"
                )
        if self.label_smoothing >= 0.5:
            raise WrongValueError(
                "label_smoothing must be below 0.5: more would turn the pairs round"
            )
        return self

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.reference is None and self.loss not in WITHOUT_REFERENCE:
            raise WrongValueError(f"the loss {self.loss} needs a reference: start, or a folder")
        if self.judge is not None and not self.samples:
            raise WrongValueError(
                "judge scores the replies of evaluations: samples must be above 0"
            )
        return self

    @property
    def settings(self) -> LossSettings:
        """The numbers in the loss's formula."""
        return LossSettings(
            self.beta,
            self.label_smoothing,
            self.gamma,
            self.desirable_weight,
            self.undesirable_weight,
        )


@dataclass(frozen=True)
class SequenceScores:
    """How probable a model finds the replies of a batch, two sequences a feature.

    Attributes:
        log_probs: `[2B]` of each reply: the sum over its tokens, in nats, with its graph.
        tokens: `[2B]` the number of its tokens.
        judged: what the model wrote in an evaluation, by the place of its feature.
    """

    log_probs: Tensor
    tokens: Tensor
    judged: Mapping[int, JudgedReply] = field(default_factory=dict)


class Dpo(Aligned, ComparesWithReference):
    """Learns from pairs of replies; used like a model trained by `instruct`.

    The two replies of a record are two sequences of one feature, and only they are scored.
    Sequences are packed, so no padding takes part in a log-probability, and the end of a reply is
    a token that is learned. `kto` has in the place of the second reply another record's, by which
    it estimates how far the model is from the reference.
    """

    name: ClassVar[str] = "dpo"
    options_type: ClassVar[type[InstructOptions]] = DpoOptions
    metric_options: ClassVar[tuple[str, ...]] = ("judge", "max_new_tokens")
    options: DpoOptions

    def __init__(self, options: DpoOptions) -> None:
        super().__init__(options)
        self.loss_adds_up = not self.unpaired

    # Preprocessor

    @property
    def unpaired(self) -> bool:
        """Whether replies are learned one by one."""
        return self.options.loss == "kto"

    @property
    @override
    def targets(self) -> dict[str, str]:
        if self.unpaired:
            return {COMPLETION: "the reply", LABEL: "whether it is wanted: true or false"}
        return {CHOSEN: "the better reply", REJECTED: "the worse reply"}

    @override
    def adapted(self, records: Records, columns: Mapping[str, str], with_targets: bool) -> Records:
        """Bring any form of preferences to one; a pair is two records for `kto`."""
        if not with_targets:
            return super().adapted(records, columns, with_targets)
        adapted = self._preferences(records.mapped(columns, ()))
        self.check_compared(adapted)
        return adapted

    def _preferences(self, records: Records) -> Records:
        if self.unpaired and COMPLETION in records.columns:
            return with_preferences(records, [COMPLETION])
        records = with_preferences(records, [CHOSEN, REJECTED])
        if not self.unpaired:
            return records
        # Both replies of a pair, one after the other.
        doubled = records.take([row for row in range(len(records)) for _ in range(2)])
        rows = [
            {**record, COMPLETION: record[REJECTED if i % 2 else CHOSEN], LABEL: i % 2 == 0}
            for i, record in enumerate(doubled.rows)
        ]
        return replace(doubled, rows=rows, columns=(*records.columns, COMPLETION, LABEL))

    @override
    def texts(self, records: Records) -> Iterator[str]:
        yield from super().texts(records)
        for record in records.rows:
            yield from (record[column] for column in self.targets if column != LABEL)

    @override
    def fit(self, records: Records) -> None:
        """Check the labels.

        Raises:
            DataError: a label makes no sense, or all are the same.
        """
        if not self.unpaired:
            return
        labels = {label_of(records, row) for row in range(len(records))}
        if len(labels) == 1:
            raise DataError(
                f"{records.origin}, column '{records.in_data(LABEL)}': every reply is "
                + ("wanted" if labels == {True} else "unwanted"),
                "kto compares both: give replies of either kind.",
            )

    @override
    def _learned(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, evaluation: bool
    ) -> Iterator[Feature | Skipped]:
        layout = self.layout(tokenizer)
        for row in rows:
            record = records.rows[row]
            replies = [record[COMPLETION]] if self.unpaired else [record[CHOSEN], record[REJECTED]]
            if (why := useless_pair(replies)) is not None:
                yield Skipped(row, why)
                continue
            if self.unpaired:  # another record's reply, the next one's that has any
                replies.append(_other_reply(records, row))
            with self._naming(records, row):
                read = reply_tokens(
                    layout, self.messages(records, row), replies, self.options.max_length + 1
                )
            if not all(read.replies):
                yield Skipped(row, "no room for a reply (task.max_length)")
            elif not self.unpaired and read.replies[0] == read.replies[1]:
                yield Skipped(row, "the replies differ only where they were cut")
            else:
                feature = _pair_feature(read, row)
                targets = dict(feature.targets)
                if self.unpaired:
                    targets[WANTED] = label_of(records, row)
                if evaluation and self.options.samples:
                    targets[HISTORY] = self._history(records, row, layout, len(feature.tokens))
                yield replace(feature, targets=targets)

    def _history(self, records: Records, row: int, layout: TemplateLayout, size: int) -> list[int]:
        """The target `HISTORY` of a feature of `size` tokens."""
        history: list[int] = []
        if self.options.is_sample(row, len(records)):
            room = min(self.options.room, size)
            history = layout.fitted(self.messages(records, row), room).ids[:size]
        return [*history, *[IGNORED] * (size - len(history))]

    # Head

    @override
    def forward(self, model: nn.Module, batch: PackedBatch, **more: Any) -> Any:
        """Score both replies; without targets there is nothing to score."""
        labels = batch.targets.get(NEXT)
        if labels is None:
            return ReplyOutputs(None, None)
        scores = self.scores(model, batch, labels)
        sums = sums_of_replies(scores.log_probs, scores)
        lengths = scores.select.layout.lengths
        return SequenceScores(sums, torch.tensor(lengths, dtype=sums.dtype, device=sums.device))

    @override
    def loss(self, outputs: Any, batch: PackedBatch) -> Loss:
        """Compute the loss that the option names, counted in pairs; for kto in replies."""
        pairs = self._pairs(outputs, batch)
        each = self._losses(pairs, batch)
        return Loss(each.sum(), len(each), self._loss_parts(pairs, batch))

    def _losses(self, pairs: PairScores, batch: PackedBatch) -> Tensor:
        """Compute `[B]` losses, in the order of the batch."""
        how, weight = self.options.settings, self.options.sft_weight
        if self.unpaired:
            each = kto(pairs.chosen_ratio, batch.targets[WANTED], _baseline(pairs), how)
        else:
            each = PAIR_LOSSES[self.options.loss](pairs, how)
        if weight:
            likely = PAIR_LOSSES["sft"](pairs, how)
            each = each + weight * (likely * batch.targets[WANTED] if self.unpaired else likely)
        return each

    def _loss_parts(self, pairs: PairScores, batch: PackedBatch) -> dict[str, Tensor]:
        """Return the sums over the batch of figures that need no more than the loss.

        For kto those that are means over all replies; the others are of some of them alone.
        """
        chosen, rejected = (
            self.options.beta * ratio.detach()
            for ratio in (pairs.chosen_ratio, pairs.rejected_ratio)
        )
        if self.unpaired:
            right = (chosen > 0) == batch.targets[WANTED]
            return {"reward_accuracy": right.sum(), "baseline": len(right) * _baseline(pairs)}
        each = {
            "reward_accuracy": chosen > rejected,
            "reward_margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "chosen_log_prob": pairs.chosen.detach(),
            "rejected_log_prob": pairs.rejected.detach(),
        }
        return {name: values.sum() for name, values in each.items()}

    def _pairs(self, outputs: SequenceScores, batch: PackedBatch) -> PairScores:
        (chosen, rejected), (own, other) = (
            values.view(-1, 2).unbind(1) for values in (outputs.log_probs, outputs.tokens)
        )
        known = batch.targets.get(REFERENCE)
        if known is None:
            if self.options.reference is not None:
                raise ValueError("the features have no scores of the reference")
            known = torch.zeros(len(chosen), 2, device=chosen.device)
        return PairScores(chosen, rejected, own, other, known[:, 0], known[:, 1])

    # The reference

    @override
    def reference_scores(self, model: nn.Module, batch: PackedBatch) -> Tensor:
        """Return `[B, 2]`: the log-probabilities of both replies."""
        log_probs: Tensor = self.forward(model, batch).log_probs
        return log_probs.detach().view(-1, 2)

    # Answers: in an evaluation, which of the replies the model prefers, and what it writes itself.

    @override
    def write(self, model: Any, outputs: Any, batch: PackedBatch) -> Any:
        if HISTORY not in batch.targets:
            return super().write(model, outputs, batch)
        histories = _histories(batch)
        numbers, options = batch.index.tolist(), self.options
        # Other random numbers for each record, also where two have the same prompt.
        prompts = [
            Prompt((), ids, salt=zlib.crc32(str((numbers[place], ids)).encode()))
            for place, ids in histories.items()
        ]
        # From the whole distribution, which is what the KL is about.
        decoding = Decoding(
            max_new_tokens=min(options.max_new_tokens, options.max_length - options.room),
            temperature=self.draws_at,
            top_p=1.0,
            seed=options.seed,
        )
        device = batch.tokens.device
        written = self.written(model, device, prompts, decoding)
        replies = dict(zip(histories, written, strict=True))
        return replace(outputs, judged=self.judged(model, device, histories, replies))

    @override
    def predict(self, outputs: Any, batch: PackedBatch) -> list[Any]:
        if isinstance(outputs, ReplyOutputs):
            return super().predict(outputs, batch)
        measured = enumerate(self.measured(outputs, batch).tolist())
        return [(tuple(row), outputs.judged.get(place)) for place, row in measured]

    def measured(self, outputs: SequenceScores, batch: PackedBatch) -> Tensor:
        """Return `[B, 4]`: of both replies the implicit reward and the log-probability."""
        pairs, beta = self._pairs(outputs, batch), self.options.beta
        columns = beta * pairs.chosen_ratio, pairs.chosen, beta * pairs.rejected_ratio
        return torch.stack([*columns, pairs.rejected], 1).detach().double().cpu()

    @override
    def combine(self, parts: Sequence[Any], record: Mapping[str, Any]) -> ReplyPrediction:
        if parts and not isinstance(parts[0], tuple):
            return super().combine(parts, record)
        measured, judged = parts[0] if parts else ((0.0,) * 4, None)
        reward, log_prob, other, other_log_prob = measured
        if self.unpaired:
            return MeasuredReply(record[COMPLETION], log_prob, 0, measured, judged)
        if reward > other:
            return MeasuredReply(record[CHOSEN], log_prob, 0, measured, judged)
        return MeasuredReply(record[REJECTED], other_log_prob, 0, measured, judged)

    # Scorer

    @override
    def each_loss(self, outputs: Any, batch: PackedBatch) -> EachLoss:
        each = self._losses(self._pairs(outputs, batch), batch).detach()
        return EachLoss(each, torch.ones_like(each, dtype=torch.int64))

    @override
    def grader(self, records: Records) -> Callable[[ReplyPrediction, int], Grade]:
        def grade(answer: ReplyPrediction, row: int) -> Grade:
            measured: tuple[float, ...] = (0.0,) * 4
            judged: list[JudgedReply] = []
            if isinstance(answer, MeasuredReply):
                measured = answer.measured
                judged = [] if answer.judged is None else [answer.judged]
            # Of records that are not among the `samples`, zeros.
            written = self.reply_counts([records.rows[row]] * len(judged), judged).sum(0)
            wanted = np.array([label_of(records, row)]) if self.unpaired else None
            (counts,) = preference_counts(np.array([measured]), wanted)
            # How sure the model is, by the implicit rewards (Rafailov et al. 2023, equation 6).
            against = 0.0 if self.unpaired else measured[2]
            chance = 1 / (1 + math.exp(-min(abs(measured[0] - against), 700)))
            right = bool(counts[0])
            if wanted is not None:
                words = ("unwanted", "wanted")
                truth, given = words[wanted[0]], words[measured[0] > 0]
            else:
                truth, given = records.rows[row][CHOSEN], answer.reply
            decisions = (Decision(chance, right),)
            numbers = (*counts.tolist(), *written.tolist())
            return Grade(truth, given, right=right, decisions=decisions, counts=numbers)

        return grade

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        figures = {**super().figures(sums), **preference_figures(sums[..., 2:10])}
        return {**figures, **self.reply_figures(sums[..., 10:])}

    @override
    def reply_counts(
        self, rows: Sequence[Mapping[str, Any]], replies: Sequence[JudgedReply]
    ) -> Array:
        """Also whether the judge prefers a reply to the wanted one, and whether there is one."""
        counts = super().reply_counts(rows, replies)
        wanted = [(i, text) for i, row in enumerate(rows) if (text := self._wanted(row))]
        given = self.scores_by_judge([rows[i] for i, _ in wanted], [text for _, text in wanted])
        duels = np.zeros((len(counts), 2))
        for (i, _), score in zip(wanted, given, strict=True):
            own = counts[i, JUDGED]
            duels[i] = (own > score) + 0.5 * (own == score), 1
        return np.column_stack([duels, counts])

    def _wanted(self, row: Mapping[str, Any]) -> str | None:
        """Return the reply of a record that is better than another, or wanted; None: it has none.

        Blanks around it do not count, as in the replies that a model writes.
        """
        if self.unpaired:
            return str(row[COMPLETION]).strip() if is_wanted(row[LABEL]) else None
        return str(row[CHOSEN]).strip()

    @override
    def reply_figures(self, sums: Array) -> dict[str, Array]:
        if not self.writes_in_evaluations:
            return {}
        figures = super().reply_figures(sums[..., 2:])
        if self.judge is not None:
            figures["win_rate"] = sums[..., 0] / np.maximum(sums[..., 1], 1)
        return figures

    @override
    def metrics(self, features: Features | None = None) -> PreferenceMetrics:  # type: ignore[override]
        """Implicit rewards, the log-probabilities of both replies apart, and written replies."""
        return PreferenceMetrics(self, features)


@dataclass(frozen=True)
class MeasuredReply(ReplyPrediction):
    """The reply that a model prefers.

    Attributes:
        measured: its pair's row of `Dpo.measured`.
        judged: what the model wrote to its prompt; None where it was not asked to.
    """

    measured: tuple[float, ...] = (0.0,) * 4
    judged: JudgedReply | None = None


def _baseline(pairs: PairScores) -> Tensor:
    """Estimate by the replies of other records how far the model is from the reference (`kto`).

    That takes a whole batch. Where nothing is learned it is 0, so that the loss of a reply is its
    own, whatever is evaluated beside it.
    """
    mean = pairs.rejected_ratio.detach().mean().clamp(min=0)
    return mean if pairs.chosen.requires_grad else torch.zeros_like(mean)


def _histories(batch: PackedBatch) -> dict[int, list[int]]:
    """Return the tokens that are replied to, by the place of their feature."""
    ids, starts = batch.targets[HISTORY].tolist(), [*batch.layout.starts[::2], batch.num_tokens]
    histories = {}
    for place, (start, end) in enumerate(pairwise(starts)):
        if own := [token for token in ids[start:end] if token != IGNORED]:
            histories[place] = own
    return histories


def _other_reply(records: Records, row: int) -> str:
    """The reply of another record: of the next one with another, or its own if there is none."""
    own = records.rows[row][COMPLETION]
    others = (records.rows[(row + i) % len(records)] for i in range(1, len(records)))
    texts = (record[COMPLETION] for record in others)
    other: str = next((text for text in texts if text.strip() and text != own), own)
    return other


def _pair_feature(read: ReplyTokens, row: int) -> Feature:
    """Both sequences end to end; of each the reply is predicted, with its end."""
    tokens: list[int] = []
    labels: list[int] = []
    lengths = []
    for reply in read.replies:
        whole = [*read.prompt, *reply]
        tokens += whole[:-1]
        labels += [*[IGNORED] * (len(read.prompt) - 1), *reply]
        lengths.append(len(whole) - 1)
    return Feature(
        tokens,
        targets={NEXT: labels},
        record=row,
        truncated=read.truncated,
        choices=lengths,
    )


def preference_counts(measured: Array, wanted: Array | None) -> Array:
    """Return `[N, 8]` numbers of which `preference_figures` takes sums.

    Args:
        measured: `[N, 4]`, as `Dpo.measured`.
        wanted: `[N]` bool, which replies are wanted; None for pairs.

    Returns:
        whether the answer is right, and 1; of the wanted reply the implicit reward, the
        log-probability and 1; the same of the unwanted reply.
    """
    ones = np.ones((len(measured), 1))
    first, second = (np.concatenate([measured[:, i : i + 2], ones], 1) for i in (0, 2))
    if wanted is None:
        right = measured[:, 0] > measured[:, 2]
    else:
        right = (measured[:, 0] > 0) == wanted
        own = wanted[:, None].astype(np.float64)
        first, second = first * own, first * (1 - own)
    return np.concatenate([right[:, None].astype(np.float64), ones, first, second], 1)


def preference_figures(sums: Array) -> dict[str, Array]:
    """Compute figures, by name, from sums `[..., 8]` of `preference_counts`."""
    right, count, reward, log_prob, first, other, other_log_prob, second = np.moveaxis(sums, -1, 0)
    first, second = np.maximum(first, 1), np.maximum(second, 1)
    return {
        "reward_accuracy": right / np.maximum(count, 1),
        "reward_margin": reward / first - other / second,
        "chosen_reward": reward / first,
        "rejected_reward": other / second,
        "chosen_log_prob": log_prob / first,
        "rejected_log_prob": other_log_prob / second,
    }


class PreferenceMetrics(Metrics):
    """Figures about implicit rewards, means over the pairs.

    `reward_accuracy`: how often the chosen reply has the higher implicit reward; `reward_margin`:
    by how much; `chosen_reward`, `rejected_reward`, `chosen_log_prob`, `rejected_log_prob`: apart,
    so that it is seen where both fall (Pal et al. 2024, "Smaug"). For `kto` chosen and rejected
    are the wanted and the unwanted replies, and right is a reward above or below 0.

    Then those of `WrittenReplies`, and with a judge `win_rate`: how often it scores what the model
    writes above the chosen (wanted) reply; ties count half.
    """

    def __init__(self, task: Dpo, features: Features | None) -> None:
        self._task = task
        self._sums = np.zeros(8)
        self._replies = WrittenReplies(task, features)

    @override
    def update(self, outputs: SequenceScores, batch: PackedBatch) -> None:
        wanted = batch.targets[WANTED].cpu().numpy() if self._task.unpaired else None
        measured = self._task.measured(outputs, batch).numpy()
        self._sums += preference_counts(measured, wanted).sum(0)
        self._replies.update(outputs.judged, batch)

    @override
    def merge(self, other: Self) -> None:
        self._sums += other._sums
        self._replies.merge(other._replies)

    def __getstate__(self) -> dict[str, Any]:
        # What another process merges: the task's models and functions stay here.
        return {"_sums": self._sums, "_replies": self._replies}

    @override
    def result(self) -> dict[str, float]:
        figures = preference_figures(self._sums)
        return {name: float(value) for name, value in figures.items()} | self._replies.figures()

    @override
    def details(self) -> dict[str, Any]:
        return self._replies.details()
