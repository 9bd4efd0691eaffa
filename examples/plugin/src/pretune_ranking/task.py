"""The task `rank`: which of two documents is better, by itself or for a query."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import Feature, Features, PackedBatch
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import AdaptsRecords, Loss, Prediction, Task, TaskOptions
from pretune.tasks.grading import EachLoss, Grade
from pretune.tokenizers.tokenizer import Tokenizer

#: The names of the two documents in the column `better`.
SIDES = ("a", "b")


class RankOptions(TaskOptions):
    """Options of `rank`."""

    name: Literal["rank"] = Field("rank", description="Which of two documents is better?")
    query: bool = Field(
        False, description="The documents answer a query, which stands in the column query."
    )


@dataclass(frozen=True)
class Ranking(Prediction):
    """The answer for one pair.

    Attributes:
        better: `a` or `b`.
        score_a: the score of the first document.
        score_b: the score of the second. The better document has the higher score.
    """

    better: str
    score_a: float
    score_b: float

    @override
    def ranked(self) -> list[tuple[str, float]]:
        # sigmoid(s_a - s_b) is the probability that `a` is the better one (Bradley & Terry 1952).
        first = torch.sigmoid(torch.tensor(self.score_a - self.score_b)).item()
        return sorted([("a", first), ("b", 1 - first)], key=lambda item: -item[1])


class Rank(Task[RankOptions, Ranking], AdaptsRecords):
    """One score a document, and -log sigmoid(s_better - s_worse) as the loss of a pair.

    This is RankNet's loss with a target probability of 1 (Burges et al. 2005, equation 3). The two
    documents of a pair are one feature of two sequences, so they are always in the same batch.
    """

    name: ClassVar[str] = "rank"
    options_type: ClassVar[type[RankOptions]] = RankOptions
    head: ClassVar[str] = "multiple_choice"  # a linear layer with one output for each sequence
    best_by: ClassVar[str] = "pair_accuracy"
    sources: ClassVar[tuple[str, ...]] = ("text_better", "text_worse")

    # Preprocessor: from records to features.

    @property
    @override
    def inputs(self) -> dict[str, str]:
        query = {"query": "what the documents answer"} if self.options.query else {}
        return {**query, "text_a": "the first document", "text_b": "the second document"}

    @property
    @override
    def targets(self) -> dict[str, str]:
        return {"better": "which document is better, a or b"}

    @override
    def adapted(self, records: Records, columns: Mapping[str, str], with_targets: bool) -> Records:
        # The other usual form of such data has the better document always in the same column.
        records = records.mapped(columns, ())
        if not {*self.sources} <= {*records.columns}:
            return records
        renamed = {"text_better": "text_a", "text_worse": "text_b"}
        rows = [
            {renamed.get(name, name): value for name, value in row.items()} | {"better": "a"}
            for row in records.rows
        ]
        columns = [*(renamed.get(name, name) for name in records.columns), "better"]
        return replace(records, rows=rows, columns=tuple(dict.fromkeys(columns)))

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        # Tokenize all documents of these rows at once: [CLS] a [SEP], or [CLS] query [SEP] a [SEP].
        texts = [records.text(row, column) for row in rows for column in ("text_a", "text_b")]
        pairs = None
        if self.options.query:
            texts, pairs = [records.text(row, "query") for row in rows for _ in SIDES], texts
        encoded = iter(tokenizer.encode(texts, pairs, max_length=self.options.max_length))
        for row in rows:
            both = [next(encoded), next(encoded)]
            yield Feature(
                tokens=[token for text in both for token in text.ids],
                segments=[segment for text in both for segment in text.segments],
                targets={"better": self.better(records, row)} if with_targets else {},
                record=row,
                truncated=any(text.truncated for text in both),
                choices=[len(text.ids) for text in both],
            )

    def better(self, records: Records, row: int) -> int:
        """The place of the better document in `SIDES`.

        Raises:
            DataError: the record names neither; names file and line.
        """
        value = records.rows[row].get("better")
        if value not in SIDES:
            raise DataError(
                f"{records.where(row, 'better')}: expected a or b, found {value!r}",
                "Name the better document there, or give the columns text_better and text_worse.",
            )
        return SIDES.index(value)

    # Head: the model and its loss.

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        return build_head(backbone, self.head)

    @override
    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        losses = pair_losses(outputs, batch)
        return Loss(losses.sum(), len(losses))

    # Answers.

    @override
    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[Ranking]:
        return [
            Ranking("a" if first >= second else "b", first, second)
            for first, second in scores_of(outputs).tolist()
        ]

    @override
    def usage(self, run: str) -> str:
        return f"pretune predict {run} --file FILE"

    # Scorer.

    @override
    def metrics(self, features: Features | None = None) -> PairAccuracy:
        return PairAccuracy()

    @override
    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        losses = pair_losses(outputs.detach(), batch)
        return EachLoss(losses, torch.ones_like(losses, dtype=torch.int64))

    @override
    def grader(self, records: Records) -> Callable[[Ranking, int], Grade]:
        def grade(answer: Ranking, row: int) -> Grade:
            truth = SIDES[self.better(records, row)]
            right = answer.better == truth
            return Grade(truth=truth, answer=answer.better, right=right, counts=(float(right), 1.0))

        return grade


def scores_of(outputs: Tensor) -> Tensor:
    """`[2 B, 1]` outputs for all documents as `[B, 2]` scores of pairs, in float32."""
    return outputs[:, 0].float().view(-1, 2)


def margins(outputs: Tensor, batch: PackedBatch) -> Tensor:
    """`[B]` the score of the better document minus that of the worse."""
    scores = scores_of(outputs)
    sign = 1 - 2 * batch.targets["better"]  # 1 where `a` is the better one, else -1
    return sign * (scores[:, 0] - scores[:, 1])


def pair_losses(outputs: Tensor, batch: PackedBatch) -> Tensor:
    """`[B]` -log sigmoid(s_better - s_worse)."""
    return -F.logsigmoid(margins(outputs, batch))


class PairAccuracy:
    """The share of pairs whose better document has the higher score."""

    def __init__(self) -> None:
        self._right = self._count = 0

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Add one batch."""
        right = margins(outputs, batch) > 0
        self._right += int(right.sum())
        self._count += len(right)

    def merge(self, other: Self) -> None:
        """Add what another process saw."""
        self._right += other._right
        self._count += other._count

    def result(self) -> dict[str, float]:
        """Compute the figure."""
        return {"pair_accuracy": self._right / max(self._count, 1)}

    def details(self) -> dict[str, Any]:
        """Return nothing more than the figure."""
        return {}
