"""Estimators of scikit-learn: `TextClassifier`, `TextRegressor` and `Tagger`.

    from pretune.sklearn import TextClassifier
    model = TextClassifier("minilm", epochs=2, random_state=0).fit(texts, labels)
    model.predict(["Where is my parcel?"])
    cross_val_score(model, texts, labels, cv=5)

They train in memory and write nothing. Needs scikit-learn 1.6 or later (pip install scikit-learn).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pretune.bundle.bundle import Bundle, load
from pretune.bundle.bundle import save as save_bundle
from pretune.checkpoints.atomic_io import atomic_folder
from pretune.data.records import Record, Records
from pretune.errors import PretuneError, describe_value
from pretune.inference.predict import Predictor
from pretune.inference.runtime import choose_device
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import AnyTask, Prediction
from pretune.tasks.builtin import task_class
from pretune.tasks.features import record_features
from pretune.tasks.labels import label_key
from pretune.training.logging import Reporter
from pretune.training.loop import Trainer
from pretune.training.modes import set_modes
from pretune.training.run import starting_model
from pretune.training.state import (
    TrainingState,
    generators,
    restore_generators,
    seed_everything,
)
from pretune.training.validation import evaluate_features

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import assert_all_finite, check_consistent_length, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d
except ImportError as error:
    raise ImportError(
        "pretune.sklearn needs scikit-learn, 1.6 or later: pip install scikit-learn"
    ) from error

#: The sections of a recipe that `overrides` may change.
_SECTIONS = ("task.", "model.", "train.")
#: What one more pass over some records is: nobody knows how many will follow.
_ONE_PASS = {"train.epochs": 1, "train.schedule": "constant", "train.warmup": 0}

Numbers = NDArray[Any]


class EstimatorError(PretuneError, ValueError):
    """What cannot be fitted or predicted: an error of pretune that scikit-learn knows."""


@contextmanager
def _as_value_errors() -> Iterator[None]:
    """Context that turns errors of pretune into ones that are ValueErrors, too."""
    try:
        yield
    except EstimatorError:
        raise
    except PretuneError as error:
        raise EstimatorError(error.message, error.hint) from error


class _TextEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the estimators share: their parameters, the training, and how they are pickled."""

    #: The name of the task.
    _task: ClassVar[str]
    n_features_in_: int

    def __init__(
        self,
        model: str = "minilm",
        *,
        epochs: float = 3,
        learning_rate: float = 5e-5,
        batch_size: int = 32,
        max_length: int = 128,
        overrides: Mapping[str, Any] | None = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        """Keep the parameters; `fit` checks them.

        Args:
            model: what to start from, as `model.from` in a recipe.
            epochs: passes over the data.
            learning_rate: at its peak.
            batch_size: texts, or sentences of a tagger, per update.
            max_length: the most tokens of a text; of a longer one the rest is cut, unless
                `overrides` has `task.long`. A tagger reads a longer sentence in several windows.
            overrides: further keys of a recipe, of `task`, `model` and `train`:
                `{"train.freeze": "backbone"}`, `{"task.crf": True}`.
            random_state: an int gives the same model each time; None, or a `RandomState`, draws.
            device: `auto`, `cpu`, `cuda`, ...
            verbose: show progress.
        """
        self.model = model
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_length = max_length
        self.overrides = overrides
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False  # but of texts, two in a row
        tags.target_tags.required = True
        return tags

    # What comes in

    def _rows(self, X: Any, *, reset: bool) -> list[tuple[str, ...]]:  # noqa: N803
        """Return the texts of each record: one, or two of a pair.

        Args:
            X: a sequence of texts, or of two texts each; also an array, a series or a frame.
            reset: whether a model begins here; else the width has to be what it was.

        Raises:
            EstimatorError: these are no texts, or not as many in a record as before.
        """
        rows = _listed(X)
        widths = {len(row) for row in rows}
        if len(widths) > 1 or not widths <= {1, 2}:
            raise EstimatorError(
                f"X: a record has one text or two, found {', '.join(map(str, sorted(widths)))}",
                "Give a sequence of texts, or of pairs of texts.",
            )
        width = widths.pop()
        if not reset and width != self.n_features_in_:
            raise EstimatorError(
                f"X has {width} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        if reset:
            self.n_features_in_ = width
        return rows

    def _records(self, rows: Sequence[tuple[str, ...]], targets: Mapping[str, Any]) -> Records:
        """Put texts and targets together as records of the task."""
        names = ("text",) if self.n_features_in_ == 1 else ("sentence1", "sentence2")
        records: list[Record] = [dict(zip(names, row, strict=True)) for row in rows]
        for name, values in targets.items():
            for record, value in zip(records, values, strict=True):
                record[name] = value
        return Records(records, "X", columns=(*names, *targets))

    # Training

    def _recipe(self, options: Mapping[str, Any]) -> Recipe:
        """Make a recipe of the parameters."""
        overrides = {str(key): _plain(value) for key, value in (self.overrides or {}).items()}
        for key in overrides:
            if not key.startswith(_SECTIONS):
                raise EstimatorError(
                    f"overrides: '{key}' is none of the keys that can be changed here",
                    f"They begin with {', '.join(_SECTIONS)}; fit gets the data.",
                )
        values = {
            "task": {"name": self._task, "max_length": _plain(self.max_length), **options},
            "model": {"from": self.model},
            "data": {"train": "X", "validation": None},
            "train": {
                "epochs": _plain(self.epochs),
                "learning_rate": _plain(self.learning_rate),
                "batch_size": _plain(self.batch_size),
                "device": self.device,
            },
        }
        return Recipe.of(values, type(self).__name__).changed(overrides)

    def _begin(self, recipe: Recipe, records: Records, seed: int) -> None:
        """Load the model to start from, with a new head."""
        task = task_class(self._task)(recipe.task)
        task.fit(records)
        seed_everything(seed)
        self.bundle_: Bundle = starting_model(recipe, task, records)
        self._moments: dict[str, Tensor] = {}
        self._passes = 0

    def _learn(self, recipe: Recipe, records: Records, seed: int) -> None:
        """Train the model on records, from where it is."""
        bundle = self.bundle_
        features = record_features(self._own_task, records, bundle.tokenizer)
        device = choose_device(recipe.train.device)
        model = bundle.model.to(device)
        set_modes(model, recipe.train, device)
        with Reporter(quiet=not self.verbose) as reporter:
            trainer = Trainer(
                self._own_task,
                model,
                features,
                options=recipe.train,
                seed=seed + self._passes,
                device=device,
                reporter=reporter,
                name_record=records.where,
            )
            if self._moments:
                trainer.optimizer.restore(TrainingState(self._moments))
            trainer.fit()
        self._moments = {name: value.clone() for name, value in trainer.optimizer.state().items()}
        self._passes += 1
        model.eval()

    def _train(
        self, records: Records, options: Mapping[str, Any], *, fresh: bool, whole: bool
    ) -> None:
        """Train; the generators of the process are where they were afterwards.

        Args:
            records: to learn from.
            options: of the task.
            fresh: whether a new model begins.
            whole: whether these are all the data, as for `fit`; else they are one part of many.
        """
        seed = self.random_state
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        before = generators()
        try:
            recipe = self._recipe(options)
            if not whole:
                recipe = recipe.changed(_ONE_PASS)
            if fresh:
                self._begin(recipe, records, seed)
            self._learn(recipe, records, seed)
        finally:
            restore_generators(before)

    @property
    def _own_task(self) -> AnyTask:
        task = self.bundle_.task
        assert task is not None  # noqa: S101 - loaded with one
        return task

    # Answers

    def _answers(self, records: Records) -> list[Prediction]:
        return Predictor(self.bundle_, device=self.device).predict(records)

    # On disk

    def __getstate__(self) -> dict[str, Any]:
        """Return plain values; the model as the files that `save` writes."""
        state = dict(super().__getstate__())
        bundle = state.pop("bundle_", None)
        if bundle is not None:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                save_bundle(bundle, folder)
                files = [path for path in folder.rglob("*") if path.is_file()]
                state["_files"] = {
                    str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)
                }
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        own = dict(state)
        files = own.pop("_files", None)
        super().__setstate__(own)
        if files is None:
            return
        with tempfile.TemporaryDirectory() as name:
            for path, content in files.items():
                target = Path(name) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            self.bundle_ = load(name, mmap=False)
        # The folder is gone.
        self.bundle_.folder = None


class _Saves(_TextEstimator):
    """An estimator whose model answers in the same way everywhere else in pretune."""

    def save(self, folder: str | Path) -> None:
        """Write the model into a new folder, as transformers and all of pretune open it.

        Raises:
            NotFittedError: nothing was fitted yet.
            EstimatorError: the folder is there already.
        """
        check_is_fitted(self, "bundle_")
        if Path(folder).exists():
            raise EstimatorError(f"{folder}: exists already", "Choose another folder.")
        with atomic_folder(Path(folder)) as aside:
            save_bundle(self.bundle_, aside)


class TextClassifier(ClassifierMixin, _Saves):  # type: ignore[misc]
    """One of several classes for a text, or for a pair of texts.

    Attributes:
        classes_: `[K]` the classes, sorted, as they came.
        n_features_in_: texts in a record, 1 or 2.
        bundle_: the model, which `pretune.predict` and the like take.
    """

    _task: ClassVar[str] = "classify"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train a new model.

        Args:
            X: N texts, or N pairs of texts.
            y: N classes.

        Raises:
            EstimatorError: these cannot be learned from; it is a ValueError.
        """
        with _as_value_errors():
            rows = self._rows(X, reset=True)
            y = _classes(y, rows, type(self).__name__)
            self.classes_, numbers = np.unique(y, return_inverse=True)
            self._train_classes(rows, numbers, fresh=True, whole=True)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:  # noqa: N803
        """Train the model on for one pass over some records, at a constant learning rate.

        After `fit` it goes on from there; without it, a new model begins.

        Args:
            X: N texts, or N pairs of texts.
            y: N classes.
            classes: all classes; needed at the first call without `fit`.

        Raises:
            EstimatorError: these cannot be learned from, or have other classes.
        """
        with _as_value_errors():
            fresh = not hasattr(self, "bundle_")
            if fresh and classes is None:
                raise EstimatorError("classes must be passed on the first call to partial_fit.")
            if fresh:
                self.classes_ = np.unique(classes)
            elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
                raise EstimatorError(
                    f"classes: {classes} are not those of the last call, {self.classes_}"
                )
            rows = self._rows(X, reset=fresh)
            y = _classes(y, rows, type(self).__name__)
            places = {value: number for number, value in enumerate(self.classes_.tolist())}
            unknown = [value for value in np.unique(y).tolist() if value not in places]
            if unknown:
                raise EstimatorError(f"y: {unknown[0]!r} is none of the classes {self.classes_}")
            numbers = np.array([places[value] for value in y.tolist()])
            self._train_classes(rows, numbers, fresh=fresh, whole=False)
        return self

    def _train_classes(
        self, rows: Sequence[tuple[str, ...]], numbers: Numbers, *, fresh: bool, whole: bool
    ) -> None:
        if len(self.classes_) < 2:
            raise EstimatorError(
                f"{type(self).__name__} needs at least two classes; y has only one class, "
                f"{self.classes_.tolist()[0]!r}"
            )
        names = _class_names(self.classes_)
        records = self._records(rows, {"label": [names[i] for i in numbers.tolist()]})
        options = {"labels": names, "pair": self.n_features_in_ == 2}
        self._train(records, options, fresh=fresh, whole=whole)

    def predict(self, X: Any) -> Numbers:  # noqa: N803
        """Return `[N]` classes.

        Args:
            X: N texts, or N pairs of texts.

        Raises:
            NotFittedError: nothing was fitted yet.
            EstimatorError: these are no texts.
        """
        best = self.predict_proba(X).argmax(1)
        return cast(Numbers, self.classes_[best])

    def predict_proba(self, X: Any) -> Numbers:  # noqa: N803
        """Return `[N, K]` probabilities, in the order of `classes_`; see `predict`."""
        check_is_fitted(self, "bundle_")
        with _as_value_errors():
            answers = self._answers(self._records(self._rows(X, reset=False), {}))
        scores = [[*answer.scores.values()] for answer in cast(Any, answers)]
        values = np.array(scores, dtype=np.float64)
        return cast(Numbers, values / values.sum(1, keepdims=True))


class TextRegressor(RegressorMixin, _TextEstimator):  # type: ignore[misc]
    """A number for a text, or for a pair of texts.

    The targets are learned with a mean of 0 and a spread of 1, and given back in their own unit.

    Attributes:
        mean_: of the targets.
        scale_: their standard deviation; 1 where they are all the same.
        n_features_in_: texts in a record, 1 or 2.
        bundle_: the model, whose scores are standardised.
    """

    _task: ClassVar[str] = "regress"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train a new model.

        Args:
            X: N texts, or N pairs of texts.
            y: N numbers.

        Raises:
            EstimatorError: these cannot be learned from; it is a ValueError.
        """
        with _as_value_errors():
            rows = self._rows(X, reset=True)
            scores = _scores(y, rows, type(self).__name__)
            # Of one record scikit-learn asks another error, which comes later.
            if len(scores) > 1 and scores.min() == scores.max():
                raise EstimatorError(
                    f"y: every target is {scores[0]:g}; there is nothing to learn",
                    "Is it the right column?",
                )
            self._train_scores(rows, scores, fresh=True, whole=True)
        return self

    def partial_fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train the model on for one pass over some records, at a constant learning rate.

        After `fit` it goes on from there; without it, a new model begins, and these records give
        the mean and the spread of all later ones.

        Args:
            X: N texts, or N pairs of texts.
            y: N numbers.

        Raises:
            EstimatorError: these cannot be learned from.
        """
        with _as_value_errors():
            fresh = not hasattr(self, "bundle_")
            rows = self._rows(X, reset=fresh)
            scores = _scores(y, rows, type(self).__name__)
            self._train_scores(rows, scores, fresh=fresh, whole=False)
        return self

    def _train_scores(
        self, rows: Sequence[tuple[str, ...]], y: Numbers, *, fresh: bool, whole: bool
    ) -> None:
        if fresh:
            self.mean_ = float(y.mean())
            self.scale_ = float(y.std()) or 1.0
        records = self._records(rows, {"score": ((y - self.mean_) / self.scale_).tolist()})
        self._train(records, {"pair": self.n_features_in_ == 2}, fresh=fresh, whole=whole)

    def predict(self, X: Any) -> Numbers:  # noqa: N803
        """Return `[N]` numbers.

        Args:
            X: N texts, or N pairs of texts.

        Raises:
            NotFittedError: nothing was fitted yet.
            EstimatorError: these are no texts.
        """
        check_is_fitted(self, "bundle_")
        with _as_value_errors():
            answers = self._answers(self._records(self._rows(X, reset=False), {}))
        scores = np.array([answer.score for answer in cast(Any, answers)], dtype=np.float64)
        return cast(Numbers, scores * self.scale_ + self.mean_)


class TextTagger(_Saves):
    """A tag for each word of a sentence; `pretune.sklearn.Tagger`.

    Attributes:
        classes_: the tags, in the model's order.
        bundle_: the model, which `pretune.predict` and the like take.
    """

    _task: ClassVar[str] = "tag"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train a new model.

        Args:
            X: N sentences, each a sequence of words.
            y: for each a sequence of as many tags, such as `B-PER` and `O`.

        Raises:
            EstimatorError: these cannot be learned from; it is a ValueError.
        """
        with _as_value_errors():
            records = self._sentences(X, y)
            self._train(records, {}, fresh=True, whole=True)
            self.classes_ = np.array(getattr(self._own_task, "labels", ()))
        return self

    def predict(self, X: Any) -> list[list[str]]:  # noqa: N803
        """Return the tags of each sentence, one for each word.

        Args:
            X: N sentences, each a sequence of words.

        Raises:
            NotFittedError: nothing was fitted yet.
            EstimatorError: these are no sentences.
        """
        check_is_fitted(self, "bundle_")
        with _as_value_errors():
            answers = self._answers(self._sentences(X))
        return [[*(answer.tags or ())] for answer in cast(Any, answers)]

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        """Return the F1 of entities: right are those whose type and both ends are."""
        check_is_fitted(self, "bundle_")
        with _as_value_errors():
            records, bundle = self._sentences(X, y), self.bundle_
            features = record_features(self._own_task, records, bundle.tokenizer, evaluation=True)
            device = choose_device(self.device)
            whole = evaluate_features(
                self._own_task, bundle.model.to(device), features, device=device
            )
        return whole.metrics["f1"]

    def _sentences(self, X: Any, y: Any = None) -> Records:  # noqa: N803
        """Return records of sentences, with their tags if there are any.

        Raises:
            EstimatorError: a sentence is no list of words, or has another number of tags.
        """
        sentences = [*X]
        if not sentences:
            raise EstimatorError("X: found 0 sentences, while a minimum of 1 is required")
        for number, words in enumerate(sentences):
            if isinstance(words, str) or not all(isinstance(word, str) for word in words):
                raise EstimatorError(
                    f"X: sentence {number} is {describe_value(words)}",
                    "Give a list of words for each sentence.",
                )
        rows: list[Record] = [{"tokens": [*map(str, words)]} for words in sentences]
        if y is None:
            return Records(rows, "X", columns=("tokens",))
        check_consistent_length(sentences, y)
        for row, tags in zip(rows, y, strict=True):
            row["ner_tags"] = [*map(str, tags)]
        return Records(rows, "X", columns=("tokens", "ner_tags"))


Tagger = TextTagger


def _listed(X: Any) -> list[tuple[str, ...]]:  # noqa: N803
    """Return the texts of each record in a sequence, an array, a series or a frame.

    Raises:
        EstimatorError: there are none, or something is no text.
    """
    if isinstance(X, str):
        raise EstimatorError("X: found a text, expected a sequence of texts", "Give [text].")
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if hasattr(X, "tolist"):
        X = X.tolist()
    try:
        records = [*X]
    except TypeError:
        raise EstimatorError(f"X: expected texts, found {describe_value(X)}") from None
    if not records:
        raise EstimatorError("X: found 0 texts, while a minimum of 1 is required")
    rows = []
    for number, record in enumerate(records):
        texts = (record,) if isinstance(record, str) or not _is_row(record) else tuple(record)
        for text in texts:
            if not isinstance(text, str):
                raise EstimatorError(
                    f"X: expected a text in row {number}, found {describe_value(text)}",
                    "Turn numbers and missing values into texts first, or remove these rows.",
                )
        rows.append(tuple(map(str, texts)))
    return rows


def _is_row(record: object) -> bool:
    return isinstance(record, list | tuple | np.ndarray)


def _given(y: Any, rows: Sequence[Any], name: str) -> Numbers:
    """Return targets as one column, as many as there are rows."""
    if y is None:
        raise EstimatorError(
            f"This {name} estimator requires y to be passed, but the target y is None"
        )
    column = cast(Numbers, column_or_1d(y, warn=True))
    check_consistent_length(rows, column)
    if column.dtype.kind == "f":
        assert_all_finite(column, input_name="y")
    return column


def _classes(y: Any, rows: Sequence[Any], name: str) -> Numbers:
    column = _given(y, rows, name)
    check_classification_targets(column)
    return column


def _scores(y: Any, rows: Sequence[Any], name: str) -> Numbers:
    column = _given(y, rows, name).astype(np.float64)
    assert_all_finite(column, input_name="y")
    return column


def _class_names(classes: Numbers) -> list[str]:
    """Return a name for each class: as it is written, or its number where that tells none apart."""
    names = [str(value) for value in classes.tolist()]
    keys = {label_key(name) for name in names}
    if len(keys) < len(names) or "" in keys or any(name != name.strip() for name in names):
        return [str(number) for number in range(len(names))]
    return names


def _plain(value: Any) -> Any:
    """Return a number of numpy, as a grid of parameters has them, as one of Python."""
    return value.item() if isinstance(value, np.generic) else value
