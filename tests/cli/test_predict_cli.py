"""`pretune predict` reads files ahead, and pipes line by line."""

from __future__ import annotations

import csv
import gc
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretune.bundle.bundle import save
from pretune.cli import predict as command
from pretune.data.records import Records
from pretune.errors import PretuneError
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


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text("id,text,label\n" + "".join(f"{i},film {i},good\n" for i in range(12)))
    return path


def test_a_table_comes_out_with_the_columns_that_went_in(
    model: Path, table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command.predict(str(model), file=table, output=tmp_path / "out.csv", device="cpu")
    assert capfd.readouterr().out == ""
    command.predict(str(model), file=table, as_json=True, device="cpu")
    known = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["id", "text", "label", "predicted_label", "score"]
    assert [row["id"] for row in rows] == [str(i) for i in range(12)]
    assert [row["predicted_label"] for row in rows] == [answer["label"] for answer in known]
    assert [float(row["score"]) for row in rows] == [answer["score"] for answer in known]


def test_a_stopped_run_goes_on_where_it_was(
    model: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ROWS_AT_A_TIME", 5)
    command.predict(str(model), file=table, output=tmp_path / "whole.csv", device="cpu")
    answer, sizes = Predictor.answer, []

    def stopped(self: Predictor, part: TokenizedRecords, **options: Any) -> Any:
        if sizes == [5]:
            raise KeyboardInterrupt
        sizes.append(len(part.records))
        return answer(self, part, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "answer", stopped)
        with pytest.raises(KeyboardInterrupt):
            command.predict(str(model), file=table, output=tmp_path / "out.csv", device="cpu")
    assert not (tmp_path / "out.csv").exists()
    assert len((tmp_path / "out.csv.part").read_text().splitlines()) == 6
    gc.collect()  # the file that is still open in this process has the lock
    monkeypatch.setattr(
        Predictor, "answer", lambda s, p, **o: sizes.append(len(p.records)) or answer(s, p, **o)
    )
    command.predict(str(model), file=table, output=tmp_path / "out.csv", device="cpu")
    assert sizes == [5, 5, 2]
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_stopped_run_goes_on_though_a_report_was_written_into_the_run(
    model: Path,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(model, run / "best")
    monkeypatch.setattr(command, "ROWS_AT_A_TIME", 5)
    answer, asked = Predictor.answer, []

    def stopped(self: Predictor, part: TokenizedRecords, **options: Any) -> Any:
        asked.append(len(part.records))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(self, part, **options)

    monkeypatch.setattr(Predictor, "answer", stopped)
    with pytest.raises(KeyboardInterrupt):
        command.predict(str(run), file=table, output=tmp_path / "out.csv", device="cpu")
    said = f"{tmp_path}/out.csv.part: 5 rows are answered; the same command goes on there"
    assert said in capfd.readouterr().err
    gc.collect()  # the file that is still open in this process has the lock
    (run / "report.html").write_text("a report of the run")
    command.predict(str(run), file=table, output=tmp_path / "out.csv", device="cpu")
    assert asked == [5, 5, 5, 2]


def test_many_answers_are_a_line_each(
    model: Path, table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command.predict(str(model), file=table, device="cpu")
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[3].split()[-2:] == ["film", "3"]
    command.predict(str(model), file=table, device="cpu", top_k=1)
    assert len(capfd.readouterr().out.splitlines()) > 12


def test_the_name_of_a_file_is_no_text(model: Path, table: Path) -> None:
    with pytest.raises(PretuneError, match="is a file, and its name would be answered") as caught:
        command.predict(str(model), [str(table)])
    assert f"--file {table}" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": ["a"], "output": Path("a.csv")}, "--output keeps the rows of --file"),
        ({"overwrite": True, "texts": ["a"]}, "--overwrite is about --output"),
        ({"output": Path("a.csv"), "as_json": True}, "either --json"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    table: Path, options: dict[str, Any], message: str
) -> None:
    file = None if "texts" in options else table
    with pytest.raises(PretuneError, match=message):
        command.predict("no-such-model", file=file, **options)


def test_what_speaks_for_an_answer_is_shown_and_written(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = ["good film", "<script>bad</script>"]
    command.predict(str(model), texts, explain=True, as_json=True, page=tmp_path / "why.html")
    answered = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answered] == texts
    for answer in answered:
        own = answer["explained"]
        assert len(own["texts"]) == len(own["attributions"]) > 0
        # Completeness: the attributions add up to the difference.
        missed = sum(own["attributions"]) - (own["value"] - own["baseline"])
        assert abs(missed) < 0.01 * sum(map(abs, own["attributions"])) + 1e-4
    page = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert "Text 2" in page
    assert "<script>bad" not in page
    command.predict(str(model), texts[:1], explain=True)
    assert "for it" in capfd.readouterr().out


def test_what_cannot_be_explained_is_refused(
    tiny_folder: Path, tmp_path: Path, model: Path
) -> None:
    save(CASES["chat"].bundle(tiny_folder, tmp_path), tmp_path)
    with pytest.raises(PretuneError, match="chat cannot be explained"):
        command.predict(str(tmp_path), ["a"], explain=True)
    with pytest.raises(PretuneError, match="--page is about --explain"):
        command.predict(str(model), ["a"], page=Path("a.html"))
