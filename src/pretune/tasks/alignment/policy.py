"""What `ppo`, `grpo` and `rloo` have in common: replies that are written, scored and learned from.

The data are prompts. The model (the policy) replies to them by sampling at `temperature`, and from
nothing but the whole distribution; the same temperature divides the logits wherever a
log-probability is meant here. The end of a reply is an action as every other token.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, FeatureSet, PackedBatch, Selection, Skipped
from pretune.data.batch_order import batches_by_length
from pretune.data.readers.conversations import ALPACA, COMPLETION, MESSAGES
from pretune.data.records import Records
from pretune.decoding.sampling import Decoding
from pretune.decoding.writer import Generation, Prompt
from pretune.errors import DataError, did_you_mean
from pretune.tasks.alignment.policy_losses import k3, kl_estimates, per_reply
from pretune.tasks.alignment.reward_spec import ExactReward, RewardSpec
from pretune.tasks.base import REFERENCE, Loss, MakesExperience, Metrics, RolloutPlan
from pretune.tasks.dialogue.dialogue import Instruct, InstructOptions
from pretune.tasks.dialogue.replies import ASKED, ReplyOutputs, ReplyPrediction, distinct
from pretune.tasks.grading import EachLoss, Grade
from pretune.tasks.losses import IGNORED, NEXT
from pretune.tokenizers.tokenizer import Tokenizer

#: Targets of each action: its log-probability when it was written, and its advantage.
OLD, ADVANTAGE = "old", "advantage"
#: Target of a reply: figures of its whole rollout, in the order of `rollout_figures`.
ROLLOUT = "rollout"
#: Tokens that are scored at a time. Batching changes scores by rounding, so nobody may choose it.
SCORED_TOKENS = 8192
#: Describes the columns of a reward `{exact: COLUMN}`.
COMPARED = "what a reply is compared with"
#: How many written replies `details` has.
REPLIES_IN_DETAILS = 20


class PolicyOptions(InstructOptions):
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
    reference: str | None = Field(
        "start",
        min_length=1,
        description="What the model is tied to: start (itself before training; with LoRA the model "
        "below the adapter), or a folder; null with beta 0.",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.top_k, self.top_p, self.repetition_penalty) != (0, 1.0, 1.0):
            raise ValueError(
                "top_k, top_p and repetition_penalty must stay off: what they keep from being "
                "written would be trained as if it could be"
            )
        if self.label_smoothing or self.z_loss:
            raise ValueError(
                "label_smoothing and z_loss belong to the cross-entropy, which is not trained here"
            )
        if self.reference is None and self.beta:
            raise ValueError("beta needs a reference: start, or a folder; or set beta to 0")
        if self.max_new_tokens >= self.max_length:
            raise ValueError("max_new_tokens leaves no room for a prompt in max_length")
        return self

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
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    record: int
    reward: float
    ended: bool
    old: Array
    reference: Array
    values: Array

    @property
    def kl(self) -> float:
        """The sum of log(policy / reference) over its tokens."""
        return float((self.old.astype(np.float64) - self.reference).sum())


@dataclass(frozen=True)
class ActionScores:
    """What the model gives the R actions of a batch.

    Attributes:
        log_probs: `[R]` with its graph.
        values: `[R]` of the states before them, with its graph; None without a value head.
        select: which tokens of the batch they follow.
    """

    log_probs: Tensor
    values: Tensor | None
    select: Selection


@dataclass(frozen=True)
class JudgedReply(ReplyPrediction):
    """A reply that was written in an evaluation."""

    kl: float  # the sum of log(policy / reference) over its tokens
    ended: bool  # whether it ended by itself


@dataclass(frozen=True)
class JudgedOutputs(ReplyOutputs):
    """Written replies, with the sum of log(policy / reference) over each one's tokens."""

    kl: Mapping[int, float] = field(default_factory=dict)  # by position in the batch


class Policy(Instruct, MakesExperience):
    """A model that learns from rewards for its own replies; used as one trained by `instruct`."""

    best_by: ClassVar[str] = "reward"
    metric_options: ClassVar[tuple[str, ...]] = (
        *("reward", "end_penalty", "temperature", "max_new_tokens"),
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
        adapted = super().adapted(records, columns, with_targets=False)
        given = [name for name in (ALPACA[2], COMPLETION) if name in records.columns]
        rows = [
            {**row, **{name: own.get(name) for name in given}}
            for row, own in zip(adapted.rows, records.rows, strict=True)
        ]
        return replace(adapted, rows=rows, columns=(*adapted.columns, *given))

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        if with_targets:
            self.layout(tokenizer).require_end()
        return super().features(records, rows, tokenizer, with_targets=False)

    @override
    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature | Skipped]:
        """The prompts; `samples` of them are replied to."""
        for feature in self.features(records, rows, tokenizer, with_targets=True):
            if isinstance(feature, Feature):
                asked = self.options.is_sample(feature.record, len(records))
                targets = {ASKED: len(feature.tokens) if asked else 0}
                feature = replace(feature, targets=targets)
            yield feature

    @override
    def fit(self, records: Records) -> None:
        """Check that the data have what a reward compares with.

        Raises:
            DataError: they lack a column.
        """
        needed = [column for column, what in self.optional.items() if what == COMPARED]
        for column in needed:
            if column not in records.columns:
                raise DataError(
                    f"{records.origin}: no column '{column}', which the reward compares with",
                    did_you_mean(column, records.columns),
                )

    @property
    @override
    def optional(self) -> dict[str, str]:
        parts = self.options.reward or ()
        columns = [part.exact for part in parts if isinstance(part, ExactReward)]
        return {**super().optional, **dict.fromkeys(columns, COMPARED)}

    # Head

    @override
    def forward(self, model: nn.Module, batch: PackedBatch) -> Any:
        """Score the actions; a batch of prompts has none."""
        labels = batch.targets.get(NEXT)
        if labels is None:
            return ReplyOutputs(None, None)
        return self._scores(model, batch, labels)

    def _scores(self, model: Any, batch: PackedBatch, labels: Tensor) -> ActionScores:
        select = batch.where(labels != IGNORED)
        scored = model(
            batch,
            select=select,
            labels=labels[select.rows],
            each=True,
            temperature=self.options.temperature,
        )
        log_probs, values = scored if isinstance(scored, tuple) else (scored, None)
        return ActionScores(log_probs, values, select)

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
        figures = dict(zip(self.figure_names, loss.count * rollout, strict=True))
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
    def reference(self) -> str | None:
        return self.options.reference

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
            [_ended(reply) for reply in written],
        )
        whole = [(_tokens(prompts, n), w.tokens) for n, w in zip(copies, written, strict=True)]
        scored = self._score(model, device, whole)
        return [
            Attempt(tuple(prompt), tokens, record, reward, _ended(reply), *scores)
            for (prompt, tokens), record, reward, reply, scores in zip(
                whole, records, rewards, written, scored, strict=True
            )
        ]

    def rewards(
        self, rows: Sequence[Mapping[str, Any]], replies: Sequence[str], ended: Sequence[bool]
    ) -> list[float]:
        """Return the reward of each reply.

        Args:
            rows: the records of the prompts.
            replies: a text for each.
            ended: whether it ended by itself.
        """
        if self.rewarding is None:
            raise ValueError("no reward function was set")
        prompts = [self.asked(row)[-1] for row in rows]
        rewards, penalty = self.rewarding(prompts, replies, rows), self.options.end_penalty
        return [reward - penalty * (not end) for reward, end in zip(rewards, ended, strict=True)]

    def asked(self, row: Mapping[str, Any]) -> list[str]:
        """Return the texts before the reply to a record, oldest first."""
        return [message["content"] for message in self.unanswered(list(row[MESSAGES]))]

    @torch.no_grad()
    def _score(
        self, model: Any, device: torch.device, whole: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[Array, Array, Array]]:
        """Of each prompt with its reply: `old`, `reference` and `values`, as in `Attempt`."""
        features = FeatureSet.of(
            Feature([*prompt, *reply[:-1]], targets={NEXT: _labels(prompt, reply)})
            for prompt, reply in whole
        )
        scored: dict[int, tuple[Array, Array, Array]] = {}
        for which in batches_by_length(features.lengths, SCORED_TOKENS):
            batch = features.batch(which).to(device)
            labels = batch.targets[NEXT]
            own = self._scores(model, batch, labels)
            old, values = own.log_probs, own.values
            other = old
            if self.reference_model is not None:
                other = self._scores(self.reference_model, batch, labels).log_probs
            table = [old, other, torch.zeros_like(old) if values is None else values]
            columns = torch.stack(table).float().cpu().numpy()
            ends = np.cumsum(own.select.layout.lengths)[:-1]
            for number, part in zip(batch.index.tolist(), np.split(columns, ends, 1), strict=True):
                scored[number] = part[0], part[1], part[2]
        return [scored[i] for i in range(len(whole))]

    @override
    def experience(self, attempts: Sequence[Attempt]) -> FeatureSet:
        features = FeatureSet.of(
            Feature(
                [*attempt.prompt, *attempt.tokens[:-1]],
                targets={NEXT: _labels(attempt.prompt, attempt.tokens)},
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
        figures = self.rollout_figures(attempts, given)
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
        attempt = Attempt(ids, ids[:1], 0, 0.0, True, zeros, zeros, zeros)
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
        places = list(outputs.written)
        whole = [
            (tokens[starts[i] : starts[i] + lengths[i]], outputs.written[i].tokens) for i in places
        ]
        scored = self._score(model, batch.tokens.device, whole)
        kl = {
            place: float((old.astype(np.float64) - reference).sum())
            for place, (old, reference, _) in zip(places, scored, strict=True)
        }
        return JudgedOutputs(None, None, outputs.written, kl)

    @override
    def each_loss(self, outputs: Any, batch: PackedBatch) -> EachLoss:
        # A reply's loss depends on the others of its rollout; a prompt by itself has none.
        count = batch.num_sequences
        return EachLoss(torch.zeros(count), torch.zeros(count, dtype=torch.int64))

    @override
    def predict(self, outputs: ReplyOutputs, batch: PackedBatch) -> list[ReplyPrediction | None]:
        replies = super().predict(outputs, batch)
        if isinstance(outputs, JudgedOutputs):
            for place, kl in outputs.kl.items():
                reply, ended = replies[place], _ended(outputs.written[place])
                if reply is not None:
                    replies[place] = JudgedReply(**vars(reply), kl=kl, ended=ended)
        return replies

    @override
    def grader(self, records: Records) -> Callable[[ReplyPrediction, int], Grade]:
        def grade(answer: ReplyPrediction, row: int) -> Grade:
            if not isinstance(answer, JudgedReply):  # not one of the `samples`
                return Grade(counts=(0.0,) * 5)
            (reward,) = self.rewards([records.rows[row]], [answer.reply], [answer.ended])
            return Grade(
                counts=(reward, answer.kl, float(answer.tokens), float(not answer.ended), 1.0)
            )

        return grade

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        return policy_figures(sums[..., 2:], self.options.beta)

    @override
    def metrics(self, features: Features | None = None) -> Any:
        """Rewards of the written replies, and how far the model is from the reference."""
        return PolicyMetrics(self, features)

    # Described

    @override
    def state(self) -> dict[str, Any]:
        return {} if self.reference_source is None else {"reference": self.reference_source}

    @override
    def with_state(self, state: Mapping[str, Any]) -> Self:
        task = super().with_state(state)
        task.reference_source = state.get("reference")
        return task


def policy_figures(sums: Array, beta: float) -> dict[str, Array]:
    """Compute figures by name.

    Args:
        sums: `[..., 5]` over replies: reward, KL, tokens, whether the end is missing, and 1.
        beta: weight of the KL in the loss.
    """
    reward, kl, tokens, endless, count = np.moveaxis(sums, -1, 0)
    count = np.maximum(count, 1)
    return {
        "loss": (beta * kl - reward) / count,
        "reward": reward / count,
        "kl": kl / count,
        "reply_tokens": tokens / count,
        "share_without_end": endless / count,
    }


class PolicyMetrics(Metrics):
    """Figures of written replies, means over them.

    `reward`; `kl`, the sum of log(policy / reference) over a reply's tokens; `reply_tokens`;
    `share_without_end`; `distinct_2` of all replies; and as `loss` what training lowers: beta times
    `kl` less `reward`.
    """

    def __init__(self, task: Policy, features: Features | None) -> None:
        self._task = task
        self._features = features if isinstance(features, FeatureSet) else None
        # By record: the reply, and its figures.
        self._written: dict[int, tuple[str, tuple[float, ...]]] = {}

    @override
    def update(self, outputs: Any, batch: PackedBatch) -> None:
        if self._features is None or not outputs.written:
            return
        places, written = [*outputs.written], [*outputs.written.values()]
        records = [self._features.record(int(batch.index[place])) for place in places]
        rows = [self._features.rows[record] for record in records]
        texts = [reply.text.strip() for reply in written]
        rewards = self._task.rewards(rows, texts, [_ended(reply) for reply in written])
        for place, reply, text, record, reward in zip(
            places, written, texts, records, rewards, strict=True
        ):
            counts = reward, outputs.kl[place], float(len(reply.tokens)), float(not _ended(reply))
            self._written[record] = text, (*counts, 1.0)

    def __getstate__(self) -> dict[str, Any]:
        # What another process merges: the task's models and functions stay here.
        return {"_written": self._written}

    @override
    def merge(self, other: Self) -> None:
        self._written |= other._written

    @override
    def result(self) -> dict[str, float]:
        # In the order of the records, so that sums do not depend on batches or processes.
        replies = [self._written[record] for record in sorted(self._written)]
        sums = np.array([counts for _, counts in replies]).reshape(-1, 5).sum(0)
        figures = policy_figures(sums, self._task.options.beta)
        return {
            **{name: float(value) for name, value in figures.items()},
            "distinct_2": distinct([text for text, _ in replies], 2),
        }

    @override
    def details(self) -> dict[str, Any]:
        records, rows = sorted(self._written), () if self._features is None else self._features.rows
        step = max(1, -(-len(records) // REPLIES_IN_DETAILS))
        samples = [
            {"history": self._task.asked(rows[record]), "reply": text, "reward": figures[0]}
            for record in records[::step]
            for text, figures in [self._written[record]]
        ]
        return {"replies": len(records), "samples": samples}


def _tokens(features: FeatureSet, number: int) -> list[int]:
    begin, end = features.starts[number], features.starts[number + 1]
    tokens: list[int] = features.tokens[begin:end].tolist()
    return tokens


def _labels(prompt: Sequence[int], reply: Sequence[int]) -> list[int]:
    """For each token that is read the action that follows; `IGNORED` within the prompt."""
    return [*[IGNORED] * (len(prompt) - 1), *reply]


def of_replies(scores: ActionScores) -> tuple[Tensor, Tensor]:
    """The lengths `[B]` of the replies in a batch, and the share `[R]` of each action in its."""
    lengths = torch.tensor(scores.select.layout.lengths, device=scores.log_probs.device)
    return lengths, torch.repeat_interleave(1 / lengths, lengths)


def sums_of_replies(values: Tensor, scores: ActionScores) -> Tensor:
    """Sum values `[R]` of actions over each reply: `[B]`."""
    count = len(scores.select.layout.lengths)
    lengths, _ = of_replies(scores)
    owner = torch.repeat_interleave(torch.arange(count, device=values.device), lengths)
    return values.new_zeros(count).index_add(0, owner, values)


def _ended(reply: Generation) -> bool:
    return reply.finish in ("stop_token", "stop_text")
