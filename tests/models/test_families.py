from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretune.checkpoints.config import family_of
from pretune.checkpoints.save import save_model
from pretune.errors import CheckpointError
from pretune.models import gpt2
from pretune.models.families import FAMILIES, build_head, preset, preset_names
from pretune.models.gpt2 import Gpt2Config, Gpt2Model

TINY = Gpt2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)


def test_a_family_imports_no_other() -> None:
    code = (
        "import sys; from pretune.models.families import FAMILIES, preset; FAMILIES['gpt2']; "
        "preset('gpt2-small'); print(*[name for name in sys.modules if name.startswith('pretune')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "pretune.models.gpt2" in imported
    others = {"bert", "distilbert", "electra", "transformer", "classics"}
    assert not imported & {f"pretune.models.{name}" for name in others}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_reached_by_its_name(name: str) -> None:
    config = preset(name)
    assert config is not None
    family = FAMILIES[config.pop("model_type")]
    sizes = family.backbone.config_class.from_dict(config)
    assert set(config) <= set(sizes.to_dict())


@pytest.mark.parametrize("name", ["bert", "bert-huge", "lstm", "gpt2", "", "transformer", "x-base"])
def test_other_names_are_no_presets(name: str) -> None:
    assert preset(name) is None


@pytest.mark.parametrize("name", ["runs/films", "owner/bert-base", "/home/gpt2-small"])
def test_for_a_path_no_package_is_searched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(_: object) -> None:
        raise AssertionError("the installed packages were searched")

    monkeypatch.setattr(type(FAMILIES), "plugins", property(searched))
    assert preset(name) is None


def test_a_head_that_a_family_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="a gpt2 has no head for token classification"):
        build_head(Gpt2Model(TINY), "token_classification")


@dataclass(frozen=True)
class OtherConfig(Gpt2Config):
    model_type = "other"


class OtherModel(Gpt2Model):
    config_class = OtherConfig


OTHER = replace(
    gpt2.FAMILY, model_type="other", backbone=OtherModel, presets={"other-base": {"n_layer": 1}}
)


def test_a_package_adds_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("other", f"{__name__}:OTHER", "pretune.families")
    vars(point)["dist"] = SimpleNamespace(name="pretune-other")
    with monkeypatch.context() as patch:
        patch.setitem(vars(FAMILIES), "plugins", {"other": point})
        assert preset("other-base") == {"model_type": "other", "n_layer": 1}
        sizes = OtherConfig(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        model = build_head(OtherModel(sizes), "causal_lm")
        save_model(model, tmp_path, OTHER, "causal_lm")
        config = json.loads((tmp_path / "config.json").read_text())
        assert family_of(config, tmp_path) is OTHER
    # Where the package is missing, its name is in the hint.
    FAMILIES._loaded.pop("other", None)
    with pytest.raises(CheckpointError, match="model_type 'other'") as caught:
        family_of(config, tmp_path)
    assert "pip install pretune-other" in str(caught.value.hint)


def test_built_in_families_note_no_package(tmp_path: Path) -> None:
    save_model(Gpt2Model(TINY), tmp_path, gpt2.FAMILY, "backbone")
    assert "pretune_package" not in json.loads((tmp_path / "config.json").read_text())
