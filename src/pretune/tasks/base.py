"""`Task`: everything the training loop, the predictor and the reports know about a job.

Adding a task is adding one file with a `Task` and its options, and one recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pretune.data import Feature, FeatureSet, PackedBatch, Records
from pretune.models import Backbone
from pretune.text import Tokenizer


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
    """An answer for one sequence: a typed, frozen dataclass of each task's own."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def ranked(self) -> list[tuple[str, float]]:
        """The possible answers with their scores, for people to look at, best first."""
        return []


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
    """

    name: ClassVar[str]
    options_type: ClassVar[type[TaskOptions]]
    best_by: ClassVar[str]
    splits_text: ClassVar[bool] = False

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

    def bind(self, tokenizer: Tokenizer) -> None:
        """Be told the model's tokenizer, for answers that are made of tokens."""

    @abstractmethod
    def fit(self, records: Records) -> None:
        """Learn from the training records what must be known beforehand, such as the labels."""

    @abstractmethod
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """Turn some records into what the model reads; long text may become several features.

        Raises:
            DataError: a record cannot be used; names its file, line and column.
        """

    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        """What is evaluated on; by default the same features as are trained on."""
        return self.features(records, rows, tokenizer, with_targets=True)

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

    @abstractmethod
    def loss(self, outputs: Any, batch: PackedBatch) -> Loss:
        """What to minimise."""

    @abstractmethod
    def predict(self, outputs: Any, batch: PackedBatch) -> list[P]:
        """One answer for each sequence, in the order of the batch."""

    @abstractmethod
    def metrics(self) -> Metrics:
        """A fresh evaluation."""

    def tune(self, metrics: Any) -> None:
        """Choose by the validation data what the answers depend on and training does not touch.

        Called in training, before the figures of an evaluation are made.

        Args:
            metrics: of this task, having seen all validation data; to go by what is chosen.
        """

    def tuned_as(self, other: Self) -> None:
        """Take over what `tune` chose for another, whose trained head is taken over too."""

    def outputs(self) -> dict[str, Any]:
        """What the head's outputs stand for: a head with other outputs is not taken over."""
        return self.state()

    def config_entries(self) -> dict[str, Any]:
        """What `config.json` should say about the head, as transformers has it; here nothing."""
        return {}

    def state(self) -> dict[str, Any]:
        """What `fit` learned, JSON-ready."""
        return {}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """This task with what an earlier `fit` learned; here there is nothing to learn."""
        return type(self)(self.options)

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """The task a checkpoint was trained for, if its `config.json` says it is this one."""


AnyTask = Task[Any, Any]


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


def featurize(
    task: AnyTask,
    records: Records,
    tokenizer: Tokenizer,
    *,
    with_targets: bool = True,
    evaluation: bool = False,
    chunk: int = 1024,
    progress: Callable[[int], None] | None = None,
) -> FeatureSet:
    """All features of some records, tokenized in parallel.

    Args:
        task: decides what a feature is.
        records: what to turn into features.
        tokenizer: of the model.
        with_targets: False for prediction, where records have no labels.
        evaluation: they are to be evaluated on, not trained on.
        chunk: records at a time.
        progress: called with the number of records done.

    Raises:
        DataError: a record cannot be used; names its file, line and column.
    """

    def stream() -> Iterable[Feature]:
        for start in range(0, len(records), chunk):
            rows = range(start, min(start + chunk, len(records)))
            if evaluation:
                yield from task.evaluation_features(records, rows, tokenizer)
            else:
                yield from task.features(records, rows, tokenizer, with_targets=with_targets)
            if progress is not None:
                progress(rows.stop)

    return FeatureSet.of(stream())
