"""In-context learning measured: a language model answers from a few examples, untrained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pretune.bundle.bundle import Bundle
from pretune.data.batch_order import epoch_order
from pretune.data.records import Records
from pretune.errors import DataError, PretuneError, did_you_mean, note
from pretune.evaluation.few_shot.in_context import FewShot, FewShotOptions, Question
from pretune.evaluation.few_shot.result import Cell, FewShotResult, cell_of
from pretune.evaluation.few_shot.template import Template
from pretune.inference.likelihood import LikelihoodScorer
from pretune.inference.prompts import template_of
from pretune.tasks.base import no_text
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.dialogue.layouts import TemplateLayout
from pretune.text.terminal import names_in_line


def measure(
    bundle: Bundle,
    data: Records,
    train: Records | None = None,
    options: FewShotOptions | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> FewShotResult:
    """Measure how well a language model answers from examples alone.

    The examples come from `train`; without, from `data`, and a row that is an example in one
    measurement is evaluated in none. `progress` is called with the number of questions done and
    their total number. Data, template, answers or a model that cannot be used raise a PretuneError.
    """
    options = options or FewShotOptions()
    scorer = LikelihoodScorer.of(
        bundle, device=device, precision=precision, batch_tokens=batch_tokens
    )
    # The labels and the columns of the template have to be in all data.
    task = _labels(options, data if train is None else train)
    template = _template(options, [data] if train is None else [data, train])
    layout = _layout(bundle) if options.chat else None
    asker = FewShot(bundle, scorer, template, task.labels, options, device, layout)
    # Draw the examples of all measurements first: what is shown in one is asked in none.
    rows = _questions(data, task, template, options.label)
    pool = rows if train is None else _questions(train, task, template, options.label)
    drawn = _draws(options, pool, data if train is None else train)
    used = set() if train is not None else {row for shots in drawn.values() for row in shots}
    asked = [row for i, row in enumerate(rows) if i not in used][: options.limit]
    if not asked:
        raise DataError(
            f"{data.origin}: all {len(rows)} rows are examples, none is left to evaluate",
            "Draw the examples from another file (--train), or take fewer --shots and --seeds.",
        )
    # Then ask every question in each measurement.
    cells: list[Cell] = []
    for (count, seed), shots in drawn.items():
        before = len(cells) * len(asked)

        def done(questions: int, before: int = before) -> None:
            if progress is not None:
                progress(before + questions, len(drawn) * len(asked))

        guesses = asker.ask(asked, [pool[i] for i in shots], done)
        cells.append(cell_of(count, seed, guesses, asker.answers))
    truth = Counter(asker.answers[row.label] for row in asked)
    return FewShotResult(
        template.text, tuple(asker.answers), options.score, len(asked), truth, cells
    )


def _layout(bundle: Bundle) -> TemplateLayout:
    """Return the layout of messages by a model's chat template."""
    layout = template_of(bundle, always=True)
    if layout is None:
        raise PretuneError(
            "chat: the model's tokenizer has no chat template",
            "Leave it out: examples are then texts that the model continues.",
        )
    return layout


def draw_shots(labels: Sequence[int], count: int, seed: int, *, balanced: bool = True) -> list[int]:
    """Draw at most `count` examples, in the order in which they are shown.

    The draw depends on the arguments alone. With the same seed, a smaller draw is part of a larger.
    If `balanced`, the same number of each label is drawn, as far as there are enough.
    """
    order = epoch_order(len(labels), seed, 0).tolist()
    if balanced:
        # The first of each label, then the second of each, ...; labels come in a random order.
        seen: dict[int, int] = {}
        rank = dict[int, int]()
        for row in order:
            rank[row] = seen.get(labels[row], 0)
            seen[labels[row]] = rank[row] + 1
        order.sort(key=lambda row: rank[row])  # stable: else as drawn
    chosen = np.array(order[:count], dtype=np.int64)
    # Labels that take turns would be a pattern for the model to continue: shuffle once more.
    return [int(row) for row in chosen[epoch_order(len(chosen), seed, 1)]]


def _draws(
    options: FewShotOptions, pool: Sequence[Question], origin: Records
) -> dict[tuple[int, int], list[int]]:
    """Draw the examples of each measurement, by number of shots and seed."""
    largest = max(options.shots)
    if largest > len(pool):
        raise DataError(
            f"{origin.origin}: {len(pool)} rows to draw {largest} examples from",
            "Take fewer --shots.",
        )
    labels = [row.label for row in pool]
    return {
        (count, seed): draw_shots(labels, count, seed, balanced=options.balanced)
        for count in options.shots
        for seed in (options.seeds if count else options.seeds[:1])
    }


def _labels(options: FewShotOptions, records: Records) -> Classify:
    """Return a classification task that has learned the labels."""
    answers = options.answers
    if answers is not None:
        answers = dict(answers) if isinstance(answers, Mapping) else list(answers)
        shown = list(answers.values()) if isinstance(answers, dict) else answers
        if len(set(shown)) < 2 or not all(isinstance(a, str) and a.strip() for a in shown):
            raise PretuneError(
                f"answers: {', '.join(map(repr, shown))}", "Give at least two, none of them empty."
            )
    task = Classify(ClassifyOptions(labels=answers))
    task.fit(_labelled(records, options.label))
    return task


def _labelled(records: Records, label: str) -> Records:
    """Rename the column of the labels to the one that `Classify` reads."""
    if label not in records.columns:
        raise DataError(
            f"{records.origin}: no column '{label}' for the labels; it has "
            f"{names_in_line(records.columns)}",
            f"{did_you_mean(label, records.columns)} Say which one it is with --label COLUMN",
        )
    return records.mapped({"label": label}, ["label"])


def _template(options: FewShotOptions, sources: Sequence[Records]) -> Template:
    common = [name for name in sources[0].columns if all(name in s.columns for s in sources)]
    if options.template is None:
        return Template.of_columns(common, options.label)
    return Template.parse(options.template, common, options.label)


def _questions(records: Records, task: Classify, template: Template, label: str) -> list[Question]:
    labelled = _labelled(records, label)
    ids = {name: i for i, name in enumerate(task.labels)}
    questions = []
    for row, record in enumerate(records.rows):
        # Nothing can be asked, as in any other evaluation.
        if all(no_text(record.get(name)) for name in template.columns):
            continue
        values = {name: records.text(row, name) for name in template.columns}
        number = task.label_id(labelled, row, ids)
        questions.append(Question(values, number, records.where(row)))
    if left_out := len(records) - len(questions):
        note(f"{records.origin}: {left_out:,} records without a text are left out")
    return questions


def options_from(values: Mapping[str, Any]) -> FewShotOptions:
    """Make `FewShotOptions` by name; raises PretuneError if one is unknown or makes no sense."""
    known = list(FewShotOptions.__dataclass_fields__)
    for name in values:
        if name not in known:
            raise PretuneError(f"prompt has no option '{name}'", did_you_mean(name, known))
    return FewShotOptions(**values)
