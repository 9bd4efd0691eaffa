from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle, load
from pretune.data.records import Records
from pretune.evaluation.examine import Examined, batch_of, examine
from pretune.evaluation.explain import explain, gradient_times_input
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from tests.tasks.every_task import CASES


def lm(source: str, tiny_folder: Path) -> Examined:
    """Two texts, read by a model without attention."""
    torch.manual_seed(0)
    bundle = load(source, task=CausalLm(CausalLmOptions(max_length=8)), tokenizer=tiny_folder)
    rows = [{"text": "the good good film"}, {"text": "a bad film"}]
    return examine(bundle, Records(rows, "x", (1, 2), ("text",)), device="cpu")


@pytest.mark.parametrize(
    "name", ["classify", "answer", "tag_crf", "choose", "causal_lm", "lstm-small", "nnlm"]
)
def test_attributions_are_the_slope_by_a_factor_before_an_embedding(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    if name in CASES:
        case = CASES[name]
        found = examine(case.bundle(tiny_folder, tmp_path), case.records(8), device="cpu")
    else:
        found = lm(name, tiny_folder)
    bundle, task = found.bundle, found.task
    batches = [batch_of(task, found.features, i) for i in range(len(found.features))]
    # Where most hangs on the tokens, the figures are farthest from rounding.
    batch = max(batches, key=lambda b: float(gradient_times_input(bundle, b)[1].abs().max()))
    loss, scores = gradient_times_input(bundle, batch)

    def loss_at(token: int, factor: float) -> float:
        def scale(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            return torch.where((inputs[0] == token)[..., None], output * factor, output)

        handle = bundle.backbone.embeddings.tokens.register_forward_hook(scale)
        with torch.no_grad():
            lost = task.loss(task.forward(bundle.model, batch), batch)
        handle.remove()
        return float(lost.sum)

    step = 2e-2
    ids = sorted(set(batch.tokens.tolist()))
    slopes = [(loss_at(i, 1 + step) - loss_at(i, 1 - step)) / (2 * step) for i in ids]
    # A token that is there several times is scaled everywhere.
    sums = [float(scores[batch.tokens == i].sum()) for i in ids]
    assert loss == pytest.approx(loss_at(ids[0], 1.0), rel=1e-5)
    assert max(map(abs, slopes)) > 1e-3
    assert sums == pytest.approx(slopes, abs=0.03 * max(map(abs, slopes)))


def test_of_a_linear_model_they_have_a_closed_form(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = CASES["regress"].bundle(tiny_folder, tmp_path)

    class Linear(nn.Module):
        """The score is the sum over the tokens of w times the embedding."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = bundle.backbone
            self.w = nn.Parameter(torch.randn(32))

        def forward(self, batch: object) -> Tensor:
            embedded = self.backbone.embeddings.tokens(batch.tokens)  # type: ignore[attr-defined]
            return (embedded @ self.w).sum()[None, None]

    model = Linear()
    object.__setattr__(bundle, "model", model)
    data = CASES["regress"].records(3)
    found = examine(bundle, data, device="cpu", batch_tokens=1)
    batch = batch_of(found.task, found.features, 1)
    _, scores = gradient_times_input(bundle, batch)
    each = bundle.backbone.embeddings.tokens(batch.tokens) @ model.w
    # d/df (sum_t f_t s_t - y)^2 at f = 1 is 2 (sum_t s_t - y) s_t.
    expected = 2 * (each.sum() - batch.targets["score"]) * each
    assert scores.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


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
