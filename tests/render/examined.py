"""What a report is made of, for tiny models of each task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pretune.evaluation.examine import examine
from pretune.evaluation.explain import explain
from pretune.experiments.history import MetricHistory
from pretune.render.report import ReportFacts
from tests.tasks.every_task import CASES

HISTORY = [
    '{"step": 1, "epoch": 1, "train/loss": 0.9, "train/learning_rate": 1e-5}',
    '{"step": 2, "epoch": 2, "train/loss": 0.5, "train/learning_rate": 0.0}',
    '{"step": 2, "epoch": 2, "validation/loss": 0.6, "validation/accuracy": 0.5}',
    '{"step": 3, "epo',
]


def facts(
    name: str, tiny_folder: Path, tmp_path: Path, count: int = 24, lines: Sequence[str] = HISTORY
) -> ReportFacts:
    """A report on `count` records of a task, with the training that `lines` tell of."""
    case = CASES[name]
    found = examine(case.bundle(tiny_folder, tmp_path), case.records(count), device="cpu")
    explained = {number: explain(found, number) for number in found.worst_first()[:1]}
    return ReportFacts(
        name="films <b>",
        examined=found,
        recipe="task: <b>",
        history=MetricHistory.of(lines),
        explained=explained,
        fitted=found,
    )
