"""Runs with a teacher: ordinary runs of its task, exact, and clear about what does not fit."""

from __future__ import annotations

import json
import shlex
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import pretune
from pretune.bundle.bundle import load
from pretune.data.batch import PackedBatch
from pretune.errors import PretuneError, RunError
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe, builtin_recipes
from pretune.tasks.base import Loss
from pretune.tasks.classification.classify import Classify
from pretune.tasks.distillation.taught import SOFT
from pretune.training import run, teaching
from pretune.training.logging import Reporter
from pretune.training.reference_scores import REFERENCE_FILE
from pretune.training.run import resume, train_recipe
from tests.training.groups import STEADY, Together, assert_close, result_of, weights
from tests.training.outcomes import assert_alike, outcome, stopped_after

ROWS = [
    {"text": f"{'the ' * (i % 4)}{word} film {'un x' * (i % 3)}", "label": word}
    for i, word in enumerate(["good", "bad"] * 10)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with data, and a teacher that was trained on them."""
    folder = tmp_path_factory.mktemp("school")
    train_recipe(of(folder, folder / "teacher", tiny_folder), quiet=True)
    return folder


def of(folder: Path, output: Path, model: Path | None = None, **changes: Any) -> Recipe:
    """A recipe on the data in a folder; without a model one of a student."""
    values: dict[str, Any] = {
        "data": {"train": write(folder / "t.jsonl", ROWS), "validation": 0.3},
        "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu"},
        "output": str(output),
    }
    if model is None:
        values |= {"teacher": str(folder / "teacher"), "model": {"layers": [1]}}
    else:
        values |= {"task": {"name": "classify", "max_length": 12}, "model": {"from": str(model)}}
    values["seed"] = 0 if model is None else 1
    return Recipe.of(values).changed({k.replace("__", "."): v for k, v in changes.items()})


class TestAnOrdinaryRun:
    def test_of_the_teachers_task(self, school: Path, tmp_path: Path) -> None:
        result = train_recipe(of(school, tmp_path / "run"), quiet=True)
        assert {"accuracy", "teacher_kl", "teacher_agreement", "label_loss"} <= {*result.metrics}
        student = pretune.load(tmp_path / "run")
        assert student.task is not None
        assert student.task.options.max_length == 12
        assert len(student.backbone.layers) == 1
        assert "teacher" not in (tmp_path / "run/last/pretune.json").read_text(encoding="utf-8")
        evaluated = pretune.evaluate(student, write(tmp_path / "e.jsonl", ROWS[:4]))
        assert "teacher_kl" not in evaluated.metrics
        # The recipe needs no teacher to be read.
        text = (tmp_path / "run/recipe.yaml").read_text(encoding="utf-8")
        (tmp_path / "r.yaml").write_text(text.replace(str(school), "/gone"), encoding="utf-8")
        assert Recipe.load(tmp_path / "r.yaml").task.name == "classify"

    def test_its_layers_are_the_teachers(self, school: Path) -> None:
        whole = load(school / "teacher").model.state_dict()
        part = load(school / "teacher", layers=[1]).model.state_dict()
        for name, values in part.items():
            assert torch.equal(values, whole[name.replace("layers.0.", "layers.1.")])
        first = load(school / "teacher", layers="every-other").model.state_dict()
        assert torch.equal(
            first["backbone.layers.0.attention.qkv.weight"],
            whole["backbone.layers.0.attention.qkv.weight"],
        )

    def test_without_weight_it_is_the_run_without_a_teacher(
        self, school: Path, tmp_path: Path
    ) -> None:
        weights_of = {"soft": 0, "labels": 1, "relations": 1e-30, "from": str(school / "teacher")}
        taught = of(school, tmp_path / "taught", teacher=weights_of, **STEADY)
        train_recipe(taught, quiet=True)
        train_recipe(taught.changed({"teacher": None, "output": str(tmp_path / "o")}), quiet=True)
        plain = weights(tmp_path / "o")
        for name, values in weights(tmp_path / "taught").items():
            # The last layer is computed for all tokens here, and for the first alone there.
            torch.testing.assert_close(values, plain[name], rtol=0, atol=1e-3)


@pytest.mark.parametrize("lost", [None, "missing", "damaged"])
def test_goes_on_as_if_never_stopped(lost: str | None, school: Path, tmp_path: Path) -> None:
    train_recipe(of(school, tmp_path / "whole"), quiet=True)
    _stopped(of(school, tmp_path / "run"))
    file = tmp_path / "run" / REFERENCE_FILE
    if lost == "missing":
        file.unlink()
    elif lost == "damaged":  # other numbers, which are numbers
        with safe_open(file, framework="numpy") as opened:
            known = opened.metadata()
        kept = load_file(file)
        kept[f"train.{SOFT}"][0] = kept[f"train.{SOFT}"][0][::-1]
        save_file(kept, file, known)
    resume(tmp_path / "run", quiet=True)
    assert_alike(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def _stopped(recipe: Recipe) -> None:
    with stopped_after(5):
        train_recipe(recipe, quiet=True)


class Killed(BaseException):
    """Ends a run as a signal would: nothing catches it."""


@pytest.mark.parametrize("when", ["first batch", "second set", "kept in part"])
def test_killed_while_the_teacher_is_asked(
    when: str, school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept of a pass that has not ended: it is made again, bit for bit."""
    train_recipe(of(school, tmp_path / "whole"), quiet=True)
    passes: list[int] = []

    def ask(*given: Any, **options: Any) -> Any:
        passes.append(1)
        if when == "first batch" or (when == "second set" and len(passes) == 2):
            raise Killed
        return real(*given, **options)

    def keep(path: Path, key: str, kept: Any) -> None:
        save_file(dict(list(kept.items())[:1]), path / f".{REFERENCE_FILE}.tmp")
        raise Killed

    real = teaching.frozen_outputs
    with monkeypatch.context() as patch:
        patch.setattr(teaching, "frozen_outputs", ask)
        if when == "kept in part":
            patch.setattr(run, "keep_scores", keep)
        with pytest.raises(Killed):
            train_recipe(of(school, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run" / REFERENCE_FILE).exists()
    passes.clear()
    monkeypatch.setattr(teaching, "frozen_outputs", ask)
    when = "never"
    resume(tmp_path / "run", quiet=True)
    assert len(passes) == 2  # training and validation data
    assert_alike(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("action", ["skip", "rollback"])
@pytest.mark.parametrize("keep", [None, False])
def test_the_guard_watches_a_student(
    action: str,
    keep: bool | None,
    school: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loss that is no number is passed over, also by a run that was stopped around it."""
    real = Classify.loss

    def loss(self: Classify, outputs: torch.Tensor, batch: PackedBatch) -> Loss:
        own = real(self, outputs, batch)
        bad = outputs.requires_grad and bool((batch.index == 3).any())
        return Loss(own.sum * float("nan"), own.count) if bad else own

    monkeypatch.setattr(Classify, "loss", loss)
    changes = {"train__guard": {"action": action}, "teacher__keep": keep, "train__save_every": 1}
    recipe = of(school, tmp_path / "whole", **changes)
    result = train_recipe(recipe, quiet=True)
    assert len(result.rescues) >= 2  # in each epoch
    assert "the loss is nan" in result.rescues[0]
    assert all(np.isfinite(list(result.metrics.values())))
    _stopped(of(school, tmp_path / "run", **changes))
    resume(tmp_path / "run", quiet=True)
    both = [outcome(tmp_path / name) for name in ("run", "whole")]
    assert_alike(*both)


def test_another_teacher_than_at_the_start_is_refused(school: Path, tmp_path: Path) -> None:
    shutil.copytree(school / "teacher", tmp_path / "teacher", symlinks=True)
    recipe = of(school, tmp_path / "run", teacher__from=[str(tmp_path / "teacher")])
    _stopped(recipe)
    shutil.rmtree(tmp_path / "teacher")
    train_recipe(of(school, tmp_path / "teacher", school / "teacher"), quiet=True)
    with pytest.raises(RunError, match=r"other files of .*teacher\.from"):
        resume(tmp_path / "run", quiet=True)


@pytest.mark.parametrize("changes", [{}, {"teacher__hidden": 1.0, "teacher__relations": 0.5}])
def test_asked_batch_by_batch_it_says_the_same(
    changes: dict[str, Any], school: Path, tmp_path: Path, together: Together
) -> None:
    """As kept, but for the rounding of what is kept; and in two processes as in one."""
    changes = {**STEADY, **changes}
    live = of(school, tmp_path / "live", **changes, teacher__keep=False)
    result = train_recipe(live, quiet=True)
    assert not (tmp_path / "live" / REFERENCE_FILE).exists()
    together.train(2, live.changed({"output": str(tmp_path / "two")}))
    assert_close(tmp_path / "two", weights(tmp_path / "live"))
    assert result_of(tmp_path / "two")["metrics"] == pytest.approx(result.metrics, abs=1e-5)
    if "teacher__hidden" not in changes:
        kept = of(school, tmp_path / "kept", **changes)
        train_recipe(kept, quiet=True)
        for name, values in weights(tmp_path / "kept").items():
            torch.testing.assert_close(values, weights(live.output)[name], rtol=0, atol=2e-3)
        together.train(2, kept.changed({"output": str(tmp_path / "kept-two")}))
        assert_close(tmp_path / "kept-two", weights(tmp_path / "kept"))


class TestWithoutLabels:
    def said(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        lines: list[str] = []
        monkeypatch.setattr(Reporter, "say", lambda self, text: lines.append(text))
        return lines

    def test_all_comes_from_the_teacher(
        self, school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = self.said(monkeypatch)
        plain = write(tmp_path / "plain.jsonl", [{"text": row["text"]} for row in ROWS])
        changes = {"data__train": plain, "model__layers": "every-other"}
        result = train_recipe(of(school, tmp_path / "run", **changes), quiet=True)
        size = sum(weight.numel() for weight in load(school / "teacher").model.parameters())
        who = f"teacher: {school / 'teacher'}, {size:,} parameters, asked "
        assert [lines[i - 1] for i, line in enumerate(lines) if line.startswith(who)] == [
            "layers kept: 0"
        ]
        assert f"{who}once, before training" in lines
        assert any("none of 14 records has a label" in line for line in lines)
        assert any(line.startswith("validation: no record has a label") for line in lines)
        assert "accuracy" not in result.metrics
        assert result.metrics["label_loss"] == 0
        assert pretune.load(tmp_path / "run").task.labels == ["bad", "good"]

    def test_a_column_that_may_be_the_labels_is_named(
        self, school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not guessed: texts without labels may have any columns, too."""
        lines = self.said(monkeypatch)
        data = write(tmp_path / "d.jsonl", [{"text": r["text"], "Art": r["label"]} for r in ROWS])
        train_recipe(of(school, tmp_path / "run", data__train=data), quiet=True)
        note = f"{data}: 'Art' could be read as label, but is not; to read it: "
        assert f"{note}data.columns.label=Art" in lines
        assert "none of 14 records has a label: all is learned from the teacher" in lines
        lines.clear()
        named = of(school, tmp_path / "named", data__train=data)
        train_recipe(named.changed({"data.columns": {"label": "Art"}}), quiet=True)
        assert not [line for line in lines if "could be" in line or "none of" in line]

    def test_some_have_one(
        self, school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = self.said(monkeypatch)
        mixed = [{**row, "label": row["label"] if i < 6 else None} for i, row in enumerate(ROWS)]
        changes = {"data__train": write(tmp_path / "mixed.jsonl", mixed)}
        changes["data__validation"] = write(tmp_path / "v.jsonl", ROWS[:4])
        result = train_recipe(of(school, tmp_path / "run", **changes), quiet=True)
        assert "14 of 20 records have no label, and are learned from the teacher alone" in lines
        assert "accuracy" in result.metrics

    @pytest.mark.parametrize("plain", ["plain.jsonl", "plain.txt"])
    def test_columns_of_which_only_the_validation_data_have_all(
        self, school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: str
    ) -> None:
        lines = self.said(monkeypatch)
        texts = [row["text"] for row in ROWS]
        (tmp_path / "plain.txt").write_text("\n\n".join(texts), encoding="utf-8")
        write(tmp_path / "plain.jsonl", [{"Anliegen": text} for text in texts])
        named = [{"Anliegen": row["text"], "Art": row["label"]} for row in ROWS[:4]]
        changes = {
            "data__train": str(tmp_path / plain),
            "data__validation": write(tmp_path / "v.jsonl", named),
            "data__columns": {"text": "Anliegen", "label": "Art"},
        }
        result = train_recipe(of(school, tmp_path / "run", **changes), quiet=True)
        assert "none of 20 records has a label: all is learned from the teacher" in lines
        assert "accuracy" in result.metrics
        changes["data__columns"] = {"text": "Anliegen", "label": "Arte"}
        with pytest.raises(
            PretuneError, match=r"v\.jsonl: no column 'Arte' \(for 'label'\)"
        ) as error:
            train_recipe(of(school, tmp_path / "second", **changes), quiet=True)
        assert "Did you mean 'Art'" in str(error.value.hint)

    def test_the_loss_of_labels_is_of_those_that_have_one(self, school: Path) -> None:
        task: Any = teaching.student_task(of(school, school / "none"))
        batch = PackedBatch.of([[1], [2], [3]], targets={"label": [0, -100, 1]})
        logits = torch.tensor([[1.0, 2.0], [9.0, 0.0], [0.5, 0.0]])
        loss = task.loss(logits, batch)
        expected = -logits.log_softmax(-1)[[0, 2], [0, 1]].sum()
        torch.testing.assert_close(loss.sum, expected)
        assert loss.count == 3

    def test_an_unknown_label_is_named(self, school: Path, tmp_path: Path) -> None:
        data = write(tmp_path / "x.jsonl", [*ROWS, {"text": "the", "label": "ugly"}])
        with pytest.raises(PretuneError, match="unknown label 'ugly'") as error:
            train_recipe(of(school, tmp_path / "run", data__train=data), quiet=True)
        assert "bad, good" in str(error.value.hint)


def test_teachers_with_other_tokenizers_and_orders_of_labels(
    school: Path, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is the mean of what each predicts by itself, by the labels' names."""
    shutil.copytree(tiny_folder, tmp_path / "other")
    words = (tiny_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    turned = [*words[:5], *reversed(words[5:])]
    (tmp_path / "other/vocab.txt").write_text("\n".join(turned) + "\n", encoding="utf-8")
    other = of(school, tmp_path / "second", tmp_path / "other", task__labels=["good", "bad"])
    train_recipe(other.changed({"task.max_length": 6}), quiet=True)
    teachers = [str(school / "teacher"), str(tmp_path / "second")]
    recipe = of(school, tmp_path / "run", teacher__from=teachers, data__validation=None)
    recipe = recipe.changed({"train.max_steps": 1, "teacher.temperature": 1.0})
    shown: list[int] = []
    monkeypatch.setattr(Reporter, "working", lambda self, what, total: nullcontext(shown.append))
    train_recipe(recipe, quiet=True)
    # One bar for both: after half of the work it stands in the middle.
    assert shown[-2:] == [10, 20]
    kept = load_file(tmp_path / "run" / REFERENCE_FILE)[f"train.{SOFT}"]
    texts = [{"text": row["text"]} for row in ROWS]
    answers = [pretune.predict(pretune.load(teacher), texts) for teacher in teachers]
    for i, pair in enumerate(zip(*answers, strict=True)):
        mean = [np.mean([one.scores[label] for one in pair]) for label in ("bad", "good")]
        np.testing.assert_allclose(kept[i], mean, atol=1e-3)


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"teacher.from": ["/nowhere"]}, "teacher.from: '/nowhere': no such folder"),
            ({"teacher.temperature": 0}, "teacher.temperature"),
            ({"teacher": {"from": "x", "soft": 0}}, "nothing is learned from it"),
            ({"teacher.hidden": 1, "teacher.keep": True}, "keep is for outputs"),
            ({"task": {"name": "multilabel"}}, "was trained for classify, and the student is for"),
            ({"task": {"name": "choose"}}, "teacher: choose has no teacher"),
            ({"task.labels": ["good", "bad", "so"]}, "does not know so"),
            ({"task.pair": True}, "reads text, and the student sentence1, sentence2"),
            ({"train.parallel": "fsdp"}, "the model of a teacher is whole in each process"),
            ({"model.layers": [2]}, r"\[2\] of a model with the layers 0 to 1"),
            ({"model.layers": []}, r"\[\] of a model with the layers 0 to 1"),
        ],
    )
    def test_is_named(
        self, changes: dict[str, Any], message: str, school: Path, tmp_path: Path
    ) -> None:
        if "task.pair" in changes:
            rows = [{"sentence1": r["text"], "sentence2": "the", "label": r["label"]} for r in ROWS]
            changes = {**changes, "data.train": write(tmp_path / "pairs.jsonl", rows)}
        with pytest.raises(PretuneError, match=message):
            train_recipe(of(school, tmp_path / "run").changed(changes), quiet=True)
        assert not (tmp_path / "run").exists()

    def test_fewer_labels_than_the_teacher_has(
        self, school: Path, tmp_path: Path, tiny_folder: Path
    ) -> None:
        """Named in the recipe; data that have only some of them are welcome."""
        more = write(tmp_path / "more.jsonl", [*ROWS, *[{"text": "un", "label": "so"}] * 4])
        three = of(school, tmp_path / "three", tiny_folder, data__train=more)
        train_recipe(three, quiet=True)
        recipe = of(school, tmp_path / "run", teacher__from=[str(tmp_path / "three")])
        with pytest.raises(PretuneError, match="the student lacks so"):
            train_recipe(recipe.changed({"task.labels": ["good", "bad"]}), quiet=True)
        train_recipe(recipe, quiet=True)
        assert pretune.load(tmp_path / "run").task.labels == ["bad", "good", "so"]

    def test_a_teacher_without_a_task(
        self, school: Path, tmp_path: Path, tiny_folder: Path
    ) -> None:
        values = of(school, tmp_path / "run").to_dict()
        del values["task"]
        with pytest.raises(PretuneError, match="was not trained for a task"):
            Recipe.of({**values, "teacher": str(tiny_folder)})

    def test_other_tokens_where_insides_are_compared(
        self, school: Path, tmp_path: Path, tiny_folder: Path
    ) -> None:
        shutil.copytree(tiny_folder, tmp_path / "other")
        words = (tiny_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        (tmp_path / "other/vocab.txt").write_text("\n".join([*words[:5], *words[:4:-1]]) + "\n")
        changes = {"model.from": str(tmp_path / "other"), "model.layers": None}
        recipe = of(school, tmp_path / "run", teacher__hidden=1).changed(changes)
        with pytest.raises(PretuneError, match=r"the teacher .* numbers tokens in another way"):
            train_recipe(recipe, quiet=True)
        new = {
            "model": {
                "from": "bert-tiny",
                "config": {"hidden_size": load(tiny_folder).backbone.config.size("hidden_size")},
                "train_tokenizer": {"kind": "wordpiece", "vocab_size": 60},
            }
        }
        with pytest.raises(PretuneError, match=r"than the model with random weights: "):
            train_recipe(Recipe.of({**recipe.to_dict(), **new}), quiet=True)

    def test_another_number_of_heads(self, school: Path, tmp_path: Path) -> None:
        changes = {"model.from": "bert-tiny", "model.layers": None}
        recipe = of(school, tmp_path / "run", teacher__relations=1)
        wide = {"hidden_size": 32, "num_attention_heads": 1}
        changes |= {"model.config": wide, "model.tokenizer": str(school / "teacher")}
        with pytest.raises(PretuneError, match=r"another number of heads .*: 4, not 1") as error:
            train_recipe(recipe.changed(changes), quiet=True)
        assert "model.config" in str(error.value.hint)

    def test_layers_of_a_new_model(self, school: Path, tmp_path: Path) -> None:
        recipe = of(school, tmp_path / "run", model__from="bert-tiny")
        with pytest.raises(PretuneError, match="picks layers of a trained model") as error:
            train_recipe(recipe, quiet=True)
        assert "model.layers=null" in str(error.value.hint)

    def test_a_disk_that_is_too_small(
        self, tmp_path: Path, school: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = language(school, tmp_path)
        free = shutil.disk_usage(tmp_path)._replace(free=100)
        monkeypatch.setattr(teaching.shutil, "disk_usage", lambda folder: free)
        with pytest.raises(RunError, match=r"the outputs of the teacher take .* MB are free"):
            train_recipe(recipe, quiet=True)


def language(school: Path, folder: Path) -> Recipe:
    """A language model with a teacher of its own."""
    values = of(school, folder / "lm", Path("gpt2-small")).to_dict()
    values["task"] = {"name": "causal_lm", "max_length": 16}
    values["model"]["config"] = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32}
    values["model"]["train_tokenizer"] = {"kind": "bpe", "vocab_size": 270}
    values["train"] |= {"epochs": 1}
    train_recipe(Recipe.of(values), quiet=True)
    del values["task"], values["model"]
    values |= {"teacher": {"from": str(folder / "lm"), "top_k": 8}, "output": str(folder / "run")}
    return Recipe.of({**values, "model": {"layers": "every-other"}})


def test_the_command_for_a_student_of_another_width(tmp_path: Path, minilm: Path) -> None:
    """Of the recipe's own words, whose BERT has 12 heads as MiniLM has."""
    words = builtin_recipes()["distill-mlm"].replace("\\\n#", "").splitlines()
    command = next(line for line in words if "bert-small" in line)
    name, *values = shlex.split(command.partition("pretune train")[2])
    (tmp_path / "texts.txt").write_text("\n\n".join(row["text"] for row in ROWS))
    own = {
        "teacher.from": str(minilm),
        "model.config.num_hidden_layers": 1,
        "data.train": str(tmp_path / "texts.txt"),
        "data.validation": None,
        "train.max_steps": 1,
        "train.batch_size": 2,
        "train.device": "cpu",
        "output": str(tmp_path / "run"),
    }
    given = [value.split("=", 1) for value in values]
    recipe = Recipe.load(name, {**{key: yaml12.parse(text, key) for key, text in given}, **own})
    assert recipe.model.config["hidden_size"] == 384
    train_recipe(recipe, quiet=True)
    assert load(tmp_path / "run").backbone.config.size("num_attention_heads") == 12


def test_a_language_model_keeps_the_likeliest_tokens(
    school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    recipe = language(school, tmp_path)
    monkeypatch.setattr(Reporter, "say", lambda self, text: lines.append(text))
    result = train_recipe(recipe, quiet=True)
    assert {"teacher_kl", "teacher_agreement", "perplexity"} <= {*result.metrics}
    kept = load_file(tmp_path / "run" / REFERENCE_FILE)
    size = sum(values.nbytes for values in kept.values())
    (line,) = (line for line in lines if line.startswith("teacher: its outputs take"))
    assert f"{size / 1e6:,.1f} MB" in line
    live = recipe.changed({"teacher.keep": False, "output": str(tmp_path / "live")})
    asked = train_recipe(live, quiet=True)
    assert asked.metrics == pytest.approx(result.metrics, rel=1e-3, abs=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher.hidden": 1.0, "teacher.top_k": None},
        {"teacher.soft": 0, "teacher.relations": 1.0},
    ],
    ids=["DistilBERT", "MiniLM"],
)
def test_pre_training_resumes_exactly(
    changes: dict[str, Any],
    school: Path,
    tmp_path: Path,
    tiny_folder: Path,
) -> None:
    """Masks are drawn anew, so the teacher is asked in each batch; MiniLM's needs no head."""
    values = of(school, tmp_path / "teacher", tiny_folder).to_dict()
    values["task"] = {"name": "mask_lm", "max_length": 12}
    train_recipe(Recipe.of(values), quiet=True)
    bare = "teacher.relations" in changes
    values["teacher"] = str(tiny_folder if bare else tmp_path / "teacher")
    values["model"] = {"from": str(tmp_path / "teacher"), "layers": [0]}
    recipe = Recipe.of(values).changed(changes)
    whole = recipe.changed({"output": str(tmp_path / "whole")})
    result = train_recipe(whole, quiet=True)
    assert ("relation_loss" if bare else "hidden_loss") in result.metrics
    assert ("teacher_kl" in result.metrics) != bare
    again = recipe.changed({"output": str(tmp_path / "run"), "train.workers": 2})
    _stopped(again)
    resume(tmp_path / "run", quiet=True)
    for name, values_ in weights(tmp_path / "run").items():
        assert torch.equal(values_, weights(tmp_path / "whole")[name])


def test_the_recipe_with_a_name_forgets_its_own_data(school: Path) -> None:
    """Its validation data and names of columns are of no use for other data."""
    other = {"teacher.from": str(school / "teacher"), "data.train": "mine.jsonl"}
    recipe = Recipe.load("distill", other)
    assert (recipe.data.validation, recipe.data.columns) == (0.1, {})
    stated = {"data.validation": "dev.jsonl", "data.columns.text": "body"}
    recipe = Recipe.load("distill", {**other, **stated})
    assert (recipe.data.validation, recipe.data.columns["text"]) == ("dev.jsonl", "body")
    recipe = Recipe.load("distill", {"teacher.from": str(school / "teacher")})
    assert recipe.data.columns == {"text": "sentence"}
    assert str(recipe.data.validation).startswith("nyu-mll/glue")
