from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pretune.data.batch import Feature, FeatureSet, PackedBatch
from pretune.models.heads.vocabulary import score_tokens
from pretune.tasks.base import TaskOptions
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.losses import IGNORED, cross_entropy
from pretune.tasks.masked_lm.mask_lm import UNKNOWN, MaskLm, MaskLmOptions
from pretune.tasks.masked_lm.masked_sequences import MASKED
from pretune.training.validation import evaluate_features


def by_hand(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, z_loss: float
) -> tuple[torch.Tensor, float, float]:
    """Row by row in float64: the target as a distribution, its cross-entropy, and log(Z)^2."""
    total, plain, penalty = logits.double().sum() * 0, 0.0, 0.0
    classes = logits.shape[1]
    for row, label in zip(logits.double(), labels.tolist(), strict=True):
        if label == IGNORED:
            continue
        log_z = torch.log(torch.exp(row).sum())
        target = torch.full((classes,), smoothing / classes, dtype=torch.float64)
        target[label] += 1 - smoothing
        total = total - (target * (row - log_z)).sum() + z_loss * log_z**2
        plain -= float((row - log_z)[label].detach())
        penalty += z_loss * float(log_z.detach()) ** 2
    return total, plain, penalty


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    rows, classes = draw(st.integers(0, 6)), draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    logits = 4 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    if rows and draw(st.booleans()):
        labels[::2] = IGNORED
    return logits, labels


class TestCrossEntropy:
    @given(cases(), st.sampled_from([0.0, 0.1, 0.7]), st.sampled_from([0.0, 1e-4, 0.3]))
    def test_is_the_formula(
        self, case: tuple[torch.Tensor, torch.Tensor], smoothing: float, z_loss: float
    ) -> None:
        logits, labels = case
        ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
        total, parts = cross_entropy(ours, labels, smoothing, z_loss)
        expected, plain, penalty = by_hand(theirs, labels, smoothing, z_loss)
        assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5)
        total.backward()
        expected.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        names = ["cross_entropy"] if smoothing or z_loss else []
        assert list(parts) == names + (["z_loss"] if z_loss else [])
        if parts:
            assert float(parts["cross_entropy"]) == pytest.approx(plain, rel=1e-5, abs=1e-5)
        if z_loss:
            assert float(parts["z_loss"]) == pytest.approx(penalty, rel=1e-5, abs=1e-5)
        assert not any(value.requires_grad for value in parts.values())

    @given(cases(), st.sampled_from([0.0, 0.1, 0.9]))
    def test_smoothing_is_that_of_torch(
        self, case: tuple[torch.Tensor, torch.Tensor], smoothing: float
    ) -> None:
        logits, labels = case
        expected = torch.nn.functional.cross_entropy(
            logits, labels, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing
        )
        total, _ = cross_entropy(logits, labels, smoothing)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)

    @given(cases(), st.sampled_from([0.0, 0.2]), st.sampled_from([0.0, 0.5, 2.0]))
    def test_class_weights_and_focal_loss_are_the_formula(
        self, case: tuple[torch.Tensor, torch.Tensor], smoothing: float, gamma: float
    ) -> None:
        """Lin et al. 2017, equation 5, row by row in float64."""
        logits, labels = case
        weights = [0.5 + 0.25 * i for i in range(logits.shape[1])]
        ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
        how: dict[str, Any] = {"class_weights": weights, "focal_gamma": gamma}
        total, parts = cross_entropy(ours, labels, smoothing, 1e-2, **how)
        expected = theirs.double().sum() * 0
        for row, label in zip(theirs.double(), labels.tolist(), strict=True):
            if label != IGNORED:
                one, _, _ = by_hand(row[None], torch.tensor([label]), smoothing, 0.0)
                p = torch.softmax(row, -1)[label]
                expected = expected + weights[label] * (1 - p) ** gamma * one
                expected = expected + 1e-2 * torch.logsumexp(row, -1) ** 2
        assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
        total.backward()
        expected.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
        assert list(parts) == ["cross_entropy", "z_loss"]

    @given(cases())
    def test_class_weights_are_those_of_torch(
        self, case: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        logits, labels = case
        weights = [0.5 + i for i in range(logits.shape[1])]
        expected = torch.nn.functional.cross_entropy(
            logits,
            labels,
            weight=torch.tensor(weights),
            reduction="sum",
            ignore_index=IGNORED,
        )
        total, _ = cross_entropy(logits, labels, class_weights=weights)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    def test_focal_loss_of_what_is_certain_has_a_gradient(self, gamma: float) -> None:
        logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
        total, _ = cross_entropy(logits, torch.tensor([0, 0]), focal_gamma=gamma)
        total.backward()
        assert float(total.detach()) == pytest.approx(200.0)
        assert logits.grad is not None
        assert logits.grad[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
        assert logits.grad[1].tolist() == pytest.approx([-1.0, 1.0])

    def test_is_computed_in_float32(self) -> None:
        logits = torch.tensor([[1.0, 2.0, 3.0]] * 300, dtype=torch.bfloat16)
        total, parts = cross_entropy(logits, torch.full((300,), 2), 0.0, 1e-3)
        log_z = math.log(sum(math.exp(x) for x in (1, 2, 3)))
        assert total.dtype == torch.float32
        expected = 300 * (log_z - 3 + 1e-3 * log_z**2)
        assert float(total) == pytest.approx(expected, rel=1e-5)
        assert float(parts["cross_entropy"]) == pytest.approx(300 * (log_z - 3), rel=1e-5)

    def test_logits_beyond_the_range_of_exp(self) -> None:
        logits = torch.tensor([[1000.0, 999.0], [-1000.0, -1001.0]])
        total, _ = cross_entropy(logits, torch.tensor([0, 0]), 0.1, 1e-4)
        one = math.log(1 + math.exp(-1))
        expected = 2 * (one + 0.05) + 1e-4 * ((1000 + one) ** 2 + (-1000 + one) ** 2)
        assert float(total) == pytest.approx(expected, rel=1e-5)


class TestOptions:
    @pytest.mark.parametrize("options", [ClassifyOptions, MaskLmOptions])
    @pytest.mark.parametrize(
        "wrong",
        [
            {"label_smoothing": 1.0},
            {"label_smoothing": -0.1},
            {"z_loss": -1e-4},
            {"z_loss": math.inf},
            {"z_loss": math.nan},
        ],
    )
    def test_refuse_what_makes_no_sense(
        self, options: type[TaskOptions], wrong: dict[str, Any]
    ) -> None:
        with pytest.raises(ValidationError):
            options(**wrong)

    def test_classify(self) -> None:
        logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        batch = PackedBatch.of([[1], [2]], targets={"label": [0, 2]})
        options = ClassifyOptions(label_smoothing=0.2, z_loss=0.01)
        loss = Classify(options, ["a", "b", "c"]).loss(logits, batch)
        expected, plain, penalty = by_hand(logits, torch.tensor([0, 2]), 0.2, 0.01)
        assert loss.count == 2
        assert float(loss.sum) == pytest.approx(float(expected))
        assert float(loss.parts["cross_entropy"]) == pytest.approx(plain)
        assert float(loss.parts["z_loss"]) == pytest.approx(penalty)

    def test_mask_lm(self) -> None:
        logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        batch = PackedBatch.of([[1, 1, 1]], targets={MASKED: [[0, -1, 2]]})
        task = MaskLm(MaskLmOptions(label_smoothing=0.2, z_loss=0.01))
        scores = score_tokens(
            logits, torch.eye(3), None, torch.tensor([0, 2]), **task.options.score_options
        )
        loss = task.loss(scores, batch)
        expected, plain, penalty = by_hand(logits, torch.tensor([0, 2]), 0.2, 0.01)
        assert loss.count == 2
        assert float(loss.sum) == pytest.approx(float(expected))
        assert float(loss.parts["cross_entropy"]) == pytest.approx(plain)
        assert float(loss.parts["z_loss"]) == pytest.approx(penalty)

    def test_what_nobody_knows_cannot_be_scored(self) -> None:
        batch = PackedBatch.of([[1, 1]], targets={MASKED: [[UNKNOWN, -1]]})
        with pytest.raises(ValueError, match="nobody knows"):
            MaskLm(MaskLmOptions()).loss(torch.zeros(1, 3), batch)

    def test_parts_of_a_batch_add_up_to_the_whole(self) -> None:
        """What gradient accumulation needs: the sum over parts is the sum over all."""
        torch.manual_seed(0)
        task = Classify(ClassifyOptions(label_smoothing=0.1, z_loss=1e-2), ["a", "b", "c"])
        whole, parted = (torch.randn(7, 3).mul(0).add(torch.arange(21.0).view(7, 3).sin()) * 3,) * 2
        labels = [0, 1, 2, 0, 1, 2, 0]
        ours, theirs = whole.clone().requires_grad_(), parted.clone().requires_grad_()
        task.loss(ours, PackedBatch.of([[1]] * 7, targets={"label": labels})).sum.backward()
        count = 0
        for part in (slice(0, 1), slice(1, 5), slice(5, 7)):
            batch = PackedBatch.of([[1]] * len(labels[part]), targets={"label": labels[part]})
            loss = task.loss(theirs[part], batch)
            loss.sum.backward()
            count += loss.count
        assert count == 7
        torch.testing.assert_close(ours.grad, theirs.grad)


class Echo(torch.nn.Module):
    """Texts are one token long; it numbers their logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.arange(12.0).view(4, 3).cos() * 3

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        return self.table[batch.tokens]


class TestEvaluation:
    def test_shows_the_means_of_the_parts(self) -> None:
        model, labels = Echo(), [0, 2, 1, 1]
        features = FeatureSet.of([Feature([i], None, {"label": labels[i]}, i) for i in range(4)])
        options = ClassifyOptions(label_smoothing=0.2, z_loss=0.01)
        task = Classify(options, ["a", "b", "c"])
        found = evaluate_features(task, model, features, batch_tokens=3).metrics
        total, plain, penalty = by_hand(model.table, torch.tensor(labels), 0.2, 0.01)
        assert found["loss"] == pytest.approx(float(total) / 4, rel=1e-5)
        assert found["cross_entropy"] == pytest.approx(plain / 4, rel=1e-5)
        assert found["z_loss"] == pytest.approx(penalty / 4, rel=1e-5)
        guesses = model.table.argmax(-1).numpy()
        assert found["accuracy"] == pytest.approx(np.mean(guesses == labels))

    def test_a_plain_loss_has_no_parts(self) -> None:
        features = FeatureSet.of([Feature([0], None, {"label": 1}, 0)])
        task = Classify(ClassifyOptions(), ["a", "b", "c"])
        found = evaluate_features(task, Echo(), features).metrics
        assert set(found) == {"loss", "accuracy", "f1", "mcc"}
