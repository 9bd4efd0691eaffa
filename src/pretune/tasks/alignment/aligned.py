"""What `dpo`, `ppo`, `grpo` and `rloo` have in common: replies beside a frozen reference.

In an evaluation the model writes replies, whose probabilities are compared with the reference's.
A judge, which nothing is trained on, may score them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, FeatureSet, PackedBatch, Selection
from pretune.data.batch_order import batches_by_length
from pretune.data.readers.conversations import MESSAGES
from pretune.data.records import Records, is_missing
from pretune.decoding.continuations import Generation
from pretune.errors import DataError, describe_value, did_you_mean
from pretune.tasks.alignment.reward_spec import ExactReward, RewardPart, RewardSpec
from pretune.tasks.base import HasReference
from pretune.tasks.dialogue.dialogue import Instruct, InstructOptions
from pretune.tasks.dialogue.replies import ReplyPrediction, distinct
from pretune.tasks.losses import IGNORED, NEXT

#: Tokens that are scored at a time. Batching changes scores by rounding, so nobody may choose it.
SCORED_TOKENS = 8192
#: Describes the columns of a reward or a judge that compares with a column (`exact`).
COMPARED = "what a reply is compared with"
#: The figures that are shown of a single reply.
SCORES = ("reward", "judge")
#: The column of `Aligned.reply_counts` with the judge's scores.
JUDGED = 4
#: Means over fewer replies say little.
FEW = 20


class AlignedOptions(InstructOptions):
    """Options of tasks that keep a model close to a reference."""

    reference: str | None = Field(
        "start",
        min_length=1,
        description="What the model is compared with: start (itself before training; with LoRA the "
        "model below the adapter), or a folder; null where nothing needs it.",
    )
    judge: RewardSpec | None = Field(
        None,
        description="What scores the replies of an evaluation and is not trained on; the same "
        "forms as a reward: {run: FOLDER}, MODULE:FUNCTION, {match: REGEX}, ...",
    )


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

    kl: float  # the sum of log(policy / reference) over its tokens; 0 without a reference
    ended: bool  # whether it ended by itself


class Aligned(Instruct, HasReference):
    """A model that replies, beside a frozen reference; used as one trained by `instruct`."""

    options_type: ClassVar[type[InstructOptions]] = AlignedOptions
    options: AlignedOptions

    @property
    @override
    def reference(self) -> str | None:
        return self.options.reference

    @property
    @override
    def judge(self) -> Any:
        return self.options.judge

    @property
    @override
    def writes_in_evaluations(self) -> bool:
        return self.options.samples > 0

    def few_replies(self, features: Features) -> str | None:
        """Say how many replies an evaluation writes where they are too few to say much."""
        wanted = self.options.samples
        if not self.writes_in_evaluations or not isinstance(features, FeatureSet):
            return None
        # Samples are spread over all records, also over those that were skipped.
        rows = len(features.rows)
        count = sum(self.options.is_sample(int(n), rows) for n in np.unique(features.records))
        if count >= FEW:
            return None
        more = "hold back more (data.validation=0.2)" if count < wanted else "take more of them"
        return (
            f"evaluations reply to {count} {'prompt' if count == 1 else 'prompts'} "
            f"(task.samples={wanted}): figures of so few say little; {more}"
        )

    @property
    def draws_at(self) -> float:
        """The temperature at which replies are drawn, and that divides the logits."""
        return 1.0

    # Preprocessor

    @property
    def scored_by(self) -> Sequence[RewardPart]:
        """What scores replies, part by part."""
        return self.options.judge or ()

    @property
    @override
    def optional(self) -> dict[str, str]:
        columns = [part.exact for part in self.scored_by if isinstance(part, ExactReward)]
        return {**super().optional, **dict.fromkeys(columns, COMPARED)}

    def check_compared(self, records: Records) -> None:
        """Check that every record has what a reward compares with.

        Raises:
            DataError: a column is missing, or a cell is no text and no number; names file and line.
        """
        needed = [column for column, what in self.optional.items() if what == COMPARED]
        for column in needed:
            if column not in records.columns:
                raise DataError(
                    f"{records.origin}: no column '{column}', which the reward compares with",
                    did_you_mean(column, records.columns),
                )
            for number, row in enumerate(records.rows):
                value = row.get(column)
                if is_missing(value) or not isinstance(value, str | int | float):
                    raise DataError(
                        f"{records.where(number, column)}: expected the reply that the reward "
                        f"compares with, a text or a number, found {describe_value(value)}",
                        "Write it, or remove the record.",
                    )

    # Head

    def scores(self, model: Any, batch: PackedBatch, labels: Tensor) -> ActionScores:
        """Score the tokens of replies.

        Args:
            model: the model, or the reference.
            batch: prompts with replies.
            labels: `[T]` for each token the one that follows; `IGNORED` within prompts.
        """
        select = batch.where(labels != IGNORED)
        scored = model(
            batch,
            select=select,
            labels=labels[select.rows],
            each=True,
            temperature=self.draws_at,
        )
        log_probs, values = scored if isinstance(scored, tuple) else (scored, None)
        return ActionScores(log_probs, values, select)

    @torch.no_grad()
    def scored(
        self, model: Any, device: torch.device, whole: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[Array, Array, Array]]:
        """Score prompts `whole`, each with its reply of n tokens.

        Returns:
            of each reply `[n]` float32 arrays: log-probabilities under the model, those under the
            reference (a copy where there is none), and values (zeros without a value head).
        """
        features = FeatureSet.of(
            Feature([*prompt, *reply[:-1]], targets={NEXT: next_tokens(prompt, reply)})
            for prompt, reply in whole
        )
        scored: dict[int, tuple[Array, Array, Array]] = {}
        for which in batches_by_length(features.lengths, SCORED_TOKENS):
            batch = features.batch(which).to(device)
            labels = batch.targets[NEXT]
            own = self.scores(model, batch, labels)
            old, values = own.log_probs, own.values
            other = old
            if self.reference_model is not None:
                other = self.scores(self.reference_model, batch, labels).log_probs
            table = [old, other, torch.zeros_like(old) if values is None else values]
            columns = torch.stack(table).float().cpu().numpy()
            ends = np.cumsum(own.select.layout.lengths)[:-1]
            for number, part in zip(batch.index.tolist(), np.split(columns, ends, 1), strict=True):
                scored[number] = part[0], part[1], part[2]
        return [scored[i] for i in range(len(whole))]

    # Replies of an evaluation

    def judged(
        self,
        model: Any,
        device: torch.device,
        histories: Mapping[int, Sequence[int]],
        written: Mapping[int, Generation],
    ) -> dict[int, JudgedReply]:
        """Compare the probabilities of written replies with the reference's.

        Args:
            model: that wrote them.
            device: where it is.
            histories: the tokens before each reply, by its place in the batch.
            written: the replies, by place.
        """
        kl = dict.fromkeys(written, 0.0)
        if self.reference is not None:
            if self.reference_model is None:
                raise ValueError("no reference was set")
            whole = [(histories[place], reply.tokens) for place, reply in written.items()]
            scores = self.scored(model, device, whole)
            for place, (own, other, _) in zip(written, scores, strict=True):
                kl[place] = float((own.astype(np.float64) - other).sum())
        return {
            place: JudgedReply(
                *(reply.text.strip(), reply.logprob, len(reply.tokens)),
                kl=kl[place],
                ended=has_ended(reply),
            )
            for place, reply in written.items()
        }

    def asked(self, row: Mapping[str, Any]) -> list[str]:
        """Return the texts before the reply to a record, oldest first."""
        return [message["content"] for message in self.unanswered(list(row[MESSAGES]))]

    def scores_by_judge(
        self, rows: Sequence[Mapping[str, Any]], replies: Sequence[str]
    ) -> list[float]:
        """Return the judge's score of each reply to these records; zeros without a judge."""
        if self.judge is None or not replies:
            return [0.0] * len(replies)
        if self.judging is None:
            raise ValueError("no judge was set")
        return self.judging([self.asked(row)[-1] for row in rows], replies, rows)

    def reply_counts(
        self, rows: Sequence[Mapping[str, Any]], replies: Sequence[JudgedReply]
    ) -> Array:
        """Return `[N, K]` float64 numbers of replies to N records, for `reply_figures`."""
        judged = self.scores_by_judge(rows, [reply.reply for reply in replies])
        counts = [
            (1.0, reply.kl, reply.tokens, not reply.ended, score)
            for reply, score in zip(replies, judged, strict=True)
        ]
        return np.array(counts, dtype=np.float64).reshape(-1, 5)

    def reply_figures(self, sums: Array) -> dict[str, Array]:
        """Compute figures by name from sums `[..., K]` of `reply_counts`."""
        count, kl, tokens, endless, judged = np.moveaxis(sums, -1, 0)
        count = np.maximum(count, 1)
        figures: dict[str, Array] = {} if self.reference is None else {"kl": kl / count}
        figures |= {"reply_tokens": tokens / count, "share_without_end": endless / count}
        return figures if self.judge is None else {**figures, "judge": judged / count}

    # Described

    @override
    def state(self) -> dict[str, Any]:
        if self.reference_source is None:
            return {}
        return {"reference": self.reference_source, "reference_seed": self.reference_seed}

    @override
    def with_state(self, state: Mapping[str, Any]) -> Self:
        task = super().with_state(state)
        task.reference_source = state.get("reference")
        # Earlier versions kept no seed; rows that another one draws are nearly the same
        # (see `sample_rows`).
        usual = 0 if self.reference == "start" else None
        task.reference_seed = state.get("reference_seed", usual)
        return task


class WrittenReplies:
    """The replies that a model writes in an evaluation, with their figures.

    `kl`, the sum of log(policy / reference) over a reply's tokens, where there is a reference;
    `reply_tokens`; `share_without_end`; `judge`, where there is one: means over replies; and
    `distinct_2` of all of them.
    """

    def __init__(self, task: Aligned, features: Features | None) -> None:
        self._task = task
        self._features = features if isinstance(features, FeatureSet) else None
        # By record: the reply, and its numbers.
        self._written: dict[int, tuple[str, tuple[float, ...]]] = {}

    def update(self, judged: Mapping[int, JudgedReply], batch: PackedBatch) -> None:
        """Add the replies in a batch, by their feature's place."""
        if self._features is None or not judged:
            return
        records = [self._features.record(int(batch.index[place])) for place in judged]
        replies = list(judged.values())
        counts = self._task.reply_counts([self._features.rows[n] for n in records], replies)
        for record, reply, own in zip(records, replies, counts.tolist(), strict=True):
            self._written[record] = reply.reply, tuple(own)

    def __getstate__(self) -> dict[str, Any]:
        # What another process merges: the task's models and functions stay here.
        return {"_written": self._written}

    def merge(self, other: Self) -> None:
        """Add what another process saw."""
        self._written |= other._written

    @property
    def numbers(self) -> Array:
        """`[N, K]` what `reply_counts` gives all replies, in the order of the records."""
        # In this order, so that sums do not depend on batches or processes.
        counts = [self._written[record][1] for record in sorted(self._written)]
        none = self._task.reply_counts((), ())
        return np.array(counts).reshape(-1, none.shape[1])

    def figures(self) -> dict[str, float]:
        """Compute the figures, by name."""
        if not self._task.writes_in_evaluations:
            return {}
        sums = self.numbers.sum(0)
        figures = {name: float(v) for name, v in self._task.reply_figures(sums).items()}
        texts = [self._written[record][0] for record in sorted(self._written)]
        return {**figures, "distinct_2": distinct(texts, 2)}

    def details(self) -> dict[str, Any]:
        """Return the number of replies, and all of them: a run puts its first beside its best."""
        if not self._task.writes_in_evaluations:
            return {}
        records, rows = sorted(self._written), () if self._features is None else self._features.rows
        samples = []
        for record in records:
            reply, counts = self._written[record]
            figures = self._task.reply_figures(np.array(counts))
            scores = {name: float(figures[name]) for name in SCORES if name in figures}
            samples.append({"history": self._task.asked(rows[record]), "reply": reply, **scores})
        return {"replies": len(records), "samples": samples}


def next_tokens(prompt: Sequence[int], reply: Sequence[int]) -> list[int]:
    """For each token that is read the action that follows; `IGNORED` within the prompt."""
    return [*[IGNORED] * (len(prompt) - 1), *reply]


def sums_of_replies(values: Tensor, scores: ActionScores) -> Tensor:
    """Sum values `[R]` of actions over each reply: `[B]`."""
    count = len(scores.select.layout.lengths)
    lengths = torch.tensor(scores.select.layout.lengths, device=values.device)
    owner = torch.repeat_interleave(torch.arange(count, device=values.device), lengths)
    return values.new_zeros(count).index_add(0, owner, values)


def has_ended(reply: Generation) -> bool:
    """Whether a reply ended by itself."""
    return reply.finish in ("stop_token", "stop_text")
