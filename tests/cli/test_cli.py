"""The command line as a person uses it: a process, its output, its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pretune.cli.app import app
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe, builtin_recipes


def pretune(
    *arguments: str | Path, cwd: Path, text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command: in a process of its own if it reads a pipe or an environment, else in this.

    Importing torch takes longer than most commands do.
    """
    command = [*map(str, arguments)]
    if text is not None or environment:
        return process(*command, cwd=cwd, text=text, **environment)
    with contextlib.chdir(cwd):
        done = CliRunner().invoke(app, command, env={"COLUMNS": "100"}, prog_name="pretune")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)


def process(
    *arguments: str | Path, cwd: Path, text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pretune", *map(str, arguments)],
        cwd=cwd,
        input=text,
        stdin=None if text is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Exit code 2, a sentence, no traceback, nothing on standard output."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for part in said:
        assert part in done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with data and a trained run in it."""
    folder = tmp_path_factory.mktemp("place")
    rows = [f"{'the ' * (i % 5)}{w} film\t{w}" for i in range(20) for w in ("good", "bad")]
    (folder / "films.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    done = process("train", "films.tsv", *small(tiny_folder), "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "first.json").write_text(done.stdout, encoding="utf-8")
    return folder


def small(model: Path) -> list[str]:
    return [
        f"model.from={model}",
        "task.max_length=16",
        "train.epochs=10",
        "train.batch_size=8",
        "train.learning_rate=5e-3",
        "train.best=loss",
    ]


class TestHelp:
    def test_starts_without_torch(self, tmp_path: Path) -> None:
        code = (
            "import sys; sys.argv = ['pretune', '--help']\n"
            "from pretune.cli.app import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    def test_version(self, tmp_path: Path) -> None:
        import pretune as package

        assert process("--version", cwd=tmp_path).stdout == f"pretune {package.__version__}\n"


class TestTrain:
    def test_json_is_the_result(self, place: Path) -> None:
        result = json.loads((place / "first.json").read_text(encoding="utf-8"))
        assert result["metrics"]["accuracy"] == 1.0
        assert result == json.loads((place / "runs/films/result.json").read_text(encoding="utf-8"))

    def test_shows_a_table_and_what_to_do_next(self, place: Path, tiny_folder: Path) -> None:
        done = pretune(
            "train", "films.tsv", *small(tiny_folder), "train.epochs=1", "output=a", cwd=place
        )
        assert done.returncode == 0
        assert "accuracy" in done.stdout
        assert "pretune predict a TEXT" in done.stdout
        assert "training" in done.stderr
        assert "step 5/5" in done.stderr, "a plain log where there is no terminal"
        assert "classifier.weight" in done.stderr, "what is new in the model is said"

    def test_several_seeds(self, place: Path, tiny_folder: Path) -> None:
        done = pretune(
            *("train", "films.tsv", *small(tiny_folder), "train.epochs=1", "output=b"),
            *("--seeds", "2", "--quiet"),
            cwd=place,
        )
        assert done.returncode == 0
        assert "mean" in done.stdout
        assert "± sd" in done.stdout
        assert done.stderr == ""

    def test_the_resolved_recipe_repeats_it(self, place: Path) -> None:
        done = pretune("train", "runs/films/recipe.yaml", "output=again", "--json", cwd=place)
        result = json.loads(done.stdout)
        first = json.loads((place / "first.json").read_text(encoding="utf-8"))
        assert result["metrics"] == first["metrics"]


class TestEvaluate:
    def test_shows_figures_of_each_class(self, place: Path) -> None:
        done = pretune("evaluate", "runs/films", "films.tsv", cwd=place)
        assert done.returncode == 0
        for part in ("accuracy", "1.0000", "precision", "support", "the model's answer", "good"):
            assert part in done.stdout

    def test_json(self, place: Path) -> None:
        done = pretune("evaluate", "runs/films", "films.tsv", "--json", cwd=place)
        found = json.loads(done.stdout)
        assert found["count"] == 40
        assert found["details"]["confusion"] == [[20, 0], [0, 20]]


class TestPredict:
    def test_texts(self, place: Path) -> None:
        done = process("predict", "runs/films", "a good film", "bad", cwd=place)
        assert done.returncode == 0
        first, second = done.stdout.split("bad\n", 1)
        assert first.index("good ") < len(first)
        assert "%" in second

    def test_json_lines_have_every_score(self, place: Path) -> None:
        done = pretune("predict", "runs/films", "good 好", "bad", "--json", cwd=place)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert [a["label"] for a in answers] == ["good", "bad"]
        assert answers[0]["text"] == "good 好"
        assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-5)

    def test_a_pipe(self, place: Path) -> None:
        text = "good\n\nbad\n"
        done = pretune("predict", "runs/films", "--json", cwd=place, text=text)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert [answer["text"] for answer in answers] == ["good", "", "bad"]
        assert (answers[0]["label"], answers[2]["label"]) == ("good", "bad")
        assert "1 blank line or text: answered too" in done.stderr
        (place / "in.txt").write_text(text, encoding="utf-8")
        file = pretune("predict", "runs/films", "--file", "in.txt", "--json", cwd=place)
        assert file.stdout == done.stdout
        assert file.stderr == done.stderr

    def test_a_file(self, place: Path) -> None:
        (place / "in.csv").write_text('id,body\n1,"good, the film"\n2,bad\n', encoding="utf-8")
        done = pretune(
            *("predict", "runs/films", "--file", "in.csv", "--column", "text=body", "--json"),
            cwd=place,
        )
        assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == ["good", "bad"]

    def test_into_a_closed_pipe_is_quiet(self, place: Path) -> None:
        lines = "good\n" * 5000
        (place / "many.txt").write_text(lines, encoding="utf-8")
        arguments = ["predict", "runs/films", "--file", "many.txt", "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pretune", *arguments],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert "good" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        process.stderr.close()
        assert process.wait(60) == 128 + signal.SIGPIPE


class TestInitAndRecipes:
    def test_init_writes_a_recipe_that_loads(self, tmp_path: Path) -> None:
        done = pretune("init", "classify", "-o", "mine.yaml", cwd=tmp_path)
        assert done.returncode == 0
        assert Recipe.load(tmp_path / "mine.yaml").task.name == "classify"
        refused(pretune("init", "classify", "-o", "mine.yaml", cwd=tmp_path), "exists already")

    def test_init_to_the_terminal(self, tmp_path: Path) -> None:
        assert "epochs: 3" in pretune("init", "classify", cwd=tmp_path).stdout

    def test_recipes_are_listed_and_shown(self, tmp_path: Path) -> None:
        listed = pretune("recipes", cwd=tmp_path).stdout
        assert all(name in listed for name in builtin_recipes())
        assert pretune("recipes", "mrpc", cwd=tmp_path).stdout == builtin_recipes()["mrpc"]


class TestMistakes:
    def test_an_unknown_recipe(self, tmp_path: Path) -> None:
        refused(process("train", "mrcp", cwd=tmp_path), "Did you mean 'mrpc'?")

    def test_a_typo_in_a_recipe(self, tmp_path: Path) -> None:
        (tmp_path / "r.yaml").write_text(
            "task: classify\ndata: {train: a.tsv}\ntrain: {epoch: 2}\n", encoding="utf-8"
        )
        refused(
            pretune("train", "r.yaml", cwd=tmp_path),
            "r.yaml: unknown key 'train.epoch'. Did you mean 'train.epochs'?",
        )

    def test_a_missing_column(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("mark,label\nx,y\n", encoding="utf-8")
        refused(
            pretune("train", "a.csv", cwd=tmp_path),
            "a.csv: no column 'text'; it has 'mark', 'label'",
            "data.columns.text=COLUMN",
        )

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("", encoding="utf-8")
        refused(pretune("train", "a.csv", cwd=tmp_path), "a.csv: no records in it")

    def test_invalid_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes(b"text,label\nok,a\n\xff\xfe,b\n")
        refused(pretune("train", "a.csv", cwd=tmp_path), "a.csv, line 3: not valid UTF-8")

    def test_a_million_characters(self, tmp_path: Path, tiny_folder: Path) -> None:
        rows = ["text,label", "ok,a", "x" * 10**6 + ",b", "ok,a", "ok,b"] + ["ok,a"] * 9
        (tmp_path / "a.csv").write_text("\n".join(rows), encoding="utf-8")
        refused(
            pretune("train", "a.csv", *small(tiny_folder), cwd=tmp_path),
            "a.csv, line 3, column 'text': a text of 1,000,000 characters",
            "data.max_chars",
        )
        assert not (tmp_path / "runs").exists()

    def test_an_unknown_label_in_evaluation(self, place: Path) -> None:
        (place / "odd.tsv").write_text("text\tlabel\nx\tgood\ny\tgodo\n", encoding="utf-8")
        refused(
            pretune("evaluate", "runs/films", "odd.tsv", cwd=place),
            "odd.tsv, line 3, column 'label': unknown label 'godo'",
            "Did you mean 'good'?",
        )

    def test_the_way_out_is_an_option_of_the_command(self, place: Path) -> None:
        (place / "gb.tsv").write_bytes("text\tlabel\n很好的电影\tgood\n".encode("gb18030"))
        done = pretune("evaluate", "runs/films", "gb.tsv", cwd=place)
        refused(done, "gb.tsv, line 2: not valid UTF-8", "--encoding gb18030")
        assert "data.encoding" not in done.stderr
        way_out = ("--encoding", "gb18030")
        assert pretune("evaluate", "runs/films", "gb.tsv", *way_out, cwd=place).returncode == 0
        done = pretune("train", "sst2", "data.train=gb.tsv", "data.validation=0.5", cwd=place)
        refused(done, "data.encoding=gb18030")

    def test_nan_in_the_weights(self, place: Path, tiny_folder: Path, tmp_path: Path) -> None:
        for name in ("config.json", "vocab.txt"):
            (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
        weights = load_file(tiny_folder / "model.safetensors")
        weights["encoder.layer.1.output.dense.weight"][3, 5] = torch.nan
        save_file(weights, tmp_path / "model.safetensors")
        refused(
            pretune("train", "films.tsv", *small(tmp_path), "output=nan", cwd=place),
            "encoder.layer.1.output.dense.weight",
            "not finite",
        )
        assert not (place / "nan").exists()

    def test_an_occupied_folder(self, place: Path, tiny_folder: Path) -> None:
        refused(
            pretune("train", "films.tsv", *small(tiny_folder), "seed=5", cwd=place),
            "runs/films: already holds a finished run of another recipe",
            "seed: 0 there, 5 now",
            "--overwrite",
        )

    def test_no_such_model(self, place: Path) -> None:
        refused(pretune("predict", "runs/flims", "x", cwd=place), "runs/flims")

    def test_nothing_to_predict(self, place: Path) -> None:
        done = pretune("predict", "runs/films", "x", "--file", "in.csv", cwd=place)
        refused(done, "either TEXT or --file")

    def test_an_odd_number_of_texts_for_pairs(
        self, place: Path, tiny_folder: Path, tmp_path: Path
    ) -> None:
        rows = ["sentence1\tsentence2\tlabel", *(f"a\tb\t{i % 2}" for i in range(20))]
        (tmp_path / "p.tsv").write_text("\n".join(rows), encoding="utf-8")
        options = [*small(tiny_folder), "train.epochs=1", "--quiet"]
        assert pretune("train", "p.tsv", *options, cwd=tmp_path).returncode == 0
        done = pretune("predict", "runs/p", "a", "b", "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["sentence2"] == "b"
        refused(pretune("predict", "runs/p", "a", cwd=tmp_path), "reads 2 texts at a time")

    def test_the_hub_out_of_reach(self, tmp_path: Path) -> None:
        done = pretune("train", "mrpc", cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
        refused(done, "nyu-mll/glue:mrpc:train", "data.train=FILE")

    def test_a_bad_column_option(self, place: Path) -> None:
        done = pretune("evaluate", "runs/films", "films.tsv", "--column", "body", cwd=place)
        refused(done, "--column 'body'")


def test_a_notebook_needs_five_lines(place: Path, tiny_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(place)
    import pretune as package

    run = package.train("films.tsv", [*small(tiny_folder), "output=notebook"], quiet=True)
    model = package.load(run.folder)
    assert package.evaluate(model, "films.tsv").metrics["accuracy"] == 1.0
    assert package.predict(model, ["a good film"])[0].to_dict()["label"] == "good"


@pytest.mark.parametrize("task", ["ppo", "reward", "classify", "distill", "distill-mlm"])
def test_init_writes_the_recipe_of_that_name(task: str) -> None:
    done = CliRunner().invoke(app, ["init", task])
    assert ("drop what you keep" in done.stdout) == (task not in builtin_recipes())
    written = Recipe.of(yaml12.parse(done.stdout, "x"))
    plain = {"task": task, "data": {"train": "train.tsv"}, "output": f"runs/{task}"}
    assert written == (Recipe.load(task) if task in builtin_recipes() else Recipe.of(plain))
