"""What examples cost and answers are worth adds up to the evaluation, for every task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.api import evaluate
from pretune.evaluation.examine import examine
from pretune.tasks.base import Task
from pretune.tasks.builtin import TASKS
from pretune.tasks.question_answering.answer import Answerer, AnswerOptions, AnswerPrediction
from pretune.tasks.tagging.schemes import EntitySpan
from pretune.tasks.tagging.scoring import span_mistakes
from tests.tasks.every_task import CASES
from tests.tasks.questions import CONTEXT, question, records

#: Figures that do not follow from sums over examples.
NOT_SUMS = {
    *("spearman", "bits_per_character", "bits_per_byte", "mask_loss", "nsp_loss", "nsp_accuracy"),
    *("HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"),
    *("calibration_error", "distinct_2"),
    *("best_exact", "best_f1", "best_exact_thresh", "best_f1_thresh"),
}


def test_every_task_has_a_case() -> None:
    assert {case.task().name for case in CASES.values()} == TASKS.keys()


@pytest.mark.parametrize("name", CASES)
def test_examples_add_up_to_the_evaluation(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    case = CASES[name]
    bundle, data = case.bundle(tiny_folder, tmp_path), case.records()
    found = examine(bundle, data, device="cpu", batch_tokens=100)
    expected = evaluate(bundle, data, device="cpu").metrics
    assert found.metrics == pytest.approx(expected, rel=1e-4)
    sums = {k: float(v) for k, v in found.task.figures(found.sums.sum(0)).items()}
    if name == "mask_lm_pairs":  # what pairs cost is no matter of an example's tokens
        expected |= {"loss": expected["mask_loss"]}
    if name.startswith(("mask_lm", "causal_lm")):
        expected.pop("accuracy")
    kept = {k: v for k, v in expected.items() if k not in NOT_SUMS}
    if name in (
        "chat",
        "instruct",
        "translate",
        "summarize",
        "ppo",
        "grpo",
        "rloo",
        "replaced_token",
    ):  # what is written is measured as a whole
        kept = {k: v for k, v in kept.items() if k in sums}
        assert "loss" in kept
    assert sums == pytest.approx(kept, rel=1e-4, abs=1e-9)
    # Of many selections at once, each is as by itself.
    both = found.task.figures(np.stack([found.sums.sum(0), found.sums[:5].sum(0)]))
    part = found.task.figures(found.sums[:5].sum(0))
    for key, value in both.items():
        assert value.tolist() == pytest.approx([sums[key], float(part[key])], abs=1e-9)


# Not of pairs: the loss of a batch has that of the pairs in it.
@pytest.mark.parametrize("name", [name for name in CASES if name != "mask_lm_pairs"])
def test_the_loss_of_an_example_is_that_of_a_batch_of_one(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    bundle, data = case.bundle(tiny_folder, tmp_path), case.records(8)
    whole = examine(bundle, data, device="cpu")
    # As a task does that says nothing of each.
    monkeypatch.setattr(type(bundle.task), "each_loss", Task.each_loss)
    alone = examine(bundle, data, device="cpu")
    assert [e.loss for e in alone.examples] == pytest.approx(
        [e.loss for e in whole.examples], rel=1e-4
    )
    assert [e.terms for e in alone.examples] == [e.terms for e in whole.examples]


@pytest.mark.parametrize("name", ["classify", "multilabel", "choose", "tag", "answer_none"])
def test_an_answer_is_right_or_has_mistakes(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    case = CASES[name]
    found = examine(case.bundle(tiny_folder, tmp_path), case.records(), device="cpu")
    for example in found.examples:
        grade = example.grade
        assert grade.right == (not grade.mistakes)
        for one in grade.decisions:
            assert 0 <= one.confidence <= 1
            if one.distribution:
                assert one.confidence == pytest.approx(one.distribution[one.predicted])
                assert one.right == (one.predicted == one.truth)
    assert {example.grade.right for example in found.examples} == {True, False} or name == "tag"


SPANS = st.sets(
    st.builds(
        lambda start, length, kind: EntitySpan(start, start + length, kind),
        st.integers(0, 8),
        st.integers(1, 3),
        st.sampled_from(["PER", "LOC"]),
    ),
    max_size=5,
)


@given(right=SPANS, found=SPANS)
def test_every_entity_is_right_or_in_one_mistake(
    right: set[EntitySpan], found: set[EntitySpan]
) -> None:
    mistakes = span_mistakes(sorted(right), dict.fromkeys(found, 0.5), str)
    kinds = [mistake.kind for mistake in mistakes]
    both = sum(kind in ("type", "boundary", "boundary and type") for kind in kinds)
    assert len(right - found) == both + kinds.count("missed")
    assert len(found - right) == both + kinds.count("spurious")


@pytest.mark.parametrize(
    ("right", "found", "expected"),
    [
        ([EntitySpan(0, 2, "PER")], [EntitySpan(0, 2, "PER")], []),
        ([EntitySpan(0, 2, "PER")], [EntitySpan(0, 2, "LOC")], ["type: PER taken for LOC"]),
        ([EntitySpan(0, 2, "PER")], [EntitySpan(1, 3, "PER")], ["boundary: PER"]),
        (
            [EntitySpan(0, 2, "PER")],
            [EntitySpan(1, 3, "LOC")],
            ["boundary and type: PER taken for LOC"],
        ),
        ([EntitySpan(0, 2, "PER")], [EntitySpan(2, 3, "PER")], ["missed: PER", "spurious: PER"]),
        # The longer overlap is the boundary; what is left over is spurious.
        (
            [EntitySpan(0, 4, "PER")],
            [EntitySpan(0, 1, "PER"), EntitySpan(1, 4, "PER")],
            ["spurious: PER", "boundary: PER"],
        ),
        # The same place comes before the same type.
        (
            [EntitySpan(0, 2, "PER"), EntitySpan(2, 4, "LOC")],
            [EntitySpan(0, 2, "LOC"), EntitySpan(2, 3, "PER")],
            ["type: PER taken for LOC", "boundary and type: LOC taken for PER"],
        ),
    ],
)
def test_kinds_of_mistakes_of_entities(
    right: list[EntitySpan], found: list[EntitySpan], expected: list[str]
) -> None:
    assert [str(m) for m in span_mistakes(right, dict.fromkeys(found, 0.5), str)] == expected


@pytest.mark.parametrize(
    ("truth", "given", "expected"),
    [
        ("good film", "good film", []),
        ("good film", "The good film", []),  # articles do not count
        ("good film", "good", ["boundary: a part of the right answer"]),
        ("good film", "good film was seen", ["boundary: the right answer and more"]),
        ("good film", "film was seen", ["boundary: overlaps with the right answer"]),
        ("good film", "China", ["elsewhere"]),
        ("", "China", ["spurious"]),
        ("good film", "", ["missed"]),
    ],
)
def test_kinds_of_mistakes_of_answers(truth: str, given: str, expected: list[str]) -> None:
    data = records(question(truth))
    start = CONTEXT.index(given) if given else None
    end = None if start is None else start + len(given)
    grade = Answerer(AnswerOptions(no_answer=True)).grader(data)
    found = grade(AnswerPrediction(given, 0.7, start, end), 0)
    assert [str(mistake) for mistake in found.mistakes] == expected
    assert found.right == (not expected)


def test_a_right_answer_that_is_not_where_it_is_said_to_be_is_looked_for() -> None:
    row = question("good film")
    row["answers"]["answer_start"] = [50]
    grade = Answerer(AnswerOptions()).grader(records(row))
    start = CONTEXT.index("good")
    found = grade(AnswerPrediction("good", 0.7, start, start + 4), 0)
    assert [mistake.kind for mistake in found.mistakes] == ["boundary"]
