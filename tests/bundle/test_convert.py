from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification

from pretune.bundle.bundle import Bundle, load, save
from pretune.bundle.convert import convert
from pretune.errors import CheckpointError, RunError
from pretune.inference.predict import Predictor
from pretune.tasks.classification.multilabel import Multilabel
from pretune.tokenizers.load import load_tokenizer
from tests.tasks.every_task import CASES


def answers(bundle: Bundle, name: str) -> list[dict[str, Any]]:
    predictor = Predictor(bundle, device="cpu")
    return [answer.to_dict() for answer in predictor.predict(CASES[name].records(6))]


def near(found: Any, expected: Any) -> bool:
    """Whether two answers are equal, up to the last digits of their numbers."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            near(found[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(near, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["multilabel", "classify", "answer_none", "chat", "instruct", "translate"]
)
def test_what_is_written_answers_as_the_run(
    name: str, dtype: str, tiny_folder: Path, tmp_path: Path
) -> None:
    run = CASES[name].bundle(tiny_folder, tmp_path)
    run.columns = {"text": "body"}
    if isinstance(run.task, Multilabel):
        run.task.thresholds = [0.9, 0.45, 0.01]
    (tmp_path / "run").mkdir()
    save(run, tmp_path / "run")
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.copy_(parameter.to(getattr(torch, dtype)))
    convert(tmp_path / "run", tmp_path / "new", dtype=dtype)
    new = load(tmp_path / "new")
    # Weights that lie elsewhere may round differently on some processors.
    for answer, expected in zip(answers(new, name), answers(run, name), strict=True):
        assert near(answer, expected), (answer, expected)
    assert new.columns == {"text": "body"}
    names = [{path.name for path in (tmp_path / f).iterdir()} for f in ("run", "new")]
    assert names[0] == names[1]
    assert "pretune.json" in names[1]
    assert ("generation_config.json" in names[1]) == (name in ("instruct", "translate"))
    config = json.loads((tmp_path / "new" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == dtype


@pytest.mark.parametrize(
    ("kind", "part"),
    [(BertForSequenceClassification, "classifier"), (BertForMaskedLM, "cls.predictions.transform")],
)
def test_a_head_that_is_not_in_the_file_is_not_made_up(
    kind: Any, part: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    kind(BertConfig.from_pretrained(tiny_folder)).save_pretrained(folder)
    shutil.copy(tiny_folder / "vocab.txt", folder)
    convert(folder, tmp_path / "whole")
    path = folder / "model.safetensors"
    weights = {key: value for key, value in load_file(path).items() if not key.startswith(part)}
    save_file(weights, path, metadata={"format": "pt"})
    said = []
    for use in (load, lambda source: convert(source, tmp_path / "new")):
        with pytest.raises(CheckpointError, match="weights of its head are not in the file") as e:
            use(folder)
        said.append(str(e.value))
    assert said[0] == said[1]
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_of_a_run(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save(CASES["classify"].bundle(tiny_folder, tmp_path), tmp_path / "run")
    path = tmp_path / "run" / "pretune.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["options"]["max_length"] = math.nan
    path.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"pretune\.json"):
        convert(tmp_path / "run", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False, "sep_token": "[MASK]"},
        {"model_input_names": ["input_ids", "attention_mask"]},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ],
)
def test_settings_that_contradict_the_tokenizer_give_the_logits_of_transformers(
    settings: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    """Before and after converting, of a pair."""
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(tiny_folder, initializer_range=0.5)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "old")
    load_tokenizer(tiny_folder).save(tmp_path / "old")
    path = tmp_path / "old" / "tokenizer_config.json"
    own = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    path.write_text(json.dumps(own | settings))
    convert(tmp_path / "old", tmp_path / "new")
    texts = ["Good 电影 é!"], ["bad [MASK] film"]
    inputs = AutoTokenizer.from_pretrained(tmp_path / "old")(*texts, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    for name in ("old", "new"):
        (encoded,) = load_tokenizer(tmp_path / name).encode(*texts)
        with torch.no_grad():
            ours = model(
                input_ids=torch.tensor([encoded.ids]),
                token_type_ids=torch.tensor([encoded.segments]),
            ).logits
            theirs = AutoTokenizer.from_pretrained(tmp_path / name)(*texts, return_tensors="pt")
            assert torch.equal(model(**theirs).logits, expected)
        assert torch.allclose(ours, expected, atol=1e-6)


def test_a_disk_that_fills_is_told(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **options: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("pretune.checkpoints.save.save_file", full)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
        convert(tiny_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
