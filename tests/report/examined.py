"""A tiny classifier and examples that would like to break a page."""

from __future__ import annotations

from pathlib import Path

import torch

from pretune.data import Records
from pretune.infer.examine import Examined, examine
from pretune.infer.explain import explain
from pretune.report.report import ReportFacts, ReportPage
from pretune.tasks import Classify, ClassifyOptions
from pretune.tasks.bundle import Bundle, load

NASTY = "</script><script>window.broken = true</script><!-- <img src=http://127.0.0.1:9/x>"


def classifier(folder: Path, **options: float) -> Bundle:
    torch.manual_seed(0)
    task = Classify(ClassifyOptions(max_length=32, **options), ["bad", "good", "好"])
    return load(folder, task=task)


def records(count: int = 120) -> Records:
    rows = [
        {"text": f"{'the ' * (i % 7)}film {i}", "label": ("bad", "good", "好")[i % 3]}
        for i in range(count)
    ]
    rows[0]["text"] = NASTY
    return Records(rows, "films.tsv", range(2, count + 2), ("text", "label"))


def examined(folder: Path, count: int = 120) -> tuple[Bundle, Examined]:
    bundle = classifier(folder)
    return bundle, examine(bundle, records(count), device="cpu")


def built(folder: Path, count: int = 120) -> ReportPage:
    bundle, found = examined(folder, count)
    worst = found.worst_first()[:2]
    course = {"train/loss": ([1.0, 2.0], [0.9, 0.5]), "validation/loss": ([2.0], [0.6])}
    explained = {number: explain(bundle, found, number) for number in worst}
    return ReportPage(ReportFacts("films", "task: classify", course, found, explained))
