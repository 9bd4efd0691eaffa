"""`pretune embed` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

import pretune
from pretune.cli.app import app
from tests.checkpoints.sentence_folders import sentence_folder

TEXTS = ["good film", "the bad film", "good good good"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.tsv"
    rows = "".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS))
    path.write_text("number\tsentence\n" + rows, encoding="utf-8")
    return path


def run(*arguments: Any) -> Any:
    given = ["embed", *map(str, arguments), "--device", "cpu", "-q"]
    return CliRunner().invoke(app, given, env={"COLUMNS": "120"})


def test_an_array(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    done = run(tiny_folder, data, "--output", path)
    assert done.exit_code == 0, done.output
    assert "3 vectors of 32, pooling mean" in done.output
    wanted = pretune.embed(tiny_folder, TEXTS, device="cpu")
    np.testing.assert_allclose(np.load(path, mmap_mode="r"), wanted, atol=1e-6)
    again = run(tiny_folder, data, "--output", path)
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    assert run(tiny_folder, data, "--output", path, "--overwrite").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.tsv", "vectors.npy"]


def test_blank_lines_are_left_out_and_counted(tiny_folder: Path, tmp_path: Path) -> None:
    path, vectors = tmp_path / "lines.txt", tmp_path / "vectors.npy"
    path.write_text(f"{TEXTS[0]}\n\n \t\n{TEXTS[1]}\n\n{TEXTS[2]}\n", encoding="utf-8")
    done = run(tiny_folder, path, "--output", vectors, "--json")
    assert done.exit_code == 0, done.output
    assert "lines without text left out: 3 (2, 3, 5);" in done.stderr
    assert json.loads(done.stdout)["rows"] == 3
    assert json.loads(done.stdout)["blank_lines"] == [2, 3, 5]
    wanted = pretune.embed(tiny_folder, TEXTS, device="cpu")
    np.testing.assert_allclose(np.load(vectors), wanted, atol=1e-6)
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    assert run(tiny_folder, path, "--output", vectors, "--overwrite").stderr == ""


def test_parquet_has_the_columns_too(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    done = run(tiny_folder, data, "--output", path, "--no-normalize", "--pooling", "cls")
    assert done.exit_code == 0, done.output
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["number", "sentence", "embedding"]
    assert table["sentence"].to_pylist() == TEXTS
    wanted = pretune.embed(tiny_folder, TEXTS, device="cpu", pooling="cls", normalize=False)
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), wanted, atol=1e-6)


def test_nothing_is_left_of_a_file_that_failed(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a", "x": 1}\n{"text": "b", "x": "one"}\n', encoding="utf-8")
    done = run(tiny_folder, data, "--output", tmp_path / "vectors.parquet")
    assert done.exit_code == 2
    assert "column that Parquet cannot hold" in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


def test_neighbours(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "lines.txt"
    data.write_text("\n".join(["", *TEXTS]), encoding="utf-8")
    done = run(tiny_folder, data, "--query", TEXTS[1], "--top-k", "2", "--json")
    assert done.exit_code == 0, done.output
    first, _ = map(json.loads, done.stdout.splitlines())
    assert first["score"] == pytest.approx(1.0, abs=1e-5)
    assert first["text"] == TEXTS[1]
    assert first["where"].endswith("lines.txt, line 3")


def test_the_settings_of_a_folder_are_told_once(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    folder = sentence_folder(
        tmp_path / "model",
        tiny_folder,
        {"pooling_mode": "cls"},
        transformer={"max_seq_length": 4},
        general={"prompts": {"d": "good "}, "default_prompt_name": "d"},
    )
    done = run(folder, data, "--output", tmp_path / "a.npy", "--json")
    settings = f"sentence-transformers settings of {folder}: "
    own = "pooling 'cls', max_length 4, normalize no, prompt 'good '"
    assert done.stderr == f"{settings}{own}\ncut to 4 tokens: 3 of 3 texts\n"
    used = json.loads(done.stdout)
    assert (used["pooling"], used["normalize"], used["cut"]) == ("cls", False, 3)
    # What the person asks for wins, and both are told.
    asked = ("--pooling", "mean", "--max-length", "20", "--normalize", "--prompt", "")
    done = run(folder, data, "--output", tmp_path / "b.npy", *asked)
    assert done.stderr == (
        f"{settings}pooling 'mean' (the folder: 'cls'), max_length 20 (the folder: 4), "
        "normalize yes (the folder: no), prompt '' (the folder: 'good ')\n"
    )
    # A search has two prompts.
    done = run(folder, data, "--query", "a", "--max-length", "20")
    assert "prompt '', prompt of the query '', similarity 'cosine'" in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "give either --output FILE or --query TEXT"),
        (("--query", "a", "--column", "sentense"), "Did you mean 'sentence'?"),
        (("--query", "a", "--pooling", "last"), "Take mean, cls, max or mean_sqrt_len_tokens."),
    ],
)
def test_mistakes(tiny_folder: Path, data: Path, more: tuple[str, ...], said: str) -> None:
    done = run(tiny_folder, data, *more)
    assert done.exit_code == 2
    assert said in done.output
