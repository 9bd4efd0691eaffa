"""Tiny models on disk, for services of tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pretune.bundle.bundle import Bundle, save
from pretune.serving.jobs import Served
from pretune.serving.options import ServeOptions
from tests.tasks.every_task import CASES


def saved(bundle: Bundle, folder: Path) -> Path:
    folder.mkdir()
    save(bundle, folder)
    return folder


def model_of(task: str, tiny_folder: Path, place: Path) -> Path:
    """The folder of a tiny model with a head of random weights."""
    (place / task).mkdir()
    return saved(CASES[task].bundle(tiny_folder, place / task), place / task / "model")


def options_for(models: dict[str, Path], **more: Any) -> ServeOptions:
    named = tuple((name, str(folder)) for name, folder in models.items())
    return ServeOptions(named, **{"device": "cpu", "precision": "float32", **more})


def served_model(**changes: Any) -> Served:
    fields: dict[str, Any] = {
        "name": "m",
        "source": "m",
        "task": "classify",
        "version": 1,
        "model_type": "bert",
        "labels": None,
        "inputs": ("text",),
        "abilities": frozenset({"predict"}),
        "context_length": 64,
        "embedding_size": None,
        "parameters": 1,
        "loaded": 0.0,
    }
    return Served(**{**fields, **changes})


def unlabelled(task: str, count: int) -> list[dict[str, Any]]:
    """Inputs that a model of a task can answer, as its predictions read them."""
    case = CASES[task]
    inputs = list(case.task().inputs)
    rows = [{name: row[name] for name in inputs} for row in case.rows(count)]
    if task.startswith("mask_lm"):
        rows = [{"text": f"[MASK] {row['text']}"} for row in rows]
    return rows


def same(one: Any, other: Any) -> bool:
    """Whether two answers are equal, numbers to 1e-5."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
