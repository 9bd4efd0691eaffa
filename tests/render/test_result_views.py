"""Tables for people."""

from __future__ import annotations

from rich.console import Console

from pretune.render.result_views import evaluation_view
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
