"""What a task is: five small contracts, and the abilities that only some tasks have.

Each contract is what one part of pretune asks of a task:

    Preprocessor   data          records in, features out
    Head           training      a backbone becomes a model, a batch becomes a loss
    Answers        inference     outputs become answers
    Scorer         evaluation    outputs and answers become figures
    Described      checkpoints   what is written beside the weights, and read back

`Task` combines them. What only some tasks can do is a class of its own (`ReadsCorpus`,
`DrawsAnew`, ...): a task lists its abilities in its bases, and callers ask with `isinstance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from pydantic import (
    ConfigDict,
    Field,
    ValidationInfo,
)
from torch import Tensor, nn
from typing_extensions import override

from pretune.corpus.store import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, FeatureSet, PackedBatch, Repaired, Skipped
from pretune.data.records import Records, is_missing
from pretune.models.backbone import Backbone
from pretune.tasks.checked_numbers import CheckedNumbers
from pretune.tasks.grading import EachLoss, Grade
from pretune.tokenizers.tokenizer import Tokenizer, segments_of

#: The context in which the options of a checkpoint are validated: anyone may have written them.
FROM_CHECKPOINT: Mapping[str, Any] = {"from_checkpoint": True}


def is_from_checkpoint(info: ValidationInfo) -> bool:
    """Whether a value that is validated stands in a checkpoint, which must not name code to run."""
    return bool((info.context or {}).get("from_checkpoint"))


class TaskOptions(CheckedNumbers):
    """The `task:` section of a recipe; each task adds keys of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
    left_out: ClassVar[frozenset[str]] = frozenset({"metrics"})

    name: str = Field(description="Which task; `pretune init` lists them.")
    max_length: int = Field(
        128, ge=3, description="The maximum number of tokens; longer texts are truncated."
    )
    metrics: list[str] = Field(
        [],
        description="Further metrics of every evaluation, by the names that your own file (pretune "
        "--plugin FILE.py) or an installed package gives them.",
    )


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and a count, never a mean.

    The optimizer divides once per update: the sum of all sums by the sum of all counts, over all
    micro-batches and processes. Accumulating uneven batches is then the same as one large batch.
    """

    sum: Tensor  # a scalar, with its graph
    count: int  # terms (examples, tokens, ...) in the sum
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # further sums over them, for logs


@dataclass(frozen=True)
class Prediction:
    """The answer for one record; each task has a frozen dataclass of its own."""

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON-ready values."""
        return asdict(self)

    def ranked(self) -> list[tuple[str, float]]:
        """List the possible answers with their scores for display, best first."""
        return []

    @property
    def given(self) -> list[str] | None:
        """Those of the possible answers that are given; None where it is always the best alone."""
        return None

    @property
    def written(self) -> str | None:
        """The text of an answer that is a text; None for all others."""
        return None

    def top(self, count: int | None) -> Self:
        """Return this answer with at most `count` possible answers; None: the task's default."""
        return self


class Metrics(Protocol):
    """A streaming evaluation, updated batch by batch."""

    def update(self, outputs: Any, batch: PackedBatch) -> None:
        """Add one batch: the model's outputs and, in the batch, the targets."""

    def merge(self, other: Any) -> None:
        """Add everything that an evaluation of the same class saw in another process."""

    def result(self) -> dict[str, float]:
        """Compute the figures, by name."""

    def details(self) -> dict[str, Any]:
        """Return JSON-ready details, such as a confusion matrix; by default none."""
        return {}


O = TypeVar("O", bound=TaskOptions)  # noqa: E741 - O for options
P = TypeVar("P", bound=Prediction)


def no_text(value: object) -> bool:
    """Whether a cell holds nothing, a blank text or an empty list."""
    return value in ([], ()) or is_missing(value) or (isinstance(value, str) and not value.strip())


class Preprocessor(ABC):
    """Turn records into features."""

    #: The task's name in recipes.
    name: ClassVar[str]
    #: Columns that relate records: a split of validation data keeps equal values on one side.
    kept_together: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """The columns that a prediction needs, each with a short description."""

    @property
    def targets(self) -> dict[str, str]:
        """The further columns that training and evaluation need, each with a description."""
        return {}

    @property
    def optional(self) -> dict[str, str]:
        """The columns that are read too where the data has them, each with a description."""
        return {"id": "what messages call the record"}

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns from which a new tokenizer is trained."""
        return tuple(self.inputs)

    def texts(self, records: Records) -> Iterable[str]:
        """Yield the texts from which a new tokenizer is trained."""
        return (
            records.text(r, column) for r in range(len(records)) for column in self.text_columns
        )

    def without_text(self, row: Mapping[str, Any], *, with_targets: bool) -> bool:
        """Whether a record has no text in any of its inputs.

        Such records are passed over and counted in training and evaluation; a prediction keeps
        their places, with an empty answer where the task has such an answer.

        Args:
            row: the record.
            with_targets: whether it is to be learned from or evaluated.
        """
        return all(no_text(row.get(name)) for name in self.inputs)

    def check(self, records: Records, row: int, *, with_targets: bool) -> None:  # noqa: B027
        """Check a record by itself, before anything is learned from the others.

        Args:
            records: the data set.
            row: the number of the record.
            with_targets: whether it is to be learned from.

        Raises:
            DataError: it cannot be used, whatever the others are; names its file and line.
        """

    def fit(self, records: Records) -> None:  # noqa: B027 - most tasks need nothing
        """Learn from the training records what must be known before the model is built.

        Raises:
            DataError: the records cannot be trained on.
        """

    def remarks(self, records: Records) -> Iterable[str]:
        """Yield lines to show before training: what was learned from the records, and any doubts.

        Args:
            records: those that the task was fitted to.
        """
        return ()

    def strata(self, records: Records) -> Sequence[Collection[str]] | None:
        """Return the labels of each record, for a share that is held back in proportion to them.

        None, the default: the records have no labels, and the share is drawn at random.
        """
        return None

    @abstractmethod
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped | Repaired]:
        """Tokenize some records; a long text may become several features.

        Args:
            records: the data set.
            rows: which of its records.
            tokenizer: of the model.
            with_targets: True for training, where a record that is wrong but harmless may be
                `Skipped`; False for prediction, where each record gives at least one feature.

        Yields:
            features in the order of the records. A `Repaired` reports a correction, in addition to
            the features of its record.

        Raises:
            DataError: a record cannot be used; names its file, line and column.
        """

    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature | Skipped | Repaired]:
        """Tokenize some records for evaluation; by default as for training."""
        return self.features(records, rows, tokenizer, with_targets=True)

    @property
    @abstractmethod
    def truncation_note(self) -> str:
        """Phrase that reports how many texts were truncated; the number stands before it."""

    @abstractmethod
    def feature_key(self) -> Any:
        """Everything that features depend on except records and tokenizer, JSON-ready."""

    @abstractmethod
    def segments(self, tokenizer: Tokenizer) -> int:
        """Return how many segments (BERT's token types) the sequences can have."""


class Head(ABC):
    """Build a model from a backbone, run it, and compute what is minimised."""

    loss_adds_up: bool = True  # in training: a batch's loss is the sum of its parts' losses

    @property
    @abstractmethod
    def head(self) -> str:
        """The name of the model's head in its family, e.g. `token_classification`."""

    @abstractmethod
    def build(self, backbone: Backbone) -> nn.Module:
        """Build the model: the backbone, kept as its attribute `backbone`, with the head."""

    def forward(self, model: nn.Module, batch: PackedBatch) -> Any:
        """Run the model; the outputs go to `loss`, `predict` and the metrics.

        A forward pass never generates text: see `WritesAnswers`.
        """
        return model(batch)

    @abstractmethod
    def loss(self, outputs: Any, batch: PackedBatch) -> Loss:
        """Compute the loss that is minimised."""


class Answers(ABC, Generic[P]):
    """Turn outputs into answers for people."""

    @abstractmethod
    def predict(self, outputs: Any, batch: PackedBatch) -> Sequence[Any]:
        """Read the outputs: one item for each sequence, in the order of the batch.

        An item is the answer itself where a record is always one sequence, else a part from which
        `combine` makes the answer. Items are sent between processes and kept for many records, so
        they are small and on the host.
        """

    def combine(self, parts: Sequence[Any], record: Mapping[str, Any]) -> P:
        """Make the answer for a record from the parts of its sequences.

        Args:
            parts: the items of `predict` for the record's sequences, in the order of the features.
                They may come from different batches and processes.
            record: the record.
        """
        answer: P
        (answer,) = parts
        return answer

    def empty_answer(self) -> P | None:
        """Return the answer to a blank text; None: the model answers it as it does other texts."""
        return None

    @property
    @abstractmethod
    def shown(self) -> tuple[str, ...]:
        """The columns to repeat beside an answer, where a record has them."""

    @abstractmethod
    def usage(self, run: str) -> str:
        """Return the shell command that asks the model in the folder `run`."""


class Scorer(ABC, Generic[P]):
    """Compare outputs and answers with the targets."""

    #: The metric that decides which checkpoint is best.
    best_by: ClassVar[str]
    #: Options that change what the figures mean: models are compared only where these are equal.
    metric_options: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def metrics(self, features: Features | None = None) -> Metrics:
        """Begin an evaluation.

        Args:
            features: the features to evaluate, for figures about whole records: their `records` is
                the record of each sequence, their `rows` holds the records. None where only the
                names of the figures are wanted.
        """

    @abstractmethod
    def each_loss(self, outputs: Any, batch: PackedBatch) -> EachLoss | None:
        """Compute the loss of each feature; None where only the whole batch's is known."""

    def grader(self, records: Records) -> Callable[[P, int], Grade]:
        """Return a function that compares answers with the truth.

        Args:
            records: with their targets.

        Returns:
            a function of an answer and its record's number; by default its grades say nothing.
        """
        return lambda answer, row: Grade()

    def figures(self, sums: Array) -> dict[str, Array]:
        """Compute figures of many selections of examples at once, e.g. of bootstrap samples.

        Args:
            sums: `[..., 2 + K]` sums over the examples of each selection: the loss, the number of
                its terms, and the K numbers of `Grade.counts`.

        Returns:
            arrays `[...]` by name: the figures of `metrics` that follow from such sums.
        """
        return {"loss": sums[..., 0] / np.maximum(sums[..., 1], 1)}


class Described(ABC):
    """Write and read what a checkpoint says about its task."""

    def config_entries(self) -> dict[str, Any]:
        """Return entries for `config.json` in transformers' format, such as `id2label`."""
        return {}

    def last_tokens(self) -> frozenset[int]:
        """Return tokens that end sequences: a reader that pads must pad with another one."""
        return frozenset()

    def generation_entries(self) -> dict[str, Any]:
        """Return the contents of `generation_config.json`; empty: no such file."""
        return {}

    def output_meaning(self) -> dict[str, Any]:
        """Return what the head's outputs stand for, JSON-ready, e.g. the labels in their order.

        A trained head is loaded only into a task of the same class whose outputs mean the same.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """Return what `fit` and `calibrate` learned, JSON-ready."""
        return {}

    @abstractmethod
    def with_state(self, state: Mapping[str, Any]) -> Self:
        """Return a copy of this task that has an earlier `state`.

        Raises:
            ValueError: the state makes no sense.
        """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Return the task that a published checkpoint was trained for.

        Args:
            config: the contents of `config.json`.

        Returns:
            the task; None where the checkpoint has another one, or the format cannot tell.

        Raises:
            CheckpointError: entries that make no sense.
        """
        return None


class Task(Preprocessor, Head, Answers[P], Scorer[P], Described, Generic[O, P]):
    """A job that a model can be trained for; the defaults suit one sequence for each record."""

    #: The task's section of the recipe.
    options_type: ClassVar[type[TaskOptions]]

    def __init__(self, options: O) -> None:
        self.options = options

    @property
    @override
    def truncation_note(self) -> str:
        return f"had more than {self.options.max_length} tokens; the rest was cut"

    @override
    def segments(self, tokenizer: Tokenizer) -> int:
        return segments_of(tokenizer, pair=len(self.inputs) > 1)

    @override
    def feature_key(self) -> Any:
        return [self.options.model_dump(mode="json"), self.output_meaning()]

    @property
    @override
    def shown(self) -> tuple[str, ...]:
        # What was asked; a task whose inputs are long shows less.
        return tuple(self.inputs)

    @override
    def usage(self, run: str) -> str:
        return " ".join(["pretune predict", run, *["TEXT"] * len(self.inputs)])

    @override
    def each_loss(self, outputs: Any, batch: PackedBatch) -> EachLoss | None:
        # The loss of a batch is one sum: it is that of a feature only where the batch has one.
        if len(batch.index) != 1:
            return None
        loss = self.loss(outputs, batch)
        return EachLoss(loss.sum.detach()[None], torch.tensor([loss.count]))

    @override
    def with_state(self, state: Mapping[str, Any]) -> Self:
        return type(self)(self.options)


AnyTask = Task[Any, Any]


# Abilities: what only some tasks can do.


class UsesTokenizer(ABC):
    """Ability: needs the model's tokenizer, or prepares it."""

    @abstractmethod
    def bind(self, tokenizer: Tokenizer) -> None:
        """Receive the model's tokenizer; it is saved with the model, changes included.

        Raises:
            CheckpointError: the tokenizer does not suit the task.
        """


class AdaptsRecords(ABC):
    """Ability: accepts records in several formats."""

    #: The columns of these formats.
    sources: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def adapted(self, records: Records, columns: Mapping[str, str], with_targets: bool) -> Records:
        """Convert records to the format that the task reads.

        Columns that were made into others are left out of the result: what is left and is none of
        the task's columns is reported as not used.

        Args:
            records: the records as read from their file.
            columns: the data's name for each of the task's columns, from the recipe.
            with_targets: whether the answers are needed.

        Raises:
            DataError: a record has none of the formats; names its file and line.
        """


class ReadsCorpus(ABC):
    """Ability: can be trained on a prepared corpus."""

    @abstractmethod
    def stored_features(
        self,
        documents: StoredDocuments,
        tokenizer: Tokenizer,
        *,
        evaluation: bool,
        progress: Callable[[int], None] | None,
    ) -> Features:
        """Make features on demand from tokens that stay on disk.

        Args:
            documents: tokenized by the same tokenizer.
            tokenizer: of the model.
            evaluation: whether the features are for evaluation rather than training.
            progress: called with the number of documents done.

        Raises:
            DataError: the documents give no features, or not with these options.
        """


class ReadsWindows:
    """Ability: reads a long text as several sequences instead of truncating it."""


class ReadsStream(ABC):
    """Ability: reads records as one running text, cut into blocks.

    The end of a single long text can then be held back for validation, and the examples that people
    look at are blocks, not records.
    """

    @abstractmethod
    def isolated(self) -> Self:
        """Return this task as it answers: each record by itself, without the ones before it."""


class DrawsAnew(ABC):
    """Ability: changes batches at random in each epoch, e.g. draws new masks."""

    @abstractmethod
    def augment(self, batch: PackedBatch, seed: int, epoch: int) -> PackedBatch:
        """Return the batch as the model reads it in this epoch.

        A function of its arguments alone (`batch.index` has the numbers of the features): a resumed
        run, and one in several processes, draw the same.

        Args:
            batch: made of features.
            seed: of the run.
            epoch: from 0; -1 for evaluation, where the draw is always the same.
        """


class CarriesState(ABC):
    """Ability: the model goes on from its state after the previous feature.

    Training and evaluation then carry the state from batch to batch (truncated back-propagation
    through time).
    """

    @abstractmethod
    def follows(self, model: nn.Module, features: Features) -> Array | None:
        """Return `[N]` bool: which features continue the one before; None: none of them does."""

    @abstractmethod
    def carry(self, model: nn.Module, batch: PackedBatch, state: Any) -> tuple[Any, Any]:
        """Run the model as `forward` does, from one state to the next.

        Args:
            model: the model.
            batch: features that each continue another one.
            state: the model's state before the batch.

        Returns:
            the outputs, and the state after the batch.
        """


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


#: The name of the targets that `ComparesWithReference` gives features.
REFERENCE = "reference"
#: Prompts, replies and the records of the prompts -> a reward for each reply.
RewardFunction = Callable[[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]]], list[float]]


class HasReference(ABC):
    """Ability: the model stays close to a frozen reference, and what it writes may be judged."""

    #: Where the reference was found; part of `state`, so that a later evaluation finds it again.
    reference_source: str | None = None
    #: The seed of a run that began with its reference: it drew the rows of new tokens, which a
    #: later evaluation draws again. None for a reference of another origin. Part of `state`, too.
    reference_seed: int | None = None
    #: The frozen reference, called as the model is; set where replies are compared with it.
    reference_model: Callable[..., Any] | None = None
    #: Scores replies of an evaluation, which are never trained on; set where `judge` is.
    judging: RewardFunction | None = None

    @property
    @abstractmethod
    def reference(self) -> str | None:
        """Where the reference comes from: a folder, `start` (the model before training) or None."""

    @property
    @abstractmethod
    def judge(self) -> Any:
        """What judges replies: see `tasks/alignment/reward_spec.py`; None: nothing does."""

    @property
    @abstractmethod
    def writes_in_evaluations(self) -> bool:
        """Whether an evaluation has the model write replies, which the reference reads."""


class ComparesWithReference(ABC):
    """Ability of a task that `HasReference`: the loss compares the model with it on the data.

    The reference's scores never change, so they are computed once, before training, and become
    targets of the features under the name `REFERENCE`.
    """

    @abstractmethod
    def reference_scores(self, model: nn.Module, batch: PackedBatch) -> Tensor:
        """Score a batch by the reference: `[B, K]`, in the order of the batch's features."""


class SumOfRewards(Protocol):
    """Scores replies by a weighted sum."""

    def parts(
        self, prompts: Sequence[str], replies: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[float]]:
        """Compute each summand of each reply, without its weight, by name."""

    def total(self, parts: Mapping[str, Sequence[float]], replies: Sequence[str]) -> list[float]:
        """Add up what `parts` returned for these replies."""


@dataclass(frozen=True)
class RolloutPlan:
    """How much experience is made at a time, and how long it is used."""

    prompts: int  # in a rollout
    replies: int  # to each of them
    passes: int  # over the replies of a rollout


class MakesExperience(ABC):
    """Ability: is trained on what the model itself writes (on-policy reinforcement learning).

    The features of the data are prompts. In turns, a rollout of replies to some of them is written
    and scored, and becomes the features that are trained on.
    """

    #: Scores replies; set before training and evaluation.
    rewarding: SumOfRewards | None = None
    #: The present strength of the tie to the reference; a part of the state of a run.
    beta: float

    @property
    @abstractmethod
    def reward(self) -> Any:
        """What rewards come from: see `tasks/alignment/reward_spec.py`; None: nothing says so."""

    @property
    @abstractmethod
    def plan(self) -> RolloutPlan:
        """How much experience is made at a time."""

    @abstractmethod
    def attempt(self, model: Any, prompts: FeatureSet, which: Array, seed: int) -> list[Any]:
        """Write replies to some prompts and score them.

        Args:
            model: in evaluation mode.
            prompts: the features of the data.
            which: `[P]` numbers of prompts.
            seed: of the draws.

        Returns:
            an item for each reply, the replies to a prompt one after the other. Items are sent
            between processes.

        Raises:
            DataError: a reply got no finite reward; names it.
        """

    @abstractmethod
    def experience(self, attempts: Sequence[Any]) -> FeatureSet:
        """Make the features to train on from all replies of a rollout, in the order of prompts.

        May change `beta`, which then holds for the next rollout.
        """

    def stops(self, means: Mapping[str, float]) -> bool:
        """Whether the rest of a rollout is passed over after an update with these loss parts."""
        return False

    def warning(self, before: Mapping[str, float], now: Mapping[str, float]) -> str | None:
        """Describe what looks wrong with the training, or return None.

        Args:
            before: figures of the run's first evaluation.
            now: figures of the last one.
        """
        return None

    @abstractmethod
    def rehearsal(self, prompts: FeatureSet) -> PackedBatch:
        """Return a batch as training has them, whose loss reaches all parameters."""


class Calibrated(ABC):
    """Ability: chooses something on validation data, such as a threshold; it is part of `state`."""

    @abstractmethod
    def calibrate(self, metrics: Any) -> None:
        """Choose by an evaluation on the validation data.

        Args:
            metrics: of this task, after all validation data; the figures that it computes from here
                on follow the choice.
        """

    @abstractmethod
    def restore_calibration(self, state: Mapping[str, Any]) -> None:
        """Take over what was chosen for the checkpoint from which training starts."""


def drawn(task: Head, batch: PackedBatch, *, seed: int, epoch: int) -> PackedBatch:
    """Return the batch as the model reads it: with new random draws, if the task makes any."""
    return task.augment(batch, seed, epoch) if isinstance(task, DrawsAnew) else batch


def with_answers(task: Head, model: nn.Module, outputs: Any, batch: PackedBatch) -> Any:
    """The outputs with what a task that `WritesAnswers` writes; of any other task as they are."""
    return task.write(model, outputs, batch) if isinstance(task, WritesAnswers) else outputs


def published_architecture(config: Mapping[str, Any]) -> str:
    """Return transformers' class of a checkpoint, by its `config.json`; empty if there is none."""
    return str((config.get("architectures") or [""])[0])


def usual_length(config: Mapping[str, Any], limit: int) -> int:
    """Return a `max_length` for a published checkpoint: its number of positions, at most `limit`.

    That is also `limit` where the entry of `config.json` makes no sense.
    """
    positions = config.get("max_position_embeddings", limit)
    return min(limit, positions) if isinstance(positions, int) and positions > 2 else limit
