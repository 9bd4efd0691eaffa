"""`pretune report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result, progress_bar, to_stderr
from pretune.errors import DataError, RunError

if TYPE_CHECKING:
    from pretune.bundle.bundle import Bundle
    from pretune.evaluation.examine import Examined
    from pretune.text.console import PlainConsole


@command(
    "report",
    "pretune report runs/emotion",
    "pretune report runs/emotion test.tsv --output test.html --png pictures",
    "pretune report runs/emotion --explain 20 --example 17 --example 1204",
    "pretune report runs/translate test.de,test.en --set beams=1",
    "pretune report runs/tickets --lang zh",
)
def report(
    context: typer.Context,
    run: options.Run,
    data: Annotated[
        str | None,
        Argument(help="A labelled file, or a Hub dataset. Default: the validation data."),
    ] = None,
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="The page to write. Default: report.html in the run folder."),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an existing page.")] = False,
    png: Annotated[
        Path | None, Option(metavar="FOLDER", help="Write the pictures to this folder too.")
    ] = None,
    lang: options.Lang = None,
    label_errors: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Of a classifier: write every example with the quality of its label (confident "
            "learning): a .csv, .tsv, .jsonl or .parquet file.",
        ),
    ] = None,
    limit: options.Limit = None,
    explain: Annotated[
        int, Option(min=0, help="Number of examples to explain, the worst first.")
    ] = 5,
    examples: Annotated[
        list[int] | None,
        Option(
            "--example",
            metavar="LINE",
            help="Explain the example at this line of the data too; may be repeated.",
        ),
    ] = None,
    columns: options.Columns = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    max_chars: options.MaxChars = None,
    device: options.Device = "auto",
    task_options: options.TaskSet = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Write one page about a trained model: its training, its mistakes, every example.

    The page is a single file that opens in any browser, without a network.
    """
    from pretune.bundle.bundle import load
    from pretune.evaluation.examine import examine
    from pretune.evaluation.explain import explain as explain_one
    from pretune.experiments.history import MetricHistory
    from pretune.inference.answer_table import check_table
    from pretune.render.charts import undrawable
    from pretune.render.report import ReportFacts, check_writable, write_report
    from pretune.training.run_folder import METRICS, RECIPE, RunFolder
    from pretune.training.sample_sheet import SAMPLES, read_sheet

    # Mistakes in the command line are reported before the model is loaded.
    options.only_with_data(context, data, "DATA")
    # A model that is no run has no folder for the page, and no history for it.
    place, notes = Path(run), to_stderr()
    is_run = (place / RECIPE).is_file()
    output = output or (place if is_run else Path()) / "report.html"
    check_writable(output, png, overwrite=overwrite)
    if label_errors is not None:
        check_table(label_errors, Path(data or ""), overwrite=overwrite)
    bundle = load(run, options=options.option_pairs(task_options), allow_pickle=allow_pickle)
    recipe = RunFolder(place).recipe() if is_run else None
    result = RunFolder(place).result() if is_run else None
    records = options.records_to_examine(context, run, bundle, data)
    # Every example: its loss, the answer, and whether that is right.
    with progress_bar("examining") as bar:
        examined = examine(bundle, records.head(limit), device=device, progress=bar)
    if label_errors is not None:
        _write_label_errors(run, examined, label_errors)
    # A temperature is fitted on the validation data, if the page is about other data.
    calibrates = any(d.distribution for e in examined.examples for d in e.grade.decisions)
    fitted = None
    if data is not None and is_run and calibrates:
        fitted = _fitted_on(bundle, place, device, notes)
    # Which tokens the loss depends on, of the examples asked for and of the worst.
    worst = examined.worst_first()[:explain] if examined.has_losses else []
    chosen = dict.fromkeys([*_numbers(examined, examples or []), *worst])
    explained = {}
    with progress_bar("explaining", len(chosen)) as bar:
        for count, number in enumerate(chosen, start=1):
            explained[number] = explain_one(examined, number)
            if bar is not None:
                bar(count)
    facts = ReportFacts(
        name=place.resolve().name if is_run else run,
        examined=examined,
        recipe=None if recipe is None else recipe.to_yaml(),
        history=MetricHistory.read(place / METRICS),
        explained=explained,
        sheet=read_sheet(place / SAMPLES),
        fitted=fitted,
        data={} if result is None else result.data,
    )
    with options.page_language(lang):
        write_report(facts, output, png)
    note = None if png is None else undrawable(examined.details.get("labels", []))
    if note is not None:
        notes.say(note)
    size = output.stat().st_size / 1e6
    last = f"wrote {output} ({len(examined.examples):,} examples, {size:.1f} MB)"
    print_result({}, last, as_json=False, saved=True)


def _write_label_errors(run: str, examined: Examined, output: Path) -> None:
    """Write every example with what confident learning says of its label."""
    from pretune.inference.answer_table import AnswerTable
    from pretune.render.report import examined_label_errors

    errors, records = examined_label_errors(examined), examined.records
    if errors is None:
        raise RunError(
            f"{run}: --label-errors is about answers that are one of several labels",
            f"Leave it out: the task is {examined.task.name}.",
        )
    labels, names = examined.details["labels"], records.renamed
    # What an interrupted command left is of nothing that can be told from this.
    output.with_name(f"{output.name}.part").unlink(missing_ok=True)
    table = AnswerTable(output, {})
    table.add(
        {names.get(name, name): value for name, value in records.rows[example.record].items()}
        | errors.columns(number, labels)
        for number, example in enumerate(examined.examples)
    )
    table.finish()
    to_stderr().say(f"wrote {output}: {len(errors.suspects):,} labels look wrong")


def _numbers(examined: Examined, places: list[int]) -> list[int]:
    """The numbers of the examples that begin at some lines (or rows) of the data."""
    kind, known = examined.places()
    for place in places:
        if place not in known:
            raise RunError(
                f"--example {place}: no example begins in that {kind} of {examined.records.origin}",
                f"They are in the {kind}s {min(known)} to {max(known)}.",
            )
    return [number for number, place in enumerate(known) if place in places]


def _fitted_on(bundle: Bundle, run: Path, device: str, notes: PlainConsole) -> Examined | None:
    """The validation data of the run, examined; None if they cannot be used."""
    from pretune.evaluation.examine import examine
    from pretune.training.data import held_out

    try:
        records = held_out(run)
        if records is None:
            return None
        with progress_bar("examining the validation data") as bar:
            return examine(bundle, records, device=device, progress=bar)
    except DataError as error:
        notes.say(f"The temperature is fitted on DATA itself: {error.message}")
        return None
