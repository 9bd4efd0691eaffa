"""`pretune inspect` as a person uses it: a process, its output, its exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.test_cli import pretune, refused


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """BERT-base without weights and without a tokenizer."""
    folder = tmp_path / "bert-base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return folder


class TestModel:
    def test_bert_base_by_its_config_alone(self, base: Path) -> None:
        done = pretune("inspect", base, cwd=base)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        for part in ("23,837,184", "21.77 %", "85,054,464", "77.69 %", "590,592", "0.54 %"):
            assert part in done.stdout
        assert "layers 0-11" in done.stdout
        assert "no tokenizer" in done.stdout

    def test_json(self, tiny_folder: Path, tmp_path: Path) -> None:
        done = pretune(
            "inspect", tiny_folder, "--json", "--batch", "2", "--length", "8", cwd=tmp_path
        )
        found = json.loads(done.stdout)
        assert found["family"] == "bert"
        assert found["memory"]["batch"] == 2
        assert found["flops"]["length"] == 8
        assert found["vocabulary"]["special"]

    def test_minilm(self, tmp_path: Path) -> None:
        done = pretune("inspect", "minilm", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for part in ("[MASK]", "30,522", "layers 0-5", "AdamW", "training"):
            assert part in done.stdout

    def test_help_has_examples(self, tmp_path: Path) -> None:
        done = pretune("inspect", "--help", cwd=tmp_path)
        assert "pretune inspect minilm" in done.stdout.split("Examples", 1)[1]


class TestTokens:
    def test_a_table(self, tiny_folder: Path, tmp_path: Path) -> None:
        done = pretune("inspect", tiny_folder, "--tokens", "unaffable", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for part in ("[CLS]", "un", "##aff", "##able", "[SEP]", "from", "to"):
            assert part in done.stdout
        assert "PostNormLayer" not in done.stdout

    def test_json(self, tiny_folder: Path, tmp_path: Path) -> None:
        done = pretune("inspect", tiny_folder, "--tokens", "a good", "--json", cwd=tmp_path)
        pieces = json.loads(done.stdout)["tokens"]
        assert [one["piece"] for one in pieces] == ["[CLS]", "a", "good", "[SEP]"]
        assert (pieces[2]["start"], pieces[2]["end"], pieces[2]["text"]) == (2, 6, "good")


class TestAttention:
    def test_a_picture(self, tiny_folder: Path, tmp_path: Path) -> None:
        done = pretune("inspect", tiny_folder, "--attention", "a good film", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "wrote attention.png\n"
        assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")

    def test_one_head_of_a_layer(self, tiny_folder: Path, tmp_path: Path) -> None:
        done = pretune(
            *("inspect", tiny_folder, "--attention", "a 好 $film", "--layer", "1", "--head", "3"),
            *("-o", "one.png", "--json"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["attention"] == {
            "file": "one.png",
            "tokens": ["[CLS]", "a", "好", "[UNK]", "film", "[SEP]"],
            "layers": [1],
            "heads": [3],
        }
        assert (tmp_path / "one.png").stat().st_size > 1000

    def test_another_kind_of_file_is_refused_before_the_model_is_loaded(
        self, tmp_path: Path
    ) -> None:
        done = pretune("inspect", "nothing", "--attention", "a", "-o", "a.jpg", cwd=tmp_path)
        refused(done, "a.jpg: attention is not drawn as .jpg files", ".png, .svg or .html")


class TestMistakes:
    def test_an_unknown_source(self, tmp_path: Path) -> None:
        refused(pretune("inspect", "minilmm", cwd=tmp_path), "Did you mean 'minilm'?")

    def test_an_unknown_family(self, base: Path) -> None:
        (base / "config.json").write_text('{"model_type": "gtp2"}', encoding="utf-8")
        refused(pretune("inspect", base, cwd=base), "Did you mean 'gpt2'?")

    @pytest.mark.parametrize("option", ["--tokens", "--attention"])
    def test_no_tokenizer(self, tiny_folder: Path, tmp_path: Path, option: str) -> None:
        folder = tmp_path / "bare"
        shutil.copytree(tiny_folder, folder)
        (folder / "vocab.txt").unlink()
        refused(pretune("inspect", folder, option, "x", cwd=tmp_path), "no tokenizer here")

    def test_a_long_text(self, tiny_folder: Path, tmp_path: Path) -> None:
        done = pretune("inspect", tiny_folder, "--attention", "a " * 70, cwd=tmp_path)
        refused(done, "the text has 72 tokens", "1 to 64")
        assert not (tmp_path / "attention.png").exists()

    def test_no_such_layer(self, tiny_folder: Path, tmp_path: Path) -> None:
        done = pretune("inspect", tiny_folder, "--attention", "a", "--layer", "2", cwd=tmp_path)
        refused(done, "--layer 2: the model has layers 0 to 1")
        refused(pretune("inspect", tiny_folder, "--layer", "0", cwd=tmp_path), "--attention")

    def test_more_tokens_than_positions(self, tiny_folder: Path, tmp_path: Path) -> None:
        refused(pretune("inspect", tiny_folder, "--length", "100", cwd=tmp_path), "64 positions")

    def test_a_place_that_cannot_be_written(self, tiny_folder: Path, tmp_path: Path) -> None:
        done = pretune("inspect", tiny_folder, "--attention", "a", "-o", "no/a.png", cwd=tmp_path)
        refused(done, "no/a.png: cannot be written")
