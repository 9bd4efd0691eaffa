from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pretune.bundle.bundle import Bundle, load
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.evaluation.examine import Examined, batch_of, examine
from pretune.evaluation.explain import (
    explain,
    explain_answer,
    finished,
    integrated_gradients,
    loss_of,
)
from pretune.tasks.base import AnyTask
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.features import featurize
from tests.tasks.every_task import CASES


def lm(source: str, tiny_folder: Path) -> Examined:
    """Two texts, read by a model without attention."""
    torch.manual_seed(0)
    bundle = load(source, task=CausalLm(CausalLmOptions(max_length=8)), tokenizer=tiny_folder)
    rows = [{"text": "the good good film"}, {"text": "a bad film"}]
    return examine(bundle, Records(rows, "x", (1, 2), ("text",)), device="cpu")


def hooked(bundle: Bundle, share: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Let tokens have a share of their embedding, and the rest of the mask's or of none."""
    mask = bundle.tokenizer.special_id("mask_token")
    table = bundle.backbone.embeddings.tokens
    baseline = torch.zeros(table.weight.shape[1]) if mask is None else table.weight[mask].detach()

    def mix(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        shares = share(inputs[0])[..., None]
        return shares * output + (1 - shares) * baseline

    return table.register_forward_hook(mix)


def special_of(bundle: Bundle) -> set[int | None]:
    names = bundle.tokenizer.special.keys() - {"unk_token"}
    return {bundle.tokenizer.special_id(name) for name in names}


def a_batch(name: str, tiny_folder: Path, tmp_path: Path) -> tuple[Bundle, AnyTask, PackedBatch]:
    if name in CASES:
        case = CASES[name]
        found = examine(case.bundle(tiny_folder, tmp_path), case.records(8), device="cpu")
    else:
        found = lm(name, tiny_folder)
    return found.bundle, found.task, batch_of(found.task, found.features, 1)


MODELS = ["answer", "tag_crf", "choose", "causal_lm", "lstm-small"]


@pytest.mark.parametrize(
    "name", ["classify", "nnlm", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS)]
)
def test_attributions_are_integrals_of_slopes(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    bundle, task, batch = a_batch(name, tiny_folder, tmp_path)
    found = finished(integrated_gradients(bundle, batch, loss_of(task)))
    special = special_of(bundle)

    def loss_at(shares: dict[int, float], others: float) -> float:
        def share(ids: Tensor) -> Tensor:
            values = [
                1.0 if i in special else shares.get(i, others) for i in ids.flatten().tolist()
            ]
            return torch.tensor(values).reshape(ids.shape)

        handle = hooked(bundle, share)
        with torch.no_grad():
            lost = task.loss(task.forward(bundle.model, batch), batch)
        handle.remove()
        return float(lost.sum)

    # Equation 1, by differences in place of gradients and at three points.
    step = 2e-2
    ids = sorted({*batch.tokens.tolist()} - special)
    integrals = []
    for i in ids:
        low, middle, high = (
            (loss_at({i: at + step}, at) - loss_at({i: at - step}, at)) / (2 * step)
            for at in (0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5)
        )
        integrals.append((5 * low + 8 * middle + 5 * high) / 18)
    # A token that is there several times is moved everywhere.
    sums = [float(found.scores[batch.tokens == i].sum()) for i in ids]
    largest = max(map(abs, integrals))
    assert largest > 1e-4
    assert sums == pytest.approx(integrals, abs=0.03 * largest)
    # Completeness: proposition 1.
    assert found.value == pytest.approx(loss_at({}, 1.0), rel=1e-5)
    assert found.baseline == pytest.approx(loss_at({}, 0.0), rel=1e-5)
    difference = found.value - found.baseline
    assert float(found.scores.sum()) == pytest.approx(difference, rel=0.01, abs=1e-4)
    marks = torch.isin(batch.tokens, torch.tensor([i for i in special if i is not None]))
    assert not found.scores[marks].any()


def linear(bundle: Bundle) -> Bundle:
    """A model whose score is the sum over the tokens of w times the embedding."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = bundle.backbone
            self.w = nn.Parameter(torch.randn(32))

        def forward(self, batch: PackedBatch) -> Tensor:
            return (self.backbone.embeddings.tokens(batch.tokens) @ self.w).sum()[None, None]

    object.__setattr__(bundle, "model", Linear())
    return bundle


def test_of_a_linear_model_they_have_a_closed_form(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = linear(CASES["regress"].bundle(tiny_folder, tmp_path))
    data = CASES["regress"].records(3)
    found = examine(bundle, data, device="cpu", batch_tokens=1)
    batch = batch_of(found.task, found.features, 1)
    attribution = finished(integrated_gradients(bundle, batch, loss_of(found.task)))
    table, w = bundle.backbone.embeddings.tokens, bundle.model.get_parameter("w")
    mask = torch.tensor([bundle.tokenizer.special_id("mask_token")])
    special = torch.isin(
        batch.tokens, torch.tensor([i for i in special_of(bundle) if i is not None])
    )
    ways = torch.where(special, 0, (table(batch.tokens) - table(mask)) @ w)
    whole = float((table(batch.tokens) @ w).sum().detach())
    masked, right = whole - float(ways.sum().detach()), float(batch.targets["score"])
    # d/da (s(a) - y)^2 = 2 (s(a) - y) (s(1) - s(0)), whose integral is that of a line.
    expected = ((whole - right) + (masked - right)) * ways
    assert attribution.scores.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert attribution.value == pytest.approx((whole - right) ** 2, rel=1e-4)
    assert attribution.baseline == pytest.approx((masked - right) ** 2, rel=1e-4)
    # Of the score itself they are what each token adds to it.
    score = finished(integrated_gradients(bundle, batch, lambda outputs, *_: outputs.sum()))
    assert score.scores.tolist() == pytest.approx(ways.tolist(), rel=1e-4, abs=1e-6)


def test_where_a_few_points_miss_there_are_more(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = linear(CASES["regress"].bundle(tiny_folder, tmp_path))
    found = examine(bundle, CASES["regress"].records(3), device="cpu", batch_tokens=1)
    batch = batch_of(found.task, found.features, 1)

    straight = finished(integrated_gradients(bundle, batch, lambda outputs, *_: outputs.sum()))
    way = straight.value - straight.baseline

    def bumpy(outputs: Tensor, *_: object) -> Tensor:
        return (outputs * 40 / way).sin().sum()

    steps = integrated_gradients(bundle, batch, bumpy)
    passes = sum(1 for _ in steps)
    # The text, the baseline, 8 points, 32 points.
    assert passes == 2 + 8 + 32
    attribution = finished(integrated_gradients(bundle, batch, bumpy))
    difference = attribution.value - attribution.baseline
    assert float(attribution.scores.sum()) == pytest.approx(difference, abs=0.02)


def test_the_answer_is_that_of_the_text_at_every_point(tiny_folder: Path, tmp_path: Path) -> None:
    # Without the text the model would answer otherwise: what speaks for the answer is asked all
    # the same.
    case = CASES["classify"]
    bundle = case.bundle(tiny_folder, tmp_path)
    task = bundle.task
    features = featurize(task, case.records(8), bundle.tokenizer)
    for which in range(8):
        explained = finished(explain_answer(bundle, features, which))
        batch = features.batch(np.array([which]))
        with torch.no_grad():
            scores = task.forward(bundle.model, batch).log_softmax(-1)[0]
            masked = batch.tokens.clone()
            masked[1:-1] = bundle.tokenizer.special_id("mask_token")
            without = task.forward(bundle.model, replace(batch, tokens=masked)).log_softmax(-1)[0]
        answer = int(scores.argmax())
        assert explained.value == pytest.approx(float(scores[answer]), rel=1e-4)
        assert explained.baseline == pytest.approx(float(without[answer]), rel=1e-4)


@pytest.mark.parametrize("name", ["classify", "multilabel"])
def test_how_sure_a_model_is_is_of_the_answer_that_is_given(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    task: Any = CASES[name].bundle(tiny_folder, tmp_path).task
    batch = PackedBatch.of([[1, 2]])
    outputs, answered = torch.tensor([[-9.0, 9.0, -9.0]]), torch.tensor([[9.0, -9.0, -9.0]])
    # Of the first label, which these outputs would not give.
    assert float(task.certainty(outputs, batch, answered)) < -15
    assert float(task.certainty(answered, batch, answered)) > -0.1


def test_models_without_attention_have_no_maps(tiny_folder: Path) -> None:
    one = explain(lm("lstm-small", tiny_folder), 0)
    assert one.attention is None
    assert len(one.tokens) == len(one.attributions)


def test_attention_of_each_layer_sums_to_one(tiny_folder: Path, tmp_path: Path) -> None:
    case = CASES["classify"]
    found = examine(case.bundle(tiny_folder, tmp_path), case.records(4), device="cpu")
    one = explain(found, 2)
    assert one.attention is not None
    assert one.attention.shape == (2, len(one.tokens), len(one.tokens))
    assert torch.allclose(one.attention.sum(-1), torch.ones(()), atol=1e-5)
    several = CASES["choose"]
    found = examine(several.bundle(tiny_folder, tmp_path), several.records(4), device="cpu")
    assert explain(found, 2).attention is None  # several sequences have several maps


def test_of_several_windows_the_worst_is_explained(tiny_folder: Path, tmp_path: Path) -> None:
    case = CASES["answer"]
    found = examine(case.bundle(tiny_folder, tmp_path), case.records(4), device="cpu")
    own = found.examples[1].features
    assert len(own) > 1
    worst = max(own, key=found.losses.__getitem__)
    begin, end = found.features.starts[worst : worst + 2]
    tokens = found.bundle.tokenizer.tokens(found.features.tokens[begin:end].tolist())
    assert explain(found, 1).tokens == tuple(tokens)


def test_worst_come_first_and_smoothing_says_nothing_of_an_example(tiny_folder: Path) -> None:
    def classifier(**options: float) -> Bundle:
        torch.manual_seed(0)
        task = Classify(ClassifyOptions(max_length=32, **options), ["good", "<i>bad", "好"])
        return load(tiny_folder, task=task)

    data = CASES["classify"].records()
    found = examine(classifier(), data, device="cpu")
    losses = [found.examples[i].mean_loss for i in found.worst_first()]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]
    smoothed = examine(classifier(label_smoothing=0.2), data, device="cpu")
    plain = [example.loss for example in found.examples]
    assert [example.loss for example in smoothed.examples] == pytest.approx(plain, rel=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", [*CASES, "lstm-small"])
def test_a_gpu_finds_the_same(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    if name in CASES:
        bundle, data = CASES[name].bundle(tiny_folder, tmp_path), CASES[name].records(8)
    else:
        found = lm(name, tiny_folder)
        bundle, data = found.bundle, found.records
    cpu, gpu = (
        examine(bundle, data, device=device, precision="float32") for device in ("cpu", "cuda")
    )
    assert [e.loss for e in gpu.examples] == pytest.approx([e.loss for e in cpu.examples], rel=1e-3)
    there = explain(gpu, 0).attributions
    bundle.model.cpu()
    assert there == pytest.approx(explain(cpu, 0).attributions, abs=1e-3)
