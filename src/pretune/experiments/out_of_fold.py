"""Out-of-fold answers: each record answered by the run that did not learn from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretune.bundle.bundle import load
from pretune.checkpoints.atomic_io import atomic_text
from pretune.data.arrays import Array
from pretune.data.records import Record, Records
from pretune.errors import not_writable
from pretune.evaluation.label_errors import LabelErrors, label_errors_of
from pretune.experiments.failed_runs import several_to_dict
from pretune.inference.answer_table import AnswerTable, answered_row
from pretune.inference.predict import Predictor
from pretune.recipe.recipe import Recipe
from pretune.recipe.schema import FoldSection
from pretune.tasks.base import AnyTask, Prediction
from pretune.tasks.grading import Grade
from pretune.training.data import read_data, record_folds
from pretune.training.run_result import SeveralRuns

#: The files that a cross-validation writes beside its runs.
TABLE, SUMMARY = "out-of-fold.jsonl", "folds.json"


@dataclass(frozen=True)
class OutOfFold:
    """The records of a cross-validation with their answers.

    Attributes:
        records: all of them, in the order of the data.
        folds: `[N]` the part of each, from 1.
        answers: by the run that was validated on that part.
        grades: the answers beside the truth.
        task: of the first run.
        errors: labels that may be wrong; None for tasks other than `classify`.
    """

    records: Records
    folds: Array
    answers: list[Prediction]
    grades: list[Grade]
    task: AnyTask
    errors: LabelErrors | None

    @property
    def labels(self) -> list[str]:
        """The names of the classes; empty where there are none."""
        return [*getattr(self.task, "labels", ())]

    def figures(self) -> dict[str, float]:
        """Compute the figures of all answers together, but those that follow from losses."""
        if len({len(grade.counts) for grade in self.grades}) != 1:
            return {}
        counts = np.array([grade.counts for grade in self.grades]).sum(0)
        # Answers have no losses: what changes with them is left out.
        none, some = (self.task.figures(np.array([loss, 1.0, *counts])) for loss in (0.0, 1.0))
        return {name: float(value) for name, value in none.items() if some[name] == value}

    def rows(self) -> Iterator[Record]:
        """Yield each record with its part and its answer, and what its label looks like."""
        for number, (row, answer) in enumerate(zip(self.records.rows, self.answers, strict=True)):
            told = {} if self.errors is None else self.errors.columns(number, self.labels)
            answered = answered_row(row, self.records.renamed, answer, everything=True)
            yield {**answered, "fold": int(self.folds[number]), **told}


def out_of_fold(
    recipe: Recipe,
    result: SeveralRuns,
    fold: FoldSection,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> OutOfFold:
    """Answer all records of a cross-validation.

    Args:
        recipe: that it was made of.
        result: its runs.
        fold: any of its parts.
        progress: called with the number of runs that have answered, and of all.

    Raises:
        PretuneError: data or a model cannot be read.
    """
    whole = recipe.changed({"data.validation": None, "data.fold": None})
    records, _ = read_data(whole)
    assert isinstance(records, Records)  # noqa: S101 - no other data are split into parts
    numbers = record_folds(whole, records, fold)
    answers: dict[int, Prediction] = {}
    grades: dict[int, Grade] = {}
    tasks = []
    for number, run in enumerate(result.runs):
        rows = np.flatnonzero(numbers == number).tolist()
        bundle = load(run.folder)
        predictor = Predictor(bundle, device=recipe.train.device, precision=recipe.train.precision)
        grade = predictor.task.grader(records)
        for row, answer in zip(rows, predictor.predict(records.take(rows)), strict=True):
            answers[row], grades[row] = answer, grade(answer, row)
        tasks.append(predictor.task)
        if progress is not None:
            progress(number + 1, len(result.runs))
    graded = [grades[row] for row in range(len(records))]
    return OutOfFold(
        records=records,
        folds=numbers + 1,
        answers=[answers[row] for row in range(len(records))],
        grades=graded,
        task=tasks[0],
        errors=label_errors_of(graded, getattr(tasks[0], "labels", ())),
    )


def write_out_of_fold(folder: Path, result: SeveralRuns, answers: OutOfFold) -> None:
    """Write `out-of-fold.jsonl`, a row for each record, and `folds.json`, the figures.

    Raises:
        RunError: a file cannot be written.
    """
    table = folder / TABLE
    # What an earlier command left unfinished is of these runs, or of others that are gone.
    table.with_name(f"{TABLE}.part").unlink(missing_ok=True)
    filled = AnswerTable(table, {})
    filled.add(answers.rows())
    filled.finish()
    text = json.dumps(folds_to_dict(result, answers), ensure_ascii=False, indent=2)
    try:
        atomic_text(folder / SUMMARY, text + "\n")
    except OSError as error:
        raise not_writable(folder / SUMMARY, "output=FOLDER", error) from None


def folds_to_dict(result: SeveralRuns, answers: OutOfFold) -> dict[str, Any]:
    """Convert to plain values for JSON: those of several runs, and of all answers together."""
    more: Mapping[str, Any] = {"out_of_fold": answers.figures()}
    if answers.errors is not None:
        suspects = len(answers.errors.suspects)
        wrong = {"suspects": suspects, "wrong_share": answers.errors.wrong_share}
        more = {**more, "labels": wrong}
    return {**several_to_dict(result), **more}
