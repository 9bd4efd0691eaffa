from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretune.api import evaluate
from pretune.infer.examine import batch_of, examine
from pretune.infer.explain import gradient_times_input
from tests.report.examined import classifier, examined, records


def test_attributions_are_the_slope_by_a_factor_before_each_embedding(tiny_folder: Path) -> None:
    bundle, found = examined(tiny_folder, 30)
    bundle.model.double()
    batch = batch_of(found.task, found.features, 5)
    _, scores = gradient_times_input(bundle, batch, found.task)
    table = bundle.backbone.embeddings.tokens

    def loss_at(token: int, factor: float) -> float:
        def scale(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
            factors = torch.ones(len(output), 1, dtype=output.dtype)
            factors[token] = factor
            return output * factors

        handle = table.register_forward_hook(scale)
        with torch.no_grad():
            logits = found.task.forward(bundle.model, batch).double()
        handle.remove()
        return float(-logits.log_softmax(-1)[0, batch.targets["label"][0]])

    step = 1e-4
    slopes = [
        (loss_at(t, 1 + step) - loss_at(t, 1 - step)) / (2 * step) for t in range(batch.num_tokens)
    ]
    assert max(map(abs, slopes)) > 1e-3
    assert scores.tolist() == pytest.approx(slopes, abs=2e-4)


def test_examples_add_up_to_the_evaluation(tiny_folder: Path) -> None:
    bundle, found = examined(tiny_folder)
    expected = evaluate(bundle, records(), device="cpu").metrics
    assert found.metrics == pytest.approx(expected)
    sums = {name: float(value) for name, value in found.task.figures(found.sums.sum(0)).items()}
    assert sums == pytest.approx(expected, rel=1e-5)


def test_worst_come_first_and_smoothing_says_nothing_of_an_example(tiny_folder: Path) -> None:
    _, found = examined(tiny_folder)
    losses = [found.examples[i].mean_loss for i in found.worst_first()]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]
    smoothed = examine(classifier(tiny_folder, label_smoothing=0.2), records(), device="cpu")
    plain = [example.loss for example in found.examples]
    assert [example.loss for example in smoothed.examples] == pytest.approx(plain, rel=1e-5)
