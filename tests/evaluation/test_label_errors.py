"""Confident learning, against the paper's equations in loops and against planted errors."""

from __future__ import annotations

import numpy as np
import pytest

from pretune.evaluation.label_errors import find_label_errors, label_errors_of
from pretune.tasks.grading import Decision, Grade


def planted(wrong: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a good model, labels of which a share is wrong, and the true classes."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, 600)
    logits = random.normal(0, 1, (600, 3))
    logits[np.arange(600), truth] += 4
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = np.where(random.random(600) < wrong, (truth + 1) % 3, truth)
    return shares, given, truth


def test_the_equations_of_the_paper() -> None:
    shares, given, _ = planted(0.1)
    errors = find_label_errors(shares, given)
    # Equations 2, 1 and 3, example by example.
    thresholds = [
        np.mean([p[j] for p, y in zip(shares, given, strict=True) if y == j]) for j in range(3)
    ]
    assert errors.thresholds == pytest.approx(thresholds)
    counts, off = np.zeros((3, 3)), []
    for number, (p, label) in enumerate(zip(shares, given, strict=True)):
        sure = [j for j in range(3) if p[j] >= thresholds[j]]
        if sure:
            best = max(sure, key=lambda j: p[j])
            counts[label, best] += 1
            if best != label:
                off.append(number)
    assert errors.counts.tolist() == counts.tolist()
    joint = counts / counts.sum(1, keepdims=True) * np.bincount(given)[:, None]
    assert errors.joint == pytest.approx(joint / joint.sum())
    assert sorted(errors.suspects) == off
    margins = [shares[i, given[i]] - max(np.delete(shares[i], given[i])) for i in errors.suspects]
    assert margins == sorted(margins)
    assert errors.margin[errors.suspects] == pytest.approx(margins)


def test_planted_errors_are_seen() -> None:
    shares, given, truth = planted(0.1)
    errors, wrong = find_label_errors(shares, given), np.flatnonzero(given != truth)
    seen = {*errors.suspects} & {*wrong.tolist()}
    assert len(seen) > 0.85 * len(wrong)
    assert len(seen) > 0.85 * len(errors.suspects)
    assert errors.wrong_share == pytest.approx(len(wrong) / 600, abs=0.02)
    first = errors.suspects[: len(wrong) // 2]
    assert all(number in wrong for number in first), "the worst come first"
    columns = errors.columns(first[0], ["a", "b", "c"])
    assert columns["suggested_label"] == "abc"[truth[first[0]]]
    assert columns["label_issue"]
    assert columns["label_quality"] == pytest.approx(shares[first[0], given[first[0]]])


def test_a_class_without_examples_and_one_without_confidence() -> None:
    shares = np.array([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0], [0.2, 0.8, 0.0]])
    errors = find_label_errors(shares, np.array([0, 0, 1]))
    assert np.isinf(errors.thresholds[2])
    assert errors.joint.sum() == pytest.approx(1)
    assert errors.suspects == []


def test_only_single_choices_between_the_labels_are_judged() -> None:
    decision = Decision(0.9, True, (0.9, 0.1), 0, 0)
    judged = label_errors_of([Grade(decisions=(decision,))] * 2, ["a", "b"])
    assert judged is not None
    assert judged.suspects == []
    assert label_errors_of([Grade(decisions=(decision, decision))], ["a", "b"]) is None
    assert label_errors_of([Grade()], ["a", "b"]) is None
    assert label_errors_of([Grade(decisions=(decision,))], ["LABEL_0"]) is None
    broken = Decision(0.9, True, (float("nan"), 0.1), 0, 0)
    assert label_errors_of([Grade(decisions=(broken,))], ["a", "b"]) is None
