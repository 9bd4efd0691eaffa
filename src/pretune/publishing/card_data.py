"""What a model card says to machines: the YAML at its beginning, for the Hub."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pretune.recipe.recipe import Recipe
from pretune.render.escaping import one_line
from pretune.tasks.base import AnyTask

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

#: What the Hub calls a task, and which class of transformers opens the model, by its head.
PIPELINES = {
    "sequence_classification": ("text-classification", "AutoModelForSequenceClassification"),
    "multiple_choice": ("multiple-choice", "AutoModelForMultipleChoice"),
    "token_classification": ("token-classification", "AutoModelForTokenClassification"),
    "token_classification_crf": ("token-classification", "AutoModelForTokenClassification"),
    "question_answering": ("question-answering", "AutoModelForQuestionAnswering"),
    "masked_lm": ("fill-mask", "AutoModelForMaskedLM"),
    "pretraining": ("fill-mask", "AutoModelForPreTraining"),
    "causal_lm": ("text-generation", "AutoModelForCausalLM"),
    "translation": ("translation", "AutoModelForSeq2SeqLM"),
}

#: The Hub's names of metrics, by ours.
_METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mse": "mse",
    "mae": "mae",
    "precision": "precision",
    "recall": "recall",
    "exact_match": "exact_match",
    "perplexity": "perplexity",
    "bleu": "sacrebleu",
    "chrf": "chrf",
}


@dataclass(frozen=True)
class DataSource:
    """Data by a name that may be shown to everybody.

    Attributes:
        shown: a Hub dataset as recipes name it, or the name of a local file without its folder.
        kind: the dataset's id; of a local file its format, as `datasets` calls it.
        on_hub: which of the two it is.
        config: of a dataset on the Hub.
        split: of a dataset on the Hub.
        held_back: the share of it that was held back for validation, where it was.
    """

    shown: str
    kind: str
    on_hub: bool = False
    config: str | None = None
    split: str | None = None
    held_back: float | None = None


@dataclass(frozen=True)
class CardFacts:
    """Everything a card is made of; none of it may tell of the machine.

    Attributes:
        repo: `owner/name`.
        task: what the model does.
        architecture: the class that it is, of transformers or of ours alone.
        parameters: how many it has.
        in_transformers: whether transformers opens it, too.
        license: as the Hub knows it.
        languages: as the Hub knows them.
        recipe: what ran, without local paths.
        base: the model it was trained from, by a name that may be shown.
        base_model: the same, if it is on the Hub.
        training: what it was trained on.
        validation: what it was measured on.
        result: what result.json says.
    """

    repo: str
    task: AnyTask
    architecture: str
    parameters: int
    in_transformers: bool = True
    license: str | None = None
    languages: tuple[str, ...] = ()
    recipe: Recipe | None = None
    base: str | None = None
    base_model: str | None = None
    training: DataSource | None = None
    validation: DataSource | None = None
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of the best model that are numbers."""
        found = self.result.get("metrics") or {}
        return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float)}

    @property
    def details(self) -> Mapping[str, Any]:
        """More of that evaluation."""
        found = self.result.get("details")
        return found if isinstance(found, Mapping) else {}

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, where the task has any."""
        return tuple(map(str, self.task.state().get("labels", ())))

    def metric_title(self, name: str) -> str:
        """A metric's name for people."""
        if name == "f1" and self.task.name == "classify":
            return "F1 of the second label" if len(self.labels) == 2 else "F1, macro average"
        titles = {"mcc": "Matthews correlation", "f1": "F1", "bleu": "BLEU", "chrf": "chrF"}
        titles |= {"pearson": "Pearson correlation", "spearman": "Spearman correlation"}
        return titles.get(name, name.replace("_", " "))


def metadata(facts: CardFacts) -> str:
    """The YAML, without the dashes around it."""
    from huggingface_hub import ModelCardData

    pipeline, _ = PIPELINES.get(facts.task.head, (None, None))
    results = _results(facts, pipeline)
    languages = list(facts.languages)
    sources = [s for s in (facts.training, facts.validation) if s is not None and s.on_hub]
    known = [_METRICS[name] for name in facts.metrics if name in _METRICS] if results else []
    data = ModelCardData(
        language=languages[0] if len(languages) == 1 else languages or None,
        license=facts.license,
        # Not "pretune" where that can be helped: the Hub offers code and counts downloads for
        # libraries that it knows.
        library_name="transformers" if facts.in_transformers else "pretune",
        pipeline_tag=pipeline,
        tags=["pretune", facts.task.name],
        base_model=facts.base_model,
        datasets=list(dict.fromkeys(source.kind for source in sources)) or None,
        metrics=known or None,
        model_name=facts.repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _results(facts: CardFacts, pipeline: str | None) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    source = facts.validation
    if source is None:
        return []
    held_back = "" if source.held_back is None else f", {source.held_back * 100:g}% held back"
    return [
        EvalResult(
            task_type=pipeline or facts.task.name,
            dataset_type=source.kind,
            dataset_name=one_line(source.shown) + held_back,
            dataset_config=source.config,
            dataset_split=source.split,
            metric_type=_METRICS.get(name, name),
            metric_value=round(value, 6),
            metric_name=facts.metric_title(name),
        )
        for name, value in facts.metrics.items()
        # A loss is no metric on the Hub, and YAML's .nan no number.
        if name != "loss" and math.isfinite(value)
    ]
