"""A model card: what the model does, how to use it, how well it does, and what nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pretune.checkpoints.config import THRESHOLD
from pretune.publishing.card_data import PIPELINES, CardFacts, DataSource, metadata
from pretune.render.escaping import fenced, for_markdown
from pretune.render.grid import Grid
from pretune.render.result_views import MAX_CONFUSION_CLASSES
from pretune.tasks.base import ReadsWindows

#: More rows help nobody.
MOST_ROWS = 100
#: What a card tells of `environment`: versions, and nothing of the machine.
_VERSIONS = {"pretune": "pretune", "torch": "PyTorch", "python": "Python"}


def model_card(facts: CardFacts) -> str:
    """The text of README.md; whatever comes from data or from people is escaped."""
    parts = [
        f"---\n{metadata(facts)}\n---",
        f"# {for_markdown(facts.repo.partition('/')[2])}",
        *_purpose(facts),
        *_use(facts),
        *_results(facts),
        *_origin(facts),
        *_limits(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _purpose(facts: CardFacts) -> Iterator[str]:
    labels = len(facts.labels)
    reads = " and ".join(facts.task.inputs.values())
    if labels:
        does = f"This model reads {for_markdown(reads)} and gives one of {labels:,} labels."
    else:
        does = (
            f"This model reads {for_markdown(reads)}; its task is {for_markdown(facts.task.name)}."
        )
    if facts.task.name == "answer":
        does = "This model finds the answer to a question in a passage."
    if facts.task.name == "tag":
        does = "This model finds entities, such as names, in a text and says of which type each is."
    if facts.task.name == "chat":
        does = "This model replies in a conversation."
    if facts.task.name == "instruct":
        does = "This model answers instructions."
    if facts.task.name == "translate":
        does = "This model translates."
    if facts.task.name == "mask_lm":
        does = "This model finds the words that fit the gaps of a text."
    opens = "transformers opens it too" if facts.in_transformers else "pretune opens it"
    yield (
        f"{does} It is a {for_markdown(facts.architecture)} with {facts.parameters:,} parameters, "
        f"saved by pretune; {opens}."
    )
    if facts.recipe is not None and facts.recipe.description:
        yield f"In the words of its recipe: {for_markdown(facts.recipe.description)}"
    shown = facts.labels[:MOST_ROWS]
    if shown and not facts.details.get("per_class"):
        yield "## Labels"
        if labels > MOST_ROWS:
            yield f"The first {MOST_ROWS} of them:"
        yield Grid(["label", "number"], [(label, i) for i, label in enumerate(shown)]).markdown()


def _use(facts: CardFacts) -> Iterator[str]:
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
    pipeline, cls = PIPELINES.get(facts.task.head, (None, None))
    if cls is None or not facts.in_transformers:
        return
    yield "With transformers:"
    if pipeline == "translation":
        yield fenced(
            f"from transformers import {cls}, AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({facts.repo!r})\n"
            f"model = {cls}.from_pretrained({facts.repo!r})\n"
            f"inputs = tokenizer({example[0]!r}, return_tensors='pt')\n"
            "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))",
            "python",
        )
        return
    if pipeline == "text-classification":
        yield fenced(_pipeline(facts, example), "python")
        return
    yield fenced(
        f"from transformers import {cls}, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({facts.repo!r})\n"
        f"model = {cls}.from_pretrained({facts.repo!r})\n"
        f"print(model(**tokenizer({', '.join(map(repr, example))}, return_tensors='pt')))",
        "python",
    )


def _pipeline(facts: CardFacts, example: list[str]) -> str:
    texts = repr(example[0])
    if len(example) > 1:
        texts = repr({"text": example[0], "text_pair": example[1]})
    return (
        "from transformers import pipeline\n\n"
        f"classify = pipeline('text-classification', model={facts.repo!r})\n"
        f"print(classify({texts}, truncation=True, max_length={facts.task.options.max_length}))"
    )


def _results(facts: CardFacts) -> Iterator[str]:
    yield "## Results"
    if facts.validation is None or not facts.metrics:
        yield "Nothing was measured when this model was published."
        return
    count = _measured(facts)
    size = "" if count is None else f" ({count:,} examples)"
    best = facts.result.get("best_step")
    chosen = "" if best is None else f", after {best:,} updates"
    yield f"Of the best checkpoint{chosen}, on {_source(facts.validation)}{size}:"
    rows = [(facts.metric_title(name), f"{value:.4f}") for name, value in facts.metrics.items()]
    yield Grid(["metric", "value"], rows).markdown()
    classes: Mapping[str, Mapping[str, float]] = facts.details.get("per_class") or {}
    if classes:
        names = ("precision", "recall", "f1")
        most = list(classes.items())[:MOST_ROWS]
        yield Grid(
            ["label", "precision", "recall", "F1", "examples"],
            [(k, *(f"{v[n]:.4f}" for n in names), f"{v['support']:,.0f}") for k, v in most],
        ).markdown()
        if len(classes) > MOST_ROWS:
            yield f"These are the first {MOST_ROWS} of {len(classes):,} labels."
    yield from _confusion(facts.details)


def _confusion(details: Mapping[str, Any]) -> Iterator[str]:
    labels, rows = details.get("labels") or [], details.get("confusion") or []
    if not 1 < len(labels) <= MAX_CONFUSION_CLASSES or len(rows) != len(labels):
        return
    yield "Rows are the truth, columns the model's answers:"
    yield Grid(["", *labels], [(k, *row) for k, row in zip(labels, rows, strict=True)]).markdown()


def _measured(facts: CardFacts) -> int | None:
    """How many examples the figures are of, where the evaluation says so."""
    if isinstance(counted := facts.details.get("examples"), int):
        return counted
    confusion = facts.details.get("confusion")
    if not confusion:
        return None
    return int(sum(sum(row) for row in confusion))


def _source(source: DataSource) -> str:
    where = "from the Hugging Face Hub" if source.on_hub else "a local file"
    named = f"{for_markdown(source.shown)} ({where})"
    if source.held_back is None:
        return named
    return f"{source.held_back * 100:g}% of {named}, held back from training"


def _origin(facts: CardFacts) -> Iterator[str]:
    yield "## Training"
    recipe = facts.recipe
    if recipe is None or facts.training is None:
        yield "It was published from a checkpoint alone: how it was trained is not known here."
        return
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
    yield "## Limits"
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
    most = facts.task.options.max_length
    then = "read in parts" if isinstance(facts.task, ReadsWindows) else "cut"
    lines.append(f"- It reads at most {most:,} tokens at a time; longer texts are {then}.")
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
        lines.append("- It gives one of its labels to every text, also where none of them fits.")
    lines.append(
        "- Whether it treats people or groups unequally was not examined; what was wrong in the "
        "training data, or in the model it started from, it may have learned."
    )
    if facts.license is None:
        lines.append("- No license was given when it was published: ask its owner before use.")
    yield "\n".join(lines)
