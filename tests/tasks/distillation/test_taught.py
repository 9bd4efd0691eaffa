"""Every task that can have a teacher: a kept one is a live one, and closed forms of the loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretune.bundle.bundle import Bundle
from pretune.data.batch import PackedBatch
from pretune.tasks.base import drawn
from pretune.tasks.distillation.taught import SOFT, Teacher, Teaching, taught, teacher_targets
from pretune.tasks.features import record_features
from tests.tasks.every_task import CASES

TASKS = (
    *("classify", "multilabel", "regress", "tag", "answer", "answer_none", "mask_lm"),
    *("mask_lm_pairs", "causal_lm", "chat", "instruct", "translate"),
)


def as_taught(bundle: Bundle, how: Teaching) -> Any:
    """The bundle's task, learning from a teacher."""
    plain: Any = bundle.task
    task: Any = taught(type(plain))(plain.options).with_state(plain.state())
    task.__dict__ |= {k: v for k, v in vars(plain).items() if k not in vars(task)}
    vars(task).update({k: v for k, v in vars(plain).items() if k.startswith("_")})
    task.teaching = how
    return task


def prepared(name: str, tiny_folder: Path, tmp_path: Path) -> tuple[Bundle, PackedBatch]:
    case = CASES[name]
    bundle = case.bundle(tiny_folder, tmp_path)
    assert bundle.task is not None
    records = case.records(6)
    features = record_features(bundle.task, records, bundle.tokenizer)
    which = np.arange(len(features))
    return bundle, drawn(bundle.task, features.batch(which), seed=0, epoch=0)


def taught_batch(task: Any, bundle: Bundle, batch: PackedBatch, how: Teaching) -> PackedBatch:
    given = teacher_targets(task, [Teacher(bundle.model, bundle.task)], batch, how)
    return replace(batch, targets={**batch.targets, **given})


def gradients(task: Any, bundle: Bundle, batch: PackedBatch) -> tuple[Any, dict[str, Tensor]]:
    bundle.model.zero_grad()
    loss = task.loss(task.forward(bundle.model, batch), batch)
    loss.sum.backward()
    grads = {n: p.grad.clone() for n, p in bundle.model.named_parameters() if p.grad is not None}
    return loss, grads


def largest(grads: Mapping[str, Tensor]) -> float:
    return max(float(grad.abs().max()) for grad in grads.values())


@pytest.mark.parametrize("name", TASKS)
def test_a_teacher_of_weight_0_changes_nothing(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """Sum, count and gradients are those of the plain task."""
    bundle, batch = prepared(name, tiny_folder, tmp_path)
    plain, expected = gradients(bundle.task, bundle, batch)
    how = Teaching(soft=0.0, labels=1.0)
    task = as_taught(bundle, how)
    loss, grads = gradients(task, bundle, taught_batch(task, bundle, batch, how))
    torch.testing.assert_close(loss.sum, plain.sum)
    assert loss.count == plain.count
    for key, grad in expected.items():
        torch.testing.assert_close(grads[key], grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top_k", [3, None])
@pytest.mark.parametrize("name", TASKS)
def test_a_student_that_is_its_teacher_learns_nothing(
    name: str, top_k: int | None, tiny_folder: Path, tmp_path: Path
) -> None:
    bundle, batch = prepared(name, tiny_folder, tmp_path)
    inside = 0.0 if name == "translate" else 1.0
    how = Teaching(soft=1.0, labels=0.0, hidden=inside, relations=inside, top_k=top_k)
    task = as_taught(bundle, how)
    loss, grads = gradients(task, bundle, taught_batch(task, bundle, batch, how))
    assert abs(float(loss.parts["teacher_kl"])) < 1e-3
    assert largest(grads) < 1e-3
    # Another temperature on one side, and there is something to learn.
    other = replace(how, temperature=1.0)
    _, grads = gradients(task, bundle, taught_batch(task, bundle, batch, other))
    assert largest(grads) > 1e-3 or name == "regress"


@pytest.mark.parametrize("name", ["classify", "tag", "causal_lm", "instruct", "translate"])
def test_the_loss_adds_up_over_parts_of_a_batch(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """With hidden states too: sums and counts are those of the whole."""
    case = CASES[name]
    bundle = case.bundle(tiny_folder, tmp_path)
    assert bundle.task is not None
    features = record_features(bundle.task, case.records(6), bundle.tokenizer)
    inside = 0.0 if name == "translate" else 1.0
    how = Teaching(hidden=inside, relations=inside)
    task = as_taught(bundle, how)
    other = copy.deepcopy(bundle)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    losses = []
    for which in (np.arange(len(features)), np.arange(2), np.arange(2, len(features))):
        batch = taught_batch(task, other, features.batch(which), how)
        losses.append(task.loss(task.forward(bundle.model, batch), batch))
    whole, *parts = losses
    assert whole.count == sum(part.count for part in parts)
    torch.testing.assert_close(whole.sum, sum(part.sum for part in parts), rtol=1e-4, atol=1e-4)
    for key in whole.parts:
        total = sum(float(part.parts[key]) for part in parts)
        assert float(whole.parts[key]) == pytest.approx(total, rel=1e-3, abs=1e-4)


def test_several_teachers_are_averaged_by_the_names_of_their_labels(
    tiny_folder: Path, tmp_path: Path
) -> None:
    bundle, batch = prepared("classify", tiny_folder, tmp_path)
    how = Teaching(temperature=3.0)
    turned = Teacher(bundle.model, bundle.task, (2, 0, 1))
    with torch.no_grad():
        probs = (bundle.model(batch) / 3).softmax(-1)
    given = teacher_targets(
        as_taught(bundle, how), [Teacher(bundle.model, bundle.task), turned], batch, how
    )
    torch.testing.assert_close(given[SOFT], (probs + probs[:, [2, 0, 1]]) / 2)


@pytest.mark.parametrize("name", ["classify", "multilabel", "regress"])
def test_a_record_without_a_label_has_no_loss_and_no_figure(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """Sum and metrics are those of the records with labels; the count is that of all."""
    case = CASES[name]
    bundle = case.bundle(tiny_folder, tmp_path)
    task = as_taught(bundle, Teaching(soft=0.0, labels=1.0))
    task.unlabelled = True
    rows, (column,) = case.rows(6), task.targets
    records = replace(
        case.records(6), rows=[{**r, column: None} if r in rows[:2] else r for r in rows]
    )
    assert task.labelled(records) == [2, 3, 4, 5]
    figures, losses = [], []
    for part in (records, records.take([2, 3, 4, 5])):
        features = record_features(task, part, bundle.tokenizer)
        batch = features.batch(np.arange(len(features)))
        with torch.no_grad():
            outputs = bundle.model(batch)
            losses.append(task.loss(outputs, batch))
        metrics = task.metrics(features)
        metrics.update(outputs, batch)
        figures.append(metrics.result())
    torch.testing.assert_close(losses[0].sum, losses[1].sum)
    assert losses[0].count * 4 == losses[1].count * 6
    assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=1e-3)


def test_the_labels_are_the_teachers_where_data_have_only_some() -> None:
    case = CASES["tag"]
    plain: Any = case.task()
    task: Any = taught(type(plain))(plain.options)
    rows = [{"tokens": ["un", "x"], "ner_tags": ["B-PER", "O"]}]
    records = replace(case.records(1), rows=rows)
    task.fit(records)
    assert task.labels == ["O", "B-PER", "I-PER"]
    task.known_labels = plain.labels
    task.fit(records)
    assert task.labels == plain.labels
