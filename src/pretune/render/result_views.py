"""Results of a model in the terminal: training, evaluation, few-shot, comparison, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.data.columns import as_text
from pretune.render.escaping import one_line, shortened
from pretune.render.grid import Grid, Styled
from pretune.tasks.added_metrics import lower_is_better
from pretune.tasks.base import Prediction
from pretune.tasks.classification.counts import shown_figure
from pretune.tasks.labels import listed_label
from pretune.text.spoken_language import labelled, tr
from pretune.text.terminal import for_terminal, in_line

if TYPE_CHECKING:  # to show one prediction, nothing of training and evaluation is imported
    from pretune.evaluation.compare import Compared, Difference, Interval
    from pretune.evaluation.few_shot.result import Cell, FewShotResult
    from pretune.evaluation.label_errors import LabelErrors
    from pretune.evaluation.ranking import RankedTexts
    from pretune.experiments.out_of_fold import OutOfFold
    from pretune.training.run_result import RunResult, SeveralRuns
    from pretune.training.sample_sheet import SheetReply, SheetRow
    from pretune.training.validation import Evaluation

#: A confusion matrix of more classes is wider than a terminal or the page of a model card.
MAX_CONFUSION_CLASSES = 12
#: Further answers have no column in the table of a few-shot measurement.
MAX_ANSWER_COLUMNS = 8
#: Characters of an example that are shown where models are compared.
_EXAMPLE_LENGTH = 160
#: Replies that are shown after an evaluation.
_SHOWN_SAMPLES = 20
#: Prompts whose replies before and after are shown when training ends.
_SHEET_ROWS = 3


def run_view(result: RunResult) -> RenderableType:
    """Lay out the outcome of one training."""
    return run_grid(result).terminal()


def run_grid(result: RunResult) -> Grid:
    """Tabulate the outcome of one training."""
    title = tr("result")
    if result.metrics and result.best_step:
        title = tr(f"best model on the validation data (after {result.best_step} updates)")
    elif result.metrics:
        title = tr("best model on the validation data (before training)")
    stopped = []
    if (end := result.stopped_on) is not None:
        stopped = [(tr("stopped on"), f"{end['figure']} {end['value']:.4g}, {end['limit']}")]
    rows = [
        *_figures(result),
        (tr("updates"), f"{result.steps:,}"),
        (tr("training time"), f"{result.seconds:.1f} s"),
        (tr("examples per second"), f"{result.examples_per_second:.1f}"),
        (tr("peak memory"), f"{result.peak_memory_mb:,.0f} MiB"),
        (tr("folder"), result.folder),
        *stopped,
        *((tr("warning"), tr(text)) for text in result.warnings),
        *_left_out(result.data),
    ]
    return Grid(("", tr("value")), rows, title)


def _left_out(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how many records of each part of the data could not be used."""
    return [
        (
            tr(f"left out of {part}"),
            tr(f"{own['left_out']:,} {'record' if own['left_out'] == 1 else 'records'}"),
        )
        for part, own in data.items()
        if own.get("left_out")
    ]


def _figures(result: RunResult | Evaluation) -> list[tuple[str, str]]:
    """Return the names of figures for people, and their values."""
    metrics, details = result.metrics, result.details
    return [(shown_figure(name, details), f"{value:.4f}") for name, value in metrics.items()]


def several_view(result: SeveralRuns) -> RenderableType:
    """Lay out each run, then mean ± standard deviation; failed runs are marked and explained."""
    from pretune.experiments.failed_runs import degenerate_runs

    names = list(result.runs[0].metrics)
    failed = degenerate_runs(result)
    rows: list[list[object]] = []
    # A run that failed is red, as its metrics would mislead.
    for number, run in zip(result.numbers, result.runs, strict=True):
        cells = [*(f"{run.metrics[name]:.4f}" for name in names), f"{run.seconds:.1f}"]
        if number in failed:
            rows.append([Styled(cell, "red") for cell in (f"{number} !", *cells)])
        else:
            rows.append([f"{number}", *cells])
    means, deviations = zip(*result.summary().values(), strict=True) if names else ((), ())
    seconds = sum(run.seconds for run in result.runs) / len(result.runs)
    footer = [
        (tr("mean"), *(f"{mean:.4f}" for mean in means), f"{seconds:.1f}"),
        ("± sd", *(f"{deviation:.4f}" for deviation in deviations), ""),
    ]
    count, folds = len(result.runs), result.kind == "fold"
    shown = [shown_figure(name, result.runs[0].details) for name in names]
    header = (tr("fold") if folds else tr("seed"), *shown, tr("seconds"))
    title = tr(f"{count} folds") if folds else tr(f"{count} seeds")
    grid = Grid(header, rows, title, footer=footer)
    return Group(grid.terminal(), *_failed_runs(failed, count, folds=folds))


def _failed_runs(failed: Mapping[int, str], count: int, *, folds: bool) -> list[Text]:
    if not failed:
        return []
    told = [
        labelled(tr(f"! fold {number}") if folds else tr(f"! seed {number}"), tr(why))
        for number, why in failed.items()
    ]
    lines = [Text(in_line(text), "red") for text in told]
    advice = tr(
        f"{len(failed)} of {count} runs went wrong, so mean and sd say little. Fine-tuning on "
        "little data fails under some seeds; a lower train.learning_rate, a longer "
        "train.warmup and more train.epochs make that rarer."
    )
    return [*lines, Text(advice)]


def out_of_fold_view(answers: OutOfFold) -> RenderableType:
    """Lay out the figures of all out-of-fold answers together, and how many labels look wrong."""
    rows = [(name, f"{value:.4f}") for name, value in answers.figures().items()]
    lines = [Text(label_summary(answers.errors))] if answers.errors is not None else []
    if not rows:
        return Group(*lines)
    count = len(answers.answers)
    title = tr(f"{count:,} out-of-fold answers")
    return Group(Grid(("", tr("value")), rows, title).terminal(), *lines)


def label_summary(errors: LabelErrors) -> str:
    """Tell in a sentence how many labels may be wrong."""
    suspects, count = len(errors.suspects), len(errors.given)
    return tr(
        f"labels: {suspects:,} of {count:,} look wrong; an estimated {errors.wrong_share:.1%} of "
        "all are (confident learning, Northcutt et al. 2021)"
    )


def ranked_view(ranked: RankedTexts, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Lay out the texts to label first, each with the model's answer and its uncertainty."""
    shown, lines = ranked.order[: len(rows)], ranked.records.lines
    numbers = ranked.records.numbers or range(1, len(ranked.records) + 1)
    cells = []
    for number in shown:
        record = ranked.records.rows[number]
        best = ranked.answers[number].ranked()[0]
        texts = (as_text(record.get(name)) or "" for name in ranked.inputs)
        cells.append(
            (
                str((numbers if lines is None else lines)[number]),
                f"{ranked.uncertainty[number]:.3f}",
                f"{best[0]} ({best[1]:.0%})",
                shortened(" | ".join(texts), _EXAMPLE_LENGTH),
            )
        )
    place = tr("row") if lines is None else tr("line")
    header = (place, tr("uncertainty"), tr("answer"), tr("text"))
    title = tr(f"the first {len(cells):,} of {len(ranked.order):,} to label")
    return Grid(header, cells, title, numbers=(0, 1)).terminal()


def evaluation_view(result: Evaluation) -> RenderableType:
    """Lay out all metrics of an evaluation, or the metrics of each class where there are any."""
    signatures = result.details.get("signatures", {})
    lines = [Text(f"{name}: {text}", "dim") for name, text in signatures.items()]
    return Group(evaluation_grid(result).terminal(), *lines)


def evaluation_grid(result: Evaluation) -> Grid:
    """Tabulate the metrics of an evaluation: of each class where there are any, else all."""
    count = result.details.get("examples", result.count)
    title = tr(f"{count:,} examples in {result.seconds:.1f} s")
    classes: Mapping[str, Mapping[str, float]] = result.details.get("per_class", {})
    # Without classes, the metrics are the table; with them, they stand in its title.
    if not classes:
        return Grid(("", tr("value")), _figures(result), title)
    overall = "  ".join(f"{name} {value}" for name, value in _figures(result))
    names = ("precision", "recall", "f1")
    class_rows = [
        (label, *(f"{own[name]:.4f}" for name in names), f"{own['support']:.0f}")
        for label, own in classes.items()
    ]
    header = (tr("label"), *names, "support")
    return Grid(header, class_rows, f"{title}:  {overall}")


def confusion_view(details: Mapping[str, Any]) -> RenderableType | None:
    """Lay out the confusion matrix of an evaluation; None if there is none or it is too wide."""
    grid = confusion_grid(details)
    return None if grid is None else grid.terminal()


def confusion_grid(details: Mapping[str, Any]) -> Grid | None:
    """Tabulate the confusion matrix of an evaluation; None if there is none or it is too wide."""
    labels: Sequence[str] = details.get("labels", ())
    if not 1 < len(labels) <= MAX_CONFUSION_CLASSES:
        return None
    rows = [
        [label, *(Styled(n or "·", "bold" if i == j else "") for j, n in enumerate(row))]
        for i, (label, row) in enumerate(zip(labels, details["confusion"], strict=True))
    ]
    title = tr("rows: the truth; columns: the model's answer")
    return Grid(("", *labels), rows, title)


def samples_view(details: Mapping[str, Any]) -> Text | None:
    """Show replies of a model with the references or the rewards; None if there are none."""
    samples: Sequence[Mapping[str, Any]] = details.get("samples", ())
    if not samples:
        return None
    # Of many some are shown, spread over all of them.
    step = -(-len(samples) // _SHOWN_SAMPLES)
    sheet = Text()
    for number, sample in enumerate(samples[::step], start=1):
        sheet.append(f"{number}. " + one_line(" / ".join(sample["history"])) + "\n", "bold")
        sheet.append(f"   {tr('model')}: {one_line(sample['reply'])}\n")
        if "reference" in sample:
            sheet.append(f"   {tr('given')}: {one_line(sample['reference'])}\n", "dim")
        for name, value in sample.items():
            if isinstance(value, float):  # what the reply was found to be worth
                sheet.append(f"   {in_line(name)}: {value:.4g}\n", "dim")
    return sheet


def sheet_summary(sheet: Sequence[SheetRow]) -> str:
    """Tell in a line what training did to the scores of the replies."""
    from pretune.training.sample_sheet import score_names

    parts = [tr(f"{len(sheet):,} held-out prompts")]
    for name in score_names(sheet):
        before, after = ([r.scores[name] for r in own] for own in _replies(sheet))
        means = (sum(values) / len(sheet) for values in (before, after))
        higher = sum(new > old for old, new in zip(before, after, strict=True))
        lower = sum(new < old for old, new in zip(before, after, strict=True))
        old_mean, new_mean = (f"{mean:.4g}" for mean in means)
        parts.append(
            tr(
                f"{name} {old_mean} before training, {new_mean} after it "
                f"(higher {higher:,} times, lower {lower:,} times)"
            )
        )
    return "; ".join(parts) + "."


def _replies(sheet: Sequence[SheetRow]) -> tuple[list[SheetReply], list[SheetReply]]:
    return [row.before for row in sheet], [row.after for row in sheet]


def sheet_view(sheet: Sequence[SheetRow]) -> Text | None:
    """Show some replies before and after training; None if there are none."""
    if not sheet:
        return None
    text = Text(sheet_summary(sheet) + "\n")
    for number, row in enumerate(sheet[:_SHEET_ROWS], start=1):
        text.append(f"{number}. " + _cut(" / ".join(row.history)) + "\n", "bold")
        for name, reply in ((tr("before"), row.before), (tr("after"), row.after)):
            scores = "".join(f"  {in_line(n)} {score:.4g}" for n, score in reply.scores.items())
            text.append(f"   {name + ':':<7} {_cut(reply.reply)}")
            text.append(scores + "\n", "dim")
    return text


def _cut(text: str) -> str:
    return shortened(one_line(text), _EXAMPLE_LENGTH)


def answer_view(inputs: Mapping[str, Any], answer: Prediction, longest: int = 20) -> Text:
    """Show an input and its answer; scores of classes as bars, at most `longest` of them.

    Where any number of classes may be the answer, a line names those that are, and their bars are
    bold.
    """
    shown = (as_text(value) or "" for value in inputs.values())
    # Neither the input nor a label can look like a line of the answer.
    text = Text().append(in_line("  |  ".join(shown)) + "\n", "bold")
    # Which labels are given depends on the threshold of each, which the bars do not show.
    if answer.given is not None:
        labels = ", ".join(map(listed_label, answer.given)) or tr("none")
        text.append(f"  {tr('labels')}: {labels}\n", "bold")
    ordered = [(in_line(label), score) for label, score in answer.ranked()]
    width = max((len(label) for label, _ in ordered), default=0)
    given = {*map(in_line, answer.given or ())}
    for label, score in ordered[:longest]:
        bar = "█" * round(30 * score)
        style = "bold" if label in given else ""
        text.append(f"  {label:<{width}}  {score:6.1%}  {bar}\n", style)
    # A model that writes has a text instead of scores; other answers show all they have.
    if answer.written is not None:
        lines = for_terminal(answer.written).split("\n")
        text.append("".join(f"  {line}\n" for line in lines))
    elif not ordered:
        for name, value in answer.to_dict().items():
            text.append(f"  {in_line(name)}  {in_line(_plain(value))}\n")
    return text


def answer_line(inputs: Mapping[str, Any], answer: Prediction) -> Text | None:
    """Show a label, or several, and the beginning of the input on one line.

    None for answers of other kinds, which a line does not hold.
    """
    told = answer.to_dict()
    if "label" in told:
        label, score = in_line(told["label"]), told.get("score")
    elif answer.given is not None:
        label, score = ", ".join(map(listed_label, answer.given)) or tr("none"), None
    else:
        return None
    shown = in_line("  |  ".join(as_text(value) or "" for value in inputs.values()))
    share = "" if score is None else f"  {score:6.1%}"
    return Text().append(label, "bold").append(f"{share}  {_cut(shown)}")


def _plain(value: Any) -> str:
    """Write a value of an answer as people read it."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or tr("none")
    return tr("none") if value is None else str(value)


def few_shot_view(result: FewShotResult) -> RenderableType:
    """Lay out a line for each number of shots, the template, and which prompts were shortened."""
    from pretune.evaluation.few_shot.result import summary

    # Over the seeds of each number of shots: accuracy, and the share of each answer.
    summaries = {shots: summary(cells) for shots, cells in result.of_shots().items()}
    answers = list(dict.fromkeys(name for own in summaries.values() for name in own["shares"]))
    answers = answers[:MAX_ANSWER_COLUMNS]
    rows = []
    for shots, own in summaries.items():
        # A single seed has no spread.
        spread = f"{own['sd']:.4f}" if own["seeds"] > 1 else ""
        shares = [f"{own['shares'].get(name, 0.0):.1%}" for name in answers]
        metrics = (f"{own['accuracy']:.4f}", spread, f"{own['macro_f1']:.4f}")
        rows.append((shots, own["seeds"], *metrics, *shares))
    shares = [f"% {name}" for name in answers]
    header = (tr("shots"), tr("seeds"), "accuracy", "± sd", "macro F1", *shares)
    # Below the table: what guessing would reach, and what the prompts lost.
    answer, share = result.majority
    return Group(
        Text(for_terminal(result.template), "dim"),
        Text(),
        Grid(
            header,
            rows,
            tr(f"{result.count:,} questions, score: {result.score}"),
            numbers=range(len(header)),
        ).terminal(),
        Text(in_line(tr(f"always '{answer}': {share:.4f}"))),
        *(
            Text(f"! {tr(shortened_prompts(cell, result.count))}", "red")
            for cell in result.cells
            if cell.shortened
        ),
    )


def shortened_prompts(cell: Cell, count: int) -> str:
    """Describe how many prompts had no room for all of their examples."""
    shots, left_out = "1 shot", "the example was"
    if cell.shots > 1:
        shots = f"{cell.shots} shots"
        left_out = f"the first examples, up to {cell.shots - cell.fewest}, were"
    return (
        f"{shots}, seed {cell.seed}: {cell.shortened:,} of {count:,} prompts were too long for the "
        f"model; {left_out} left out of them"
    )


def comparison_view(compared: Compared, examples: int) -> RenderableType:
    """Lay out a comparison of models: metrics, differences, and `examples` on which they differ."""
    first, *others = compared.names
    # The metrics of each model by itself, then each other model against the first.
    intervals, *differences = comparison_grids(compared)
    parts = [intervals.terminal()]
    if compared.note is not None:
        parts.append(Text(tr(compared.note)))
    for number, name in enumerate(others, start=1):
        parts += [Text(), differences[number - 1].terminal()]
        better, worse = compared.apart(number)
        if compared.judged:
            counts = tr(
                f"only {first} is right: {len(better):,}; only {name} is right: {len(worse):,}"
            )
            parts.append(Text(in_line(counts)))
        for title, which in ((first, better), (name, worse)):
            if examples and which:
                title = (
                    tr(f"Only {title} is right")
                    if compared.judged
                    else tr(f"{title} predicts best")
                )
                grid = _compared_examples(compared, number, title, which[:examples])
                parts += [Text(), grid.terminal()]
    return Group(*parts)


def comparison_grids(compared: Compared) -> list[Grid]:
    """Tabulate the metrics of all models, then how each differs from the first."""
    details = compared.examined[0].details
    intervals = [
        (shown_figure(metric, details), *(_interval(own[metric]) for own in compared.figures))
        for metric in compared.figures[0]
    ]
    title = tr(
        f"{len(compared.examined[0].examples):,} examples, {compared.level:.0%} intervals of "
        f"{compared.resamples:,} resamples"
    )
    others = range(1, len(compared.names))
    first = Grid((tr("metric"), *compared.names), intervals, title)
    return [first, *(_differences(compared, number) for number in others)]


def _differences(compared: Compared, number: int) -> Grid:
    rows, details = [], compared.examined[0].details
    for metric, difference in compared.differences[number - 1].items():
        verdict = _verdict(metric, difference, 1 - compared.level)
        style = {"better": "green", "worse": "red"}.get(verdict, "")
        value, shown = _interval(difference, "+"), shown_figure(metric, details)
        rows.append((shown, value, f"{difference.p:.4f}", Styled(tr(verdict), style)))
    title = tr(f"{compared.names[number]} minus {compared.names[0]}")
    return Grid((tr("metric"), tr("difference"), "p", ""), rows, title, numbers=(1, 2))


def _verdict(metric: str, difference: Difference, significance: float) -> str:
    if difference.value == 0:
        return "the same"
    if difference.p > significance:
        return "may be chance"
    return "better" if (difference.value < 0) == lower_is_better(metric) else "worse"


def _interval(interval: Interval, sign: str = "") -> str:
    low, high = f"{interval.low:{sign}.4f}", f"{interval.high:{sign}.4f}"
    return f"{interval.value:{sign}.4f}  " + tr(f"({low} to {high})")


def _compared_examples(compared: Compared, number: int, title: str, which: list[int]) -> Grid:
    """Tabulate what the first model and model `number` make of the examples `which`."""
    models = compared.examined[0], compared.examined[number]
    kind, places = models[0].places()
    examples = models[0].examples
    with_truth = any(examples[i].grade.truth for i in which)
    rows = []
    for i in which:
        # A model without an answer, such as a language model, is judged by its loss alone.
        text = " | ".join(models[0].text(i).values())
        row: list[object] = [places[i], shortened(text, _EXAMPLE_LENGTH)]
        if with_truth:
            row.append(examples[i].grade.truth)
        for model in models:
            answer, loss = model.examples[i].grade.answer, model.examples[i].mean_loss
            row.append(f"{answer} (loss {loss:.2f})" if answer else f"loss {loss:.4f}")
        rows.append(row)
    truth = [tr("truth")] if with_truth else []
    header = (tr(kind), tr("text"), *truth, compared.names[0], compared.names[number])
    return Grid(header, rows, title, numbers=(0,), ruled=True)
