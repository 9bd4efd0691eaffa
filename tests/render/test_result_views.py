"""Tables for people."""

from __future__ import annotations

from rich.console import Console

from pretune.evaluation.few_shot.result import Cell
from pretune.render.result_views import (
    answer_view,
    evaluation_view,
    samples_view,
    sheet_summary,
    sheet_view,
    shortened_prompts,
)
from pretune.tasks.base import Prediction
from pretune.tasks.classification.classify import ClassPrediction
from pretune.tasks.classification.multilabel import LabelsPrediction
from pretune.tasks.regression.regress import ScorePrediction
from pretune.tasks.tagging.tag import TagPrediction
from pretune.training.sample_sheet import SheetReply, SheetRow
from pretune.training.validation import Evaluation


def shown(result: Evaluation) -> str:
    console = Console(width=80)
    with console.capture() as found:
        console.print(evaluation_view(result))
    return found.get()


def test_figures_per_class_where_there_are_classes() -> None:
    figures = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 8.0}
    with_classes = Evaluation({"loss": 1.0}, 8, 0.1, {"per_class": {"good": figures}})
    assert "0.2500" in shown(with_classes)
    language_model = Evaluation({"perplexity": 9.0}, 8, 0.1, {"tokens": 3})
    assert "│perplexity │ 9.0000│" in shown(language_model)
    assert "precision" not in shown(language_model)


def test_f1_of_two_classes_names_its_class() -> None:
    figures = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 8.0}
    details = {"per_class": {"a": figures, "b": figures}, "positive": "b"}
    assert "accuracy 0.5000  f1 (b) 0.3333" in shown(
        Evaluation({"accuracy": 0.5, "f1": 1 / 3}, 8, 0.1, details)
    )


def test_an_answer_without_scores_of_labels_is_shown_by_its_values() -> None:
    text = answer_view({"text": "a late parcel"}, ScorePrediction(2.91327)).plain
    assert text == "a late parcel\n  score  2.9133\n"
    assert answer_view({"tokens": "nobody"}, TagPrediction(())).plain.endswith("entities  none\n")


def test_the_labels_that_are_given_are_named_whatever_their_threshold() -> None:
    scores = {"joy": 0.4, "anger": 0.6, "fear": 0.1}  # joy from 0.3, anger from 0.7
    text = answer_view({"text": "a late parcel"}, LabelsPrediction(["joy"], scores), longest=1)
    assert text.plain.split("\n")[:3] == [
        "a late parcel",
        "  labels: joy",
        "  anger   60.0%  " + "█" * 18,
    ]
    nothing = answer_view({"text": "a late parcel"}, LabelsPrediction([], scores))
    assert "  labels: none\n" in nothing.plain


def test_a_conversation_is_shown_by_its_texts() -> None:
    asked = {"messages": [{"role": "user", "content": "Hi?"}], "completion": "Yes"}
    assert answer_view(asked, ScorePrediction(1.0)).plain.startswith("Hi?  |  Yes\n")


def test_some_of_many_replies_are_shown_with_their_scores() -> None:
    samples = [
        {"history": [f"p{n}"], "reply": "a\nb", "reference": "c", "reward": n / 2, "judge": 1.0}
        for n in range(45)
    ]
    view = samples_view({"samples": samples})
    assert view is not None
    lines = view.plain.splitlines()
    assert lines[:5] == [
        *("1. p0", "   model: a b", "   given: c", "   reward: 0", "   judge: 1"),
    ]
    assert [line.split(". ")[1] for line in lines if ". p" in line] == [
        f"p{n}" for n in range(0, 45, 3)
    ]
    assert samples_view({"samples": []}) is None


def sheet(*rewards: tuple[float, float], reply: str = "yes") -> list[SheetRow]:
    return [
        SheetRow(
            ("Hi", f"{n}?"),
            SheetReply(0, reply, {"reward": old}),
            SheetReply(8, "x" * 999, {"reward": new}),
        )
        for n, (old, new) in enumerate(rewards)
    ]


def test_what_training_did_to_the_replies() -> None:
    rows = sheet((0, 1), (1, 1), (2, 1.5), (0, 1.5), reply="\x1b[31mno\nafter: yes")
    summary = (
        "4 held-out prompts; reward 0.75 before training, 1.25 after it (higher 2 times, lower 1 "
        "times)."
    )
    assert sheet_summary(rows) == summary
    view = sheet_view(rows)
    assert view is not None
    lines = view.plain.splitlines()
    assert lines[0] == summary
    assert lines[1:3] == ["1. Hi / 0?", "   before: [31mno after: yes  reward 0"]
    assert lines[3] == f"   after:  {'x' * 159}…  reward 1"
    assert len(lines) == 10
    assert sheet_view([]) is None


def test_only_the_input_is_bold_and_the_labels_that_are_given() -> None:
    scores = {"joy": 0.4, "anger": 0.6}

    def bold(answer: Prediction) -> list[str]:
        text = answer_view({"text": "a late parcel"}, answer)
        assert not text.style
        return [text.plain[span.start : span.end].split()[0] for span in text.spans]

    assert bold(ClassPrediction("anger", 0.6, scores)) == ["a"]
    assert bold(LabelsPrediction(["joy"], scores)) == ["a", "labels:", "joy"]


def test_prompts_that_were_too_long_are_counted() -> None:
    assert shortened_prompts(Cell(1, 0, 0.5, 0.5, {}, 3, 0, ()), 5) == (
        "1 shot, seed 0: 3 of 5 prompts were too long for the model; the example was left out of "
        "them"
    )
    assert shortened_prompts(Cell(5, 1, 0.5, 0.5, {}, 3, 2, ()), 5) == (
        "5 shots, seed 1: 3 of 5 prompts were too long for the model; the first examples, up to 3, "
        "were left out of them"
    )
