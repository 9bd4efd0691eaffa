from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretune.bundle.bundle import load
from pretune.data.batch import Feature, FeatureSet, PackedBatch
from pretune.errors import RunError
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import DrawsAnew
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.training.freeze import freeze, reads_once, train_mode
from pretune.training.optimizer import parameter_groups
from pretune.training.run import train_recipe

Make = Callable[..., Recipe]


@pytest.fixture
def model(tiny_folder: Path) -> nn.Module:
    task = Classify(ClassifyOptions(max_length=16), ["a", "b"])
    return load(tiny_folder, task=task, dropout=0.1, attention_dropout=0.1).model


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


class TestWhat:
    def test_none(self, model: nn.Module) -> None:
        assert freeze(model, "none") == sum(p.numel() for p in model.parameters())

    def test_backbone_leaves_the_head(self, model: nn.Module) -> None:
        assert freeze(model, "backbone") == 2 * 32 + 2
        assert trained(model) == {"classifier.weight", "classifier.bias"}

    def test_embeddings(self, model: nn.Module) -> None:
        freeze(model, "embeddings")
        assert not any("embeddings" in name for name in trained(model))
        assert any("layers.0" in name for name in trained(model))

    def test_layers_from_below(self, model: nn.Module) -> None:
        freeze(model, {"layers": 1})
        names = trained(model)
        assert not any("embeddings" in n or "layers.0" in n for n in names)
        assert any("layers.1" in n for n in names)

    def test_a_pattern(self, model: nn.Module) -> None:
        freeze(model, "backbone.layers.*.attention.*")
        assert not any(".attention." in name for name in trained(model))
        assert "backbone.layers.0.feed_forward.up.weight" in trained(model)

    @pytest.mark.parametrize(
        ("what", "said"),
        [("bakbone", "no parameter is called"), ({"layers": 9}, "has 2"), ("*", "nothing is left")],
    )
    def test_mistakes(self, model: nn.Module, what: Any, said: str) -> None:
        with pytest.raises(RunError, match=said):
            freeze(model, what)


class TestModes:
    def test_frozen_from_below_is_in_evaluation_mode(self, model: nn.Module) -> None:
        freeze(model, {"layers": 1})
        train_mode(model)
        backbone = model.get_submodule("backbone")
        assert not backbone.get_submodule("embeddings").training
        assert not backbone.get_submodule("layers.0").training
        assert backbone.get_submodule("layers.1").training

    def test_frozen_above_something_that_learns_is_not(self, model: nn.Module) -> None:
        freeze(model, "backbone.layers.1.*")
        train_mode(model)
        assert model.get_submodule("backbone.layers.1").training

    def test_a_frozen_backbone_with_a_head_that_learns(self, model: nn.Module) -> None:
        freeze(model, "backbone")
        train_mode(model)
        assert not model.get_submodule("backbone").training
        assert model.get_submodule("dropout").training


class TestRuns:
    def test_frozen_weights_stay_as_they_were(self, toy_recipe: Make, tiny_folder: Path) -> None:
        recipe = toy_recipe(train__freeze={"layers": 1}, train__weight_decay=0.5)
        train_recipe(recipe, quiet=True)
        before, after = load(tiny_folder, bare=True).model, load(recipe.output + "/last").backbone
        changed = {
            name
            for name, weight in before.state_dict().items()
            if not torch.equal(weight, after.state_dict()[name])
        }
        assert changed
        assert not any("embeddings" in name or "layers.0" in name for name in changed)

    def test_reading_once_gives_the_same_as_reading_each_time(
        self, toy_recipe: Make, monkeypatch: Any, tmp_path: Path
    ) -> None:
        from pretune.training import loop

        options = {"train__freeze": "backbone", "train__epochs": 4, "train__learning_rate": 0.01}
        kept = train_recipe(toy_recipe(**options), quiet=True)
        monkeypatch.setattr(loop, "reads_once", lambda *which: False)
        plain = train_recipe(toy_recipe(**options, output=str(tmp_path / "plain")), quiet=True)
        assert kept.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-5)

    def test_reading_once_does_not_depend_on_how_evaluation_is_batched(
        self, toy_recipe: Make, tmp_path: Path
    ) -> None:
        """A resumed run may change that, and is to come out bit for bit alike."""
        found = []
        for tokens in (8, 8192):
            recipe = toy_recipe(
                train__freeze="backbone",
                train__epochs=3,
                train__eval_batch_tokens=tokens,
                output=str(tmp_path / str(tokens)),
            )
            train_recipe(recipe, quiet=True)
            found.append((tmp_path / str(tokens) / "last" / "model.safetensors").read_bytes())
        assert found[0] == found[1]

    def test_what_is_drawn_anew_is_not_read_once(self, tiny_folder: Path) -> None:
        class Noisy(Classify, DrawsAnew):
            def augment(self, batch: PackedBatch, seed: int, epoch: int) -> PackedBatch:
                return batch

        features = FeatureSet.of([Feature([2, 5, 3], [0, 0, 0], {"label": 0}, 0)])
        for kind, once in ((Classify, True), (Noisy, False)):
            task = kind(ClassifyOptions(max_length=16), ["a", "b"])
            bundle = load(tiny_folder, task=task)
            freeze(bundle.model, "backbone")
            assert reads_once(task, bundle.model, features) is once

    def test_reading_once_runs_the_backbone_once(self, toy_recipe: Make, monkeypatch: Any) -> None:
        from pretune.models.bert import BertModel

        seen = []
        forward = BertModel.forward

        def counting(self: BertModel, batch: Any, **more: Any) -> Any:
            if batch.targets and len(batch.index) and not torch.is_inference_mode_enabled():
                seen.extend(batch.index.tolist())
            return forward(self, batch, **more)

        monkeypatch.setattr(BertModel, "forward", counting)
        train_recipe(toy_recipe(train__freeze="backbone", train__epochs=5), quiet=True)
        assert sorted(seen) == list(range(48))


class TestLayerDecay:
    def test_each_layer_learns_slower_than_the_one_above(self, model: nn.Module) -> None:
        groups = parameter_groups(model, 0.1, 0.5)
        scale = {id(p): g["scale"] for g in groups for p in g["params"]}  # type: ignore[attr-defined]
        by_name = {name: scale[id(p)] for name, p in model.named_parameters()}
        assert by_name["classifier.weight"] == 1.0
        assert by_name["backbone.pooler.weight"] == 1.0
        assert by_name["backbone.layers.1.feed_forward.up.weight"] == 0.5
        assert by_name["backbone.layers.0.feed_forward.up.bias"] == 0.25
        assert by_name["backbone.embeddings.tokens.weight"] == 0.125

    def test_without_it_there_are_two_groups(self, model: nn.Module) -> None:
        assert len(parameter_groups(model, 0.1)) == 2
