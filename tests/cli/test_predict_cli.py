"""`pretune predict` reads files ahead, and pipes line by line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretune.bundle.bundle import save
from pretune.cli import predict as command
from pretune.data.records import Records
from pretune.inference import predict as module
from pretune.inference.predict import Predictor, TokenizedRecords
from tests.tasks.every_task import CASES


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(CASES["classify"].bundle(tiny_folder, folder), folder)
    return folder


def test_the_next_rows_of_a_file_are_tokenized_while_the_model_answers(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in.txt").write_text("good\nbad\nfilm\n", encoding="utf-8")
    monkeypatch.setattr(command, "ROWS_AT_A_TIME", 1)
    tokenized = {text: threading.Event() for text in ("good", "bad", "film")}
    tokenize, answer, asked = Predictor.tokenize, Predictor.answer, []

    def noted(self: Predictor, records: Records) -> TokenizedRecords:
        made = tokenize(self, records)
        tokenized[records.rows[0]["text"]].set()
        return made

    def after_the_next(self: Predictor, part: TokenizedRecords, **options: Any) -> Any:
        asked.append(part.records.rows[0]["text"])
        if asked == ["good"]:
            assert tokenized["bad"].wait(10)  # in another thread, or it never comes
        return answer(self, part, **options)

    monkeypatch.setattr(Predictor, "tokenize", noted)
    monkeypatch.setattr(Predictor, "answer", after_the_next)
    command.predict(str(model), file=tmp_path / "in.txt", as_json=True, device="cpu")
    answered = [json.loads(line)["text"] for line in capfd.readouterr().out.splitlines()]
    assert answered == asked == ["good", "bad", "film"]


def test_of_a_pipe_nothing_is_read_before_the_line_before_it_is_answered(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []

    def pipe(*_: Any, **__: Any) -> Iterator[list[tuple[int, str]]]:
        for number, text in enumerate(("good", "bad"), start=1):
            yield [(number, text)]
            lines.extend(capfd.readouterr().out.splitlines())
            assert [json.loads(line)["text"] for line in lines][-1:] == [text]

    monkeypatch.setattr(module, "stream_lines", pipe)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, fileno=lambda: 0))
    command.predict(str(model), as_json=True, device="cpu")
    assert len(lines) == 2


def test_a_bad_row_is_an_error_after_the_answers_before_it(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rows = [{"text": "good"}, {"text": ["a", "list"]}, {"text": "bad"}]
    data = tmp_path / "in.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(command, "ROWS_AT_A_TIME", 1)
    with pytest.raises(module.DataError, match=r"in\.jsonl, line 2"):
        command.predict(str(model), file=data, as_json=True, device="cpu")
    answered = [json.loads(line)["text"] for line in capfd.readouterr().out.splitlines()]
    assert answered == ["good"]
