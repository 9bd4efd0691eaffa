"""`Task`: everything the training loop, the predictor and the reports know about a job.

Adding a task is adding one file with a `Task` and its options, and one recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pretune.corpus.stored import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import (
    Feature,
    Features,
    PackedBatch,
    Repaired,
    Skipped,
)
from pretune.data.records import Records
from pretune.models.backbone import Backbone
from pretune.tasks.grading import EachLoss, Grade
from pretune.tasks.segments import segments_of
from pretune.tokenizers.tokenizer import Tokenizer


class TaskOptions(BaseModel):
    """The `task:` section of a recipe; each task adds its own keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    name: str = Field(description="Which task; `pretune init` knows them all.")
    max_length: int = Field(
        128, ge=3, description="The most tokens of a sequence; longer texts are cut to it."
    )


@dataclass(frozen=True)
class Loss:
    """A loss is a sum and a count, never a mean.

    Whoever trains divides once: the sum of the sums by the sum of the counts, over all
    micro-batches and devices. Then accumulation over uneven batches is the one big batch.

    Attributes:
        sum: scalar tensor, with its graph.
        count: over how many terms (examples, tokens, ...).
        parts: more sums over the same count worth showing, by name.
    """

    sum: Tensor
    count: int
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """An answer for one record: a typed, frozen dataclass of each task's own."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def ranked(self) -> list[tuple[str, float]]:
        """The possible answers with their scores, for people to look at, best first."""
        return []

    @property
    def written(self) -> str | None:
        """An answer that is a text; None: it is not one."""
        return None

    def top(self, count: int | None) -> Self:
        """This answer with no more than so many of the possible ones; None: as many as is usual."""
        return self


class Metrics(Protocol):
    """Streaming evaluation: memory does not grow with the number of examples where it need not."""

    def update(self, outputs: Any, batch: PackedBatch) -> None:
        """Take in one batch: what the model gave for it, and its targets."""

    def merge(self, other: Any) -> None:
        """Take in all that another one of the same kind, in another process, has taken in."""

    def result(self) -> dict[str, float]:
        """The figures, by name."""

    def details(self) -> dict[str, Any]:
        """More than figures, JSON-ready: a confusion matrix, figures per class."""


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better: of losses, errors, perplexities; of all others more."""
    return metric.endswith(("loss", "cross_entropy", "perplexity")) or metric in ("mse", "mae")


O = TypeVar("O", bound=TaskOptions)  # noqa: E741 - O for options
P = TypeVar("P", bound=Prediction)


class Task(ABC, Generic[O, P]):
    """A job: records to features, a backbone to a model, outputs to a loss and answers.

    Class attributes:
        name: as recipes call it.
        options_type: its section of the recipe.
        best_by: the metric that decides which checkpoint is best.
        splits_text: whether the end of a single long text can be held back for validation.
        reads_corpus: whether it can be trained on a prepared corpus (`stored_features`).
        windows: whether a long text is read as several sequences, rather than cut.
        each_sequence: whether examples to look at are sequences (blocks of a text), not records.
        kept_together: records with the same text in one of these columns are held back all or none.
        compared_alike: options by which figures are made: models are compared with the same ones.
    """

    name: ClassVar[str]
    options_type: ClassVar[type[TaskOptions]]
    best_by: ClassVar[str]
    splits_text: ClassVar[bool] = False
    reads_corpus: ClassVar[bool] = False
    windows: ClassVar[bool] = False
    each_sequence: ClassVar[bool] = False
    kept_together: ClassVar[tuple[str, ...]] = ()
    compared_alike: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: O) -> None:
        self.options = options

    @property
    @abstractmethod
    def head(self) -> str:
        """Which of a family's heads (see `hub/keys.py`) its model has: mostly one for all."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """The columns a prediction needs, and what they mean."""

    @property
    @abstractmethod
    def targets(self) -> dict[str, str]:
        """The columns that training and evaluation need besides, and what they mean."""

    @property
    def vocabulary_of(self) -> tuple[str, ...]:
        """The columns whose texts a tokenizer is trained on, where a recipe wants a new one."""
        return tuple(self.inputs)

    def texts(self, records: Records) -> Iterable[str]:
        """The texts that a tokenizer is trained on, where a recipe wants a new one."""
        return (
            records.text(r, column) for r in range(len(records)) for column in self.vocabulary_of
        )

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns that are repeated beside an answer, where a record has them."""
        return tuple(self.inputs)

    def usage(self, run: str) -> str:
        """The command by which people ask a model in that folder."""
        return " ".join(["pretune predict", run, *["TEXT"] * len(self.inputs)])

    @property
    def was_cut(self) -> str:
        """What is said of features whose text was cut, after their number."""
        return f"were longer than {self.options.max_length} tokens and were cut"

    def adapted(self, records: Records, columns: Mapping[str, str], with_targets: bool) -> Records:
        """Records in the form that the task reads, where data come in several.

        Args:
            records: as they were read.
            columns: task's name -> the data's, as a recipe has them.
            with_targets: whether answers are needed.

        Raises:
            DataError: a record has none of the forms; names its file and line.
        """
        return records

    def apart(self) -> Self:
        """This task as it gives answers: each of its record alone, whatever is read beside it."""
        return self

    def bind(self, tokenizer: Tokenizer) -> None:
        """Be told the model's tokenizer, for answers that are made of tokens."""

    def segments(self, tokenizer: Tokenizer) -> int:
        """How many segments (BERT's token types) its sequences can have."""
        return segments_of(tokenizer, pair=len(self.inputs) > 1)

    @abstractmethod
    def fit(self, records: Records) -> None:
        """Learn from the training records what must be known beforehand, such as the labels."""

    @abstractmethod
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped | Repaired]:
        """Turn some records into what the model reads; long text may become several features.

        To train on, a record that is wrong but does no harm may be skipped; all others, and all
        that are to be predicted, give at least one feature. `Repaired` comes besides them.

        Raises:
            DataError: a record cannot be used; names its file, line and column.
        """

    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature | Skipped | Repaired]:
        """What is evaluated on; by default the same features as are trained on."""
        return self.features(records, rows, tokenizer, with_targets=True)

    def stored_features(
        self,
        documents: StoredDocuments,
        tokenizer: Tokenizer,
        *,
        evaluation: bool,
        progress: Callable[[int], None] | None,
    ) -> Features:
        """Features of a prepared corpus, which stay on the disk; where `reads_corpus` says so.

        Args:
            documents: tokenized by that tokenizer.
            tokenizer: of the model.
            evaluation: they are to be evaluated on, not trained on.
            progress: called with the number of documents done.

        Raises:
            DataError: they give no features, or not with these options.
        """
        raise NotImplementedError

    def augment(self, batch: PackedBatch, seed: int, epoch: int) -> PackedBatch:
        """What is drawn anew in each epoch, e.g. masks; by default nothing is.

        A function of its arguments alone (`batch.index` says which features they are), so that a
        resumed run, or one in several processes, draws the same. Evaluation gives epoch -1: there
        the draw is always the same.
        """
        return batch

    @abstractmethod
    def build(self, backbone: Backbone) -> nn.Module:
        """The backbone with this task's head; holds it as `backbone`."""

    def forward(self, model: nn.Module, batch: PackedBatch) -> Any:
        """Run the model; what comes out goes to `loss`, `predict` and the metrics."""
        return model(batch)

    def follows(self, model: nn.Module, features: Features) -> Array | None:
        """`[N]`: which features go on where the one before them ended, their state with them.

        Training then gives such a feature the state in which the model left the one before, and
        so does evaluation (truncated back-propagation through time). None, the default: features
        are read by themselves, in any order.
        """
        return None

    def carry(self, model: nn.Module, batch: PackedBatch, state: Any) -> tuple[Any, Any]:
        """As `forward`, from a state to the one after; for what `follows` something."""
        raise NotImplementedError

    @abstractmethod
    def loss(self, outputs: Any, batch: PackedBatch) -> Loss:
        """What to minimise."""

    @abstractmethod
    def predict(self, outputs: Any, batch: PackedBatch) -> Sequence[Any]:
        """What each sequence says, in the order of the batch.

        An answer where a record is always one sequence; else what `combine` makes answers of. It
        goes from process to process and may be kept for many records: small, and on the host.
        """

    def combine(self, parts: Sequence[Any], record: Mapping[str, Any]) -> P:
        """The answer for a record.

        Args:
            parts: what `predict` gave for each of its sequences, in their order. They may have
                been in different batches, and in different processes.
            record: the record itself.
        """
        (answer,) = parts
        found: P = answer
        return found

    @abstractmethod
    def metrics(self, features: Features | None = None) -> Metrics:
        """A fresh evaluation.

        Args:
            features: what is evaluated on, for figures about whole records: `records` says of
                which each sequence is, `rows` has them. None where only the names of the figures
                are wanted.
        """

    def each_loss(self, outputs: Any, batch: PackedBatch) -> EachLoss | None:
        """The loss of each feature; None where it can only be told of a batch of one."""
        if len(batch.index) != 1:
            return None
        loss = self.loss(outputs, batch)
        return EachLoss(loss.sum.detach()[None], torch.tensor([loss.count]))

    def grader(self, records: Records) -> Callable[[P, int], Grade]:
        """What puts answers beside the truth; by default nothing could be right or wrong.

        Args:
            records: with their targets.

        Returns:
            what an answer, as `combine` gave it, is worth to the record of that number.
        """
        return lambda answer, row: Grade()

    def figures(self, sums: Array) -> dict[str, Array]:
        """Figures of any selection of examples, all at once.

        Args:
            sums: `[..., 2 + K]` over the examples of each selection: the sum and the count of their
                losses, then their `Grade.counts`.

        Returns:
            by name, `[...]` each: those of `metrics` that follow from these sums.
        """
        return {"loss": sums[..., 0] / np.maximum(sums[..., 1], 1)}

    def calibrate(self, metrics: Any) -> None:
        """Learn from an evaluation in training what is chosen on validation data: a threshold.

        It becomes part of `state`. By default there is nothing to choose.

        Args:
            metrics: of this task, with all of the validation data; its figures, which are made
                afterwards, are to go by what is chosen.
        """

    def recall(self, state: Mapping[str, Any]) -> None:
        """Take over what `calibrate` found for the checkpoint that the training goes on from."""

    def outputs(self) -> dict[str, Any]:
        """What the head's outputs stand for: a head with other outputs is not taken over."""
        return self.state()

    def config_entries(self) -> dict[str, Any]:
        """What `config.json` should say about the head, as transformers has it; here nothing."""
        return {}

    def generation_entries(self) -> dict[str, Any]:
        """What `generation_config.json` should say, as transformers has it; nothing: no file."""
        return {}

    def state(self) -> dict[str, Any]:
        """What `fit` learned, JSON-ready."""
        return {}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """This task with what an earlier `fit` learned; here there is nothing to learn."""
        return type(self)(self.options)

    def feature_key(self) -> Any:
        """What the features of records depend on besides them and the tokenizer, JSON-ready."""
        return [self.options.model_dump(mode="json"), self.outputs()]

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """The task a checkpoint was trained for, if its `config.json` says it is this one."""


AnyTask = Task[Any, Any]


class WritesAnswers(ABC):
    """Ability of a task whose answers are texts that the model writes token by token.

    Writing comes after the forward pass and never in it: a forward pass only scores, so it costs
    the same in training and in evaluation, and every process runs the same layers in it.
    """

    @abstractmethod
    def write(self, model: nn.Module, outputs: Any, batch: PackedBatch) -> Any:
        """Write the answers that a batch asks for.

        Args:
            model: in evaluation mode.
            outputs: what `forward` returned for the batch.
            batch: the batch; without targets every sequence asks for an answer.

        Returns:
            the outputs with the answers, for `predict` and the metrics.
        """


def with_answers(task: AnyTask, model: nn.Module, outputs: Any, batch: PackedBatch) -> Any:
    """The outputs with what a task that `WritesAnswers` writes; of any other task as they are."""
    return task.write(model, outputs, batch) if isinstance(task, WritesAnswers) else outputs


def usual_length(
    config: Mapping[str, Any], most: int, name: str = "max_position_embeddings"
) -> int:
    """`max_length` for a checkpoint that says nothing of it: its positions, `most` at the most.

    Args:
        config: the checkpoint's `config.json`.
        most: also where it gives no sensible number.
        name: of the entry with the number of positions.
    """
    positions = config.get(name, most)
    return min(most, positions) if isinstance(positions, int) and positions > 2 else most
