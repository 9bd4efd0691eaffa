"""`Model`: a model that was loaded, and all that can be asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Self

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import TypeVar, override

from pretune.bundle.bundle import Bundle, save
from pretune.checkpoints.atomic_io import atomic_folder
from pretune.corpus.store import StoredDocuments, is_corpus
from pretune.data.readers.in_memory import Table, from_memory, is_table, plain_items
from pretune.data.records import Records
from pretune.decoding.continuations import Generation
from pretune.decoding.decoding import Decoding
from pretune.errors import (
    CheckpointError,
    DataError,
    PretuneError,
    RunError,
    describe_value,
    did_you_mean,
    not_writable,
    type_name,
)
from pretune.evaluation.explain import Explained, explain_records, finished
from pretune.inference.embed import Embedder
from pretune.inference.generate import TextGenerator
from pretune.inference.predict import (
    Predictor,
    column_names,
    read_inputs,
    refuse_nan,
    task_of,
)
from pretune.inference.predictions import Predictions
from pretune.inference.reference import compared
from pretune.inference.runtime import check_precision, choose_device
from pretune.tasks.base import Prediction
from pretune.tasks.builtin import answer_type
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.features import adapt_records, longest_text, read_for
from pretune.text.notebook import Displayed
from pretune.training.data import Data, check_no_columns, read_features
from pretune.training.logging import Reporter
from pretune.training.validation import Evaluation, evaluate_features

#: What a model answers with; any kind of answer where nothing tells which.
P = TypeVar("P", bound=Prediction, default=Any)
#: What a model is asked: a text, texts, tuples of texts, dicts, a table in memory, or a file.
Inputs = str | Path | Sequence[Any] | Iterable[str] | NDArray[Any] | Table


@dataclass(repr=False)
class Model(Bundle, Displayed, Generic[P]):
    """A model that was loaded, with its tokenizer and its task.

    `P` is the kind of its answers: `Model[ClassPrediction]` answers with a list of these. Calling
    it is `predict`.

    Attributes:
        model: the `torch.nn.Module`: the backbone, or the backbone with the task's head.
        tokenizer: of the model; calling it encodes a text, or several.
        family: of the model.
        task: what the model was trained for; None for a bare backbone.
        columns: the data's names of the task's columns.
        report: which weights were loaded and which are new.
        folder: where it was loaded from; None for random weights.
        device: where it answers: `auto` (a GPU where there is one), `cpu`, `cuda`, ...; see `to`.
    """

    device: str = "auto"

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Take over what a bundle has; the weights are shared."""
        return cls(**{item.name: getattr(bundle, item.name) for item in fields(Bundle)})

    def answering(self, kind: type[Prediction] | None) -> Self:
        """Return this model, whose answers have to be of this kind.

        Raises:
            CheckpointError: they are of another.
        """
        if kind is not None and not isinstance(kind, type):
            raise CheckpointError(
                f"answers: expected a class of answers, found {describe_value(kind)}",
                "For example pretune.ClassPrediction.",
            )
        own = None if self.task is None else answer_type(self.task)
        if kind is not None and not (own is not None and issubclass(own, kind)):
            answers = "has no task" if own is None else f"answers with {own.__name__}"
            raise CheckpointError(
                f"{self.folder or 'this model'}: {answers}, where {kind.__name__} is asked for",
                "Leave out `answers`, or name what it answers with.",
            )
        return self

    @property
    def labels(self) -> list[str]:
        """The labels that the model chooses from, in the order of its outputs; none for others."""
        return [] if self.task is None else list(self.task.output_meaning().get("labels") or ())

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device, where it answers from now on.

        Raises:
            RunError: this machine has no such device.
        """
        self.model.to(choose_device(str(device)))
        self.device = str(device)
        return self

    def save(self, folder: str | Path) -> Path:
        """Write the model, its tokenizer and its task into a new folder; transformers can open it.

        Raises:
            RunError: the folder exists, or cannot be written.
        """
        target = Path(folder)
        if target.exists():
            raise RunError(f"{target}: exists already", "Choose another name.")
        try:
            with atomic_folder(target) as place:
                save(self, place)
        except OSError as error:
            raise not_writable(target, "folder", error) from None
        return target

    # Answers

    def __call__(self, inputs: Inputs, **options: Any) -> Predictions[P]:
        """Answer inputs: see `predict`."""
        return self.predict(inputs, **options)

    def predict(
        self,
        inputs: Inputs,
        *,
        columns: Mapping[str, str] | None = None,
        precision: str = "auto",
        batch_tokens: int | None = None,
        max_chars: int | None = None,
    ) -> Predictions[P]:
        """Answer inputs, in their order.

        Args:
            inputs: texts; for models of pairs, two texts each: `[("a", "b"), ...]`; mappings with
                the task's column names; a table in memory; or, as a `Path`, a file. A single text
                works too.
            columns: the task's names of columns -> the table's; default: as in the training data.
            precision: `auto`, `float32`, `bf16` or `int8`: products in 8 bits, on a CPU.
            batch_tokens: tokens at a time; changes memory and speed only.
            max_chars: longer texts are refused as mistakes; default: as for `evaluate`.

        Returns:
            a list, which `to_dataframe` puts beside the inputs.

        Raises:
            PretuneError: the inputs or the model cannot be used; says what to do.
        """
        predictor = self._predictor(precision, batch_tokens)
        records = self._inputs(predictor, inputs, columns, max_chars)
        answers: list[Any] = predictor.predict(records)
        return Predictions(answers, records)

    def predict_proba(self, inputs: Inputs, **options: Any) -> NDArray[np.float32]:
        """Compute the probability of every label.

        Args:
            inputs: as for `predict`.
            options: of `predict`.

        Returns:
            `[N, labels]` float32, the columns in the order of `labels`.

        Raises:
            RunError: the model has no probabilities of labels.
        """
        labels = self.labels
        answers = self.predict(inputs, **options)
        scores = [getattr(answer, "scores", None) for answer in answers]
        if not labels or not all(isinstance(own, Mapping) for own in scores):
            raise RunError(
                f"a model trained for the task {task_of(self).name} has no probabilities of labels",
                "Ask a classifier; `predict` gives the answers of every model.",
            )
        rows = [[own[label] for label in labels] for own in scores if own is not None]
        return np.array(rows, dtype=np.float32).reshape(len(rows), len(labels))

    def logits(
        self,
        inputs: Inputs,
        *,
        columns: Mapping[str, str] | None = None,
        precision: str = "auto",
        batch_tokens: int | None = None,
        max_chars: int | None = None,
    ) -> NDArray[np.float32]:
        """Compute what a classifier or regressor makes before it becomes probabilities.

        Args:
            inputs: as for `predict`, like the options.
            columns: the task's names of columns -> the table's.
            precision: of the products.
            batch_tokens: tokens at a time.
            max_chars: longer texts are refused as mistakes.

        Returns:
            `[N, outputs]` float32, in the order of `labels`.

        Raises:
            RunError: the model is neither.
        """
        predictor = self._predictor(precision, batch_tokens)
        records = self._inputs(predictor, inputs, columns, max_chars)
        return np.array(predictor.logits(records), dtype=np.float32)

    def explain(self, inputs: Inputs, *, columns: Mapping[str, str] | None = None) -> Explanations:
        """Find which tokens an answer hangs on, by integrated gradients.

        Args:
            inputs: as for `predict`.
            columns: the task's names of columns -> the table's.

        Returns:
            for each input its tokens and what each of them adds to the certainty of the answer.

        Raises:
            RunError: the answers of this task cannot be explained.
        """
        if not isinstance(task_of(self), HasCertainty):
            raise RunError(
                f"the answers of the task {task_of(self).name} cannot be explained",
                "Those of classifiers, taggers and the like can be.",
            )
        predictor = self._predictor("float32", None)
        records = self._inputs(predictor, inputs, columns, None)
        return Explanations(finished(explain_records(self, predictor.tokenize(records))))

    def evaluate(
        self,
        data: str | Path | Table,
        *,
        columns: Mapping[str, str] | None = None,
        precision: str = "auto",
        batch_tokens: int = 8192,
        encoding: str = "utf-8",
        quoting: str = "auto",
        max_chars: int | None = None,
        quiet: bool = True,
    ) -> Evaluation:
        """Measure the model on labelled data; see `pretune.evaluate`."""
        task, target = task_of(self), choose_device(self.device)
        check_precision(precision, target)
        # Records, or documents of a prepared corpus.
        records: Data
        if isinstance(data, Records):
            names = column_names(self, columns)
            records = adapt_records(task, data, names) if columns else data
        elif isinstance(data, str | Path) and is_corpus(data):
            check_no_columns(data, columns or {})
            records = StoredDocuments.open(data)
        else:
            names = column_names(self, columns)
            records = read_for(
                task, data, columns=names, encoding=encoding, quoting=quoting, max_chars=max_chars
            )
        # Tokenize, then run the model over all of it.
        with Reporter(quiet=quiet) as reporter:
            features = read_features("data", task, records, self, reporter, evaluation=True)
        if len(features) == 0:
            why = f": {features.skipped[0].why}" if features.skipped else ""
            raise DataError(f"{records.origin}: nothing to evaluate on{why}", "Name other data.")
        self.model.to(target)
        features = compared(self, features, target)
        return evaluate_features(
            *(task, self.model, features),
            device=target,
            precision=precision,
            batch_tokens=batch_tokens,
            watch=lambda _, outputs: refuse_nan(outputs),
        )

    # Vectors and texts

    def embed(
        self, texts: str | Sequence[str] | Any, *, precision: str = "float32", **options: Any
    ) -> NDArray[np.float32]:
        """Turn texts into vectors; a head is not used. See `pretune.embed`.

        Args:
            texts: N texts; a single text works too.
            precision: `float32`, `bf16`, `int8` or `auto`.
            options: of `pretune.embed`: `pooling`, `normalize`, `prompt`, `max_length`, ...

        Returns:
            `[N, hidden]` float32.
        """
        embedder = Embedder(self, device=self.device, precision=precision, **options)
        return embedder.embed(_texts(texts))

    def generate(
        self, prompts: str | Sequence[str] | Any, *, batch_size: int = 16, **decoding: Any
    ) -> list[Generation]:
        """Continue prompts; see `pretune.generate`.

        Args:
            prompts: texts; a single text works too.
            batch_size: continuations at a time; changes memory and speed only.
            decoding: options of `Decoding`: `temperature=0.8, top_k=40, samples=3, ...`

        Returns:
            all continuations, grouped by prompt in the order of the prompts.
        """
        given = _items(_no_table(prompts))
        known = [item.name for item in fields(Decoding)]
        for name in decoding:
            if name not in known:
                raise PretuneError(f"generate has no option '{name}'", did_you_mean(name, known))
        chosen = Decoding(**decoding)
        writer = TextGenerator.of(self, device=self.device, batch_size=batch_size)
        return writer.generate(given, chosen)

    # Inputs

    def _predictor(self, precision: str, batch_tokens: int | None) -> Predictor:
        return Predictor(self, device=self.device, precision=precision, batch_tokens=batch_tokens)

    def _inputs(
        self,
        predictor: Predictor,
        inputs: Inputs,
        columns: Mapping[str, str] | None,
        max_chars: int | None,
    ) -> Records:
        """Turn what is asked into records of the model's task."""
        if isinstance(inputs, Path):
            records = read_inputs(self, inputs, columns=dict(columns or {}))
        elif is_table(inputs) and not self._has_names(inputs, columns):
            records = self._table(inputs, columns)
        else:
            records = predictor.records(_items(inputs))
        return records if max_chars is None else replace(records, max_chars=max_chars)

    def _has_names(self, inputs: Any, columns: Mapping[str, str] | None) -> bool:
        """Whether inputs are a list of dicts that have the task's own names of columns."""
        if columns or not isinstance(inputs, Sequence) or isinstance(inputs, Records):
            return False
        return {*task_of(self).inputs} <= {*inputs[0]}

    def _table(self, inputs: Any, columns: Mapping[str, str] | None) -> Records:
        """Read a table whose columns may have the names of the training data."""
        task, names = task_of(self), column_names(self, columns)
        # Its targets are not needed, and not renamed unless that is asked.
        for target in {*task.targets} - {*names.given}:
            names.pop(target, None)
        records = replace(from_memory(inputs), max_chars=longest_text(task))
        return adapt_records(task, records, names, with_targets=False)

    # What people see

    @override
    def table_rows(self) -> list[dict[str, Any]]:
        return [self.facts()]


class Explanations(list[Explained], Displayed):
    """What each of some answers hangs on; a notebook shows the tokens in colours."""

    @override
    def table_rows(self) -> list[dict[str, Any]]:
        """List the tokens of all texts, each with the number of its text."""
        return [
            {"text": number, "token": token, "attribution": value}
            for number, own in enumerate(self)
            for token, value in zip(own.texts, own.attributions, strict=True)
        ]

    @override
    def _repr_html_(self) -> str:
        return "".join(own._repr_html_() for own in self)


def _items(inputs: Any) -> list[Any]:
    """The texts, or other inputs, one by one."""
    if isinstance(inputs, str):
        return [inputs]
    items = plain_items(inputs)
    if items is not None:
        return items
    try:
        return list(inputs)
    except TypeError:
        raise DataError(
            f"expected texts, found {type_name(type(inputs))}",
            "Give a text, a list of texts, a table with columns, or a file as a Path.",
        ) from None


def _texts(texts: Any) -> list[str]:
    """The texts that a model embeds."""
    items = _items(_no_table(texts))
    for number, item in enumerate(items, start=1):
        if not isinstance(item, str):
            raise DataError(
                f"text {number}: expected a text, found {type_name(type(item))}",
                "Give a list of texts.",
            )
    return items


def _no_table(texts: Any) -> Any:
    """Refuse a table: of a frame, the names of its columns would be read as texts."""
    if is_table(texts):
        raise DataError(
            f"{type_name(type(texts))} with columns, where texts are expected",
            "Give one of its columns: table['text'].",
        )
    return texts
