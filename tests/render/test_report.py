"""A report on each task: what stands on it, and that nothing of the data is more than text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pretune.data.records import Records
from pretune.errors import DataError, RunError
from pretune.evaluation.examine import Example, examine
from pretune.evaluation.explain import explain
from pretune.experiments.history import MetricHistory
from pretune.render.example_table import SCRIPT, ExampleTable, example_rows
from pretune.render.grid import Grid
from pretune.render.page import Picture, page
from pretune.render.report import (
    ReportFacts,
    by_length,
    calibration_section,
    check_writable,
    headline,
    report_sections,
    write_report,
)
from pretune.tasks.grading import Grade, Mistake
from pretune.text.spoken_language import speaking
from pretune.training.sample_sheet import SheetReply, SheetRow
from tests.render.examined import HISTORY, facts
from tests.render.test_page import Reader
from tests.tasks.alignment.policies import policy
from tests.tasks.alignment.preferences import ROWS, records, saved
from tests.tasks.every_task import CASES, NASTY

EVERYWHERE = ["Metrics", "All examples", "Token attributions", "Recipe"]
JUDGED = ["Calibration", "Mistakes"]
MORE = {
    "classify": ["Classes", *JUDGED, "By length", "Labels that may be wrong"],
    "multilabel": ["Classes", *JUDGED, "By length"],
    "regress": ["Scores", "By length"],
    "choose": [*JUDGED, "By length"],
    "tag": ["Classes", *JUDGED, "By length"],
    "answer": JUDGED,
    "answer_none": JUDGED,
    "mask_lm_each": ["By length"],
    "causal_lm": ["By length"],
}


@pytest.mark.parametrize("name", MORE)
def test_every_task_has_a_report(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    # The training looks alike in all of them: it is drawn once.
    trained = name == "classify"
    made = facts(name, tiny_folder, tmp_path, lines=HISTORY if trained else ())
    output = tmp_path / "report.html"
    write_report(made, output)
    text = output.read_text(encoding="utf-8")
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert set(headings) == {*EVERYWHERE, *MORE[name], *(["Training"] if trained else [])}
    read = Reader(text)
    scripts = [attrs for tag, attrs in read.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "examples"}, {}]
    assert text.count(SCRIPT) == 1
    outside = [v for _, attrs in read.tags for k, v in attrs.items() if k in ("src", "href")]
    assert all(value and value.startswith(("data:", "#")) for value in outside)
    assert not [tag for tag, _ in read.tags if tag in ("b", "i", "iframe", "link", "object")]


def judged(made: ReportFacts, *mistakes: Mistake | None) -> str:
    """The headline of answers with these mistakes; None: a right answer."""
    examples = tuple(
        Example(i, (i,), 1.0, 1, 3, Grade(right=own is None, mistakes=(own,) if own else ()))
        for i, own in enumerate(mistakes)
    )
    return headline(replace(made.examined, examples=examples))


def test_it_opens_with_a_sentence(made: ReportFacts, tmp_path: Path) -> None:
    joy, anger = (Mistake("confused", f"{own} taken for love") for own in ("joy", "anger"))
    assert judged(made, *[None] * 147, joy, joy, anger) == (
        "147 of 150 right (98.0%); most often confused: joy taken for love (2 times)."
    )
    assert judged(made, None, joy) == (
        "1 of 2 right (50.0%); the one mistake: confused: joy taken for love."
    )
    assert judged(made, joy, anger) == "0 of 2 right (0.0%); no mistake occurs twice."
    assert judged(made, None) == "1 of 1 right (100.0%); no mistakes."
    missed = Mistake("missed", "PER")
    assert judged(made, missed, missed, joy).endswith("; most frequent mistake: missed: PER (2).")
    # Then the model, the data and the date, before anything else.
    write_report(replace(made, when=0.0), tmp_path / "report.html")
    read = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert re.search(
        r"films <b>: report\n\d of 4 right .*\n"
        r"Model: films <b> \(classify, bert\) with [\d,]+ parameters · "
        r"Data: some\.jsonl · Date: 19",
        read.text,
    )


@pytest.mark.parametrize(("row", "told"), [([0, 2], ""), ([0, 0], ", but for labels that no")])
def test_rows_of_the_confusion_matrix_add_up(row: list[int], told: str, made: ReportFacts) -> None:
    details = made.examined.details | {"labels": ["a", "b"], "confusion": [[3, 1], row]}
    sections = report_sections(replace(made, examined=replace(made.examined, details=details)))
    (classes,) = (own for own in sections if own.heading == "Classes")
    (picture,) = (part for part in classes.parts if isinstance(part, Picture))
    start = "Confusion matrix: each row is a true label and adds up to 100%"
    assert picture.caption.startswith(f"{start}{told or ';'}")


def test_scores_open_with_the_metric_that_decides(tiny_folder: Path, tmp_path: Path) -> None:
    made = facts("regress", tiny_folder, tmp_path, 6, ())
    value = made.examined.metrics["pearson"]
    assert headline(made.examined) == f"pearson {value:.4g} on 6 examples."


def test_a_page_in_chinese(made: ReportFacts, tmp_path: Path) -> None:
    with speaking("zh"):
        write_report(made, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in text
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings
    assert not [heading for heading in headings if heading.isascii()]
    for part in ("4 个中答对", "上一页", "只看错误", "个样本，第"):
        assert part in text
    # Data and names of metrics stay.
    for part in (">accuracy<", ">good<", "films &lt;b&gt;"):
        assert part in text


def test_pictures_are_files_too(tiny_folder: Path, tmp_path: Path) -> None:
    made = facts("classify", tiny_folder, tmp_path, lines=HISTORY[:1])
    write_report(made, tmp_path / "report.html", tmp_path / "pictures")
    found = {path.stem: path for path in (tmp_path / "pictures").iterdir()}
    line = made.examined.places()[1][next(iter(made.explained))]
    assert found.keys() == {
        *("training", "confusion", "calibration", "lengths", f"attention-line-{line}")
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found.values())


@pytest.mark.parametrize("name", ["reward", "judge", "win_rate"])
def test_gains_are_drawn_against_the_kl(name: str, made: ReportFacts, tmp_path: Path) -> None:
    values = ((1, 0.0, 0.1), (2, 0.5, 0.3))
    lines = [
        json.dumps({"step": step, "validation/kl": kl, f"validation/{name}": gain})
        for step, kl, gain in values
    ]
    for count, pictures in ((1, {"training"}), (2, {"training", "frontier"})):
        known = replace(made, history=MetricHistory.of(lines[:count]))
        parts = [part for section in report_sections(known) for part in section.parts]
        names = {part.name for part in parts if isinstance(part, Picture)}
        assert names & {"training", "frontier"} == pictures


def test_replies_stand_beside_those_before_training(made: ReportFacts) -> None:
    rows = [
        SheetRow(
            (NASTY, f"{n}?"),
            SheetReply(0, NASTY, {"reward": -1.0, "judge": 0.25}),
            SheetReply(8, "y" * 2000, {"reward": 1 / 3, "judge": 0.5}),
        )
        for n in range(203)
    ]
    sections = report_sections(replace(made, sheet=rows))
    (section,) = [own for own in sections if own.heading == "Replies before and after"]
    _, grid = section.parts
    assert isinstance(grid, Grid)
    scores = ["reward", "judge"]
    assert grid.header == ("prompt", "before training", *scores, "after 8 updates", *scores)
    assert grid.numbers == [2, 3, 5, 6]
    assert (len(grid.rows), grid.caption) == (200, "The first 200 of them")
    cells = [str(cell) for cell in grid.rows[1]]
    assert cells == [f"{NASTY}\n1?", NASTY, "-1", "0.25", "y" * 999 + "…", "0.3333", "0.5"]
    read = Reader(page("", [section]))
    assert not [tag for tag, _ in read.tags if tag in ("b", "i", "iframe", "script")]
    assert "203 held-out prompts; reward -1 before training, 0.3333 after it" in read.text
    assert not [s for s in report_sections(made) if s.heading == section.heading]


def test_a_policy_has_replies_but_no_losses(tmp_path: Path) -> None:
    task, bundle = policy("grpo", saved(tmp_path / "sft"))
    looked = examine(bundle, records(task, ROWS[1:3]), device="cpu")
    header, rows = example_rows(looked)
    assert header == ["line", "tokens", "answer", "messages"]
    assert [row[2] for row in rows] == [s["reply"] for s in looked.details["samples"]]
    assert [row[3] for row in rows] == ["Who are you?", "你是谁"]
    data = json.loads(ExampleTable(looked).html().split('id="examples">')[1].split("</script>")[0])
    assert (data["sort"], data["down"]) == (0, False)
    sections = report_sections(ReportFacts("policy", looked))
    assert [section.heading for section in sections] == ["Metrics", "All examples"]


@pytest.mark.parametrize("name", CASES)
def test_the_table_has_every_example(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    made = facts(name, tiny_folder, tmp_path)
    header, rows = example_rows(made.examined)
    assert len(rows) == len(made.examined.examples)
    learns_from_rollouts = name in ("ppo", "grpo", "rloo")
    assert header[:2] == ["line", "tokens" if learns_from_rollouts else "loss"]
    assert min(row[0] for row in rows) == 2
    html = ExampleTable(made.examined).html()
    shown = json.loads(html.split('id="examples">')[1].split("</script>")[0])
    assert [row[:-1] for row in shown["rows"]] == [[_plain(cell) for cell in row] for row in rows]
    if name == "classify":
        own = rows[3]
        assert own[header.index("truth")] == "good"
        assert own[header.index("text")] == NASTY


def _plain(cell: object) -> object:
    return json.loads(json.dumps(cell))


def test_what_the_temperature_is_fitted_on_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    made = facts("classify", tiny_folder, tmp_path)
    there = calibration_section(made.examined, made.examined)
    assert "Temperature fitted on some.jsonl" in page("", [there] if there else [])
    here = calibration_section(made.examined, None)
    assert "Temperature fitted on the same data" in page("", [here] if here else [])


def test_long_texts_are_cut_where_there_are_many(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretune.render.example_table.ALL_TEXT", 24 * 10)
    monkeypatch.setattr("pretune.render.example_table.SHORTEST_TEXT", 5)
    header, rows = example_rows(facts("classify", tiny_folder, tmp_path).examined)
    assert max(len(row[header.index("text")]) for row in rows) == 10


def test_the_history_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(["[]", '{"step": 1}', *HISTORY]), encoding="utf-8")
    history = MetricHistory.read(path)
    assert history.names == ["loss", "accuracy", "learning_rate"]
    assert history.curves["train"]["loss"] == ([1, 2], [0.9, 0.5])
    assert MetricHistory.read(tmp_path / "none").names == []


def test_groups_by_length_keep_one_length_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 9, 200).tolist()
    examples = [Example(i, (i,), 1.0, 1, n, Grade()) for i, n in enumerate(lengths)]
    groups = by_length(examples)
    assert sorted(e.record for group in groups for e in group) == list(range(200))
    ends = [(min(e.tokens for e in g), max(e.tokens for e in g)) for g in groups]
    assert all(high < low for (_, high), (low, _) in pairwise(ends))
    assert len(groups) > 3
    assert len(by_length(examples[:1])) == 1


@pytest.fixture
def made(tiny_folder: Path, tmp_path: Path) -> ReportFacts:
    """Without pictures that take long to draw."""
    return replace(facts("classify", tiny_folder, tmp_path, 4, ()), explained={})


def test_places_that_cannot_be_written(made: ReportFacts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for output, png, said in [
        (tmp_path, None, "is a folder"),
        (tmp_path / "file", None, "exists already"),
        (tmp_path / "none" / "r.html", None, "no such folder"),
        (tmp_path / "file" / "r.html", None, "no such folder"),
        (tmp_path / "r.html", tmp_path / "file", "is a file"),
        (tmp_path / "r.html", tmp_path / "file" / "png", "is a file"),
    ]:
        with pytest.raises(RunError, match=said):
            check_writable(output, png, overwrite=False)
    check_writable(tmp_path / "file", None, overwrite=True)
    with pytest.raises(RunError, match="cannot be written"):
        write_report(made, tmp_path / "file" / "r.html")
    with pytest.raises(RunError, match="cannot be written"):
        write_report(made, tmp_path / "r.html", tmp_path / "file" / "png")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("name", ["classify", "multilabel", "tag", "regress"])
def test_a_model_that_gives_no_numbers_has_a_report(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    bundle = case.bundle(tiny_folder, tmp_path)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.fill_(torch.nan)
    found = examine(bundle, case.records(4), device="cpu")
    made = ReportFacts("broken", found, explained={0: explain(found, 0)})
    write_report(made, tmp_path / "report.html")
    header, rows = example_rows(found)
    assert {row[header.index("loss")] for row in rows} == {None}


def test_data_that_ask_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = CASES["mask_lm_each"].bundle(tiny_folder, tmp_path)
    with pytest.raises(DataError, match=r"e\.txt: no record has anything to ask"):
        examine(bundle, Records([{"text": " "}], "e.txt", (1,), ("text",)), device="cpu")
