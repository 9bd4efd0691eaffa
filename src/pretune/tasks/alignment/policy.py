"""What `ppo`, `grpo` and `rloo` have in common: replies that are written, scored and learned from.

The data are prompts. The model (the policy) replies to them by sampling at `temperature`, and from
nothing but the whole distribution; the same temperature divides the logits wherever a
log-probability is meant here. The end of a reply is an action as every other token.
"""

from __future__ import annotations

import math
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, ValidationInfo, model_validator
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, FeatureSet, PackedBatch, Skipped
from pretune.data.readers.conversations import ALPACA, COMPLETION, MESSAGES
from pretune.data.readers.preferences import check_prompt
from pretune.data.records import Records
from pretune.decoding.continuations import Prompt
from pretune.decoding.decoding import Decoding
from pretune.errors import WrongValueError
from pretune.tasks.alignment.aligned import (
    ActionScores,
    Aligned,
    AlignedOptions,
    JudgedReply,
    WrittenReplies,
    has_ended,
    next_tokens,
)
from pretune.tasks.alignment.policy_losses import k3, kl_estimates, per_reply
from pretune.tasks.alignment.reward_spec import RewardPart, RewardSpec, names_of
from pretune.tasks.base import (
    REFERENCE,
    Loss,
    MakesExperience,
    Metrics,
    RolloutPlan,
    is_from_checkpoint,
)
from pretune.tasks.dialogue.dialogue import InstructOptions
from pretune.tasks.dialogue.replies import ASKED, ReplyOutputs, ReplyPrediction
from pretune.tasks.grading import EachLoss, Grade
from pretune.tasks.losses import IGNORED, NEXT
from pretune.tokenizers.tokenizer import Tokenizer

#: Targets of each action: its log-probability when it was written, and its advantage.
OLD, ADVANTAGE = "old", "advantage"
#: Target of a reply: figures of its whole rollout, in the order of `rollout_figures`.
ROLLOUT = "rollout"


class PolicyOptions(AlignedOptions):
    """Options of tasks that learn from rewards for what they write."""

    temperature: float = Field(
        1.0, gt=0, le=1000, description="Of the replies, and of all log-probabilities."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="1: a policy learns from draws of its whole distribution."
    )
    samples: int = Field(
        100, ge=1, description="How many prompts, spread over the data, an evaluation replies to."
    )
    reward: RewardSpec | None = Field(
        None,
        description="What replies are worth: {run: FOLDER} (a reward model, or a classifier with "
        "label), MODULE:FUNCTION, {exact: COLUMN}, {match: REGEX}, {length: N}, or a list.",
    )
    rollout: int = Field(64, ge=1, description="Prompts of a rollout.")
    group: int = Field(1, ge=1, description="Replies to each of them.")
    passes: int = Field(1, ge=1, description="How often the replies of a rollout are trained on.")
    beta: float = Field(
        0.05,
        ge=0,
        allow_inf_nan=False,
        description="How strongly the model is tied to the reference: the weight of the KL.",
    )
    clip: float = Field(
        0.2, gt=0, allow_inf_nan=False, description="How far the ratio of probabilities counts."
    )
    end_penalty: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Subtracted from the reward of a reply that does not end by itself.",
    )
    max_kl: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Leave the rest of a rollout's passes when the model is farther than this from "
        "the one that wrote it (nats a token).",
    )

    @model_validator(mode="after")
    def _makes_sense(self, info: ValidationInfo) -> Self:
        if (self.top_k, self.top_p, self.repetition_penalty) != (0, 1.0, 1.0):
            raise WrongValueError(
                "top_k, top_p and repetition_penalty must stay off: what they keep from being "
                "written would be trained as if it could be"
            )
        if self.label_smoothing or self.z_loss:
            raise WrongValueError(
                "label_smoothing and z_loss belong to the cross-entropy, which is not trained here"
            )
        if self.reference is None and self.beta:
            raise WrongValueError("beta needs a reference: start, or a folder; or set beta to 0")
        # A checkpoint of before this was refused still opens.
        if "reward_se" in self.part_names and not is_from_checkpoint(info):
            raise WrongValueError(
                "reward: a part called 'se' would hide the figure reward_se, the standard error; "
                "give it another name, as {run: se, name: quality}"
            )
        if self.max_new_tokens >= self.max_length:
            raise WrongValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt in "
                f"max_length={self.max_length}: set task.max_new_tokens below it, or "
                "task.max_length higher"
            )
        return self

    @property
    def part_names(self) -> list[str]:
        """What logs call the parts of the reward; nothing where there is only one."""
        parts = self.reward or ()
        return [f"reward_{name}" for name in names_of(parts)] if len(parts) > 1 else []

    @property
    @override
    def room(self) -> int:
        # A reply of any length fits: no prompt leaves the model's context while it is written.
        return self.max_length - self.max_new_tokens


@dataclass(frozen=True)
class Attempt:
    """A reply that was written in training, with its reward.

    Attributes:
        prompt: the tokens before it.
        tokens: its n tokens, the end included.
        record: the number of the prompt's record.
        reward: with the penalty for a missing end.
        ended: whether it ended by itself.
        old: `[n]` float32 log-probabilities under the model that wrote it.
        reference: `[n]` the same under the reference; a copy of `old` where there is none.
        values: `[n]` the value of the state before each token; zeros without a value head.
        parts: the summands of the reward, where there are several, as `PolicyOptions.part_names`.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    record: int
    reward: float
    ended: bool
    old: Array
    reference: Array
    values: Array
    parts: tuple[float, ...] = ()

    @property
    def kl(self) -> float:
        """The sum of log(policy / reference) over its tokens."""
        return float((self.old.astype(np.float64) - self.reference).sum())


@dataclass(frozen=True)
class JudgedOutputs(ReplyOutputs):
    """Written replies, compared with the reference; by place in the batch."""

    judged: Mapping[int, JudgedReply] = field(default_factory=dict)


class Policy(Aligned, MakesExperience):
    """A model that learns from rewards for its own replies; used as one trained by `instruct`."""

    best_by: ClassVar[str] = "reward"
    metric_options: ClassVar[tuple[str, ...]] = (
        *("reward", "end_penalty", "judge", "temperature", "max_new_tokens"),
    )
    options_type: ClassVar[type[InstructOptions]] = PolicyOptions
    options: PolicyOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.beta = options.beta

    # What the methods differ in.

    @abstractmethod
    def advantages(self, attempts: Sequence[Attempt]) -> dict[str, Array]:
        """Return targets `[actions]`, float32, by name: `ADVANTAGE`, perhaps more."""

    @abstractmethod
    def objective(self, scores: ActionScores, targets: Mapping[str, Tensor]) -> Loss:
        """Compute the loss of the R actions of a batch.

        Args:
            scores: of the actions.
            targets: `[R]` of each action, by name.
        """

    # Preprocessor: prompts

    @override
    def adapted(self, records: Records, columns: Mapping[str, str], with_targets: bool) -> Records:
        # Replies in the data are not learned; a reward may compare with them.
        records = records.mapped(columns, ())
        adapted = super().adapted(records, {}, with_targets=False)
        given = [name for name in (ALPACA[2], COMPLETION) if name in records.columns]
        rows = [
            {**row, **{name: own.get(name) for name in given}}
            for row, own in zip(adapted.rows, records.rows, strict=True)
        ]
        adapted = replace(adapted, rows=rows, columns=(*adapted.columns, *given))
        if with_targets:
            self.check_compared(adapted)
            for number, row in enumerate(rows):
                messages = row[MESSAGES]
                check_prompt(adapted, number, messages and self.unanswered(messages))
        return adapted

    @override
    def _learned(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, evaluation: bool
    ) -> Iterator[Feature | Skipped]:
        """The prompts; in an evaluation `samples` of them are replied to."""
        for feature in self.features(records, rows, tokenizer, with_targets=False):
            if evaluation and isinstance(feature, Feature):
                asked = self.options.is_sample(feature.record, len(records))
                targets = {ASKED: len(feature.tokens) if asked else 0}
                feature = replace(feature, targets=targets)
            yield feature

    @property
    @override
    def scored_by(self) -> Sequence[RewardPart]:
        return (*(self.options.reward or ()), *super().scored_by)

    # Head

    @override
    def forward(self, model: nn.Module, batch: PackedBatch, **more: Any) -> Any:
        """Score the actions; a batch of prompts has none."""
        labels = batch.targets.get(NEXT)
        if labels is None:
            return ReplyOutputs(None, None)
        return self.scores(model, batch, labels)

    @property
    @override
    def draws_at(self) -> float:
        return self.options.temperature

    @override
    def loss(self, outputs: Any, batch: PackedBatch) -> Loss:
        """Compute the method's loss; the parts that describe the rollout are those of all of it."""
        if isinstance(outputs, ReplyOutputs):  # an evaluation: see `PolicyMetrics`
            return Loss(torch.zeros((), device=batch.tokens.device), 0)
        whole = len(batch.tokens)
        rows = outputs.select.rows
        targets = {name: t[rows] for name, t in batch.targets.items() if len(t) == whole}
        loss = self.objective(outputs, targets)
        rollout = batch.targets[ROLLOUT].view(batch.num_sequences, -1)[0]
        # A checkpoint from before there were parts may hold a rollout without theirs.
        names = (*self.figure_names, *self.options.part_names)
        figures = dict(zip(names, loss.count * rollout, strict=False))
        return Loss(loss.sum, loss.count, {**loss.parts, **figures})

    def changes(self, scores: ActionScores, old: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Return parts of the loss: how far the model is from the one that wrote the replies.

        Args:
            scores: of the actions.
            old: `[R]` their log-probabilities then.
            weights: `[R]` of each action in the sums, which the count of the loss divides.
        """
        log_probs = scores.log_probs.detach()
        ratio = (log_probs - old).exp()
        outside = ((ratio - 1).abs() > self.options.clip).to(ratio.dtype)
        return {
            "ratio": (weights * ratio).sum(),
            "clip_fraction": (weights * outside).sum(),
            "step_kl": (weights * k3(old - log_probs)).sum(),
            # An estimate at what was written: of -log p under the model as it is now.
            "entropy": -(weights * ratio * log_probs).sum(),
        }

    # Experience

    @property
    @override
    def reward(self) -> Any:
        return self.options.reward

    @property
    @override
    def plan(self) -> RolloutPlan:
        return RolloutPlan(self.options.rollout, self.options.group, self.options.passes)

    @override
    def stops(self, means: Mapping[str, float]) -> bool:
        return self.options.max_kl is not None and means["step_kl"] > self.options.max_kl

    @override
    def attempt(self, model: Any, prompts: FeatureSet, which: Array, seed: int) -> list[Attempt]:
        # Write: other random numbers for each prompt, also where two are equal.
        histories = [_tokens(prompts, int(number)) for number in which]
        asked = [
            Prompt((), ids, salt=zlib.crc32(str((int(number), ids)).encode()))
            for number, ids in zip(which, histories, strict=True)
        ]
        decoding = Decoding(
            max_new_tokens=self.options.max_new_tokens,
            temperature=self.options.temperature,
            top_p=1.0,
            samples=self.options.group,
            seed=seed,
        )
        device = next(model.parameters()).device
        written = self.written(model, device, asked, decoding)
        # Score: by the reward, the model that wrote them, and the reference.
        copies = [number for number in which.tolist() for _ in range(self.options.group)]
        records = [int(prompts.records[number]) for number in copies]
        rewards = self.rewards(
            [prompts.rows[record] for record in records],
            [reply.text.strip() for reply in written],
            [has_ended(reply) for reply in written],
        )
        whole = [(_tokens(prompts, n), w.tokens) for n, w in zip(copies, written, strict=True)]
        scored = self.scored(model, device, whole)
        return [
            Attempt(tuple(prompt), tokens, record, reward, has_ended(reply), *scores, tuple(parts))
            for (prompt, tokens), record, (reward, *parts), reply, scores in zip(
                whole, records, rewards.tolist(), written, scored, strict=True
            )
        ]

    def rewards(
        self, rows: Sequence[Mapping[str, Any]], replies: Sequence[str], ended: Sequence[bool]
    ) -> Array:
        """Return `[R, 1 + P]`: the reward of each reply, and its P parts (`part_names`).

        Args:
            rows: the records of the prompts.
            replies: a text for each of the R replies.
            ended: whether it ended by itself.
        """
        if self.rewarding is None:
            raise ValueError("no reward function was set")
        parts = self.rewarding.parts([self.asked(row)[-1] for row in rows], replies, rows)
        penalty = self.options.end_penalty * ~np.array(ended, dtype=bool)
        rewards = np.array(self.rewarding.total(parts, replies)) - penalty
        several = [*parts.values()][: len(self.options.part_names)]
        return np.column_stack([rewards, *several])

    @override
    def experience(self, attempts: Sequence[Attempt]) -> FeatureSet:
        features = FeatureSet.of(
            Feature(
                [*attempt.prompt, *attempt.tokens[:-1]],
                targets={NEXT: next_tokens(attempt.prompt, attempt.tokens)},
                record=attempt.record,
            )
            for attempt in attempts
        )
        # By action, and 0 where the prompt is read.
        actions = features.targets[NEXT] != IGNORED
        given = {
            OLD: np.concatenate([attempt.old for attempt in attempts]),
            REFERENCE: np.concatenate([attempt.reference for attempt in attempts]),
            **self.advantages(attempts),
        }
        targets = dict(features.targets)
        for name, values in given.items():
            targets[name] = np.zeros(len(actions), dtype=np.float32)
            targets[name][actions] = values
        # The figures of the whole rollout, for logs: at each reply the same.
        parts = np.array([attempt.parts for attempt in attempts]).mean(0)
        figures = {
            **self.rollout_figures(attempts, given),
            **dict(zip(self.options.part_names, parts.tolist(), strict=True)),
        }
        row = np.array([list(figures.values())], dtype=np.float32)
        targets[ROLLOUT] = np.repeat(row, len(attempts), axis=0)
        self.follow(attempts, figures)
        return FeatureSet(features.tokens, features.starts, None, targets, features.records)

    #: The names of `rollout_figures`.
    figure_names: ClassVar[tuple[str, ...]] = (
        *("reward", "kl", "kl_k2", "kl_k3", "reply_tokens", "share_without_end"),
    )

    def rollout_figures(
        self, attempts: Sequence[Attempt], targets: Mapping[str, Array]
    ) -> dict[str, float]:
        """Return figures of a rollout by name: means over replies; KL of a whole reply."""
        lengths = np.array([len(attempt.tokens) for attempt in attempts])
        ratio = targets[OLD].astype(np.float64) - targets[REFERENCE]
        kl = [float(per_reply(k, lengths, np.sum).mean()) for k in kl_estimates(ratio)]
        values = (
            float(np.mean([attempt.reward for attempt in attempts])),
            *kl,
            float(lengths.mean()),
            float(np.mean([not attempt.ended for attempt in attempts])),
        )
        return dict(zip(Policy.figure_names, values, strict=True))

    def follow(self, attempts: Sequence[Attempt], figures: Mapping[str, float]) -> None:
        """Choose `beta` of the next rollout; by default it stays."""

    @override
    def rehearsal(self, prompts: FeatureSet) -> PackedBatch:
        ids = tuple(_tokens(prompts, 0))
        zeros = np.zeros(1, dtype=np.float32)
        parts = (0.0,) * len(self.options.part_names)
        attempt = Attempt(ids, ids[:1], 0, 0.0, True, zeros, zeros, zeros, parts)
        beta = self.beta
        batch = self.experience([attempt] * self.options.group).batch(np.array([0]))
        self.beta = beta
        return batch

    # Answers and Scorer

    @override
    def write(self, model: Any, outputs: Any, batch: PackedBatch) -> Any:
        """Write the replies; in an evaluation also compare their probabilities with the
        reference's."""
        if ASKED in batch.targets and not bool(batch.targets[ASKED].any()):
            return outputs
        outputs = super().write(model, outputs, batch)
        if ASKED not in batch.targets:
            return outputs
        tokens, starts, lengths = batch.tokens.tolist(), batch.layout.starts, batch.layout.lengths
        histories = {i: tokens[starts[i] : starts[i] + lengths[i]] for i in outputs.written}
        judged = self.judged(model, batch.tokens.device, histories, outputs.written)
        return JudgedOutputs(None, None, outputs.written, judged)

    @override
    def each_loss(self, outputs: Any, batch: PackedBatch) -> EachLoss:
        # A reply's loss depends on the others of its rollout; a prompt by itself has none.
        count = batch.num_sequences
        return EachLoss(torch.zeros(count), torch.zeros(count, dtype=torch.int64))

    @override
    def predict(self, outputs: ReplyOutputs, batch: PackedBatch) -> list[ReplyPrediction | None]:
        if not isinstance(outputs, JudgedOutputs):
            return super().predict(outputs, batch)
        return [outputs.judged.get(place) for place in range(batch.num_sequences)]

    @override
    def grader(self, records: Records) -> Callable[[ReplyPrediction, int], Grade]:
        def grade(answer: ReplyPrediction, row: int) -> Grade:
            # Of records that are not among the `samples`, zeros.
            replies = [answer] if isinstance(answer, JudgedReply) else []
            counts = self.reply_counts([records.rows[row]] * len(replies), replies)
            text = replies[0].reply if replies else ""
            return Grade(answer=text, counts=tuple(counts.sum(0).tolist()))

        return grade

    @override
    def reply_counts(
        self, rows: Sequence[Mapping[str, Any]], replies: Sequence[JudgedReply]
    ) -> Array:
        rewards = np.zeros((0, 1 + len(self.options.part_names)))
        if replies:
            texts, ends = [reply.reply for reply in replies], [reply.ended for reply in replies]
            rewards = self.rewards(rows, texts, ends)
        return np.column_stack([rewards, super().reply_counts(rows, replies)])

    @override
    def reply_figures(self, sums: Array) -> dict[str, Array]:
        names = ("reward", *self.options.part_names)
        rest = sums[..., len(names) :]
        count, figures = np.maximum(rest[..., 0], 1), super().reply_figures(rest)
        rewards = {name: sums[..., i] / count for i, name in enumerate(names)}
        loss = self.options.beta * figures.get("kl", 0.0) - rewards["reward"]
        return {"loss": loss, **rewards, **figures}

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        return self.reply_figures(sums[..., 2:])

    @override
    def warning(self, before: Mapping[str, float], now: Mapping[str, float]) -> str | None:
        """Compare the reward with the judge.

        The reward counts as risen by more than two standard errors of the difference of two means
        over different draws.
        """
        if not {"judge", "reward_se"} <= {*before} & {*now}:
            return None
        risen = now["reward"] - before["reward"]
        error = math.hypot(now["reward_se"], before["reward_se"])
        if not (risen > 2 * error and now["judge"] <= before["judge"]):
            return None
        return (
            f"the reward rose from {before['reward']:.4g} to {now['reward']:.4g}, but the judge "
            f"went from {before['judge']:.4g} to {now['judge']:.4g}: the model may be learning "
            "what the reward is wrong about"
        )

    @override
    def metrics(self, features: Features | None = None) -> Any:
        """Rewards of the written replies, and how far the model is from the reference."""
        return PolicyMetrics(self, features)


class PolicyMetrics(Metrics):
    """Figures of written replies, means over them.

    Those of `WrittenReplies`; `reward` and its parts; `reward_se`, the standard error of `reward`;
    and as `loss` what training lowers: beta times `kl` less `reward`.
    """

    def __init__(self, task: Policy, features: Features | None) -> None:
        self._replies = WrittenReplies(task, features)

    @override
    def update(self, outputs: Any, batch: PackedBatch) -> None:
        if isinstance(outputs, JudgedOutputs):
            self._replies.update(outputs.judged, batch)

    @override
    def merge(self, other: Self) -> None:
        self._replies.merge(other._replies)

    @override
    def result(self) -> dict[str, float]:
        rewards = self._replies.numbers[:, 0]
        count = len(rewards)
        error = float(rewards.std(ddof=1)) / count**0.5 if count > 1 else math.nan
        return {**self._replies.figures(), "reward_se": error}

    @override
    def details(self) -> dict[str, Any]:
        return self._replies.details()


def _tokens(features: FeatureSet, number: int) -> list[int]:
    begin, end = features.starts[number], features.starts[number + 1]
    tokens: list[int] = features.tokens[begin:end].tolist()
    return tokens


def by_action(each: Array, attempts: Sequence[Attempt]) -> Array:
    """Give every action the value of its reply: `[replies]` to `[actions]`."""
    values: Array = np.repeat(each, [len(attempt.tokens) for attempt in attempts])
    return values


def of_replies(scores: ActionScores) -> tuple[Tensor, Tensor]:
    """The lengths `[B]` of the replies in a batch, and the share `[R]` of each action in its."""
    lengths = torch.tensor(scores.select.layout.lengths, device=scores.log_probs.device)
    return lengths, torch.repeat_interleave(1 / lengths, lengths)
