"""`pretune tokenizer` as a person uses it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pretune.tokenizers.load import load_tokenizer

LINES = "the quick brown fox jumps over the lazy dog\n我们看电影。\n"


def pretune(
    *arguments: str | Path, cwd: Path, text: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "pretune", "tokenizer", *map(str, arguments)],
        cwd=cwd,
        input=text,
        capture_output=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "100"},
    )


def refused(done: subprocess.CompletedProcess[bytes], *said: str) -> None:
    error = " ".join(done.stderr.decode().split())
    assert done.returncode == 2, error
    assert "Traceback" not in error
    assert done.stdout == b""
    for part in said:
        assert part in error


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text(LINES * 20, encoding="utf-8")
    (folder / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"record {i} of many"}) + "\n" for i in range(50))
    )
    (folder / "c.txt.gz").write_bytes(gzip.compress(LINES.encode() * 20))
    return folder


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "char"])
def test_from_a_folder_to_a_tokenizer(corpus: Path, tmp_path: Path, kind: str) -> None:
    done = pretune("corpus", "--kind", kind, "--vocab-size", "300", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode()
    for part in (f"{kind} tokenizer", "in 3 files", "characters per token", "wrote"):
        assert part in said
    assert b"Traceback" not in done.stderr
    files = {"wordpiece": {"vocab.txt"}, "bpe": {"vocab.json", "merges.txt"}, "char": set()}[kind]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"tokenizer.json", "tokenizer_config.json", *files}
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "out"}
    ours = load_tokenizer(tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    text = "the lazy fox 电影 record"
    assert theirs(text)["input_ids"] == ours.encode([text])[0].ids
    assert len(theirs) == ours.vocab_size <= 300


def test_json_and_a_sample(tmp_path: Path) -> None:
    words = "".join(f"word{i % 997} " for i in range(200_000))
    (tmp_path / "big.txt").write_text(words)
    done = pretune(
        "big.txt", "--sample-mb", "1", "--vocab-size", "500", "-o", "t", "--json", cwd=tmp_path
    )
    found = json.loads(done.stdout)
    assert found["bytes"] == len(words)
    assert 1_000_000 < found["bytes_of_sample"] <= 1 << 20
    assert found["held_out"] is True
    assert found["vocab_size"] <= found["asked_for"] == 500
    assert found["unknown"] == 0
    assert "word" in found["first"]
    again = pretune("big.txt", "--sample-mb", "1", "--vocab-size", "500", "-o", "t2", cwd=tmp_path)
    assert "an even sample of 1.0 MiB" in again.stdout.decode()
    assert (tmp_path / "t/vocab.txt").read_bytes() == (tmp_path / "t2/vocab.txt").read_bytes()


def test_the_order_of_files_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    pretune("corpus/a.txt", "corpus/b.jsonl", "-o", "one", cwd=tmp_path)
    pretune("corpus/b.jsonl", "corpus/a.txt", "-o", "two", cwd=tmp_path)
    one, two = ((tmp_path / n / "tokenizer.json").read_bytes() for n in ("one", "two"))
    assert one == two


def test_standard_input(tmp_path: Path) -> None:
    done = pretune("-", "--kind", "char", "-o", "t", "--json", cwd=tmp_path, text=b"cab\n")
    assert json.loads(done.stdout)["vocab_size"] == 5
    assert load_tokenizer(tmp_path / "t").engine.get_vocab() == {
        "\n": 0,
        "a": 1,
        "b": 2,
        "c": 3,
        "[UNK]": 4,
    }


class TestOverwrite:
    def test_an_occupied_folder_is_refused_before_the_work(self, tmp_path: Path) -> None:
        first = pretune("-", "--kind", "char", "-o", "t", cwd=tmp_path, text=b"ab")
        assert first.returncode == 0
        before = (tmp_path / "t/tokenizer.json").read_bytes()
        refused(
            pretune("no-such-file", "--kind", "char", "-o", "t", cwd=tmp_path),
            "exists already",
            "--overwrite",
        )
        assert (tmp_path / "t/tokenizer.json").read_bytes() == before
        done = pretune("-", "--kind", "bpe", "-o", "t", "--overwrite", cwd=tmp_path, text=b"ab")
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (tmp_path / "t").iterdir()} == {
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
        }
        assert [path.name for path in tmp_path.iterdir()] == ["t"]

    def test_a_failure_leaves_the_old_one(self, tmp_path: Path) -> None:
        pretune("-", "--kind", "char", "-o", "t", cwd=tmp_path, text=b"ab")
        before = (tmp_path / "t/tokenizer.json").read_bytes()
        arguments = ("-", "--kind", "bpe", "--vocab-size", "9", "-o", "t", "--overwrite")
        refused(pretune(*arguments, cwd=tmp_path, text=b"ab"), "--vocab-size 257")
        assert (tmp_path / "t/tokenizer.json").read_bytes() == before

    def test_other_files_are_never_removed(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model/model.safetensors").write_bytes(b"weights")
        done = pretune("-", "-o", "model", "--overwrite", cwd=tmp_path, text=b"ab")
        refused(done, "holds more than a tokenizer", "model.safetensors")
        (tmp_path / "file").write_bytes(b"")
        refused(pretune("-", "-o", "file", cwd=tmp_path, text=b"ab"), "is a file")

    def test_an_empty_folder_will_do(self, tmp_path: Path) -> None:
        (tmp_path / "t").mkdir()
        assert pretune("-", "--kind", "char", "-o", "t", cwd=tmp_path, text=b"a").returncode == 0
        assert (tmp_path / "t/tokenizer.json").exists()


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        (("nothing.txt",), b"", ("nothing.txt: no such file",)),
        (("-",), b"", ("nothing to train on",)),
        (("-", "--kind", "bpe"), b"", ("nothing to train on",)),
        (("-",), b"ok\nbad \xff\n", ("standard input, line 2", "0xff")),
        (("-", "--kind", "words"), b"a", ("no kind of tokenizer is called 'words'",)),
        (("-", "--vocab-size", "8"), "電影好看".encode() * 3, ("possible is --vocab-size 9",)),
        (("-", "--kind", "char", "--vocab-size", "2"), b"abc", ("possible is --vocab-size 4",)),
        (("-", "--kind", "char", "--lowercase"), b"abc", ("lowercase is for wordpiece",)),
        (("-", "--encoding", "klingon"), b"abc", ("no encoding is called 'klingon'",)),
        (("-", "--field", "body"), b'{"text": "x"}', ("line 1: no field 'body'", "--field")),
        (("-", "--sample-mb", "4000"), b"abc", ("2047",)),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, arguments, text, said) -> None:
    done = pretune(*arguments, "-o", "t", cwd=tmp_path, text=text)
    refused(done, *said)
    assert list(tmp_path.iterdir()) == []
