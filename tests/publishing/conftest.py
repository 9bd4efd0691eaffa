from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils
import pytest

import pretune
from pretune.publishing.publish import stage
from tests.publishing import fake_hub
from tests.publishing.small_runs import REPO, small_recipe, write_data


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished run whose labels are as bad as can be. Not to be changed."""
    place = tmp_path_factory.mktemp("private-place")
    data = write_data(place / "films <i>.jsonl")
    # What old tokenizers carry along: where they lay on somebody's machine.
    model = place / "my-model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (model / name).write_bytes((tiny_folder / name).read_bytes())
    settings = {"do_lower_case": True, "name_or_path": str(place), "vocab_file": str(model / "v")}
    (model / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    pretune.train(small_recipe(model, data, place / "run"), quiet=True)
    return place / "run"


@pytest.fixture(scope="session")
def staged(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What would be sent of that run. Not to be changed."""
    folder = tmp_path_factory.mktemp("staged") / "model"
    stage(run_folder, REPO, folder, license_id="apache-2.0", languages=["en"])
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    """A Hub on this machine that huggingface_hub talks to, and a token for it."""
    found, server = fake_hub.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # Its protocol is not public; the stand-in knows the older one, which every Hub has too.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.utils.close_session()  # made anew without a proxy
    yield found
    server.shutdown()
    server.server_close()
    huggingface_hub.utils.close_session()
