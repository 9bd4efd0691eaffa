"""Adapters beside a model: every task, several of one base, and refusals."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretune.bundle.adapted import with_adapter
from pretune.bundle.bundle import ADAPTER, Bundle, load, save
from pretune.bundle.task_file import TASK_FILE
from pretune.cli import predict as command
from pretune.errors import CheckpointError, Note, PretuneError, RunError
from pretune.inference.predict import Predictor
from pretune.models.lora import add_lora
from tests.tasks.every_task import CASES


def adapted(name: str, base: Path, folder: Path, seed: int = 0) -> Bundle:
    """A model of a task with an adapter that changes answers, saved into `folder`."""
    bundle = CASES[name].bundle(base, folder.parent)
    fresh = () if bundle.report is None else bundle.report.missing
    if bundle.task is not None and bundle.task.head in ("masked_lm", "pretraining"):
        fresh = ()  # as if the checkpoint had a head
    torch.manual_seed(seed)
    add_lora(bundle.model, 2, 8.0, ["attention.qkv", "feed_forward.down"], fresh=fresh)
    for parameter in bundle.model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    folder.mkdir()
    save(bundle, folder)
    return bundle


def answers(bundle: Bundle, name: str, count: int = 6) -> list[dict[str, Any]]:
    predictor = Predictor(bundle, device="cpu", precision="float32")
    records = CASES[name].records(count)
    if name.startswith("mask_lm"):
        rows = [{**row, "text": f"good [MASK] {row['text']}"} for row in records.rows]
        records = replace(records, rows=rows)
    return [answer.to_dict() for answer in predictor.predict(records)]


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classifiers, as adapters of one base. Not to be changed."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        adapted("classify", tiny_folder, folder / str(seed), seed)
    return folder


def test_several_adapters_share_one_base(tiny_folder: Path, runs: Path) -> None:
    base = load(tiny_folder)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    two = [with_adapter(base, runs / str(seed) / ADAPTER) for seed in (1, 2)]
    for seed, bundle in enumerate(two, start=1):
        whole = answers(load(runs / str(seed)), "classify")
        for mine, merged in zip(answers(bundle, "classify"), whole, strict=True):
            assert mine["label"] == merged["label"]
            assert mine["score"] == pytest.approx(merged["score"], abs=1e-5)
    # The base is as it was, and its weights lie in memory once.
    assert all(torch.equal(value, before[n]) for n, value in base.model.state_dict().items())
    own = base.backbone.embeddings.tokens.weight
    assert all(b.backbone.embeddings.tokens.weight.data_ptr() == own.data_ptr() for b in two)
    with pytest.raises(RunError, match="has an adapter already"):
        with_adapter(two[0], runs / "1" / ADAPTER)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n for n, case in CASES.items() if case.family != "transformer" and n != "replaced_token"],
)
def test_every_task_answers_as_its_merged_model(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    bundle = adapted(name, tiny_folder, tmp_path / "run")
    assert bundle.folder is not None
    task = bundle.task
    assert task is not None
    # What a language model's head has learned is in the base, not in the adapter.
    with_head = task.head in ("masked_lm", "pretraining", "causal_lm", "actor_critic")
    if with_head:
        source = tmp_path / "base"
        source.mkdir()
        fresh = load(bundle.folder, task=task)
        state = {n: v for n, v in bundle.model.state_dict().items() if ".lora_" not in n}
        fresh.model.load_state_dict(
            {n.replace(".base", ".weight"): v for n, v in state.items()}, strict=False
        )
        save(fresh, source)
        base = load(source)
    else:
        base = load(bundle.folder, bare=True)
    beside = with_adapter(base, tmp_path / "run" / ADAPTER)
    mine, merged = answers(beside, name), answers(load(tmp_path / "run"), name)
    assert [json.dumps(_rounded(a)) for a in mine] == [json.dumps(_rounded(a)) for a in merged]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def test_an_adapter_of_pefts_has_the_labels_that_transformers_would_give(
    tiny_folder: Path, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "1" / ADAPTER, tmp_path / "a")
    (tmp_path / "a" / TASK_FILE).unlink()
    bundle = with_adapter(load(tiny_folder), tmp_path / "a")
    (answer,) = answers(bundle, "classify", 1)
    assert [*answer["scores"]] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "task_type": None}))
    with pytest.raises(CheckpointError, match="does not say what it was trained for"):
        with_adapter(load(tiny_folder), tmp_path / "a")


def test_another_base_is_told(tiny_folder: Path, runs: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        with_adapter(load(tiny_folder), runs / "1" / ADAPTER)
    shutil.copytree(tiny_folder, tmp_path / "other")
    with pytest.warns(Note, match="was trained beside"):
        with_adapter(load(tmp_path / "other"), runs / "1" / ADAPTER)


def test_predict_puts_adapters_beside_one_model(
    tiny_folder: Path, runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = [runs / str(seed) / ADAPTER for seed in (1, 2)]
    command.predict(str(tiny_folder), ["good film"], adapters=folders, as_json=True, device="cpu")
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["adapter"] for line in lines] == list(map(str, folders))
    assert lines[0]["scores"] != lines[1]["scores"]
    with pytest.raises(PretuneError, match="no adapter here"):
        command.predict(str(tiny_folder), ["good film"], adapters=[tiny_folder], device="cpu")
