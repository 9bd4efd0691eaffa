from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from pretune.checkpoints.config import read_config
from pretune.checkpoints.load import LoadReport, load_into
from pretune.checkpoints.open import open_weights
from pretune.models.bert import BertClassifier, BertConfig, BertModel
from pretune.models.families import FAMILIES

Change = Callable[[dict[str, Tensor]], "dict[str, Tensor] | None"]


@pytest.fixture(scope="session")
def load() -> Callable[..., tuple[nn.Module, LoadReport]]:
    """Load a folder as a backbone, or as a classifier of so many labels."""

    def load(
        folder: Path,
        labels: int = 0,
        fresh: frozenset[str] = frozenset(),
        allow_pickle: bool = False,
    ):
        config = BertConfig.from_dict(read_config(folder))

        def build() -> nn.Module:
            backbone = BertModel(config)
            return BertClassifier(backbone, labels) if labels else backbone

        head = "sequence_classification" if labels else "backbone"
        weights = open_weights(folder, allow_pickle=allow_pickle)
        model, report = load_into(build, weights, folder, FAMILIES["bert"], head, fresh=fresh)
        return model.eval(), report

    return load


@pytest.fixture
def changed(tiny_folder: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A copy of the tiny model with other tensors: what the function gives back, or has edited."""

    def changed(change: Change) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(tiny_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors = change(tensors) or tensors
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
        return folder

    return changed


@pytest.fixture(scope="session")
def sharded_folder(tiny_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    AutoModel.from_pretrained(tiny_folder).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def copy(request, tmp_path) -> Path:
    """A folder of ours to damage."""
    folder = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(request.param), folder)
    return folder


@pytest.fixture
def copy_with_config(tiny_folder, tmp_path):
    def copy(**values) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(tiny_folder, folder)
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy
