"""`pretune generate` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pretune as library
from pretune.cli.app import app
from pretune.decoding.decoding import Decoding
from pretune.errors import PretuneError
from pretune.inference.generate import TextGenerator
from pretune.inference.prompts import template_of
from pretune.text.terminal import for_terminal
from tests.checkpoints.gguf_files import llama_state, rows_of_tokens, write_llama
from tests.cli.test_cli import pretune, refused
from tests.inference.conftest import Pair, bpe

__all__ = ["bpe"]  # a fixture


def test_one_prompt_is_written_on(bpe: Pair, tmp_path: Path) -> None:
    options = ("--prompt", "The film", "--max-new-tokens", "12", "--seed", "3", "--top-k", "30")
    (expected,) = bpe.writer.generate(["The film"], Decoding(max_new_tokens=12, seed=3, top_k=30))
    shown = for_terminal(expected.text)
    for mode in ("--stream", "--no-stream"):
        done = pretune("generate", bpe.folder, *options, mode, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "The film" + shown + "\n"


def test_several_prompts_come_in_order(bpe: Pair, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("The film\n\n中国\n", encoding="utf-8")
    arguments = ("generate", bpe.folder, "--samples", "2", "--max-new-tokens", "9")
    expected = bpe.writer.generate(["The film", "中国"], Decoding(samples=2, max_new_tokens=9))
    done = pretune(*arguments, "--file", "prompts.txt", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["finish"] for row in rows[2:4]] == ["blank", "blank"]
    assert [row["sample"] for row in rows[2:4]] == [0, 1]
    assert {(row["prompt"], row["text"], row["logprob"]) for row in rows[2:4]} == {("", "", 0)}
    assert "1 blank line: an empty continuation each" in done.stderr
    del rows[2:4]
    assert [(row["prompt"], row["sample"], row["text"]) for row in rows] == [
        (g.prompt, g.sample, g.text) for g in expected
    ]
    assert rows[0]["tokens"] == list(expected[0].tokens)
    assert rows[0]["logprob"] == pytest.approx(sum(rows[0]["logprobs"]))
    text = "The film\n\n中国\n"
    piped = pretune(*arguments, "--json", cwd=tmp_path, text=text, PYTHONUTF8="1")
    assert piped.stdout == done.stdout
    plain = pretune(*arguments, "--file", "prompts.txt", cwd=tmp_path)
    heads = [line for line in plain.stdout.split("\n") if line.startswith("== ")]
    assert heads == [f"== {number}/6 ==" for number in range(1, 7)]
    assert "\n== 3/6 ==\n\n== 4/6 ==\n\n== 5/6 ==\n" in plain.stdout


def test_a_prompt_ends_at_a_line_feed_alone(bpe: Pair, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("The\x0bfilm\u2028good\r\nbad\n".encode())
    options = ("--file", "prompts.txt", "--max-new-tokens", "2", "--json")
    done = pretune("generate", bpe.folder, *options, cwd=tmp_path)
    rows = [json.loads(line) for line in done.stdout.split("\n")[:-1]]
    assert [row["prompt"] for row in rows] == ["The\x0bfilm\u2028good", "bad"]


@pytest.mark.parametrize("temperature", ["1e-39", "1e-300"])
def test_a_temperature_of_next_to_nothing_is_greedy(
    bpe: Pair, tmp_path: Path, temperature: str
) -> None:
    options = ("--prompt", "The film", "--max-new-tokens", "9", "--no-stream")
    (expected,) = bpe.writer.generate(["The film"], Decoding(max_new_tokens=9, temperature=0))
    done = pretune("generate", bpe.folder, *options, "--temperature", temperature, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = for_terminal(expected.text)
    assert done.stdout == "The film" + shown + "\n"


@pytest.mark.parametrize("mode", ["--stream", "--no-stream"])
def test_interleaved_pieces_are_shown_one_text_after_the_other(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pretune.cli.generate import _show
    from pretune.decoding.continuations import Generation, TextChunk

    def end(number: int) -> Generation:
        return Generation("", number, "", "length", (), ())

    pieces = [
        TextChunk(0, 0, "a"),
        TextChunk(1, 0, "x"),
        TextChunk(1, 0, "y", end(0)),
        TextChunk(0, 0, "b"),
        TextChunk(0, 0, "\x1b[31mc", end(0)),
        TextChunk(2, 0, "", end(0)),
    ]
    _show(iter(pieces), ["P", "Q", "R"], 1, mode == "--stream")
    assert capsys.readouterr().out == "== 1/3 ==\nPab\ufffd[31mc\n== 2/3 ==\nQxy\n== 3/3 ==\nR\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt", "a", "--top-p", "2"), "top_p must be a number above 0 to 1, not 2.0"),
        (("--prompt", "a", "--beams", "3", "--top-k", "5"), "top_k is about drawing"),
        (("--prompt", "a", "--file", "b"), "not both"),
        (("--file", "nothing.txt"), "nothing.txt"),
        ((), "input: no prompt in it"),
    ],
)
def test_mistakes_are_named(
    bpe: Pair, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    text = None if arguments else ""  # an empty pipe
    refused(pretune("generate", bpe.folder, *arguments, cwd=tmp_path, text=text), said)


def test_a_bert_cannot_and_a_hint_says_what_can(tiny_folder: Path, tmp_path: Path) -> None:
    done = pretune("generate", tiny_folder, "--prompt", "a", cwd=tmp_path)
    refused(done, "a bert model cannot generate text", "GPT-2")


def test_from_python(bpe: Pair) -> None:
    found = library.generate(bpe.folder, "The film", max_new_tokens=5, samples=2, seed=9)
    expected = bpe.writer.generate(["The film"], Decoding(max_new_tokens=5, samples=2, seed=9))
    assert found == expected
    assert [g.prompt for g in library.generate(bpe.bundle, ["a", "b"], beams=2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"temprature": 1}, "generate has no option 'temprature'"), ({"top_k": -1}, "top_k")],
)
def test_options_in_python_are_checked(bpe: Pair, options: dict[str, Any], said: str) -> None:
    with pytest.raises(PretuneError, match=said):
        library.generate(bpe.bundle, "a", **options)


def test_a_document_is_scored_by_blocks_that_overlap(bpe: Pair, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("The film was good. " * 40 + "\n", encoding="utf-8")

    def loss(*options: str) -> float:
        done = pretune("evaluate", bpe.folder, "book.txt", "--json", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return float(json.loads(done.stdout)["metrics"]["loss"])

    text = (tmp_path / "book.txt").read_text(encoding="utf-8")
    for stride in (20, 5):
        options = ("--set", "max_length=20", "--set", f"stride={stride}")
        done = pretune("predict", bpe.folder, "--json", text, *options, cwd=tmp_path)
        (answer,) = [json.loads(line) for line in done.stdout.splitlines()]
        assert loss(*options) == pytest.approx(-answer["log_probability"] / answer["tokens"])
    assert loss("--set", "max_length=20") == loss("--set", "max_length=20", "--set", "stride=20")
    assert loss("--set", "max_length=20") != loss("--set", "max_length=20", "--set", "stride=5")
    refused(
        pretune("evaluate", bpe.folder, "book.txt", "--set", "stride=9999", cwd=tmp_path),
        "is more than max_length",
    )


def test_a_published_model_with_a_chat_template_is_asked_by_it(tmp_path: Path) -> None:
    state = llama_state("llama", rows_of_tokens())
    state["lm_head.weight"][-1] = 0  # the row without a token is never the likeliest
    path = write_llama(tmp_path / "chat.gguf", state)
    options = ["--prompt", "the film", "--max-new-tokens", "5", "--temperature", "0"]
    bundle = library.load(path)
    asked = TextGenerator.of(bundle, template=template_of(bundle, always=True))
    decoding = Decoding(max_new_tokens=5, temperature=0)
    plain, no = TextGenerator.of(bundle), ["--no-template"]
    for writer, more, between in ((asked, [], "\n"), (plain, no, "")):
        (expected,) = writer.generate(["the film"], decoding)
        done = CliRunner().invoke(app, ["generate", str(path), *options, *more])
        assert done.exit_code == 0, done.output
        assert done.stdout == f"the film{between}{for_terminal(expected.text)}\n"
        assert ("laid out as messages" in done.stderr) == (not more)
