"""The reference of a trained model: the very one it was trained beside, and no part of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.api import evaluate
from pretune.bundle.bundle import Bundle, grow_vocabulary, load, save
from pretune.errors import CheckpointError
from pretune.inference.reference import compared, load_reference
from pretune.tasks.alignment.dpo import Dpo, DpoOptions
from pretune.tasks.features import record_features
from pretune.training.adapters import weights_in
from pretune.training.run import train_recipe
from tests.tasks.alignment.preferences import ROWS, answering, recipe, records, saved

TEMPLATE = (
    "{% for m in messages %}<{{m['role']}}>{{m['content']}}~~\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def exchanged(folder: Path) -> Path:
    """Exchange the ids of two letters in the tokenizer of a folder."""
    file = folder / "tokenizer.json"
    entries = json.loads(file.read_text())
    ids = entries["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(entries))
    return folder


def templated(folder: Path) -> Path:
    """Give the tokenizer of a folder another template."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": TEMPLATE}))
    (folder / "pretune.json").unlink()  # which names a template of its own
    return folder


def grown(folder: Path, seed: int = 1) -> Path:
    """A copy of the model with one more token."""
    bundle = load(saved(folder, seed))
    grow_vocabulary(bundle, ["<x>"])
    shutil.rmtree(folder)
    folder.mkdir()
    save(bundle, folder)
    return folder


def beside(model: Path, reference: Path, **options: Any) -> tuple[Bundle, Dpo]:
    """A model as `dpo` trains it beside a reference."""
    task = Dpo(DpoOptions(max_length=96, max_new_tokens=6, reference=str(reference), **options))
    return load(model, task=task), task


class TestTheTaskStaysBoundToItsModel:
    def test_where_the_reference_is_loaded(self, tmp_path: Path) -> None:
        bundle, task = beside(templated(saved(tmp_path / "sft")), saved(tmp_path / "other", 1))
        ends = task.layout(bundle.tokenizer).ends()
        own = task._tokenizer
        load_reference(bundle, task)
        assert task._tokenizer is own is bundle.tokenizer
        assert task.layout(own).ends() == ends

    def test_in_an_evaluation(self, tmp_path: Path) -> None:
        bundle, task = beside(templated(saved(tmp_path / "sft")), saved(tmp_path / "other", 1))
        features = record_features(task, records(task), bundle.tokenizer, evaluation=True)
        compared(bundle, features, torch.device("cpu"))
        assert task.reference_model is not None
        assert task._tokenizer is bundle.tokenizer

    def test_where_a_checkpoint_is_read(self, tmp_path: Path) -> None:
        """A rollback reads the weights of a checkpoint for the live model."""
        bundle, task = beside(saved(tmp_path / "sft"), tmp_path / "none")
        weights_in(saved(tmp_path / "checkpoint", 1), bundle)
        assert task._tokenizer is bundle.tokenizer

    def test_in_training(self, tmp_path: Path) -> None:
        """Replies have the ends of the model's template, whatever the reference's own is."""
        templated(saved(tmp_path / "sft"))
        figures = []
        for name in ("plain", "same"):
            reference = saved(tmp_path / name)
            if name == "same":
                templated(reference)
            changes = {
                "task.reference": str(reference),
                "task.max_new_tokens": 6,
                "train.max_steps": 1,
                "output": str(tmp_path / f"run-{name}"),
            }
            figures.append(train_recipe(recipe("dpo", tmp_path, **changes), quiet=True).metrics)
        assert figures[0] == figures[1]


class TestTheVocabulary:
    def test_another_is_refused(self, tmp_path: Path) -> None:
        bundle, task = beside(saved(tmp_path / "sft"), exchanged(saved(tmp_path / "other")))
        with pytest.raises(CheckpointError, match=r"'a' is .* has it as ") as error:
            load_reference(bundle, task)
        assert str(tmp_path / "sft") in str(error.value)
        assert str(tmp_path / "other") in str(error.value)

    def test_a_smaller_one_is_refused(self, tmp_path: Path) -> None:
        bundle, task = beside(grown(tmp_path / "sft"), saved(tmp_path / "other"))
        with pytest.raises(CheckpointError, match=r"'<x>' is .* lacks it"):
            load_reference(bundle, task)

    def test_a_larger_one_is_fine(self, tmp_path: Path) -> None:
        bundle, task = beside(saved(tmp_path / "sft"), grown(tmp_path / "other"))
        model = load_reference(bundle, task)
        rows = answering().backbone.config.size("vocab_size")
        assert len(model.get_submodule("backbone.embeddings.tokens").weight) == rows + 1

    def test_a_training_run_refuses_it_before_it_writes(self, tmp_path: Path) -> None:
        saved(tmp_path / "sft")
        other = exchanged(saved(tmp_path / "other"))
        with pytest.raises(CheckpointError, match="numbers tokens in another way"):
            train_recipe(recipe("dpo", tmp_path, **{"task.reference": str(other)}), quiet=True)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "grows",
    [
        {"model.new_tokens": ["<x>", "<y>"]},
        {"model.new_tokens": ["<x>", "<y>"], "train.lora": {"rank": 2}},
        {"model.vocab_multiple": 64},
    ],
    ids=["new tokens", "lora", "multiple"],
)
def test_a_grown_start_is_the_same_reference_later(tmp_path: Path, grows: dict[str, Any]) -> None:
    saved(tmp_path / "sft")
    rows = [{**ROWS[0], "chosen": "<x> it is", "rejected": "It <y>"}, *ROWS[1:3]]
    changes = {**grows, "seed": 3, "train.epochs": 1, "task.max_new_tokens": 6}
    made = recipe("dpo", tmp_path, **changes)
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_recipe(made, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    then = [line for line in lines if "validation/kl" in line][-1]
    again = evaluate(tmp_path / "run/last", tmp_path / "v.jsonl", device="cpu").metrics
    assert again["kl"] != 0
    for name, value in again.items():
        assert value == pytest.approx(then[f"validation/{name}"], rel=1e-6, abs=1e-6), name
    # Where the start has moved to: it grows there, too.
    (tmp_path / "sft").rename(tmp_path / "moved")
    moved = load(tmp_path / "run/last", options={"reference": str(tmp_path / "moved")})
    assert evaluate(moved, tmp_path / "v.jsonl", device="cpu").metrics == again
    # It has the very rows of the run, which its seed drew.
    assert isinstance(moved.task, Dpo)
    assert moved.task.reference_seed == 3


def test_new_rows_of_the_reference_are_those_of_the_run(tmp_path: Path) -> None:
    """Without an update the trained model is its reference to the last bit."""
    saved(tmp_path / "sft")
    changes = {"model.new_tokens": ["<x>"], "train.learning_rate": 1e-30, "train.epochs": 1}
    train_recipe(recipe("dpo", tmp_path, **changes, seed=5), quiet=True)
    bundle = load(tmp_path / "run/last")
    assert isinstance(bundle.task, Dpo)
    before = torch.get_rng_state()
    reference = load_reference(bundle, bundle.task)
    assert torch.equal(before, torch.get_rng_state()), "random numbers are nobody else's business"
    for name, weight in reference.state_dict().items():
        assert torch.equal(weight, bundle.model.state_dict()[name]), name
