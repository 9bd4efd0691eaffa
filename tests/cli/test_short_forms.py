"""Short forms of a recipe's keys, and what a shell offers at the Tab key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pretune.cli import completion
from pretune.cli.app import app, defined
from pretune.cli.short_forms import SHORT_FORMS, expanded
from pretune.errors import PretuneError
from pretune.recipe.mistakes import key_called, known_keys
from pretune.recipe.recipe import Recipe


def output(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*args])
    return result.exit_code, " ".join(result.output.split())


def test_short_forms_become_overrides_after_everything_else() -> None:
    args = ["--epochs", "3", "a.tsv", "--lr=1e-4", "train.clip=1", "--quiet", "--seed", "7"]
    assert expanded(args, {"--quiet", "--seed"}) == (
        ["a.tsv", "train.clip=1", "--quiet", "--seed", "7"],
        ["train.epochs=3", "train.learning_rate=1e-4"],
    )
    assert expanded(["--", "--epochs", "3"], ()) == (["--", "--epochs", "3"], [])
    with pytest.raises(PretuneError, match="--epochs: its value is missing"):
        expanded(["--epochs"], ())


def test_every_short_form_stands_for_a_key() -> None:
    own = {"task.max_length"}  # of the task
    assert {*SHORT_FORMS.values()} - own <= {*known_keys(Recipe)}


@pytest.mark.parametrize("name", ["train", "plan", "plot-schedule", "sweep"])
def test_commands_with_a_recipe_have_them(name: str) -> None:
    code, text = output(name, "no-such-recipe", "--batch-size", "4")
    assert code == 2
    assert "no such recipe or file" in text
    assert "--batch-size X for train.batch_size=X" in output(name, "--help")[1]
    own = {option for parameter in defined(name).params for option in parameter.opts}
    assert ("--seed" in own) == (name == "sweep")


def test_the_values_count(tmp_path: Path) -> None:
    table = tmp_path / "a.tsv"
    table.write_text("text\tlabel\n" + "a\tx\nb\ty\n" * 8)
    args = ("plan", str(table), "--model", "bert-tiny", "model.tokenizer=minilm", "--no-measure")
    code, text = output(*args, "--epochs", "5", "--batch-size=4", "--json")
    assert code == 0, text
    assert '"updates": 20' in text


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--warmup-ratio", "train.warmup"),
        ("--gradient_accumulation_steps", "train.accumulate"),
        ("--weight-decay", "train.weight_decay"),
        ("--train-file", "data.train"),
    ],
)
def test_an_unknown_option_is_told_as_the_key_it_means(option: str, key: str) -> None:
    code, text = output("train", "mrpc", option, "1")
    assert code == 2
    assert f"{option}: no such option" in text
    assert f"write {key}=VALUE" in text


def test_an_option_that_means_no_key_is_refused_as_usual() -> None:
    code, text = output("train", "mrpc", "--frobnicate")
    assert code == 2
    assert "No such option: --frobnicate" in text
    assert key_called("frobnicate", Recipe) is None


def test_the_shell_offers_recipes_keys_files_and_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/a/best", "runs/b", "mine"):
        os.makedirs(folder)
    for file in ("runs/a/recipe.yaml", "mine/config.json", "mrs.tsv"):
        Path(file).write_text("")
    assert completion.recipes("mr") == ["mrpc", "mrs.tsv"]
    assert completion.recipes("ru") == ["runs/"]
    assert completion.keys("train.epo") == ["train.epochs="]
    assert completion.keys("data.train=mr") == ["data.train=mrs.tsv"]
    assert completion.models("m") == ["minilm", "mine"]
    assert completion.models("runs/") == ["runs/a", "runs/b/"]
    assert completion.models("[") == []


def test_the_shell_asks_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"_PRETUNE_COMPLETE": "complete_bash", "COMP_WORDS": "pretune train mrp"}
    result = CliRunner().invoke(app, [], prog_name="pretune", env={**words, "COMP_CWORD": "2"})
    assert result.output.split() == ["mrpc"]
