"""What would be sent of a run: files, card and recipe."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

import pretune
from pretune.errors import CheckpointError, HubError, RunError
from pretune.publishing import publish
from pretune.publishing.publish import Trained, find_trained, shareable, stage
from pretune.publishing.upload import check_name
from pretune.recipe.recipe import Recipe
from tests.publishing.small_runs import NASTY, REPO, small_recipe, write_data

TEXT_FILES = (
    "README.md",
    "config.json",
    "pretune.json",
    "recipe.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
)


class TestFiles:
    def test_all_that_a_model_needs_and_nothing_else(self, run_folder: Path, staged: Path) -> None:
        files = publish.staged_files(staged)
        assert [file.name for file in files] == sorted([*TEXT_FILES, "model.safetensors"])
        assert all(file.size == (staged / file.name).stat().st_size for file in files)

    def test_transformers_opens_it_with_the_same_logits(
        self, run_folder: Path, staged: Path
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        logits = []
        for folder in (run_folder / "best", staged):
            model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder)
            with torch.inference_mode():
                logits.append(model(**tokenizer("the good film", return_tensors="pt")).logits)
            assert model.config.id2label == dict(enumerate(sorted(NASTY)))
        assert torch.equal(*logits)

    def test_pretune_opens_it_with_the_same_answers(self, run_folder: Path, staged: Path) -> None:
        texts = ["a good film", "bad", "the"]
        assert pretune.predict(staged, texts) == pretune.predict(run_folder, texts)

    def test_a_staged_folder_can_be_staged_again(self, staged: Path, tmp_path: Path) -> None:
        stage(staged, REPO, tmp_path / "again")
        weights = [(p / "model.safetensors").read_bytes() for p in (staged, tmp_path / "again")]
        assert weights[0] == weights[1]

    def test_an_occupied_folder_is_left_alone(self, run_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(RunError, match="exists already"):
            stage(run_folder, REPO, tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]

    def test_nothing_is_left_of_a_failed_staging(
        self, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: object) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(publish, "model_card", full)
        with pytest.raises(RunError, match="No space left"):
            stage(run_folder, REPO, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


class TestPrivacy:
    def test_no_path_of_this_machine(self, run_folder: Path, staged: Path) -> None:
        import platform

        secrets = {str(run_folder), str(run_folder.parent), str(Path.home()) + "/", os.getcwd()}
        secrets |= {platform.platform(), platform.node() or "?", '"environment"', "my-model/"}
        result = json.loads((run_folder / "result.json").read_text(encoding="utf-8"))
        # "matmul" may be PyTorch, whose version the card tells.
        told = {"pretune", "torch", "python", "matmul"}
        secrets |= {v for k, v in result["environment"].items() if k not in told and len(v) > 3}
        for name in TEXT_FILES:
            text = (staged / name).read_text(encoding="utf-8")
            if name == "tokenizer.json":  # words of a vocabulary are no paths
                text = text.partition('"vocab"')[0]
            assert not [secret for secret in secrets if secret in text], name
            assert "private-place" not in text, name

    def test_the_recipe_names_files_without_folders(self, staged: Path) -> None:
        recipe = Recipe.load(staged / "recipe.yaml")
        assert recipe.data.train == "films <i>.jsonl"
        assert recipe.model.source == "my-model"
        assert recipe.output == "run"
        assert recipe.train.learning_rate == 5e-3

    def test_the_tokenizer_forgets_where_it_lay(self, staged: Path) -> None:
        settings = json.loads((staged / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert settings["do_lower_case"] is True
        assert not {"name_or_path", "vocab_file"} & set(settings)

    @pytest.mark.parametrize(
        ("key", "given", "shown"),
        [
            ("data.train", "/home/ann/films.csv", "films.csv"),
            ("data.train", "secret/plan/films.csv", "films.csv"),
            ("data.train", "../films.csv", "films.csv"),
            ("data.train", "~/films.csv", "films.csv"),
            ("data.train", r"C:\Users\ann\films.csv", "films.csv"),
            ("data.train", "nyu-mll/glue:mrpc:train", "nyu-mll/glue:mrpc:train"),
            ("data.validation", "/home/ann/dev.tsv", "dev.tsv"),
            ("data.train", "/home/ann/train.de,/home/ann/train.en", "train.de,train.en"),
            ("data.train", "secret/plan/train.de, ../train.en", "train.de,train.en"),
            ("data.validation", "val.de,val.en", "val.de,val.en"),
            ("data.validation", None, None),
            ("model.from", "/models/ours", "ours"),
            ("model.from", "~/models/ours/", "ours"),
            ("model.from", "models/of/ours", "ours"),
            ("model.from", "there/model", "model"),
            ("model.from", "minilm", "minilm"),
            ("model.from", "google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
            ("output", "runs/secret/x", "x"),
            ("output", "/", "local"),
            ("description", "Of /home/ann/x/d.tsv, 'C:\\a\\b' or ~/x.", "Of d.tsv, 'b' or x."),
            ("description", "good/bad, 1/2, https://x.org/a/b", "good/bad, 1/2, https://x.org/a/b"),
            ("task.labels", {"0": "/a/b", "1": "c"}, {"0": "/a/b", "1": "c"}),
            ("task", {"name": "multilabel", "separator": "/"}, {"separator": "/"}),
            ("task", {"name": "ppo", "reward": {"match": "/a|b/c"}}, {"match": "/a|b/c"}),
            ("task", {"name": "ppo", "reward": {"run": "/home/ann/rm"}}, {"run": "rm"}),
        ],
    )
    def test_local_paths_are_cut_and_names_on_the_hub_are_not(
        self, tmp_path: Path, key: str, given: object, shown: object
    ) -> None:
        (tmp_path / "there" / "model").mkdir(parents=True)
        recipe = Recipe.of({"task": "classify", "data": {"train": "x.tsv"}}).changed({key: given})
        value: object = shareable(Trained(tmp_path, start=tmp_path), recipe).to_dict()
        for part in key.split("."):
            assert isinstance(value, dict)
            value = value[part]
        if key == "task":  # an option, perhaps of a section, among others
            assert isinstance(value, dict)
            assert isinstance(shown, dict)
            value = {**value, **(value.get("reward") or [{}])[0]}
            value = {name: value[name] for name in shown}
        assert value == shown


class TestCard:
    def test_its_metadata_is_what_the_hub_reads(self, run_folder: Path, staged: Path) -> None:
        card = ModelCard.load(staged / "README.md")
        found = card.data.to_dict()
        assert found["license"] == "apache-2.0"
        assert found["language"] == "en"
        assert found["pipeline_tag"] == "text-classification"
        assert found["library_name"] == "transformers"
        assert found["tags"] == ["pretune", "classify"]
        assert found["metrics"] == ["accuracy", "f1", "matthews_correlation"]
        assert "base_model" not in found, "a local model is not on the Hub"
        assert "datasets" not in found
        name, results = model_index_to_eval_results(found["model-index"])
        assert name == "films"
        figures = json.loads((run_folder / "result.json").read_text(encoding="utf-8"))["metrics"]
        assert {r.metric_type: r.metric_value for r in results} == {
            "accuracy": round(figures["accuracy"], 6),
            "f1": round(figures["f1"], 6),
            "matthews_correlation": round(figures["mcc"], 6),
        }
        assert {(r.dataset_type, r.dataset_name) for r in results} == {
            ("json", "films <i>.jsonl, 20% held back")
        }
        again = ModelCardData(**found)
        assert again.to_dict() == found

    def test_text_from_data_stays_text(self, staged: Path) -> None:
        text = ModelCard.load(staged / "README.md").text
        outside = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.M | re.S)  # code is shown as it is
        for bad in ("<script>", "<b>", "<i>", "[x]", "](", "# a heading"):
            assert bad not in outside
        rows = [line for line in outside.splitlines() if line.startswith("| bad")]
        assert rows
        for row in rows:
            assert row.startswith("| bad &#124; &#60;script&#62;alert(1)&#60;/script&#62; |")
        rows = [line for line in outside.splitlines() if line.startswith("| good --- &#35; a head")]
        assert [row.count("|") for row in rows] == [6, 4], "a label is one cell, on one line"

    def test_it_says_what_was_measured_and_what_was_not(self, staged: Path) -> None:
        text = (staged / "README.md").read_text(encoding="utf-8")
        assert "20% of films &#60;i&#62;.jsonl (a local file), held back from training" in text
        assert "(8 examples)" in text
        assert "It was only measured on 20% of films" in text
        assert "at most 16 tokens" in text
        assert "Started from: my-model (a local model)." in text
        assert f"pretune {pretune.__version__}, PyTorch {torch.__version__}" in text

    def test_its_code_works(
        self, staged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = (staged / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```python\n(.*?)\n```", text, flags=re.S)
        assert len(blocks) == 2
        for block in blocks:
            assert f"'{REPO}'" in block
            exec(block.replace(REPO, str(staged)), {})  # noqa: S102 - our own
        ours, theirs = capsys.readouterr().out.splitlines()
        assert ours.startswith("[ClassPrediction(label=")
        assert theirs.startswith("[{'label': ")

    def test_its_code_works_for_pairs(
        self, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = ["sentence1\tsentence2\tlabel", *(f"a {i}\tb\t{i % 2}" for i in range(20))]
        (tmp_path / "p.tsv").write_text("\n".join(rows), encoding="utf-8")
        recipe = small_recipe(tiny_folder, tmp_path / "p.tsv", tmp_path / "run")
        recipe["task"]["pair"] = True
        pretune.train(recipe, {"train.max_steps": 1}, quiet=True)
        stage(tmp_path / "run", REPO, tmp_path / "out")
        text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
        assert "reads the first text and the second text and gives one of 2 labels" in text
        for block in re.findall(r"```python\n(.*?)\n```", text, flags=re.S):
            exec(block.replace(REPO, str(tmp_path / "out")), {})  # noqa: S102 - our own
        assert "No license was given" in text

    def test_names_on_the_hub_are_told(self, run_folder: Path, tmp_path: Path) -> None:
        copy = tmp_path / "run"
        shutil.copytree(run_folder, copy, symlinks=True)
        recipe = Recipe.load(run_folder / "recipe.yaml").changed(
            {
                "model.from": "google-bert/bert-base-uncased@main",
                "data.train": "nyu-mll/glue:mrpc:train",
                "data.validation": "nyu-mll/glue:mrpc:validation",
            }
        )
        (copy / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        stage(copy, REPO, tmp_path / "out", languages=["en", "zh"])
        card = ModelCard.load(tmp_path / "out/README.md")
        found = card.data.to_dict()
        assert found["base_model"] == "google-bert/bert-base-uncased"
        assert found["datasets"] == ["nyu-mll/glue"]
        assert found["language"] == ["en", "zh"]
        dataset = found["model-index"][0]["results"][0]["dataset"]
        assert (dataset["type"], dataset["config"], dataset["split"]) == (
            "nyu-mll/glue",
            "mrpc",
            "validation",
        )
        assert "nyu-mll/glue:mrpc:validation (from the Hugging Face Hub) (8 examples)" in card.text

    def test_a_checkpoint_alone_has_no_results(self, run_folder: Path, tmp_path: Path) -> None:
        files = stage(run_folder / "last", REPO, tmp_path / "out")
        assert "recipe.yaml" not in [file.name for file in files]
        card = ModelCard.load(tmp_path / "out/README.md")
        assert "model-index" not in card.data.to_dict()
        assert "model_name" not in card.data.to_dict()
        assert "Nothing was measured" in card.text
        assert "## Labels" in card.text

    def test_a_run_without_validation_data(self, tiny_folder: Path, tmp_path: Path) -> None:
        data = write_data(tmp_path / "d.jsonl", ("a", "b"))
        recipe = small_recipe(tiny_folder, data, tmp_path / "run", validation=None)
        pretune.train(recipe, {"train.max_steps": 1}, quiet=True)
        stage(tmp_path / "run", REPO, tmp_path / "out")
        card = ModelCard.load(tmp_path / "out/README.md")
        assert "model-index" not in card.data.to_dict()
        assert "How well it does is not known" in card.text
        assert "Data: d.jsonl (a local file)." in card.text


class TestRuns:
    def test_relative_paths_start_where_the_training_did(
        self, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From another folder, models/ours looks like a name on the Hub."""
        work = tmp_path / "work"
        (work / "models").mkdir(parents=True)
        shutil.copytree(tiny_folder, work / "models/ours")
        write_data(work / "d.jsonl", ("a", "b"))
        monkeypatch.chdir(work)
        recipe = small_recipe(Path("models/ours"), Path("d.jsonl"), "runs/x")
        pretune.train(recipe, {"train.max_steps": 1}, quiet=True)
        monkeypatch.chdir(tmp_path)
        stage(work / "runs/x", REPO, tmp_path / "out")
        assert "base_model" not in ModelCard.load(tmp_path / "out/README.md").data.to_dict()
        assert Recipe.load(tmp_path / "out/recipe.yaml").model.source == "ours"

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="no such folder"):
            find_trained(tmp_path / "no")

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="neither a run nor a checkpoint"):
            find_trained(tmp_path)

    def test_several_runs(self, tmp_path: Path) -> None:
        for seed in (1, 2):
            (tmp_path / f"seed-{seed}").mkdir()
            (tmp_path / f"seed-{seed}/recipe.yaml").touch()
        with pytest.raises(RunError, match=r"(?s)several runs.*seed-1"):
            find_trained(tmp_path)

    def test_an_unfinished_run(self, run_folder: Path, tmp_path: Path) -> None:
        copy = tmp_path / "run"
        shutil.copytree(run_folder, copy, symlinks=True)
        (copy / "result.json").unlink()
        with pytest.raises(RunError, match=r"(?s)not finished.*run/last"):
            find_trained(copy)

    @pytest.mark.parametrize("text", ["{", "[]", "\x80"])
    def test_a_damaged_result(self, run_folder: Path, tmp_path: Path, text: str) -> None:
        copy = tmp_path / "run"
        shutil.copytree(run_folder, copy, symlinks=True)
        (copy / "result.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(RunError, match=r"result\.json"):
            find_trained(copy)

    def test_a_bare_model(self, tiny_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="not trained for a task"):
            stage(tiny_folder, REPO, tmp_path / "out")

    def test_a_damaged_model(self, run_folder: Path, tmp_path: Path) -> None:
        shutil.copytree(run_folder / "best", tmp_path / "m")
        (tmp_path / "m/model.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(CheckpointError):
            stage(tmp_path / "m", REPO, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestNames:
    @pytest.mark.parametrize("name", ["me/films", "a-b/c.d_e", "me/1"])
    def test_right(self, name: str) -> None:
        check_name(name)

    @pytest.mark.parametrize(
        "name", ["films", "/films", "me/", "a/b/c", "me/fi lms", "me/-x", "me/a--b", "me/x.git", ""]
    )
    def test_wrong(self, name: str) -> None:
        with pytest.raises(HubError, match="not a name on the Hugging Face Hub"):
            check_name(name)
