from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretune.training.logging import JsonLines, Reporter, SampleFile
from pretune.training.sample_sheet import (
    SheetReply,
    SheetRow,
    read_sheet,
    score_names,
    sheet_of,
    write_sheet,
)
from pretune.training.state import TrainingHistory
from pretune.training.validation import Evaluation


def evaluation(*replies: str, **scores: float) -> Evaluation:
    samples = [{"history": ["Hi", f"{n}?"], "reply": r, **scores} for n, r in enumerate(replies)]
    return Evaluation({"loss": 1.0}, len(replies), 0.1, {"replies": 9, "samples": samples})


ROWS = sheet_of(evaluation("no", "不", reward=-1.0), evaluation("yes", "好", reward=2.0), 8)


def test_replies_to_one_prompt_stand_side_by_side() -> None:
    assert ROWS[1] == SheetRow(
        ("Hi", "1?"), SheetReply(0, "不", {"reward": -1.0}), SheetReply(8, "好", {"reward": 2.0})
    )
    assert [row.history for row in ROWS] == [("Hi", "0?"), ("Hi", "1?")]
    silent = Evaluation({"loss": 1.0}, 2, 0.1)
    assert sheet_of(silent, silent, 8) == []


def test_a_given_reply_is_no_score() -> None:
    sample: dict[str, Any] = {"history": ["a"], "reply": "b", "reference": "c", "judge": 0.5}
    assert SheetReply.of(sample, 3) == SheetReply(3, "b", {"judge": 0.5})


def test_only_scores_that_every_reply_has_are_compared() -> None:
    both = replace(ROWS[0], after=SheetReply(8, "yes", {"judge": 1.0, "reward": 2.0}))
    assert score_names([both, ROWS[1]]) == ["reward"]
    assert score_names([]) == []


def test_a_sheet_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    odd = SheetRow(
        ("\ud83d\u2028\n",), SheetReply(0, "<b>", {}), SheetReply(1, "", {"r": math.nan})
    )
    write_sheet(path, [*ROWS, odd])
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") == 3
    assert "好" in text
    for line in text.splitlines()[:2]:
        json.loads(line, parse_constant=pytest.fail)
    *rows, last = read_sheet(path)
    assert rows == ROWS
    assert last.history == ("?\u2028\n",)
    assert math.isnan(last.after.scores["r"])


def test_lines_that_are_none_of_it_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write_sheet(path, ROWS)
    good = path.read_text(encoding="utf-8").splitlines()[0]
    wrong = ["{", "[]", "1", "{}", good.replace('"scores"', '"score"'), good.replace("-1.0", '"x"')]
    path.write_text("\n".join([*wrong, good, good[:30]]), encoding="utf-8")
    assert read_sheet(path) == ROWS[:1]
    assert read_sheet(tmp_path / "none") == []


def test_training_goes_on_where_the_sheet_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter((JsonLines(tmp_path / "m"), SampleFile(tmp_path / "none" / "s"))) as reporter:
        reporter.samples(ROWS)
        reporter.samples(ROWS)
    assert capsys.readouterr().err.count("training continues") == 1


def test_the_replies_before_training_are_a_part_of_the_state() -> None:
    history = TrainingHistory(before=evaluation("no", reward=-1.0))
    values = json.loads(json.dumps(history.to_dict()))
    assert TrainingHistory.from_dict(values).before == history.before
    del values["before"]  # as in states of earlier versions
    assert TrainingHistory.from_dict(values).before is None
