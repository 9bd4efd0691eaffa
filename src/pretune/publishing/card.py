"""A model card: what the model does, how to use it, how good it is, and what is not known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pretune.checkpoints.config import THRESHOLD
from pretune.export.pruning import PruningResult
from pretune.recipe.recipe import Recipe
from pretune.render.escaping import fenced, for_markdown, one_line
from pretune.render.grid import Grid
from pretune.render.result_views import MAX_CONFUSION_CLASSES
from pretune.render.smaller_views import pruning_table
from pretune.tasks.base import AnyTask, ReadsWindows
from pretune.tasks.classification.counts import POSITIVE

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

#: Rows of a table of labels; more help nobody.
MAX_ROWS = 100
#: Entries of a run's environment that a card shows: versions, and nothing about the machine.
_VERSIONS = {"pretune": "pretune", "torch": "PyTorch", "python": "Python"}
#: What a model does, by its task; for other tasks a card says what the model reads.
_PURPOSES = {
    "answer": "finds the answer to a question in a passage.",
    "tag": "finds entities, such as names, in a text and says of which type each is.",
    "chat": "replies in a conversation.",
    **dict.fromkeys(("instruct", "dpo", "ppo", "grpo", "rloo"), "answers instructions."),
    "translate": "translates.",
    "summarize": "summarizes.",
    "mask_lm": "finds the words that fit the gaps of a text.",
    "replaced_token": "tells which tokens of a text were replaced by others.",
}
#: By the head of a model: what the Hub calls its task, and the class of transformers that opens it.
PIPELINES = {
    "sequence_classification": ("text-classification", "AutoModelForSequenceClassification"),
    "multiple_choice": ("multiple-choice", "AutoModelForMultipleChoice"),
    "token_classification": ("token-classification", "AutoModelForTokenClassification"),
    "token_classification_crf": ("token-classification", "AutoModelForTokenClassification"),
    "question_answering": ("question-answering", "AutoModelForQuestionAnswering"),
    "masked_lm": ("fill-mask", "AutoModelForMaskedLM"),
    "pretraining": ("fill-mask", "AutoModelForPreTraining"),
    "causal_lm": ("text-generation", "AutoModelForCausalLM"),
    "actor_critic": ("text-generation", "AutoModelForCausalLM"),
    "translation": ("translation", "AutoModelForSeq2SeqLM"),
}

#: Names of metrics on the Hub, by our names.
_SAME = ("accuracy", "f1", "mse", "mae", "precision", "recall", "exact_match", "perplexity", "chrf")
_METRICS = {name: name for name in _SAME} | {
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "bleu": "sacrebleu",
}


def _pipeline(task: AnyTask) -> tuple[str | None, str | None]:
    """What the Hub calls a task, and the class of transformers that opens its models."""
    name, kind = PIPELINES.get(task.head, (None, None))
    return ("summarization" if task.name == "summarize" else name), kind


@dataclass(frozen=True)
class DataSource:
    """Data under a name that everybody may see."""

    shown: str  # a dataset as recipes name it, or the name of a local file without folder
    kind: str  # id of the dataset; for a local file its format, as `datasets` calls it
    on_hub: bool = False
    config: str | None = None
    split: str | None = None
    held_back: float | None = None  # share of the data that was held back for validation


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card is made of. Nothing in it may tell anything about the machine."""

    repo: str  # `owner/name`
    task: AnyTask
    architecture: str  # class name, in transformers if there is one
    parameters: int
    in_transformers: bool = True
    license: str | None = None
    languages: tuple[str, ...] = ()
    recipe: Recipe | None = None  # without local paths
    base: str | None = None  # what it was trained from, under a public name
    base_model: str | None = None  # the same model, if it is on the Hub
    training: DataSource | None = None
    validation: DataSource | None = None
    result: Mapping[str, Any] = field(default_factory=dict)  # contents of result.json
    pruned: PruningResult | None = None  # what was removed from it
    quantized: Mapping[str, Any] | None = None  # how its weights were rounded to 8 bits

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best model that are numbers."""
        metrics = self.result.get("metrics") or {}
        return {str(k): float(v) for k, v in metrics.items() if isinstance(v, int | float)}

    @property
    def details(self) -> Mapping[str, Any]:
        """Details of the evaluation of the best model."""
        details = self.result.get("details")
        return details if isinstance(details, Mapping) else {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the task; empty if it has none."""
        return tuple(map(str, self.task.state().get("labels", ())))

    def metric_title(self, name: str) -> str:
        """Return the name of a metric for people."""
        if name == "f1" and self.task.name == "classify":
            positive = self.details.get(POSITIVE)
            if positive is not None:
                return f"F1 ({positive})"
            return "F1 of the second label" if len(self.labels) == 2 else "F1, macro average"
        titles = {"mcc": "Matthews correlation", "f1": "F1", "bleu": "BLEU", "chrf": "chrF"}
        titles |= {"pearson": "Pearson correlation", "spearman": "Spearman correlation"}
        return titles.get(name, name.replace("_", " "))


def model_card(facts: CardFacts) -> str:
    """Write the text of README.md, with all text from data and from people escaped."""
    parts = [
        f"---\n{metadata(facts)}\n---",
        f"# {for_markdown(facts.repo.partition('/')[2])}",
        *_purpose(facts),
        *_use(facts),
        *_results(facts),
        *_smaller(facts),
        *_origin(facts),
        *_limits(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _purpose(facts: CardFacts) -> Iterator[str]:
    """Say what the model does and list its labels, unless a table of results lists them."""
    labels, task = len(facts.labels), facts.task
    reads = for_markdown(" and ".join(task.inputs.values()))
    does = f"reads {reads}; its task is {for_markdown(task.name)}."
    if labels:
        does = f"reads {reads} and gives one of {labels:,} labels."
    does = _PURPOSES.get(task.name, does)
    opens = "transformers opens it too" if facts.in_transformers else "pretune opens it"
    yield (
        f"This model {does} It is a {for_markdown(facts.architecture)} with "
        f"{facts.parameters:,} parameters, saved by pretune; {opens}."
    )
    if facts.recipe is not None and facts.recipe.description:
        yield f"In the words of its recipe: {for_markdown(facts.recipe.description)}"
    # With results, the table of the classes lists the labels already.
    shown = facts.labels[:MAX_ROWS]
    if shown and not facts.details.get("per_class"):
        yield "## Labels"
        if labels > MAX_ROWS:
            yield f"The first {MAX_ROWS} of them:"
        yield Grid(["label", "number"], [(label, i) for i, label in enumerate(shown)]).markdown()


def _use(facts: CardFacts) -> Iterator[str]:
    """Show code that asks the model, with pretune and, where it opens it, with transformers."""
    # The names of the inputs serve as an example; a gap needs a sentence around it.
    example = list(facts.task.inputs.values())
    if facts.task.head in {"masked_lm", "pretraining"}:
        example = ["A day has 24 [MASK]."]
    inputs = repr([tuple(example)] if len(example) > 1 else example)
    yield "## Use"
    yield "With pretune:"
    yield fenced(
        "import pretune\n\n"
        f"model = pretune.load({facts.repo!r})\n"
        f"print(pretune.predict(model, {inputs}))",
        "python",
    )
    # Not every head and family is in transformers.
    pipeline, cls = _pipeline(facts.task)
    if cls is None or not facts.in_transformers:
        return
    yield "With transformers:"
    # A pipeline knows the labels of a classifier.
    if pipeline == "text-classification":
        text = example[0]
        texts = repr({"text": text, "text_pair": example[1]} if len(example) > 1 else text)
        longest = facts.task.options.max_length
        code = (
            "from transformers import pipeline\n\n"
            f"classify = pipeline('text-classification', model={facts.repo!r})\n"
            f"print(classify({texts}, truncation=True, max_length={longest}))"
        )
    else:
        code = (
            f"from transformers import {cls}, AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({facts.repo!r})\n"
            f"model = {cls}.from_pretrained({facts.repo!r})\n"
        )
        # A translator writes; other heads give logits.
        if pipeline in ("translation", "summarization"):
            code += (
                f"inputs = tokenizer({example[0]!r}, return_tensors='pt')\n"
                "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))"
            )
        else:
            inputs = ", ".join(map(repr, example))
            code += f"print(model(**tokenizer({inputs}, return_tensors='pt')))"
    yield fenced(code, "python")
    if (long := getattr(facts.task.options, "long", "cut")) != "cut":
        yield (
            f"It was trained with `task.long={long}`, so that pretune reads more of a long text "
            "than its first tokens; transformers' pipeline cuts it."
        )


def _results(facts: CardFacts) -> Iterator[str]:
    """Tabulate the metrics of the best checkpoint, overall and by class, and its confusions."""
    yield "## Results"
    if facts.validation is None or not facts.metrics:
        yield "Nothing was measured when this model was published."
        return
    # What the metrics are from: which checkpoint, on which data, on how many examples.
    count = _measured(facts)
    size = "" if count is None else f" ({count:,} examples)"
    best = facts.result.get("best_step")
    chosen = "" if best is None else f", after {best:,} updates" if best else ", before training"
    yield f"Of the best checkpoint{chosen}, on {_source(facts.validation)}{size}:"
    rows = [(facts.metric_title(name), f"{value:.4f}") for name, value in facts.metrics.items()]
    yield Grid(["metric", "value"], rows).markdown()
    # Of a classifier also each class, and which classes are mistaken for which.
    classes: Mapping[str, Mapping[str, float]] = facts.details.get("per_class") or {}
    if classes:
        names = ("precision", "recall", "f1")
        shown = list(classes.items())[:MAX_ROWS]
        yield Grid(
            ["label", "precision", "recall", "F1", "examples"],
            [(k, *(f"{v[n]:.4f}" for n in names), f"{v['support']:,.0f}") for k, v in shown],
        ).markdown()
        if len(classes) > MAX_ROWS:
            yield f"These are the first {MAX_ROWS} of {len(classes):,} labels."
    yield from _confusion(facts.details)


def _confusion(details: Mapping[str, Any]) -> Iterator[str]:
    labels, rows = details.get("labels") or [], details.get("confusion") or []
    if not 1 < len(labels) <= MAX_CONFUSION_CLASSES or len(rows) != len(labels):
        return
    yield "Rows are the truth, columns the model's answers:"
    yield Grid(["", *labels], [(k, *row) for k, row in zip(labels, rows, strict=True)]).markdown()


def _measured(facts: CardFacts) -> int | None:
    """Return the number of examples that were measured, if the evaluation tells it."""
    if isinstance(count := facts.details.get("examples"), int):
        return count
    confusion = facts.details.get("confusion")
    return int(sum(sum(row) for row in confusion)) if confusion else None


def _source(source: DataSource) -> str:
    """Name some data in a sentence."""
    where = "from the Hugging Face Hub" if source.on_hub else "a local file"
    named = f"{for_markdown(source.shown)} ({where})"
    if source.held_back is None:
        return named
    return f"{source.held_back * 100:g}% of {named}, held back from training"


def _smaller(facts: CardFacts) -> Iterator[str]:
    """Tell what was removed from the model, and what its 8 bits cost."""
    if facts.pruned is not None:
        yield "## What was removed"
        yield (
            "`pretune prune` made this model out of a larger one. What mattered least was told by "
            f"{for_markdown(facts.pruned.measured_by)}; metrics are those right after it, before "
            "any further training."
        )
        yield pruning_table(facts.pruned).markdown()
    record = facts.quantized
    if record is None:
        return
    yield "## 8 bits"
    named = {name: for_markdown(record.get(name, "")) for name in ("setting", "instructions")}
    lines = [
        f"`pretune quantize` rounded its weights to 8 bits: {named['setting']}. It was measured on "
        f"{named['instructions']}; elsewhere answers may differ."
    ]
    before, after, agreement = (record.get(name) for name in ("float32", "int8", "agreement"))
    if isinstance(before, int | float) and isinstance(after, int | float):
        metric = for_markdown(facts.metric_title(str(record.get("metric", "metric"))))
        lines.append(f"{metric} is {before:.4f} in float32, and {after:.4f} in 8 bits.")
    if isinstance(agreement, int | float):
        lines.append(f"{agreement:.2f} % of the answers are the same.")
    if record.get("forced"):
        lines.append("**That is more than the limits allow: it was written with `--force`.**")
    yield " ".join(lines)


def _origin(facts: CardFacts) -> Iterator[str]:
    """Tell how the model was trained: data, base model, updates, versions, recipe."""
    yield "## Training"
    recipe = facts.recipe
    if recipe is None or facts.training is None:
        yield "It was published from a checkpoint alone: how it was trained is not known here."
        return
    # Whatever the run knows of its training; a damaged result may know less.
    lines = [f"- Data: {_source(facts.training)}."]
    if facts.base is not None:
        lines.append(f"- Started from: {for_markdown(facts.base)}.")
    if (steps := facts.result.get("steps")) is not None:
        lines.append(f"- {steps:,} updates, seed {recipe.seed}.")
    environment = facts.result.get("environment") or {}
    versions = [
        f"{_VERSIONS[k]} {for_markdown(environment[k])}" for k in _VERSIONS if k in environment
    ]
    if versions:
        lines.append(f"- Versions: {', '.join(versions)}.")
    yield "\n".join(lines)
    yield (
        "The recipe, every default written out (`recipe.yaml`; of local files and folders only the "
        "names are given):"
    )
    yield fenced(recipe.to_yaml(), "yaml")


def _limits(facts: CardFacts) -> Iterator[str]:
    """List what the model cannot do, and what nobody has measured."""
    yield "## Limits"
    # How far the results can be trusted.
    lines = []
    if facts.validation is not None and facts.metrics:
        lines += [
            f"- It was only measured on {_source(facts.validation)}. How it does on other texts is "
            "not known.",
            "- The same data chose the best checkpoint, so the figures may be a little too good.",
            "- They are of one training with one seed; another seed gives other figures.",
        ]
    else:
        lines.append("- How well it does is not known: measure it on data of your own first.")
    # What the model does with a text that is long, has no answer, or fits no label.
    longest = facts.task.options.max_length
    then = "read in parts" if isinstance(facts.task, ReadsWindows) else "cut"
    lines.append(f"- It reads at most {longest:,} tokens at a time; longer texts are {then}.")
    if (threshold := facts.task.config_entries().get(THRESHOLD)) is not None:
        lines.append(
            f"- It gives no answer where that scores over {threshold:.2f} more than the best span "
            f"(`{THRESHOLD}` in config.json). transformers does not look at that by itself."
        )
    if facts.task.head == "token_classification_crf":
        lines.append(
            "- It has a conditional random field (`crf.*` in model.safetensors), which "
            "transformers does not read: there each word gets its most probable tag by itself."
        )
    if facts.labels and facts.task.name != "tag":
        lines.append("- It gives one of its labels to every text, even if none of them fits.")
    # What holds for every model.
    lines.append(
        "- Whether it treats people or groups unequally was not examined; what was wrong in the "
        "training data, or in the model it started from, it may have learned."
    )
    if facts.license is None:
        lines.append("- No license was given when it was published: ask its owner before use.")
    yield "\n".join(lines)


def metadata(facts: CardFacts) -> str:
    """Write the YAML at the beginning of the card, which the Hub reads, without its dashes."""
    from huggingface_hub import ModelCardData

    pipeline, _ = _pipeline(facts.task)
    results = _evaluations(facts, pipeline)
    languages = list(facts.languages)
    sources = [s for s in (facts.training, facts.validation) if s is not None and s.on_hub]
    metrics = [_METRICS[name] for name in facts.metrics if name in _METRICS] if results else []
    data = ModelCardData(
        language=languages[0] if len(languages) == 1 else languages or None,
        license=facts.license,
        # "transformers" where possible: the Hub offers code and counts downloads for libraries
        # that it knows.
        library_name="transformers" if facts.in_transformers else "pretune",
        pipeline_tag=pipeline,
        tags=["pretune", facts.task.name],
        base_model=facts.base_model,
        datasets=list(dict.fromkeys(source.kind for source in sources)) or None,
        metrics=metrics or None,
        model_name=facts.repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _evaluations(facts: CardFacts, pipeline: str | None) -> list[EvalResult]:
    """List the metrics as the Hub's results of an evaluation."""
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
        # The Hub knows no loss as a metric, and does not read YAML's .nan.
        if name != "loss" and math.isfinite(value)
    ]
