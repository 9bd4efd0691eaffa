from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pretune.experiments.failed_runs import degenerate_runs, several_to_dict
from pretune.render.result_views import several_view
from pretune.training.run_result import RunResult, SeveralRuns

GOOD = [[90, 10], [12, 188]]


def run(seed: int, accuracy: float, confusion: list[list[int]] | None = None) -> RunResult:
    details = {} if confusion is None else {"labels": ["no", "yes"], "confusion": confusion}
    metrics = {"loss": 0.4, "accuracy": accuracy}
    return RunResult("runs/x", seed, metrics, details, 1, 1, 1, 1, 1.0, 1.0)


def several(*accuracies: float, first: int = 0) -> SeveralRuns:
    return SeveralRuns(tuple(run(first + i, value) for i, value in enumerate(accuracies)))


class TestOneAnswerToEverything:
    def test_is_seen_in_the_confusion_matrix(self) -> None:
        # Four of five degenerate: no comparison with the others would tell.
        runs = [run(seed, 0.667, [[0, 100], [0, 200]]) for seed in range(4)]
        found = degenerate_runs(SeveralRuns((*runs, run(9, 0.93, GOOD))))
        assert found == dict.fromkeys(range(4), "answers 'yes' to everything")

    def test_is_none_where_the_truth_has_one_label_only(self) -> None:
        runs = (run(0, 1.0, [[0, 0], [0, 200]]), run(1, 1.0, [[0, 0], [0, 200]]))
        assert degenerate_runs(SeveralRuns(runs)) == {}

    def test_a_rare_second_answer_is_none(self) -> None:
        runs = (run(0, 0.67, [[1, 99], [0, 200]]), run(1, 0.67, GOOD))
        assert degenerate_runs(SeveralRuns(runs)) == {}


class TestFarBelow:
    @pytest.mark.parametrize(
        ("accuracies", "wrong"),
        [
            ((0.90, 0.91, 0.89, 0.90, 0.70), [4]),
            ((0.90, 0.90, 0.90, 0.86), []),  # no spread at all, but 0.05 is not reached
            ((0.90, 0.90, 0.90, 0.84), [3]),
            ((0.90, 0.80, 0.70, 0.60, 0.50), []),  # spread, but evenly
            ((0.70, 0.71, 0.69, 0.70, 0.95), []),  # far above is no fault
            ((0.9, 0.5), []),  # of two nobody knows which is wrong
            ((0.90, 0.91, 0.89, float("nan")), [3]),
        ],
    )
    def test_the_others(self, accuracies: tuple[float, ...], wrong: list[int]) -> None:
        assert list(degenerate_runs(several(*accuracies))) == wrong

    def test_takes_three_scaled_deviations(self) -> None:
        # median 0.80, deviations 0, .02, .02, .04, x: their median is 0.02, so 3 x 1.4826 x 0.02
        # = 0.088956 is the limit.
        assert not degenerate_runs(several(0.80, 0.82, 0.78, 0.84, 0.7111))
        assert degenerate_runs(several(0.80, 0.82, 0.78, 0.84, 0.7109))

    def test_says_which_metric(self) -> None:
        found = degenerate_runs(several(0.9, 0.9, 0.9, 0.5))
        assert found == {3: "accuracy 0.5000 is far below the median of 0.9000"}

    def test_what_is_better_when_lower_is_not_compared(self) -> None:
        runs = [run(seed, 0.9) for seed in range(4)]
        for name, value in (("loss", 0.01), ("perplexity", 0.1), ("words", 10.0)):
            for one in runs:
                one.metrics[name] = 0.9 if one.seed else value
            runs[1].metrics["words"] = 90.0
        assert degenerate_runs(SeveralRuns(tuple(runs))) == {}

    @given(st.lists(st.floats(0, 1), min_size=3, max_size=9))
    def test_never_half_of_the_runs(self, accuracies: list[float]) -> None:
        assert len(degenerate_runs(several(*accuracies))) <= len(accuracies) / 2


class TestShown:
    def shown(self, result: SeveralRuns) -> str:
        out = io.StringIO()
        Console(file=out, width=200).print(several_view(result))
        return out.getvalue()

    def test_in_the_table_and_below_it(self) -> None:
        text = self.shown(several(0.9, 0.9, 0.9, 0.5, first=7))
        assert "10 !" in text
        assert "9 !" not in text
        assert "! seed 10: accuracy 0.5000 is far below" in text
        assert "1 of 4 runs went wrong" in text

    def test_nowhere_if_all_is_well(self) -> None:
        text = self.shown(several(0.9, 0.9, 0.9))
        assert "!" not in text
        assert "wrong" not in text

    def test_in_the_json(self) -> None:
        found = several_to_dict(several(0.9, 0.9, 0.9, 0.5, first=7))
        assert found["degenerate"] == [10]
        assert len(found["runs"]) == 4
        assert json.loads(json.dumps(found)) == found
