from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretune.export.importance import importance_by_loss, importance_by_weights
from pretune.tasks.features import record_features
from tests.tasks.every_task import CASES


def masked_gradients(bundle: Any, records: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of each example's loss by masks of heads and neurons that are all 1."""
    features = record_features(bundle.task, records, bundle.tokenizer, evaluation=True)
    layers = bundle.backbone.layers
    heads = [torch.zeros(layer.attention.num_heads) for layer in layers]
    neurons = [torch.zeros(layer.feed_forward.up.out_features) for layer in layers]
    masks: list[Tensor] = []

    def masked(units: int) -> Any:
        mask = torch.ones(units, requires_grad=True)
        masks.append(mask)
        return lambda part, args: (
            (args[0].view(len(args[0]), units, -1) * mask[:, None]).flatten(1),
        )

    handles = []
    for layer, own, inner in zip(layers, heads, neurons, strict=True):
        for part, sums in ((layer.attention.output, own), (layer.feed_forward.down, inner)):
            handles.append(part.register_forward_pre_hook(masked(len(sums))))
    sums = [own for pair in zip(heads, neurons, strict=True) for own in pair]
    for number in range(len(features)):
        batch = features.batch(torch.tensor([number]).numpy())
        loss = bundle.task.loss(bundle.task.forward(bundle.model, batch), batch).sum
        for own, grad in zip(sums, torch.autograd.grad(loss, masks), strict=True):
            own += grad.abs()
    for handle in handles:
        handle.remove()
    return heads, neurons


@pytest.mark.parametrize("name", ["classify", "tag", "mask_lm_each", "causal_lm"])
def test_the_loss_by_masks_of_each_example(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    bundle, records = CASES[name].bundle(tiny_folder, tmp_path), CASES[name].records(7)
    measured = importance_by_loss(bundle, records, device="cpu", batch_tokens=60)
    heads, neurons = masked_gradients(bundle, records)
    for own, expected in zip(measured.heads, heads, strict=True):
        torch.testing.assert_close(own, expected / expected.norm(), atol=1e-5, rtol=1e-4)
    for own, expected in zip(measured.neurons, neurons, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for p in bundle.model.parameters())
    assert not bundle.backbone.layers[0]._forward_pre_hooks


def test_a_batch_leaves_nothing_behind(tiny_folder: Path, tmp_path: Path) -> None:
    """Without the collector of cycles, which hardly runs where few objects are made."""
    bundle, records = CASES["classify"].bundle(tiny_folder, tmp_path), CASES["classify"].records(7)
    seen: list[weakref.ref[Tensor]] = []
    down = bundle.backbone.layers[0].feed_forward.down
    down.register_forward_pre_hook(lambda part, args: seen.append(weakref.ref(args[0])))
    gc.disable()
    try:
        importance_by_loss(bundle, records, device="cpu", batch_tokens=60)
        assert len(seen) > 1
        assert [ref() for ref in seen] == [None] * len(seen)
    finally:
        gc.enable()


def test_without_data_the_weights_count(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = CASES["classify"].bundle(tiny_folder, tmp_path)
    layer = bundle.backbone.layers[1]
    # What writes nothing, and what reads nothing, does not matter.
    layer.attention.output.weight.data[:, 8:16] = 0
    layer.feed_forward.up.weight.data[5] = 0
    measured = importance_by_weights(bundle)
    assert measured.heads[1].argmin() == 1
    assert measured.heads[1][1] == 0
    assert measured.neurons[1].argmin() == 5
    value, out = layer.attention.qkv.weight[64:72], layer.attention.output.weight[:, :8]
    ratio = measured.heads[1][0] / measured.heads[1][2]
    other = (
        layer.attention.qkv.weight[80:88].norm() * layer.attention.output.weight[:, 16:24].norm()
    )
    torch.testing.assert_close(ratio, value.norm() * out.norm() / other)
